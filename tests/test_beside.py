"""What lies beside the code and speaks of it: the changelog, the citation, the templates of issues."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml

import surgery
from surgery_cli.examples import EXAMPLES

ROOT = Path(__file__).parent.parent


def test_the_changelog_names_every_command() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    named = {word.split()[0] for word in re.findall(r"`([^`]+)`", text)}
    of_a_kind = {f"{verb}-{what}" for verb in ("split", "fuse") for what in ("qkv", "gate-up", "experts")}
    assert set(EXAMPLES) - of_a_kind <= named


def test_the_citation_is_of_this_version() -> None:
    said = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert said["version"] == surgery.__version__
    assert {"cff-version", "message", "title", "authors"} <= set(said)


@pytest.mark.parametrize("name", ["wrong-result", "not-supported"])
def test_issues_ask_for_what_answers_need(name: str) -> None:
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
    assert form["name"] and form["description"]
    text = str(form["body"])
    assert "surgery inspect MODEL --json" in text
    assert all(one["type"] in ("markdown", "input", "textarea") for one in form["body"])
    named = [one["id"] for one in form["body"] if one["type"] != "markdown"]
    assert len(named) == len(set(named))


def called(requirement: str) -> str:
    """The name in a requirement, as an index has it."""
    name = re.match(r"[\w.-]+", requirement)
    assert name
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def test_every_dependency_has_a_tested_version() -> None:
    """Such an installation is the one that the tests ran with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = [*project["dependencies"], *(one for more in project["optional-dependencies"].values() for one in more)]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {called(line) for line in lines if re.fullmatch(r"[\w.-]+==\S+", line)}
    assert {called(one) for one in direct} <= pinned


def test_the_code_imports_nothing_undeclared() -> None:
    """What is installed by chance is not there for everyone."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = [one for more in project["optional-dependencies"].values() for one in more]
    direct = {called(one) for one in (*project["dependencies"], *optional)}
    named = {"yaml": "pyyaml", "surgery-cli": "", "surgery": "", "httpx2": ""}  # the last for types alone
    found = set()
    for path in (*(ROOT / "surgery").rglob("*.py"), *(ROOT / "cli").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.split(".")[0])
    outside = {called(name) for name in found - set(sys.stdlib_module_names)}
    assert {named.get(name, name) for name in outside} - {""} <= direct


@pytest.mark.slow
def test_a_release_is_the_same_bytes_wherever_it_is_built(tmp_path: Path) -> None:
    """Two clones, the second one made by somebody who lets nobody read."""
    if not list(distributions(name="build")) or not (ROOT / ".git").exists():
        pytest.skip("it needs a clone, and the package build")
    made = []
    for number, mask in enumerate((0o022, 0o077)):
        clone, out = tmp_path / str(number) / "clone", tmp_path / str(number) / "out"
        clone.parent.mkdir()
        python = Path(sys.executable).parent
        script = f"umask {mask:o} && git clone -q {ROOT} {clone} && PATH={python}:$PATH {clone}/.ci/release {out}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        made.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert made[0] == made[1] and len(made[0]) == 2
