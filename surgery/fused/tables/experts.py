"""Experts of a layer in one 3-D tensor, and one module per expert, with gate and up apart.

Stored (experts, out, in), or (experts, in, out) where a row says `transposed`; the parts are (out, in) as nn.Linear has them.
"""

from __future__ import annotations

from ..layout import alternating, equal
from ..row import STACKED, Row

GATE_UP = {"gate": "experts.{expert}.gate_proj", "up": "experts.{expert}.up_proj"}
DOWN = {"down": "experts.{expert}.down_proj"}

EXPERTS: tuple[Row, ...] = (
    Row(
        "experts",
        ("gpt_oss",),
        r"layers\.\d+\.mlp",
        "experts.gate_up_proj",
        GATE_UP,
        alternating(2),
        "models/gpt_oss GptOssExperts.forward",
        axis=2,
        tensors=STACKED,
        stacked=True,
        transposed=True,
    ),
    Row(
        "experts",
        ("gpt_oss",),
        r"layers\.\d+\.mlp",
        "experts.down_proj",
        DOWN,
        equal(1),
        "models/gpt_oss GptOssExperts.forward",
        axis=2,
        tensors=STACKED,
        stacked=True,
        transposed=True,
    ),
)
