"""Paths given for what must be open, and the reverse: every public function says what it takes, before anything
happens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from handmade import write_adapter, write_phi3

import surgery
from surgery.errors import SurgeryError
from surgery.opened import OPENERS, types_of

FUNCTIONS = {name: value for name in surgery.__all__ if inspect.isfunction(value := getattr(surgery, name))}


def types(function: Callable[..., Any]) -> dict[str, frozenset[str]]:
    """The types of each parameter, by the names in its annotation."""
    inner = inspect.unwrap(function)
    return {
        name: types_of(p.annotation, inner.__globals__) for name, p in inspect.signature(function).parameters.items()
    }


TAKES = [
    (name, parameter, opener)
    for name, function in FUNCTIONS.items()
    for parameter, allowed in types(function).items()
    for kind, opener in OPENERS.items()
    if kind in allowed and "PathLike" not in allowed
]
READS = [
    (name, parameter)
    for name, function in FUNCTIONS.items()
    for parameter, allowed in types(function).items()
    if "PathLike" in allowed and not allowed & OPENERS.keys()
]


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One of each, by the name of its type."""
    folder = tmp_path_factory.mktemp("opened")
    base = surgery.open_checkpoint(write_phi3(folder / "base", layers=1, hidden=16))
    adapter = surgery.open_adapter(write_adapter(folder / "adapter", {"model.layers.0.self_attn.o_proj": (16, 16)}))
    return {"Checkpoint": base, "Adapter": adapter, "Plan": surgery.plan(base)}


def called(name: str, parameter: str, value: object, values: dict[str, Any]) -> None:
    """The function called with `value` there, and with what fits elsewhere."""
    function = FUNCTIONS[name]
    needed = [
        n
        for n, p in inspect.signature(function).parameters.items()
        if p.default is p.empty and p.kind is not p.VAR_KEYWORD
    ]
    fitting = {n: next((v for kind, v in values.items() if kind in types(function)[n]), "x") for n in needed}
    function(**{**fitting, parameter: value})


def test_the_reader_of_signatures_reads() -> None:
    """These laws would hold of nothing: aliases and type variables are looked through."""
    known = {
        ("merge", "adapter"),
        ("fuse", "target"),
        ("fuse_qkv", "base"),
        ("write", "checkpoint"),
        ("execute", "plan"),
    }
    assert known <= {(name, parameter) for name, parameter, _ in TAKES}
    assert {
        ("verify", "path"),
        ("verify", "base"),
        ("push", "folder"),
        ("open_checkpoint", "path"),
        ("inspect", "path"),
    } <= set(READS)
    assert "PathLike" in types(surgery.diff)["a"] and "Checkpoint" in types(surgery.diff)["a"]


@pytest.mark.parametrize(("name", "parameter", "opener"), TAKES)
@pytest.mark.parametrize("path", ["base", Path("~/models/base")], ids=["text", "path"])
def test_a_path_is_refused_with_what_opens_it(
    name: str, parameter: str, opener: str, path: Any, values: dict[str, Any]
) -> None:
    with pytest.raises(SurgeryError) as caught:
        called(name, parameter, path, values)
    assert f"`{name}` was given a path as {parameter}" in caught.value.what
    assert f"surgery.{opener}(" in str(caught.value.help)
    assert caught.value.where == (str(path),)


@pytest.mark.parametrize(("name", "parameter"), READS)
@pytest.mark.parametrize("kind", ["Checkpoint", "Adapter"])
def test_what_is_open_is_refused_where_a_path_is_read(
    name: str, parameter: str, kind: str, values: dict[str, Any]
) -> None:
    if "Sequence" in types(FUNCTIONS[name])[parameter]:
        values = {**values, kind: [values[kind]]}
    with pytest.raises(SurgeryError, match=f"`{name}` was given an? {kind} as {parameter}, and takes a path"):
        called(name, parameter, values[kind], values)


def test_one_for_the_other_is_refused(values: dict[str, Any]) -> None:
    base, adapter = values["Checkpoint"], values["Adapter"]
    for wrong in (
        lambda: surgery.merge(adapter, base),
        lambda: surgery.merge(base, [adapter, "other"]),
        lambda: surgery.fuse_qkv(adapter, base=adapter),
        lambda: surgery.execute(base, "out"),
        lambda: surgery.drop([base], ".*"),
        lambda: surgery.write(surgery.plan(base), "out"),
    ):
        with pytest.raises(SurgeryError, match=r"was given .*, and takes a"):
            wrong()


def test_what_fits_passes_and_signatures_stay(values: dict[str, Any]) -> None:
    split = surgery.split_qkv(values["Checkpoint"], base=None)
    assert surgery.merge(split, [values["Adapter"]]).tensors.keys() == split.tensors.keys()
    assert list(inspect.signature(surgery.merge).parameters)[:3] == ["checkpoint", "adapter", "weights"]
    assert surgery.merge.__name__ == "merge" and "float32" in str(surgery.merge.__doc__)
    with pytest.raises(TypeError, match="unexpected keyword"):
        surgery.drop(values["Checkpoint"], pattern="x", other=1)  # type: ignore[call-arg]
