"""A whole audit: all tables together, and changes of it that the command line asks for."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from audit.config.amounts import AutoMemory
from audit.config.classifiers import ClassifierConfig, JudgeConfig
from audit.config.counterfactual import CounterfactualConfig, QueryConfig
from audit.config.data import DataConfig, RegionsConfig
from audit.config.defaults import Effort, filled
from audit.config.engine import RayConfig
from audit.config.generator import GeneratorConfig, InversionConfig
from audit.config.metrics import MetricsConfig, RankingConfig
from audit.config.places import container_of, is_shipped
from audit.config.reliance import AttributionConfig, RelianceConfig
from audit.config.robustness import Precision, RobustnessConfig
from audit.config.section import Section, switched
from audit.errors import ConfigError


class AuditConfig(Section):
    """A whole audit. Relative paths are relative to the configuration file."""

    preset: Literal["spruce-thesis"] | None = Field(
        None,
        description="settings that stand in for the defaults of many keys (docs/design.md); a key that is given wins",
    )
    effort: Effort = Field(
        "standard",
        description="quick, thorough: fewer or more images and attack steps where a key is not given "
        "(docs/guide.md#how-much-to-measure); `run --quick` and `--thorough` set it, too",
    )
    name: str = Field("audit", description="title of the report")
    seed: int = Field(0, ge=0, description="everything that is drawn at random follows from it")
    device: str = Field("auto", description="'auto' takes a GPU when there is one; or 'cpu', 'cuda', 'cuda:1', 'mps'")
    compiled: Literal["auto", "on", "off"] = Field(
        "auto",
        description="whether the certificate of loading compares each model with what torch.compile makes of it, half "
        "a minute and more a model; auto: on a GPU",
    )
    precision: Precision = Field(
        "float32",
        description="of gradients of PGD and of answers to corrupted and changed images, for models whose decisions it "
        "does not change (docs/robustness.md#in-16-bits)",
    )
    max_memory: AutoMemory = Field(
        "auto",
        description="bound on what the images worked on together take, measured: batches are worked on in parts that "
        "fit; auto: 2GB, and half of a GPU's memory",
    )
    engine: Literal["local", "ray"] = Field(
        "local",
        description="where parts of the work are computed: on this machine, or on a Ray cluster (docs/cluster.md)",
    )
    workers: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="processes of the local engine, which share the threads; auto: one for every GPU, else one"
    )
    ray: RayConfig = RayConfig()
    data: DataConfig
    regions: RegionsConfig = RegionsConfig()
    queries: QueryConfig = QueryConfig()
    generator: GeneratorConfig | None = Field(None, description="absent: robustness only, no counterfactuals")
    inversion: InversionConfig = InversionConfig()
    counterfactual: CounterfactualConfig = CounterfactualConfig()
    robustness: RobustnessConfig = RobustnessConfig()
    reliance: RelianceConfig | None = Field(RelianceConfig(), description="false: what models rely on is not measured")
    metrics: MetricsConfig = MetricsConfig()
    ranking: RankingConfig = RankingConfig()
    attribution: AttributionConfig | None = Field(None, description="absent: no attribution maps")
    classifiers: tuple[ClassifierConfig, ...] = Field(min_length=1)
    judge_checkpoints: tuple[JudgeConfig, ...] = Field(
        (), description="classifiers that are not audited and only judge the counterfactuals of those that are"
    )

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, values: Any) -> Any:
        return filled(values)

    @field_validator("reliance", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return switched(value)

    @model_validator(mode="after")
    def _unique_names(self) -> "AuditConfig":
        audited = [c.name for c in self.classifiers]
        names = [*audited, *(j.name for j in self.judge_checkpoints)]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"classifier and judge names must differ; used twice: {', '.join(twice)}")
        baselines = [c.name for c in self.classifiers if c.role == "baseline"]
        if len(baselines) > 1 or len(baselines) == len(self.classifiers):
            raise ValueError(
                f'role = "baseline" is given to {", ".join(baselines)}: it is for one classifier, beside at least one '
                "other that is compared with it"
            )
        for judge in self.judge_checkpoints:
            if judge.copy_of is not None and judge.copy_of not in audited:
                raise ValueError(
                    f"judge '{judge.name}' is a copy_of '{judge.copy_of}', which is no audited classifier: name one of "
                    f"{', '.join(audited)}"
                )
        return self


def with_baseline(config: AuditConfig, checkpoint: str | Path) -> AuditConfig:
    """Return `config` with one more classifier: its only one, with the weights of `checkpoint`, as the baseline.

    Raises ConfigError where it is not clear which classifier that would be like.
    """
    names = [one.name for one in config.classifiers]
    if len(names) > 1:
        raise ConfigError(
            f"--baseline takes the settings of the only classifier, and the configuration has {', '.join(names)}: "
            'give the old checkpoint a [[classifiers]] table of its own, with role = "baseline".'
        )
    (candidate,) = config.classifiers
    key = "checkpoint" if candidate.checkpoint is not None else "file"
    if getattr(candidate, key) is None or container_of(candidate.file) is not None:
        raise ConfigError(
            f"--baseline stands in for the checkpoint of '{names[0]}', which has none of its own: give the old model a "
            '[[classifiers]] table with role = "baseline".'
        )
    place = str(checkpoint) if is_shipped(str(checkpoint)) else str(Path(checkpoint).expanduser().resolve())
    taken = {candidate.name, *(judge.name for judge in config.judge_checkpoints)}
    name = next(n for n in ("baseline", f"{candidate.name} (baseline)") if n not in taken)
    old = candidate.model_copy(update={"name": name, "role": "baseline", key: place})
    return config.model_copy(update={"classifiers": (candidate, old)})


def allowing_code(config: AuditConfig) -> AuditConfig:
    """Return `config` with `allow_code` for every classifier and judge that comes as a file."""

    def allowing(one: ClassifierConfig) -> ClassifierConfig:
        idle = one.file is None or container_of(one.file) is not None
        return one if idle else one.model_copy(update={"allow_code": True})

    tables = {table: tuple(map(allowing, getattr(config, table))) for table in ("classifiers", "judge_checkpoints")}
    return config.model_copy(update=tables)
