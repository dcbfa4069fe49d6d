"""Fused attention of text models in transformers: q, k and v, and k with v."""

from __future__ import annotations

from ..layout import full_width, grouped_query, per_head
from ..row import CONV1D, QKV_PROJ, QUERY_KEY_VALUE, Row

TEXT: tuple[Row, ...] = (
    Row(
        "qkv",
        ("phi3",),
        r"layers\.\d+\.self_attn",
        "qkv_proj",
        QKV_PROJ,
        grouped_query(head_dim=("head_dim",)),
        "models/phi3 Phi3Attention.forward",
    ),
    Row(
        "qkv",
        ("gpt2", "gpt-sw3"),
        r"h\.\d+\.attn",
        "c_attn",
        CONV1D,
        full_width("n_embd", "hidden_size"),
        "models/gpt2 GPT2Attention.forward: Conv1D, so the weight is (in, out)",
        axis=1,
    ),
    Row(
        "qkv",
        ("gpt_neox",),
        r"layers\.\d+\.attention",
        "query_key_value",
        QUERY_KEY_VALUE,
        per_head(),
        "models/gpt_neox GPTNeoXAttention.forward",
    ),
    Row(
        "qkv",
        ("bloom",),
        r"h\.\d+\.self_attention",
        "query_key_value",
        QUERY_KEY_VALUE,
        per_head(("n_head", "num_attention_heads"), ("hidden_size", "n_embed")),
        "models/bloom BloomAttention._reshape",
    ),
)
