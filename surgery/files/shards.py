"""Weights in safetensors: which files of a folder are meant, and what is in them. An index, one file, or bare shards.

Headers and the index are read and held against each other, nothing else. Where files of Mistral's own layout
(`consolidated*`) lie beside those that transformers loads, these are meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch

from ..errors import FormatError, NotACheckpoint, NotSupported, listed, series
from ..lazy.tensor import File, Stored
from ..names import natural
from .folder import Folder
from .index import Index, parse_index
from .numbered import check_all_there, numbered
from .opened import Opened
from .peft import CONFIG as ADAPTER_CONFIG
from .peft import WEIGHTS as ADAPTER_WEIGHTS
from .safetensors import Header, tensors_of
from .stale_index import left_out, stale

SINGLE = ("model.safetensors", "diffusion_pytorch_model.safetensors")
_INDICES = "*.safetensors.index*.json"
_TWICE = "pass the one file that you mean; where one of them is of another save, fetch the checkpoint again"
_PARTS = (
    "pass the one that you mean; where they are parts, as servers save them that run on several devices, join them with"
    " the program that wrote them, and remove none"
)
# What is told by its ending, and not read.
_OTHERS = {
    ".msgpack": "Flax", ".h5": "Keras", ".keras": "Keras", ".onnx": "ONNX", ".tflite": "TensorFlow Lite",
    ".nemo": "an archive of NeMo's", ".ot": "Rust's tch", ".npz": "NumPy", ".mlmodel": "Core ML", ".pkl": "pickle",
}  # fmt: skip
# What in a folder's folder is weights, so that it may be meant.
_NESTED = (".safetensors", ".distcp", ".bin", ".pt", ".pth", ".ckpt", ".gguf")
CONSOLIDATED = "consolidated"  # what the files of Mistral's own layout begin with


def read_safetensors(folder: Folder, name: str = "") -> Opened:
    """The weights in the folder's safetensors, or in its file or index `name`.

    Raises NotACheckpoint where there are none, or where it is not clear which; FormatError where a file is broken or
    the index and the shards disagree.
    """
    meant = name or _choose(folder)
    if isinstance(meant, str) and meant.endswith(".json"):
        return _indexed(folder, meant)
    return _bare(folder, [meant] if isinstance(meant, str) else meant)


def _choose(folder: Folder) -> str | list[str]:
    """Which weights of a folder are meant: an index, one file, or a bare set of shards."""
    here = _preferred(sorted(folder.names(), key=natural))
    shards = [f for f in here if f.endswith(".safetensors")]
    indices = [f for f in here if fnmatch(f, _INDICES)]
    single = next((f for f in SINGLE if f in shards), None)
    plain = [i for i in indices if i.endswith(".safetensors.index.json")]
    chosen = plain if len(plain) == 1 else indices
    if len(chosen) > 1 or (chosen and single and single not in _read_index(folder, chosen[0]).weight_map.values()):
        found = [*chosen, *([single] if single else [])]
        raise NotACheckpoint(
            f"the folder holds more than one set of weights: {series(found)}",
            where=[folder.path],
            help=f"loaders prefer one of them in silence; pass the one that you mean: {folder.at(found[0])}",
        )
    if chosen:
        return chosen[0]
    if single:
        return single
    bare = [f for f in shards if f != ADAPTER_WEIGHTS]
    return bare or _nothing(folder, here)


def _preferred(here: list[str]) -> list[str]:
    """The names without those of Mistral's own layout, where there are weights as transformers loads them, too."""
    others = [name for name in here if not name.startswith(CONSOLIDATED)]
    held = [f for f in others if f.endswith(".safetensors") or fnmatch(f, _INDICES)]
    return others if any(name != ADAPTER_WEIGHTS for name in held) else here


def _nothing(folder: Folder, here: list[str]) -> list[str]:
    """Say why a folder without safetensors is not a checkpoint, and what to do."""
    nested = [d for d in here if any(f.endswith(_NESTED) for f in folder.names(d)) and not d.startswith("optimizer")]
    if ADAPTER_CONFIG in here:
        what = "this is an adapter, and no checkpoint"
        tip = (
            "where both are given, the base comes first: surgery merge BASE ADAPTER -o OUT; alone, it can be inspected"
            " and verified"
        )
    elif "snapshots" in here:
        what = "this is the root of a Hub cache entry"
        tip = "pass one of its snapshots: " + ", ".join(folder.at(f"snapshots/{n}") for n in folder.names("snapshots"))
    elif nested:
        what, tip = "the weights are in subfolders", "pass one of them: " + ", ".join(map(folder.at, nested))
    elif others := [f"{f} ({tool})" for f in here for end, tool in _OTHERS.items() if f.endswith(end)]:
        what = f"weights are here in a format that is not read: {series(listed(others))}"
        tip = "save them as safetensors with the program that wrote them, and pass that folder"
    else:
        what, tip = "no safetensors file is here", "pass a folder with model.safetensors or an index with its shards"
    raise NotACheckpoint(what, where=[folder.path], help=tip)


def _read_index(folder: Folder, name: str) -> Index:
    return parse_index(folder.read(name), folder.at(name))


def _indexed(folder: Folder, index_name: str) -> Opened:
    index = _read_index(folder, index_name)
    where = folder.at(index_name)
    shards = sorted(set(index.weight_map.values()), key=natural)
    missing = [s for s in shards if not folder.has(s)]
    if missing:
        raise FormatError(
            f"the index names {len(missing)} files that are not there",
            where=[where, *listed(missing)],
            help=stale(folder, index, index_name) or "the download is incomplete; fetch the missing files",
        )
    _check_set(folder, shards, where)
    headers = _headers(folder, shards)
    wrong = [(n, s) for n, s in index.weight_map.items() if n not in headers[s][1].entries]
    if wrong:
        holder = {name: shard for shard, (_, header) in headers.items() for name in header.entries}
        rows = [f"{n}: the index says {s}, it is in {holder.get(n, 'no shard')}" for n, s in wrong]
        raise FormatError(
            f"the index and the shards disagree about {len(wrong)} tensors",
            where=[where, *listed(rows)],
            help=(
                f"surgery reindex {folder.path} writes a right one if the shards are right; else fetch the checkpoint"
                " again"
            ),
        )
    named, index = len(index.weight_map), replace(index, weight_map={})  # the names are those of the headers
    stem, mark, variant = index_name.partition(".safetensors.index")
    made = _made(folder, headers, f"{stem}{variant.removesuffix('.json')}" if mark else "model", index_name)
    extra = len(made.tensors) - named
    notes = (f"{extra} tensors are in the shards but not in the index: kept, and indexed from now on",) if extra else ()
    return replace(made, index_metadata=index.metadata, index=index.raw, notes=notes)


def _check_set(folder: Folder, shards: Sequence[str], where: str) -> None:
    """Raise FormatError for numbered shards of the set that the index names, and that it does not name."""
    if others := left_out(folder, shards):
        raise FormatError(
            f"the index leaves out {len(others)} shards of its own set",
            where=[where, *listed(others)],
            help=f"surgery reindex {folder.path} writes one that names them; or remove them, if they are stale",
        )


def _bare(folder: Folder, shards: list[str]) -> Opened:
    """Shards without an index. Numbered ones must be complete."""
    check_all_there(folder, shards)
    stem = shards[0].removesuffix(".safetensors") if len(shards) == 1 else "model"
    if found := numbered(shards):
        stem = found[0]["stem"].removesuffix(
            ".safetensors"
        )  # some tools write model.safetensors-00001-of-00002.safetensors
    return _made(folder, _headers(folder, shards), stem, index_name_of(stem))


def index_name_of(stem: str) -> str:
    """What loaders call the index of shards called `stem`: the variant of model.fp16 comes after `.index`."""
    head, _, variant = stem.partition(".")
    return (
        f"{head}.safetensors.index.{variant}.json"
        if variant and f"{head}.safetensors" in SINGLE
        else f"{stem}.safetensors.index.json"
    )


def _headers(folder: Folder, shards: list[str]) -> Mapping[str, tuple[File, Header]]:
    headers = folder.headers(shards)
    seen: dict[str, str] = {}
    for shard, (_, header) in headers.items():
        double = [n for n in header.entries if n in seen]
        if double:
            where = [folder.path, *listed([f"{n}: {seen[n]} and {shard}" for n in double])]
            if all(len(header.entries) == len(double) for _, header in headers.values()):
                raise NotSupported("every file holds the same tensors, or a part of each", where=where, help=_PARTS)
            raise FormatError(f"{len(double)} tensors are in two shards", where=where, help=_TWICE)
        seen.update(dict.fromkeys(header.entries, shard))
    return headers


def _made(folder: Folder, headers: Mapping[str, tuple[File, Header]], stem: str, index_name: str) -> Opened:
    tensors: dict[str, Stored] = {}
    shards: dict[str, str] = {}
    for shard, (file, header) in headers.items():
        tensors |= tensors_of(file, header)
        shards |= dict.fromkeys(header.entries, shard)
    return Opened(
        "",
        tuple(file for file, _ in headers.values()),
        tensors,
        shards,
        tensors,
        frozenset(headers),
        stem=stem,
        index_name=index_name,
        metadata={shard: header.metadata for shard, (_, header) in headers.items()},
    )
