"""Additions to weights: their layout, their products, and reading them by image."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from audit.generator.stylegan2.networks import Generator
from audit.inversion.deltas import Deltas, Layout, joined, layout_of

CPU = torch.device("cpu")
SHAPES = {"const": torch.Size([8, 4, 4]), "weight": torch.Size([8, 6, 3, 3]), "bias": torch.Size([8])}


def rows_of(layout: Layout, n: int) -> torch.Tensor:
    return torch.randn(n, layout.size, generator=torch.Generator().manual_seed(n))


def test_whole_additions_are_views_of_the_row(generator: Generator) -> None:
    layout = layout_of(generator, "full", 4)
    rows = rows_of(layout, 2)
    additions = layout.additions(rows)
    assert {name: d.shape[1:] for name, d in additions.items()} == layout.shapes
    assert_close(torch.cat([d.flatten(1) for d in additions.values()], 1), rows)


@settings(max_examples=25, deadline=None)
@given(rank=st.integers(1, 12), n=st.integers(1, 3))
def test_products_have_at_most_their_rank_and_are_no_larger(rank: int, n: int) -> None:
    layout = Layout(SHAPES, rank)
    additions = layout.additions(rows_of(layout, n))
    assert {name: d.shape for name, d in additions.items()} == {k: (n, *s) for k, s in SHAPES.items()}
    assert layout.size <= layout.drawn_size
    for name, addition in additions.items():
        if layout.factored(name):
            assert int(torch.linalg.matrix_rank(addition.flatten(2)).max()) <= rank


def test_a_product_is_kept_only_where_it_is_smaller() -> None:
    assert not Layout(SHAPES).factored("weight")
    assert Layout(SHAPES, 1).factored("weight")
    assert not Layout(SHAPES, 1).factored("bias")
    assert not Layout(SHAPES, 7).factored("weight")  # 7 * (8 + 54) > 8 * 54


@pytest.mark.parametrize("form", ["full", "low-rank"])
def test_the_start_changes_nothing_and_has_a_gradient(form: str, generator: Generator) -> None:
    layout = layout_of(generator, form, 2)
    start = layout.start(3, 0, CPU)
    assert_close(start, start[:1].expand_as(start))
    assert all((d == 0).all() for d in layout.additions(start).values())
    leaf = start.requires_grad_()
    aim = {name: torch.randn(3, *shape) for name, shape in layout.shapes.items()}
    loss = sum((d * aim[name]).sum() for name, d in layout.additions(leaf).items())
    (gradient,) = torch.autograd.grad(loss, leaf)
    for name, piece in layout.split(gradient).items():
        assert (piece != 0).any() != name.endswith("/right"), name


def test_reading_gathers_images_from_their_chunks() -> None:
    layout = Layout(SHAPES, 2)
    parts = [rows_of(layout, n) for n in (3, 2)]
    whole = layout.additions(torch.cat(parts))
    deltas = joined([Deltas(SHAPES, [layout.split(part)]) for part in parts])
    assert deltas.images == 5
    assert deltas.bytes_per_image == 4 * layout.size
    assert_close(deltas.read(), whole)
    chosen = torch.tensor([4, 0, 3, 0])
    assert_close(deltas.read(chosen), {name: d[chosen] for name, d in whole.items()})
    assert_close(deltas["weight"][chosen], whole["weight"][chosen])
    twice = deltas.select([4, 0, 3]).select(torch.tensor([True, False, True]))
    assert_close(twice.read(), {name: d[[4, 3]] for name, d in whole.items()})
    assert_close(torch.cat([p.flatten(1) for p in twice.pieces().values()], 1), torch.cat(parts)[[4, 3]])


def test_nothing_tuned_is_false() -> None:
    assert not Deltas({}, [])
    assert Deltas({}, []).images == 0
    with pytest.raises(KeyError):
        Deltas({}, [])["weight"]
