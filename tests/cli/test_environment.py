"""`surgery env`: what a bug report needs, and nothing that names somebody."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import surgery


@pytest.fixture
def said(tmp_path: Path) -> str:
    """What it says of a home with a token, and a Hub behind a name and a password."""
    home = tmp_path / "home-of-alice"
    (home / "hf").mkdir(parents=True)
    (home / "hf" / "token").write_text("hf_of_the_file")
    told = {
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_TOKEN": "hf_of_the_variable",
        "HF_ENDPOINT": "https://alice:secret@hub.example",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "surgery_cli", "env", "--json"]
    return subprocess.run(command, env={**os.environ, **told}, check=True, capture_output=True, text=True).stdout


def test_versions_are_those_that_are_installed(said: str) -> None:
    found = json.loads(said)
    assert found["surgery"] == surgery.__version__
    assert {name: found["packages"][name] for name in ("torch", "numpy")} == {n: version(n) for n in ("torch", "numpy")}
    assert found["cpu"] and found["cores"] and found["memory"].endswith("GB")


def test_nobody_is_named(said: str) -> None:
    found = json.loads(said)
    assert found["caches"]["HF_HOME"] == "~/hf"
    assert found["set"] == {"HF_HUB_OFFLINE": "1"}
    assert found["Hub"] == "another endpoint than huggingface.co"
    for secret in ("alice", "secret", "hf_of", "hub.example", socket.gethostname()):
        assert secret not in said
