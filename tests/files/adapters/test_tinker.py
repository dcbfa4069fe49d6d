"""Adapters of tinker: its names, its stacks of experts, what experts share; judged by the live classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from foreign import merged_with, saved_as, weights_in

import surgery
from surgery.errors import AdapterError, NotPlaced, NotSupported

Saved = Callable[..., Path]
EXPERTS, HIDDEN, WIDE, R = 4, 16, 12, 2
CONFIG = {"peft_type": "LORA", "r": R, "lora_alpha": 6, "target_modules": "all-linear", "bias": "none"}
SIZES: dict[str, Any] = {"hidden_size": HIDDEN, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
MORE: dict[str, Any] = {"num_hidden_layers": 1, "vocab_size": 24, "num_experts": EXPERTS, "num_experts_per_tok": 2}


def moe(**options: Any) -> tf.PreTrainedModel:
    torch.manual_seed(0)
    config = tf.Qwen3MoeConfig(
        **SIZES, **MORE, intermediate_size=WIDE, moe_intermediate_size=WIDE, mlp_only_layers=[], **options
    )
    return tf.Qwen3MoeForCausalLM(config).eval()


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.4


def factors() -> dict[str, torch.Tensor]:
    """As tinker saves them: gate and up share A, down shares B, the attention and the head are plain."""
    at, made = "base_model.model.model.layers.0", dict[str, torch.Tensor]()
    pairs = {
        f"{at}.mlp.experts.w1": (random(1, R, HIDDEN), random(EXPERTS, WIDE, R)),
        f"{at}.mlp.experts.w3": (random(1, R, HIDDEN), random(EXPERTS, WIDE, R) + 0.1),
        f"{at}.mlp.experts.w2": (random(EXPERTS, R, WIDE), random(1, HIDDEN, R)),
        f"{at}.self_attn.q_proj": (random(R, HIDDEN), random(16, R)),
        "base_model.model.model.unembed_tokens": (random(R, HIDDEN), random(24, R)),
    }
    for module, (a, b) in pairs.items():
        made |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    return made


def applied(model: tf.PreTrainedModel, tensors: dict[str, torch.Tensor]) -> tf.PreTrainedModel:
    """The live model with what tinker's own conversion adds, expert by expert."""
    pair = {k.removesuffix(".lora_A.weight").removeprefix("base_model.model."): k for k in tensors if "lora_A" in k}
    experts = model.model.layers[0].mlp.experts
    with torch.no_grad():
        for module, name in pair.items():
            a, b = tensors[name], tensors[name.replace("lora_A", "lora_B")]
            delta = 3 * (b @ a)  # alpha / r; the one of E = 1 is everyone's
            leaf = module.rpartition(".")[2]
            if leaf == "w1":
                experts.gate_up_proj[:, :WIDE] += delta
            elif leaf == "w3":
                experts.gate_up_proj[:, WIDE:] += delta
            elif leaf == "w2":
                experts.down_proj += delta
            elif leaf == "unembed_tokens":
                model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight + delta)
            else:
                model.get_submodule(module).weight += delta
    return model


def logits(model: tf.PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(12)[None]).logits


@pytest.mark.parametrize("tied", [False, True])
def test_it_computes_what_tinkers_conversion_adds(tied: bool, tmp_path: Path) -> None:
    """Of a tied head, LoRA is on the head alone: the embedding stays."""
    model = moe(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "base")
    plain = logits(model)
    saved_as(tmp_path / "a", factors(), "adapter_model.safetensors", CONFIG)
    out = merged_with(tmp_path / "base", tmp_path / "a", tmp_path / "out")
    live = logits(applied(model, factors()))
    found = logits(tf.Qwen3MoeForCausalLM.from_pretrained(out).eval())
    largest = live.abs().max()
    assert (found - live).abs().max() <= 1e-5 * largest
    assert (plain - live).abs().max() >= 0.05 * largest
    base, new = weights_in(tmp_path / "base"), weights_in(out)
    assert torch.equal(base["model.embed_tokens.weight"], new["model.embed_tokens.weight"])
    assert surgery.verify(out, base=tmp_path / "base", adapter=tmp_path / "a").ok
    made = surgery.merge(surgery.open_checkpoint(tmp_path / "base"), surgery.open_adapter(tmp_path / "a"))
    assert any("the head alone has the change" in note for note in made.notes) == tied


def test_inspect_and_convert(tmp_path: Path) -> None:
    moe().save_pretrained(tmp_path / "base")
    saved_as(tmp_path / "a", factors(), "adapter_model.safetensors", CONFIG)
    found = surgery.inspect(tmp_path / "a")
    assert found.adapter["format"] == "tinker" and found.adapter["modules"] == 3 * EXPERTS + 2
    with pytest.raises(AdapterError, match="depends on its base") as caught:
        surgery.convert_adapter(surgery.open_adapter(tmp_path / "a"))
    assert "--base" in str(caught.value)
    base = surgery.open_checkpoint(tmp_path / "base")
    made = surgery.convert_adapter(surgery.open_adapter(tmp_path / "a"), base=base)
    surgery.write(made, tmp_path / "peft")
    one, two = (weights_in(merged_with(tmp_path / "base", tmp_path / x, tmp_path / f"o{x}")) for x in ("a", "peft"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_placeholders_are_dropped_by_name(tmp_path: Path) -> None:
    moe().save_pretrained(tmp_path / "base")
    at = "base_model.model.model.layers.0.mlp.experts.w1"
    empty = {f"{at}.lora_A.weight": torch.empty(0, R, HIDDEN), f"{at}.lora_B.weight": torch.empty(0, WIDE, R)}
    full = factors()
    for name, held in (("a", {**full, **empty}), ("b", {key: one for key, one in full.items() if key not in empty})):
        saved_as(tmp_path / name, held, "adapter_model.safetensors", CONFIG)
    merged = surgery.merge(surgery.open_checkpoint(tmp_path / "base"), surgery.open_adapter(tmp_path / "a"))
    assert set(empty) <= set(surgery.plan(merged).dropped)
    one, two = (weights_in(merged_with(tmp_path / "base", tmp_path / x, tmp_path / f"o{x}")) for x in ("a", "b"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_model_that_sees(tmp_path: Path) -> None:
    """`model.` is `model.language_model.` there."""
    from surgery.files.adapters.tinker import _called

    names = ["model.language_model.layers.0.self_attn.q_proj.weight", "lm_head.weight", "model.visual.x.weight"]
    assert _called("model.layers.0.self_attn.q_proj", names) == "model.language_model.layers.0.self_attn.q_proj"
    assert _called("model.unembed_tokens", names) == "lm_head"
    assert _called("model.layers.0.attn.q_proj", names) == "model.language_model.layers.0.self_attn.q_proj"
    assert _called("model.layers.0.experts.1.w2", ["model.layers.0.experts.1.w2.weight"]).endswith("experts.1.w2")


BROKEN: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any], type[Exception], str]] = {
    "both shared": (
        {"w1.lora_A": random(1, R, HIDDEN), "w1.lora_B": random(1, WIDE, R)},
        {},
        AdapterError,
        "nor shared",
    ),
    "counts": ({"w1.lora_A": random(3, R, HIDDEN), "w1.lora_B": random(4, WIDE, R)}, {}, AdapterError, "nor shared"),
    "ranks": ({"w1.lora_A": random(4, 3, HIDDEN), "w1.lora_B": random(4, WIDE, R)}, {}, AdapterError, "nor shared"),
    "patterns": ({}, {"rank_pattern": {"q_proj": 1}}, NotSupported, "rank_pattern in an adapter of tinker's"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_contradicts_itself_is_refused(case: str, tmp_path: Path) -> None:
    tensors, more, kind, said = BROKEN[case]
    at = "base_model.model.model.layers.0.mlp.experts"
    odd = {f"{at}.{name}.weight": one for name, one in tensors.items()}
    saved_as(tmp_path / "a", {**factors(), **odd}, "adapter_model.safetensors", {**CONFIG, **more})
    with pytest.raises(kind, match=said):
        surgery.open_adapter(tmp_path / "a")


def test_another_base_is_refused(saved: Saved, tmp_path: Path) -> None:
    saved_as(tmp_path / "a", factors(), "adapter_model.safetensors", CONFIG)
    with pytest.raises((NotPlaced, AdapterError)):
        merged_with(saved("llama"), tmp_path / "a", tmp_path / "out")
