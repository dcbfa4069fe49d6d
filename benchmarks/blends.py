"""Two models of 2.2 GB blended, as surgery and as mergekit do it: time, processors, peak memory, and the difference.

    python benchmarks/blends.py WORKDIR MERGEKIT_PYTHON [METHOD,…] [RUNS]

BASE is drawn; the models are BASE with a LoRA of rank 16 merged into all linear modules, and into q and v, in bfloat16.
Each method runs as a process of its own, from the same configuration, with `dtype: float32` and `out_dtype: bfloat16`:
`surgery run`, and `mergekit-yaml` of the environment of MERGEKIT_PYTHON. Processor seconds are beside those of the
clock: on a machine with other work the ratio of these is the fair one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from measure import measured
from run import ALL, SURGERY, made

CONFIGS = {
    "linear": "models: [{{model: {a}, parameters: {{weight: 0.7}}}}, {{model: {b}, parameters: {{weight: 0.3}}}}]",
    "slerp": "base_model: {a}\nmodels: [{{model: {a}}}, {{model: {b}}}]\nparameters: {{t: 0.4}}",
    "ties": (
        "base_model: {base}\nmodels: [{{model: {a}, parameters: {{weight: 0.7, density: 0.5}}}},"
        " {{model: {b}, parameters: {{weight: 0.4, density: 0.3}}}}]"
    ),
}
DIFFERENCE = """
import sys, torch
from pathlib import Path
from safetensors import safe_open
def held(place):
    files = [safe_open(file, "pt") for file in sorted(Path(place).glob("*.safetensors"))]
    return {name: file for file in files for name in file.keys()}
one, other = map(held, sys.argv[1:])
assert one.keys() == other.keys()
differ = size = worst = 0
for name in one:
    a, b = (x[name].get_tensor(name).contiguous().view(torch.int16).int() for x in (one, other))
    a, b = (torch.where(x < 0, -32768 - x, x) for x in (a, b))
    gap = (a - b).abs()
    differ, size, worst = differ + int(gap.count_nonzero()), size + gap.numel(), max(worst, int(gap.max()))
print(f"{differ / size:.1e} of the weights, by {worst} units in the last place at most")
"""


def main() -> None:
    """Print two lines of a table for each method."""
    work, python = Path(sys.argv[1]), sys.argv[2]
    methods = sys.argv[3].split(",") if len(sys.argv) > 3 else list(CONFIGS)
    runs = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    places = _models(work)
    print(f"load {os.getloadavg()[0]:.1f}\n")
    print("| | clock | processors | peak | they differ in |")
    print("|---|---|---|---|---|", flush=True)
    for method in methods:
        config = work / f"{method}.yml"
        text = CONFIGS[method].format(**{name: str(place) for name, place in places.items()})
        config.write_text(f"merge_method: {method}\ndtype: float32\nout_dtype: bfloat16\n{text}\n")
        ours, theirs = work / "ours", work / "theirs"
        mergekit = str(Path(python).with_name("mergekit-yaml"))
        ways = {
            "surgery run": ([*SURGERY, "run", str(config), "-o", str(ours), "--quiet"], ours),
            "mergekit-yaml": ([mergekit, str(config), str(theirs), "--quiet"], theirs),
        }
        for way, (command, out) in ways.items():
            best = None
            for _ in range(runs):
                shutil.rmtree(out, ignore_errors=True)
                run = measured(command)
                best = run if best is None or run.seconds < best.seconds else best
            assert best
            off = measured([sys.executable, "-c", DIFFERENCE, str(ours), str(theirs)]).stdout if out is theirs else ""
            line = f"{best.seconds:.1f} s | {best.cpu:.0f} s | {best.peak / 1e6:.0f} MB | {off.strip()}"
            print(f"| {method}, {way} | {line} |", flush=True)
        shutil.rmtree(ours)
        shutil.rmtree(theirs)


def _models(work: Path) -> dict[str, Path]:
    """The base, and two models that were made of it."""
    places = {"base": made(work, "llama", "500MB"), "a": work / "a", "b": work / "b"}
    for name, targets in (("a", ALL), ("b", "q_proj,v_proj")):
        if not places[name].exists():
            adapter = made(work, "adapter", "16", targets)
            merge = [*SURGERY, "merge", str(places["base"]), str(adapter), "-o", str(places[name]), "--quiet"]
            subprocess.run(merge, check=True)
    return places


if __name__ == "__main__":
    main()
