"""Whether what adapters did to a checkpoint can be taken off by subtraction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..adapters.methods import method_of
from ..checkpoint import Checkpoint
from ..errors import NotSupported, listed
from ..files.peft import Adapter
from ..lazy.tensor import Stored, Sum, Tensor, changes, children, stored

TIP = "take the base again; merges made with --reversible can be undone exactly"


def check_adds(adapters: Sequence[Adapter]) -> None:
    """Raise NotSupported for an adapter of a kind that does not add."""
    for one in adapters:
        method = method_of(one)
        if method and method.several != "sum":
            what = f"{method.name} made other weights of the base's, which no subtraction undoes"
            raise NotSupported(what, where=[one.path], help=TIP)


def check_of_adapters_alone(undone: Checkpoint, merged: Checkpoint, adapters: Sequence[Adapter]) -> None:
    """Raise NotSupported where what would be subtracted is made of the merged weights: it was made of the base's."""
    held = {leaf for tensor in merged.tensors.values() for leaf in stored(tensor)}
    found = [name for name, tensor in undone.tensors.items() if _reads(tensor, held)]
    if found:
        kinds = ", ".join(dict.fromkeys(method.name for one in adapters if (method := method_of(one))))
        what = f"what {kinds or 'the adapter'} added was made of the base's weights, which no subtraction undoes"
        raise NotSupported(what, where=[one.path for one in adapters] + listed(found), help=TIP)


def _reads(tensor: Tensor, held: set[Stored]) -> bool:
    return any(
        leaf in held
        for total in _sums(tensor)
        for change in changes(total.deltas, total.gain)
        for factor in change.factors
        for leaf in stored(factor)
    )


def _sums(tensor: Tensor) -> Iterator[Sum]:
    if isinstance(tensor, Sum):
        yield tensor
    for child in children(tensor):
        yield from _sums(child)
