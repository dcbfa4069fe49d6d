"""The kinds of adapters besides LoRA that are merged: one file and one row each."""

from __future__ import annotations

from collections.abc import Mapping

from ...files.peft import Adapter
from . import (
    adapterhub,
    beft,
    boft,
    c3a,
    deft,
    delora,
    fourierft,
    glora,
    gralora,
    hira,
    hra,
    ia3,
    loha,
    lokr,
    lycoris,
    miss,
    oft,
    peanut,
    randlora,
    road,
    shira,
    supertuning,
    tinylora,
    unilora,
    vblora,
    vera,
    waveft,
)
from .method import Method

METHODS: Mapping[str, Method] = {
    row.peft_type: row
    for row in (
        beft.METHOD,
        boft.METHOD,
        c3a.METHOD,
        deft.METHOD,
        delora.METHOD,
        fourierft.METHOD,
        glora.METHOD,
        gralora.METHOD,
        hira.METHOD,
        hra.METHOD,
        ia3.METHOD,
        loha.METHOD,
        lokr.METHOD,
        miss.METHOD,
        miss.OLD,
        oft.METHOD,
        peanut.METHOD,
        randlora.METHOD,
        road.METHOD,
        shira.METHOD,
        supertuning.METHOD,
        tinylora.METHOD,
        unilora.METHOD,
        vblora.METHOD,
        vera.METHOD,
        vera.SAMPLED,
        waveft.METHOD,
    )
}


# Those of other tools, of which PEFT knows nothing.
ELSEWHERE: Mapping[str, Method] = {row.peft_type: row for row in (lycoris.METHOD, adapterhub.METHOD)}


def method_of(adapter: Adapter) -> Method | None:
    """The adapter's kind, where it is one of these."""
    kind = str(adapter.config.get("peft_type"))
    return METHODS.get(kind) or ELSEWHERE.get(kind)
