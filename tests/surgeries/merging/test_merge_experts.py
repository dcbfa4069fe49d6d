"""LoRA on all experts at once: merged, the class computes what PEFT's live model computes, however the files store
the experts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
from models.fused import stacks
from safetensors.torch import load_file, save_file

import surgery
from surgery.adapters.experts import IN_OUT, ORDER, UNFLAGGED
from surgery.errors import AdapterError, NotPlaced, NotSupported, PlanError, SurgeryError

EXPERTS = stacks.EXPERTS
BOTH = ["experts.gate_up_proj", "experts.down_proj"]


@dataclass(frozen=True)
class Case:
    """A model type, its sizes, and the LoraConfig of its adapter."""

    kind: str
    lora: Mapping[str, Any] = field(default_factory=lambda: {"target_parameters": BOTH})
    sizes: Mapping[str, Any] = field(default_factory=dict)
    shard: str | None = None


LLAMA4 = {"intermediate_size_mlp": 20, "interleave_moe_layer_step": 1}
SQUARE = {"hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 16}
PATTERNS = {
    "target_parameters": BOTH,
    "rank_pattern": {r".*\.gate_up_proj": 2, r"layers\.1\.mlp\.experts\.down_proj": 5},
    "alpha_pattern": {"experts.down_proj": 3, r"model.layers.0.mlp.experts.gate_up_proj": 11},
}
CASES = {
    "qwen3_moe, one file for each expert": Case("qwen3_moe"),
    "qwen3_moe, a layer in many shards": Case("qwen3_moe", shard="4KB"),
    "qwen3_moe, gate and up only": Case("qwen3_moe", {"target_parameters": BOTH[:1]}),
    "qwen3_moe, down only": Case("qwen3_moe", {"target_parameters": BOTH[1:]}),
    "qwen3_moe, patterns": Case("qwen3_moe", PATTERNS),
    "qwen3_moe, patterns and rslora": Case("qwen3_moe", {**PATTERNS, "use_rslora": True}),
    "qwen3_moe, attention and router, too": Case(
        "qwen3_moe",
        {"target_parameters": [*BOTH, "mlp.gate.weight"], "target_modules": ["q_proj", "o_proj"], "lora_alpha": 3},
    ),
    "mixtral, other names": Case("mixtral"),
    "mixtral, other names, patterns": Case("mixtral", PATTERNS, shard="4KB"),
    "olmoe": Case("olmoe"),
    "nemotron_h, no gate": Case(
        "nemotron_h",
        {"target_parameters": ["experts.up_proj", "experts.down_proj"]},
        {
            "layers_block_type": ["moe", "attention"],
            "moe_shared_expert_intermediate_size": 8,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    "granitemoe, stored at once under other names": Case("granitemoe"),
    "gemma4_text, stored at once": Case("gemma4_text", sizes=stacks.SAVED[9].sizes),
    "gpt_oss, in turn and transposed": Case("gpt_oss"),
    "gpt_oss, in many shards": Case("gpt_oss", shard="4KB"),
    "gpt_oss, biases, too": Case(
        "gpt_oss", {"target_parameters": [*BOTH, "experts.gate_up_proj_bias", "experts.down_proj_bias"]}
    ),
    "gpt_oss, square": Case("gpt_oss", sizes=SQUARE),
    "llama4_text, transposed and not told so": Case("llama4_text", sizes=LLAMA4),
    "llama4_text, square": Case("llama4_text", sizes={**LLAMA4, **SQUARE}),
    "qwen3_moe, square": Case("qwen3_moe", sizes=SQUARE),
}


def inputs() -> torch.Tensor:
    return torch.randint(3, 97, (2, 17), generator=torch.Generator().manual_seed(7))


def output(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(inputs()).logits.float()


def randomised(model: Any, seed: int = 1) -> Any:
    """An adapted model with random factors, big enough to show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def trained(case: Case, folder: Path, *, seed: int = 1) -> torch.Tensor:
    """`folder`/base and `folder`/adapter, and what the live adapted model computes."""
    model = stacks.build(case.kind, **case.sizes)
    model.save_pretrained(folder / "base", **({"max_shard_size": case.shard} if case.shard else {}))
    lora = {"r": 3, "lora_alpha": 6, "target_modules": [], **case.lora}
    adapted = randomised(peft.get_peft_model(model, peft.LoraConfig(**lora)), seed)
    adapted.save_pretrained(folder / "adapter")
    return output(adapted)


def merged(
    folder: Path, out: str = "out", *, base: str = "base", adapters: tuple[str, ...] = ("adapter",), **options: Any
) -> Path:
    opened = [surgery.open_adapter(folder / name) for name in adapters]
    surgery.write(surgery.merge(surgery.open_checkpoint(folder / base), opened, **options), folder / out)
    return folder / out


def differs(case: Case, path: Path, live: torch.Tensor) -> tuple[float, float]:
    """(error of the checkpoint against `live`, effect of the adapter), as shares of the largest output."""
    model = stacks.build(case.kind, **case.sizes)
    loaded, info = type(model).from_pretrained(path, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"] and not info["unexpected_keys"]
    largest = live.abs().max().item()
    return (output(loaded.eval()) - live).abs().max().item() / largest, (
        output(model) - live
    ).abs().max().item() / largest


def compare(case: Case, path: Path, live: torch.Tensor) -> None:
    error, effect = differs(case, path, live)
    assert error <= 1e-5, f"off by {error}"
    assert effect >= 1000 * max(error, torch.finfo(torch.float32).eps), (
        f"an effect of {effect} proves nothing against {error}"
    )


def rewritten(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor], **config: Any) -> None:
    """The adapter with its tensors changed."""
    file = folder / "adapter" / "adapter_model.safetensors"
    save_file({name: change(name, tensor).contiguous() for name, tensor in load_file(file).items()}, file)
    path = folder / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


@pytest.mark.parametrize("name", CASES)
def test_merged_computes_what_the_live_model_computes(name: str, tmp_path: Path) -> None:
    live = trained(CASES[name], tmp_path)
    if CASES[name].shard:
        assert len(list((tmp_path / "base").glob("*.safetensors"))) > 4, "no layer straddles two shards"
    compare(CASES[name], merged(tmp_path), live)


@pytest.mark.parametrize("name", ["mixtral, other names", "qwen3_moe, one file for each expert", "nemotron_h, no gate"])
def test_a_base_that_was_saved_as_the_class_holds_it_is_merged_alike(name: str, tmp_path: Path) -> None:
    """Stacked experts in the file of a type whose files have them apart."""
    live = trained(CASES[name], tmp_path)
    model = stacks.build(CASES[name].kind, **CASES[name].sizes)
    for file in (tmp_path / "base").glob("*.safetensors*"):
        file.unlink()
    save_file(
        {n: t.clone() for n, t in model.state_dict().items()}, tmp_path / "base" / "model.safetensors", {"format": "pt"}
    )
    compare(CASES[name], merged(tmp_path), live)


def slowest(experts: int) -> Callable[[str, torch.Tensor], torch.Tensor]:
    """B as if its experts were the slowest."""

    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.unflatten(1, (experts, -1)).transpose(1, 2).flatten(1) if "lora_B" in name else tensor

    return change


def halves(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Up for gate, and gate for up."""
    return torch.cat(tensor.chunk(2)[::-1]) if "base_layer.lora_B" in name else tensor


CONTROLS = {
    "expert-slowest B": ("qwen3_moe, one file for each expert", slowest(EXPERTS)),
    "expert-slowest B, at once": ("gpt_oss, in turn and transposed", slowest(EXPERTS)),
    "swapped halves": ("qwen3_moe, one file for each expert", halves),
    "swapped halves, other names": ("mixtral, other names", halves),
    "swapped halves, at once": ("granitemoe, stored at once under other names", halves),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_controls(name: str, tmp_path: Path) -> None:
    case, change = CASES[CONTROLS[name][0]], CONTROLS[name][1]
    live = trained(case, tmp_path)
    rewritten(tmp_path, change)
    error, _ = differs(case, merged(tmp_path), live)
    assert error > 0.01


@pytest.mark.parametrize("name", ["gpt_oss, square", "llama4_text, square", "qwen3_moe, square"])
def test_a_square_delta_that_is_turned_is_another(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the table: the other orientation fits as well, and is wrong."""
    case = replace(CASES[name], lora={"target_parameters": BOTH[1:]})
    live = trained(case, tmp_path)
    compare(case, merged(tmp_path), live)
    monkeypatch.setattr("surgery.adapters.experts.UNFLAGGED", {"gpt_oss", "qwen3_moe"})
    error, _ = differs(case, merged(tmp_path, "turned"), live)
    assert error > 0.01


# What is stored in another way than the adapter was trained


def by_hand(folder: Path) -> dict[str, torch.Tensor]:
    """The deltas of layer 1 of a qwen3_moe or mixtral adapter on all experts, (experts, out, in), as the issue has
    the formula.
    """
    tensors, config = (
        load_file(folder / "adapter_model.safetensors"),
        json.loads((folder / "adapter_config.json").read_text()),
    )
    found = {}
    for leaf, level in (("gate_up_proj", "base_layer."), ("down_proj", "")):
        a, b = (tensors[f"base_model.model.model.layers.1.mlp.experts.{level}lora_{x}.weight"] for x in "AB")
        a, b = a.unflatten(0, (EXPERTS, -1)), b.unflatten(1, (-1, EXPERTS))
        found[leaf] = torch.einsum("ore,eri->eoi", b, a) * config["lora_alpha"] / config["r"]
    return found


@pytest.mark.parametrize(
    "name", ["qwen3_moe, one file for each expert", "mixtral, other names", "gpt_oss, in turn and transposed"]
)
def test_a_base_that_surgery_took_apart_or_put_together(name: str, tmp_path: Path) -> None:
    """Files of single experts, fused; and stored at once, split: the same model comes out."""
    case = CASES[name]
    live = trained(case, tmp_path)
    apart = case.kind == "gpt_oss"
    there, back = (
        (surgery.split_experts, surgery.fuse_experts) if apart else (surgery.fuse_experts, surgery.split_experts)
    )
    surgery.write(there(surgery.open_checkpoint(tmp_path / "base")), tmp_path / "changed")
    path = merged(tmp_path, base="changed")
    surgery.write(back(surgery.open_checkpoint(path)), tmp_path / "back")
    compare(case, tmp_path / "back", live)


def single(folder: Path, case: Case, names: Mapping[str, str], parent: str) -> torch.Tensor:
    """`folder`/base and an adapter on each expert for itself, as transformers 4 had them; what PEFT computes live
    with it.
    """
    model = stacks.build(case.kind, **case.sizes)
    model.save_pretrained(folder / "base")
    generator = torch.Generator().manual_seed(5)
    base = load_file(folder / "base" / "model.safetensors")
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=list(names.values())).to_dict()
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text(
        json.dumps(config | {"target_modules": list(names.values())}, default=str)
    )
    tensors = {}
    for layer in range(2):
        for expert in range(EXPERTS):
            for leaf in names.values():
                module = f"model.layers.{layer}.{parent}.experts.{expert}.{leaf}"
                out, width = base[f"{module}.weight"].shape
                tensors[f"base_model.model.{module}.lora_A.weight"] = 0.3 * torch.randn(3, width, generator=generator)
                tensors[f"base_model.model.{module}.lora_B.weight"] = 0.3 * torch.randn(out, 3, generator=generator)
    save_file(tensors, folder / "adapter" / "adapter_model.safetensors")
    return output(peft.PeftModel.from_pretrained(model, folder / "adapter").eval())


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
def test_single_experts(kind: str, tmp_path: Path) -> None:
    """An adapter that was trained on each expert for itself, into single files and into a tensor of all of them."""
    case = Case(kind)
    names, parent = (
        (stacks_names()["qwen3_moe"], "mlp") if kind == "qwen3_moe" else (stacks_names()["mixtral"], "block_sparse_moe")
    )
    live = single(tmp_path, case, names, parent)
    compare(case, merged(tmp_path), live)
    surgery.write(surgery.fuse_experts(surgery.open_checkpoint(tmp_path / "base")), tmp_path / "fused")
    surgery.write(
        surgery.split_experts(surgery.open_checkpoint(merged(tmp_path, "out2", base="fused"))), tmp_path / "back"
    )
    compare(case, tmp_path / "back", live)


def stacks_names() -> dict[str, dict[str, str]]:
    from surgery.models.fused.tables.experts import PROJ, W123

    return {"qwen3_moe": dict(PROJ), "mixtral": dict(W123)}


def test_shared_and_routed_experts(tmp_path: Path) -> None:
    """qwen2_moe, of which PEFT drops the routed experts' LoRA when it loads the adapter: W + scale * B @ A by hand,
    for each.
    """
    model = stacks.build("qwen2_moe", shared_expert_intermediate_size=8)
    model.save_pretrained(tmp_path / "base")
    base, tensors, wanted = load_file(tmp_path / "base" / "model.safetensors"), {}, {}
    for name, weight in base.items():
        wanted[name] = weight
        if name.endswith("_proj.weight") and "expert" in name:
            a, b = torch.randn(3, weight.shape[1]), torch.randn(weight.shape[0], 3)
            key = f"base_model.model.{name.removesuffix('.weight')}"
            tensors |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
            wanted[name] = weight + 2 * b @ a
    (tmp_path / "adapter").mkdir()
    config = {
        "peft_type": "LORA",
        "r": 3,
        "lora_alpha": 6,
        "target_modules": list(stacks_names()["qwen3_moe"].values()),
    }
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    out = load_file(merged(tmp_path) / "model.safetensors")
    assert len(tensors) == 2 * 2 * 3 * (EXPERTS + 1)
    for name, weight in wanted.items():
        torch.testing.assert_close(out[name], weight)


@pytest.mark.parametrize(
    ("family", "target"), [("llama", "mlp.up_proj.weight"), ("gpt2", "attn.c_proj.weight"), ("llama", "o_proj.weight")]
)
def test_a_matrix(family: str, target: str, tmp_path: Path) -> None:
    """A weight that was targeted as a parameter, a square Conv1D's too, which PEFT does not turn."""
    model = tiny_models.build(family)
    model.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=3, target_modules=[], target_parameters=[target], alpha_pattern={f"1.*{target}": 20})
    adapted = randomised(peft.get_peft_model(model, config))
    adapted.save_pretrained(tmp_path / "adapter")
    live, plain = tiny_models.output(adapted, family), tiny_models.output(tiny_models.build(family), family)
    made = tiny_models.output(type(model).from_pretrained(merged(tmp_path)).eval(), family)
    error, effect = ((one - live).abs().max().item() for one in (made, plain))
    assert error <= 1e-5 * live.abs().max().item()
    assert effect >= 1000 * error


def test_several_adapters_and_weights(tmp_path: Path) -> None:
    """W + 0.7 * one - 0.3 * another, from single files, by hand."""
    for number in (1, 2):
        trained(CASES["qwen3_moe, one file for each expert"], tmp_path / str(number), seed=number)
    out = load_file(
        merged(tmp_path, base="1/base", adapters=("1/adapter", "2/adapter"), weights=[0.7, -0.3]) / "model.safetensors"
    )
    base = load_file(tmp_path / "1" / "base" / "model.safetensors")
    one, two = by_hand(tmp_path / "1" / "adapter"), by_hand(tmp_path / "2" / "adapter")
    delta = {leaf: 0.7 * one[leaf] - 0.3 * two[leaf] for leaf in one}
    for expert in range(EXPERTS):
        parent = f"model.layers.1.mlp.experts.{expert}"
        gate, up = delta["gate_up_proj"][expert].chunk(2)
        for leaf, change in (("gate_proj", gate), ("up_proj", up), ("down_proj", delta["down_proj"][expert])):
            torch.testing.assert_close(out[f"{parent}.{leaf}.weight"], base[f"{parent}.{leaf}.weight"] + change)


@pytest.mark.parametrize("version", [None, "0.18.1"])
def test_before_0_19_peft_took_the_middle_axis_for_in(version: str | None, tmp_path: Path) -> None:
    """(experts, out, in), A over out: einsum("o r e, e r i -> e i o"), by hand; square ones too."""
    trained(CASES["qwen3_moe, square"], tmp_path)
    a = torch.randn(EXPERTS * 3, 16, generator=torch.Generator().manual_seed(1))
    b = torch.randn(16, 3 * EXPERTS, generator=torch.Generator().manual_seed(2))
    config = tmp_path / "adapter" / "adapter_config.json"
    said = json.loads(config.read_text()) | {"target_parameters": ["experts.down_proj"], "peft_version": version}
    config.write_text(json.dumps(said))
    key = "base_model.model.model.layers.1.mlp.experts.lora_{}.weight"
    save_file({key.format("A"): a, key.format("B"): b}, tmp_path / "adapter" / "adapter_model.safetensors")
    delta = torch.einsum("ore,eri->eio", b.unflatten(1, (3, EXPERTS)), a.unflatten(0, (EXPERTS, 3))) * 2
    out, base = load_file(merged(tmp_path) / "model.safetensors"), load_file(tmp_path / "base" / "model.safetensors")
    for expert in range(EXPERTS):
        name = f"model.layers.1.mlp.experts.{expert}.down_proj.weight"
        torch.testing.assert_close(out[name], base[name] + delta[expert])


# Tables


@pytest.mark.parametrize("kind", ["qwen3_moe", *(case.kind for case in stacks.SAVED)])
def test_tables_agree_with_the_classes(kind: str) -> None:
    """The order of parameters, which axes they have, and whether the class says so."""
    case = next((case for case in stacks.SAVED if case.kind == kind), None)
    model = stacks.build(kind, **(case.sizes if case else {}))
    module = next(
        m
        for m in model.modules()
        if isinstance(getattr(m, "gate_up_proj", None), torch.nn.Parameter) and m.gate_up_proj.dim() == 3
    )
    names = [name for name, _ in module.named_parameters(recurse=False)]
    known = [name for name in names if name in ORDER]
    assert known == sorted(known, key=ORDER.index)
    assert {"gate_up_proj", "down_proj"} <= set(known)
    in_out = module.gate_up_proj.shape[1] == stacks.WIDTH
    assert in_out == (kind in IN_OUT)
    assert (in_out and not getattr(module, "is_transposed", False)) == (kind in UNFLAGGED)


# What is refused


def check_refused(folder: Path, error: type[SurgeryError], text: str, **options: Any) -> None:
    with pytest.raises(error) as caught:
        merged(folder, **options)
    assert text in str(caught.value)
    assert not (folder / "out").exists()


def test_refused_by_name(tmp_path: Path) -> None:
    trained(CASES["qwen3_moe, one file for each expert"], tmp_path)
    path = tmp_path / "adapter" / "adapter_config.json"
    good = path.read_text()
    for change, error, text in (
        ({"r": 4}, AdapterError, "does not fit rank 4 for each of 4 experts"),
        (
            {"target_parameters": BOTH[:1]},
            AdapterError,
            "has LoRA on 2 parameters, of which target_parameters names gate_up_proj",
        ),
        (
            {"target_parameters": None},
            AdapterError,
            "has LoRA on 2 parameters, of which target_parameters names none of them",
        ),
        (
            {"target_parameters": ["experts.down_proj", "experts.other"]},
            NotSupported,
            "which of the nested tensors belong to other",
        ),
    ):
        path.write_text(json.dumps(json.loads(good) | change))
        check_refused(tmp_path, error, text)
    path.write_text(good)
    wider = stacks.build("qwen3_moe", moe_intermediate_size=14)
    wider.save_pretrained(tmp_path / "wider")
    check_refused(
        tmp_path, AdapterError, "does not fit the class's axes: lora_A is (12, 12), lora_B (16, 12)", base="wider"
    )
    tiny_models.build("llama").save_pretrained(tmp_path / "llama")
    rewritten(tmp_path, lambda _, tensor: tensor, auto_mapping=None)
    check_refused(
        tmp_path,
        NotPlaced,
        "4 of the 4 parameters that the adapter was trained on have no place in the base",
        base="llama",
    )


def test_all_at_once_and_single_ones_in_one_tensor_are_merged_one_after_another(tmp_path: Path) -> None:
    trained(CASES["qwen3_moe, one file for each expert"], tmp_path / "1")
    single(tmp_path / "2", Case("qwen3_moe"), stacks_names()["qwen3_moe"], "mlp")
    surgery.write(surgery.fuse_experts(surgery.open_checkpoint(tmp_path / "1" / "base")), tmp_path / "fused")
    both = ("1/adapter", "2/adapter")
    check_refused(
        tmp_path,
        PlanError,
        "one adapter was trained on all experts at once, another on single ones",
        base="fused",
        adapters=both,
    )
