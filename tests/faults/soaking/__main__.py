"""Soak, in a process that has the shim preloaded: `python -m soaking ROOT SCRATCH MODELS`. The last line is the
record, as JSON; benchmarks/soak.py shows it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from commanded import warmed

from . import sabotage
from .lasting import grown, import_classes, slope
from .rounds import Made, Place, Round, Told

WARM = 10  # rounds until what is remembered for good is


def main() -> None:
    said = argparse.ArgumentParser()
    for name in ("root", "scratch", "models"):
        said.add_argument(name, type=Path)
    said.add_argument("--minutes", type=float, default=1)
    said.add_argument("--rounds", type=int, default=sys.maxsize)
    said.add_argument("--warm", type=int, default=WARM)
    said.add_argument("--seed", type=int, default=0)
    said.add_argument("--only", type=int)
    said.add_argument("--small", action="store_true", help="the root is on a small disk")
    said.add_argument("--flip", action="store_true", help="the last byte of each copy is wrong: to be found")
    options = said.parse_args()
    warmed()
    import_classes(options.models)
    place = Place(options.root, options.scratch, options.models, options.small)
    told, readings, wrong = Told(), list[dict[str, Any]](), list[str]()
    began, number = time.monotonic(), 0
    with _lasting(place) as lasting:
        if options.flip:
            sabotage.flip()
        numbers = range(options.rounds) if options.only is None else [options.only]
        for number in numbers:
            if time.monotonic() - began > 60 * options.minutes:
                break
            one = Round(number, options.seed, place, told)
            made = one.play()
            found = one.wrong
            if not found:
                readings.append(_again(lasting, made, f"{options.seed}:{number}"))
                found = [f"round {number}: {line}" for line in readings[-1]["wrong"]]
            wrong += found
            for line in found:
                _say(f"WRONG {line}")
            now = f", {readings[-1]['fds']} descriptors, {readings[-1]['rss'] >> 20} MiB" if readings else ""
            _say(f"{time.monotonic() - began:.0f} s, round {number}, {told.runs} runs, {len(wrong)} wrong{now}")
    leaks = list(grown(readings, options.warm))
    record = _record(told, readings, options.warm, wrong + leaks, time.monotonic() - began)
    sys.stdout.write(f"{json.dumps(record)}\n")
    sys.exit(bool(wrong or leaks))


def _lasting(place: Place) -> subprocess.Popen[str]:
    """The process that lasts."""
    command = [sys.executable, "-m", "soaking.lasting", str(place.root), str(place.models)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _again(lasting: subprocess.Popen[str], made: Sequence[Made], seed: str) -> Any:
    assert lasting.stdin and lasting.stdout
    lasting.stdin.write(f"{json.dumps({'seed': seed, 'commands': [one.told() for one in made]})}\n")
    lasting.stdin.flush()
    line = lasting.stdout.readline()
    if not line:
        raise SystemExit(f"the lasting process ended with {lasting.wait()}")
    return json.loads(line)


def _record(told: Told, readings: Sequence[Any], warm: int, wrong: Sequence[str], seconds: float) -> dict[str, Any]:
    later = readings[warm:] or readings[-1:]
    ends = [later[0], later[-1]] if later else []
    return {
        "seconds": round(seconds),
        "rounds": len(readings),
        "commands": dict(told.commands.most_common()),
        "runs": told.runs,
        "faults": dict(told.faults.most_common()),
        "disturbed runs ended": dict(told.ended.most_common()),
        "in one process, broken off": sum(one["broken off"] for one in readings),
        **{key: [one[key] for one in ends] for key in ("fds", "threads", "rss")},
        "bytes a round": round(slope([one["rss"] for one in later])),
        "wrong": list(wrong),
    }


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
