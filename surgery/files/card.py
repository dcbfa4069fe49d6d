"""Model cards: README.md, whose metadata stand between two lines of `---`."""

from __future__ import annotations

import re
from typing import Any

from ..errors import FormatError
from .plain_yaml import check_yaml, quick_loader

CARD = "README.md"
MOST_BYTES = 1_000_000  # of metadata
BLOCK = re.compile(r"\A\s*---[ \t]*\r?\n(?P<yaml>.*?)(?P<end>^---[ \t]*(?:\r?\n|\Z))", re.DOTALL | re.MULTILINE)


def metadata_of(card: str) -> dict[str, Any]:
    """The metadata of a card. Raises FormatError where they are none."""
    found = BLOCK.match(card)
    if not found:
        return {}
    import yaml

    try:
        check_yaml(found["yaml"], MOST_BYTES)
        content = yaml.load(found["yaml"], Loader=quick_loader())
    except (yaml.YAMLError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise _unreadable(str(error).split("\n")[0]) from error
    if not isinstance(content, dict | None):
        raise _unreadable("it is no mapping of keys to values")
    return content or {}


def _unreadable(why: str) -> FormatError:
    return FormatError(
        f"the metadata of the card cannot be read: {why}",
        where=[CARD],
        help="mend what stands between the two lines of ---",
    )
