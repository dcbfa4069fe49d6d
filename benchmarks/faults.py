"""Command × call × fault, and every prefix of a command's calls as a loss of power may leave it; calls of workers on a
Ray cluster; requests and calls of pushes.

    python benchmarks/faults.py DIR [--job NAME …] [--each N] [--looks N] [--draws N] [--processes N]
    python benchmarks/faults.py DIR --ray N        N cases of a merge on a cluster, alone
    python benchmarks/faults.py DIR --pushes N     N requests and N calls, by LFS and by Xet; 0: all

DIR is on a file system with little to wait for, such as /dev/shm. Writes DIR/faults.json, and a table.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "faults")]

from calls import built, environment  # noqa: E402
from calls.jobs import JOBS  # noqa: E402


def main() -> None:
    """Run them all."""
    said = argparse.ArgumentParser(description=__doc__)
    said.add_argument("folder", type=Path)
    for name, usual in (("each", 1), ("looks", 40), ("draws", 2), ("processes", 2)):
        said.add_argument(f"--{name}", type=int, default=usual)
    said.add_argument("--job", action="append", choices=JOBS, help="these alone")
    said.add_argument("--ray", type=int, help="cases of workers alone")
    said.add_argument("--pushes", type=int, help="cases of pushes alone")
    options = said.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    shim = built(options.folder)
    if shim is None:
        raise SystemExit("a C compiler is needed")
    if options.ray is not None:
        found = [_told(["calls.nodes", str(options.folder / "ray"), f"--cases={options.ray}"], shim)]
    elif options.pushes is not None:
        found = list(_pushed(options.folder / "pushes", shim, options))
    else:
        jobs = options.job or list(JOBS)
        with ThreadPoolExecutor(options.processes) as pool:
            found = list(pool.map(partial(_run, options, shim), map([*JOBS].index, jobs), jobs))
    (options.folder / "faults.json").write_text(json.dumps(found, indent=1))
    for one in found:
        print(
            f"{one['job']:32} {one['calls']:5} calls {one['cases']:5} cases {one['states']:4} states"
            f" {len(one['broken']):3} broken"
        )
    faults = sum((Counter(one["by fault"]) for one in found), Counter[str]())
    print(f"{sum(one['cases'] for one in found)} cases: {dict(faults)}")
    print(f"{sum(one['states'] for one in found)} states; {time.monotonic() - began:.0f} s")
    for one in found:
        for line in one["broken"]:
            print(f"BROKEN {one['job']}: {line}")


def _run(options: argparse.Namespace, shim: Path, number: int, job: str) -> Any:
    root = options.folder / f"job{number}"
    root.mkdir()
    words = [f"--{name}={getattr(options, name)}" for name in ("each", "looks", "draws")]
    return _told(["calls", *words, f"--seed={number}", str(root), job], shim)


def _told(words: Sequence[str], shim: Path) -> Any:
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, env=environment(shim), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def _pushed(root: Path, shim: Path, options: argparse.Namespace) -> Iterator[Any]:
    """By requests and by calls, by LFS and by Xet."""
    from calls import pushes

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # each try that failed
    root.mkdir()
    pushes.prepare(root)
    for xet in (False, True):
        ways: dict[str, Iterator[tuple[str, list[str]]]] = {
            "requests": pushes.by_request(root, xet=xet, most=options.pushes),
            "calls": pushes.by_call(root, shim, xet=xet, each=options.each, looks=options.looks, most=options.pushes),
        }
        for way, cases in ways.items():
            told = list(cases)
            yield {
                "job": f"push by {'Xet' if xet else 'LFS'}: {way}",
                "calls": 0,
                "cases": len(told),
                "by fault": Counter(kind for kind, _ in told),
                "states": 0,
                "broken": [line for _, lines in told for line in lines],
            }


if __name__ == "__main__":
    main()
