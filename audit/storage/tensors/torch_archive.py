"""Tensors out of files that torch wrote, zipped or in the older sequential layout, without unpickling anything.

`torch.load(weights_only=True)` refuses the objects beside the tensors that many training checkpoints carry, and
allocates what a file claims. Here the pickle is read by `audit.storage.tensors.plain_pickle`, a storage is a stretch of
the file that is read where a tensor needs it, and what is read is counted against the file's size and budget
beforehand.

Layouts. Zipped: `NAME/data.pkl` and one stored (not deflated) member `NAME/data/KEY` a storage. Sequential: five
pickles (magic, version, system, content, keys of the storages), then for each key its number of elements and its bytes.
A tensor pickled by itself carries a storage as such a sequential file in bytes.
"""

import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from audit.storage.tensors.file_bytes import CHUNK, Blob, Budget, Refused, Window, in_memory
from audit.storage.tensors.foreign import archive_kind
from audit.storage.tensors.harmless import harmful
from audit.storage.tensors.plain_pickle import Call, Global, Name, PersistentId, Plain, read_pickle
from audit.storage.tensors.tensor_files import MAX_CONTENT, BoundedFile, OverBudget

MAGIC = 0x1950A86A20F9469CFC6C
MAX_DIMENSIONS = 6
SLACK = 2**20
"""Bytes that tensors may share beyond the size of their file, as rows that are repeated without a copy do."""
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
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
_TENSOR: set[Name] = {("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor")}
_WRAPPED: set[Name] = {
    ("torch._utils", "_rebuild_parameter"), ("torch._utils", "_rebuild_parameter_with_state"),
    ("torch._tensor", "_rebuild_from_type_v2"),
}  # fmt: skip
_LOAD_STORAGE: Name = ("torch.storage", "_load_from_bytes")
_ENCODE: Name = ("_codecs", "encode")


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
        case ("storage", Global(name=(_, kind)), str(key), _, int(elements), *view) if kind in DTYPES:
            if elements >= 0 and not isinstance(elements, bool) and not any(view):
                return Storage(DTYPES[kind], key, elements)
    raise Refused("it refers to something outside itself that is no storage of torch")


def entries_of(value: Any) -> dict[str, Any] | None:
    """Entries of a dictionary or of an object that stands for one (OrderedDict, EasyDict); None for anything else."""
    return value if isinstance(value, dict) else value.entries if isinstance(value, Call) else None


def refuse_harmful(content: Plain) -> None:
    """Raise Refused naming the globals for which the pickle is not read."""
    named = [".".join(name)[:80] for name in harmful(content)]
    if named:
        more = f" and {len(named) - 3} more" if len(named) > 3 else ""
        raise Refused(f"its pickle asks for {', '.join(named[:3])}{more}, which no file of weights needs")


def described_tensor(value: Any) -> Call | None:
    """The description of a tensor within that of a parameter or tensor; None if `value` is neither."""
    for _ in range(4):
        if not isinstance(value, Call):
            return None
        if value.name in _TENSOR:
            return value
        match value:
            case Call(name=("torch._tensor", _), arguments=(Global(name=name), _, tuple(arguments), *_)):
                value = Call(name, arguments)
            case Call(name=name, arguments=(inner, *_)) if name in _WRAPPED:
                value = inner
            case _:
                return None
    return None


Fetch = Callable[[PersistentId], tuple[torch.dtype, Window]]
"""From the reference to a storage to its type and its bytes."""


@dataclass
class Tensors:
    """Turns descriptions of tensors into tensors on the CPU, together at most `limit` bytes and within the budget."""

    fetch: Fetch
    limit: int
    budget: Budget
    _nested: dict[tuple[int, int], tuple[torch.dtype, Window]] = field(default_factory=dict, init=False)

    def read(self, value: Call) -> Tensor:
        """Copy the tensor out of its storage; raises Refused if it reaches beyond it."""
        match value.arguments:
            case (described, int(offset), tuple(size), tuple(stride), *_) if _lengths(offset, *size, *stride):
                pass
            case _:
                raise Refused("a tensor in it is not described as torch does")
        if len(size) != len(stride) or len(size) > MAX_DIMENSIONS:
            raise Refused("a tensor in it has no usable shape")
        elements = math.prod(size)
        span = sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if elements else 0
        # By span as well: two far-apart elements would otherwise copy a whole storage for free.
        self.budget.spend_numbers(max(span, elements))
        dtype, data = self._storage(described)
        if not elements:
            return torch.empty(size, dtype=dtype)
        held = data.size // dtype.itemsize
        if offset + span > held:
            raise Refused(f"a tensor of shape {list(size)} in it claims more than the {held} elements of its storage")
        self.limit -= max(span, elements) * dtype.itemsize
        if self.limit < -SLACK:
            raise Refused("its tensors claim more than the file holds")
        own = data.fill(offset * dtype.itemsize, span * dtype.itemsize)
        return torch.frombuffer(own, dtype=dtype).as_strided(size, stride).contiguous()

    def _storage(self, described: Any) -> tuple[torch.dtype, Window]:
        if isinstance(described, PersistentId):
            return self.fetch(described)
        match described:
            case Call(name=name, arguments=(bytes() | Blob() | Call() as data,)) if name == _LOAD_STORAGE:
                return self._nested_storage(data)
        raise Refused("a tensor in it has no storage")

    def _nested_storage(self, data: Any) -> tuple[torch.dtype, Window]:
        """A storage that is a sequential torch file within the pickle, read once and as warily as the pickle itself."""
        match data:
            case Call(name=name, arguments=(Blob() | str() as text, "latin1" | "latin-1")) if name == _ENCODE:
                data = text
        match data:
            case Blob():
                key, window = (id(data), 0), data.raw(self.budget) if data.encoding is None else None
            case bytes():
                key, window = (id(data), 1), in_memory(data)
            case str():
                key, window = (id(data), 2), in_memory(_bytes_of(data))
            case _:
                raise Refused("a tensor in it has no storage")
        if key not in self._nested:
            if window is None:
                self._nested.clear()  # bytes that were turned back from text are held: one storage at a time
                window = data.raw(self.budget)
            archive = read_sequential(window, self.budget)
            refuse_harmful(archive.content)
            if not isinstance(archive.content.value, PersistentId):
                raise Refused("a tensor in it has no storage")
            self._nested[key] = archive.tensors.fetch(archive.content.value)
        return self._nested[key]


def _bytes_of(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeError:
        raise Refused("it holds bytes that are not written as pickles write them") from None


def _lengths(*values: Any) -> bool:
    return all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**48 for v in values)


@dataclass(frozen=True)
class Archive:
    """A torch file: its content as plain data, and the tensors that this describes."""

    content: Plain
    tensors: Tensors


def _no_reference(_: PersistentId) -> tuple[torch.dtype, Window]:
    raise Refused("its pickle refers to something outside itself")


def read_plain(window: Window, content: Plain, budget: Budget) -> Archive:
    """A pickle that holds its storages itself; raises Refused if it refers to others."""
    if content.persistent:
        raise Refused("its pickle refers to something outside itself")
    return Archive(content, Tensors(_no_reference, window.size, budget))


def read_sequential(window: Window, budget: Budget) -> Archive:
    """Read the older layout of `torch.save`; raises Refused."""
    pickles: list[Plain] = []
    for _ in range(5):
        pickles.append(read_pickle(window, budget, pickles[-1].end if pickles else 0))
    magic, _, system, content, keys = pickles
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
    parts: dict[str, Window] = {}
    position = keys.end
    for key in listed:
        storage = storages[key]
        start = position + 8
        there = start + storage.size <= window.size
        if not there or struct.unpack("<q", window.read(position, 8))[0] != storage.elements:
            raise Refused(f"its storage '{key[:40]}' claims {storage.size} bytes that are not there")
        position = start + storage.size
        parts[key] = window.part(start, storage.size)

    def fetch(described: PersistentId) -> tuple[torch.dtype, Window]:
        storage = storage_of(described)
        return storage.dtype, parts[storage.key]

    return Archive(content, Tensors(fetch, window.size, budget))


def zip_members(window: Window) -> dict[str, zipfile.ZipInfo]:
    """Members of a zip file by name, which together are no larger than the file; raises Refused."""
    try:
        with zipfile.ZipFile(BoundedFile(window.read, window.size)) as file:
            listed = file.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, LookupError, struct.error, OverflowError) as error:
        if isinstance(error, Refused | OverBudget):
            raise Refused(str(error)) from None
        raise Refused(f"its zip structure is damaged ({str(error)[:100]})") from None
    members = {info.filename: info for info in listed}
    kind = archive_kind(members)
    if kind is not None:
        raise kind
    if len(members) != len(listed):
        raise Refused("its zip structure is damaged (two members have one name)")
    for info in listed:
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise Refused("it holds members that are compressed, which torch does not write")
    if sum(info.file_size for info in listed) > window.size:
        raise Refused("it holds members that are larger than itself or lie over each other")
    return members


def read_zipped(window: Window, budget: Budget) -> Archive:
    """Read the zipped layout of `torch.save`; raises Refused."""
    members = zip_members(window)
    names = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(names) != 1:
        raise Refused("it is a zip file without the content of a torch checkpoint")
    prefix = names[0].removesuffix("data.pkl")
    order = members.get(f"{prefix}byteorder")
    if order is not None and (order.file_size > 16 or _whole(window, order) != b"little"):
        raise Refused("it was written on a machine of another byte order")
    if members[names[0]].file_size > MAX_CONTENT:
        raise Refused(f"its pickle is larger than the budget of {MAX_CONTENT >> 20} MiB")
    content = read_pickle(in_memory(_whole(window, members[names[0]])), budget)
    checked: dict[str, Window] = {}

    def fetch(described: PersistentId) -> tuple[torch.dtype, Window]:
        storage = storage_of(described)
        info = members.get(f"{prefix}data/{storage.key}")
        if info is None or info.file_size != storage.size:
            raise Refused(f"its storage '{storage.key[:40]}' claims {storage.size} bytes that are not there")
        if storage.key not in checked:
            checked[storage.key] = _member(window, info)
        return storage.dtype, checked[storage.key]

    return Archive(content, Tensors(fetch, window.size, budget))


def _whole(window: Window, info: zipfile.ZipInfo) -> bytes:
    member = _member(window, info)
    return member.read(0, member.size)


def _member(window: Window, info: zipfile.ZipInfo) -> Window:
    """The bytes of a member, whose checksum is compared once, a piece at a time."""
    header = window.read(info.header_offset, 30)
    if header[:4] != b"PK\x03\x04":
        raise Refused("its zip structure is damaged (a member is not where the directory says)")
    name, extra = struct.unpack("<HH", header[26:30])
    member = window.part(info.header_offset + 30 + name + extra, info.file_size)
    found = 0
    for start in range(0, member.size, CHUNK):
        found = zlib.crc32(member.read(start, min(CHUNK, member.size - start)), found)
    if info.CRC not in (0, found):  # torch writes 0 where checksums are switched off
        raise Refused(f"its zip structure is damaged (the checksum of '{info.filename[:60]}' differs)")
    return member
