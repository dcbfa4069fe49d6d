"""A model in files that torch saved: one file, or the shards that `pytorch_model.bin.index.json` names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar

from ...errors import FormatError, NotACheckpoint, NotSupported, listed, series
from ...lazy.tensor import Stored, Tensor
from ..beside_adapter import is_litter
from ..folder import Folder
from ..index import Index, parse_index
from ..meant import meaning
from ..numbered import check_all_there, numbered
from ..opened import Opened
from .distributed import is_distributed, read_distributed
from .far import read_far
from .megatron import is_megatron
from .ranks import ranks_in, read_ranks
from .reader import ENDINGS, TorchFile, is_torch, read_torch
from .zero.places import place_of
from .zero.reader import read_zero

INDEX = ".bin.index.json"
_KEY: ContextVar[str] = ContextVar("key", default="")
# One rank's part of a model: alone, it is a wrong one.
_PARTS = {
    re.compile(r"consolidated\.\d+\.pth"): "a part of a model as Meta's tensor-parallel training wrote it",
    re.compile(r".*_rank_\d+\.pt"): "one rank's part of a model",
    re.compile(r".*mp_rank_\d+.*\.pt"): "one rank's part of a model, as DeepSpeed writes it",
    re.compile(r".*\.distcp"): "a part of a distributed checkpoint",
}
_PREFERRED = ("pytorch_model.bin", "diffusion_pytorch_model.bin")


def under_key(key: str) -> AbstractContextManager[None]:
    """Inside, the weights of a file that torch saved are those under `key`, with dots between its parts; `.`: all."""
    return meaning(_KEY, key)


def key_meant() -> str:
    """The key that was said; empty: none."""
    return _KEY.get()


def read_dcp(folder: Folder, name: str) -> Opened | None:
    """A distributed checkpoint of torch's; None for all else."""
    if name or not (is_distributed(folder) or is_megatron(folder)):
        return None
    return read_distributed(folder, _KEY.get())


def read_rank_files(folder: Folder, name: str) -> Opened | None:
    """The files of ranks, one each; None for all else."""
    ranks = {} if name else ranks_in(folder)
    return read_ranks(folder, ranks, _KEY.get()) if ranks and not folder.file(ranks[0]).remote else None


def read_deepspeed(folder: Folder, name: str) -> Opened | None:
    """A checkpoint of DeepSpeed's, unless weights that were joined already lie beside it; None for all else."""
    joined = bool(name) or any(one in _PREFERRED or one.endswith(INDEX) for one in folder.names())
    place = None if joined else place_of(folder)
    return read_zero(folder, place, _KEY.get()) if place is not None else None


def read_files(folder: Folder, name: str) -> Opened | None:
    """What torch saved in one file, or in shards with an index; None for all else."""
    files = pickled(folder, name)
    return read_model(folder, files) if files else None


def pickled(folder: Folder, name: str) -> list[str]:
    """The files of torch's that are meant by a file of the folder, or by the folder (""); none where there are none.

    Raises NotACheckpoint where it is not clear which.
    """
    if name:
        return [name] if name.endswith(INDEX) or (name.endswith(ENDINGS) or _is_torch(folder, name)) else []
    here = folder.names()
    indices = [one for one in here if one.endswith(INDEX)]
    if len(indices) == 1:
        return indices
    found = [one for one in here if one.endswith(ENDINGS) and folder.has(one) and not is_litter(one)]
    preferred = [one for one in _PREFERRED if one in found]
    if found and not preferred:
        _check_whole(folder, found[0])
    if preferred or len(found) < 2 or _one_set(found):
        return preferred[:1] or found
    what = f"the folder holds more than one file that torch saved: {series(listed(found))}"
    raise NotACheckpoint(what, where=[folder.path], help=f"pass the one that you mean: {folder.at(found[0])}")


def _one_set(names: Sequence[str]) -> bool:
    """Whether these are numbered shards of one model."""
    found = numbered(names)
    return len(found) == len(names) and len({one.groups() for one in found}) == 1


def read_model(folder: Folder, names: Sequence[str]) -> Opened:
    """The weights in those files: shards of one model, one file, or one index. Raises FormatError, NotACheckpoint,
    NotSupported.
    """
    name = names[0]
    _check_whole(folder, name)
    if not name.endswith(INDEX):
        check_all_there(folder, names)
        held = {one: _read(folder, one) for one in names}
        _check_apart(folder, name, held)
        shards = {t: _called(file, single=len(names) == 1) for file, one in held.items() for t in one.tensors}
        return _joined(folder, held, shards, frozenset(names))
    index = parse_index(folder.read(name), folder.at(name))
    files = sorted(set(index.weight_map.values()))
    if missing := [file for file in files if not folder.has(file)]:
        raise FormatError(
            f"the index names {len(missing)} files that are not there",
            where=[folder.at(name), *listed(missing)],
            help="the download is incomplete; fetch the missing files",
        )
    held = {file: _read(folder, file) for file in files}
    _check_index(folder, name, index, held)
    shards = {tensor: _called(file, single=False) for file, one in held.items() for tensor in one.tensors}
    made = _joined(folder, held, shards, frozenset({name, *files}))
    return Opened(**{**vars(made), "index_metadata": index.metadata})


def _check_whole(folder: Folder, name: str) -> None:
    """Raise NotSupported for a file that holds a part of a model, as far as its name tells."""
    for rule, what in _PARTS.items():
        if rule.fullmatch(name.rpartition("/")[2]):
            others = [one for one in folder.names() if rule.fullmatch(one)]
            if len(others) > 1 or not name.startswith("consolidated"):
                tip = f"pass the folder that has all parts: {folder.path}"
                raise NotSupported(f"the file is {what}, and is not read alone", where=[folder.at(name)], help=tip)


def _read(folder: Folder, name: str) -> TorchFile:
    if folder.file(name).remote:
        return read_far(folder, name, key=_KEY.get())
    return read_torch(folder.file(name).path, key=_KEY.get())


def _check_index(folder: Folder, name: str, index: Index, held: Mapping[str, TorchFile]) -> None:
    """Raise FormatError where index and files disagree, or a tensor is in two files."""
    _check_apart(folder, name, held)
    wrong = [f"{t}: the index says {file}" for t, file in index.weight_map.items() if t not in held[file].tensors]
    if wrong:
        tip = "fetch the checkpoint again, or pass one file"
        raise FormatError("the index and the files disagree", where=[folder.at(name), *listed(wrong)], help=tip)


def _check_apart(folder: Folder, name: str, held: Mapping[str, TorchFile]) -> None:
    """Raise FormatError for a tensor that is in two files."""
    holders: dict[str, list[str]] = {}
    for file, one in held.items():
        for tensor in one.tensors:
            holders.setdefault(tensor, []).append(file)
    if rows := [f"{tensor}: {series(files)}" for tensor, files in holders.items() if len(files) > 1]:
        tip = "fetch the checkpoint again, or pass one file"
        raise FormatError("a tensor is in two files", where=[folder.at(name), *listed(rows)], help=tip)


def _joined(folder: Folder, held: Mapping[str, TorchFile], shards: Mapping[str, str], own: frozenset[str]) -> Opened:
    tensors, leaves = dict[str, Tensor](), dict[str, Stored]()
    notes, partly = list[str](), set[str]()
    for one in held.values():
        tensors |= one.tensors
        leaves |= one.leaves
        partly |= one.partly
        notes += [note for note in one.notes if note not in notes]
        rows = [" = ".join(names) for names in one.shared]
        if rows:
            notes.append(
                f"one tensor under several names, each stored by itself from now on: {', '.join(listed(rows, 3))}"
            )
    files = tuple(one.file for one in held.values())
    return Opened(
        "saved by torch",
        files,
        tensors,
        shards,
        leaves,
        own,
        frozenset(partly),
        tuple(notes),
        stem=_stem(next(iter(shards.values()), "model.safetensors")),
    )


def _called(name: str, *, single: bool) -> str:
    """What loaders call the safetensors file in the place of one of torch's: model… for pytorch_model…"""
    leaf = name.rpartition("/")[2]
    whole = leaf[: leaf.rindex(".")] if "." in leaf else leaf
    stem = re.sub(r"^(open_clip_|)pytorch_model", r"\1model", whole)
    return (
        "model.safetensors"
        if single and not stem.startswith(("model", "diffusion", "open_clip_model"))
        else f"{stem}.safetensors"
    )


def _stem(shard: str) -> str:
    return re.sub(r"-\d{5}-of-\d{5}$", "", shard.removesuffix(".safetensors"))


def _is_torch(folder: Folder, name: str) -> bool:
    """Whether a file that is called otherwise begins as torch's do."""
    if name.endswith((".safetensors", ".json")) or not folder.has(name):
        return False
    file = folder.file(name)
    return not file.remote and is_torch(file.path)
