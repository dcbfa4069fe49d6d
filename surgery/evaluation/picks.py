"""What of a file is read at once: picks whose bytes lie together, cut until a span holds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from ..lazy.runs import Dim
from .strided import extent, split

LINE = 64  # bytes of a line of the cache: what is written to in parts of lines costs twice


@dataclass(frozen=True, slots=True)
class Pick:
    """Bytes from `at` of a file on, by `dims`, to their places in `out`, from `to` on."""

    at: int
    to: int
    dims: tuple[Dim, ...]
    out: memoryview

    @property
    def stop(self) -> int:
        """One past the last byte of the file."""
        return self.at + extent(self.dims)

    @property
    def size(self) -> int:
        """How many bytes are picked."""
        return prod(d.count for d in self.dims)

    @property
    def run(self) -> int:
        """How many of them lie together on both sides."""
        return split(self.dims)[0]

    @property
    def outer(self) -> tuple[Dim, ...]:
        """The dims of such runs."""
        return split(self.dims)[1]

    @property
    def widest(self) -> Dim | None:
        """The dim that reaches over all others in the file; None of a single run."""
        return max(self.outer, key=lambda d: d.at, default=None)


def reach(picks: Sequence[Pick]) -> tuple[int, int]:
    """From the first to one past the last byte of the file."""
    return min(pick.at for pick in picks), max(pick.stop for pick in picks)


def neighbours(picks: Sequence[Pick]) -> Iterator[list[Pick]]:
    """The picks, together those that go through the file in the same steps and begin within one of them."""
    for alike in by_widest(picks):
        wide, group = alike[0].widest, [alike[0]]
        for pick in alike[1:]:
            if wide and pick.at - group[0].at < wide.at:
                group.append(pick)
            else:
                yield group
                group = [pick]
        yield group


def by_widest(picks: Sequence[Pick]) -> list[list[Pick]]:
    """The picks in the order of the file, together those that make the same steps along it."""
    alike: dict[tuple[int, int] | None, list[Pick]] = {}
    for pick in sorted(picks, key=lambda pick: pick.at):
        wide = pick.widest
        alike.setdefault((wide.count, wide.at) if wide else None, []).append(pick)
    return list(alike.values())


def in_steps(picks: Sequence[Pick], span: int) -> Iterator[list[Pick]]:
    """Picks of one widest dim, cut along it so that each part reaches over at most `span` bytes, or is one step."""
    wides = [_widest(pick) for pick in picks]
    wide = wides[0]
    start, stop = reach(picks)
    within = stop - start - (wide.count - 1) * wide.at
    fits = _whole_lines(max(1, (span - within) // wide.at + 1), wide)
    for first in range(0, wide.count, fits):
        count = min(fits, wide.count - first)
        yield [_steps(pick, own, first, count) for pick, own in zip(picks, wides, strict=True)]


def _widest(pick: Pick) -> Dim:
    wide = pick.widest
    assert wide is not None
    return wide


def _whole_lines(fits: int, wide: Dim) -> int:
    """As many steps, or fewer, that fill whole lines where each step is to the next place."""
    unit = LINE // wide.to if wide.to < LINE else 1
    return fits // unit * unit or fits


def _steps(pick: Pick, wide: Dim, first: int, count: int) -> Pick:
    rest = (d for d in pick.dims if d is not wide)
    dims = sorted((d for d in (*rest, Dim(count, wide.at, wide.to)) if d.count > 1), key=lambda d: -d.to)
    return Pick(pick.at + first * wide.at, pick.to + first * wide.to, tuple(dims), pick.out)
