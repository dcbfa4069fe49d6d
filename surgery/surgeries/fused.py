"""The surgeries on fused modules: split and fuse, of all kinds or of one, of a checkpoint or of an adapter."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeVar

from ..checkpoint import Checkpoint, open_checkpoint
from ..errors import HubError, WrongUsage, series
from ..files.peft import Adapter
from ..files.refs import HubRef, is_ref
from ..models.fused.detect import KINDS
from ..models.fused.given import Given
from ..step import FUSED, Option, step
from .convert import convert
from .split import fuse_parts, split_parts

_Target = TypeVar("_Target", Checkpoint, Adapter)

# What users call the kinds, and what they are.
CALLED = {"qkv": ("qkv", "kv"), "gate-up": ("gate_up",), "experts": ("experts",)}

Kinds = Annotated[
    Collection[str], Option(f"Of {', '.join(CALLED)}; all that are there if not given.", "KIND,…", among=tuple(CALLED))
]
To = Annotated[
    str | None, Option("Write what this class of transformers loads, such as llama.", "MODEL_TYPE", ("--as",))
]
Base = Annotated[
    Checkpoint | None,
    Option("An adapter's model, fused or split; if not given, the one its config names.", "MODEL", ("--base",), FUSED),
]


@step
def split(
    target: _Target, kinds: Kinds = (), *, to: To = None, given: Given | None = None, base: Base = None
) -> _Target:
    """Replace fused modules by their parts, byte for byte: qkv, gate and up, experts. An adapter's, with its base.

    Weights, biases, and what else lies on the fused axis:

        fused  (groups * slots * unit, hidden)  ->  part i (groups * slots[i] * unit, hidden)

    The layout follows from the model types in config.json, or from `given`; `to` is a class of transformers that shall
    load the parts, as for `convert`. An adapter follows its `base`, fused or split: LoRA on a fused module becomes LoRA
    on the parts that computes the same. Quantised modules are split as codes and scales. Reads no data, but small
    companions of those. Raises NothingMatched where nothing is fused, LayoutError where sizes do not fit or more than
    one layout would, NotSupported where a cut falls within what shares a scale, or a word of codes.
    """
    if to is not None:
        return _converted(target, kinds, to, given, base)
    found, note = _base_of(target, base)
    return _told(split_parts(target, _kinds(kinds), given=given, base=found), note)


@step
def fuse(target: _Target, kinds: Kinds = (), *, given: Given | None = None, base: Base = None) -> _Target:
    """Put parts back into the fused modules of the model's own class, byte for byte: the inverse of `split`.

    What is fused takes the shard of its first part. An adapter follows its `base`: where the parts' A's differ, the
    ranks add. Reads no data but an adapter's, and scales that must be equal. Raises NothingMatched where there is
    nothing to fuse, LayoutError where a part is missing or does not fit, NotSupported for parts that are not quantised
    alike.
    """
    found, note = _base_of(target, base)
    return _told(fuse_parts(target, _kinds(kinds), given=given, base=found), note)


@step
def split_qkv(target: _Target, *, to: To = None, given: Given | None = None, base: Base = None) -> _Target:
    """Replace each fused qkv projection by q, k and v, byte for byte."""
    if to is not None:
        return _converted(target, (), to, given, base)
    return split(target, ("qkv",), given=given, base=base)


@step
def fuse_qkv(target: _Target, *, given: Given | None = None, base: Base = None) -> _Target:
    """Put q, k and v back into the fused projection of the model's own class, byte for byte."""
    return fuse(target, ("qkv",), given=given, base=base)


@step
def split_gate_up(target: _Target, *, given: Given | None = None, base: Base = None) -> _Target:
    """Replace each fused projection of a gated MLP by gate and up, byte for byte. 3-D ones of all experts stay 3-D."""
    return split(target, ("gate-up",), given=given, base=base)


@step
def fuse_gate_up(target: _Target, *, given: Given | None = None, base: Base = None) -> _Target:
    """Put gate and up back into one projection of the model's own class, byte for byte."""
    return fuse(target, ("gate-up",), given=given, base=base)


@step
def split_experts(target: _Target, *, given: Given | None = None, base: Base = None) -> _Target:
    """Replace stacked experts by modules of their own, byte for byte, with gate and up apart."""
    return split(target, ("experts",), given=given, base=base)


@step
def fuse_experts(target: _Target, *, given: Given | None = None, base: Base = None) -> _Target:
    """Put experts back into stacked tensors of the model's own class, byte for byte."""
    return fuse(target, ("experts",), given=given, base=base)


def _converted(
    target: _Target, kinds: Collection[str], to: str, given: Given | None, base: Checkpoint | None
) -> _Target:
    """What the class `to` loads: it says what is split, and how. Raises WrongUsage."""
    if isinstance(target, Adapter):
        tip = "split it with its --base, and convert the base"
        raise WrongUsage("an adapter is no model that a class loads", where=[target.path], help=tip)
    if given or base:
        tip = "leave --as away, or the layout and --base"
        raise WrongUsage("the target says how the parts lie and what they are called", help=tip)
    if kinds:
        raise WrongUsage("the target says what is split", help="leave --kinds away; or use surgery convert --as")
    return convert(target, to)


def _kinds(called: Collection[str]) -> tuple[str, ...]:
    """What the library calls the kinds that are asked for; all of them where none are. Raises WrongUsage."""
    asked = [name.replace("_", "-") for name in called]
    if unknown := [name for name in asked if name not in CALLED and name not in KINDS]:
        raise WrongUsage(f"there is no kind {series(unknown)}", help=f"there are {', '.join(CALLED)}")
    return tuple(dict.fromkeys(kind for name in asked or CALLED for kind in CALLED.get(name, (name,))))


def _base_of(target: Checkpoint | Adapter, base: Checkpoint | None) -> tuple[Checkpoint | None, str]:
    """The base that was given, or that an adapter names, where that is here or on the Hub; a note, where it is that.

    Raises WrongUsage for a base of what is no adapter.
    """
    if isinstance(target, Checkpoint):
        if base:
            raise WrongUsage("a model is its own base", where=[target.path], help="leave --base away")
        return None, ""
    named = target.config.get("base_model_name_or_path")
    if base or not isinstance(named, str) or not (Path(named).is_dir() or is_ref(named)):
        return base, ""
    found = Path(named).resolve() if Path(named).is_dir() else HubRef(named, target.config.get("revision"))
    try:
        return open_checkpoint(str(found)), f"base: {found}, as adapter_config.json names it"
    except HubError as error:
        tip = f"pass the adapter's base with --base; or {error.help}"
        raise type(error)(error.what, where=error.where, help=tip) from error


def _told(made: _Target, note: str) -> _Target:
    return replace(made, notes=(*made.notes, note)) if note else made
