"""Which of a checkpoint's tensors are codes, or belong to codes: what numbers they are is not what they mean."""

from __future__ import annotations

from dataclasses import replace

from ..checkpoint import Checkpoint
from ..errors import NotSupported
from .fp8 import FLOATS, scale_of
from .gguf import layout_of
from .quantised import quantised, undeclared
from .scheme import Source


def codes_in(checkpoint: Checkpoint) -> set[str]:
    """The names of all tensors that quantised weights are stored in, of a pipeline too; what is read as the numbers
    that codes mean is none of them.

    Raises what `quantised` does; NotSupported for codes of which nothing says how they are meant.
    """
    if checkpoint.parts:
        return _in_parts(checkpoint)
    held = quantised(checkpoint)
    names = {part for one in held.weights.values() for part in (*one.parts, *one.left)} | {*held.left}
    names = {name for name in names if name in checkpoint.tensors and not layout_of(checkpoint.tensors[name])}
    if not held.weights and (what := _undeclared(checkpoint)):
        raise NotSupported("weights are quantised, and nothing says how", where=[checkpoint.path], help=what)
    return names


def _in_parts(checkpoint: Checkpoint) -> set[str]:
    """The same of the components of a pipeline."""
    found = set[str]()
    for folder, part in checkpoint.parts.items():
        at = f"{folder}/"
        mine = {n.removeprefix(at): t for n, t in checkpoint.tensors.items() if n.startswith(at)}
        found |= {f"{at}{name}" for name in codes_in(replace(part, tensors=mine))}
    return found


def _undeclared(checkpoint: Checkpoint) -> str:
    """What to do about codes of which nothing says how they are meant; empty where there are none."""
    if what := undeclared(checkpoint):
        return what
    source = Source(checkpoint, {})
    scales = ((name, scale_of(source, name)) for name, t in checkpoint.tensors.items() if t.dtype.name in FLOATS)
    if found := next(((name, scale) for name, scale in scales if scale), None):
        return f"{found[0]} is float8, and {found[1]} looks like its scales: config.json has no quantization_config"
    return ""
