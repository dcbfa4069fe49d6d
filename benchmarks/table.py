"""The table of figures, by one command: what surgery takes, and what others take for the same, on 2.2 GB.

    python benchmarks/table.py WORKDIR [CASE...] [--runs 3] [--mergekit …/mergekit-yaml] [--no-peers]

Cases: reshard, split, merge-qv, merge, dequantize, unmerge; all of them if none is named. Each is a whole process, run
in turn with the others, and the median counts; `after start-up` is without what importing takes. Processors' seconds
stand beside the clock's: on a machine with other work, their ratio is the fair one. Others are `cp` (of what is
written), transformers (load, dequantise where there is something, save), PEFT (load, merge, save) and, where it is
given, mergekit, whose environment is its own. At the end stand the targets, and whether they are met.

WORKDIR should be in tmpfs, with 9 GB of room; what is generated stays there for the next time, `written` goes.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import Run, measured
from quantised import PEER
from quantised import made as made_by
from run import ALL, HERE, SURGERY, copied, made

QV = "q_proj,v_proj"
TORCH = "import torch, surgery, surgery_cli"
MERGEKIT = "merge_method: passthrough\ndtype: bfloat16\nmodels:\n  - model: {model}\n"


@dataclass(frozen=True)
class Found:
    """Medians of some runs of one command: seconds of the clock and of processors; the largest peak, in bytes."""

    seconds: float
    cpu: float
    peak: int


@dataclass(frozen=True)
class Case:
    """A surgery: its command without an output, what imports before it works, what cp copies, and others' commands."""

    command: Sequence[str]
    start: Sequence[str]
    copy: Path
    others: Mapping[str, Sequence[str]]


def main() -> None:
    """Measure the cases that were asked for, then the targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--mergekit", default="", help="the mergekit-yaml of an environment of its own")
    parser.add_argument("--no-peers", action="store_true", help="cp alone")
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    if unknown := set(arguments.cases) - set(CASES):
        parser.error(f"no case is called {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    print("| 2.2 GB | | clock | after start-up | processors | after start-up | peak | clock, ours to this |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    results = dict[str, dict[str, Found]]()
    for name in arguments.cases or CASES:
        case = CASES[name](work, arguments.mergekit)
        others = {} if arguments.no_peers else case.others
        results[name] = measure(name, case, others, work / "written", arguments.runs)
    targets(results)


def measure(name: str, case: Case, others: Mapping[str, Sequence[str]], out: Path, runs: int) -> dict[str, Found]:
    """A line for each command of a case; they are run in turn, and once before without being counted."""
    commands = {
        "start-up": case.start,
        "cp": copied(case.copy, out),
        "surgery": [*case.command, "-o", str(out), "--quiet"],
        **others,
    }
    done: dict[str, list[Run]] = {title: [] for title in commands}
    for round_ in range(runs + 1):
        for title, command in commands.items():
            if round_ or title in ("start-up", "cp", "surgery"):  # the others take long, and are warm by then
                shutil.rmtree(out, ignore_errors=True)
                run = measured(command)
                done[title] += [run] if round_ else []
    shutil.rmtree(out, ignore_errors=True)
    found = {
        title: Found(
            statistics.median(r.seconds for r in rs), statistics.median(r.cpu for r in rs), max(r.peak for r in rs)
        )
        for title, rs in done.items()
    }
    start = found["start-up"]
    for title, one in found.items():
        after = (
            (f"{one.seconds - start.seconds:.2f} s", f"{one.cpu - start.cpu:.2f} s") if title == "surgery" else ("", "")
        )
        ratio = "" if title in ("surgery", "start-up") else f"{found['surgery'].seconds / one.seconds:.2f}"
        clock = f"{one.seconds:.2f} s | {after[0]} | {one.cpu:.2f} s | {after[1]}"
        print(f"| {name} | {title} | {clock} | {one.peak / 1e6:.0f} MB | {ratio} |", flush=True)
    return found


def targets(results: Mapping[str, Mapping[str, Found]]) -> None:
    """What is to be reached, and what was."""
    print("\n| target | by the clock | by processors | |\n|---|---|---|---|")
    for name, peer, most in (("merge", "cp", 1.5), ("merge-qv", "cp", 1.1), ("merge", "PEFT", 0.2)):
        found = results.get(name, {})
        if peer not in found:
            continue
        ours, other, start = found["surgery"], found[peer], found["start-up"]
        less = (start.seconds, start.cpu) if peer == "cp" else (0.0, 0.0)
        clock, cpu = (ours.seconds - less[0]) / other.seconds, (ours.cpu - less[1]) / other.cpu
        what = f"{name}{' after start-up' if peer == 'cp' else ''} ≤ {most} × {peer}"
        print(f"| {what} | {clock:.2f} | {cpu:.2f} | {'met' if clock <= most else 'not met'} |")
    peaks = {name: found["surgery"].peak for name, found in results.items()}
    for name, peak in peaks.items():
        print(f"| {name} ≤ 350 MB | {peak / 1e6:.0f} MB | | {'met' if peak <= 350e6 else 'not met'} |")


def reshard(work: Path, mergekit: str) -> Case:
    """5 shards to 8."""
    base, out = made(work, "llama", "500MB"), work / "written"
    peers: dict[str, Sequence[str]] = {}
    peers["transformers"] = [sys.executable, str(HERE / "peers.py"), "reshard", str(base), str(out), "300MB"]
    peers |= by_mergekit(mergekit, work, str(base), out, "150M")
    return Case([*SURGERY, "reshard", str(base), "--max-shard-size", "300MB"], [*SURGERY, "--help"], base, peers)


def split(work: Path, mergekit: str) -> Case:
    """The blocked qkv of Phi-3."""
    base = made(work, "phi3", "500MB")
    return Case([*SURGERY, "split-qkv", str(base)], [*SURGERY, "--help"], base, {})


def merge(work: Path, mergekit: str, targets: str = ALL) -> Case:
    """A LoRA of rank 16 on all linear modules."""
    base, adapter, out = made(work, "llama", "500MB"), made(work, "adapter", "16", targets), work / "written"
    peft = [sys.executable, str(HERE / "peers.py"), "merge", str(base), str(adapter), str(out), "500MB"]
    peers = {"PEFT": peft, **by_mergekit(mergekit, work, f"{base}+{adapter}", out, "250M")}
    return Case([*SURGERY, "merge", str(base), str(adapter)], [sys.executable, "-c", TORCH], base, peers)


def merge_qv(work: Path, mergekit: str) -> Case:
    """One on q and v."""
    return merge(work, mergekit, QV)


def dequantize(work: Path, mergekit: str) -> Case:
    """FP8 in blocks to bfloat16."""
    base, plain, out = work / "fp8", work / "fp8-plain", work / "written"
    made_by("quantised_models.py", base, "fp8", str(base), "22")
    if not plain.exists():
        subprocess.run([*SURGERY, "dequantize", str(base), "-o", str(plain), "--quiet"], check=True)
    peers = {"transformers": [sys.executable, "-c", PEER, "fp8", str(base), str(out)]}
    return Case([*SURGERY, "dequantize", str(base)], [sys.executable, "-c", TORCH], plain, peers)


def unmerge(work: Path, mergekit: str) -> Case:
    """The merge on all linear modules taken back, beside doing it."""
    base, adapter, merged = made(work, "llama", "500MB"), made(work, "adapter", "16", ALL), work / "merged"
    doing = [*SURGERY, "merge", str(base), str(adapter), "--quiet"]
    if not merged.exists():
        subprocess.run([*doing, "--reversible", "-o", str(merged)], check=True)
    again = {"merge --reversible": [*doing, "--reversible", "-o", str(work / "written")]}
    return Case([*SURGERY, "unmerge", str(merged)], [sys.executable, "-c", TORCH], base, again)


def by_mergekit(mergekit: str, work: Path, model: str, out: Path, size: str) -> dict[str, Sequence[str]]:
    """Mergekit's command that writes one model, with an adapter merged into it where `model` names one, in shards of so
    many parameters.
    """
    if not mergekit:
        return {}
    recipe = work / f"mergekit-{size}{'-lora' if '+' in model else ''}.yml"
    recipe.write_text(MERGEKIT.format(model=model))
    words = ["--out-shard-size", size, "--no-copy-tokenizer", "--lora-merge-cache", str(work / "mergekit-cache")]
    clear = f'rm -rf {work / "mergekit-cache"}; exec "$@"'
    return {"mergekit": ["sh", "-c", clear, "sh", mergekit, str(recipe), str(out), *words]}


CASES = {
    "reshard": reshard,
    "split": split,
    "merge-qv": merge_qv,
    "merge": merge,
    "dequantize": dequantize,
    "unmerge": unmerge,
}


if __name__ == "__main__":
    main()
