"""Rows of text models against the models: split parts are what reaches their attention, and fuse back to the same
files.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import tiny_models
import torch
import transformers as tf
from conftest import hashes
from oracle import (
    Call,
    Case,
    Evidence,
    attention,
    build,
    check_controls,
    check_fuses_back,
    check_parts,
    check_round_trip,
    evidence,
    evidence_of,
    keys_and_values,
    saves_as,
    tensors_in,
)
from safetensors.torch import save_file
from transformers.models.layoutlmv2.modeling_layoutlmv2 import LayoutLMv2SelfAttention

import surgery
from surgery.lazy.dtypes import F32
from surgery.lazy.tensor import Zeros
from surgery.models.fused.detect import detect
from surgery.models.fused.layout import sections
from surgery.models.fused.tables.text import TEXT

QKV = ("q_proj", "k_proj", "v_proj")
QUERY = ("query", "key", "value")
CONV = ("q_attn", "k_attn", "v_attn")
W = ("Wq", "Wk", "Wv")
TO_KV = ("to_k", "to_v")

SMALL = {
    **tiny_models.TEXT,
    "hidden_size": 36,
    "intermediate_size": 50,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
}
GROUPED = {**SMALL, "num_attention_heads": 6, "num_key_value_heads": 2}
GPT = {**tiny_models.TEXT, "n_embd": 36, "n_layer": 2, "n_head": 3, "n_positions": 32}


def tokens(**more: Any) -> Callable[[], Mapping[str, Any]]:
    """Token ids, without a cache."""
    return lambda: {"input_ids": torch.randint(3, 97, (2, 11), generator=torch.Generator().manual_seed(7)), **more}


def of(name: str, config: str, **fields: Any) -> Callable[[], Any]:
    """Builds a model of transformers from its config's fields."""
    return lambda: getattr(tf, name)(getattr(tf, config)(**fields))


IDS = tokens(use_cache=False)
BARE = tokens()
NEOX = Case(of("GPTNeoXForCausalLM", "GPTNeoXConfig", **SMALL), IDS, "query_key_value", QUERY, (3, 3, 3), shard="20KB")


def falcon(heads: Sequence[int], **fields: Any) -> Case:
    """A variant of Falcon, with biases."""
    config = {
        **tiny_models.TEXT,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": heads[0],
        "bias": True,
        **fields,
    }
    return Case(of("FalconForCausalLM", "FalconConfig", **config), IDS, "query_key_value", QUERY, tuple(heads))


def module(
    path: str, prefix: str, config: Any, fused: str, parts: Sequence[str], heads: Sequence[int], **rest: Any
) -> Case:
    """A module alone, `path` as models.modeling.Class, saved under the name that it has in the checkpoint of
    `config`.
    """
    make, inputs = rest.pop("make", lambda cls: cls(config)), rest.pop("inputs", {})
    source = f"transformers.models.{path.rpartition('.')[0]}"

    def build() -> Any:
        return make(getattr(importlib.import_module(source), path.rpartition(".")[2]))

    return Case(
        build,
        lambda: {key: value() if callable(value) else value for key, value in inputs.items()},
        fused,
        tuple(parts),
        tuple(heads),
        module=lambda name: f"{prefix}{name}",
        save=saves_as(prefix, config),
        **rest,
    )


def hidden(width: int, length: int = 12) -> Callable[[], torch.Tensor]:
    """Hidden states of two sequences."""
    return lambda: torch.randn(2, length, width, generator=torch.Generator().manual_seed(7))


DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6, "linear_value_head_dim": 10}
DELTA_LAYERS = {"layer_types": ["linear_attention", "full_attention"], "head_dim": 8}
EXPERTS = {
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
DENSE = {"mlp_only_layers": [0, 1], "num_experts": 2, "num_experts_per_tok": 1}


def delta_states(call: Call) -> list[torch.Tensor]:
    """q, k, v of the delta rule, and z of the norm after it."""
    query, key, value = call.recorded["torch_chunk_gated_delta_rule"][:3]
    z = call.recorded["norm"][1].reshape(*value.shape)
    return [x.transpose(1, 2) for x in (query, key, value, z)]


def delta_gates(call: Call) -> list[torch.Tensor]:
    """b and a, of beta = sigmoid(b) and g = -softplus(a): A_log and dt_bias are zero."""
    g, beta = call.recorded["torch_chunk_gated_delta_rule"][3:5]
    return [x.transpose(1, 2).unsqueeze(-1) for x in (torch.logit(beta), torch.log(torch.expm1(-g)))]


def indexer_states(call: Call) -> list[torch.Tensor]:
    """q and k of the indexer, which multiplies each query apart with the keys that it sees: the last one sees all."""
    products = [p for p in call.products if p[0].dim() == p[1].dim() == 2]
    sequences = [products[i : i + 11] for i in range(0, 22, 11)]
    queries = [torch.stack([q for q, _ in one], 1) for one in sequences]
    return [torch.stack(queries), torch.stack([one[-1][1].T[None] for one in sequences])]


def qwen4_exp() -> Any:
    """One delta net, and one layer with an indexer, whose blocks are single tokens."""
    config = tf.AutoConfig.for_model("qwen4_exp_text", **GROUPED, **DELTA, **DELTA_LAYERS, **EXPERTS, **QWEN4)
    return tf.AutoModelForCausalLM.from_config(config)


def no_decay(model: Any) -> None:
    """A_log and dt_bias zero."""
    for name, parameter in model.named_parameters():
        if name.endswith(("A_log", "dt_bias")):
            parameter.zero_()


def delta(model: Callable[[], Any], fused: str, parts: Sequence[str], heads: Sequence[int], **rest: Any) -> Case:
    """A gated delta net whose convolution is the identity."""
    return Case(
        model,
        IDS,
        fused,
        tuple(parts),
        tuple(heads),
        patches={"causal_conv1d_fn": lambda x, *_, **__: x},
        records=("torch_chunk_gated_delta_rule", "norm"),
        settle=no_decay,
        **{"states": delta_states, **rest},
    )


QWEN3_NEXT = of("Qwen3NextForCausalLM", "Qwen3NextConfig", **GROUPED, **DELTA, **DELTA_LAYERS, **DENSE)
QWEN3_5_MOE = of("Qwen3_5MoeForCausalLM", "Qwen3_5MoeTextConfig", **GROUPED, **DELTA, **DELTA_LAYERS, **EXPERTS)
QWEN4 = {"ngram_vocab_size_base": 50, "split_ngram_parts": 2, "hc_lowrank": 8, "indexer_n_heads": 2,
"indexer_kv_heads": 1,
         "indexer_head_dim": 8, "indexer_budget": 8, "indexer_compress_ratio": 1}  # fmt: skip
QWEN3_5 = of("Qwen3_5ForCausalLM", "Qwen3_5TextConfig", **GROUPED, **DELTA, **DELTA_LAYERS)

XLSTM = tf.xLSTMConfig(
    vocab_size=97, hidden_size=48, num_blocks=2, num_heads=3, weight_mode="fused", use_bias=True, qk_dim_factor=0.75,
    v_dim_factor=1.0,
    chunkwise_kernel="chunkwise--native_autograd", sequence_kernel="native_sequence__native", step_kernel="native",
    chunk_size=16,
    pad_token_id=0, bos_token_id=1, eos_token_id=2, ffn_round_up_to_multiple_of=4, mlstm_round_up_to_multiple_of=4,
)  # fmt: skip


def xlstm() -> Any:
    """A fused xLSTM with torch's initialisation: transformers' own fails on the fused gates."""
    with patch.object(tf.xLSTMPreTrainedModel, "_init_weights", lambda *_: None):
        return tf.xLSTMForCausalLM(XLSTM)


def xlstm_states(call: Call) -> list[torch.Tensor]:
    query, key, value = call.recorded["mlstm_backend"][:3]
    gate = call.recorded["ogate_act_fn"][0]
    return [query, key, value, gate.unflatten(-1, (query.shape[1], -1)).transpose(1, 2)]


def xlstm_gates(call: Call) -> list[torch.Tensor]:
    return [x.unsqueeze(-1) for x in call.recorded["mlstm_backend"][3:5]]


TOWER = {
    "hidden_size": 12,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


def phi4_multimodal() -> Any:
    """With its towers, whose q_proj, k_proj and v_proj are their own."""
    audio = {"hidden_size": 12, "intermediate_size": 16, "num_blocks": 2, "num_attention_heads": 2,
    "ext_pw_out_channel": 12,
             "nemo_conv_channels": 12, "depthwise_separable_out_channel": 12, "input_size": 16}  # fmt: skip
    return tf.Phi4MultimodalForCausalLM(tf.Phi4MultimodalConfig(**GROUPED, vision_config=TOWER, audio_config=audio))


def molmo2() -> Any:
    """With its tower."""
    heads = {"num_key_value_heads": 2, "head_dim": 6}
    adapter = {
        "hidden_size": 12,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "text_hidden_size": 36,
        "vision_feature_layer": [0, 1],
    }
    config = tf.Molmo2Config(
        text_config={**GROUPED, "head_dim": 8},
        vision_config={**TOWER, **heads, "image_size": [8, 8]},
        adapter_config={**adapter, **heads},
    )
    return tf.Molmo2ForConditionalGeneration(config)


DEBERTA = tf.DebertaConfig(**SMALL, type_vocab_size=0)
LAYOUTLM = {**SMALL, "has_relative_attention_bias": False, "has_spatial_attention_bias": False}
LAYOUTLMV2 = tf.LayoutLMv2Config(**LAYOUTLM, fast_qkv=True)
ESM = tf.EsmConfig(
    vocab_size=33, is_folding_model=True, hidden_size=24, num_hidden_layers=1, num_attention_heads=2,
    intermediate_size=24,
    esmfold_config={
        "trunk": {
            "sequence_state_dim": 36, "sequence_head_width": 12, "pairwise_state_dim": 16, "pairwise_head_width": 8,
            "num_blocks": 1,
            "structure_module": {"sequence_dim": 20, "pairwise_dim": 16, "ipa_dim": 6, "num_heads_ipa": 3,
            "num_qk_points": 2},
        }
    },
)  # fmt: skip
BARK = {
    "hidden_size": 36,
    "num_layers": 2,
    "num_heads": 3,
    "block_size": 32,
    "input_vocab_size": 97,
    "output_vocab_size": 97,
    "bias": True,
}


def identity_rigid(batch: int, length: int) -> Any:
    """Residues that are neither turned nor moved."""
    rigid = importlib.import_module("transformers.models.esm.openfold_utils").Rigid
    return rigid.identity((batch, length), dtype=torch.float32, device=torch.device("cpu"), requires_grad=False)


def esm_points(call: Call) -> list[torch.Tensor]:
    """k and v, between the products of the rotations of points."""
    scalar = [p for p in call.products if p[0].dim() == 4]
    return [scalar[0][1].transpose(-1, -2), scalar[1][1]]


def decoder_of(cross: bool) -> Callable[[], Any]:
    return of("GPT2LMHeadModel", "GPT2Config", **GPT, add_cross_attention=cross)


def encoder_decoder() -> Any:
    """A RoBERTa whose states a GPT-2 attends to: its config is nested under `decoder`."""
    return tf.EncoderDecoderModel(encoder=tf.RobertaModel(tf.RobertaConfig(**SMALL)), decoder=decoder_of(True)())


def seen(width: int = 36) -> Callable[[], Mapping[str, Any]]:
    """Token ids, and the encoder's states."""
    return lambda: {**IDS(), "encoder_hidden_states": hidden(width)()}


def granite(folder: str, name: str) -> Case:
    """The conformer's attention, in blocks of four frames."""
    config = getattr(tf, f"{name}EncoderConfig")(
        hidden_dim=28, num_heads=3, dim_head=6, context_size=4, max_pos_emb=8, num_layers=1
    )
    return module(
        f"{folder}.modeling_{folder}.{name}ConformerAttention",
        "encoder.layers.0.attn.",
        config,
        "to_kv",
        TO_KV,
        (3, 3),
        inputs={"hidden_states": hidden(28), "attention_dists": lambda: torch.zeros(4, 4, dtype=torch.long)},
        states=keys_and_values,
    )


CASES: dict[str, Case] = {
    "gpt2 cross": Case(
        decoder_of(True), seen(), "crossattention.c_attn", ("k_attn", "v_attn"), (3, 3), axis=1, states=keys_and_values
    ),
    "gpt2 in an encoder-decoder": Case(
        encoder_decoder,
        lambda: {**IDS(), "decoder_input_ids": IDS()["input_ids"]},
        "crossattention.c_attn",
        ("k_attn", "v_attn"),
        (3, 3),
        axis=1,
        states=keys_and_values,
    ),
    "decision_transformer": Case(
        lambda: tf.DecisionTransformerModel(
            tf.DecisionTransformerConfig(
                state_dim=5, act_dim=2, hidden_size=36, n_layer=2, n_head=3, max_ep_len=16, n_positions=64
            )
        ),
        lambda: {
            "states": torch.ones(1, 4, 5),
            "actions": torch.ones(1, 4, 2),
            "rewards": torch.ones(1, 4, 1),
            "returns_to_go": torch.ones(1, 4, 1),
            "timesteps": torch.arange(4)[None],
            "attention_mask": torch.ones(1, 4),
        },
        "c_attn",
        CONV,
        (3, 3, 3),
        axis=1,
    ),
    "phi4_multimodal": Case(phi4_multimodal, IDS, "qkv_proj", QKV, (6, 2, 2)),
    "fuyu": Case(
        lambda: tf.FuyuForCausalLM(
            tf.FuyuConfig(
                **SMALL, text_config={**SMALL, "model_type": "persimmon"}, patch_size=4, image_size=16, num_channels=3
            )
        ),
        IDS,
        "query_key_value",
        QUERY,
        (3, 3, 3),
        identity=("q_layernorm", "k_layernorm"),
        module=lambda name: name.replace("model.language_model.", "language_model.model."),
    ),
    "minimax": Case(
        of(
            "MiniMaxForCausalLM",
            "MiniMaxConfig",
            **{**GROUPED, "intermediate_size": 48},
            head_dim=8,
            layer_types=["linear_attention", "full_attention"],
            num_local_experts=2,
            num_experts_per_tok=1,
        ),
        IDS,
        "qkv_proj",
        QUERY,
        (6, 6, 6),
        identity=("act_fn",),
        states=lambda call: attention(
            replace(call, products=call.products[:2])
        ),  # the next layer's attention is not meant
    ),
    "deberta": module(
        "deberta.modeling_deberta.DisentangledSelfAttention",
        "deberta.encoder.layer.0.attention.self.",
        DEBERTA,
        "in_proj",
        QKV,
        (3, 3, 3),
        inputs={"hidden_states": hidden(36), "attention_mask": lambda: torch.ones(2, 1, 12, 12, dtype=torch.bool)},
        scales=(12**-0.5, 1.0, 1.0),
    ),
    "layoutlmv2": module(
        "layoutlmv2.modeling_layoutlmv2.LayoutLMv2SelfAttention",
        "layoutlmv2.encoder.layer.0.attention.self.",
        LAYOUTLMV2,
        "qkv_linear",
        QUERY,
        (3, 3, 3),
        inputs={"hidden_states": hidden(36), "attention_mask": lambda: torch.zeros(2, 1, 1, 12)},
        scales=(12**-0.5, 1.0, 1.0),
    ),
    "bark": Case(of("BarkSemanticModel", "BarkSemanticConfig", **BARK), IDS, "att_proj", QKV, (3, 3, 3)),
    "bark coarse": Case(of("BarkCoarseModel", "BarkCoarseConfig", **BARK), IDS, "att_proj", QKV, (3, 3, 3)),
    "bark fine": Case(
        of("BarkFineModel", "BarkFineConfig", **BARK, n_codes_total=3, n_codes_given=1),
        lambda: {
            "codebook_idx": 1,
            "input_ids": torch.randint(3, 97, (2, 11, 3), generator=torch.Generator().manual_seed(7)),
        },
        "att_proj",
        QKV,
        (3, 3, 3),
    ),
    "qwen3_next": delta(QWEN3_NEXT, "in_proj_qkvz", [f"in_proj_{key}" for key in "qkvz"], (2, 2, 4, 4)),
    "qwen3_next gates": delta(QWEN3_NEXT, "in_proj_ba", ("in_proj_b", "in_proj_a"), (4, 4), states=delta_gates),
    "qwen3_5": delta(
        QWEN3_5,
        "in_proj_qkv",
        [f"in_proj_{key}" for key in "qkv"],
        (2, 2, 4),
        states=lambda call: delta_states(call)[:3],
    ),
    "qwen3_5_moe": delta(
        QWEN3_5_MOE,
        "in_proj_qkv",
        [f"in_proj_{key}" for key in "qkv"],
        (2, 2, 4),
        states=lambda call: delta_states(call)[:3],
    ),
    "qwen4_exp": delta(
        qwen4_exp,
        "in_proj_qkv",
        [f"in_proj_{key}" for key in "qkv"],
        (2, 2, 4),
        states=lambda call: delta_states(call)[:3],
    ),
    "qwen4_exp indexer": Case(
        qwen4_exp,
        IDS,
        "index_qk_proj",
        ("index_q_proj", "index_k_proj"),
        (2, 1),
        identity=("q_layernorm", "k_layernorm"),
        states=indexer_states,
    ),
    "jetmoe": Case(
        of(
            "JetMoeForCausalLM",
            "JetMoeConfig",
            **{k: v for k, v in SMALL.items() if k != "num_attention_heads"},
            num_key_value_heads=3,
            kv_channels=10,
            num_local_experts=4,
            num_experts_per_tok=2,
        ),
        IDS,
        "kv_proj",
        ("k_proj", "v_proj"),
        (3, 3),
        states=lambda call: [x[:, :3] for x in keys_and_values(call)],  # repeated for each expert of q
    ),
    "xlstm": Case(
        xlstm,
        IDS,
        "qkv_opreact",
        ("q", "k", "v", "ogate_preact"),
        (3, 3, 3, 3),
        states=xlstm_states,
        records=("mlstm_backend", "ogate_act_fn"),
    ),
    "xlstm gates": Case(
        xlstm,
        IDS,
        "ifgate_preact",
        ("igate_preact", "fgate_preact"),
        (3, 3),
        states=xlstm_gates,
        records=("mlstm_backend",),
        patches={"soft_cap": lambda x, cap_value=None: x},
    ),
    "esm trunk": module(
        "esm.modeling_esmfold.EsmFoldSelfAttention",
        "trunk.blocks.0.seq_attention.",
        ESM,
        "proj",
        QKV,
        (3, 3, 3),
        make=lambda cls: cls(36, 3, 12, gated=True),
        inputs={"x": hidden(36)},
        states=lambda call: [call.products[0][0], call.products[0][1], call.products[1][1]],  # of einsum, k as it is
        scales=(12**-0.5, 1.0, 1.0),
    ),
    "esm ipa": module(
        "esm.modeling_esmfold.EsmFoldInvariantPointAttention",
        "trunk.structure_module.ipa.",
        ESM,
        "linear_kv",
        ("linear_k", "linear_v"),
        (3, 3),
        make=lambda cls: cls(ESM.esmfold_config.trunk.structure_module),
        inputs={
            "s": hidden(20),
            "z": lambda: torch.randn(2, 12, 12, 16),
            "r": lambda: identity_rigid(2, 12),
            "mask": lambda: torch.ones(2, 12),
        },
        states=esm_points,
    ),
    "evolla": module(
        "evolla.modeling_evolla.EvollaSequenceCompressorAttention",
        "model.protein_encoder.sequence_compressor_resampler.layers.0.0.",
        tf.EvollaConfig(),
        "to_kv",
        TO_KV,
        (3, 3),
        make=lambda cls: cls(28, dim_head=6, heads=3),
        inputs={"x": hidden(28), "latents": hidden(28, 5), "mask": lambda: torch.ones(2, 17)},
        states=keys_and_values,
    ),
    "granite_speech": granite("granite_speech", "GraniteSpeech"),
    "granite_speech_plus": granite("granite_speech_plus", "GraniteSpeechPlus"),
    "phi3": Case(of("Phi3ForCausalLM", "Phi3Config", **GROUPED, head_dim=10), IDS, "qkv_proj", QKV, (6, 2, 2)),
    "gpt2": Case(of("GPT2LMHeadModel", "GPT2Config", **GPT), IDS, "c_attn", CONV, (3, 3, 3), axis=1, shard="20KB"),
    "openai-gpt": Case(of("OpenAIGPTLMHeadModel", "OpenAIGPTConfig", **GPT), BARE, "c_attn", CONV, (3, 3, 3), axis=1),
    "imagegpt": Case(of("ImageGPTModel", "ImageGPTConfig", **GPT), IDS, "c_attn", CONV, (3, 3, 3), axis=1),
    "gpt_neox": NEOX,
    "gpt_neox_japanese": replace(
        NEOX,
        model=of("GPTNeoXJapaneseForCausalLM", "GPTNeoXJapaneseConfig", **SMALL, intermediate_multiple_size=2),
        shard="",
    ),
    "bloom": Case(
        of("BloomForCausalLM", "BloomConfig", **tiny_models.TEXT, hidden_size=36, n_layer=2, n_head=3),
        IDS,
        "query_key_value",
        QUERY,
        (3, 3, 3),
    ),
    "falcon new": falcon((6, 2, 2), new_decoder_architecture=True, num_kv_heads=2, multi_query=False),
    "falcon new, multi_query": falcon((6, 2, 2), new_decoder_architecture=True, num_kv_heads=2, multi_query=True),
    "falcon multi_query": falcon((6, 1, 1), multi_query=True, new_decoder_architecture=False, num_kv_heads=3),
    "falcon per head": falcon((6, 6, 6), multi_query=False, new_decoder_architecture=False, alibi=True),
    "codegen": Case(
        of(
            "CodeGenForCausalLM",
            "CodeGenConfig",
            **tiny_models.TEXT,
            n_embd=48,
            n_layer=2,
            n_head=8,
            n_positions=32,
            rotary_dim=4,
        ),
        IDS,
        "qkv_proj",
        QKV,
        (8, 8, 8),
        order=(0, 2, 1),
    ),
    "gpt_bigcode": Case(of("GPTBigCodeForCausalLM", "GPTBigCodeConfig", **GPT), IDS, "c_attn", CONV, (3, 1, 1)),
    "gpt_bigcode per head": Case(
        of("GPTBigCodeForCausalLM", "GPTBigCodeConfig", **GPT, multi_query=False), IDS, "c_attn", CONV, (3, 3, 3)
    ),
    "persimmon": Case(
        of("PersimmonForCausalLM", "PersimmonConfig", **SMALL),
        IDS,
        "query_key_value",
        QUERY,
        (3, 3, 3),
        identity=("q_layernorm", "k_layernorm"),
    ),
    "modernbert": Case(
        of("ModernBertForMaskedLM", "ModernBertConfig", **SMALL, attention_bias=True, cls_token_id=1, sep_token_id=2),
        BARE,
        "Wqkv",
        QKV,
        (3, 3, 3),
    ),
    "modernvbert": Case(
        lambda: tf.ModernVBertModel(
            tf.ModernVBertConfig(
                text_config={**SMALL, "model_type": "modernbert"},
                vision_config={**TOWER, "model_type": "siglip_vision_model"},
                pixel_shuffle_factor=2,
            )
        ),
        BARE,
        "Wqkv",
        QKV,
        (3, 3, 3),
    ),
    "mpt": Case(
        of("MptForCausalLM", "MptConfig", vocab_size=97, d_model=36, n_heads=3, n_layers=2, max_seq_len=32),
        IDS,
        "Wqkv",
        W,
        (3, 3, 3),
    ),
    "dbrx": Case(
        of(
            "DbrxForCausalLM",
            "DbrxConfig",
            vocab_size=97,
            d_model=48,
            n_heads=6,
            n_layers=2,
            max_seq_len=32,
            attn_config={"kv_n_heads": 2, "clip_qkv": 1e9, "rope_theta": 1e4},
            ffn_config={"ffn_hidden_size": 24, "moe_num_experts": 2, "moe_top_k": 1, "hidden_size": 48},
        ),
        IDS,
        "Wqkv",
        W,
        (6, 2, 2),
    ),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Evidence]:
    """run(case) -> what it gives, made once."""
    return evidence_of(CASES, tmp_path_factory)


@pytest.mark.parametrize("name", CASES)
def test_parts_are_what_reaches_attention(name: str, run: Callable[[str], Evidence]) -> None:
    check_parts(run(name))


@pytest.mark.parametrize("name", CASES)
def test_another_layout_fails_the_same_comparison(name: str, run: Callable[[str], Evidence]) -> None:
    check_controls(run(name))


@pytest.mark.parametrize("name", CASES)
def test_fusing_what_was_split_gives_the_same_files(name: str, run: Callable[[str], Evidence]) -> None:
    check_round_trip(run(name))


@pytest.mark.parametrize(
    "name",
    ["falcon new", "gpt_bigcode", "phi3", "codegen", "deberta", "layoutlmv2", "qwen3_next", "gpt2 cross", "xlstm"],
)
def test_parts_lie_in_other_shards(name: str, tmp_path: Path) -> None:
    """Weights and biases of one module in different shards, whichever they are."""
    base = evidence(replace(CASES[name], shard=""), tmp_path / "whole").base
    surgery.write(surgery.open_checkpoint(base), tmp_path / "base", "2KB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    check_fuses_back(tmp_path)
    assert tensors_in(tmp_path / "split").keys() == tensors_in(tmp_path / "whole" / "split").keys()


# Convolutions: q, k and v after theirs, in another order than the projection before them has

CONVOLVED = {
    "qwen3_next": (QWEN3_NEXT, "in_proj_qkvz"),
    "qwen3_5_text": (QWEN3_5, "in_proj_qkv"),
    "qwen3_5_moe_text": (QWEN3_5_MOE, "in_proj_qkv"),
    "qwen4_exp_text": (qwen4_exp, "in_proj_qkv"),
}


@pytest.mark.parametrize("name", CONVOLVED)
def test_convolutions_are_blocked(name: str, tmp_path: Path) -> None:
    """Each part's projection and then its convolution give what the delta rule gets; in the other order they do not."""
    model, fused = CONVOLVED[name]
    case = Case(model, IDS, fused, (), (), records=("torch_chunk_gated_delta_rule",), settle=no_decay)
    made = evidence(case, tmp_path)
    states = [x.flatten(2) for x in made.calls[0].recorded["torch_chunk_gated_delta_rule"][:3]]
    parent = next(n for n in made.parts if n.endswith("in_proj_q.weight")).removesuffix("in_proj_q.weight")
    projected = [made.calls[0].hidden @ made.parts[f"{parent}in_proj_{key}.weight"].T for key in "qkv"]

    def differs(weights: Sequence[torch.Tensor]) -> float:
        done = [convolved(x, weight) for x, weight in zip(projected, weights, strict=True)]
        return max((one - state).abs().max().item() for one, state in zip(done, states, strict=True))

    assert differs([made.parts[f"{parent}{key}_conv1d.weight"] for key in "qkv"]) < 1e-5
    whole, sizes = made.fused[f"{parent}conv1d.weight"], [x.shape[-1] for x in projected]
    grouped = whole.unflatten(0, (2, -1)).split([size // 2 for size in sizes], 1)
    assert differs([part.flatten(0, 1) for part in grouped]) > 1e-3
    q, k, v = whole.split(sizes)
    assert differs([k, q, v]) > 1e-3


def convolved(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Causal, each channel with its own kernel, and SiLU."""
    channels = torch.nn.functional.pad(states.transpose(1, 2), (weight.shape[-1] - 1, 0))
    return torch.nn.functional.silu(torch.nn.functional.conv1d(channels, weight, groups=weight.shape[0])).transpose(
        1, 2
    )


# Classes that load what is split

IN_FILES: dict[str, tuple[Callable[[], Any], Callable[[], Mapping[str, Any]]]] = {
    "nomic_bert": (of("NomicBertModel", "NomicBertConfig", **SMALL), BARE),
    "jina_embeddings_v3": (of("JinaEmbeddingsV3Model", "JinaEmbeddingsV3Config", **SMALL), BARE),
    "gte": (of("GteModel", "GteConfig", **SMALL), BARE),
    "hrm_text": (of("HrmTextForCausalLM", "HrmTextConfig", **SMALL, head_dim=10, H_cycles=1, L_cycles=1), IDS),
    "molmo2": (molmo2, IDS),
    "molmo2_text": (of("Molmo2TextModel", "Molmo2TextConfig", **GROUPED, head_dim=8), IDS),
}


@pytest.mark.parametrize("name", IN_FILES)
def test_fused_in_files_only(name: str, tmp_path: Path) -> None:
    """The parts are the class's own tensors: it loads them, computes the same, and what is fused again is the same
    file.
    """
    model, inputs = IN_FILES[name]
    built = build(Case(model, inputs, "", (), ()))
    built.save_pretrained(tmp_path / "base")
    surgery.write(surgery.split_qkv(surgery.open_checkpoint(tmp_path / "base")), tmp_path / "split")
    before, after = tensors_in(tmp_path / "base"), tensors_in(tmp_path / "split")
    made = {n: t for n, t in after.items() if n not in before}
    assert len(before) < len(after) and {t.shape for t in made.values()} != {
        t.shape for n, t in before.items() if n not in after
    }
    compare_loaded(built, tmp_path / "split", inputs, same=True)
    surgery.write(surgery.fuse_qkv(surgery.open_checkpoint(tmp_path / "split")), tmp_path / "fused")
    assert hashes(tmp_path / "fused") == hashes(tmp_path / "base")
    swapped = {n.replace("k_proj", "?").replace("v_proj", "k_proj").replace("?", "v_proj"): t for n, t in after.items()}
    save_file(swapped, tmp_path / "split" / "model.safetensors", metadata={"format": "pt"})
    compare_loaded(built, tmp_path / "split", inputs, same=False)


def test_a_split_xlstm_is_one_of_single_weights(tmp_path: Path) -> None:
    """With its feed-forward split as well, and what config.json says of it."""
    built = build(Case(xlstm, IDS, "", (), ()))
    built.save_pretrained(tmp_path / "base")
    surgery.write(surgery.split(surgery.open_checkpoint(tmp_path / "base")), tmp_path / "split")
    assert tf.AutoConfig.from_pretrained(tmp_path / "split").weight_mode == "single"
    compare_loaded(built, tmp_path / "split", IDS, same=True)
    surgery.write(surgery.fuse(surgery.open_checkpoint(tmp_path / "split")), tmp_path / "fused")
    assert hashes(tmp_path / "fused") == hashes(tmp_path / "base")


def compare_loaded(model: Any, folder: Path, inputs: Callable[[], Mapping[str, Any]], *, same: bool) -> None:
    """The model's class loads the folder with nothing missing or left over, and computes the same, or not."""
    loaded, info = type(model).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        difference = (model(**inputs())[0] - loaded.eval()(**inputs())[0]).abs().max()
    assert (difference < 1e-6) == same
    assert same or difference > 1e-3


def test_a_split_layoutlmv2_is_one_without_fast_qkv(tmp_path: Path) -> None:
    """The class with fast_qkv false loads it, the bias of k that it has is zero, and both compute the same."""
    case = CASES["layoutlmv2"]
    made = evidence(case, tmp_path)
    config = tf.AutoConfig.from_pretrained(made.split)
    assert config.fast_qkv is False and tf.AutoConfig.from_pretrained(made.base).fast_qkv is True
    other = LayoutLMv2SelfAttention(config).eval()
    prefix = case.module("")
    other.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in made.parts.items()})
    assert not other.key.bias.any() and other.query.bias.any() and other.value.bias.any()
    with torch.no_grad():
        expected, got = (m(**case.inputs())[0] for m in (build(case), other))
        assert (expected - got).abs().max() < 1e-6
        other.query.bias.zero_()
        assert (expected - other(**case.inputs())[0]).abs().max() > 1e-3


# What only looks fused

PHI3_TENSORS = {"model.layers.0.self_attn.qkv_proj.weight": Zeros(F32, (12, 4))}
DECOYS: dict[str, tuple[str, dict[str, Any], str]] = {
    "mamba": ("MambaForCausalLM", {"num_hidden_layers": 1}, "mixer.in_proj.weight"),
    "mamba2": ("Mamba2ForCausalLM", {"num_hidden_layers": 1}, "mixer.in_proj.weight"),
    "bamba": ("BambaForCausalLM", {"num_hidden_layers": 2, "attn_layer_indices": [1]}, "mamba.in_proj.weight"),
    "lfm2": (
        "Lfm2ForCausalLM",
        {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
        "conv.in_proj.weight",
    ),
    "zaya": ("ZayaForCausalLM", {"num_hidden_layers": 2}, "qkv_proj.q_proj.weight"),
    "deepseek_v3": ("DeepseekV3ForCausalLM", {"num_hidden_layers": 1}, "kv_b_proj.weight"),
    "deepseek_v4": ("DeepseekV4ForCausalLM", {"num_hidden_layers": 2}, "kv_proj.weight"),
    "t5": ("T5Model", {"num_layers": 1}, "DenseReluDense.wi.weight"),
}


@pytest.mark.parametrize("kind", DECOYS)
def test_decoys_are_left_alone(kind: str) -> None:
    name, fields, decoy = DECOYS[kind]
    with torch.device("meta"):
        model = getattr(tf, name)(tf.AutoConfig.for_model(kind, **fields))
    tensors = {n: Zeros(F32, tuple(p.shape)) for n, p in model.named_parameters()}
    assert any(n.endswith(decoy) for n in tensors), sorted(tensors)
    config = json.loads(model.config.to_json_string())
    assert detect(config, tensors, ("qkv", "kv")) == []
    assert detect({"model_type": "phi3", "num_attention_heads": 2, "hidden_size": 4}, PHI3_TENSORS, ("qkv", "kv"))


def test_a_gate_in_q_is_left_alone(run: Callable[[str], Evidence]) -> None:
    """Qwen3-Next's q_proj has the rows of a gate between those of q."""
    made = run("qwen3_next")
    name = "model.layers.1.self_attn.q_proj.weight"
    assert made.fused[name].shape[0] == 2 * 6 * 8 and torch.equal(made.fused[name], made.parts[name])


# Which rows are checked here, and by what; the others were only read

CHECKED: dict[tuple[str, str, str], str] = {
    ("qkv", "phi3", "qkv_proj"): "phi3",
    ("qkv", "phi4_multimodal", "qkv_proj"): "phi4_multimodal",
    ("qkv", "gpt2", "c_attn"): "gpt2",
    ("kv", "gpt2", "c_attn"): "gpt2 cross",
    ("qkv", "openai-gpt", "c_attn"): "openai-gpt",
    ("qkv", "imagegpt", "c_attn"): "imagegpt",
    ("qkv", "decision_transformer", "c_attn"): "decision_transformer",
    ("qkv", "gpt_neox", "query_key_value"): "gpt_neox",
    ("qkv", "gpt_neox_japanese", "query_key_value"): "gpt_neox_japanese",
    ("qkv", "bloom", "query_key_value"): "bloom",
    ("qkv", "falcon", "query_key_value"): "falcon new",
    ("qkv", "codegen", "qkv_proj"): "codegen",
    ("qkv", "gpt_bigcode", "c_attn"): "gpt_bigcode",
    ("qkv", "persimmon", "query_key_value"): "persimmon",
    ("qkv", "fuyu", "query_key_value"): "fuyu",
    ("qkv", "modernbert", "Wqkv"): "modernbert",
    ("qkv", "mpt", "Wqkv"): "mpt",
    ("qkv", "dbrx", "Wqkv"): "dbrx",
    ("qkv", "minimax", "qkv_proj"): "minimax",
    ("qkv", "deberta", "in_proj"): "deberta",
    ("qkv", "layoutlmv2", "qkv_linear"): "layoutlmv2",
    ("qkv", "semantic", "att_proj"): "bark",
    ("qkv", "coarse_acoustics", "att_proj"): "bark coarse",
    ("qkv", "fine_acoustics", "att_proj"): "bark fine",
    ("qkv", "qwen3_next", "in_proj_qkvz"): "qwen3_next",
    ("qkv", "qwen3_next", "in_proj_ba"): "qwen3_next gates",
    ("qkv", "qwen3_next", "conv1d"): "convolutions",
    ("qkv", "qwen3_5_text", "in_proj_qkv"): "qwen3_5",
    ("qkv", "qwen3_5_text", "conv1d"): "convolutions",
    ("qkv", "qwen3_5_moe_text", "in_proj_qkv"): "qwen3_5_moe",
    ("qkv", "qwen3_5_moe_text", "conv1d"): "convolutions",
    ("qkv", "qwen4_exp_text", "in_proj_qkv"): "qwen4_exp",
    ("qkv", "qwen4_exp_text", "index_qk_proj"): "qwen4_exp indexer",
    ("qkv", "qwen4_exp_text", "conv1d"): "convolutions",
    ("kv", "jetmoe", "kv_proj"): "jetmoe",
    ("qkv", "xlstm", "qkv_opreact"): "xlstm",
    ("qkv", "xlstm", "ifgate_preact"): "xlstm gates",
    ("qkv", "esm", "proj"): "esm trunk",
    ("kv", "esm", "linear_kv"): "esm ipa",
    ("kv", "evolla", "to_kv"): "evolla",
    ("kv", "granite_speech_encoder", "to_kv"): "granite_speech",
    ("kv", "granite_speech_plus_encoder", "to_kv"): "granite_speech_plus",
    ("qkv", "nomic_bert", "attn.Wqkv"): "files",
    ("qkv", "jina_embeddings_v3", "mixer.Wqkv"): "files",
    ("qkv", "gte", "attention.qkv_proj"): "files",
    ("qkv", "hrm_text", "attn.gqkv_proj"): "files",
    ("qkv", "molmo2_text", "att_proj"): "files",
    ("qkv", "molmo2", "att_proj"): "files",
}
READ: dict[tuple[str, str, str], str] = {
    ("qkv", "gpt-sw3", "c_attn"): "the class of gpt2",
    ("kv", "gpt-sw3", "c_attn"): "the class of gpt2",
    ("kv", "imagegpt", "c_attn"): "a copy of gpt2's class",
    ("kv", "decision_transformer", "c_attn"): "a copy of gpt2's class",
    ("qkv", "bark", "att_proj"): "holds the three that are checked",
    ("kv", "granite_speech", "to_kv"): "holds the encoder that is checked",
    ("kv", "granite_speech_plus", "to_kv"): "holds the encoder that is checked",
    ("qkv", "nemo_speechlm", "attn.w_qkv"): "Chunk in its conversion mapping",
}


def test_every_row_is_checked_or_only_read() -> None:
    rows = [(row.kind, kind, row.fused) for row in TEXT for kind in row.model_types]
    assert len(rows) == len(set(rows))
    assert set(rows) == CHECKED.keys() | READ.keys() and not CHECKED.keys() & READ.keys()
    assert set(CHECKED.values()) <= CASES.keys() | {"convolutions", "files"}


def test_the_listed_are_what_is_checked(run: Callable[[str], Evidence]) -> None:
    """The row that a case stands for is the one that was found in its checkpoint, for every module that was called."""
    for (kind, model_type, fused), name in CHECKED.items():
        if name not in CASES:
            assert model_type in (CONVOLVED if name == "convolutions" else IN_FILES)
            continue
        made = run(name)
        checkpoint = surgery.open_checkpoint(made.base)
        sites = {site.module: site for site in detect(checkpoint.config, checkpoint.tensors, ("qkv", "kv"))}
        called = [
            site
            for site in sites.values()
            for call in made.calls
            if site.module.endswith(made.case.module(call.module))
        ]
        assert called
        assert {(site.row.kind, site.row.fused) for site in called} == {(kind, fused)}
        assert all(model_type in site.row.model_types for site in called)
        assert model_type in {section.get("model_type") for section in sections(checkpoint.config)}


def test_every_source_is_there() -> None:
    """A row names a folder of transformers, a class or function in it; or an entry of the conversion mapping."""
    root = Path(str(tf.__file__)).parent
    for row in TEXT:
        folder, _, rest = row.source.partition(" ")
        if folder == "conversion_mapping":
            assert f'"{rest}"' in (root / "conversion_mapping.py").read_text()
            continue
        code = "".join(file.read_text() for file in (root / folder).glob("modeling_*.py"))
        names = re.findall(r"\b(\w+)\.(\w+)\b", rest.split(",")[0].split(":")[0].replace("modeling_esmfold.py", ""))
        assert names, row.source
        for owner, method in names:
            assert re.search(rf"class {owner}\b", code) and re.search(rf"def {method}\b", code), row.source
