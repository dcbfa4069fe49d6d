"""Verify: is this checkpoint what it says it is?

Questions, each answered from another source: do headers, index and files agree; does the manifest's list of files
hold; are all values finite (streamed); does the class that config.json names accept the files (on the meta device,
without loading them, through transformers' own loader); is it the base with these adapters merged (streamed,
`proof.py`).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from ..adapters.consistency import contradictions, doubts
from ..checkpoint import UNDO, Checkpoint, open_any, open_checkpoint
from ..errors import HubError, SurgeryError, VerificationFailed, listed, series
from ..evaluation.arithmetic import TORCH_NAMES
from ..evaluation.evaluate import nonfinite, workspace_of
from ..evaluation.workspace import DEFAULT_MEMORY
from ..files.edited import edited
from ..files.folder import absolute, folder_at
from ..files.index import encode_index
from ..files.manifest import read_manifest
from ..files.peft import Adapter, open_adapters
from ..files.refs import has_scheme, is_ref, parse_ref
from ..files.safetensors import encode_header
from ..lazy.dtypes import Dtype, Kind
from ..lazy.tensor import Shape, Tensor
from ..models.fused.given import Given, given_as
from ..names import natural
from ..opened import takes_opened
from ..surgeries.cast import NAMES
from ..surgeries.merging.embedded import own_adapter, own_names
from ..surgeries.merging.merge import merge
from ..surgeries.rename import Rule
from ..surgeries.unmerge import unmerge
from .diff import OnTensor
from .proof import Merging, Proof, Verdict, prove
from .undo import unrestored


@dataclass(frozen=True, slots=True)
class Check:
    """One answer: `ok` is None where the question could not be asked, and `detail` says why."""

    name: str
    ok: bool | None
    detail: str
    where: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        raise TypeError("a check may be unanswered: ask for `ok`, which is True, False or None")


@dataclass(frozen=True, slots=True)
class Verification:
    """The answers for the checkpoint or adapter at `path`; `proof` where it was held against a base and adapters."""

    path: str
    checks: tuple[Check, ...]
    proof: Proof | None = None

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(check.ok is not False for check in self.checks)

    def __bool__(self) -> bool:
        return self.ok

    def require(self) -> None:
        """Raise VerificationFailed, with all that failed, unless all is well."""
        failed = [check for check in self.checks if check.ok is False]
        if failed:
            rows = [row for check in failed for row in (f"{check.name}: {check.detail}", *check.where)]
            raise VerificationFailed(f"{len(failed)} of {len(self.checks)} checks failed", where=[self.path, *rows])


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
    beside: Sequence[str | os.PathLike[str]] | None = None,
    on_tensor: OnTensor | None = None,
) -> Verification:
    """Check the checkpoint or adapter at `path`; nothing is written. A broken header or index is an answer, not an
    error.

    `values` reads every tensor for NaN and infinity, in a stream; `on_tensor` is called with each name, its bytes,
    and those of all. `check_class` asks the class in config.json, through transformers.

    An undo record is replayed, unless `check_record` is false: about a million elements of each tensor of the base
    are restored and held against their digest, with `check_all` or `values` all of them.

    With `base` and one or more of `adapter`, the merge is replayed, whoever made it, and every tensor judged:
    `proof.py` says how, and which differences are rounding. What else is told is as for `merge`, `beside` is as for
    `open_adapter`; their errors are raised. Where none is given and surgery made the merge, they are read from its
    manifest. An adapter whose config and tensors contradict each other fails, and no merge is replayed.
    """
    adapters = [adapter] if isinstance(adapter, str | os.PathLike) else list(adapter)
    told = Merging(weights, tuple(names), scale, only, except_, tied, dtype, add, architecture, base_as_trained, given)
    if (base is None) != (not adapters) or (base is None and told != Merging()):
        tip = "give both: --base and --adapter"
        raise SurgeryError("a merge is proved against its base and its adapters", where=[os.fspath(path)], help=tip)
    try:
        found = open_any(path)
    except HubError:
        raise
    except SurgeryError as error:
        return Verification(_named(path), (_unopened(error),))
    if isinstance(found, Adapter):
        if base is not None:
            tip = "the merge comes first: surgery verify MERGED --base BASE --adapter ADAPTER"
            raise SurgeryError("this is an adapter, not a merged checkpoint", where=[found.path], help=tip)
        return _verify_adapter(found, values, on_tensor)
    path, checkpoint = (found.path if has_scheme(found.path) else _named(path)), found
    record = _record(checkpoint, replayed=check_record, every=check_all or values)
    checks = [
        _structure(checkpoint),
        *_manifest(checkpoint),
        *record,
        *_own(checkpoint),
    ]
    if values:
        checks.append(_finite(checkpoint.tensors, checkpoint.weight_map, on_tensor))
    if check_class:
        checks.append(_accepted(checkpoint))
    if base is None:
        return Verification(path, tuple(checks))
    opened, origin = open_adapters(adapters, beside), open_checkpoint(base)
    if wrong := [check for one in opened if not (check := _consistent(one)).ok]:
        return Verification(
            path, (*checks, *wrong, Check("merge", None, "not replayed: the adapter contradicts itself"))
        )
    if told == Merging():
        told, said = _recorded(checkpoint, origin, opened)
        checks += said
    proof = prove(checkpoint, origin, opened, told, on_tensor=on_tensor)
    return Verification(path, (*checks, _merged(proof)), proof)


def _recorded(merged: Checkpoint, base: Checkpoint, adapters: Sequence[Adapter]) -> tuple[Merging, list[Check]]:
    """How the manifest says that these adapters were merged since the base, and a check that tells, unless it says
    nothing of it.
    """
    past = len(base.history) if merged.history[: len(base.history)] == base.history else 0
    steps = [step for step in merged.history[past:] if step.get("surgery") == "merge"]
    if not steps:
        return Merging(), []
    weights = {
        str(one.get("digest")): float(one.get("weight", 1)) for step in steps for one in step.get("adapters", ())
    }
    ways = {
        (
            step.get("only"),
            step.get("except"),
            step.get("add"),
            step.get("architecture"),
            tuple((str(a), str(b)) for a, b in step.get("map", ())),
            json.dumps(step.get("given")),
        )
        for step in steps
    }
    if unknown := [one.path for one in adapters if one.digest not in weights]:
        what = (
            f"the manifest tells of merges of other adapters than {', '.join(listed(unknown))}: weights are taken to"
            " be 1"
        )
        return Merging(), [Check("options", None, what, tuple(unknown))]
    if len(ways) > 1:
        what = (
            "the manifest tells of merges that were restricted in different ways: verify each against the one before it"
        )
        return Merging(), [Check("options", None, what)]
    only, except_, add, architecture, names, lying = ways.pop()
    casts = {step.get("dtype") for step in merged.history[past:] if step.get("surgery") == "cast"}
    dtype = next((name for name, dtype in NAMES.items() if str(dtype) in casts), None)
    found = Merging(
        [weights[one.digest] for one in adapters],
        names,
        only=only,
        except_=except_,
        dtype=dtype,
        add=add,
        architecture=architecture,
    )
    found = replace(found, base_as_trained=any(step.get("base_as_trained") for step in steps))
    found = replace(found, given=given_as(json.loads(lying)) if lying != "null" else None)
    said = {
        "weights": (
            ", ".join(f"{weight:g}" for weight in found.weights or ()) if set(found.weights or ()) != {1} else ""
        ),
        "only": only,
        "except": except_,
        "add": add,
        "architecture": architecture,
        "map": ", ".join(f"{pattern}={replacement}" for pattern, replacement in names),
        "dtype": found.dtype,
        "given": lying if found.given else "",
    }
    rows = "; ".join(f"{key} {value}" for key, value in said.items() if value)
    return found, [Check("options", True, f"as the manifest has them: {rows}")] if rows else []


def _unopened(error: SurgeryError) -> Check:
    return Check("structure", False, error.what, (*error.where, *([f"help: {error.help}"] if error.help else [])))


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
    return Check("merge", True, f"{exact} tensors merged exactly, {rounded} but for rounding; {kept} as in the base")


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
    if values:
        checks.append(_finite(adapter.tensors, {}, on_tensor))
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


def _accepted(checkpoint: Checkpoint) -> Check:
    """Ask the model's own class, through transformers' own loader, with no weight loaded and no remote code."""
    names = checkpoint.config.get("architectures") or []
    if not names:
        return Check("class", None, "config.json names no architecture")
    if find_spec("accelerate") is None:
        return Check("class", None, "transformers' meta device needs accelerate: pip install accelerate")
    import transformers

    kind: Any = getattr(transformers, str(names[0]), None)
    if kind is None or not hasattr(kind, "from_pretrained"):
        return Check(
            "class", None, f"transformers {transformers.__version__} has no class {names[0]}; remote code is never run"
        )
    logging: Any = transformers.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with _as_files(checkpoint) as folder:
            _, info = kind.from_pretrained(folder, device_map="meta", output_loading_info=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
        return Check("class", False, f"{names[0]} cannot load it: {str(error).splitlines()[0]}")
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
    own = own_names(checkpoint)
    rows = [f"{what.replace('_keys', '')}: {series(listed(found))}" for what, found in _complaints(info, own).items()]
    if rows:
        return Check("class", False, f"{names[0]} would not load it whole", tuple(rows))
    rest = f"; {len(own)} tensors of LoRA beside them are PEFT's to load" if own else ""
    return Check("class", True, f"{names[0]} accepts every tensor: none missing, unexpected or of another shape{rest}")


@contextmanager
def _as_files(checkpoint: Checkpoint) -> Iterator[str]:
    """A local folder with the checkpoint's config and headers: its own, or, of one on the Hub, a temporary one of
    sparse files.
    """
    if not has_scheme(checkpoint.path):
        yield checkpoint.path
        return
    with tempfile.TemporaryDirectory() as folder:
        members: dict[str, dict[str, tuple[Dtype, Shape]]] = {}
        for name, tensor in checkpoint.tensors.items():
            members.setdefault(checkpoint.weight_map[name], {})[name] = (tensor.dtype, tensor.shape)
        for shard, tensors in members.items():
            header = encode_header(tensors, {"format": "pt"})
            os.makedirs(os.path.dirname(path := os.path.join(folder, shard)), exist_ok=True)
            with open(path, "wb") as stream:
                stream.write(header)
                stream.truncate(len(header) + sum(checkpoint.tensors[name].nbytes for name in tensors))
        files = {"config.json": json.dumps(checkpoint.config).encode()}
        if members.keys() != {checkpoint.index_name.replace(".index.json", "")}:
            files[checkpoint.index_name] = encode_index({}, checkpoint.weight_map)
        for path, raw in files.items():
            with open(os.path.join(folder, path), "wb") as stream:
                stream.write(raw)
        yield folder


def _complaints(info: Mapping[str, Any], own: Sequence[str]) -> dict[str, list[str]]:
    """What the class misses, does not know, or has in another shape; the checkpoint's own LoRA is no tensor of a
    class.
    """
    found = {
        what: sorted(map(str, info.get(what) or ()), key=natural)
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    found["unexpected_keys"] = [name for name in found["unexpected_keys"] if name not in own]
    return {what: names for what, names in found.items() if names}
