"""The commands that look and write nothing: inspect, verify, diff."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Component, Debug, FollowLinks, Json, Key, Model, Quiet, writing_options
from .running import guarded
from .saying import Merging, Reading, merging_arguments, reading_arguments

app = typer.Typer()
PANEL = "Look"


@app.command(rich_help_panel=PANEL)
@writing_options
def inspect(
    model: Model,
    tensors: Annotated[
        str, typer.Option("--tensors", metavar="REGEX", help="List the tensors whose whole name matches.")
    ] = "",
    follow_links: FollowLinks = False,
    key: Key = "",
    component: Component = "",
    json: Json = False,
    debug: Debug = False,
    *,
    reading: Reading,
) -> None:
    """Say what a checkpoint or an adapter is: family, sizes, dtypes, shards, fused tensors, ties, oddities."""
    import surgery

    from . import output

    def body() -> None:
        if not tensors:
            output.show_inspection(surgery.inspect(model, **reading_arguments(reading)), json=json)
        else:
            told = reading_arguments(reading)
            said = any(value is not None for value in told.values())
            found = surgery.open_adapter(model, **told) if said else surgery.open_any(model)
            weight_map = {} if isinstance(found, surgery.Adapter) else found.weight_map
            output.show_tensors(found.path, found.tensors, weight_map, tensors, json=json)

    guarded(body, json=json, debug=debug, interrupted=output.LOOKED)


@app.command(rich_help_panel=PANEL)
@writing_options
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A checkpoint or an adapter.", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one of the same kind.", show_default=False)],
    tensors: Annotated[
        str, typer.Option("--tensors", metavar="REGEX", help="Only tensors whose whole name matches; no files.")
    ] = "",
    follow_links: FollowLinks = False,
    key: Key = "",
    component: Component = "",
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
    *,
    reading: Reading,
) -> None:
    """Say what differs between two checkpoints or two adapters, however they are sharded: tensors, values, config,
    files.

    Exit status: 0 equal, 1 different, or refused.
    """
    import surgery

    from . import output
    from .progress import looking

    def body() -> None:
        with looking(shown=not json and not quiet) as on_tensor:
            found = surgery.diff(a, b, tensors=tensors, on_tensor=on_tensor, **reading_arguments(reading))
        if json or not quiet:
            output.show_difference(found, json=json)
        if not found.equal:
            raise typer.Exit(1)

    guarded(body, json=json, debug=debug, interrupted=output.LOOKED)


PROOF = "Is it this merge?"


@app.command(rich_help_panel=PANEL)
@writing_options
def verify(
    model: Model,
    values: Annotated[bool, typer.Option("--values", help="Read every tensor and look for NaN and infinity.")] = False,
    check_class: Annotated[
        bool, typer.Option("--class/--no-class", help="Ask the class that config.json names, through transformers.")
    ] = True,
    check_all: Annotated[
        bool, typer.Option("--check-all", help="Restore every block of an undo record, not one of each tensor.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="BASE", help="Of which MODEL should be a merge.", rich_help_panel=PROOF),
    ] = None,
    adapters: Annotated[
        list[str] | None,
        typer.Option("--adapter", metavar="ADAPTER", help="Merged into it; may be given often.", rich_help_panel=PROOF),
    ] = None,
    through: Annotated[
        str,
        typer.Option(
            "--through",
            metavar="nf4[:BLOCK][:double]",
            help="BASE is in 16 bits, and was merged into as what its codes mean.",
            rich_help_panel=PROOF,
        ),
    ] = "",
    follow_links: FollowLinks = False,
    key: Key = "",
    component: Component = "",
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
    *,
    merging: Merging,
    reading: Reading,
) -> None:
    """Check headers, index and files against each other, the values, and what the model's class says.

    With [bold]--base[/bold] and [bold]--adapter[/bold]: whether every adapter is in it, once, and all else as in the
    base, whoever merged it; what is rounding, and what is wrong. How surgery merged is read from MODEL, unless it is
    said here.

    Exit status: 0 all well, 1 not.
    """
    import surgery

    from . import output
    from .progress import looking

    told_more = through or merging.said() or reading.said()
    if bool(base) != bool(adapters) or (not base and told_more):
        raise typer.BadParameter("a merge is proved against both", param_hint="--base --adapter")
    told = merging_arguments(merging, adapters or ()) | reading_arguments(reading)

    def body() -> None:
        with looking(shown=(values or base is not None) and not json and not quiet) as on_tensor:
            found = surgery.verify(
                model,
                values=values,
                check_class=check_class,
                check_all=check_all,
                base=base,
                adapter=adapters or (),
                through=through or None,
                **told,
                on_tensor=on_tensor,
            )
        if json:
            tensors = {"tensors": found.proof.tensors} if found.proof is not None else {}
            output.show_json({"path": found.path, "ok": found.ok, "checks": found.checks, **tensors})
            if not found.ok:
                raise typer.Exit(1)
            return
        if not quiet:
            output.show_verification(found)
        if not found.ok and not quiet and output.one_place():
            raise typer.Exit(1)
        found.require()

    guarded(body, json=json, debug=debug, interrupted=output.LOOKED)
