"""Files of adapters as tools other than PEFT write them, and the judge of what is merged of them: the live network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny_models import MODELS, build, output

import surgery

TOOLS = Path(__file__).parent / "fixtures" / "foreign"  # made by the tools themselves: make.py
Tensors = dict[str, torch.Tensor]


def wrapped(family: str, makes: Callable[[torch.nn.Module], torch.nn.Module], ends: tuple[str, ...]) -> Any:
    """The model with what `makes` makes of each module whose name ends in one of `ends`, random but small."""
    model = build(family)
    torch.manual_seed(3)
    for name, module in list(model.named_modules()):
        if name.endswith(ends):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, makes(module))
    return model


def saved_as(
    folder: Path, tensors: Mapping[str, torch.Tensor], name: str, config: Mapping[str, Any] | None = None
) -> Path:
    """The file with these tensors, and an adapter_config.json beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name)
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder / name


def computed(family: str, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What a model of the family computes with these weights."""
    model = MODELS[family]().eval()
    model.load_state_dict(dict(weights), strict=False)
    model.tie_weights()
    return output(model, family)


def check_computes(family: str, base: Path, merged: Path, live: torch.Tensor) -> None:
    """The merged checkpoint computes what the live network does: error at most 1e-5 of the largest output, the
    adapter's effect at least 1,000 times that. A copy of the base, a doubled adapter, and one without a module do not.
    """
    weights, old = weights_in(merged), weights_in(base)
    largest, plain = live.abs().max(), computed(family, old)
    error = (computed(family, weights) - live).abs().max() / largest
    effect = (plain - live).abs().max() / largest
    assert error <= 1e-5 and effect >= 1000 * error, (float(error), float(effect))
    changed = [name for name in weights if name in old and not torch.equal(weights[name], old[name])]
    for control in (
        old,
        weights | {name: 2 * weights[name] - old[name] for name in changed},
        weights | {changed[0]: old[changed[0]]},
    ):
        assert (computed(family, control) - live).abs().max() / largest > 1e-4


def weights_in(folder: Path) -> Tensors:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def merged_with(base: Path, adapter: Path, out: Path, **said: Any) -> Path:
    """The base with the adapter, written."""
    surgery.write(surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter, **said)), out)
    return out


def check_modules(fixture: Path, adapter: Path, tmp_path: Path, **said: Any) -> None:
    """Merged into the fixture's base, each module computes what the tool's live one did; the
    base's own modules do not.
    """
    (tmp_path / "base").mkdir()
    shutil.copy(fixture / "base.safetensors", tmp_path / "base/model.safetensors")
    merged = weights_in(merged_with(tmp_path / "base", adapter, tmp_path / "out", **said))
    live, old = load_file(fixture / "live.safetensors"), weights_in(tmp_path / "base")
    for name in sorted(name[2:] for name in live if name.startswith("y.")):
        x, y = live[f"x.{name}"], live[f"y.{name}"]
        largest = y.abs().max()
        assert (_through(merged, name, x) - y).abs().max() <= 1e-5 * largest, name
        assert (_through(old, name, x) - y).abs().max() >= 1e-2 * largest, name


def _through(weights: Tensors, module: str, x: torch.Tensor) -> torch.Tensor:
    """What the module computes: rows of an embedding for whole numbers, else a linear layer."""
    weight, bias = weights[f"{module}.weight"], weights.get(f"{module}.bias")
    if not x.is_floating_point():
        return weight[x.long()]
    return torch.nn.functional.linear(x, weight, bias)
