"""What `--map` draws beside what inspect, diff and verify say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

import surgery

if TYPE_CHECKING:
    from surgery.pictures.measures import Measured

MEASURES = ("relative", "changed", "erased", "rank")


def chosen(shown: bool, by: str, *, knows_erased: bool) -> str:
    """The measure that is to be drawn; empty where none is. Raises BadParameter where it is none, or for nothing."""
    if by and by not in MEASURES:
        raise typer.BadParameter(f"`{by}` is no measure: {', '.join(MEASURES)}", param_hint="--by")
    if by and not shown:
        raise typer.BadParameter("it says what --map draws: give both", param_hint="--by")
    if by == "erased" and not knows_erased:
        what = "what was to change is known of a merge: surgery verify MODEL --base BASE --adapter ADAPTER --map"
        raise typer.BadParameter(what, param_hint="--by erased")
    return (by or "relative") if shown else ""


def measure_of(key: str) -> Measured:
    """The measure of that name."""
    from surgery.pictures.measures import BY_KEY

    return BY_KEY[key]


def show_difference(found: surgery.Difference, by: str) -> None:
    """Where two checkpoints differ."""
    from .maps import show_change_map
    from .progress import looking

    names = [one.name for one in (*found.changed, *found.unlike, *found.decoded)]
    with looking(shown=True) as on_tensor:
        changes = surgery.map_changes(found.a, found.b, among=names, on_tensor=on_tensor)
    print()
    show_change_map(changes, measure_of(by))


def show_proof(
    proof: surgery.Proof,
    by: str,
    base: str,
    merged: str,
    adapters: Sequence[str],
    told: Mapping[str, Any],
) -> None:
    """What a merge changed, with what is wrong in it marked."""
    from .maps import show_change_map
    from .progress import looking

    with looking(shown=True) as on_tensor:
        changes = surgery.map_changes(base, merged, adapter=list(adapters), on_tensor=on_tensor, **told)
    print()
    show_change_map(changes, measure_of(by), [one.name for one in proof.wrong])


def show_shards(model: str, told: Mapping[str, Any]) -> None:
    """Which kinds of tensors lie in which shard."""
    from surgery.checks.diff import opened_side
    from surgery.checks.shard_map import shard_map

    from .maps import show_shard_map

    print()
    show_shard_map(shard_map(opened_side(model, told)))
