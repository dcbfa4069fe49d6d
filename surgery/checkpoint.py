"""A checkpoint as a value: names -> lazy tensors, and the files beside them.

`open_checkpoint` reads headers and the index, nothing else, and executes nothing. A `Checkpoint` is never changed: a
surgery returns another one. Invariants: every tensor has a shard in `weight_map`; `files` hold no weights of any
format; `inputs` list all tensors that were opened, so that a plan can prove that each of them arrived or was dropped
by name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cached_property
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from .errors import FormatError, NotACheckpoint, SurgeryError, listed, nearest, series
from .evaluation.read import content
from .files.adapters.opening import LOOKED_AT
from .files.adapters.opening import opened as of_other_tool
from .files.adapters.tinker import told
from .files.beside_adapter import is_litter
from .files.folder import Folder, PathLike, folder_at, locate, opened_as
from .files.formats import read_weights
from .files.manifest import read_manifest
from .files.model_config import Config
from .files.model_config import encoded as encode_config_json
from .files.opened import SHARD
from .files.paths import without_git
from .files.peft import CONFIG as ADAPTER_CONFIG
from .files.peft import WEIGHTS as ADAPTER_WEIGHTS
from .files.peft import Adapter, encode_config, is_adapter, open_peft
from .files.pipeline import component_meant, components_of, meant_at, modules_of, only_component
from .files.safetensors import reading_once
from .files.shards import CONSOLIDATED, index_name_of
from .files.strict import MEND, parse_object
from .files.torchfile.model import key_meant, under_key
from .lazy.tensor import File, Input, Tensor, as_written
from .models.originals import PARAMS
from .notebook import shown, tensor_table, told_of
from .opened import takes_opened
from .step import Recipe

if TYPE_CHECKING:
    import torch

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")

# Weights of other formats, or of the same ones under another name: carried along, they would still be the old weights.
OTHER_WEIGHTS = tuple(
    "*.bin *.pt *.pth *.ckpt *.h5 *.msgpack *.onnx *.onnx_data *.gguf *.ggml *.tflite *.ot *.npz *.pkl *.pickle *.nemo "
    "*.mlmodel *.distcp .metadata *.bin.index.json *.h5.index.json".split()
)
LEFT_FOLDERS = ("original", ".git", ".cache", ".surgery")
UNDO = ".surgery/base.undo"  # where a reversible merge keeps what its base was
# Files by which a folder is known, where they are given in its place.
GIVEN = {
    "config.json": "the configuration of a model, and not its weights",
    ADAPTER_CONFIG: "the configuration of an adapter, and not its weights",
    "tokenizer.json": "a tokenizer, and no weights",
    "tokenizer_config.json": "the configuration of a tokenizer, and no weights",
    "generation_config.json": "the configuration of how a model generates, and not its weights",
}


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
    costs: Mapping[str, Any] = field(default_factory=dict)  # of a base that adapters were not trained on
    survives: float = 0.0  # share of what is added to weights that are coded again, without which a run is refused
    parts: Mapping[str, Checkpoint] = field(default_factory=dict)  # a pipeline's components, by folder, as opened
    format: str = ""  # of the files that were opened, in words; empty: safetensors
    scattered: bool = False  # its files are no shards: each holds pieces of all tensors
    recipe: Recipe = field(default_factory=Recipe, compare=False)  # how it was made

    def __repr__(self) -> str:
        kind = self.__dict__.get("config", {}).get("model_type")  # nothing is read for it
        size = sum(tensor.nbytes for tensor in self.tensors.values())
        return f"<Checkpoint{f' {kind}' if kind else ''}: {len(self.tensors)} tensors, {size} bytes, {self.path}>"

    def _repr_html_(self) -> str:
        shards = len(set(self.weight_map.values()))
        return shown(
            repr(self)[1:].split(":")[0],
            {"path": self.path, "shards": shards, **told_of(self)},
            tensor_table(self.tensors),
        )

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The content of config.json; empty where there is none."""
        file = self.files.get("config.json")
        if file is None:
            return {}
        where = file.path if isinstance(file, File) else "config.json"
        return Config(parse_object(content(file), lambda what: FormatError(what, where=[where], help=MEND)), where)

    def as_written(self) -> Checkpoint:
        """The same, as if what steps made had been written and opened again: what is decoded is rounded."""
        if not self.recipe.steps:
            return self
        made = {name: as_written(tensor) for name, tensor in self.tensors.items()}
        return self if all(made[name] is self.tensors[name] for name in made) else replace(self, tensors=made)

    def load(self, name: str) -> torch.Tensor:
        """The value of one tensor, computed by the code that writes it. Loads torch."""
        from .evaluation.evaluate import load

        return load(self[name])

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            close = nearest(name, self.tensors)
            raise SurgeryError(
                f"no tensor is called {name}",
                where=[self.path],
                help=f"the nearest names are {', '.join(close)}" if close else None,
            )
        return self.tensors[name]

    def pipe(
        self, function: Callable[Concatenate[Checkpoint, _Given], _Result], *args: _Given.args, **kwargs: _Given.kwargs
    ) -> _Result:
        """`function(self, …)`: `checkpoint.pipe(split_qkv).pipe(merge, adapter)` reads in the order of what is done."""
        return function(self, *args, **kwargs)

    def with_step(self, step: Mapping[str, Any], **changes: Any) -> Checkpoint:
        """The checkpoint with `changes`, and `step` added to its history."""
        return replace(self, history=(*self.history, step), **changes)

    def with_config(self, config: Mapping[str, Any]) -> Checkpoint:
        """The checkpoint with this config.json, as transformers writes it."""
        raw = f"{encode_config_json(config)}\n".encode()
        return replace(self, files={**self.files, "config.json": raw})


@takes_opened
def open_checkpoint(path: PathLike | Folder, *, key: str = "", component: str = "") -> Checkpoint:
    """The checkpoint at `path`: a folder, one file of weights, or one index file. Reads headers only.

    Files that torch saved (`.bin`, `.pt`, `.pth`, `.ckpt`) are read as data: nothing that a pickle names is imported
    or called. Where one holds several sets of weights, `key` says which, with dots between its parts; ".": all.

    A pipeline of diffusers is opened as one checkpoint, or, with `component`, such as "transformer", as that one alone.

    `path` may be on the Hub: `org/name[@revision][/folder or file]`, or the same after `hf://`. What is opened is
    then pinned to the commit that the revision means now.

    Raises NotACheckpoint where there is none, or where it is not clear which; FormatError where a file is broken or
    the index and the shards disagree; a HubError where the Hub refuses or does not answer.
    """
    with under_key(key or key_meant()), only_component(component or component_meant()):
        folder, name = meant_at(path)
        return replace(_opened(folder, name), recipe=opened_as(folder, name, key=key_meant()))


@takes_opened
def open_any(path: PathLike | Folder) -> Checkpoint | Adapter:
    """The checkpoint or the adapter at `path`, whichever it is. Raises what `open_checkpoint` and `open_adapter` do."""
    folder, name = meant_at(path)
    with reading_once():
        adapter = of_other_tool(folder, name, LOOKED_AT)
        if adapter is None and not name and is_adapter(folder):
            adapter = told(open_peft(folder))
        found = adapter or _opened(folder, name)
    return replace(found, recipe=opened_as(folder, name, key=key_meant()))


def _opened(folder: Folder, name: str = "") -> Checkpoint:
    """What is in the folder, or in its file `name`."""
    _check_weights(folder, name)
    if not name and (parts := components_of(folder)):
        return joined(folder, {part: _opened(locate(folder.at(part))[0]) for part in parts})
    found = read_weights(folder, name)
    said = (f"read as data, and nothing of it was run: {found.what}",) if found.what else ()
    checkpoint = Checkpoint(
        path=folder.path,
        tensors=found.tensors,
        weight_map=found.shards,
        metadata=found.metadata or {shard: {"format": "pt"} for shard in found.shards.values()},
        files={},
        inputs=(Input("base", folder.path, found.files, found.leaves, found.partly, found.called_otherwise),),
        stem=found.stem,
        index_name=found.index_name or index_name_of(found.stem),
        index_metadata=found.index_metadata,
        index=found.index,
        notes=(*said, *found.notes),
        format=found.what,
        scattered=len(found.files) > 1 and set(found.shards.values()) == {SHARD},
    )
    made = _beside_files(checkpoint, folder, name, found.own)
    return replace(made, files={**made.files, **found.made}) if found.made else made


def _check_weights(folder: Folder, name: str) -> None:
    """Raise NotACheckpoint for a file that is known by its name to hold no model."""
    if name in GIVEN:
        raise NotACheckpoint(f"this is {GIVEN[name]}", where=[folder.at(name)], help=f"pass its folder: {folder.path}")
    if name == ADAPTER_WEIGHTS and folder.has(ADAPTER_CONFIG):
        tip = f"pass its folder: {folder.path}"
        raise NotACheckpoint("this is the weights of an adapter, and no checkpoint", where=[folder.at(name)], help=tip)


def _beside_files(checkpoint: Checkpoint, folder: Folder, name: str, own: Collection[str] = ()) -> Checkpoint:
    """The checkpoint with the rest of its folder, unless it is a file alone."""
    described = folder.has("config.json") or (name.startswith(CONSOLIDATED) and folder.has(PARAMS))
    if name and not described:  # the folder is no input, so that an output may lie in it
        return replace(checkpoint, inputs=tuple(replace(i, path=folder.at(name)) for i in checkpoint.inputs))
    return _with_files(checkpoint, folder, own)


def of_adapter(adapter: Adapter) -> Checkpoint:
    """An adapter as a checkpoint of one shard: its tensors under their names in the file, its config, and what lies
    beside.
    """
    files: dict[str, File | bytes] = {**adapter.files, ADAPTER_CONFIG: encode_config(adapter.config)}
    left: list[str] = []
    folder = folder_at(adapter.path)
    if folder and not is_adapter(folder):  # made for the base there
        folder = None
    for name in folder.names() if folder else []:
        if name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) or not (folder and folder.has(name)):
            continue
        if any(fnmatch(name, p) for p in OTHER_WEIGHTS) or name.endswith(".safetensors"):
            left.append(name)
            continue
        files[name] = folder.file(name)
    notes = (
        [f"left out, since they would still hold the old weights or the training's state: {', '.join(listed(left))}"]
        if left
        else []
    )
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
        history=(*(_earlier(folder) if folder else ()), *adapter.history),
        notes=(*([folder.note] if folder and folder.note else []), *adapter.notes, *notes),
        costs=adapter.costs,
        recipe=adapter.recipe,
    )


def _with_files(checkpoint: Checkpoint, folder: Folder, own: Collection[str] = ()) -> Checkpoint:
    """Everything else in the folder: carried byte for byte, but for weights that would still be the old ones, and
    those of its `own`.
    """
    files: dict[str, File | bytes] = {}
    left = [f"{f}/" for f in folder.names() if f in LEFT_FOLDERS and f != ".surgery" and not folder.has(f)]
    shards = {*checkpoint.weight_map.values(), checkpoint.index_name, *own}
    paths, run = without_git(path for path in folder.walk(LEFT_FOLDERS) if path not in shards)
    own_weights = [path.rpartition("/")[0] for path in paths if path.endswith(".safetensors") and "/" in path]
    nested = list(dict.fromkeys([*own_weights, *modules_of(folder)]))
    for path in paths:
        name = path.rpartition("/")[2]
        inside = any(path.startswith(f"{place}/") for place in nested)
        stale = any(fnmatch(name, p) for p in OTHER_WEIGHTS) or name.startswith("consolidated.")
        if not inside and (stale or name.endswith(".safetensors") or fnmatch(name, "*.safetensors.index*.json")):
            left.append(path)
        else:
            files[path] = folder.file(path)
    notes = [*([folder.note] if folder.note else []), *checkpoint.notes]
    if folder.has(UNDO):
        notes.append(
            "an undo record is here, and stays here: surgery unmerge restores the base from this folder, not from what"
            " is made of it"
        )
    notes += _told_left(left)
    if run:
        notes.append(f"left out, since git would run or believe what lies there: {', '.join(listed(run))}")
    if nested:
        notes.append("carried untouched, with checkpoints of their own: " + ", ".join(f"{n}/" for n in nested))
    return replace(checkpoint, files=files, notes=tuple(notes), history=_earlier(folder))


def _told_left(left: Sequence[str]) -> list[str]:
    """What was left out of a folder, and why."""
    training = [path for path in left if is_litter(path.rpartition("/")[2])]
    weights = [path for path in left if path not in training]
    kinds = (("they would still hold the old weights", weights), ("they are a training's state", training))
    return [f"left out, since {why}: {series(listed(paths))}" for why, paths in kinds if paths]


def joined(folder: Folder, parts: Mapping[str, Checkpoint]) -> Checkpoint:
    """The components of a pipeline as one checkpoint: a tensor of one is called folder/name, and lies in its shards
    under its own name.
    """
    each = [(f"{at}/", part) for at, part in parts.items()]
    kept = [path for path in folder.walk(LEFT_FOLDERS) if not path.startswith(tuple(at for at, _ in each))]
    kept, run = without_git(kept)
    left = [path for path in kept if path.endswith(".safetensors") or any(fnmatch(path, p) for p in OTHER_WEIGHTS)]
    left = [path for path in left if "/" not in path]  # a folder that is no component keeps what it has
    notes = [f"a diffusers pipeline: {series(list(parts))}", *([folder.note] if folder.note else [])]
    notes += [f"{at}: {note}" for at, part in parts.items() for note in part.notes]
    notes += _told_left(left)
    notes += [f"left out, since git would run or believe what lies there: {', '.join(listed(run))}"] if run else []
    return Checkpoint(
        path=folder.path,
        tensors={f"{at}{name}": tensor for at, part in each for name, tensor in part.tensors.items()},
        weight_map={f"{at}{name}": f"{at}{shard}" for at, part in each for name, shard in part.weight_map.items()},
        metadata={f"{at}{shard}": metadata for at, part in each for shard, metadata in part.metadata.items()},
        files={path: folder.file(path) for path in kept if path not in left}
        | {f"{at}{path}": file for at, part in each for path, file in part.files.items()},
        inputs=tuple(within(at, source) for at, part in each for source in part.inputs),
        history=_earlier(folder),
        notes=tuple(notes),
        parts=parts,
    )


def within(at: str, source: Input) -> Input:
    """An input of a component, with its tensors called as in the pipeline."""
    tensors = {f"{at}{name}": tensor for name, tensor in source.tensors.items()}
    partly, names = (frozenset(f"{at}{name}" for name in held) for held in (source.partly, source.names))
    return replace(source, tensors=tensors, partly=partly, names=names)


def _earlier(folder: Folder) -> tuple[Mapping[str, Any], ...]:
    """The history in the manifest of a folder that surgery wrote, so that the next manifest continues it."""
    manifest = read_manifest(folder)
    return tuple(manifest.history) if manifest else ()
