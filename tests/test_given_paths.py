"""A leading `~` is the home folder wherever a path is taken."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from handmade import write_adapter, write_phi3
from typer.testing import CliRunner

import surgery
from surgery_cli.app import app


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with a model and an adapter in it, and another working folder."""
    write_phi3(tmp_path / "home" / "base", layers=1, hidden=32)
    write_adapter(tmp_path / "home" / "adapter", {"model.layers.0.self_attn.o_proj": (32, 32)})
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def test_in_python(home: Path) -> None:
    base, adapter = surgery.open_checkpoint("~/base"), surgery.open_adapter(Path("~/adapter"))
    assert (base.path, adapter.path) == (str(home / "base"), str(home / "adapter"))
    assert surgery.write(surgery.merge(base, adapter), "~/merged").output == str(home / "merged")
    assert surgery.write(base, Path("~/copy")).output == str(home / "copy")
    assert surgery.verify("~/merged", check_class=False, base="~/base", adapter="~/adapter").path == str(
        home / "merged"
    )
    assert surgery.diff("~/base", "~/copy").equal
    assert surgery.inspect("~/base").path == str(home / "base")
    (home / ".left.surgery-0123456789abcdef").mkdir()
    assert [path for path, _ in surgery.clean("~/left")] == [str(home / ".left.surgery-0123456789abcdef")]
    assert os.listdir(".") == []


def test_on_the_command_line(home: Path) -> None:
    result = CliRunner().invoke(app, ["merge", "~/base", "~/adapter", "--output=~/out", "--quiet"])
    assert result.exit_code == 0 and (home / "out" / "config.json").is_file()
    assert os.listdir(".") == []


def test_a_push_looks_there(home: Path) -> None:
    with pytest.raises(surgery.NotACheckpoint) as caught:
        surgery.plan_push("~/none", "org/name")
    assert caught.value.where == (str(home / "none"),)


@pytest.mark.parametrize(
    ("dest", "name"),
    [("https://huggingface.co/org/out", "org/out"), ("s3://bucket/out", "org/name"), ("https:/a:b@c/out", "org/name")],
)
def test_an_address_is_no_folder_to_write_to(home: Path, dest: str, name: str) -> None:
    with pytest.raises(surgery.DestinationError) as caught:
        surgery.write(surgery.open_checkpoint("~/base"), dest)
    assert str(caught.value) == (
        f"nothing can be written to such an address\n  --> {dest.replace('a:b', '…')}\n"
        f"help: write hf://{name} for a repository on the Hub, or give a folder here"
    )
    assert os.listdir(".") == []


def test_what_is_opened_says_what_it_is_on_one_line(home: Path) -> None:
    base, adapter = surgery.open_checkpoint("~/base"), surgery.open_adapter("~/adapter")
    assert base.config
    size = sum(t.nbytes for t in base.tensors.values())
    assert repr(base) == f"<Checkpoint phi3: {len(base.tensors)} tensors, {size} bytes, {home / 'base'}>"
    assert repr(adapter) == f"<Adapter LORA: 2 tensors, 1024 bytes, {home / 'adapter'}>"
    plan = surgery.plan(base)
    assert (
        repr(plan)
        == f"<Plan {plan.identity[:16]}: {len(base.tensors)} tensors in 1 shards, {size + len(plan.shards[0].header)}"
        " bytes>"
    )


@pytest.mark.parametrize("name", ["base/config.json", "adapter/adapter_config.json"])
def test_a_configuration_in_the_place_of_its_folder(home: Path, name: str) -> None:
    with pytest.raises(surgery.NotACheckpoint, match="this is the configuration of a") as caught:
        surgery.inspect(home / name)
    assert caught.value.help == f"pass its folder: {(home / name).parent}"
