"""Adapters with what their modules share, before some of these are left out."""

from __future__ import annotations

from collections.abc import Callable

from ...adapters.methods import method_of
from ...checkpoint import Checkpoint
from ...errors import NotPlaced, listed
from ...files.peft import Adapter
from ...models.families import is_conv1d


def prepared(adapter: Adapter, places: Callable[[], tuple[Adapter, Checkpoint]]) -> Adapter:
    """The adapter as its kind completes it; `places` are the adapter under the base's names, and the base with the
    modules that it was trained on.
    """
    method = method_of(adapter)
    return method.prepared(adapter, lambda: _widest(*places())) if method else adapter


def _widest(adapter: Adapter, checkpoint: Checkpoint) -> int:
    """How many inputs the widest of the adapter's modules has. Raises NotPlaced."""
    tensors = checkpoint.tensors
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
