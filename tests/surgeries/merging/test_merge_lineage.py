"""An adapter of another base: shapes fit, so only what is said of the bases can tell."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from handmade import write_adapter
from typer.testing import CliRunner

import surgery
from surgery.errors import AdapterError
from surgery_cli.app import app

COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture
def named(saved: Callable[..., Path], tmp_path: Path) -> Callable[[str], Path]:
    """named(path) -> the base, in a folder of that path."""
    return lambda path: shutil.copytree(saved("llama"), tmp_path / path)


def adapter_of(path: Path, **config: Any) -> Path:
    folder = write_adapter(path, {"model.layers.0.self_attn.q_proj": (40, 48)})
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return folder


def notes(base: Path, adapter: Path, **told: Any) -> tuple[str, ...]:
    return surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter), **told).notes


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("Llama-3-8B", "meta-llama/Llama-3-8B"),
        ("Llama-3-8B", "/home/someone/models/llama-3-8b/"),
        (f"models--meta-llama--Llama-3-8B/snapshots/{COMMIT}", "meta-llama/Llama-3-8B"),
        ("base", None),
        ("base", ""),
    ],
)
def test_the_same_name_is_no_news(named: Callable[[str], Path], tmp_path: Path, folder: str, said: str | None) -> None:
    assert not any(
        "trained on" in note for note in notes(named(folder), adapter_of(tmp_path / "a", base_model_name_or_path=said))
    )


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("Llama-3-8B", "meta-llama/Llama-3-8B-Instruct"),
        ("Mistral-7B", "Qwen/Qwen2-7B"),
        (f"models--meta-llama--Llama-3-8B/snapshots/{COMMIT}", "meta-llama/Llama-3-8B-Instruct"),
        ("base", "org/model"),
    ],
)
def test_another_name_is_said(named: Callable[[str], Path], tmp_path: Path, folder: str, said: str) -> None:
    base, adapter = named(folder), adapter_of(tmp_path / "a", base_model_name_or_path=said)
    found = [note for note in notes(base, adapter) if said in note]
    assert len(found) == 1 and f"{adapter} says that it was trained on {said}" in found[0] and str(base) in found[0]


def test_the_name_in_the_manifest_counts_while_the_weights_are_the_same(
    named: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = adapter_of(tmp_path / "a", base_model_name_or_path="org/Llama-X")
    other = adapter_of(tmp_path / "b", alpha_pattern={}, base_model_name_or_path="org/Llama-X")
    surgery.write(surgery.open_checkpoint(named("Llama-X")), tmp_path / "resharded")
    assert not any("trained on" in note for note in notes(tmp_path / "resharded", adapter))
    surgery.write(
        surgery.merge(surgery.open_checkpoint(tmp_path / "resharded"), surgery.open_adapter(adapter)),
        tmp_path / "merged",
    )
    told = [note for note in notes(tmp_path / "merged", other) if "trained on" in note]
    assert len(told) == 1 and "says that it was trained on org/Llama-X" in told[0]


def test_a_base_that_its_card_calls_another_models_child_is_said(named: Callable[[str], Path], tmp_path: Path) -> None:
    base = named("chat")
    (base / "README.md").write_text("---\nbase_model: org/Llama-X\n---\n")
    found = [
        n for n in notes(base, adapter_of(tmp_path / "a", base_model_name_or_path="org/Llama-X")) if "trained on" in n
    ]
    assert found == [
        f"{tmp_path / 'a'} was trained on org/Llama-X; this base was made from that, and is not the same: {base}"
    ]


def test_another_commit_is_said(named: Callable[[str], Path], tmp_path: Path) -> None:
    base = named(f"models--org--m/snapshots/{COMMIT}")
    said = {"base_model_name_or_path": "org/m", "revision": OTHER}
    assert any(
        f"trained on commit {OTHER} of org/m" in note for note in notes(base, adapter_of(tmp_path / "a", **said))
    )
    assert not any("commit" in note for note in notes(base, adapter_of(tmp_path / "b", **said | {"revision": COMMIT})))
    assert not any("commit" in note for note in notes(base, adapter_of(tmp_path / "c", **said | {"revision": "main"})))


MAPPING = {"base_model_class": "Qwen2ForCausalLM", "parent_library": "transformers.models.qwen2.modeling_qwen2"}


def test_another_model_type_is_refused(named: Callable[[str], Path], tmp_path: Path) -> None:
    base, adapter = named("base"), adapter_of(tmp_path / "a", auto_mapping=MAPPING)
    with pytest.raises(
        AdapterError, match="trained on a model of type `qwen2`, and this base is of type `llama`"
    ) as caught:
        notes(base, adapter)
    assert "--any-base" in str(caught.value.help)
    assert notes(base, adapter, any_base=True) is not None


def test_the_type_is_read_from_the_base_that_is_named_where_it_is_here(
    named: Callable[[str], Path], saved: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = adapter_of(tmp_path / "a", base_model_name_or_path=str(saved("gpt2")))
    with pytest.raises(AdapterError, match="trained on a model of type `gpt2`, and this base is of type `llama`"):
        notes(named("base"), adapter)


@pytest.mark.parametrize(
    ("model_type", "parent"),
    [("gemma3_text", "gemma3"), ("xlm-roberta", "xlm_roberta"), ("qwen2_5_vl", "qwen2_5_vl"), ("", "qwen2")],
)
def test_types_that_are_one_or_unknown_are_not_refused(
    named: Callable[[str], Path], tmp_path: Path, model_type: str, parent: str
) -> None:
    base = named("base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "model_type": model_type, "architectures": ["X"]}))
    mapping = {"base_model_class": "Y", "parent_library": f"transformers.models.{parent}.modeling_{parent}"}
    assert notes(base, adapter_of(tmp_path / "a", auto_mapping=mapping)) is not None


@pytest.mark.parametrize("value", [True, [1], {"parent_library": 3}, {"parent_library": "x" * 10_000}])
def test_odd_values_are_passed_over(named: Callable[[str], Path], tmp_path: Path, value: Any) -> None:
    odd = adapter_of(tmp_path / "a", auto_mapping=value, base_model_name_or_path=value, revision=value)
    found = notes(named("base"), odd)
    assert not any("trained on" in note for note in found)


def test_the_command(named: Callable[[str], Path], tmp_path: Path) -> None:
    base, adapter = named("base"), adapter_of(tmp_path / "a", auto_mapping=MAPPING)
    call = ["merge", str(base), str(adapter), "-o", str(tmp_path / "out")]
    refused = CliRunner().invoke(app, call)
    assert refused.exit_code == 1 and "--any-base" in refused.output and not (tmp_path / "out").exists()
    assert CliRunner().invoke(app, [*call, "--any-base"]).exit_code == 0
