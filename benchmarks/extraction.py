"""LoRA from two checkpoints of 2.2 GB: time, peak memory, and how near it is, against decomposing whole matrices.

    python benchmarks/extraction.py WORKDIR [LAYERS]

TUNED is BASE with a LoRA of rank 16 merged into all linear modules, in bfloat16. `surgery extract` runs as a process
of its own. What users do instead, as mergekit's extract-lora and PEFT's converters: both models loaded, each
difference decomposed as a whole in float32; of LAYERS of the 22 layers (1 if not given), since it takes long.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from measure import measured
from models import LAYERS
from run import ALL, SURGERY, made

PEER = """
import sys, time, torch, transformers
base, tuned = (transformers.AutoModelForCausalLM.from_pretrained(p, dtype=torch.bfloat16) for p in sys.argv[1:3])
begun = time.monotonic()
for name, weight in tuned.named_parameters():
    if "_proj" in name and int(name.split(".")[2]) < int(sys.argv[3]):
        delta = weight.detach().float() - base.get_parameter(name).detach().float()
        u, s, v = torch.linalg.svd(delta, full_matrices=False)
        b, a = u[:, :16] * s[:16], v[:16]
print(time.monotonic() - begun)
"""
NEAR = """
import sys, torch, surgery
from safetensors.torch import load_file
one, other = (load_file(f"{p}/adapter_model.safetensors") for p in sys.argv[1:3])
worst = 0.0
for name in one:
    if name.endswith("lora_A.weight") and ".layers.0." in name:
        b = name.replace("lora_A", "lora_B")
        want, got = 2 * one[b] @ one[name], other[b] @ other[name]
        worst = max(worst, float((got - want).norm() / want.norm()))
print(f"{worst:.4f}")
"""


def main() -> None:
    """Print a line of a table for each."""
    work, layers = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "1"
    base, adapter, tuned, out = (
        made(work, "llama", "500MB"),
        made(work, "adapter", "16", ALL),
        work / "tuned",
        work / "out",
    )
    if not tuned.exists():
        subprocess.run([*SURGERY, "merge", str(base), str(adapter), "-o", str(tuned), "--quiet"], check=True)
    shutil.rmtree(out, ignore_errors=True)
    run = measured([*SURGERY, "extract", str(base), str(tuned), "-o", str(out), "--rank", "16"])
    print(run.stdout)
    print(f"| surgery extract | {run.seconds:.1f} s | {run.peak / 1e6:.0f} MB |")
    near = measured([sys.executable, "-c", NEAR, str(adapter), str(out)]).stdout.strip()
    print(f"| off the LoRA that was merged, in the worst of layer 0 | {near} | |")
    peer = measured([sys.executable, "-c", PEER, str(base), str(tuned), layers])
    whole = float(peer.stdout.split()[-1]) / int(layers) * LAYERS
    print(f"| whole matrices, {layers} of {LAYERS} layers | {whole:.0f} s for all | {peer.peak / 1e9:.1f} GB |")


if __name__ == "__main__":
    main()
