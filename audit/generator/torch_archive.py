"""Tensors out of files that torch wrote, zipped or in the older sequential layout, without unpickling anything.

`torch.load(weights_only=True)` refuses the `argparse.Namespace` that many training checkpoints carry, and allocates
what a file claims. Here the pickle is read by `audit.generator.plain_pickle`, a storage is a slice of bytes that are
there, and tensors together are never larger than their file.

Layouts. Zipped: `NAME/data.pkl` and one stored (not deflated) member `NAME/data/KEY` a storage. Sequential: five
pickles (magic, version, system, content, keys of the storages), then for each key its number of elements and its bytes.
A tensor pickled by itself carries a storage as such a sequential file in bytes.
"""

import io
import math
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from audit.generator.plain_pickle import Call, Global, Name, PersistentId, Plain, Refused, read_pickle

MAGIC = 0x1950A86A20F9469CFC6C
MAX_DIMENSIONS = 6
DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
TENSOR_GLOBALS: frozenset[Name] = frozenset(
    {
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch.nn.parameter", "Parameter"),
        ("torch", "Size"),
        ("torch", "device"),
        ("collections", "OrderedDict"),
        ("builtins", "set"),
        ("__builtin__", "set"),
    }
    | {("torch", name) for name in DTYPES}
    | {("torch", str(dtype).removeprefix("torch.")) for dtype in DTYPES.values()}
)
CHECKPOINT_GLOBALS = TENSOR_GLOBALS | {("argparse", "Namespace")}
"""What a checkpoint of tensors and settings may name."""

Fetch = Callable[[Any], tuple[torch.dtype, memoryview]]
"""From the description of a storage to its type and its bytes."""


@dataclass(frozen=True)
class Storage:
    """What a storage's persistent id says: type, key and number of elements."""

    dtype: torch.dtype
    key: str
    elements: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.elements * self.dtype.itemsize


def storage_of(reference: PersistentId) -> Storage:
    """Read the persistent id `("storage", type, key, device, elements, ...)`; raises Refused."""
    match reference.value:
        case ("storage", Global(name=("torch", kind)), str(key), _, int(elements), *_) if kind in DTYPES:
            if elements >= 0 and not isinstance(elements, bool):
                return Storage(DTYPES[kind], key, elements)
    raise Refused("it refers to something outside itself that is no storage of torch")


def entries_of(value: Any) -> dict[str, Any] | None:
    """Entries of a dictionary or of an object that stands for one (OrderedDict, EasyDict); None for anything else."""
    return value if isinstance(value, dict) else value.entries if isinstance(value, Call) else None


def refuse_unknown(named: tuple[Name, ...], allowed: Callable[[Name], bool]) -> None:
    """Raise Refused naming the globals that are not `allowed`."""
    unknown = [".".join(name)[:80] for name in named if not allowed(name)]
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise Refused(f"its pickle asks for {', '.join(unknown[:3])}{more}, which no generator needs")


@dataclass
class Tensors:
    """Turns descriptions of tensors into tensors on the CPU, together at most `budget` bytes."""

    fetch: Fetch
    budget: int
    _spent: int = field(default=0, init=False)

    def is_tensor(self, value: Any) -> bool:
        """Tell whether `value` describes a tensor."""
        return isinstance(value, Call) and value.name in {
            ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter"),
        }  # fmt: skip

    def read(self, value: Call) -> Tensor:
        """Copy the tensor out of its storage; raises Refused if it reaches beyond it."""
        if value.name[1] == "_rebuild_parameter":
            if not value.arguments or not self.is_tensor(value.arguments[0]) or value.arguments[0].name == value.name:
                raise Refused("a parameter in it holds no tensor")
            value = value.arguments[0]
        match value.arguments:
            case (described, int(offset), tuple(size), tuple(stride), *_) if _lengths(offset, *size, *stride):
                pass
            case _:
                raise Refused("a tensor in it is not described as torch does")
        if len(size) != len(stride) or len(size) > MAX_DIMENSIONS:
            raise Refused("a tensor in it has no usable shape")
        dtype, data = self.fetch(described)
        elements, held = math.prod(size), len(data) // dtype.itemsize
        if not elements:
            return torch.empty(size, dtype=dtype)
        span = sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
        if offset + span > held or elements > held:
            raise Refused(f"a tensor of shape {list(size)} in it claims more than the {held} elements of its storage")
        # By span, not by elements: two far-apart elements would otherwise copy a whole storage for free.
        self._spent += max(span, elements) * dtype.itemsize
        if self._spent > self.budget:
            raise Refused("its tensors claim more than the file holds")
        own = bytearray(data[offset * dtype.itemsize : (offset + span) * dtype.itemsize])
        return torch.frombuffer(own, dtype=dtype).as_strided(size, stride).contiguous()


def _lengths(*values: Any) -> bool:
    return all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**48 for v in values)


@dataclass(frozen=True)
class Archive:
    """A torch file: its content as plain data, and the tensors that this describes."""

    content: Plain
    tensors: Tensors

    @property
    def root(self) -> Any:
        return self.content.value


def read_sequential(data: bytes) -> Archive:
    """Read the older layout of `torch.save`; raises Refused."""
    source = io.BytesIO(data)
    magic, _, system, content, keys = (read_pickle(source) for _ in range(5))
    if magic.value != MAGIC:
        raise Refused("it does not begin as a file of torch")
    if not isinstance(system.value, dict) or system.value.get("little_endian") is not True:
        raise Refused("it was written on a machine of another byte order")
    storages: dict[str, Storage] = {}
    for reference in content.persistent:
        storage = storage_of(reference)
        if storages.setdefault(storage.key, storage) != storage:
            raise Refused("it describes one storage in two ways")
    listed = keys.value if isinstance(keys.value, list) and all(isinstance(k, str) for k in keys.value) else []
    if sorted(listed) != sorted(storages):
        raise Refused("its list of storages does not fit its content")
    parts: dict[str, memoryview] = {}
    position = source.tell()
    for key in listed:
        storage = storages[key]
        start = position + 8
        if start + storage.size > len(data) or struct.unpack("<q", data[position:start])[0] != storage.elements:
            raise Refused(f"its storage '{key[:40]}' claims {storage.size} bytes that are not there")
        position = start + storage.size
        parts[key] = memoryview(data)[start:position]

    def fetch(described: Any) -> tuple[torch.dtype, memoryview]:
        storage = storage_of(described) if isinstance(described, PersistentId) else None
        if storage is None:
            raise Refused("a tensor in it has no storage")
        return storage.dtype, parts[storage.key]

    return Archive(content, Tensors(fetch, len(data)))


def read_zipped(data: bytes) -> Archive:
    """Read the zipped layout of `torch.save`; raises Refused."""
    try:
        file = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise Refused(f"its zip structure is damaged ({error})") from None
    members = {info.filename: info for info in file.infolist()}
    names = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(names) != 1:
        raise Refused("it is a zip file without the content of a torch checkpoint")
    prefix = names[0].removesuffix("data.pkl")
    order = members.get(f"{prefix}byteorder")
    if order is not None and _member(file, order, len(data)) != b"little":
        raise Refused("it was written on a machine of another byte order")
    content = read_pickle(io.BytesIO(_member(file, members[names[0]], len(data))))

    def fetch(described: Any) -> tuple[torch.dtype, memoryview]:
        if not isinstance(described, PersistentId):
            raise Refused("a tensor in it has no storage")
        storage = storage_of(described)
        info = members.get(f"{prefix}data/{storage.key}")
        if info is None or info.file_size != storage.size:
            raise Refused(f"its storage '{storage.key[:40]}' claims {storage.size} bytes that are not there")
        return storage.dtype, memoryview(_member(file, info, len(data)))

    return Archive(content, Tensors(fetch, len(data)))


def _member(file: zipfile.ZipFile, info: zipfile.ZipInfo, size: int) -> bytes:
    """Bytes of a stored member; a deflated one is refused, because it may unfold to any size."""
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.file_size > size:
        raise Refused("it holds members that are compressed or larger than itself, which torch does not write")
    try:
        return file.read(info)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, struct.error) as error:
        raise Refused(f"its zip structure is damaged ({error})") from None
