"""What `inspect` says of what was done before: a line for each step, in words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from handmade import write_adapter
from typer.testing import CliRunner

import surgery
from surgery.checks.steps import WORDS, told
from surgery.files.called import called
from surgery_cli.app import app

Saved = Callable[..., Path]
SOURCE = Path(surgery.__file__).parent


def surge(*words: object) -> str:
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == 0, done.output
    return done.stdout


def lines(folder: Path) -> list[str]:
    """The steps as `inspect` shows them."""
    return re.findall(r"^  history +(.*)$", surge("inspect", folder), re.MULTILINE)


def test_every_step_that_is_recorded_has_words() -> None:
    step = re.compile(r'"surgery": "([\w-]+)"')
    recorded = {name for path in SOURCE.rglob("*.py") for name in step.findall(path.read_text())}
    assert recorded == set(WORDS) and len(recorded) > 10


def test_a_merge_names_its_adapters_and_its_base(saved: Saved, tmp_path: Path) -> None:
    a, b = (
        write_adapter(tmp_path / name, {"model.layers.0.self_attn.q_proj": (40, 48)}, seed=seed)
        for seed, name in enumerate(("first", "second"))
    )
    base = saved("llama")
    surge("merge", base, a, b, "--weights", "0.7,1", "--only", ".*q_proj", "-o", tmp_path / "merged")
    assert lines(tmp_path / "merged") == [
        f"merge first (weight 0.7, 1 module), second (1 module) into {base.name}: 1 tensor computed; only .*q_proj"
    ]
    manifest = (tmp_path / "merged" / ".surgery" / "manifest.json").read_text()
    assert str(tmp_path) not in manifest and str(base.parent) not in manifest


def test_a_way_through_several_surgeries(saved: Saved, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "lora", {"model.layers.0.self_attn.o_proj": (48, 48)})
    surge("split", saved("phi3"), "-o", tmp_path / "1")
    surge("merge", tmp_path / "1", adapter, "--dtype", "bf16", "-o", tmp_path / "2")
    surge("fuse", tmp_path / "2", "-o", tmp_path / "3")
    surge("rename", tmp_path / "3", "--map", "^model=m", "--map", "^m=model", "-o", tmp_path / "4")
    surge("drop", tmp_path / "4", "--pattern", "lm_head.*", "-o", tmp_path / "5")
    surge("merge", saved("phi3"), adapter, "--reversible", "-o", tmp_path / "merged")
    surge("unmerge", tmp_path / "merged", "-o", tmp_path / "back")
    split, merge, cast, fuse, rename, drop = lines(tmp_path / "5")
    gate_up, qkv = split.removeprefix("split: ").split("; ")
    assert gate_up == "3 × gate_up_proj into gate_proj, up_proj (1 × [80|80])"
    assert re.fullmatch(r"3 × qkv_proj into q_proj, k_proj, v_proj \(1 × \[.*\]\)", qkv)
    assert merge == "merge lora (1 module) into 1: 1 tensor computed" and cast == "cast: BF16"
    assert fuse.startswith("fuse: ") and "3 × q_proj, k_proj, v_proj into qkv_proj (1 × [" in fuse
    assert re.fullmatch(r"rename: \d+ tensors by \^model -> m, \^m -> model", rename)
    assert drop == "drop: 1 tensor by lm_head.*; lm_head.weight"
    assert re.fullmatch(r"unmerge: \d+ tensors restored", lines(tmp_path / "back")[-1])
    told_as_data = json.loads(surge("inspect", tmp_path / "5", "--json"))["history"]
    assert [step["surgery"] for step in told_as_data] == ["split", "merge", "cast", "fuse", "rename", "drop"]


STRANGE: dict[str, dict[str, Any]] = {
    "older, without names": {
        "surgery": "merge", "adapters": [{"digest": "0123456789abcdef", "weight": 1.0, "modules": 3}], "computed": 3,
        "replaced": 0, "added": [],
    },
    "nobody knows it": {"surgery": "graft", "from": {"a": [1, 2]}, "names": [f"layer.{i}" for i in range(500)]},
    "no fields": {"surgery": "merge"},
    "other types": {"surgery": "split", "modules": "all"},
    "many rules": {"surgery": "rename", "renamed": 1, "rules": [[f"a{i}", "b"] for i in range(90)]},
    "a name of several types": {"surgery": ["merge"], "x": None},
}  # fmt: skip


BEGIN = {
    "older, without names": "merge an adapter of digest 0123456789ab (3 modules): 3 tensors computed",
    "nobody knows it": "graft: from a 1, 2; names layer.0, layer.1",
}


@pytest.mark.parametrize("name", STRANGE)
def test_any_step_is_one_line(name: str) -> None:
    line = told(STRANGE[name])
    assert "\n" not in line and len(line) < 200 and "{" not in line
    assert (
        name != "older, without names"
        or line == "merge an adapter of digest 0123456789ab (3 modules): 3 tensors computed"
    )
    assert name != "nobody knows it" or line.startswith("graft: from a 1, 2; names layer.0, layer.1")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/me/secret/lora", "lora"),
        ("/home/me/secret/lora/", "lora"),
        ("/home/me/model.safetensors", "model.safetensors"),
        ("/home/me/hub/models--org--name/snapshots/0a1b", "org/name"),
        ("/home/me/hub/models--org--name/snapshots/0a1b/sub/lora", "org/name/sub/lora"),
        ("hf://org/name@0a1b", "org/name"),
        ("hf://org/name@0a1b/sub/lora", "org/name/sub/lora"),
    ],
)
def test_what_a_place_is_called(path: str, name: str) -> None:
    assert called(path) == name
