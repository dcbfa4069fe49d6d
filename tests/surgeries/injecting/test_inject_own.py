"""LoRA in the checkpoint itself: put in, it changes no shard; taken out, it is the adapter that was put in."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
import transformers as tf
from conftest import hashes
from models.fused import stacks
from safetensors.torch import load_file
from typer.testing import CliRunner

import surgery
from surgery.errors import AdapterError, NotPlaced, PlanError, SurgeryError
from surgery.files.peft import PREFIX
from surgery_cli.app import app

Saved = Callable[..., Path]
EXPERTS = {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
LORA: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "one file": ("llama", None, {"target_modules": ["q_proj", "v_proj"]}),
    "many shards": ("llama", "20KB", {"target_modules": "all-linear"}),
    "saved modules": ("llama", "20KB", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "model.norm"]}),
    "tied, saved": ("llama-tied", "20KB", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "embeddings": ("llama", "20KB", {"target_modules": ["embed_tokens", "lm_head"]}),
    "dora": ("llama", "20KB", {"target_modules": ["q_proj", "down_proj"], "use_dora": True}),
    "biases": ("bert", None, {"target_modules": ["query", "value"], "lora_bias": True}),
    "trained biases": ("bert", None, {"target_modules": ["query"], "bias": "lora_only"}),
    "tokens": ("llama", "20KB", {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3, 5]}}),
    "fused": ("phi3", "20KB", {"target_modules": ["qkv_proj", "gate_up_proj"], "rank_pattern": {"qkv_proj": 6}}),
    "conv1d": ("gpt2", "20KB", {"target_modules": ["c_attn", "c_fc"]}),
    "experts": ("qwen3_moe", "4KB", EXPERTS),
    "experts under other names": (
        "mixtral",
        "4KB",
        {**EXPERTS, "target_modules": ["q_proj"], "rank_pattern": {"experts.down_proj": 5}},
    ),
}


def build(family: str) -> Any:
    return tiny_models.build(family) if family in tiny_models.MODELS else stacks.build(family)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """made(case) -> a base, and an adapter of PEFT's with random factors: as after a training."""
    root, found = tmp_path_factory.mktemp("made"), dict[str, tuple[Path, Path]]()

    def get(name: str) -> tuple[Path, Path]:
        if name not in found:
            family, shard, lora = LORA[name]
            base, adapter = root / name / "base", root / name / "adapter"
            model = build(family)
            model.save_pretrained(base, **({"max_shard_size": shard} if shard else {}))
            live = peft.get_peft_model(model, peft.LoraConfig(r=3, lora_alpha=6, **lora))
            torch.manual_seed(1)
            with torch.no_grad():
                for parameter in live.parameters():
                    if parameter.requires_grad:
                        parameter.add_(0.1 * torch.randn_like(parameter))
            live.save_pretrained(adapter, save_embedding_layers=False)
            found[name] = base, adapter
        return found[name]

    return get


def opened(base: Path, adapter: Path) -> tuple[surgery.Checkpoint, surgery.Adapter]:
    return surgery.open_checkpoint(base), surgery.open_adapter(adapter)


@pytest.mark.parametrize("name", LORA)
def test_what_was_there_stays_and_what_is_new_lies_beside_it(
    name: str, made: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    """Every shard and file byte-identical; the adapter's tensors, bit for bit, in one shard more; its config; an
    index with both.
    """
    base, adapter = made(name)
    surgery.write(surgery.inject_into(*opened(base, adapter)), tmp_path / "own")
    before, after = hashes(base), hashes(tmp_path / "own")
    index = "model.safetensors.index.json"
    assert {file: before[file] for file in before if file != index}.items() <= after.items()
    assert after.keys() - before.keys() - {index} == {"adapter_model.safetensors", "adapter_config.json"}
    assert after["adapter_config.json"] == hashes(adapter)["adapter_config.json"]
    mine, theirs = (
        load_file(tmp_path / "own" / "adapter_model.safetensors"),
        load_file(adapter / "adapter_model.safetensors"),
    )
    assert sorted((t.shape, t.sum().item()) for t in mine.values()) == sorted(
        (t.shape, t.sum().item()) for t in theirs.values()
    )
    said = json.loads((tmp_path / "own" / index).read_text())["weight_map"]
    assert {key for key, shard in said.items() if shard == "adapter_model.safetensors"} == mine.keys()
    old = json.loads((base / index).read_text())["weight_map"] if (base / index).exists() else {}
    assert old.items() <= said.items()


def test_names_are_beside_the_bases_own(made: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    """The class has `mlp.experts` in memory, these files `block_sparse_moe`; a module of one name in both is beside
    its weight.
    """
    own = surgery.inject_into(*opened(*made("experts under other names")))
    assert "model.layers.0.self_attn.q_proj.lora_A.weight" in own.tensors
    assert not any(name.startswith(PREFIX) for name in own.tensors)
    saved = surgery.inject_into(*opened(*made("saved modules")))
    assert {n for n in saved.tensors if "modules_to_save" in n} == {
        "lm_head.modules_to_save.default.weight",
        "model.norm.modules_to_save.default.weight",
    }


@pytest.mark.parametrize("name", LORA)
def test_merged_as_from_a_folder_of_its_own(
    name: str, made: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    """The same bytes; neither the adapter's shard nor its config is left; something did change."""
    base, adapter = made(name)
    surgery.write(surgery.inject_into(*opened(base, adapter)), tmp_path / "own")
    surgery.write(surgery.merge(*surgery.own_adapter(surgery.open_checkpoint(tmp_path / "own"))), tmp_path / "merged")
    surgery.write(surgery.merge(*opened(base, adapter)), tmp_path / "want")
    assert hashes(tmp_path / "merged") == hashes(tmp_path / "want")
    assert hashes(tmp_path / "merged") != hashes(base)
    at_once = surgery.merge(*surgery.own_adapter(surgery.inject_into(*opened(base, adapter))))
    surgery.write(at_once, tmp_path / "at once")
    assert hashes(tmp_path / "at once") == hashes(tmp_path / "want")


@pytest.mark.parametrize("name", LORA)
def test_taken_out_it_is_what_was_put_in(name: str, made: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    """Base and adapter again, file for file, with the digest that says whether it was merged before."""
    base, adapter = made(name)
    surgery.write(surgery.inject_into(*opened(base, adapter)), tmp_path / "own")
    rest, own = surgery.own_adapter(surgery.open_checkpoint(tmp_path / "own"))
    surgery.write(rest, tmp_path / "base")
    assert hashes(tmp_path / "base") == hashes(base)
    assert own.digest == surgery.open_adapter(adapter).digest
    surgery.write(own, tmp_path / "adapter")
    assert hashes(tmp_path / "adapter")["adapter_model.safetensors"] == hashes(adapter)["adapter_model.safetensors"]
    shutil.copytree(adapter, tmp_path / "again")
    merged = surgery.merge(rest, own)
    with pytest.raises(PlanError, match="merged into this base already"):
        surgery.merge(merged, surgery.open_adapter(tmp_path / "again"))


def test_a_new_adapter_in_its_base_names_no_path(made: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    """transformers loads it as it is; an adapter that was read keeps its config, of which its digest is made, and a
    note says so.
    """
    base, adapter = opened(*made("one file"))
    new = surgery.inject(base, ["q_proj"], rank=2)
    assert Path(new.config["base_model_name_or_path"]).is_absolute()
    surgery.write(surgery.inject_into(base, new), tmp_path / "own")
    text = (tmp_path / "own" / "adapter_config.json").read_text()
    assert json.loads(text)["base_model_name_or_path"] is None and str(base.path) not in text
    loaded = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "own")
    assert loaded._hf_peft_config_loaded and any("lora_A" in name for name, _ in loaded.named_parameters())
    config = {**adapter.config, "base_model_name_or_path": "/home/me/base"}
    told = surgery.inject_into(base, replace(adapter, config=config))
    assert json.loads(told.files["adapter_config.json"])["base_model_name_or_path"] == "/home/me/base"
    assert any("a path of this machine, /home/me/base" in note for note in told.notes)


@pytest.mark.parametrize("name", ["one file", "many shards", "fused"])
def test_transformers_loads_the_folder_with_its_adapter_live(
    name: str, made: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    base, adapter = made(name)
    surgery.write(surgery.inject_into(*opened(base, adapter)), tmp_path / "own")
    loaded = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "own").eval()
    family = LORA[name][0]
    live = peft.PeftModel.from_pretrained(build(family), adapter).eval()
    want, plain = tiny_models.output(live, family), tiny_models.output(build(family), family)
    assert torch.equal(tiny_models.output(loaded, family), want)
    assert (want - plain).abs().max() > 1e-3


@pytest.mark.parametrize("size", ["1GB", "30KB"])
def test_sharded_anew_it_is_found_by_its_names(
    size: str, made: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    base, adapter = made("saved modules")
    surgery.write(surgery.inject_into(*opened(base, adapter)), tmp_path / "own")
    surgery.write(surgery.open_checkpoint(tmp_path / "own"), tmp_path / "anew", size)
    rest, own = surgery.own_adapter(surgery.open_checkpoint(tmp_path / "anew"))
    merged = surgery.merge(rest, own)
    want = surgery.merge(*opened(base, adapter))
    assert merged.tensors.keys() == want.tensors.keys()
    assert all(torch.equal(merged.load(key), want.load(key)) for key in want.tensors)
    surgery.write(merged, tmp_path / "out")
    assert not {file for file in hashes(tmp_path / "out") if "adapter" in file}


def test_total_parameters_follow(made: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    base, adapter = made("many shards")
    index = "model.safetensors.index.json"
    surgery.write(surgery.inject_into(*opened(base, adapter)), tmp_path / "own")
    surgery.write(surgery.merge(*surgery.own_adapter(surgery.open_checkpoint(tmp_path / "own"))), tmp_path / "merged")
    counts = [
        json.loads((folder / index).read_text())["metadata"]["total_parameters"]
        for folder in (base, tmp_path / "own", tmp_path / "merged")
    ]
    mine = sum(tensor.size for tensor in surgery.open_adapter(adapter).tensors.values())
    assert counts == [counts[0], counts[0] + mine, counts[0]]


# What says what it is


def test_inspect_and_verify_know_it(made: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    base, adapter = made("saved modules")
    surgery.write(surgery.inject_into(*opened(base, adapter)), tmp_path / "own")
    found = surgery.inspect(tmp_path / "own")
    assert found.adapter["adapter"] == "LoRA of its own, which surgery merge folds in"
    assert (found.adapter["r"], found.adapter["modules"], found.adapter["whole_tensors"]) == (3, 3, 2)
    assert found.targets == surgery.inspect(base).targets
    checks = {check.name: check for check in surgery.verify(tmp_path / "own").checks}
    assert all(check.ok for check in checks.values())
    assert (
        checks["adapter"].detail == "8 tensors of its own LoRA, on 3 modules, fit the base: surgery merge folds them in"
    )
    assert checks["class"].detail.endswith("; 8 tensors of LoRA beside them are PEFT's to load")
    assert "adapter" not in {check.name for check in surgery.verify(base).checks}


def test_verify_says_what_does_not_fit(made: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    base, adapter = made("many shards")
    surgery.write(surgery.inject_into(*opened(base, adapter)), tmp_path / "own")
    config = tmp_path / "own" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "r": 5}))
    check = next(check for check in surgery.verify(tmp_path / "own").checks if check.name == "adapter")
    assert check.ok is False and "says rank 5" in check.detail


# Refusals


def check_refused(action: Callable[[], object], kind: type[SurgeryError], what: str, tip: str) -> None:
    with pytest.raises(kind, match=re.escape(what)) as error:
        action()
    assert error.value.help and tip in error.value.help


def test_refusals(made: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    base, adapter = made("many shards")
    checkpoint, lora = opened(base, adapter)
    check_refused(
        lambda: surgery.own_adapter(checkpoint),
        AdapterError,
        "the checkpoint has no LoRA of its own to merge",
        "BASE ADAPTER",
    )
    own = surgery.inject_into(checkpoint, lora)
    check_refused(
        lambda: surgery.inject_into(own, lora),
        PlanError,
        "has an adapter of its own already",
        "surgery merge CHECKPOINT",
    )
    other = surgery.open_checkpoint(made("biases")[0])
    check_refused(
        lambda: surgery.inject_into(other, lora),
        NotPlaced,
        "21 of 21 modules have no place in the base",
        "another base",
    )
    surgery.write(own, tmp_path / "own")
    (tmp_path / "own" / "adapter_config.json").unlink()
    bare = surgery.open_checkpoint(tmp_path / "own")
    check_refused(
        lambda: surgery.own_adapter(bare),
        AdapterError,
        "has LoRA tensors, but no adapter_config.json",
        "beside config.json",
    )
    shutil.copytree(base, tmp_path / "embedded")
    shutil.copytree(adapter, tmp_path / "embedded", dirs_exist_ok=True)
    embedded = surgery.open_checkpoint(tmp_path / "embedded")
    what = "the checkpoint has an adapter_config.json, but no LoRA tensors"
    check_refused(
        lambda: surgery.own_adapter(embedded), AdapterError, what, "surgery merge CHECKPOINT CHECKPOINT -o OUT"
    )


# The command line


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_inject_into_and_merge_by_command(saved: Saved, tmp_path: Path) -> None:
    base, own, out = saved("llama", shard="20KB"), tmp_path / "own", tmp_path / "out"
    options: Mapping[str, str] = {
        "--target-modules": "q_proj,v_proj", "--as": "checkpoint", "--rank": "4", "--layers-to-transform": "0,2",
        "--layers-pattern": "layers", "--rank-pattern": r"layers\.2\..*v_proj=2", "--alpha-pattern": "q_proj=2.5",
    }  # fmt: skip
    done = run("inject", base, "-o", own, *(word for pair in options.items() for word in pair), "--link")
    assert done.exit_code == 0, done.output
    config = json.loads((own / "adapter_config.json").read_text())
    assert config["rank_pattern"] == {r"layers\.2\..*v_proj": 2} and config["alpha_pattern"] == {"q_proj": 2.5}
    assert config["layers_pattern"] == ["layers"] and config["layers_to_transform"] == [0, 2]
    shapes = {n: tuple(t.shape) for n, t in load_file(own / "adapter_model.safetensors").items() if "lora_A" in n}
    assert {shape[0] for name, shape in shapes.items() if "layers.2" in name and "v_proj" in name} == {2} and len(
        shapes
    ) == 4
    assert done.output.splitlines()[-1].split("note")[1].strip().startswith("trainable params: ")
    done = run("merge", own, "-o", out)
    assert done.exit_code == 0, done.output
    assert hashes(out) == hashes(base)  # B is zero
    done = run("merge", base, "-o", tmp_path / "none")
    assert done.exit_code == 1 and "the checkpoint has no LoRA of its own to merge" in done.output
    assert not (tmp_path / "none").exists()


def test_experts_and_the_class_by_command(tmp_path: Path) -> None:
    stacks.build("mixtral").save_pretrained(tmp_path / "base")
    where = ["inject", tmp_path / "base", "-o", tmp_path / "lora", "--check-class"]
    done = run(*where, "--target-parameters", "experts.gate_up_proj,experts.down_proj")
    assert done.exit_code == 0, done.output
    assert "LoRA on 4 × parameter: as MixtralForCausalLM says" in done.output
    assert surgery.is_adapter(tmp_path / "lora")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--as", "shards"], "none of adapter, checkpoint"),
        (["--rank-pattern", "q_proj"], "`q_proj` is not REGEX=N"),
        (["--rank-pattern", "q_proj=1.5"], "`q_proj=1.5` is not REGEX=N"),
        (["--alpha-pattern", "=2"], "`=2` is not REGEX=X"),
    ],
)
def test_wrong_usage(options: list[str], message: str, saved: Saved, tmp_path: Path) -> None:
    done = run("inject", saved("llama"), "-o", tmp_path / "out", "--target-modules", "q_proj", *options)
    assert done.exit_code == 2 and message in re.sub(r"\s+", " ", done.output.replace("│", " "))
    assert not (tmp_path / "out").exists()
