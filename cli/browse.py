"""The command browse: a checkpoint's modules as a tree, and what a tensor is, in a terminal."""

from __future__ import annotations

from importlib.util import find_spec

import typer

from .options import Component, Debug, FollowLinks, Key, Model, writing_options
from .running import guarded

app = typer.Typer()
PANEL = "Look"


@app.command(rich_help_panel=PANEL)
@writing_options
def browse(
    model: Model,
    follow_links: FollowLinks = False,
    key: Key = "",
    component: Component = "",
    debug: Debug = False,
) -> None:
    """Walk through a checkpoint's modules: dtype, shape and shard of each tensor; statistics and values where asked.

    Headers are read, and of values only those that are looked at; on the Hub, too.
    """
    import surgery

    from . import output

    def body() -> None:
        if find_spec("textual") is None:
            tip = "pip install 'checkpoint-surgery[browse]'; or without it: surgery inspect MODEL --tensors '.*'"
            raise surgery.NotSupported("browse needs textual", help=tip)
        found = surgery.open_any(model)
        from .browser import Browser

        Browser(found).run()

    guarded(body, json=False, debug=debug, interrupted=output.LOOKED)
