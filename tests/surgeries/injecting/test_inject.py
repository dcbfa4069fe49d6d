"""Injected adapters, judged by PEFT: it loads them whole, nothing changes, and they count what PEFT counts."""

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
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import load_file
from transformers.pytorch_utils import Conv1D

import surgery
from surgery.errors import NothingMatched, NotSupported, SurgeryError
from surgery.evaluation.evaluate import load
from surgery.lazy.tensor import Random, narrow, permute

Saved = Callable[..., Path]


def opened(saved: Saved, family: str) -> surgery.Checkpoint:
    return surgery.open_checkpoint(saved(family))


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama names": ("llama", {"target_modules": ["q_proj", "v_proj"], "rank": 4}),
    "llama regex": ("llama", {"target_modules": r".*layers\.[02]\.self_attn\.[qk]_proj", "rank": 3}),
    "llama all": ("llama", {"target_modules": "all-linear", "rank": 5}),
    "llama tied all": ("llama-tied", {"target_modules": "all-linear", "rank": 5}),
    "llama patterns": (
        "llama",
        {
            "target_modules": ["q_proj", "v_proj", "down_proj"],
            "rank": 4,
            "rank_pattern": {"v_proj": 7, r"layers\.1\..*down_proj": 2},
            "alpha_pattern": {"q_proj": 3},
        },
    ),
    "llama layers": (
        "llama",
        {"target_modules": ["q_proj"], "rank": 4, "layers_to_transform": [0, 2], "layers_pattern": ["layers"]},
    ),
    "llama without": (
        "llama",
        {"target_modules": ["q_proj", "v_proj"], "rank": 4, "exclude_modules": r".*layers\.1\..*"},
    ),
    "llama embeddings": ("llama", {"target_modules": ["embed_tokens", "lm_head"], "rank": 4}),
    "gpt2": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "rank": 4}),
    "gpt2 all": ("gpt2", {"target_modules": "all-linear", "rank": 2}),
    "bert": ("bert", {"target_modules": ["query", "value"], "rank": 4, "use_rslora": True}),
    "llama dora": ("llama", {"target_modules": ["q_proj", "down_proj"], "rank": 4, "use_dora": True}),
    "gpt2 dora": ("gpt2", {"target_modules": ["c_attn", "attn.c_proj"], "rank": 4, "use_dora": True}),
    "bert bias": ("bert", {"target_modules": ["query"], "rank": 4, "lora_bias": True}),
    "llama saved": ("llama", {"target_modules": ["q_proj"], "rank": 4, "modules_to_save": ["lm_head", "norm"]}),
    "sam": ("sam", {"target_modules": ["qkv"], "rank": 4, "init": "gaussian"}),
    "phi3": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"], "rank": 4, "alpha": 9}),
}


@pytest.mark.parametrize("case", CASES)
def test_peft_loads_it_whole_and_nothing_changes(case: str, saved: Saved, tmp_path: Path) -> None:
    family, options = CASES[case]
    adapter = surgery.inject(opened(saved, family), **options)
    report = surgery.write(adapter, tmp_path / "adapter")
    model = tiny_models.build(family)
    before = tiny_models.output(model, family)
    live = peft.PeftModel.from_pretrained(model, tmp_path / "adapter", is_trainable=True).eval()
    state, stored = peft.get_peft_model_state_dict(live), load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    embeddings = {
        f"base_model.model.{m}.base_layer.weight" for m in ("model.embed_tokens", "lm_head")
    }  # PEFT saves these along with LoRA
    assert (
        state.keys() - stored.keys() <= (embeddings if case == "llama embeddings" else set())
        and stored.keys() <= state.keys()
    )
    assert all(torch.equal(state[name], tensor) for name, tensor in stored.items())
    after = tiny_models.output(live, family)
    if options.get("use_dora"):  # PEFT divides the magnitudes by norms that it computes anew
        assert (after - before).abs().max() < 1e-5 * before.abs().max()
    else:
        assert torch.equal(after, before)
    trainable, every = live.get_nb_trainable_parameters()
    assert (
        f"trainable params: {trainable:,} || all params: {every:,} || trainable%: {100 * trainable / every:.4f}"
        == report.notes[-1]
    )


@pytest.mark.parametrize("case", CASES)
def test_peft_would_choose_the_same_modules_ranks_and_alphas(case: str, saved: Saved) -> None:
    """PEFT's own injection under the same options has tensors of the same names and shapes, and the same scales."""
    family, options = CASES[case]
    adapter = surgery.inject(opened(saved, family), **options)
    keys = {*options} - {"rank", "alpha", "init"}
    given = {k: v for k, v in options.items() if k in keys}
    kind = {"task_type": "QUESTION_ANS"} if family == "bert" else {}
    config = peft.LoraConfig(r=options["rank"], lora_alpha=options.get("alpha", options["rank"]), **given, **kind)
    live = peft.get_peft_model(tiny_models.build(family), config)
    theirs = {
        n: t for n, t in peft.get_peft_model_state_dict(live).items() if "lora_" in n or case != "llama embeddings"
    }
    assert {n: t.shape for n, t in adapter.tensors.items()} == {n: tuple(t.shape) for n, t in theirs.items()}
    for name, tensor in adapter.tensors.items():
        if "magnitude" in name or "lora_" not in name:
            assert torch.allclose(load(tensor), theirs[name], rtol=1e-6), name
    from surgery.adapters.lora import strength

    scales = {
        n.removeprefix("base_model.model."): m.scaling["default"]
        for n, m in live.named_modules()
        if isinstance(m, LoraLayer)
    }
    assert {module: strength(adapter.config, module)[2] for module in adapter.lora} == pytest.approx(scales)


def test_the_config_has_every_field_of_pefts(saved: Saved) -> None:
    adapter = surgery.inject(opened(saved, "llama"), ["q_proj"])
    theirs = peft.LoraConfig(target_modules=["q_proj"]).to_dict().keys() - {"peft_version"}
    assert theirs <= adapter.config.keys() | {"inference_mode"}
    assert adapter.config["task_type"] == "CAUSAL_LM"


def test_initial_values_are_pefts(saved: Saved) -> None:
    """A uniform within 1 / sqrt(in), as kaiming_uniform_(a=sqrt(5)); or normal with deviation 1 / r; B zero."""
    base = opened(saved, "llama")
    for module, parts in surgery.inject(base, ["q_proj", "down_proj"], rank=32).lora.items():
        a, b = load(parts["lora_A.weight"]), load(parts["lora_B.weight"])
        bound = a.shape[1] ** -0.5
        assert a.abs().max() <= bound and a.abs().max() > 0.98 * bound, module
        assert a.std().item() == pytest.approx(bound / 3**0.5, rel=0.1) and abs(a.mean().item()) < 0.1 * bound
        assert not b.any()
    adapter = surgery.inject(base, "all-linear", rank=16, init="gaussian")
    normal = torch.cat([load(parts["lora_A.weight"]).flatten() for parts in adapter.lora.values()])
    assert normal.std().item() == pytest.approx(1 / 16, rel=0.05)
    assert (normal.abs() > 2 / 16).float().mean().item() == pytest.approx(0.0455, rel=0.25)


def test_values_follow_from_seed_and_name(saved: Saved, tmp_path: Path) -> None:
    base = opened(saved, "llama")
    one, again, other = (surgery.inject(base, ["q_proj"], seed=seed) for seed in (1, 1, 2))
    for name, adapter in (("one", one), ("again", again), ("other", other)):
        surgery.write(adapter, tmp_path / name, workers=2 if name == "again" else 1)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "again")
    assert hashes(tmp_path / "one") != hashes(tmp_path / "other")
    values = [load(parts["lora_A.weight"]) for parts in one.lora.values()]
    assert not torch.equal(values[0], values[1])
    more = surgery.inject(base, ["q_proj", "k_proj"], seed=1)
    module = next(iter(one.lora))
    assert torch.equal(load(more.lora[module]["lora_A.weight"]), load(one.lora[module]["lora_A.weight"]))


def test_the_numbers_are_the_same_on_every_machine() -> None:
    """Golden: SHAKE-128 and one rounding leave no room."""
    uniform, normal = load(Random((3,), "0 a", 0.5)), load(Random((3,), "0 a", 1.0, normal=True))
    assert uniform.tolist() == [0.1050993800163269, 0.11536669731140137, -0.08081680536270142]
    assert normal.tolist() == pytest.approx([0.2665688097476959, 0.293334424495697, -0.20398342609405518], abs=1e-7)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_part_is_the_part_of_the_whole(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 70), st.integers(1, 200)))
    whole = Random(shape, "k", 1.0)
    value = load(whole)
    start = data.draw(st.integers(0, shape[1] - 1))
    length = data.draw(st.integers(1, shape[1] - start))
    assert torch.equal(load(narrow(whole, 1, start, length)), value[:, start : start + length])
    assert torch.equal(load(permute(whole, (1, 0))), value.T)


@pytest.mark.parametrize("family", ["phi3", "gpt_neox", "gpt2", "sam"])
def test_parts_of_fused_modules_can_be_targeted(family: str, saved: Saved, tmp_path: Path) -> None:
    """LoRA on q and v only of a model that stores q, k and v as one: PEFT itself says that it cannot."""
    names = {
        "phi3": ["q_proj", "v_proj"],
        "gpt_neox": ["query", "value"],
        "gpt2": ["q_attn", "v_attn"],
        "sam": ["q", "v"],
    }[family]
    base = opened(saved, family)
    adapter = surgery.inject(base, names, rank=3)
    surgery.write(adapter, tmp_path / "adapter")
    model = tiny_models.build(family)
    before = tiny_models.output(model, family)
    live = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    assert torch.equal(tiny_models.output(live, family), before)
    assert any("hold LoRA on some of their rows" in note for note in adapter.notes)
    for parts in adapter.lora.values():
        assert parts["lora_A.weight"].shape[0] == 6 and parts["lora_B.weight"].shape[1] == 6
    # A's halves are those of q and v, as they would be on the split base
    split = surgery.inject(surgery.split_qkv(base), names, rank=3)
    stacked = torch.cat([load(parts["lora_A.weight"]) for parts in split.lora.values()])
    assert torch.equal(torch.cat([load(parts["lora_A.weight"]) for parts in adapter.lora.values()]), stacked)
    with pytest.raises(ValueError, match=r"[Tt]arget modules"):
        peft.get_peft_model(tiny_models.build(family), peft.LoraConfig(target_modules=[f"{n}$" for n in names]))


def test_conv1d_is_known_from_the_type(saved: Saved) -> None:
    adapter = surgery.inject(opened(saved, "gpt2"), "all-linear")
    assert adapter.config["fan_in_fan_out"] is True
    model = tiny_models.build("gpt2")
    assert {n for n, m in model.named_modules() if isinstance(m, Conv1D)} == set(adapter.lora)


def test_it_merges_into_the_base_as_nothing(saved: Saved, tmp_path: Path) -> None:
    """Merged untrained, an adapter leaves every byte as it was."""
    base = opened(saved, "phi3")
    surgery.write(surgery.inject(base, ["qkv_proj", "o_proj"]), tmp_path / "adapter")
    surgery.write(surgery.merge(base, surgery.open_adapter(tmp_path / "adapter")), tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").read_bytes() == (
        saved("phi3") / "model.safetensors"
    ).read_bytes()
    surgery.write(surgery.merge(base, surgery.inject(base, ["qkv_proj", "o_proj"])), tmp_path / "at once")
    assert (tmp_path / "at once" / "model.safetensors").read_bytes() == (
        saved("phi3") / "model.safetensors"
    ).read_bytes()


# Refusals


@pytest.mark.parametrize(
    ("options", "kind", "what", "tip"),
    [
        (
            {"target_modules": ["q_projj"]},
            NothingMatched,
            "1 of 1 targets are in no module of the base: q_projj",
            "q_proj",
        ),
        (
            {"target_modules": ["q_proj", "nobody"]},
            NothingMatched,
            "1 of 2 targets are in no module of the base: nobody",
            "modules are",
        ),
        ({"target_modules": "q_proj"}, NothingMatched, "1 of 1 targets are in no module of the base: q_proj", "q_proj"),
        ({"target_modules": ["q_proj"], "rank": 0}, SurgeryError, "a rank of 0 is none", "1 or more"),
        (
            {"target_modules": ["q_proj"], "init": "pissa"},
            SurgeryError,
            "there is no initialisation `pissa`",
            "uniform and gaussian",
        ),
        ({"target_modules": "("}, SurgeryError, "is not a regular expression", "literal"),
        (
            {"target_modules": ["q_proj"], "use_dora": True, "lora_bias": True},
            SurgeryError,
            "exclude each other",
            "PEFT refuses",
        ),
        (
            {"target_modules": ["q_proj"], "modules_to_save": ["lm_hed"]},
            NothingMatched,
            "no module of the base is called lm_hed",
            "lm_head",
        ),
        (
            {"target_modules": ["q_proj"], "lora_bias": True},
            NotSupported,
            "lora_bias on modules without a bias",
            "leave --lora-bias away",
        ),
        (
            {"target_modules": ["q_proj"], "rank_pattern": {"nope": 3}},
            NothingMatched,
            "1 of 1 patterns match none",
            "called q_proj",
        ),
        (
            {"target_modules": ["q_proj"], "alpha_pattern": {"k_proj": 3}},
            NothingMatched,
            "1 of 1 patterns match none",
            "called q_proj",
        ),
        (
            {"target_modules": "all-linear", "layers_to_transform": [5]},
            SurgeryError,
            "needs a list of names, and the target is all-linear",
            "name the modules in a list",
        ),
        (
            {"target_modules": ".*q_proj", "layers_to_transform": [0]},
            SurgeryError,
            "needs a list of names, and the target is a regular expression",
            "name the modules in a list",
        ),
    ],
)
def test_refusals(options: dict[str, Any], kind: type[SurgeryError], what: str, tip: str, saved: Saved) -> None:
    with pytest.raises(kind, match=re.escape(what)) as error:
        surgery.inject(opened(saved, "llama"), **options)
    assert error.value.help and tip in error.value.help


@pytest.mark.parametrize(
    ("options", "row"),
    [
        (
            {"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]},
            "--exclude-modules takes 3 away: model.layers.0.self_attn.q_proj,",
        ),
        ({"target_modules": "all-linear", "exclude_modules": ".*"}, "--exclude-modules takes 21 away: "),
        ({"target_modules": ["lm_head"], "modules_to_save": ["lm_head"]}, "--modules-to-save takes 1 away: lm_head"),
        (
            {"target_modules": ["q_proj"], "layers_to_transform": [9]},
            "--layers-to-transform takes 3 away: model.layers.0.",
        ),
    ],
)
def test_options_that_leave_no_target_are_named(options: dict[str, Any], row: str, saved: Saved) -> None:
    with pytest.raises(NothingMatched, match="other options leave none of the targets") as error:
        surgery.inject(opened(saved, "llama"), **options)
    assert len(error.value.where) == 2 and error.value.where[1].startswith(row)


def test_the_adapter_is_written_without_the_bases_files(saved: Saved, tmp_path: Path) -> None:
    report = surgery.write(surgery.inject(opened(saved, "llama"), ["q_proj"]), tmp_path / "adapter")
    files = {p.name for p in (tmp_path / "adapter").iterdir()}
    assert files == {".surgery", "adapter_config.json", "adapter_model.safetensors"}
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 8
    assert report.tensors == 6
