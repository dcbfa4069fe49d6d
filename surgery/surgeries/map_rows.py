"""A user's own surgery: a function of rows, on the tensors of a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ..checkpoint import Checkpoint
from ..errors import NotSupported, PlanError, SurgeryError, listed
from ..evaluation.row_blocks import LONGEST
from ..evaluation.trying import Refused, tried
from ..lazy.dtypes import DTYPES, Dtype
from ..lazy.function import Function
from ..lazy.rowwise import mapped
from ..lazy.tensor import Tensor
from ..names import select
from ..opened import takes_opened
from ..step import Recipe
from .cast import NAMES, SHORT
from .header_ties import along
from .own_function import function_of

if TYPE_CHECKING:
    import torch

Rows = Callable[["torch.Tensor"], "torch.Tensor"]
TIP = "a function gets a block of rows, [rows, columns], and returns as many rows, each made of that row alone"


@takes_opened
def map_rows(
    checkpoint: Checkpoint, functions: Mapping[str, Rows], *, dtype: str | None = None, columns: int | None = None
) -> Checkpoint:
    """The checkpoint with what a function of yours makes of the rows of the tensors of a name.

        def clipped(rows: torch.Tensor) -> torch.Tensor:
            return rows.clamp(-0.5, 0.5)

        map_rows(checkpoint, {r".*mlp.*weight": clipped})

    Each key is a regular expression that matches whole names. A row is what the last axis holds; a function gets
    blocks of rows, [rows, columns] in the tensor's dtype, while the output is written, on several threads at once, and
    returns as many rows: of `dtype`, such as "float32", and `columns` each, where they are given, or else as they came.

    Each function is tried on numbers that are drawn, before anything is written. Raises SurgeryError where it fails,
    returns something else, changes from call to call, or makes of a block of rows what it does not make of each row
    apart. What is written is the same for whatever memory and workers, and the history names the function with a digest
    of its source and of all that it computes with. config.json stays as it is: it must be changed where that is needed.

    Raises NothingMatched for a pattern that matches nothing, PlanError for a tensor that two match.
    """
    known = {pattern: function_of(call) for pattern, call in functions.items()}
    wanted = _dtype(dtype) if dtype is not None else None

    def change(parted: Checkpoint) -> Checkpoint:
        chosen = _chosen(parted, known)
        done = {name: _made(name, parted[name], one, wanted, columns) for name, one in chosen.items()}
        step = {
            "surgery": "map-rows",
            "functions": {pattern: {"name": one.name, "sha256": one.digest} for pattern, one in known.items()},
            **({"dtype": dtype} if dtype is not None else {}),
            **({"columns": columns} if columns is not None else {}),
            "tensors": len(done),
        }
        return parted.with_step(step, tensors={**parted.tensors, **done})

    return replace(along(checkpoint, change), recipe=Recipe())


def _chosen(checkpoint: Checkpoint, functions: Mapping[str, Function]) -> dict[str, Function]:
    """Which function each tensor gets."""
    found = dict[str, tuple[str, Function]]()
    for pattern, function in functions.items():
        for name in select(checkpoint.tensors, pattern):
            if name in found:
                raise PlanError(
                    f"two patterns match {name}: `{found[name][0]}` and `{pattern}`",
                    help="make one of them more precise, or call map_rows twice, where one is to follow the other",
                )
            found[name] = pattern, function
    return {name: function for name, (_, function) in found.items()}


def _dtype(named: str) -> Dtype:
    name = SHORT.get(named, named)
    if name not in NAMES and name not in DTYPES:
        raise SurgeryError(f"`{named}` is no dtype", help=f"one of {', '.join(NAMES)}, or {', '.join(DTYPES)}")
    return NAMES[name] if name in NAMES else DTYPES[name]


def _made(name: str, tensor: Tensor, function: Function, dtype: Dtype | None, columns: int | None) -> Tensor:
    """The tensor that the function makes. Raises SurgeryError where it may not."""
    wide = tensor.shape[-1] if tensor.shape else 1
    new, to = wide if columns is None else columns, dtype or tensor.dtype
    where = [f"{name} ({tensor.dtype} {list(tensor.shape)})", f"function {function.name}"]
    if max(wide, new) > LONGEST:
        raise NotSupported(f"a row of {wide} elements is more than is held at once", where=where, help=TIP)
    if new < 1 or (not tensor.shape and new != 1):
        raise SurgeryError(f"{new} columns make no tensor of this", where=where, help=TIP)
    rows = tensor.size // wide if wide else 0
    try:
        if rows:
            tried(function, tensor.dtype, wide, to, new, rows)
    except Refused as refused:
        raise SurgeryError(refused.what, where=[*where, *listed(refused.why)], help=refused.tip or TIP) from refused
    return mapped(function, tensor, to, new)
