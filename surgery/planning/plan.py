"""A plan: what will be written where, decided and verified before the first byte.

`plan` is pure but for the disk's free space, which the executor checks. What it proves, or refuses:

    every tensor that was opened reaches an output in full, or was dropped by name     (conservation)
    no two outputs share a path                                                          (names)
    shards that are joined agree on their `__metadata__`                                 (metadata)
    packed dtypes are cut at whole bytes                                                 (bytes)

A plan can be pickled, and split by output shard. Its `identity` changes with anything that its bytes depend on.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..checkpoint import UNDO, Checkpoint, of_adapter
from ..errors import AdapterError, LayoutError, NothingMatched, PlanError, listed
from ..evaluation.evaluate import DEFAULT_MEMORY, SCRATCH, Workspace, arithmetic_identity, nonfinite, scratch_of
from ..files.index import encode_index
from ..files.manifest import MANIFEST, Manifest, encode_manifest
from ..files.peft import Adapter
from ..files.safetensors import encode_header, header_alone, in_file_order
from ..hub.refs import SCHEME, has_scheme
from ..lazy.dtypes import ARITHMETIC, Dtype
from ..lazy.runs import Piece, lower, to_bytes
from ..lazy.tensor import (
    Before,
    File,
    Input,
    Restored,
    Shape,
    Stored,
    Sum,
    Tensor,
    Zeros,
    children,
    has_arithmetic,
    is_computed,
    stored,
    substitute,
)
from ..names import natural
from ..version import __version__
from .record import Kept, Recipes, Sidecar, base_record
from .sharding import assign

COPY_RUN = 16 << 10  # bytes from which a run is copied by the kernel instead of gathered through a buffer
FETCH_RUN = 1 << 20  # the same for a file on the Hub, where each copy is a request
_PRIME, _POINT = 2**127 - 1, 3**79


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor and the byte of the shard file from which it is written."""

    name: str
    tensor: Tensor
    to: int
    kept: Kept | None = None  # what is recorded along, element for element


@dataclass(frozen=True, slots=True)
class Copy:
    """Bytes [at, at + nbytes) of `file` -> bytes from `to` on."""

    file: File
    at: int
    to: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Fill:
    """Elements [start, stop) of `tensor`, evaluated -> bytes from `to` on."""

    tensor: Tensor
    start: int
    stop: int
    to: int
    kept: Kept | None = None


@dataclass(frozen=True, slots=True)
class Keep:
    """Elements [start, stop) of a base tensor that nothing written resembles -> the record."""

    kept: Kept
    start: int
    stop: int


Part = Copy | Fill | Keep


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """A shard file: its header, and its tensors in the order of their offsets.

    With a `sidecar` it is recorded what the base was: by the slots, and of the base tensors `lone`, which no slot resembles.
    """

    name: str
    header: bytes
    slots: tuple[Slot, ...]
    nbytes: int
    sidecar: Sidecar | None = None
    lone: tuple[Kept, ...] = ()

    def steps(self) -> Iterator[Part]:
        """What fills the shard after its header, and its record; copies that continue each other are one."""
        yield from (Keep(kept, 0, kept.original.size) for kept in self.lone if kept.original.size)
        last: Copy | None = None
        for slot in self.slots:
            for step in steps(slot.tensor, slot.to, slot.kept):
                match last, step:
                    case Copy(file, at, to, n), Copy(same, at2, to2, m) if same is file and at + n == at2 and to + n == to2:
                        last = Copy(file, at, to, n + m)
                    case Copy(), _:
                        yield last
                        last = step if isinstance(step, Copy) else None
                        if last is None:
                            yield step
                    case _, Copy():
                        last = step
                    case _:
                        yield step
        if last:
            yield last

    def apart(self) -> list[ShardPlan]:
        """The same file slot by slot."""
        return [replace(self, slots=(slot,)) for slot in self.slots]


@dataclass(frozen=True)
class Plan:
    """All that `execute` needs. Sizes are bytes."""

    identity: str
    shards: tuple[ShardPlan, ...]
    scratch: ShardPlan | None
    files: Mapping[str, File | bytes]  # carried files, the index and the manifest
    inputs: tuple[Input, ...]
    options: Mapping[str, Any]
    history: tuple[Mapping[str, Any], ...]
    dropped: tuple[str, ...]
    replaced: tuple[str, ...]
    added: tuple[str, ...]
    notes: tuple[str, ...]

    @cached_property
    def computed(self) -> tuple[str, ...]:
        """Names of the tensors that arithmetic makes; all others are copied byte for byte."""
        slots = [slot for shard in self.shards for slot in shard.slots]
        return tuple(s.name for s in slots if is_computed(s.tensor) or any(f.file.path == SCRATCH for f in stored(s.tensor)))

    @cached_property
    def arithmetic(self) -> bool:
        """Whether torch is needed."""
        return self.scratch is not None or any(has_arithmetic(slot.tensor) for shard in self.shards for slot in shard.slots)

    @property
    def dtypes(self) -> dict[str, Dtype]:
        """The dtype of each tensor written."""
        return {slot.name: slot.tensor.dtype for shard in self.shards for slot in shard.slots}

    def users(self, scratch: Slot) -> list[str]:
        """The tensors into which a scratch tensor goes."""
        slots = [slot for shard in self.shards for slot in shard.slots]
        return [s.name for s in slots if any((leaf.file.path, leaf.offset) == (SCRATCH, scratch.to) for leaf in stored(s.tensor))]

    @property
    def tensors(self) -> int:
        """Number of tensors written."""
        return sum(len(shard.slots) for shard in self.shards)

    @property
    def nbytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.nbytes for shard in self.shards)

    @cached_property
    def computed_bytes(self) -> int:
        """Bytes of the tensors that arithmetic makes."""
        names = set(self.computed)
        return sum(s.tensor.nbytes for shard in self.shards for s in shard.slots if s.name in names)

    @property
    def file_bytes(self) -> int:
        """Bytes of the carried files, the index and the manifest."""
        return sum(len(f) if isinstance(f, bytes) else f.size for f in self.files.values())

    @property
    def needed(self) -> int:
        """Bytes of disk that a run needs, scratch included."""
        return self.nbytes + self.file_bytes + self.record_bytes + (self.scratch.nbytes if self.scratch else 0)

    @property
    def record_bytes(self) -> int:
        """Bytes that the undo record of the shards may take; it mostly takes a fraction."""
        return sum(shard.sidecar.most for shard in self.shards if shard.sidecar)

    def needed_for(self, room: int) -> int:
        """The same where no more than `room` shards are on the disk at a time."""
        sizes = (shard.nbytes + (shard.sidecar.most if shard.sidecar else 0) for shard in self.shards)
        return self.needed - self.nbytes - self.record_bytes + sum(sorted(sizes, reverse=True)[:room])


def plan(
    checkpoint: Checkpoint | Adapter,
    max_shard_size: int | str | None = None,
    *,
    balanced: bool = False,
    drop_metadata: Sequence[str] = (),
) -> Plan:
    """The plan that writes `checkpoint`, or an adapter. Reads no tensor but those of adapters, for NaN.

    Raises PlanError where something would be lost or collide, AdapterError for an adapter with NaN in it.

    Without `max_shard_size` (bytes, or text such as "5GB") every tensor stays in its shard; `drop_metadata` names the
    `__metadata__` keys to leave out, such as those on which joined shards disagree. Raises NothingMatched for a key that
    no shard has, LayoutError for a packed tensor that is cut inside a byte.
    """
    if isinstance(checkpoint, Adapter):
        if max_shard_size is not None:
            raise PlanError("an adapter is one file", where=[checkpoint.path], help="leave --max-shard-size away")
        checkpoint = of_adapter(checkpoint)
    role = "base" if any(i.role == "base" for i in checkpoint.inputs) else "adapter"
    _check_accounts(checkpoint)
    _check_adapters(checkpoint)
    _check_metadata(checkpoint, drop_metadata)
    _check_packed(checkpoint)
    scratch: list[Tensor] = []
    tensors = {name: _settled(tensor, scratch) for name, tensor in checkpoint.tensors.items()}
    layout = assign(checkpoint, max_shard_size, balanced=balanced)
    if not layout:
        raise PlanError("no tensor is left to write", where=[checkpoint.path])
    shards = _shards(checkpoint, tensors, layout, drop_metadata, verbatim=max_shard_size is None and not drop_metadata)
    if checkpoint.before:
        shards = _recorded(shards, checkpoint, scratch)
    options = {"max_shard_size": max_shard_size, "balanced": balanced, "drop_metadata": list(drop_metadata)}
    files = dict(checkpoint.files)
    if checkpoint.before:
        files[UNDO] = base_record(checkpoint.before, checkpoint, [s.name for s in shards])
    if checkpoint.headers and max_shard_size is None:
        pass  # the index is among the files, where there was one
    elif len(shards) > 1:
        files[checkpoint.index_name] = encode_index(_index_metadata(checkpoint), layout)
    _check_paths(shards, files)
    spare = _shard(SCRATCH, {str(i): t for i, t in enumerate(scratch)}, None, in_order=True) if scratch else None
    identity = _identity(shards, spare, files, options, checkpoint.inputs, checkpoint.history)
    written = {s.name: s.nbytes for s in shards} | {p: len(f) if isinstance(f, bytes) else f.size for p, f in files.items()}
    manifest = Manifest(
        __version__, identity, checkpoint.history, tuple(_described(i) for i in checkpoint.inputs), options, dict(sorted(written.items()))
    )
    files[MANIFEST] = encode_manifest(manifest)
    opened = {name for i in checkpoint.inputs if i.role == role for name in i.tensors}
    return Plan(
        identity,
        shards,
        spare,
        files,
        checkpoint.inputs,
        options,
        checkpoint.history,
        dropped=tuple(sorted(checkpoint.dropped, key=natural)),
        replaced=tuple(sorted(checkpoint.replaced, key=natural)),
        added=tuple(n for n in layout if n not in opened),
        notes=checkpoint.notes,
    )


def steps(tensor: Tensor, to: int, kept: Kept | None = None) -> Iterator[Copy | Fill]:
    """What writes `tensor` from byte `to` on: kernel copies where all runs are long, one evaluation otherwise.

    Zeros take no step: a new file is zero. What is `kept` along has to pass through our hands.
    """
    if kept:
        if tensor.nbytes:
            yield Fill(tensor, 0, tensor.size, to, kept)
        return
    if isinstance(tensor, Stored):
        if tensor.nbytes:
            yield Copy(tensor.file, tensor.offset, to, tensor.nbytes)
        return
    if isinstance(tensor, Zeros):
        return
    pieces = [] if is_computed(tensor) or isinstance(tensor, Restored) else [to_bytes(p) for p in lower(tensor)]
    remote = any(leaf.file.remote for leaf in stored(tensor))
    if not pieces or min(p.run for p in pieces) < (FETCH_RUN if remote else COPY_RUN):
        if tensor.nbytes:
            yield Fill(tensor, 0, tensor.size, to)
        return
    copies = [
        Copy(p.leaf.file, p.leaf.offset + at, to + there, p.run) for p in pieces if isinstance(p.leaf, Stored) for at, there in p.runs()
    ]
    yield from sorted(copies, key=lambda c: c.to)


def _settled(tensor: Tensor, scratch: list[Tensor]) -> Tensor:
    """The tensor with all that is not row-local read from the scratch file, which `scratch` becomes, in that order."""
    while (inner := scratch_of(tensor)) is not None:
        if inner not in scratch:
            scratch.append(inner)
        at = sum(t.nbytes for t in scratch[: scratch.index(inner)])
        tensor = substitute(tensor, inner, Stored(inner.dtype, inner.shape, File(SCRATCH, 0, 0), at))
    return tensor


def _shards(
    checkpoint: Checkpoint, tensors: Mapping[str, Tensor], layout: Mapping[str, str], drop: Sequence[str], *, verbatim: bool
) -> tuple[ShardPlan, ...]:
    members: dict[str, list[str]] = {}
    for name, shard in layout.items():
        members.setdefault(shard, []).append(name)
    if verbatim and checkpoint.headers:
        return tuple(_verbatim(shard, checkpoint.headers[shard], tensors) for shard in sorted(members, key=natural))
    return tuple(
        _shard(shard, {n: tensors[n] for n in members[shard]}, _metadata(checkpoint, members[shard], shard, drop))
        for shard in sorted(members, key=natural)
    )


def _shard(name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None, *, in_order: bool = False) -> ShardPlan:
    shapes: dict[str, tuple[Dtype, Shape]] = {n: (t.dtype, t.shape) for n, t in tensors.items()}
    header = b"" if in_order else encode_header(shapes, metadata)
    slots, at = [], len(header)
    for tensor_name in shapes if in_order else in_file_order(shapes):
        slots.append(Slot(tensor_name, tensors[tensor_name], at))
        at += tensors[tensor_name].nbytes
    return ShardPlan(name, header, tuple(slots), at)


def _verbatim(name: str, raw: bytes, tensors: Mapping[str, Tensor]) -> ShardPlan:
    """A shard under a header that is given, byte for byte."""
    header = header_alone(raw, name)
    slots = tuple(Slot(n, tensors[n], header.data + entry.start) for n, entry in header.entries.items())
    return ShardPlan(name, raw, slots, header.end)


def _recorded(shards: Sequence[ShardPlan], checkpoint: Checkpoint, scratch: list[Tensor]) -> tuple[ShardPlan, ...]:
    """The shards with a record of the base that the checkpoint was before: each of its tensors in the shard that holds its name."""
    assert checkpoint.before
    base, made = checkpoint.before.tensors, []
    lost = {name: tensor for name, tensor in base.items() if name not in checkpoint.tensors}
    for shard in shards:
        recipes, lone, slots = Recipes(shard.name, lambda tensor: _settled(tensor, scratch)), list[Kept](), list[Slot]()
        for slot in shard.slots:
            original = base.get(slot.name)
            if original is None:
                slots.append(slot)
                continue
            after = Stored(slot.tensor.dtype, slot.tensor.shape, File(written(shard.name), 0, 0), slot.to)
            kept = recipes.keep(slot.name, original, checkpoint.tensors[slot.name], after)
            alike = original.size == slot.tensor.size
            lone += [] if alike else [kept]
            slots.append(replace(slot, kept=kept if alike else None))
        lone += [recipes.keep(name, original, None, None) for name, original in lost.items()]
        lost = {}
        made.append(replace(shard, slots=tuple(slots), sidecar=recipes.sidecar(), lone=tuple(lone)))
    return tuple(made)


def written(shard: str) -> str:
    """The path under which a plan names a shard of its own output, as it is written."""
    return f"written:{shard}"


def _metadata(checkpoint: Checkpoint, names: Sequence[str], shard: str, drop: Sequence[str]) -> dict[str, str]:
    """`__metadata__` of the shards that `names` came from, joined; `{"format": "pt"}` where there was none."""
    joined: dict[str, str] = {}
    found = False
    for source in dict.fromkeys(checkpoint.weight_map[n] for n in names):
        metadata = checkpoint.metadata.get(source)
        found |= metadata is not None
        for key, value in (metadata or {}).items():
            if key not in drop and joined.setdefault(key, value) != value:
                raise PlanError(
                    f"shards that are to be joined disagree on the metadata `{key}`",
                    where=[shard, f"{joined[key]!r} against {value!r} in {source}"],
                    help=f"leave it out with --drop-metadata {key}",
                )
    return joined if found else {"format": "pt"}


def _index_metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """The source index's metadata with `total_size` anew, and `total_parameters` adjusted where it was there."""
    metadata = dict(checkpoint.index_metadata)
    metadata["total_size"] = sum(t.nbytes for t in checkpoint.tensors.values())
    before = metadata.get("total_parameters")
    if isinstance(before, int):
        opened = sum(t.size for i in checkpoint.inputs if i.role == "base" for t in i.tensors.values())
        metadata["total_parameters"] = before + sum(t.size for t in checkpoint.tensors.values()) - opened
    return metadata


def _check_accounts(checkpoint: Checkpoint) -> None:
    """Every element that was opened reaches an output, or its tensor was dropped by name.

    Of a tensor that outputs share among them, each element must come as often as every other: `_mark` tells.
    """
    whole: Counter[tuple[str, int, Shape]] = Counter()  # how often a tensor is used in one piece
    parts: dict[tuple[str, int, Shape], tuple[int, int]] = {}  # elements used in pieces, and their mark

    def count(tensor: Tensor) -> None:
        if isinstance(tensor, Stored):
            whole[_key(tensor)] += 1
            return
        whole.update(_key(leaf) for leaf in stored(tensor) if not leaf.size)  # lowering leaves nothing of them
        for piece in lower(tensor):
            match piece.leaf:
                case Stored() as leaf:
                    used, mark = parts.get(_key(leaf), (0, 0))
                    parts[_key(leaf)] = used + piece.size, (mark + _mark(piece)) % _PRIME
                case Sum() as leaf:
                    for child in (leaf.base, *(f for d in leaf.deltas for f in d.factors), *([leaf.gain.magnitude] if leaf.gain else [])):
                        count(child)
                case Before() | Restored() as leaf:
                    for child in children(leaf):
                        count(child)

    def arrives(tensor: Stored, copies: int) -> bool:
        if whole[_key(tensor)] >= copies:
            return True
        if _key(tensor) not in parts:
            return False
        used, mark = parts[_key(tensor)]
        times, rest = divmod(used, tensor.size)
        return not rest and mark == times * _mark(lower(tensor)[0]) % _PRIME

    for tensor in checkpoint.tensors.values():
        count(tensor)
    excused = {_key(leaf) for tensor in (*checkpoint.dropped.values(), *checkpoint.replaced.values()) for leaf in stored(tensor)}
    for source in checkpoint.inputs:
        copies = Counter(map(_key, source.tensors.values()))  # empty tensors may lie at one place
        lost = [n for n, t in source.tensors.items() if _key(t) not in excused and not arrives(t, copies[_key(t)])]
        if lost:
            cut = {n for n in lost if _key(source.tensors[n]) in parts}
            raise PlanError(
                f"{len(lost)} tensors of the {source.role} reach no output, or not in full",
                where=[source.path, *listed([f"{n} (in part)" if n in cut else n for n in sorted(lost, key=natural)])],
                help="a surgery lost them; drop them by name if that is meant: surgery drop --pattern REGEX",
            )


def _check_adapters(checkpoint: Checkpoint) -> None:
    """The one scan of values at plan time: adapters are small, and one NaN in B makes a whole row of the base NaN."""
    work = Workspace(DEFAULT_MEMORY)
    try:
        for source in checkpoint.inputs:
            floats = {n: t for n, t in source.tensors.items() if t.dtype in ARITHMETIC} if source.role == "adapter" else {}
            if bad := [n for n, t in floats.items() if nonfinite(t, work)]:
                raise AdapterError(
                    f"NaN or infinity in {len(bad)} adapter tensors",
                    where=[source.path, *listed(sorted(bad, key=natural))],
                    help="the training diverged; merge an earlier state of the adapter",
                )
    finally:
        work.close()


def _key(leaf: Stored) -> tuple[str, int, Shape]:
    return leaf.file.path, leaf.offset, leaf.shape


def _check_metadata(checkpoint: Checkpoint, drop: Sequence[str]) -> None:
    known = sorted({key for metadata in checkpoint.metadata.values() for key in metadata or {}})
    unknown = [key for key in drop if key not in known]
    if unknown:
        raise NothingMatched(
            f"no shard has the metadata {', '.join(unknown)}", where=[checkpoint.path], help=f"they have {', '.join(known) or 'none'}"
        )


def _check_packed(checkpoint: Checkpoint) -> None:
    for name, tensor in checkpoint.tensors.items():
        if tensor.dtype.bits % 8 and not isinstance(tensor, Stored):
            try:
                for piece in lower(tensor):
                    to_bytes(piece)
            except LayoutError as error:
                raise LayoutError(error.what, where=[name], help=error.help) from error


def _mark(piece: Piece) -> int:
    """The sum of `_POINT` to the power of each of the leaf's elements in the piece, modulo a prime.

    Like a checksum of a set: equal for pieces of the same elements, in whatever order and however cut.
    """
    mark = pow(_POINT, piece.at, _PRIME)
    for dim in piece.dims:
        step = pow(_POINT, dim.at, _PRIME)
        mark = mark * (pow(step, dim.count, _PRIME) - 1) * pow(step - 1, -1, _PRIME) % _PRIME
    return mark


def _check_paths(shards: Sequence[ShardPlan], files: Mapping[str, File | bytes]) -> None:
    both = [s.name for s in shards if s.name in files]
    if both:
        raise PlanError("a shard and a carried file would have the same path", where=both, help="rename the file in the source folder")


def _described(source: Input) -> dict[str, Any]:
    """An input as the manifest names it: by digests, without the machine's paths; one on the Hub by its name and commit there."""
    remote = has_scheme(source.path)
    files = {f.path.rsplit("/", 1)[-1]: {"size": f.size, "git" if len(f.digest) == 40 else "sha256": f.digest} for f in source.files}
    what = "sha256 of the whole file" if source.role == "adapter" or remote else "sha256 of the header"
    name = source.path.removeprefix(SCHEME) if remote else source.path.rstrip("/").rsplit("/", 1)[-1]
    return {"role": source.role, "name": name, "digest": what, "files": files}


def _identity(
    shards: Sequence[ShardPlan],
    scratch: ShardPlan | None,
    files: Mapping[str, File | bytes],
    options: Mapping[str, Any],
    inputs: Sequence[Input],
    history: Sequence[Mapping[str, Any]],
) -> str:
    """SHA-256 over all that the output's bytes depend on."""
    digest = hashlib.sha256(f"surgery {__version__}".encode())
    for source in inputs:
        for file in source.files:
            digest.update(f"{file.path}\0{file.size}\0{file.mtime_ns}\0{file.digest}\n".encode())
    digest.update(json.dumps([options, list(history)], sort_keys=True).encode())
    names: dict[int, str] = {}
    for shard in [*shards, *([scratch] if scratch else [])]:
        digest.update(shard.name.encode() + b"\0" + shard.header)
        for slot in shard.slots:
            digest.update(_recipe(slot.tensor, names).encode())
        if shard.sidecar:
            digest.update(shard.sidecar.recipe.encode())
    for path, carried in files.items():
        content = hashlib.sha256(carried).hexdigest() if isinstance(carried, bytes) else f"{carried.size} {carried.mtime_ns}"
        digest.update(f"{path}\0{content}\n".encode())
    if scratch or any(has_arithmetic(s.tensor) for shard in shards for s in shard.slots):
        digest.update(arithmetic_identity().encode())
    return digest.hexdigest()


def _recipe(tensor: Tensor, names: dict[int, str]) -> str:
    """A text that two tensors share only if they are made the same way."""
    if isinstance(tensor, Stored):
        file = names.setdefault(id(tensor.file), f"{tensor.file.path} {tensor.file.digest}")
        return f"{tensor.dtype}{tensor.shape}@{tensor.offset} {file}\n"
    return repr(tensor)
