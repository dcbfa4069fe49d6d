"""Every row through every command: what each said and cost, as a table of Markdown, and the totals.

    cd tests && python -m hostile [DIR] [--rows REGEX]

DIR is where the rows are written, a new folder; without it, a temporary one.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from commanded import warmed

from .judging import Met, meet, outside, state, wrong
from .rows import empty, practise, prepare
from .table import KINDS, ROWS


def main() -> None:
    said = argparse.ArgumentParser()
    said.add_argument("folder", type=Path, nargs="?")
    said.add_argument("--rows", default="")
    options = said.parse_args()
    root = options.folder or Path(tempfile.mkdtemp(prefix="hostile-"))
    root.mkdir(exist_ok=True)
    warmed()
    practise(place := prepare(root))
    begun, found = time.monotonic(), list[tuple[str, Met, list[str]]]()
    names = [name for name in ROWS if re.search(options.rows, name)]
    tell("| Row | Command | Exit | Said | CPU ms | MB |\n|---|---|---|---|---|---|")
    for name in names:
        for met, faults in met_by(name, place):
            found.append((name, met, faults))
            cost = f"{met.seconds * 1000:.0f} | {met.memory >> 20}"
            tell(f"| {name} | {met.words} | {met.status} | {line_of(met)} | {cost} |")
            for fault in faults:
                tell(f"WRONG {name}: {met.words}: {fault}")
    if options.folder is None:
        shutil.rmtree(root)
    (slow, slowest, _), (large, largest, _) = (
        max(found, key=key) for key in (lambda one: one[1].seconds, lambda one: one[1].memory)
    )
    ends = dict(Counter(met.status for _, met, _ in found))
    tell(f"\n{len(names)} rows of {len(KINDS)} kinds, {len(found)} commands, by exit status: {ends}")
    tell(f"slowest: {slowest.seconds:.2f} s of the processor, {slow}, {slowest.words}")
    tell(f"largest: {largest.memory >> 20} MB, {large}, {largest.words}")
    tell(f"wrong: {sum(bool(faults) for _, _, faults in found)}; {time.monotonic() - begun:.0f} s")


def tell(text: str) -> None:
    """A line of the record."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def line_of(met: Met) -> str:
    """The first line of what was said."""
    said = (met.error or met.stdout.decode("utf-8", "replace")).strip().splitlines() or [""]
    return said[0][:120].replace("|", "\\|")


def met_by(name: str, place: Path) -> Iterator[tuple[Met, list[str]]]:
    """How each command met the row, and what was wrong with it."""
    row, watch = ROWS[name], outside(place)
    try:
        row.make(place)
        before = state(place)
        for words in dict.fromkeys((*row.refuse, *row.read, *row.around)):
            met = meet(words, place, watch)
            yield met, list(wrong(row, met, place, before))
            empty(place, "w")
    finally:
        watch.close()
        empty(place)


if __name__ == "__main__":
    main()
