"""CLIP as OpenCLIP calls its modules, with q, k and v in one; diffusers has it as transformers does."""

from __future__ import annotations

from .naming import DIFFUSERS, Naming, Pair, templates

_BLOCK, _LAYER = "transformer.resblocks.{n}.", "text_model.encoder.layers.{n}."
OPEN_CLIP = Naming(
    "OpenCLIP",
    "transformer.resblocks.0.mlp.c_fc",
    "text_model.encoder.layers.0.mlp.fc1",
    templates(
        Pair(f"{_BLOCK}attn.in_proj", tuple(f"{_LAYER}self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj"))),
        Pair(f"{_BLOCK}attn.out_proj", (f"{_LAYER}self_attn.out_proj",)),
        Pair(f"{_BLOCK}mlp.c_fc", (f"{_LAYER}mlp.fc1",)),
        Pair(f"{_BLOCK}mlp.c_proj", (f"{_LAYER}mlp.fc2",)),
        Pair(f"{_BLOCK}ln_1", (f"{_LAYER}layer_norm1",)),
        Pair(f"{_BLOCK}ln_2", (f"{_LAYER}layer_norm2",)),
        Pair("token_embedding", ("text_model.embeddings.token_embedding",)),
        Pair("ln_final", ("text_model.final_layer_norm",)),
    ),
    "diffusers 0.42.1, loaders/single_file_utils.py `convert_open_clip_checkpoint`",
    lambda modules: DIFFUSERS,
)
