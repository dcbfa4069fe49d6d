"""One process that does a soak's commands again, through Python, for as long as the soak lasts: some of its runs are
broken off, and what it holds on to is counted. `python -m soaking.lasting ROOT` reads lines of JSON, and answers each.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import importlib
import json
import os
import random
import resource
import shutil
import statistics
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calls import SHIM, SHORT
from calls.matrix import ERRORS, Tree, tree
from commanded import warmed

MOST = 16_000.0  # bytes that a round may leave in memory, on the average of many, without being a leak
TIMES = 3  # that each command is done, so that what it leaves counts
OWN = (".surgery/manifest.json",)  # what says by which paths it was made


class Stop(Exception):
    """What a step of the executor raises."""


@dataclass(frozen=True)
class Held:
    """What a process holds: descriptors, by what they lead to; threads; and bytes in memory."""

    descriptors: Mapping[str, int]
    threads: int
    nbytes: int


def held() -> Held:
    """What this process holds, when all that is no longer used is gone."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    found = Counter[str]()
    for name in os.listdir("/proc/self/fd"):
        try:
            found[os.readlink(f"/proc/self/fd/{name}")] += 1
        except FileNotFoundError:  # that of the listing itself
            continue
    threads = max(len(os.listdir("/proc/self/task")), threading.active_count())
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Held(found, threads, pages * resource.getpagesize())


def slope(values: Sequence[int]) -> float:
    """By how much values grow from one to the next, the median over all pairs: what happens once does not move it."""
    pairs = [(b - a) / (j - i) for i, a in enumerate(values) for j, b in enumerate(values[i + 1 :], i + 1)]
    return statistics.median(pairs) if pairs else 0.0


def grown(readings: Sequence[Mapping[str, Any]], warm: int) -> Iterator[str]:
    """What has leaked, in words, over the readings after the first `warm`."""
    later = readings[warm:]
    if len(later) < 2:
        return
    first, last = later[0], later[-1]
    if last["fds"] > first["fds"]:
        yield f"{last['fds'] - first['fds']} descriptors are left open: {last['open']}"
    if last["threads"] > first["threads"]:
        yield f"{last['threads'] - first['threads']} threads are left: {last['running']}"
    by = slope([one["rss"] for one in later])
    if len(later) >= 40 and by > MOST:
        yield f"memory grows by {by:,.0f} bytes a round"


def answered(root: Path, said: Mapping[str, Any]) -> dict[str, Any]:
    """Do the commands of a round, and tell what was wrong, and what is held."""
    draw, wrong, broken_off = random.Random(said["seed"]), list[str](), 0
    shutil.rmtree(root / "w")
    (root / "w").mkdir()
    for one in said["commands"]:
        try:
            broken_off += _done(draw, root, one, wrong)
        except Exception:
            wrong.append(f"{one['step']} from Python, {one['path']}: {traceback.format_exc(limit=-4)}")
    now = held()
    return {
        "wrong": wrong,
        "broken off": broken_off,
        "fds": sum(now.descriptors.values()),
        "open": sorted(now.descriptors),
        "threads": now.threads,
        "running": [one.name for one in threading.enumerate()],
        "rss": now.nbytes,
    }


def _done(draw: random.Random, root: Path, one: Mapping[str, Any], wrong: list[str]) -> int:
    """Do a command, after some runs of it that are broken off: how many were. Whatever is `wrong` is added."""
    wanted, broken_off = _without(tree(root / one["path"])), 0
    for _ in range(draw.choice((0, 1, 1, 2))):
        broken_off += _broken_off(draw, root, one)
        if (found := _without(tree(root / "w/api"))) not in (None, wanted):
            wrong.append(f"{one['step']}: broken off, the destination is neither absent nor whole: {found}")
        shutil.rmtree(root / "w/api", ignore_errors=True)
    for _ in range(TIMES):
        shutil.rmtree(root / "w/api", ignore_errors=True)
        _written(root, one)
        if _without(tree(root / "w/api")) != wanted:
            wrong.append(f"{one['step']} from Python, {one['path']}: other bytes")
    left = [path.name for path in (root / "w").iterdir() if path.name != "api"]
    if left:
        wrong.append(f"{one['step']} from Python: {left} is left")
    _looked_at(draw, root / "w/api")
    shutil.rmtree(root / "w/api")
    return broken_off


def _without(found: Tree | None) -> dict[str, bytes] | None:
    return None if found is None else {name: held for name, held in found.items() if name not in OWN}


def _written(root: Path, one: Mapping[str, Any], on_step: Callable[[Any], None] | None = None) -> None:
    """A command, as Python says it."""
    import surgery
    from surgery.recipes.saying import Opening, Running, apply
    from surgery.recipes.table import STEPS

    sources = [surgery.open_any(path) for path in one["sources"]]
    flowing: Any = sources if one["step"] in ("blend", "combine") else sources[0]
    running = Running(one["workers"], _bytes(one["memory"]))
    made = apply(STEPS[one["step"]].function, flowing, one["said"], Opening(running=running))
    layout = {key.replace("-", "_"): value for key, value in one["layout"].items()}
    link = {"link": True} if one["said"].get("link") else {}
    surgery.write(made, root / "w/api", **layout, **link, workers=one["workers"], memory=one["memory"], on_step=on_step)


def _bytes(text: str) -> int:
    """A size, such as 8MB."""
    return int(text.removesuffix("MB")) * 1_000_000


def _broken_off(draw: random.Random, root: Path, one: Mapping[str, Any]) -> bool:
    """Whether a run of the command failed, by a step that raises or a call that fails."""
    import surgery

    if draw.random() < 0.4:
        at, count = draw.randint(1, 40), 0

        def stop(_: object) -> None:
            nonlocal count
            count += 1
            if count == at:
                raise Stop

        return _fails(lambda: _written(root, one, stop), (Stop,))
    shim = ctypes.CDLL(os.environ[SHIM])
    what = SHORT if draw.random() < 0.2 else getattr(errno, draw.choice(ERRORS))
    shim.calls_watch(os.fsencode(root), ctypes.c_long(draw.randint(1, one["calls"])), what, -1, -1)
    try:
        return _fails(lambda: _written(root, one), (surgery.SurgeryError, OSError, MemoryError))
    finally:
        shim.calls_watch(os.fsencode(root), ctypes.c_long(0), 0, -1, -1)


def _fails(action: Callable[[], None], kinds: tuple[type[Exception], ...]) -> bool:
    try:
        action()
    except kinds:
        return True
    return False


def _looked_at(draw: random.Random, path: Path) -> None:
    """What only looks at an output."""
    import surgery

    opened = surgery.open_any(path)
    match draw.choice(("inspect", "diff", "load", "")):
        case "inspect":
            surgery.inspect(path)
        case "diff":
            surgery.diff(path, path)
        case "load" if isinstance(opened, surgery.Checkpoint):
            opened.load(next(iter(opened.tensors)))


def import_classes(models: Path) -> None:
    """The classes of the models are imported, which `layers` asks: 150 MB that are no leak."""
    for config in models.glob("*/config.json"):
        kind = json.loads(config.read_text())["model_type"]
        importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")


def main() -> None:
    """Answer lines until there are no more."""
    root = Path(sys.argv[1])
    os.chdir(root)
    warmed()
    import_classes(Path(sys.argv[2]))
    for line in sys.stdin:
        sys.stdout.write(f"{json.dumps(answered(root, json.loads(line)))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
