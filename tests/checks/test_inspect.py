"""Inspecting adapters: what says which modules have what, and the shapes that their deltas have; and what lies in an
adapter's place.
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
import transformers as tf
from models.fused import stacks
from typer.testing import CliRunner

import surgery
from surgery_cli.app import app

EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]


def resnet() -> Any:
    return tf.ResNetForImageClassification(
        tf.ResNetConfig(embedding_size=12, hidden_sizes=[12, 20], depths=[1, 1], layer_type="basic")
    )


def saved_by_peft(out: Path, model: Any, **options: Any) -> Path:
    peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, **options})).save_pretrained(out)
    return out


def surge(*words: object) -> Any:
    return CliRunner().invoke(app, list(map(str, words)))


LLAMA = tiny_models.MODELS["llama"]
TARGETS: dict[str, tuple[Callable[[], Any], Mapping[str, Any], dict[str, tuple[int, list[tuple[int, ...]]]]]] = {
    "linear": (LLAMA, {"target_modules": ["q_proj", "o_proj"]}, {"q_proj": (3, [(40, 48)]), "o_proj": (3, [(48, 40)])}),
    "dora": (LLAMA, {"target_modules": ["q_proj"], "use_dora": True}, {"q_proj": (3, [(40, 48)])}),
    "dora on an embedding": (
        LLAMA,
        {"target_modules": ["embed_tokens"], "use_dora": True},
        {"embed_tokens": (1, [(97, 48)])},
    ),
    "biases": (
        tiny_models.MODELS["bert"],
        {"target_modules": ["query"], "lora_bias": True},
        {"query": (3, [(36, 36)])},
    ),
    "experts": (
        lambda: stacks.build("qwen3_moe"),
        {"target_modules": [], "target_parameters": EXPERTS},
        {"gate_up_proj": (2, [(24, 16)]), "down_proj": (2, [(16, 12)])},
    ),
    "convolutions": (resnet, {"target_modules": ["embedder.convolution"]}, {"convolution": (1, [(12, 3, 7, 7)])}),
}


@pytest.mark.parametrize("name", TARGETS)
def test_targets_are_what_is_added_to(name: str, tmp_path: Path) -> None:
    """By last name, with the shape of the delta, whatever else lies beside A and B."""
    build, options, wanted = TARGETS[name]
    found = surgery.inspect(saved_by_peft(tmp_path / "a", build(), **options))
    assert {t.name: (t.modules, list(t.shapes)) for t in found.targets} == wanted
    assert not found.notes


def test_what_is_asked_of_which_modules_is_shown(tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "target_modules": ["q_proj", "v_proj"], "exclude_modules": ["layers.2.self_attn.v_proj"],
        "layers_to_transform": [0, 2],
        "layers_pattern": "layers", "lora_bias": False, "use_dora": True, "rank_pattern": {"q_proj": 2},
        "trainable_token_indices": [3, 4], "ensure_weight_tying": True,
    }  # fmt: skip
    folder = saved_by_peft(tmp_path / "a", tiny_models.build("llama-tied"), **asked)
    shown = surgery.inspect(folder).adapter
    assert {key: shown.get(key, False) for key in asked} == {**asked, "target_modules": shown["target_modules"]}
    assert sorted(shown["target_modules"]) == asked["target_modules"]
    lines = [line.split(None, 1) for line in surge("inspect", folder).stdout.splitlines()]
    for line in (
        ["layers_to_transform", "0, 2"],
        ["exclude_modules", "layers.2.self_attn.v_proj"],
        ["use_dora", "True"],
    ):
        assert line in lines
    assert ["targets", "q_proj ×2 (40×48), v_proj ×1 (20×48)"] in lines
    assert not any(line[0] in ("lora_bias", "target_parameters") for line in lines)
    one_layer = saved_by_peft(
        tmp_path / "b", tiny_models.build("bert"), target_modules=["query"], lora_bias=True, layers_to_transform=0
    )
    shown = surgery.inspect(one_layer).adapter
    assert shown["lora_bias"] is True and shown["layers_to_transform"] == 0


# What lies in an adapter's place

COMMANDS = {
    "inspect": ("inspect", "{adapter}"),
    "verify": ("verify", "{adapter}"),
    "verify a merge": ("verify", "{base}", "--base", "{base}", "--adapter", "{adapter}", "--no-class"),
    "diff": ("diff", "{adapter}", "{adapter}"),
    "merge": ("merge", "{base}", "{adapter}", "-o", "{out}"),
    "split": ("split", "{adapter}", "--base", "{base}", "-o", "{out}"),
    "fuse": ("fuse", "{adapter}", "--base", "{base}", "-o", "{out}"),
}
WHOLE = {
    "reshard": ("reshard", "{adapter}", "--max-shard-size", "1MB", "-o", "{out}"),
    "rename": ("rename", "{adapter}", "--map", "a=b", "-o", "{out}"),
    "drop": ("drop", "{adapter}", "--pattern", "a", "-o", "{out}"),
    "convert": ("convert", "{adapter}", "--as", "llama", "-o", "{out}"),
    "inject": ("inject", "{adapter}", "--target-modules", "q_proj", "-o", "{out}"),
    "merge, the wrong way round": ("merge", "{adapter}", "{base}", "-o", "{out}"),
    "verify, as the base": ("verify", "{base}", "--base", "{adapter}", "--adapter", "{other}", "--no-class"),
}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_by_peft(
        tmp_path_factory.mktemp("adapter") / "a", tiny_models.build("llama"), target_modules=["q_proj"]
    )


def said(command: tuple[str, ...], base: Path, folder: Path, out: Path, other: Path | None = None) -> str:
    """What the command says as it fails, and writes nothing."""
    found = surge(*(word.format(adapter=folder, base=base, out=out, other=other or folder) for word in command))
    assert found.exit_code == 1 and not isinstance(found.exception, surgery.SurgeryError) and not out.exists()
    return found.output


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
@pytest.mark.parametrize("name", COMMANDS)
def test_an_adapter_that_was_cloned_without_its_files(
    name: str, file: str, adapter: Path, saved: Callable[..., Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "a"))
    (folder / file).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4\n")
    text = said(COMMANDS[name], saved("llama"), folder, tmp_path / "out")
    assert "a Git LFS pointer is here in the place of the file" in text and f"{folder / file}" in text
    assert "git lfs pull fetches it" in text


@pytest.mark.parametrize("pickled", [False, True], ids=["", "only pickled"])
@pytest.mark.parametrize("name", WHOLE)
def test_an_adapter_where_a_checkpoint_is_meant(
    name: str, pickled: bool, adapter: Path, saved: Callable[..., Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "a"))
    if pickled:
        (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    text = said(WHOLE[name], saved("llama"), folder, tmp_path / "out", other=adapter)
    assert "this is an adapter, and no checkpoint" in text
    assert "where both are given, the base comes first: surgery merge BASE ADAPTER -o OUT" in text


def test_an_adapter_in_the_place_of_its_merge(adapter: Path, saved: Callable[..., Path]) -> None:
    found = surge("verify", adapter, "--base", saved("llama"), "--adapter", saved("llama"))
    assert found.exit_code == 1
    assert "this is an adapter, not a merged checkpoint" in found.output
    assert "the merge comes first: surgery verify MERGED --base BASE --adapter ADAPTER" in found.output


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
def test_a_checkpoint_that_was_cloned_without_its_files(name: str, saved: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved("llama", **({"shard": "20KB"} if "index" in name else {})), tmp_path / "base"))
    (folder / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4\n")
    for command in ("inspect", "verify"):
        found = surge(command, folder)
        assert found.exit_code == 1
        assert (
            "a Git LFS pointer is here in the place of the file" in found.output
            and "git lfs pull fetches it" in found.output
        )


def test_a_config_that_is_cut_off(saved: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved("llama"), tmp_path / "base"))
    config = json.dumps(json.loads((folder / "config.json").read_text()))
    (folder / "config.json").write_text(config[: len(config) // 2])
    found = surge("inspect", folder)
    assert found.exit_code == 1 and "error: cut off: " in found.output and "UTF-8" not in found.output
