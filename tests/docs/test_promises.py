"""Each promise names tests that are there; each error that the pages quote is one, and so is each option."""

from __future__ import annotations

import re

import pytest
from documents import ROOT, pages, text
from making.command_line import reference

PROMISES = sorted(set(re.findall(r"`(tests/[^`]+)`", text("promises.md"))))
SOURCES = "\n".join(
    path.read_text() for room in ("surgery", "cli") for path in sorted((ROOT / room).rglob("*.py"))
).replace("{METADATA}", "__metadata__")
QUOTED = re.findall(r"^\| `([^`]+)` \|", text("errors.md"), re.MULTILINE)


@pytest.mark.parametrize("named", PROMISES)
def test_what_holds_a_promise_is_there(named: str) -> None:
    path, _, test = named.partition("::")
    assert (ROOT / path).exists()
    files = [ROOT / path] if (ROOT / path).is_file() else [*(ROOT / path).rglob("test_*.py")]
    assert files and all("def test_" in file.read_text() for file in files)
    assert not test or f"def {test}(" in (ROOT / path).read_text()


def test_every_promise_names_one() -> None:
    rows = [line for line in text("promises.md").splitlines() if line.startswith("| ") and "---" not in line]
    rows = [line for line in rows if line != "| Promise | Test |"]
    assert len(rows) > 20 and all("`tests/" in line for line in rows)


@pytest.mark.parametrize("quoted", QUOTED)
def test_an_error_that_is_quoted_is_said(quoted: str) -> None:
    assert quoted in SOURCES


PLACES = sorted(set(re.findall(r"`((?:surgery|cli|tests)(?:/[\w.]+)*)`", text("contributing.md"))))


@pytest.mark.parametrize("place", PLACES)
def test_where_things_live_they_do(place: str) -> None:
    assert (ROOT / place).exists()


def test_examples_are_files_of_the_code() -> None:
    """As mkdocs takes them in: a line that is spelled otherwise would be shown as it stands."""
    taken = re.findall(r'^ *--8<-- "([^"]+)"$', text("contributing.md"), re.MULTILINE)
    assert len(taken) == text("contributing.md").count("--8") == 3 and all((ROOT / path).exists() for path in taken)


def test_errors_are_quoted() -> None:
    assert len(QUOTED) > 80


OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
OTHERS = {"--help", "--version", "--index-url"}  # typer's, and pip's


@pytest.mark.parametrize("page", pages())
def test_an_option_that_is_named_is_one(page: str) -> None:
    named = re.findall(r"`[^`\n]+`", re.sub(r"```.*?```", "", text(page), flags=re.DOTALL))
    ours = [one for one in named if "python " not in one]
    assert set(OPTION.findall(" ".join(ours))) <= {*OPTION.findall(reference()), *OTHERS}
