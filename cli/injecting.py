"""The options of what is injected, and what they say to the library."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from .options import parse_numbers


@dataclass(frozen=True)
class Injecting:
    """The options that say what LoRA a base gets."""

    target_modules: Annotated[
        str,
        typer.Option(
            "--target-modules",
            metavar="NAME,…",
            help="Last names, a regular expression, or all-linear; else PEFT's own.",
        ),
    ] = ""
    target_parameters: Annotated[
        str,
        typer.Option(
            "--target-parameters",
            metavar="NAME,…",
            help="Parameters, such as experts.gate_up_proj: all experts at once.",
        ),
    ] = ""
    as_: Annotated[
        str,
        typer.Option(
            "--as", metavar="adapter|checkpoint", help="A PEFT folder, or the base with the LoRA in a shard of its own."
        ),
    ] = "adapter"
    rank: Annotated[int, typer.Option("--rank", "-r", metavar="N", help="The inner dimension of B·A.")] = 8
    alpha: Annotated[
        float | None, typer.Option("--alpha", metavar="X", help="The scale is alpha / rank; 1 if not given.")
    ] = None
    init: Annotated[
        str, typer.Option("--init", metavar="KIND", help="How A is drawn: uniform (PEFT's own) or gaussian.")
    ] = "uniform"
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="A follows from it and from its name, on every machine.")
    ] = 0
    rslora: Annotated[bool, typer.Option("--use-rslora", help="The scale is alpha / √rank.")] = False
    dora: Annotated[bool, typer.Option("--use-dora", help="Magnitudes too, taken from the base in a stream.")] = False
    lora_bias: Annotated[bool, typer.Option("--lora-bias", help="A bias beside each B.")] = False
    lora_dropout: Annotated[
        float, typer.Option("--lora-dropout", metavar="P", help="For training: from 0 to below 1.")
    ] = 0.0
    modules_to_save: Annotated[
        str, typer.Option("--modules-to-save", metavar="NAME,…", help="Copied whole, to be trained.")
    ] = ""
    exclude_modules: Annotated[
        str, typer.Option("--exclude-modules", metavar="NAME,…", help="As --target-modules, left out.")
    ] = ""
    layers: Annotated[str, typer.Option("--layers-to-transform", metavar="N,…", help="Only in these layers.")] = ""
    layers_pattern: Annotated[
        str, typer.Option("--layers-pattern", metavar="NAME,…", help="What the layers' list is called.")
    ] = ""
    ranks: Annotated[
        list[str] | None,
        typer.Option("--rank-pattern", metavar="REGEX=N", help="Another rank where a name's end matches; often."),
    ] = None
    alphas: Annotated[
        list[str] | None,
        typer.Option("--alpha-pattern", metavar="REGEX=X", help="Another alpha where a name's end matches; often."),
    ] = None
    check_class: Annotated[
        bool,
        typer.Option(
            "--check-class", help="Ask the class what each module is, through transformers, on the meta device."
        ),
    ] = False

    def as_checkpoint(self) -> bool:
        """Whether the result is the base with the LoRA in it."""
        if self.as_ not in ("adapter", "checkpoint"):
            raise typer.BadParameter("adapter or checkpoint", param_hint="--as")
        return self.as_ == "checkpoint"

    def told(self) -> dict[str, Any]:
        """What was said, as arguments for the library."""
        ranks = _patterns(self.ranks, r"\d+", "N", "--rank-pattern")
        alphas = _patterns(self.alphas, r"\d+(?:\.\d+)?", "X", "--alpha-pattern")
        return {
            "target_modules": _modules(self.target_modules) if self.target_modules else (),
            "target_parameters": _listed(self.target_parameters) or (),
            "rank": self.rank,
            "alpha": None if self.alpha is None else _number(self.alpha),
            "init": self.init,
            "seed": self.seed,
            "use_rslora": self.rslora,
            "use_dora": self.dora,
            "lora_bias": self.lora_bias,
            "lora_dropout": self.lora_dropout,
            "modules_to_save": _listed(self.modules_to_save) or (),
            "exclude_modules": _modules(self.exclude_modules) if self.exclude_modules else None,
            "layers_to_transform": parse_numbers(self.layers, "--layers-to-transform") if self.layers else None,
            "layers_pattern": _listed(self.layers_pattern),
            "rank_pattern": {name: int(value) for name, value in ranks},
            "alpha_pattern": {name: _number(float(value)) for name, value in alphas},
            "check_class": self.check_class,
        }


def _listed(text: str) -> list[str] | None:
    """The names in NAME,…; None where nothing was said."""
    return text.split(",") if text else None


def _number(value: float) -> float:
    """A whole number without a point, as PEFT writes it."""
    return int(value) if value.is_integer() else value


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
