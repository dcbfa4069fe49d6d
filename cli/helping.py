"""How help looks: an example for each command, and the list of commands without what makes it slow.

typer draws help with rich, whose import takes longer than all else. The list of commands is plain text.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from .examples import EXAMPLES

MARKUP = re.compile(r"\[/?bold\]")


def plain(markup: str) -> str:
    """The first paragraph of a help text, as it is read: on one line, without markup."""
    first = " ".join(inspect.cleandoc(markup).split("\n\n")[0].split())
    return MARKUP.sub("", first).replace(r"\[", "[")


class Commands(TyperGroup):
    """The command line as a whole: its help lists the commands by what they are for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """As click writes it."""
        super(TyperGroup, self).format_help(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Without a word, help."""
        if not args and not ctx.resilient_parsing:  # which is how completion asks
            print(ctx.get_help())
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """A list for each panel."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            panels.setdefault(command.rich_help_panel or "Commands", []).append((name, _summary(command)))
        width = max(len(name) for rows in panels.values() for name, _ in rows)
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl([(name.ljust(width), text) for name, text in rows])


def _summary(command: Any) -> str:
    """What a command does, without its example."""
    return plain(command.help or "")


class Command(TyperCommand):
    """A command whose usage line shows what must be given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Where `--map` names what is renamed, without a rule behind it it asks for a map."""
        renames = any("--map" in param.opts and "--heat-map" not in param.opts for param in self.params)
        draws = any("--heat-map" in param.opts for param in self.params)
        return super().parse_args(ctx, with_heat_map(args) if renames and draws else args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Arguments without braces, and `-o DIR` where there is an output."""
        pieces = [re.sub(r"\{(.+)\}", r"\1", piece) for piece in super().collect_usage_pieces(ctx)]
        return [*pieces, "-o DIR"] if any(param.name == "out" for param in self.params) else pieces


def with_heat_map(args: list[str]) -> list[str]:
    """The arguments with `--heat-map` for each `--map` that no REGEX=REPLACEMENT follows."""
    after = [*args[1:], ""]
    ends = args.index("--") if "--" in args else len(args)
    return [
        "--heat-map" if one == "--map" and "=" not in rule and at < ends else one
        for at, (one, rule) in enumerate(zip(args, after, strict=True))
    ]


def with_examples(app: typer.Typer) -> typer.Typer:
    """The group with an example in the help of each command."""
    for info in app.registered_commands:
        assert info.callback
        text = inspect.cleandoc(info.help or info.callback.__doc__ or "")
        lines = [f"[dim]$[/dim] [cyan]{_literal(line)}[/cyan]" for line in EXAMPLES[called(info.name, info.callback)]]
        info.help, info.cls = f"{text}\n\n" + "\n".join(lines), Command
    return app


def called(name: str | None, callback: Callable[..., Any]) -> str:
    """What a command is called."""
    return name or callback.__name__.replace("_", "-")


def _literal(line: str) -> str:
    """A line in which rich sees no markup."""
    return line.replace("[", r"\[")
