"""Adapters in another form: PEFT loads what is written, and the live model computes what it did before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from files.adapters.test_handwritten import Output
from foreign import merged_with, saved_as, wrapped
from safetensors.torch import load_file
from tiny_models import build, output
from typer.testing import CliRunner

import surgery
from surgery.errors import AdapterError, NotSupported, SurgeryError
from surgery_cli.app import app

Saved = Callable[..., Path]
SCALE = {"rank": 4, "scale": 2.0, "dropout": 0.0}


def in_peft(family: str, folder: Path) -> torch.Tensor:
    """What PEFT's live model with the adapter in the folder computes."""
    return output(peft.PeftModel.from_pretrained(build(family), folder).eval(), family)


def mlx(folder: Path, saved: Saved, *, dora: bool = False, embedding: bool = False) -> Path:
    """An adapter as MLX writes it, on a Llama."""
    weights, generator = load_file(saved("llama") / "model.safetensors"), torch.Generator().manual_seed(5)
    ends = ("q_proj.weight", "o_proj.weight", "up_proj.weight", *(["embed_tokens.weight"] if embedding else []))
    tensors: dict[str, torch.Tensor] = {}
    for name in sorted(name for name in weights if name.endswith(ends)):
        out, into = weights[name].shape if "embed" not in name else weights[name].shape[::-1]
        module = name.removesuffix(".weight")
        tensors[f"{module}.lora_a"] = torch.randn(into, 4, generator=generator) * 0.2
        tensors[f"{module}.lora_b"] = torch.randn(4, out, generator=generator) * 0.2
        if dora:
            tensors[f"{module}.m"] = weights[name].norm(dim=1) * (torch.rand(out, generator=generator) + 0.5)
    config = {"fine_tune_type": "dora" if dora else "lora", "num_layers": 3, "lora_parameters": SCALE}
    return saved_as(folder, tensors, "adapters.safetensors", config).parent


def converted(adapter: Path, out: Path, to: str = "peft", base: Path | None = None, **said: Any) -> Path:
    opened = surgery.open_adapter(adapter, **said)
    surgery.write(surgery.convert_adapter(opened, to, surgery.open_checkpoint(base) if base else None), out)
    return out


@pytest.mark.parametrize("options", [{}, {"dora": True}, {"embedding": True}], ids=str)
def test_peft_loads_it_and_computes_the_same(options: dict[str, bool], saved: Saved, tmp_path: Path) -> None:
    made = converted(mlx(tmp_path / "mlx", saved, **options), tmp_path / "peft")
    live = in_peft("llama", made)
    merged = merged_with(saved("llama"), tmp_path / "mlx", tmp_path / "merged")
    model = build("llama")
    missing = model.load_state_dict(load_file(merged / "model.safetensors"), strict=False)
    assert not missing.unexpected_keys
    error = (output(model, "llama") - live).abs().max() / live.abs().max()
    effect = (output(build("llama"), "llama") - live).abs().max() / live.abs().max()
    assert error <= 1e-5 and effect >= 1000 * error


def test_and_back_again_it_is_the_same_file(saved: Saved, tmp_path: Path) -> None:
    first = mlx(tmp_path / "mlx", saved)
    back = converted(converted(first, tmp_path / "peft"), tmp_path / "back", "mlx")
    old, new = load_file(first / "adapters.safetensors"), load_file(back / "adapters.safetensors")
    assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)
    said = json.loads((back / "adapter_config.json").read_text())
    assert said["lora_parameters"] | {"keys": 0} == {**SCALE, "keys": 0} and said["fine_tune_type"] == "lora"
    assert set(said["lora_parameters"]["keys"]) == {name.rpartition(".")[0] for name in new}
    assert {p.name for p in back.iterdir()} - {".surgery"} == {"adapters.safetensors", "adapter_config.json"}


def test_a_program_of_ones_own(saved: Saved, tmp_path: Path) -> None:
    """Its whole state, with the base's weights beside LoRA, which the base proves to be its own."""
    model = wrapped("bert", Output, ("query", "intermediate.dense"))
    mine = {n: one for n, one in model.state_dict().items() if "query." in n or "intermediate.dense." in n}
    file = saved_as(tmp_path / "a", mine, "mine.safetensors")
    with pytest.raises(AdapterError, match="depends on its base") as caught:
        converted(file, tmp_path / "x", alpha=8)
    assert "--base" in str(caught.value)
    factors = saved_as(tmp_path / "b", {n: one for n, one in mine.items() if "lora" in n}, "mine.safetensors")
    made = converted(factors, tmp_path / "peft", alpha=8)
    error = (in_peft("bert", made) - output(model, "bert")).abs().max() / output(model, "bert").abs().max()
    assert error <= 1e-5


def test_torchtunes_order_needs_the_base(saved: Saved, tmp_path: Path) -> None:
    name = "layers.0.attn.q_proj"
    tensors = {f"{name}.lora_a.weight": torch.randn(4, 48), f"{name}.lora_b.weight": torch.randn(40, 4)}
    file = saved_as(tmp_path / "a", tensors, "a.safetensors")
    with pytest.raises(AdapterError, match="called as torchtune does"):
        converted(file, tmp_path / "x", alpha=8)
    converted(file, tmp_path / "peft", base=saved("llama"), alpha=8)
    merged = merged_with(saved("llama"), file, tmp_path / "merged", alpha=8)
    again = merged_with(saved("llama"), tmp_path / "peft", tmp_path / "again")
    one, other = (load_file(folder / "model.safetensors") for folder in (merged, again))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_what_mlx_cannot_say_is_refused(saved: Saved, tmp_path: Path) -> None:
    made = converted(mlx(tmp_path / "mlx", saved), tmp_path / "peft")
    config = json.loads((made / "adapter_config.json").read_text())
    (made / "adapter_config.json").write_text(json.dumps({**config, "alpha_pattern": {"q_proj": 3}}))
    with pytest.raises(NotSupported, match="one rank and one scale"):
        converted(made, tmp_path / "x", "mlx")
    with pytest.raises(SurgeryError, match="no form `kohyya`"):
        converted(made, tmp_path / "x", "kohyya")


def test_on_the_command_line(saved: Saved, tmp_path: Path) -> None:
    words = ["convert-adapter", str(mlx(tmp_path / "mlx", saved)), "--to", "peft", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["lora_alpha"] == 8
