"""A pickle as inert records. Nothing that it names is imported or called: a name is a `Global`, a call a `Call`.

What is done with each opcode is a row of `_ACTS`. Those that ask a pickle machine for more than building values (INST,
OBJ, EXT, persistent ids in lines, out-of-band buffers) have no row and are refused, and so are a dictionary that says
a key twice, and more bytes, opcodes, or values than a checkpoint of that size has. A length is believed once that many
bytes are there. Source of the opcodes: CPython, Lib/pickletools.py.
"""

from __future__ import annotations

import codecs
import gc
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import IO, Any

from ...errors import FormatError

MOST_BYTES = 64_000_000  # of one pickle: 500,000 tensors, or 250,000 chunks of distributed ones
MOST_OPCODES = 30_000_000
MOST_TIMES, MOST_BESIDE = 20, 32_000_000  # of a pickle's bytes, and bytes beside, that its values take in memory
MOST_MARKS = 10_000
_WIDEST = 4000  # bytes of an integer, or digits
_AT_ONCE = 1 << 20  # bytes that are read of a stream before more are
_STEPS = 4096  # opcodes between two looks at how much was made


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


@dataclass(slots=True, eq=False, repr=False)
class Persistent:
    """Something that lies outside of the pickle: of torch's, a storage."""

    said: Any


_NO_ENTRIES: Mapping[Any, Any] = MappingProxyType({})


class Call:
    """What would come of calling `function` with `args`, given a `state`, and entries or items afterwards."""

    __slots__ = ("args", "entries", "function", "items", "state")

    def __init__(self, function: Any, args: Any) -> None:
        self.function, self.args = function, args
        self.state: Any = None
        self.entries: Mapping[Any, Any] = _NO_ENTRIES
        self.items: list[Any] | tuple[()] = ()

    def __str__(self) -> str:
        return f"a call of {told(self.function)}"


def told(value: Any) -> str:
    """A value of a pickle in a few words, however deep or large it is."""
    match value:
        case int() if abs(value) >> 64:
            return f"an integer of {value.bit_length()} bits"
        case str() | bytes() if len(value) > 60:
            return f"{value[:60]!r}…"
        case str() | bytes() | int() | float() | None:
            return repr(value)
        case Global() | Call(function=Global()):
            return str(value)[:100]
        case tuple() if value and not any(isinstance(one, tuple | list | dict) for one in value[:5]):
            return "(" + ", ".join([*map(told, value[:5]), *["…"] * (len(value) > 5)]) + ")"
    return f"a {type(value).__name__.lower()}"


def text(value: Any) -> str:
    """A value as a part of a name: a text is itself."""
    return value if isinstance(value, str) else told(value)


Stack = list[Any]


def read_pickle(raw: bytes, where: str) -> Any:
    """The value that the pickle in `raw` describes, of plain values and records. Raises FormatError."""
    return _read(raw, 0, where)[0]


def read_pickles(stream: IO[bytes], count: int, where: str) -> tuple[list[Any], int]:
    """The values of so many pickles, one after another from the stream's begin on, and where the last one ends."""
    size = _AT_ONCE
    while True:
        stream.seek(0)
        raw = stream.read(size)
        try:
            values, at = Stack(), 0
            for _ in range(count):
                value, at = _read(raw, at, where)
                values.append(value)
            return values, at
        except FormatError:  # cut off, perhaps by us
            if len(raw) < size or size >= MOST_BYTES:
                raise
            size = min(size * 8, MOST_BYTES)


@contextmanager
def uncollected() -> Iterator[None]:
    """Inside, no garbage is looked for: millions of records live until they are asked, and to look costs as much."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@uncollected()
def _read(raw: bytes, at: int, where: str) -> tuple[Any, int]:
    """The value of the pickle that begins there, and where it ends."""

    def bad(what: str) -> FormatError:
        return FormatError(
            f"the pickle is wrong: {what}", where=[where], help="the file is damaged, or no checkpoint; fetch it again"
        )

    if len(raw) > MOST_BYTES:
        raise bad(f"{len(raw)} bytes, and at most {MOST_BYTES} are read")
    machine, acts, most = _Machine(bad), _ACTS, MOST_BESIDE + MOST_TIMES * len(raw)
    try:
        for _ in range(MOST_OPCODES // _STEPS):
            for _ in range(_STEPS):
                act = acts[raw[at]]
                if act is None:
                    break
                at = act(machine, raw, at + 1)
            else:
                if len(machine.below) > MOST_MARKS:
                    raise bad(f"more than {MOST_MARKS} marks within one another")
                if machine.made + 8 * len(machine.stack) + 8 * len(machine.memo) > most:
                    raise bad(f"what {len(raw)} bytes describe would take more than {most} bytes of memory")
                continue
            break
        else:
            raise bad(f"more than {MOST_OPCODES} opcodes")
        if raw[at] != _STOP:
            raise bad(f"the opcode {raw[at]:#04x} at byte {at}, which no checkpoint needs")
    except FormatError:
        raise
    except IndexError:
        raise bad("it is cut off" if at >= len(raw) else f"nothing to work on at byte {at}") from None
    except struct.error:
        raise bad("it is cut off") from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError) as error:
        raise bad(f"{type(error).__name__} at byte {at}: {str(error)[:200]}") from None
    if machine.below or len(machine.stack) != 1:
        raise bad(f"{len(machine.stack)} values and {len(machine.below)} marks are left, and not one value")
    return machine.stack[0], at + 1


class _Machine:
    """What lies above the last mark, and below each; the memo; and about how many bytes were made.

    The memo is a list where its indices follow one another, as picklers write them, and else a dictionary, so that a
    large index costs nothing.
    """

    __slots__ = ("bad", "below", "far", "made", "memo", "stack")

    def __init__(self, bad: Callable[[str], FormatError]) -> None:
        self.stack: Stack = []
        self.below: list[Stack] = []
        self.memo: list[Any] = []
        self.far: dict[int, Any] = {}
        self.made = 0
        self.bad = bad

    def push(self, value: Any, size: int) -> None:
        """Put a value on top that takes so many bytes."""
        self.stack.append(value)
        self.made += size

    def to_mark(self) -> Stack:
        """All values above the last mark, which goes with them."""
        found, self.stack = self.stack, self.below.pop()
        self.made += 8 * len(found)
        return found

    def put(self, index: int) -> None:
        """Keep what is on top."""
        if index == len(self.memo):
            self.memo.append(self.stack[-1])
        elif index < 0:
            raise ValueError("a memo's index below 0")
        elif index < len(self.memo):
            self.memo[index] = self.stack[-1]
        else:
            self.far[index] = self.stack[-1]
            self.made += 120

    def set(self, target: Any, pairs: Stack) -> None:
        """Put pairs of key and value, one after another in a list, into what takes them."""
        if len(pairs) % 2:
            raise ValueError("a key without a value")
        if isinstance(target, Call) and not target.entries:
            target.entries = {}
        place = target.entries if isinstance(target, Call) else target
        if not isinstance(place, dict):
            raise TypeError(f"entries of {told(target)}")
        self.made += 50 * len(pairs)
        values = iter(pairs)
        for key in values:
            if type(key) is not str:
                key = _key(key)
            if key in place:
                raise self.bad(f"a dictionary has the key {told(key)} twice")
            place[key] = next(values)

    def extend(self, target: Any, values: Stack) -> None:
        """Put values at the end of what takes them."""
        if isinstance(target, Call) and not target.items:
            target.items = []
        place = target.items if isinstance(target, Call) else target
        if not isinstance(place, list):
            raise TypeError(f"items of {told(target)}")
        place.extend(values)


def _key(key: Any) -> Any:
    """A key as a dictionary can have it; what Python could not hash, or not soon, is told by what it is."""
    if isinstance(key, int | float | bytes | Global | Call) or key is None:
        return key
    if isinstance(key, tuple) and len(key) < 16 and not any(isinstance(one, tuple | list | dict) for one in key):
        return tuple(one if isinstance(one, str) else _key(one) for one in key)
    return f"<{type(key).__name__} {id(key)}>"


Act = Callable[[_Machine, bytes, int], int]  # is given where the opcode's argument begins, and says where it ends
_U4, _I4, _F8, _U8 = struct.Struct("<I"), struct.Struct("<i"), struct.Struct(">d"), struct.Struct("<Q")


def _piece(raw: bytes, at: int, size: int) -> bytes:
    """So many bytes, which are there."""
    if at + size > len(raw):
        raise ValueError(f"{size} bytes of {len(raw) - at} that are left")
    return raw[at : at + size]


def _line(raw: bytes, at: int) -> tuple[bytes, int]:
    """What stands before the line's end, and where the next line begins."""
    end = raw.index(b"\n", at)
    return raw[at:end], end + 1


def _sized(width: int, made: Callable[[bytes], Any]) -> Act:
    """Push what is made of a piece, whose length stands before it in so many bytes."""

    def act(machine: _Machine, raw: bytes, at: int) -> int:
        begin = at + width
        size = int.from_bytes(_piece(raw, at, width), "little")
        machine.push(made(_piece(raw, begin, size)), 60 + size)
        return begin + size

    return act


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def _integer(raw: bytes) -> int:
    if len(raw) > _WIDEST:
        raise ValueError(f"an integer of {len(raw)} bytes")
    return int.from_bytes(raw, "little", signed=True)


def _binunicode(machine: _Machine, raw: bytes, at: int) -> int:
    end = at + 4 + _U4.unpack_from(raw, at)[0]
    if end > len(raw):
        raise ValueError(f"a text of {end - at - 4} bytes, of {len(raw) - at - 4} that are left")
    machine.stack.append(raw[at + 4 : end].decode("utf-8", "surrogatepass"))
    machine.made += end - at + 56
    return end


def _short_binunicode(machine: _Machine, raw: bytes, at: int) -> int:
    end = at + 1 + raw[at]
    if end > len(raw):
        raise ValueError(f"a text of {raw[at]} bytes, of {len(raw) - at - 1} that are left")
    machine.stack.append(raw[at + 1 : end].decode("utf-8", "surrogatepass"))
    machine.made += end - at + 59
    return end


def _fixed(layout: struct.Struct) -> Act:
    """Push the number of that layout."""

    def act(machine: _Machine, raw: bytes, at: int) -> int:
        machine.push(layout.unpack_from(raw, at)[0], 32)
        return at + layout.size

    return act


def _binint1(machine: _Machine, raw: bytes, at: int) -> int:
    machine.stack.append(raw[at])
    return at + 1


def _binint2(machine: _Machine, raw: bytes, at: int) -> int:
    machine.push(raw[at] | raw[at + 1] << 8, 32)
    return at + 2


def _in_line(made: Callable[[bytes], Any]) -> Act:
    """Push what is made of the rest of the line."""

    def act(machine: _Machine, raw: bytes, at: int) -> int:
        line, end = _line(raw, at)
        machine.push(made(line), 60 + 4 * len(line))
        return end

    return act


def _decimal(line: bytes) -> int:
    if len(line) > _WIDEST or b"_" in line:
        raise ValueError(f"an integer of {len(line)} digits")
    return int(line)


def _old_integer(line: bytes) -> int | bool:
    return line == b"01" if line in (b"00", b"01") else _decimal(line)


def _quoted(line: bytes) -> str:
    if len(line) < 2 or line[:1] not in b"\"'" or line[-1] != line[0]:
        raise ValueError("a text without quotes")
    return codecs.escape_decode(line[1:-1])[0].decode("latin-1")


def _value(value: Any) -> Act:
    """Push the value itself."""

    def act(machine: _Machine, raw: bytes, at: int) -> int:
        machine.stack.append(value)
        return at

    return act


def _made(kind: Callable[[], Any], size: int) -> Act:
    """Push a new, empty one."""

    def act(machine: _Machine, raw: bytes, at: int) -> int:
        machine.stack.append(kind())
        machine.made += size
        return at

    return act


def _to_mark(kind: Callable[[Stack], Any]) -> Act:
    """Push what is made of all values above the mark."""

    def act(machine: _Machine, raw: bytes, at: int) -> int:
        made = kind(machine.to_mark())
        machine.stack.append(made)
        machine.made += 48
        return at

    return act


def _tuple1(machine: _Machine, raw: bytes, at: int) -> int:
    stack = machine.stack
    stack[-1] = (stack[-1],)
    machine.made += 48
    return at


def _tuple2(machine: _Machine, raw: bytes, at: int) -> int:
    stack = machine.stack
    last = stack.pop()
    stack[-1] = (stack[-1], last)
    machine.made += 56
    return at


def _tuple3(machine: _Machine, raw: bytes, at: int) -> int:
    stack = machine.stack
    last, middle = stack.pop(), stack.pop()
    stack[-1] = (stack[-1], middle, last)
    machine.made += 64
    return at


def _mark(machine: _Machine, raw: bytes, at: int) -> int:
    machine.below.append(machine.stack)
    machine.stack = []
    machine.made += 64
    return at


def _global(machine: _Machine, raw: bytes, at: int) -> int:
    module, at = _line(raw, at)
    name, at = _line(raw, at)
    machine.push(Global(module.decode(), name.decode()), 160 + len(module) + len(name))
    return at


def _stack_global(machine: _Machine, raw: bytes, at: int) -> int:
    name, module = machine.stack.pop(), machine.stack.pop()
    if not (isinstance(name, str) and isinstance(module, str)):
        raise TypeError("a name that is no text")
    machine.push(Global(module, name), 64)
    return at


def _reduce(machine: _Machine, raw: bytes, at: int) -> int:
    stack = machine.stack
    args = stack.pop()
    stack[-1] = Call(stack[-1], args)
    machine.made += 80
    return at


def _newobj_ex(machine: _Machine, raw: bytes, at: int) -> int:
    named, args, kind = machine.stack.pop(), machine.stack.pop(), machine.stack.pop()
    machine.push(Call(kind, (args, named)), 160)
    return at


def _build(machine: _Machine, raw: bytes, at: int) -> int:
    state, target = machine.stack.pop(), machine.stack[-1]
    if isinstance(target, Call):
        target.state = state
    return at


def _binpersid(machine: _Machine, raw: bytes, at: int) -> int:
    machine.stack[-1] = Persistent(machine.stack[-1])
    machine.made += 40
    return at


def _setitem(machine: _Machine, raw: bytes, at: int) -> int:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.set(machine.stack[-1], [key, value])
    return at


def _setitems(machine: _Machine, raw: bytes, at: int) -> int:
    pairs = machine.to_mark()
    machine.set(machine.stack[-1], pairs)
    return at


def _dict(machine: _Machine, raw: bytes, at: int) -> int:
    pairs, made = machine.to_mark(), dict[Any, Any]()
    machine.set(made, pairs)
    machine.push(made, 64)
    return at


def _append(machine: _Machine, raw: bytes, at: int) -> int:
    value = machine.stack.pop()
    machine.extend(machine.stack[-1], [value])
    machine.made += 32
    return at


def _appends(machine: _Machine, raw: bytes, at: int) -> int:
    values = machine.to_mark()
    machine.extend(machine.stack[-1], values)
    return at


def _binput(machine: _Machine, raw: bytes, at: int) -> int:
    machine.put(raw[at])
    return at + 1


def _long_binput(machine: _Machine, raw: bytes, at: int) -> int:
    index, memo = _U4.unpack_from(raw, at)[0], machine.memo
    if index == len(memo):
        memo.append(machine.stack[-1])
    else:
        machine.put(index)
    return at + 4


def _put(machine: _Machine, raw: bytes, at: int) -> int:
    line, at = _line(raw, at)
    machine.put(_decimal(line))
    return at


def _memoize(machine: _Machine, raw: bytes, at: int) -> int:
    if machine.far:
        machine.put(len(machine.memo) + len(machine.far))
    else:
        machine.memo.append(machine.stack[-1])
    return at


def _binget(machine: _Machine, raw: bytes, at: int) -> int:
    index, memo = raw[at], machine.memo
    machine.stack.append(memo[index] if index < len(memo) else machine.far[index])
    return at + 1


def _long_binget(machine: _Machine, raw: bytes, at: int) -> int:
    index, memo = _U4.unpack_from(raw, at)[0], machine.memo
    machine.stack.append(memo[index] if index < len(memo) else machine.far[index])
    return at + 4


def _get(machine: _Machine, raw: bytes, at: int) -> int:
    line, at = _line(raw, at)
    index = _decimal(line)
    machine.stack.append(machine.memo[index] if 0 <= index < len(machine.memo) else machine.far[index])
    return at


def _pop(machine: _Machine, raw: bytes, at: int) -> int:
    machine.stack.pop()
    return at


def _pop_mark(machine: _Machine, raw: bytes, at: int) -> int:
    machine.to_mark()
    return at


def _dup(machine: _Machine, raw: bytes, at: int) -> int:
    machine.stack.append(machine.stack[-1])
    return at


def _skip(size: int) -> Act:
    """Pass over so many bytes, which say nothing of a value."""

    def act(machine: _Machine, raw: bytes, at: int) -> int:
        return at + len(_piece(raw, at, size))

    return act


_LATIN = "latin-1"
_STOP = ord(".")
_NAMED: dict[str, Act] = {
    # numbers and texts
    "I": _in_line(_old_integer), "J": _fixed(_I4), "K": _binint1, "M": _binint2,
    "L": _in_line(lambda line: _decimal(line.removesuffix(b"L"))),
    "\x8a": _sized(1, _integer), "\x8b": _sized(4, _integer),
    "F": _in_line(float), "G": _fixed(_F8), "S": _in_line(_quoted),
    "T": _sized(4, lambda piece: piece.decode(_LATIN)), "U": _sized(1, lambda piece: piece.decode(_LATIN)),
    "B": _sized(4, bytes), "C": _sized(1, bytes), "\x8e": _sized(8, bytes), "\x96": _sized(8, bytes),
    "V": _in_line(lambda line: line.decode("raw-unicode-escape")),
    "X": _binunicode, "\x8c": _short_binunicode, "\x8d": _sized(8, _text),
    "N": _value(None), "\x88": _value(True), "\x89": _value(False),
    # what holds others
    "(": _mark, "}": _made(dict, 64), "]": _made(list, 64), "\x8f": _made(list, 64), ")": _value(()),
    "d": _dict, "l": _to_mark(list), "\x91": _to_mark(list), "t": _to_mark(tuple),
    "\x85": _tuple1, "\x86": _tuple2, "\x87": _tuple3,
    "s": _setitem, "u": _setitems, "a": _append, "e": _appends, "\x90": _appends,
    # names and calls
    "c": _global, "\x93": _stack_global, "Q": _binpersid, "R": _reduce, "\x81": _reduce, "\x92": _newobj_ex,
    "b": _build,
    # the machine's own
    "p": _put, "q": _binput, "r": _long_binput, "\x94": _memoize, "g": _get, "h": _binget, "j": _long_binget,
    "0": _pop, "1": _pop_mark, "2": _dup, "\x80": _skip(1), "\x95": _skip(8),
}  # fmt: skip
_ACTS: list[Act | None] = [_NAMED.get(chr(code)) for code in range(256)]
