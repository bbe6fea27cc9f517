"""Images of a step: shared out among processes, the same whether kept or streamed."""

import numpy as np
import pytest
import torch

from audit.data.audit_set import AuditSet
from audit.errors import ConfigError
from audit.runtime.distributed import Workers
from audit.training.generator.stream import Reals

CPU = torch.device("cpu")


def images(n=40, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 16, 16), dtype=np.uint8)
    labels, splits = np.arange(n) % 3, np.full(n, "train")
    return AuditSet(pixels.__getitem__, labels, ("a", "b", "c"), tuple(map(str, range(n))), splits, (1, 16, 16))


def test_processes_share_the_batch_of_one():
    alone = Reals(images(), 8, 0, CPU, 1)
    parts = [Reals(images(), 8, 0, CPU, 1, Workers(rank, 2)) for rank in (0, 1)]
    for step in (0, 4, 5):
        whole = alone.batch(step)
        halves = [part.batch(step) for part in parts]
        for k in (0, 1):
            assert torch.equal(torch.cat([half[k] for half in halves]), whole[k])
    with pytest.raises(ConfigError, match="set batch_size to a multiple of 3"):
        Reals(images(), 8, 0, CPU, 1, Workers(0, 3)).batch(0)


def test_streamed_and_kept_images_are_the_same():
    with Reals(images(), 8, 0, CPU, 1) as kept, Reals(images(), 8, 0, CPU, 0) as streamed:
        assert (kept.streamed, streamed.streamed) == (False, True)
        assert kept.fingerprint() == streamed.fingerprint()
        for step in range(3, 12):
            for a, b in zip(kept.batch(step), streamed.batch(step), strict=True):
                assert torch.equal(a, b)
        assert kept.batch(12)[0].dtype == torch.uint8


def test_another_set_has_another_fingerprint():
    prints = {Reals(images(*args), 8, 0, CPU, 1).fingerprint() for args in ((40,), (41,), (40, 1))}
    assert len(prints) == 3


def test_an_image_that_cannot_be_read_stops_the_training_and_its_threads():
    data = images()

    def read(row):
        raise ConfigError("no such image")

    broken = AuditSet(read, data.labels, data.class_names, data.ids, data.splits, data.image_shape)
    with pytest.raises(ConfigError, match="no such image"), Reals(broken, 8, 0, CPU, 0) as reals:
        reals.batch(0)
