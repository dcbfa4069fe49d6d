"""Side by side with what users do instead: ratios of medians of alternating runs, and peak memory.

    python benchmarks/run.py WORKDIR [CASE...] [--runs 5]

WORKDIR should be in tmpfs (such as /dev/shm/bench) for the cases without `disk`, and on a disk for those with it.
Cases:

    reshard split split-heads split-groups split-columns split-gate-up split-experts split-interleaved convert
                                               against cp -r --reflink=never
    disk-reshard disk-split                    the same, each followed by sync -f
    merge merge-qv                             against cp, and against PEFT: load, merge, save
    unmerge                                    against cp, against the merge, and against the merge with its undo
    record load-save                                  reshard against transformers: load, save
    memory                                     peaks: one shard, one tensor of 2 GB, --memory 64MB
    start                                      --help; inspect of 1,000 shards and 100,000 tensors
    huge                                       1.3 TB in 163 sparse shards: inspect, dry runs
    stream                                     merge -o hf://…, by LFS and by Xet: peaks of memory and disk; killed
    half way

Needs about 8 GB of room, 2.2 GB for each of the base, the output and the other's output.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from measure import Run, measured
from stream import streamed

HERE = Path(__file__).parent
SURGERY = [sys.executable, "-m", "surgery_cli"]
# What moves bytes only: case -> generated checkpoint, verb, options.
COPIES: dict[str, tuple[str, list[str]]] = {
    "reshard": ("llama", ["reshard", "--max-shard-size", "300MB"]),
    "split": ("phi3", ["split-qkv"]),
    "split-heads": ("gpt_neox", ["split-qkv"]),
    "split-groups": ("falcon", ["split-qkv"]),
    "split-columns": ("gpt2", ["split-qkv"]),
    "split-gate-up": ("phi3", ["split-gate-up"]),
    "split-experts": ("gpt_oss", ["split-experts"]),
    "split-interleaved": ("gpt_oss", ["split-gate-up"]),
    "convert": ("phi3", ["convert", "--as", "llama"]),
}
ALL = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"


def made(work: Path, name: str, *words: str) -> Path:
    """A generated checkpoint or adapter, made once, by a process of its own."""
    path = work / "-".join([name, *words]).replace(",", "_")
    if not path.exists():
        subprocess.run([sys.executable, str(HERE / "models.py"), name, str(path), *words], check=True)
    return path


def compared(title: str, commands: Mapping[str, Sequence[str]], out: Path, runs: int) -> None:
    """Run the commands in turn, a warm-up first; print medians, ratios to the first, peaks."""
    found: dict[str, list[Run]] = {name: [] for name in commands}
    for round_ in range(runs + 1):
        for name, command in commands.items():
            shutil.rmtree(out, ignore_errors=True)
            run = measured(command)
            if round_:
                found[name].append(run)
    shutil.rmtree(out, ignore_errors=True)
    medians = {name: statistics.median(r.seconds for r in rs) for name, rs in found.items()}
    ours = medians["surgery"]
    for name, rs in found.items():
        low, high = min(r.seconds for r in rs), max(r.seconds for r in rs)
        ratio = f"surgery/{name} {ours / medians[name]:.2f}" if name != "surgery" else ""
        peak = max(r.peak for r in rs) / 1e6
        print(
            f"| {title} | {name} | {medians[name]:.2f} s ({low:.2f} to {high:.2f}) | {peak:.0f} MB | {ratio} |",
            flush=True,
        )


def copied(source: Path, out: Path, *, disk: bool = False) -> list[str]:
    """cp, and on a disk the sync that makes it comparable."""
    command = f"cp -r --reflink=never {source} {out}"
    return ["sh", "-c", f"{command} && sync -f {out}"] if disk else ["sh", "-c", command]


def main() -> None:
    """Run the cases that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    work, runs = arguments.work, arguments.runs
    work.mkdir(parents=True, exist_ok=True)
    out = work / "out"
    o = ["-o", str(out), "--quiet"]
    cases = arguments.cases or [*COPIES, "merge", "merge-qv", "unmerge", "load-save", "memory", "start", "huge"]
    for case in cases:
        disk = case.startswith("disk-")
        match case.removeprefix("disk-"):
            case plain if plain in COPIES:
                name, (verb, *options) = COPIES[plain]
                base = made(work, name, "500MB")
                commands = {"cp": copied(base, out, disk=disk), "surgery": [*SURGERY, verb, str(base), *options, *o]}
                compared(case, commands, out, runs)
            case "merge" | "merge-qv":
                base, adapter = (
                    made(work, "llama", "500MB"),
                    made(work, "adapter", "16", ALL if case == "merge" else "q_proj,v_proj"),
                )
                peft = [sys.executable, str(HERE / "peers.py"), "merge", str(base), str(adapter), str(out), "500MB"]
                commands = {"cp": copied(base, out), "surgery": [*SURGERY, "merge", str(base), str(adapter), *o]}
                commands["start-up"] = [sys.executable, "-c", "import torch, surgery, surgery_cli"]
                compared(case, {**commands, "PEFT": peft}, out, runs)
            case "unmerge":
                base, adapter, merged = made(work, "llama", "500MB"), made(work, "adapter", "16", ALL), work / "merged"
                subprocess.run(
                    [*SURGERY, "merge", str(base), str(adapter), "--reversible", "-o", str(merged), "--quiet"],
                    check=True,
                )
                record = sum(p.stat().st_size for p in (merged / ".surgery").rglob("*.undo"))
                print(
                    f"| undo record | {record / 1e6:.1f} MB | adapter"
                    f" {sum(p.stat().st_size for p in adapter.iterdir()) / 1e6:.1f} MB |"
                )
                merge = [*SURGERY, "merge", str(base), str(adapter), *o]
                commands = {"cp": copied(base, out), "merge": merge, "merge --reversible": [*merge, "--reversible"]}
                compared(case, {**commands, "surgery": [*SURGERY, "unmerge", str(merged), *o]}, out, runs)
                shutil.rmtree(merged)
            case "load-save":
                base = made(work, "llama", "500MB")
                peer = [sys.executable, str(HERE / "peers.py"), "reshard", str(base), str(out), "300MB"]
                compared(
                    case,
                    {
                        "transformers": peer,
                        "surgery": [*SURGERY, "reshard", str(base), "--max-shard-size", "300MB", *o],
                    },
                    out,
                    runs,
                )
            case "memory":
                adapter = made(work, "adapter", "16", ALL)
                for name, words in (("llama", ["500MB"]), ("llama", []), ("one", [])):
                    base = made(work, name, *words)
                    for memory in ("96MB", "64MB"):
                        verbs = [["reshard", str(base), "--max-shard-size", "300MB"]]
                        verbs += [["merge", str(base), str(adapter)]] if name == "llama" else []
                        for called in verbs:
                            shutil.rmtree(out, ignore_errors=True)
                            run = measured([*SURGERY, *called, *o, "--memory", memory])
                            print(
                                f"| {called[0]} {base.name} --memory {memory} | {run.seconds:.2f} s |"
                                f" {run.peak / 1e6:.0f} MB |",
                                flush=True,
                            )
                shutil.rmtree(out, ignore_errors=True)
            case "start":
                base = made(work, "thousand")
                for shown in (["--help"], ["inspect", str(base)]):
                    rs = [measured([*SURGERY, *shown]) for _ in range(runs + 1)][1:]
                    seconds, peak = statistics.median(r.seconds for r in rs), max(r.peak for r in rs)
                    print(f"| {shown[0]} | {seconds:.2f} s | {peak / 1e6:.0f} MB |", flush=True)
            case "huge":
                base = made(work, "huge")
                dry = ["--dry-run", "--quiet"]
                for asked in (
                    ["inspect", str(base)],
                    ["reshard", str(base), "--max-shard-size", "5GB", *dry],
                    ["split-qkv", str(base), *dry],
                ):
                    run = measured([*SURGERY, *asked])
                    print(
                        f"| {' '.join(asked[:1])} 1.3 TB | {run.seconds:.2f} s | {run.peak / 1e6:.0f} MB |", flush=True
                    )
            case "stream":
                streamed(work, SURGERY, made(work, "llama", "500MB"), made(work, "adapter", "16", ALL))
            case _:
                parser.error(f"no case is called {case}")


if __name__ == "__main__":
    main()
