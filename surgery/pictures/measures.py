"""The four measures of a change that are drawn: how each is told of a cell, written, and turned into a colour."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..checks.change_map import Cell, ChangeMap

# matplotlib's viridis (CC0) at 32 even steps: in order of lightness, for every kind of colour blindness.
VIRIDIS = (
    "#440154 #470d60 #48186a #482374 #472e7c #453882 #424186 #3e4a89 #3a548c #365d8d #32658e #2e6d8e #2b758e #287d8e"
    " #25848e #228c8d #1f948c #1e9c89 #20a386 #25ab82 #2eb37c #3aba76 #48c16e #58c765 #6ccd5a #7fd34e #93d741 #a8db34"
    " #c0df25 #d5e21a #eae51a #fde725"
).split()
DARK = 14  # of these, so many are dark enough for white letters
NOTHING = "·"  # nothing changed
UNKNOWN = "–"


@dataclass(frozen=True, slots=True)
class Scale:
    """From `low` to `high`, by logarithms or evenly."""

    low: float
    high: float
    log: bool

    def step(self, value: float) -> int:
        """Which of the colours a value has; what is beyond an end has the colour of that end."""
        if math.isnan(value) or self.high <= self.low:
            return 0
        if self.log:
            value, low, high = (math.log(max(x, 1e-300)) for x in (min(value, self.high), self.low, self.high))
        else:
            low, high = self.low, self.high
        part = (value - low) / (high - low)
        return min(max(round(part * (len(VIRIDIS) - 1)), 0), len(VIRIDIS) - 1)


@dataclass(frozen=True, slots=True)
class Measured:
    """A measure: its `title`, what it says in a sentence, its value of a cell, how that is written, its scale."""

    key: str
    title: str
    meaning: str
    of: Callable[[Cell], float | None]
    written: Callable[[float], str]
    scale: Callable[[list[float]], Scale]

    def text(self, cell: Cell | None) -> str:
        """The value as it stands in a cell."""
        if cell is None:
            return ""
        if not any(one.meant if self.key == "erased" else one.changed for one in cell.tensors):
            return NOTHING
        value = self.of(cell)
        return UNKNOWN if value is None else self.written(value)

    def scale_of(self, cells: Iterable[Cell]) -> Scale:
        """The scale on which the values of these cells lie."""
        values = [value for cell in cells if (value := self.of(cell)) is not None and math.isfinite(value)]
        return self.scale([value for value in values if value > 0])


def _by_size(values: list[float]) -> Scale:
    """By logarithms, over a decade at least, and three at most."""
    if not values:
        return Scale(0, 0, log=True)
    high = max(values)
    return Scale(min(max(min(values), high / 1000), high / 10), high, log=True)


def short(value: float) -> str:
    """A number in at most seven characters: 0.012, 1.2e-05."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "NaN"
    if value and (abs(value) < 0.001 or abs(value) >= 10000):
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e+")
    return f"{value:.3g}" if abs(value) >= 100 else f"{value:#.2g}".rstrip(".") if value else "0"


def percent(value: float) -> str:
    """A share: all and nothing are written so only where it is all and nothing."""
    if not math.isfinite(value) or value in (0.0, 1.0):
        return f"{value:.0%}"
    shown = f"{100 * value:.0f}" if 0.1 <= value < 0.995 else f"{100 * value:.2g}" if value < 0.1 else ">99"
    return f"{shown}%"


MEASURES = (
    Measured(
        "relative",
        "size of the change",
        "‖change‖ / ‖weight before‖, Frobenius norms",
        lambda cell: cell.relative,
        short,
        _by_size,
    ),
    Measured(
        "changed",
        "share of weights changed",
        "weights that are other numbers afterwards, of all",
        lambda cell: cell.changed,
        percent,
        lambda values: Scale(0, 1, log=False),
    ),
    Measured(
        "erased",
        "share erased by rounding",
        "of the weights that were to change, those that rounding leaves as they were",
        lambda cell: cell.erased,
        percent,
        lambda values: Scale(0, 1, log=False),
    ),
    Measured(
        "rank",
        "effective rank of the change",
        "over how many directions it spreads: (Σσ²)² / Σσ⁴ of its singular values σ",
        lambda cell: cell.rank,
        lambda value: f"{value:.0f}" if value >= 100 else f"{value:.1f}",
        lambda values: Scale(0, max(values, default=0), log=False),
    ),
)
BY_KEY = {measure.key: measure for measure in MEASURES}


def parted(module: str) -> tuple[str, str]:
    """Where a module lies, and its own name: its last part, with a bias and a number, such as to_out.*, behind it."""
    names = module.split(".")
    at = len(names) - 1
    while at > 0 and names[at] in ("*", "bias"):
        at -= 1
    return ".".join(names[:at]), ".".join(names[at:])


def measures_of(changes: ChangeMap) -> tuple[Measured, ...]:
    """Those of which anything is known: what rounding erased, where it is known what was to change."""
    return MEASURES if changes.merging else tuple(one for one in MEASURES if one.key != "erased")
