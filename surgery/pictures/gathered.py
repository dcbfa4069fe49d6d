"""What a report tells, gathered: each fact by the function that answers it elsewhere, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..checkpoint import Checkpoint
from ..checks.change_map import ChangeMap
from ..checks.check import Verification
from ..checks.inspection import Inspection
from ..checks.shard_map import Piece
from ..files.peft import Adapter
from ..lazy.tensor import File


@dataclass(frozen=True)
class Gathered:
    """All that a page shows. `recipe` is the text by which it can be made again; empty where nothing says how."""

    checkpoint: Checkpoint
    compared: Checkpoint | None
    adapters: tuple[Adapter, ...]
    inspection: Inspection
    shards: Mapping[str, tuple[Piece, ...]]
    verification: Verification | None
    changes: ChangeMap | None
    history: tuple[str, ...]
    recipe: str
    made: Mapping[str, Any]

    @property
    def base(self) -> str:
        """Where what it is compared with lies."""
        return self.compared.path if self.compared else ""

    @property
    def files(self) -> list[str]:
        """The files that were read, and the folders."""
        opened: list[Checkpoint | Adapter] = [
            self.checkpoint,
            *([self.compared] if self.compared else []),
            *self.adapters,
        ]
        weights = [file.path for one in opened for source in one.inputs for file in source.files]
        beside = [file.path for one in opened for file in one.files.values() if isinstance(file, File)]
        return [*self.paths, *weights, *beside]

    @property
    def paths(self) -> list[str]:
        """What was read."""
        return [self.checkpoint.path, *([self.base] if self.base else []), *(one.path for one in self.adapters)]
