"""The commands on adapters: inject, merge, unmerge."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Merging, Model, Writing, parse_numbers, writing_options
from .running import written

if TYPE_CHECKING:
    import surgery

CODES = "A quantised base"
app = typer.Typer()
PANEL = "Adapters"


@app.command(rich_help_panel=PANEL)
@writing_options
def inject(
    model: Model,
    target_modules: Annotated[
        str,
        typer.Option(
            "--target-modules",
            metavar="NAME,…",
            help="Last names, a regular expression, or all-linear; else PEFT's own.",
        ),
    ] = "",
    target_parameters: Annotated[
        str,
        typer.Option(
            "--target-parameters",
            metavar="NAME,…",
            help="Parameters, such as experts.gate_up_proj: all experts at once.",
        ),
    ] = "",
    as_: Annotated[
        str,
        typer.Option(
            "--as", metavar="adapter|checkpoint", help="A PEFT folder, or the base with the LoRA in a shard of its own."
        ),
    ] = "adapter",
    rank: Annotated[int, typer.Option("--rank", "-r", metavar="N", help="The inner dimension of B·A.")] = 8,
    alpha: Annotated[
        float | None, typer.Option("--alpha", metavar="X", help="The scale is alpha / rank; 1 if not given.")
    ] = None,
    init: Annotated[
        str, typer.Option("--init", metavar="KIND", help="How A is drawn: uniform (PEFT's own) or gaussian.")
    ] = "uniform",
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="A follows from it and from its name, on every machine.")
    ] = 0,
    rslora: Annotated[bool, typer.Option("--use-rslora", help="The scale is alpha / √rank.")] = False,
    dora: Annotated[bool, typer.Option("--use-dora", help="Magnitudes too, taken from the base in a stream.")] = False,
    lora_bias: Annotated[bool, typer.Option("--lora-bias", help="A bias beside each B.")] = False,
    lora_dropout: Annotated[
        float, typer.Option("--lora-dropout", metavar="P", help="For training: from 0 to below 1.")
    ] = 0.0,
    modules_to_save: Annotated[
        str, typer.Option("--modules-to-save", metavar="NAME,…", help="Copied whole, to be trained.")
    ] = "",
    exclude_modules: Annotated[
        str, typer.Option("--exclude-modules", metavar="NAME,…", help="As --target-modules, left out.")
    ] = "",
    layers: Annotated[str, typer.Option("--layers-to-transform", metavar="N,…", help="Only in these layers.")] = "",
    layers_pattern: Annotated[
        str, typer.Option("--layers-pattern", metavar="NAME,…", help="What the layers' list is called.")
    ] = "",
    ranks: Annotated[
        list[str] | None,
        typer.Option("--rank-pattern", metavar="REGEX=N", help="Another rank where a name's end matches; often."),
    ] = None,
    alphas: Annotated[
        list[str] | None,
        typer.Option("--alpha-pattern", metavar="REGEX=X", help="Another alpha where a name's end matches; often."),
    ] = None,
    check_class: Annotated[
        bool,
        typer.Option(
            "--check-class", help="Ask the class what each module is, through transformers, on the meta device."
        ),
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
            lora_dropout=lora_dropout,
            modules_to_save=modules_to_save.split(",") if modules_to_save else (),
            exclude_modules=_modules(exclude_modules) if exclude_modules else None,
            layers_to_transform=parse_numbers(layers, "--layers-to-transform") if layers else None,
            layers_pattern=layers_pattern.split(",") if layers_pattern else None,
            rank_pattern=rank_pattern,
            alpha_pattern={name: int(value) if value.is_integer() else value for name, value in alpha_pattern.items()},
            check_class=check_class,
        )
        return surgery.inject_into(base, adapter) if as_ == "checkpoint" else adapter

    written(made, options)


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


@app.command(rich_help_panel=PANEL)
@writing_options
def merge(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE", help="The base checkpoint: a folder, one file, or org/name on the Hub.", show_default=False
        ),
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
    any_base: Annotated[
        bool, typer.Option("--any-base", help="Merge an adapter that was trained on a model of another type.")
    ] = False,
    tokenizer: Annotated[
        str,
        typer.Option(
            "--tokenizer",
            metavar="adapter|base|DIR",
            help=(
                "Whose tokenizer and chat template the result has; the adapter's, where it has them and nothing is"
                " said."
            ),
        ),
    ] = "",
    reversible: Annotated[
        bool,
        typer.Option(
            "--reversible", help="Write an undo record along, from which unmerge restores BASE byte for byte."
        ),
    ] = False,
    dequantize: Annotated[
        bool,
        typer.Option("--dequantize", help="All of it in 16 bits, and not only what is touched.", rich_help_panel=CODES),
    ] = False,
    requantize: Annotated[
        bool,
        typer.Option(
            "--requantize",
            help="What is touched is coded again, under the scales that are stored; the report says what survives.",
            rich_help_panel=CODES,
        ),
    ] = False,
    lossy: Annotated[
        bool,
        typer.Option("--lossy", help="Even if less than half of the adapter survives that.", rich_help_panel=CODES),
    ] = False,
    *,
    merging: Merging,
    options: Writing,
) -> None:
    """Add LoRA adapters to the base's weights: float32 arithmetic, one rounding to the base's dtype."""
    import surgery

    told = merging.told(len(adapters or ()) or 1)

    def made() -> surgery.Checkpoint:
        before = surgery.open_checkpoint(base)
        opened, own = (before, []) if adapters else _apart(before)
        merged = surgery.merge(
            opened,
            [*own, *surgery.open_adapters(adapters or (), merging.beside())],
            **told,
            again=again,
            tokenizer=tokenizer or None,
            any_base=any_base,
            dequantize=dequantize,
            requantize=requantize,
            lossy=lossy,
        )
        return surgery.reversible(merged, before) if reversible else merged

    written(made, options)


def _apart(checkpoint: surgery.Checkpoint) -> tuple[surgery.Checkpoint, list[surgery.Adapter]]:
    import surgery

    base, adapter = surgery.own_adapter(checkpoint)
    return base, [adapter]


@app.command(rich_help_panel=PANEL)
@writing_options
def unmerge(
    merged: Annotated[
        str, typer.Argument(metavar="MERGED", help="A checkpoint that surgery merged.", show_default=False)
    ],
    adapters: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ADAPTER...]", help="Only with --approximate: what was merged.", show_default=False),
    ] = None,
    approximate: Annotated[
        bool,
        typer.Option(
            "--approximate", help="Without an undo record: subtract the adapters; most weights come back, not all."
        ),
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
    told = merging.told(len(adapters or ()))

    def made() -> surgery.Checkpoint:
        checkpoint = surgery.open_checkpoint(merged)
        if not approximate:
            return surgery.unmerge(checkpoint)
        return surgery.unmerge_approximately(
            checkpoint, surgery.open_adapters(adapters or (), merging.beside()), **told
        )

    written(made, options)
