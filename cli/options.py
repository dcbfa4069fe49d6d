"""Options that commands share. `writing_options` gives a command all of those that every writing command takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

WRITING, LAYOUT, RUNNING = "Output", "Layout", "Running"

Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A checkpoint: a folder, one .safetensors file, or an index.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, nothing else there.", rich_help_panel=RUNNING)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.", rich_help_panel=RUNNING)]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.", rich_help_panel=RUNNING)]
Maps = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="REGEX=REPLACEMENT", help="Rewrite names, wherever REGEX occurs; may be given often."),
]


@dataclass(frozen=True)
class Writing:
    """The options of every writing command."""

    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Where the result goes (needed, but for --dry-run).", rich_help_panel=WRITING),
    ] = None
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an output that surgery wrote, atomically.", rich_help_panel=WRITING)
    ] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; write nothing.", rich_help_panel=WRITING)] = False
    max_shard_size: Annotated[
        str, typer.Option("--max-shard-size", metavar="SIZE", help="Spread over shards of at most SIZE.", rich_help_panel=LAYOUT)
    ] = ""
    balanced: Annotated[
        bool, typer.Option("--balanced", help="Spread the bytes evenly over the fewest shards.", rich_help_panel=LAYOUT)
    ] = False
    drop_metadata: Annotated[
        list[str] | None,
        typer.Option("--drop-metadata", metavar="KEY", help="Leave this key of __metadata__ out.", rich_help_panel=LAYOUT),
    ] = None
    memory: Annotated[
        str, typer.Option("--memory", metavar="SIZE", help="Bound of all buffers together; 96MB if not given.", rich_help_panel=RUNNING)
    ] = ""
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", help="Threads; the cores, at most 4, if not given.", rich_help_panel=RUNNING),
    ] = None
    json: Json = False
    quiet: Quiet = False
    debug: Debug = False


def writing_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose `options: Writing` parameter appears as the options of `Writing` on the command line."""
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "options"]
    hints = get_type_hints(command, include_extras=True) | get_type_hints(Writing, include_extras=True)
    shared = [inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default) for f in fields(Writing)]

    @wraps(command)
    def wrapped(*args: Any, **values: Any) -> None:
        given = {f.name: values.pop(f.name) for f in fields(Writing)}
        command(*args, **values, options=Writing(**given))

    parameters = [p.replace(annotation=hints[p.name]) for p in (*own, *shared)]
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapped


def parse_map(text: str) -> tuple[str, str]:
    """REGEX=REPLACEMENT, cut at the last `=` outside a group such as (?=…)."""
    cut = next((i for i in range(len(text) - 1, -1, -1) if text[i] == "=" and text[max(0, i - 2) : i] not in ("(?", "?<")), -1)
    if cut <= 0:
        raise typer.BadParameter(f"`{text}` is not REGEX=REPLACEMENT, such as '^transformer\\.=model.'", param_hint="--map")
    return text[:cut], text[cut + 1 :]
