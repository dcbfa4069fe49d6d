"""Decoders with LayerNorm and a plain MLP: GPT, GPT-2, CodeGen, Falcon and GPT-NeoX."""

from __future__ import annotations

from typing import Any

from ..fused.layout import Config
from .target import (
    Target,
    common,
    one_of,
    partial_rotary,
    picked,
    reasons,
    rope_fields,
    transposed,
    zero_biases,
    zero_head_bias,
    zero_rows,
)

# GPT-2 and GPT: models/gpt2 GPT2Block, models/openai Block; models/opt OPTDecoderLayer,
# OPTLearnedPositionalEmbedding (offset 2)

OPT_EPSILON = 1e-5  # of nn.LayerNorm: OPT's config says none
_OPENAI_ACTIVATIONS = {"gelu": "gelu_new", "swish": "silu"}  # models/openai ACT_FNS


def _opt(config: Config, activation: str, *, norm_before: bool) -> dict[str, Any]:
    return {
        **common(config),
        "hidden_size": config["n_embd"],
        "num_hidden_layers": config["n_layer"],
        "ffn_dim": config.get("n_inner") or 4 * config["n_embd"],
        "max_position_embeddings": config["n_positions"],
        "do_layer_norm_before": norm_before,
        "_remove_final_layer_norm": False,
        "word_embed_proj_dim": config["n_embd"],
        "dropout": config["resid_pdrop"],
        "attention_dropout": config["attn_pdrop"],
        "num_attention_heads": config["n_head"],
        "activation_function": activation,
        "layerdrop": 0.0,
        "init_std": config["initializer_range"],
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
    }


def _epsilon(config: Config) -> tuple[bool, str]:
    epsilon = config.get("layer_norm_epsilon", OPT_EPSILON)
    return epsilon != OPT_EPSILON, f"layer_norm_epsilon is {epsilon:g}: opt's is {OPT_EPSILON:g}, always"


def _unfit_gpt2(config: Config) -> list[str]:
    return reasons(
        _epsilon(config),
        (not config.get("scale_attn_weights", True), "scale_attn_weights is false: opt always scales"),
        (
            config.get("scale_attn_by_inverse_layer_idx"),
            "scale_attn_by_inverse_layer_idx is true: opt scales every layer alike",
        ),
        (config.get("add_cross_attention"), "add_cross_attention is true: opt has none"),
    )


def _opt_notes(_: Config) -> list[str]:
    return [
        "where the input is padded on the left, opt counts positions from the first token; the source's class needs"
        " position_ids"
    ]


_GPT_LAYER = (
    (r"attn\.([qkv]_proj)", r"self_attn.\2"),
    (r"attn\.c_proj", "self_attn.out_proj"),
    (r"mlp\.c_fc", "fc1"),
    (r"mlp\.c_proj", "fc2"),
    ("ln_1", "self_attn_layer_norm"),
    ("ln_2", "final_layer_norm"),
)
_GPT_RULES = (
    *one_of(_GPT_LAYER, r"(?:transformer\.)?h\.", "model.decoder.layers."),  # files on the Hub lack the first part
    (r"^(?:transformer\.)?(?:wte|tokens_embed)\.", "model.decoder.embed_tokens."),
    (r"^(?:transformer\.)?(?:wpe|positions_embed)\.", "model.decoder.embed_positions."),
    (r"^(?:transformer\.)?ln_f\.", "model.decoder.final_layer_norm."),
)
_GPT_MOVES = (
    transposed(r"model\.decoder\.layers\.\d+\.(?:self_attn\.\w+_proj|fc1|fc2)\.weight"),
    zero_rows("model.decoder.embed_positions.weight", 2),
)
_GPT_BUFFERS = r"(?:transformer\.)?h\.\d+\.attn\.(?:masked_)?bias"


# CodeGen: models/codegen CodeGenAttention, models/gptj GPTJAttention: the same but for the fused projection


def _gptj(config: Config) -> dict[str, Any]:
    sizes = ("n_positions", "n_embd", "n_layer", "n_head", "rotary_dim", "n_inner", "activation_function")
    others = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "layer_norm_epsilon", "initializer_range")
    return {**common(config), **picked(config, *sizes, *others)}


# Falcon: models/falcon FalconDecoderLayer, FalconAttention._split_heads; models/phi PhiDecoderLayer


def _falcon(config: Config) -> dict[str, Any]:
    heads = config["num_attention_heads"]
    grouped = config["num_kv_heads"] if config["new_decoder_architecture"] else 1 if config["multi_query"] else heads
    return {
        **common(config),
        **picked(
            config,
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "max_position_embeddings",
            "initializer_range",
        ),
        "intermediate_size": config["ffn_hidden_size"],
        "num_key_value_heads": grouped,
        "resid_pdrop": config["hidden_dropout"],
        "embd_pdrop": 0.0,
        "attention_dropout": config["attention_dropout"],
        "hidden_act": config["activation"],
        "layer_norm_eps": config["layer_norm_epsilon"],
        "qk_layernorm": False,
        **rope_fields(config["rope_parameters"]),
    }


def _unfit_falcon(config: Config) -> list[str]:
    norms = config.get("num_ln_in_parallel_attn") or 2
    return reasons(
        (config.get("alibi"), "alibi is true: phi rotates positions instead"),
        (
            config.get("new_decoder_architecture") and norms == 2,
            "it has two norms before its parallel attention and MLP: phi has one",
        ),
        (not config.get("parallel_attn", True), "parallel_attn is false: phi's attention and MLP are parallel"),
    )


_FALCON_LAYER = (
    (r"self_attention\.(\w+)", r"self_attn.\2"),
    (r"mlp\.dense_h_to_4h", "mlp.fc1"),
    (r"mlp\.dense_4h_to_h", "mlp.fc2"),
    ("input_layernorm", "input_layernorm"),
)

# GPT-NeoX: models/gpt_neox GPTNeoXLayer, models/starcoder2 Starcoder2DecoderLayer


def _gpt_neox(config: Config) -> dict[str, Any]:
    return {
        **common(config),
        **picked(config, "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act"),
        **picked(config, "max_position_embeddings", "initializer_range", "attention_dropout"),
        "num_key_value_heads": config["num_attention_heads"],
        "norm_epsilon": config["layer_norm_eps"],
        "sliding_window": None,
        "residual_dropout": config["hidden_dropout"],
        "embedding_dropout": config["hidden_dropout"],
        "use_bias": True,
        **rope_fields(config["rope_parameters"]),
    }


def _unfit_gpt_neox(config: Config) -> list[str]:
    share = partial_rotary(config, 0.25)
    two = (
        "use_parallel_residual is true: two norms before a parallel attention and MLP, which no class with q, k and v"
        " apart has"
    )
    return reasons(
        (config.get("use_parallel_residual", True), two),
        (share != 1, f"rotary_pct is {share:g}: starcoder2 rotates whole heads"),
    )


_NEOX_LAYER = (
    (r"attention\.([qkv]_proj)", r"self_attn.\2"),
    (r"attention\.dense", "self_attn.o_proj"),
    (r"mlp\.dense_h_to_4h", "mlp.c_fc"),
    (r"mlp\.dense_4h_to_h", "mlp.c_proj"),
    ("input_layernorm", "input_layernorm"),
    ("post_attention_layernorm", "post_attention_layernorm"),
)

GPT: tuple[Target, ...] = (
    Target(
        "opt",
        "OPTForCausalLM",
        "gpt2",
        ("GPT2LMHeadModel",),
        _unfit_gpt2,
        lambda c: _opt(c, c["activation_function"], norm_before=True),
        _GPT_RULES,
        moves=_GPT_MOVES,
        buffers=_GPT_BUFFERS,
        notes=_opt_notes,
    ),
    Target(
        "opt",
        "OPTForCausalLM",
        "openai-gpt",
        ("OpenAIGPTLMHeadModel",),
        lambda c: reasons(_epsilon(c)),
        lambda c: _opt(c, _OPENAI_ACTIVATIONS.get(c["afn"]) or c["afn"], norm_before=False),
        _GPT_RULES,
        moves=_GPT_MOVES,
        buffers=_GPT_BUFFERS,
        notes=_opt_notes,
    ),
    Target(
        "gptj",
        "GPTJForCausalLM",
        "codegen",
        ("CodeGenForCausalLM",),
        lambda _: [],
        _gptj,
        buffers=r"transformer\.h\.\d+\.attn\.causal_mask",
    ),
    Target(
        "phi",
        "PhiForCausalLM",
        "falcon",
        ("FalconForCausalLM",),
        _unfit_falcon,
        _falcon,
        (
            *one_of(_FALCON_LAYER, r"transformer\.h\.", "model.layers."),
            (r"^transformer\.word_embeddings\.", "model.embed_tokens."),
            (r"^transformer\.ln_f\.", "model.final_layernorm."),
        ),
        moves=(
            zero_biases(r"model\.layers\.\d+\.(?:self_attn\.(?:[qkv]_proj|dense)|mlp\.fc[12])\.weight"),
            zero_head_bias("lm_head.weight", "model.embed_tokens.weight"),
        ),
    ),
    Target(
        "starcoder2",
        "Starcoder2ForCausalLM",
        "gpt_neox",
        ("GPTNeoXForCausalLM",),
        _unfit_gpt_neox,
        _gpt_neox,
        (
            *one_of(_NEOX_LAYER, r"gpt_neox\.layers\.", "model.layers."),
            (r"^gpt_neox\.embed_in\.", "model.embed_tokens."),
            (r"^gpt_neox\.final_layer_norm\.", "model.norm."),
            (r"^embed_out\.", "lm_head."),
        ),
        moves=(zero_biases(r"model\.layers\.\d+\.self_attn\.[qkvo]_proj\.weight"),),
        buffers=r"gpt_neox\.layers\.\d+\.attention\.(?:bias|masked_bias|rotary_emb\.inv_freq)",
    ),
)
