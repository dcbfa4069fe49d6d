"""Run a command as a process of its own: wall time, and the peak memory of its whole process tree."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """Seconds of wall time; bytes of the largest sum of resident sets; what it printed; seconds that processors worked
    for it, which a busy machine hardly changes.
    """

    seconds: float
    peak: int
    stdout: str
    cpu: float = 0.0


def measured(command: Sequence[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> Run:
    """Run `command` to its end. Raises where it fails.

    The peak is the larger of the kernel's own figure for the process, and of the tree's resident sets summed every
    10 ms. The caller must be a small process: the kernel counts a parent's memory at the fork.
    """
    begun = time.monotonic()
    process = subprocess.Popen(
        list(command),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, **(env or {})},
    )
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, _tree(process.pid))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    outputs = {}
    readers = [
        threading.Thread(target=lambda k=k, s=s: outputs.update({k: s.read()}))
        for k, s in (("out", process.stdout), ("err", process.stderr))
    ]
    for reader in readers:
        reader.start()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    done.set()
    watcher.join()
    for reader in readers:
        reader.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with {process.returncode}:\n{outputs['err'][-2000:]}")
    worked = usage.ru_utime + usage.ru_stime
    return Run(seconds, max(peak, usage.ru_maxrss * 1024), outputs["out"], worked)


def _tree(pid: int) -> int:
    """Bytes resident in a process and all its children."""
    total, todo = 0, [pid]
    while todo:
        here = todo.pop()
        try:
            for line in Path(f"/proc/{here}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1]) * 1024
            for task in Path(f"/proc/{here}/task").iterdir():
                todo += [int(p) for p in (task / "children").read_text().split()]
        except (OSError, ValueError):
            continue
    return total
