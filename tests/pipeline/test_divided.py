"""An audit whose parts are computed elsewhere: the same results as of one process, whatever nodes are lost."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from audit.classifiers.identity import identity
from audit.config import AuditConfig, RayConfig
from audit.errors import ConfigError
from audit.pipeline import node
from audit.pipeline.runner import run_audit
from audit.runtime import engine as engines
from audit.storage import shipped

AUDIT = """
[data]
path = "phantom"
phantom = { calibration = 60, audit = 40 }

[robustness]
n = 16
batch_size = 8
steps = 2
eps = ["8/255"]
attacks = ["pgd", "transfer"]
distance = { n = 8, bisections = 2 }
trust = { n = 8 }
corruptions = { n = 12, names = ["fog", "contrast"], severities = [3] }

[reliance]
n = 12
interventions = ["border"]

[[classifiers]]
name = "plain"
checkpoint = "shipped:plain"

[[classifiers]]
name = "trades"
checkpoint = "shipped:trades"
"""


EXPLAINED = """
[data]
path = "phantom"
phantom = { calibration = 160, audit = 40 }

[queries]
n = 4
target = "healthy"

[robustness]
n = 8
steps = 2
eps = ["8/255"]
attacks = ["pgd"]

[generator]
path = "shipped:phantom"

[inversion]
pivot_steps = 4
tuning_steps = 4
batch_size = 2

[counterfactual]
steps = 20
shrink_steps = 2
batch_size = 2
min_calibration = 10

[metrics]
canonical = "off"
min_images = 3
axioms = 1

[ranking]
bootstrap = 100

[[classifiers]]
name = "plain"
checkpoint = "shipped:plain"

[[classifiers]]
name = "plain-again"
checkpoint = "shipped:plain-again"
"""


@pytest.fixture
def config() -> AuditConfig:
    return AuditConfig.model_validate(tomllib.loads(AUDIT))


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return results(AuditConfig.model_validate(tomllib.loads(AUDIT)))


def results(config: AuditConfig, **run: Any) -> dict[str, Any]:
    """Return all fields of an audit's results but those that say when and where it ran."""
    return run_audit(config, **run).model_dump(mode="json", exclude={"created", "environment", "config"})


def parts_that_come_back(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which every part adds, when it is back, how many entries came with it."""
    counts: list[int] = []
    for kind in (engines.Processes, engines.Cluster):
        real = kind.map

        def counting(self: Any, work: Any, items: Any, real: Any = real) -> Iterator[Any]:
            for place, found in real(self, work, items):
                counts.append(len(found or ()))
                yield place, found

        monkeypatch.setattr(kind, "map", counting)
    return counts


@pytest.mark.slow
def test_processes_find_what_one_process_finds(
    config: AuditConfig, alone: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = parts_that_come_back(monkeypatch)
    several = config.model_copy(update={"workers": 2})
    assert results(several, cache=tmp_path / "store") == alone
    assert len(counts) == 2 * (1 + 2) + 2  # of each model its answers and two batches, then what rests on these
    assert all(counts)
    assert results(several, cache=tmp_path / "store") == alone
    assert len(counts) == 8, "what is in the store is not computed again"


@pytest.mark.slow
def test_processes_draw_the_counterfactuals_that_one_process_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = AuditConfig.model_validate(tomllib.loads(EXPLAINED))
    counts = parts_that_come_back(monkeypatch)
    found = results(config.model_copy(update={"workers": 2}), cache=tmp_path / "store")
    # Of each model its answers, and the only batch with what rests on it; two sets of images as realism sees them;
    # three lots of inversions; two lots of counterfactuals of each model, and what leads back.
    assert len(counts) == 2 * 2 + 2 + 3 + 2 * 2 + 2
    assert all(counts)
    assert found == results(config)
    assert all(model["counterfactuals"]["axioms"]["returned"] is not None for model in found["models"])


def test_a_process_that_cannot_read_a_model_says_where(config: AuditConfig, tmp_path: Path) -> None:
    (lost, other) = config.classifiers
    unread = config.model_copy(
        update={"classifiers": (lost.model_copy(update={"checkpoint": str(tmp_path / "gone.safetensors")}), other)}
    )
    plan = node.Plan("1", unread, tmp_path)
    site = node._site(plan)
    with pytest.raises(ConfigError, match=r"Classifier 'plain' cannot be read on node '.+': .*gone"):
        site.model("plain")


@pytest.mark.slow
def test_a_cluster_that_loses_nodes_finds_the_same(
    config: AuditConfig, alone: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra 'ray'")
    from ray.cluster_utils import Cluster

    few = {"object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **few})
    try:
        nodes = [cluster.add_node(num_cpus=1, **few) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False)
        there = config.model_copy(update={"engine": "ray"})
        with pytest.raises(ConfigError, match="No node of the Ray cluster has 3 CPUs"):
            results(there.model_copy(update={"ray": RayConfig(num_cpus=3)}))
        counts, real = parts_that_come_back(monkeypatch), engines.Cluster.map

        def losing(self: Any, work: Any, items: Any) -> Iterator[Any]:
            for one in real(self, work, items):
                if nodes:  # one in the middle of the batches, one in the middle of what rests on them
                    cluster.remove_node(nodes.pop(), allow_graceful=False)
                yield one

        monkeypatch.setattr(engines.Cluster, "map", losing)
        nodes[:], spared = nodes[:1], nodes[1]
        assert results(there, cache=tmp_path / "store") == alone
        assert len(counts) == 8
        assert all(counts), "what the node was computing is computed by the other one"
        nodes.append(spared)
        assert results(there) == alone
        assert not all(counts[8:]), "with the last node gone, the audit goes on by itself"
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_weights_that_a_node_lacks_come_from_where_they_were_placed(config: AuditConfig, tmp_path: Path) -> None:
    file, gone = shipped.locate("classifiers", "shipped:plain"), "/nowhere/plain.safetensors"
    elsewhere = config.classifiers[0].model_copy(update={"checkpoint": gone})
    asked: list[str] = []

    def placed() -> bytes:
        asked.append(gone)
        return file.read_bytes()

    there = config.model_copy(update={"classifiers": (elsewhere, config.classifiers[1])})
    here = identity(node._site(node.Plan("2", config, tmp_path)).model("plain"))
    site = node._site(node.Plan("3", there, tmp_path, {gone: placed}))
    assert identity(site.model("plain")) == here, "what it finds has the keys of the model as it was given"
    site.model("trades")
    site.model("plain")
    assert asked == [gone], "a process asks once"
