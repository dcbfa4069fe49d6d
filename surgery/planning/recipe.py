"""The recipe of an output, as its manifest holds it: with names in the place of paths of a machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..files.called import called
from ..files.refs import has_scheme
from ..step import Place, Recipe

_FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".json")


def document_of(recipe: Recipe, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `surgery run` takes: source, steps, and the `options` of the layout. None where it is not known how the
    output was made.
    """
    if not recipe.known:
        return None
    output = {key.replace("_", "-"): value for key, value in options.items() if value not in (None, False, [])}
    if isinstance(size := output.get("max-shard-size"), int):
        output["max-shard-size"] = f"{size}B"
    made = _written(recipe)
    return {**(made if isinstance(made, dict) and "source" in made else {"source": made}), "output": output}


def _called(path: str) -> str:
    """A folder's name, or a file's with its folder's."""
    folder, name = os.path.split(path)
    return f"{called(folder)}/{name}" if folder and os.path.splitext(name)[1] in _FILES else called(path)


def _written(said: Any) -> Any:
    """What was said, in what JSON has."""
    match said:
        case Recipe(source, ()):
            return _written(source)
        case Recipe(source, steps):
            return {"source": _written(source), "steps": [{call.step: _written(call.said)} for call in steps]}
        case Place(path, more):
            name = path if has_scheme(path) else _called(path)
            return {"path": name, **_written(more)} if more else name
        case Mapping():
            return {key: _written(value) for key, value in said.items()}
        case list() | tuple():
            return [_written(one) for one in said]
        case _:
            return said
