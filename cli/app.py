"""The commands. Each one opens, applies pure surgeries, and hands the result to `writing.run`.

The library is imported inside the commands: `--help` and completion need typer alone.
"""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Base, Committing, Debug, Fused, Json, Maps, Merging, Model, Quiet, Writing, parse_map, parse_numbers, writing_options

if TYPE_CHECKING:
    import surgery

app = typer.Typer(
    name="surgery",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Edit checkpoints offline: safetensors shards and index files, without loading the model.",
    epilog="Sizes: 5GB is 5·10⁹ bytes, 5GiB is 5·2³⁰. Exit status: 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted.",
)


def main() -> None:
    """Run the command line."""
    gc.set_threshold(100_000)  # a checkpoint of 100,000 tensors is half a million objects, and none of them a cycle
    app()


def guarded(command: Callable[[], Any], *, json: bool, debug: bool, interrupted: tuple[str, str] | None = None) -> Any:
    """Run a command's body: an error of ours, or Ctrl-C, ends the process with a clear word and the right status.

    `interrupted` is what Ctrl-C leaves, and what to do, where that is not a staged output.
    """
    import surgery

    from . import output

    try:
        return command()
    except surgery.SurgeryError as error:
        if debug:
            raise
        output.show_error(error, json=json)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        output.show_interrupt(*(interrupted or output.STAGED), json=json)
        raise typer.Exit(130) from error


def _version(show: bool) -> None:
    if show:
        import surgery

        print(f"surgery {surgery.__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    pass


def _written(surgeries: Callable[[], surgery.Checkpoint | surgery.Adapter], options: Writing) -> None:
    """The one way in which commands write: plan, show or execute, report."""
    from .writing import left, run

    guarded(partial(run, surgeries, options), json=options.json, debug=options.debug, interrupted=left(options))


@app.command()
def inspect(
    model: Model,
    tensors: Annotated[str, typer.Option("--tensors", metavar="REGEX", help="List the tensors whose whole name matches.")] = "",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what a checkpoint or an adapter is: family, sizes, dtypes, shards, fused tensors, ties, oddities."""
    import surgery

    from . import output

    def body() -> None:
        if not tensors:
            output.show_inspection(surgery.inspect(model), json=json)
        else:
            found = surgery.open_any(model)
            weight_map = {} if isinstance(found, surgery.Adapter) else found.weight_map
            output.show_tensors(found.path, found.tensors, weight_map, tensors, json=json)

    guarded(body, json=json, debug=debug)


@app.command()
@writing_options
def reshard(model: Model, *, options: Writing) -> None:
    """Write the same tensors into other shards: [bold]--max-shard-size 5GB[/bold], [bold]--balanced[/bold]."""
    import surgery

    if not options.max_shard_size:
        raise typer.BadParameter("reshard needs it", param_hint="--max-shard-size")
    _written(lambda: surgery.open_checkpoint(model), options)


# Kinds of fused modules: what the library calls them, and what their two commands do.
KINDS = {
    "qkv": (("qkv", "kv"), "Replace each fused qkv projection by q, k and v", "Put q, k and v back into the fused projection"),
    "gate-up": (("gate_up",), "Replace each fused projection of a gated MLP by gate and up", "Put gate and up back into one projection"),
    "experts": (("experts",), "Replace stacked experts by modules of their own", "Put experts back into stacked tensors"),
}
As = Annotated[str, typer.Option("--as", metavar="MODEL_TYPE", help="Write what this class of transformers loads, such as llama.")]
Kinds = Annotated[str, typer.Option("--kinds", metavar="KIND,…", help=f"Of {', '.join(KINDS)}; all that are there if not given.")]


@app.command()
@writing_options
def split(model: Model, kinds: Kinds = "", to: As = "", base: Base = None, *, fused: Fused, options: Writing) -> None:
    """Replace fused modules by their parts, byte for byte: qkv, gate and up, experts. An adapter's, with its [bold]--base[/bold]."""
    if to and kinds:
        raise typer.BadParameter("the target says what is split", param_hint="--kinds --as")
    _split(model, _kinds(kinds), fused, to, base, options)


@app.command()
@writing_options
def fuse(model: Model, kinds: Kinds = "", base: Base = None, *, fused: Fused, options: Writing) -> None:
    """Put parts back into the fused modules of the model's own class, byte for byte: the inverse of [bold]split[/bold]."""
    _fuse(model, _kinds(kinds), fused, base, options)


def _add_commands_of(kind: str) -> None:
    """`split-KIND` and `fuse-KIND`: the same for one kind."""
    asked, splits, fuses = KINDS[kind]

    @app.command(f"split-{kind}", help=f"{splits}, byte for byte.")
    @writing_options
    def split_kind(model: Model, to: As = "", base: Base = None, *, fused: Fused, options: Writing) -> None:
        _split(model, asked, fused, to, base, options)

    @app.command(f"fuse-{kind}", help=f"{fuses} of the model's own class, byte for byte.")
    @writing_options
    def fuse_kind(model: Model, base: Base = None, *, fused: Fused, options: Writing) -> None:
        _fuse(model, asked, fused, base, options)


for _kind in KINDS:
    _add_commands_of(_kind)


def _split(model: str, kinds: tuple[str, ...], fused: Fused, to: str, base: str | None, options: Writing) -> None:
    """`surgery.split`, or `surgery.convert` where a target is named, which knows what is split and how."""
    import surgery

    given = fused.given()
    if to and kinds in (KINDS["gate-up"][0], KINDS["experts"][0]):
        raise typer.BadParameter("the target says what is split: use surgery convert", param_hint="--as")
    if to and (given or base):
        raise typer.BadParameter("the target says how the parts lie and what they are called", param_hint="--as")
    if not to:
        _cut(surgery.split, model, kinds, given, base, options)
        return

    def made() -> surgery.Checkpoint:
        found = surgery.open_any(model)
        if isinstance(found, surgery.Adapter):
            raise typer.BadParameter("an adapter is no model: split it with its --base, and convert the base", param_hint="--as")
        return surgery.convert(found, to)

    _written(made, options)


def _fuse(model: str, kinds: tuple[str, ...], fused: Fused, base: str | None, options: Writing) -> None:
    import surgery

    _cut(surgery.fuse, model, kinds, fused.given(), base, options)


def _cut(
    verb: Callable[..., Any], model: str, kinds: tuple[str, ...], given: surgery.Given | None, base: str | None, options: Writing
) -> None:
    """`surgery.split` or `surgery.fuse` of a checkpoint, or of an adapter with its base."""
    import surgery

    def made() -> surgery.Checkpoint | surgery.Adapter:
        found = surgery.open_any(model)
        if isinstance(found, surgery.Adapter):
            return verb(found, kinds, given=given, base=_base_of(found, base))
        if base:
            raise typer.BadParameter("MODEL is no adapter: it is its own base", param_hint="--base")
        return verb(found, kinds, given=given)

    _written(made, options)


def _base_of(adapter: surgery.Adapter, base: str | None) -> surgery.Checkpoint | None:
    """The base that was given, or that the adapter names, where that is here or on the Hub."""
    import surgery
    from surgery.files.refs import HubRef, is_ref

    if base:
        return surgery.open_checkpoint(base)
    named = adapter.config.get("base_model_name_or_path")
    if not isinstance(named, str) or not (Path(named).is_dir() or is_ref(named)):
        return None
    found = Path(named).resolve() if Path(named).is_dir() else HubRef(named, adapter.config.get("revision"))
    print(f"base: {found}, as adapter_config.json names it", file=sys.stderr)
    try:
        return surgery.open_checkpoint(str(found))
    except surgery.HubError as error:
        raise type(error)(error.what, where=error.where, help=f"pass the adapter's base with --base; or {error.help}") from error


@app.command()
@writing_options
def convert(model: Model, to: As = "", *, options: Writing) -> None:
    """Write the same weights as another class of transformers loads them: a Phi-3 [bold]--as llama[/bold]."""
    import surgery

    if not to:
        raise typer.BadParameter("convert needs it, such as llama", param_hint="--as")
    _written(lambda: surgery.convert(surgery.open_checkpoint(model), to), options)


def _kinds(text: str) -> tuple[str, ...]:
    """What the library calls the kinds that are asked for; all of them where nothing is."""
    asked = [kind.replace("_", "-") for kind in text.split(",")] if text else list(KINDS)
    if unknown := [kind for kind in asked if kind not in KINDS]:
        raise typer.BadParameter(f"there is no kind {', '.join(unknown)}; there are {', '.join(KINDS)}", param_hint="--kinds")
    return tuple(dict.fromkeys(kind for name in asked for kind in KINDS[name][0]))


@app.command()
@writing_options
def inject(
    model: Model,
    target_modules: Annotated[
        str, typer.Option("--target-modules", metavar="NAME,…", help="Last names of modules, a regular expression, or all-linear.")
    ] = "",
    target_parameters: Annotated[
        str, typer.Option("--target-parameters", metavar="NAME,…", help="Parameters, such as experts.gate_up_proj: all experts at once.")
    ] = "",
    as_: Annotated[
        str, typer.Option("--as", metavar="adapter|checkpoint", help="A PEFT folder, or the base with the LoRA in a shard of its own.")
    ] = "adapter",
    rank: Annotated[int, typer.Option("--rank", "-r", metavar="N", help="The inner dimension of B·A.")] = 8,
    alpha: Annotated[float | None, typer.Option("--alpha", metavar="X", help="The scale is alpha / rank; 1 if not given.")] = None,
    init: Annotated[str, typer.Option("--init", metavar="KIND", help="How A is drawn: uniform (PEFT's own) or gaussian.")] = "uniform",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="A follows from it and from its name, on every machine.")] = 0,
    rslora: Annotated[bool, typer.Option("--use-rslora", help="The scale is alpha / √rank.")] = False,
    dora: Annotated[bool, typer.Option("--use-dora", help="Magnitudes too, taken from the base in a stream.")] = False,
    lora_bias: Annotated[bool, typer.Option("--lora-bias", help="A bias beside each B.")] = False,
    modules_to_save: Annotated[str, typer.Option("--modules-to-save", metavar="NAME,…", help="Copied whole, to be trained.")] = "",
    exclude_modules: Annotated[str, typer.Option("--exclude-modules", metavar="NAME,…", help="As --target-modules, left out.")] = "",
    layers: Annotated[str, typer.Option("--layers-to-transform", metavar="N,…", help="Only in these layers.")] = "",
    layers_pattern: Annotated[str, typer.Option("--layers-pattern", metavar="NAME,…", help="What the layers' list is called.")] = "",
    ranks: Annotated[
        list[str] | None, typer.Option("--rank-pattern", metavar="REGEX=N", help="Another rank where a name's end matches; often.")
    ] = None,
    alphas: Annotated[
        list[str] | None, typer.Option("--alpha-pattern", metavar="REGEX=X", help="Another alpha where a name's end matches; often.")
    ] = None,
    check_class: Annotated[
        bool, typer.Option("--check-class", help="Ask the class what each module is, through transformers, on the meta device.")
    ] = False,
    *,
    options: Writing,
) -> None:
    """Make a zero-initialised LoRA adapter for a base, from headers alone: PEFT loads it, and nothing changes yet."""
    import surgery

    if as_ not in ("adapter", "checkpoint"):
        raise typer.BadParameter("adapter or checkpoint", param_hint="--as")
    rank_pattern = {name: int(value) for name, value in _patterns(ranks, r"\d+", "N", "--rank-pattern")}
    alpha_pattern = {name: float(value) for name, value in _patterns(alphas, r"\d+(?:\.\d+)?", "X", "--alpha-pattern")}

    def made() -> surgery.Checkpoint | surgery.Adapter:
        base = surgery.open_checkpoint(model)
        adapter = surgery.inject(
            base,
            _modules(target_modules) if target_modules else (),
            target_parameters=target_parameters.split(",") if target_parameters else (),
            rank=rank,
            alpha=int(alpha) if alpha is not None and alpha.is_integer() else alpha,
            init=init,
            seed=seed,
            use_rslora=rslora,
            use_dora=dora,
            lora_bias=lora_bias,
            modules_to_save=modules_to_save.split(",") if modules_to_save else (),
            exclude_modules=_modules(exclude_modules) if exclude_modules else None,
            layers_to_transform=parse_numbers(layers, "--layers-to-transform") if layers else None,
            layers_pattern=layers_pattern.split(",") if layers_pattern else None,
            rank_pattern=rank_pattern,
            alpha_pattern={name: int(value) if value.is_integer() else value for name, value in alpha_pattern.items()},
            check_class=check_class,
        )
        return surgery.inject_into(base, adapter) if as_ == "checkpoint" else adapter

    _written(made, options)


def _patterns(texts: list[str] | None, number: str, sign: str, option: str) -> list[tuple[str, str]]:
    """REGEX=NUMBER, cut at the last `=`."""
    pairs = {text: text.rpartition("=") for text in texts or []}
    for text, (name, _, value) in pairs.items():
        if not name or not re.fullmatch(number, value):
            raise typer.BadParameter(f"`{text}` is not REGEX={sign}, such as v_proj=4", param_hint=option)
    return [(name, value) for name, _, value in pairs.values()]


def _modules(text: str) -> str | list[str]:
    """A list of names where it is one, else a regular expression; `all-linear` is itself."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    return names if all(re.fullmatch(r"[\w.]+", name) for name in names) else text


@app.command()
@writing_options
def merge(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="The base checkpoint: a folder, one file, or org/name on the Hub.", show_default=False)
    ],
    adapters: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ADAPTER...]",
            help="PEFT adapters, here or on the Hub, summed in one pass; without one, BASE's own LoRA.",
            show_default=False,
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Merge an adapter that is in the base already.")] = False,
    reversible: Annotated[
        bool, typer.Option("--reversible", help="Write an undo record along, from which unmerge restores BASE byte for byte.")
    ] = False,
    *,
    merging: Merging,
    options: Writing,
) -> None:
    """Add LoRA adapters to the base's weights: float32 arithmetic, one rounding to the base's dtype."""
    import surgery

    told = merging.told()

    def made() -> surgery.Checkpoint:
        before = surgery.open_checkpoint(base)
        opened, own = (before, []) if adapters else _apart(before)
        merged = surgery.merge(
            opened,
            [*own, *surgery.open_adapters(adapters or (), merging.beside())],
            **told,
            again=again,
        )
        return surgery.reversible(merged, before) if reversible else merged

    _written(made, options)


def _apart(checkpoint: surgery.Checkpoint) -> tuple[surgery.Checkpoint, list[surgery.Adapter]]:
    import surgery

    base, adapter = surgery.own_adapter(checkpoint)
    return base, [adapter]


@app.command()
@writing_options
def unmerge(
    merged: Annotated[str, typer.Argument(metavar="MERGED", help="A checkpoint that surgery merged.", show_default=False)],
    adapters: Annotated[
        list[str] | None, typer.Argument(metavar="[ADAPTER...]", help="Only with --approximate: what was merged.", show_default=False)
    ] = None,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Without an undo record: subtract the adapters; most weights come back, not all.")
    ] = False,
    *,
    merging: Merging,
    options: Writing,
) -> None:
    """Restore the base of a merge that was made with [bold]--reversible[/bold], byte for byte, each block checked."""
    import surgery

    if bool(adapters) != approximate or (not approximate and merging != Merging()):
        tip = "adapters, and how they were merged, go with --approximate, and only with it"
        raise typer.BadParameter(tip, param_hint="--approximate")
    told = merging.told()

    def made() -> surgery.Checkpoint:
        checkpoint = surgery.open_checkpoint(merged)
        if not approximate:
            return surgery.unmerge(checkpoint)
        return surgery.unmerge_approximately(checkpoint, surgery.open_adapters(adapters or (), merging.beside()), **told)

    _written(made, options)


@app.command()
@writing_options
def rename(model: Model, maps: Maps = None, *, options: Writing) -> None:
    r"""Rewrite tensor names, wherever the pattern occurs: [bold]--map '^transformer\\.=model.'[/bold]."""
    import surgery

    if not maps:
        raise typer.BadParameter("rename needs at least one", param_hint="--map")
    rules = [parse_map(text) for text in maps]
    _written(lambda: surgery.rename(surgery.open_checkpoint(model), rules), options)


@app.command()
@writing_options
def drop(
    model: Model,
    pattern: Annotated[str, typer.Option("--pattern", metavar="REGEX", help="Leave out tensors whose whole name matches.")] = "",
    *,
    options: Writing,
) -> None:
    """Leave tensors out, by name."""
    import surgery

    if not pattern:
        raise typer.BadParameter("drop needs it", param_hint="--pattern")
    _written(lambda: surgery.drop(surgery.open_checkpoint(model), pattern), options)


@app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A checkpoint or an adapter.", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one of the same kind.", show_default=False)],
    tensors: Annotated[str, typer.Option("--tensors", metavar="REGEX", help="Only tensors whose whole name matches; no files.")] = "",
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say what differs between two checkpoints or two adapters, however they are sharded: tensors, values, config, files.

    Exit status: 0 equal, 1 different, or refused.
    """
    import surgery

    from . import output
    from .progress import looking

    def body() -> None:
        with looking(shown=not json and not quiet) as on_tensor:
            found = surgery.diff(a, b, tensors=tensors, on_tensor=on_tensor)
        if json or not quiet:
            output.show_difference(found, json=json)
        if not found.equal:
            raise typer.Exit(1)

    guarded(body, json=json, debug=debug)


PROOF = "Is it this merge?"


@app.command()
@writing_options
def verify(
    model: Model,
    values: Annotated[bool, typer.Option("--values", help="Read every tensor and look for NaN and infinity.")] = False,
    check_class: Annotated[
        bool, typer.Option("--class/--no-class", help="Ask the class that config.json names, through transformers.")
    ] = True,
    base: Annotated[
        str | None, typer.Option("--base", metavar="BASE", help="Of which MODEL should be a merge.", rich_help_panel=PROOF)
    ] = None,
    adapters: Annotated[
        list[str] | None,
        typer.Option("--adapter", metavar="ADAPTER", help="Merged into it; may be given often.", rich_help_panel=PROOF),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
    *,
    merging: Merging,
) -> None:
    """Check headers, index and files against each other, the values, and what the model's class says.

    With [bold]--base[/bold] and [bold]--adapter[/bold]: whether every adapter is in it, once, and all else as in the base,
    whoever merged it; what is rounding, and what is wrong. How surgery merged is read from MODEL, unless it is said here.

    Exit status: 0 all well, 1 not.
    """
    import surgery

    from . import output
    from .progress import looking

    told = merging.told()
    if bool(base) != bool(adapters) or (not base and merging != Merging()):
        raise typer.BadParameter("a merge is proved against both", param_hint="--base --adapter")

    def body() -> None:
        with looking(shown=(values or base is not None) and not json and not quiet) as on_tensor:
            found = surgery.verify(
                model,
                values=values,
                check_class=check_class,
                base=base,
                adapter=adapters or (),
                **told,
                beside=merging.beside(),
                on_tensor=on_tensor,
            )
        if json:
            tensors = {"tensors": found.proof.tensors} if found.proof else {}
            output.show_json({"path": found.path, "ok": found.ok, "checks": found.checks, **tensors})
            if not found.ok:
                raise typer.Exit(1)
            return
        if not quiet:
            output.show_verification(found)
        found.require()

    guarded(body, json=json, debug=debug)


@app.command()
@writing_options
def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a model or an adapter.", show_default=False)],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="org/name; made if it is not there.", show_default=False)],
    revision: Annotated[str, typer.Option("--revision", metavar="BRANCH", help="main if not given; made if it is not there.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be sent, deleted and kept; change nothing.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
    *,
    options: Committing,
) -> None:
    """Make a folder one commit on the Hub: verified first, only what is new is sent, all of it visible at once or nothing.

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


@app.command()
def clean(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="An output, here or hf://org/name, or the folder that holds outputs.", show_default=False)
    ],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Remove what broken runs left beside DIR, or beside the outputs inside it."""
    import surgery

    from . import output

    def body() -> None:
        output.show_cleaned(surgery.clean(folder), json=json)

    guarded(body, json=json, debug=debug)


@app.command()
def demo(
    folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Where to work; a temporary folder if not given.")] = None,
    debug: Debug = False,
) -> None:
    """Make a small Phi-3 and an adapter; split, merge, reshard and verify it; show that it computes the same."""
    from .demo import run

    guarded(lambda: run(folder), json=False, debug=debug)
