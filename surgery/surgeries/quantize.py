"""A checkpoint in 16 bits as the codes of a scheme that needs no calibration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Annotated

from ..checkpoint import Checkpoint
from ..errors import NothingMatched, NotSupported, listed, series
from ..lazy.tensor import Tensor, permute
from ..models.fused.layout import sections
from ..models.tying import all_families
from ..names import is_called, natural, select
from ..quantization.declared import places
from ..quantization.fresh import Recipe, recipe_of
from ..step import Option, step
from .injecting.modules import Kind, Module, told

# Linear modules that transformers keeps in float32 in these types, whatever else is quantised.
KEPT: Mapping[str, frozenset[str]] = {
    "wo": frozenset("t5 mt5 umt5 udop pop2piano".split()),
    "weights_proj": frozenset("glm_moe_dsa deepseek_v32 axk2 mistral_large4".split()),
}
LAST = ("score",)  # heads that are the last of their class's parameters: transformers leaves out what is
WORKERS = 4  # that read weights for the means of their scales


@step
def quantize(
    checkpoint: Checkpoint,
    scheme: Annotated[
        str,
        Option(
            "nf4, nf4-double or fp8; nf4:128 and such, in blocks of another size.",
            "SCHEME",
            words=("nf4", "nf4-double", "fp8"),
        ),
    ],
    *,
    only: Annotated[str | None, Option("The modules whose whole name matches; the rest stays as is.", "REGEX")] = None,
    except_: Annotated[str | None, Option("Leave modules as they are whose whole name matches.", "REGEX")] = None,
) -> Checkpoint:
    """Write linear weights as codes, bit for bit as bitsandbytes (NF4) and transformers (FP8 in blocks) do.

    The weights of Linear modules become codes: `nf4` and `nf4-double` (double quantisation) as
    bitsandbytes makes and stores them on a CPU, `fp8` in blocks of 128 x 128 as transformers does; bit for bit.

    Heads, embeddings, tied and normalising weights stay as they are, as with transformers; so do what `only` and
    `except_`, regular expressions over whole names of modules, leave out, and what FP8's blocks do not divide: then
    config.json lists them.

    Reads no tensor, but with double quantisation, where each weight is read once for the mean of its scales: of more
    than 32768 scales bitsandbytes' mean depends on torch's threads, and this is that of one thread. Raises
    NotSupported for what is quantised already, NothingMatched where nothing is left to quantise.
    """
    recipe = recipe_of(scheme)
    chosen = chosen_of(checkpoint, recipe, only, except_)
    dtype = Counter(checkpoint.tensors[one.weight].dtype for one in chosen.modules.values()).most_common(1)[0][0]
    made = replace(checkpoint, notes=(*checkpoint.notes, *chosen.notes))
    made = _with_codes(made, recipe, chosen.modules)
    if "config.json" in made.files:
        said = recipe.said(dtype)
        said = recipe.skip(said, chosen.named, list(chosen.modules)) if chosen.named else said
        made = made.with_config({**made.config, "quantization_config": said})
    given = {key: value for key, value in (("only", only), ("except", except_)) if value is not None}
    return made.with_step({"surgery": "quantize", "scheme": scheme, "weights": len(chosen.modules), **given})


@dataclass(frozen=True)
class Chosen:
    """The modules that become codes, by name in memory; those that config.json has to name since they do not; notes."""

    modules: Mapping[str, Module]
    named: tuple[str, ...]
    notes: tuple[str, ...]


def chosen_of(checkpoint: Checkpoint, recipe: Recipe, only: str | None = None, except_: str | None = None) -> Chosen:
    """Which modules a recipe quantises. Raises NotSupported, NothingMatched."""
    _check_plain(checkpoint)
    modules = told(checkpoint)
    kinds = (Kind.LINEAR, Kind.CONV1D) if recipe.conv1d else (Kind.LINEAR,)
    tied = all_families(checkpoint.config, checkpoint.tensors, checkpoint.metadata)
    shared = {name for family in tied for name in family}
    linear = {name: one for name, one in modules.items() if one.weight and _is_linear(one, kinds, recipe)}
    usual = {n: one for n, one in linear.items() if not (one.head or one.weight in shared or _is_kept(checkpoint, n))}
    fitting = [name for name, one in usual.items() if recipe.fits(checkpoint.tensors[one.weight])]
    names = set(select(fitting, only) if only is not None else fitting)
    names -= set(select(fitting, except_)) if except_ is not None else set[str]()
    if not names:
        tip = f"linear modules are such as {series(listed(sorted(usual, key=natural), 3))}" if usual else None
        raise NothingMatched("nothing is left to quantise", where=[checkpoint.path], help=tip)
    left = [name for name in usual if name not in names]
    heads = [name for name in linear if name not in usual] if left else []
    stacked = [name for name, one in modules.items() if one.kind is Kind.OTHER and "stack" in one.what]
    chosen = {name: usual[name] for name in sorted(names, key=natural)}
    return Chosen(chosen, tuple(sorted([*left, *heads], key=natural)), _notes(recipe, left, stacked, chosen))


def _check_plain(checkpoint: Checkpoint) -> None:
    """Raise NotSupported for what says that it is quantised."""
    if found := next(places(checkpoint.config), None):
        where = [f"{checkpoint.path}: config.json: {'.'.join(found[0])}"]
        tip = "take the model in 16 bits; or what its codes mean: surgery dequantize MODEL -o OUT"
        raise NotSupported("the checkpoint is quantised already", where=where, help=tip)


def _is_linear(one: Module, kinds: Collection[Kind], recipe: Recipe) -> bool:
    return one.kind in kinds or (recipe.experts and one.what == "one expert of a stack")


def _is_kept(checkpoint: Checkpoint, module: str) -> bool:
    """Whether transformers leaves it as it is, being what it is in its model type."""
    kinds = {str(section.get("model_type")) for section in sections(checkpoint.config)}
    last = is_called(module, LAST) and f"{module}.bias" not in checkpoint.tensors
    return last or bool(kinds & KEPT.get(module.rpartition(".")[2], frozenset()))


def _notes(recipe: Recipe, left: Collection[str], stacked: Collection[str], chosen: Collection[str]) -> tuple[str, ...]:
    """What a user should know of what stays as it is."""
    notes = []
    if rest := [name for name in stacked if name not in chosen]:
        notes.append(
            f"{len(rest)} weights of experts stay as they are: transformers has the experts of a layer in one"
            f" parameter, which {recipe.title.partition(',')[0]} does not take"
        )
    if left:
        names = series(listed(sorted(left, key=natural), 3))
        notes.append(f"{len(left)} linear modules stay as they are, and config.json names them: {names}")
    return tuple(notes)


def _with_codes(checkpoint: Checkpoint, recipe: Recipe, modules: Mapping[str, Module]) -> Checkpoint:
    """The checkpoint with the parts of each weight in its place, in the shard that it was in."""
    weights = {one.weight: _as_linear(checkpoint, one) for one in modules.values()}
    with ThreadPoolExecutor(WORKERS) as workers:
        parts = list(workers.map(lambda item: recipe.parts(*item), weights.items()))
    tensors, weight_map = dict(checkpoint.tensors), dict(checkpoint.weight_map)
    for name, made in zip(weights, parts, strict=True):
        tensors |= made
        weight_map |= dict.fromkeys(made, weight_map[name])
    return replace(checkpoint, tensors=tensors, weight_map=weight_map)


def _as_linear(checkpoint: Checkpoint, one: Module) -> Tensor:
    """The weight of a module as (out, in)."""
    weight = checkpoint.tensors[one.weight]
    return permute(weight, (1, 0)) if one.kind is Kind.CONV1D else weight
