"""The progress bar: one line, however long the name of the tensor and however narrow the terminal.

Imported where a bar is drawn only: rich takes a while.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column
from rich.text import Text

from surgery.errors import printable


def ending(name: str, width: int) -> str:
    """The end of a name, in `width` columns: what tells one tensor from the next is on the right."""
    text = Text(name)
    while text.cell_len > width and text.plain:
        text = Text("…" + text.plain.lstrip("…")[1:]) if text.plain != "…" else Text("")
    return text.plain


@dataclass(frozen=True)
class Name:
    """A name that takes the room that is left, and no second line."""

    text: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(ending(self.text, options.max_width), no_wrap=True, overflow="crop")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, max(1, Text(self.text).cell_len)).with_maximum(options.max_width)


class NameColumn(ProgressColumn):
    """The tensor or file at hand."""

    def render(self, task: Task) -> Name:
        return Name(printable(task.description))


def bar() -> Progress:
    """A bar on standard error, gone when it is done."""

    def whole() -> Column:
        return Column(no_wrap=True)

    columns = (
        BarColumn(bar_width=24, table_column=whole()),
        DownloadColumn(table_column=whole()),
        TransferSpeedColumn(table_column=whole()),
        TimeRemainingColumn(table_column=whole()),
        NameColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
