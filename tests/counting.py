"""How much work a function does, counted and not timed: the same on every machine, however busy.

    steps    lines that run, each iteration of a comprehension among them, and calls of Python's functions
    scanned  characters and entries gone through by methods of texts, and those of lists that look at each entry
    bytes    what a line allocates at most: copies, concatenations and sorts, which Python's own code makes in one step;
             where it is asked for, since it takes six times as long

What is counted by none of them: `in` a list of texts, and sums of numbers that are there.
"""

from __future__ import annotations

import gc
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from types import FrameType
from typing import Any

SCANNING = ("index", "count", "remove", "insert", "sort", "copy", "reverse")


@dataclass
class Work:
    """What was counted."""

    steps: int = 0
    scanned: int = 0
    bytes: int = 0

    def growth(self, before: Work, first: Work) -> tuple[float, ...]:
        """By how much more each count grew from `before` than it did from `first` to `before`: what is constant is
        left out.
        """
        each = zip(astuple(self), astuple(before), astuple(first), strict=True)
        return tuple((now - then) / max(then - once, 1) for now, then, once in each)


def counted(function: Callable[[], object], *, memory: bool = False) -> Work:
    """The work of `function`, in all its threads."""
    work, held = Work(), [0]

    def step(frame: FrameType, event: str, arg: Any) -> Any:
        work.steps += 1
        if memory:
            now, peak = tracemalloc.get_traced_memory()
            work.bytes += max(0, peak - held[0])
            held[0] = now
            tracemalloc.reset_peak()
        return step

    def called(frame: FrameType, event: str, arg: Any) -> None:
        if event == "c_call":
            of = getattr(arg, "__self__", None)
            if isinstance(of, str | bytes) or (isinstance(of, list) and arg.__name__ in SCANNING):
                work.scanned += len(of)

    if memory:
        tracemalloc.start(1)
    try:
        with _watched(step, called):
            function()
    finally:
        tracemalloc.stop()
    return work


@contextmanager
def _watched(step: Any, called: Any) -> Iterator[None]:
    """With these called for each line, and for each call."""
    before, collecting = (sys.gettrace(), sys.getprofile()), gc.isenabled()
    gc.collect()
    gc.disable()
    threading.settrace(step)
    threading.setprofile(called)
    sys.setprofile(called)
    sys.settrace(step)
    try:
        yield
    finally:
        sys.settrace(before[0])
        sys.setprofile(before[1])
        threading.settrace(None)  # type: ignore[arg-type]
        threading.setprofile(None)
        if collecting:
            gc.enable()
