"""Calls of workers on a Ray cluster, each of which fails, is cut short, or is the last one that the worker makes.

    python -m calls.nodes ROOT --cases 30

Each case is a run of its own that starts its cluster. `worker/sitecustomize.py`, which all its processes load, watches
the calls that a worker makes from the begin of its first task to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from commanded import warmed

from . import HERE, LIMIT, Ended
from .jobs import JOBS, Job, prepare, reset
from .matrix import FAULTS, Case, Undisturbed, after, again, called_in, cases, tree, undisturbed

HERE_TOO = "merge --reversible"  # the same command without Ray
JOB = Job(f"{JOBS[HERE_TOO].words} --executor ray --address local")  # none that runs here by chance
AGAIN = "once"  # a kill of the first worker alone: Ray has the task made again


def run(job: Job, root: Path, scratch: Path, case: Case | None = None) -> Ended:
    """The command in a process, with a cluster, in whose workers this happens. The calls that are made are told."""
    told = {"root": str(root), "k": case.k if case else 0, "what": FAULTS[case.fault.split()[0]] if case else 0}
    told |= {"once": case is not None and AGAIN in case.fault, "told": str(scratch / "told")}
    shutil.rmtree(scratch / "told", ignore_errors=True)
    (scratch / "told").mkdir()
    kept = {name: text for name, text in os.environ.items() if name != "RAY_ADDRESS"}
    paths = [str(HERE / "worker"), os.environ.get("PYTHONPATH", "")]
    more = {"SURGERY_FAULT": json.dumps(told), "PYTHONPATH": os.pathsep.join(paths), "TMPDIR": str(root / "tmp")}
    command = [sys.executable, "-m", "surgery_cli", *job.words.split()]
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as short:
        env = {**kept, **more, "RAY_TMPDIR": short}
        done = subprocess.run(
            command, cwd=root, env=env, capture_output=True, text=True, timeout=4 * LIMIT, check=False
        )
    return Ended(done.returncode, done.stdout, done.stderr, 0)


def called(scratch: Path) -> tuple[str, ...]:
    """The calls of the worker that made the shards."""
    return max((called_in(path) for path in (scratch / "told").glob("names-*")), key=len)


def drawn(calls: tuple[str, ...], most: int, seed: int) -> list[Case]:
    """So many cases of all; of the kills, every other one is of one worker alone."""
    every = list(cases(calls, each=2, looks=10, seed=seed))
    kills, others = [one for one in every if one.fault == "kill"], [one for one in every if one.fault != "kill"]
    draw = random.Random(seed)
    ends = draw.sample(kills, min(most // 3, len(kills)))
    ends = [Case(one.k, one.call, f"kill {AGAIN}" if i % 2 else "kill") for i, one in enumerate(ends)]
    return [*draw.sample(others, min(most - len(ends), len(others))), *ends]


def broken(case: Case, whole: Undisturbed, root: Path, scratch: Path) -> Iterator[str]:
    """The laws that a case breaks, in words: none, as it should be."""
    reset(root, JOB)
    ended = run(JOB, root, scratch, case)
    found = [*after(ended, case, JOB, whole, root)]
    if ended.status and not case.fault.startswith("kill") and "on node" not in ended.stderr:
        found.append(f"it does not say where: {ended.said}")
    if ended.status and AGAIN in case.fault:
        found.append(f"a worker's death ends it: {ended.said}")
    if not list((scratch / "told").glob("names-*")):
        found.append("no worker was watched")
    found += again(JOBS[HERE_TOO], whole, root, scratch)
    yield from (f"{case.call} #{case.k} {case.fault}: {one}" for one in found)


def main() -> None:
    """Run some cases; one line of JSON at the end."""
    said = argparse.ArgumentParser()
    said.add_argument("root", type=Path)
    said.add_argument("--cases", type=int, default=30)
    said.add_argument("--seed", type=int, default=0)
    options = said.parse_args()
    warmed()
    root, scratch = options.root / "root", options.root / "scratch"
    root.mkdir(parents=True)
    scratch.mkdir()
    prepare(root)
    whole = undisturbed(JOBS[HERE_TOO], root, scratch)
    reset(root, JOB)
    ended = run(JOB, root, scratch)
    assert ended.status == 0 and tree(root / JOB.dest) == whole.new, ended.stderr
    calls, lost = called(scratch), list[str]()
    some = drawn(calls, options.cases, options.seed)
    for case in some:
        lost += broken(case, whole, root, scratch)
    print(  # noqa: T201
        json.dumps(
            {
                "job": "merge --executor ray",
                "calls": len(calls),
                "cases": len(some),
                "by call": Counter(case.call for case in some),
                "by fault": Counter(case.fault for case in some),
                "states": 0,
                "broken": lost,
            }
        )
    )


if __name__ == "__main__":
    main()
