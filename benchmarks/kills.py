"""SIGKILL at a random moment, again and again, and then the same command to its end.

    python benchmarks/kills.py DIR [--kills 24] [--pushes 30] [--ray 8]

Of each command: how often it was killed, how often it was done before, and what was lost: an input that is not as it
was, a destination that is neither old nor new, a rerun whose bytes are others. A push goes to a Hub on 127.0.0.1, and
is whole, or not to be seen.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "faults")]

from calls.jobs import JOBS, Job, prepare, reset  # noqa: E402
from calls.matrix import tree  # noqa: E402
from handmade import write_tensors  # noqa: E402
from hub.server import TOKEN, Hub  # noqa: E402

import surgery  # noqa: E402

KILLED = (
    "reshard", "split", "fuse", "merge", "merge --reversible", "unmerge", "dequantize", "extract", "cast", "run",
    "reshard --overwrite", "merge --reversible --overwrite",
)  # fmt: skip
REPO = "org/model"


def main() -> None:
    """Kill them all."""
    said = argparse.ArgumentParser(description=__doc__)
    said.add_argument("folder", type=Path)
    for name, usual in (("kills", 24), ("pushes", 30), ("ray", 8), ("seed", 0)):
        said.add_argument(f"--{name}", type=int, default=usual)
    options = said.parse_args()
    drawn = random.Random(options.seed)
    root = options.folder / "root"
    prepare(root, layers=4, hidden=256)
    print(f"{'command':32} killed  done before  lost")
    for name in KILLED if options.kills else ():
        _show(name, *_local(root, JOBS[name], options.kills, drawn))
    if options.ray:
        words = f"{JOBS['merge'].words} --executor ray"
        _show("merge --executor ray", *_local(root, Job(words), options.ray, drawn))
    if options.pushes:
        _show("push", *_pushed(options.folder, options.pushes, drawn))


def _show(name: str, killed: int, before: int, lost: Sequence[str]) -> None:
    print(f"{name:32} {killed:6}  {before:11}  {len(lost):4}", flush=True)
    for line in lost:
        print(f"  LOST {line}", flush=True)


def _local(root: Path, job: Job, kills: int, drawn: random.Random) -> tuple[int, int, list[str]]:
    run = _command(job.words.split(), root, {})
    seconds, old, new = _undisturbed(root, job, run)
    inputs, killed, before, lost = tree(root / "in"), 0, 0, list[str]()
    while killed < kills:
        reset(root, job)
        for _ in range(drawn.randint(1, 3)):  # a rerun is killed, too
            after = drawn.uniform(0.1, 1) * seconds
            if not _killed(run, after):
                before += 1
                break
            killed += 1
            if tree(root / "in") != inputs:
                lost.append(f"an input, killed after {after:.3f} s")
            if tree(root / job.dest) not in (old, new):
                lost.append(f"the destination, killed after {after:.3f} s")
        whole = tree(root / job.dest) == new and old is None  # killed while it tidied up: nothing is to be run again
        done = (_command(["clean", job.dest], root, {}) if whole else run)()
        said = done.communicate()[0]
        if done.returncode or tree(root / job.dest) != new:
            lost.append(f"the {'cleaning' if whole else 'rerun'}: {said[-400:]}")
        if left := [path.name for path in (root / job.dest).parent.iterdir() if path.name != Path(job.dest).name]:
            lost.append(f"{left} is left")
    return killed, before, lost


def _undisturbed(root: Path, job: Job, run: Callable[[], Any]) -> tuple[float, Any, Any]:
    """How long it takes, and what is at the destination before and after it."""
    reset(root, job)
    old, began = tree(root / job.dest), time.monotonic()
    done = run()
    said = done.communicate()[0]
    if done.returncode:
        raise SystemExit(said)
    return time.monotonic() - began, old, tree(root / job.dest)


def _pushed(folder: Path, kills: int, drawn: random.Random) -> tuple[int, int, list[str]]:
    model, lost, killed, before = folder / "pushed", list[str](), 0, 0
    bulk = folder / "to-push.safetensors"  # of random bits: the server of the tests unpacks nothing
    write_tensors(bulk, {f"layers.{i}.weight": ("BF16", (4_000_000,)) for i in range(6)})
    surgery.write(surgery.open_checkpoint(bulk), model, "9MB")
    whole = {name for name, content in (tree(model) or {}).items() if content != b"folder"}
    while killed < kills:
        with Hub() as hub:
            hub.create(REPO)
            home = folder / "home"
            shutil.rmtree(home, ignore_errors=True)
            told = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(home)}
            run = _command(["push", str(model), REPO], folder, told | {"HF_HUB_DISABLE_XET": str(killed % 2)})
            for _ in range(drawn.randint(1, 3)):
                if not _killed(run, drawn.uniform(0.5, 5)):
                    before += 1
                    break
                killed += 1
                if (there := {*hub.files(REPO)} - {".gitattributes"}) and not whole <= there:
                    lost.append(f"half of a push is to be seen: {sorted(there)}")
            done = run()
            said = done.communicate()[0]
            shards = {name: sha for name, sha in hub.hashes(REPO).items() if name.endswith(".safetensors")}
            if done.returncode or not whole <= {*hub.files(REPO)} or shards != _hashes(model):
                lost.append(f"the rerun: {said[-400:]}")
    return killed, before, lost


def _hashes(folder: Path) -> dict[str, str]:
    return {name: content.hex() for name, content in (tree(folder) or {}).items() if name.endswith(".safetensors")}


def _command(words: Sequence[str], folder: Path, more: Mapping[str, str]) -> Callable[[], Any]:
    """What starts the command in a process group of its own."""
    held = {name: text for name, text in os.environ.items() if not name.startswith("HF_")}
    told = {**held, "TMPDIR": str(folder / "tmp"), **more}
    (folder / "tmp").mkdir(exist_ok=True)

    def start() -> Any:
        return subprocess.Popen(
            [sys.executable, "-m", "surgery_cli", *words],
            cwd=folder, env=told, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    return start


def _killed(run: Callable[[], Any], after: float) -> bool:
    """Whether it was killed, `after` so many seconds, and not done before."""
    process = run()
    try:
        process.communicate(timeout=after)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return bool(process.returncode == -signal.SIGKILL)


if __name__ == "__main__":
    main()
