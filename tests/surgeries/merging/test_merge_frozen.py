"""What PEFT writes of the base beside LoRA on embeddings and heads replaces nothing: such adapters take weights, and
others beside them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

import surgery
from surgery.errors import NotSupported, PlanError
from surgery.lazy.tensor import Tensor, Zeros

Saved = Callable[..., Path]
# what the first adapter is on, and the second one, beside q_proj or its like
CASES: dict[str, tuple[str, Sequence[str], Sequence[str]]] = {
    "a head": ("llama", ["q_proj", "lm_head"], ["v_proj", "lm_head"]),
    "an embedding": ("llama", ["q_proj", "embed_tokens"], ["embed_tokens"]),
    "both": ("llama", ["embed_tokens", "lm_head"], ["q_proj", "lm_head"]),
    "a tied head": ("llama-tied", ["q_proj", "lm_head"], ["lm_head"]),
    "a tied embedding": ("llama-tied", ["q_proj", "embed_tokens"], ["v_proj", "embed_tokens"]),
    "a tied head and its embedding": ("llama-tied", ["lm_head"], ["embed_tokens"]),
    "a Conv1D model's": ("gpt2", ["c_attn", "wte"], ["wte", "lm_head"]),
    "a fused model's": ("bloom", ["word_embeddings"], ["query_key_value", "lm_head"]),
}


def trained(base: Path, kind: Any, targets: Sequence[str], folder: Path, seed: int, **options: Any) -> Path:
    model = peft.get_peft_model(kind.from_pretrained(base), peft.LoraConfig(r=2, target_modules=targets, **options))
    made = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=made))
    model.save_pretrained(folder)
    return folder


def live(base: Path, kind: Any, adapters: Mapping[Path, float], family: str) -> torch.Tensor:
    """What the model computes with all adapters on at once, each scaled by its weight."""
    model: Any = None
    for number, path in enumerate(adapters):
        if model is None:
            model = peft.PeftModel.from_pretrained(kind.from_pretrained(base), path, adapter_name="0")
        else:
            model.load_adapter(path, adapter_name=str(number))
    names = [str(number) for number in range(len(adapters))]
    model.base_model.set_adapter(names)
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            for name, weight in zip(names, adapters.values(), strict=True):
                if name in module.scaling:
                    module.set_scale(name, weight)
    return tiny_models.output(model.eval(), family)


def check_merged(base: Path, adapters: Mapping[Path, float], family: str, out: Path) -> None:
    kind = type(tiny_models.build(family))
    plain = tiny_models.output(kind.from_pretrained(base).eval(), family)
    want = live(base, kind, adapters, family)
    made = surgery.merge(
        surgery.open_checkpoint(base), [surgery.open_adapter(one) for one in adapters], list(adapters.values())
    )
    surgery.write(made, out)
    got = tiny_models.output(kind.from_pretrained(out).eval(), family)
    assert (want - plain).abs().max() > 1e-2
    assert (want - got).abs().max() < 1e-4 * want.abs().max()


@pytest.mark.parametrize("case", CASES)
def test_a_weight_and_a_second_adapter(case: str, saved: Saved, tmp_path: Path) -> None:
    family, first, second = CASES[case]
    base, kind = saved(family), type(tiny_models.build(family))
    one, two = (trained(base, kind, targets, tmp_path / name, i) for i, (name, targets) in
                enumerate((("one", first), ("two", second))))  # fmt: skip
    held = {name for path in (one, two) for name in load_file(path / "adapter_model.safetensors")}
    assert any("base_layer" in name for name in held)
    check_merged(base, {one: 0.5}, family, tmp_path / "scaled")
    check_merged(base, {one: 1.0, two: 1.0}, family, tmp_path / "both")
    check_merged(base, {one: 0.7, two: -0.3}, family, tmp_path / "weighted")
    proof = surgery.verify(tmp_path / "weighted", base=base, adapter=[one, two])
    assert proof.ok, proof


def test_the_base_comes_back(saved: Saved, tmp_path: Path) -> None:
    base, kind = saved("llama"), type(tiny_models.build("llama"))
    one = trained(base, kind, ["q_proj", "lm_head"], tmp_path / "one", 1)
    opened = surgery.open_checkpoint(base)
    merged = surgery.merge(opened, surgery.open_adapter(one), scale=0.3)
    assert any(name.endswith("lm_head.base_layer.weight") for name in merged.dropped)
    surgery.write(surgery.reversible(merged, opened), tmp_path / "merged")
    surgery.write(surgery.unmerge(surgery.open_checkpoint(tmp_path / "merged")), tmp_path / "back")
    before, after = (
        {n: t for f in path.glob("*.safetensors") for n, t in load_file(f).items()}
        for path in (base, tmp_path / "back")
    )
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_base_of_16_bits_that_was_trained_in_32(saved: Saved, tmp_path: Path) -> None:
    """The copy is in float32, and holds the same numbers."""
    base, kind = saved("llama", dtype=torch.bfloat16), type(tiny_models.build("llama"))
    one = trained(base, kind, ["lm_head"], tmp_path / "one", 1)
    path = one / "adapter_model.safetensors"
    wide = {name: tensor.float() for name, tensor in load_file(path).items()}
    save_file(wide, path, {"format": "pt"})
    merged = surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(one), scale=0.5)
    surgery.write(merged, tmp_path / "merged")
    name = "base_model.model.lm_head.lora_{}.weight"
    delta = wide[name.format("B")] @ wide[name.format("A")] * (8 / 2 * 0.5)
    want = (load_file(base / "model.safetensors")["lm_head.weight"].float() + delta).bfloat16()
    assert torch.equal(load_file(tmp_path / "merged" / "model.safetensors")["lm_head.weight"], want)


def test_a_head_that_is_not_the_base_s_is_refused_as_before(saved: Saved, tmp_path: Path) -> None:
    """One number of it differs: it was trained, or is another base's."""
    base, kind = saved("llama"), type(tiny_models.build("llama"))
    one, two = (trained(base, kind, ["q_proj", "lm_head"], tmp_path / str(i), i) for i in (1, 2))
    path = one / "adapter_model.safetensors"
    held = load_file(path)
    held["base_model.model.lm_head.base_layer.weight"][-1, -1] += 1
    save_file(held, path, {"format": "pt"})
    opened = surgery.open_checkpoint(base)
    with pytest.raises(NotSupported, match="can only be merged with weight 1"):
        surgery.merge(opened, surgery.open_adapter(one), scale=0.5)
    with pytest.raises(PlanError, match="one adapter replaces a tensor that another one adds to"):
        surgery.merge(opened, [surgery.open_adapter(one), surgery.open_adapter(two)])


def test_of_tied_tensors_all_are_copies_or_none(saved: Saved, tmp_path: Path) -> None:
    """The embedding as it is in the base, and a trained head beside it: both values stay as they are."""
    base = saved("llama-tied")
    embedding = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    folder = tmp_path / "one"
    trained(base, type(tiny_models.build("llama-tied")), ["q_proj"], folder, 1)
    path = folder / "adapter_model.safetensors"
    held = load_file(path) | {
        "base_model.model.lm_head.weight": embedding + 1,
        "base_model.model.model.embed_tokens.weight": embedding.clone(),
    }
    save_file(held, path, {"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "modules_to_save": ["lm_head"]}))
    with pytest.raises(NotSupported, match="can only be merged with weight 1"):
        surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(folder), scale=0.5)


def test_only_what_matters_is_read(saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, kind = saved("llama"), type(tiny_models.build("llama"))
    one = trained(base, kind, ["q_proj", "lm_head"], tmp_path / "one", 1)
    two = trained(base, kind, ["q_proj"], tmp_path / "two", 2)
    read = list[tuple[Any, ...]]()
    from surgery.evaluation import compare

    def noted(first: Tensor, second: Tensor, *rest: Any) -> bool:
        """Of the base; whether a factor is zero is asked of the adapter."""
        if isinstance(second, Zeros):
            return False
        read.append((first, second))
        return True

    monkeypatch.setattr(compare, "same", noted)
    opened = surgery.open_checkpoint(base)
    surgery.merge(opened, surgery.open_adapter(one))
    surgery.merge(opened, [surgery.open_adapter(one), surgery.open_adapter(two)])
    assert not read
    surgery.merge(opened, surgery.open_adapter(one), scale=2.0)
    assert len(read) == 1
