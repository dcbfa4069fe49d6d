"""Every parser of foreign bytes under atheris, which looks for inputs that reach lines no other one did.

    python benchmarks/fuzz.py [NAME …] [--runs 1000000] [--seconds 600] [--keep DIR]

Each input is read, or refused by an error of surgery's that can be shown; none takes seconds, or memory by what it
claims (libFuzzer ends a run above 2 GB, and one allocation above 512 MB). A header of safetensors is given to the
library as well: what that refuses we refuse, and what we refuse besides is in the table of `tests/fuzz`. What is
answered otherwise is kept once for each place where it happened; `--keep` keeps the inputs that reached new lines.
Parsers, seeds and changes: `tests/fuzz`. pip install 'checkpoint-surgery[fuzz]'.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent.parent / "tests"
SLOW = 6.0  # seconds of the processor, with every line counted
INSTRUMENTED = (
    "surgery.files",
    "surgery.patterns",
    "surgery.planning",
    "surgery.recipes",
    "surgery.quantization",
    "surgery.hub.card",
)


def fuzz(name: str, folder: Path, runs: int, seconds: int, seed: int) -> None:
    """One parser, in this process; never returns. What was wrong is written to `folder`, with the count of reads."""
    import atheris

    with atheris.instrument_imports(include=[*INSTRUMENTED]):
        sys.path.insert(0, str(TESTS))
        from fuzz.harnesses import HARNESSES, corpus
        from fuzz.judging import Wrong, judged
        from fuzz.mutations import mutated
    harness, seen, read, known = HARNESSES[name], set[str](), 0, folder / "known"
    known.mkdir()
    for raw in (*harness.seeds(), *corpus(name)):
        (known / hashlib.sha256(raw).hexdigest()[:16]).write_bytes(raw)

    def one(raw: bytes) -> None:
        nonlocal read
        try:
            read += judged(harness, raw, SLOW)
        except Wrong as error:
            if error.kind not in seen:
                seen.add(error.kind)
                (folder / f"wrong-{len(seen)}").write_bytes(raw)
                (folder / f"wrong-{len(seen)}.txt").write_text(str(error), errors="backslashreplace")

    def change(raw: bytes, most: int, number: int) -> Any:
        draw = random.Random(number)
        made = mutated(raw, harness.words, draw) if draw.random() < 0.6 else atheris.Mutate(raw, most)
        return made[:most]

    options = [f"-runs={runs}", f"-max_total_time={seconds}", "-max_len=20000", "-rss_limit_mb=2048", f"-seed={seed}"]
    options += [
        "-malloc_limit_mb=512",
        "-timeout=60",
        "-report_slow_units=1000",
        "-print_final_stats=1",
        f"-artifact_prefix={folder}/",
    ]
    atheris.Setup([sys.argv[0], *options, str(known)], one, custom_mutator=change)
    atheris.Fuzz()


@contextmanager
def run(name: str, runs: int, seconds: int, seed: int, keep: Path | None) -> Iterator[dict[str, Any]]:
    """One parser in a process of its own: what libFuzzer counted, and what was wrong."""
    shared = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="surgery-fuzz-", dir=shared) as work:
        folder, begun = Path(work), time.monotonic()
        words = [sys.executable, __file__, "--one", work, name, "--runs", str(runs), "--seconds", str(seconds)]
        environment = {**os.environ, "TMPDIR": work, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*words, "--seed", str(seed)], capture_output=True, env=environment, check=False)
        told = done.stderr.decode(errors="replace")
        wrong = [path.read_text() for path in sorted(folder.glob("wrong-*.txt"))]
        if crashed := [path for path in folder.iterdir() if re.match("crash|oom|timeout|slow", path.name)]:
            wrong += [f"{crashed[0].name.partition('-')[0]}\n{told[-1500:]}"]
        if done.returncode and not crashed:
            wrong += [f"status {done.returncode}\n{told[-1500:]}"]
        known = [*folder.glob("known/*")]
        if keep is not None:
            for path in (*known, *folder.glob("wrong-*"), *crashed):
                (keep / name).mkdir(parents=True, exist_ok=True)
                (keep / name / path.name).write_bytes(path.read_bytes())
        yield {
            "parser": name,
            "inputs": _stat(told, "number_of_executed_units"),
            "seconds": round(time.monotonic() - begun),
            "coverage": int((re.findall(r"cov: (\d+)", told) or ["0"])[-1]),
            "features": int((re.findall(r"ft: (\d+)", told) or ["0"])[-1]),
            "kept": len(known),
            "slowest": _stat(told, "slowest_unit_time_sec"),
            "peak": _stat(told, "peak_rss_mb"),
            "wrong": wrong,
        }


def _stat(told: str, name: str) -> int:
    found = re.search(rf"stat::{name}:\s*(\d+)", told)
    return int(found[1]) if found else 0


def main() -> None:
    """Print a row for each parser, and what was wrong; end with 1 where anything was."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", type=Path)
    said = parser.parse_args()
    if said.one:
        return fuzz(said.names[0], said.one, said.runs, said.seconds, said.seed)
    sys.path.insert(0, str(TESTS))
    from fuzz.harnesses import HARNESSES

    found = []
    print("| parser | inputs | seconds | lines and branches | features | kept | slowest, s | peak, MB | wrong |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name in said.names or HARNESSES:
        with run(name, said.runs, said.seconds, said.seed, said.keep) as row:
            found.append(row)
            print("|", " | ".join(str(len(v) if isinstance(v, list) else v) for v in row.values()), "|", flush=True)
    if said.json:
        said.json.write_text(json.dumps(found, indent=1))
    print(f"{sum(row['inputs'] for row in found)} inputs")
    for row in found:
        for one in row["wrong"]:
            print(f"\n{row['parser']}: {one}")
    sys.exit(any(row["wrong"] for row in found))


if __name__ == "__main__":
    main()
