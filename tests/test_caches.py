"""What is kept in memory from call to call has a bound, or does not follow from what files and users say."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import surgery
from surgery.patterns import matching

ROOT = Path(surgery.__file__).parent
# Without a bound, and with a key: of functions of ours, and of a table of ours.
FEW = {"step.py:_options", "recipes/parameters.py:_signature", "models/names_v5.py:_compiled"}


def unbounded(source: str) -> Iterator[str]:
    """The functions under `cache`, or `lru_cache` without a number, that are called with something."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and (node.args.args or node.args.kwonlyargs):
            said = {ast.unparse(one).removeprefix("functools.") for one in node.decorator_list}
            if said & {"cache", "lru_cache", "lru_cache()", "lru_cache(None)", "lru_cache(maxsize=None)"}:
                yield node.name


def test_what_is_kept_has_a_bound() -> None:
    sources = {path.relative_to(ROOT).as_posix(): path.read_text() for path in ROOT.rglob("*.py")}
    assert {f"{path}:{name}" for path, source in sources.items() for name in unbounded(source)} == FEW


@pytest.mark.parametrize("how", ["cache", "functools.cache", "lru_cache", "lru_cache(None)"])
def test_the_search_finds_one(how: str) -> None:
    assert list(unbounded(f"@{how}\ndef kept(text): ...")) == ["kept"]
    assert not list(unbounded(f"@lru_cache(64)\ndef kept(text): ...\n@{how}\ndef made(): ..."))


def test_expressions_of_many_adapters_are_forgotten() -> None:
    for number in range(600):
        matching.fullmatch(rf"(?:a+)+b{number}", "aaaa")
    assert matching._compiled.cache_info().currsize <= 256
