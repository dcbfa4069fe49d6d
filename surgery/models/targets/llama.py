"""Decoders with RMSNorm, rotated positions and a gated MLP: Phi-3, InternLM2, Baichuan, Qwen and ChatGLM."""

from __future__ import annotations

from typing import Any

from ...errors import series
from ..fused.layout import Config
from .target import Target, common, first, one_of, partial_rotary, picked, reasons, rope_fields

GATED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "initializer_range",
    "rms_norm_eps",
)


def _decoder(config: Config) -> dict[str, Any]:
    """What Llama and its like read, but for the positions."""
    heads = config["num_attention_heads"]
    return {
        **common(config),
        **picked(config, *GATED, "hidden_act", "max_position_embeddings"),
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "attention_dropout": config.get("attention_dropout", 0.0),
    }


def _llama(config: Config, rope: Config, *, bias: bool = False) -> dict[str, Any]:
    return {**_decoder(config), **rope_fields(rope), "attention_bias": bias, "mlp_bias": False, "pretraining_tp": 1}


# Phi-3: models/phi3 Phi3Attention, Phi3MLP, Phi3RotaryEmbedding, Phi3Model.forward (the mask)


def _phi3_rope(config: Config) -> dict[str, Any]:
    """Long factors need the length of before beside them: Phi-3 has it in the config itself."""
    rope = dict(config["rope_parameters"])
    if rope.get("rope_type", "default") != "default":
        rope.setdefault("original_max_position_embeddings", config["original_max_position_embeddings"])
    return rope


def _window(config: Config) -> int | None:
    """The length of Phi-3's sliding window, where it is shorter than the longest input."""
    window = config.get("sliding_window")
    return window if window is not None and window < config.get("max_position_embeddings", 4096) else None


def _partial(config: Config, other: str) -> tuple[bool, str]:
    share = partial_rotary(config)
    return share != 1, f"partial_rotary_factor is {share:g}: {other} rotates whole heads"


def _phi3_as_mistral(config: Config) -> dict[str, Any]:
    return {**_decoder(config), **rope_fields(_phi3_rope(config)), "sliding_window": config.get("sliding_window")}


def _phi3_as_glm4_moe(config: Config) -> dict[str, Any]:
    """Every layer is dense: what is said of experts is never read."""
    share = partial_rotary(config)
    no_experts = {
        "first_k_dense_replace": config["num_hidden_layers"],
        "moe_intermediate_size": config["intermediate_size"],
        "num_experts_per_tok": 1,
        "output_router_logits": False,
        "n_shared_experts": 1,
        "n_routed_experts": 1,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "num_nextn_predict_layers": 0,
        "num_mtp_layers": 0,
    }
    return {
        **_decoder(config),
        **rope_fields(_phi3_rope(config), share),
        **no_experts,
        "attention_bias": False,
        "use_qk_norm": False,
    }


def _phi3_notes(config: Config) -> list[str]:
    drops = [name for name in ("resid_pdrop", "embd_pdrop") if config.get(name)]
    rope = config.get("rope_parameters") or {}
    window = config.get("sliding_window")
    return reasons(
        (drops, f"{series(drops)} of the training have no place in the target's config"),
        (
            rope.get("rope_type") == "longrope",
            "Phi-3's class computes its cache anew where generation passes the original length",
        ),
        (
            window and not _window(config),
            f"the sliding window of {window} is longer than any input, and left to mistral",
        ),
    )


_WINDOWED = "sliding_window is {}: {} attends to everything before it; mistral has a window"


def _unfit_phi3_llama(config: Config) -> list[str]:
    return reasons(_partial(config, "llama"), (_window(config), _WINDOWED.format(_window(config), "llama")))


def _unfit_phi3_glm4_moe(config: Config) -> list[str]:
    return reasons(
        (partial_rotary(config) == 1, "whole heads are rotated: llama and mistral are this model's targets"),
        (_window(config), _WINDOWED.format(_window(config), "glm4_moe")),
    )


PHI3: dict[str, Any] = {
    "source": "phi3",
    "classes": ("Phi3ForCausalLM",),
    "kinds": ("qkv", "gate_up"),
    "notes": _phi3_notes,
}

# InternLM2: InternLM/InternLM tools/convert2llama.py; modeling_internlm2.py InternLM2Attention, InternLM2MLP

INTERNLM2_DEFAULTS = {
    "vocab_size": 103168,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "bias": True,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _internlm2(config: Config) -> dict[str, Any]:
    scaling = config["rope_scaling"] or {}
    return _llama(config, {**scaling, "rope_theta": float(config["rope_theta"])}, bias=bool(config["bias"]))


def _unfit_internlm2(config: Config) -> list[str]:
    kind = (config.get("rope_scaling") or {}).get("type", "dynamic")
    return reasons(
        (kind not in ("dynamic", "linear"), f"rope_scaling of type {kind} is not one that InternLM2's code knows")
    )


_INTERNLM2_LAYER = (
    (r"attention\.([qkv]_proj)", r"self_attn.\2"),
    (r"attention\.wo", "self_attn.o_proj"),
    (r"feed_forward\.w1", "mlp.gate_proj"),
    (r"feed_forward\.w3", "mlp.up_proj"),
    (r"feed_forward\.w2", "mlp.down_proj"),
    ("attention_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
)

# Baichuan: baichuan-inc/Baichuan-7B models/modeling_baichuan.py; NormHead and ALiBi: Baichuan2-13B-Chat
# modeling_baichuan.py

BAICHUAN_DEFAULTS = {
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _unfit_baichuan(config: Config) -> list[str]:
    second = "z_loss_weight" in config or config.get("vocab_size") == 125696
    return reasons(
        (
            "max_position_embeddings" not in config,
            "no max_position_embeddings: a 13B, whose attention has ALiBi, which llama has not",
        ),
        (
            second,
            "a Baichuan2, which normalises the rows of lm_head.weight when it runs (NormHead), which llama does not",
        ),
    )


# Qwen-1: Qwen-7B-Chat modeling_qwen.py QWenAttention, QWenMLP; hiyouga/LLaMA-Factory
# scripts/convert_ckpt/llamafy_qwen.py

QWEN_DEFAULTS = {
    "layer_norm_epsilon": 1e-6,
    "initializer_range": 0.02,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "no_bias": True,
    "scale_attn_weights": True,
    "tie_word_embeddings": False,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
}


def _qwen(config: Config) -> dict[str, Any]:
    hidden, heads = first(config, "hidden_size", "n_embd"), first(config, "num_attention_heads", "n_head")
    layers = first(config, "num_hidden_layers", "n_layer")
    return {
        **common(config),
        "hidden_size": hidden,
        "intermediate_size": first(config, "intermediate_size", "ffn_hidden_size") // 2,  # of w1 and w2 together
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "max_position_embeddings": first(config, "max_position_embeddings", "n_positions", "seq_length"),
        "initializer_range": config["initializer_range"],
        "rms_norm_eps": config["layer_norm_epsilon"],
        **rope_fields({"rope_theta": float(config["rotary_emb_base"])}),
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": layers,
        "layer_types": ["full_attention"] * layers,
        "attention_dropout": config.get("attn_dropout_prob", config.get("attn_pdrop", 0.0)),
    }


def _unfit_qwen(config: Config) -> list[str]:
    share = partial_rotary(config)
    hidden, heads = (
        config.get("hidden_size", config.get("n_embd")),
        config.get("num_attention_heads", config.get("n_head")),
    )
    wide = hidden and heads and config.get("kv_channels", hidden // heads) * heads != hidden
    return reasons(
        (not config.get("no_bias", True), "no_bias is false: qwen2 has no bias in o_proj and the MLP"),
        (share != 1, f"rotary_pct is {share:g}: qwen2 rotates whole heads"),
        (wide, f"kv_channels is {config.get('kv_channels')}: the attention is not as wide as the model"),
        (not config.get("scale_attn_weights", True), "scale_attn_weights is false: qwen2 always scales"),
        (config.get("visual"), "it has a vision tower: qwen2 reads text alone"),
    )


def _qwen_notes(config: Config) -> list[str]:
    more = [name for name in ("use_logn_attn", "use_dynamic_ntk") if config.get(name)]
    length = config.get("seq_length", first(config, "max_position_embeddings", "n_positions"))
    return reasons(
        (
            more,
            (
                f"equal for inputs up to seq_length {length}; beyond it Qwen uses {series(more, ' and ')}, which qwen2"
                " has not"
            ),
        )
    )


_QWEN_LAYER = (
    (r"attn\.([qkv]_proj)", r"self_attn.\2"),
    (r"attn\.c_proj", "self_attn.o_proj"),
    (r"mlp\.w1", "mlp.up_proj"),
    (r"mlp\.w2", "mlp.gate_proj"),
    (r"mlp\.c_proj", "mlp.down_proj"),
    ("ln_1", "input_layernorm"),
    ("ln_2", "post_attention_layernorm"),
)

# ChatGLM2 and 3, GLM-4-9B: modeling_chatglm.py SelfAttention, MLP, RotaryEmbedding

CHATGLM_DEFAULTS = {
    "layernorm_epsilon": 1e-5,
    "rmsnorm": True,
    "post_layer_norm": True,
    "apply_residual_connection_post_layernorm": False,
    "add_bias_linear": False,
    "add_qkv_bias": False,
    "multi_query_attention": False,
    "multi_query_group_num": 1,
    "attention_dropout": 0.0,
    "rope_ratio": 1,
    "tie_word_embeddings": False,
}
GLM4_VOCABULARY = 151552


def _chatglm(config: Config) -> dict[str, Any]:
    heads = config["num_attention_heads"]
    return {
        **common({**config, "vocab_size": first(config, "padded_vocab_size", "vocab_size")}),
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["ffn_hidden_size"],
        "num_hidden_layers": first(config, "num_layers", "num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": config["multi_query_group_num"] if config["multi_query_attention"] else heads,
        "head_dim": config["kv_channels"],
        "hidden_act": "silu",
        "attention_dropout": config["attention_dropout"],
        "max_position_embeddings": config["seq_length"],
        "initializer_range": config.get("initializer_range", 0.02),
        "rms_norm_eps": config["layernorm_epsilon"],
        "attention_bias": bool(config["add_qkv_bias"] or config["add_bias_linear"]),
        **rope_fields({"rope_theta": 10000.0 * config["rope_ratio"]}, 0.5),
    }


def _unfit_chatglm(config: Config) -> list[str]:
    ratio = config.get("rope_ratio", 1)
    unclear = ratio != 1 and config.get("padded_vocab_size") != GLM4_VOCABULARY
    return reasons(
        (
            "padded_vocab_size" not in config,
            "no padded_vocab_size: a ChatGLM-6B of the first generation, which is another model",
        ),
        (config.get("add_bias_linear"), "add_bias_linear is true: glm has no bias in o_proj and the MLP"),
        (not config.get("rmsnorm", True), "rmsnorm is false: glm has RMSNorm"),
        (
            not config.get("post_layer_norm", True),
            "post_layer_norm is false: glm always has a norm after the last layer",
        ),
        (
            config.get("apply_residual_connection_post_layernorm"),
            "apply_residual_connection_post_layernorm is true: glm adds what was there before the norm",
        ),
        (config.get("pre_seq_len"), f"pre_seq_len is {config.get('pre_seq_len')}: glm has no prefix encoder"),
        (
            unclear,
            (
                f"rope_ratio is {ratio}: ChatGLM2 divides positions by it, ChatGLM3 multiplies the base; only GLM-4's"
                " is certain"
            ),
        ),
    )


_CHATGLM_LAYER = (
    (r"self_attention\.([qkv]_proj)", r"self_attn.\2"),
    (r"self_attention\.dense", "self_attn.o_proj"),
    (r"mlp\.dense_h_to_4h", "mlp.gate_up_proj"),
    (r"mlp\.dense_4h_to_h", "mlp.down_proj"),
    ("input_layernorm", "input_layernorm"),
    ("post_attention_layernorm", "post_attention_layernorm"),
)

LLAMA: tuple[Target, ...] = (
    Target("llama", "LlamaForCausalLM", unfit=_unfit_phi3_llama, fields=lambda c: _llama(c, _phi3_rope(c)), **PHI3),
    Target(
        "mistral",
        "MistralForCausalLM",
        unfit=lambda c: reasons(_partial(c, "mistral")),
        fields=_phi3_as_mistral,
        **PHI3,
    ),
    Target("glm4_moe", "Glm4MoeForCausalLM", unfit=_unfit_phi3_glm4_moe, fields=_phi3_as_glm4_moe, **PHI3),
    Target(
        "llama",
        "LlamaForCausalLM",
        "internlm2",
        ("InternLM2ForCausalLM",),
        _unfit_internlm2,
        _internlm2,
        (
            *one_of(_INTERNLM2_LAYER, r"model\.layers\.", "model.layers."),
            (r"^model\.tok_embeddings\.", "model.embed_tokens."),
            (r"^output\.", "lm_head."),
        ),
        buffers=r"model\.layers\.\d+\.attention\.rotary_emb\.inv_freq",
        defaults=INTERNLM2_DEFAULTS,
    ),
    Target(
        "llama",
        "LlamaForCausalLM",
        "baichuan",
        ("BaiChuanForCausalLM", "BaichuanForCausalLM"),
        _unfit_baichuan,
        lambda c: _llama(c, {"rope_theta": 10000.0}),
        buffers=r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
        defaults=BAICHUAN_DEFAULTS,
    ),
    Target(
        "qwen2",
        "Qwen2ForCausalLM",
        "qwen",
        ("QWenLMHeadModel",),
        _unfit_qwen,
        _qwen,
        (
            *one_of(_QWEN_LAYER, r"transformer\.h\.", "model.layers."),
            (r"^transformer\.wte\.", "model.embed_tokens."),
            (r"^transformer\.ln_f\.", "model.norm."),
        ),
        buffers=r"transformer\.(?:h\.\d+\.attn\.)?(?:rotary_emb\.inv_freq|logn_tensor|bias|masked_bias)",
        defaults=QWEN_DEFAULTS,
        notes=_qwen_notes,
    ),
    Target(
        "glm",
        "GlmForCausalLM",
        "chatglm",
        ("ChatGLMModel", "ChatGLMForConditionalGeneration"),
        _unfit_chatglm,
        _chatglm,
        (
            *one_of(_CHATGLM_LAYER, r"transformer\.encoder\.layers\.", "model.layers."),
            (r"^transformer\.embedding\.word_embeddings\.", "model.embed_tokens."),
            (r"^transformer\.encoder\.final_layernorm\.", "model.norm."),
            (r"^transformer\.output_layer\.", "lm_head."),
        ),
        buffers=r"transformer\.rotary_pos_emb\.inv_freq",
        defaults=CHATGLM_DEFAULTS,
    ),
)
