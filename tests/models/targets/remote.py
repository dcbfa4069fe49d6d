"""Models of remote code, re-implemented from their published forward passes: random weights under the names of the
original checkpoints, config.json as it is published, and what the model computes.

Prefill only, in float32. Each function says the repository and file whose forward pass it follows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn.functional import embedding, linear, scaled_dot_product_attention, silu

Weights = dict[str, torch.Tensor]
Config = dict[str, Any]

LAYERS, HIDDEN, INNER, VOCAB, HEADS = 2, 48, 40, 97, 4
DIM = HIDDEN // HEADS


@dataclass(frozen=True)
class Remote:
    """A family: its config.json, the shapes of its tensors by name, and its forward pass."""

    config: Config
    shapes: dict[str, tuple[int, ...]]
    forward: Callable[[Weights, Config, torch.Tensor], torch.Tensor]

    def weights(self) -> Weights:
        """Random ones; norms are near 1, the rest is large enough for every config field to matter."""
        generator = torch.Generator().manual_seed(3)
        made = {n: torch.randn(shape, generator=generator) * 0.3 for n, shape in self.shapes.items()}
        return {n: t + 1 if "norm" in n or ".ln_" in n else t for n, t in made.items()}

    def save(self, folder: Path, weights: Weights | None = None, **fields: Any) -> Path:
        """The checkpoint in two shards without an index, config.json with `fields` changed; None leaves one out."""
        folder.mkdir(parents=True)
        names = list(weights := weights or self.weights())
        half = len(names) // 2
        for number, part in enumerate((names[:half], names[half:]), 1):
            save_file(
                {n: weights[n].contiguous() for n in part},
                folder / f"model-{number:05}-of-00002.safetensors",
                {"format": "pt"},
            )
        config = {k: v for k, v in {**self.config, **fields}.items() if v is not None}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "modeling_remote.py").write_text("raise RuntimeError('remote code was run')\n")
        return folder


def rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """(batch, length, heads, dim) each, fewer heads of k and v repeated -> (batch, length, heads * dim), causal."""
    times = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(times, 2), v.repeat_interleave(times, 2)))
    return scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


def angles(length: int, dim: int, base: float) -> torch.Tensor:
    return torch.outer(torch.arange(length).float(), 1.0 / base ** (torch.arange(0, dim, 2).float() / dim))


def rotate_halves(x: torch.Tensor, base: float) -> torch.Tensor:
    """x * cos + rotate_half(x) * sin, of whole heads."""
    angle = angles(x.shape[1], x.shape[-1], base)[None, :, None].repeat(1, 1, 1, 2)
    first, second = x.chunk(2, -1)
    return x * angle.cos() + torch.cat((-second, first), -1) * angle.sin()


def internlm2(w: Weights, c: Config, ids: torch.Tensor) -> torch.Tensor:
    """internlm/internlm2-7b modeling_internlm2.py: wqkv is (h gs d) with gs = groups + 2; w2(silu(w1 x) * w3 x)."""
    x = embedding(ids, w["model.tok_embeddings.weight"])
    groups = c["num_attention_heads"] // c["num_key_value_heads"]
    base = c["rope_theta"]
    if (
        (scaling := c.get("rope_scaling"))
        and scaling["type"] == "dynamic"
        and ids.shape[1] > c["max_position_embeddings"]
    ):
        grown = scaling["factor"] * ids.shape[1] / c["max_position_embeddings"] - (scaling["factor"] - 1)
        base = base * grown ** (DIM / (DIM - 2))
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        h = rms(x, w[f"{at}attention_norm.weight"], c["rms_norm_eps"])
        packed = linear(h, w[f"{at}attention.wqkv.weight"], w.get(f"{at}attention.wqkv.bias")).unflatten(
            -1, (-1, groups + 2, DIM)
        )
        q, k, v = packed[..., :groups, :].flatten(2, 3), packed[..., -2, :], packed[..., -1, :]
        out = attend(rotate_halves(q, base), rotate_halves(k, base), v)
        x = x + linear(out, w[f"{at}attention.wo.weight"], w.get(f"{at}attention.wo.bias"))
        h = rms(x, w[f"{at}ffn_norm.weight"], c["rms_norm_eps"])
        gate = silu(linear(h, w[f"{at}feed_forward.w1.weight"]))
        x = x + linear(gate * linear(h, w[f"{at}feed_forward.w3.weight"]), w[f"{at}feed_forward.w2.weight"])
    return linear(rms(x, w["model.norm.weight"], c["rms_norm_eps"]), w["output.weight"])


def baichuan(w: Weights, c: Config, ids: torch.Tensor) -> torch.Tensor:
    """baichuan-inc/Baichuan-7B models/modeling_baichuan.py: W_pack.unflatten(-1, (3, hidden)), the rest is Llama's."""
    x = embedding(ids, w["model.embed_tokens.weight"])
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        h = rms(x, w[f"{at}input_layernorm.weight"], c["rms_norm_eps"])
        q, k, v = linear(h, w[f"{at}self_attn.W_pack.weight"]).unflatten(-1, (3, HEADS, DIM)).unbind(2)
        x = x + linear(
            attend(rotate_halves(q, 10000.0), rotate_halves(k, 10000.0), v), w[f"{at}self_attn.o_proj.weight"]
        )
        h = rms(x, w[f"{at}post_attention_layernorm.weight"], c["rms_norm_eps"])
        gate = silu(linear(h, w[f"{at}mlp.gate_proj.weight"]))
        x = x + linear(gate * linear(h, w[f"{at}mlp.up_proj.weight"]), w[f"{at}mlp.down_proj.weight"])
    return linear(rms(x, w["model.norm.weight"], c["rms_norm_eps"]), w["lm_head.weight"])


def qwen(w: Weights, c: Config, ids: torch.Tensor) -> torch.Tensor:
    """Qwen/Qwen-7B-Chat modeling_qwen.py within seq_length: c_attn.split(hidden), c_proj(w1 x * silu(w2 x))."""
    assert ids.shape[1] <= c["seq_length"]
    x = embedding(ids, w["transformer.wte.weight"])
    base = c["rotary_emb_base"]
    for i in range(LAYERS):
        at = f"transformer.h.{i}."
        h = rms(x, w[f"{at}ln_1.weight"], c["layer_norm_epsilon"])
        packed = linear(h, w[f"{at}attn.c_attn.weight"], w[f"{at}attn.c_attn.bias"])
        q, k, v = (part.unflatten(-1, (HEADS, DIM)) for part in packed.split(HIDDEN, -1))
        x = x + linear(attend(rotate_halves(q, base), rotate_halves(k, base), v), w[f"{at}attn.c_proj.weight"])
        h = rms(x, w[f"{at}ln_2.weight"], c["layer_norm_epsilon"])
        gated = linear(h, w[f"{at}mlp.w1.weight"]) * silu(linear(h, w[f"{at}mlp.w2.weight"]))
        x = x + linear(gated, w[f"{at}mlp.c_proj.weight"])
    return linear(rms(x, w["transformer.ln_f.weight"], c["layer_norm_epsilon"]), w["lm_head.weight"])


def rotate_pairs(x: torch.Tensor, base: float) -> torch.Tensor:
    """Neighbouring elements of the first half of each head; the second half passes."""
    turned, passed = x.chunk(2, -1)
    angle = angles(x.shape[1], turned.shape[-1], base)[None, :, None]
    even, odd = turned[..., 0::2], turned[..., 1::2]
    both = torch.stack((even * angle.cos() - odd * angle.sin(), odd * angle.cos() + even * angle.sin()), -1).flatten(-2)
    return torch.cat((both, passed), -1)


def chatglm(w: Weights, c: Config, ids: torch.Tensor) -> torch.Tensor:
    """THUDM/chatglm3-6b modeling_chatglm.py: [q|k|v] with multi_query_group_num groups, or (heads, 3 * dim) without."""
    dim, many = c["kv_channels"], c["multi_query_attention"]
    groups = c["multi_query_group_num"] if many else HEADS
    x = embedding(ids, w["transformer.embedding.word_embeddings.weight"])
    for i in range(LAYERS):
        at = f"transformer.encoder.layers.{i}."
        h = rms(x, w[f"{at}input_layernorm.weight"], c["layernorm_epsilon"])
        packed = linear(
            h, w[f"{at}self_attention.query_key_value.weight"], w.get(f"{at}self_attention.query_key_value.bias")
        )
        if many:
            q, k, v = (p.unflatten(-1, (-1, dim)) for p in packed.split([HEADS * dim, groups * dim, groups * dim], -1))
        else:
            q, k, v = packed.unflatten(-1, (HEADS, 3 * dim)).split(dim, -1)
        x = x + linear(
            attend(rotate_pairs(q, 10000.0), rotate_pairs(k, 10000.0), v), w[f"{at}self_attention.dense.weight"]
        )
        h = rms(x, w[f"{at}post_attention_layernorm.weight"], c["layernorm_epsilon"])
        gate, up = linear(h, w[f"{at}mlp.dense_h_to_4h.weight"]).chunk(2, -1)
        x = x + linear(silu(gate) * up, w[f"{at}mlp.dense_4h_to_h.weight"])
    return linear(
        rms(x, w["transformer.encoder.final_layernorm.weight"], c["layernorm_epsilon"]),
        w["transformer.output_layer.weight"],
    )


def _layers(stem: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {f"{stem}.{i}.{name}": shape for i in range(LAYERS) for name, shape in shapes.items()}


def _remote(model: str, kind: str) -> Config:
    return {
        "model_type": kind,
        "architectures": [model],
        "auto_map": {"AutoModelForCausalLM": f"modeling_remote.{model}"},
    }


INTERNLM2 = Remote(
    _remote("InternLM2ForCausalLM", "internlm2")
    | {
        "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2, "hidden_act": "silu", "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "bias": False,
        "rope_theta": 1000000.0, "rope_scaling": {"type": "dynamic", "factor": 2.0}, "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True,
        "attn_implementation": "eager",
    },
    {
        "model.tok_embeddings.weight": (VOCAB, HIDDEN),
        **_layers(
            "model.layers",
            {
                "attention.wqkv.weight": (8 * DIM, HIDDEN), "attention.wo.weight": (HIDDEN, HIDDEN),
                "attention_norm.weight": (HIDDEN,), "ffn_norm.weight": (HIDDEN,),
                "feed_forward.w1.weight": (INNER, HIDDEN), "feed_forward.w3.weight": (INNER, HIDDEN),
                "feed_forward.w2.weight": (HIDDEN, INNER),
            },
        ),
        "model.norm.weight": (HIDDEN,), "output.weight": (VOCAB, HIDDEN),
    },
    internlm2,
)  # fmt: skip
INTERNLM2_BIASED = Remote(
    {**INTERNLM2.config, "bias": True},
    INTERNLM2.shapes | _layers("model.layers", {"attention.wqkv.bias": (8 * DIM,), "attention.wo.bias": (HIDDEN,)}),
    internlm2,
)
BAICHUAN = Remote(
    _remote("BaiChuanForCausalLM", "baichuan")
    | {
        "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "hidden_act": "silu", "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 0, "tie_word_embeddings": False, "torch_dtype": "float16", "use_cache": True,
    },
    {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        **_layers(
            "model.layers",
            {
                "self_attn.W_pack.weight": (3 * HIDDEN, HIDDEN), "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
                "self_attn.rotary_emb.inv_freq": (DIM // 2,),
                "input_layernorm.weight": (HIDDEN,), "post_attention_layernorm.weight": (HIDDEN,),
                "mlp.gate_proj.weight": (INNER, HIDDEN), "mlp.up_proj.weight": (INNER, HIDDEN),
                "mlp.down_proj.weight": (HIDDEN, INNER),
            },
        ),
        "model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN),
    },
    baichuan,
)  # fmt: skip
QWEN = Remote(
    _remote("QWenLMHeadModel", "qwen")
    | {
        "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 2 * INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "kv_channels": DIM, "layer_norm_epsilon": 1e-6, "max_position_embeddings": 64,
        "seq_length": 32,
        "no_bias": True, "rotary_emb_base": 20000, "rotary_pct": 1.0, "use_dynamic_ntk": True, "use_logn_attn": True,
        "attn_dropout_prob": 0.0, "emb_dropout_prob": 0.0, "scale_attn_weights": True, "tie_word_embeddings": False,
        "bf16": True,
    },
    {
        "transformer.wte.weight": (VOCAB, HIDDEN),
        **_layers(
            "transformer.h",
            {
                "ln_1.weight": (HIDDEN,), "ln_2.weight": (HIDDEN,),
                "attn.c_attn.weight": (3 * HIDDEN, HIDDEN), "attn.c_attn.bias": (3 * HIDDEN,),
                "attn.c_proj.weight": (HIDDEN, HIDDEN),
                "mlp.w1.weight": (INNER, HIDDEN), "mlp.w2.weight": (INNER, HIDDEN), "mlp.c_proj.weight": (HIDDEN,
                INNER),
            },
        ),
        "transformer.ln_f.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN),
    },
    qwen,
)  # fmt: skip


def _glm_shapes(groups: int, *, biased: bool) -> dict[str, tuple[int, ...]]:
    rows = (HEADS + 2 * groups) * DIM
    layer = {
        "input_layernorm.weight": (HIDDEN,), "post_attention_layernorm.weight": (HIDDEN,),
        "self_attention.query_key_value.weight": (rows, HIDDEN), "self_attention.dense.weight": (HIDDEN, HEADS * DIM),
        "mlp.dense_h_to_4h.weight": (2 * INNER, HIDDEN), "mlp.dense_4h_to_h.weight": (HIDDEN, INNER),
    }  # fmt: skip
    return {
        "transformer.embedding.word_embeddings.weight": (VOCAB, HIDDEN),
        "transformer.rotary_pos_emb.inv_freq": (DIM // 4,),
        **_layers(
            "transformer.encoder.layers", layer | ({"self_attention.query_key_value.bias": (rows,)} if biased else {})
        ),
        "transformer.encoder.final_layernorm.weight": (HIDDEN,),
        "transformer.output_layer.weight": (VOCAB, HIDDEN),
    }


CHATGLM = Remote(
    _remote("ChatGLMModel", "chatglm")
    | {
        "padded_vocab_size": VOCAB, "hidden_size": HIDDEN, "ffn_hidden_size": INNER, "num_layers": LAYERS,
        "num_attention_heads": HEADS,
        "kv_channels": DIM, "layernorm_epsilon": 1e-5, "multi_query_attention": True, "multi_query_group_num": 2,
        "seq_length": 64,
        "add_bias_linear": False, "add_qkv_bias": True, "rmsnorm": True, "post_layer_norm": True, "original_rope": True,
        "apply_query_key_layer_scaling": True, "apply_residual_connection_post_layernorm": False,
        "attention_softmax_in_fp32": True,
        "attention_dropout": 0.0, "hidden_dropout": 0.0, "fp32_residual_connection": False, "bias_dropout_fusion": True,
        "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False, "torch_dtype": "float16", "use_cache": True,
    },
    _glm_shapes(2, biased=True),
    chatglm,
)  # fmt: skip
CHATGLM_MHA = Remote(
    {**CHATGLM.config, "multi_query_attention": False, "add_qkv_bias": False},
    _glm_shapes(HEADS, biased=False),
    chatglm,
)
REMOTE = {
    "internlm2": INTERNLM2,
    "internlm2-biased": INTERNLM2_BIASED,
    "baichuan": BAICHUAN,
    "qwen": QWEN,
    "chatglm": CHATGLM,
    "chatglm-mha": CHATGLM_MHA,
}
