"""Options that commands share. `writing_options` gives a command those of each class of options that is the type of
one of its parameters: of `Writing`, which every writing command takes, and of what can be said to a step (`saying.py`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import Field, asdict, dataclass, fields, is_dataclass
from functools import cache, wraps
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from .completing import proposing

if TYPE_CHECKING:
    import surgery

WRITING, LAYOUT, RUNNING = "Output", "Layout", "Running"
COMMIT = "The commit on the Hub"

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A checkpoint: a folder, one .safetensors file, an index, or org/name on the Hub.",
        show_default=False,
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="One JSON object on standard output, nothing else there.", rich_help_panel=RUNNING),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.", rich_help_panel=RUNNING)]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.", rich_help_panel=RUNNING)]


def _until_the_end(meaning: Callable[[Any], AbstractContextManager[None]]) -> Callable[..., Any]:
    """A callback by which what was said, if anything was, counts until the command ends."""

    def callback(context: typer.Context, said: Any) -> Any:
        if said:
            context.with_resource(meaning(said))
        return said

    return callback


def _links_followed(follow: bool) -> AbstractContextManager[None]:
    from surgery.files.symlinks import following_links

    return following_links(follow)


def _under_key(key: str) -> AbstractContextManager[None]:
    from surgery.files.torchfile.model import under_key

    return under_key(key)


def _component_alone(name: str) -> AbstractContextManager[None]:
    from surgery.files.pipeline import only_component

    return only_component(name)


FollowLinks = Annotated[
    bool,
    typer.Option(
        "--follow-links",
        callback=_until_the_end(_links_followed),
        help="Follow links out of the folders that are opened; refused if not given.",
        rich_help_panel=RUNNING,
    ),
]


Key = Annotated[
    str,
    typer.Option(
        "--key",
        metavar="KEY",
        callback=_until_the_end(_under_key),
        help="Which of several sets of weights in a file that torch saved, such as state_dict; '.' for all.",
        rich_help_panel=RUNNING,
    ),
]


Component = Annotated[
    str,
    typer.Option(
        "--component",
        metavar="NAME",
        callback=_until_the_end(_component_alone),
        help="Of a pipeline, this one alone, such as transformer or unet.",
        rich_help_panel=RUNNING,
    ),
]


@dataclass(frozen=True)
class Committing:
    """The options of what commits to the Hub."""

    private: Annotated[
        bool,
        typer.Option(
            "--private", help="A new repository is made private; one that is public is refused.", rich_help_panel=COMMIT
        ),
    ] = False
    create_pr: Annotated[
        bool,
        typer.Option("--create-pr", help="Open a pull request instead of committing to main.", rich_help_panel=COMMIT),
    ] = False
    message: Annotated[
        str, typer.Option("--message", "-m", metavar="TEXT", help="Title of the commit.", rich_help_panel=COMMIT)
    ] = ""
    tag: Annotated[str, typer.Option("--tag", metavar="TAG", help="Tag the commit.", rich_help_panel=COMMIT)] = ""
    keep: Annotated[
        bool,
        typer.Option(
            "--keep",
            help="Delete nothing; else stale shards and their index go in the same commit.",
            rich_help_panel=COMMIT,
        ),
    ] = False

    def committing(self) -> dict[str, Any]:
        """These options, as the library calls them."""
        return asdict(self) | {"private": self.private or None}


@dataclass(frozen=True)
class Writing:
    """The options of every writing command."""

    out: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help=(
                "Where the result goes (needed, but for --dry-run): a folder, or hf://org/name\\[@branch], shard by"
                " shard."
            ),
        ),
    ] = None
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace an output that surgery wrote, atomically; or a repository's weights.",
            rich_help_panel=WRITING,
        ),
    ] = False
    discard_edits: Annotated[
        bool,
        typer.Option(
            "--discard-edits", help="With --overwrite: also where files were edited since.", rich_help_panel=WRITING
        ),
    ] = False
    link: Annotated[
        bool,
        typer.Option(
            "--link",
            help="Hard-link untouched files instead of copying them: write to neither.",
            rich_help_panel=WRITING,
        ),
    ] = False
    reflink: Annotated[
        str,
        typer.Option(
            "--reflink",
            metavar="auto|always|never",
            help="Share blocks that stay as they are with the input, on Btrfs or XFS: where it can, or nothing else.",
            rich_help_panel=WRITING,
        ),
    ] = "auto"
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan; write nothing.", rich_help_panel=WRITING)
    ] = False
    max_shard_size: Annotated[
        str,
        typer.Option(
            "--max-shard-size", metavar="SIZE", help="Spread over shards of at most SIZE.", rich_help_panel=LAYOUT
        ),
    ] = ""
    balanced: Annotated[
        bool, typer.Option("--balanced", help="Spread the bytes evenly over the fewest shards.", rich_help_panel=LAYOUT)
    ] = False
    drop_metadata: Annotated[
        list[str] | None,
        typer.Option(
            "--drop-metadata", metavar="KEY", help="Leave this key of __metadata__ out.", rich_help_panel=LAYOUT
        ),
    ] = None
    align: Annotated[
        str,
        typer.Option(
            "--align",
            metavar="N|auto",
            help="Begin the data where most of it can share blocks of N bytes with the input; auto is 4096.",
            rich_help_panel=LAYOUT,
        ),
    ] = ""
    commit: Committing = Committing()
    stage: Annotated[
        str,
        typer.Option(
            "--stage", metavar="DIR", help="Where shards wait to be sent; HF_HOME if not given.", rich_help_panel=COMMIT
        ),
    ] = ""
    stage_shards: Annotated[
        int | None,
        typer.Option(
            "--stage-shards",
            metavar="N",
            help="Shards on the disk at a time; 1 if not given, 2 to send and make.",
            rich_help_panel=COMMIT,
        ),
    ] = None
    memory: Annotated[
        str,
        typer.Option(
            "--memory",
            metavar="SIZE",
            help="Bound of all buffers together; 96MB if not given.",
            rich_help_panel=RUNNING,
        ),
    ] = ""
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", metavar="N", help="Threads; the cores that may be used, if not given.", rich_help_panel=RUNNING
        ),
    ] = None
    check_all: Annotated[
        bool,
        typer.Option(
            "--check-all", help="Prove an undo record by every block, not one of each tensor.", rich_help_panel=RUNNING
        ),
    ] = False
    executor: Annotated[
        str,
        typer.Option(
            "--executor",
            metavar="local|ray",
            autocompletion=proposing(("local", "ray")),
            help="Where shards are made: here, or on the nodes of a Ray cluster.",
            rich_help_panel=RUNNING,
        ),
    ] = "local"
    address: Annotated[
        str,
        typer.Option(
            "--address",
            metavar="HOST:PORT",
            help="Of the Ray cluster; found, or started here, if not given.",
            rich_help_panel=RUNNING,
        ),
    ] = ""
    follow_links: FollowLinks = False
    key: Key = ""
    component: Component = ""
    json: Json = False
    quiet: Quiet = False
    debug: Debug = False

    def destination(self) -> str | surgery.HubDestination | None:
        """Where the result goes, for the library; None where nothing was said. Raises where the Hub's options are
        for no output on it.
        """
        from surgery.files.refs import has_scheme

        said = {**self.commit.committing(), "stage": self.stage or None, "stage_shards": self.stage_shards}
        given = {name: value for name, value in said.items() if value}
        if self.out and has_scheme(self.out):
            import surgery

            return surgery.HubDestination(self.out, **given)
        if given:
            options = " ".join(f"--{name.replace('_', '-')}" for name in given)
            raise typer.BadParameter("this is for an output on the Hub: -o hf://org/name", param_hint=options)
        return self.out


def check_size(text: str, option: str) -> None:
    """Refuse, as wrong usage, what is given and is no size."""
    import surgery
    from surgery.planning.sharding import parse_size

    try:
        parse_size(text or "96MB")
    except surgery.SurgeryError as error:
        raise typer.BadParameter(f"{error.what}: {error.help}", param_hint=option) from error


def check_executor(executor: str, address: str) -> None:
    """Refuse, as wrong usage, what is no executor, and an address of none."""
    import surgery
    from surgery.execution.cluster import check_executor

    try:
        check_executor(executor, address)
    except surgery.SurgeryError as error:
        raise typer.BadParameter(f"{error.what}: {error.help}", param_hint="--executor") from error


def check_sharing(reflink: str, align: str) -> None:
    """Refuse, as wrong usage, what is no way to share blocks, or no size of one."""
    import surgery
    from surgery.execution.reflinks import check_mode
    from surgery.planning.sharing import parse_align

    for option, check, text in (("--reflink", check_mode, reflink), ("--align", parse_align, align)):
        try:
            check(text)
        except surgery.SurgeryError as error:
            raise typer.BadParameter(f"{error.what}: {error.help}", param_hint=option) from error


def writing_options(command: Callable[..., None], needs: str = "") -> Callable[..., None]:
    """A command whose parameters of a type made of options, such as `options: Writing`, appear as those on the
    command line.

    A group may hold another one, whose options then stand in its place. An option of the command's own stands in that
    of a group's by the same name, which is then as if it were not given. First comes what must be given: the option
    that the command `needs`, and the output.
    """
    taken = inspect.signature(command).parameters.values()
    hints = get_type_hints(command, include_extras=True)
    groups = {p.name: hints[p.name] for p in taken if is_dataclass(hints[p.name])}
    own = {p.name: p for p in taken if p.name not in groups}
    shared: list[inspect.Parameter] = []
    for group in groups.values():
        for field, hint in options_in(group):
            if field.name in own or field.name in hints:
                continue
            hints[field.name] = hint
            shared.append(inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default))

    @wraps(command)
    def wrapped(*args: Any, **values: Any) -> None:
        said = {name: values.pop(name) for name in own if name in values}
        made = {name: made_of(group, values) for name, group in groups.items()} | said
        command(*args, **values, **made)

    if needs:
        hints[needs] = _needed(hints[needs])
    order = sorted((*own.values(), *shared), key=lambda p: _rank(p.name, hints, needs))
    parameters = [p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY) for p in order]
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapped


def _rank(name: str, hints: dict[str, Any], needs: str) -> int:
    """Arguments come first, then what must be given."""
    kind = hints[name].__metadata__[0]
    return 0 if isinstance(kind, typer.models.ArgumentInfo) else 1 if name == needs else 2 if name == "out" else 3


def _needed(hint: Any) -> Any:
    """The same option, among the first ones, and its help says that it must be given."""
    option = copy(hint.__metadata__[0])
    option.help, option.rich_help_panel = f"{option.help} [bold](needed)[/bold]", None
    return Annotated[hint.__origin__, option]


@cache
def options_in(group: Any) -> Sequence[tuple[Field[Any], Any]]:
    """The options of a group, with their types."""
    hints = get_type_hints(group, include_extras=True)
    found = list[tuple[Field[Any], Any]]()
    for field in fields(group):
        hint = hints[field.name]
        nested: bool = is_dataclass(hint)
        found += options_in(hint) if nested else [(field, hint)]
    return found


def made_of(group: Any, values: dict[str, Any]) -> Any:
    """The group with its options' values, which are taken out of `values`."""
    hints = get_type_hints(group, include_extras=True)
    return group(
        **{
            f.name: made_of(hint, values) if is_dataclass(hint := hints[f.name]) else values.pop(f.name, f.default)
            for f in fields(group)
        }
    )
