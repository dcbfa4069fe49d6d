"""Commands whose calls to the file system fail, are cut short, or are the last thing that they do: one by one.

`shim.c` lies below libc's calls. The process that imported surgery has it preloaded, and forks a child for each
command, so that a case costs milliseconds; only in the child is it switched on.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from commanded import command, streams_into

HERE = Path(__file__).parent
SHIM = "SURGERY_SHIM"  # the environment's name for where it lies
KILL, SHORT = -1, -2  # as in shim.c
LIMIT = 60  # seconds after which a command hangs: it says where, in each thread, and is ended


def built(folder: Path) -> Path | None:
    """The shim, compiled into a folder; None where there is no compiler."""
    path = folder / "shim.so"
    words = ["cc", "-shared", "-fPIC", "-O1", "-o", str(path), str(HERE / "shim.c"), "-ldl", "-lpthread"]
    try:
        subprocess.run(words, check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return path


def environment(shim: Path) -> dict[str, str]:
    """That of a process which can watch its children: one thread each, nothing from outside."""
    held = {name: text for name, text in os.environ.items() if not name.startswith(("HF_", "PYTEST"))}
    alone = {"LD_PRELOAD": str(shim), SHIM: str(shim), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return held | alone | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parent.parent)])}


@dataclass(frozen=True)
class Watch:
    """What is to happen to the calls of a child: number `k` ends as `what` says; what changes something is
    written to `trace`, the name of each call to `names`.
    """

    k: int = 0
    what: int = 0
    trace: Path | None = None
    names: Path | None = None


@dataclass(frozen=True)
class Ended:
    """How a command ended, what it said, and how many calls it made."""

    status: int
    stdout: str
    stderr: str
    calls: int

    @property
    def killed(self) -> bool:
        """Whether it was the last thing that the process did."""
        return self.status == -signal.SIGKILL

    @property
    def said(self) -> str:
        """The end of what it said of failing; of one that hung all of it, which is where each thread was."""
        return self.stderr if self.status == -signal.SIGALRM else self.stderr[-900:]


def run(words: Sequence[str], root: Path, scratch: Path, watch: Watch | None = None) -> Ended:
    """A command in a child, whose calls that concern `root` are watched. Its temporary files lie in there, too."""
    said = {1: scratch / "stdout", 2: scratch / "stderr"}
    counted = scratch / "calls"
    counted.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        code = 99
        try:
            signal.alarm(LIMIT)
            code = _command(words, root, said, counted, watch)
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    texts = [path.read_text(errors="replace") for path in said.values()]
    return Ended(status, texts[0], texts[1], int(counted.read_text()) if counted.exists() else 0)


def _command(words: Sequence[str], root: Path, said: dict[int, Path], counted: Path, watch: Watch | None) -> int:
    """The body of the child: its exit status."""
    streams_into(said)
    faulthandler.dump_traceback_later(LIMIT - 5, file=sys.stderr)
    os.chdir(root)
    shim = ctypes.CDLL(os.environ[SHIM])
    if watch:
        into = [
            os.open(p, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644) if p else -1 for p in (watch.trace, watch.names)
        ]
        shim.calls_watch(os.fsencode(root), ctypes.c_long(watch.k), watch.what, *into)
    code = command(words, root / "tmp")
    if watch:
        shim.calls_counted.restype = ctypes.c_long
        counted.write_text(str(shim.calls_counted()))
    return code
