"""Models made one: model arithmetic on whole checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from ...checkpoint import Checkpoint
from ...errors import PlanError, SurgeryError, nearest
from ...evaluation.blending import METHODS
from ...evaluation.blending.method import Base, Method
from ...lazy.dtypes import Dtype
from ...lazy.rowwise import measured, rowwise
from ...lazy.tensor import Tensor, stored
from ...step import Option, step
from ..cast import NAMES, parsed
from ..layers import config_for, stack_of
from .agreeing import check_models, check_shapes, check_tensors, check_vocabularies, floats_of
from .placing import Made, Slice, as_named, in_slices, slices_of
from .said import Rule, Value, check_used, checked, numbers_for, rules_of

DTYPES_NAMED = {dtype: name for name, dtype in NAMES.items()}
COMPUTED_IN = ("float32", "float64", "bfloat16", "float16", "stored")


@step
def blend(
    models: Sequence[Checkpoint],
    *,
    base: Annotated[
        Checkpoint | None, Option("What the models were trained from, or one of them; most methods need it.", "PATH")
    ] = None,
    method: Annotated[str, Option("How: " + ", ".join(METHODS) + ".", "NAME", words=tuple(METHODS))] = "linear",
    weights: Annotated[
        Sequence[float], Option("The weight of each model, 1 where none is given.", "W,W,…", each="models")
    ] = (),
    density: Annotated[Sequence[float], Option("The share of each model's changes that is kept.", "D,D,…")] = (),
    t: Annotated[Sequence[float], Option("How far from the base; several: from first to last layer.", "T,T,…")] = (),
    parameters: Annotated[
        Mapping[str, str],
        Option(
            "Any parameter of the method: NAME=VALUE, of one model NAME@2, in one slice NAME#1, where REGEX occurs in"
            " a tensor's name NAME:REGEX; may be given often, and what comes first counts.",
            "NAME=VALUE",
            ("--parameter",),
        ),
    ] = {},
    slices: Annotated[
        Sequence[str],
        Option("Layers of the output, one slice after another; may be given often.", "MODEL:FIRST-LAST", ("--slice",)),
    ] = (),
    dtype: Annotated[str | None, Option("The dtype to write; that of the models where none is given.", "DTYPE")] = None,
    compute: Annotated[
        str, Option('The dtype to compute in; "stored" is that of the models, as mergekit does.', "DTYPE")
    ] = "float32",
    seed: Annotated[int, Option("What draws follow from, in methods that draw.", "N")] = 0,
    other_vocabulary: Annotated[bool, Option("Blend models whose tokenizers differ, with the first one's.")] = False,
) -> Checkpoint:
    """Make one model of several, weight by weight.

        blend([a, b], method="linear", weights=[0.7, 0.3])
        blend([a], base=b, method="slerp", t=[0.3, 0.7])
        blend([a, b], base=c, method="ties", weights=[1, 0.5], density=[0.5, 0.5])
        blend([a, b], method="passthrough", slices=["1:0-15", "2:8-31"])

    The methods and their parameters are those of mergekit, each with its law in `evaluation/blending/`. What is
    computed is computed in float32 and rounded once, in blocks; what a method needs of whole tensors, such as lengths
    and thresholds, is computed before, in passes. With `compute="bfloat16"` each step is rounded, as mergekit does it
    where its `dtype` is bfloat16. Methods that draw do so by the seed, the tensor's name and the place in it: their law
    is mergekit's, their draws are not. Of equal magnitudes at a threshold the first are kept.

    The base may be among the models. Files beside the weights, config.json with them, are those of the base, or of the
    first model. Each name of `parameters` is one that the method has: of one model with `@2`, of tensors in whose name
    a pattern occurs with `:self_attn`; "0,0.5,1" goes from the first layer to the last.

    Raises PlanError for models of other architectures, tensors, shapes or tokenizers, NotSupported for quantised ones,
    SurgeryError for what the method cannot be told.
    """
    row = _row(method)
    who = _taken(models, base, method, row)
    cut = slices_of(slices, len(models))
    said = _said(parameters, row, method, len(models), weights=weights, density=density, t=t)
    rules = rules_of(method, row, said, models=len(models), slices=max(1, len(cut)))
    if compute not in COMPUTED_IN:
        raise SurgeryError(f"`{compute}` is no dtype to compute in", help=f"one of {', '.join(COMPUTED_IN)}")
    notes = check_models(who.all)
    if not other_vocabulary:
        check_vocabularies(who.all)
    for other in who.all[1:]:
        check_tensors(who.all[0], other, layers_too=not cut)
    config, places = _places(who, models, cut)
    check_used(rules, [name for made in places for _, name in made.sources])
    told = _Told(method, row, rules, who, parsed(dtype) if dtype is not None else None, compute, seed)
    tensors = {made.place.name: _blended(told, made, models) for made in places}
    return _result(told, tensors, config, notes)


@dataclass(frozen=True)
class _Who:
    """The base, where the method has one, the models besides it, with their numbers from 1, and all of which files may
    be taken, that of the output first.
    """

    base: Checkpoint | None
    models: tuple[tuple[int, Checkpoint], ...]
    all: tuple[Checkpoint, ...]


@dataclass(frozen=True)
class _Told:
    """All that was said."""

    method: str
    row: Method
    rules: Sequence[Rule]
    who: _Who
    dtype: Dtype | None
    compute: str
    seed: int


def _row(method: str) -> Method:
    name = method.replace("-", "_")
    if name not in METHODS:
        close = nearest(name, METHODS)
        raise SurgeryError(
            f"there is no method `{method}`",
            help=f"{'did you mean ' + close[0] + '? ' if close else ''}there are {', '.join(METHODS)}",
        )
    return METHODS[name]


def same(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether both are one model: the same value, or opened at the same place and unchanged."""
    return one is other or (one.path == other.path and one.tensors == other.tensors)


def _taken(models: Sequence[Checkpoint], base: Checkpoint | None, method: str, row: Method) -> _Who:
    """Which of them is what. Raises SurgeryError where that is not what the method is of."""
    if not models:
        raise SurgeryError("there is no model to blend", help="give two or more")
    for i, one in enumerate(models):
        if any(same(one, other) for other in models[:i]):
            raise SurgeryError(
                "a model is given twice", where=[one.path], help="give it once, with the sum of its weights"
            )
    if row.base is Base.NEEDED and base is None:
        raise SurgeryError(f"{method} needs the base that the models were made of", help="say which: --base PATH")
    among = base is not None and any(same(base, one) for one in models)
    if row.base is Base.NONE:
        if base is not None and not among:
            raise SurgeryError(
                f"{method} has no base",
                where=[base.path],
                help="name it among the models, with a weight, or leave --base away",
            )
        taken = tuple(enumerate(models, 1))
    else:
        taken = tuple((i, one) for i, one in enumerate(models, 1) if base is None or not same(base, one))
    if len(taken) < row.least or (row.most is not None and len(taken) > row.most and method != "passthrough"):
        many = f"{row.least} or more" if row.most is None else f"{row.most}"
        besides = " besides the base" if base is not None and row.base is not Base.NONE else ""
        raise SurgeryError(f"{method} is of {many} models{besides}, not of {len(taken)}")
    others = [one for one in models if base is None or not same(base, one)]
    first = [base] if base is not None else []
    return _Who(base if row.base is not Base.NONE else None, taken, (*first, *others))


def _said(
    parameters: Mapping[str, Value], row: Method, method: str, many: int, **short: Sequence[float] | float
) -> dict[str, Value]:
    """All that was said, the longer way: what is said of a pattern comes first."""
    said = dict(parameters)
    for name, values in (("weight", short["weights"]), ("density", short["density"])):
        numbers = [values] if isinstance(values, int | float) else list(values)
        if numbers and name not in row.each:
            raise SurgeryError(f"{method} has no {name} of each model", help=f"leave --{name} away")
        if numbers and len(numbers) not in (1, many):
            raise SurgeryError(f"{len(numbers)} numbers are given as {name}, and {many} models", help="one for each")
        for i, number in enumerate(numbers if len(numbers) == many else numbers * many, 1):
            said.setdefault(f"{name}@{i}", number)
    if isinstance(short["t"], int | float) or len(short["t"]):
        if "t" not in row.shared:
            raise SurgeryError(f"{method} has no t", help="leave --t away")
        said.setdefault("t", short["t"])
    return said


def _places(
    who: _Who, models: Sequence[Checkpoint], slices: Sequence[Slice]
) -> tuple[Mapping[str, Any] | None, list[Made]]:
    """The tensors of the output, and the config.json where it is another. Raises PlanError."""
    if not slices:
        order = [next(i for i, one in enumerate(models) if one is two) for two in (one for _, one in who.models)]
        made = list(as_named([models[i] for i in order]))
        return None, [replace(one, sources=tuple((order[i], name) for i, name in one.sources)) for one in made]
    donor = who.all[0]
    chosen = [first + i for one in slices for _, first in one.sources[:1] for i in range(one.layers)]
    stack, there = stack_of(donor)
    made = list(in_slices(models, slices, stack))
    return (None if chosen == there else config_for(donor, stack, there, chosen)), made


def _blended(told: _Told, made: Made, models: Sequence[Checkpoint]) -> Tensor:
    """A tensor of the output."""
    row, place, base = told.row, made.place, told.who.base
    named = [(i + 1, name) for i, name in made.sources if base is None or not same(models[i], base)]
    origin = next((name for i, name in made.sources if base is not None and same(models[i], base)), made.sources[0][1])
    if len(named) < row.least or (row.most is not None and len(named) > row.most):
        raise SurgeryError(
            f"{told.method} is of {row.most or row.least} models, and {len(named)} are given for {place.name}",
            help="say with --slice which layers are of which, one model each" if told.method == "passthrough" else None,
        )
    held = [*([(base, origin)] if base else []), *((models[i - 1], name) for i, name in named)]
    found = [(one, _tensor(one, name)) for one, name in held]
    check_shapes(place.name, found)
    numbers = numbers_for(told.method, row, told.rules, place, named)
    checked(told.method, numbers, len(named), place.name)
    dtype, inputs = floats_of(place.name, found), [tensor for _, tensor in found]
    if dtype is None:
        return inputs[0]
    compute = DTYPES_NAMED[dtype] if told.compute == "stored" else told.compute
    to = told.dtype or dtype
    if told.method == "passthrough" and numbers["scale@0"] == 1 and dtype == to:
        return inputs[0]
    shape = inputs[0].shape
    facts = {"many": len(named), "based": float(base is not None), "axes": len(shape)}
    drawn: dict[str, float | str] = {"seed": told.seed, "name": place.name} if row.drawn else {}
    every: dict[str, float | str] = {**numbers, **facts, **drawn, "compute": compute}
    name = told.method.replace("-", "_")
    many = row.facts(every, shape[-1] if shape else 1)
    whole = measured(many, name, inputs, every) if many else None
    return rowwise(to, name, inputs, facts=whole, numbers=every)


def _tensor(checkpoint: Checkpoint, name: str) -> Tensor:
    if name not in checkpoint.tensors:
        raise PlanError(
            f"{name} is in one of the models alone",
            where=[f"not in {checkpoint.path}"],
            help="models that are blended have the same tensors",
        )
    return checkpoint.tensors[name]


def _result(
    told: _Told, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None, notes: Sequence[str]
) -> Checkpoint:
    """The checkpoint of these tensors, with the files of the first."""
    first, *others = told.who.all
    shards = {name: first.weight_map.get(name) or _beside(first, name) for name in tensors}
    used = {leaf for tensor in tensors.values() for leaf in stored(tensor)}
    lost = {
        f"{one.path}: {name}": tensor
        for one in told.who.all
        for name, tensor in (*one.tensors.items(), *one.dropped.items())
        if not used.issuperset(stored(tensor))
    }
    dtypes = {tensor.dtype for tensor in tensors.values()}
    made = replace(
        first,
        tensors=tensors,
        weight_map=shards,
        metadata={shard: first.metadata.get(shard, {"format": "pt"}) for shard in shards.values()},
        inputs=tuple(source for one in (first, *others) for source in one.inputs),
        dropped=lost,
        replaced={f"{one.path}: {name}": tensor for one in told.who.all for name, tensor in one.replaced.items()},
        headers={},
        before=None,
    )
    made = _with_config(made, told, config, first, dtypes)
    step = {
        "surgery": "blend",
        "method": told.method,
        "models": [os.path.basename(one.path.rstrip("/")) for _, one in told.who.models],
        **({"base": os.path.basename(told.who.base.path.rstrip("/"))} if told.who.base else {}),
        "parameters": [rule.text for rule in told.rules],
        **({"seed": told.seed} if told.row.drawn else {}),
        "tensors": len(tensors),
    }
    every = [*(note for one in others for note in one.notes), *notes]
    return made.with_step(step, notes=(*made.notes, *dict.fromkeys(every)))


def _beside(first: Checkpoint, name: str) -> str:
    """The shard of a tensor that the first model does not have: that of its last layer."""
    stem = name.rsplit(".", 1)[-1]
    return next((shard for n, shard in reversed([*first.weight_map.items()]) if n.endswith(stem)), "model.safetensors")


def _with_config(
    made: Checkpoint, told: _Told, config: Mapping[str, Any] | None, first: Checkpoint, dtypes: set[Dtype]
) -> Checkpoint:
    """With a config.json that says how many layers there are, and the dtype, where these are others."""
    before = {tensor.dtype for tensor in first.tensors.values()}
    if config is None and dtypes == before:
        return made
    if "config.json" not in made.files:
        return made
    said = dict(config if config is not None else made.config)
    names = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
    floats = [names[str(one)] for one in dtypes if str(one) in names]
    if dtypes != before and len(floats) == 1:
        for key in [key for key in ("dtype", "torch_dtype") if key in said] or ["dtype"]:
            said[key] = floats[0]
    return made.with_config(said)
