"""More diffusion transformers whose original names are not diffusers': Flux 2, HunyuanVideo, Lumina 2, Z-Image, LTX."""

from __future__ import annotations

from collections.abc import Iterable

from .naming import DIFFUSERS, Naming, Pair, templates

_JOINT, _SINGLE = "transformer_blocks.{n}.", "single_transformer_blocks.{n}."
_QKV, _ADDED = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")


def _attn(parent: str, names: Iterable[str], at: str = "attn") -> tuple[str, ...]:
    return tuple(f"{parent}{at}.{name}" for name in names)


def _renamed(old: str, new: str, names: dict[str, str]) -> Iterable[Pair]:
    return (Pair(f"{old}{one}", (f"{new}{other}",)) for one, other in names.items())


_DOUBLE = "double_blocks.{n}."
FLUX2 = Naming(
    "Flux 2",
    "double_stream_modulation_img.lin",
    "single_transformer_blocks.0.attn.to_qkv_mlp_proj",
    templates(
        Pair(f"{_DOUBLE}img_attn.qkv", _attn(_JOINT, _QKV)),
        Pair(f"{_DOUBLE}txt_attn.qkv", _attn(_JOINT, _ADDED)),
        *_renamed(
            _DOUBLE,
            _JOINT,
            {
                "img_attn.proj": "attn.to_out.0", "txt_attn.proj": "attn.to_add_out",
                "img_attn.norm.query_norm": "attn.norm_q", "img_attn.norm.key_norm": "attn.norm_k",
                "txt_attn.norm.query_norm": "attn.norm_added_q", "txt_attn.norm.key_norm": "attn.norm_added_k",
                "img_mlp.0": "ff.linear_in", "img_mlp.2": "ff.linear_out",
                "txt_mlp.0": "ff_context.linear_in", "txt_mlp.2": "ff_context.linear_out",
            },
        ),
        *_renamed(
            "single_blocks.{n}.",
            f"{_SINGLE}attn.",
            {
                "linear1": "to_qkv_mlp_proj", "linear2": "to_out", "norm.query_norm": "norm_q",
                "norm.key_norm": "norm_k",
            },
        ),
        Pair("img_in", ("x_embedder",)),
        Pair("txt_in", ("context_embedder",)),
        *_renamed(
            "",
            "time_guidance_embed.",
            {
                "time_in.in_layer": "timestep_embedder.linear_1", "time_in.out_layer": "timestep_embedder.linear_2",
                "guidance_in.in_layer": "guidance_embedder.linear_1",
                "guidance_in.out_layer": "guidance_embedder.linear_2",
            },
        ),
        Pair("double_stream_modulation_img.lin", ("double_stream_modulation_img.linear",)),
        Pair("double_stream_modulation_txt.lin", ("double_stream_modulation_txt.linear",)),
        Pair("single_stream_modulation.lin", ("single_stream_modulation.linear",)),
        Pair("final_layer.linear", ("proj_out",)),
        Pair("final_layer.adaLN_modulation.1", ("norm_out.linear",), swapped=True),
    ),
    "diffusers 0.42.1, loaders/single_file_utils.py `convert_flux2_transformer_checkpoint_to_diffusers`",
)  # fmt: skip

_REFINER, _REFINED = "txt_in.individual_token_refiner.blocks.{n}.", "context_embedder.token_refiner.refiner_blocks.{n}."
HUNYUAN_VIDEO = Naming(
    "HunyuanVideo",
    "double_blocks.0.img_attn_qkv",
    "context_embedder.token_refiner.refiner_blocks.0.attn.to_q",
    templates(
        Pair(f"{_DOUBLE}img_attn_qkv", _attn(_JOINT, _QKV)),
        Pair(f"{_DOUBLE}txt_attn_qkv", _attn(_JOINT, _ADDED)),
        *_renamed(
            _DOUBLE,
            _JOINT,
            {
                "img_attn_proj": "attn.to_out.0", "txt_attn_proj": "attn.to_add_out",
                "img_attn_q_norm": "attn.norm_q", "img_attn_k_norm": "attn.norm_k",
                "txt_attn_q_norm": "attn.norm_added_q", "txt_attn_k_norm": "attn.norm_added_k",
                "img_mod.linear": "norm1.linear", "txt_mod.linear": "norm1_context.linear",
                "img_mlp.fc1": "ff.net.0.proj", "img_mlp.fc2": "ff.net.2",
                "txt_mlp.fc1": "ff_context.net.0.proj", "txt_mlp.fc2": "ff_context.net.2",
            },
        ),
        Pair("single_blocks.{n}.linear1", (*_attn(_SINGLE, _QKV), f"{_SINGLE}proj_mlp")),
        *_renamed(
            "single_blocks.{n}.",
            _SINGLE,
            {
                "linear2": "proj_out", "modulation.linear": "norm.linear", "q_norm": "attn.norm_q",
                "k_norm": "attn.norm_k",
            },
        ),
        Pair(f"{_REFINER}self_attn_qkv", _attn(_REFINED, _QKV)),
        *_renamed(
            _REFINER,
            _REFINED,
            {
                "self_attn_proj": "attn.to_out.0", "mlp.fc1": "ff.net.0.proj", "mlp.fc2": "ff.net.2",
                "adaLN_modulation.1": "norm_out.linear", "norm1": "norm1", "norm2": "norm2",
            },
        ),
        *_renamed(
            "txt_in.",
            "context_embedder.",
            {
                "input_embedder": "proj_in", "c_embedder": "time_text_embed.text_embedder",
                "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
                "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
            },
        ),
        Pair("img_in", ("x_embedder",)),
        *_renamed(
            "",
            "time_text_embed.",
            {
                "time_in.mlp.0": "timestep_embedder.linear_1", "time_in.mlp.2": "timestep_embedder.linear_2",
                "guidance_in.mlp.0": "guidance_embedder.linear_1", "guidance_in.mlp.2": "guidance_embedder.linear_2",
                "vector_in.in_layer": "text_embedder.linear_1", "vector_in.out_layer": "text_embedder.linear_2",
            },
        ),
        Pair("final_layer.linear", ("proj_out",)),
        Pair("final_layer.adaLN_modulation.1", ("norm_out.linear",), swapped=True),
    ),
    "diffusers 0.42.1, loaders/single_file_utils.py `convert_hunyuan_video_transformer_to_diffusers`",
)  # fmt: skip

_STACKS = ("layers.{n}.", "noise_refiner.{n}.", "context_refiner.{n}.")
_LUMINA_BLOCK = {
    "attention.out": "attn.to_out.0", "attention.q_norm": "attn.norm_q", "attention.k_norm": "attn.norm_k",
    "feed_forward.w1": "feed_forward.linear_1", "feed_forward.w2": "feed_forward.linear_2",
    "feed_forward.w3": "feed_forward.linear_3", "attention_norm2": "norm2", "ffn_norm1": "ffn_norm1",
    "ffn_norm2": "ffn_norm2",
}  # fmt: skip
LUMINA2 = Naming(
    "Lumina 2",
    "layers.0.adaLN_modulation.1",
    "time_caption_embed.timestep_embedder.linear_1",
    templates(
        *(Pair(f"{at}attention.qkv", _attn(at, _QKV)) for at in _STACKS),
        *(pair for at in _STACKS for pair in _renamed(at, at, _LUMINA_BLOCK)),
        *(
            pair
            for at in _STACKS[:2]
            for pair in _renamed(at, at, {"adaLN_modulation.1": "norm1.linear", "attention_norm1": "norm1.norm"})
        ),
        Pair("context_refiner.{n}.attention_norm1", ("context_refiner.{n}.norm1",)),
        Pair("cap_embedder", ("time_caption_embed.caption_embedder",)),
        Pair("t_embedder.mlp.0", ("time_caption_embed.timestep_embedder.linear_1",)),
        Pair("t_embedder.mlp.2", ("time_caption_embed.timestep_embedder.linear_2",)),
        Pair("x_embedder", ("x_embedder",)),
        Pair("final_layer.adaLN_modulation.1", ("norm_out.linear_1",)),
        Pair("final_layer.linear", ("norm_out.linear_2",)),
    ),
    "diffusers 0.42.1, loaders/single_file_utils.py `convert_lumina2_to_diffusers`",
)

_Z_BLOCK = {
    "attention.out": "attention.to_out.0", "attention.q_norm": "attention.norm_q",
    "attention.k_norm": "attention.norm_k",
}  # fmt: skip
_Z_SAME = (
    "feed_forward", "adaLN_modulation", "attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2",
)  # fmt: skip
Z_IMAGE = Naming(
    "Z-Image",
    "layers.0.attention.qkv",
    "layers.0.attention.to_q",
    templates(
        *(Pair(f"{at}attention.qkv", _attn(at, _QKV, "attention")) for at in _STACKS),
        *(pair for at in _STACKS for pair in _renamed(at, at, _Z_BLOCK)),
        *(Pair(f"{at}{one}", (f"{at}{one}",)) for at in _STACKS for one in _Z_SAME),
        Pair("final_layer", ("all_final_layer.2-1",)),
        Pair("x_embedder", ("all_x_embedder.2-1",)),
        Pair("cap_embedder", ("cap_embedder",)),
        Pair("t_embedder", ("t_embedder",)),
    ),
    "diffusers 0.42.1, loaders/single_file_utils.py `convert_z_image_transformer_checkpoint_to_diffusers`",
    lambda modules: DIFFUSERS,
)

_LTX_SAME = (
    "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out", "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out",
    "ff", "norm1", "norm2",
)  # fmt: skip
_LTX_NORMS = {
    f"{at}.{one}": f"{at}.{other}"
    for at in ("attn1", "attn2")
    for one, other in (("q_norm", "norm_q"), ("k_norm", "norm_k"))
}
LTX = Naming(
    "LTX-Video",
    "patchify_proj",
    "time_embed.emb.timestep_embedder.linear_1",
    templates(
        *(Pair(f"{_JOINT}{one}", (f"{_JOINT}{one}",)) for one in _LTX_SAME),
        *_renamed(_JOINT, _JOINT, _LTX_NORMS),
        Pair("patchify_proj", ("proj_in",)),
        Pair("adaln_single", ("time_embed",)),
        Pair("caption_projection", ("caption_projection",)),
        Pair("proj_out", ("proj_out",)),
    ),
    "diffusers 0.42.1, loaders/single_file_utils.py `convert_ltx_transformer_checkpoint_to_diffusers`",
)
