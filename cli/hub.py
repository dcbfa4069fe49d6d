"""The commands that change the Hub and nothing here: push."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Committing, Debug, FollowLinks, Json, Quiet, writing_options
from .running import guarded

app = typer.Typer()
PANEL = "Hub"


@app.command(rich_help_panel=PANEL)
@writing_options
def push(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder of a model or an adapter.", show_default=False)
    ],
    repo_id: Annotated[
        str, typer.Argument(metavar="REPO_ID", help="org/name; made if it is not there.", show_default=False)
    ],
    revision: Annotated[
        str, typer.Option("--revision", metavar="BRANCH", help="main if not given; made if it is not there.")
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be sent, deleted and kept; change nothing.")
    ] = False,
    follow_links: FollowLinks = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
    *,
    options: Committing,
) -> None:
    """Make a folder one commit on the Hub: verified first, only what is new is sent, all of it visible at once or
    nothing.

    Log in with [bold]hf auth login[/bold], or set HF_TOKEN.
    """
    import surgery

    from . import output
    from .progress import counted

    def body() -> None:
        plan = surgery.plan_push(folder, repo_id, revision=revision or None, **options.committing())
        if dry_run:
            output.show_push_plan(plan, json=json)
            return
        with counted(plan.nbytes, shown=not (quiet or json)) as on_file:
            report = surgery.execute_push(plan, on_file=on_file)
        if json or not quiet:
            output.show_push_report(report, json=json)

    guarded(body, json=json, debug=debug, interrupted=output.SENT)
