"""JSON that means one thing: UTF-8, an object, no key twice, no NaN, no half of a surrogate pair, `-0` no integer."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from ..errors import FormatError

MEND = "mend the file, or fetch it again"
# What stands in a clone for a file that was never fetched: three lines of text, of which this begins the first.
POINTER = b"version https://git-lfs"
PULL = "git lfs pull fetches it, in the clone that the file came from"
DEEPEST = 100  # that objects and lists are nested: what reads them goes from one into the next
LONE = re.compile("[\ud800-\udfff]")


def parse_object(
    raw: bytes, fail: Callable[[str], FormatError], *, nan: bool = False, flat: bool = False
) -> dict[str, Any]:
    """The JSON object in `raw`. `fail` makes the error to raise from what is wrong; `nan` takes NaN and infinity, for
    who says himself which number that is; `flat`, any depth, for who looks at the outer values alone.
    """
    if raw.startswith(POINTER):
        raise pointed(fail)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            double = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise fail(f"the key {double!r} comes twice")
        return found

    def constant(text: str) -> Any:
        if nan:
            return float(text)
        raise fail(f"{text} is not JSON")

    def integer(text: str) -> int | float:
        # as safetensors and JavaScript read it: no shape or offset
        return -0.0 if text == "-0" else int(text)

    try:
        content = json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant, parse_int=integer)
    except UnicodeDecodeError as error:
        raise fail(
            f"cut off in the midst of a character: {error}" if error.end == len(raw) else f"not UTF-8: {error}"
        ) from error
    except json.JSONDecodeError as error:
        raise fail(f"cut off: {error}" if _is_cut(error) else f"not JSON: {error}") from error
    except RecursionError as error:
        raise fail(f"nested too deeply: {error}") from error
    except ValueError as error:  # an integer of more digits than Python converts
        raise fail(f"not JSON that can be read: {error}") from error
    if not isinstance(content, dict):
        raise fail("not a JSON object")
    if not flat and _is_deep(content):
        raise fail(f"nested more than {DEEPEST} deep")
    if b"\\u" in raw and LONE.search(json.dumps(content, ensure_ascii=False)):
        raise fail("half of a surrogate pair is not text")
    return content


def any_value(text: str | bytes) -> Any:
    """The value of JSON that stands within another file, and that is as lax as Python reads it. Raises ValueError for
    all that is none, however deep it is nested.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def pointed(fail: Callable[[str], FormatError]) -> FormatError:
    """The error for a Git LFS pointer, which says how to get the file."""
    error = fail("a Git LFS pointer is here in the place of the file")
    return FormatError(error.what, where=error.where, help=PULL)


def _is_deep(content: dict[str, Any]) -> bool:
    level: list[Any] = [content]
    for _ in range(DEEPEST):
        each = (one.values() if isinstance(one, dict) else one for one in level)
        level = [inner for values in each for inner in values if isinstance(inner, dict | list)]
        if not level:
            return False
    return True


def _is_cut(error: json.JSONDecodeError) -> bool:
    """Whether the text ended too early."""
    return error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated string")
