"""LoRA on Megatron's modules, held against its layout: a fused matrix of its own, made of the base's row by row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from foreign import check_computes, computed, merged_with, saved_as, weights_in

import surgery
from surgery.errors import AdapterError, FormatError, NotSupported

Saved = Callable[..., Path]
HEADS, GROUPS, DIM, HIDDEN, WIDE, R, ALPHA = 4, 2, 10, 48, 80, 3, 6
AT = "decoder.layers.0"


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.3


def pair(module: str, out: int, into: int) -> dict[str, torch.Tensor]:
    return {f"{module}.linear_in.weight": random(R, into), f"{module}.linear_out.weight": random(out, R)}


def fused() -> dict[str, torch.Tensor]:
    return {
        **pair(f"{AT}.self_attention.linear_qkv.adapter", (HEADS + 2 * GROUPS) * DIM, HIDDEN),
        **pair(f"{AT}.self_attention.linear_proj.adapter", HIDDEN, HEADS * DIM),
        **pair(f"{AT}.mlp.linear_fc1.adapter", 2 * WIDE, HIDDEN),
        **pair(f"{AT}.mlp.linear_fc2.adapter", HIDDEN, WIDE),
    }


def live(weights: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Megatron's own fused matrices, made of the base's heads one by one, with LoRA on, taken apart again."""
    made, own = dict(weights), "model.layers.0"

    def delta(module: str) -> torch.Tensor:
        name = f"{AT}.{module}.adapter.linear_"
        return ALPHA / R * tensors[f"{name}out.weight"] @ tensors[f"{name}in.weight"]

    at = 0
    qkv = delta("self_attention.linear_qkv")
    for group in range(GROUPS):
        for slot, (leaf, head) in enumerate([*(("q", group * 2 + i) for i in range(2)), ("k", group), ("v", group)]):
            assert slot < 4
            name = f"{own}.self_attn.{leaf}_proj.weight"
            made[name] = made[name].clone()
            made[name][head * DIM : (head + 1) * DIM] += qkv[at : at + DIM]
            at += DIM
    fc1 = delta("mlp.linear_fc1")
    made[f"{own}.mlp.gate_proj.weight"] = made[f"{own}.mlp.gate_proj.weight"] + fc1[:WIDE]
    made[f"{own}.mlp.up_proj.weight"] = made[f"{own}.mlp.up_proj.weight"] + fc1[WIDE:]
    made[f"{own}.self_attn.o_proj.weight"] = made[f"{own}.self_attn.o_proj.weight"] + delta(
        "self_attention.linear_proj"
    )
    made[f"{own}.mlp.down_proj.weight"] = made[f"{own}.mlp.down_proj.weight"] + delta("mlp.linear_fc2")
    return made


@pytest.mark.parametrize("prefix", ["", "module."])
def test_fused_modules_are_the_bases_apart(prefix: str, saved: Saved, tmp_path: Path) -> None:
    base = saved("llama")
    file = saved_as(tmp_path / "a", {f"{prefix}{name}": one for name, one in fused().items()}, "lora.safetensors")
    out = merged_with(base, file, tmp_path / "out", alpha=ALPHA)
    check_computes("llama", base, out, computed("llama", live(weights_in(base), fused())))
    assert surgery.verify(out, base=base, adapter=file, alpha=ALPHA).ok


def test_canonical_modules_are_plain(saved: Saved, tmp_path: Path) -> None:
    base = saved("llama")
    tensors = {
        **pair(f"{AT}.self_attention.linear_qkv.adapter_q", HEADS * DIM, HIDDEN),
        **pair(f"{AT}.self_attention.linear_qkv.adapter_v", GROUPS * DIM, HIDDEN),
        **pair(f"{AT}.mlp.linear_fc1.adapter_up", WIDE, HIDDEN),
    }
    old = weights_in(base)
    new = weights_in(merged_with(base, saved_as(tmp_path / "a", tensors, "l.safetensors"), tmp_path / "o", alpha=ALPHA))
    for module, leaf in (
        ("self_attention.linear_qkv.adapter_q", "self_attn.q_proj"),
        ("mlp.linear_fc1.adapter_up", "mlp.up_proj"),
    ):
        b, a = (tensors[f"{AT}.{module}.linear_{way}.weight"] for way in ("out", "in"))
        name = f"model.layers.0.{leaf}.weight"
        assert torch.allclose(new[name] - old[name], 2 * b @ a, atol=1e-5)
    assert torch.equal(new["model.layers.0.self_attn.k_proj.weight"], old["model.layers.0.self_attn.k_proj.weight"])


def test_it_is_told_and_alpha_is_asked_for(saved: Saved, tmp_path: Path) -> None:
    file = saved_as(tmp_path / "a", fused(), "lora.safetensors")
    assert surgery.inspect(file).adapter["format"] == "Megatron"
    with pytest.raises(AdapterError, match="does not say alpha"):
        surgery.open_adapter(file)
    made = surgery.convert_adapter(
        surgery.open_adapter(file, alpha=ALPHA), base=surgery.open_checkpoint(saved("llama"))
    )
    surgery.write(made, tmp_path / "peft")
    one = weights_in(merged_with(saved("llama"), file, tmp_path / "one", alpha=ALPHA))
    two = weights_in(merged_with(saved("llama"), tmp_path / "peft", tmp_path / "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


ODD: dict[str, tuple[str, dict[str, torch.Tensor], type[Exception], str]] = {
    "another type": ("gpt2", fused(), NotSupported, "model type `gpt2` is not known"),
    "a piece": (
        "llama",
        pair(f"{AT}.self_attention.linear_qkv.adapter", 40, HIDDEN),
        AdapterError,
        "40 rows are not 2 groups",
    ),
    "half": (
        "llama",
        pair(f"{AT}.mlp.linear_fc1.adapter", 80, HIDDEN),
        AdapterError,
        "80 rows are not gate's and up's",
    ),
    "a router": ("llama", pair(f"{AT}.mlp.router.adapter", 8, HIDDEN), NotSupported, "this module of Megatron's"),
    "both": (
        "llama",
        {**fused(), **pair(f"{AT}.self_attention.linear_qkv.adapter_q", HEADS * DIM, HIDDEN)},
        AdapterError,
        "two adapters are of one module",
    ),
    "its base": (
        "llama",
        {**fused(), f"{AT}.mlp.linear_fc2.to_wrap.weight": torch.ones(2, 2)},
        FormatError,
        "none of Megatron's",
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_what_does_not_fit_is_refused(case: str, saved: Saved, tmp_path: Path) -> None:
    family, tensors, kind, said = ODD[case]
    file = saved_as(tmp_path / "a", tensors, "lora.safetensors")
    with pytest.raises(kind, match=said):
        merged_with(saved(family), file, tmp_path / "out", alpha=ALPHA)
