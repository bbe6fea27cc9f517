"""One validated schema of an audit: what `audit.toml` may say, with defaults, units and clear errors."""

from audit.config.amounts import MEMORY_ON_CPU, AutoMemory, Eps, EpsL2, Memory, eps_value, memory_bytes
from audit.config.classifiers import (
    LARGEST_SIDE,
    ClassifierConfig,
    JudgeConfig,
    PerChannel,
    Threshold,
    why_not_pixel_units,
)
from audit.config.counterfactual import CounterfactualConfig, Methods, QueryConfig
from audit.config.data import DataConfig, PhantomConfig, RegionsConfig, Training
from audit.config.defaults import EFFORTS, PRESETS, Effort
from audit.config.engine import RayConfig
from audit.config.generator import GeneratorConfig, InversionConfig
from audit.config.load import load_config, load_training, recorded, resolve_paths
from audit.config.metrics import MetricsConfig, RankingConfig
from audit.config.places import (
    SHIPPED,
    Weights,
    container_of,
    embedding_path,
    is_embedding_file,
    is_shipped,
    note_on_spelling,
    resolve_path,
)
from audit.config.reading import parse_config, read_config, read_toml
from audit.config.reliance import AttributionConfig, Place, RelianceConfig, TokenConfig
from audit.config.robustness import (
    AttackName,
    CorruptionsConfig,
    DistanceConfig,
    EnsembleConfig,
    LowPrecision,
    Precision,
    RobustnessConfig,
    TrustConfig,
    VulnerabilityConfig,
)
from audit.config.section import Section, switched
from audit.config.whole import AuditConfig, allowing_code, with_baseline
from audit.errors import ConfigError

__all__ = [
    "EFFORTS",
    "LARGEST_SIDE",
    "MEMORY_ON_CPU",
    "PRESETS",
    "SHIPPED",
    "AttackName",
    "AttributionConfig",
    "AuditConfig",
    "AutoMemory",
    "ClassifierConfig",
    "ConfigError",
    "CorruptionsConfig",
    "CounterfactualConfig",
    "DataConfig",
    "DistanceConfig",
    "Effort",
    "EnsembleConfig",
    "Eps",
    "EpsL2",
    "GeneratorConfig",
    "InversionConfig",
    "JudgeConfig",
    "LowPrecision",
    "Memory",
    "Methods",
    "MetricsConfig",
    "PerChannel",
    "PhantomConfig",
    "Place",
    "Precision",
    "QueryConfig",
    "RankingConfig",
    "RayConfig",
    "RegionsConfig",
    "RelianceConfig",
    "RobustnessConfig",
    "Section",
    "Threshold",
    "TokenConfig",
    "Training",
    "TrustConfig",
    "VulnerabilityConfig",
    "Weights",
    "allowing_code",
    "container_of",
    "embedding_path",
    "eps_value",
    "is_embedding_file",
    "is_shipped",
    "load_config",
    "load_training",
    "memory_bytes",
    "note_on_spelling",
    "parse_config",
    "read_config",
    "read_toml",
    "recorded",
    "resolve_path",
    "resolve_paths",
    "switched",
    "why_not_pixel_units",
    "with_baseline",
]
