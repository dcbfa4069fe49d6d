"""LoRA from two checkpoints of 2.2 GB: time, peak memory, and how near it is, against decomposing whole matrices.

    python benchmarks/extraction.py WORKDIR [LAYERS] [MERGEKIT]

TUNED is BASE with a LoRA of rank 16 merged into all linear modules, in bfloat16. `surgery extract` runs as a process
of its own, on all layers, and again on the first LAYERS of the 22 (1 if not given), which is what the others are given,
since they take long: MERGEKIT, the `mergekit-extract-lora` of an environment of its own, if there is one; and what
PEFT's converters do, both models loaded, each difference decomposed as a whole in float32. Processor seconds are
beside those of the clock: on a machine with other work the ratio of these is the fair one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from measure import Run, measured
from models import LAYERS
from run import ALL, SURGERY, made

PEER = """
import sys, torch, transformers
base, tuned = (transformers.AutoModelForCausalLM.from_pretrained(p, dtype=torch.bfloat16) for p in sys.argv[1:3])
for name, weight in tuned.named_parameters():
    if "_proj" in name and int(name.split(".")[2]) < int(sys.argv[3]):
        delta = weight.detach().float() - base.get_parameter(name).detach().float()
        u, s, v = torch.linalg.svd(delta, full_matrices=False)
        b, a = u[:, :16] * s[:16], v[:16]
"""
NEAR = """
import sys, torch, surgery
from safetensors.torch import load_file
one, other = (load_file(f"{p}/adapter_model.safetensors") for p in sys.argv[1:3])
worst = 0.0
for name in other:
    if name.endswith("lora_A.weight") and ".layers.0." in name:
        b = name.replace("lora_A", "lora_B")
        want, got = 2 * one[b] @ one[name], other[b].float() @ other[name].float()
        worst = max(worst, float((got - want).norm() / want.norm()))
print(f"{worst:.4f}")
"""


def main() -> None:
    """Print a line of a table for each."""
    work, layers = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    base, adapter = made(work, "llama", "500MB"), made(work, "adapter", "16", ALL)
    tuned, out = work / "tuned", work / "out"
    if not tuned.exists():
        subprocess.run([*SURGERY, "merge", str(base), str(adapter), "-o", str(tuned), "--quiet"], check=True)
    print(f"load {os.getloadavg()[0]:.1f}\n")
    print("| | modules | clock | processors | peak | off the LoRA that was merged, in the worst of layer 0 |")
    print("|---|---|---|---|---|---|", flush=True)
    ours = [*SURGERY, "extract", str(base), str(tuned), "-o", str(out), "--rank", "16", "--quiet"]
    _line("surgery extract", LAYERS, ours, adapter, out)
    wanted = rf"model\.layers\.({'|'.join(map(str, range(layers)))})\..*"
    _line("surgery extract", layers, [*ours, "--rest", "leave", "--only", wanted], adapter, out)
    for mergekit in sys.argv[3:]:
        pair = ["--model", str(tuned), "--base-model", str(base), "--out-path", str(out), "--max-rank", "16"]
        some = ["--skip-undecomposable", "-i", wanted, "-e", "embed_tokens|lm_head"]
        _line("mergekit-extract-lora", layers, [mergekit, *pair, *some], adapter, out)
    peer = [sys.executable, "-c", PEER, str(base), str(tuned), str(layers)]
    _line("whole matrices, models loaded", layers, peer, adapter, out)


def _line(what: str, layers: int, command: Sequence[str], adapter: Path, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    run: Run = measured(command)
    near = [sys.executable, "-c", NEAR, str(adapter), str(out)]
    off = measured(near).stdout.strip() if out.exists() else ""
    print(
        f"| {what} | of {layers} layers | {run.seconds:.1f} s | {run.cpu:.0f} s | {run.peak / 1e6:.0f} MB | {off} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
