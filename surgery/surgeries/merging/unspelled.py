"""The error for modules of another tool's file that are none of the base's: which, and what would mend it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...checkpoint import Checkpoint
from ...errors import NotPlaced, listed, nearest
from ...files.peft import Adapter
from ...models.diffusion.components import root_of
from ...models.diffusion.spelling import spelled


def not_spelled(checkpoint: Checkpoint, adapter: Adapter, lost: Sequence[str]) -> NotPlaced:
    """The error for these modules, which no module of the base is called by that tool."""
    modules = sorted({key if key in adapter.lora else key.rpartition(".")[0] for key in lost})
    roots = list(dict.fromkeys(root for module in modules if (root := root_of(module))))
    near = nearest(modules[0], spelled(checkpoint.tensors, checkpoint.config))
    tips = []
    if roots and len(modules) < len(adapter.lora):
        leave = "|".join(f"{re.escape(root)}.*" for root in roots)
        tips.append(
            f"the file has parts for several components, and this base is not all of them: merge it into the folder of"
            f" the whole pipeline, or leave them out with --except '{leave}'"
        )
    if near:
        tips.append(f"the nearest names that the base's modules have there are {', '.join(near)}")
    count = f"{len(modules)} of the adapter's {len(adapter.lora)} modules"
    what = f"{count}, as {adapter.dialect} calls them, are not in the base"
    other = "the adapter belongs to another architecture" if len(modules) == len(adapter.lora) else ""
    return NotPlaced(what, where=[adapter.path, *listed(modules)], help="; ".join([*tips, *([other] if other else [])]))
