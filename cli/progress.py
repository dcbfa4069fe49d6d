"""Progress on standard error, when it is a terminal: bytes, rate, time left, the tensor at hand."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import surgery


@contextmanager
def progress(plan: surgery.Plan, *, shown: bool) -> Iterator[Callable[[surgery.Step], None] | None]:
    """A callback for `execute` that draws the run; None where there is nobody to look."""
    if not shown or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=plan.needed)

        def on_step(step: surgery.Step) -> None:
            bar.update(task, advance=step.nbytes, description=step.tensor or f"{step.kind} {step.name}")

        yield on_step
