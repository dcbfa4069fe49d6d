"""The undo record: what lies beside merged shards, so that `unmerge` gives the base back byte for byte.

    .surgery/base.undo            the base's raw headers and index, its files that the merge changed, digests of the
    others .surgery/undo/SHARD.undo      for each base tensor that SHARD holds: how to predict it from what was
    written, corrections
                                  to that, and a digest for each block; with the adapter's factors and DoRA's norms

Both are safetensors files, whose `__metadata__` holds one JSON object, `undo`, and its SHA-256. How to predict a
tensor is a tree of lazy tensors as JSON, so that a record can be read by every later version. Nothing in it depends
on the machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..checkpoint import UNDO, Checkpoint
from ..errors import FormatError, LayoutError, PlanError, VerificationFailed, listed
from ..evaluation.kinds import undoable
from ..evaluation.read import Reader, sha256
from ..files.folder import Folder
from ..files.manifest import read_manifest
from ..files.safetensors import Header, encode_header, in_file_order, tensors_of
from ..files.strict import parse_object
from ..lazy.dtypes import DTYPES, Dtype
from ..lazy.runs import lower
from ..lazy.tensor import (
    Before,
    Concat,
    File,
    Narrow,
    Permute,
    Reshape,
    Restored,
    Shape,
    Stored,
    Sum,
    Tensor,
    Zeros,
    concat,
    moved_alike,
    narrow,
    permute,
    reshape,
)
from .encoding import check_depth, decoded, encoded
from .recorded import check_facts, check_frames, check_places, recipes_in
from .turned_back import turned_back

FORMAT = 1
SMALL = 1 << 20  # bytes up to which a carried file is kept as it was, changed or not: people edit cards and configs
ROOM, RATIO = 1 << 16, 256  # bytes that a packed file may be unpacked to: at least, and for each byte that it has
WITHOUT = "without it, most weights come back, not all: surgery unmerge --approximate MERGED ADAPTER -o OUT"
MEND = f"take the record from a copy; {WITHOUT}"
# What reading a tree may run into that no recipe of ours holds.
_MEANINGLESS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LayoutError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


def sidecar_of(shard: str) -> str:
    """Where the record of a shard lies."""
    return f".surgery/undo/{shard}.undo"


@dataclass(frozen=True, slots=True)
class Kept:
    """The `number`th base tensor of a record, and what predicts it from what is written; None: what is written is
    it.
    """

    number: int
    original: Tensor
    predicted: Tensor | None


@dataclass(frozen=True, slots=True)
class Sidecar:
    """The record that belongs to a shard: its JSON, and the tensors that it holds as they are."""

    name: str
    recipe: str
    fixed: Mapping[str, Tensor]
    most: int  # bytes of frames that are to be expected at most, unless weights are far from what an adapter leaves


@dataclass
class Recipes:
    """The recipe of one shard, as it is put together."""

    shard: str
    settled: Callable[[Tensor], Tensor]  # what a run computes before all else, as it can be read then
    tensors: dict[str, Any] = field(default_factory=dict)
    kept: dict[Tensor, str] = field(default_factory=dict)
    most: int = 0

    def keep(self, name: str, original: Tensor, tensor: Tensor | None, after: Stored | None) -> Kept:
        """Note how the base's `name` follows from the written tensor `after`, which is made as `tensor` says."""
        predicted = (
            self._predicted(original, tensor, after) if tensor and after else Zeros(original.dtype, original.shape)
        )
        exact, lost = original == tensor, isinstance(predicted, Zeros)
        self.most += 0 if exact else original.nbytes if lost or predicted == after else original.nbytes // 4
        self.tensors[name] = {
            "dtype": str(original.dtype),
            "shape": list(original.shape),
            "after": None if lost or after is None else [str(after.dtype), list(after.shape)],
            "predicted": None if exact or lost else self._encoded(predicted, after),
        }
        return Kept(len(self.tensors) - 1, original, None if exact else predicted)

    def sidecar(self) -> Sidecar:
        """The plan of the file."""
        recipe = json.dumps({"format": FORMAT, "shard": self.shard, "tensors": self.tensors}, ensure_ascii=False)
        fixed = {name: tensor for tensor, name in self.kept.items()}
        return Sidecar(sidecar_of(self.shard), recipe, fixed, self.most + sum(t.nbytes for t in fixed.values()))

    def _predicted(self, original: Tensor, tensor: Tensor, after: Stored) -> Tensor:
        """What is most like the original and follows from `after`: at best, `tensor` with each sum undone."""
        if tensor.shape != original.shape:
            return Zeros(original.dtype, original.shape)
        undone = self._undone(tensor, original, after)
        if undone is not None and undone.dtype == original.dtype and _in_place(tensor, original):
            return undone
        return after if after.dtype == original.dtype else Before(original.dtype, after)

    def _undone(self, tensor: Tensor, original: Tensor, after: Tensor) -> Tensor | None:
        """`tensor` with `after` for `original` and each sum undone; None where something else is in it."""

        def inner(child: Tensor) -> Tensor | None:
            return self._undone(child, original, after)

        match tensor:
            case _ if tensor == original:
                return after
            case Sum(_, base, deltas, gain):
                under = inner(base)
                if under is None or isinstance(under, Before):
                    return None
                if not undoable(deltas):
                    return turned_back(tensor, under, original.dtype, self.settled)
                left = tuple(delta.over(self.settled) for delta in deltas)
                return Before(original.dtype, under, left, gain and gain.over(self.settled))
            case Reshape(base, shape):
                return None if (under := inner(base)) is None else reshape(under, shape)
            case Narrow(base, axis, start, length):
                return None if (under := inner(base)) is None else narrow(under, axis, start, length)
            case Permute(base, axes):
                return None if (under := inner(base)) is None else permute(under, axes)
            case Concat(parts, axis):
                found = [inner(part) for part in parts]
                alike = [f for f in found if f is not None and f.dtype == original.dtype]
                return concat(alike, axis) if len(alike) == len(parts) else None
        return None

    def _encoded(self, tensor: Tensor, after: Tensor | None) -> Any:
        """The tree as JSON; what it reads besides `after` is kept in the record."""

        def keep(leaf: Tensor) -> str:
            return self.kept.setdefault(leaf, f"kept.{len(self.kept)}")

        return encoded(tensor, lambda one: "after" if one == after else None, keep)


def _in_place(tensor: Tensor, original: Tensor) -> bool:
    """Whether element i of the tensor is made from element i of the original, for each i."""
    pieces = lower(_base_of(tensor))
    return all(p.leaf == original and p.at == p.to and all(d.at == d.to for d in p.dims) for p in pieces)


def _base_of(tensor: Tensor) -> Tensor:
    """The tensor without the sums in it: the bases alone."""
    return _base_of(tensor.base) if isinstance(tensor, Sum) else moved_alike(tensor, _base_of)


@dataclass(frozen=True)
class BaseRecord:
    """What is kept of a base besides its tensors. `files` are those that it had; `contents` what is in those that
    are kept.
    """

    headers: Mapping[str, bytes]
    contents: Mapping[str, bytes]
    files: Mapping[str, Mapping[str, Any]]  # path -> size, sha256
    facts: Mapping[str, Any]


def base_record(base: Checkpoint, merged: Checkpoint, shards: list[str]) -> bytes:
    """The record of `base`, which became `merged` in `shards`, as a file. Reads headers and carried files."""
    held = {name: tensor for name, tensor in base.tensors.items() if isinstance(tensor, Stored)}
    if base.inputs and any(not file.path.endswith(".safetensors") for source in base.inputs for file in source.files):
        tip = "write it as safetensors first, with surgery convert-files, and merge into that"
        raise PlanError("only a base in safetensors can be restored byte for byte", where=[base.path], help=tip)
    if len(held) < len(base.tensors):
        raise PlanError(
            "only a base as it was opened can be restored", where=[base.path], help="write the other surgeries first"
        )
    blobs, files, reader = dict[str, bytes](), dict[str, Any](), Reader()
    try:
        files_of = {shard: held[name].file for name, shard in base.weight_map.items()}
        starts: dict[str, int] = {}
        for name, shard in base.weight_map.items():
            starts[shard] = min(starts.get(shard, held[name].offset), held[name].offset)
        for shard, file in files_of.items():
            blobs[f"header/{shard}"] = _read(reader, file, starts[shard])
        indices = {base.index_name: base.index, **{f"{at}/{p.index_name}": p.index for at, p in base.parts.items()}}
        carried = {**base.files, **{path: index for path, index in indices.items() if index}}
        for path, content in sorted(carried.items()):
            size = len(content) if isinstance(content, bytes) else content.size
            files[path] = {"size": size, "sha256": sha256(content)}
            if size <= SMALL or merged.files.get(path) != content:
                blobs[f"file/{path}"] = content if isinstance(content, bytes) else _read(reader, content, size)
    finally:
        reader.close()
    facts = {"format": FORMAT, "files": files, "shards": shards, "history": list(base.history), "stem": base.stem}
    facts |= {"index_name": base.index_name, "notes": list(base.notes)}
    packed = {name: _packed(raw) for name, raw in blobs.items()}
    shapes: dict[str, tuple[Dtype, Shape]] = {name: (DTYPES["U8"], (len(raw),)) for name, raw in packed.items()}
    return encode_header(shapes, sealed(json.dumps(facts))) + b"".join(packed[name] for name in in_file_order(shapes))


def read_base_record(folder: Folder) -> BaseRecord:
    """The base record of a merged folder. Raises FormatError where it is broken, VerificationFailed where there is
    none.
    """
    path = folder.at(UNDO)
    if not folder.has(UNDO):
        raise _no_record(folder)
    file, header = _headers(folder, [UNDO])[UNDO]
    facts = unsealed(header, path)
    fail = _damaged(path)
    check_facts(facts, fail)
    reader = Reader()
    try:
        blobs = {
            n: _unpacked(_read(reader, file, t.nbytes, t.offset), f"{path}: {n}")
            for n, t in tensors_of(file, header).items()
        }
    finally:
        reader.close()
    named = {
        kind: {n.removeprefix(kind): raw for n, raw in blobs.items() if n.startswith(kind)}
        for kind in ("header/", "file/")
    }
    check_places(facts, named["header/"], named["file/"], fail)
    for name, content in named["file/"].items():
        if hashlib.sha256(content).hexdigest() != facts["files"][name]["sha256"]:
            raise FormatError("the undo record is damaged", where=[f"{path}: {name}"], help=MEND)
    return BaseRecord(named["header/"], named["file/"], facts["files"], facts)


def _no_record(folder: Folder) -> VerificationFailed:
    """Why there is no record, as far as the manifest tells: no merge is told of, or one that was not to be taken
    back.
    """
    manifest, where = read_manifest(folder), [folder.at(UNDO)]
    steps = [str(step.get("surgery")) for step in manifest.history] if manifest else []
    if "merge" in steps:
        return VerificationFailed(
            "no undo record is here: the merge was not made with --reversible", where=where, help=WITHOUT
        )
    if "unmerge" in steps:
        return VerificationFailed("no undo record is here: this is a base that was given back already", where=where)
    told = f"of {', '.join(steps)}, and of no merge" if manifest else "nothing: no surgery wrote this folder"
    tip = (
        "a base needs nothing; of what another tool merged, most comes back: surgery unmerge --approximate MERGED"
        " ADAPTER -o OUT"
    )
    return VerificationFailed(
        f"nothing was merged here that could be taken back: the manifest tells {told}", where=where, help=tip
    )


@dataclass(frozen=True)
class ShardRecord:
    """An opened sidecar: the file, and for each base tensor what restores it from the written tensors."""

    file: File
    recipes: Mapping[str, Mapping[str, Any]]
    stored: Mapping[str, Stored]

    def restored(self, number: int, name: str, written: Mapping[str, Tensor]) -> tuple[Tensor, bool]:
        """The base's tensor `name`, the `number`th of the record, and whether it is made from the written one."""
        recipe = self.recipes[name]
        try:
            dtype, shape, after = DTYPES[recipe["dtype"]], tuple(recipe["shape"]), recipe["after"]
            found = written.get(name)
            if after and (found is None or [str(found.dtype), list(found.shape)] != after):
                is_now = f"{found.dtype} {found.shape}" if found else "not there"
                raise VerificationFailed(
                    "the merged checkpoint was changed", where=[f"{name}: {is_now}, written as {after}"], help=MEND
                )
            frames, sizes, digests = (self.stored[f"{number}.{part}"] for part in ("frames", "sizes", "digests"))
            check_frames(frames, sizes, digests, shape)
            if not after:
                predicted: Tensor = Zeros(dtype, shape)
            else:
                assert isinstance(found, Stored)
                check_depth(recipe["predicted"])
                predicted = decoded(recipe["predicted"] or "after", {**self.stored, "after": found}.__getitem__)
            if (predicted.dtype, predicted.shape) != (dtype, shape):
                raise ValueError("the prediction has another shape")
            return Restored(name, predicted, frames, sizes, digests), bool(after)
        except _MEANINGLESS as error:
            raise FormatError("the undo record is damaged", where=[f"{self.file.path}: {name}"], help=MEND) from error


def read_shard_records(folder: Folder, shards: Sequence[str]) -> list[ShardRecord]:
    """The sidecars of written shards. Raises FormatError where one is missing or broken."""
    names = [sidecar_of(shard) for shard in shards]
    if missing := [folder.at(name) for name in names if not folder.has(name)]:
        raise FormatError("a part of the undo record is missing", where=listed(missing), help=MEND)
    found = _headers(folder, names)
    read = [(file, unsealed(header, file.path), tensors_of(file, header)) for file, header in found.values()]
    return [ShardRecord(file, recipes_in(recipe, _damaged(file.path)), tensors) for file, recipe, tensors in read]


def sealed(recipe: str) -> dict[str, str]:
    """The `__metadata__` that holds a record's JSON, with its digest."""
    return {"undo": recipe, "sha256": hashlib.sha256(recipe.encode()).hexdigest()}


def _damaged(path: str) -> Callable[[str], FormatError]:
    """What makes the error for a record at `path` of what is wrong in it."""
    return lambda what: FormatError("the undo record is damaged", where=[f"{path}: {what}"], help=MEND)


def _headers(folder: Folder, names: Sequence[str]) -> Mapping[str, tuple[File, Header]]:
    try:
        return folder.headers(names)
    except FormatError as error:
        raise FormatError("the undo record is damaged", where=error.where, help=MEND) from error


def unsealed(header: Header, path: str) -> dict[str, Any]:
    """The JSON of a record. Raises FormatError for one that is damaged, or of a later version."""
    raw = (header.metadata or {}).get("undo", "")
    if hashlib.sha256(raw.encode()).hexdigest() != (header.metadata or {}).get("sha256"):
        raise FormatError("the undo record is damaged", where=[path], help=MEND)
    found = parse_object(raw.encode(), _damaged(path))
    if found.get("format") != FORMAT:
        raise FormatError(
            f"an undo record of format {found.get('format')}",
            where=[path],
            help="undo it with the surgery that made it",
        )
    return found


def _read(reader: Reader, file: File, nbytes: int, at: int = 0) -> bytes:
    raw = bytearray(nbytes)
    reader.read(file, at, memoryview(raw))
    return bytes(raw)


def _packed(raw: bytes) -> bytes:
    import zstandard

    packed: bytes = zstandard.ZstdCompressor(level=10).compress(raw)
    return packed + bytes(max(0, -((ROOM - len(raw)) // RATIO) - len(packed)))


def _unpacked(raw: bytes, where: str) -> bytes:
    """What was packed; never more than `_packed` makes of a file so large, whatever it claims."""
    import zstandard

    most = ROOM + RATIO * len(raw)
    try:
        if zstandard.frame_content_size(raw) > most:
            raise ValueError("more than can be in it")
        return bytes(zstandard.ZstdDecompressor().decompress(raw, max_output_size=most))
    except (ValueError, zstandard.ZstdError) as error:
        raise FormatError("the undo record is damaged", where=[where], help=MEND) from error
