"""JSON that means one thing: UTF-8, an object, no key twice, no NaN, no half of a surrogate pair, `-0` no integer."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from ..errors import FormatError

MEND = "mend the file, or fetch it again"
_LONE = re.compile("[\ud800-\udfff]")


def parse_object(raw: bytes, fail: Callable[[str], FormatError]) -> dict[str, Any]:
    """The JSON object in `raw`. `fail` makes the error to raise from what is wrong."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            double = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise fail(f"the key {double!r} comes twice")
        return found

    def constant(text: str) -> Any:
        raise fail(f"{text} is not JSON")

    def integer(text: str) -> int | float:
        # as safetensors and JavaScript read it: no shape or offset
        return -0.0 if text == "-0" else int(text)

    try:
        content = json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant, parse_int=integer)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise fail(f"not UTF-8 JSON: {error}") from error
    except ValueError as error:  # an integer of more digits than Python converts
        raise fail(f"not JSON that can be read: {error}") from error
    if not isinstance(content, dict):
        raise fail("not a JSON object")
    if b"\\u" in raw and _LONE.search(json.dumps(content, ensure_ascii=False)):
        raise fail("half of a surrogate pair is not text")
    return content
