"""A recipe of six steps against the six commands one after another: time, processors, peak memory, bytes read; and
whether they write the same.

    python benchmarks/recipes.py WORKDIR [--runs 1]

WORKDIR needs 14 GB of room; what is generated stays there for the next time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path

from measure import measured
from run import ALL, SURGERY, made
from torch_files import read_so_far

STEPS: list[tuple[str, dict[str, object]]] = [
    ("split-qkv", {}),
    ("merge", {"adapters": "adapter"}),
    ("keep", {"pattern": r"(?!model\.layers\.1\.).*"}),  # `layers` asks the class, whose import takes 430 MB
    ("cast", {"dtype": "float16", "allow-overflow": True}),
    ("rename", {"map": ["^lm_head=output"]}),
    ("drop", {"pattern": "model.norm.*"}),
]


def words(step: str, said: dict[str, object], base: Path, out: Path, work: Path) -> list[str]:
    """A step as a command."""
    options = []
    for key, value in said.items():
        if key == "adapters":
            continue
        options += (
            [f"--{key}"] if value is True else [f"--{key}", *(value if isinstance(value, list) else [str(value)])]
        )
    given = [str(made(work, "adapter", "16", ALL))] if "adapters" in said else []
    return [*SURGERY, step, str(base), *given, *options, "-o", str(out), "--quiet"]


def hashes(folder: Path) -> dict[str, str]:
    """What was written, but for what surgery says of it."""
    files = [path for path in folder.iterdir() if path.is_file()]
    return {path.name: hashlib.file_digest(path.open("rb"), "sha256").hexdigest() for path in files}


def main() -> None:
    """Measure both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--runs", type=int, default=1)
    arguments = parser.parse_args()
    work: Path = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    base, adapter = made(work, "phi3"), made(work, "adapter", "16", ALL)
    recipe = work / "recipe.json"
    steps = [{name: said | ({"adapters": str(adapter)} if "adapters" in said else {})} for name, said in STEPS]
    recipe.write_text(json.dumps({"source": str(base), "steps": steps}))
    size = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    print("| | seconds | processors | peak | read / input |\n|---|---|---|---|---|")
    for _ in range(arguments.runs):
        told("recipe", [[*SURGERY, "run", str(recipe), "-o", str(work / "at-once"), "--quiet"]], size)
        chain, at = [], base
        for number, (name, said) in enumerate(STEPS):
            chain.append(words(name, said, at, work / f"step-{number}", work))
            at = work / f"step-{number}"
        told("six commands", chain, size)
        print("equal by hash:", hashes(work / "at-once") == hashes(at))
        shutil.rmtree(work / "again", ignore_errors=True)
        measured([*SURGERY, "run", str(work / "at-once"), "-o", str(work / "again"), "--quiet"], cwd=work)
        print("made again from its manifest, equal by hash:", hashes(work / "again") == hashes(work / "at-once"))
        for path in (*work.glob("step-*"), work / "at-once", work / "again"):
            shutil.rmtree(path)


def told(name: str, commands: list[list[str]], size: int) -> None:
    """Run the commands, and print a row."""
    before, seconds, cpu, peak = read_so_far(), 0.0, 0.0, 0
    for command in commands:
        run = measured(command)
        seconds, cpu, peak = seconds + run.seconds, cpu + run.cpu, max(peak, run.peak)
    read = (read_so_far() - before) / size
    print(f"| {name} | {seconds:.1f} | {cpu:.1f} | {peak / 1e6:.0f} MB | {read:.2f} |", flush=True)


if __name__ == "__main__":
    main()
