"""Building blocks against direct forms of the same equations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from audit.generator.stylegan2.layers import PER_CALL, EqualConv, blur_filter, demodulation, modulated_conv, upsample


def zero_inserted(x):
    """Upsample by inserting zeros and filtering with the full kernel: the definition."""
    n, c, h, w = x.shape
    wide = torch.zeros(n, c, 2 * h, 2 * w, dtype=x.dtype)
    wide[..., ::2, ::2] = x
    kernel = (4 * blur_filter()).to(x.dtype).expand(c, 1, 4, 4)
    return F.conv2d(F.pad(wide, (2, 1, 2, 1)), kernel, groups=c)


@settings(max_examples=15, deadline=None)
@given(size=st.integers(2, 9), channels=st.integers(1, 3), seed=st.integers(0, 99))
def test_upsample_is_zero_insertion_and_filter(size, channels, seed):
    x = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert_close(upsample(x), zero_inserted(x))


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("demodulate", [False, True])
@pytest.mark.parametrize("side", [4, 12])  # of maps smaller and larger than the weights of an image
def test_modulating_the_input_equals_modulating_the_weights(up, demodulate, side):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, side, side, generator=rng, dtype=torch.float64)
    weight = torch.randn(5, 4, 3, 3, generator=rng, dtype=torch.float64)
    styles = torch.randn(3, 4, generator=rng, dtype=torch.float64)
    filt = blur_filter() if up else None
    shared = modulated_conv(x, weight, styles, demodulate, filt)
    per_image = modulated_conv(x, weight.expand(3, -1, -1, -1, -1), styles, demodulate, filt)
    assert_close(shared, per_image)
    if not up:
        modulated = weight[None] * styles[:, None, :, None, None]
        if demodulate:
            modulated = modulated * torch.rsqrt(modulated.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        direct = torch.cat([F.conv2d(x[i : i + 1], modulated[i], padding=1) for i in range(3)])
        assert_close(shared, direct)


def test_demodulated_maps_have_unit_variance():
    rng = torch.Generator().manual_seed(1)
    weight, styles = torch.randn(8, 16, 3, 3, generator=rng), torch.rand(4, 16, generator=rng) + 0.5
    noise = torch.randn(4, 16, 64, 64, generator=rng)
    out = modulated_conv(noise, weight, styles, demodulate=True)[..., 1:-1, 1:-1]
    assert_close(out.std((2, 3)), torch.ones(4, 8), atol=0.1, rtol=0)
    assert demodulation(weight, styles).shape == (4, 8)


def small_maps(*shape):
    rng = torch.Generator().manual_seed(len(shape))
    return torch.randn(*shape, generator=rng, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize(("kernel", "up"), [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize("shared", [False, True])
def test_modulated_convolutions_have_second_derivatives(kernel, up, shared):
    weight = small_maps(2, 2, kernel, kernel) if shared else small_maps(2, 2, 2, kernel, kernel)

    def run(x, w, styles):
        return modulated_conv(x, w, styles, kernel == 3, blur_filter() if up else None, gain=1.5)

    assert torch.autograd.gradgradcheck(run, (small_maps(2, 2, 3, 3), weight, small_maps(2, 2)))


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("n", [2, PER_CALL + 3])
def test_known_weights_give_the_same_maps_and_gradients(up, n):
    weight = small_maps(n, 3, 2, 3, 3)

    def run(w):
        x, styles = small_maps(n, 2, 9, 9), small_maps(n, 2)
        with torch.no_grad():
            styles[0, 0] = 0  # by which nothing may be divided
        out = modulated_conv(x, w, styles, True, blur_filter() if up else None, gain=1.5)
        return out, *torch.autograd.grad(out.sin().sum(), (x, styles))

    assert weight[0].numel() < 2 * 9 * 9
    for known, general in zip(run(weight.detach()), run(weight), strict=True):
        assert_close(known, general)


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
def test_convolutions_of_the_discriminator_have_second_derivatives(down, kernel):
    layer = EqualConv(2, 2, kernel, down=down).double()
    assert torch.autograd.gradgradcheck(layer, (small_maps(2, 2, 4, 4),))


@pytest.mark.parametrize("up", [False, True])
def test_many_images_with_their_own_weights_go_through_in_parts(up):
    n = 2 * PER_CALL + 3  # not a multiple: the last part is smaller
    rng = torch.Generator().manual_seed(0)
    x, styles = torch.randn(n, 3, 5, 5, generator=rng), torch.randn(n, 3, generator=rng)
    weight = torch.randn(n, 4, 3, 3, 3, generator=rng)
    filt = blur_filter() if up else None
    together = modulated_conv(x, weight, styles, True, filt)
    alone = [modulated_conv(x[i : i + 1], weight[i], styles[i : i + 1], True, filt) for i in range(n)]
    assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
