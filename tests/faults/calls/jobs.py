"""The commands that write, each on small inputs: how they are typed, and what stands where they write."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from handmade import tamed, write_adapter, write_phi3
from safetensors.torch import save_file

import surgery

OUT = "w/out"  # where outputs go, in the root


@dataclass(frozen=True)
class Job:
    """A command: its words, `{name}` is an input; `over` names the input that stands at the destination, if any."""

    words: str
    over: str = ""
    dest: str = OUT  # what is written
    inside: bool = False  # whether it writes in the folder itself, as `reindex` does


JOBS: Mapping[str, Job] = {
    "reshard": Job("reshard in/base -o w/out --max-shard-size 2KB"),
    "reshard --link": Job("reshard in/base -o w/out --link"),
    "split": Job("split-qkv in/base -o w/out"),
    "fuse": Job("fuse-qkv in/split -o w/out"),
    "merge": Job("merge in/base in/adapter -o w/out"),
    "merge --reversible": Job("merge in/base in/adapter -o w/out --reversible"),
    "unmerge": Job("unmerge in/merged -o w/out"),
    "dequantize": Job("dequantize in/fp8 -o w/out"),
    "extract": Job("extract in/base in/merged -o w/out --rank 2"),
    "inject": Job("inject in/base -o w/out --rank 2 --target-modules o_proj"),
    "cast": Job("cast in/base -o w/out --dtype float16"),
    "convert-adapter": Job("convert-adapter in/adapter -o w/out --to mlx"),
    "run": Job("run in/recipe.json"),
    "deeper": Job("reshard in/base -o w/new/folders/out", dest="w/new/folders/out"),
    "reshard --overwrite": Job("reshard in/base -o w/out --overwrite", over="old"),
    "merge --overwrite": Job("merge in/base in/adapter -o w/out --overwrite", over="other"),
    "merge --reversible --overwrite": Job("merge in/base in/adapter -o w/out --reversible --overwrite", over="old"),
    "run --overwrite": Job("run in/recipe.json --overwrite", over="old"),
    "reindex": Job("reindex w/out", over="stale", inside=True),
}


def prepare(root: Path, *, layers: int = 1, hidden: int = 16) -> None:
    """The inputs, in the folder `in`."""
    made = root / "in"
    made.mkdir(parents=True)
    sides = {"self_attn.o_proj": (hidden, hidden), "mlp.gate_up_proj": (3 * hidden, hidden)}
    modules = {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in sides.items()}
    base = tamed(write_phi3(made / "base", layers=layers, hidden=hidden))
    adapter = write_adapter(made / "adapter", modules)
    another = write_adapter(made / "another", modules, seed=1)
    opened = surgery.open_checkpoint(base)
    surgery.write(surgery.split_qkv(opened), made / "split")
    surgery.write(surgery.merge(opened, surgery.open_adapter(adapter), reversible=True), made / "merged")
    surgery.write(surgery.merge(opened, surgery.open_adapter(another)), made / "other")
    surgery.write(surgery.split_qkv(opened), made / "old", "2KB")
    surgery.write(opened, made / "stale", "2KB")
    index = made / "stale" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["metadata"]["total_size"] += 1
    index.write_text(json.dumps(content))
    quantised(made / "fp8")
    recipe = {
        "source": str(base),
        "steps": [{"split-qkv": {}}, {"merge": {"adapters": [str(adapter)]}}],
        "output": {"output": str(root / OUT)},
    }
    (made / "recipe.json").write_text(json.dumps(recipe))
    for name in ("w", "tmp"):
        (root / name).mkdir()


def quantised(folder: Path) -> None:
    """A checkpoint of FP8 in blocks."""
    folder.mkdir()
    rows, columns = 128, 256
    name = "model.layers.0.mlp.up_proj.weight"
    codes = torch.arange(rows * columns).remainder(120).to(torch.uint8).view(torch.float8_e4m3fn)
    tensors = {
        name: codes.reshape(rows, columns),
        f"{name}_scale_inv": torch.tensor([[0.5, 0.25]]),
        "model.norm.weight": torch.ones(8, dtype=torch.bfloat16),
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {"model_type": "llama", "dtype": "bfloat16", "architectures": ["LlamaForCausalLM"]}
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(config))


def reset(root: Path, job: Job) -> None:
    """Nothing is where outputs go, or what is to be replaced."""
    shutil.rmtree(root / "w")
    (root / "w").mkdir()
    if job.over:
        shutil.copytree(root / "in" / job.over, root / job.dest)


if __name__ == "__main__":
    prepare(Path(sys.argv[1]))
