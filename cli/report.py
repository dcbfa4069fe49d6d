"""The command report: one HTML file that shows a checkpoint, and what changed in it."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Component, Debug, FollowLinks, Json, Key, Model, Quiet, writing_options
from .running import guarded
from .saying import Merging, Reading, merging_arguments, reading_arguments

app = typer.Typer()
PANEL = "Look"
HELD = "What changed?"


@app.command(rich_help_panel=PANEL)
@writing_options
def report(
    model: Model,
    out: Annotated[
        str,
        typer.Option("--output", "-o", metavar="FILE", help="The HTML file to write, needed.", show_default=False),
    ] = "",
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="BASE", help="What MODEL is compared with.", rich_help_panel=HELD),
    ] = None,
    adapters: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            metavar="ADAPTER",
            help="With --base: merged into MODEL; without it: to be merged. May be given often.",
            rich_help_panel=HELD,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that is there.")] = False,
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
    """Write one HTML file that shows a checkpoint: shards, dtypes, lineage; what changed in it, and whether that is
    right.

    Nothing in the file asks a network for anything. Values of tensors are read where there is a [bold]--base[/bold] or
    an [bold]--adapter[/bold]: with both, every tensor is judged as by [bold]verify[/bold].

    Exit status: 0 written, whatever the verdict.
    """
    import surgery
    from surgery.errors import printable
    from surgery.pictures.writing import check_picture
    from surgery.units import size

    from . import output
    from .progress import looking

    if not out:
        raise typer.BadParameter("say which file is to be written", param_hint="--output -o")
    if not adapters and (merging.said() or reading.said()):
        raise typer.BadParameter("this is said of adapters: give one", param_hint="--adapter")
    told = merging_arguments(merging, adapters) | reading_arguments(reading) if adapters else {}

    def body() -> None:
        check_picture(out, [model, *([base] if base else []), *(adapters or ())], overwrite=overwrite)
        with looking(shown=not json and not quiet) as on_tensor:
            found = surgery.report(model, base=base, adapter=adapters or (), on_tensor=on_tensor, **told)
        found.write(out, overwrite=overwrite)
        if json:
            ok = found.verification.ok if found.verification is not None else None
            output.show_json({"output": out, "nbytes": len(found.html.encode()), "ok": ok})
        elif not quiet:
            print(printable(f"written: {out}, {size(len(found.html.encode()))}"))

    guarded(body, json=json, debug=debug, interrupted=output.LOOKED)
