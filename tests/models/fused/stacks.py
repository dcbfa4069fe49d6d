"""Tiny models with experts, and what a layer of experts computes, one expert after another, from weights that lie
apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import tiny_models
import torch
import transformers as tf
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

EXPERTS, WIDTH, TOP = 4, 16, 2
SIZES: Mapping[str, Any] = {
    **tiny_models.TEXT, "hidden_size": WIDTH, "intermediate_size": 20, "moe_intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    "num_experts": EXPERTS, "num_local_experts": EXPERTS, "n_routed_experts": EXPERTS, "num_experts_per_tok": TOP,
}  # fmt: skip
HYBRID: Mapping[str, Any] = {
    "shared_intermediate_size": 8, "layer_types": ["mamba", "attention"],
    "mamba_d_state": 4, "mamba_expand": 2, "mamba_n_heads": 4, "mamba_d_head": 8,
}  # fmt: skip

Weights = Mapping[str, Tensor]  # gate, up and down of one expert, (out, in), and their biases: gate_bias, …
Gate = Callable[[Any, Tensor, Tensor], Tensor]  # the class's module, gate(x), up(x)


def build(kind: str, **sizes: Any) -> tf.PreTrainedModel:
    """A model of the type, of its class for text if it has one, with random parameters."""
    config = CONFIG_MAPPING[kind](**{**SIZES, **sizes})
    auto = next(a for a in (tf.AutoModelForCausalLM, tf.AutoModel) if type(config) in a._model_mapping)
    return random(auto.from_config(config))


def random(model: Any) -> Any:
    """The model in eval mode, with all of its parameters random."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.dim() < 2))
    return model.eval()


def gated(module: Any, gate: Tensor, up: Tensor) -> Tensor:
    """What almost all classes do."""
    return module.act_fn(gate) * up


def clamped(module: Any, gate: Tensor, up: Tensor) -> Tensor:
    """GptOssExperts and OpenAIPrivacyFilterExperts."""
    gate, up = gate.clamp(max=module.limit), up.clamp(-module.limit, module.limit)
    return gate * torch.sigmoid(module.alpha * gate) * (up + 1)


def clamped_silu(module: Any, gate: Tensor, up: Tensor) -> Tensor:
    """HYV4Experts."""
    limit = module.swiglu_limit
    return torch.nn.functional.silu(gate.clamp(max=limit)) * up.clamp(-limit, limit)


def routed(module: Any, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """How almost all experts are called."""
    return module(hidden, index, weights)


def every(module: Any, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Llama4TextExperts gets all tokens once for each expert."""
    each = module(hidden.repeat(EXPERTS, 1)).view(EXPERTS, *hidden.shape)
    return sum(weights[:, k, None] * each[index[:, k], torch.arange(len(hidden))] for k in range(index.shape[1]))


@dataclass(frozen=True)
class Case:
    """A type whose files have 3-D experts, and how its class uses them."""

    kind: str
    module: str  # of layer 1, in memory
    sizes: Mapping[str, Any] = field(default_factory=dict)
    gate: Gate = gated
    call: Callable[..., Tensor] = routed
    interleaved: bool = False
    transposed: bool = False  # (experts, in, out) in the files
    norm: str = ""  # of the module: what follows down_proj


def reference(
    case: Case, module: Any, experts: list[Weights], hidden: Tensor, index: Tensor, weights: Tensor
) -> Tensor:
    """What the experts compute, one token and one expert after another."""
    linear = torch.nn.functional.linear
    out = torch.zeros_like(hidden)
    for token, (chosen, scales) in enumerate(zip(index.tolist(), weights, strict=True)):
        for number, scale in zip(chosen, scales, strict=True):
            one = experts[number]
            gate, up = (linear(hidden[token], one[k], one.get(f"{k}_bias")) for k in ("gate", "up"))
            down = linear(case.gate(module, gate, up), one["down"], one.get("down_bias"))
            out[token] += scale * (getattr(module, case.norm)(down) if case.norm else down)
    return out


def routing() -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, and by hand: the experts of each token and their weights."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(5, WIDTH, generator=generator)
    return hidden, torch.tensor([[0, 1], [2, 3], [3, 0], [1, 2], [2, 0]]), torch.rand(5, TOP, generator=generator)


def swapped(experts: list[Weights]) -> list[Weights]:
    """A control: up for gate, and gate for up."""
    names = {"gate": "up", "up": "gate", "gate_bias": "up_bias", "up_bias": "gate_bias"}
    return [{names.get(k, k): w for k, w in one.items()} for one in experts]


def recut(experts: list[Weights], *, interleaved: bool) -> list[Weights]:
    """A control: halves where the fused rows alternate, alternate rows where they are halves."""

    def other(gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        if interleaved:
            return tuple(torch.stack([gate, up], 1).flatten(0, 1).chunk(2))  # type: ignore[return-value]
        whole = torch.cat([gate, up])
        return whole[0::2], whole[1::2]

    found = []
    for one in experts:
        made = dict(one)
        for bias in ("", "_bias"):
            if f"gate{bias}" in one:
                made[f"gate{bias}"], made[f"up{bias}"] = other(one[f"gate{bias}"], one[f"up{bias}"])
        found.append(made)
    return found


SAVED: tuple[Case, ...] = (
    Case("gpt_oss", "model.layers.1.mlp.experts", gate=clamped, interleaved=True, transposed=True),
    Case("openai_privacy_filter", "layers.1.mlp.experts", gate=clamped, transposed=True),
    Case(
        "llama4_text",
        "model.layers.1.feed_forward.experts",
        {"intermediate_size_mlp": 20, "interleave_moe_layer_step": 1},
        call=every,
        transposed=True,
    ),
    Case(
        "aria_text",
        "model.layers.1.mlp.experts",
        {"moe_num_experts": EXPERTS, "moe_topk": TOP, "moe_num_shared_experts": 1},
        transposed=True,
    ),
    Case("qwen3_vl_moe_text", "layers.1.mlp.experts"),
    Case(
        "mistral4",
        "layers.1.mlp.experts",
        {
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    Case("hy_v4", "model.layers.1.mlp.experts", {}, clamped_silu),
    Case("muse_spark_text", "layers.1.mlp.experts", {"moe_hidden_size": WIDTH}, norm="post_expert_norm"),
    Case("zaya", "model.layers.1.mlp.experts", {"num_experts_per_tok": 1, "router_hidden_size": 8}),
    Case(
        "gemma4_text",
        "model.layers.1.experts",
        {
            "enable_moe_block": True,
            "top_k_experts": TOP,
            "vocab_size_per_layer_input": 97,
            "hidden_size_per_layer_input": 4,
        },
    ),
    Case("granitemoe", "model.layers.1.block_sparse_moe.experts"),
    Case("granitemoeshared", "model.layers.1.block_sparse_moe.experts", {"shared_intermediate_size": 8}),
    Case("granitemoehybrid", "model.layers.1.block_sparse_moe.experts", HYBRID),
    Case("granitemoe_swa", "model.layers.1.block_sparse_moe.experts", {"shared_intermediate_size": 8}),
)
