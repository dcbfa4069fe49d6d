"""What an undo record says, checked before it is believed: that each field has its type, and each name is one of a
file inside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import FormatError, listed
from ..evaluation.corrections import DIGEST, blocks_of
from ..files.history import check_history
from ..files.index import parse_index
from ..files.paths import faults_in
from ..lazy.dtypes import DTYPES
from ..lazy.tensor import Shape, Stored

Fail = Callable[[str], FormatError]


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


def _is_files(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(facts, dict) and is_count(facts.get("size")) and isinstance(facts.get("sha256"), str)
        for facts in value.values()
    )


FACTS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "files": (_is_files, "must map paths to sizes and digests"),
    "shards": (_is_texts, "must be a list of names"),
    "history": (_is_objects, "must be a list of objects"),
    "notes": (_is_texts, "must be a list of texts"),
    "stem": (lambda value: isinstance(value, str), "must be a text"),
    "index_name": (lambda value: isinstance(value, str), "must be a text"),
}


def is_count(value: object) -> bool:
    """Whether it is an integer that counts something."""
    return type(value) is int and value >= 0


def check_facts(facts: Mapping[str, Any], fail: Fail) -> None:
    """The record of a base has its fields, each of its type."""
    for key, (holds, must) in FACTS.items():
        if key not in facts or not holds(facts[key]):
            raise fail(f"`{key}` {must}")
    try:
        check_history(facts["history"])
    except ValueError as error:
        raise fail(str(error)) from error


def check_places(
    facts: Mapping[str, Any], headers: Mapping[str, bytes], contents: Mapping[str, bytes], fail: Fail
) -> None:
    """What it says was in the base's folder were files in it; the index among them, if there was one, is one.

    Raises what `fail` makes, with the names.
    """
    named = [
        *headers,
        *contents,
        *facts["files"],
        *facts["shards"],
        facts["index_name"],
        f"{facts['stem']}.safetensors",
    ]
    wrong = faults_in(dict.fromkeys(named))
    wrong += [f"{facts['stem']}: a folder is in it"] if "/" in facts["stem"] else []
    if wrong:
        raise fail(f"these are no files of a base: {'; '.join(listed(wrong))}")
    if unknown := sorted(contents.keys() - facts["files"].keys()):
        raise fail(f"the base had no such files: {', '.join(listed(unknown))}")
    if facts["index_name"] in facts["files"]:
        parse_index(contents.get(facts["index_name"], b""), facts["index_name"])


def recipes_in(recipe: Mapping[str, Any], fail: Fail) -> Mapping[str, Mapping[str, Any]]:
    """The recipe of each base tensor, with the fields that each has."""
    recipes = recipe.get("tensors")
    if not isinstance(recipes, dict):
        raise fail("`tensors` must map names to recipes")
    for name, one in recipes.items():
        if not isinstance(one, dict) or not {"dtype", "shape", "after", "predicted"} <= one.keys():
            raise fail(f"{name}: a recipe needs dtype, shape, after and predicted")
        if not isinstance(one["dtype"], str) or one["dtype"] not in DTYPES:
            raise fail(f"{name}: unknown dtype {one['dtype']!r}")
        if not (isinstance(one["shape"], list) and all(map(is_count, one["shape"]))):
            raise fail(f"{name}: the shape {one['shape']!r} is not a list of non-negative integers")
    return recipes


def check_frames(frames: Stored, sizes: Stored, digests: Stored, shape: Shape) -> None:
    """What is kept to restore a tensor of this shape is of a block each. Raises ValueError."""
    count = blocks_of(shape)
    found = [(t.dtype.name, t.shape) for t in (frames, sizes, digests)]
    if found != [("U8", (frames.size,)), ("U32", (count,)), ("U8", (count, DIGEST))]:
        raise ValueError(f"frames, sizes and digests of {count} blocks are {found}")
