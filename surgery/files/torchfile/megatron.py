"""Megatron-core's distributed checkpoints: those of its backend `torch_dist` are torch's, with two files more.

    metadata.json    {"sharded_backend": "torch_dist", …}
    common.pt        settings of the training, and what all ranks have alike but weights: left out

Names stay Megatron's, and layers may be stacked along the first axis, as it saves them.
Source: megatron-core 0.16, core/dist_checkpointing/core.py, strategies/torch.py.
"""

from __future__ import annotations

from ...errors import FormatError, NotSupported
from ..folder import Folder
from ..strict import MEND, parse_object

SETTINGS = "metadata.json"
OWN = (SETTINGS, "common.pt")
BACKEND = "torch_dist"


def is_megatron(folder: Folder) -> bool:
    """Whether the folder is such a checkpoint, whose backend is torch's. Raises NotSupported for another backend."""
    if not (folder.has(SETTINGS) and folder.has("common.pt")):
        return False
    where = [folder.at(SETTINGS)]
    said = parse_object(folder.read(SETTINGS), lambda what: FormatError(what, where=where, help=MEND))
    backend = said.get("sharded_backend")
    if isinstance(backend, str) and backend != BACKEND:
        tip = f"let Megatron save it again in its format {BACKEND}"
        raise NotSupported(f"a checkpoint of Megatron's with the backend {backend} is not read", where=where, help=tip)
    return backend == BACKEND
