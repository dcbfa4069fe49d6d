"""What merge refuses: by name, with what would mend it, before a byte is written. And that its list of kinds is
closed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
from conftest import hashes
from peft.tuners.lora.config import ArrowConfig, KasaConfig, LoraConfig
from safetensors.torch import load_file, save_file

import surgery
from surgery.adapters.kinds import KNOWN, MERGED, OPTIONS, REFUSED, SUPPORTED, TYPES, table
from surgery.errors import AdapterError, FormatError, NotPlaced, NotSupported, SurgeryError

Saved = Callable[..., Path]
TARGETS = ["q_proj", "v_proj"]


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA on q_proj and v_proj of the llama, as PEFT saves it."""
    folder = tmp_path_factory.mktemp("adapter")
    peft.get_peft_model(tiny_models.build("llama"), LoraConfig(r=4, target_modules=TARGETS)).save_pretrained(folder)
    return folder


Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]


def edited(source: Path, folder: Path, change: Change) -> Path:
    """A copy of an adapter, or of a base, with its config and its tensors changed."""
    shutil.copytree(source, folder)
    config = folder / ("adapter_config.json" if (folder / "adapter_config.json").exists() else "config.json")
    weights = folder / ("model.safetensors" if config.name == "config.json" else "adapter_model.safetensors")
    content, tensors = json.loads(config.read_text()), load_file(weights)
    change(content, tensors)
    config.write_text(json.dumps(content))
    save_file(tensors, weights, metadata={"format": "pt"})
    return folder


def refused(base: Path, adapters: Path | list[Path], kind: type[SurgeryError], what: str, *more: str) -> None:
    """The merge raises `kind` with this text, `more` in where or help, leaves every input as it was, and writes
    nothing.
    """
    folders = [adapters] if isinstance(adapters, Path) else adapters
    before = [hashes(folder) for folder in (base, *folders)]
    out = folders[-1].parent / "out"
    with pytest.raises(SurgeryError) as caught:
        surgery.write(surgery.merge(surgery.open_checkpoint(base), [surgery.open_adapter(one) for one in folders]), out)
    assert (type(caught.value), caught.value.what) == (kind, what)
    for text in more:
        assert text in str(caught.value)
    assert [hashes(folder) for folder in (base, *folders)] == before
    assert not [path for path in out.parent.iterdir() if path.name.startswith((".out", "out"))]


# The closed list


def test_every_peft_type_is_merged_or_refused() -> None:
    known = {said for kind in TYPES for said in kind.said}
    older = {"BONE"}  # which peft 0.15 to 0.17 had
    assert {kind.value for kind in peft.PeftType} == (known | set(SUPPORTED)) - older and not known & set(SUPPORTED)


MERGED_CONFIGS = (LoraConfig, peft.AdaLoraConfig, peft.TrainableTokensConfig, peft.LNTuningConfig)


def test_every_option_of_lora_is_known_or_refused() -> None:
    """A new PEFT has new options: each has to be decided on."""
    options = {field.name for field in (field for kind in MERGED_CONFIGS for field in fields(kind))}
    named = {said for kind in OPTIONS for said in kind.said}
    assert options - KNOWN == named
    assert KNOWN - options <= set(SUPPORTED)


def test_every_initialisation_is_known() -> None:
    hint = str(LoraConfig.__dataclass_fields__["init_lora_weights"].type)
    listed = set(json.loads(hint[hint.index("[") : hint.rindex("]") + 1].replace("'", '"').replace(", ]", "]")))
    known = {said for kind in (*MERGED, *REFUSED) for said in kind.said}
    assert {name.partition("_niter")[0] for name in listed} <= known


def test_the_table_has_a_row_for_each_kind() -> None:
    rows = table().splitlines()
    assert len(rows) == 2 + len(MERGED) + len(REFUSED)
    for kind, row in zip((*MERGED, *REFUSED), rows[2:], strict=True):
        assert row.startswith(f"| {kind.name} | ") and all(f"`{said}`" in row for said in kind.said)
        assert (": refused: " in row.replace("| refused: ", "| : refused: ")) == (kind in REFUSED)


VARIANTS: dict[str, tuple[dict[str, Any], str]] = {
    "aLoRA": (
        {"alora_invocation_tokens": [5, 6], "task_type": "CAUSAL_LM"},
        "it acts on some tokens only, and a weight acts on all",
    ),
    "QALoRA": ({"use_qalora": True}, "its A acts on pooled inputs of a quantised base"),
    "Arrow": ({"arrow_config": ArrowConfig(top_k=1)}, "it chooses among adapters for each token"),
    "KaSA": ({"kasa_config": KasaConfig()}, "it cuts the smallest singular values off the base itself"),
    "Megatron": (
        {"megatron_config": {"tensor_model_parallel_size": 2}},
        "its factors belong to layers that lie on several devices",
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_refused_by_name(name: str, adapter: Path, saved: Saved, tmp_path: Path) -> None:
    """As PEFT writes their options."""
    options, why = VARIANTS[name]
    LoraConfig(r=4, target_modules=TARGETS, **options).save_pretrained(tmp_path / "said")
    said = json.loads((tmp_path / "said/adapter_config.json").read_text())
    (option,) = (key for kind in OPTIONS if kind.name == name for key in kind.said)
    assert said[option] and why == next(kind.why for kind in OPTIONS if kind.name == name)
    folder = edited(adapter, tmp_path / "a", lambda config, _: config.update(said))
    refused(
        saved("llama"), folder, NotSupported, f"{name} is not merged: {why}", f"{option} = {said[option]!r}", "help: "
    )


@pytest.mark.parametrize(
    "parts", [("lora_new.mean", "lora_new.spread"), ("lora_A_new.0.weight", "lora_A_new.1.weight")]
)
def test_variants_are_refused_before_their_tensors_are_told_apart(
    parts: tuple[str, str], adapter: Path, saved: Saved, tmp_path: Path
) -> None:
    """What a variant keeps beside A and B may look alike, but for what stands behind a name of PEFT's."""
    front = "base_model.model.model.layers.0.self_attn.q_proj."

    def change(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        config["newlora_config"] = {"x": 1}
        tensors.update({f"{front}{part}": torch.ones(2, 2) for part in parts})

    folder = edited(adapter, tmp_path / "a", change)
    refused(
        saved("llama"),
        folder,
        NotSupported,
        "the option `newlora_config` is not supported",
        "newlora_config = {'x': 1}",
    )
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps({key: v for key, v in config.items() if key != "newlora_config"})
    )
    refused(saved("llama"), folder, NotSupported, f"LoRA with {', '.join(parts)} is not supported", "q_proj")


def test_every_variant_is_tried() -> None:
    assert {kind.name for kind in OPTIONS} == set(VARIANTS)


@pytest.mark.parametrize("kind", [said for kind in TYPES for said in kind.said])
def test_other_kinds_are_refused_by_name(kind: str, adapter: Path, saved: Saved, tmp_path: Path) -> None:
    folder = edited(adapter, tmp_path / "a", lambda config, _: config.update(peft_type=kind))
    row = next(one for one in TYPES if kind in one.said)
    what = f"adapters of kind {kind} are not supported"
    refused(
        saved("llama"),
        folder,
        NotSupported,
        what,
        f"{row.name}: {row.why}",
        "supported: LORA, ADALORA, TRAINABLE_TOKENS, LN_TUNING",
        row.help,
    )


@pytest.mark.parametrize("kind", ["NEWLORA", None])
def test_unknown_kinds_are_refused(kind: Any, adapter: Path, saved: Saved, tmp_path: Path) -> None:
    folder = edited(adapter, tmp_path / "a", lambda config, _: config.update(peft_type=kind))
    refused(
        saved("llama"),
        folder,
        NotSupported,
        f"adapters of kind {kind} are not supported",
        "supported: LORA, ADALORA, TRAINABLE_TOKENS, LN_TUNING",
    )


def test_unknown_options_are_refused(adapter: Path, saved: Saved, tmp_path: Path) -> None:
    folder = edited(adapter, tmp_path / "a", lambda config, _: config.update(use_newlora={"x": 1}))
    refused(
        saved("llama"),
        folder,
        NotSupported,
        "the option `use_newlora` is not supported",
        "use_newlora = {'x': 1}",
        "with PEFT",
    )


@pytest.mark.parametrize("init", ["corda", "lora_ga", "loftq", "pissa_niter_16"])
def test_changed_bases_are_refused(init: str, adapter: Path, saved: Saved, tmp_path: Path) -> None:
    folder = edited(adapter, tmp_path / "a", lambda config, _: config.update(init_lora_weights=init))
    what = f"the adapter was initialised by {init!r}, which changes the base it belongs to"
    refused(saved("llama"), folder, NotSupported, what, "path_initial_model_for_weight_conversion", "--base-as-trained")


def test_unknown_initialisations_are_refused(adapter: Path, saved: Saved, tmp_path: Path) -> None:
    folder = edited(adapter, tmp_path / "a", lambda config, _: config.update(init_lora_weights="newest"))
    refused(
        saved("llama"),
        folder,
        NotSupported,
        "the adapter was initialised by 'newest', which is not known",
        "merge it with PEFT",
    )


# Bad input


def test_adapters_of_different_kinds(adapter: Path, saved: Saved, tmp_path: Path) -> None:
    """The one that cannot be merged is named, wherever it stands."""
    other = edited(adapter, tmp_path / "osf", lambda config, _: config.update(peft_type="OSF"))
    again = edited(adapter, tmp_path / "lora", lambda _, tensors: [tensor.add_(1) for tensor in tensors.values()])
    for pair in ([again, other], [other, again]):
        refused(saved("llama"), pair, NotSupported, "adapters of kind OSF are not supported", str(other))


def fp8(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Weights of one byte, and nothing that says what they mean."""
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)


def test_a_half_precision_adapter_on_codes_of_which_the_config_says_nothing(
    adapter: Path, saved: Saved, tmp_path: Path
) -> None:
    base = edited(saved("llama"), tmp_path / "base", fp8)
    folder = edited(
        adapter, tmp_path / "a", lambda _, tensors: tensors.update({n: t.half() for n, t in tensors.items()})
    )
    tip = "or dequantise the base first; F16, BF16, F32 and F64 are computed"
    where = "base: model.layers.0.self_attn.q_proj.weight"
    refused(base, folder, NotSupported, "cannot compute on F8_E4M3 tensors", where, tip)


def packed(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """The base as GPTQModel writes it in planes: four bits of several weights in one number, under another name."""
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_p"}
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        out, width = tensors.pop(name).shape
        module = name.removesuffix(".weight")
        tensors |= {
            f"{module}.qweight": torch.zeros(width // 8, out, dtype=torch.int32),
            f"{module}.scales": torch.ones(1, out).half(),
        }


def test_a_packed_base(adapter: Path, saved: Saved, tmp_path: Path) -> None:
    base = edited(saved("llama"), tmp_path / "base", packed)
    folder = edited(adapter, tmp_path / "a", lambda _, __: None)
    what = "6 of the adapter's 6 modules are quantised in the base"
    more = (
        "model.layers.0.self_attn.q_proj has model.layers.0.self_attn.q_proj.qweight,"
        " model.layers.0.self_attn.q_proj.scales"
    )
    refused(
        base,
        folder,
        NotSupported,
        what,
        more,
        "config.json: quantization_config says gptq",
        "split in planes",
        "dequantise the base first, with the program that made it",
    )


def test_bits_and_bytes(adapter: Path, saved: Saved, tmp_path: Path) -> None:
    """Four bits, two weights in a byte, and nothing of what says their meaning."""

    def four_bits(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        for name in [n for n in tensors if n.endswith("_proj.weight")]:
            tensors[name] = torch.zeros(tensors[name].numel() // 2, 1, dtype=torch.uint8)

    base = edited(saved("llama"), tmp_path / "base", four_bits)
    folder = edited(adapter, tmp_path / "a", lambda *_: None)
    what = "codes lie here without what says their meaning in bitsandbytes"
    refused(base, folder, FormatError, what, "model.layers.0.mlp.down_proj.weight")


def test_a_quantised_base_is_merged_where_it_is_not_quantised(saved: Saved, tmp_path: Path) -> None:
    """LoRA on the head of an fp8 model, which is kept in full precision."""
    base = edited(saved("llama"), tmp_path / "base", fp8)
    name = "base_model.model.lm_head.lora_{}.weight"
    (tmp_path / "a").mkdir()
    save_file(
        {name.format("A"): torch.ones(4, 48), name.format("B"): torch.ones(97, 4)},
        tmp_path / "a/adapter_model.safetensors",
    )
    (tmp_path / "a/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4}))
    plan = surgery.plan(surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(tmp_path / "a")))
    assert plan.computed == ("lm_head.weight",)


def test_another_architecture_is_no_quantised_one(saved: Saved, adapter: Path, tmp_path: Path) -> None:
    base = edited(
        saved("bert"), tmp_path / "base", lambda config, _: config.update(quantization_config={"quant_method": "quark"})
    )
    folder = edited(adapter, tmp_path / "a", lambda config, _: config.pop("auto_mapping", None))
    refused(base, folder, NotPlaced, "6 of the adapter's 6 modules have no place in the base")


def test_a_resized_vocabulary(saved: Saved, tmp_path: Path) -> None:
    """LoRA on an embedding of more tokens than the base has."""
    name = "base_model.model.model.embed_tokens.lora_embedding_{}"
    (tmp_path / "a").mkdir()
    save_file(
        {name.format("A"): torch.ones(4, 105), name.format("B"): torch.ones(48, 4)},
        tmp_path / "a/adapter_model.safetensors",
    )
    (tmp_path / "a/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4}))
    what, tip = "the delta would be (105, 48), the base tensor is (97, 48)", "or to a resized one"
    refused(saved("llama"), tmp_path / "a", AdapterError, what, "base: model.embed_tokens.weight", tip)


BROKEN: dict[str, tuple[Change, type[SurgeryError], str]] = {
    "a rank that contradicts the tensors": (
        lambda config, _: config.update(r=8),
        AdapterError,
        "adapter_config.json says rank 8, but lora_A is (4, 48) and lora_B (40, 4)",
    ),
    "A without B": (
        lambda _, tensors: [tensors.pop(n) for n in list(tensors) if "lora_B" in n and ".1." in n],
        AdapterError,
        "the module has no lora_B.weight",
    ),
    "NaN": (
        lambda _, tensors: tensors[min(tensors)][0].fill_(float("nan")),
        AdapterError,
        "NaN or infinity in 1 adapter tensors",
    ),
    "nothing": (lambda _, tensors: tensors.clear(), AdapterError, "the adapter holds no tensor"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_adapters(name: str, adapter: Path, saved: Saved, tmp_path: Path) -> None:
    change, kind, what = BROKEN[name]
    refused(saved("llama"), edited(adapter, tmp_path / "a", change), kind, what)


def test_an_adapter_that_torch_saved(adapter: Path, saved: Saved, tmp_path: Path) -> None:
    """It is read as data, and merged as the same in safetensors."""
    folder = edited(adapter, tmp_path / "a", lambda _, __: None)
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    base = surgery.open_checkpoint(saved("llama"))
    for number, one in enumerate((folder, adapter)):
        surgery.write(surgery.merge(base, surgery.open_adapter(one)), tmp_path / str(number))
    name = "model.safetensors"
    assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


def test_magnitudes_and_another_adapter_on_one_tensor(adapter: Path, saved: Saved, tmp_path: Path) -> None:
    """PEFT's live model scales what the first adapter made, so that the order matters: it has to be said."""
    model = peft.get_peft_model(tiny_models.build("llama"), LoraConfig(r=4, target_modules=["q_proj"], use_dora=True))
    model.save_pretrained(tmp_path / "dora")
    lora = edited(adapter, tmp_path / "lora", lambda _, __: None)
    what = "a DoRA adapter scales a tensor that another one adds to"
    for pair in ([tmp_path / "dora", lora], [lora, tmp_path / "dora"]):
        refused(saved("llama"), pair, surgery.PlanError, what, "q_proj.weight", "merge them one after another")
