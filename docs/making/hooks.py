"""What mkdocs asks while it builds: the parts of pages that are made of the code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent.parent)]

from making import command_line, names

MADE = {"<!-- made: command line -->": command_line.reference, "<!-- made: names -->": names.reference}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with what is made for it."""
    for mark, make in MADE.items():
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return markdown
