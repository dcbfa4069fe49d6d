"""Reading from a Hub on 127.0.0.1: bytes that are transferred, seconds, peak memory.

    python benchmarks/remote.py WORKDIR [CASE...]

    headers     1.3 TB in 163 sparse shards: what reads headers alone, from the Hub and from the disk
    surgery     a merge, a split, a reshard and a drop of 2.2 GB, from the Hub and from the disk

The server is the one of the tests: Python, in this process, on the same cores. It sends what a range asks for, from
where it lies; large files are on its second origin. Every run begins with an empty cache.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from measure import Run, measured
from run import ALL, SURGERY, made

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from hub.conftest import environment
from hub.server import Hub

from surgery.files.safetensors import read_header


def show(what: str, run: Run, hub: Hub | None) -> None:
    """A line: from the Hub with what was transferred, from the disk without."""
    sent = ""
    if hub:
        files = [seen for seen in hub.log if "/api/" not in seen.path]
        sent = f"{sum(seen.sent for seen in files) / 1e6:.1f} MB in {len(hub.log)} requests"
    print(
        f"| {what} | {'Hub' if hub else 'disk'} | {run.seconds:.2f} s | {run.peak / 1e6:.0f} MB | {sent} |", flush=True
    )


def both(hub: Hub, work: Path, words: list[str], places: dict[str, Path]) -> None:
    """Run a command on folders, then on the same repositories; `{name}` in its words is the place of a name."""
    out = work / "out"
    for remote in (False, True):
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(work / "home", ignore_errors=True)
        hub.log.clear()
        named = {name: f"hf://org/{name}" if remote else str(path) for name, path in places.items()}
        run = measured(
            [*SURGERY, *(word.format(**named, out=out) for word in words)], env=environment(hub, work / "home")
        )
        show(words[0], run, hub if remote else None)
    shutil.rmtree(out, ignore_errors=True)


def headers(hub: Hub, work: Path) -> None:
    """The commands that read headers alone."""
    base = made(work, "huge")
    hub.put_folder("org/base", base, hashed=False)
    shards = sorted(base.glob("*.safetensors"))
    held = sum(read_header(str(p))[1].data for p in shards)
    small = sum(p.stat().st_size for p in base.glob("*.json"))
    total = sum(p.stat().st_size for p in shards)
    print(
        f"{len(shards)} shards of {total / 1e12:.2f} TB; headers {held / 1e6:.1f} MB, small files {small / 1e6:.1f} MB"
    )
    for words in (
        ["inspect", "{base}"],
        ["reshard", "{base}", "--max-shard-size", "5GB", "--dry-run", "--quiet"],
        ["split-qkv", "{base}", "--dry-run", "--quiet"],
        ["inject", "{base}", "--target-modules", "o_proj", "-o", "{out}", "--quiet"],
        ["verify", "{base}", "--no-class"],
    ):
        both(hub, work, words, {"base": base})


def surgery(hub: Hub, work: Path) -> None:
    """The commands that read tensors."""
    places = {
        "llama": made(work, "llama", "500MB"),
        "phi3": made(work, "phi3", "500MB"),
        "adapter": made(work, "adapter", "16", ALL),
    }
    for name, folder in places.items():
        hub.put_folder(f"org/{name}", folder)
    for words in (
        ["merge", "{llama}", "{adapter}", "-o", "{out}", "--quiet"],
        ["split", "{phi3}", "-o", "{out}", "--quiet"],
        ["reshard", "{llama}", "--max-shard-size", "300MB", "-o", "{out}", "--quiet"],
        ["drop", "{llama}", "--pattern", ".*(?<!norm.weight)", "-o", "{out}", "--quiet"],
    ):
        both(hub, work, words, places)


def main() -> None:
    """Run the cases that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("cases", nargs="*")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    known = {"headers": headers, "surgery": surgery}
    for case in arguments.cases or known:
        with Hub() as hub:
            hub.redirect = True
            known[case](hub, arguments.work)


if __name__ == "__main__":
    main()
