"""Options that commands share. `writing_options` gives a command those of `Writing`, which every writing command
takes, of `Fused` and of `Merging`, where it has a parameter of that type.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import Field, asdict, dataclass, fields, is_dataclass
from functools import cache, partial, wraps
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    import surgery

WRITING, LAYOUT, RUNNING, FUSED = "Output", "Layout", "Running", "Fused modules, where config.json does not tell"
MERGING = "How adapters are merged"
CODES = "A quantised base"
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
Base = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="MODEL",
        help="An adapter's model, fused or split; if not given, the one its config names.",
        rich_help_panel=FUSED,
    ),
]
As = Annotated[
    str, typer.Option("--as", metavar="MODEL_TYPE", help="Write what this class of transformers loads, such as llama.")
]
Maps = Annotated[
    list[str] | None,
    typer.Option(
        "--map", metavar="REGEX=REPLACEMENT", help="Rewrite names, wherever REGEX occurs; may be given often."
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


@dataclass(frozen=True)
class Fused:
    """The options that say how fused modules lie, and what their parts are called."""

    layout: Annotated[
        str,
        typer.Option(
            "--layout", metavar="STYLE", help="blocked, interleaved (head by head) or grouped.", rich_help_panel=FUSED
        ),
    ] = ""
    groups: Annotated[
        int | None,
        typer.Option(
            "--groups",
            metavar="N",
            min=1,
            help="How many groups follow each other; not for blocked.",
            rich_help_panel=FUSED,
        ),
    ] = None
    slots: Annotated[
        str,
        typer.Option(
            "--slots", metavar="N,N,…", help="Heads of each part in a group, as they lie: 8,1,1.", rich_help_panel=FUSED
        ),
    ] = ""
    order: Annotated[
        str,
        typer.Option(
            "--order", metavar="PART,…", help="The parts as they lie; q,k,v if not given.", rich_help_panel=FUSED
        ),
    ] = ""
    axis: Annotated[
        int | None,
        typer.Option(
            "--axis",
            metavar="N",
            help="The fused axis of the weight: 0 is rows, 1 a Conv1D's columns.",
            rich_help_panel=FUSED,
        ),
    ] = None
    pattern: Annotated[
        str,
        typer.Option(
            "--pattern", metavar="REGEX", help="Only the fused modules whose whole name matches.", rich_help_panel=FUSED
        ),
    ] = ""
    fused: Annotated[
        str,
        typer.Option(
            "--fused",
            metavar="NAME",
            help="Last name of the fused modules; needed to fuse by hand.",
            rich_help_panel=FUSED,
        ),
    ] = ""
    names: Annotated[
        str,
        typer.Option(
            "--names",
            metavar="PART=NAME,…",
            help="Last names of the parts: q=query,k=key,v=value.",
            rich_help_panel=FUSED,
        ),
    ] = ""

    def given(self) -> surgery.Given | None:
        """What was said, for the library; None where nothing was."""
        import surgery

        said = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) not in ("", None)}
        read: dict[str, Callable[[str], Any]] = {
            "slots": lambda text: parse_numbers(text, "--slots"),
            "order": lambda text: tuple(text.split(",")),
            "names": _names,
        }
        values: dict[str, Any] = {name: read[name](value) if name in read else value for name, value in said.items()}
        try:
            return surgery.Given(**values) if values else None
        except surgery.SurgeryError as error:
            raise typer.BadParameter(
                f"{error.what}: {error.help}", param_hint=" ".join(f"--{name}" for name in said)
            ) from error


@dataclass(frozen=True)
class Merging:
    """The options that say how adapters are merged, for the command that merges and for the one that proves it."""

    weights: Annotated[
        str,
        typer.Option(
            "--weights", metavar="W,W,…", help="One factor for each adapter, such as 0.7,0.3.", rich_help_panel=MERGING
        ),
    ] = ""
    scale: Annotated[
        float, typer.Option("--scale", metavar="X", help="A factor for all of them.", rich_help_panel=MERGING)
    ] = 1.0
    only: Annotated[
        str,
        typer.Option(
            "--only",
            metavar="REGEX",
            help="Merge the modules whose whole name matches; drop the rest.",
            rich_help_panel=MERGING,
        ),
    ] = ""
    except_: Annotated[
        str,
        typer.Option(
            "--except", metavar="REGEX", help="Drop the modules whose whole name matches.", rich_help_panel=MERGING
        ),
    ] = ""
    tied: Annotated[
        str,
        typer.Option(
            "--tied",
            metavar="untie|error",
            help="Where an adapter makes tied tensors differ: store both, or refuse.",
            rich_help_panel=MERGING,
        ),
    ] = "untie"
    maps: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="REGEX=REPLACEMENT",
            help="Rewrite the adapters' names, wherever REGEX occurs; may be given often.",
            rich_help_panel=MERGING,
        ),
    ] = None
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            metavar="DTYPE",
            help="Of the result: bfloat16, float16, float32 or float64; bf16, fp16, fp32.",
            rich_help_panel=MERGING,
        ),
    ] = ""

    add: Annotated[
        str,
        typer.Option(
            "--add",
            metavar="REGEX",
            help="Add what an adapter holds whole and the base has no place for, where the whole name matches.",
            rich_help_panel=MERGING,
        ),
    ] = ""

    architecture: Annotated[
        str,
        typer.Option(
            "--architecture",
            metavar="CLASS",
            help=(
                "The class of the result, where task type and head do not tell, such as BertForSequenceClassification."
            ),
            rich_help_panel=MERGING,
        ),
    ] = ""

    base_as_trained: Annotated[
        bool,
        typer.Option(
            "--base-as-trained",
            help="BASE is the one that PiSSA, OLoRA, CorDA, LoRA-GA or LoftQ changed, saved beside the adapter.",
            rich_help_panel=MERGING,
        ),
    ] = False
    with_: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="FILE",
            help=(
                "Safetensors trained beside an adapter, merged along; may be given often; none leaves out what lies"
                " there."
            ),
            rich_help_panel=MERGING,
        ),
    ] = None

    dequantize: Annotated[
        bool,
        typer.Option("--dequantize", help="All of it in 16 bits, and not only what is touched.", rich_help_panel=CODES),
    ] = False
    requantize: Annotated[
        bool,
        typer.Option(
            "--requantize",
            help="What is touched is coded again, under the scales that are stored; the report says what survives.",
            rich_help_panel=CODES,
        ),
    ] = False
    lossy: Annotated[
        bool,
        typer.Option("--lossy", help="Even if less than half of the adapter survives that.", rich_help_panel=CODES),
    ] = False

    lying: Fused = Fused()

    def beside(self) -> list[str] | None:
        """Files that belong to the adapters; None where nothing was said of any."""
        return [one for one in self.with_ if one != "none"] if self.with_ else None

    def told(self, count: int) -> dict[str, Any]:
        """What was said of `count` adapters, as arguments for the library."""
        if self.tied not in ("untie", "error"):
            raise typer.BadParameter("untie or error", param_hint="--tied")
        return {
            "weights": parse_weights(self.weights, count),
            "names": [parse_map(text) for text in self.maps or []],
            "scale": self.scale,
            "only": self.only or None,
            "except_": self.except_ or None,
            "tied": self.tied,
            "dtype": check_dtype(self.dtype) if self.dtype else None,
            "add": self.add or None,
            "architecture": self.architecture or None,
            "base_as_trained": self.base_as_trained,
            "given": self.lying.given(),
            "dequantize": self.dequantize,
            "requantize": self.requantize,
            "lossy": self.lossy,
        }


def parse_weights(text: str, count: int) -> list[float] | None:
    """W,W,… as a number for each of `count` adapters; None where nothing was said."""
    try:
        weights = [float(part) for part in text.split(",")] if text else None
    except ValueError as error:
        raise typer.BadParameter(
            f"`{text}` is not a list of numbers, such as 0.7,0.3", param_hint="--weights"
        ) from error
    if weights is not None and len(weights) != count:
        raise typer.BadParameter(
            f"{len(weights)} for {count} adapter{'s'[: count != 1]}: one for each", param_hint="--weights"
        )
    return weights


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


def check_dtype(text: str) -> str:
    """The dtype's name, as the library writes it."""
    from surgery.surgeries.cast import NAMES, SHORT

    if SHORT.get(text, text) not in NAMES:
        raise typer.BadParameter(
            f"`{text}` is no dtype to write: one of {', '.join((*NAMES, *SHORT))}", param_hint="--dtype"
        )
    return SHORT.get(text, text)


def parse_numbers(text: str, option: str) -> tuple[int, ...]:
    """N,N,… as whole numbers."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(
            f"`{text}` is not a list of whole numbers, such as 8,1,1", param_hint=option
        ) from error


def _names(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",")]
    if any(not key or not mark for key, mark, _ in pairs) or len({key for key, _, _ in pairs}) < len(pairs):
        raise typer.BadParameter(f"`{text}` is not PART=NAME,…, such as q=query,k=key,v=value", param_hint="--names")
    return {key: name for key, _, name in pairs}


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
        for field, hint in _options_of(group):
            if field.name in own:
                continue
            hints[field.name] = hint
            shared.append(inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default))

    @wraps(command)
    def wrapped(*args: Any, **values: Any) -> None:
        said = {name: values.pop(name) for name in own if name in values}
        made = {name: _made(group, values) for name, group in groups.items()} | said
        command(*args, **values, **made)

    if needs:
        hints[needs] = _needed(hints[needs])
    order = sorted((*own.values(), *shared), key=lambda p: _rank(p.name, hints, needs))
    parameters = [p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY) for p in order]
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapped


def needing(option: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """`writing_options` for a command that does nothing without one of its options."""
    return partial(writing_options, needs=option)


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
def _options_of(group: Any) -> Sequence[tuple[Field[Any], Any]]:
    """The options of a group, with their types."""
    hints = get_type_hints(group, include_extras=True)
    found = list[tuple[Field[Any], Any]]()
    for field in fields(group):
        hint = hints[field.name]
        nested: bool = is_dataclass(hint)
        found += _options_of(hint) if nested else [(field, hint)]
    return found


def _made(group: Any, values: dict[str, Any]) -> Any:
    """The group with its options' values, which are taken out of `values`."""
    hints = get_type_hints(group, include_extras=True)
    return group(
        **{
            f.name: _made(hint, values) if is_dataclass(hint := hints[f.name]) else values.pop(f.name, f.default)
            for f in fields(group)
        }
    )


def parse_map(text: str) -> tuple[str, str]:
    """REGEX=REPLACEMENT, cut at the last `=` outside a group such as (?=…)."""
    cut = next(
        (i for i in range(len(text) - 1, -1, -1) if text[i] == "=" and text[max(0, i - 2) : i] not in ("(?", "?<")), -1
    )
    if cut <= 0:
        raise typer.BadParameter(
            f"`{text}` is not REGEX=REPLACEMENT, such as '^transformer\\.=model.'", param_hint="--map"
        )
    return text[:cut], text[cut + 1 :]
