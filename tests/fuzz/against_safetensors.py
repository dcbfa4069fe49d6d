"""Accept and refuse, held against the safetensors library: what it refuses is refused, what is refused besides has a
reason.
"""

from __future__ import annotations

import re

from surgery.errors import FormatError
from surgery.files.safetensors import header_length, parse_header
from surgery.files.strict import POINTER

# Why we refuse what the library takes, by how our error begins.
STRICTER = {
    r"the header is wrong: the key .+ comes twice": "of two meanings the library takes the last one, others the first",
    r"a tensor needs `dtype`, `shape` and `data_offsets`, and nothing else": "a key that nobody reads hides a mistake",
}


class Laxer(Exception):
    """A file that is read, and that the library refuses, or reads as something else."""


class Unexplained(Exception):
    """A file that is refused, and that the library takes, for no reason in the table."""


def ours(raw: bytes) -> tuple[dict[str, tuple[str, list[int], int]] | None, str]:
    """Tensors by name, with dtype, shape and bytes; or None and why."""
    try:
        length = header_length(raw[: len(POINTER)], len(raw), "x")
        found = parse_header(raw[8 : 8 + length], len(raw), "x")
    except FormatError as error:
        return None, error.what
    return {n: (e.dtype.name, list(e.shape), e.stop - e.start) for n, e in found.entries.items()}, ""


def theirs(raw: bytes) -> dict[str, tuple[str, list[int], int]] | None:
    """The same by the library; None where it refuses."""
    from safetensors import SafetensorError, deserialize

    try:
        return {name: (one["dtype"], one["shape"], len(one["data"])) for name, one in deserialize(raw)}
    except SafetensorError:
        return None


def check_no_laxer(raw: bytes) -> None:
    """Raise Laxer or Unexplained."""
    mine, why = ours(raw)
    other = theirs(raw)
    if mine is not None and mine != other:
        raise Laxer(f"{mine} is {other} to safetensors: {raw!r}")
    if mine is None and other is not None and not any(re.match(rule, why, re.DOTALL) for rule in STRICTER):
        raise Unexplained(f"{why}: {raw!r}")
