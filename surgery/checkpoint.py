"""A checkpoint as a value: names -> lazy tensors, and the files beside them.

`open_checkpoint` reads headers and the index, nothing else, and executes nothing. A `Checkpoint` is never changed: a
surgery returns another one. Invariants: every tensor has a shard in `weight_map`; `files` hold no weights of any format;
`inputs` list all tensors that were opened, so that a plan can prove that each of them arrived or was dropped by name.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .errors import FormatError, NotACheckpoint, SurgeryError, listed, nearest
from .formats.index import parse_index
from .formats.peft import CONFIG as ADAPTER_CONFIG
from .formats.peft import WEIGHTS as ADAPTER_WEIGHTS
from .formats.peft import Adapter, encode_config, is_adapter
from .formats.safetensors import Header, read_header, tensors_of
from .formats.strict import MEND, parse_object, read_object
from .names import natural
from .tensor import File, Input, Stored, Tensor

if TYPE_CHECKING:
    import torch

# Weights of other formats, or of the same ones under another name: carried along, they would still be the old weights.
OTHER_WEIGHTS = tuple(
    "*.bin *.pt *.pth *.ckpt *.h5 *.msgpack *.onnx *.onnx_data *.gguf *.ggml *.tflite *.ot *.npz *.pkl *.pickle *.nemo "
    "*.mlmodel *.bin.index.json *.h5.index.json".split()
)
LEFT_FOLDERS = ("original", ".git", ".cache", ".surgery")
SINGLE = ("model.safetensors", "diffusion_pytorch_model.safetensors")
_NUMBERED = re.compile(r"(?P<stem>.+)-\d+-of-(?P<count>\d+)\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """Names -> lazy tensors, with the files that belong to them. Made by `open_checkpoint`, changed by surgeries."""

    path: str
    tensors: Mapping[str, Tensor]
    weight_map: Mapping[str, str]
    metadata: Mapping[str, Mapping[str, str] | None]  # `__metadata__` by shard
    files: Mapping[str, File | bytes]  # carried files: as they are, or with edited content
    inputs: tuple[Input, ...]
    stem: str = "model"  # shards are called stem-00001-of-00002.safetensors
    index_name: str = "model.safetensors.index.json"
    index_metadata: Mapping[str, Any] = field(default_factory=dict)
    index: bytes = b""  # the index file as it was opened
    dropped: Mapping[str, Tensor] = field(default_factory=dict)
    replaced: Mapping[str, Tensor] = field(default_factory=dict)  # by an adapter's tensor of the same name
    history: tuple[Mapping[str, Any], ...] = ()  # what was done, oldest first
    notes: tuple[str, ...] = ()  # what a user should know, for the report
    before: Checkpoint | None = None  # what the output shall hold a record of, so that it can be restored
    headers: Mapping[str, bytes] = field(default_factory=dict)  # raw, by shard: written as they are

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The content of config.json; empty where there is none."""
        match self.files.get("config.json"):
            case None:
                content: dict[str, Any] = {}
            case bytes(raw):
                content = parse_object(raw, lambda what: FormatError(what, where=["config.json"], help=MEND))
            case File(path):
                content = read_object(path, help=MEND)
        if not isinstance(content.get("model_type", ""), str):
            raise FormatError(f"the model_type is {content['model_type']!r}, not a text", where=[f"{self.path}: config.json"], help=MEND)
        return content

    def load(self, name: str) -> torch.Tensor:
        """The value of one tensor, computed by the code that writes it. Loads torch."""
        from .evaluate import load

        return load(self[name])

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            close = nearest(name, self.tensors)
            raise SurgeryError(
                f"no tensor is called {name}", where=[self.path], help=f"the nearest names are {', '.join(close)}" if close else None
            )
        return self.tensors[name]

    def with_step(self, step: Mapping[str, Any], **changes: Any) -> Checkpoint:
        """The checkpoint with `changes`, and `step` added to its history."""
        return replace(self, history=(*self.history, step), **changes)

    def with_config(self, config: Mapping[str, Any]) -> Checkpoint:
        """The checkpoint with this config.json, as transformers writes it."""
        raw = f"{json.dumps(config, indent=2, sort_keys=True)}\n".encode()
        return replace(self, files={**self.files, "config.json": raw})


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """The checkpoint at `path`: a folder, one `.safetensors` file, or one index file. Reads headers only.

    Raises NotACheckpoint where there is none, or where it is not clear which; FormatError where a file is broken or the
    index and the shards disagree.
    """
    path = os.path.abspath(os.fspath(path))
    if os.path.isdir(path):
        folder, weights = path, _choose(path)
    elif os.path.isfile(path):
        folder, weights = os.path.dirname(path), os.path.basename(path)
        if not weights.endswith((".safetensors", ".json")):
            raise NotACheckpoint("not a safetensors file", where=[path], help=_pickle_help(weights))
    else:
        raise NotACheckpoint("no such file or folder", where=[path], help="a model on the Hub has to be downloaded first: hf download")

    if isinstance(weights, str) and weights.endswith(".json"):
        index_name, shards = weights, None
    else:
        index_name, shards = None, [weights] if isinstance(weights, str) else weights
    checkpoint = _indexed(folder, index_name) if shards is None and index_name else _bare(folder, shards or [])
    alone = os.path.isfile(path) and not os.path.exists(os.path.join(folder, "config.json"))
    if alone:  # the folder is no input, so that an output may lie in it
        return replace(checkpoint, inputs=tuple(replace(i, path=path) for i in checkpoint.inputs))
    return _with_files(checkpoint, folder)


def of_adapter(adapter: Adapter) -> Checkpoint:
    """An adapter as a checkpoint of one shard: its tensors under their names in the file, its config, and what lies beside."""
    files: dict[str, File | bytes] = {ADAPTER_CONFIG: encode_config(adapter.config)}
    left: list[str] = []
    for name in sorted(os.listdir(adapter.path)) if is_adapter(adapter.path) else []:
        full = os.path.join(adapter.path, name)
        if name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) or not os.path.isfile(full):
            continue
        if any(fnmatch(name, p) for p in OTHER_WEIGHTS) or name.endswith(".safetensors"):
            left.append(name)
            continue
        info = os.stat(full)
        files[name] = File(full, info.st_size, info.st_mtime_ns)
    notes = [f"left out, since they would still hold the old weights or the training's state: {', '.join(listed(left))}"] if left else []
    return Checkpoint(
        path=adapter.path,
        tensors=adapter.tensors,
        weight_map=dict.fromkeys(adapter.tensors, ADAPTER_WEIGHTS),
        metadata={ADAPTER_WEIGHTS: adapter.metadata},
        files=files,
        inputs=adapter.inputs,
        stem=ADAPTER_WEIGHTS.removesuffix(".safetensors"),
        index_name=f"{ADAPTER_WEIGHTS}.index.json",
        dropped=adapter.dropped,
        history=(*(_earlier(adapter.path) if is_adapter(adapter.path) else ()), *adapter.history),
        notes=(*adapter.notes, *notes),
    )


def _choose(folder: str) -> str | list[str]:
    """Which weights of a folder are meant: an index, one file, or a bare set of shards."""
    here = sorted(os.listdir(folder), key=natural)
    shards = [f for f in here if f.endswith(".safetensors")]
    indices = [f for f in here if fnmatch(f, "*.safetensors.index*.json")]
    single = next((f for f in SINGLE if f in shards), None)
    plain = [i for i in indices if i.endswith(".safetensors.index.json") and not i.startswith("consolidated")]
    chosen = plain if len(plain) == 1 else indices
    if len(chosen) > 1 or (chosen and single and single not in _read_index(folder, chosen[0]).weight_map.values()):
        found = [*chosen, *([single] if single else [])]
        raise NotACheckpoint(
            f"the folder holds more than one set of weights: {', '.join(found)}",
            where=[folder],
            help=f"loaders prefer one of them in silence; pass the one that you mean: {os.path.join(folder, found[0])}",
        )
    if chosen:
        return chosen[0]
    if single:
        return single
    bare = [f for f in shards if f != ADAPTER_WEIGHTS and not f.startswith("consolidated")] or [
        f for f in shards if f.startswith("consolidated")
    ]
    return bare or _nothing(folder, here)


def _nothing(folder: str, here: list[str]) -> list[str]:
    """Say why a folder without safetensors is not a checkpoint, and what to do."""
    nested = [d for d in here if os.path.isdir(os.path.join(folder, d)) and _has_safetensors(os.path.join(folder, d))]
    pickles = [f for f in here if f.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if ADAPTER_CONFIG in here:
        what = "this is an adapter, and no checkpoint"
        tip = "where both are given, the base comes first: surgery merge BASE ADAPTER -o OUT; alone, it can be inspected and verified"
    elif "snapshots" in here:
        names = sorted(os.listdir(os.path.join(folder, "snapshots")))
        what = "this is the root of a Hub cache entry"
        tip = "pass one of its snapshots: " + ", ".join(os.path.join(folder, "snapshots", n) for n in names)
    elif nested:
        what, tip = "the weights are in subfolders", "pass one of them: " + ", ".join(os.path.join(folder, d) for d in nested)
    elif pickles:
        what, tip = f"only pickled weights are here: {', '.join(listed(pickles))}", _pickle_help(pickles[0])
    else:
        what, tip = "no safetensors file is here", "pass a folder with model.safetensors or an index with its shards"
    raise NotACheckpoint(what, where=[folder], help=tip)


def _pickle_help(name: str) -> str:
    if name.endswith((".bin", ".pt", ".pth", ".ckpt")):
        return "a pickle can run code, so we do not open it; load it once with transformers and save_pretrained() it"
    return "pass a folder, a .safetensors file or an .index.json file"


def _has_safetensors(folder: str) -> bool:
    return any(f.endswith(".safetensors") for f in os.listdir(folder))


def _read_index(folder: str, name: str) -> Any:
    path = os.path.join(folder, name)
    try:
        with open(path, "rb") as stream:
            return parse_index(stream.read(), path)
    except OSError as error:
        raise FormatError(f"cannot read the index: {error.strerror}", where=[path]) from error


def _indexed(folder: str, index_name: str) -> Checkpoint:
    index = _read_index(folder, index_name)
    where = os.path.join(folder, index_name)
    shards = sorted(set(index.weight_map.values()), key=natural)
    missing = [s for s in shards if not os.path.isfile(os.path.join(folder, s))]
    if missing:
        raise FormatError(
            f"the index names {len(missing)} files that are not there",
            where=[where, *listed(missing)],
            help="the download is incomplete; fetch the missing files",
        )
    headers = _headers(folder, shards)
    holder = {name: shard for shard, (_, header) in headers.items() for name in header.entries}
    wrong = [(n, s) for n, s in index.weight_map.items() if n not in headers[s][1].entries]
    if wrong:
        rows = [f"{n}: the index says {s}, it is in {holder.get(n, 'no shard')}" for n, s in wrong]
        raise FormatError(
            f"the index and the shards disagree about {len(wrong)} tensors",
            where=[where, *listed(rows)],
            help="move the index away and open the folder as a bare set of shards, or fetch the checkpoint again",
        )
    stem, mark, variant = index_name.partition(".safetensors.index")
    checkpoint = _made(folder, headers, f"{stem}{variant.removesuffix('.json')}" if mark else "model", index_name)
    extra = len(holder) - len(index.weight_map)
    notes = (f"{extra} tensors are in the shards but not in the index: kept, and indexed from now on",) if extra else ()
    return replace(checkpoint, index_metadata=index.metadata, index=index.raw, notes=notes)


def _bare(folder: str, shards: list[str]) -> Checkpoint:
    """Shards without an index. Numbered ones must be complete."""
    numbered = [found for shard in shards if (found := _NUMBERED.fullmatch(shard))]
    here = Counter(found.groups() for found in numbered)
    for shard in numbered:
        if here[shard.groups()] != int(shard["count"]):
            raise NotACheckpoint(
                f"{here[shard.groups()]} of {int(shard['count'])} shards were given, and no index",
                where=[os.path.join(folder, shard[0])],
                help="pass the folder with all of them; if some are missing there, fetch them, or the index",
            )
    stem = shards[0].removesuffix(".safetensors") if len(shards) == 1 else "model"
    if numbered:
        stem = numbered[0]["stem"].removesuffix(".safetensors")  # some tools write model.safetensors-00001-of-00002.safetensors
    return _made(folder, _headers(folder, shards), stem, _index_name(stem))


def _index_name(stem: str) -> str:
    """What loaders call the index of shards called `stem`: the variant of model.fp16 comes after `.index`."""
    head, _, variant = stem.partition(".")
    return f"{head}.safetensors.index.{variant}.json" if variant and f"{head}.safetensors" in SINGLE else f"{stem}.safetensors.index.json"


def _headers(folder: str, shards: list[str]) -> dict[str, tuple[File, Header]]:
    headers = {s: read_header(os.path.join(folder, s)) for s in shards}
    seen: dict[str, str] = {}
    for shard, (_, header) in headers.items():
        double = [n for n in header.entries if n in seen]
        if double:
            raise FormatError(
                f"{len(double)} tensors are in two shards",
                where=[folder, *listed([f"{n}: {seen[n]} and {shard}" for n in double])],
                help="remove the stale shard, or pass the one file that you mean",
            )
        seen.update(dict.fromkeys(header.entries, shard))
    return headers


def _made(folder: str, headers: Mapping[str, tuple[File, Header]], stem: str, index_name: str) -> Checkpoint:
    tensors: dict[str, Stored] = {}
    weight_map: dict[str, str] = {}
    for shard, (file, header) in headers.items():
        tensors |= tensors_of(file, header)
        weight_map |= dict.fromkeys(header.entries, shard)
    return Checkpoint(
        path=folder,
        tensors=tensors,
        weight_map=weight_map,
        metadata={shard: header.metadata for shard, (_, header) in headers.items()},
        files={},
        inputs=(Input("base", folder, tuple(file for file, _ in headers.values()), tensors),),
        stem=stem,
        index_name=index_name,
    )


def _with_files(checkpoint: Checkpoint, folder: str) -> Checkpoint:
    """Everything else in the folder: carried byte for byte, but for weights that would still be the old ones."""
    files: dict[str, File | bytes] = {}
    left: list[str] = []
    nested: list[str] = []
    above: dict[str, frozenset[tuple[int, int]]] = {}
    shards = set(checkpoint.weight_map.values()) | {checkpoint.index_name}
    for here, folders, names in os.walk(folder, followlinks=True, onerror=_unreadable):
        status = os.stat(here)
        relative = os.path.relpath(here, folder)
        top = relative == "."
        parents = above.get(os.path.dirname(here), frozenset())
        if (status.st_dev, status.st_ino) in parents:  # a link to a folder above: carried there
            folders.clear()
            continue
        above[here] = parents | {(status.st_dev, status.st_ino)}
        if top:
            left += [f"{f}/" for f in folders if f in LEFT_FOLDERS and f != ".surgery"]
            folders[:] = [f for f in folders if f not in LEFT_FOLDERS]
        folders.sort()
        own = not top and any(n.endswith(".safetensors") and os.path.join(relative, n) not in shards for n in names)
        nested += [relative] if own else []
        inside = any(relative == n or relative.startswith(n + os.sep) for n in nested)
        for name in sorted(names):
            path = name if top else os.path.join(relative, name)
            if path in shards:
                continue
            stale = any(fnmatch(name, p) for p in OTHER_WEIGHTS) or name.startswith("consolidated.")
            if not inside and (stale or name.endswith(".safetensors") or fnmatch(name, "*.safetensors.index*.json")):
                left.append(path)
                continue
            full = os.path.join(here, name)
            if not os.path.isfile(full):
                raise FormatError("neither a file nor a folder: a broken link?", where=[full], help="remove it, or mend the link")
            info = os.stat(full)
            files[path] = File(full, info.st_size, info.st_mtime_ns)
    notes = list(checkpoint.notes)
    if left:
        notes.append("left out, since they would still hold the old weights: " + ", ".join(listed(left)))
    if nested:
        notes.append("carried untouched, with checkpoints of their own: " + ", ".join(f"{n}/" for n in nested))
    return replace(checkpoint, files=files, notes=tuple(notes), history=_earlier(folder))


def _unreadable(error: OSError) -> None:
    raise FormatError(f"cannot read a folder: {error.strerror}", where=[str(error.filename)], help="mend its permissions") from error


def _earlier(folder: str) -> tuple[Mapping[str, Any], ...]:
    """The history in the manifest of a folder that surgery wrote, so that the next manifest continues it."""
    from .formats.manifest import read_manifest

    manifest = read_manifest(folder)
    return tuple(manifest.history) if manifest else ()
