"""README.md: short, with the two commands that CI runs, and links that lead somewhere; `docs/` runs its blocks."""

from __future__ import annotations

import re

import documents

README = documents.text("README.md")
LINK = re.compile(r"\]\(([^)#\s]+)")


def test_it_is_short() -> None:
    """One screen and a half: what is longer has a page of its own."""
    assert len(README.splitlines()) <= 140 and len(README) < 12_000


def test_the_two_commands_stand_first() -> None:
    blocks = documents.blocks("README.md")
    assert [block.mark for block in blocks[:2]] == ["command: first", "command: second"]
    assert all(len(block.content.splitlines()) == 1 for block in blocks[:2])


def test_links_lead_somewhere() -> None:
    missing = [link for link in LINK.findall(README) if "://" not in link and not (documents.ROOT / link).exists()]
    assert missing == []


def test_the_comparison_is_dated_and_names_versions() -> None:
    section = README.partition("## Beside other tools")[2].partition("\n## ")[0]
    assert re.search(r"\d+ \w+ 20\d\d", section) and "0.21.2" in section and "0.1.5" in section
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert len(rows) > 2 and len({line.count("|") for line in rows}) == 1
