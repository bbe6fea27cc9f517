"""Inversions in the store: image by image, mapped from files, the same when they come back; and bounded memory."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.testing import assert_close

from audit.config import ConfigError, InversionConfig, memory_bytes, parse_config
from audit.errors import GeneratorError
from audit.generator.stylegan2.networks import Generator
from audit.inversion import invert as invert_module
from audit.inversion.cache import CODE, from_rows, inverted, keep_without_store, to_rows
from audit.inversion.codes import candidate_codes, nearest_codes
from audit.inversion.invert import Inversion, Keep, invert
from audit.inversion.inverter import Inverter
from audit.runtime import memory
from audit.storage.cache import Store
from audit.storage.codec import Entry, pack, unpack
from audit.storage.stages import Stages

SCALARS = ("mse", "pivot_mse")


def config(**values: object) -> InversionConfig:
    base = {"pivot_steps": 3, "tuning_steps": 3, "stop_mse": 0.0, "batch_size": 2, "deltas": "low-rank", "rank": 1}
    return InversionConfig.model_validate(base | values)


def assert_same(one: Inversion, two: Inversion) -> None:
    assert one.method == two.method
    for name in ("pivots", "images", "mse", "pivot_mse"):
        assert torch.equal(getattr(one, name), getattr(two, name))
    assert_close(one.deltas.read(), two.deltas.read(), atol=0, rtol=0)


@pytest.mark.parametrize("method", ["optimise", "pti"])
def test_an_inversion_comes_back_row_by_row(
    method: str, generator: Generator, draw_images: Callable[[int, int], Tensor]
) -> None:
    found = invert(Inverter(generator, config(method=method), 0), draw_images(3, 4))
    again = from_rows(unpack(pack(to_rows(found))))
    assert_same(again, found)
    assert bool(again.deltas) == (method == "pti")
    assert again.deltas.bytes_per_image == found.deltas.bytes_per_image


def kept_in(
    root: Path, generator: Generator, images: Tensor, batch_size: int = 2
) -> tuple[Inversion, list[int], list[float]]:
    """Inversions through the store at `root`, how many images each computed chunk had, and the progress told."""
    settings, computed, told = config(batch_size=batch_size), [], []
    lots = Stages(Store(root)).lots("inversion", [{"image": image} for image in images], CODE)

    def counted(some: Tensor, keep: Keep) -> None:
        def count(chunk: Tensor, compute: Callable[[], Inversion]) -> Inversion:
            computed.append(len(chunk))
            return keep(chunk, compute)

        invert(Inverter(generator, settings, 0), some, lambda amount=1: told.append(amount), count)

    return inverted(lots, images, counted), computed, told


def test_every_image_is_kept_whatever_it_was_inverted_with(
    generator: Generator, draw_images: Callable[[int, int], Tensor], tmp_path: Path
) -> None:
    images = draw_images(5, 4)
    first, sizes, told = kept_in(tmp_path, generator, images[:3])
    assert sizes == [2, 1]
    assert sum(told) == pytest.approx(3)
    turned, sizes, _ = kept_in(tmp_path, generator, images.flip(0), batch_size=4)
    assert sizes == [2]
    assert_same(turned.select([4, 3, 2]), first)
    whole, sizes, _ = kept_in(tmp_path, generator, images, batch_size=5)
    assert sizes == []
    assert_same(whole, turned.select([4, 3, 2, 1, 0]))
    assert_same(first, invert(Inverter(generator, config(), 0), images[:3]))


def test_without_a_store_a_long_list_lies_in_nameless_files(
    generator: Generator, draw_images: Callable[[int, int], Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    images, settings = draw_images(3, 4), config()
    mapped = invert(Inverter(generator, settings, 0), images, keep=keep_without_store(limit=1))
    assert list(tmp_path.iterdir()) == []
    assert_same(mapped, invert(Inverter(generator, settings, 0), images, keep=keep_without_store()))


def test_reading_a_few_images_reads_no_more(tmp_path: Path) -> None:
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("needs /proc to see what a process holds")

    def resident() -> int:
        lines = status.read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssFile"))) * 1024

    n, store = 400, Store(tmp_path)
    shape = (64, 64, 3, 3)  # 36864 numbers an image: 59 MB of float32 in all
    small = {name: torch.zeros(2, 2) for name in ("pivots", "images")} | {name: torch.zeros(()) for name in SCALARS}
    rows = [small | {"perceptual": None, "encoder_mse": None, "delta": {"w": torch.ones(shape)}} for _ in range(n)]
    entry = pack([row | {"shapes": {"w": shape}, "method": "pti"} for row in rows])
    store.put("cd" * 32, entry.tensors, entry.metadata)
    del entry, rows
    # Opened plainly: the store itself looks at every byte once, to compare the checksum.
    with safe_open(store.path("cd" * 32), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        found = from_rows(unpack(Entry(tensors, json.loads(file.metadata()["json"]))))
    before = resident()
    part = found.select([3, 390])
    assert part.deltas["w"][torch.tensor([1])].sum() == 36864
    assert resident() - before < 10e6


def measured(network: Generator, image: Tensor, settings: InversionConfig) -> int:
    """Bytes that inverting one image is said to take, from the sentence that refuses it."""
    with pytest.raises(GeneratorError, match=r"inversion\.max_memory.*low-rank") as refused:
        invert(Inverter(network, settings.model_copy(update={"max_memory": "1KB"}), 0), image)
    return int(float(re.search(r"takes (\d+) MB", str(refused.value))[1]) * 1e6)


@pytest.mark.parametrize("form", ["full", "low-rank"])
def test_memory_while_inverting_stays_below_what_is_promised(form: str) -> None:
    refs, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not refs.is_file():
        pytest.skip("needs /proc to measure the largest memory of a process")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wide = Generator(z_dim=16, w_dim=16, resolution=32, channel_base=4096, channel_max=128).eval()
    wide.requires_grad_(False)
    images = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    settings = config(deltas=form, rank=2, pivot_steps=2, batch_size=8)
    each = measured(wide, images[:1], settings)

    def peak() -> int:
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024

    sizes: list[int] = []

    def keep(given: Tensor, compute: Callable[[], Inversion]) -> Inversion:
        sizes.append(len(given))
        return compute()

    limit = settings.model_copy(update={"max_memory": f"{2.9 * each / 1e6:.0f}MB"})
    invert(Inverter(wide, limit, 0), images[:1])  # loads what the first step loads
    refs.write_text("5")
    before = peak()
    invert(Inverter(wide, limit, 0), images, keep=keep)
    grown = peak() - before
    assert sizes == [2, 2]
    assert grown <= 3 * each


def test_the_bound_makes_chunks_smaller_but_changes_nothing(
    generator: Generator, draw_images: Callable[[int, int], Tensor]
) -> None:
    sizes: list[int] = []

    def keep(images: Tensor, compute: Callable[[], Inversion]) -> Inversion:
        sizes.append(len(images))
        return compute()

    images = draw_images(3, 4)
    loose = invert(Inverter(copy.deepcopy(generator), config(deltas="full", batch_size=3), 0), images)
    tightest = next(kb for kb in range(50, 5000, 50) if _fits(generator, images, kb))
    found = invert(
        Inverter(generator, config(deltas="full", batch_size=3, max_memory=f"{2.5 * tightest:.0f}KB"), 0),
        images,
        keep=keep,
    )
    assert sizes == [2, 1]
    assert_close(found.images, loose.images, atol=1e-4, rtol=1e-3)


def _fits(generator: Generator, images: Tensor, kilobytes: int) -> bool:
    try:
        invert(Inverter(generator, config(deltas="full", max_memory=f"{kilobytes}KB"), 0), images[:1])
    except GeneratorError:
        return False
    return True


def test_a_limit_that_nobody_set_is_no_reason_to_refuse(
    generator: Generator, draw_images: Callable[[int, int], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MEMORY_ON_CPU", "1KB")
    assert len(invert(Inverter(generator, config(), 0), draw_images(2, 4)).images) == 2


def test_starts_are_drawn_as_many_at_a_time_as_fit_and_are_the_same(
    generator: Generator, draw_images: Callable[[int, int], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, codes = draw_images(5, 4), candidate_codes(generator, 0)
    drawn: list[int] = []
    whole = Generator.images

    def images_of(self: Generator, ws: Tensor, *more: object, **named: object) -> Tensor:
        drawn.append(len(ws))
        return whole(self, ws, *more, **named)

    monkeypatch.setattr(Generator, "images", images_of)
    expected = nearest_codes(generator, images, codes, 10**9)
    assert (drawn[0], max(drawn), sum(drawn[1:])) == (1, 64, len(codes))
    drawn.clear()
    found = nearest_codes(generator, images, codes, 300_000)
    assert 1 <= max(drawn) < 64
    assert torch.equal(found, expected)


def test_memory_that_runs_out_halves_a_chunk_and_leaves_its_inversions_as_they_are(
    generator: Generator, draw_images: Callable[[int, int], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = draw_images(5, 4)
    expected = invert(Inverter(generator, config(batch_size=5), 0), images)
    whole, sizes = invert_module.tune, []

    def tune(network: Generator, pivots: Tensor, *more: object) -> object:
        sizes.append(len(pivots))
        if len(pivots) > 2:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to ...")
        return whole(network, pivots, *more)

    monkeypatch.setattr(invert_module, "tune", tune)
    chunks: list[int] = []

    def keep(given: Tensor, compute: Callable[[], Inversion]) -> Inversion:
        chunks.append(len(given))
        return compute()

    found = invert(Inverter(generator, config(batch_size=5), 0), images, keep=keep)
    assert (chunks, sizes) == ([5], [1, 5, 2, 2, 1])
    assert_close(found.images, expected.images, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("text", "expected"), [("2GB", 2 * 10**9), ("1.5 MiB", 3 * 2**19), ("64kb", 64000), (512, 512 * 10**6)]
)
def test_memory_is_read_with_its_unit(text: object, expected: int) -> None:
    assert memory_bytes(config(max_memory=text).max_memory) == expected


@pytest.mark.parametrize("text", ["much", "0GB", "-1MB", "2TB"])
def test_what_is_no_memory_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"max_memory.*amount of memory"):
        parse_config(InversionConfig, {"max_memory": text}, "the test")
