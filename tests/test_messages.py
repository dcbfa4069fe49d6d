"""No message has a hole: a list in it is joined by `series`, which says `none`, or where the code has looked that it
is not empty.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import surgery
from surgery.errors import series

ROOT = Path(surgery.__file__).parent
DRAWN = {"checks/steps.py", "pictures/heat.py", "pictures/page.py"}  # what is history in words, or HTML, is no message
SOURCES = sorted(path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).as_posix() not in DRAWN)
COMMON = set("join listed sorted map str dict fromkeys set list escape natural key items values name".split())
# What is no message.
EXCEPTIONS = {("adapters/kinds.py", "', '.join((f'`{said}`' for said in kind.said))"): "a row of a table, of constants"}


def names(node: ast.AST) -> set[str]:
    """The variables and fields that an expression is about."""
    found = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
    found |= {one.attr for one in ast.walk(node) if isinstance(one, ast.Attribute)}
    return found - COMMON


def unguarded(source: str) -> Iterator[str]:
    """The joins that are filled into a text of a list that nothing before them looks at; alternatives of a pattern
    are none.
    """
    tree = ast.parse(source)
    above = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Constant(value=str(by)), attr="join"), args=[items]) if (
                by != "|"
            ):
                if isinstance(above[node], ast.FormattedValue) and not _looked_at(node, names(items), above):
                    yield ast.unparse(node)


def _looked_at(node: ast.expr, about: set[str], above: dict[ast.AST, ast.AST]) -> bool:
    """Whether a condition around it, or an `if` before it in its function, is about the same; constants are not
    empty.
    """
    if about and all(name.isupper() for name in about):
        return True
    at: ast.AST = node
    while at in above and not isinstance(at, ast.FunctionDef):
        up = above[at]
        if isinstance(up, ast.IfExp) and at is up.body and names(up.test) & about:
            return True
        at = up
    return any(isinstance(one, ast.If) and one.lineno < node.lineno and names(one.test) & about for one in ast.walk(at))


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])
def test_a_list_in_a_message_is_not_empty(path: Path) -> None:
    inside = str(path.relative_to(ROOT))
    assert [join for join in unguarded(path.read_text()) if (inside, join) not in EXCEPTIONS] == [], (
        "join it with series"
    )


def test_the_reader_of_joins_reads() -> None:
    assert list(unguarded("def f(a):\n    return f\"x: {', '.join(a)}\"")) == ["', '.join(a)"]
    assert list(unguarded("def f(a):\n    return f\"x: {', '.join(listed(a))}\" if b else ''")) == [
        "', '.join(listed(a))"
    ]
    assert list(unguarded("def f(a):\n    return f\"x: {', '.join(a)}\" if a else ''")) == []
    assert list(unguarded("def f(a):\n    if not a:\n        return ''\n    return f\"x: {', '.join(a)}\"")) == []
    assert list(unguarded('def f(a):\n    return f"x: {series(a)}"')) == []


def test_a_series() -> None:
    assert series(["a", "b"]) == "a, b"
    assert series(("a", "b"), " or ") == "a or b"
    assert series([]) == series(one for one in ()) == "none"
