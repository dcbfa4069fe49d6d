"""What the tensors of an architecture are called on the Hub, and how their rows lie there: a row for each.

Names are those of modules, `#` is the number of a layer, `*` that of an expert; what stands for `blk.#.` is left out.
Sources: transformers 5.23 `modeling_gguf_pytorch_utils.py`, which is the judge, and gguf 0.19 `tensor_mapping.py`; of
what transformers does not load, `convert_hf_to_gguf.py` of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .moves import HEADS_Q_K, Move, minus_one, transposed, tripled, widened

LAYER = "model.layers.#."
ATTENTION = {f"blk.attn_{x}": f"{LAYER}self_attn.{x}_proj" for x in "qkv"} | {
    "blk.attn_output": f"{LAYER}self_attn.o_proj"
}
ENDS = {"token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm"}
NORMS = {"blk.attn_norm": f"{LAYER}input_layernorm", "blk.ffn_norm": f"{LAYER}post_attention_layernorm"}
MLP = {f"blk.ffn_{x}": f"{LAYER}mlp.{x}_proj" for x in ("gate", "up", "down")}
DECODER = {**ENDS, **ATTENTION, **NORMS, **MLP}
HEAD_NORMS = {f"blk.attn_{x}_norm": f"{LAYER}self_attn.{x}_norm" for x in "qk"}
EXPERTS = {f"blk.ffn_{x}_exps": f"{LAYER}mlp.experts.*.{x}_proj" for x in ("gate", "up", "down")} | {
    "blk.ffn_gate_inp": f"{LAYER}mlp.gate"
}
SHARED = {f"blk.ffn_{x}_shexp": f"{LAYER}mlp.shared_expert.{x}_proj" for x in ("gate", "up", "down")} | {
    "blk.ffn_gate_inp_shexp": f"{LAYER}mlp.shared_expert_gate"
}
AROUND = {
    "blk.attn_norm": f"{LAYER}input_layernorm",
    "blk.post_attention_norm": f"{LAYER}post_attention_layernorm",
    "blk.ffn_norm": f"{LAYER}pre_feedforward_layernorm",
    "blk.post_ffw_norm": f"{LAYER}post_feedforward_layernorm",
}
GPT2 = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    **{
        f"blk.{x}": f"transformer.h.#.{y}"
        for x, y in {
            "attn_norm": "ln_1",
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        }.items()
    },
}
BLOOM = {
    "token_embd": "transformer.word_embeddings",
    "token_embd_norm": "transformer.word_embeddings_layernorm",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    **{
        f"blk.{x}": f"transformer.h.#.{y}"
        for x, y in {
            "attn_norm": "input_layernorm",
            "attn_qkv": "self_attention.query_key_value",
            "attn_output": "self_attention.dense",
            "ffn_norm": "post_attention_layernorm",
            "ffn_up": "mlp.dense_h_to_4h",
            "ffn_down": "mlp.dense_4h_to_h",
        }.items()
    },
}
PHI3 = {
    **{name: called for name, called in DECODER.items() if name not in {**MLP, **ATTENTION}},
    "blk.attn_qkv": f"{LAYER}self_attn.qkv_proj",
    "blk.attn_output": f"{LAYER}self_attn.o_proj",
    "blk.ffn_up": f"{LAYER}mlp.gate_up_proj",
    "blk.ffn_down": f"{LAYER}mlp.down_proj",
}
CODE = {**DECODER, "blk.ffn_up": f"{LAYER}mlp.c_fc", "blk.ffn_down": f"{LAYER}mlp.c_proj"}
GEMMA = {**ENDS, **ATTENTION, **MLP, **AROUND}
MINUS_ONE: Mapping[str, Move] = dict.fromkeys((*AROUND, *HEAD_NORMS, "output_norm"), minus_one)


@dataclass(frozen=True, slots=True)
class Architecture:
    """What is known of a model by its `general.architecture`: type and class there, names, and what of its layout
    differs from the file's, by the names of modules there. `extra` are keys of the metadata, behind the architecture's
    name, that config.json has besides the `usual` ones, where it has those; `always` is what it says of each.
    """

    model_type: str
    loader: str
    names: Mapping[str, str]
    moves: Mapping[str, Move] = field(default_factory=dict)
    extra: Mapping[str, str] = field(default_factory=dict)
    usual: bool = True
    always: Mapping[str, object] = field(default_factory=dict)


HEAD = {"attention.key_length": "head_dim"}
WINDOW = {"attention.sliding_window": "sliding_window"}
CAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
CHOICE = {"expert_count": "num_experts", "expert_used_count": "num_experts_per_tok"}
EPSILON = "attention.layer_norm_epsilon"
LLAMA_HEAD = {"rope.dimension_count": "head_dim", **HEAD}
GPT_KEYS = {
    "block_count": "n_layer",
    "embedding_length": "n_embd",
    "attention.head_count": "n_head",
    EPSILON: "layer_norm_epsilon",
}
BLOOM_KEYS = {**GPT_KEYS, "embedding_length": "hidden_size"}

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", "LlamaForCausalLM", DECODER, HEADS_Q_K, LLAMA_HEAD),
    "mistral": Architecture("mistral", "MistralForCausalLM", DECODER, HEADS_Q_K, LLAMA_HEAD | WINDOW),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", DECODER),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", {**DECODER, **HEAD_NORMS}, extra=HEAD),
    "qwen2moe": Architecture(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        {**ENDS, **ATTENTION, **NORMS, **EXPERTS, **SHARED},
        {"blk.ffn_gate_inp_shexp": widened},
        CHOICE,
    ),
    "qwen3moe": Architecture(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        {**ENDS, **ATTENTION, **NORMS, **EXPERTS, **HEAD_NORMS},
        extra=HEAD | CHOICE,
        always={"norm_topk_prob": True},
    ),
    "gemma": Architecture("gemma", "GemmaForCausalLM", DECODER, {**MINUS_ONE}, HEAD),
    "gemma2": Architecture("gemma2", "Gemma2ForCausalLM", GEMMA, MINUS_ONE, HEAD | WINDOW | CAPS),
    "gemma3": Architecture("gemma3_text", "Gemma3ForCausalLM", {**GEMMA, **HEAD_NORMS}, MINUS_ONE, HEAD | WINDOW),
    "phi3": Architecture("phi3", "Phi3ForCausalLM", PHI3, extra=WINDOW),
    "starcoder2": Architecture("starcoder2", "Starcoder2ForCausalLM", CODE, extra={EPSILON: "norm_epsilon"}),
    "stablelm": Architecture("stablelm", "StableLmForCausalLM", DECODER, extra={EPSILON: "layer_norm_eps"}),
    "nemotron": Architecture(
        "nemotron",
        "NemotronForCausalLM",
        {name: called for name, called in DECODER.items() if name != "blk.ffn_gate"},
        dict.fromkeys((*NORMS, "output_norm"), minus_one),
        {EPSILON: "norm_eps", "attention.layer_norm_rms_epsilon": "norm_eps"},
    ),
    "gpt2": Architecture(
        "gpt2",
        "GPT2LMHeadModel",
        GPT2,
        {f"blk.{name}": transposed for name in ("attn_qkv", "attn_output", "ffn_up", "ffn_down")},
        GPT_KEYS | {"context_length": "n_positions", "feed_forward_length": "n_inner"},
        usual=False,
    ),
    "bloom": Architecture("bloom", "BloomForCausalLM", BLOOM, {"blk.attn_qkv": tripled}, BLOOM_KEYS, usual=False),
}
# What calls itself llama, and has experts.
MIXTRAL = Architecture(
    "mixtral",
    "MixtralForCausalLM",
    {
        **ENDS,
        **ATTENTION,
        **NORMS,
        "blk.ffn_gate_inp": f"{LAYER}block_sparse_moe.gate",
        "blk.ffn_gate_exps": f"{LAYER}block_sparse_moe.experts.*.w1",
        "blk.ffn_down_exps": f"{LAYER}block_sparse_moe.experts.*.w2",
        "blk.ffn_up_exps": f"{LAYER}block_sparse_moe.experts.*.w3",
    },
    HEADS_Q_K,
    LLAMA_HEAD | {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
)
