"""Inputs that nobody wrote: bytes that are changed, and trees of JSON in which a value is another one."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

# Texts of JSON that stand in the place of a value.
ODD = (
    "null", "true", "false", "0", "-1", "1", "-0", "1.5", "-1e-400", "1e400", "NaN", "Infinity", '""', '"x"', "[]",
    "{}", "[null]", "[1]", "[[]]", '[["x", 1]]', '{"a": 1}', '{"a": 1, "a": 2}', '{"": {}}', "9007199254740993",
    "9223372036854775807", "9223372036854775808", "18446744073709551615", "1" + "0" * 400, "9" * 5000, '"\\ud800"',
    '"\\u0000"', '"\\u001b[2J"', '"\\u202e"', '"../../x"', '"/etc/passwd"', '"a/./b"', '"C:/x"', '"(a+)+b"',
    '"(a|a)*b"', '"("', '"[0-9]{1,99999}"', '"' + "a." * 2000 + '"', "[" * 3000 + "]" * 3000,
    "[" * 600 + "]" * 600, "[" * 90 + "]" * 90, '{"a":' * 300 + "1" + "}" * 300, '{"a":' * 90 + "1" + "}" * 90,
    '"after"', '"float16"', '"nf4"', '"0x1p99999"', '{"reshape": "after", "shape": [-1]}', "[0, 0]",
    "[4294967296, 4294967296]",
)  # fmt: skip
NUMBERS = (0, 1, 2, 31, 127, 255, 256, 65535, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1)
_MARK = "\u2603here\u2603"


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where values stand in a tree, the root first."""
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*at, key))


def grafted(raw: bytes, where: int, odd: str, *, key: bool = False) -> bytes:
    """A tree of JSON with `odd` in the place of its `where`th value, or beside it under another key; other bytes, as
    they are.
    """
    try:
        tree = json.loads(raw)
        spots = list(places(tree))[1:]
    except (ValueError, RecursionError):
        return raw
    if not spots:
        return odd.encode()
    *above, last = spots[where % len(spots)]
    held = tree
    for step in above:
        held = held[step]
    if key and isinstance(held, dict):
        held[f"{last}x"] = _MARK
    else:
        held[last] = _MARK
    return json.dumps(tree).replace(json.dumps(_MARK), odd).encode("utf-8", "surrogatepass")


def without(raw: bytes, where: int) -> bytes:
    """A tree of JSON without one of its values; other bytes, as they are."""
    try:
        tree = json.loads(raw)
        spots = list(places(tree))[1:]
    except (ValueError, RecursionError):
        return raw
    if spots:
        *above, last = spots[where % len(spots)]
        held = tree
        for step in above:
            held = held[step]
        del held[last]
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def edited(raw: bytes, words: tuple[bytes, ...], draw: random.Random) -> bytes:
    """The bytes after a small change."""
    made, at = bytearray(raw), draw.randrange(len(raw) + 1)
    match draw.randrange(8):
        case 0:
            made[at : at + 1] = bytes([draw.randrange(256)])
        case 1:
            del made[at : at + draw.choice((1, 1, 2, 5, 30))]
        case 2:
            size = draw.choice((2, 4, 8))
            made[at : at + size] = (draw.choice(NUMBERS) % 256**size).to_bytes(size, draw.choice(("little", "big")))
        case 3:
            end = at + draw.randrange(1, 40)
            made[at:at] = made[at:end] * draw.choice((1, 2, 50))
        case 4 if words:
            made[at : at + draw.choice((0, 0, 1, 4))] = draw.choice(words)
        case 5:
            del made[at:]
        case 6 if at < len(made):
            made[at] ^= 1 << draw.randrange(8)
        case _:
            other = draw.randrange(len(raw) + 1)
            made[at:at] = raw[other : other + draw.randrange(1, 60)]
    return bytes(made)


def mutated(raw: bytes, words: tuple[bytes, ...], draw: random.Random) -> bytes:
    """The input after a few changes: of a value, where it is JSON behind a length or without one, or of bytes."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        begin = len(raw) - len(raw[8:].lstrip()) if raw[8:9] == b"{" and raw[:1] not in b"{[" else 0
        kind = draw.random()
        if kind < 0.5 and (begin or raw[:1] in (b"{", b"[")):
            raw = _in_tree(raw, begin, draw)
        else:
            raw = edited(raw, words, draw)
    return raw


def _in_tree(raw: bytes, begin: int, draw: random.Random) -> bytes:
    end = begin + int.from_bytes(raw[:8], "little") if begin else len(raw)
    where, tree = draw.randrange(1 << 16), raw[begin:end]
    if draw.random() < 0.15:
        made = without(tree, where)
    else:
        made = grafted(tree, where, draw.choice(ODD), key=draw.random() < 0.2)
    return len(made).to_bytes(8, "little") + made + raw[end:] if begin else made
