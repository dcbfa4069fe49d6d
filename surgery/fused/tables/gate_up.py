"""Fused halves of a gated MLP. `gate` is the half that the activation is applied to, whatever the source calls it."""

from __future__ import annotations

from ..layout import alternating, equal
from ..row import PARAMETER, Row

GATE_UP_PROJ = {"gate": "gate_proj", "up": "up_proj"}

GATE_UP: tuple[Row, ...] = (
    Row(
        "gate_up",
        ("phi3",),
        r"layers\.\d+\.mlp",
        "gate_up_proj",
        GATE_UP_PROJ,
        equal(2),
        "models/phi3 Phi3MLP.forward",
    ),
    Row(
        "gate_up",
        ("gpt_oss",),
        r"layers\.\d+\.mlp\.experts",
        "gate_up_proj",
        GATE_UP_PROJ,
        alternating(2),
        "models/gpt_oss GptOssExperts._apply_gate: gate_up[..., ::2], gate_up[..., 1::2]; (experts, in, out)",
        axis=2,
        tensors=PARAMETER,
    ),
)
