"""The commands on fused modules: split and fuse, of all kinds or of one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import As, Base, Fused, Model, Writing, writing_options
from .running import written

if TYPE_CHECKING:
    import surgery

app = typer.Typer()
PANEL = "Fused modules"


# Kinds of fused modules: what the library calls them, and what their two commands do.
KINDS = {
    "qkv": (
        ("qkv", "kv"),
        "Replace each fused qkv projection by q, k and v",
        "Put q, k and v back into the fused projection",
    ),
    "gate-up": (
        ("gate_up",),
        "Replace each fused projection of a gated MLP by gate and up",
        "Put gate and up back into one projection",
    ),
    "experts": (
        ("experts",),
        "Replace stacked experts by modules of their own",
        "Put experts back into stacked tensors",
    ),
}
Kinds = Annotated[
    str, typer.Option("--kinds", metavar="KIND,…", help=f"Of {', '.join(KINDS)}; all that are there if not given.")
]


@app.command(rich_help_panel=PANEL)
@writing_options
def split(model: Model, kinds: Kinds = "", to: As = "", base: Base = None, *, fused: Fused, options: Writing) -> None:
    """Replace fused modules by their parts, byte for byte: qkv, gate and up, experts. An adapter's, with its
    [bold]--base[/bold].
    """
    if to and kinds:
        raise typer.BadParameter("the target says what is split", param_hint="--kinds --as")
    _split(model, _kinds(kinds), fused, to, base, options)


@app.command(rich_help_panel=PANEL)
@writing_options
def fuse(model: Model, kinds: Kinds = "", base: Base = None, *, fused: Fused, options: Writing) -> None:
    """Put parts back into the fused modules of the model's own class, byte for byte: the inverse of
    [bold]split[/bold].
    """
    _fuse(model, _kinds(kinds), fused, base, options)


def _add_commands_of(kind: str) -> None:
    """`split-KIND` and `fuse-KIND`: the same for one kind."""
    asked, splits, fuses = KINDS[kind]

    @app.command(f"split-{kind}", rich_help_panel=PANEL, help=f"{splits}, byte for byte.")
    @writing_options
    def split_kind(model: Model, to: As = "", base: Base = None, *, fused: Fused, options: Writing) -> None:
        _split(model, asked, fused, to, base, options)

    @app.command(f"fuse-{kind}", rich_help_panel=PANEL, help=f"{fuses} of the model's own class, byte for byte.")
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
            raise typer.BadParameter(
                "an adapter is no model: split it with its --base, and convert the base", param_hint="--as"
            )
        return surgery.convert(found, to)

    written(made, options)


def _fuse(model: str, kinds: tuple[str, ...], fused: Fused, base: str | None, options: Writing) -> None:
    import surgery

    _cut(surgery.fuse, model, kinds, fused.given(), base, options)


def _cut(
    verb: Callable[..., Any],
    model: str,
    kinds: tuple[str, ...],
    given: surgery.Given | None,
    base: str | None,
    options: Writing,
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

    written(made, options)


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
        raise type(error)(
            error.what, where=error.where, help=f"pass the adapter's base with --base; or {error.help}"
        ) from error


def _kinds(text: str) -> tuple[str, ...]:
    """What the library calls the kinds that are asked for; all of them where nothing is."""
    asked = [kind.replace("_", "-") for kind in text.split(",")] if text else list(KINDS)
    if unknown := [kind for kind in asked if kind not in KINDS]:
        raise typer.BadParameter(
            f"there is no kind {', '.join(unknown)}; there are {', '.join(KINDS)}", param_hint="--kinds"
        )
    return tuple(dict.fromkeys(kind for name in asked for kind in KINDS[name][0]))
