"""The reference of the command line, as Markdown, out of the commands themselves."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from surgery_cli.app import app
from surgery_cli.examples import EXAMPLES
from surgery_cli.helping import MARKUP

STYLES = re.compile(r"\[/?(?:bold|dim|cyan|italic)\]")


def reference() -> str:
    """All commands, panel by panel."""
    from typer.main import get_command

    group: Any = get_command(app)
    panels: dict[str, list[tuple[str, Any]]] = {}
    for name, command in group.commands.items():
        panels.setdefault(command.rich_help_panel or "Commands", []).append((name, command))
    said = [
        f"## {panel}\n\n{_command(name, one)}" if n == 0 else _command(name, one)
        for panel, rows in panels.items()
        for n, (name, one) in enumerate(rows)
    ]
    return "\n\n".join([_read(group.epilog or ""), *said])


def _command(name: str, command: Any) -> str:
    """What a command does, how it is typed, and its options, by panel."""
    words = inspect.cleandoc(command.help or "").split("\n\n")
    what = "\n\n".join(_read(one) for one in words if not one.lstrip("[").startswith("dim]$"))
    examples = "\n".join(EXAMPLES.get(name, ()))
    usage = " ".join(command.collect_usage_pieces(command.context_class(command, info_name=name)))
    parts = [
        f"### surgery {name}",
        what,
        f"    surgery {name} {usage}",
        *([f"For example:\n\n{_indented(examples)}"] if examples else []),
    ]
    panels: dict[str, list[Any]] = {}
    for param in command.params:
        if not getattr(param, "hidden", False):
            usual = "Arguments" if param.param_type_name == "argument" else "Options"
            panels.setdefault(getattr(param, "rich_help_panel", None) or usual, []).append(param)
    return "\n\n".join([*parts, *(_panel(title, rows) for title, rows in panels.items())])


def _panel(title: str, params: list[Any]) -> str:
    """A table of the options of a panel."""
    rows = [f"| {_cell(_spelled(one))} | {_cell(_read(_help(one)))} |" for one in params]
    return "\n".join([f"| {title} | |", "|---|---|", *rows])


def _spelled(param: Any) -> str:
    """How an option is typed: all its names, and what stands for its value."""
    called = param.metavar or ("N" if param.type_descriptor.annotation in (int, float) else param.name.upper())
    if param.param_type_name == "argument":
        return f"`{called}{' …' if param.nargs == -1 else ''}`"
    value = "" if param.is_flag else f" {called}"
    names = [*param.opts, *param.secondary_opts]
    return ", ".join(f"`{name}{value if name.startswith('--') else ''}`" for name in names)


def _help(param: Any) -> str:
    usual = param.default
    shown = (
        usual not in (None, (), [], "", False, True) and getattr(param, "show_default", True) and not callable(usual)
    )
    return f"{param.help or ''}{f' [{usual}]' if shown and isinstance(usual, str | int | float) else ''}"


def _read(text: str) -> str:
    """Help text as Markdown: what stands for names in it stays as it is."""
    said = " ".join(STYLES.sub("", MARKUP.sub("", text)).replace(r"\[", "[").split())
    return re.sub(r"([<>*_|\[\]{}])", r"\\\1", said) if "`" not in said else "".join(_escaped(said))


def _escaped(text: str) -> Iterator[str]:
    """The text with marks of Markdown escaped outside of code."""
    for n, part in enumerate(text.split("`")):
        yield re.sub(r"([<>*_\[\]{}])", r"\\\1", part) if n % 2 == 0 else f"`{part}`"


def _cell(text: str) -> str:
    return text.replace(r"\|", "|").replace("|", r"\|")


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
