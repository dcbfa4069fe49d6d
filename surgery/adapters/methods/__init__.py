"""The kinds of adapters besides LoRA that are merged: one file and one row each."""

from __future__ import annotations

from collections.abc import Mapping

from ...files.peft import Adapter
from . import (
    boft,
    deft,
    delora,
    glora,
    gralora,
    hira,
    hra,
    ia3,
    loha,
    miss,
    oft,
    peanut,
    randlora,
    road,
    tinylora,
    unilora,
    vblora,
    vera,
)
from .method import Method

METHODS: Mapping[str, Method] = {
    row.peft_type: row
    for row in (
        boft.METHOD,
        deft.METHOD,
        delora.METHOD,
        glora.METHOD,
        gralora.METHOD,
        hira.METHOD,
        hra.METHOD,
        ia3.METHOD,
        loha.METHOD,
        miss.METHOD,
        miss.OLD,
        oft.METHOD,
        peanut.METHOD,
        randlora.METHOD,
        road.METHOD,
        tinylora.METHOD,
        unilora.METHOD,
        vblora.METHOD,
        vera.METHOD,
        vera.SAMPLED,
    )
}


def method_of(adapter: Adapter) -> Method | None:
    """The adapter's kind, where it is one of these."""
    row = METHODS.get(str(adapter.config.get("peft_type")))
    return row and (row.variant(adapter) or row)
