"""Fused attention of text models in transformers: q, k and v, and k with v.

Left alone, for they are no projections to heads' q, k and v: the low-rank products of MLA (`kv_b_proj`), a `q_proj`
that holds a gate, Mamba's `in_proj` and LFM2's. So is Gradium's `self_attn.in_proj`, whose class reorders the rows
of q and k when it loads them.
"""

from __future__ import annotations

from ....errors import LayoutError
from ..layout import (
    HEADS,
    WIDTH,
    Layout,
    Place,
    Rule,
    divided,
    equal,
    full_width,
    grouped_query,
    in_groups,
    number,
    per_head,
)
from ..row import CONV1D, QKV_PROJ, QUERY_KEY_VALUE, Beside, Row

SELF_ATTN = {
    key: f"self_attn.{leaf}" for key, leaf in QKV_PROJ.items()
}  # as the classes call what they unfuse when they load it
DELTA_NET = ("qwen3_5_text", "qwen3_5_moe_text", "qwen4_exp_text")
DELTA_NET_OLD = ("qwen3_next",)
TRUNK = "esmfold_config.trunk"
WEIGHT = ((".weight", ".weight"),)
XLSTM = {"weight_mode": ("fused", "single")}


def _heads(parts: int, *heads: str) -> Rule:
    """All parts of head 0, then of head 1, and so on; the axis itself tells how wide a head is."""

    def layout(place: Place) -> Layout:
        count = number(place.config, *heads)
        return Layout(count, (1,) * parts, divided(place.length, count * parts, f"parts of heads in {place.module}"))

    return layout


def _multi_query(place: Place) -> Layout:
    heads = number(place.config, *HEADS)
    return Layout(1, (heads, 1, 1), divided(number(place.config, *WIDTH), heads, "heads"))


def _falcon(place: Place) -> Layout:
    """`num_kv_heads` counts in the new architecture only: the class writes it into every config."""
    if place.config.get("new_decoder_architecture", False):
        return grouped_query(by_group=True)(place)
    return _multi_query(place) if place.config.get("multi_query", True) else per_head()(place)


def _bigcode(place: Place) -> Layout:
    return _multi_query(place) if place.config.get("multi_query", True) else per_head()(place)


def _codegen(place: Place) -> Layout:
    """The shares of four devices, whatever the head count: `mp_num = 4`."""
    return Layout(4, (1, 1, 1), equal(12)(place).unit)


def _rest(place: Place) -> Layout:
    """q as wide as the model, k and v share the rest: transformers' MPT has as many heads of each, llm-foundry's may
    have fewer.
    """
    width = number(place.config, *WIDTH)
    if place.length <= width:
        raise LayoutError(f"{place.length} entries are no more than the model is wide", where=[place.module])
    return in_groups(1, width, *[divided(place.length - width, 2, "equal parts")] * 2)


def _trunk(place: Place) -> Layout:
    dim = number(place.config, f"{TRUNK}.sequence_head_width")
    return Layout(divided(place.length, 3 * dim, "parts of heads"), (1, 1, 1), dim)


def _delta_heads(place: Place) -> tuple[int, int, int, int]:
    """Heads of q and k, their dimension, heads of v for each of them, and their dimension."""
    names = ("linear_num_key_heads", "linear_key_head_dim", "linear_num_value_heads", "linear_value_head_dim")
    keys, key_dim, values, value_dim = (number(place.config, name) for name in names)
    return keys, key_dim, divided(values, keys, "heads of k"), value_dim


def _delta_blocks(place: Place) -> Layout:
    keys, key_dim, shared, value_dim = _delta_heads(place)
    return in_groups(1, keys * key_dim, keys * key_dim, keys * shared * value_dim)


def _delta_qkvz(place: Place) -> Layout:
    keys, key_dim, shared, value_dim = _delta_heads(place)
    return in_groups(keys, key_dim, key_dim, shared * value_dim, shared * value_dim)


def _delta_ba(place: Place) -> Layout:
    keys, _, shared, _ = _delta_heads(place)
    return in_groups(keys, shared, shared)


def _indexer(place: Place) -> Layout:
    dim = number(place.config, "indexer_head_dim")
    return in_groups(1, number(place.config, "indexer_n_heads") * dim, number(place.config, "indexer_kv_heads") * dim)


def _xlstm(place: Place) -> Layout:
    """[q|k|v|o]: o is as wide as v, which is a fraction of the width."""
    width = number(place.config, "hidden_size", "embedding_dim")
    value = int(width * (place.config.get("v_dim_factor") or 1.0))
    if not 0 < 2 * value < place.length:
        raise LayoutError(
            f"{place.length} entries do not hold v and o of {value}",
            where=[place.module],
            help="see v_dim_factor in config.json",
        )
    rest = divided(place.length - 2 * value, 2, "equal parts")
    return in_groups(1, rest, rest, value, value)


TEXT: tuple[Row, ...] = (
    Row(
        "qkv",
        ("phi3", "phi4_multimodal"),
        r"(?<!encoder\.)layers\.\d+\.self_attn",  # a vision tower beside has q_proj, k_proj, v_proj of its own
        "qkv_proj",
        QKV_PROJ,
        grouped_query(head_dim=("head_dim",)),
        "models/phi3 Phi3Attention.forward, models/phi4_multimodal Phi4MultimodalAttention.forward",
    ),
    Row(
        "qkv",
        ("gpt2", "gpt-sw3", "openai-gpt", "imagegpt", "decision_transformer"),
        r"h\.\d+\.attn",
        "c_attn",
        CONV1D,
        full_width("n_embd", "hidden_size"),
        "models/gpt2 GPT2Attention.forward: Conv1D, so the weight is (in, out); so in models/openai, imagegpt,"
        " decision_transformer",
        axis=1,
    ),
    Row(
        "kv",
        ("gpt2", "gpt-sw3", "imagegpt", "decision_transformer"),
        r"h\.\d+\.crossattention",
        "c_attn",
        {"k": "k_attn", "v": "v_attn"},
        lambda place: Layout(1, (1, 1), number(place.config, "n_embd", "hidden_size")),
        "models/gpt2 GPT2Attention.forward, is_cross_attention: q_attn is apart",
        axis=1,
    ),
    Row(
        "qkv",
        ("gpt_neox", "gpt_neox_japanese"),
        r"layers\.\d+\.attention",
        "query_key_value",
        QUERY_KEY_VALUE,
        per_head(),
        "models/gpt_neox GPTNeoXAttention.forward, models/gpt_neox_japanese GPTNeoXJapaneseAttention.forward",
    ),
    Row(
        "qkv",
        ("bloom",),
        r"h\.\d+\.self_attention",
        "query_key_value",
        QUERY_KEY_VALUE,
        per_head(("n_head", "num_attention_heads"), ("hidden_size", "n_embed")),
        "models/bloom BloomAttention._reshape",
    ),
    Row(
        "qkv",
        ("falcon",),
        r"h\.\d+\.self_attention",
        "query_key_value",
        QUERY_KEY_VALUE,
        _falcon,
        "models/falcon FalconAttention._split_heads: grouped, or multi-query, or per head",
    ),
    Row(
        "qkv",
        ("codegen",),
        r"h\.\d+\.attn",
        "qkv_proj",
        {key: QKV_PROJ[key] for key in "qvk"},
        _codegen,
        "models/codegen CodeGenAttention.forward",
    ),
    Row(
        "qkv",
        ("gpt_bigcode",),
        r"h\.\d+\.attn",
        "c_attn",
        CONV1D,
        _bigcode,
        "models/gpt_bigcode GPTBigCodeAttention.forward: nn.Linear; multi-query, or per head",
    ),
    Row(
        "qkv",
        ("persimmon", "fuyu"),
        r"layers\.\d+\.self_attn",
        "query_key_value",
        QUERY_KEY_VALUE,
        per_head(),
        "models/persimmon PersimmonAttention._split_heads",
    ),
    Row(
        "qkv",
        ("modernbert",),
        r"layers\.\d+\.attn",
        "Wqkv",
        QKV_PROJ,
        full_width("hidden_size"),
        "models/modernbert ModernBertAttention.forward",
    ),
    Row(
        "qkv",
        ("mpt",),
        r"blocks\.\d+\.attn",
        "Wqkv",
        {"q": "Wq", "k": "Wk", "v": "Wv"},
        _rest,
        "models/mpt MptAttention.forward; names as mosaicml/llm-foundry with fused_qkv false",
    ),
    Row(
        "qkv",
        ("dbrx",),
        r"blocks\.\d+\.norm_attn_norm\.attn",
        "Wqkv",
        {"q": "Wq", "k": "Wk", "v": "Wv"},
        grouped_query(("n_heads",), ("attn_config.kv_n_heads",), ("d_model",)),
        "models/dbrx DbrxAttention.forward",
    ),
    Row(
        "qkv",
        ("minimax",),
        r"layers\.\d+\.self_attn",
        "qkv_proj",
        QUERY_KEY_VALUE,  # its other layers have q_proj, k_proj, v_proj
        _heads(3, "num_attention_heads"),
        "models/minimax MiniMaxLightningAttention.forward",
    ),
    Row(
        "qkv",
        ("deberta",),
        r"layer\.\d+\.attention\.self",
        "in_proj",
        QKV_PROJ,
        per_head(),
        "models/deberta DisentangledSelfAttention.forward",
        tensors=WEIGHT,
        beside=(Beside("q_bias", "q"), Beside("v_bias", "v")),
        zeros=(("k", ".bias"),),
    ),
    Row(
        "qkv",
        ("layoutlmv2",),
        r"layer\.\d+\.attention\.self",
        "qkv_linear",
        QUERY_KEY_VALUE,
        equal(3),
        "models/layoutlmv2 LayoutLMv2SelfAttention.compute_qkv",
        tensors=WEIGHT,
        beside=(Beside("q_bias", "q", dims=3), Beside("v_bias", "v", dims=3)),
        zeros=(("k", ".bias"),),
        loads=True,
        config={"fast_qkv": (True, False)},
    ),
    Row(
        "qkv",
        ("bark", "semantic", "coarse_acoustics", "fine_acoustics"),
        r"layers\.\d+\.attn",
        "att_proj",
        QKV_PROJ,
        equal(3),
        "models/bark BarkSelfAttention.forward",
    ),
    Row(
        "qkv",
        DELTA_NET_OLD,
        r"layers\.\d+\.linear_attn",
        "in_proj_qkvz",
        {key: f"in_proj_{key}" for key in "qkvz"},
        _delta_qkvz,
        "models/qwen3_next Qwen3NextGatedDeltaNet.fix_query_key_value_ordering",
    ),
    Row(
        "qkv",
        DELTA_NET_OLD,
        r"layers\.\d+\.linear_attn",
        "in_proj_ba",
        {key: f"in_proj_{key}" for key in "ba"},
        _delta_ba,
        "models/qwen3_next Qwen3NextGatedDeltaNet.fix_query_key_value_ordering",
    ),
    Row(
        "qkv",
        DELTA_NET,
        r"layers\.\d+\.linear_attn",
        "in_proj_qkv",
        {key: f"in_proj_{key}" for key in "qkv"},
        _delta_blocks,
        "models/qwen3_5 Qwen3_5GatedDeltaNet.forward; so in models/qwen3_5_moe, qwen4_exp",
    ),
    Row(
        "qkv",
        DELTA_NET_OLD + DELTA_NET,
        r"layers\.\d+\.linear_attn",
        "conv1d",
        {key: f"{key}_conv1d" for key in "qkv"},
        _delta_blocks,
        "models/qwen3_next Qwen3NextGatedDeltaNet.forward: blocked, whatever in_proj is; so in models/qwen3_5,"
        " qwen3_5_moe, qwen4_exp",
    ),
    Row(
        "qkv",
        ("qwen4_exp_text",),
        r"layers\.\d+\.self_attn\.indexer",
        "index_qk_proj",
        {"q": "index_q_proj", "k": "index_k_proj"},
        _indexer,
        "models/qwen4_exp Qwen4ExpTextQSAIndexer.forward",
    ),
    Row(
        "kv",
        ("jetmoe",),
        r"layers\.\d+\.self_attention",
        "kv_proj",
        {"k": "k_proj", "v": "v_proj"},
        equal(2),
        "models/jetmoe JetMoeAttention.forward",
    ),
    Row(
        "qkv",
        ("xlstm",),
        r"blocks\.\d+\.mlstm_layer",
        "qkv_opreact",
        {"q": "q", "k": "k", "v": "v", "o": "ogate_preact"},
        _xlstm,
        "models/xlstm xLSTMLayer.forward; names as with weight_mode single",
        loads=True,
        config=XLSTM,
    ),
    Row(
        "qkv",
        ("xlstm",),
        r"blocks\.\d+\.mlstm_layer",
        "ifgate_preact",
        {"i": "igate_preact", "f": "fgate_preact"},
        equal(2),
        "models/xlstm xLSTMLayer.forward; names as with weight_mode single",
        loads=True,
        config=XLSTM,
    ),
    Row(
        "qkv",
        ("esm",),
        r"trunk\.blocks\.\d+\.seq_attention",
        "proj",
        QKV_PROJ,
        _trunk,
        "models/esm modeling_esmfold.py EsmFoldSelfAttention.forward",
    ),
    Row(
        "kv",
        ("esm",),
        r"structure_module\.ipa",
        "linear_kv",
        {"k": "linear_k", "v": "linear_v"},
        _heads(2, f"{TRUNK}.structure_module.num_heads_ipa"),
        "models/esm modeling_esmfold.py EsmFoldInvariantPointAttention.forward",
    ),
    Row(
        "kv",
        ("evolla",),
        r"sequence_compressor_resampler\.layers\.\d+\.0",
        "to_kv",
        {"k": "to_k", "v": "to_v"},
        equal(2),
        "models/evolla EvollaSequenceCompressorAttention.forward",
    ),
    Row(
        "kv",
        ("granite_speech_encoder", "granite_speech_plus_encoder", "granite_speech", "granite_speech_plus"),
        r"layers\.\d+\.attn",
        "to_kv",
        {"k": "to_k", "v": "to_v"},
        equal(2),
        "models/granite_speech GraniteSpeechConformerAttention.forward; so in models/granite_speech_plus",
    ),
    # Fused in the files only. The parts have the names that the class has for them in memory, so that it loads what
    # is split, too.
    Row(
        "qkv",
        ("nomic_bert",),
        r"layers\.\d+",
        "attn.Wqkv",
        SELF_ATTN,
        full_width("hidden_size", "n_embd"),
        "conversion_mapping nomic_bert",
        loads=True,
    ),
    Row(
        "qkv",
        ("jina_embeddings_v3",),
        r"layers\.\d+",
        "mixer.Wqkv",
        SELF_ATTN,
        full_width("hidden_size"),
        "conversion_mapping jina_embeddings_v3",
        loads=True,
    ),
    Row(
        "qkv",
        ("gte",),
        r"layer\.\d+",
        "attention.qkv_proj",
        SELF_ATTN,
        full_width("hidden_size"),
        "conversion_mapping gte",
        loads=True,
    ),
    Row(
        "qkv",
        ("hrm_text",),
        r"layers\.\d+",
        "attn.gqkv_proj",
        {"gate": "self_attn.gate_proj", **SELF_ATTN},
        equal(4),
        "conversion_mapping hrm_text",
        loads=True,
    ),
    Row(
        "qkv",
        ("molmo2_text", "molmo2"),
        r"(?:blocks|layers)\.\d+\.self_attn",
        "att_proj",
        QKV_PROJ,
        grouped_query(head_dim=("head_dim",)),
        "conversion_mapping Molmo2TextModel",
        loads=True,
    ),
    Row(
        "qkv",
        ("nemo_speechlm",),
        r"layers\.\d+",
        "attn.w_qkv",
        SELF_ATTN,
        equal(3),
        "conversion_mapping nemo_speechlm",
    ),
)
