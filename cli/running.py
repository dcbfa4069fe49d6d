"""How a command is run: what goes wrong, and Ctrl-C, end it with a clear word; what writes does so in one way."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from .ending import status_of
from .options import Writing

if TYPE_CHECKING:
    import surgery


def guarded(command: Callable[[], Any], *, json: bool, debug: bool, interrupted: tuple[str, str] | None = None) -> Any:
    """Run a command's body: an error of ours, or Ctrl-C, ends the process with a clear word and the right status.

    `interrupted` is what Ctrl-C leaves, and what to do, where that is not a staged output.
    """
    import surgery

    from . import output
    from .waiting import watched

    try:
        with watched():
            return command()
    except surgery.SurgeryError as error:
        if debug:
            raise
        if isinstance(error, surgery.WrongUsage):
            raise wrong_usage(error) from error
        output.show_error(error, json=json)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        output.show_interrupt(*(interrupted or output.STAGED), json=json)
        raise typer.Exit(status_of(error)) from error


def wrong_usage(error: surgery.SurgeryError, option: str = "") -> typer.BadParameter:
    """The error as wrong usage of an option, or of the command."""
    return typer.BadParameter(f"{error.what}: {error.help}" if error.help else error.what, param_hint=option or None)


def written(surgeries: Callable[[], surgery.Checkpoint | surgery.Adapter], options: Writing) -> None:
    """The one way in which commands write: plan, show or execute, report."""
    from .writing import left, run

    guarded(partial(run, surgeries, options), json=options.json, debug=options.debug, interrupted=left(options))
