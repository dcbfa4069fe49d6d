"""The commands on adapters: inject, merge, unmerge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .injecting import Injecting
from .options import CODES, Merging, Model, Writing, writing_options
from .reading import Reading
from .running import written

if TYPE_CHECKING:
    import surgery

app = typer.Typer()
PANEL = "Adapters"


@app.command(rich_help_panel=PANEL)
@writing_options
def inject(
    model: Model,
    *,
    injecting: Injecting,
    options: Writing,
) -> None:
    """Make a zero-initialised LoRA adapter for a base, from headers alone: PEFT loads it, and nothing changes yet."""
    import surgery

    as_checkpoint, told = injecting.as_checkpoint(), injecting.told()

    def made() -> surgery.Checkpoint | surgery.Adapter:
        base = surgery.open_checkpoint(model)
        adapter = surgery.inject(base, **told)
        return surgery.inject_into(base, adapter) if as_checkpoint else adapter

    written(made, options)


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
            metavar="ADAPTER",
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
            "--reversible",
            help="Write an undo record along, from which unmerge restores BASE, of safetensors, byte for byte.",
        ),
    ] = False,
    through: Annotated[
        str,
        typer.Option(
            "--through",
            metavar="nf4[:BLOCK][:double]",
            help=(
                "BASE is in 16 bits, the adapter was trained on its NF4 (QLoRA): each linear weight, touched or not,"
                " is what its codes mean."
            ),
            rich_help_panel=CODES,
        ),
    ] = "",
    trained_on: Annotated[
        str,
        typer.Option(
            "--trained-on",
            metavar="QUANTISED",
            help="The adapter was trained on these codes, and BASE is another: the report says what that costs.",
            rich_help_panel=CODES,
        ),
    ] = "",
    *,
    merging: Merging,
    reading: Reading,
    options: Writing,
) -> None:
    """Merge adapters, LoRA and other kinds, into the base's weights: in float32, rounded once to the base's dtype."""
    import surgery

    told = merging.told(len(adapters or ()) or 1)

    def made() -> surgery.Checkpoint:
        before = surgery.open_checkpoint(base)
        opened, own = (before, []) if adapters else _apart(before)
        merged = surgery.merge(
            opened,
            [*own, *surgery.open_adapters(adapters or (), merging.beside(), **reading.reading())],
            **told,
            again=again,
            tokenizer=tokenizer or None,
            any_base=any_base,
            through=through or None,
            trained_on=surgery.open_checkpoint(trained_on) if trained_on else None,
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
        typer.Argument(metavar="ADAPTER", help="Only with --approximate: what was merged.", show_default=False),
    ] = None,
    approximate: Annotated[
        bool,
        typer.Option(
            "--approximate", help="Without an undo record: subtract the adapters; most weights come back, not all."
        ),
    ] = False,
    *,
    merging: Merging,
    reading: Reading,
    options: Writing,
) -> None:
    """Restore the base of a merge that was made with [bold]--reversible[/bold], byte for byte, each block checked."""
    import surgery

    if bool(adapters) != approximate or (not approximate and (merging, reading) != (Merging(), Reading())):
        tip = "adapters, and how they were merged, go with --approximate, and only with it"
        raise typer.BadParameter(tip, param_hint="--approximate")
    told = merging.told(len(adapters or ()))

    def made() -> surgery.Checkpoint:
        checkpoint = surgery.open_checkpoint(merged)
        if not approximate:
            return surgery.unmerge(checkpoint)
        return surgery.unmerge_approximately(
            checkpoint, surgery.open_adapters(adapters or (), merging.beside(), **reading.reading()), **told
        )

    written(made, options)
