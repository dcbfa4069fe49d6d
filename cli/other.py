"""The commands beside the work: clean, demo, env."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Debug, Json
from .running import guarded

app = typer.Typer()
PANEL = "Other"


@app.command(rich_help_panel=PANEL)
def clean(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR",
            help="An output, here or hf://org/name, or the folder that holds outputs.",
            show_default=False,
        ),
    ],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Remove what broken runs left beside DIR, or beside the outputs inside it."""
    import surgery

    from . import output

    def body() -> None:
        output.show_cleaned(surgery.clean(folder), json=json)

    guarded(body, json=json, debug=debug)


@app.command(rich_help_panel=PANEL)
def demo(
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Where to work; a temporary folder if not given.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Make a small Phi-3 and an adapter; split, merge, reshard and verify it; show that it computes the same."""
    from . import output
    from .demo import run

    left = output.SHOWN if folder is None else (output.SHOWN_IN[0].format(folder=folder), output.SHOWN_IN[1])
    guarded(lambda: run(folder), json=False, debug=debug, interrupted=left)


@app.command(rich_help_panel=PANEL)
def env(json: Json = False, debug: Debug = False) -> None:
    """Say what a bug report needs: versions, the machine's kind, caches; no tokens, and no names."""
    from . import output
    from .environment import environment

    guarded(lambda: output.show_environment(environment(), json=json), json=json, debug=debug)
