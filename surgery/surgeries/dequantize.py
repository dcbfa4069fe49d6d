"""Quantised weights in 16 bits: what their codes mean, without the companions, and config.json says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from ..checkpoint import Checkpoint
from ..errors import NothingMatched, listed, series
from ..lazy.tensor import in_dtype
from ..names import natural, select
from ..quantization.quantised import Quantisation, quantised, undeclared
from ..quantization.scheme import module_of
from ..quantization.widen import widened
from ..step import Option, step
from .cast import DTYPES, parsed


@step
def dequantize(
    checkpoint: Checkpoint,
    *,
    only: Annotated[str | None, Option("The modules whose whole name matches; the rest stays as is.", "REGEX")] = None,
    except_: Annotated[str | None, Option("Leave modules as they are whose whole name matches.", "REGEX")] = None,
    dtype: Annotated[
        str | None,
        Option("bfloat16, float16 or float32; else what the scheme gives.", "DTYPE", among=DTYPES),
    ] = None,
) -> Checkpoint:
    """Write quantised weights in 16 bits, bit for bit what they mean: FP8 to bfloat16, NF4, int4, MXFP4.

    Each is what its codes and scales mean, computed in float32 and rounded once.
    `only` and `except_` are regular expressions over whole names of modules. What they leave quantised stays as it
    is, byte for byte, and config.json says that the others are not; without them it says nothing of quantisation
    afterwards. `dtype` ("bfloat16", ...) is what the weights become; without it, what the scheme decodes to.

    Raises NothingMatched where nothing is quantised, or the patterns leave nothing; FormatError where codes,
    companions and config.json contradict each other; NotSupported for a scheme that is not read, or that no loader
    takes in part.
    """
    held = quantised(checkpoint)
    if not held.weights:
        raise NothingMatched(
            "no weight is quantised here", where=[checkpoint.path], help=undeclared(checkpoint) or None
        )
    if dtype is not None:
        held = _in_dtype(held, dtype)
    names = _chosen(held, only, except_)
    made = widened(checkpoint, held, names)
    given = {key: value for key, value in (("only", only), ("except", except_), ("dtype", dtype)) if value is not None}
    step = {"surgery": "dequantize", "schemes": schemes_of(held, names), "weights": len(names), **given}
    gone = [name for name in made.dropped if name not in checkpoint.dropped]
    made = replace(made, notes=(*made.notes, *_notes(gone)))
    return made.with_step(step)


def _notes(gone: Sequence[str]) -> list[str]:
    """What was dropped, by the last part of its names."""
    kinds = Counter(name.rpartition(".")[2] for name in gone).most_common()
    told = series(listed([f"{kind} ({count})" for kind, count in kinds]))
    return [f"{len(gone)} dropped tensors are what went with the codes, and is in no weight: {told}"] if gone else []


def schemes_of(held: Quantisation, names: Sequence[str]) -> list[str]:
    """How these weights are quantised, the most usual first."""
    return [scheme for scheme, _ in Counter(held.weights[name].scheme for name in names).most_common()]


def _in_dtype(held: Quantisation, dtype: str) -> Quantisation:
    """The same, decoded to another dtype."""
    kind = parsed(dtype)
    return held.over(lambda weight: in_dtype(weight, kind))


def _chosen(held: Quantisation, only: str | None, except_: str | None) -> list[str]:
    """The weights whose modules the patterns leave in."""
    modules = sorted({module_of(name) for name in held.weights}, key=natural)
    kept = set(select(modules, only) if only is not None else modules)
    kept -= set(select(modules, except_)) if except_ is not None else set[str]()
    if not kept:
        tip = f"quantised modules are such as {series(listed(modules, 3))}"
        raise NothingMatched("the patterns leave nothing to dequantise", help=tip)
    return [name for name in held.weights if module_of(name) in kept]
