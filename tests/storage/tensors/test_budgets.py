"""Small files that ask for much are refused with the budget that they exceed, before anything is allocated.

The whole of each reading runs in a process of its own, whose memory above the imports and processor time are compared
with wide bounds: what these files cost without a budget is given beside them.
"""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support_generators import snapshot, tiny

from audit.errors import GeneratorError
from audit.generator.files.infer import MEAN_CODES, mean_code
from audit.generator.files.load import load_generator
from audit.generator.stylegan2.networks import Generator, Mapping
from audit.runtime.seeds import stage_generator
from audit.storage.tensors.file_bytes import (
    MAX_FILE,
    MAX_NUMBERS,
    MAX_NUMBERS_EACH,
    Blob,
    Budget,
    Refused,
    Window,
    brief,
    in_memory,
)

MEGABYTES, SECONDS = 500, 20
MEASURE = """
import resource, sys
from pathlib import Path
import torch
from audit.errors import AuditError
from audit.generator.commands import inspect_generator
from audit.generator.files.load import load_generator

def spent():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_maxrss / 1024, used.ru_utime + used.ru_stime

for file in sys.argv[1:]:
    before = spent()
    try:
        load_generator(file)
        said = "loaded"
    except AuditError as error:
        said = str(error).replace("\\n", " ")
    inspect_generator(file)
    memory, seconds = (b - a for a, b in zip(before, spent()))
    print(f"{memory:.0f}\\t{seconds:.1f}\\t{said}")
"""


def measured(*files):
    """Memory in MB, processor seconds and the sentence of each file, read one after the other in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, files)], capture_output=True, text=True, check=True, timeout=300
    )
    return [(float(m), float(s), said) for m, s, said in (line.split("\t") for line in done.stdout.splitlines())]


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def name(module, attribute):
    return text(module) + text(attribute) + b"\x93"


def pickled(body):
    return b"\x80\x04" + body + b"."


def module(state, class_name=b"N"):
    """A persistent object of `state` (pairs of opcodes) under the name that `class_name` pushes."""
    meta = b"}(" + text("type") + text("class") + text("class_name") + class_name + text("state") + b"}(" + state
    return name("a.persistence", "_reconstruct_persistent_obj") + meta + b"uu\x85R"


FLOATS = io.BytesIO()
torch.save(torch.arange(300.0)._typed_storage(), FLOATS, _use_new_zipfile_serialization=False)
LOAD = name("torch.storage", "_load_from_bytes")
BYTES = b"B" + struct.pack("<I", len(FLOATS.getvalue())) + FLOATS.getvalue()
STORAGE = LOAD + BYTES + b"\x85R"
EMPTY = name("torch._utils", "_rebuild_tensor_v2") + b"(" + STORAGE + b"K\x00K\x00\x85K\x01\x85\x89NtR"


def doubling(levels):
    """Pairs of pairs: 2**levels elements in a few bytes."""
    pairs = (b"h" + bytes([i, 104, i]) + b"\x86q" + bytes([i + 1]) + b"0" for i in range(levels))
    return b"Nq\x000" + b"".join(pairs) + b"h" + bytes([levels])


def hostile(folder: Path):
    """Write the files; by name, with a part of the sentence that each is refused with."""
    empty_parameters = text("_parameters") + b"}(" + text("synthesis.b4.const") + EMPTY + b"\x94"
    shared = b"}(" + b"".join(text(f"p{i}") + b"N" for i in range(3000)) + b"u\x940"
    shared += module(text("_parameters") + b"h\x00") + b"\x940"
    many = b"}(" + b"".join(text(f"m{i}") + b"h\x01" for i in range(2000)) + b"u"
    files = {
        # 50 s and 2.3 GB each, as text of the name
        "class-name": (pickled(b"}" + text("G_ema") + module(empty_parameters + b"u", doubling(25)) + b"s"), "blocks"),
        # a RecursionError
        "deep-name": (
            pickled(b"}" + text("G_ema") + module(empty_parameters + b"u", b"N" + b"\x85" * 100_000) + b"s"), "blocks"
        ),
        "deep-root": (pickled(b"N" + b"\x85" * 400_000), "no dictionary"),
        "deep-objects": (
            pickled(name("a", "B") + b"\x940" + b"h\x00" * 9**5 + b"N" + b"\x85\x81" * 9**5), "no tensors"
        ),
        # 57 s and 4.5 GB; 39 s
        "empty-tensors": (
            pickled(
                b"}" + text("G_ema")
                + module(empty_parameters + b"".join(text(f"p{i}") + b"h\x00" for i in range(20_000)) + b"u") + b"s"
            ), "budget of 2000 tensors",
        ),
        "no-parameters": (
            pickled(shared + b"}" + text("G_ema") + module(text("_modules") + many) + b"s"), "budget of 100000 entries"
        ),
        "opcodes": (pickled(b"N0" * 500_001 + b"N"), "budget of 1000000 opcodes"),
        "dictionaries": (b"\x80\x04" + b"}\x94" * 400_000 + b".", "no tensors"),
        "keys": (
            pickled(b"}(" + b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(300_000)) + b"u"), "entries"
        ),
        "text": (pickled(b"](" + (text("a" * 10**6 + "\U0001f600")) * 35 + b"e"), "budget of 32 MiB"),
        "memo": (pickled(b"}r" + struct.pack("<I", 2**32 - 1)), "no tensors"),
        "long": (pickled(b"\x8b" + struct.pack("<i", 2**31 - 1) + bytes(4096)), "integer"),
        "digits": (b"(dp0\nL" + b"9" * 500_000 + b"L\n.", "number of more than"),
        "bytes": (pickled(b"\x96" + struct.pack("<Q", 2**40) + b"abc"), "cut short"),
        "frame": (b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"}.", "cut short"),
        "name": (pickled(name("a", "B" * 1000) + b")R"), "names a global by more than"),
    }  # fmt: skip
    for key, (data, _) in files.items():
        (folder / key).write_bytes(data)
    said = {key: words for key, (_, words) in files.items()}
    header = json.dumps({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(140_000)})
    (folder / "header").write_bytes(struct.pack("<Q", len(header)) + header.encode())  # 0.9 GB for a million
    (folder / "header-length").write_bytes(struct.pack("<Q", 2**40) + b"{}")
    with zipfile.ZipFile(folder / "members", "w") as file:
        for i in range(90_000):
            file.writestr(f"{i:060}", b"")
    with zipfile.ZipFile(folder / "bomb", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", bytes(3 * 10**8))
    said |= {"header": "budget of a header", "header-length": "header is not there", "members": "zip directory"}
    said |= {"bomb": "compressed"}
    for key, sizes, words in (("z", (40_000, 1, 0), "code z"), ("c", (1, 1, 40_000), "class vector")):  # 16 GB
        z_dim, w_dim, c_dim = sizes
        g = Generator(z_dim, w_dim, 16, 1, 16, 1, mapping_layers=1, c_dim=c_dim)
        state = {n: t.contiguous() for n, t in g.state_dict().items() if n != "mapping.w_avg"}
        save_file(state, folder / f"{key}.safetensors")
        said[f"{key}.safetensors"] = words
    with (folder / "large").open("wb") as file:  # 3 GB: sparse, so that it takes no space
        file.write(b"\x80\x04B" + struct.pack("<I", 2**32 - 1))
        file.truncate(3 * 10**9)
    said["large"] = "cut short"
    with (folder / "larger").open("wb") as file:
        file.write(b"\x80\x04N.")
        file.truncate(MAX_FILE + 1)
    said["larger"] = "budget of a generator file is 4 GiB"
    return said


def test_hostile_files_are_refused_within_the_budgets(tmp_path):
    said = hostile(tmp_path)
    for key, (memory, seconds, sentence) in zip(said, measured(*(tmp_path / key for key in said)), strict=True):
        assert said[key] in sentence, (key, sentence)
        assert memory < MEGABYTES, (key, memory)
        assert seconds < SECONDS, (key, seconds)
        assert len(sentence) < 800 + len(str(tmp_path)), key
        assert "\x1b" not in sentence


def test_storages_are_read_once_however_many_tensors_view_them(tmp_path):
    """A flat checkpoint took 13 s, and 56 s with 300 views, where every tensor read its whole storage."""
    g, _ = tiny()
    flat = torch.zeros(20_000_000)
    views, at = {}, 0
    for key, value in g.state_dict().items():
        views[key] = flat[at : at + value.numel()].view(value.shape)
        views[key].copy_(value)
        at += value.numel()
    views |= {f"other.{i}": flat[i : i + 1000] for i in range(500)}
    for zipped in (True, False):
        torch.save(views, tmp_path / f"{zipped}.pt", _use_new_zipfile_serialization=zipped)
    for memory, seconds, sentence in measured(tmp_path / "True.pt", tmp_path / "False.pt"):
        assert sentence == "loaded"
        assert memory < 60  # the file has 80
        assert seconds < 8
    with torch.no_grad():
        z = torch.ones(1, 6)
        assert torch.equal(load_generator(tmp_path / "True.pt").generator(z), g(z))


def test_a_storage_within_a_pickle_is_parsed_once(tmp_path, monkeypatch):
    """60 tensors on one storage took 43 s."""
    from audit.storage.tensors import torch_archive

    seen = []
    whole = torch_archive.read_sequential
    monkeypatch.setattr(torch_archive, "read_sequential", lambda *a: seen.append(1) or whole(*a))
    view = name("torch._utils", "_rebuild_tensor_v2") + b"(%bK\x00K\x01\x85K\x01\x85\x89NtR"
    for shared, used in ((STORAGE, b"h\x00"), (BYTES, LOAD + b"h\x00\x85R")):  # the call, or only its bytes
        names = ["synthesis.b4.const", *(f"synthesis.b4.{i}" for i in range(60))]
        entries = b"".join(text(key) + view.replace(b"%b", used) for key in names)
        (tmp_path / "g.pkl").write_bytes(pickled(shared + b"\x940}(" + entries + b"u"))
        seen.clear()
        with pytest.raises(GeneratorError, match="blocks"):
            load_generator(tmp_path / "g.pkl")
        assert len(seen) == 1


def test_overlapping_and_lying_members_are_refused(tmp_path):
    g, _ = tiny()
    torch.save(g.state_dict(), tmp_path / "g.pt")
    with zipfile.ZipFile(tmp_path / "g.pt") as file:
        members = {info.filename: file.read(info) for info in file.infolist()}
    content = next(key for key in members if key.endswith("data.pkl"))
    bad = dict(members)
    bad[content] = members[content].replace(b"FloatStorage", b"DoubleStorage")
    for change, words in ((bad, "claims .* bytes that are not there"), ({content: members[content]}, "claims")):
        with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
            for key, data in change.items():
                file.writestr(key, data)
        with pytest.raises(GeneratorError, match=words):
            load_generator(tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        file.writestr("a/data.pkl", bytes(1000))
        first = file.infolist()[0]
        for i in range(50):  # fifty names for the same thousand bytes
            twin = zipfile.ZipInfo(f"a/data/{i}")
            twin.file_size = twin.compress_size = first.file_size
            twin.CRC, twin.header_offset = first.CRC, first.header_offset
            file.filelist.append(twin)
            file.NameToInfo[twin.filename] = twin
    with pytest.raises(GeneratorError, match="lie over each other"):
        load_generator(tmp_path / "x.pt")
    whole = bytearray((tmp_path / "g.pt").read_bytes())
    at = whole.find(g.state_dict()["mapping.fc0.weight"].numpy().tobytes())
    assert at > 0
    whole[at] ^= 1
    (tmp_path / "x.pt").write_bytes(whole)
    with pytest.raises(GeneratorError, match="checksum"):
        load_generator(tmp_path / "x.pt")


def test_every_budget_is_counted_before_it_is_spent():
    budget = Budget()
    with pytest.raises(Refused, match="one tensor"):
        budget.spend_numbers(MAX_NUMBERS_EACH + 1)
    for _ in range(MAX_NUMBERS // MAX_NUMBERS_EACH):
        budget.spend_numbers(MAX_NUMBERS_EACH)
    with pytest.raises(Refused, match="million numbers"):
        budget.spend_numbers(MAX_NUMBERS_EACH)
    data = "\u00ff\u0000a".encode() * 100_000
    blob = Blob(in_memory(data), "utf-8")
    assert blob.raw(budget).read(0, 300_000) == b"\xff\x00a" * 100_000
    with pytest.raises(Refused, match="not written as pickles"):
        Blob(in_memory("\u0100".encode()), "utf-8").raw(budget)
    with pytest.raises(Refused, match="written as text"):
        Blob(in_memory(data), "utf-8").raw(Budget(decoded=10))
    window = Window(io.BytesIO(b"abc"), 0, 3)
    for start, size in ((0, 4), (-1, 1), (2, -1), (4, 0)):
        with pytest.raises(Refused, match="cut short"):
            window.part(start, size)
    nested = [[]]
    nested[0] = nested
    assert [brief(v) for v in (nested, (1,), {1: 2}, object(), "x" * 99, 1.5)] == [
        "a list", "a list", "a dictionary", "an object", "x" * 60, "1.5",
    ]  # fmt: skip


def test_a_truncated_file_is_refused_while_it_is_read(tmp_path):
    (tmp_path / "x").write_bytes(bytes(100))
    with (tmp_path / "x").open("rb") as file:
        window = Window.of(file)
        os.truncate(tmp_path / "x", 10)
        with pytest.raises(Refused, match="ends while"):
            window.fill(0, 100)


@pytest.mark.parametrize(("z_dim", "c_dim"), [(6, 0), (6, 3), (3000, 0), (5, 2048)])
@torch.no_grad()
def test_mean_codes_in_parts_are_those_at_once(z_dim, c_dim):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mapping = Mapping(z_dim, 4, 6, 2, c_dim)
    z = torch.randn(MEAN_CODES, z_dim, generator=stage_generator(0, "mean code"))
    c = torch.eye(c_dim)[torch.arange(MEAN_CODES) % c_dim] if c_dim else None
    whole = mapping(z, c=c)[:, 0].mean(0)
    exact = max(z_dim, c_dim) <= 1024
    torch.testing.assert_close(mean_code(mapping, z_dim, c_dim), whole, rtol=0, atol=0 if exact else 1e-5)


def test_metadata_of_any_depth_and_length_are_shown_in_bounds(tmp_path):
    from audit.generator.commands import inspect_generator

    g, _ = tiny()
    state = {n: t.contiguous() for n, t in g.state_dict().items()}
    deep, long = "[" * 900 + "]" * 900, json.dumps(["x" * 200_000])
    save_file(state, tmp_path / "g.safetensors", {"deep": deep, "long": long, "fine": "[1]"})
    found = inspect_generator(tmp_path / "g.safetensors")["metadata"]
    assert (found["deep"], found["fine"]) == (deep, [1])
    assert len(found["long"]) < 300
    json.dumps(found)


def test_architectures_that_a_file_only_claims_are_said_in_bounds(tmp_path):
    g, d = tiny()
    from audit.generator.files.load import save_generator

    for value in (json.dumps({"surprise": [[["x" * 100] * 100] * 100]}), "[" * 10**6, "9" * 10**5):
        save_generator(tmp_path / "g.safetensors", g, d, {"generator": value})
        with pytest.raises(GeneratorError, match=r"cannot be built|no JSON object") as error:
            load_generator(tmp_path / "g.safetensors")
        assert len(str(error.value)) < 600


def test_a_snapshot_written_as_text_costs_a_bounded_multiple(tmp_path):
    g, d = tiny()
    data = snapshot(g.state_dict(), d.state_dict(), protocol=0)
    assert data != pickle.dumps(None, protocol=0)
    (tmp_path / "s.pkl").write_bytes(data)
    assert load_generator(tmp_path / "s.pkl").discriminator is not None
