"""Diffusion transformers whose original names are not diffusers': what each module, and each part of one, is called."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ...names import natural
from .naming import Naming, Pair, templates

_DOUBLE, _JOINT, _SINGLE = "double_blocks.{n}.", "transformer_blocks.{n}.", "single_transformer_blocks.{n}."


def _qkv(parent: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{parent}attn.{name}" for name in names)


FLUX = Naming(
    "Flux",
    "double_blocks.0.img_attn.qkv",
    "single_transformer_blocks.0.proj_mlp",
    templates(
        Pair(f"{_DOUBLE}img_attn.qkv", _qkv(_JOINT, "to_q", "to_k", "to_v")),
        Pair(f"{_DOUBLE}txt_attn.qkv", _qkv(_JOINT, "add_q_proj", "add_k_proj", "add_v_proj")),
        Pair(f"{_DOUBLE}img_attn.proj", (f"{_JOINT}attn.to_out.0",)),
        Pair(f"{_DOUBLE}txt_attn.proj", (f"{_JOINT}attn.to_add_out",)),
        Pair(f"{_DOUBLE}img_attn.norm.query_norm", (f"{_JOINT}attn.norm_q",)),
        Pair(f"{_DOUBLE}img_attn.norm.key_norm", (f"{_JOINT}attn.norm_k",)),
        Pair(f"{_DOUBLE}txt_attn.norm.query_norm", (f"{_JOINT}attn.norm_added_q",)),
        Pair(f"{_DOUBLE}txt_attn.norm.key_norm", (f"{_JOINT}attn.norm_added_k",)),
        Pair(f"{_DOUBLE}img_mlp.0", (f"{_JOINT}ff.net.0.proj",)),
        Pair(f"{_DOUBLE}img_mlp.2", (f"{_JOINT}ff.net.2",)),
        Pair(f"{_DOUBLE}txt_mlp.0", (f"{_JOINT}ff_context.net.0.proj",)),
        Pair(f"{_DOUBLE}txt_mlp.2", (f"{_JOINT}ff_context.net.2",)),
        Pair(f"{_DOUBLE}img_mod.lin", (f"{_JOINT}norm1.linear",)),
        Pair(f"{_DOUBLE}txt_mod.lin", (f"{_JOINT}norm1_context.linear",)),
        Pair("single_blocks.{n}.linear1", (*_qkv(_SINGLE, "to_q", "to_k", "to_v"), f"{_SINGLE}proj_mlp")),
        Pair("single_blocks.{n}.qkv", _qkv(_SINGLE, "to_q", "to_k", "to_v")),  # XLabs leaves the rest of linear1 alone
        Pair("single_blocks.{n}.linear2", (f"{_SINGLE}proj_out",)),
        Pair("single_blocks.{n}.modulation.lin", (f"{_SINGLE}norm.linear",)),
        Pair("single_blocks.{n}.norm.query_norm", (f"{_SINGLE}attn.norm_q",)),
        Pair("single_blocks.{n}.norm.key_norm", (f"{_SINGLE}attn.norm_k",)),
        Pair("img_in", ("x_embedder",)),
        Pair("txt_in", ("context_embedder",)),
        Pair("time_in.in_layer", ("time_text_embed.timestep_embedder.linear_1",)),
        Pair("time_in.out_layer", ("time_text_embed.timestep_embedder.linear_2",)),
        Pair("vector_in.in_layer", ("time_text_embed.text_embedder.linear_1",)),
        Pair("vector_in.out_layer", ("time_text_embed.text_embedder.linear_2",)),
        Pair("guidance_in.in_layer", ("time_text_embed.guidance_embedder.linear_1",)),
        Pair("guidance_in.out_layer", ("time_text_embed.guidance_embedder.linear_2",)),
        Pair("final_layer.linear", ("proj_out",)),
        Pair("final_layer.adaLN_modulation.1", ("norm_out.linear",), swapped=True),
    ),
    "diffusers 0.42.1, loaders/single_file_utils.py `convert_flux_transformer_checkpoint_to_diffusers`",
)

_WAN = "blocks.{n}."
WAN = Naming(
    "Wan",
    "blocks.0.self_attn.q",
    "condition_embedder.time_embedder.linear_1",
    templates(
        *(
            Pair(f"{_WAN}{old}.{one}", (f"{_WAN}{new}.{other}",))
            for old, new in (("self_attn", "attn1"), ("cross_attn", "attn2"))
            for one, other in {
                "q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "k_img": "add_k_proj", "v_img": "add_v_proj",
                "norm_q": "norm_q", "norm_k": "norm_k", "norm_k_img": "norm_added_k",
            }.items()
        ),
        Pair(f"{_WAN}ffn.0", (f"{_WAN}ffn.net.0.proj",)),
        Pair(f"{_WAN}ffn.2", (f"{_WAN}ffn.net.2",)),
        Pair(f"{_WAN}norm2", (f"{_WAN}norm3",)),
        Pair(f"{_WAN}norm3", (f"{_WAN}norm2",)),
        Pair("time_embedding.0", ("condition_embedder.time_embedder.linear_1",)),
        Pair("time_embedding.2", ("condition_embedder.time_embedder.linear_2",)),
        Pair("text_embedding.0", ("condition_embedder.text_embedder.linear_1",)),
        Pair("text_embedding.2", ("condition_embedder.text_embedder.linear_2",)),
        Pair("time_projection.1", ("condition_embedder.time_proj",)),
        Pair("img_emb.proj.0", ("condition_embedder.image_embedder.norm1",)),
        Pair("img_emb.proj.1", ("condition_embedder.image_embedder.ff.net.0.proj",)),
        Pair("img_emb.proj.3", ("condition_embedder.image_embedder.ff.net.2",)),
        Pair("img_emb.proj.4", ("condition_embedder.image_embedder.norm2",)),
        Pair("head.head", ("proj_out",)),
    ),
    "diffusers 0.42.1, loaders/single_file_utils.py `convert_wan_transformer_to_diffusers`",
)  # fmt: skip

_X, _CONTEXT = "joint_blocks.{n}.x_block.", "joint_blocks.{n}.context_block."
_SD3 = templates(
    Pair(f"{_X}attn.qkv", _qkv(_JOINT, "to_q", "to_k", "to_v")),
    Pair(f"{_CONTEXT}attn.qkv", _qkv(_JOINT, "add_q_proj", "add_k_proj", "add_v_proj")),
    Pair(f"{_X}attn2.qkv", tuple(f"{_JOINT}attn2.{name}" for name in ("to_q", "to_k", "to_v"))),
    Pair(f"{_X}attn.proj", (f"{_JOINT}attn.to_out.0",)),
    Pair(f"{_X}attn2.proj", (f"{_JOINT}attn2.to_out.0",)),
    Pair(f"{_CONTEXT}attn.proj", (f"{_JOINT}attn.to_add_out",)),
    Pair(f"{_X}mlp.fc1", (f"{_JOINT}ff.net.0.proj",)),
    Pair(f"{_X}mlp.fc2", (f"{_JOINT}ff.net.2",)),
    Pair(f"{_CONTEXT}mlp.fc1", (f"{_JOINT}ff_context.net.0.proj",)),
    Pair(f"{_CONTEXT}mlp.fc2", (f"{_JOINT}ff_context.net.2",)),
    Pair(f"{_X}adaLN_modulation.1", (f"{_JOINT}norm1.linear",)),
    Pair(f"{_CONTEXT}adaLN_modulation.1", (f"{_JOINT}norm1_context.linear",)),
    Pair("x_embedder.proj", ("pos_embed.proj",)),
    Pair("t_embedder.mlp.0", ("time_text_embed.timestep_embedder.linear_1",)),
    Pair("t_embedder.mlp.2", ("time_text_embed.timestep_embedder.linear_2",)),
    Pair("y_embedder.mlp.0", ("time_text_embed.text_embedder.linear_1",)),
    Pair("y_embedder.mlp.2", ("time_text_embed.text_embedder.linear_2",)),
    Pair("final_layer.linear", ("proj_out",)),
    Pair("final_layer.adaLN_modulation.1", ("norm_out.linear",), swapped=True),
)


def _sd3(modules: Collection[str]) -> list[Pair]:
    """As the templates say; in the last block the context has but a shift and a scale, and these are swapped."""
    pairs = _SD3(modules)
    contexts = [pair.original for pair in pairs if pair.original.endswith("context_block.adaLN_modulation.1")]
    last = max(contexts, key=natural, default="")
    return [replace(pair, swapped=True) if pair.original == last else pair for pair in pairs]


SD3 = Naming(
    "Stable Diffusion 3",
    "joint_blocks.0.x_block.attn.qkv",
    "transformer_blocks.0.norm1_context.linear",
    _sd3,
    "diffusers 0.42.1, loaders/single_file_utils.py `convert_sd3_transformer_checkpoint_to_diffusers`",
)
