"""Help: what must be given comes first, each command shows how it is typed, and the list of commands is quick."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from surgery_cli.app import app
from surgery_cli.examples import EXAMPLES

TOP: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = dict(TOP.commands)
LINES = [(name, line) for name in EXAMPLES for line in EXAMPLES[name]]
NEEDED = {
    "convert": "--as",
    "quantize": "--scheme",
    "rename": "--map",
    "drop": "--pattern",
    "keep": "--pattern",
    "cast": "--dtype",
}


def helped(*words: str) -> str:
    done = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "100", "TERMINAL_WIDTH": "100"})
    assert done.exit_code == 0, done.output
    return done.stdout


def parsed(words: list[str]) -> dict[str, Any]:
    """What the command's own parser makes of the words after its name."""
    command = COMMANDS[words[1]]
    with command.make_context(words[1], words[2:]) as context:
        return dict(context.params)


def test_there_is_an_example_for_every_command() -> None:
    assert set(EXAMPLES) == set(COMMANDS) and all(EXAMPLES.values())


@pytest.mark.parametrize(("name", "line"), LINES)
def test_examples_are_shown_and_are_right(
    name: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands: the command parses it, and what then fails is that nothing is there."""
    assert f"$ {line}" in helped(name)
    words = shlex.split(line)
    assert words[:2] == ["surgery", name]
    parsed(words)
    if name in ("demo", "env", "schema"):  # they need nothing that is there
        return
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, words[1:])
    assert done.exit_code == (0 if name == "clean" else 1), done.output
    assert name == "clean" or "no such f" in done.output or "nothing" in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", ["merge base adapter --out x", "drop base --patern x", "diff a", "push --private"])
def test_a_wrong_example_would_be_seen(wrong: str) -> None:
    with pytest.raises(Exception, match=r"No such option|Missing parameter"):
        parsed(["surgery", *shlex.split(wrong)])


@pytest.mark.parametrize("name", COMMANDS)
def test_what_must_be_given_comes_first(name: str) -> None:
    """In the usage line, and among the options."""
    shown = helped(name)
    usage = re.search(r"Usage: (.*)", shown)
    assert usage and "{" not in usage[1] and "[[" not in usage[1]
    flags = re.findall(r"^│ (?:\* +)?(--[\w-]+)", shown, re.MULTILINE)
    first = [*([NEEDED[name]] if name in NEEDED else []), *(["--output"] if "--output" in flags else [])]
    assert flags[: len(first)] == first
    assert usage[1].rstrip().endswith("-o DIR") is ("--output" in flags)
    assert ("(needed)" in shown) is (name in NEEDED)


def test_commands_that_need_an_option_say_so_when_it_is_missing(tmp_path: Path) -> None:
    for name, option in NEEDED.items():
        done = CliRunner().invoke(app, [name, str(tmp_path), "-o", str(tmp_path / "out")])
        assert done.exit_code == 2 and option in done.output


def test_the_list_of_commands() -> None:
    """All of them, under what they are for, each with what it does, in plain words."""
    shown = helped()
    assert re.findall(r"^(\w[\w ]*):$", shown, re.MULTILINE) == [
        "Options", "Look", "Edit", "Fused modules", "Adapters", "Recipes", "Hub", "Other",
    ]  # fmt: skip
    assert re.findall(r"^  ([a-z][a-z-]*)  ", shown, re.MULTILINE) == list(COMMANDS)
    assert "[bold]" not in shown and "[/" not in shown and "$" not in shown
    assert "Exit status: 0 done" in shown
    alone = CliRunner().invoke(app, [], env={"COLUMNS": "100", "TERMINAL_WIDTH": "100"})
    assert (alone.exit_code, alone.stdout) == (2, shown)


# typer and what it needs; rich, which draws the help of single commands, takes longer than all of that.
SLOW = ("rich", "markdown_it", "pygments", "torch", "transformers", "numpy", "huggingface_hub", "asyncio")


@pytest.mark.parametrize("words", [["--help"], [], ["--version"]])
def test_the_list_of_commands_loads_nothing_slow(words: list[str]) -> None:
    code = f"""
import sys
from surgery_cli.app import app
sys.argv = ["surgery", *{words!r}]
try:
    app()
except SystemExit:
    print(sorted({{m.partition(".")[0] for m in sys.modules}} & set({SLOW!r})), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert done.stderr.splitlines()[-1] == "[]"
