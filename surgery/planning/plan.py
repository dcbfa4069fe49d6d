"""A plan: what will be written where, decided and verified before the first byte.

`plan` is pure but for the disk's free space, which the executor checks. What it proves, or refuses:

    every tensor that was opened reaches an output in full, or was dropped by name     (conservation)
    every output is a file inside the folder, and no two share a path                    (names)
    shards that are joined agree on their `__metadata__`                                 (metadata)
    packed dtypes are cut at whole bytes                                                 (bytes)

A plan can be pickled, and split by output shard. Its `identity` changes with anything that its bytes depend on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ..arguments import in_both
from ..checkpoint import UNDO, Checkpoint, of_adapter
from ..errors import FormatError, PlanError
from ..evaluation.scratch import SCRATCH, encoded_in, scratch_of, scratch_of_factor
from ..files.index import encode_index
from ..files.manifest import MANIFEST, Manifest, encode_manifest
from ..files.peft import Adapter
from ..files.safetensors import encode_header, header_alone, in_file_order
from ..lazy.dtypes import Dtype
from ..lazy.tensor import File, Input, Shape, Stored, Tensor, has_arithmetic, is_computed, stored, substitute
from ..names import natural
from ..notebook import shown, table, told_of
from ..opened import takes_opened
from ..units import size
from ..version import __version__
from .conservation import check_conserved
from .digests import digests_of
from .finite import check_finite_adapters
from .identity import described, identity_of
from .metadata import check_metadata, joined_metadata, ties_in
from .outputs import check_paths
from .pipelines import indices_of, prefix_of
from .recipe import document_of
from .record import Kept, Recipes, base_record
from .sharding import assign
from .sharing import Shareable, aligned, is_made, parse_align, shareable
from .steps import ShardPlan, Slot
from .verbatim import with_true_headers
from .whole_bytes import check_packed


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
    recoded: frozenset[str] = frozenset()  # tensors of codes that are made again, of which the report says what is lost
    costs: Mapping[str, Any] = field(default_factory=dict)  # what another base than the adapters' costs
    survives: float = 0.0  # share of what is added to them, without which the run is refused

    def __repr__(self) -> str:
        return f"<Plan {self.identity[:16]}: {self.tensors} tensors in {len(self.shards)} shards, {self.nbytes} bytes>"

    def _repr_html_(self) -> str:
        copied = self.nbytes - self.computed_bytes
        facts = {
            "tensors": f"{self.tensors:,}, {len(self.computed):,} of them computed",
            "bytes": f"{size(copied)} copied, {size(self.computed_bytes)} computed",
            "dropped": len(self.dropped),
            "replaced": len(self.replaced),
            "added": len(self.added),
            "disk needed": size(self.needed),
        }
        rows = ((shard.name, len(shard.slots), size(shard.nbytes)) for shard in self.shards)
        shards = table(f"{len(self.shards):,} shards", ("shard", "tensors", "size"), rows, len(self.shards))
        return shown(f"Plan {self.identity[:16]}", {**facts, **told_of(self)}, shards)

    @cached_property
    def computed(self) -> tuple[str, ...]:
        """Names of the tensors that arithmetic makes; all others are copied byte for byte."""
        slots = [slot for shard in self.shards for slot in shard.slots]
        return tuple(
            s.name for s in slots if is_computed(s.tensor) or any(is_made(leaf.file) for leaf in stored(s.tensor))
        )

    @cached_property
    def arithmetic(self) -> bool:
        """Whether torch is needed."""
        return self.scratch is not None or any(
            has_arithmetic(slot.tensor) for shard in self.shards for slot in shard.slots
        )

    @property
    def dtypes(self) -> dict[str, Dtype]:
        """The dtype of each tensor written."""
        return {slot.name: slot.tensor.dtype for shard in self.shards for slot in shard.slots}

    def users(self, scratch: Slot) -> list[str]:
        """The tensors into which a scratch tensor goes."""
        slots = [slot for shard in self.shards for slot in shard.slots]
        return [
            s.name
            for s in slots
            if any((leaf.file.path, leaf.offset) == (SCRATCH, scratch.to) for leaf in stored(s.tensor))
        ]

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

    @cached_property
    def shareable(self) -> Shareable:
        """What the shards can share with the inputs, where the file system shares blocks of 4096 bytes."""
        return shareable(self.shards)

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


@takes_opened
def plan(
    checkpoint: Checkpoint | Adapter,
    max_shard_size: int | str | None = None,
    *,
    balanced: bool = False,
    drop_metadata: Sequence[str] = (),
    align: int | str | None = None,
) -> Plan:
    """The plan that writes `checkpoint`, or an adapter. Reads no tensor but those of adapters, for NaN.

    Raises PlanError where something would be lost or collide, AdapterError for an adapter with NaN in it.

    Without `max_shard_size` (bytes, or text such as "5GB") every tensor stays in its shard; `drop_metadata` names
    the `__metadata__` keys to leave out, such as those on which joined shards disagree. Raises NothingMatched for a
    key that no shard has, LayoutError for a packed tensor that is cut inside a byte.

    `align` (bytes, a power of two, or "auto" for 4096) chooses by spaces at the end of a header where the data begins:
    most bytes that are copied then lie at the offsets within a block that they have in their inputs, so that a file
    system that shares blocks can share them. Raises SurgeryError for any other number.
    """
    if isinstance(checkpoint, Adapter):
        if max_shard_size is not None:
            raise PlanError("an adapter is one file", where=[checkpoint.path], help="leave --max-shard-size away")
        checkpoint = of_adapter(checkpoint)
    align = parse_align(align)
    checkpoint = with_true_headers(checkpoint)
    _check(checkpoint, drop_metadata)
    scratch: list[Tensor] = []
    tensors = {name: _settled(tensor, scratch) for name, tensor in checkpoint.tensors.items()}
    layout = assign(checkpoint, max_shard_size, balanced=balanced)
    if not layout:
        raise PlanError("no tensor is left to write", where=[checkpoint.path])
    as_is = max_shard_size is None and not drop_metadata
    shards = _shards(checkpoint, tensors, layout, drop_metadata, verbatim=as_is, align=align)
    if checkpoint.before:
        shards = _recorded(shards, checkpoint, scratch)
    spare = _shard(SCRATCH, {str(i): t for i, t in enumerate(scratch)}, None, in_order=True) if scratch else None
    files = _files(checkpoint, shards, layout, keeps_layout=max_shard_size is None)
    check_paths(shards, files)
    options = {"max_shard_size": max_shard_size, "balanced": balanced, "drop_metadata": list(drop_metadata)}
    options |= {"align": align} if align else {}
    identity = identity_of(shards, spare, files, options, checkpoint.inputs, checkpoint.history)
    return Plan(
        identity,
        shards,
        spare,
        {**files, MANIFEST: _manifest(checkpoint, identity, shards, files, options)},
        checkpoint.inputs,
        options,
        checkpoint.history,
        dropped=tuple(sorted(checkpoint.dropped, key=natural)),
        replaced=tuple(sorted(checkpoint.replaced, key=natural)),
        added=_added(checkpoint, layout),
        notes=tuple(map(in_both, checkpoint.notes)),
        recoded=frozenset(name for name, tensor in checkpoint.tensors.items() if next(encoded_in(tensor), None)),
        costs=checkpoint.costs,
        survives=checkpoint.survives,
    )


def _check(checkpoint: Checkpoint, drop_metadata: Sequence[str]) -> None:
    """What must hold of a checkpoint before anything is laid out."""
    check_conserved(checkpoint)
    check_finite_adapters(checkpoint)
    check_metadata(checkpoint, drop_metadata)
    check_packed(checkpoint)


def _files(
    checkpoint: Checkpoint, shards: Sequence[ShardPlan], layout: Mapping[str, str], *, keeps_layout: bool
) -> dict[str, File | bytes]:
    """What is written beside the shards: carried files, the record of a base, and the index of several shards."""
    stale = set[str]()
    if checkpoint.headers and not keeps_layout:  # the index that a base had is of its own shards
        stale = {checkpoint.index_name, *(f"{at}/{part.index_name}" for at, part in checkpoint.parts.items())}
    files = {path: file for path, file in checkpoint.files.items() if path not in stale}
    if checkpoint.before:
        files[UNDO] = base_record(checkpoint.before, checkpoint, [s.name for s in shards])
    as_before = bool(checkpoint.headers) and keeps_layout  # then the index is among the files, where there was one
    if checkpoint.parts:
        return indices_of(checkpoint, layout, keeps_layout=keeps_layout) | files
    if len(shards) > 1 and not as_before:
        files[checkpoint.index_name] = encode_index(_index_metadata(checkpoint), layout)
    return files


def _manifest(
    checkpoint: Checkpoint,
    identity: str,
    shards: Sequence[ShardPlan],
    files: Mapping[str, File | bytes],
    options: Mapping[str, Any],
) -> bytes:
    """The manifest of an output of these shards and files."""
    sizes = {path: len(file) if isinstance(file, bytes) else file.size for path, file in files.items()}
    sizes |= {shard.name: shard.nbytes for shard in shards}
    inputs = tuple(described(source) for source in checkpoint.inputs)
    recipe = document_of(checkpoint.recipe, options)
    files_of = dict(sorted(sizes.items()))
    made = Manifest(__version__, identity, checkpoint.history, inputs, options, files_of, digests_of(files), recipe)
    return encode_manifest(made)


def _added(checkpoint: Checkpoint, layout: Iterable[str]) -> tuple[str, ...]:
    """The tensors written that the base, or the adapter where it is all, did not have."""
    role = "base" if any(source.role == "base" for source in checkpoint.inputs) else "adapter"
    opened = [source.names or source.tensors for source in checkpoint.inputs if source.role == role]
    return tuple(name for name in layout if not any(name in names for names in opened))


def _settled(tensor: Tensor, scratch: list[Tensor], left: Callable[[Tensor], Tensor | None] = scratch_of) -> Tensor:
    """The tensor with all that is `left` to compute in it read from the scratch file, which `scratch` becomes, in
    that order.
    """
    while (inner := left(tensor)) is not None:
        if inner not in scratch:
            scratch.append(inner)
        at = sum(t.nbytes for t in scratch[: scratch.index(inner)])
        tensor = substitute(tensor, inner, Stored(inner.dtype, inner.shape, File(SCRATCH, 0, 0), at))
    return tensor


def _shards(
    checkpoint: Checkpoint,
    tensors: Mapping[str, Tensor],
    layout: Mapping[str, str],
    drop: Sequence[str],
    *,
    verbatim: bool,
    align: int | None,
) -> tuple[ShardPlan, ...]:
    members: dict[str, list[str]] = {}
    for name, shard in layout.items():
        members.setdefault(shard, []).append(name)
    made, ties = [], ties_in(checkpoint)
    for shard in sorted(members, key=natural):
        at, held = prefix_of(checkpoint, shard), {n: tensors[n] for n in members[shard]}
        if verbatim and shard in checkpoint.headers:
            made.append(_verbatim(shard, checkpoint.headers[shard], held, at))
        else:
            one = _shard(shard, held, joined_metadata(checkpoint, members[shard], shard, drop, ties), at=at)
            made.append(aligned(one, align))
    return tuple(made)


def _shard(
    name: str,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None,
    *,
    in_order: bool = False,
    at: str = "",
) -> ShardPlan:
    """A shard of these tensors, each under its name without what it begins `at`."""
    shapes: dict[str, tuple[Dtype, Shape]] = {n.removeprefix(at): (t.dtype, t.shape) for n, t in tensors.items()}
    try:
        header = b"" if in_order else encode_header(shapes, metadata)
    except FormatError as error:
        raise PlanError(error.what, where=[name], help=error.help) from error
    slots, to = [], len(header)
    for tensor_name in shapes if in_order else in_file_order(shapes):
        full = f"{at}{tensor_name}" if at else tensor_name
        tensor = tensors[full]
        slots.append(Slot(full, tensor, to))
        to += tensor.nbytes
    return ShardPlan(name, header, tuple(slots), to, at=at)


def _verbatim(name: str, raw: bytes, tensors: Mapping[str, Tensor], at: str = "") -> ShardPlan:
    """A shard under a header that is given, byte for byte."""
    header = header_alone(raw, name)
    entries = header.entries.items()
    slots = tuple(Slot(f"{at}{n}", tensors[f"{at}{n}"], header.data + entry.start) for n, entry in entries)
    return ShardPlan(name, raw, slots, header.end, at=at)


def _recorded(shards: Sequence[ShardPlan], checkpoint: Checkpoint, scratch: list[Tensor]) -> tuple[ShardPlan, ...]:
    """The shards with a record of the base that the checkpoint was before: each of its tensors in the shard that
    holds its name.
    """
    assert checkpoint.before
    base, made = checkpoint.before.tensors, []
    lost = {name: tensor for name, tensor in base.items() if name not in checkpoint.tensors}
    for shard in shards:
        recipes, lone, slots = (
            Recipes(shard.name, lambda f: _settled(f, scratch, scratch_of_factor)),
            list[Kept](),
            list[Slot](),
        )
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


def _index_metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """The source index's metadata with `total_size` anew, and `total_parameters` adjusted where it was there."""
    metadata = dict(checkpoint.index_metadata)
    metadata["total_size"] = sum(t.nbytes for t in checkpoint.tensors.values())
    before = metadata.get("total_parameters")
    if isinstance(before, int):
        opened = sum(t.size for i in checkpoint.inputs if i.role == "base" for t in i.tensors.values())
        metadata["total_parameters"] = before + sum(t.size for t in checkpoint.tensors.values()) - opened
    return metadata
