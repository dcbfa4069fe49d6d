"""What lies beside the code and speaks of it: the changelog, the citation, the templates of issues."""

from __future__ import annotations

import re
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
