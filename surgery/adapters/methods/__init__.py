"""The kinds of adapters besides LoRA that are merged: one file and one row each."""

from __future__ import annotations

from collections.abc import Mapping

from ...files.peft import Adapter
from . import beft, c3a, fourierft, ia3, loha, lokr, shira, supertuning, vera, waveft
from .method import Method

METHODS: Mapping[str, Method] = {
    row.peft_type: row
    for row in (
        beft.METHOD,
        c3a.METHOD,
        fourierft.METHOD,
        ia3.METHOD,
        loha.METHOD,
        lokr.METHOD,
        shira.METHOD,
        supertuning.METHOD,
        vera.METHOD,
        waveft.METHOD,
    )
}


def method_of(adapter: Adapter) -> Method | None:
    """The adapter's kind, where it is one of these."""
    return METHODS.get(str(adapter.config.get("peft_type")))
