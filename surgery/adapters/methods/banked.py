"""Places in a table that all modules share: integers of an adapter's file, read and checked before anything is
written.
"""

from __future__ import annotations

from ...evaluation.evaluate import load
from ...lazy.dtypes import DTYPES
from ...lazy.tensor import Tensor
from .method import Target

INTEGERS = tuple(DTYPES[name] for name in ("U8", "I16", "I32", "I64"))


def places(target: Target, name: str, shape: tuple[int, ...], below: int, *, once: bool = False) -> Tensor:
    """The part called so, of places from 0 to below `below`; of each row's each other than the rest, where `once`.
    Raises AdapterError.
    """
    if name not in target.parts:
        raise target.wrong(f"the module has no {name}", "the adapter file is incomplete: save it again")
    tensor = target.parts[name]
    if tensor.shape != shape or tensor.dtype not in INTEGERS:
        raise target.wrong(f"{name} is {tensor.dtype} {tensor.shape}, and not integers of {shape}")
    values = load(tensor).long()
    tip = "the file is broken: save the adapter again"
    if outside := int(((values < 0) | (values >= below)).sum()):
        raise target.wrong(f"{outside} of {values.numel()} numbers of {name} are no place among {below}", tip)
    ordered = values.sort(-1).values
    if once and (twice := int((ordered[..., 1:] == ordered[..., :-1]).sum())):
        raise target.wrong(f"{twice} of {values.numel()} places in {name} are there twice in a row", tip)
    return tensor
