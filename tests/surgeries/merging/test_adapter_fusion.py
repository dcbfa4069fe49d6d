"""Adapters across a fusion, judged by live PEFT models: what is computed before and after is the same.

The judge of the split side is the same transformers model with its fused projection taken apart by hand: q, k and v
are modules of their own, and their outputs are put together as the modeling code expects them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
from conftest import hashes
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

import surgery
from surgery.errors import AdapterError, LayoutError, NothingMatched, NotPlaced, NotSupported, SurgeryError

Saved = Callable[..., Path]
Join = Callable[[list[torch.Tensor]], torch.Tensor]


def blocked(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(parts, -1)


def per_head(parts: list[torch.Tensor]) -> torch.Tensor:
    """Three heads of 12: q, k and v of the first, then of the second, …"""
    return torch.stack([part.unflatten(-1, (3, 12)) for part in parts], -2).flatten(-3)


FAMILIES: dict[str, tuple[str, tuple[str, str, str], Join]] = {
    "phi3": ("qkv_proj", ("q_proj", "k_proj", "v_proj"), blocked),
    "gpt_neox": ("query_key_value", ("query", "key", "value"), per_head),
    "gpt2": ("c_attn", ("q_attn", "k_attn", "v_attn"), blocked),
    "sam": ("qkv", ("q", "k", "v"), blocked),
}


class Joined(torch.nn.Module):
    """In the place of a fused module: what its parts, modules of the parent, compute, put together."""

    def __init__(self, parent: torch.nn.Module, parts: tuple[str, ...], join: Join) -> None:
        super().__init__()
        self.of = (parent, parts, join)  # a tuple: the parent is no child

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        parent, parts, join = self.of
        return join([getattr(parent, part)(hidden) for part in parts])


def apart(family: str, split: Path) -> torch.nn.Module:
    """The family's model with q, k and v as modules of their own, with the weights of a split checkpoint."""
    leaf, parts, join = FAMILIES[family]
    model = tiny_models.build(family)
    tensors = {n: t for file in split.glob("*.safetensors") for n, t in load_file(file).items()}
    for name, module in list(model.named_modules()):
        if not name.endswith(f".{leaf}"):
            continue
        parent = model.get_submodule(name.rpartition(".")[0])
        for part in parts:
            weight = tensors[f"{name.rpartition('.')[0]}.{part}.weight"]
            bias = tensors.get(f"{name.rpartition('.')[0]}.{part}.bias")
            if isinstance(module, Conv1D):
                made: torch.nn.Module = Conv1D(weight.shape[1], weight.shape[0])
            else:
                made = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
            made.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
            setattr(parent, part, made)
        setattr(parent, leaf, Joined(parent, parts, join))
    return model.eval()


def trained(model: torch.nn.Module, folder: Path, **options: Any) -> torch.nn.Module:
    """A live PEFT model with random A, B, biases and magnitudes, saved as an adapter at `folder`."""
    torch.manual_seed(3)
    live = peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, "lora_alpha": 6, **options})).eval()
    with torch.no_grad():
        for name, parameter in live.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
            elif "lora_magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
    live.save_pretrained(folder)
    return live


def alive(model: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """The model with the adapter at `folder` live; every tensor of the file is in it, under PEFT's own names."""
    live = peft.PeftModel.from_pretrained(model, folder).eval()
    state = peft.get_peft_model_state_dict(live)
    stored = load_file(folder / "adapter_model.safetensors")
    assert state.keys() == stored.keys()
    for name, tensor in stored.items():
        assert torch.equal(state[name], tensor), name
    return live


def computed(model: Any, family: str) -> torch.Tensor:
    """What the model computes; of SAM, what the last layer of its vision encoder does: the random rest hardly looks
    at it.
    """
    if family != "sam":
        return tiny_models.output(model, family)
    layer = model.get_submodule(
        "base_model.model.vision_encoder" if isinstance(model, peft.PeftModel) else "vision_encoder"
    ).layers[-1]
    seen: list[torch.Tensor] = []
    hook = layer.register_forward_hook(
        lambda _, __, result: seen.append(result[0] if isinstance(result, tuple) else result)
    )
    tiny_models.output(model, family)
    hook.remove()
    return seen[0].float()


def compare(one: torch.Tensor, other: torch.Tensor, without: torch.Tensor) -> None:
    """Equal to float noise, where the adapter's effect is far above it."""
    effect = (one - without).abs().max()
    assert effect > 1e-3 * one.abs().max()
    assert (one - other).abs().max() < 1e-3 * effect


VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "lora_bias": {"lora_bias": True},
    "dora": {"use_dora": True},
}


@pytest.fixture(scope="module")
def bases(saved: Saved, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """bases(family) -> (fused checkpoint, split checkpoint)."""
    made: dict[str, tuple[Path, Path]] = {}

    def get(family: str) -> tuple[Path, Path]:
        if family not in made:
            split = tmp_path_factory.mktemp(f"{family}-split") / "split"
            surgery.write(surgery.split_qkv(surgery.open_checkpoint(saved(family))), split)
            made[family] = saved(family), split
        return made[family]

    return get


Bases = Callable[[str], tuple[Path, Path]]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_taken_apart_is_the_model(family: str, bases: Bases) -> None:
    before = computed(tiny_models.build(family), family)
    after = computed(apart(family, bases(family)[1]), family)
    assert (before - after).abs().max() < 1e-5 * before.abs().max()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_split_adapter_computes_the_same(family: str, variant: str, bases: Bases, tmp_path: Path) -> None:
    """LoRA on the fused projection, split for q, k and v; and back again, byte for byte."""
    base, split = bases(family)
    without = computed(tiny_models.build(family), family)
    fan = {"fan_in_fan_out": True} if family == "gpt2" else {}
    leaf = [FAMILIES[family][0]]
    live = computed(
        trained(tiny_models.build(family), tmp_path / "fused", target_modules=leaf, **fan, **VARIANTS[variant]), family
    )
    adapter = surgery.open_adapter(tmp_path / "fused")
    parted = surgery.split_qkv(adapter, base=surgery.open_checkpoint(base))
    surgery.write(parted, tmp_path / "parted")
    compare(live, computed(alive(apart(family, split), tmp_path / "parted"), family), without)
    again = surgery.fuse_qkv(surgery.open_adapter(tmp_path / "parted"), base=surgery.open_checkpoint(split))
    surgery.write(again, tmp_path / "again")
    weights = "adapter_model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (tmp_path / "fused" / weights).read_bytes()
    compare(live, computed(alive(tiny_models.build(family), tmp_path / "again"), family), without)


FUSIONS: dict[str, dict[str, Any]] = {
    **VARIANTS,
    "ranks": {"rank_pattern": {"{v}": 7}},
    "alphas": {"alpha_pattern": {"{q}": 17}, "rank_pattern": {"{v}": 3}},
    "rslora-alphas": {"use_rslora": True, "alpha_pattern": {"{q}": 5}},
    "bias-alphas": {"lora_bias": True, "alpha_pattern": {"{q}": 5}},
    "q and v": {"target_modules": ["{q}", "{v}"]},
    "regex": {"target_modules": r".*\.({q}|{k})"},
    "one layer": {"target_modules": r".*\.1\..*\.({q}|{v})"},
}


def filled(value: Any, parts: tuple[str, str, str]) -> Any:
    """The option with the family's names for {q}, {k} and {v}."""
    text = json.dumps(value)
    for key, part in zip("qkv", parts, strict=True):
        text = text.replace(f"{{{key}}}", part)
    return json.loads(text)


@pytest.mark.parametrize("variant", FUSIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_fused_adapter_computes_the_same(family: str, variant: str, bases: Bases, tmp_path: Path) -> None:
    """LoRA with A's of its own on each of q, k and v, or on some of them: block form, exact."""
    base, split = bases(family)
    parts = FAMILIES[family][1]
    fan = {"fan_in_fan_out": True} if family == "gpt2" else {}
    options = {"target_modules": list(parts), **fan, **filled(FUSIONS[variant], parts)}
    without = computed(tiny_models.build(family), family)
    live = computed(trained(apart(family, split), tmp_path / "apart", **options), family)
    for name, judge in (("fused", base), ("split", split)):  # the base may be given in either form
        fused = surgery.fuse_qkv(surgery.open_adapter(tmp_path / "apart"), base=surgery.open_checkpoint(judge))
        surgery.write(fused, tmp_path / name)
    assert hashes(tmp_path / "fused") == hashes(tmp_path / "split")
    compare(live, computed(alive(tiny_models.build(family), tmp_path / "fused"), family), without)


@pytest.mark.parametrize("family", FAMILIES)
def test_merge_takes_either_adapter_into_either_base(family: str, bases: Bases, tmp_path: Path) -> None:
    """Trained fused or apart, merged into the base that is split or fused: four ways, and the live model judges."""
    base, split = bases(family)
    leaf, parts, _ = FAMILIES[family]
    fan = {"fan_in_fan_out": True} if family == "gpt2" else {}
    without = computed(tiny_models.build(family), family)
    for kind, made in (("fused", lambda: tiny_models.build(family)), ("apart", lambda: apart(family, split))):
        targets = [leaf] if kind == "fused" else [parts[0], parts[2]]
        live = computed(trained(made(), tmp_path / kind, target_modules=targets, **fan), family)
        adapter = surgery.open_adapter(tmp_path / kind)
        whole = surgery.merge(surgery.open_checkpoint(base), adapter)
        into_split = surgery.merge(surgery.open_checkpoint(split), adapter)
        surgery.write(whole, tmp_path / f"{kind}-whole")
        surgery.write(into_split, tmp_path / f"{kind}-split")
        surgery.write(surgery.fuse_qkv(surgery.open_checkpoint(tmp_path / f"{kind}-split")), tmp_path / f"{kind}-again")
        assert hashes(tmp_path / f"{kind}-again") == hashes(
            tmp_path / f"{kind}-whole"
        )  # split, merge, fuse = merge fused
        across = into_split if kind == "fused" else whole
        assert any("the adapter was trained on" in note for note in across.notes)
        merged = type(tiny_models.build(family)).from_pretrained(tmp_path / f"{kind}-whole").eval()
        compare(live, computed(merged, family), without)


@pytest.mark.parametrize("order", [1, -1])
def test_adapters_of_both_kinds_merge_together(order: int, bases: Bases, tmp_path: Path) -> None:
    """One trained fused, one apart, into the fused base and into the split one: the same as the first with twice the
    weight.
    """
    base, split = map(surgery.open_checkpoint, bases("phi3"))
    trained(tiny_models.build("phi3"), tmp_path / "fused", target_modules=["qkv_proj"])
    fused = surgery.open_adapter(tmp_path / "fused")
    surgery.write(surgery.split_qkv(fused, base=base), tmp_path / "apart")
    both = [fused, surgery.open_adapter(tmp_path / "apart")][::order]
    twice = surgery.merge(base, fused, [2.0]).load("model.layers.1.self_attn.qkv_proj.weight")
    for checkpoint in (surgery.merge(base, both), surgery.fuse_qkv(surgery.merge(split, both))):
        made = checkpoint.load("model.layers.1.self_attn.qkv_proj.weight")
        assert (made - twice).abs().max() < 1e-5 * twice.abs().max()


def test_saved_biases_follow(saved: Saved, bases: Bases, tmp_path: Path) -> None:
    """bias="lora_only": the trained bias of the fused projection goes to its parts."""
    base, split = bases("gpt_neox")
    without = computed(tiny_models.build("gpt_neox"), "gpt_neox")
    live = trained(
        tiny_models.build("gpt_neox"), tmp_path / "first", target_modules=["query_key_value"], bias="lora_only"
    )
    with torch.no_grad():
        for name, parameter in live.named_parameters():
            if name.endswith("query_key_value.base_layer.bias"):
                parameter.add_(torch.randn_like(parameter))
    live.save_pretrained(tmp_path / "fused")
    parted = surgery.split_qkv(surgery.open_adapter(tmp_path / "fused"), base=surgery.open_checkpoint(base))
    surgery.write(parted, tmp_path / "parted")
    assert sum(name.endswith("attention.value.base_layer.bias") for name in parted.tensors) == 3
    compare(
        computed(live, "gpt_neox"), computed(alive(apart("gpt_neox", split), tmp_path / "parted"), "gpt_neox"), without
    )
    merged = surgery.fuse_qkv(surgery.merge(surgery.open_checkpoint(split), surgery.open_adapter(tmp_path / "parted")))
    surgery.write(merged, tmp_path / "merged")
    again = type(tiny_models.build("gpt_neox")).from_pretrained(tmp_path / "merged").eval()
    compare(computed(live, "gpt_neox"), computed(again, "gpt_neox"), without)


def test_other_modules_and_files_are_carried(bases: Bases, tmp_path: Path) -> None:
    base, _ = bases("phi3")
    trained(
        tiny_models.build("phi3"), tmp_path / "fused", target_modules=["qkv_proj", "o_proj"], rank_pattern={"o_proj": 9}
    )
    (tmp_path / "fused" / "tokenizer.json").write_text("{}")
    (tmp_path / "fused" / "optimizer.pt").write_bytes(b"state")
    report = surgery.write(
        surgery.split_qkv(surgery.open_adapter(tmp_path / "fused"), base=surgery.open_checkpoint(base)),
        tmp_path / "out",
    )
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}" and (tmp_path / "out" / "README.md").is_file()
    assert not (tmp_path / "out" / "optimizer.pt").exists()
    assert any("optimizer.pt" in note for note in report.notes)
    before = load_file(tmp_path / "fused" / "adapter_model.safetensors")
    after = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {n: t.tolist() for n, t in before.items() if "o_proj" in n} == {
        n: t.tolist() for n, t in after.items() if "o_proj" in n
    }
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert (config["r"], config["rank_pattern"]) == (4, {"o_proj": 9})


def test_a_given_layout_needs_no_base(bases: Bases, tmp_path: Path) -> None:
    base, _ = bases("phi3")
    trained(tiny_models.build("phi3"), tmp_path / "fused", target_modules=["qkv_proj"])
    adapter = surgery.open_adapter(tmp_path / "fused")
    given = surgery.Given(layout="blocked", slots=(4, 2, 2))
    surgery.write(surgery.split_qkv(adapter, given=given), tmp_path / "given")
    surgery.write(surgery.split_qkv(adapter, base=surgery.open_checkpoint(base)), tmp_path / "known")
    assert hashes(tmp_path / "given") == hashes(tmp_path / "known")


# Refusals


def check_refused(kind: type[SurgeryError], what: str, action: Callable[[], object]) -> SurgeryError:
    with pytest.raises(kind, match=re.escape(what)) as error:
        action()
    return error.value


@pytest.fixture(scope="module")
def phi3(bases: Bases, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter on Phi-3's fused projection."""
    folder = tmp_path_factory.mktemp("phi3-adapter") / "adapter"
    trained(tiny_models.build("phi3"), folder, target_modules=["qkv_proj"])
    return folder


def test_refuses_an_adapter_without_a_base(phi3: Path) -> None:
    error = check_refused(
        SurgeryError,
        "the layout of an adapter's modules is its base's",
        lambda: surgery.split_qkv(surgery.open_adapter(phi3)),
    )
    assert error.help and "--base MODEL" in error.help


def test_refuses_an_adapter_of_another_layout(phi3: Path, saved: Saved, tmp_path: Path) -> None:
    config = json.loads((saved("phi3") / "config.json").read_text()) | {"num_key_value_heads": 4}
    tensors = load_file(saved("phi3") / "model.safetensors")
    for name in [n for n in tensors if "qkv_proj" in n]:
        tensors[name] = torch.zeros(144, 48)
    (tmp_path / "base").mkdir()
    save_file(tensors, tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    base = surgery.open_checkpoint(tmp_path / "base")
    error = check_refused(
        LayoutError,
        "the adapter was trained on another layout",
        lambda: surgery.split_qkv(surgery.open_adapter(phi3), base=base),
    )
    assert "(96, 4)" in error.where[1] and "144 rows" in error.where[1]


def test_refuses_what_is_done_or_elsewhere(phi3: Path, bases: Bases, saved: Saved, tmp_path: Path) -> None:
    base, split = map(surgery.open_checkpoint, bases("phi3"))
    adapter = surgery.open_adapter(phi3)
    check_refused(NothingMatched, "the adapter is already fused", lambda: surgery.fuse_qkv(adapter, base=base))
    parted = surgery.split_qkv(adapter, base=base)
    check_refused(NothingMatched, "the adapter is already split", lambda: surgery.split_qkv(parted, base=split))
    llama = surgery.open_checkpoint(saved("llama"))
    check_refused(
        NothingMatched,
        "the base has no fused qkv or kv, and no parts of one",
        lambda: surgery.split_qkv(adapter, base=llama),
    )
    check_refused(AdapterError, "trained on a model of type `phi3`", lambda: surgery.merge(llama, adapter))
    lost = "3 of the adapter's 3 modules have no place in the base"
    check_refused(NotPlaced, lost, lambda: surgery.merge(llama, adapter, any_base=True))


def test_refuses_dora_on_some_parts(bases: Bases, tmp_path: Path) -> None:
    """The other rows' magnitudes would be norms of the base's rows."""
    base, split = bases("phi3")
    trained(apart("phi3", split), tmp_path / "apart", target_modules=["q_proj", "v_proj"], use_dora=True)
    adapter = surgery.open_adapter(tmp_path / "apart")
    check_refused(
        NotSupported,
        "DoRA on some parts only cannot be fused",
        lambda: surgery.fuse_qkv(adapter, base=surgery.open_checkpoint(base)),
    )


def test_refuses_other_kinds_and_broken_adapters(phi3: Path, saved: Saved, tmp_path: Path) -> None:
    base = surgery.open_checkpoint(saved("phi3"))

    def changed(name: str, config: dict[str, Any] | None = None, drop: str = "") -> surgery.Adapter:
        folder = tmp_path / name
        folder.mkdir()
        tensors = load_file(phi3 / "adapter_model.safetensors")
        save_file(
            {n: t for n, t in tensors.items() if not drop or not n.endswith(drop)}, folder / "adapter_model.safetensors"
        )
        before = json.loads((phi3 / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(before | (config or {})))
        return surgery.open_adapter(folder)

    other = changed("loha", {"peft_type": "LOHA"})
    check_refused(
        NotSupported, "adapters of kind LOHA cannot be split or fused", lambda: surgery.split_qkv(other, base=base)
    )
    check_refused(AdapterError, "lora_alpha = '16', and not a number", lambda: changed("text", {"lora_alpha": "16"}))
