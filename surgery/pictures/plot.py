"""Figures for papers, by matplotlib: the heat map of a change, and shards by kind of tensor, as PNG or SVG.

matplotlib is imported here alone, and only when a figure is asked for. The same values give the same bytes with the
same matplotlib: there is no time in a file.
"""

from __future__ import annotations

import io
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..checks.change_map import Cell, ChangeMap, Place
from ..checks.shard_map import ALL, Piece
from ..errors import NotSupported, printable
from .measures import NOTHING, Measured
from .writing import write_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
COLOURS = dict(zip(ALL, "#0072b2 #e69f00 #56b4e9 #cc79a7 #767676 #009e73 #a0795a".split(), strict=True))
WRONG = "#d55e00"  # the frame around what is wrong
MOST = 120  # rows of a figure
STYLE: Any = {"svg.hashsalt": "surgery", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 8}


def check_plot(path: str | os.PathLike[str]) -> str:
    """The format that the path asks for. Raises NotSupported for others, and where matplotlib is not installed."""
    ending = os.fspath(path).rpartition(".")[2].lower()
    if ending not in FORMATS:
        raise NotSupported("a figure is written as PNG or SVG", where=[os.fspath(path)], help="end its name so")
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise NotSupported(
            "figures need matplotlib, which is not installed", help="pip install 'checkpoint-surgery[plot]'"
        )
    return ending


def plot_changes(
    changes: ChangeMap,
    measure: Measured,
    path: str | os.PathLike[str],
    inputs: Iterable[str] = (),
    *,
    wrong: Iterable[str] = (),
    overwrite: bool = False,
) -> None:
    """Write the heat map, a panel for each stack of layers, to `path`; what `wrong` names has a frame and a cross."""
    ending = check_plot(path)
    bad = changes.places_of(wrong)
    write_picture(path, _drawn(ending, lambda: _heat(changes, measure, bad)), inputs, overwrite=overwrite)


def plot_shards(
    shards: Mapping[str, Sequence[Piece]],
    path: str | os.PathLike[str],
    inputs: Iterable[str] = (),
    *,
    overwrite: bool = False,
) -> None:
    """Write a bar for each shard, by kind of tensor, to `path`."""
    ending = check_plot(path)
    write_picture(path, _drawn(ending, lambda: _bars(shards)), inputs, overwrite=overwrite)


def _drawn(ending: str, draw: Any) -> bytes:
    from matplotlib import rc_context

    with rc_context(STYLE):
        out, figure = io.BytesIO(), draw()
        metadata = {"Date": None} if ending == "svg" else {"Software": None}
        figure.savefig(out, format=ending, dpi=200, bbox_inches="tight", metadata=metadata)
    return out.getvalue()


def _heat(changes: ChangeMap, measure: Measured, bad: Collection[Place]) -> Figure:
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.figure import Figure

    stacks = [(stack, changes.layers(stack)[:MOST], changes.modules(stack)) for stack in changes.stacks]
    if not stacks:
        stacks = [("", [0], [cell.place.module for cell in changes.outside])]
    scale = measure.scale_of(changes.cells.values())
    norm = LogNorm(scale.low, scale.high) if scale.log and scale.high else Normalize(scale.low, scale.high or 1)
    tall = [0.5 + 0.2 * len(layers) for _, layers, _ in stacks]
    wide = 1.8 + 0.62 * max(1, *(len(modules) for _, _, modules in stacks))
    figure = Figure(figsize=(wide, sum(tall) + 0.9), layout="constrained")
    axes = figure.subplots(len(stacks), 1, squeeze=False, gridspec_kw={"height_ratios": tall})[:, 0]
    for axis, (stack, layers, modules) in zip(axes, stacks, strict=True):
        grid = [[_found(changes, Place(stack, layer, module)) for module in modules] for layer in layers]
        _panel(axis, stack, layers, modules, grid, measure, norm, bad)
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(norm, "viridis"), ax=list(axes), shrink=0.8, pad=0.02)
    bar.set_label(measure.title)
    bar.outline.set_visible(False)
    return figure


def _found(changes: ChangeMap, place: Place) -> Cell | None:
    if place.stack:
        return changes.cells.get(place)
    return next((cell for cell in changes.outside if cell.place.module == place.module), None)


def _panel(
    axis: Any,
    stack: str,
    layers: Sequence[int],
    modules: Sequence[str],
    grid: Sequence[Sequence[Cell | None]],
    measure: Measured,
    norm: Any,
    bad: Collection[Place],
) -> None:
    """One stack: a row for each layer."""
    from matplotlib.patches import Rectangle

    nan = float("nan")
    values = [[_value(cell, measure, nan) for cell in row] for row in grid]
    axis.imshow(values, cmap="viridis", norm=norm, aspect="auto")
    axis.set_xticks(range(len(modules)), [_name(module) for module in modules], rotation=35, ha="left")
    axis.xaxis.tick_top()
    axis.set_yticks(range(len(layers)), list(map(str, layers)) if stack else [""])
    axis.tick_params(length=0)
    axis.set_ylabel(f"layer of {_name(stack)}" if stack else "")
    for side in axis.spines.values():
        side.set_visible(False)
    told = len(layers) * len(modules) <= 800
    for y, row in enumerate(grid):
        for x, cell in enumerate(row):
            wrong = cell is not None and cell.place in bad
            if wrong:
                axis.add_patch(Rectangle((x - 0.47, y - 0.45), 0.94, 0.9, fill=False, edgecolor=WRONG, linewidth=1.5))
            if told or wrong:
                light = cell is not None and values[y][x] == values[y][x] and norm(values[y][x]) < 0.5
                text = f"{'✗ ' if wrong else ''}{measure.text(cell) if told else ''}"
                axis.text(x, y, text.strip(), ha="center", va="center", fontsize=6, color="w" if light else "k")


def _value(cell: Cell | None, measure: Measured, nothing: float) -> float:
    if cell is None or measure.text(cell) == NOTHING:
        return nothing
    value = measure.of(cell)
    return nothing if value is None else value


def _name(text: str) -> str:
    """A name that matplotlib takes for no formula."""
    shown = printable(text)
    return (shown if len(shown) <= 60 else f"{shown[:60]}…").replace("$", r"\$")


def _bars(shards: Mapping[str, Sequence[Piece]]) -> Figure:
    from matplotlib.figure import Figure

    shown = dict(list(shards.items())[:MOST])
    figure = Figure(figsize=(6.3, 0.6 + 0.22 * len(shown)), layout="constrained")
    axis = figure.subplots()
    most = max((sum(piece.nbytes for piece in pieces) for pieces in shown.values()), default=0)
    unit, of = ("GB", 1e9) if most >= 2e8 else ("MB", 1e6) if most >= 2e5 else ("kB", 1e3)
    for kind in (kind for kind in ALL if any(piece.kind == kind for pieces in shown.values() for piece in pieces)):
        for row, pieces in enumerate(shown.values()):
            before = sum(p.nbytes for p in pieces if ALL.index(p.kind) < ALL.index(kind)) / of
            here = sum(p.nbytes for p in pieces if p.kind == kind) / of
            axis.barh(row, here, left=before, color=COLOURS[kind], height=0.75, label=kind if row == 0 else None)
        if not any(p.kind == kind for p in next(iter(shown.values()))):
            axis.barh(0, 0, color=COLOURS[kind], label=kind)
    axis.set_yticks(range(len(shown)), [_name(shard) for shard in shown])
    axis.invert_yaxis()
    axis.set_xlabel(unit)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    handles, labels = axis.get_legend_handles_labels()
    legend = {label: handle for handle, label in zip(handles, labels, strict=True)}
    figure.legend(legend.values(), legend.keys(), loc="outside upper center", ncols=len(legend), frameon=False)
    return figure
