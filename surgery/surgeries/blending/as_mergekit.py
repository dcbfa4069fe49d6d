"""A checkpoint that mergekit's configuration says, blended here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...checkpoint import Checkpoint, open_checkpoint
from .blend import blend
from .mergekit import read_mergekit


def as_mergekit(config: Mapping[str, Any], where: str = "") -> Checkpoint:
    """The checkpoint that mergekit would write for this configuration, its YAML as a mapping: up to rounding, and up to
    the draws of methods that draw.

    `where` is the place of the file, for errors. Raises what `read_mergekit`, `open_checkpoint` and `blend` raise.
    """
    read = read_mergekit(config, where)
    opened = {place: open_checkpoint(place) for place in dict.fromkeys((*read.models, *filter(None, [read.base])))}
    base = opened[read.base] if read.base else None
    made = blend([opened[place] for place in read.models], base=base, **read.said)
    return replace(made, notes=(*made.notes, *dict.fromkeys(read.notes)))
