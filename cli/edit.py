"""The commands that write the same weights in another way, or fewer of them: reshard, convert, dequantize,
quantize, rename, drop, layers; and clean.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from .options import As, Debug, Json, Maps, Model, Writing, needing, parse_map, writing_options
from .running import guarded, written

app = typer.Typer()
Only = Annotated[
    str, typer.Option("--only", metavar="REGEX", help="The modules whose whole name matches; the rest stays as is.")
]
Except = Annotated[
    str, typer.Option("--except", metavar="REGEX", help="Leave modules as they are whose whole name matches.")
]
PANEL = "Edit"


@app.command(rich_help_panel=PANEL)
@writing_options
def reshard(model: Model, *, options: Writing) -> None:
    """Write the same tensors into other shards, of 5GB if [bold]--max-shard-size[/bold] does not say otherwise;
    [bold]--balanced[/bold].
    """
    import surgery
    from surgery.planning.sharding import DEFAULT

    sized = replace(options, max_shard_size=options.max_shard_size or DEFAULT)
    written(lambda: surgery.open_checkpoint(model), sized)


@app.command(rich_help_panel=PANEL)
@writing_options
def convert_files(model: Model, *, options: Writing) -> None:
    """Write the weights of any files that are opened as safetensors, and nothing else: [bold].bin[/bold],
    [bold].pt[/bold], distributed checkpoints. The report names what is left behind.
    """
    import surgery

    written(lambda: surgery.convert_files(surgery.open_checkpoint(model)), options)


@app.command(rich_help_panel=PANEL)
@needing("to")
def convert(model: Model, to: As = "", *, options: Writing) -> None:
    """Write the same weights as another class of transformers loads them: a Phi-3 [bold]--as llama[/bold]."""
    import surgery

    if not to:
        raise typer.BadParameter("convert needs it, such as llama", param_hint="--as")
    written(lambda: surgery.convert(surgery.open_checkpoint(model), to), options)


@app.command(rich_help_panel=PANEL)
@writing_options
def dequantize(
    model: Model,
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="DTYPE", help="bfloat16, float16 or float32; else what the scheme gives.")
    ] = "",
    only: Only = "",
    except_: Except = "",
    *,
    options: Writing,
) -> None:
    """Write quantised weights in 16 bits, bit for bit what they mean: FP8 to bfloat16, NF4, int4, MXFP4."""
    import surgery

    from .options import check_dtype

    told = {"only": only or None, "except_": except_ or None, "dtype": check_dtype(dtype) if dtype else None}
    written(lambda: surgery.dequantize(surgery.open_checkpoint(model), **told), options)


@app.command(rich_help_panel=PANEL)
@needing("scheme")
def quantize(
    model: Model,
    scheme: Annotated[
        str,
        typer.Option(
            "--scheme", metavar="SCHEME", help="nf4, nf4-double or fp8; nf4:128 and such, in blocks of another size."
        ),
    ] = "",
    only: Only = "",
    except_: Except = "",
    *,
    options: Writing,
) -> None:
    """Write linear weights as codes, bit for bit as bitsandbytes (NF4) and transformers (FP8 in blocks) do."""
    import surgery

    if not scheme:
        raise typer.BadParameter("quantize needs it: nf4, nf4-double or fp8", param_hint="--scheme")
    told = {"only": only or None, "except_": except_ or None}
    written(lambda: surgery.quantize(surgery.open_checkpoint(model), scheme, **told), options)


@app.command(rich_help_panel=PANEL)
@needing("maps")
def rename(model: Model, maps: Maps = None, *, options: Writing) -> None:
    r"""Rewrite tensor names, wherever the pattern occurs: [bold]--map '^transformer\.=model.'[/bold]."""
    import surgery

    if not maps:
        raise typer.BadParameter("rename needs at least one", param_hint="--map")
    rules = [parse_map(text) for text in maps]
    written(lambda: surgery.rename(surgery.open_checkpoint(model), rules), options)


@app.command(rich_help_panel=PANEL)
@needing("pattern")
def drop(
    model: Model,
    pattern: Annotated[
        str, typer.Option("--pattern", metavar="REGEX", help="Leave out tensors whose whole name matches.")
    ] = "",
    *,
    options: Writing,
) -> None:
    """Leave tensors out, by name."""
    import surgery

    if not pattern:
        raise typer.BadParameter("drop needs it", param_hint="--pattern")
    written(lambda: surgery.drop(surgery.open_checkpoint(model), pattern), options)


@app.command(rich_help_panel=PANEL)
@writing_options
def layers(
    model: Model,
    keep: Annotated[
        str, typer.Option("--keep", metavar="RANGES", help="These layers alone, such as 0-15,20-31, in their order.")
    ] = "",
    drop: Annotated[str, typer.Option("--drop", metavar="RANGES", help="All layers but these.")] = "",
    order: Annotated[
        str, typer.Option("--order", metavar="RANGES", help="The layers as they are named here, repeated ones too.")
    ] = "",
    stack: Annotated[
        str, typer.Option("--stack", metavar="NAME", help="Where they are, such as model.layers, if that is not clear.")
    ] = "",
    *,
    options: Writing,
) -> None:
    """Keep, leave out, repeat or reorder layers; config.json follows, and the class is asked."""
    import surgery

    told = {"keep": keep, "drop": drop, "order": order, "stack": stack}
    written(lambda: surgery.layers(surgery.open_checkpoint(model), **told), options)


@app.command(rich_help_panel=PANEL)
def clean(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR",
            help="An output, here or hf://org/name, or the folder that holds outputs.",
            show_default=False,
        ),
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


@app.command(rich_help_panel=PANEL)
def reindex(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="A folder with an index, or the index.", show_default=False)
    ],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a right index beside untouched shards, where the index is stale."""
    import surgery

    from . import output

    def body() -> None:
        output.show_reindexed(surgery.reindex(folder), json=json)

    guarded(body, json=json, debug=debug)
