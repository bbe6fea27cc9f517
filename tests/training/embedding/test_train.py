"""The domain embedding's training: loss by hand, views, what a run writes and resumes to, what its card measures."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from audit.classifiers.load import load_classifier
from audit.config import ClassifierConfig, parse_config, read_toml
from audit.data import phantom
from audit.data.audit_set import AuditSet
from audit.embeddings.domain import DomainEncoder, load_domain
from audit.embeddings.embedding import Pixels
from audit.embeddings.resolve import Request, resolve
from audit.errors import ConfigError, DataError, GeneratorError
from audit.runtime.distributed import Workers
from audit.training.embedding import train as embedding
from audit.training.embedding.config import EmbeddingTrainConfig, ViewsConfig, load_embedding_train_config
from audit.training.embedding.contrastive import Contrasted, nt_xent, two_views
from audit.training.embedding.scores import PIXEL_SIDE, TowardsHealthy, sensitivity, twin_images
from audit.training.embedding.train import contrast, divided, stream, train_embedding
from audit.training.shared import loop

CONFIG = Path(__file__).parents[3] / "benchmarks" / "phantom" / "domain.toml"
VALUES: dict[str, Any] = {
    "name": "tiny",
    "device": "cpu",
    "data": {"path": "phantom", "calibration_split": "calibration", "phantom": {"calibration": 60, "audit": 20}},
    "widths": [8, 8],
    "features": 16,
    "projection": 8,
    "optimiser": {"steps": 4, "batch_size": 8},
    "selection": {"every": 2, "n": 8},
    "evaluation": {"fitted": 40, "n": 20, "twins": 16, "steps": 1},
}


def config(**change: object) -> EmbeddingTrainConfig:
    return parse_config(EmbeddingTrainConfig, VALUES | change, "test")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grey_set(n: int, classes: int = 2, side: int = 16) -> AuditSet:
    """`n` random grey images, half of them in the split 'train'."""
    images = torch.rand(n, side, side, generator=seeded(9)).numpy()
    return AuditSet(
        read_image=lambda row: images[row],
        labels=np.arange(n) % classes,
        class_names=tuple(f"class {k}" for k in range(classes)),
        ids=tuple(map(str, range(n))),
        splits=np.where(np.arange(n) < n // 2, "train", "test"),
        image_shape=(1, side, side),
    )


# The loss


@given(n=st.integers(2, 8), temperature=st.floats(0.1, 2.0), seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_loss_is_equation_1_row_by_row(n: int, temperature: float, seed: int) -> None:
    z = torch.randn(2 * n, 5, generator=seeded(seed)).double()
    total = 0.0
    for i in range(2 * n):
        similar = [math.exp(float(torch.cosine_similarity(z[i], z[k], dim=0)) / temperature) for k in range(2 * n)]
        partner = (i + n) % (2 * n)
        total -= math.log(similar[partner] / (sum(similar) - similar[i]))
    assert float(nt_xent(z, temperature)) == pytest.approx(total / (2 * n), rel=1e-6)


@given(n=st.integers(2, 8), seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_loss_ignores_length_and_is_least_for_equal_partners(n: int, seed: int) -> None:
    z = torch.randn(n, 6, generator=seeded(seed)).double()
    views = torch.cat([z, z + 0.5 * torch.randn(n, 6, generator=seeded(seed + 1)).double()])
    lengths = 0.1 + torch.rand(2 * n, 1, generator=seeded(seed + 2)).double()
    assert float(nt_xent(views * lengths, 0.2)) == pytest.approx(float(nt_xent(views, 0.2)), rel=1e-9)
    orthogonal = torch.eye(2 * n)[:n].repeat(2, 1)
    least = -math.log(math.exp(5) / (math.exp(5) + 2 * n - 2))
    assert float(nt_xent(orthogonal, 0.2)) == pytest.approx(least, rel=1e-4)


# Views and batches


def test_views_differ_keep_the_bounds_and_pair_up() -> None:
    images = phantom.sample(6, 3).images
    views = two_views(images, ViewsConfig(), seeded(0))
    assert views.shape == (12, 1, 64, 64)
    assert views.min() >= 0
    assert views.max() <= 1
    assert (views[:6] - views[6:]).abs().flatten(1).mean(dim=1).min() > 1e-3
    still = ViewsConfig(crop=1, rotation=0, translation=0, brightness=0, contrast=0, noise=0, blur=0)
    assert torch.equal(two_views(images, still, seeded(0)), images.repeat(2, 1, 1, 1))


def test_nothing_is_mirrored_unless_asked() -> None:
    assert ViewsConfig().flip == 0
    assert config(augmentation={"flip": True}).augmentation.flip == 0.5


def test_a_pass_shows_every_image_once_and_processes_share_a_batch() -> None:
    still = dict.fromkeys(("rotation", "translation", "brightness", "contrast", "noise", "blur"), 0)
    plain = config(augmentation={**still, "crop": 1})
    images = grey_set(32)
    batch = stream(plain, images)
    seen = torch.cat([batch(step)[:8] for step in range(4)]).flatten(1)
    assert torch.equal(seen.sort(dim=0).values, images.images().flatten(1).sort(dim=0).values)
    halves = [stream(plain, images, Workers(rank, 2))(1) for rank in (0, 1)]
    assert torch.equal(torch.cat([h[:4] for h in halves]), batch(1)[:8])
    assert torch.equal(stream(config(), images)(3), stream(config(), images)(3))


def test_images_held_back_are_not_learnt_from() -> None:
    learnt, held_back = divided(grey_set(40), 100, 0)
    assert (len(learnt), len(held_back)) == (32, 8)
    assert set(learnt.row_ids).isdisjoint(held_back.row_ids)
    with pytest.raises(DataError, match="12 images in memory"):
        divided(grey_set(12), 4, 0)


def test_learning_lowers_the_contrast_of_unseen_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "scores", lambda *args: {})
    learning = config(
        widths=[8, 16, 32],
        optimiser={"steps": 40, "batch_size": 16, "lr": 1e-2},
        selection={"every": 40, "n": 12},
        augmentation={"crop": 0.9, "rotation": 2, "translation": 0.01},
    )
    path = train_embedding(learning, tmp_path)
    card = json.loads(path.with_suffix(".json").read_text())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = Contrasted(DomainEncoder("fresh", (1, 64, 64), (8, 16, 32), 16), 8)
    whole = embedding.load_images(learning.data, learning.seed)
    _, held_back = divided(whole.split("calibration"), 12, learning.seed)
    assert card["selection"]["loss"] < contrast(fresh, held_back, learning, torch.device("cpu")) - 0.3


# What a run leaves


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_embedding(config(generator="shipped:phantom"), tmp_path_factory.mktemp("embedding"))


def card_of(path: Path) -> dict[str, Any]:
    card = json.loads(path.with_suffix(".json").read_text())
    assert card.pop("seconds") > 0
    return dict(card)


def test_weights_and_card_belong_together(trained: Path) -> None:
    card, network = card_of(trained), load_domain(trained)
    assert sorted(p.name for p in trained.parent.iterdir()) == ["tiny.json", "tiny.safetensors"]
    assert card["weights_sha256"] == network.weights_sha256
    assert (network.name, network.image_shape, network.widths) == ("tiny", (1, 64, 64), (8, 8))
    assert card["data"] == {"source": "phantom", "split": "calibration", "train": 52, "held_back": 8}
    assert [step for step, _ in card["selection"]["history"]] == [2, 4]
    assert card["selection"]["loss"] == min(loss for _, loss in card["selection"]["history"])
    assert card["images_seen"] == 32
    assert parse_config(EmbeddingTrainConfig, card["config"], "card").optimiser.steps == 4


def test_the_card_measures_the_embedding_beside_its_yardsticks(trained: Path) -> None:
    scores = card_of(trained)["scores"]
    assert list(scores["embeddings"]) == ["tiny", "discriminator", "phantom-factors", "pixels"]
    assert scores["probes"] == {"fitted_on": 40, "split": "test", "n": 20}
    assert scores["twins"] == {"n": 16, "eps": "8/255", "steps": 1, "attacked": "plain"}
    for row in scores["embeddings"].values():
        for probe in ("linear_probe", "k_nn"):
            assert row[probe]["n"] == 20
            assert 0 <= row[probe]["low"] <= row[probe]["value"] <= row[probe]["high"] <= 1
        assert row["sensitivity"]["twin"]["share_nearer"]["n"] == 16
        assert set(row["sensitivity"]["mmd"]) == {"finding", "twin", "adversarial", "noise", "floor"}


def test_an_interrupted_run_ends_in_the_same_files(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    whole = embedding.stream

    def dying(*arguments: Any) -> Any:
        batch = whole(*arguments)

        def one(step: int) -> torch.Tensor:
            if step == 3:
                raise KeyboardInterrupt
            return batch(step)

        return one

    with monkeypatch.context() as broken:
        broken.setattr(embedding, "stream", dying)
        with pytest.raises(KeyboardInterrupt):
            train_embedding(config(generator="shipped:phantom"), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.checkpoint.pt"]
    resumed = train_embedding(config(generator="shipped:phantom"), tmp_path)
    assert resumed.read_bytes() == trained.read_bytes()
    assert card_of(resumed) == card_of(trained)


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(embedding, "scores", lambda *args: (_ for _ in ()).throw(InterruptedError))
        with pytest.raises(InterruptedError):
            train_embedding(config(), tmp_path)
    with pytest.raises(ConfigError, match="another configuration"):
        train_embedding(config(temperature=0.5), tmp_path)


def test_images_without_labels_are_enough(tmp_path: Path) -> None:
    folder = tmp_path / "images" / "all"
    folder.mkdir(parents=True)
    for i, image in enumerate(torch.rand(40, 24, 24, generator=seeded(4))):
        Image.fromarray((image.numpy() * 255).astype(np.uint8)).save(folder / f"{i}.png")
    data = {"path": str(tmp_path / "images")}
    path = train_embedding(config(data=data), tmp_path / "out")
    card = card_of(path)
    assert "not_computed" in card["scores"]["probes"]
    assert list(card["scores"]["embeddings"]) == ["tiny", "pixels"]
    assert str(tmp_path) not in json.dumps(card)
    assert load_domain(path).image_shape == (1, 24, 24)


def test_an_audit_takes_the_file_it_names(trained: Path) -> None:
    for is_phantom in (True, False):
        request = Request("metrics.embedding", torch.device("cpu"), is_phantom)
        assert resolve(str(trained), request, "vectors and maps").name == "tiny"


# What the card measures


def test_adversarial_examples_are_towards_healthy_and_within_eps() -> None:
    made = twin_images(16, 5, 8 / 255, 10, torch.device("cpu"))
    assert (made["adversarial"] - made["finding"]).abs().max() <= 8 / 255 + 1e-6
    assert {name: len(images) for name, images in made.items()} == {
        "finding": 16,
        "twin": 16,
        "adversarial": 16,
        "noise": 16,
        "healthy": 48,
    }
    source = ClassifierConfig(name="plain", checkpoint="shipped:plain")
    plain = load_classifier(source, (1, 64, 64), phantom.CLASS_NAMES)
    with torch.no_grad():
        before, after = (plain(made[name]).argmax(1) == phantom.HEALTHY for name in ("finding", "adversarial"))
    assert before.float().mean() < 0.3
    assert after.float().mean() > 0.7


def test_two_answers_keep_the_probability_of_healthy() -> None:
    logits = torch.randn(5, 3, generator=seeded(6))
    two = TowardsHealthy(torch.nn.Identity())(logits)
    torch.testing.assert_close(two.softmax(1)[:, 0], logits.softmax(1)[:, phantom.HEALTHY])


def test_sensitivity_of_an_embedding_that_sees_the_finding_and_nothing_else() -> None:
    class Oracle:
        name = "oracle"
        weights_sha256 = ""

        def embed(self, images: torch.Tensor) -> torch.Tensor:
            angle = images.flatten(1)[:, :2]
            return torch.stack([angle.sum(1).cos(), angle.sum(1).sin()], dim=1)

    def images(angle: float, n: int, seed: int) -> torch.Tensor:
        out = torch.zeros(n, 1, 2, 2)
        out[:, 0, 0, 0] = angle + 0.05 * torch.rand(n, generator=seeded(seed))
        return out

    made = {
        "healthy": images(0, 90, 0),
        "finding": images(0.9, 30, 1),
        "twin": images(0, 30, 2),
        "adversarial": images(0.9, 30, 1),
    }
    made["adversarial"][:, 0, 0, 1] = 0.05
    made["noise"] = made["finding"]
    seen = sensitivity(Oracle(), made, 0, torch.device("cpu"))
    assert seen["twin"]["share_nearer"]["value"] == 1
    assert seen["twin"]["effect"]["high"] < -1
    assert seen["adversarial"]["share_nearer"]["value"] == 0
    assert seen["adversarial"]["effect"]["low"] > 1
    assert seen["gap_closed"]["twin"] == pytest.approx(1, abs=0.05)
    assert seen["gap_closed"]["adversarial"] < 0
    assert seen["gap_closed"]["noise"] == pytest.approx(0, abs=1e-9)


def test_raw_pixels_are_averaged_where_they_are_many() -> None:
    assert Pixels(PIXEL_SIDE).embed(torch.rand(2, 3, 64, 20)).shape == (2, 3 * 32 * 20)


# The configuration


def test_the_shipped_configuration_takes_the_images_of_the_shipped_generator() -> None:
    own = load_embedding_train_config(CONFIG)
    generator = read_toml(CONFIG.with_name("generator.toml"))
    assert (own.seed, own.data.calibration_split) == (generator["seed"], generator["data"]["calibration_split"])
    assert own.data.phantom.calibration == generator["data"]["phantom"]["calibration"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"name": "clip-own"}, "name.*taken for 'clip'"),
        ({"widths": [12]}, "widths"),
        ({"augmentation": {"blurr": 1}}, "did you mean 'blur'"),
        ({"optimiser": {"steps": 2, "epochs": 1}}, "exactly one"),
    ],
)
def test_bad_configurations_are_refused(change: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        config(**change)


def test_an_image_alone_has_nothing_to_be_told_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"optimiser\.batch_size is 1 for 1 process.*2 or more"):
        train_embedding(config(optimiser={"steps": 1, "batch_size": 1}), tmp_path)
    with pytest.raises(ConfigError, match=r"is 8 for 8 process.*16 or more"):
        stream(config(), grey_set(20), Workers(3, 8))


def test_a_generator_that_does_not_fit_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "train", lambda *args, **kwargs: pytest.fail("trained first"))
    with pytest.raises(GeneratorError, match="32"):
        train_embedding(config(generator="shipped:phantom", data=VALUES["data"] | {"image_size": 32}), tmp_path)
    with pytest.raises(GeneratorError, match="nowhere"):
        train_embedding(config(generator=str(tmp_path / "nowhere.safetensors")), tmp_path)


def test_probes_are_not_judged_on_images_learnt_from(tmp_path: Path) -> None:
    card = card_of(train_embedding(config(split="test", optimiser={"steps": 1, "batch_size": 8}), tmp_path))
    assert "was not learnt from" in card["scores"]["probes"]["not_computed"]
    assert "sensitivity" in card["scores"]["embeddings"]["tiny"]
