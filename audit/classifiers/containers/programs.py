"""What a TorchScript or torch.export file would do, read from it before anything of it runs.

Such a file is a program, but one that can only call operators of torch. Nearly all of these are arithmetic on tensors,
as in any network; a few read and write files or ask other machines, and parts of a file may be pickles that torch would
load with whatever they call. A file with none of that is no more dangerous than weights.
"""

import io
import json
import lzma
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from audit.classifiers.checkpoint import is_exported, is_torchscript

ARITHMETIC = {"aten", "prim", "prims", "torchvision", "quantized", "higher_order"}
"""Namespaces of operators that compute, but for those named next."""
REACHING_OUT = {"save", "from_file", "read_file", "write_file", "rpc_sync", "rpc_async", "rpc_remote", "fork"}
"""Operators of torch 2.14 with the name of a file or of a machine among their arguments (`_jit_get_all_schemas`)."""
PLAIN_CALLS = ("_operator.", "math.", "torch.sym_")
"""Beginnings of what a torch.export graph calls beside operators: sums and comparisons of sizes."""
UNREADABLE = (
    zipfile.BadZipFile, RuntimeError, ValueError, LookupError, EOFError, OSError, zlib.error, lzma.LZMAError,
)  # fmt: skip
"""What reading a member of a damaged, encrypted or oddly compressed archive raises."""
LARGEST_MEMBER = 256 * 2**20
"""Bytes of code or graph that are looked at; a network has far fewer."""


def beyond_arithmetic(file: Path) -> str | None:
    """Return, for a sentence, what in a program of torch is more than arithmetic on tensors.

    None: nothing, or the file is no program. What is read is what torch reads, as far as an archive is unambiguous; one
    that is not counts as more, too.
    """
    if not (is_torchscript(file) or is_exported(file)):
        return None
    try:
        with zipfile.ZipFile(file) as archive:
            twice = [name for name, times in Counter(archive.namelist()).items() if times > 1]
            if twice:
                return f"two members named '{twice[0]}'"
            large = [member.filename for member in archive.infolist() if _is_read(member) and _is_large(member)]
            if large:
                return f"a member of more than {LARGEST_MEMBER // 2**20} MiB of code, '{large[0]}'"
            return next(_in_script(archive) if is_torchscript(file) else _in_export(archive), None)
    except UNREADABLE as error:
        return f"what cannot be read ({type(error).__name__})"


def _is_read(member: zipfile.ZipInfo) -> bool:
    return member.filename.endswith((".py", ".json", ".pt"))


def _is_large(member: zipfile.ZipInfo) -> bool:
    return member.file_size > LARGEST_MEMBER


def _in_script(archive: zipfile.ZipFile) -> Iterator[str]:
    code = [name for name in archive.namelist() if "/code/" in name and name.endswith(".py")]
    if not code:
        yield "no code in the layout of today"
    for name in code:
        text = archive.read(name).decode("utf-8")
        for namespace in re.findall(r"\bops\s*\.\s*(\w+)", text):
            if namespace not in ARITHMETIC:
                yield f"operators of '{namespace}'"
        if re.search(r"\btorch\s*\.\s*classes\b", text):
            yield "objects of a C++ class"
        # An operator can be called as a method as well, so that its bare name counts.
        for called in re.findall(r"(\w+)\s*\(", text):
            if called in REACHING_OUT:
                yield f"a call of '{called}'"


def _in_export(archive: zipfile.ZipFile) -> Iterator[str]:
    graphs = 0
    for name in archive.namelist():
        if name.endswith(".pt") and not _is_plain(archive.read(name)):
            yield f"a pickle that is more than tensors, '{name}'"
        elif name.endswith((".so", ".o", ".cpp", ".cubin", ".ptx")) or "/aotinductor/" in name:
            yield f"compiled code, '{name}'"
        elif name.endswith(".json"):
            values = json.loads(archive.read(name))
            graphs += "/models/" in name or "serialized_exported_program" in name
            for key, value in _entries(values):
                if key == "use_pickle" and value is not False:
                    yield f"pickled tensors, '{name}'"
                elif key == "target" and isinstance(value, str) and not _computes(value):
                    yield f"a call of '{value}'"
                elif key in ("as_custom_obj", "as_script_object", "custom_obj_name"):
                    yield "objects of a C++ class"
    if not graphs:
        yield "no graph in the layout of today"


def _computes(target: str) -> bool:
    """Whether what a graph calls by this name is arithmetic; a node that is no call has its own name as its target."""
    if "." not in target or target.startswith(PLAIN_CALLS):
        return True
    namespace, _, operator = target.removeprefix("torch.ops.").partition(".")
    known = target.startswith("torch.ops.") and namespace in ARITHMETIC
    return known and operator.split(".")[0] not in REACHING_OUT


def _entries(values: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value of nested JSON."""
    waiting = [values]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield from one.items()
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _is_plain(pickled: bytes) -> bool:
    try:
        torch.load(io.BytesIO(pickled), map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001 - whatever it is, it is not plain
        return False
    return True
