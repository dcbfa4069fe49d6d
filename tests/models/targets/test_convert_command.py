"""The commands that convert: `convert`, and `--as` on those that split, are the library's function."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import hashes
from typer.testing import CliRunner, Result

import surgery
from surgery_cli.app import app

Saved = Callable[..., Path]


def surge(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize("command", ["convert", "split", "split-qkv"])
def test_commands_write_what_the_library_writes(command: str, saved: Saved, tmp_path: Path) -> None:
    """And the class that the result names says that it is whole."""
    base = saved("phi3")
    assert surge(command, base, "--as", "llama", "-o", tmp_path / "a", "-q").exit_code == 0
    surgery.write(surgery.convert(surgery.open_checkpoint(base), "llama"), tmp_path / "b")
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    verified = json.loads(surge("verify", tmp_path / "a", "--json").stdout)
    assert verified["ok"] and "LlamaForCausalLM accepts every tensor" in str(verified["checks"])


def test_dry_run_and_refusals(saved: Saved, tmp_path: Path) -> None:
    planned = json.loads(surge("convert", saved("phi3"), "--as", "llama", "--dry-run", "--json").stdout)
    assert planned["tensors"] == 30 and not planned["computed"]
    assert "LlamaForCausalLM takes every tensor: none is missing, unexpected or of another shape" in planned["notes"]
    refused = surge("convert", saved("phi3"), "--as", "opt", "-o", tmp_path / "out")
    assert refused.exit_code == 1 and "no way is known from model type `phi3` to `opt`" in refused.stderr
    assert not (tmp_path / "out").exists()
    assert surge("convert", saved("phi3"), "-o", tmp_path / "out").exit_code == 2
    assert surge("split", saved("phi3"), "--as", "llama", "--kinds", "qkv", "-o", tmp_path / "out").exit_code == 2
    assert (
        surge("split-qkv", saved("phi3"), "--as", "llama", "--layout", "blocked", "-o", tmp_path / "out").exit_code == 2
    )


def test_split_reports_the_way_on(saved: Saved, tmp_path: Path) -> None:
    said = surge("split-qkv", saved("phi3"), "-o", tmp_path / "out")
    assert "surgery convert --as llama" in " ".join(said.output.split())
