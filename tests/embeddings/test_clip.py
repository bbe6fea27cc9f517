"""CLIP's image tower: names of the hub translated, input as CMMD has it, memory bounded; on a tiny tower."""

from functools import partial

import pytest
import timm
import torch
from timm.layers import LayerNorm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from audit.embeddings import clip
from audit.errors import MetricError
from audit.metrics.cmmd import metric_name

WIDTH, DEPTH, SIDE, PATCH, OUT = 32, 2, 28, 14, 12


def tiny() -> VisionTransformer:
    """The architecture of the tower, made small."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(
            clip.ARCHITECTURE, img_size=SIDE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=2,
            num_classes=OUT, pre_norm=True, norm_layer=partial(LayerNorm, eps=1e-5),
        )  # fmt: skip


def hub_state() -> dict[str, Tensor]:
    """Random weights under the hub's names."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / 4

    state = {
        "logit_scale": draw(1)[0],
        "text_projection.weight": draw(OUT, 8),
        "text_model.final_layer_norm.weight": draw(8),
        "vision_model.embeddings.class_embedding": draw(WIDTH),
        "vision_model.embeddings.patch_embedding.weight": draw(WIDTH, 3, PATCH, PATCH),
        "vision_model.embeddings.position_ids": torch.arange(5)[None],
        "vision_model.embeddings.position_embedding.weight": draw(5, WIDTH),
        "visual_projection.weight": draw(OUT, WIDTH),
    }
    layers = [f"vision_model.encoder.layers.{i}" for i in range(DEPTH)]
    norms = ["vision_model.pre_layrnorm", "vision_model.post_layernorm"]
    for name in norms + [f"{layer}.layer_norm{k}" for layer in layers for k in (1, 2)]:
        state |= {f"{name}.weight": 1 + draw(WIDTH), f"{name}.bias": draw(WIDTH)}
    for layer in layers:
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            state |= {
                f"{layer}.self_attn.{part}.weight": draw(WIDTH, WIDTH),
                f"{layer}.self_attn.{part}.bias": draw(WIDTH),
            }
        state |= {f"{layer}.mlp.fc1.weight": draw(4 * WIDTH, WIDTH), f"{layer}.mlp.fc1.bias": draw(4 * WIDTH)}
        state |= {f"{layer}.mlp.fc2.weight": draw(WIDTH, 4 * WIDTH), f"{layer}.mlp.fc2.bias": draw(WIDTH)}
    return state


def by_the_paper(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """The tower written out in the hub's names: pre-norm transformer, class token, projection."""

    def linear(x: Tensor, name: str) -> Tensor:
        return nn.functional.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(x: Tensor, name: str) -> Tensor:
        return nn.functional.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    patches = nn.functional.conv2d(pixels, state["vision_model.embeddings.patch_embedding.weight"], stride=PATCH)
    first = state["vision_model.embeddings.class_embedding"].expand(len(pixels), 1, -1)
    x = torch.cat([first, patches.flatten(2).transpose(1, 2)], 1)
    x = norm(x + state["vision_model.embeddings.position_embedding.weight"], "vision_model.pre_layrnorm")
    for i in range(DEPTH):
        layer = f"vision_model.encoder.layers.{i}"
        y = norm(x, f"{layer}.layer_norm1")
        q, k, v = (linear(y, f"{layer}.self_attn.{p}_proj").unflatten(2, (2, -1)).transpose(1, 2) for p in "qkv")
        weights = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).softmax(3)
        x = x + linear((weights @ v).transpose(1, 2).flatten(2), f"{layer}.self_attn.out_proj")
        hidden = linear(norm(x, f"{layer}.layer_norm2"), f"{layer}.mlp.fc1")
        x = x + linear(hidden * torch.sigmoid(1.702 * hidden), f"{layer}.mlp.fc2")
    return linear(norm(x[:, 0], "vision_model.post_layernorm"), "visual_projection")


def test_a_checkpoint_of_the_hub_is_the_tower_of_the_paper() -> None:
    state = hub_state()
    tower = clip.ClipImageTower(clip.fill_tower(tiny(), state), "0" * 64)
    levels = (torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2)) * 255).round() / 255
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (clip.MEAN, clip.STD))
    with torch.no_grad():
        assert torch.allclose(tower.embed(levels), by_the_paper(state, (levels - mean) / std), atol=1e-4)


def test_openai_names_give_the_same_tower() -> None:
    hub = clip.fill_tower(tiny(), hub_state())
    names = {
        "cls_token": "class_embedding", "pos_embed": "positional_embedding", "patch_embed.proj.weight": "conv1.weight",
        "head.weight": "proj",
    }  # fmt: skip
    parts = (
        ("blocks.", "transformer.resblocks."), (".norm", ".ln_"), ("norm_pre", "ln_pre"),
        ("attn.qkv.", "attn.in_proj_"), ("attn.proj", "attn.out_proj"),
        ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
    )  # fmt: skip
    state = {}
    for key, value in hub.state_dict().items():
        name = names.get(key, key)
        for ours, theirs in parts:
            name = name.replace(ours, theirs)
        if name.startswith("norm."):
            name = name.replace("norm.", "ln_post.")
        if key == "head.bias":
            continue
        value = value.flatten() if key == "cls_token" else value[0] if key == "pos_embed" else value
        state[f"visual.{name}"] = (value.T if key == "head.weight" else value).half()
    tower = clip.ClipImageTower(clip.fill_tower(tiny(), state), "0" * 64)
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    assert tower.tower.head.weight.dtype == torch.float32
    assert torch.allclose(tower.embed(images), clip.ClipImageTower(hub, "").embed(images), atol=0.05)


def test_sizes_channels_and_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    tower = clip.ClipImageTower(clip.fill_tower(tiny(), hub_state()), "0" * 64)
    grey = torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(4))
    whole = tower.embed(grey)
    assert whole.shape == (5, OUT)
    assert torch.allclose(whole, tower.embed(grey.expand(-1, 3, -1, -1)), atol=1e-6)
    monkeypatch.setattr(clip, "BATCH", 2)
    assert torch.allclose(whole, tower.embed(grey), atol=1e-5)
    assert metric_name(tower.name) == "cmmd"
    assert not any(p.requires_grad for p in tower.parameters())


def test_weights_of_another_architecture_are_refused() -> None:
    state = hub_state()
    del state["visual_projection.weight"]
    with pytest.raises(MetricError, match="do not fit"):
        clip.fill_tower(tiny(), state)
    with pytest.raises(MetricError, match="do not fit"):
        clip.fill_tower(clip.empty_tower(), hub_state())


def test_the_tower_is_that_of_cmmd() -> None:
    before = torch.random.get_rng_state()
    tower = clip.empty_tower()
    assert torch.equal(before, torch.random.get_rng_state())
    assert tower.patch_embed.img_size == (336, 336)
    # The published tower with its projection, and the bias of zeros that timm's last layer has.
    assert sum(p.numel() for p in tower.parameters()) == 304_293_888 + 768
