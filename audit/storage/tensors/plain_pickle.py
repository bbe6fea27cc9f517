"""Pickles read as plain data, by a machine that can call nothing, import nothing and build no object a file chooses.

A pickle is a program for a stack machine (opcodes as documented in Python's `pickletools`). The usual interpreter
fetches any global the program names and calls it. This one pushes a *description* instead: `Global` for a name, `Call`
for a call that was asked for. A reader then interprets those it knows. There is therefore no code that a hostile file
could reach, whatever it names; what remains is to bound memory and time:

- lengths are checked against the bytes that are there before anything is read, and long ones stay in the file;
- opcodes and text are counted against the budget of the file, and every opcode allocates a constant amount;
- keys are text (numbers are turned into it), so that no nested tuple is ever hashed and no hash collision can be aimed;
- opcodes that Python 3's own pickler does not write (INST, OBJ, EXT, text persistent ids, ...) are refused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from audit.storage.tensors.file_bytes import MAX_OPCODES, Budget, Refused, Window
from audit.storage.tensors.opcodes import COUNTED, LONG, NAMES, Cursor, argument_of

MAX_NAME = 300
"""Characters of a global's module or name."""
Name = tuple[str, str]
"""Module and qualified name of a global."""
GETATTR: frozenset[Name] = frozenset({("builtins", "getattr"), ("__builtin__", "getattr")})
"""What a pickle calls to name a part of a class or object."""


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Global:
    """A name that the pickle asks for; never looked up."""

    name: Name


class Call:
    """A call that the pickle asks for; never made. `entries` and `state` are what it then puts into the result."""

    __slots__ = ("_entries", "arguments", "name", "state")

    def __init__(self, name: Name, arguments: tuple[Any, ...], entries: dict[str, Any] | None = None) -> None:
        self.name, self.arguments, self._entries = name, arguments, entries
        self.state: Any = None

    @property
    def entries(self) -> dict[str, Any]:
        """Entries of the dictionary that the result is; made when first asked for."""
        if self._entries is None:
            self._entries = {}
        return self._entries


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class PersistentId:
    """A reference to something outside the pickle, such as a storage of torch."""

    value: Any


@dataclass(frozen=True, repr=False)
class Plain:
    """What a pickle describes, every global (`called` where it is called) and reference that it names, and its end."""

    value: Any
    globals: tuple[Name, ...]
    called: frozenset[Name]
    persistent: tuple[PersistentId, ...]
    end: int


_VALUES = {"BININT", "BININT1", "BININT2", "BINFLOAT", "INT", "LONG", "FLOAT", "STRING", "UNICODE", *COUNTED, *LONG}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


def read_pickle(window: Window, budget: Budget, start: int = 0) -> Plain:
    """Interpret one pickle from `start` of `window` within `budget`; raises Refused."""
    machine, cursor = _Machine(), Cursor(window, start)
    while True:
        position = cursor.position
        try:
            opcode = NAMES.get(cursor.take(1)[0], "unknown")
            budget.opcodes -= 1
            if budget.opcodes < 0:
                raise Refused(f"its pickle is longer than the budget of {MAX_OPCODES} opcodes")
            argument = argument_of(opcode, cursor, budget)
            if opcode == "STOP":
                return Plain(
                    machine.pop(), tuple(machine.globals), frozenset(machine.called), tuple(machine.persistent),
                    cursor.position,
                )  # fmt: skip
            machine.step(opcode, argument)
        except Refused:
            raise
        except (ValueError, IndexError, KeyError, OverflowError) as error:
            reason = str(error).splitlines()[0][:120] if isinstance(error, ValueError) else "an operand is missing"
            raise Refused(f"its pickle is damaged or cut short after byte {position} ({reason})") from None


class _Machine:
    """Stack, stacks below the open marks, memo, and what was asked for."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.globals: dict[Name, None] = {}
        self.called: set[Name] = set()
        self.persistent: list[PersistentId] = []

    def pop(self) -> Any:
        return self.stack.pop()

    def _since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def step(self, opcode: str, argument: Any) -> None:
        """Carry out one opcode."""
        if opcode in _VALUES:
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

    def _new_global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Refused("its pickle names a global by something that is no text")
        if max(len(module), len(name)) > MAX_NAME:
            raise Refused(f"its pickle names a global by more than {MAX_NAME} characters")
        self.globals[module, name] = None
        self.stack.append(Global((module, name)))

    def _stack_global(self, _: None) -> None:
        name, module = self.pop(), self.pop()
        self._new_global(module, name)

    def _make(self, function: Any, arguments: Any, called: bool) -> None:
        if isinstance(function, Call) and function.name == ("functools", "partial") and function.arguments:
            function = function.arguments[0]
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise Refused("its pickle calls something that is no named function")
        if function.name in GETATTR and self._member(arguments):
            return
        name, entries = function.name, None
        if name[0] in ("copyreg", "copy_reg") and arguments and isinstance(arguments[0], Global):
            # How the older protocols make an object of a class, with what a dictionary or list within it holds.
            name, called = arguments[0].name, False
            entries = next((a for a in arguments[1:] if isinstance(a, dict)), None)
            arguments = ()
        if called:
            self.called.add(name)
        self.stack.append(Call(name, arguments, entries))

    def _member(self, arguments: tuple[Any, ...]) -> bool:
        """Describe `getattr` of a name or object as what protocol 4 writes for it: a name with a dot in it.

        Python before 3.11.4 pickles the member of an enumeration so, the older protocols a class within a class, and
        any of them the method of an object. False where `arguments` are anything else.
        """
        match arguments:
            case (Global(name=(module, name)), str(attribute)):
                self._new_global(module, f"{name}.{attribute}")
            case (Call(name=(module, name)), str(attribute)):
                self._new_global(module, f"{name}.{attribute}")
            case _:
                return False
        return True

    def _call(self, _: None) -> None:
        arguments, function = self.pop(), self.pop()
        self._make(function, arguments, called=True)

    def _new(self, _: None) -> None:
        arguments, function = self.pop(), self.pop()
        self._make(function, arguments, called=False)

    def _new_with_names(self, _: None) -> None:
        self.pop()
        self._new(None)

    def _build(self, _: None) -> None:
        state, target = self.pop(), self.stack[-1]
        if not isinstance(target, Call):
            raise Refused("its pickle sets the state of something that is no object")
        target.state = state

    def _append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Call):  # an object that is a list is an extra: what it holds is dropped
            raise Refused("its pickle appends to something that is no list")

    def _set(self, flat: list[Any]) -> None:
        target = self.stack[-1]
        entries = target.entries if isinstance(target, Call) else target
        if not isinstance(entries, dict) or len(flat) % 2:
            raise Refused("its pickle puts entries into something that is no dictionary")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            # Entries under other keys belong to no network; hashing such a key could take any time.
            if isinstance(key, str | int | float | None):
                entries[key if isinstance(key, str) else str(key)] = value

    def _dictionary(self, _: None) -> None:
        items = self._since_mark()
        self.stack.append({})
        self._set(items)

    def _tuple(self, size: int) -> None:
        if len(self.stack) < size:
            raise IndexError
        items = tuple(self.stack[-size:])
        del self.stack[-size:]
        self.stack.append(items)

    def _marked_tuple(self, _: None) -> None:
        items = self._since_mark()
        self.stack.append(tuple(items))

    def _marked_list(self, _: None) -> None:
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
        value = self.pop()
        match value:
            case ("module", Global() as named, *_):  # how torch's older layout names the class of a whole module
                self.stack.append(named)
                return
        reference = PersistentId(value)
        self.persistent.append(reference)
        self.stack.append(reference)


# Sets become lists: their elements are never hashed.
_HANDLERS: dict[str, Callable[[_Machine, Any], Any]] = {
    "PROTO": lambda m, a: None,
    "FRAME": lambda m, a: None,
    "MARK": _Machine._mark,
    "POP": _Machine._drop,
    "POP_MARK": lambda m, a: m._since_mark(),
    "DUP": lambda m, a: m.stack.append(m.stack[-1]),
    "DICT": _Machine._dictionary,
    "LIST": _Machine._marked_list,
    "EMPTY_DICT": lambda m, a: m.stack.append({}),
    "EMPTY_LIST": lambda m, a: m.stack.append([]),
    "EMPTY_SET": lambda m, a: m.stack.append([]),
    "APPEND": lambda m, a: m._append([m.pop()]),
    "APPENDS": lambda m, a: m._append(m._since_mark()),
    "ADDITEMS": lambda m, a: m._append(m._since_mark()),
    "FROZENSET": _Machine._marked_list,
    "SETITEM": lambda m, a: m._set([m.pop(), m.pop()][::-1]),
    "SETITEMS": lambda m, a: m._set(m._since_mark()),
    "TUPLE": _Machine._marked_tuple,
    "TUPLE1": lambda m, a: m._tuple(1),
    "TUPLE2": lambda m, a: m._tuple(2),
    "TUPLE3": lambda m, a: m._tuple(3),
    "GET": _Machine._get,
    "BINGET": _Machine._get,
    "LONG_BINGET": _Machine._get,
    "PUT": _Machine._put,
    "BINPUT": _Machine._put,
    "LONG_BINPUT": _Machine._put,
    "MEMOIZE": _Machine._put,
    "GLOBAL": lambda m, a: m._new_global(*a),
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._call,
    "NEWOBJ": _Machine._new,
    "NEWOBJ_EX": _Machine._new_with_names,
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._persistent_id,
}
