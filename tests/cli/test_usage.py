"""What is wrong usage ends with 2, before anything is opened; what a result says of itself, its truth value does not
contradict.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import surgery
from surgery.checks.check import Check, Verification
from surgery.checks.diff import Difference
from surgery.surgeries.cast import NAMES, SHORT
from surgery_cli.app import app
from surgery_cli.output import LOOKED, STAGED


@pytest.mark.parametrize(
    "words",
    [
        ["reshard", "base", "--max-shard-size", "5XB", "-o", "out"],
        ["reshard", "base", "--max-shard-size", "5", "-o", "out"],
        ["reshard", "base", "--max-shard-size", "5GB", "--memory", "much", "-o", "out"],
        ["merge", "base", "adapter", "--dtype", "half", "-o", "out"],
        ["merge", "base", "adapter", "--dtype", "int8", "-o", "out"],
        ["merge", "base", "adapter", "--weights", "1,2", "-o", "out"],
        ["merge", "base", "a", "b", "--weights", "1", "-o", "out"],
        ["verify", "merged", "--base", "base", "--adapter", "a", "--weights", "1,2"],
        ["verify", "merged", "--base", "base", "--adapter", "a", "--adapter", "b", "--weights", "1"],
        ["unmerge", "merged", "a", "--approximate", "--weights", "1,2", "-o", "out"],
        ["unmerge", "merged", "a", "b", "--approximate", "--weights", "1", "-o", "out"],
    ],
)
def test_wrong_usage_ends_with_2(words: list[str]) -> None:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2, done.output


@pytest.mark.parametrize(("short", "name"), SHORT.items())
def test_short_names_of_dtypes(short: str, name: str) -> None:
    """They pass the command line: what then fails is that there is no such base."""
    assert name in NAMES
    done = CliRunner().invoke(app, ["merge", "no-such-base", "adapter", "--dtype", short, "-o", "out"])
    assert done.exit_code == 1, done.output


@pytest.mark.parametrize(
    ("oks", "truth"), [((True, True), True), ((True, None), True), ((True, False), False), ((False,), False)]
)
def test_a_verification_is_true_if_nothing_failed(oks: tuple[bool | None, ...], truth: bool) -> None:
    assert bool(Verification("m", tuple(Check("x", ok, "") for ok in oks))) is truth


def test_what_has_no_truth_value_says_what_to_ask() -> None:
    with pytest.raises(TypeError, match="`ok`"):
        bool(Check("x", None, ""))
    with pytest.raises(TypeError, match="`equal`"):
        bool(object.__new__(Difference))


@pytest.mark.parametrize(("command", "asked"), [("diff", ["a", "b"]), ("verify", ["a"]), ("inspect", ["a"])])
def test_ctrl_c_where_nothing_is_written(command: str, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(surgery, command, pressed)
    done = CliRunner().invoke(app, [command, *asked])
    assert done.exit_code == 130
    assert LOOKED[0] in done.stderr and STAGED[0] not in done.stderr


@pytest.mark.parametrize("given", [True, False])
def test_ctrl_c_in_a_demo_says_where_its_files_are(
    given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it made stays in the folder that was asked for; a temporary one is gone, and the words say which it was."""
    folder, made = tmp_path / "play", []

    def pressed(where: Path) -> None:
        (where / "base").mkdir()
        made.append(where)
        raise KeyboardInterrupt

    monkeypatch.setattr("surgery_cli.demo._show", pressed)
    done = CliRunner().invoke(app, ["demo", *([str(folder)] if given else [])])
    assert done.exit_code == 130
    assert STAGED[0] not in done.stderr and LOOKED[0] not in done.stderr
    assert made[0].exists() is given
    assert ("left in" if given else "removed") in done.stderr and ("play" in done.stderr) is given


@pytest.mark.parametrize("how", ["one pipe", "one file", "two pipes"])
@pytest.mark.parametrize("wrong", ["size", "nan", "missing"])
def test_verify_says_nothing_twice(how: str, wrong: str, saved: Callable[..., Path], tmp_path: Path) -> None:
    """In one place, each line once; where standard error goes elsewhere, it has the failures too."""
    base = saved("llama", shard="60KB")
    surgery.write(surgery.open_checkpoint(base), tmp_path / "m")
    if wrong == "size":
        (tmp_path / "m" / "config.json").write_text((base / "config.json").read_text() + "\n")
    elif wrong == "missing":
        (tmp_path / "m" / "generation_config.json").unlink()
    else:
        shard = next(iter(sorted((tmp_path / "m").glob("*.safetensors"))))
        tensors = load_file(shard)
        for tensor in tensors.values():
            tensor.view(-1)[0] = float("nan")
        save_file(tensors, shard, metadata={"format": "pt"})
    words = [sys.executable, "-m", "surgery_cli", "verify", str(tmp_path / "m"), "--values", "--no-class"]
    with (tmp_path / "log").open("w") as log:
        out = log if how == "one file" else subprocess.PIPE
        err = subprocess.PIPE if how == "two pipes" else subprocess.STDOUT
        done = subprocess.run(words, stdout=out, stderr=err, text=True)
    text = (tmp_path / "log").read_text() if how == "one file" else done.stdout
    lines = [line.split("FAILED")[-1].strip() for line in text.splitlines() if line.strip()]
    assert done.returncode == 1 and "FAILED" in text and len(lines) == len(set(lines))
    assert wrong != "size" or "and not of the size that surgery wrote, " in text
    if how == "two pipes":
        assert done.stderr.startswith("error: 1 of ")
    else:
        assert "error:" not in text
