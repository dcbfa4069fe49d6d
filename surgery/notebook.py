"""What a notebook shows of a value: a title, a few facts and a table that opens, with all text escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from .errors import printable
from .lazy.tensor import Tensor
from .units import extent, size

SHOWN = 200  # rows of a table
_CELL = "text-align:left;padding:0 1em 0 0;font-family:monospace;white-space:pre-wrap"


def shown(title: str, facts: Mapping[str, object], table: str = "") -> str:
    """The HTML of a value; facts that are empty are left out."""
    rows = "".join(_row((name, value)) for name, value in facts.items() if value not in ("", None, (), 0))
    return f"<div><strong>{_text(title)}</strong><table>{rows}</table>{table}</div>"


def table(title: str, heads: Sequence[str], rows: Iterable[Sequence[object]], count: int) -> str:
    """A table of `count` rows that opens by its title; what is beyond the first 200 rows is counted."""
    head = "".join(f'<th style="{_CELL}">{_text(one)}</th>' for one in heads)
    body = "".join(map(_row, islice(rows, SHOWN)))
    rest = f"<p>and {count - SHOWN:,} more</p>" if count > SHOWN else ""
    return f"<details><summary>{_text(title)}</summary><table><tr>{head}</tr>{body}</table>{rest}</details>"


def tensor_table(tensors: Mapping[str, Tensor]) -> str:
    """Names, dtypes, shapes and sizes of tensors."""
    rows = ((name, t.dtype.name, extent(t.shape), size(t.nbytes)) for name, t in tensors.items())
    return table(f"{len(tensors):,} tensors", ("name", "dtype", "shape", "size"), rows, len(tensors))


def told_of(value: Any) -> dict[str, object]:
    """The history and the notes of a checkpoint, an adapter, a plan or a report."""
    steps = [str(step.get("surgery")) for step in value.history]
    return {"made by": " → ".join(steps), "notes": "\n".join(value.notes)}


def _row(cells: Sequence[object]) -> str:
    return "<tr>" + "".join(f'<td style="{_CELL}">{_text(str(cell))}</td>' for cell in cells) + "</tr>"


def _text(text: str) -> str:
    from html import escape  # five milliseconds, for notebooks alone

    return escape(printable(text))
