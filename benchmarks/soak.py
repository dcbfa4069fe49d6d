"""Random commands on random small checkpoints, on a small disk, within an address space, with faults: for a while.

    python benchmarks/soak.py DIR [--minutes 60] [--seed 0] [--only ROUND]

What each command makes is judged by torch and the safetensors library, then it runs again with calls that fail, are cut
short or are the last, on a full disk, and without memory; then all of a chain in one pass; then all of it in one
process, through Python, whose descriptors, threads and memory are counted. The record is DIR/soak.json. Exit status 1
where a law is broken: `--seed S --only ROUND` does that one round again. The disk is a tmpfs, which needs root.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "faults")]

from calls import built, environment  # noqa: E402
from disks import mounted  # noqa: E402
from tiny_models import MODELS, save  # noqa: E402

SIZE = "24m"  # of the disk: some outputs more than a round has


def main() -> None:
    """Soak, and show the record."""
    said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said.add_argument("folder", type=Path)
    said.add_argument("--minutes", type=float, default=60)
    said.add_argument("--seed", type=int, default=0)
    said.add_argument("--only", type=int, metavar="ROUND")
    options = said.parse_args()
    folder: Path = options.folder
    (folder / "scratch").mkdir(parents=True)
    shim = built(folder)
    if shim is None:
        raise SystemExit("a C compiler is needed")
    for family in MODELS:
        save(family, folder / "models" / family)
    with mounted(folder / "disk", SIZE) as small:
        (folder / "disk/root").mkdir()
        words = [folder / "disk/root", folder / "scratch", folder / "models", f"--minutes={options.minutes}"]
        words += [f"--seed={options.seed}", *(["--small"] if small else [])]
        words += [] if options.only is None else [f"--only={options.only}"]
        command = [sys.executable, "-m", "soaking", *map(str, words)]
        done = subprocess.run(command, env=environment(shim), stdout=subprocess.PIPE, text=True, check=False)
    if done.stdout:
        (folder / "soak.json").write_text(done.stdout)
        show(json.loads(done.stdout), options.seed)
    sys.exit(done.returncode)


def show(record: Mapping[str, Any], seed: int) -> None:
    """The record, a line for each thing."""
    for key, value in record.items():
        if isinstance(value, dict):
            value = f"{sum(value.values())}: {', '.join(f'{name} {count}' for name, count in value.items())}"
        print(f"{key:28} {len(value) if key == 'wrong' else value}")
    for line in record["wrong"]:
        print(f"WRONG {line}")
    if record["wrong"]:
        print(f"a round alone: --seed {seed} --only ROUND")


if __name__ == "__main__":
    main()
