"""What `--map` and `--plot` draw beside what inspect, diff and verify say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

import surgery

if TYPE_CHECKING:
    from surgery.pictures.measures import Measured

MEASURES = ("relative", "changed", "erased", "rank")


@dataclass(frozen=True)
class Figure:
    """The file of a figure, if one is asked for."""

    path: str
    overwrite: bool

    def check(self, inputs: Sequence[str]) -> None:
        """Raise SurgeryError where it could not be written, before anything is read."""
        if self.path:
            from surgery.pictures.plot import check_plot
            from surgery.pictures.writing import check_picture

            check_plot(self.path)
            check_picture(self.path, inputs, overwrite=self.overwrite)


def chosen(drawn: bool, by: str, *, knows_erased: bool) -> str:
    """The measure that is to be drawn; empty where none is. Raises BadParameter where it is none, or for nothing."""
    if by and by not in MEASURES:
        raise typer.BadParameter(f"`{by}` is no measure: {', '.join(MEASURES)}", param_hint="--by")
    if by and not drawn:
        raise typer.BadParameter("it says what --map and --plot draw: give one of them", param_hint="--by")
    if by == "erased" and not knows_erased:
        what = "what was to change is known of a merge: surgery verify MODEL --base BASE --adapter ADAPTER --map"
        raise typer.BadParameter(what, param_hint="--by erased")
    return (by or "relative") if drawn else ""


def measure_of(key: str) -> Measured:
    """The measure of that name."""
    from surgery.pictures.measures import BY_KEY

    return BY_KEY[key]


def show_difference(found: surgery.Difference, by: str, *, shown: bool, figure: Figure) -> None:
    """Where two checkpoints differ."""
    from .progress import looking

    names = [one.name for one in (*found.changed, *found.unlike, *found.decoded)]
    with looking(shown=shown) as on_tensor:
        changes = surgery.map_changes(found.a, found.b, among=names, on_tensor=on_tensor)
    _draw(changes, by, [], [found.a, found.b], shown, figure)


def show_proof(
    proof: surgery.Proof,
    by: str,
    paths: tuple[str, str, Sequence[str]],
    told: Mapping[str, Any],
    shown: bool,
    figure: Figure,
) -> None:
    """What a merge changed, with what is wrong in it marked."""
    from .progress import looking

    base, merged, adapters = paths
    with looking(shown=shown) as on_tensor:
        changes = surgery.map_changes(base, merged, adapter=list(adapters), on_tensor=on_tensor, **told)
    _draw(changes, by, [one.name for one in proof.wrong], [base, merged, *adapters], shown, figure)


def _draw(
    changes: surgery.ChangeMap, by: str, wrong: Sequence[str], inputs: Sequence[str], shown: bool, figure: Figure
) -> None:
    if figure.path:
        from surgery.pictures.plot import plot_changes

        plot_changes(changes, measure_of(by), figure.path, inputs, wrong=wrong, overwrite=figure.overwrite)
    if shown:
        from .maps import show_change_map

        print()
        show_change_map(changes, measure_of(by), wrong)


def show_shards(model: str, told: Mapping[str, Any], *, shown: bool, figure: Figure) -> None:
    """Which kinds of tensors lie in which shard."""
    from surgery.checks.diff import opened_side
    from surgery.checks.shard_map import shard_map

    shards = shard_map(opened_side(model, told))
    if figure.path:
        from surgery.pictures.plot import plot_shards

        plot_shards(shards, figure.path, [model], overwrite=figure.overwrite)
    if shown:
        from .maps import show_shard_map

        print()
        show_shard_map(shards)
