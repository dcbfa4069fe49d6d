"""Maps in a terminal: a heat map of what changed by layer and module, and shards by kind of tensor.

Colours where there are some; else, and with NO_COLOR, characters of growing weight. The values stand in every cell.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from rich.console import Console
from rich.style import Style
from rich.text import Text

from surgery.checks.change_map import Cell, ChangeMap, Place
from surgery.checks.shard_map import ALL, Piece
from surgery.errors import listed, printable
from surgery.pictures.measures import DARK, NOTHING, VIRIDIS, Measured, Scale, parted
from surgery.units import size

SHADES, PLAIN = " ·░▒▓█", " .:=*#"  # the latter where the output is not written in UTF-8
WIDE, NARROW = 13, 7  # columns of a cell
KIND_COLOURS = dict(
    zip(ALL, ("#0072b2", "#e69f00", "#56b4e9", "#cc79a7", "#999999", "#009e73", "#777777"), strict=True)
)
LETTERS = dict(zip(ALL, "WAMXNHo", strict=True))
_LEAST_BAR = 20


def console(width: int | None = None) -> Console:
    """Where maps are drawn: as wide as the terminal, 80 columns elsewhere."""
    return Console(highlight=False, markup=False, emoji=False, width=width)


def show_change_map(
    changes: ChangeMap, measure: Measured, wrong: Collection[str] = (), out: Console | None = None
) -> None:
    """A row for each layer, a cell for each module in which anything changed; what `wrong` names is marked with `!`."""
    out, cells = out or console(), list(changes.cells.values())
    out.print(Text(measure.title, "bold"))
    out.print(Text(f"  {measure.meaning}", "dim"))
    if not cells:
        out.print(Text(f"  nothing changed in {len(changes.tensors)} tensors"))
        _show_apart(changes, out)
        return
    draw = _Drawing(measure, measure.scale_of(cells), out, changes.places_of(wrong))
    for stack in changes.stacks:
        for modules in _blocks(changes.modules(stack), out.width - _margin(changes, stack)):
            draw.block(changes, stack, modules)
    for cell in changes.outside:
        line = Text("  ")
        line.append_text(draw.cell(cell, 9)).append(f" {printable(cell.place.module)}")
        out.print(line)
    if still := changes.still:
        out.print(Text(f"unchanged: {', '.join(map(printable, listed(still, 4)))}", "dim"))
    _show_apart(changes, out)
    out.print(draw.legend())


def _show_apart(changes: ChangeMap, out: Console) -> None:
    """What is not drawn, since nothing stands beside it."""
    for names, what in (
        (changes.only_before, "only in the first"),
        (changes.only_after, "only in the second"),
        (changes.unlike, "of another shape"),
    ):
        if names:
            out.print(Text(f"{what}: {len(names)}: {', '.join(map(printable, listed(names, 3)))}"))


def _margin(changes: ChangeMap, stack: str) -> int:
    return max(5, *(len(str(layer)) for layer in changes.layers(stack))) + 1


def _blocks(modules: list[str], room: int) -> list[list[str]]:
    """As many columns beside each other as there is room for, spread evenly."""
    most = max(1, room // NARROW)
    rows = math.ceil(len(modules) / most)
    each = math.ceil(len(modules) / rows)
    return [modules[at : at + each] for at in range(0, len(modules), each)]


class _Drawing:
    """One map: what of, on which scale, where to."""

    def __init__(self, measure: Measured, scale: Scale, out: Console, bad: frozenset[Place]) -> None:
        self.measure, self.scale, self.out, self.bad = measure, scale, out, bad
        self.coloured = out.color_system is not None and not out.no_color
        self.shades = SHADES if (out.encoding or "").lower().replace("-", "").startswith("utf") else PLAIN

    def block(self, changes: ChangeMap, stack: str, modules: list[str]) -> None:
        """The heads, and a row for each layer."""
        margin = _margin(changes, stack)
        wide = min(WIDE, (self.out.width - margin) // len(modules))
        self.out.print(Text(printable(stack), "bold", no_wrap=True, overflow="ellipsis"))
        for line in _heads(modules, wide):
            self.out.print(Text(" " * margin + line))
        for layer in changes.layers(stack):
            row = Text(f"{layer:>{margin - 1}} ")
            for module in modules:
                row.append_text(self.cell(changes.cells.get(Place(stack, layer, module)), wide))
            self.out.print(row)

    def cell(self, cell: Cell | None, wide: int) -> Text:
        """The value in its colour, or behind its shade."""
        text = self.measure.text(cell)
        if cell is None:
            return Text(" " * wide)
        mark = "!" if cell.place in self.bad or cell.nonfinite else ""
        value = self.measure.of(cell)
        step = None if value is None or text == NOTHING else self.scale.step(value)
        text = self._plain(text)
        if not self.coloured:
            shade = " " if step is None else self._shade(step)
            return Text(f"{shade * 2 if wide >= NARROW + 2 else shade}{mark or ' '}{text}"[:wide].ljust(wide))
        if step is None:
            return Text(f"{mark}{text}".center(wide - 1) + " ", "dim")
        style = Style(color="#ffffff" if step < DARK else "#000000", bgcolor=VIRIDIS[step], bold=bool(mark))
        return Text(f"{mark}{text}".center(wide - 1), style).append(" ", "default on default")

    def _ground(self, step: int) -> Style | str:
        return Style(bgcolor=VIRIDIS[step]) if self.coloured else ""

    def _plain(self, text: str) -> str:
        return text if self.shades is SHADES else text.replace("·", ".").replace("–", "-").replace("∞", "inf")

    def _shade(self, step: int) -> str:
        return self.shades[1 + step * (len(self.shades) - 2) // (len(VIRIDIS) - 1)]

    def legend(self) -> Text:
        """The ends of the scale, and what lies between them."""
        low, high = (self.measure.written(x) for x in (self.scale.low, self.scale.high))
        line = Text(f"{self._plain(low)} ")
        for step in range(len(VIRIDIS)) if self.coloured else (0, 8, 16, 24, 31):
            line.append(" " if self.coloured else self._shade(step), self._ground(step))
        line.append(f" {self._plain(high)}{', by logarithms' if self.scale.log else ''}")
        return line.append("   ! not as it should be, or not finite" if self.bad else "")


def _heads(modules: Sequence[str], wide: int) -> list[str]:
    """What modules are called, in two lines: where they lie, and their last name."""
    pairs = [parted(module) for module in modules]
    groups, before = [], None
    for where, _ in pairs:
        groups.append("" if where == before else where)
        before = where
    top = ""
    for at, group in enumerate(groups):
        if group:
            room = wide * next((n for n in range(1, len(groups) - at) if groups[at + n]), len(groups) - at)
            top = top.ljust(at * wide) + _cut(printable(group), room - 1)
    heads = "".join(_cut(printable(last), wide - 1).ljust(wide) for _, last in pairs)
    return [line.rstrip() for line in (top, heads) if line.strip()]


def _cut(text: str, wide: int) -> str:
    return text if len(text) <= wide else f"{text[: max(wide - 1, 0)]}…"


def show_shard_map(shards: Mapping[str, Sequence[Piece]], out: Console | None = None) -> None:
    """A bar for each shard, as long as its bytes: its tensors by kind."""
    out = out or console()
    coloured = out.color_system is not None and not out.no_color
    wide = min(max(map(len, map(printable, shards)), default=0), out.width - _LEAST_BAR - 12)
    room = out.width - wide - 12
    most = max((sum(piece.nbytes for piece in pieces) for pieces in shards.values()), default=0) or 1
    for shard, pieces in shards.items():
        whole = sum(piece.nbytes for piece in pieces)
        line = Text(_end(printable(shard), wide).ljust(wide) + " ")
        for piece, cells in zip(pieces, _cells(pieces, room * whole / most), strict=True):
            line.append((" " if coloured else LETTERS[piece.kind]) * cells, _ground(piece.kind) if coloured else "")
        out.print(line.append(f" {size(whole)}"))
    kinds = [kind for kind in ALL if any(piece.kind == kind for pieces in shards.values() for piece in pieces)]
    legend = Text()
    for kind in kinds:
        legend.append("  " if coloured else LETTERS[kind], _ground(kind) if coloured else "").append(f" {kind}   ")
    out.print(legend)


def _ground(kind: str) -> Style:
    return Style(bgcolor=KIND_COLOURS[kind])


def _end(text: str, wide: int) -> str:
    return text if len(text) <= wide else f"…{text[len(text) - wide + 1 :]}"


def _cells(pieces: Sequence[Piece], room: float) -> list[int]:
    """How many cells each piece takes of a room: those before it and itself, rounded, less those before it."""
    whole, sofar, taken, found = sum(piece.nbytes for piece in pieces) or 1, 0, 0, []
    for piece in pieces:
        sofar += piece.nbytes
        upto = round(room * sofar / whole)
        found.append(upto - taken)
        taken = upto
    return found
