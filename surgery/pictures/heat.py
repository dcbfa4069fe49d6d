"""The heat map of a page: a table for each measure and stack of layers, and what is said of each cell."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from ..checks.change_map import OUTSIDE, Cell, ChangeMap, Place
from ..errors import printable
from .measures import NOTHING, VIRIDIS, Measured, Scale, measures_of, parted
from .texts import text

CELLS, COLUMNS = 6000, 40  # that are drawn, at most: in all, beside each other
NAMED = 4  # tensors of a cell that are named


@dataclass(frozen=True)
class _Grid:
    """A stack of layers as it is drawn."""

    stack: str
    layers: Sequence[int]
    modules: Sequence[str]


def heat_maps(changes: ChangeMap, verdicts: Mapping[str, str], wrong: Collection[str]) -> tuple[str, list[list[str]]]:
    """The HTML, and for each cell what is said of it, line by line."""
    if not changes.cells:
        both = f"{len(changes.tensors):,} weights that both have" if _apart(changes) else "weights"
        return f"<p>Nothing changed in the {both}: each is the number that it was.</p>{_left(changes, 0)}", []
    grids, left = _grids(changes)
    outside = changes.outside[:COLUMNS]
    order: dict[Place, int] = {}
    for grid in grids:
        for layer in grid.layers:
            for module in grid.modules:
                place = Place(grid.stack, layer, module)
                if place in changes.cells:
                    order.setdefault(place, len(order))
    for cell in outside:
        order.setdefault(cell.place, len(order))
    bad = changes.places_of(wrong)
    measures = measures_of(changes)
    maps = [_map(measure, changes, grids, outside, order, bad) for measure in measures]
    tips = [_told(changes.cells[place], measures, verdicts) for place in order]
    return _switch(measures) + "".join(maps) + "</div>" + _left(changes, left), tips


def _grids(changes: ChangeMap) -> tuple[list[_Grid], int]:
    """What is drawn, and how many cells are not."""
    room, grids, left = CELLS, list[_Grid](), 0
    for stack in changes.stacks:
        layers, modules = changes.layers(stack), changes.modules(stack)
        shown = modules if len(modules) <= COLUMNS else _largest(changes, stack, modules)
        rows = layers[: room // max(1, len(shown))]
        left += len(layers) * len(modules) - len(rows) * len(shown)
        room -= len(rows) * len(shown)
        grids += [_Grid(stack, rows, shown)] if rows else []
    return grids, left


def _largest(changes: ChangeMap, stack: str, modules: Sequence[str]) -> list[str]:
    """The modules that changed most, in order."""
    most: dict[str, float] = {}
    for place, cell in changes.cells.items():
        if place.stack == stack:
            most[place.module] = max(most.get(place.module, 0.0), cell.relative or 0.0)
    kept = set(sorted(modules, key=lambda module: -most[module])[:COLUMNS])
    return [module for module in modules if module in kept]


def _switch(measures: Sequence[Measured]) -> str:
    """What is drawn is chosen by radio buttons: without a script, too."""
    parts = ['<div class="maps" role="group" aria-label="What is drawn">']
    for at, measure in enumerate(measures):
        checked = " checked" if at == 0 else ""
        parts.append(
            f'<input type="radio" name="by" id="by-{measure.key}"{checked}>'
            f'<label for="by-{measure.key}">{text(measure.title)}</label>'
        )
    return "".join(parts)


def _map(
    measure: Measured,
    changes: ChangeMap,
    grids: Sequence[_Grid],
    outside: Sequence[Cell],
    order: Mapping[Place, int],
    bad: Collection[Place],
) -> str:
    scale = measure.scale_of(changes.cells.values())
    parts = [
        f'<div class="map" id="map-{measure.key}"><p class="meaning">{text(measure.meaning)}</p>',
        _legend(measure, scale),
    ]
    parts += [_grid(measure, scale, changes, grid, order, bad) for grid in grids]
    if outside:
        cells = "".join(
            f'<tr><th scope="row" class="wide">{text(cell.place.module)}</th>{_cell(measure, scale, cell, order, bad)}</tr>'
            for cell in outside
        )
        parts.append(
            '<div class="scroll"><table class="heat" role="grid"><caption>outside of layers</caption>'
            f"<tbody>{cells}</tbody></table></div>"
        )
    return "".join(parts) + "</div>"


def _legend(measure: Measured, scale: Scale) -> str:
    bars = "".join(f'<rect class="f{i}" x="{i * 8}" width="8.5" height="12"/>' for i in range(len(VIRIDIS)))
    middle = measure.written((scale.low * scale.high) ** 0.5 if scale.log else (scale.low + scale.high) / 2)
    ends = [measure.written(scale.low), middle, measure.written(scale.high)]
    marks = "".join(f"<span>{text(end)}</span>" for end in ends)
    return (
        f'<div class="legend"><svg viewBox="0 0 256 12" aria-hidden="true">{bars}</svg>'
        f'<div class="ends">{marks}</div></div>'
    )


def _grid(
    measure: Measured, scale: Scale, changes: ChangeMap, grid: _Grid, order: Mapping[Place, int], bad: Collection[Place]
) -> str:
    rows = []
    for layer in grid.layers:
        cells = "".join(
            _cell(measure, scale, changes.cells.get(Place(grid.stack, layer, module)), order, bad)
            for module in grid.modules
        )
        rows.append(f'<tr><th scope="row">{layer}</th>{cells}</tr>')
    title = f"{text(measure.title)}, {text(grid.stack)}"
    return (
        f'<div class="scroll"><table class="heat" role="grid" aria-label="{title}"><caption>{text(grid.stack)}</caption>'
        f"<thead>{_heads(grid.modules)}</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _heads(modules: Sequence[str]) -> str:
    """Two rows: where modules lie, and their last names."""
    pairs = [parted(module) for module in modules]
    groups = [(where, len(list(those))) for where, those in groupby(where for where, _ in pairs)]
    top = "".join(f'<th scope="colgroup" colspan="{count}">{_breaking(where)}</th>' for where, count in groups)
    last = "".join(f'<th scope="col">{_breaking(name)}</th>' for _, name in pairs)
    first = f'<tr class="where"><td></td>{top}</tr>' if any(where for where, _ in pairs) else ""
    return f'{first}<tr><th scope="col" class="layer">layer</th>{last}</tr>'


def _breaking(name: str) -> str:
    return text(name).replace("_", "_<wbr>").replace(".", ".<wbr>")


def _cell(
    measure: Measured, scale: Scale, cell: Cell | None, order: Mapping[Place, int], bad: Collection[Place]
) -> str:
    if cell is None or cell.place not in order:
        return "<td></td>"
    shown, value = measure.text(cell), measure.of(cell)
    classes = [f"c{scale.step(value)}" if value is not None and shown != NOTHING else "z"]
    mark = '<b aria-label="wrong">✗</b>' if cell.place in bad else ""
    mark += '<b aria-label="not finite">!</b>' if cell.nonfinite else ""
    classes += ["bad"] if cell.place in bad else []
    return f'<td class="{" ".join(classes)}" data-i="{order[cell.place]}">{mark}{text(shown)}</td>'


def _told(cell: Cell, measures: Sequence[Measured], verdicts: Mapping[str, str]) -> list[str]:
    """What is said of a cell: where it is, each measure, verdicts, and the tensors in it."""
    place, names = cell.place, [printable(one.name) for one in cell.tensors]
    where = place.module if place.stack == OUTSIDE else f"{place.module}, layer {place.layer} of {place.stack}"
    said = list(dict.fromkeys(verdicts[one.name] for one in cell.tensors if one.name in verdicts))
    rest = [f"and {len(names) - NAMED} more"] if len(names) > NAMED else []
    odd = [f"{cell.nonfinite} elements are NaN or infinite"] if cell.nonfinite else []
    lines = [f"{measure.title}: {measure.text(cell)}" for measure in measures]
    shown = [printable(where), *lines, *odd, *(f"verdict: {one}" for one in said[:3]), *names[:NAMED], *rest]
    return [one if len(one) <= 200 else f"{one[:200]}…" for one in shown]


def _apart(changes: ChangeMap) -> bool:
    """Whether something is in one of the two alone, or of another shape."""
    return bool(changes.only_before or changes.only_after or changes.unlike)


def _left(changes: ChangeMap, left: int) -> str:
    """What is not drawn, in words."""
    parts = []
    if changes.cells and (still := changes.still):
        shown = ", ".join(f"<code>{text(module, 100)}</code>" for module in still[:12])
        more = f" and {len(still) - 12} more" if len(still) > 12 else ""
        parts.append(f"<p class='small'>As they were, in every layer: {shown}{more}.</p>")
    if left:
        parts.append(f"<p class='small'>{left:,} cells are not drawn: the table of tensors has them.</p>")
    for names, what in (
        (changes.only_before, "only in the base"),
        (changes.only_after, "only in what is shown"),
        (changes.unlike, "of another shape"),
    ):
        if names:
            shown = ", ".join(f"<code>{text(name, 100)}</code>" for name in names[:8])
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            parts.append(f"<p class='small'>{len(names)} {what}: {shown}{more}.</p>")
    return "".join(parts)
