"""Tiny diffusion transformers with random weights, and what each is called with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

# (class, config, tensors by shape, what else it is called with)
_STATES = (1, 5, 16)
TRANSFORMERS: Mapping[str, tuple[str, dict[str, Any], dict[str, tuple[int, ...]], dict[str, Any]]] = {
    "flux": (
        "FluxTransformer2DModel",
        {
            "patch_size": 1, "in_channels": 4, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
            "num_attention_heads": 2, "joint_attention_dim": 16, "pooled_projection_dim": 24,
            "axes_dims_rope": (4, 4, 8), "guidance_embeds": True,
        },
        {"hidden_states": (1, 16, 4), "encoder_hidden_states": _STATES, "pooled_projections": (1, 24)},
        {
            "timestep": torch.tensor([0.5]), "img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(5, 3),
            "guidance": torch.tensor([3.5]),
        },
    ),
    "flux 2": (
        "Flux2Transformer2DModel",
        {
            "patch_size": 1, "in_channels": 4, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
            "num_attention_heads": 2, "joint_attention_dim": 16, "axes_dims_rope": (4, 4, 4, 4),
            "timestep_guidance_channels": 16,
        },
        {"hidden_states": (1, 16, 4), "encoder_hidden_states": _STATES},
        {
            "timestep": torch.tensor([0.5]), "img_ids": torch.zeros(16, 4), "txt_ids": torch.zeros(5, 4),
            "guidance": torch.tensor([3.5]),
        },
    ),
    "wan": (
        "WanTransformer3DModel",
        {
            "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4,
            "out_channels": 4, "text_dim": 16, "freq_dim": 32, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 32,
        },
        {"hidden_states": (1, 4, 1, 8, 8), "encoder_hidden_states": _STATES},
        {"timestep": torch.tensor([5])},
    ),
    "sd3": (
        "SD3Transformer2DModel",
        {
            "sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 2, "attention_head_dim": 8,
            "num_attention_heads": 2, "joint_attention_dim": 16, "caption_projection_dim": 16,
            "pooled_projection_dim": 24, "out_channels": 4,
        },
        {"hidden_states": (1, 4, 8, 8), "encoder_hidden_states": _STATES, "pooled_projections": (1, 24)},
        {"timestep": torch.tensor([5])},
    ),
    "ltx": (
        "LTXVideoTransformer3DModel",
        {
            "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8,
            "cross_attention_dim": 16, "num_layers": 2, "caption_channels": 16,
        },
        {"hidden_states": (1, 8, 4), "encoder_hidden_states": _STATES},
        {
            "timestep": torch.tensor([5]), "encoder_attention_mask": torch.ones(1, 5), "num_frames": 2, "height": 2,
            "width": 2,
        },
    ),
    "hunyuan video": (
        "HunyuanVideoTransformer3DModel",
        {
            "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2,
            "num_single_layers": 2, "num_refiner_layers": 1, "patch_size": 1, "patch_size_t": 1,
            "guidance_embeds": True, "text_embed_dim": 16, "pooled_projection_dim": 8, "rope_axes_dim": (4, 4, 4),
        },
        {"hidden_states": (1, 4, 1, 4, 4), "encoder_hidden_states": _STATES, "pooled_projections": (1, 8)},
        {
            "timestep": torch.tensor([5]), "guidance": torch.tensor([3.5]),
            "encoder_attention_mask": torch.ones(1, 5, dtype=torch.long),
        },
    ),
    "lumina 2": (
        "Lumina2Transformer2DModel",
        {
            "sample_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 24, "num_layers": 2,
            "num_refiner_layers": 1, "num_attention_heads": 3, "num_kv_heads": 1, "multiple_of": 2,
            "axes_dim_rope": (4, 2, 2), "axes_lens": (32, 32, 32), "cap_feat_dim": 16,
        },
        {"hidden_states": (1, 4, 8, 8), "encoder_hidden_states": _STATES},
        {"timestep": torch.tensor([0.5]), "encoder_attention_mask": torch.ones(1, 5, dtype=torch.bool)},
    ),
    "z-image": (
        "ZImageTransformer2DModel",
        {
            "in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
            "cap_feat_dim": 16, "axes_dims": (8, 4, 4), "axes_lens": (64, 32, 32),
        },
        {},
        {
            "x": [torch.ones(4, 1, 8, 8) * torch.linspace(-1, 1, 8)], "t": torch.tensor([0.5]),
            "cap_feats": [torch.linspace(-1, 1, 5 * 16).view(5, 16)],
        },
    ),
    "qwen image": (
        "QwenImageTransformer2DModel",
        {
            "patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16,
            "num_attention_heads": 2, "joint_attention_dim": 16, "axes_dims_rope": (8, 4, 4),
        },
        {"hidden_states": (1, 16, 16), "encoder_hidden_states": _STATES},
        {
            "timestep": torch.tensor([0.5]), "encoder_hidden_states_mask": torch.ones(1, 5, dtype=torch.long),
            "img_shapes": [[(1, 4, 4)]],
        },
    ),
}  # fmt: skip


def transformer(kind: str) -> Any:
    """The model, in which nothing is zero."""
    import diffusers

    name, config, _, _ = TRANSFORMERS[kind]
    torch.manual_seed(1)
    model = getattr(diffusers, name)(**config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1 or not parameter.abs().max():
            parameter.data = parameter.data + torch.randn_like(parameter) * 0.1
    return model


def computed(model: Any, kind: str) -> torch.Tensor:
    """What the model computes."""
    _, _, shapes, more = TRANSFORMERS[kind]
    draw = torch.Generator().manual_seed(2)
    drawn = {name: torch.randn(*shape, generator=draw) for name, shape in shapes.items()}
    with torch.no_grad():
        found = model(**drawn, **more, return_dict=False)[0]
    return found[0] if isinstance(found, list) else found
