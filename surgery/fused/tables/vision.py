"""Fused attention of vision and audio towers in transformers."""

from __future__ import annotations

from ..layout import full_width
from ..row import Q_K_V, Row

VISION: tuple[Row, ...] = (
    Row(
        "qkv",
        ("sam_vision_model", "sam"),
        r"vision_encoder\.layers\.\d+\.attn",
        "qkv",
        Q_K_V,
        full_width("hidden_size"),
        "models/sam SamVisionAttention.forward",
    ),
)
