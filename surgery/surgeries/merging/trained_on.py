"""What it costs to merge into another base than the one that was trained: measured, weight by weight.

An adapter that was trained on codes of a model was trained on what they mean, W + q, and not on W. The change d is
right on that; on W it lies on weights that it never saw.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from ...checkpoint import Checkpoint
from ...errors import NothingMatched, NotSupported, SurgeryError, listed
from ...evaluation.lengths import Lengths, lengths
from ...names import natural
from ...quantization.quantised import Quantisation, quantised
from .trained_base import rescaled

ROUNDING = 0.0017  # of a weight's length: what one rounding to bfloat16 takes, measured on normal numbers


@dataclass(frozen=True)
class Costs:
    """For each weight that an adapter touches its length, that of the change, and that of what quantisation did, by the
    weight's name; `trained_on` is the checkpoint with the codes.
    """

    trained_on: str
    weights: dict[str, Lengths]

    @property
    def ratios(self) -> dict[str, float]:
        """How many times the change is in what quantisation did, by weight; the largest first."""
        found = {name: one.off / one.added if one.added else float("inf") for name, one in self.weights.items()}
        return dict(sorted(found.items(), key=lambda pair: (-pair[1], natural(pair[0]))))

    @property
    def rounding(self) -> float:
        """How many times the change is in one rounding to bfloat16, in the median."""
        return median(ROUNDING * one.weight / one.added if one.added else float("inf") for one in self.weights.values())

    def note(self, base: str) -> str:
        """What the report says."""
        ratios = self.ratios
        worst = next(iter(ratios))
        return (
            f"the adapter was trained on {self.trained_on}: quantisation changed its weights by"
            f" {median(ratios.values()):.2g} times what the adapter does, in the median of {len(ratios)}, and"
            f" {ratios[worst]:.2g} times in the worst, {worst}. By that much the result, whose base is {base}, is off"
            f" the model that was trained; merged into {self.trained_on} in 16 bits it is off by one rounding,"
            f" {self.rounding:.2g} times the change; with --requantize the report says what survives there"
        )

    def told(self) -> dict[str, Any]:
        """The same in figures, for programs."""
        ratios = self.ratios
        modules = {
            name: {"weight": one.weight, "delta": one.added, "quantisation": one.off, "ratio": ratios[name]}
            for name, one in sorted(self.weights.items(), key=lambda pair: natural(pair[0]))
        }
        worst = next(iter(ratios))
        return {
            "trained_on": self.trained_on,
            "median": median(ratios.values()),
            "worst": {"weight": worst, "ratio": ratios[worst]},
            "choices": {"this base": median(ratios.values()), "the quantised one, in 16 bits": self.rounding},
            "weights": modules,
        }


def with_costs(made: Checkpoint, base: Checkpoint, trained_on: Checkpoint | None) -> Checkpoint:
    """What was `made` of the base, with a note on what it costs that the adapters were trained on another."""
    if trained_on is None:
        return made
    costs = measured(base, made, trained_on)
    return replace(made, notes=(*made.notes, costs.note(base.path)), costs=costs.told())


def measured(base: Checkpoint, made: Checkpoint, trained_on: Checkpoint) -> Costs:
    """What the codes of `trained_on` mean, against the base that was given and what adapters `made` of it; reads all
    that these touch.

    Raises NothingMatched where nothing that they touch is quantised there, NotSupported where its weights are not those
    of the model that it was made from, SurgeryError for another shape.
    """
    held = quantised(trained_on)
    _check_comparable(trained_on, held)
    names = [name for name, tensor in made.tensors.items() if name in base.tensors and base.tensors[name] is not tensor]
    both = [name for name in sorted(names, key=natural) if name in held.weights]
    if not both:
        what = "no weight that the adapters touch is quantised in what they are said to be trained on"
        raise NothingMatched(what, where=[trained_on.path, *listed(sorted(names, key=natural))])
    return Costs(trained_on.path, {name: _lengths(name, base, made, held) for name in both})


def _check_comparable(trained_on: Checkpoint, held: Quantisation) -> None:
    """Raise NotSupported where its weights were changed by more than rounding."""
    if why := rescaled(trained_on, held):
        tip = "merge into it itself: it is the only base of adapters that were trained on it"
        raise NotSupported(f"weights cannot be compared: {why}", where=[trained_on.path], help=tip)


def _lengths(name: str, base: Checkpoint, made: Checkpoint, held: Quantisation) -> Lengths:
    one, other, now = base.tensors[name], held.weights[name].weight, made.tensors[name]
    if not one.shape == other.shape == now.shape:
        where = [f"{name}: {list(one.shape)} in the base, {list(other.shape)} in what was trained on"]
        raise SurgeryError("the model that was trained on has other shapes than the base", where=where)
    return lengths(one, now, other)
