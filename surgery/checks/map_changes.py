"""Where what changed, by layer and module: between two checkpoints, in a merge, or in one that is not made yet."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from ..checkpoint import Checkpoint, open_checkpoint
from ..errors import WrongUsage
from ..files.adapters.opening import open_adapters
from ..files.peft import Adapter
from ..opened import takes_opened
from .as_merged import as_merged, opened_as
from .change_map import ChangeMap, changes_of
from .diff import OnTensor, Side, opened_side
from .proof import Merging

_READING = ("format", "alpha", "enable_lora")
Adapters = str | os.PathLike[str] | Adapter | Sequence[str | os.PathLike[str] | Adapter]


@takes_opened
def map_changes(
    before: Side,
    after: Side | None = None,
    *,
    adapter: Adapters = (),
    among: Collection[str] | None = None,
    on_tensor: OnTensor | None = None,
    **said: Any,
) -> ChangeMap:
    """How far each tensor of `before` is from what it is in `after`, by layer and module: opened, or their paths.

    With one or more of `adapter`, `before` is the base: also how much of what they change is rounded away in `after`;
    without `after`, what merging them would change. What is `said` of merging and of adapters is as for `verify`, and
    is read from the manifest of `after` where nothing is. With `among`, all other tensors are taken to be the same.

    Raises what `merge` raises. Nothing is written; no tensor is held as a whole.
    """
    adapters = [adapter] if isinstance(adapter, str | os.PathLike | Adapter) else list(adapter)
    if after is None and not adapters:
        raise WrongUsage("nothing is given to compare with", help="give another checkpoint, or an adapter")
    one, other = _side(before, adapters), _side(after, adapters) if after is not None else None
    beside, reading = said.pop("beside", None), {key: said.pop(key, None) for key in _READING}
    said.pop("lossy", None)
    opened = _opened(adapters, other, beside, reading)
    renames = tuple(said.pop("names", ()))
    told = replace(Merging(), names=renames, **said)
    if opened and other is not None and told == Merging():
        told = as_merged(other, one, opened)[0]
    return changes_of(one, other, opened, told, names=among, on_tensor=on_tensor)


def _side(side: Side, adapters: Sequence[object]) -> Checkpoint:
    """What is compared; what adapters are for is a checkpoint."""
    return open_checkpoint(side) if adapters and isinstance(side, str | os.PathLike) else opened_side(side, {})


def _opened(
    adapters: Sequence[str | os.PathLike[str] | Adapter],
    merged: Checkpoint | None,
    beside: Sequence[str | os.PathLike[str]] | None,
    reading: dict[str, Any],
) -> list[Adapter]:
    paths = [one for one in adapters if not isinstance(one, Adapter)]
    from_files = (
        open_adapters(paths, beside, **reading) if merged is None else opened_as(merged, paths, beside, reading)
    )
    rest = iter(from_files)
    return [one if isinstance(one, Adapter) else next(rest) for one in adapters]
