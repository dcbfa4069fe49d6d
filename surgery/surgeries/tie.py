"""Tied tensors stored once, or each under its own name, and a config.json by which its class loads them so.

What a class ties is known by table (`models/families.py`). A class that would load the result in silence and compute
otherwise is refused: one that ties whatever config.json says, one to which the flag says more than that, one that is
not known.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import NothingMatched, NotSupported, PlanError, listed, series
from ..evaluation.first_difference import Differs, first_difference
from ..lazy.dropped import both
from ..lazy.dtypes import BF16, F16, F32, F64, Dtype
from ..lazy.tensor import Tensor
from ..models.families import NEVER, TIES, Ties, tied, ties, untied
from ..models.header_ties import header_families, header_ties
from ..models.tying import holder_of, tied_families
from ..quantization.plain import check_plain
from ..step import step
from .header_ties import retied

Families = Sequence[tuple[str, ...]]


@step
def tie(checkpoint: Checkpoint) -> Checkpoint:
    """Store the output head and the input embedding once, as their class saves them when it ties them, and set
    tie_word_embeddings.

    Both are read, and compared byte for byte. Raises PlanError where they differ, with the first element that does;
    NotSupported for a class that ties nothing, that ties whatever config.json says, or of which that is not known;
    NothingMatched where they are tied already.
    """
    config = {**checkpoint.config, **tied(checkpoint.config)}
    known = _known(checkpoint, config)
    families = tied_families(config, checkpoint.tensors)
    if not families:
        names = [*dict.fromkeys(known.others.values()), *known.others]
        raise NothingMatched(
            f"none of what {_class_of(config)} ties is stored: {series(names)}", where=[checkpoint.path]
        )
    found = {name: holder for name, holder in _pairs(families, checkpoint.tensors) if name in checkpoint.tensors}
    if not found and ties(checkpoint.config):
        raise NothingMatched("they are tied already", where=[checkpoint.path, *map(" = ".join, families)])
    for name, holder in found.items():
        _check_equal(checkpoint, name, holder)
    made = checkpoint.with_config(config).with_step(
        {"surgery": "tie", "tied": found},
        tensors={name: tensor for name, tensor in checkpoint.tensors.items() if name not in found},
        weight_map={name: shard for name, shard in checkpoint.weight_map.items() if name not in found},
        dropped=both(checkpoint.dropped, {name: checkpoint.tensors[name] for name in found}),
        notes=(*checkpoint.notes, *_notes(families, found, checkpoint.tensors)),
    )
    held = header_ties(checkpoint.metadata, checkpoint.tensors)
    return retied(made, checkpoint, {name: found.get(holder, holder) for name, holder in held.items()})


@step
def untie(checkpoint: Checkpoint) -> Checkpoint:
    """Store each of the tensors that are one in the model under its own name, and unset tie_word_embeddings, so that
    they can be trained apart. What a header ties is stored as well.

    Raises NotSupported for a class that ties them whatever config.json says, or to which the flag says more, and for
    a quantised model whose class would look for codes of the head; NothingMatched where nothing is tied.
    """
    families, config = _tied_here(checkpoint)
    more = {name: holder for name, holder in _pairs(families, checkpoint.tensors) if name not in checkpoint.tensors}
    check_plain(checkpoint, more)
    made = checkpoint.with_config(config) if config else checkpoint
    made = made.with_step(
        {"surgery": "untie", "stored": more},
        tensors={**checkpoint.tensors, **{name: checkpoint.tensors[holder] for name, holder in more.items()}},
        weight_map={**checkpoint.weight_map, **{name: checkpoint.weight_map[holder] for name, holder in more.items()}},
    )
    return retied(made, checkpoint, {})


def _tied_here(checkpoint: Checkpoint) -> tuple[Families, Mapping[str, Any]]:
    """The families that are tied, by the class or by headers, and the config that unties them; empty where it stays."""
    known = ties(checkpoint.config)
    families = tied_families(checkpoint.config, checkpoint.tensors)
    taken = {name for family in families for name in family}
    named = header_families(checkpoint.metadata, checkpoint.tensors, taken)
    if not known and named:
        return named, {}
    if not known and _class_of(checkpoint.config) in TIES:
        raise NothingMatched("nothing is tied here: config.json says so", where=[checkpoint.path])
    _known(checkpoint, checkpoint.config)
    return [*families, *named], {**checkpoint.config, **untied(checkpoint.config)}


def _known(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Ties:
    """What the class ties where this config says that it does, and would not where it does not. Raises NotSupported."""
    if checkpoint.parts:
        tip = f"pass one of its components with --component: {series(list(checkpoint.parts))}"
        raise NotSupported("a pipeline has a class for each of its components", where=[checkpoint.path], help=tip)
    name, known = _class_of(config), ties(config)
    if not name:
        raise PlanError(
            "no config.json says of which class the model is: what is tied in it is not known",
            where=[checkpoint.path],
            help='put one beside it, with "architectures": ["LlamaForCausalLM"], the class that the model is of',
        )
    if known and known.said and not known.always and name not in NEVER:
        return known
    if known is None or name in NEVER:
        what = f"{name} ties no head to an embedding, or what it ties is not known"
    elif known.always:
        what = f"{name} ties what is not stored, whatever config.json says"
    else:
        what = f"tie_word_embeddings says more to {name} than whether two tensors are one"
    mend = "load it in its class, and let that save it" if known else None
    raise NotSupported(what, where=[f"{checkpoint.path}: config.json"], help=mend)


def _class_of(config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    return named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""


def _pairs(families: Families, stored: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """(name, whose tensor it has) for each name of the families but that one."""
    for names in families:
        holder = holder_of(names, stored)
        yield from ((name, holder) for name in names if name != holder)


def _check_equal(checkpoint: Checkpoint, name: str, holder: str) -> None:
    """Raise PlanError unless both tensors hold the same bytes."""
    one, other = checkpoint.tensors[name], checkpoint.tensors[holder]
    tip = "they are two tensors, and a class that ties them would compute with one of them"
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        rows = [f"{n}: {t.dtype} {list(t.shape)}" for n, t in ((holder, other), (name, one))]
        raise PlanError("what would be tied is of two shapes or dtypes", where=[checkpoint.path, *rows], help=tip)
    if found := first_difference(other, one):
        raise PlanError(
            "what would be tied differs", where=[checkpoint.path, *_rows(found, holder, name, one.dtype)], help=tip
        )


def _rows(found: Differs, holder: str, name: str, dtype: Dtype) -> list[str]:
    """Where they differ first, in both."""
    place = ", ".join(map(str, found.place))
    both = ((holder, found.first), (name, found.second))
    return [f"{n}[{place}] is {_number(data, dtype)}, in bytes {data.hex()}" for n, data in both]


def _number(data: bytes, dtype: Dtype) -> str:
    """The number that these bytes are, where they are a floating one."""
    form = {F16: "<e", BF16: "<f", F32: "<f", F64: "<d"}.get(dtype)
    return f"{struct.unpack(form, data.rjust(struct.calcsize(form), bytes(1)))[0]:.9g}" if form else f"{dtype}"


def _notes(families: Families, found: Mapping[str, str], stored: Mapping[str, Tensor]) -> list[str]:
    """What a user should know of names that were not stored although config.json said that they are apart."""
    lost = [f"{name} is {holder}" for name, holder in _pairs(families, stored) if name not in found]
    return [f"was not stored before either, and is tied now: {', '.join(listed(lost))}"] if lost else []
