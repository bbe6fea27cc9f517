"""Snapshots of persistent objects load without running what they embed; hostile ones are refused, harming nothing."""

import builtins
import collections
import io
import os
import pickle
import pickletools
import random
import struct
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from support_generators import by_prefix, snapshot, tiny
from torch.testing import assert_close

from audit.errors import GeneratorError
from audit.generator.commands import inspect_generator
from audit.generator.files.load import load_generator
from audit.storage.tensors.file_bytes import MAX_OPCODES, Budget, in_memory
from audit.storage.tensors.harmless import harmful
from audit.storage.tensors.pickled_modules import plain_settings
from audit.storage.tensors.plain_pickle import read_pickle

VECTORS = Path(__file__).parents[3].parent / "shared/conformance/stylegan2_ada_32_gray.safetensors"
SEEN: list[str] = []
WATCHED = {"pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect"}


def watch(event, _):
    if watch.on and event in WATCHED:
        SEEN.append(event)


watch.on = False
sys.addaudithook(watch)  # cannot be taken off again, hence the switch


@pytest.fixture
def refused(tmp_path):
    """Write bytes, demand one clear sentence and no side effect, and return the sentence."""

    def check(data: bytes, said: str = "cannot be used") -> str:
        file = tmp_path / "hostile.pkl"
        file.write_bytes(data)
        before, modules = set(tmp_path.iterdir()), set(sys.modules)
        SEEN.clear()
        watch.on = True
        try:
            with pytest.raises(GeneratorError, match=said) as error:
                load_generator(file)
            inspect_generator(file)
        finally:
            watch.on = False
        sentence = str(error.value)
        assert SEEN == []
        assert set(tmp_path.iterdir()) == before
        assert not {m for m in set(sys.modules) - modules if m.startswith(("torch_utils", "dnnlib"))}
        assert str(file) in sentence
        assert sentence.isprintable()
        assert len(sentence) < 800
        return sentence

    return check


@torch.no_grad()
def test_a_snapshot_agrees_with_the_reference_vectors_and_runs_no_source(tmp_path, monkeypatch):
    if not VECTORS.exists():
        pytest.skip("no reference vectors beside the checkout")
    with safe_open(VECTORS, framework="pt") as file:
        known = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    marker = tmp_path / "ran"
    source = f"import pathlib; pathlib.Path({str(marker)!r}).write_text('x'); raise SystemExit"
    d_kwargs = {"epilogue_kwargs": {"mbstd_group_size": 4}, "architecture": "resnet", "conv_clamp": 256}
    data = snapshot(by_prefix(known, "G."), by_prefix(known, "D."), source, {"z_dim": 64}, d_kwargs)
    (tmp_path / "s.pkl").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    loaded = load_generator("s.pkl")
    assert not marker.exists()
    assert loaded.format == "stylegan2-ada"
    assert loaded.metadata["class"] == "Generator"
    assert "256" in " ".join(loaded.notes)
    for expected, found in (
        (known["w"], loaded.generator.mapping(known["z"])),
        (known["img_const"], loaded.generator(known["z"])),
        (known["img_psi0.5_const"], loaded.generator(known["z"], 0.5)),
        (known["d_logits"], loaded.discriminator(known["img_const"])),
    ):
        assert_close(found, expected, rtol=0, atol=1e-4)
    found = inspect_generator(tmp_path / "s.pkl")
    assert "torch_utils.persistence._reconstruct_persistent_obj" in found["globals"]
    assert found["globals_refused"] == []


@pytest.mark.parametrize("protocol", range(6))
@torch.no_grad()
def test_every_protocol_and_conditional_networks(tmp_path, protocol):
    g, d = tiny(c_dim=3, channels=2)
    judge = d.state_dict()
    del judge["mapping.w_avg"]  # the discriminator's mapping keeps none in that format
    (tmp_path / "s.pkl").write_bytes(snapshot(g.state_dict(), judge, protocol=protocol))
    loaded = load_generator(tmp_path / "s.pkl")
    z, c = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)), torch.eye(3)
    images = loaded.generator(z, c=c)
    assert_close(images, g(z, c=c), rtol=0, atol=0)
    assert_close(loaded.discriminator(images, c), d(images, c), rtol=0, atol=0)


def test_half_precision_and_shared_storages_load(tmp_path):
    g, _ = tiny()
    (tmp_path / "s.pkl").write_bytes(snapshot({k: v.half() for k, v in g.state_dict().items()}, None))
    loaded = load_generator(tmp_path / "s.pkl")
    assert loaded.discriminator is None
    assert {p.dtype for p in loaded.generator.parameters()} == {torch.float32}
    assert_close(loaded.generator.synthesis.b8.conv0.weight, g.synthesis.b8.conv0.weight.half().float())


@pytest.mark.parametrize(
    ("g_kwargs", "said"),
    [
        ({"mapping_kwargs": {"lr_multiplier": 0}}, "lr_multiplier = 0"),
        ({"mapping_kwargs": {"lr_multiplier": [0.01]}}, "lr_multiplier = a list"),
        ({"synthesis_kwargs": {"architecture": "resnet"}}, "architecture = resnet"),
        ({"synthesis_kwargs": {"activation": "relu"}}, "activation = relu"),
    ],
)
def test_settings_that_the_generator_does_not_have_are_refused(refused, g_kwargs, said):
    g, d = tiny()
    refused(snapshot(g.state_dict(), d.state_dict(), g_kwargs=g_kwargs), said)


# --- hostile files ---------------------------------------------------------------------------------------------------


class Reduces:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def stack_global(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def pickled(body: bytes) -> bytes:
    return b"\x80\x04" + body + b"."


@pytest.fixture
def command(tmp_path):
    return f"touch {tmp_path / 'harm'}"


def test_calls_by_reduce_are_refused_by_name(refused, command):
    g, d = tiny()
    for call, named in (
        (Reduces(os.system, command), "posix.system"),
        (Reduces(eval, f"__import__('os').system({command!r})"), "builtins.eval"),
        (Reduces(builtins.exec, "raise SystemExit"), "builtins.exec"),
        (Reduces(getattr, "x", "upper"), "builtins.getattr"),
        (Reduces(__import__, "antigravity"), "builtins.__import__"),
        (Reduces(torch.load, "x.pt"), "torch.serialization.load"),
    ):
        refused(pickle.dumps({"G_ema": call}), named)
        refused(pickle.dumps(call, protocol=2), "asks for")
        state = snapshot(g.state_dict(), d.state_dict(), harm=[{"deep": (call,)}])
        sentence = refused(state, "asks for")
        assert named in sentence


def test_a_call_inside_the_state_or_the_settings_is_refused(refused, command):
    g, _ = tiny()
    harmful = Reduces(os.system, command)
    refused(snapshot(g.state_dict(), None, g_kwargs={"z_dim": harmful}), "posix.system")
    refused(snapshot(g.state_dict(), None, source=harmful), "posix.system")


def test_a_chain_of_attributes_is_refused(refused, command):
    chain = stack_global("builtins", "getattr") + stack_global("os", "path") + text("os") + b"\x86R"
    chain = stack_global("builtins", "getattr") + chain + text("system") + b"\x86R" + text(command) + b"\x85R"
    refused(pickled(chain), "os.path.os.system")
    refused(pickled(stack_global("os", "path.os.system") + text(command) + b"\x85R"), "path.os.system")


def attribute_of(owner: bytes, name: str) -> bytes:
    return stack_global("builtins", "getattr") + owner + text(name) + b"\x86R"


@pytest.mark.parametrize("owner", [stack_global("settings", "Mode"), stack_global("settings", "Mode") + b")R"])
@pytest.mark.parametrize("legacy", [False, True])
def test_part_of_a_class_or_object_is_a_name_whatever_python_wrote_it(owner, legacy):
    member = attribute_of(attribute_of(owner, "Inner"), "RED")
    if legacy:
        member = member.replace(stack_global("builtins", "getattr"), b"c__builtin__\ngetattr\n")
    content = read_pickle(in_memory(pickled(member)), Budget())
    assert ("settings", "Mode.Inner.RED") in content.globals
    assert content.value.name == ("settings", "Mode.Inner.RED")
    assert harmful(content) == []


@pytest.mark.parametrize(
    ("owner", "part", "named"),
    [
        (stack_global("os", "path"), "supports_unicode_filenames", "os.path.supports_unicode_filenames"),
        (stack_global("settings", "Mode"), "__globals__", "settings.Mode.__globals__"),
        (stack_global("settings", "Mode") + b")R", "__class__", "settings.Mode.__class__"),
        (stack_global("settings", "Mode"), "RED\n", "settings.Mode.RED"),
        (b"K\x01", "real", "builtins.getattr"),
        (b")", "count", "builtins.getattr"),
        (stack_global("builtins", "getattr"), "__call__", "builtins.getattr.__call__"),
    ],
)
def test_part_that_reaches_into_what_is_no_data_is_refused(refused, owner, part, named):
    refused(pickled(attribute_of(owner, part)), named)


def test_part_that_is_called_is_held_to_the_rule_for_calls(refused, command):
    refused(pickled(attribute_of(stack_global("torch", "hub"), "load") + text(command) + b"\x85R"), "torch.hub.load")
    refused(pickled(b"cfunctools\npartial\n" + stack_global("builtins", "getattr") + b"\x85R)R"), "builtins.getattr")


def test_names_that_only_look_allowed_are_refused(refused, command):
    for module, name in (
        ("persistence_", "_reconstruct_persistent_obj"),
        ("torch_utils.persistence", "system"),
        ("torch_utils.persistence", "_reconstruct_persistent_obj.__globals__"),
        ("torch.storage", "_load_from_bytes.__globals__"),
        ("torch", "FloatStorage.from_file"),
        ("collections", "namedtuple"),
        ("os\x1b[2J\n", "system"),
    ):
        refused(pickled(stack_global(module, name) + text(command) + b"\x85R"), "asks for")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"(" + text("true") + b"iposix\nsystem\n", "INST"),
        (b"(cposix\nsystem\n" + text("true") + b"o", "OBJ"),
        (b"\x82\x01", "EXT1"),
        (b"\x83\x01\x00", "EXT2"),
        (b"\x84\x01\x00\x00\x00", "EXT4"),
        (b"Pid\n", "PERSID"),
        (text("id") + b"Q", "outside itself"),
        (b"cposix\nsystem\n" + text("true") + b"\x85R", "posix.system"),
        (b"cposix\nsystem\n(" + text("true") + b"t\x81", "posix.system"),
        (b"cposix\nsystem\n)}\x92", "posix.system"),
        (b"ccollections\nOrderedDict\n)R(" + text("__setstate__") + b"cos\nsystem\nub", "damaged|asks for"),
        (b"ccollections\nOrderedDict\n" + b"}" + text("__call__") + b"K\x01sb", "no object"),
        (b"}}b", "no object"),
        (b"]K\x01K\x02s", "no dictionary"),
        (b"}K\x01a", "no list"),
        (text("name") + b")R", "no named function"),
        (b"K\x01K\x02\x93", "no text"),
        (b"S'text'\n", "no dictionary"),
        (b"2", "DUP|damaged"),
    ],
)
def test_opcodes_that_reach_further_are_refused(refused, body, said):
    refused(pickled(body), said)


def test_text_pickles_are_read_as_warily(refused, command):
    refused(pickle.dumps(Reduces(os.system, command), protocol=0), "posix.system")
    refused(f"cos\nsystem\n(S'{command}'\ntR.".encode(), "os.system")
    refused(f"(S'{command}'\nios\nsystem\n.".encode(), "neither")


def tensor(storage: bytes, size=(1,), stride=(1,), offset=0) -> bytes:
    """A pickle of a generator whose one tensor claims `size` of `storage` (bytes of a sequential torch file)."""

    def number(n: int) -> bytes:
        return b"\x8a\x09" + n.to_bytes(9, "little", signed=True)

    def numbers(values) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    data = (
        stack_global("torch.storage", "_load_from_bytes") + b"B" + struct.pack("<I", len(storage)) + storage + b"\x85R"
    )
    parts = data + number(offset) + numbers(size) + numbers(stride) + b"\x89" + b"N"
    rebuilt = stack_global("torch._utils", "_rebuild_tensor_v2") + b"(" + parts + b"tR"
    state = b"}" + text("_buffers") + b"}" + text("synthesis.b4.const") + rebuilt + b"s" + b"s"
    meta = b"}(" + text("type") + text("class") + text("state") + state + b"u"
    return pickled(
        b"}" + text("G_ema") + stack_global("a.persistence", "_reconstruct_persistent_obj") + meta + b"\x85R" + b"s"
    )


def sequential(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


FLOATS = next(argument for op, argument, _ in pickletools.genops(pickle.dumps(torch.arange(6.0))) if "BYTES" in op.name)


def test_the_hand_made_snapshot_is_only_refused_for_its_names(refused):
    refused(tensor(FLOATS, (2, 3), (3, 1)), "blocks")


def test_a_pickle_inside_a_storage_is_read_as_warily(refused, command):
    refused(tensor(pickle.dumps(Reduces(os.system, command))), "torch|cut short|damaged|content")
    source = io.BytesIO(FLOATS)
    for _ in range(3):  # magic, version, system; then comes the content
        collections.deque(pickletools.genops(source), maxlen=0)
    content = pickle.dumps(Reduces(os.system, command), protocol=2)
    refused(tensor(FLOATS[: source.tell()] + content + pickle.dumps([], protocol=2)), "posix.system")
    refused(tensor(sequential([torch.ones(2)])), "asks for|no storage")


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((2**40,), (1,), 0), ((2**20, 2**20), (0, 0), 0), ((7,), (1,), 0), ((6,), (1,), 1), ((2,), (6,), 0),
        ((-1,), (1,), 0), ((2,), (-1,), 3), ((6,), (1,), -1), ((2**62,), (1,), 0), ((1,) * 9, (1,) * 9, 0),
        ((2, 3), (1,), 0),
    ],
)  # fmt: skip
def test_tensors_beyond_their_storage_are_refused(refused, size, stride, offset):
    refused(tensor(FLOATS, size, stride, offset), "tensor")


def test_claims_of_size_allocate_nothing(refused):
    many = 2**40
    claims = [
        pickled(b"\x8e" + struct.pack("<Q", many) + b"abc"),
        pickled(b"\x8d" + struct.pack("<Q", many) + b"abc"),
        pickled(b"B" + struct.pack("<I", 2**32 - 1) + b"abc"),
        pickled(b"\x8b" + struct.pack("<i", 2**31 - 1) + b"abc"),
        b"\x80\x04\x95" + struct.pack("<Q", many) + b"N.",
        pickled(b"}r" + struct.pack("<I", 2**32 - 1)),
        tensor(FLOATS.replace(b"K\x06N", b"J" + struct.pack("<i", 2**31 - 1) + b"N")),
        tensor(FLOATS[:-32] + struct.pack("<q", many) + FLOATS[-24:]),
    ]
    assert claims[-1] != tensor(FLOATS) != claims[-2]
    tracemalloc.start()
    try:
        for data in claims:
            refused(data)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_deep_and_doubling_structures_end_soon(refused):
    nested = b"N" + b"\x85" * 50_000
    refused(pickled(nested), "no dictionary")
    refused(pickled(b"}" + nested + b"K\x01s"), "holds no tensors")  # hashing it would overflow the C stack
    doubling = b"Nq\x000" + b"".join(
        b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) + b"0" for i in range(200)
    )
    doubling += b"h\xc8"
    refused(pickled(doubling), "no dictionary")
    refused(pickled(b"}" + doubling + b"K\x01s"), "holds no tensors")  # 2**200 elements to hash
    refused(pickled(b"]" + b"h\x00" * 10), "damaged")
    refused(pickled(b"}q\x00" + text("G_ema") + b"h\x00s"), "holds no tensors")  # a dictionary within itself


def test_a_module_in_too_many_places_is_refused(refused):
    level = b"N"
    for _ in range(40):  # each holds the one below twice: 2**40 paths
        children = b"}(" + text("a") + level + b"q\x00" + text("b") + b"h\x00u"
        meta = b"}(" + text("type") + text("class") + text("state") + b"}" + text("_modules") + children + b"su"
        level = stack_global("a.persistence", "_reconstruct_persistent_obj") + meta + b"\x85R"
    refused(pickled(b"}" + text("G_ema") + level + b"s"), "holds no tensors")


@pytest.mark.parametrize(
    ("said", "group"), [({"mbstd_group_size": 8}, 8), ({"mbstd_group_size": None}, 2**16), ([1], 4), ({}, 4)]
)
def test_the_group_of_the_minibatch_is_taken_from_the_settings(tmp_path, said, group):
    g, d = tiny()
    (tmp_path / "s.pkl").write_bytes(snapshot(g.state_dict(), d.state_dict(), d_kwargs={"epilogue_kwargs": said}))
    assert load_generator(tmp_path / "s.pkl").discriminator.settings["mbstd_group"] == group


def test_settings_of_any_shape_are_cut_to_a_bound():
    value = ["x"] * 64
    for _ in range(40):
        value = [value] * 64
    assert plain_settings(value) is not None
    assert plain_settings({"a": (1, "b", object(), 2.5)}) == {"a": [1, "b", None, 2.5]}


@pytest.mark.slow
def test_too_many_opcodes_are_refused(refused):
    refused(pickled(b"N0" * (MAX_OPCODES // 2 + 1)), "opcodes")


def test_every_cut_of_a_snapshot_is_one_sentence(refused):
    g, _ = tiny()
    whole = snapshot(g.state_dict(), None)
    for cut in [0, 1, 2, 3, 9, 10, *range(100, len(whole), len(whole) // 25), len(whole) - 1]:
        refused(whole[:cut])
    refused(whole + b"more", "follow")


def test_any_damaged_byte_gives_a_sentence_or_a_generator(tmp_path):
    g, _ = tiny()
    whole = snapshot(g.state_dict(), None)
    dice = random.Random(0)
    outcomes = collections.Counter()
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(dice.randint(1, 4)):
            data[dice.randrange(len(data) if dice.random() < 0.5 else 3000)] = dice.randrange(256)
        (tmp_path / "s.pkl").write_bytes(data)
        try:
            load_generator(tmp_path / "s.pkl")
            outcomes["loaded"] += 1
        except GeneratorError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 10
    assert outcomes["loaded"] > 0
