"""Places of a module's weight that an adapter's file says: read and checked, before anything is written."""

from __future__ import annotations

from collections.abc import Collection

from ...evaluation.arithmetic import exact
from ...evaluation.evaluate import workspace_of
from ...evaluation.places import astray
from ...evaluation.workspace import DEFAULT_MEMORY
from ...lazy.dtypes import Dtype
from ...lazy.scatter import Scatter
from ...lazy.tensor import Tensor
from .method import Target


def scattered(
    target: Target, places: str, shape: tuple[int, ...], kinds: Collection[Dtype], values: Tensor, missing: str
) -> Scatter:
    """The numbers at the places of the part `places`. Raises AdapterError where that is `missing`, where one of them
    is not in the weight, or there twice.
    """
    tall, wide = target.matrix.shape
    tensor = target.parts.get(places)
    if tensor is None:
        raise target.wrong(f"the module has no {places}", missing)
    if tensor.shape != shape or tensor.dtype not in kinds:
        wanted = " or ".join(map(str, kinds))
        raise target.wrong(f"{places} is {tensor.dtype} {tensor.shape}, and not {wanted} {shape}")
    delta = Scatter.of(tensor, values, 1.0, tall, wide)
    work = workspace_of(DEFAULT_MEMORY)
    try:
        with exact():
            outside, twice = astray(delta, work)
    finally:
        work.close()
    if outside:
        raise target.wrong(f"{outside} of the {values.size} places in {places} are not in a weight of ({tall}, {wide})")
    if twice:
        tip = "the file is broken: save the adapter again"
        raise target.wrong(f"{twice} of the {values.size} places in {places} are there twice", tip)
    return delta
