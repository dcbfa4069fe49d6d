"""Progress on standard error, when it is a terminal: bytes, rate, time left, the tensor at hand."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import surgery

from .waiting import silent

if TYPE_CHECKING:
    from rich.progress import Progress


def _bar() -> Progress:
    from .bar import bar

    return bar()


@contextmanager
def progress(plan: surgery.Plan, *, shown: bool, sent: bool = False) -> Iterator[Callable[[surgery.Step], None] | None]:
    """A callback for `execute` that draws the run, `sent` to the Hub or not; None where there is nobody to look."""
    if not shown or not sys.stderr.isatty():
        yield None
        return
    with silent(), _bar() as bar:
        task = bar.add_task("", total=plan.needed + (plan.nbytes if sent else 0))

        def on_step(step: surgery.Step) -> None:
            twice = sent and step.kind == "resumed"  # made and sent
            bar.update(task, advance=step.nbytes * (1 + twice), description=step.tensor or f"{step.kind} {step.name}")

        yield on_step


@contextmanager
def counted(total: int, *, shown: bool) -> Iterator[Callable[[str, int], None] | None]:
    """A callback for `execute_push`: the bytes that have arrived, of `total`, after each file; None where there is
    nobody to look.
    """
    if not shown or not total or not sys.stderr.isatty():
        yield None
        return
    with silent(), _bar() as bar:
        task = bar.add_task("", total=total)
        yield lambda name, nbytes: bar.update(task, advance=nbytes, description=name)


@contextmanager
def looking(*, shown: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """A callback for `diff` and `verify`, after each tensor; None where there is nobody to look."""
    if not shown or not sys.stderr.isatty():
        yield None
        return
    with silent(), _bar() as bar:
        task = bar.add_task("", total=None)
        yield lambda name, nbytes, total: bar.update(task, total=total, advance=nbytes, description=name)
