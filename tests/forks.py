"""Runs in child processes, which may be killed. A fork has torch imported already, so that a death costs
milliseconds.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import torch  # noqa: F401 - so that no child imports it


def started(action: Callable[[], object], *, limit: int = 60) -> int:
    """The process id of a child that does `action`; it exits with 0 where that returned, and dies after `limit`
    seconds.
    """
    child = os.fork()
    if not child:
        code = 1
        try:
            signal.alarm(limit)
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int:
    """How the child ended: its exit code, or the negative number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def forked(action: Callable[[], object]) -> int:
    """How a child that does `action` ended."""
    return ended(started(action))


def die(*_: object) -> None:
    """Kill this process at once, with all its threads."""
    os.kill(os.getpid(), signal.SIGKILL)


def dying_at(number: int) -> Callable[[object], None]:
    """A callback that dies at its call number `number`, counted from 1."""
    calls = 0

    def call(_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            die()

    return call


def beside(dest: Path) -> list[str]:
    """What lies in the destination's folder besides the destination."""
    return sorted(p.name for p in dest.parent.iterdir() if p != dest)
