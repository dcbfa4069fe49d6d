"""The commands that look and write nothing: inspect, verify, diff."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Component, Debug, FollowLinks, Json, Key, Model, Quiet, writing_options
from .running import guarded
from .saying import Merging, Reading, merging_arguments, reading_arguments

app = typer.Typer()
PANEL = "Look"

PICTURE = "As a picture"
Map = Annotated[
    bool,
    typer.Option("--map", "--heat-map", help="Draw what changed by layer and module, here.", rich_help_panel=PICTURE),
]
Plot = Annotated[
    str,
    typer.Option(
        "--plot", metavar="FILE.png|svg", help="Write the same as a figure, by matplotlib.", rich_help_panel=PICTURE
    ),
]
OverwritePlot = Annotated[
    bool, typer.Option("--overwrite", help="Replace the figure that is there.", rich_help_panel=PICTURE)
]
HeatMap = Annotated[  # of commands whose --map names what is renamed: `helping.Command` tells the two apart
    bool,
    typer.Option(
        "--heat-map",
        help="Draw what changed by layer and module, here; [bold]--map[/bold] without a rule is the same.",
        rich_help_panel=PICTURE,
    ),
]
By = Annotated[
    str,
    typer.Option(
        "--by",
        metavar="relative|changed|erased|rank",
        help="What is drawn: the size of the change, the share of weights changed, of these what rounding erased,"
        " the effective rank.",
        rich_help_panel=PICTURE,
    ),
]


@app.command(rich_help_panel=PANEL)
@writing_options
def inspect(
    model: Model,
    tensors: Annotated[
        str, typer.Option("--tensors", metavar="REGEX", help="List the tensors whose whole name matches.")
    ] = "",
    map_: Annotated[
        bool, typer.Option("--map", help="Draw the shards by kind of tensor.", rich_help_panel=PICTURE)
    ] = False,
    plot: Plot = "",
    overwrite: OverwritePlot = False,
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

    from . import drawing, output

    figure = drawing.Figure(plot, overwrite)

    def body() -> None:
        figure.check([model])
        if not tensors:
            output.show_inspection(surgery.inspect(model, **reading_arguments(reading)), json=json)
            if (map_ and not json) or plot:
                drawing.show_shards(model, reading_arguments(reading), shown=map_ and not json, figure=figure)
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
    map_: Map = False,
    by: By = "",
    plot: Plot = "",
    overwrite: OverwritePlot = False,
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

    from . import drawing, output
    from .progress import looking

    drawn, figure = drawing.chosen(map_ or bool(plot), by, knows_erased=False), drawing.Figure(plot, overwrite)

    def body() -> None:
        figure.check([a, b])
        with looking(shown=not json and not quiet) as on_tensor:
            found = surgery.diff(a, b, tensors=tensors, on_tensor=on_tensor, **reading_arguments(reading))
        if json or not quiet:
            output.show_difference(found, json=json)
        shown = map_ and not json and not quiet
        if shown or plot:
            drawing.show_difference(found, drawn, shown=shown, figure=figure)
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
    heat_map: HeatMap = False,
    by: By = "",
    plot: Plot = "",
    overwrite: OverwritePlot = False,
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

    from . import drawing, output
    from .progress import looking

    drawn, figure = drawing.chosen(heat_map or bool(plot), by, knows_erased=True), drawing.Figure(plot, overwrite)
    if drawn and not base:
        raise typer.BadParameter("what changed is drawn of a merge", param_hint="--map --base --adapter")
    told_more = through or merging.said() or reading.said()
    if bool(base) != bool(adapters) or (not base and told_more):
        raise typer.BadParameter("a merge is proved against both", param_hint="--base --adapter")
    told = merging_arguments(merging, adapters or ()) | reading_arguments(reading)
    merged_as = {**told, "through": through or None}

    def body() -> None:
        figure.check([model, *([base] if base else []), *(adapters or ())])
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
        shown = heat_map and not json and not quiet
        if json:
            if plot and base and found.proof is not None:
                drawing.show_proof(found.proof, drawn, (base, model, adapters or ()), merged_as, False, figure)
            tensors = {"tensors": found.proof.tensors} if found.proof is not None else {}
            output.show_json({"path": found.path, "ok": found.ok, "checks": found.checks, **tensors})
            if not found.ok:
                raise typer.Exit(1)
            return
        if not quiet:
            output.show_verification(found)
        if (shown or plot) and base and found.proof is not None:
            drawing.show_proof(found.proof, drawn, (base, model, adapters or ()), merged_as, shown, figure)
        if not found.ok and not quiet and output.one_place():
            raise typer.Exit(1)
        found.require()

    guarded(body, json=json, debug=debug, interrupted=output.LOOKED)
