"""The commands on files alone: reshard, which is writing and nothing else, and reindex."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from .options import Debug, Json, Model, Writing, writing_options
from .running import guarded, written

app = typer.Typer()
PANEL = "Edit"


@app.command(rich_help_panel=PANEL)
@writing_options
def reshard(model: Model, *, options: Writing) -> None:
    """Write the same tensors into other shards, of 5GB if [bold]--max-shard-size[/bold] does not say otherwise;
    [bold]--balanced[/bold].
    """
    import surgery
    from surgery.planning.sharding import DEFAULT

    sized = replace(options, max_shard_size=options.max_shard_size or DEFAULT)
    written(lambda: surgery.open_checkpoint(model), sized)


@app.command(rich_help_panel=PANEL)
def reindex(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="A folder with an index, or the index.", show_default=False)
    ],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a right index beside untouched shards, where the index is stale."""
    import surgery

    from . import output

    def body() -> None:
        output.show_reindexed(surgery.reindex(folder), json=json)

    guarded(body, json=json, debug=debug)
