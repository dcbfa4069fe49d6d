"""The command line as a whole: one file for each group of commands, put together here.

A command opens, applies pure surgeries, and hands the result to `running.written`.
"""

from __future__ import annotations

import gc
from typing import Annotated

import typer

from . import browse, edit, hub, look, other, recipes, report, surgeries
from .helping import Commands, with_examples

app = typer.Typer(
    name="surgery",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Edit checkpoints offline: safetensors shards and index files, without loading the model.",
    epilog=(
        "Sizes: 5GB is 5·10⁹ bytes, 5GiB is 5·2³⁰. Exit status: 0 done, 1 refused or failed, 2 wrong usage, 130"
        " interrupted, 143 and 129 ended by SIGTERM and SIGHUP."
    ),
)


def run() -> None:
    """Run the command line; `ending.py` says what becomes of what it raises."""
    gc.set_threshold(100_000)  # a checkpoint of 100,000 tensors is half a million objects, and none of them a cycle
    app()


def _version(show: bool) -> None:
    if show:
        import surgery

        print(f"surgery {surgery.__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


for _group in (look, report, browse, edit, surgeries, recipes, hub, other):
    app.add_typer(with_examples(_group.app))
