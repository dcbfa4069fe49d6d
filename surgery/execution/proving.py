"""A record is only a promise until it is read: a written shard gives its part of the base back before it gets its
name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import FormatError, VerificationFailed
from ..evaluation.replay import replay
from ..files.folder import LocalFolder
from ..files.safetensors import read_header, tensors_of
from ..lazy.tensor import Restored
from ..planning.record import read_shard_records

if TYPE_CHECKING:
    from ..evaluation.workspace import Workspace
    from ..planning.steps import ShardPlan

TIP = (
    "nothing is published: a fault of the disk, or of surgery, which please report; without --reversible the merge"
    " itself can be made"
)


def prove_record(shard: ShardPlan, folder: str, weights: str, work: Workspace, *, every: bool) -> None:
    """The record of `shard` in `folder` restores the base's tensors from the file `weights`, both as they lie on the
    disk.

    One block, about a million elements, of each tensor that the run touched is replayed: read, predicted, corrected
    and held against its digest, which is at most half of what recording it took, and next to nothing where tensors
    have many blocks. With `every`, all blocks of all tensors. Raises VerificationFailed, naming the tensor.
    """
    touched = {
        kept.number for kept in (*shard.lone, *(s.kept for s in shard.slots if s.kept)) if kept.predicted is not None
    }
    written = {f"{shard.at}{name}": tensor for name, tensor in tensors_of(*read_header(weights)).items()}
    try:
        for record in read_shard_records(LocalFolder(folder), [shard.name]):
            for number, name in enumerate(record.recipes):
                if every or number in touched:
                    tensor, _ = record.restored(number, name, written)
                    assert isinstance(tensor, Restored)
                    replay(tensor, work, every=every)
    except (VerificationFailed, FormatError) as error:
        raise VerificationFailed("the undo record would not give the base back", where=error.where, help=TIP) from error
