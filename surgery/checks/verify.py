"""Verify: is this checkpoint what it says it is?

Questions, each answered from another source: do headers, index and files agree; does the manifest's list of files
hold; are all values finite (streamed); does the class that config.json names accept the files (on the meta device,
without loading them, through transformers' own loader); is it the base with these adapters merged (streamed,
`proof.py`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..adapters.consistency import contradictions, doubts
from ..checkpoint import UNDO, Checkpoint, open_any, open_checkpoint
from ..errors import HubError, NotSupported, SurgeryError, listed, series
from ..evaluation.arithmetic import TORCH_NAMES
from ..evaluation.evaluate import nonfinite, workspace_of
from ..evaluation.workspace import DEFAULT_MEMORY
from ..files.edited import edited
from ..files.folder import absolute, folder_at
from ..files.history import merged_in
from ..files.manifest import read_manifest
from ..files.peft import Adapter
from ..files.refs import has_scheme, is_ref, parse_ref
from ..lazy.dtypes import Kind
from ..lazy.tensor import Tensor
from ..models.fused.given import Given
from ..names import natural
from ..opened import takes_opened
from ..quantization.quantised import quantised
from ..surgeries.dequantize import schemes_of
from ..surgeries.merging.merge import merge
from ..surgeries.merging.own_lora import own_adapter, own_names
from ..surgeries.merging.quantised import way
from ..surgeries.rename import Rule
from ..surgeries.unmerge import unmerge
from .as_merged import as_merged, opened_as
from .check import Check, Verification
from .diff import OnTensor
from .judgement import Verdict
from .loadable import loadable
from .proof import Merging, Proof, prove
from .undo import unrestored


@takes_opened
def verify(
    path: str | os.PathLike[str],
    *,
    values: bool = False,
    check_class: bool = True,
    check_record: bool = True,
    check_all: bool = False,
    base: str | os.PathLike[str] | None = None,
    adapter: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    weights: Sequence[float] | None = None,
    names: Sequence[Rule] = (),
    scale: float = 1.0,
    only: str | None = None,
    except_: str | None = None,
    tied: str = "untie",
    dtype: str | None = None,
    add: str | None = None,
    architecture: str | None = None,
    base_as_trained: bool = False,
    given: Given | None = None,
    dequantize: bool = False,
    requantize: bool = False,
    lossy: bool = False,
    through: str | None = None,
    beside: Sequence[str | os.PathLike[str]] | None = None,
    format: str | None = None,
    alpha: float | None = None,
    enable_lora: Sequence[bool] | None = None,
    on_tensor: OnTensor | None = None,
) -> Verification:
    """Check the checkpoint or adapter at `path`; nothing is written. A broken header or index is an answer, not an
    error.

    `values` reads every tensor for NaN and infinity, in a stream, as it is done for an adapter anyway; `on_tensor` is
    called with each name, its bytes, and those of all. `check_class` asks the class in config.json, through
    transformers.

    An undo record is replayed, unless `check_record` is false: about a million elements of each tensor of the base
    are restored and held against their digest, with `check_all` or `values` all of them.

    With `base` and one or more of `adapter`, the merge is replayed, whoever made it, and every tensor judged:
    `proof.py` says how, and which differences are rounding. What else is told is as for `merge`; `beside`, `format`,
    `alpha` and `enable_lora` are as for `open_adapter`, whose errors are raised. What is not said is read from the
    manifest, where surgery made the merge. An adapter whose config and tensors contradict each other fails, and no
    merge is replayed.
    """
    adapters = [adapter] if isinstance(adapter, str | os.PathLike) else list(adapter)
    told = Merging(weights, tuple(names), scale, only, except_, tied, dtype, add, architecture, base_as_trained, given)
    way(dequantize=dequantize, requantize=requantize, lossy=lossy)
    told = replace(told, dequantize=dequantize, requantize=requantize, through=through)
    if (base is None) != (not adapters) or (base is None and told != Merging()):
        tip = "give both: --base and --adapter"
        raise SurgeryError("a merge is proved against its base and its adapters", where=[os.fspath(path)], help=tip)
    found = _found(path)
    if isinstance(found, Check):
        return Verification(_named(path), (found,))
    if isinstance(found, Adapter):
        _check_alone(found, base)
        return _verify_adapter(found, values, on_tensor)
    path = found.path if has_scheme(found.path) else _named(path)
    checks = [_structure(found), *_manifest(found), *_quantised(found)]
    checks += _record(found, replayed=check_record, every=check_all or values)
    checks += _own(found)
    checks += [_finite(found.tensors, found.weight_map, on_tensor)] if values else []
    checks += [loadable(found)] if check_class else []
    if base is None:
        return Verification(path, tuple(checks))
    said = {"format": format, "alpha": alpha, "enable_lora": enable_lora}
    opened = opened_as(found, adapters, beside, said)
    more, proof = _replayed(found, open_checkpoint(base), opened, told, on_tensor)
    return Verification(path, (*checks, *more), proof)


def _found(path: str | os.PathLike[str]) -> Checkpoint | Adapter | Check:
    """What is there, or why it cannot be opened, which is an answer; but the Hub's errors are raised."""
    try:
        return open_any(path)
    except HubError:
        raise
    except SurgeryError as error:
        return Check("structure", False, error.what, (*error.where, *([f"help: {error.help}"] if error.help else [])))


def _check_alone(adapter: Adapter, base: str | os.PathLike[str] | None) -> None:
    """Raise SurgeryError for an adapter that is to be held against a base."""
    if base is not None:
        tip = "the merge comes first: surgery verify MERGED --base BASE --adapter ADAPTER"
        raise SurgeryError("this is an adapter, not a merged checkpoint", where=[adapter.path], help=tip)


def _replayed(
    merged: Checkpoint,
    base: Checkpoint,
    adapters: Sequence[Adapter],
    told: Merging,
    on_tensor: OnTensor | None,
) -> tuple[list[Check], Proof | None]:
    """Whether it is the base with these adapters, merged as it was told, or else as the manifest tells.

    No merge of adapters that contradict themselves is replayed.
    """
    if any(check.ok is False for check in _quantised(merged)):
        return [Check("merge", None, "not replayed: the quantised weights contradict themselves")], None
    if wrong := [check for one in adapters if not (check := _consistent(one)).ok]:
        return [*wrong, Check("merge", None, "not replayed: the adapter contradicts itself")], None
    told, said = as_merged(merged, base, adapters) if told == Merging() else (told, [])
    proof = prove(merged, base, adapters, told, on_tensor=on_tensor)
    made = _merged(proof)
    if made.ok is False and (more := _more_were_merged(merged, adapters)):
        made = replace(made, where=(*made.where, more))
    return [*said, made], proof


def _more_were_merged(merged: Checkpoint, adapters: Sequence[Adapter]) -> str:
    """That the manifest names more adapters than are given, where it does."""
    named = [str(one.get("name")) for one in merged_in(merged.history)]
    if len(named) <= len(adapters):
        return ""
    said = f"the manifest names {len(named)} adapters, and the merge is held against {len(adapters)}"
    return f"{said}: {series(listed(named))}"


def _consistent(adapter: Adapter) -> Check:
    """Whether the adapter's config and its tensors are of one training, as far as they tell."""
    if wrong := contradictions(adapter):
        what = "adapter_config.json and the tensors contradict each other: one of them is not of this training"
        return Check("adapter", False, what, (adapter.path, *listed(wrong)))
    return Check("adapter", True, "adapter_config.json and the tensors agree")


def _merged(proof: Proof) -> Check:
    wrong = proof.wrong
    if wrong:
        said = f"{len(wrong)} tensors are not what the merge gives{_strangers(proof)}"
        return Check("merge", False, said, tuple(listed([str(one) for one in wrong])))
    exact, rounded, kept = (len(proof.of(v)) for v in (Verdict.EXACT, Verdict.ROUNDED, Verdict.KEPT))
    said = f"{exact} tensors merged exactly, {rounded} but for rounding; {kept} as in the base{_again(proof)}"
    return Check("merge", True, said)


def _again(proof: Proof) -> str:
    """What of the merge is in weights that were coded again, whoever did it."""
    if not (coded := proof.of(Verdict.RECODED)):
        return ""
    told = [(one.factor, one.name) for one in coded if one.factor is not None]
    least = f", of what was merged {min(told)[0]:.1%} survives at least ({min(told)[1]})" if told else ""
    return f"; {len(coded)} coded again{least}"


def _strangers(proof: Proof) -> str:
    """What it looks like where next to all tensors that the adapters touch are wrong."""
    if not proof.of_another:
        return ""
    if proof.of(Verdict.CHANGED) and not proof.of(Verdict.KEPT):
        return ": this looks like another base, since no tensor is as in the one given"
    return (
        ": this looks like the merge of another adapter, since next to none of what the adapter touches is as it"
        " makes it"
    )


def _named(path: str | os.PathLike[str]) -> str:
    """The path as it is shown: absolute, but for what is on the Hub."""
    text = os.fspath(path)
    if not os.path.exists(absolute(text)) and is_ref(text):
        return str(parse_ref(text))
    return text if has_scheme(text) else absolute(text)


def _verify_adapter(adapter: Adapter, values: bool, on_tensor: OnTensor | None) -> Verification:
    checks = [
        Check("structure", True, f"{len(adapter.tensors)} adapter tensors on {len(adapter.lora)} modules"),
        _consistent(adapter),
    ]
    checks += [Check("targets", None, f"without its base: {doubt}") for doubt in doubts(adapter)]
    if adapter.unread:
        what = (
            "weights lie beside the adapter, and a merge takes them by --with FILE only:"
            f" {', '.join(listed(adapter.unread))}"
        )
        checks.append(Check("beside", None, what))
    finite = _finite(adapter.tensors, {}, on_tensor)  # which a merge sees to as well
    checks += [finite] if values or not finite.ok else []
    return Verification(adapter.path, tuple(checks))


def _structure(checkpoint: Checkpoint) -> Check:
    shards = len(set(checkpoint.weight_map.values()))
    said = checkpoint.index_metadata.get("total_size")
    held = sum(t.nbytes for t in checkpoint.tensors.values())
    if isinstance(said, int | float) and said != held and not _counts_ties_twice(checkpoint, int(said), held):
        return Check("structure", False, f"the index says total_size {said}, the shards hold {held} bytes")
    return Check(
        "structure", True, f"{len(checkpoint.tensors)} tensors in {shards} shards: headers, index and files agree"
    )


def _quantised(checkpoint: Checkpoint) -> list[Check]:
    """Whether codes, what belongs to them and config.json agree; no check where nothing is quantised."""
    try:
        held = quantised(checkpoint)
    except NotSupported as error:
        return [Check("quantization", None, error.what, error.where)]
    except SurgeryError as error:
        return [Check("quantization", False, error.what, error.where)]
    if not held.weights:
        return []
    schemes = series(schemes_of(held, list(held.weights)))
    said = f"{len(held.weights)} weights are quantised ({schemes}): codes, companions and config.json agree"
    return [Check("quantization", True, said)]


def _own(checkpoint: Checkpoint) -> list[Check]:
    """Whether LoRA that the checkpoint holds itself would merge into it; no check where it holds none."""
    if not own_names(checkpoint):
        return []
    try:
        base, adapter = own_adapter(checkpoint)
        merge(base, adapter, again=True)
    except SurgeryError as error:
        return [Check("adapter", False, error.what, error.where)]
    count = f"{len(adapter.tensors)} tensors of its own LoRA, on {len(adapter.lora)} modules"
    return [Check("adapter", True, f"{count}, fit the base: surgery merge folds them in")]


def _counts_ties_twice(checkpoint: Checkpoint, said: int, held: int) -> bool:
    """Whether the difference is one stored tensor more or less, as writers that count tied tensors otherwise leave
    it.
    """
    return abs(said - held) in {t.nbytes for t in checkpoint.tensors.values()}


def _manifest(checkpoint: Checkpoint) -> list[Check]:
    folder = folder_at(checkpoint.path)
    manifest = read_manifest(folder) if folder else None
    if folder is None or manifest is None:
        return []
    wrong = [f"{name}: {what}" for name, what in edited(folder, manifest).items()]
    if wrong:
        return [Check("manifest", False, f"{len(wrong)} files are not as surgery wrote them", tuple(listed(wrong)))]
    return [Check("manifest", True, f"{len(manifest.files)} files are there, of the size that surgery wrote")]


def _record(checkpoint: Checkpoint, *, replayed: bool, every: bool) -> list[Check]:
    """Whether the undo record, where there is one, is whole and fits, and gives back what is `replayed`: a block of
    each tensor, or all.
    """
    folder = folder_at(checkpoint.path)
    if folder is None or not folder.has(UNDO):
        return []
    try:
        tensors = unmerge(checkpoint).tensors
        wrong = unrestored(tensors, every=every) if replayed else {}
    except SurgeryError as error:
        return [Check("undo record", False, error.what, error.where)]
    if not replayed:
        return [Check("undo record", None, f"{len(tensors)} tensors of the base have one; it was not replayed here")]
    if wrong:
        rows = [f"{name}: {error.what}" for name, error in wrong.items()]
        return [
            Check(
                "undo record",
                False,
                f"{len(wrong)} of {len(tensors)} tensors of the base cannot be restored",
                tuple(listed(rows)),
            )
        ]
    how = "every block was replayed" if every else "a block of each was replayed"
    return [Check("undo record", True, f"{len(tensors)} tensors of the base can be restored, {how}: surgery unmerge")]


def _finite(tensors: Mapping[str, Tensor], weight_map: Mapping[str, str], on_tensor: OnTensor | None) -> Check:
    """Every float tensor, window by window. Dtypes that torch cannot ask are counted, not passed over in silence."""
    bad, unasked, total = [], [], sum(tensor.nbytes for tensor in tensors.values())
    work = workspace_of(DEFAULT_MEMORY)
    try:
        for name in sorted(tensors, key=lambda n: (natural(weight_map.get(n, "")), natural(n))):
            tensor = tensors[name]
            if on_tensor:
                on_tensor(name, tensor.nbytes, total)
            if tensor.dtype.kind not in (Kind.FLOAT, Kind.COMPLEX):
                continue
            if tensor.dtype.name not in TORCH_NAMES:
                unasked.append(f"{name} ({tensor.dtype})")
                continue
            if count := nonfinite(tensor, work):
                bad.append(f"{weight_map.get(name, '')}: {name}: {count} of {tensor.size}".removeprefix(": "))
    finally:
        work.close()
    if bad:
        return Check("values", False, f"NaN or infinity in {len(bad)} tensors", tuple(listed(bad)))
    rest = f"; not checked: {', '.join(listed(unasked))}" if unasked else ""
    return Check("values", True, f"no NaN, no infinity{rest}")
