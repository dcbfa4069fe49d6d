"""Text for a page: escaped, so that no name in a checkpoint is obeyed, by a browser or by an eye."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import printable

LONGEST = 2000  # characters of one text


def text(value: object, longest: int = LONGEST) -> str:
    """As the content of an element, or the value of an attribute in quotes."""
    from html import escape

    shown = printable(str(value))
    return escape(shown if len(shown) <= longest else f"{shown[:longest]}…")


def lines(value: str, longest: int) -> str:
    """Text of several lines."""
    return "\n".join(text(line, longest) for line in value[:longest].split("\n"))


def data(value: Any) -> str:
    """As JSON inside a script element: in ASCII, without a character that could end it."""
    raw = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return raw.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


@dataclass(frozen=True)
class Places:
    """Folders that a reader elsewhere need not know: paths begin with the last folder's name."""

    folders: tuple[str, ...]

    @staticmethod
    def of(paths: Iterable[str]) -> Places:
        """Those in which these paths lie."""
        found = {os.path.dirname(path.rstrip("/")) for path in paths if path.startswith("/")} - {"", "/"}
        return Places(tuple(sorted(found, key=len, reverse=True)))

    def short(self, said: object) -> str:
        """The text without them."""
        shown = str(said)
        for folder in self.folders:
            shown = shown.replace(f"{folder}/", "")
        return shown
