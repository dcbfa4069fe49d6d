"""What a command costs for each tensor, from headers alone: processor time and peak memory of sparse checkpoints of
10^4, 10^5 and 10^6 tensors.

    python benchmarks/scale.py WORKDIR [COMMAND...] [--tensors 10000 100000 1000000]

A Phi-3 of as many layers as it takes, with fused qkv and gate_up, 10,000 tensors a shard; an adapter on the q and v of
each layer; and the same in shards of 100 tensors, so that 10^6 are in 10^4. What the same command takes of a checkpoint
of one layer, which is to start and to import, is taken off. `growth` is the cost of a tensor against the cost in the
checkpoint before: 1 where it is linear.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from measure import Run, measured
from run import SURGERY

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from many_tensors import adapter_of, layers_of, many_tensors

DRY = "-o {out} --dry-run --quiet"
COMMANDS = {
    "inspect": "inspect {base}",
    "inspect --json": "inspect {base} --json",
    "inspect, many shards": "inspect {many}",
    "verify": "verify {base} --no-class",
    "diff": "diff {base} {many}",
    "reshard": f"reshard {{base}} --max-shard-size 5MB {DRY}",
    "reshard, many shards": f"reshard {{many}} --max-shard-size 50kB {DRY}",
    "split-qkv": f"split-qkv {{base}} {DRY}",
    "cast": f"cast {{base}} --dtype float16 {DRY}",
    "merge": f"merge {{base}} {{lora}} {DRY}",
}


def run(work: Path, layers: int, command: str) -> Run:
    """What one command takes of a checkpoint of so many layers, which is made where it is not there."""
    there, words = work / str(layers), COMMANDS[command].split()
    base, many = many_tensors(there / "base", layers, 10_000), many_tensors(there / "many", layers, 100)
    lora = adapter_of(there / "lora", layers) if "{lora}" in words else there
    called = [*SURGERY, *(word.format(base=base, many=many, lora=lora, out=work / "out") for word in words)]
    times = 1 if layers > 10_000 else 3  # what is short is lost in what the machine does besides
    return min((measured(called) for _ in range(times)), key=lambda one: one.cpu)


def main() -> None:
    """Run the commands that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("commands", nargs="*", choices=[[], *COMMANDS])
    parser.add_argument("--tensors", type=int, nargs="*", default=[10**4, 10**5, 10**6])
    arguments = parser.parse_args()
    print("| command | tensors | µs a tensor | bytes a tensor | growth: of time | of memory |")
    print("|---|---|---|---|---|---|")
    for command in arguments.commands or COMMANDS:
        start, before = run(arguments.work, 1, command), None
        for tensors in arguments.tensors:
            one = run(arguments.work, layers_of(tensors), command)
            cost = (one.cpu - start.cpu) / tensors, (one.peak - start.peak) / tensors
            grown = [f"{now / then:.2f}" for now, then in zip(cost, before or cost, strict=True) if before and then > 0]
            row = (command, f"{tensors:,}", f"{cost[0] * 1e6:.1f}", f"{cost[1]:.0f}", *(grown or ("", "")))
            print(f"| {' | '.join(row)} |", flush=True)
            before = cost


if __name__ == "__main__":
    main()
