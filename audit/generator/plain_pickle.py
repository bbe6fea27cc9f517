"""Pickles read as plain data, by a machine that can call nothing, import nothing and build no object a file chooses.

A pickle is a program for a stack machine (opcodes as documented in Python's `pickletools`). The usual interpreter
fetches any global the program names and calls it. This one pushes a *description* instead: `Global` for a name, `Call`
for a call that was asked for. A reader then interprets those it knows. There is therefore no code that a hostile file
could reach, whatever it names; what remains is to bound memory and time:

- lengths are checked by `pickletools.genops` against the bytes that are there, before anything is allocated;
- the number of opcodes is limited, and every opcode allocates a constant amount beyond its own bytes;
- keys are text (numbers are turned into it), so that no nested tuple is ever hashed and no hash collision can be aimed;
- opcodes that Python's own pickler does not write for such data (INST, OBJ, EXT, text persistent ids, ...) are refused.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

MAX_OPCODES = 2_000_000
"""A snapshot of three 1024x1024 networks takes about a tenth of a million."""
MAX_INTEGER_BITS = 128
Name = tuple[str, str]
"""Module and qualified name of a global."""


class Refused(ValueError):
    """The bytes cannot be or are not to be read; `str(error)` is the clause that says why."""


class ByteSource(Protocol):
    """What bytes are read from: an `io.BytesIO` or an `mmap`, whose `read` never allocates more than there is."""

    def read(self, size: int = -1, /) -> bytes: ...
    def readline(self) -> bytes: ...
    def tell(self) -> int: ...


@dataclass(frozen=True, eq=False, repr=False)
class Global:
    """A name that the pickle asks for; never looked up."""

    name: Name


@dataclass(eq=False, repr=False)
class Call:
    """A call that the pickle asks for; never made. `entries` and `state` are what it then puts into the result."""

    name: Name
    arguments: tuple[Any, ...]
    entries: dict[str, Any] = field(default_factory=dict)
    state: Any = None


@dataclass(frozen=True, eq=False, repr=False)
class PersistentId:
    """A reference to something outside the pickle, such as a storage of torch."""

    value: Any


@dataclass(frozen=True, repr=False)
class Plain:
    """What a pickle describes, with every global and every reference to the outside that it names, in order."""

    value: Any
    globals: tuple[Name, ...]
    persistent: tuple[PersistentId, ...]


_VALUES = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


def read_pickle(source: ByteSource) -> Plain:
    """Interpret one pickle from the current position of `source`, which is left just behind it; raises Refused."""
    machine = _Machine()
    position = -1
    try:
        for count, (opcode, argument, place) in enumerate(pickletools.genops(source)):  # type: ignore[arg-type]
            position = place or 0
            if count >= MAX_OPCODES:
                raise Refused(f"its pickle has more than {MAX_OPCODES} opcodes")
            if opcode.name == "STOP":
                return Plain(machine.pop(), tuple(machine.globals), tuple(machine.persistent))
            machine.step(opcode.name, argument)
    except Refused:
        raise
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        reason = str(error).splitlines()[0][:120] if isinstance(error, ValueError) else "an operand is missing"
        raise Refused(f"its pickle is damaged or cut short after byte {position} ({reason})") from None
    raise Refused("its pickle is cut short")


class _Machine:
    """Stack, stacks below the open marks, memo, and what was asked for."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.globals: dict[Name, None] = {}
        self.persistent: list[PersistentId] = []

    def pop(self) -> Any:
        return self.stack.pop()

    def _since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def step(self, opcode: str, argument: Any) -> None:
        """Carry out one opcode."""
        if opcode in _VALUES:
            if isinstance(argument, int) and argument.bit_length() > MAX_INTEGER_BITS:
                raise Refused(f"its pickle holds an integer of more than {MAX_INTEGER_BITS} bits")
            self.stack.append(argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _HANDLERS:
            _HANDLERS[opcode](self, argument)
        else:
            raise Refused(f"its pickle uses the opcode {opcode}, which no checkpoint needs")

    def _drop(self, _: None) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.stack = self.below.pop()

    def _drop_marked(self, _: None) -> None:
        self._since_mark()

    def _new_global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Refused("its pickle names a global by something that is no text")
        self.globals[module, name] = None
        self.stack.append(Global((module, name)))

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._new_global(module, name)

    def _stack_global(self, _: None) -> None:
        name, module = self.pop(), self.pop()
        self._new_global(module, name)

    def _call(self, _: None) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise Refused("its pickle calls something that is no named function")
        self.stack.append(Call(function.name, arguments))

    def _build(self, _: None) -> None:
        state, target = self.pop(), self.stack[-1]
        if not isinstance(target, Call):
            raise Refused("its pickle sets the state of something that is no object")
        target.state = state

    def _append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise Refused("its pickle appends to something that is no list")
        target.extend(items)

    def _set(self, flat: list[Any]) -> None:
        target = self.stack[-1]
        entries = target.entries if isinstance(target, Call) else target
        if not isinstance(entries, dict) or len(flat) % 2:
            raise Refused("its pickle puts entries into something that is no dictionary")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            if not isinstance(key, str | int | float | None):
                raise Refused("its pickle has a dictionary key that is neither text nor a number")
            entries[key if isinstance(key, str) else str(key)] = value

    def _tuple(self, size: int) -> None:
        if len(self.stack) < size:
            raise IndexError
        items = tuple(self.stack[-size:])
        del self.stack[-size:]
        self.stack.append(items)

    def _marked_tuple(self, _: None) -> None:
        items = self._since_mark()
        self.stack.append(tuple(items))

    def _frozen_set(self, _: None) -> None:
        items = self._since_mark()
        self.stack.append(items)

    def _get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def _put(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def _mark(self, _: None) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _persistent_id(self, _: None) -> None:
        reference = PersistentId(self.pop())
        self.persistent.append(reference)
        self.stack.append(reference)


# Sets become lists: their elements are never hashed.
_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda m, a: None,
    "FRAME": lambda m, a: None,
    "MARK": _Machine._mark,
    "POP": _Machine._drop,
    "POP_MARK": _Machine._drop_marked,
    "EMPTY_DICT": lambda m, a: m.stack.append({}),
    "EMPTY_LIST": lambda m, a: m.stack.append([]),
    "EMPTY_SET": lambda m, a: m.stack.append([]),
    "APPEND": lambda m, a: m._append([m.pop()]),
    "APPENDS": lambda m, a: m._append(m._since_mark()),
    "ADDITEMS": lambda m, a: m._append(m._since_mark()),
    "FROZENSET": _Machine._frozen_set,
    "SETITEM": lambda m, a: m._set([m.pop(), m.pop()][::-1]),
    "SETITEMS": lambda m, a: m._set(m._since_mark()),
    "TUPLE": _Machine._marked_tuple,
    "TUPLE1": lambda m, a: m._tuple(1),
    "TUPLE2": lambda m, a: m._tuple(2),
    "TUPLE3": lambda m, a: m._tuple(3),
    "BINGET": _Machine._get,
    "LONG_BINGET": _Machine._get,
    "BINPUT": _Machine._put,
    "LONG_BINPUT": _Machine._put,
    "MEMOIZE": _Machine._put,
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._call,
    "NEWOBJ": _Machine._call,
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._persistent_id,
}
