"""The steps, by name: each is a surgery, and the command of that name, if it is on a panel.

To add one: write the surgery with its options in its signature (`step.py`), and a row here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from ..checkpoint import Checkpoint
from ..errors import WrongUsage
from ..files.peft import Adapter
from ..step import Option, like
from ..surgeries import fused
from ..surgeries.add import add
from ..surgeries.algebra.combine import combine
from ..surgeries.algebra.extract import extract
from ..surgeries.algebra.resize import resize_adapter
from ..surgeries.blending.blend import blend
from ..surgeries.cast import cast
from ..surgeries.convert import convert
from ..surgeries.convert_files import convert_files
from ..surgeries.dequantize import dequantize
from ..surgeries.forms.convert_adapter import convert_adapter
from ..surgeries.injecting.inject import inject
from ..surgeries.layers import layers
from ..surgeries.merging.merge import merge
from ..surgeries.merging.own_lora import inject_into
from ..surgeries.quantize import quantize
from ..surgeries.rename import drop, keep, rename
from ..surgeries.tie import tie, untie
from ..surgeries.unmerge import OF_MERGE_ALONE, reversible, unmerge, unmerge_approximately
from ..surgeries.vocabulary import vocabulary

EDIT, MODULES, ADAPTERS = "Edit", "Fused modules", "Adapters"


@dataclass(frozen=True, slots=True)
class Step:
    """A step: its surgery, and the panel of commands on which it stands; "" for one of recipes alone."""

    function: Callable[..., Any]
    panel: str = ""


@like(inject)
def injected(
    base: Checkpoint,
    as_: Annotated[
        str,
        Option(
            "A PEFT folder, or the base with the LoRA in a shard of its own.",
            "adapter|checkpoint",
            among=("adapter", "checkpoint"),
        ),
    ] = "adapter",
    **said: Any,
) -> Adapter | Checkpoint:
    """Make a zero-initialised LoRA adapter for a base, from headers alone: PEFT loads it, and nothing changes yet."""
    adapter = inject(base, **said)
    return inject_into(base, adapter) if as_ == "checkpoint" else adapter


@like(merge, without=OF_MERGE_ALONE)
def unmerged(
    merged: Annotated[Checkpoint, Option("A checkpoint that surgery merged.", "MERGED")],
    adapter: Annotated[
        Sequence[Adapter], Option("Only with --approximate: what was merged.", "ADAPTER", ("adapters",))
    ] = (),
    approximate: Annotated[
        bool, Option("Without an undo record: subtract the adapters; most weights come back, not all.")
    ] = False,
    **said: Any,
) -> Checkpoint:
    """Restore the base of a merge that was made with `--reversible`, byte for byte, each block checked."""
    if approximate and adapter:
        return unmerge_approximately(merged, adapter, **said)
    if approximate or adapter or said:
        tip = "pass ADAPTER and --approximate, or neither"
        raise WrongUsage("adapters, and how they were merged, go with --approximate, and only with it", help=tip)
    return unmerge(merged)


STEPS: Mapping[str, Step] = {
    "convert-files": Step(convert_files, EDIT),
    "convert": Step(convert, EDIT),
    "dequantize": Step(dequantize, EDIT),
    "quantize": Step(quantize, EDIT),
    "rename": Step(rename, EDIT),
    "keep": Step(keep, EDIT),
    "drop": Step(drop, EDIT),
    "add": Step(add, EDIT),
    "cast": Step(cast, EDIT),
    "tie": Step(tie, EDIT),
    "untie": Step(untie, EDIT),
    "layers": Step(layers, EDIT),
    "vocabulary": Step(vocabulary, EDIT),
    "blend": Step(blend, EDIT),
    "split": Step(fused.split, MODULES),
    "fuse": Step(fused.fuse, MODULES),
    "split-qkv": Step(fused.split_qkv, MODULES),
    "fuse-qkv": Step(fused.fuse_qkv, MODULES),
    "split-gate-up": Step(fused.split_gate_up, MODULES),
    "fuse-gate-up": Step(fused.fuse_gate_up, MODULES),
    "split-experts": Step(fused.split_experts, MODULES),
    "fuse-experts": Step(fused.fuse_experts, MODULES),
    "inject": Step(injected, ADAPTERS),
    "inject-into": Step(inject_into),
    "merge": Step(merge, ADAPTERS),
    "reversible": Step(reversible),
    "unmerge": Step(unmerged, ADAPTERS),
    "unmerge-approximately": Step(unmerge_approximately),
    "combine": Step(combine, ADAPTERS),
    "resize-adapter": Step(resize_adapter, ADAPTERS),
    "extract": Step(extract, ADAPTERS),
    "convert-adapter": Step(convert_adapter, ADAPTERS),
}
