"""Feed the readers of other people's files with damaged ones: `python benchmarks/fuzz.py READER --seconds S --seed N`.

Every input is a good file with one to eight edits: bytes, numbers and pieces are changed, doubled, removed or taken
from another file of its kind; texts are changed by words and values, which gets farther than bytes do. Archives are
edited inside as well, so that checksums hold. A reader may accept an input or raise its documented error, an
`AuditError` of one line. Anything else is a defect: another exception, a process that dies, an input that takes more
than `HANG` seconds or more memory than `HEADROOM`. Defects are printed with a file that shows them, and the exit status
is 1.

`--engine atheris` lets the coverage of the reader's own Python choose the edits (`pip install atheris`; its bytes are
then the input itself). `tests/security/test_fuzz.py` runs the same edits with hypothesis.
"""

import argparse
import contextlib
import csv
import importlib.util
import io
import json
import os
import pickle
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from audit.errors import AuditError

HANG = 5
"""Seconds of processor time that one input of a few kilobytes may take; a busy machine does not count."""
HEADROOM = 2**30
"""Bytes of address space above what the process has when the first input is read."""
LARGEST = 2**16
"""Bytes of an input."""
NUMBERS = (0, 1, -1, 2, 127, 128, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63, 10**9, 10**30)
WORDS = (
    "", " ", "nan", "inf", "-inf", "1e400", "-0.0", "true", "null", "[]", "{}", "../x", "/etc/passwd", "~root/x",
    "a\\b", "\0", "\x1b[2J", "\ud7ff", "\u202e", "=1+1", "<b>", "'", '"', "|", "shipped:plain", "phantom", "hf:x",
    "x:y", "0x10", "8/255", "1/0", "1e-9", "A" * 300, "[" * 3000, "9" * 5000,
)  # fmt: skip

Bytes = bytes
Edit = Callable[[Bytes, random.Random], Bytes]


@dataclass(frozen=True)
class Reader:
    """What is read: good files to begin with, how they are edited beside byte by byte, and the reader itself.

    `read` is given the path of an input; `suffix` is the ending of its name.
    """

    seeds: Callable[[], list[Bytes]]
    read: Callable[[Path], object]
    suffix: str
    edits: tuple[Edit, ...] = ()


# --- edits ---------------------------------------------------------------------------------------------------------


def _place(data: Bytes, draw: random.Random) -> int:
    """A position; half of them near the beginning, where headers are."""
    end = len(data) if draw.random() < 0.5 else min(len(data), 128)
    return draw.randint(0, end)


def _number(draw: random.Random) -> Bytes:
    value = draw.choice(NUMBERS) + draw.choice((0, 0, 1, -1))
    kind, bits = draw.choice((("B", 8), ("<H", 16), (">H", 16), ("<I", 32), (">I", 32), ("<Q", 64), (">Q", 64)))
    return struct.pack(kind, value % 2**bits)


def edit_bytes(data: Bytes, draw: random.Random) -> Bytes:
    """Change bytes without knowing what they mean."""
    at, span = _place(data, draw), draw.choice((1, 1, 2, 4, 8, 32, 200))
    match draw.randrange(8):
        case 0:
            return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :] if at < len(data) else data
        case 1:
            return data[:at] + draw.randbytes(span) + data[at + span :]
        case 2:
            number = _number(draw)
            return data[:at] + number + data[at + len(number) :]
        case 3:
            return data[:at] + _number(draw) + data[at:]
        case 4:
            return data[:at] + data[at + span :]
        case 5:
            return data[:at] + data[at : at + span] * draw.choice((2, 3, 50)) + data[at + span :]
        case 6:
            other = _place(data, draw)
            return data[:at] + data[other : other + span] + data[at + span :]
        case _:
            return data[:at] if draw.random() < 0.3 else data + data[at : at + span]


def _word(draw: random.Random) -> str:
    return draw.choice(WORDS) if draw.random() < 0.6 else str(draw.choice(NUMBERS))


def edit_lines(data: Bytes, draw: random.Random) -> Bytes:
    """Change a text by lines and by words between separators."""
    lines = data.split(b"\n")
    at = draw.randrange(len(lines))
    line = lines[at].decode("utf-8", "surrogateescape")
    match draw.randrange(6):
        case 0:
            del lines[at]
        case 1:
            lines.insert(draw.randrange(len(lines) + 1), lines[at])
        case 2:
            other = draw.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        case 3:
            head, separator, _ = line.partition("=" if "=" in line else ",")
            quoted = json.dumps(_word(draw)) if draw.random() < 0.5 else _word(draw)
            lines[at] = f"{head}{separator} {quoted}".encode("utf-8", "surrogateescape")
        case 4:
            cells = line.split(",")
            cells[draw.randrange(len(cells))] = _word(draw)
            lines[at] = ",".join(cells).encode("utf-8", "surrogateescape")
        case _:
            place = draw.randint(0, len(line))
            lines[at] = (line[:place] + _word(draw) + line[place:]).encode("utf-8", "surrogateescape")
    return b"\n".join(lines)


def _value(draw: random.Random) -> Any:
    kinds = (None, True, [], {}, _word(draw), [_word(draw)], {_word(draw): 1}, 0.5, -1.5, float("nan"), float("inf"))
    return draw.choice(NUMBERS) if draw.random() < 0.4 else draw.choice(kinds)


def _change_value(root: Any, draw: random.Random) -> Any:
    """Change one place of nested lists and dictionaries, in place but for the root itself."""
    here, depth = root, 0
    while isinstance(here, dict | list) and here:
        key = draw.choice(list(here)) if isinstance(here, dict) else draw.randrange(len(here))
        inner = here[key]
        if not (isinstance(inner, dict | list) and inner) or draw.random() < 0.1 or depth > 40:
            match draw.randrange(5):
                case 0:
                    del here[key]
                case 1 if isinstance(here, dict):
                    here[_word(draw)] = inner
                case 1:
                    here.append(inner)
                case 2:
                    here[key] = [inner] if draw.random() < 0.5 else {str(_word(draw)): inner}
                case _:
                    here[key] = _value(draw)
            return root
        here, depth = inner, depth + 1
    return _value(draw)


def edit_json(data: Bytes, draw: random.Random) -> Bytes:
    """Change a value of a JSON text that can be read; else bytes."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return edit_bytes(data, draw)
    for _ in range(draw.choice((1, 1, 2, 5))):
        found = _change_value(found, draw)
    return json.dumps(found).encode("utf-8", "surrogatepass")


def edit_header(data: Bytes, draw: random.Random) -> Bytes:
    """Change the JSON header of a safetensors file, whose length is made to fit."""
    if len(data) < 8:
        return edit_bytes(data, draw)
    size = struct.unpack("<Q", data[:8])[0]
    header = edit_json(data[8 : 8 + size], draw)
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def edit_members(data: Bytes, draw: random.Random) -> Bytes:
    """Change name or content of a member of a zip file, and write the archive anew, with right checksums."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, info.compress_type, archive.read(info)) for info in archive.infolist()]
    except Exception:  # noqa: BLE001 - an archive that an earlier edit has damaged is edited as bytes
        return edit_bytes(data, draw)
    if not members:
        return edit_bytes(data, draw)
    at = draw.randrange(len(members))
    name, kind, content = members[at]
    match draw.randrange(8):
        case 0:
            name = draw.choice((_word(draw), f"../{name}", name.replace("/", "//"), f"{name}/x", name.upper()))
        case 1:
            members.pop(draw.randrange(len(members)))
            members.append((name, kind, content))
        case 2:
            content = members[draw.randrange(len(members))][2]
        case 3:
            kind = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
        case _:
            content = edit_bytes(content, draw)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for number, (called, how, held) in enumerate(members):
            chosen = (name, kind, content) if number == at else (called, how, held)
            info = zipfile.ZipInfo(chosen[0].encode("utf-8", "replace").decode())
            info.compress_type = chosen[1]
            archive.writestr(info, chosen[2])
    return out.getvalue()


def edit_chunks(data: Bytes, draw: random.Random) -> Bytes:
    """Change a chunk of a PNG file and give it the right checksum."""
    if not data.startswith(b"\x89PNG"):
        return edit_bytes(data, draw)
    chunks, at = [], 8
    while at + 12 <= len(data):
        size = struct.unpack(">I", data[at : at + 4])[0]
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    if not chunks:
        return edit_bytes(data, draw)
    which = draw.randrange(len(chunks))
    kind, content = chunks[which]
    chunks[which] = (kind, edit_bytes(content, draw))
    if draw.random() < 0.2:
        chunks.insert(draw.randrange(len(chunks)), draw.choice(chunks))
    return data[:8] + b"".join(
        struct.pack(">I", len(held)) + name + held + struct.pack(">I", zlib.crc32(name + held)) for name, held in chunks
    )


def edited(reader: Reader, seeds: list[Bytes], draw: random.Random) -> Bytes:
    """Return one input: a good file with edits, sometimes continued by another one (a polyglot)."""
    data = draw.choice(seeds)
    if draw.random() < 0.02:
        data += draw.choice(seeds)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        edit = draw.choice(reader.edits) if reader.edits and draw.random() < 0.7 else edit_bytes
        data = edit(data, draw)[:LARGEST]
    return data


# --- readers -------------------------------------------------------------------------------------------------------


def _config_seeds() -> list[Bytes]:
    root = Path(__file__).parent
    places = [*root.glob("*/*.toml"), root / "gate.toml", root.parent / "audit" / "data" / "demo.toml"]
    return [place.read_bytes() for place in sorted(places)]


def _read_config(path: Path) -> None:
    from audit.config import load_config
    from audit.gate.policy import load_policy
    from audit.training.classifier.config import load_classifier_train_config
    from audit.training.encoder.config import load_encoder_train_config
    from audit.training.generator.config import load_generator_train_config

    readers = (
        load_config,
        load_policy,
        load_classifier_train_config,
        load_encoder_train_config,
        load_generator_train_config,
    )
    wrong = None
    for read in readers:
        try:
            read(path)
            return
        except AuditError as error:
            wrong = error
    if wrong is not None:
        raise wrong


def _pictures(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(4):
        pixels = np.full((8, 8), 40 * number, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def _manifest_seeds() -> list[Bytes]:
    rows = [
        {
            "image": f"{n}.png", "label": "ab"[n % 2], "split": "test", "mask": f"{n}.png", "id": f"no. {n}",
            "box": "", "mask:marker": "", "site": "x",
        }
        for n in range(4)
    ]  # fmt: skip
    boxed = [{**row, "mask": "", "box": "0 0 4 4; 2 2 8 8"} for row in rows]
    several = [{"image": row["image"], "label": "a;b" if n else ""} for n, row in enumerate(rows)]
    columns = [{"image": row["image"], "label:a": n % 2, "label:b": (1, 0, -1, 1)[n]} for n, row in enumerate(rows)]
    found = []
    for table in (rows, boxed, several, columns):
        out = io.StringIO()
        writer = csv.DictWriter(out, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
        found.append(out.getvalue().encode())
    return found


def _look_at(config: Any) -> None:
    from audit.data.load import load_data

    found = load_data(config, seed=0)
    found.images(range(min(2, len(found.ids))))
    for name in found.regions:
        found.region(name, [0])


def _read_manifest(path: Path) -> None:
    from audit.config import DataConfig

    if not (path.parent / "3.png").exists():
        _pictures(path.parent)
    _look_at(DataConfig(path=str(path), format="manifest"))


def _npz_seeds() -> list[Bytes]:
    images, labels = np.zeros((4, 8, 8), np.uint8), np.array([[0], [1], [0], [1]])
    images[:, 2:4] = 99
    plain = {"test_images": images, "test_labels": labels, "val_images": images, "val_labels": labels}
    colour = {"test_images": np.zeros((4, 8, 8, 3), np.float32), "test_labels": np.eye(4)[:, :3]}
    found = []
    for arrays, write in (
        (plain, np.savez),
        ({**plain, "test_masks": images, "test_masks_marker": images > 0}, np.savez_compressed),
        (colour, np.savez),
    ):
        out = io.BytesIO()
        write(out, **arrays)
        found.append(out.getvalue())
    return found


def _read_npz(path: Path) -> None:
    from audit.config import DataConfig

    _look_at(DataConfig(path=str(path), format="npz", masks="masks" if path.stat().st_size % 2 else None))


def _archive_seeds() -> list[Bytes]:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for split in ("test", "val"):
            for name in "ab":
                for number, kind in enumerate(("PNG", "JPEG")):
                    held = io.BytesIO()
                    Image.fromarray(np.full((8, 8), 60 * number, np.uint8)).save(held, kind)
                    archive.writestr(f"{split}/{name}/{number}.{kind.lower()}", held.getvalue())
    return [out.getvalue()]


def _read_archive(path: Path) -> None:
    from audit.config import DataConfig
    from audit.data.archive import _opened

    _opened.cache_clear()  # inputs follow each other faster than a file's time of change tells them apart
    _look_at(DataConfig(path=str(path), format="zip"))


def _image_seeds() -> list[Bytes]:
    grey = np.arange(144, dtype=np.uint8).reshape(12, 12)
    colour = np.stack([grey, grey[::-1], grey.T], 2)
    deep = grey.astype(np.uint16) * 300
    kinds: list[tuple[np.ndarray, str, dict[str, Any]]] = [
        (grey, "PNG", {}), (colour, "PNG", {}), (deep, "PNG", {}), (grey, "JPEG", {}), (colour, "JPEG", {}),
        (grey, "BMP", {}), (colour, "BMP", {}), (colour, "WEBP", {}), (grey, "TIFF", {}), (deep, "TIFF", {}),
        (colour, "TIFF", {"compression": "tiff_lzw"}), (grey.astype(np.float32), "TIFF", {}),
    ]  # fmt: skip
    found = []
    for pixels, kind, options in kinds:
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, kind, **options)
        found.append(out.getvalue())
    turned, out = Image.Exif(), io.BytesIO()
    turned[0x0112] = 6
    Image.fromarray(colour).save(out, "JPEG", exif=turned)
    return [*found, out.getvalue()]


def _read_image(path: Path) -> None:
    from audit.data.images import Conversion, decode_stored, read_header
    from audit.data.regions import decode_mask

    read_header(path)
    Conversion(16, 1, None).pixels(decode_stored(path), "it")
    decode_mask(path)


def _dicom_seeds() -> list[Bytes]:
    from pydicom.data import get_testdata_file

    names = ("CT_small", "MR_small_RLE", "SC_rgb_jpeg_dcmtk", "JPEG2000", "SC_rgb_small_odd", "liver_1frame")
    files = [get_testdata_file(f"{name}.dcm", download=False) for name in names]
    return [Path(file).read_bytes() for file in files]


def _read_dicom(path: Path) -> None:
    from audit.data.dicom import Window, decode_dicom, read_dicom_header

    def read(window: Window | None) -> None:
        read_dicom_header(path, window)
        decode_dicom(path, window)

    _each(path, lambda _: read(None), lambda _: read("file"), lambda _: read((40, 400)))


def _tensors() -> dict[str, torch.Tensor]:
    return {"0.weight": torch.ones(2, 1, 3, 3), "0.bias": torch.zeros(2), "4.weight": torch.ones(3, 2)}


def _safetensors_seeds() -> list[Bytes]:
    about = {"classes": '["a", "b", "c"]', "mean": "[0.5]", "architecture": '"resnet18"', "kind": "domain-embedding"}
    encoder = {"resolution": 16, "channels": 1, "num_ws": 2, "w_dim": 8, "width": 16, "generator_sha256": ""}
    return [
        save(_tensors(), about),
        save({"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.zeros(0, 4), "c": torch.ones(())}, {"mean": "x"}),
        save({"mean": torch.zeros(8), "unit": torch.ones([])}, {"encoder": json.dumps(encoder)}),
        save({"mapping.fc0.weight": torch.ones(8, 8)}, {"generator": '{"resolution": 16}'}),
    ]


def _all_tensors(path: Path) -> None:
    from audit.classifiers.checkpoint import read_checkpoint
    from audit.classifiers.input_settings import settings_of_metadata

    found = read_checkpoint(path)
    settings_of_metadata(found.about, "it")
    for stored in found.stored.values():
        stored.read()


def _each(path: Path, *readers: Callable[[Path], object]) -> None:
    """Read a file in every way; raises the last of the documented errors if none took it."""
    wrong = None
    for read in readers:
        try:
            read(path)
        except AuditError as error:
            wrong = error
            _check(error)
    if wrong is not None:
        raise wrong


def _read_tensors(path: Path) -> None:
    from audit.embeddings.domain import load_domain
    from audit.generator.commands import inspect_generator
    from audit.inversion.encoder import load_encoder

    readers: tuple[Callable[[Path], object], ...] = (_all_tensors, lambda p: inspect_generator(str(p)))
    if path.suffix == ".safetensors":
        readers = (*readers, load_encoder, load_domain)
    _each(path, *readers)


def _pickle_seeds() -> list[Bytes]:
    tensors, found = _tensors(), []
    nested = {"state_dict": tensors, "epoch": 3, "arch": "resnet18", "optimizer": {"lr": 0.1, "betas": (0.9, 0.99)}}
    tied = torch.ones(4, 4)
    for value in (tensors, nested, {"a": tied, "b": tied[1:, ::2], "c": tied.half()}, torch.nn.Linear(2, 2)):
        for zipped in (True, False):
            out = io.BytesIO()
            torch.save(value, out, _use_new_zipfile_serialization=zipped)
            found.append(out.getvalue())
    found += [pickle.dumps({"G_ema": {"w": np.ones(3, np.float32)}, "n": [1, "x", 2.5, None]}, p) for p in range(5)]
    return found


def _plain_seeds() -> list[Bytes]:
    return [data for data in _pickle_seeds() if not data.startswith(b"PK")]


def _read_plain(path: Path) -> None:
    from audit.storage.tensors.file_bytes import Budget, Refused, in_memory
    from audit.storage.tensors.sources import open_archive
    from audit.storage.tensors.tree import tree_of

    try:
        archive = open_archive(in_memory(path.read_bytes()), Budget())
        for described in tree_of(archive.content.value).tensors.values() if archive is not None else ():
            archive.tensors.read(described)
    except Refused as error:  # every reader of files makes a sentence of it
        raise AuditError(str(error)) from None


def _arrays_seeds() -> list[Bytes]:
    arrays = {"params": {"conv": {"kernel": np.ones((2, 3), np.float32)}, "bias": np.zeros(3, np.float32)}}
    return [pickle.dumps(arrays, protocol) for protocol in (2, 3, 4, 5)]


def _read_arrays(path: Path) -> None:
    from audit.embeddings.array_pickle import read_arrays

    read_arrays(path.read_bytes(), "it")


def _training_seeds() -> list[Bytes]:
    state = {"step": 3, "net": _tensors(), "rng": torch.get_rng_state()[:64], "key": "k", "losses": [1.0, 2.0]}
    out = io.BytesIO()
    torch.save(state, out)
    return [out.getvalue()]


def _read_training(path: Path) -> None:
    from audit.storage.checkpoint import load_checkpoint

    load_checkpoint(path, "k")


def _results_seeds() -> list[Bytes]:
    spec = importlib.util.spec_from_file_location(
        "support_results", Path(__file__).parents[1] / "tests" / "support_results.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with tempfile.TemporaryDirectory() as folder:
        result = module.example_audit(Path(folder), models=("trades", "plain"), n_queries=0)
    return [result.model_dump_json().encode()]


def _read_results(path: Path) -> None:
    from audit.results import read_results

    read_results(path)


def _read_report(path: Path) -> None:
    """Read results, and show what was accepted in every form there is."""
    import xml.etree.ElementTree as ElementTree

    from audit.gate.evaluate import evaluate_gate
    from audit.gate.policy import load_policy
    from audit.gate.render import to_junit_xml, to_markdown
    from audit.report.build import render_report
    from audit.results import read_results

    found = read_results(path)
    outcome = evaluate_gate(found, load_policy(Path(__file__).parent / "gate.toml"), found)
    ElementTree.fromstring(to_junit_xml(outcome))
    to_markdown(outcome)
    render_report(path)


def _onnx_seeds() -> list[Bytes]:
    """Small networks of the operators that classifiers consist of."""
    from onnx import TensorProto, helper, numpy_helper

    draw = np.random.default_rng(0)
    sizes = {"w": (3, 1, 3, 3), "b": (3,), "scale": (3,), "v": (2, 3)}
    weights = {name: draw.random(size, dtype=np.float32) for name, size in sizes.items()}
    taken = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])
    given = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])
    tail = [
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("Gemm", ["e", "v"], ["y"], transB=1),
    ]
    first = helper.make_node("Conv", ["x", "w", "b"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2])
    bodies = (
        [first, helper.make_node("Relu", ["a"], ["c"])],
        [first, helper.make_node("BatchNormalization", ["a", "scale", "b", "b", "scale"], ["c"])],
        [first, helper.make_node("Softplus", ["a"], ["t"]), helper.make_node("Mul", ["a", "t"], ["c"])],
    )
    found = []
    for body in bodies:
        used = {name for node in (*body, *tail) for name in node.input}
        kept = [numpy_helper.from_array(value, name) for name, value in weights.items() if name in used]
        graph = helper.make_graph([*body, *tail], "g", [taken], [given], kept)
        opsets = [helper.make_opsetid("", 17)]
        found.append(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
    return found


def _read_onnx(path: Path) -> None:
    """Open a file in onnxruntime, which simplifies it, and make a network of it; images are not shown to it."""
    from audit.classifiers.containers.onnx_file import NotDifferentiable, _converted, input_of, open_session

    simplified = path.with_suffix(".simplified")
    session = open_session(path, simplified)
    input_of(session, path)
    with contextlib.suppress(NotDifferentiable):
        _converted(simplified, path)


def _json_seeds() -> list[Bytes]:
    processor = {"do_resize": True, "size": {"height": 224, "width": 224}, "image_mean": [0.5], "image_std": [0.5]}
    bundle = {
        "network_data_format": {
            "inputs": {"image": {"num_channels": 1, "spatial_shape": [64, 64], "value_range": [0, 1]}},
            "outputs": {"pred": {"channel_def": {"0": "a", "1": "b"}}},
        }
    }
    return [json.dumps(processor).encode(), json.dumps(bundle).encode()]


def _read_json(path: Path) -> None:
    from audit.classifiers.containers.hugging_face import read_json, settings_of_processor, understood
    from audit.classifiers.containers.monai_bundle import _transforms, settings_of_metadata

    found = read_json(path)
    _transforms(found)
    understood(settings_of_metadata, found, path)
    understood(settings_of_processor, found, path)


READERS: dict[str, Reader] = {
    "config": Reader(_config_seeds, _read_config, ".toml", (edit_lines,)),
    "manifest": Reader(_manifest_seeds, _read_manifest, ".csv", (edit_lines,)),
    "npz": Reader(_npz_seeds, _read_npz, ".npz", (edit_members,)),
    "archive": Reader(_archive_seeds, _read_archive, ".zip", (edit_members,)),
    "image": Reader(_image_seeds, _read_image, ".png", (edit_chunks,)),
    "dicom": Reader(_dicom_seeds, _read_dicom, ".dcm"),
    "safetensors": Reader(_safetensors_seeds, _read_tensors, ".safetensors", (edit_header,)),
    "pickle": Reader(_pickle_seeds, _read_tensors, ".pt", (edit_members,)),
    "plain-pickle": Reader(_plain_seeds, _read_plain, ".pkl"),
    "arrays": Reader(_arrays_seeds, _read_arrays, ".ckpt"),
    "training": Reader(_training_seeds, _read_training, ".pt", (edit_members,)),
    "results": Reader(_results_seeds, _read_results, ".json", (edit_json,)),
    "report": Reader(_results_seeds, _read_report, ".json", (edit_json,)),
    "container": Reader(_json_seeds, _read_json, ".json", (edit_json,)),
    "onnx": Reader(_onnx_seeds, _read_onnx, ".onnx"),
}


# --- running -------------------------------------------------------------------------------------------------------


class Hung(BaseException):
    """An input takes too long; no `except Exception` of a reader may take it for its own."""


def _hang(number: int, frame: FrameType | None) -> None:
    raise Hung


def _check(error: AuditError) -> None:
    """Raise AssertionError unless an error of the user is one printable line."""
    text = str(error)
    if "\n" in text or len(text) > 5000 or not text:
        raise AssertionError(f"the sentence is not one line: {text[:200]!r}") from error


def defect_of(reader: Reader, path: Path) -> str | None:
    """Read one input; return what went wrong beyond the documented error, or None."""
    try:
        reader.read(path)
    except AuditError as error:
        try:
            _check(error)
        except AssertionError as wrong:
            return str(wrong)
    except Hung:
        return f"hangs for more than {HANG} s\n{traceback.format_exc()}"
    except Exception:  # noqa: BLE001 - whatever else a reader raises is what is looked for
        return traceback.format_exc()
    return None


@contextmanager
def _limits() -> Iterator[None]:
    """Bound the memory of the process, and let the timer of each input raise Hung."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + HEADROOM, resource.RLIM_INFINITY))
    signal.signal(signal.SIGPROF, _hang)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)


def _warm(reader: Reader, seeds: list[Bytes], path: Path) -> None:
    """Read the good files, so that what is imported late is counted as no input's memory."""
    for seed in seeds:
        path.write_bytes(seed)
        found = defect_of(reader, path)
        if found is not None:
            raise SystemExit(f"a good file is a defect:\n{found}")


def run(name: str, seconds: float, seed: int, folder: Path) -> int:
    """Read edited files for `seconds`; prints the count and every new kind of defect; returns their number."""
    reader, draw = READERS[name], random.Random(seed)
    warnings.simplefilter("ignore")  # of doubled names in archives, and of what damaged files are like
    seeds, path = reader.seeds(), folder / f"input{reader.suffix}"
    _warm(reader, seeds, path)
    count, seen = 0, set()
    slowest, end = 0.0, time.monotonic() + seconds
    with _limits():
        while time.monotonic() < end:
            start = time.process_time()
            path.write_bytes(edited(reader, seeds, draw))
            signal.setitimer(signal.ITIMER_PROF, HANG)
            found = defect_of(reader, path)
            signal.setitimer(signal.ITIMER_PROF, 0)
            count += 1
            slowest = max(slowest, time.process_time() - start)
            if found is not None:
                kind = "\n".join(found.strip().splitlines()[-3:])[:400]
                if kind not in seen:
                    seen.add(kind)
                    kept = Path(tempfile.gettempdir()) / f"fuzz-{name}-{seed}-{len(seen)}{reader.suffix}"
                    kept.write_bytes(path.read_bytes())
                    print(f"DEFECT {kept}\n{found}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(
        f"{name}: {count} inputs of seed {seed}, {len(seen)} kinds of defects, slowest {slowest:.2f} s, "
        f"peak {peak} MiB",
        flush=True,
    )
    return len(seen)


def run_atheris(name: str, seconds: float, seed: int, folder: Path) -> None:
    """Let libFuzzer choose the inputs by what they reach in the package's own Python; it ends the process itself."""
    import atheris

    with atheris.instrument_imports(include=["audit"]):
        for module in ("classifiers.checkpoint", "config", "embeddings.array_pickle", "generator.commands"):
            importlib.import_module(f"audit.{module}")
    reader = READERS[name]
    corpus, path = folder / "corpus", folder / f"input{reader.suffix}"
    corpus.mkdir()
    for number, data in enumerate(reader.seeds()):
        (corpus / str(number)).write_bytes(data)

    def one(data: Bytes) -> None:
        path.write_bytes(data)
        found = defect_of(reader, path)
        if found is not None:
            raise RuntimeError(found)

    arguments = [f"-max_total_time={int(seconds)}", f"-seed={seed}", f"-timeout={HANG}", f"-max_len={LARGEST}"]
    atheris.Setup([sys.argv[0], *arguments, "-rss_limit_mb=4096", "-print_final_stats=1", str(corpus)], one)
    atheris.Fuzz()


def main() -> int:
    """Run one reader in a child process, so that one that dies is a defect with its input and not the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reader", choices=[*READERS, "all"])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("edits", "atheris"), default="edits")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        with tempfile.TemporaryDirectory(dir=asked_folder()) as folder:
            if asked.engine == "atheris":
                run_atheris(asked.reader, asked.seconds, asked.seed, Path(folder))
                return 0
            return int(run(asked.reader, asked.seconds, asked.seed, Path(folder)) > 0)
    status = 0
    for name in READERS if asked.reader == "all" else [asked.reader]:
        command = [sys.executable, __file__, name, "--child", "--engine", asked.engine]
        command += ["--seconds", str(asked.seconds), "--seed", str(asked.seed)]
        ended = subprocess.run(command, check=False).returncode
        if ended not in (0, 1):
            print(f"DEFECT {name}: the process ended with {ended} (negative: killed by that signal), seed {asked.seed}")
        status = max(status, int(ended != 0))
    return status


def asked_folder() -> str | None:
    """A folder in memory where there is one: a million small files are written."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


if __name__ == "__main__":
    sys.exit(main())
