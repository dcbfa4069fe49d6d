"""Meta's own files: `consolidated.00.pth`, `consolidated.01.pth`, …, one for each rank of its tensor parallelism.

Every file has all names; a weight is cut along the axis that its name says, and a norm is the same in all:

    axis 0                 wq, wk, wv, w1, w3, output
    axis 1                 wo, w2
    tok_embeddings         axis 1 of Llama 1 and 2, axis 0 of Llama 3: which, the width of the model tells
    the same in all        norms, rope.freqs

Names stay Meta's. Sources: llama and llama3, llama/model.py (ColumnParallelLinear, RowParallelLinear, the embeddings).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import FormatError, LayoutError, NotSupported, listed, series
from ...lazy.tensor import Tensor, concat
from ..folder import Folder
from ..numbered import missing_below
from ..opened import SHARD, Opened, leaves_of
from ..same_bytes import same_bytes
from ..strict import MEND, parse_object
from .reader import TorchFile, check_here, read_torch

CALLED = re.compile(r"consolidated\.(\d+)\.pth")
_AXES = {
    re.compile(r"layers\.\d+\.attention\.w[qkv]\.weight|layers\.\d+\.feed_forward\.w[13]\.weight|output\.weight"): 0,
    re.compile(r"layers\.\d+\.attention\.wo\.weight|layers\.\d+\.feed_forward\.w2\.weight"): 1,
}
_SAME = re.compile(r"(layers\.\d+\.(attention|ffn)_)?norm\.weight|rope\.freqs")
_EMBEDDING = "tok_embeddings.weight"
_MISSING = "fetch the missing parts: a model has as many as it was trained on GPUs"


def read_consolidated(folder: Folder, name: str) -> Opened | None:
    """The model that the folder's parts are; None where there are none, or one of another model.

    Raises FormatError where parts are missing or do not fit each other, NotSupported for weights of other names.
    """
    found = {int(match[1]): match[0] for one in folder.names() if (match := CALLED.fullmatch(one))} if not name else {}
    if not found:
        return None
    names = [found[number] for number in sorted(found)]
    if gone := missing_below(found):
        raise FormatError(f"the part {series(gone)} is missing", where=[folder.path, *names], help=_MISSING)
    files = [check_here(folder, one).path for one in names]
    parts = [read_torch(file) for file in files]
    if len(parts) == 1 and ("norm.weight" not in parts[0].tensors or _EMBEDDING not in parts[0].tensors):
        return None
    tensors = _joined(parts)
    _check_whole(folder, tensors, len(parts))
    leaves, partly = leaves_of(tensors)
    notes = list(dict.fromkeys(note for part in parts for note in part.notes))
    many = f"{len(parts)} parts, joined along the axis that each name says" if len(parts) > 1 else "one part"
    return Opened(
        f"Meta's own files: {many}",
        tuple(part.file for part in parts),
        tensors,
        dict.fromkeys(tensors, SHARD),
        leaves,
        frozenset(names),
        partly,
        notes=tuple(notes),
    )


def _joined(parts: Sequence[TorchFile]) -> dict[str, Tensor]:
    """The whole tensors. Raises FormatError, NotSupported."""
    first = parts[0]
    for part in parts[1:]:
        if differing := sorted(set(part.tensors) ^ set(first.tensors)):
            where = [part.file.path, first.file.path, *listed(differing)]
            raise FormatError("the parts do not hold the same tensors", where=where, help="they are of two models")
    if len(parts) == 1:
        return dict(first.tensors)
    if strange := [name for name in first.tensors if not _known(name)]:
        tip = "join the parts with the program that wrote them, and pass the result"
        what = "nothing says how tensors of these names are cut over the parts"
        raise NotSupported(what, where=[first.file.path, *listed(strange)], help=tip)
    if "norm.weight" not in first.tensors:
        raise FormatError("no norm.weight says how wide the model is", where=[first.file.path], help=_MISSING)
    width = first.tensors["norm.weight"].shape[0]
    return {name: _whole(name, parts, width) for name in first.tensors}


def _known(name: str) -> bool:
    return bool(name == _EMBEDDING or _SAME.fullmatch(name) or any(rule.fullmatch(name) for rule in _AXES))


def _whole(name: str, parts: Sequence[TorchFile], width: int) -> Tensor:
    pieces = [part.tensors[name] for part in parts]
    where = [f"{parts[0].file.path}: {name}"]
    if _SAME.fullmatch(name):
        for part, piece in zip(parts, pieces, strict=True):
            if not same_bytes(pieces[0], piece):
                what = "a tensor that all parts hold alike is another one in two of them"
                raise FormatError(what, where=[*where, f"{part.file.path}: {name}"], help="they are of two models")
        return pieces[0]
    axis = next((axis for rule, axis in _AXES.items() if rule.fullmatch(name)), None)
    if axis is None:
        axis = 0 if pieces[0].shape[-1:] == (width,) else 1
    if len(pieces[0].shape) != 2 or any(axis == 0 and piece.shape[-1] != width for piece in pieces):
        raise FormatError(f"a part of {pieces[0].shape} fits no model that is {width} wide", where=where, help=MEND)
    try:
        return concat(pieces, axis)
    except LayoutError as error:
        raise FormatError(f"the parts do not fit each other: {error.what}", where=where, help=MEND) from None


def _check_whole(folder: Folder, tensors: Mapping[str, Tensor], count: int) -> None:
    """Raise FormatError where the parts together are not as wide as the model, NotSupported where heads are in two."""
    width = tensors["norm.weight"].shape[0]
    for name, axis, wanted in _sizes(tensors, _params(folder), width):
        shape = tensors[name].shape if name in tensors else ()
        if len(shape) != 2 or shape[axis] == wanted:
            continue
        where = [f"{folder.path}: {name}"]
        if re.fullmatch(r".*\.w[kv]\.weight", name) and shape[axis] > wanted:
            tip = "fetch the model in fewer parts, or as transformers has it"
            raise NotSupported(f"{count} parts hold some heads of keys twice", where=where, help=tip)
        what = f"the {count} parts make {shape}, and {wanted} belongs in the place of {shape[axis]}"
        raise FormatError(what, where=where, help=_MISSING)


def _sizes(tensors: Mapping[str, Tensor], params: Mapping[str, Any], width: int) -> list[tuple[str, int, int]]:
    """What must be how long along which axis, as far as the model's width and params.json tell."""
    heads, size = params.get("n_heads"), params.get("head_dim") or 0
    inner = heads * size if isinstance(heads, int) and isinstance(size, int) and heads * size else width
    keys = params.get("n_kv_heads") or heads
    rows = [(_EMBEDDING, 1, width), ("output.weight", 1, width)]
    words = params.get("vocab_size")
    if isinstance(words, int) and words > 0:
        rows += [(_EMBEDDING, 0, words), ("output.weight", 0, words)]
    for layer in {name.split(".")[1] for name in tensors if name.startswith("layers.")}:
        place = f"layers.{layer}"
        rows += [(f"{place}.attention.wq.weight", 0, inner), (f"{place}.attention.wo.weight", 1, inner)]
        rows += [(f"{place}.attention.wo.weight", 0, width), (f"{place}.feed_forward.w2.weight", 0, width)]
        if isinstance(heads, int) and isinstance(keys, int) and heads > 0:
            each = (f"{place}.attention.wk.weight", f"{place}.attention.wv.weight")
            rows += [(name, 0, inner // heads * keys) for name in each]
    return rows


def _params(folder: Folder) -> Mapping[str, Any]:
    """What params.json says; nothing where there is none."""
    if not folder.has("params.json"):
        return {}
    where = [folder.at("params.json")]
    return parse_object(folder.read("params.json"), lambda what: FormatError(what, where=where, help=MEND))
