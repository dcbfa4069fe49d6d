"""Which fields of config.json follow the layers of a stack, found by asking the class: the number of layers, lists that
have an entry for each, lists of layers' numbers.

A config is right for an order of layers where the class builds, in each place, what it built for the layer that comes
to stand there, and all else as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from ..errors import NotSupported, PlanError, listed, series
from .config_sections import section_at, sections_in, with_fields
from .skeleton import complete
from .stacks import Layer, Stacks, stacks_of

Config = Mapping[str, Any]
Change = Callable[[Any, Sequence[int]], Any]
COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "num_decoder_layers", "encoder_layers")
# Fields by which a layer computes something else in another place, whether or not its modules say so.
BY_NUMBER = ("scale_attn_by_inverse_layer_idx",)


def with_layers(
    config: Config, model_class: str, stack: str, there: Sequence[int], order: Sequence[int]
) -> dict[str, Any]:
    """The config of a model whose layer i in `stack` is layer `order[i]` of those that are `there`, which `config` must
    say as well. Raises NotSupported where no field makes the class build that.
    """
    before = stacks_of(config, model_class)
    _check_there(before, model_class, stack, there)
    _check_numbers(config, order)
    wanted, why = _reordered(before, stack, order), dict[str, str]()
    whole = complete(config)
    for at, key in _counts(whole, len(before.layers[stack])):
        for changed in _changed(config, section_at(whole, at), at, key, order):
            try:
                found = stacks_of(changed, model_class)
            except PlanError as error:
                why.setdefault(key, error.what)
                continue
            if found == wanted:
                return dict(changed)
            why.setdefault(key, _difference(found, wanted, stack))
    raise _refusal(model_class, stack, order, why)


def _check_there(before: Stacks, model_class: str, stack: str, there: Sequence[int]) -> None:
    built = len(before.layers.get(stack, ()))
    if list(there) == list(range(built)):
        return
    extra = [str(number) for number in there if number >= built]
    raise NotSupported(
        f"{model_class} builds {built} layers of {stack} for this config, and {len(there)} are stored",
        where=[f"numbered {there[0]} to {there[-1]}"],
        help=(
            f"leave out those that it does not load: surgery drop --pattern '.*\\.{extra[0]}\\..*'"
            if extra and built
            else "config.json is not this model's, or some of its shards are not here"
        ),
    )


def _reordered(before: Stacks, stack: str, order: Sequence[int]) -> Stacks:
    layers = before.layers[stack]
    return replace(before, layers={**before.layers, stack: tuple(layers[old] for old in order)})


def _counts(whole: Config, many: int) -> list[tuple[tuple[str, ...], str]]:
    """Where the config, defaults included, may say how many layers there are: what is usual comes first."""
    found = []
    for at, section in sections_in(whole):
        found += [(at, key) for key, value in section.items() if type(value) is int and value == many]
    return sorted(found, key=lambda one: (COUNTS.index(one[1]) if one[1] in COUNTS else len(COUNTS), one))


def _changed(config: Config, whole: Config, at: tuple[str, ...], key: str, order: Sequence[int]) -> Iterator[Config]:
    """The config with another number of layers, and with fewer or more of the lists beside it in the new order. `whole`
    is the section that the number is in, defaults included.
    """
    many = whole[key]
    each = {k: v for k, v in whole.items() if isinstance(v, list | tuple) and len(v) == many and not k.endswith("_id")}
    named = {k: [v[old] for old in order] for k, v in each.items() if "layer" in k}
    others = {k: [v[old] for old in order] for k, v in each.items() if "layer" not in k and k != "architectures"}
    numbers = {k: _moved(v, order) for k, v in whole.items() if k not in each and _numbers(v, many) and "layer" in k}
    for more in product([numbers, {}] if numbers else [{}], [{}, others] if others else [{}]):
        yield with_fields(config, at, {key: len(order), **named, **more[0], **more[1]})


def _numbers(value: Any, many: int) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(type(n) is int and 0 <= n < many for n in value)


def _moved(numbers: Sequence[int], order: Sequence[int]) -> list[int]:
    return [new for new, old in enumerate(order) if old in numbers]


def _check_numbers(config: Config, order: Sequence[int]) -> None:
    said = [key for _, section in sections_in(config) for key in BY_NUMBER if section.get(key)]
    if said and list(order) != list(range(len(order))):
        raise NotSupported(
            "each layer computes by its own number: in another place it would compute something else",
            where=[f"config.json: {key} = true" for key in said],
            help="leave layers out at the end only",
        )


def _difference(found: Stacks, wanted: Stacks, stack: str) -> str:
    """The first thing in which they differ."""
    got, meant = found.layers.get(stack, ()), wanted.layers[stack]
    if len(got) != len(meant):
        return f"{len(got)} layers, not {len(meant)}"
    for place, (one, other) in enumerate(zip(got, meant, strict=True)):
        if one != other:
            return (
                f"layer {place} would have {_said(one - other)}, and its weights are of one with {_said(other - one)}"
            )
    others = [name for name in wanted.layers if found.layers.get(name) != wanted.layers[name]]
    return f"{series(listed(others or sorted(dict(found.rest.items() ^ wanted.rest.items()))))} would change"


def _said(layer: Layer) -> str:
    return series(listed([f"{where or 'itself'} {what}" for where, what in sorted(layer, key=str)], 3)) or "nothing"


def _refusal(model_class: str, stack: str, order: Sequence[int], why: Mapping[str, str]) -> NotSupported:
    counts = {key: what for key, what in why.items() if not what.endswith(f" layers, not {len(order)}")} or why
    rows = [f"config.json: {key}: {what}" for key, what in counts.items()] or ["no field is the number of these layers"]
    return NotSupported(
        f"no config.json makes {model_class} compute these {len(order)} layers of {stack} as the model does now",
        where=listed(rows),
        help="what a layer is follows from its place in this model; keep layers of the same kinds in the same places",
    )
