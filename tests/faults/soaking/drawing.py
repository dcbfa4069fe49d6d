"""Random small checkpoints and adapters, from the tensors of real ones."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BESIDE = ("LICENSE", "merges.txt", "notes/deep/more.txt", "added.bin.txt", "chat_template.jinja")


def read(folder: Path) -> Tensors:
    """Every tensor of every file in the folder, as the safetensors library reads it, or torch."""
    found: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    for path in sorted(folder.glob("*.bin")):
        found |= torch.load(path, weights_only=True)
    return found


def model(draw: random.Random, real: Path, folder: Path) -> Path:
    """Other values in a real checkpoint, another dtype, other shards, and files beside them."""
    chosen = draw.choice(list(DTYPES))
    kept = draw.choice((None, None, torch.float32))  # of the norms
    tensors = {
        name: one.to(kept if kept and one.dim() < 2 else DTYPES[chosen])
        for name, one in shaken(draw, read(real)).items()
    }
    config = json.loads((real / "config.json").read_text())
    config["dtype"] = chosen
    written(draw, tensors, config, folder)
    for name in draw.sample(BESIDE, draw.randrange(4)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(draw.randbytes(draw.choice((0, 7, 9000))))
    return folder


def shaken(draw: random.Random, tensors: Tensors) -> Tensors:
    """The tensors with other values, of about the same size."""
    generator = torch.Generator().manual_seed(draw.getrandbits(60))
    return {
        name: one * draw.uniform(0.5, 1.5) + 0.02 * torch.randn(one.shape, generator=generator).to(one.dtype)
        for name, one in tensors.items()
    }


def written(draw: random.Random, tensors: Tensors, config: Mapping[str, Any], folder: Path) -> None:
    """A checkpoint in any number of shards, which tensors lie in as it comes; or as torch saves it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    count = draw.choice((0, 1, 1, 2, 3, 5))
    if not count:
        torch.save(tensors, folder / "pytorch_model.bin")
    elif count == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    else:
        shards: list[Tensors] = [{} for _ in range(count)]
        for i, (name, one) in enumerate(draw.sample(list(tensors.items()), len(tensors))):
            shards[i if i < count else draw.randrange(count)][name] = one
        names = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
        for name, held in zip(names, shards, strict=True):
            save_file(held, folder / name, {"format": "pt"})
        places = {one: name for name, held in zip(names, shards, strict=True) for one in held}
        size = sum(one.nbytes for one in tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@dataclass(frozen=True)
class Lora:
    """An adapter: where it lies in the root, its factor, and what it changes: name of the weight -> (A, B)."""

    path: str
    scale: float
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    turned: bool  # whether the weights lie the other way round, as Conv1D's do

    def change(self, weight: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """What is added to a weight, in float64, and the sum of its terms' sizes."""
        if weight not in self.factors:
            return None
        a, b = (one.double() for one in self.factors[weight])
        both = b @ a * self.scale, b.abs() @ a.abs() * abs(self.scale)
        return (both[0].T, both[1].T) if self.turned else both


def linear(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """The weights of the linear modules in layers."""
    return [
        n
        for n, one in tensors.items()
        if n.endswith(".weight") and one.dim() == 2 and any(f".{part}." in n for part in ("layers", "layer", "h"))
    ]


def adapter(draw: random.Random, tensors: Tensors, root: Path, name: str, *, turned: bool, size: float = 0.1) -> Lora:
    """A LoRA on some of a checkpoint's linear modules, as PEFT saves it."""
    folder = root / "in" / name
    folder.mkdir()
    weights = linear(tensors)
    kinds = sorted({one.split(".")[-2] for one in weights})
    targets = draw.sample(kinds, draw.randint(1, len(kinds)))
    chosen = [one for one in weights if one.split(".")[-2] in targets]
    if draw.random() < 0.3:
        chosen = draw.sample(chosen, draw.randint(1, len(chosen)))
    rank, alpha, rooted = draw.randint(1, 6), draw.choice((1, 4, 16, 0.5)), draw.random() < 0.3
    generator = torch.Generator().manual_seed(draw.getrandbits(60))
    dtype = DTYPES[draw.choice(list(DTYPES))]
    factors, saved = {}, {}
    for weight in chosen:
        out, into = tensors[weight].shape[::-1] if turned else tensors[weight].shape
        a, b = (size * torch.randn(shape, generator=generator) for shape in ((rank, into), (out, rank)))
        factors[weight] = a.to(dtype), b.to(dtype)
        stem = f"base_model.model.{weight.removesuffix('.weight')}"
        saved |= {f"{stem}.lora_A.weight": factors[weight][0], f"{stem}.lora_B.weight": factors[weight][1]}
    save_file(saved, folder / "adapter_model.safetensors", {"format": "pt"})
    said = {
        "peft_type": "LORA", "r": rank, "lora_alpha": alpha, "use_rslora": rooted, "fan_in_fan_out": turned,
        "target_modules": [one.removesuffix(".weight") for one in chosen],
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return Lora(f"in/{name}", alpha / (math.sqrt(rank) if rooted else rank), factors, turned)


def factors_in(folder: Path) -> dict[str, tuple[float, torch.Tensor, torch.Tensor]]:
    """Of a LoRA, (scale, A, B) by module, as PEFT names them and reads its patterns."""
    said, tensors, found = json.loads((folder / "adapter_config.json").read_text()), read(folder), {}
    for name, a in tensors.items():
        module, _, end = name.removeprefix("base_model.model.").partition(".lora_")
        if end not in ("A.weight", "embedding_A"):
            continue
        alpha, rank = (
            next((one for key, one in (said.get(of) or {}).items() if re.match(rf"(.*\.)?({key})$", module)), usual)
            for of, usual in (("alpha_pattern", said["lora_alpha"]), ("rank_pattern", said["r"]))
        )
        assert rank == len(a)
        found[module] = alpha / rank, a, tensors[re.sub(r"A(\.weight)?$", r"B\1", name)]
    return found
