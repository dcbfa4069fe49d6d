"""How a rank is chosen, from the singular values that there are; and what is told of what was kept."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

from ...errors import SurgeryError
from ...names import natural
from ...step import Option

RankOf = Annotated[int | None, Option("The rank of each module, or what it has, if less.", "N", ("--rank", "-r"))]
EnergyOf = Annotated[
    float | None,
    Option(
        "In place of --rank: the least that keeps this share of the squares of the singular values, as 0.99.", "SHARE"
    ),
]


@dataclass(frozen=True, slots=True)
class Choice:
    """`rank`, or the least one that keeps `energy` of the squares of the singular values, but at most `most`."""

    rank: int | None
    energy: float | None
    most: int | None

    def __call__(self, squares: Sequence[float], total: float) -> int:
        """The rank for these squares, of which the sum with those that are not known is `total`; at least 1."""
        if self.energy is None:
            return min(self.rank or 0, len(squares))
        kept, wanted = 0.0, self.energy * total
        for rank, square in enumerate(squares, 1):
            kept += square
            if kept >= wanted or rank == self.most:
                return rank
        return max(1, len(squares))


def choice(rank: int | None, energy: float | None, max_rank: int | None) -> Choice:
    """The choice that is asked for. Raises SurgeryError for one that is none."""
    if (rank is None) == (energy is None):
        raise SurgeryError("which rank is not said, or twice", help="give --rank, or --energy (and --max-rank with it)")
    if energy is None and max_rank is not None:
        raise SurgeryError("--max-rank is for --energy", help="give --rank alone, or --energy with --max-rank")
    for option, value in (("rank", rank), ("max_rank", max_rank)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise SurgeryError(f"a {option} of {value} is none", help="give 1 or more")
    if energy is not None and not 0 < energy <= 1:
        raise SurgeryError(f"an energy of {energy} is no share", help="give a number above 0 and up to 1, such as 0.99")
    return Choice(rank, energy, max_rank)


@dataclass(frozen=True, slots=True)
class Kept:
    """What a rank keeps of a module: the share of the squares of its singular values, and the first one that was left,
    as a part of the last that was kept: near 1, there was no such rank.
    """

    rank: int
    share: float
    following: float


def kept(rank: int, squares: Sequence[float], total: float) -> Kept:
    """What is told of `rank`, of singular values with these squares, the largest first, which sum up to `total`."""
    share = sum(squares[:rank]) / total if total else 1.0
    last = squares[rank - 1] if rank else 0.0
    after = squares[rank] if rank < len(squares) else 0.0
    return Kept(rank, min(1.0, share), math.sqrt(after / last) if last else 0.0)


def told(found: Mapping[str, Kept]) -> dict[str, object]:
    """For programs: each module's."""
    return {"kept": {module: asdict(one) for module, one in sorted(found.items(), key=lambda item: natural(item[0]))}}


def notes_on(found: Mapping[str, Kept]) -> list[str]:
    """For people: of the modules that are called alike, the least, the median and the most."""
    alike: dict[str, dict[str, Kept]] = {}
    for module, one in found.items():
        alike.setdefault(module.rpartition(".")[2], {})[module] = one
    return [_note(leaf, mine) for leaf, mine in sorted(alike.items())]


def _note(leaf: str, found: Mapping[str, Kept]) -> str:
    ranks, shares = sorted(one.rank for one in found.values()), [one.share for one in found.values()]
    worst = min(found, key=lambda module: (found[module].share, natural(module)))
    least, middle, after = found[worst].share, statistics.median(shares), max(one.following for one in found.values())
    rank = f"rank {ranks[0]}" if ranks[0] == ranks[-1] else f"ranks {ranks[0]} to {ranks[-1]}"
    verb = "keeps" if ranks[0] == ranks[-1] else "keep"
    alike = percent(middle) == percent(least)
    shown = percent(least) if alike else f"{percent(middle)} in the median, {percent(least)} in {worst}"
    rest = f"the next σ is at most {after:.2g} of the last" if after else "no further σ is there"
    return f"{leaf} ×{len(found)}: {rank} {verb} {shown}; {rest}"


def percent(share: float) -> str:
    """A share as it is read: never rounded up to all of it."""
    return ">99.99 %" if share > 0.9999 else f"{math.floor(share * 10000) / 100:.2f} %"
