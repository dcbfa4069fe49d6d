"""Fused attention in remote code and in other frameworks: no class of transformers has these names.

Sources are `repository file Class.method`. timm's config.json has `architecture` where others have `model_type`: see
`layout.sections`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ....errors import LayoutError
from ..layout import HEADS, KV_HEADS, Layout, Place, Rule, equal, full_width, grouped_query, number, per_head
from ..row import QKV_PROJ, Beside, Row

WEIGHT = ((".weight", ".weight"),)
QVK_PROJ = {key: QKV_PROJ[key] for key in "qvk"}  # in this order


def _chatglm(place: Place) -> Layout:
    """Blocked with groups of its own, or per head: `multi_query_attention` says which."""
    heads = number(place.config, "num_attention_heads")
    dim = number(place.config, "kv_channels")
    if place.config.get("multi_query_attention"):
        groups = number(place.config, "multi_query_group_num")
        return Layout(1, (heads, groups, groups), dim)
    return Layout(heads, (1, 1, 1), dim)


def _in_columns(shares: int) -> Rule:
    """Shares of as many devices as the model was trained on, each with parts of equal length."""

    def layout(place: Place) -> Layout:
        return Layout(shares, (1, 1, 1), equal(3 * shares)(place).unit)

    return layout


def _layer_by_layer(heads: str, kv_heads: str, head_dim: str) -> Rule:
    """[q|k|v], blocked, where each layer has its own head counts: config.json lists them."""

    def layout(place: Place) -> Layout:
        layer = int(re.findall(r"\d+", place.module)[-1])
        q, kv = (_entry(place, field, layer) for field in (heads, kv_heads))
        return Layout(1, (q, kv, kv), number(place.config, head_dim))

    return layout


def _entry(place: Place, field: str, layer: int) -> int:
    listed = place.config.get(field)
    counts = listed if isinstance(listed, Sequence) and not isinstance(listed, str) else ()
    if layer >= len(counts):
        raise LayoutError(
            f"config.json says in {field} nothing of layer {layer}",
            where=[place.module],
            help=f"{field} lists the heads of each layer; complete it from the model's class",
        )
    return number({field: counts[layer]}, field)


def _expert(expert: str) -> dict[str, str]:
    return {"q": f"{expert}_expert_query", "k": f"{expert}_expert_key", "v": f"{expert}_expert_value"}


ELSEWHERE: tuple[Row, ...] = (
    Row(
        "qkv",
        ("baichuan",),
        r"layers\.\d+\.self_attn",
        "W_pack",
        QKV_PROJ,
        full_width("hidden_size"),
        "baichuan-inc/Baichuan-7B models/modeling_baichuan.py Attention.forward: unflatten(-1, (3, hidden))",
    ),
    Row(
        "qkv",
        ("qwen",),
        r"h\.\d+\.attn",
        "c_attn",
        QKV_PROJ,
        full_width("hidden_size", "n_embd"),
        "Qwen/Qwen-7B-Chat modeling_qwen.py QWenAttention.forward: nn.Linear, unlike GPT-2's module of this name",
    ),
    Row(
        "qkv",
        ("internlm2", "internlmxcomposer2"),
        r"layers\.\d+\.attention",
        "wqkv",
        QKV_PROJ,
        grouped_query(by_group=True),
        "InternLM/InternLM tools/convert2llama.py; modeling_internlm2.py InternLM2Attention.forward: (h gs d), gs ="
        " G + 2",
    ),
    Row(
        "qkv",
        ("intern_vit_6b",),
        r"layers\.\d+\.attn",
        "qkv",
        QKV_PROJ,
        full_width("hidden_size"),
        "OpenGVLab/InternVL modeling_intern_vit.py InternAttention._naive_attn: reshape(B, N, 3, heads, -1)",
    ),
    Row(
        "qkv",
        ("chatglm",),
        r"encoder\.layers\.\d+\.self_attention",
        "query_key_value",
        QKV_PROJ,
        _chatglm,
        "THUDM/chatglm3-6b modeling_chatglm.py SelfAttention.forward",
    ),
    Row(
        "qkv",
        ("chatglm",),
        r"(?<!vision\.)transformer\.layers\.\d+\.attention",
        "query_key_value",
        QKV_PROJ,
        per_head(),
        "THUDM/chatglm-6b modeling_chatglm.py SelfAttention.forward: (heads, 3 * head_dim)",
    ),
    Row(
        "qkv",
        ("chatglm", "cogvlm", "cogagent"),
        r"vision\.transformer\.layers\.\d+\.attention",
        "query_key_value",
        QKV_PROJ,
        equal(3),
        "THUDM/glm-4v-9b, THUDM/cogvlm-chat-hf visual.py Attention.forward: reshape(B, L, 3, heads, -1)",
    ),
    *(
        Row(
            "qkv",
            ("cogvlm", "cogagent"),
            r"layers\.\d+\.self_attn",
            f"{expert}_expert_query_key_value",
            _expert(expert),
            grouped_query(kv_heads=("num_multi_query_heads",)),
            "THUDM/cogvlm-chat-hf, THUDM/cogvlm2-llama3-chat-19B modeling_cogvlm.py VisionExpertAttention.forward",
        )
        for expert in ("vision", "language")
    ),
    Row(
        "qkv",
        ("mixformer-sequential", "phi-msft"),
        r"\d+\.mixer",
        "Wqkv",
        QKV_PROJ,
        grouped_query(("n_head",), ("n_head_kv",), ("n_embd",)),
        "microsoft/phi-1_5 modeling_mixformer_sequential.py MHA.forward: (three h d), or [q; (two hkv d)]",
    ),
    Row(
        "qkv",
        ("phi3_v",),
        r"layers\.\d+\.self_attn",
        "qkv_proj",
        QKV_PROJ,
        grouped_query(head_dim=("head_dim",)),
        "microsoft/Phi-3-vision-128k-instruct modeling_phi3_v.py Phi3Attention.forward, as models/phi3",
    ),
    Row(
        "qkv",
        ("phi3small",),
        r"layers\.\d+\.self_attn",
        "query_key_value",
        QKV_PROJ,
        grouped_query(HEADS, KV_HEADS, by_group=True),
        "vllm-project/vllm model_executor/models/phi3_small.py Phi3SmallSelfAttention.forward",
    ),
    Row(
        "qkv",
        ("openelm",),
        r"layers\.\d+\.attn",
        "qkv_proj",
        QKV_PROJ,
        _layer_by_layer("num_query_heads", "num_kv_heads", "head_dim"),
        "apple/corenet corenet/modeling/models/language_modeling/general_gpt.py MultiHeadCausalAttention.forward",
    ),
    Row(
        "qkv",
        ("codeshell",),
        r"h\.\d+\.attn",
        "c_attn",
        QKV_PROJ,
        grouped_query(("n_head",), ("num_query_groups",), ("n_embd",)),
        "WisdomShell/CodeShell-7B modeling_codeshell.py CodeShellAttention.forward: split((embed_dim, kv_dim, kv_dim))",
    ),
    Row(
        "qkv",
        ("moss",),
        r"h\.\d+\.attn",
        "qkv_proj",
        QVK_PROJ,
        _in_columns(4),
        "OpenMOSS/MOSS models/modeling_moss.py MossAttention.forward: mp_num = 4, as models/codegen",
    ),
    Row(
        "qkv",
        ("progen",),
        r"h\.\d+\.attn",
        "qkv_proj",
        QVK_PROJ,
        _in_columns(8),
        "salesforce/progen progen2/models/progen/modeling_progen.py ProGenAttention.forward: mp_num = 8",
    ),
    Row(
        "qkv",
        ("bert",),
        r"layer\.\d+\.attention\.self",
        "Wqkv",
        {"q": "Wq", "k": "Wk", "v": "Wv"},  # not query, key and value: these are what an ordinary BERT has
        full_width("hidden_size"),
        "mosaicml/mosaic-bert-base bert_layers.py BertUnpadSelfAttention.forward: 'b s (t h d) -> b s t h d', t=3",
    ),
    Row(
        "qkv",
        ("timm:vit", "timm:deit", "timm:deit3"),
        r"blocks\.\d+\.attn",
        "qkv",
        QKV_PROJ,
        equal(3),
        "huggingface/pytorch-image-models timm/layers/attention.py Attention.forward: reshape(B, N, 3, heads,"
        " head_dim)",
    ),
    Row(
        "qkv",
        ("timm:beit", "timm:beitv2", "timm:eva", "timm:eva02"),
        r"blocks\.\d+\.attn",
        "qkv",
        QKV_PROJ,
        equal(3),
        "huggingface/pytorch-image-models timm/models/beit.py Attention.forward, eva.py EvaAttention.forward: k has no"
        " bias",
        tensors=WEIGHT,
        beside=(Beside("q_bias", "q"), Beside("v_bias", "v")),
        zeros=(("k", ".bias"),),
    ),
)
