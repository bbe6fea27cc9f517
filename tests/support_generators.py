"""Generator files as other projects write them, and the equations of rosinality's layout written out afresh."""

import collections
import contextlib
import pickle
import sys
import types

import torch
from torch.nn import functional as F

from audit.generator.stylegan2.discriminator import Discriminator
from audit.generator.stylegan2.networks import Generator

TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0])
KERNEL = torch.outer(TAPS, TAPS) / 64


def tiny(seed=0, c_dim=0, channels=1, d_mapping_layers=2):
    """Networks of 16x16 pixels whose every tensor is random, biases, noise and mean code included."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        g = Generator(6, 8, 16, channels, 64, 8, mapping_layers=3, c_dim=c_dim)
        d = Discriminator(16, channels, 64, 8, c_dim=c_dim, mapping_layers=d_mapping_layers)
        for network in (g, d):
            for name, tensor in network.state_dict().items():
                if name.endswith(("bias", "noise_strength", "w_avg")):
                    tensor.add_(torch.randn(tensor.shape) * 0.3)
    return g.eval(), d.eval()


def by_prefix(tensors, prefix):
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


# --- snapshots of persistent objects ---------------------------------------------------------------------------------


class Persistent:
    """Pickles as the persistent objects of a snapshot do: a reconstruction call with one dictionary."""

    def __init__(self, class_name, state, source, reconstruct, wrap):
        self.meta = wrap(type="class", version=6, module_src=source, class_name=class_name, state=state)
        self.reconstruct = reconstruct

    def __reduce__(self):
        return self.reconstruct, (self.meta,)


class _Fakes(contextlib.AbstractContextManager):
    """The modules that a snapshot names, which exist only within the context, while it is written."""

    def __init__(self):
        persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")

        def _reconstruct_persistent_obj(meta):
            raise AssertionError("the reader reconstructed an object")

        class EasyDict(dict):
            pass

        for module, thing in ((persistence, _reconstruct_persistent_obj), (util, EasyDict)):
            thing.__module__, thing.__qualname__ = module.__name__, thing.__name__
            setattr(module, thing.__name__, thing)
        self.reconstruct, self.wrap = _reconstruct_persistent_obj, EasyDict
        self.modules = {
            "torch_utils": types.ModuleType("torch_utils"), "torch_utils.persistence": persistence,
            "dnnlib": types.ModuleType("dnnlib"), "dnnlib.util": util,
        }  # fmt: skip

    def __enter__(self):
        self.before = {name: sys.modules.get(name) for name in self.modules}
        sys.modules.update(self.modules)

    def __exit__(self, *_):
        for name, module in self.before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


PERSISTENT_FAKES = _Fakes()


def whole_module(state, class_name="Generator", g_kwargs=None, source="raise SystemExit"):
    """A network of persistent objects with the given tensors, to be pickled within PERSISTENT_FAKES."""
    parameters, buffers, children = (collections.OrderedDict() for _ in range(3))
    for name in dict.fromkeys(key.split(".")[0] for key in state):
        if name in state:
            value = state[name].detach().clone()
            is_buffer = name in ("resample_filter", "noise_const", "w_avg") or not value.is_floating_point()
            (buffers if is_buffer else parameters)[name] = value if is_buffer else torch.nn.Parameter(value)
        else:
            children[name] = whole_module(by_prefix(state, f"{name}."), f"Sub_{name}", None, source)
    content = {
        "training": False, "_parameters": parameters, "_buffers": buffers, "_modules": children,
        "_non_persistent_buffers_set": set(), "_backward_hooks": collections.OrderedDict(), "_init_args": (),
        "_init_kwargs": PERSISTENT_FAKES.wrap(g_kwargs or {}), "weight_gain": 0.5, "shape": torch.Size([1, 2]),
    }  # fmt: skip
    return Persistent(class_name, content, source, PERSISTENT_FAKES.reconstruct, PERSISTENT_FAKES.wrap)


def snapshot(g_state, d_state, source="raise SystemExit", g_kwargs=None, d_kwargs=None, protocol=4, **extra):
    """Bytes of a snapshot with the given tensors."""
    with PERSISTENT_FAKES:
        networks = {
            "G": whole_module(g_state, "Generator", g_kwargs, source),
            "D": whole_module(d_state, "Discriminator", d_kwargs, source) if d_state else None,
            "G_ema": whole_module(g_state, "Generator", g_kwargs, source),
        }
        other = {"training_set_kwargs": PERSISTENT_FAKES.wrap(path="/data", resolution=16), "augment_pipe": None}
        return pickle.dumps(networks | other | extra, protocol=protocol)


# --- rosinality's layout ---------------------------------------------------------------------------------------------


def rosinality_networks(size=16, z=8, width=6, mlp=3, channels=3, seed=0):
    """Random state dicts of a generator and a discriminator in that layout."""
    rng = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=rng)

    levels = size.bit_length() - 3  # resolutions above 4
    g = {}
    for i in range(1, mlp + 1):
        g |= {f"style.{i}.weight": randn(z, z) / 0.01, f"style.{i}.bias": randn(z) / 0.01 * 0.1}
    g["input.input"] = randn(1, width, 4, 4)

    def styled(name, up):
        g[f"{name}.conv.weight"] = randn(1, width, width, 3, 3)
        g[f"{name}.conv.modulation.weight"], g[f"{name}.conv.modulation.bias"] = randn(width, z), 1 + randn(width) * 0.2
        if up:
            g[f"{name}.conv.blur.kernel"] = KERNEL * 4
        g[f"{name}.noise.weight"], g[f"{name}.activate.bias"] = randn(1) * 0.3, randn(width) * 0.3

    def to_rgb(name, up):
        if up:
            g[f"{name}.upsample.kernel"] = KERNEL * 4
        g[f"{name}.bias"], g[f"{name}.conv.weight"] = randn(1, channels, 1, 1) * 0.3, randn(1, channels, width, 1, 1)
        g[f"{name}.conv.modulation.weight"], g[f"{name}.conv.modulation.bias"] = randn(width, z), 1 + randn(width) * 0.2

    styled("conv1", False)
    to_rgb("to_rgb1", False)
    g["noises.noise_0"] = randn(1, 1, 4, 4)
    for k in range(levels):
        styled(f"convs.{2 * k}", True)
        styled(f"convs.{2 * k + 1}", False)
        to_rgb(f"to_rgbs.{k}", True)
        for j in (2 * k + 1, 2 * k + 2):
            g[f"noises.noise_{j}"] = randn(1, 1, 8 << k, 8 << k)
    d = {"convs.0.0.weight": randn(width, channels, 1, 1), "convs.0.1.bias": randn(width) * 0.3}
    for k in range(1, levels + 1):
        d |= {f"convs.{k}.conv1.0.weight": randn(width, width, 3, 3), f"convs.{k}.conv1.1.bias": randn(width) * 0.3}
        d |= {f"convs.{k}.conv2.0.kernel": KERNEL, f"convs.{k}.conv2.1.weight": randn(width, width, 3, 3)}
        d |= {f"convs.{k}.conv2.2.bias": randn(width) * 0.3, f"convs.{k}.skip.0.kernel": KERNEL}
        d[f"convs.{k}.skip.1.weight"] = randn(width, width, 1, 1)
    d |= {"final_conv.0.weight": randn(width, width + 1, 3, 3), "final_conv.1.bias": randn(width) * 0.3}
    d |= {"final_linear.0.weight": randn(width, width * 16), "final_linear.0.bias": randn(width) * 0.3}
    d |= {"final_linear.1.weight": randn(1, width), "final_linear.1.bias": randn(1)}
    return g, d


def _activate(x):
    return torch.where(x > 0, x, 0.2 * x) * 2**0.5


def _filter(x, kernel, before, after):
    n, c, _, _ = x.shape
    padded = F.pad(x, (before, after, before, after)).reshape(n * c, 1, x.shape[2] + before + after, -1)
    out = F.conv2d(padded, kernel.flip(0, 1)[None, None])
    return out.reshape(n, c, *out.shape[2:])


def _modulated(state, name, x, w, demodulate=True, up=False):
    """StyleGAN2 equations 1 to 3, weights modulated image by image."""
    weight = state[f"{name}.weight"]
    style = F.linear(w, state[f"{name}.modulation.weight"] / w.shape[1] ** 0.5, state[f"{name}.modulation.bias"])
    scale = (weight.shape[2] * weight.shape[3] ** 2) ** -0.5
    images = []
    for image, factors in zip(x, style, strict=True):
        own = scale * weight[0] * factors[None, :, None, None]
        if demodulate:
            own = own / (own.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if up:
            grown = F.conv_transpose2d(image[None], own.transpose(0, 1), stride=2)
            images.append(_filter(grown, state[f"{name}.blur.kernel"], 1, 1))
        else:
            images.append(F.conv2d(image[None], own, padding=own.shape[-1] // 2))
    return torch.cat(images)


def rosinality_codes(g, z):
    """w `[N, w]` of z `[N, z]`."""
    x = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()
    for i in range(1, 1 + max(int(k.split(".")[1]) for k in g if k.startswith("style."))):
        weight = g[f"style.{i}.weight"] * (0.01 / x.shape[1] ** 0.5)
        x = _activate(F.linear(x, weight, g[f"style.{i}.bias"] * 0.01))
    return x


def rosinality_images(g, w, noise=True):
    """Images of w `[N, w]` in the network's range, with the constant noise maps or none."""

    def layer(name, x, number, up):
        x = _modulated(g, f"{name}.conv", x, w, up=up)
        if noise:
            x = x + g[f"{name}.noise.weight"] * g[f"noises.noise_{number}"]
        return _activate(x + g[f"{name}.activate.bias"][None, :, None, None])

    x = layer("conv1", g["input.input"].repeat(len(w), 1, 1, 1), 0, False)
    image = _modulated(g, "to_rgb1.conv", x, w, demodulate=False) + g["to_rgb1.bias"]
    for k in range(max(int(n.split(".")[1]) for n in g if n.startswith("to_rgbs.")) + 1):
        x = layer(f"convs.{2 * k}", x, 2 * k + 1, True)
        x = layer(f"convs.{2 * k + 1}", x, 2 * k + 2, False)
        sparse = image.new_zeros(*image.shape[:2], image.shape[2] * 2, image.shape[3] * 2)
        sparse[..., ::2, ::2] = image
        image = _filter(sparse, g[f"to_rgbs.{k}.upsample.kernel"], 2, 1)
        image = image + _modulated(g, f"to_rgbs.{k}.conv", x, w, demodulate=False) + g[f"to_rgbs.{k}.bias"]
    return image


def rosinality_logits(d, images):
    """Logits `[N, 1]`; the batch is one group of the minibatch standard deviation."""

    def conv(name, x, bias=None, stride=1, padding=0):
        weight = d[name]
        x = F.conv2d(x, weight * (weight.shape[1] * weight.shape[2] ** 2) ** -0.5, stride=stride, padding=padding)
        return x if bias is None else _activate(x + d[bias][None, :, None, None])

    x = conv("convs.0.0.weight", images, "convs.0.1.bias")
    for k in range(1, max(int(n.split(".")[1]) for n in d if n.startswith("convs.")) + 1):
        y = conv(f"convs.{k}.conv1.0.weight", x, f"convs.{k}.conv1.1.bias", padding=1)
        y = _filter(y, d[f"convs.{k}.conv2.0.kernel"], 2, 2)
        y = conv(f"convs.{k}.conv2.1.weight", y, f"convs.{k}.conv2.2.bias", stride=2)
        x = conv(f"convs.{k}.skip.1.weight", _filter(x, d[f"convs.{k}.skip.0.kernel"], 1, 1), stride=2)
        x = (x + y) / 2**0.5
    spread = (x.var(0, unbiased=False) + 1e-8).sqrt().mean()
    x = torch.cat([x, spread.expand(len(x), 1, 4, 4)], 1)
    x = conv("final_conv.0.weight", x, "final_conv.1.bias", padding=1).flatten(1)
    hidden = F.linear(x, d["final_linear.0.weight"] * x.shape[1] ** -0.5) + d["final_linear.0.bias"]
    hidden = _activate(hidden)
    return F.linear(hidden, d["final_linear.1.weight"] * hidden.shape[1] ** -0.5, d["final_linear.1.bias"])
