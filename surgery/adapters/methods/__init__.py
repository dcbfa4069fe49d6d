"""The kinds of adapters besides LoRA that are merged: one file and one row each."""

from __future__ import annotations

from collections.abc import Mapping

from ...files.peft import Adapter
from . import boft, deft, delora, glora, hira, hra, ia3, loha, miss, oft, peanut, road, vera
from .method import Method

METHODS: Mapping[str, Method] = {
    row.peft_type: row
    for row in (
        boft.METHOD,
        deft.METHOD,
        delora.METHOD,
        glora.METHOD,
        hira.METHOD,
        hra.METHOD,
        ia3.METHOD,
        loha.METHOD,
        miss.METHOD,
        miss.OLD,
        oft.METHOD,
        peanut.METHOD,
        road.METHOD,
        vera.METHOD,
    )
}


def method_of(adapter: Adapter) -> Method | None:
    """The adapter's kind, where it is one of these."""
    return METHODS.get(str(adapter.config.get("peft_type")))
