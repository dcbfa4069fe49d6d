"""How the command line begins and ends, whatever it was started in: streams that are closed, full or no longer read,
Ctrl-C or a signal to end at any moment, a folder that is gone. Light: nothing of it is imported before Ctrl-C is
awaited.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

FAILED, INTERRUPTED, UNHEARD = 1, 130, 141  # exit statuses; the last as of who dies of a closed pipe
# What Python says where no thread can be started, torch where it gets no memory, and the loader of libraries.
STARVED = {
    "can't start new thread": "the system starts no more threads",
    "can't allocate memory": "there is not enough memory",
    "std::bad_alloc": "there is not enough memory",
    "failed to map segment": "there is not enough memory",
}


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end, which it does as at Ctrl-C; `status` is what it ends with."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number


def status_of(error: KeyboardInterrupt) -> int:
    """The exit status of a process that Ctrl-C ends, or a signal."""
    return error.status if isinstance(error, Stopped) else INTERRUPTED


class Unshown(Exception):
    """Standard output takes nothing more; `errno` says why. No OSError, which others take for one of a file."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror)
        self.errno = error.errno


class _Output(io.FileIO):
    """Standard output, which says that it is it that fails."""

    def write(self, data: Any) -> Any:
        if waiting := sys.modules.get(f"{__package__}.waiting"):
            waiting.hush()
        try:
            return super().write(data)
        except OSError as error:
            raise Unshown(error) from error


def main() -> None:
    """Run the command line, and leave with its exit status."""
    ended(_command_line)


def _command_line() -> None:
    from .app import run

    run()


def ended(command: Callable[[], None]) -> None:
    """Run a command: whatever its surroundings do ends it with a clear word and an exit status, without a traceback."""
    try:
        _hold_streams()
        _hold_signals()
        try:
            command()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt as error:
        _leave(status_of(error), "interrupted", "")
    except Unshown as error:
        _discard(1)
        if error.errno == errno.EPIPE:
            _leave(UNHEARD, "", "")
        tip = "point standard output elsewhere, and run again; what a command wrote to its own output stays written"
        _leave(FAILED, f"the answer cannot be shown: {error}", tip)
    except (OSError, MemoryError) as error:
        if "--debug" in sys.argv:
            raise
        _leave(FAILED, _told(error), "mend that, and run again; --debug shows where it happened")
    except (RuntimeError, ImportError) as error:
        starved = next((what for text, what in STARVED.items() if text in str(error)), None)
        if starved is None or "--debug" in sys.argv:
            raise
        _leave(FAILED, starved, "raise what ulimit -v and -u allow, or pass --workers 1 and less --memory; run again")


def _told(error: OSError | MemoryError) -> str:
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    if not _has_place():
        return "the working folder is not there any more"
    where = f"\n  --> {os.fsdecode(error.filename)!a}" if isinstance(error.filename, str | bytes) else ""
    return f"the system refuses: {error.strerror or error}{where}"


def _has_place() -> bool:
    with suppress(FileNotFoundError):
        return bool(os.getcwd())
    return False


def _leave(status: int, what: str, tip: str) -> None:
    """Exit; nothing is said where nobody listens."""
    lines = [what if status > 128 else f"error: {what}"] if what else []
    try:
        print(
            *lines, *([f"help: {tip}"] if tip else []), sep="\n", end="\n" if what else "", file=sys.stderr, flush=True
        )
    except (OSError, ValueError):
        _discard(2)
    sys.exit(status)


def _hold_signals() -> None:
    """SIGTERM, as a batch system sends it, and SIGHUP end the command once, as Ctrl-C does: nothing is left but the
    stage. What is ignored, as under nohup, stays so.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            with suppress(ValueError):  # not in the main thread
                signal.signal(number, _stop)


def _stop(number: int, _: object) -> None:
    for again in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(again, signal.SIG_IGN)
    raise Stopped(number)


def _hold_streams() -> None:
    """Standard streams that are there, and take any text: what was closed leads nowhere, so that no file that is
    opened later gets its number.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = _stream(sys.stdout, 1)
    sys.stderr = sys.stderr or io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _stream(found: Any, number: int) -> Any:
    """Standard output as it was found, that raises `Unshown`; what stands in its place, in a test, stays."""
    if found is not None and not (isinstance(found, io.TextIOWrapper) and found.fileno() == number):
        return found
    raw: Any = _Output(number, "w", closefd=False)
    encoding, lines, through = (
        (found.encoding, found.line_buffering, found.write_through) if found else ("utf-8", False, False)
    )
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, line_buffering=lines, write_through=through)


def _discard(number: int) -> None:
    """What is still to be shown leads nowhere, so that leaving does not fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
