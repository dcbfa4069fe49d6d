"""GGUF to safetensors: time and peak memory, against `cp` of what is written, and transformers' loading and saving.

    python benchmarks/from_gguf.py WORKDIR [RUNS]

Models of Llama's shape, 2048 wide: F16 in 2.2 GB, Q8_0 in 2.2 GB (twice as deep), Q4_K in 0.6 GB. transformers is not
asked of the second, which needs more memory than most machines have; `save_pretrained` refuses what it loaded so, and
`save_file` does not. Needs 10 GB in WORKDIR, best a tmpfs.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from measure import measured
from run import SURGERY

FILES = {"F16": 22, "Q8_0": 42, "Q4_K": 22}  # layers
BY_TRANSFORMERS = ("F16", "Q4_K")
MAKE = """
import sys, gguf, numpy as np
path, kind, layers = sys.argv[1], gguf.GGMLQuantizationType[sys.argv[2]], int(sys.argv[3])
rng, made = np.random.default_rng(0), {}
def matrix(rows, columns):
    if (rows, columns) not in made:
        if kind.name == "Q4_K":
            raw = rng.integers(0, 256, (rows, columns // 256, 144), dtype=np.uint8)
            raw[:, :, :4] = np.frombuffer(np.full(2, 1e-4, "f2").tobytes(), "u1")
            made[rows, columns] = raw.reshape(rows, -1)
        else:
            made[rows, columns] = gguf.quantize((rng.standard_normal((rows, columns)) * 0.02).astype("f4"), kind)
    return made[rows, columns]
writer = gguf.GGUFWriter(path, "llama")
keys = {"context_length": 2048, "block_count": layers, "embedding_length": 2048, "feed_forward_length": 5632,
        "attention.head_count": 32, "attention.head_count_kv": 4, "rope.dimension_count": 64}
for key, value in keys.items():
    writer.add_uint32(f"llama.{key}", value)
writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
writer.add_array("tokenizer.ggml.tokens", [f"t{n}" for n in range(32000)])
ones, wide = np.ones(2048, "f4"), {"attn_q": (2048, 2048), "attn_k": (256, 2048), "attn_v": (256, 2048),
        "attn_output": (2048, 2048), "ffn_gate": (5632, 2048), "ffn_up": (5632, 2048), "ffn_down": (2048, 5632)}
for name in ("token_embd", "output"):
    writer.add_tensor(f"{name}.weight", matrix(32000, 2048), raw_dtype=kind)
writer.add_tensor("output_norm.weight", ones)
for layer in range(layers):
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.{layer}.{name}.weight", ones)
    for name, shape in wide.items():
        writer.add_tensor(f"blk.{layer}.{name}.weight", matrix(*shape), raw_dtype=kind)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
"""
LOAD = """
import os, sys, torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
folder, name = os.path.split(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float16)
os.mkdir(sys.argv[2])
save_file(model.state_dict(), f"{sys.argv[2]}/model.safetensors", {"format": "pt"})
"""


def main() -> None:
    """Print a table."""
    work, runs = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3
    work.mkdir(parents=True, exist_ok=True)
    print("| file | way | seconds, median | peak memory |\n|---|---|---|---|")
    for kind, layers in FILES.items():
        path, out, other = work / f"{kind}.gguf", work / "out", work / "other"
        subprocess.run([sys.executable, "-c", MAKE, str(path), kind, str(layers)], check=True)
        ways = {
            "surgery convert-files": [*SURGERY, "convert-files", str(path), "-o", str(out), "--overwrite", "--quiet"],
            "cp of what it wrote": ["cp", "-r", str(out), str(other)],
        }
        if kind in BY_TRANSFORMERS:
            ways["from_pretrained(gguf_file=…), save_file"] = [sys.executable, "-c", LOAD, str(path), str(other)]
        found: dict[str, list[tuple[float, int]]] = {way: [] for way in ways}
        for _ in range(runs):
            for way, command in ways.items():
                shutil.rmtree(other, ignore_errors=True)
                if way.startswith("surgery"):
                    shutil.rmtree(out, ignore_errors=True)
                run = measured(command)
                found[way].append((run.seconds, run.peak))
        for way, made in found.items():
            seconds, peak = statistics.median(s for s, _ in made), max(p for _, p in made)
            size = path.stat().st_size / 1e9
            print(f"| {kind}, {size:.1f} GB | {way} | {seconds:.1f} | {peak / 1e6:.0f} MB |", flush=True)
        for gone in (out, other):
            shutil.rmtree(gone, ignore_errors=True)
        path.unlink()


if __name__ == "__main__":
    main()
