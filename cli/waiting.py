"""What a command waits for, on one line of standard error, when it is a terminal and nothing else has moved for half a
second: a thread looks where the command is.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

PATIENCE = 0.5  # seconds
LOADED = ("torch", "transformers", "huggingface_hub", "peft", "ray", "accelerate", "bitsandbytes")
# What a part of surgery does, by how its path begins; of two that fit, the one that is entered last.
DOES = {
    "surgery/checkpoint": "opening files",
    "surgery/files": "reading headers",
    "surgery/evaluation/read": "reading tensors",
    "surgery/hub": "asking the Hub",
    "surgery/models/skeleton": "asking the model's class",
    "surgery/checks/loadable": "asking the model's class",
    "surgery/checks": "looking at tensors",
    "surgery/planning": "planning",
    "surgery/execution/cluster": "waiting for the cluster",
    "surgery/execution/ray": "waiting for the cluster",
    "surgery/execution": "writing",
    "surgery/surgeries": "describing the result",
    "surgery/pictures": "drawing",
}


class _Line:
    """The line, and since when nothing else was shown."""

    def __init__(self) -> None:
        self.lock, self.since, self.shown, self.silent = threading.Lock(), time.monotonic(), "", 0

    def erase(self) -> None:
        """Nothing of it is to be seen, for a while."""
        with self.lock:
            self.since = time.monotonic()
            self._put("")

    def show(self, text: str) -> None:
        """It says this, unless something else was shown meanwhile."""
        with self.lock:
            if not self.silent and text != self.shown and time.monotonic() - self.since >= PATIENCE:
                self._put(text)

    def _put(self, text: str) -> None:
        if text or self.shown:
            with suppress(OSError, ValueError):
                os.write(2, f"\r\x1b[2K{text}".encode())
        self.shown = text


_line = _Line()


def hush() -> None:
    """Something else is about to be shown."""
    if _line.shown:
        _line.erase()


@contextmanager
def silent() -> Iterator[None]:
    """Something else moves meanwhile, such as a bar."""
    _line.erase()
    _line.silent += 1
    try:
        yield
    finally:
        _line.silent -= 1
        _line.erase()


@contextmanager
def watched() -> Iterator[None]:
    """What is done inside says what it waits for, where somebody looks and did not ask for silence."""
    if not sys.stderr.isatty() or {"-q", "--quiet"} & set(sys.argv):
        yield
        return
    done, watched = threading.Event(), threading.get_ident()
    watcher = threading.Thread(target=_watch, args=(watched, done), name="waiting", daemon=True)
    _line.erase()
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        _line.erase()


def _watch(thread: int, done: threading.Event) -> None:
    while not done.wait(PATIENCE / 4):
        frame = sys._current_frames().get(thread)
        if what := doing(frame):
            _line.show(f"… {what}")


def doing(frame: FrameType | None) -> str:
    """What the code at `frame` is for, in words; of a package that is being imported, that."""
    found = loaded = ""
    while frame is not None:
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package in LOADED and frame.f_code.co_name == "<module>":
            loaded = package  # the outermost one led to the others
        found = found or _words(frame.f_code.co_filename)
        frame = frame.f_back
    return f"loading {loaded}" if loaded else found


def _words(path: str) -> str:
    inside = path.replace(os.sep, "/").rpartition("/surgery/")
    name = f"surgery/{inside[2]}" if inside[1] else ""
    fitting = [begin for begin in DOES if name.startswith(begin)]
    return DOES[max(fitting, key=len)] if fitting else ""
