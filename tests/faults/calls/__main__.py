"""Run cases of the matrix, in a process that has the shim preloaded: `python -m calls ROOT [JOB…]`.

One line of JSON for each command: how many cases of which call and which fault there were, how many states after a
crash, and what broke a law.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from pathlib import Path

from commanded import warmed

from . import jobs, matrix


def main() -> None:
    said = argparse.ArgumentParser()
    said.add_argument("root", type=Path)
    said.add_argument("job", nargs="*")
    said.add_argument("--each", type=int, default=1, help="faults for each call")
    said.add_argument("--looks", type=int, default=40, help="of calls that only look, one in so many")
    said.add_argument("--draws", type=int, default=2, help="states drawn after each call, besides the two extremes")
    said.add_argument("--most", type=int, default=0, help="so many cases, and so many states, drawn of all")
    said.add_argument("--seed", type=int, default=0)
    options = said.parse_args()
    warmed()
    root, scratch = options.root / "root", options.root / "scratch"
    root.mkdir()
    scratch.mkdir()
    jobs.prepare(root)
    for name in options.job or jobs.JOBS:
        sys.stdout.write(f"{json.dumps(_told(name, root, scratch, options))}\n")
        sys.stdout.flush()


def _told(name: str, root: Path, scratch: Path, options: argparse.Namespace) -> dict[str, object]:
    job = jobs.JOBS[name]
    whole = matrix.undisturbed(job, root, scratch)
    cases = list(matrix.cases(whole.calls, each=options.each, looks=options.looks, seed=options.seed))
    if options.most:
        cases = random.Random(options.seed).sample(cases, min(options.most, len(cases)))
    broken = [line for case in cases for line in matrix.broken(case, job, whole, root, scratch)]
    broken += matrix.out_of_order(job, whole, root, scratch)
    every = max(1, 60 // options.most) if options.most else 1
    crashes = list(matrix.crashed(job, whole, root, scratch, each=options.draws, every=every))
    return {
        "job": name,
        "calls": len(whole.calls),
        "cases": len(cases),
        "by call": Counter(case.call for case in cases),
        "by fault": Counter(case.fault for case in cases),
        "states": len(crashes),
        "broken": broken + [line for found in crashes for line in found],
    }


if __name__ == "__main__":
    main()
