"""Verifying adapters, and merges that surgery made: what was asked of the merge is read from its manifest, or said
again.

The judge of a config is PEFT, which made the adapters; each contradiction is one edit of a right adapter.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
from models.fused import stacks
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import surgery
from surgery import Check
from surgery_cli.app import app

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
MODULE = "model.layers.1.self_attn.q_proj"
KEY = f"base_model.model.{MODULE}"


def trained(out: Path, model: Any = None, *, seed: int = 0, **options: Any) -> Path:
    """An adapter of random factors, saved by PEFT."""
    lora = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], **options}
    adapted = peft.get_peft_model(model or tiny_models.build("llama"), peft.LoraConfig(**lora))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (p for p in adapted.parameters() if p.requires_grad):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """one and two: adapters of llama, which nothing writes to."""
    folder = tmp_path_factory.mktemp("adapters")
    trained(folder / "one")
    trained(folder / "two", seed=1, r=3)
    return folder


def edited(
    source: Path, out: Path, config: Mapping[str, Any], tensors: Callable[[dict[str, torch.Tensor]], Any] | None = None
) -> Path:
    """A copy of an adapter with other fields, and other tensors."""
    shutil.copytree(source, out)
    (out / CONFIG).write_text(json.dumps(json.loads((out / CONFIG).read_text()) | config))
    if tensors:
        content = load_file(out / WEIGHTS)
        tensors(content)
        save_file(content, out / WEIGHTS, {"format": "pt"})
    return out


def check(found: surgery.Verification, name: str) -> Check:
    return next(one for one in found.checks if one.name == name)


# How the merge was made

ASKED: dict[str, tuple[list[str], dict[str, Any], str]] = {
    "weights": (["one", "two"], {"weights": [0.7, -0.3]}, "weights 0.7, -0.3"),
    "a scale": (["one"], {"scale": 0.5}, "weights 0.5"),
    "weights and a scale": (["two", "one"], {"weights": [2.0, 1.0], "scale": 0.5}, "weights 1, 0.5"),
    "another dtype": (["one"], {"dtype": "bfloat16"}, "dtype bfloat16"),
    "a part": (["one"], {"only": r".*\.q_proj"}, r"only .*\.q_proj"),
    "another part": (["one"], {"except_": r".*\.1\..*", "tied": "error"}, r"except .*\.1\..*"),
    "names": (
        ["one"],
        {"names": [(r"layers\.1\.", "layers.2."), (r"^model\.model\.", "model.")]},
        r"map layers\.1\.=layers.2., ^model",
    ),
}


@pytest.mark.parametrize("name", ASKED)
def test_what_was_asked_of_the_merge(name: str, adapters: Path, saved: Callable[..., Path], tmp_path: Path) -> None:
    """Said again, or read from the manifest, it is this merge; without either it is another."""
    used, options, said = ASKED[name]
    folders = [adapters / one for one in used]
    if name == "names":
        prefixed = {"model.layers.1.": "model.model.layers.1.", "model.layers.2.": "model.model.layers.9."}
        source = edited(adapters / "one", tmp_path / "renamed", {}, lambda t: _rename(t, prefixed))
        folders, options = [source], {"names": [(r"^model\.model\.", "model."), (r"layers\.9\.", "layers.2.")]}
        said = r"map ^model\.model\.=model., layers\.9\.=layers.2."
    opened = [surgery.open_adapter(folder) for folder in folders]
    out = tmp_path / "out"
    surgery.write(surgery.merge(surgery.open_checkpoint(saved("llama")), opened, **options), out)
    of = {"base": saved("llama"), "adapter": folders, "check_class": False}
    read = surgery.verify(out, **of)
    assert read.ok
    assert check(read, "options") == Check("options", True, f"as the manifest has them: {said}")
    shutil.rmtree(out / ".surgery")
    again = surgery.verify(out, **of, **options)
    assert again.ok and again.proof == read.proof
    if name == "names":
        with pytest.raises(surgery.NotPlaced):
            surgery.verify(out, **of)
    else:  # another dtype is seen from the files
        assert surgery.verify(out, **of).ok == (name == "another dtype")


def _rename(tensors: dict[str, torch.Tensor], prefixes: Mapping[str, str]) -> None:
    for name in list(tensors):
        for old, new in prefixes.items():
            if old in name:
                tensors[name.replace(old, new)] = tensors.pop(name)
                break


def test_merged_one_after_another(adapters: Path, saved: Callable[..., Path], tmp_path: Path) -> None:
    """Each adapter's weight is that of its own step; against the first merge, only the second step counts."""
    for base, one, weight, out in ((saved("llama"), "one", 0.5, "first"), (tmp_path / "first", "two", 3.0, "second")):
        merged = surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapters / one), [weight])
        surgery.write(merged, tmp_path / out)
    both = [adapters / "two", adapters / "one"]
    found = surgery.verify(tmp_path / "second", base=saved("llama"), adapter=both, check_class=False)
    assert found.ok and check(found, "options").detail == "as the manifest has them: weights 3, 0.5"
    found = surgery.verify(tmp_path / "second", base=tmp_path / "first", adapter=adapters / "two", check_class=False)
    assert found.ok and check(found, "options").detail == "as the manifest has them: weights 3"


def test_what_the_manifest_does_not_tell(adapters: Path, saved: Callable[..., Path], tmp_path: Path) -> None:
    base = surgery.open_checkpoint(saved("llama"))
    surgery.write(surgery.merge(base, surgery.open_adapter(adapters / "one"), [0.5]), tmp_path / "out")
    of = {"base": saved("llama"), "check_class": False}
    found = surgery.verify(tmp_path / "out", adapter=adapters / "two", **of)
    what = f"the manifest tells of merges of other adapters than {adapters / 'two'}: weights are taken to be 1"
    assert check(found, "options") == Check("options", None, what, (str(adapters / "two"),)) and not found.ok
    parted = surgery.merge(
        surgery.open_checkpoint(tmp_path / "out"), surgery.open_adapter(adapters / "two"), only=r".*q_proj"
    )
    surgery.write(parted, tmp_path / "parted")
    found = surgery.verify(tmp_path / "parted", adapter=[adapters / "one", adapters / "two"], **of)
    what = "the manifest tells of merges that were restricted in different ways: verify each against the one before it"
    assert check(found, "options") == Check("options", None, what) and not found.ok


# Adapters that contradict themselves

B = f"{KEY}.lora_B.weight"
BASE = "model.layers.1.mlp.experts"
WRONG: dict[str, tuple[dict[str, Any], Mapping[str, Any], Callable[[dict[str, torch.Tensor]], Any] | None, str]] = {
    "rank": ({}, {"r": 8}, None,
    f"{MODULE}: adapter_config.json says rank 8, but lora_A is (4, 48) and lora_B (40, 4)"),
    "a pattern's rank": (
        {}, {"rank_pattern": {r"layers\.1\..*q_proj": 2}}, None,
        f"{MODULE}: adapter_config.json says rank 2, but lora_A is (4, 48) and lora_B (40, 4)",
    ),
    "half a pair": ({}, {}, lambda t: t.pop(B), f"{MODULE}: the module has no lora_B.weight"),
    "dora unsaid": ({"use_dora": True}, {"use_dora": False}, None,
    "use_dora is false, but the module has one lora_magnitude_vector"),
    "dora not there": ({}, {"use_dora": True}, None,
    ".q_proj: use_dora is true, but the module has no lora_magnitude_vector"),
    "a bias unsaid": ({"bias": True}, {"lora_bias": False}, None,
    ".query: lora_bias is false, but the module has one lora_B.bias"),
    "a bias not there": ({}, {"lora_bias": True}, None,
    ".q_proj: lora_bias is true, but the module has no lora_B.bias"),
    "ungathered": ({}, {}, lambda t: t.update({B: torch.empty(0)}),
    f"{B} holds no element: an ungathered save looks like this"),
    "no number": ({}, {"r": 0}, None, "the adapter's rank or alpha is not a number: r = 0"),
    "experts' rank": (
        {"experts": True}, {"r": 5}, None,
        f"{BASE}.down_proj: rank 5 is said, but lora_A is (16, 12) and lora_B (16, 16)",
    ),
    "experts unsaid": (
        {"experts": True}, {"target_parameters": ["experts.down_proj"]}, None,
        "has LoRA on 2 parameters, of which target_parameters names down_proj",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_an_adapter_that_contradicts_itself(
    name: str, adapters: Path, saved: Callable[..., Path], tmp_path: Path
) -> None:
    """It fails alone, and no merge is replayed with it; as PEFT saved it, it is right."""
    made, config, tensors, text = WRONG[name]
    right, base = adapters / "one", saved("llama")
    if made.get("experts"):
        names = ["experts.gate_up_proj", "experts.down_proj"]
        right = trained(tmp_path / "right", stacks.build("qwen3_moe"), target_modules=[], target_parameters=names)
    elif made.get("bias"):
        right = trained(tmp_path / "right", tiny_models.build("bert"), target_modules=["query"], lora_bias=True)
    elif made:
        right = trained(tmp_path / "right", **made)
    agreed = Check("adapter", True, "adapter_config.json and the tensors agree")
    assert surgery.verify(right).checks[1:] == (agreed,)
    wrong = edited(right, tmp_path / "wrong", config, tensors)
    found = surgery.verify(wrong)
    one = check(found, "adapter")
    assert not found.ok and check(found, "structure").ok
    assert (
        one.detail == "adapter_config.json and the tensors contradict each other: one of them is not of this training"
    )
    assert any(text in row for row in one.where), one.where
    assert any(text in note for note in surgery.inspect(wrong).notes)
    proved = surgery.verify(base, base=base, adapter=wrong, check_class=False)
    assert [c.name for c in proved.checks if not c.ok] == ["adapter", "merge"]
    assert check(proved, "merge") == Check("merge", None, "not replayed: the adapter contradicts itself")


def test_a_pattern_that_is_none(adapters: Path, tmp_path: Path) -> None:
    """The adapter cannot be opened at all."""
    found = surgery.verify(edited(adapters / "one", tmp_path / "wrong", {"target_modules": "("}, None))
    (one,) = found.checks
    assert not found.ok and "target_modules has a regular expression that is none" in one.detail


DOUBTS: dict[str, tuple[Mapping[str, Any], str]] = {
    "a target": (
        {"target_modules": ["q_proj", "v_proj", "k_proj"]},
        "no tensor is of k_proj, which adapter_config.json names",
    ),
    "a pattern": ({"target_modules": r".*\.k_proj"}, r"no tensor is of .*\.k_proj, which adapter_config.json names"),
    "a layer": ({"layers_to_transform": [0, 1, 2, 7]}, "no tensor is of layer 7, which adapter_config.json names"),
    "layers": (
        {"layers_to_transform": [0, 2]},
        f"adapter_config.json does not aim at {MODULE}, model.layers.1.self_attn.v_proj, which tensors are of",
    ),
    "modules": (
        {"target_modules": ["v_proj"]},
        "adapter_config.json does not aim at model.layers.0.self_attn.q_proj, model.layers.1.self_attn.q_proj, "
        "model.layers.2.self_attn.q_proj, which tensors are of",
    ),
    "what is excluded": (
        {"exclude_modules": [MODULE]},
        f"adapter_config.json does not aim at {MODULE}, which tensors are of",
    ),
    "what is saved": (
        {"modules_to_save": ["lm_head"]},
        "no tensor is of lm_head, which adapter_config.json says is saved",
    ),
}


@pytest.mark.parametrize("name", DOUBTS)
def test_what_only_the_base_can_tell(name: str, adapters: Path, tmp_path: Path) -> None:
    """No failure: PEFT passes over targets that a model has not. It is said."""
    config, text = DOUBTS[name]
    folder = edited(adapters / "one", tmp_path / "adapter", config)
    found = surgery.verify(folder)
    assert found.ok
    assert Check("targets", None, f"without its base: {text}") in found.checks
    assert text in surgery.inspect(folder).notes


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2}, "use_rslora": True},
        {"target_modules": r".*layers\.[02]\..*_proj", "exclude_modules": ["k_proj"]},
        {"layers_to_transform": [1], "layers_pattern": "layers"},
        {"layers_to_transform": 2, "modules_to_save": ["lm_head"]},
        {"target_modules": ["embed_tokens"], "use_dora": True},
        {"trainable_token_indices": [3, 4]},
        {"target_modules": ["q_proj"], "target_parameters": ["v_proj.weight", "o_proj.weight"]},
    ],
    ids=str,
)
def test_what_peft_saves_agrees(options: Mapping[str, Any], tmp_path: Path) -> None:
    found = surgery.verify(trained(tmp_path / "adapter", **options))
    assert [one.name for one in found.checks] == ["structure", "adapter"] and found.ok
    assert surgery.inspect(tmp_path / "adapter").notes == ()


# What people see


def surge(*words: object) -> Any:
    return CliRunner().invoke(app, list(map(str, words)))


def test_options_on_the_command_line(adapters: Path, saved: Callable[..., Path], tmp_path: Path) -> None:
    base, out = saved("llama"), tmp_path / "out"
    told = (
        "--weights",
        "0.7,0.3",
        "--scale",
        "2",
        "--only",
        r".*_proj",
        "--except",
        r".*\.0\..*",
        "--tied",
        "error",
        "--map",
        "^model=model",
    )
    assert surge("merge", base, adapters / "one", adapters / "two", "-o", out, *told).exit_code == 0
    against = (
        "verify",
        out,
        "--base",
        base,
        "--adapter",
        adapters / "one",
        "--adapter",
        adapters / "two",
        "--no-class",
    )
    read = surge(*against)
    assert read.exit_code == 0
    said = r"weights 1.4, 0.6; only .*_proj; except .*\.0\..*; map ^model=model"
    assert f"ok  options: as the manifest has them: {said}" in read.stdout
    shutil.rmtree(out / ".surgery")
    assert surge(*against, *told).exit_code == 0
    assert surge(*against, *told, "--scale", "1").exit_code == 1
    assert surge(*against).exit_code == 1
    for wrong in (("--tied", "maybe"), ("--weights", "x"), ("--map", "x")):
        assert surge(*against, *wrong).exit_code == 2
    assert surge("verify", out, "--only", ".*").exit_code == 2


def test_a_contradiction_on_the_command_line(adapters: Path, tmp_path: Path) -> None:
    wrong = edited(adapters / "one", tmp_path / "adapter", {"r": 8, "target_modules": ["q_proj"]})
    found = surge("verify", wrong)
    assert found.exit_code == 1
    assert "ok           structure: 12 adapter tensors on 6 modules" in found.stdout
    assert "FAILED       adapter: adapter_config.json and the tensors contradict each other" in found.stdout
    assert "not checked  targets: without its base: adapter_config.json does not aim at" in found.stdout
    assert "adapter_config.json says rank 8, but lora_A is (4, 48)" in found.stderr
