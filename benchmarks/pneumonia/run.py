"""PneumoniaMNIST from the archive to the report: trains generator and classifiers on the train split, then audits.

    python benchmarks/pneumonia/run.py --data pneumoniamnist.npz [--work runs/pneumonia] [--out reports/pneumonia]

The generator is trained in three stages. The later ones learn from AlexNet's features, too, which must be there
(`spruce-audit weights pull lpips-v0.1-alex`), and choose their snapshots in a domain embedding that is trained before
them; then comes its encoder. Every training can be killed and goes on where it was; what is finished is not trained
again.
"""

import argparse
import shutil
from pathlib import Path

from audit.config import load_config
from audit.pipeline.runner import run_audit
from audit.training.classifier.config import load_classifier_train_config
from audit.training.classifier.train import train_classifier
from audit.training.embedding.config import load_embedding_train_config
from audit.training.embedding.train import train_embedding
from audit.training.encoder.config import load_encoder_train_config, run_encoder_training
from audit.training.generator.config import load_generator_train_config
from audit.training.generator.train import run_generator_training

HERE = Path(__file__).parent
CLASSIFIERS = ("plain", "trades-small", "trades")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="PneumoniaMNIST in MedMNIST's .npz layout")
    parser.add_argument("--work", type=Path, default=Path("runs/pneumonia"), help="folder for weights and checkpoints")
    parser.add_argument("--out", type=Path, default=Path("reports/pneumonia"))
    parser.add_argument("--only", choices=("generator", "classifiers", "audit"), help="do only this part")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    for file in HERE.glob("*.toml"):
        shutil.copy(file, args.work)
    archive = args.work / "pneumoniamnist.npz"
    if args.data.resolve() != archive.resolve():
        shutil.copyfile(args.data, archive)
    if args.only in (None, "classifiers"):
        for name in CLASSIFIERS:
            if not (args.work / name / f"{name}.json").exists():
                train_classifier(load_classifier_train_config(args.work / f"{name}.toml"), args.work / name)
    if args.only in (None, "generator"):
        for stage in ("generator-first", "generator-second", "generator"):
            if stage == "generator-second" and not (args.work / "domain" / "pneumonia-domain.json").exists():
                train_embedding(load_embedding_train_config(args.work / "domain.toml"), args.work / "domain")
            run_generator_training(load_generator_train_config(args.work / f"{stage}.toml"), args.work / stage)
        run_encoder_training(load_encoder_train_config(args.work / "encoder.toml"), args.work / "encoder")
    if args.only in (None, "audit"):
        run_audit(args.work / "audit.toml", args.out, cache=args.work / "cache")
        print(load_config(args.work / "audit.toml").name, "->", args.out / "report.html")


if __name__ == "__main__":
    main()
