"""Adapters with what their modules share, before some of these are left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...adapters.methods import method_of
from ...checkpoint import Checkpoint
from ...errors import NotPlaced, listed
from ...files.peft import Adapter
from ...models.families import is_conv1d
from ...models.fused.row import Site
from ..split import split_at


def prepared(checkpoint: Checkpoint, adapter: Adapter, places: Callable[[], tuple[Adapter, Sequence[Site]]]) -> Adapter:
    """The adapter as its kind completes it; `places` are its modules under the base's names, and those of the base to
    be taken apart for them.
    """
    method = method_of(adapter)
    return method.prepared(adapter, lambda: _widest(checkpoint, *places())) if method else adapter


def _widest(checkpoint: Checkpoint, adapter: Adapter, sites: Sequence[Site]) -> int:
    """How many inputs the widest of the adapter's modules has. Raises NotPlaced."""
    tensors = split_at(checkpoint, sites).tensors if sites else checkpoint.tensors
    if lost := [module for module in adapter.lora if f"{module}.weight" not in tensors]:
        raise NotPlaced(
            f"{len(lost)} of the adapter's modules have no place in the base, and how large its shared matrices are"
            " follows from all of them",
            where=[adapter.path, *listed(lost)],
            help="pass the base that the adapter was trained on, or say with --map how its modules are called there",
        )
    return max(
        tensors[f"{module}.weight"].shape[0 if is_conv1d(checkpoint.config, module) else 1] for module in adapter.lora
    )
