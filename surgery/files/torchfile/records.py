"""A pickle as inert records. Nothing that it names is imported or called: a name is a `Global`, a call a `Call`.

The tokens are those of the standard library's `pickletools`; what is done with each is a row of `_ACTS`. Opcodes that
ask a pickle machine for more than building values (INST, OBJ, EXT, out-of-band buffers) are refused, and so are a
dictionary that says a key twice, and more opcodes or bytes than any checkpoint has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from typing import IO, Any, cast

from ...errors import FormatError

MOST_BYTES = 100_000_000  # of one pickle
MOST_OPCODES = 10_000_000


class Leaf:
    """What a mapping may hold that is a tensor, however that is described."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Global:
    """Something that the pickle names, by module and name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, slots=True)
class Persistent:
    """Something that lies outside of the pickle: of torch's, a storage."""

    said: Any


@dataclass(slots=True, eq=False)
class Call:
    """What would come of calling `function` with `args`, given a `state`, and entries or items afterwards."""

    function: Any
    args: Any
    state: Any = None
    entries: dict[Any, Any] = field(default_factory=dict)
    items: list[Any] = field(default_factory=list)


class _Mark:
    __slots__ = ()


_MARK = _Mark()
Stack = list[Any]


class _Limited:
    """A stream of which a pickle may read so much: no length in it is believed before that."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._left = stream, MOST_BYTES

    def read(self, size: int) -> bytes:
        return self._spend(self._stream.read(min(size, self._left + 1)))

    def readline(self) -> bytes:
        return self._spend(self._stream.readline(self._left + 1))

    def tell(self) -> int:
        return self._stream.tell()

    def _spend(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(f"more than {MOST_BYTES} bytes")
        return data


def read_pickle(raw: bytes, where: str) -> Any:
    """The value that the pickle in `raw` describes, of plain values and records. Raises FormatError."""
    return read_pickle_from(BytesIO(raw), where)


def read_pickle_from(stream: IO[bytes], where: str) -> Any:
    """The same of the next pickle in a stream, which is left where that ends."""

    def bad(what: str) -> FormatError:
        return FormatError(
            f"the pickle is wrong: {what}", where=[where], help="the file is damaged, or no checkpoint; fetch it again"
        )

    import pickletools

    machine = _Machine(bad)
    try:
        for count, (code, argument, at) in enumerate(pickletools.genops(cast(IO[bytes], _Limited(stream)))):
            if count > MOST_OPCODES:
                raise bad(f"more than {MOST_OPCODES} opcodes")
            act = _ACTS.get(code.name)
            if act is None:
                raise bad(f"the opcode {code.name} at byte {at}, which no checkpoint needs")
            act(machine, argument)
    except FormatError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError) as error:
        raise bad(f"{type(error).__name__}: {str(error)[:200]}") from None
    if len(machine.stack) != 1:
        raise bad(f"{len(machine.stack)} values are left, and not one")
    return machine.stack[0]


class _Machine:
    """The stack and the memo. A memo is a dictionary: a large index costs nothing."""

    __slots__ = ("bad", "memo", "stack")

    def __init__(self, bad: Callable[[str], FormatError]) -> None:
        self.stack: Stack = []
        self.memo: dict[int, Any] = {}
        self.bad = bad

    def to_mark(self) -> Stack:
        """All values above the last mark, which goes with them."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("no mark")
        found = self.stack[at + 1 :]
        del self.stack[at:]
        return found

    def pop(self) -> Any:
        """The value on top, which is no mark."""
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a mark in the place of a value")
        return value

    def set(self, target: Any, pairs: Stack) -> None:
        """Put pairs of key and value, one after another in a list, into what takes them."""
        if len(pairs) % 2:
            raise ValueError("a key without a value")
        place = target.entries if isinstance(target, Call) else target
        if not isinstance(place, dict):
            raise TypeError(f"entries of {type(target).__name__}")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            key = _key(key)
            if key in place:
                raise self.bad(f"a dictionary has the key {key!r} twice")
            place[key] = value

    def extend(self, target: Any, values: Stack) -> None:
        """Put values at the end of what takes them."""
        place = target.items if isinstance(target, Call) else target
        if not isinstance(place, list):
            raise TypeError(f"items of {type(target).__name__}")
        place.extend(values)


def _key(key: Any) -> Any:
    """A key as a dictionary can have it; what Python could not hash is told by what it is."""
    if isinstance(key, str | int | float | bool | bytes | Global | Call) or key is None:
        return key
    return tuple(map(_key, key)) if isinstance(key, tuple) and len(key) < 100 else f"<{type(key).__name__} {id(key)}>"


def _push(machine: _Machine, argument: Any) -> None:
    machine.stack.append(argument)


def _global(machine: _Machine, argument: str) -> None:
    module, name = argument.split(" ", 1)
    machine.stack.append(Global(module, name))


def _stack_global(machine: _Machine, argument: Any) -> None:
    name, module = machine.pop(), machine.pop()
    if not (isinstance(name, str) and isinstance(module, str)):
        raise TypeError("a name that is no text")
    machine.stack.append(Global(module, name))


def _reduce(machine: _Machine, argument: Any) -> None:
    args, function = machine.pop(), machine.pop()
    machine.stack.append(Call(function, args))


def _newobj_ex(machine: _Machine, argument: Any) -> None:
    named, args, kind = machine.pop(), machine.pop(), machine.pop()
    machine.stack.append(Call(kind, (args, named)))


def _build(machine: _Machine, argument: Any) -> None:
    state, target = machine.pop(), machine.stack[-1]
    if isinstance(target, Call):
        target.state = state


def _tuple(count: int) -> Callable[[_Machine, Any], None]:
    def act(machine: _Machine, argument: Any) -> None:
        values = [machine.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(values)))

    return act


def _setitem(machine: _Machine, argument: Any) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set(machine.stack[-1], [key, value])


def _setitems(machine: _Machine, argument: Any) -> None:
    pairs = machine.to_mark()
    machine.set(machine.stack[-1], pairs)


def _append(machine: _Machine, argument: Any) -> None:
    value = machine.pop()
    machine.extend(machine.stack[-1], [value])


def _appends(machine: _Machine, argument: Any) -> None:
    values = machine.to_mark()
    machine.extend(machine.stack[-1], values)


def _dict(machine: _Machine, argument: Any) -> None:
    pairs, made = machine.to_mark(), dict[Any, Any]()
    machine.set(made, pairs)
    machine.stack.append(made)


def _put(machine: _Machine, argument: Any) -> None:
    machine.memo[int(argument)] = machine.stack[-1]


def _memoize(machine: _Machine, argument: Any) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _pop_mark(machine: _Machine, argument: Any) -> None:
    machine.to_mark()


def _pass(machine: _Machine, argument: Any) -> None:
    pass


_ACTS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(
        (
            "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES"
            " SHORT_BINBYTES BINBYTES8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8"
        ).split(),
        _push,
    ),
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _pass),
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "MARK": lambda machine, _: machine.stack.append(_MARK),
    "POP": lambda machine, _: machine.stack.pop(),
    "POP_MARK": _pop_mark,
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "BINPERSID": lambda machine, _: machine.stack.append(Persistent(machine.pop())),
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _newobj_ex,
    "BUILD": _build,
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_SET": lambda machine, _: machine.stack.append([]),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "DICT": _dict,
    "LIST": lambda machine, _: machine.stack.append(machine.to_mark()),
    "FROZENSET": lambda machine, _: machine.stack.append(machine.to_mark()),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.to_mark())),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "SETITEM": _setitem,
    "SETITEMS": _setitems,
    "APPEND": _append,
    "APPENDS": _appends,
    "ADDITEMS": _appends,
    "PUT": _put,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": _memoize,
    "GET": lambda machine, argument: machine.stack.append(machine.memo[int(argument)]),
    "BINGET": lambda machine, argument: machine.stack.append(machine.memo[argument]),
    "LONG_BINGET": lambda machine, argument: machine.stack.append(machine.memo[argument]),
}
