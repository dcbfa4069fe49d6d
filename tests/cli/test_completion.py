"""Completion: what shells propose for a command that is begun."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CASES = {
    "ins": {"inspect"},
    "convert base -o out --as lla": {"llama"},
    "split base -o out --kinds q": {"qkv"},
    "split base -o out --kinds qkv,ex": {"qkv,experts"},
    "blend a b -o out --method dar": {"dare_linear", "dare_ties"},
    "cast base -o out --dtype bf": {"bf16"},
    "convert-adapter lora -o out --to k": {"kohya"},
    "reshard base -o out --executor r": {"ray"},
    "quantize base -o out --scheme nf4": {"nf4", "nf4-double"},
    "merge base lora -o out --alp": {"--alpha"},
}


def surgery(words: str = "", **more: str) -> str:
    command = [sys.executable, "-c", "import sys; from surgery_cli import main; sys.argv[0] = 'surgery'; main()"]
    env = {**os.environ, **more}
    return subprocess.run([*command, *words.split()], env=env, check=False, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def bin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `surgery` in it, as it is installed."""
    folder = tmp_path_factory.mktemp("bin")
    code = "from surgery_cli import main; import sys; sys.argv[0] = 'surgery'; main()"
    (folder / "surgery").write_text(f"#!{sys.executable}\n{code}\n")
    (folder / "surgery").chmod(0o755)
    return folder


def asked(shell: str, script: str, folder: Path, cwd: Path) -> set[str]:
    """What a shell proposes, with the script that `surgery --show-completion` gives it."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} is here")
    env = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "HOME": str(cwd)}
    done = subprocess.run([shell, "-c", script], cwd=cwd, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split("\n")) - {""}


@pytest.mark.parametrize("line", CASES)
def test_what_is_proposed(line: str) -> None:
    """By the protocol that zsh's script speaks; each of the others is asked itself, below."""
    said = surgery(_SURGERY_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS=f"surgery {line}")
    assert {word for word in CASES[line] if f'"{word}"' in said} == CASES[line], said
    assert said.count('"') <= 4 * len(CASES[line])


def test_bash(bin_folder: Path, tmp_path: Path) -> None:
    script = """
        eval "$(_SURGERY_COMPLETE=source_bash surgery)"
        ask() {
            COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _surgery_completion surgery; printf '%s\\n' "${COMPREPLY[@]}"
        }
        ask surgery convert base --as lla; ask surgery ins; ask surgery inspect ba
        complete -p surgery
    """
    assert asked("bash", script, bin_folder, tmp_path) == {
        "llama",
        "inspect",
        "complete -o default -F _surgery_completion surgery",  # `default`: names of files, where nothing is proposed
    }


def test_fish(bin_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "base-model").mkdir()
    script = """
        _SURGERY_COMPLETE=source_fish surgery | source
        complete -C "surgery convert base --as lla"; complete -C "surgery inspect ba"
    """
    said = {line.split("\t")[0] for line in asked("fish", script, bin_folder, tmp_path)}
    assert said == {"llama", "base-model/"}


def test_zsh(bin_folder: Path, tmp_path: Path) -> None:
    """What zsh evaluates: proposals, or its own names of files."""
    script = """
        _arguments() { print -r -- "$@" }; _files() { print files }; compdef() { }
        eval "$(_SURGERY_COMPLETE=source_zsh surgery)"
        words=(surgery convert base --as lla); CURRENT=5; _surgery_completion
        words=(surgery inspect ba); CURRENT=3; _surgery_completion
    """
    said = asked("zsh", script, bin_folder, tmp_path)
    assert said == {'*: :(("llama"))', "files"}
