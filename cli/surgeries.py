"""The commands that are steps: one for each row of the table of steps that stands on a panel.

What a command takes, and its help, is in the signature of its surgery.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import typer

from surgery.recipes.kinds import Opened, WrongValue
from surgery.recipes.parameters import Signature, signature_of
from surgery.recipes.saying import Opening, Running, apply, check_said, opened, read
from surgery.recipes.table import STEPS, Step

from .options import Writing, writing_options
from .running import written
from .saying import argument_of, called, group_of, marked, wrong

app = typer.Typer()


def _add(name: str, step: Step) -> None:
    signature = signature_of(step.function)
    needed = next((called(one) for one in signature.parameters if one.needed and not one.argument), "")
    text = marked(inspect.getdoc(step.function) or "").split("\n\n")[0]
    app.command(name, rich_help_panel=step.panel, help=" ".join(text.split()))(
        writing_options(_command(name, step.function, signature), needs=needed)
    )


def _command(name: str, function: Callable[..., Any], signature: Signature) -> Callable[..., None]:
    """The body of a command: what flows, what else are arguments, the options, and where the result goes."""
    said_of = group_of("Said", [one for one in signature.said if not one.argument])
    arguments = {called(one): one for one in (signature.flowing, *signature.parameters) if one.argument}

    def command(*, said: Any, options: Writing, **given: Any) -> None:
        told = {**{arguments[key].key: value for key, value in given.items() if value}, **said.said()}
        flowing = told.pop(signature.flowing.key)
        _check_needed(name, signature, told)
        try:
            check_said(signature, told, flowing)
        except WrongValue as error:
            raise wrong(error) from error
        written(lambda: _made(function, signature, flowing, told, options), options)

    parameters = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=... if one.needed else None)
        for key, one in arguments.items()
    ]
    hints = {key: argument_of(one) for key, one in arguments.items()} | {"said": said_of, "options": Writing}
    groups = [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY) for key in ("said", "options")]
    command.__signature__ = inspect.Signature([*parameters, *groups])  # type: ignore[attr-defined]
    command.__annotations__ = hints
    command.__name__ = name
    return command


def _made(
    function: Callable[..., Any], signature: Signature, flowing: Any, told: dict[str, Any], options: Writing
) -> Any:
    """What the surgery makes of what the command line names."""
    from surgery.planning.sharding import parse_size

    from .progress import looking

    kind = signature.flowing.kind
    assert isinstance(kind, Opened)
    opening = read(signature.opening, told)
    with looking(shown="on_tensor" in signature.running and not (options.quiet or options.json)) as on_tensor:
        memory = parse_size(options.memory) if options.memory else None
        how = Opening(running=Running(options.workers, memory, on_tensor))
        first = opened(kind, kind.read(flowing, ""), opening, how)
        return apply(function, first, told, how)


def _check_needed(name: str, signature: Signature, told: dict[str, Any]) -> None:
    """Raise, as wrong usage, where what must be given is not."""
    for one in signature.parameters:
        if one.needed and one.key not in told:
            text = one.option.help.rstrip(".")
            raise typer.BadParameter(f"{name} needs it ({one.option.metavar}): {text}", param_hint=one.flags[0])


for _name, _step in STEPS.items():
    if _step.panel:
        _add(_name, _step)
