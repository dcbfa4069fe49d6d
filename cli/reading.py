"""The options that say of an adapter what its file does not: its format, its alpha, which parts loralib trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

READING = "Adapters of other tools, where the file does not tell"


@dataclass(frozen=True)
class Reading:
    """What is said of adapters whose files do not."""

    format_: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="NAME",
            help="Which tool's it is, where its content is read in more than one way.",
            rich_help_panel=READING,
        ),
    ] = ""
    alpha: Annotated[
        float | None,
        typer.Option("--alpha", metavar="X", help="The scale is alpha / rank; never guessed.", rich_help_panel=READING),
    ] = None
    enable_lora: Annotated[
        str,
        typer.Option(
            "--enable-lora",
            metavar="N,N,…",
            help="The trained parts of fused projections, as loralib's enable_lora: 1,0,1.",
            rich_help_panel=READING,
        ),
    ] = ""

    def reading(self) -> dict[str, Any]:
        """What was said, as arguments for the library."""
        marks = self.enable_lora.split(",") if self.enable_lora else None
        if marks and not set(marks) <= {"0", "1"}:
            raise typer.BadParameter("ones and zeros, such as 1,0,1", param_hint="--enable-lora")
        enabled = tuple(mark == "1" for mark in marks) if marks else None
        return {"format": self.format_ or None, "alpha": self.alpha, "enable_lora": enabled}
