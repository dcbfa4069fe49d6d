"""Universal checkpoints, as DeepSpeed's ds_to_universal.py writes them: each master in a file of its own, whole.

    TAG/zero/NAME/fp32.pt         {"param": the weight}, or the weight's elements alone, of stage 3
    TAG/*_model_states.pt         names, shapes, buffers and frozen weights, as before

Ranks of tensor parallelism are joined in them. Source: deepspeed 0.19.8, checkpoint/ds_to_universal.py
`merge_tp_slices`, `_merge_zero3_slice_files`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ....errors import FormatError
from ....lazy.tensor import File, Shape, Tensor, reshape
from ...folder import Folder
from ..reader import raw_of, tensor_of
from ..storages import Unreadable, described
from .places import folder_path
from .states import Model, table

MASTERS = "zero"
_AGAIN = "run ds_to_universal.py again"


def is_universal(folder: Folder, inside: str) -> bool:
    """Whether masters lie there in files of their own."""
    return bool(folder.names(folder_path(inside, MASTERS)))


def weights_of_files(folder: Folder, inside: str, models: Sequence[Model]) -> tuple[dict[str, Tensor], list[File]]:
    """The masters, and their files. Raises FormatError where one is missing or of another shape."""
    shapes = {name: shape for model in models for group in model.groups or () for name, shape in group.items()}
    cut = len({model.raw.file.path.rpartition("mp_rank_")[2] for model in models}) > 1
    found, files = dict[str, Tensor](), list[File]()
    for name, shape in shapes.items():
        path = folder_path(inside, f"{MASTERS}/{name}/fp32.pt")
        if not folder.has(path):
            tip = f"fetch it, or {_AGAIN}"
            raise FormatError("a weight's file is missing", where=[folder.at(path)], help=tip)
        tensor, file = _read(folder, path, name, None if cut else shape)
        found[name] = tensor
        files.append(file)
    return found, files


def _read(folder: Folder, path: str, name: str, shape: Shape | None) -> tuple[Tensor, File]:
    raw = raw_of(folder.file(path).path)
    held = table(raw.root)
    where = [f"{raw.file.path}: {name}"]
    try:
        one = described(held.get("param", raw.root))
    except Unreadable as error:
        raise FormatError(f"the weight cannot be read: {error}", where=where, help=_AGAIN) from None
    if one is None:
        raise FormatError("no weight is in the file", where=where, help=_AGAIN)
    tensor = tensor_of(raw, one, name)
    if shape is None or (held.get("vocab_tensor") and tensor.shape[1:] == shape[1:]):  # its padding is cut off
        return tensor, raw.file
    if tensor.size != math.prod(shape):
        raise FormatError(f"the weight is {tensor.shape}, and {shape} belongs there", where=where, help=_AGAIN)
    return reshape(tensor, shape), raw.file
