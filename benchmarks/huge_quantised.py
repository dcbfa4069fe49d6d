"""A sparse checkpoint in FP8: 1 TB, 90,000 weights, as many scales. What reads headers alone: seconds, peak memory.

    python benchmarks/huge_quantised.py WORKDIR [COMMAND...]

A mixture of experts as Qwen3 has it, in blocks of 128 x 128, each weight with its `weight_scale_inv`; its shards hold
no data but their headers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from math import prod
from pathlib import Path

from measure import measured
from run import SURGERY

from surgery.files.index import encode_index
from surgery.files.safetensors import encode_header
from surgery.hub.shards import split_into_shards
from surgery.lazy.dtypes import BF16, DTYPES, F32, Dtype

HIDDEN, WIDE, LAYERS, EXPERTS, HEADS, KV, VOCAB, BLOCK = 7168, 1536, 94, 320, 64, 8, 151_936, 128
CONFIG = {
    "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": HIDDEN, "head_dim": 128,
    "moe_intermediate_size": WIDE, "num_hidden_layers": LAYERS, "num_experts": EXPERTS, "num_attention_heads": HEADS,
    "num_key_value_heads": KV, "vocab_size": VOCAB, "dtype": "bfloat16", "tie_word_embeddings": False,
    "quantization_config": {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": ["lm_head", *(f"model.layers.{i}.mlp.gate" for i in range(LAYERS))],
    },
}  # fmt: skip
COMMANDS = {
    "inspect": "inspect {base}",
    "verify": "verify {base} --no-class",
    "dequantize": "dequantize {base} -o {out} --dry-run --quiet",
    "dequantize experts": "dequantize {base} --only .*experts.* -o {out} --dry-run --quiet",
    "inject": "inject {base} --target-modules q_proj,v_proj -o {out} --dry-run --quiet",
    "merge": "merge {base} {lora} -o {out} --dry-run --quiet",
    "merge --requantize": "merge {base} {lora} --requantize -o {out} --dry-run --quiet",
    "merge --dequantize": "merge {base} {lora} --dequantize -o {out} --dry-run --quiet",
    "reshard": "reshard {base} --max-shard-size 10GB -o {out} --dry-run --quiet",
    "rename": "rename {base} --map ^model\\.layers=model.blocks -o {out} --dry-run --quiet",
    "drop": "drop {base} --pattern .*layers\\.93\\..* -o {out} --dry-run --quiet",
}


def tensors() -> dict[str, tuple[Dtype, tuple[int, ...]]]:
    """The weights with their scales, and what is in 16 bits."""
    codes: dict[str, tuple[int, ...]] = {}
    ends = ("model.embed_tokens.weight", "lm_head.weight")
    plain: dict[str, tuple[int, ...]] = dict.fromkeys(ends, (VOCAB, HIDDEN))
    plain["model.norm.weight"] = (HIDDEN,)
    for layer in (f"model.layers.{i}." for i in range(LAYERS)):
        plain |= {f"{layer}{norm}.weight": (HIDDEN,) for norm in ("input_layernorm", "post_attention_layernorm")}
        plain |= {f"{layer}self_attn.{norm}.weight": (128,) for norm in ("q_norm", "k_norm")}
        plain[f"{layer}mlp.gate.weight"] = (EXPERTS, HIDDEN)
        codes |= {f"{layer}self_attn.{one}_proj.weight": (KV * 128, HIDDEN) for one in "kv"}
        codes[f"{layer}self_attn.q_proj.weight"] = (HEADS * 128, HIDDEN)
        codes[f"{layer}self_attn.o_proj.weight"] = (HIDDEN, HEADS * 128)
        for expert in (f"{layer}mlp.experts.{i}." for i in range(EXPERTS)):
            codes |= {f"{expert}{one}_proj.weight": (WIDE, HIDDEN) for one in ("gate", "up")}
            codes[f"{expert}down_proj.weight"] = (HIDDEN, WIDE)
    found: dict[str, tuple[Dtype, tuple[int, ...]]] = {name: (BF16, shape) for name, shape in plain.items()}
    for name, (rows, columns) in codes.items():
        found[name] = DTYPES["F8_E4M3"], (rows, columns)
        found[f"{name}_scale_inv"] = F32, (-(-rows // BLOCK), -(-columns // BLOCK))
    return found


def make(folder: Path) -> None:
    """Write headers, and holes behind them."""
    folder.mkdir(parents=True)
    held = tensors()
    sizes = {name: dtype.bits // 8 * prod((rows, *rest)) for name, (dtype, (rows, *rest)) in held.items()}
    layout = split_into_shards(sizes, 5 * 10**9, "model")
    members: dict[str, list[str]] = {}
    for name, shard in layout.items():
        members.setdefault(shard, []).append(name)
    for shard, names in members.items():
        header = encode_header({name: held[name] for name in names}, {"format": "pt"})
        with open(folder / shard, "wb") as stream:
            stream.write(header)
            os.ftruncate(stream.fileno(), len(header) + sum(sizes[name] for name in names))
    (folder / "model.safetensors.index.json").write_bytes(encode_index({"total_size": sum(sizes.values())}, layout))
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
    print(f"{len(held)} tensors of {sum(sizes.values()) / 1e12:.2f} TB in {len(members)} shards")


def main() -> None:
    """Run the commands that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("commands", nargs="*", choices=[[], *COMMANDS])
    arguments = parser.parse_args()
    base, lora, out = (arguments.work / name for name in ("huge-fp8", "huge-lora", "huge-out"))
    if not base.exists():
        make(base)
    if not lora.exists():
        measured([*SURGERY, "inject", str(base), "--target-modules", "q_proj,v_proj", "-o", str(lora), "--quiet"])
    print("| command | seconds | peak |\n|---|---|---|")
    for name in arguments.commands or COMMANDS:
        shutil.rmtree(out, ignore_errors=True)
        run = measured([*SURGERY, *(w.format(base=base, lora=lora, out=out) for w in COMMANDS[name].split())])
        print(f"| {name} | {run.seconds:.1f} | {run.peak / 1e6:.0f} MB |", flush=True)


if __name__ == "__main__":
    main()
