"""What was said to a way of blending: parameters, of all models or of one, of all tensors or of those of a pattern, as
one number or as a gradient over the layers.

    weight=0.5                 of all
    weight@2=0.5               of the second model
    weight@2:self_attn=0,0.5,1 of its tensors in whose names `self_attn` occurs: 0 in the first layer, 1 in the last
    t#1:mlp=0.3                of the first slice, where the layers are said in slices

Of what is said several times that counts which comes first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import NothingMatched, SurgeryError, listed, nearest, series
from ...evaluation.blending.method import Method
from ...names import compiled
from ...patterns.rule import Rule as Expression

Value = float | int | bool | str | Sequence[Any]
HOW = "NAME[@MODEL][#SLICE][:REGEX]=VALUE, models and slices counted from 1, a gradient as V,V,…"
_KEY = re.compile(r"(?P<name>\w+)(?:@(?P<model>\d+))?(?:#(?P<slice>\d+))?(?::(?P<pattern>.*))?", re.DOTALL)
_WORDS = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0}


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor of the output, as far as a parameter may follow from it: `way` is 0 in the first layer, 1 in the last
    one.
    """

    name: str
    way: float = 0.0
    slice: int = 0


@dataclass(frozen=True, slots=True)
class Rule:
    """Something that was said: of the model and slice of that number from 1, or of all."""

    name: str
    values: tuple[float, ...]
    model: int | None = None
    slice: int | None = None
    pattern: Expression | None = None
    text: str = ""

    def at(self, place: Place, called: str, model: int | None) -> bool:
        """Whether it is of this place, in which the tensor of that model is `called` so."""
        return (
            (self.model is None or self.model == model)
            and (self.slice is None or self.slice == place.slice)
            and (self.pattern is None or bool(self.pattern.search(called)))
        )

    def value(self, way: float) -> float:
        """The number there."""
        if len(self.values) == 1:
            return self.values[0]
        scaled = way * (len(self.values) - 1)
        low = int(scaled)
        rest = scaled - low
        return (1 - rest) * self.values[low] + rest * self.values[min(len(self.values) - 1, low + 1)]


def rules_of(method: str, row: Method, said: Mapping[str, Value], *, models: int, slices: int) -> list[Rule]:
    """What was said, as rules. Raises SurgeryError for what is nothing that can be said of this method."""
    return [_rule(method, row, key, value, models, slices) for key, value in said.items()]


def _rule(method: str, row: Method, key: str, value: Value, models: int, slices: int) -> Rule:
    found = _KEY.fullmatch(key)
    where = [f"{key}={value}"]
    if not found:
        raise SurgeryError(f"`{key}` is no parameter", where=where, help=HOW)
    known = [*row.each, *row.shared]
    if (name := found["name"]) not in known:
        close = nearest(name, known) or known
        raise SurgeryError(
            f"`{name}` is no parameter of {method}", where=where, help=f"it has {series(listed(close, 12))}"
        )
    model, at = (int(found[part]) if found[part] else None for part in ("model", "slice"))
    if model is not None and name in row.shared:
        raise SurgeryError(
            f"`{name}` is of all models, not of one", where=where, help=f"say {name}=…, without @{model}"
        )
    for number, many, what in ((model, models, "model"), (at, slices, "slice")):
        if number is not None and not 1 <= number <= many:
            raise SurgeryError(f"there is no {what} {number}: they are {many}", where=where, help=HOW)
    pattern = compiled(found["pattern"]) if found["pattern"] is not None else None
    values = numbers_in(value, where)
    return Rule(name, values, model, at, pattern, f"{key}={series(map(str, values), ',')}")


def numbers_in(value: Value, where: Sequence[str]) -> tuple[float, ...]:
    """One number, or those of a gradient; true is 1. Raises SurgeryError."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, Sequence) else [value]
    try:
        found = tuple(_number(part) for part in parts)
    except (TypeError, ValueError):
        found = ()
    if not found or not all(abs(one) < float("inf") for one in found):
        raise SurgeryError(f"`{value}` is no number, and no gradient of numbers", where=where, help=HOW)
    return found


def _number(part: Any) -> float:
    text = part.strip().lower() if isinstance(part, str) else part
    return _WORDS[text] if isinstance(text, str) and text in _WORDS else float(text)


def check_used(rules: Iterable[Rule], names: Sequence[str]) -> None:
    """Raise NothingMatched for a pattern that occurs in no name."""
    for rule in rules:
        if rule.pattern is not None and not any(rule.pattern.search(name) for name in names):
            raise NothingMatched(
                f"`{rule.pattern.pattern}` occurs in no name",
                where=[rule.text, f"names are such as {series(listed(list(names), 3))}"],
                help="the pattern may occur anywhere in a name; `surgery inspect --tensors '.*'` lists them",
            )


def numbers_for(
    method: str, row: Method, rules: Sequence[Rule], place: Place, models: Sequence[tuple[int, str]]
) -> dict[str, float]:
    """All parameters at a place: those of all models, and of each of `models`, (its number from 1, what the tensor is
    called there), as name@0, name@1, … Raises SurgeryError where one is not said that must be.
    """

    def found(name: str, default: float | None, called: str, model: int | None) -> float:
        for rule in rules:
            if rule.name == name and rule.at(place, called, model):
                return rule.value(place.way)
        if default is None:
            raise SurgeryError(f"{method} must be told `{name}`", where=[place.name], help=f"--parameter {name}=VALUE")
        return default

    shared = {name: found(name, default, place.name, None) for name, default in row.shared.items()}
    each = {
        f"{name}@{i}": found(name, default, called, number)
        for name, default in row.each.items()
        for i, (number, called) in enumerate(models)
    }
    return shared | each


def checked(method: str, numbers: Mapping[str, float], many: int, where: str) -> None:
    """Raise SurgeryError for numbers with which nothing can be computed."""
    for problem in _problems(method, numbers, many):
        raise SurgeryError(f"{method}: {problem}", where=[where])


def _problems(method: str, numbers: Mapping[str, float], many: int) -> Iterator[str]:
    weights = [numbers[f"weight@{i}"] for i in range(many) if f"weight@{i}" in numbers]
    normal = numbers.get("normalize") if method == "linear" else numbers.get("normalize_weights")
    if weights and normal and not sum(weights):
        yield "the weights sum to 0, by which cannot be divided"
    for i in range(many):
        density, epsilon = numbers.get(f"density@{i}", 1.0), numbers.get(f"epsilon@{i}")
        gamma = numbers.get(f"gamma@{i}", 0.0)
        if not 0 <= gamma <= 1:
            yield f"gamma is a share, between 0 and 1, not {gamma}"
        if not 0 <= density <= 1:
            yield f"the density is a share, between 0 and 1, not {density}"
        if epsilon is not None and 0 < density < 1 and not (epsilon < density < 1 - epsilon):
            yield f"density - epsilon and density + epsilon must be between 0 and 1: {density} and {epsilon}"
