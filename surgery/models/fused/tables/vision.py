"""Fused attention of vision and audio towers in transformers, and of torch's `MultiheadAttention` in its models.

A tower's config stands alone or nested, under its own type, its model's (transformers 4), or none: `_tower` lists
all three. Where a file's names are renamed at loading, the parts are called so that the class loads a split
checkpoint, too.
"""

from __future__ import annotations

import re

from ....errors import LayoutError
from ..layout import Config, Layout, Place, Rule, equal, full_width, grouped_query, has, in_groups, number
from ..row import IN_PROJ, Q_K_V, QKV_PROJ, Row, Suffixes

# blocks.N.attn of a tower, alone or where its models keep it.
_TOWER = r"(?:\A|(?<=visual\.)|(?<=vision_model\.)|(?<=vision_encoder\.)|(?<=vision_tower\.))blocks\.\d+\.attn"
_RESBLOCK = r"transformer\.resblocks\.\d+\.attn"
_WQ_WK_WV = {"q": "wq", "k": "wk", "v": "wv"}  # not q_proj: transformers would load it, with its rows in another order
_WITH_NORM: Suffixes = tuple(
    (name, name)
    for name in (
        ".linear.weight",
        ".batch_norm.weight",
        ".batch_norm.bias",
        ".batch_norm.running_mean",
        ".batch_norm.running_var",
    )
)


def _tower(*types: str) -> tuple[str, ...]:
    return tuple(f"{kind}{end}" for kind in types for end in ("", "_vision", "_vision_model"))


def _within(module: str, parts: dict[str, str]) -> dict[str, str]:
    return {key: f"{module}.{part}" for key, part in parts.items()}


def _thirds(*widths: str) -> Rule:
    """[q|k|v] of equal parts, as wide as config.json says; it may leave its class's default out."""

    def layout(place: Place) -> Layout:
        found = equal(3)(place)
        if has(place.config, *widths) and (width := number(place.config, *widths)) != found.unit:
            raise LayoutError(
                f"{place.length} entries are not 3 × {width}",
                where=[place.module, f"{widths[0]} of model type {place.config.get('model_type')!r} is {width}"],
                help="config.json is not this model's, or k and v have fewer heads than q; say the layout with --slots",
            )
        return found

    return layout


def _single_query(place: Place) -> Layout:
    """One channel of q, and as many of k as of v."""
    width, rest = divmod(place.length - 1, 2)
    if rest or width < 1:
        raise LayoutError(f"{place.length} channels are not 1 of q and equally many of k and v", where=[place.module])
    return in_groups(1, 1, width, width)


def _levit(place: Place) -> Layout:
    """Per head [q|k|v], v wider than q and k by a ratio; each stage has numbers of its own."""
    dim, heads, ratio = (_entry(place, name) for name in ("key_dim", "num_attention_heads", "attention_ratio"))
    return in_groups(heads, dim, dim, ratio * dim)


def _levit_subsample(place: Place) -> Layout:
    """Per head [k|v], between two stages: `down_ops` has ["Subsample", key_dim, heads, ratio, ...]."""
    dim, heads, ratio = (_entry(place, "down_ops", i) for i in (1, 2, 3))
    return in_groups(heads, dim, ratio * dim)


def _entry(place: Place, field: str, *at: int) -> int:
    """A number of the stage that the module is in."""
    value = place.config.get(field)
    for i in (int(re.findall(r"stages\.(\d+)", place.module)[-1]), *at):
        value = value[i] if isinstance(value, list) and i < len(value) else None
    said: Config = {field: value, "model_type": place.config.get("model_type")}
    return number(said, field)


VISION: tuple[Row, ...] = (
    Row(
        "qkv",
        ("sam_vision_model", "sam"),
        r"vision_encoder\.layers\.\d+\.attn",
        "qkv",
        Q_K_V,
        full_width("hidden_size"),
        "models/sam SamVisionAttention.forward",
    ),
    Row(
        "qkv",
        ("sam_hq_vision_model", "sam_hq"),
        r"vision_encoder\.layers\.\d+\.attn",
        "qkv",
        Q_K_V,
        _thirds("hidden_size"),
        "models/sam_hq SamHQVisionAttention.forward",
    ),
    Row(
        "qkv",
        _tower("got_ocr2", "pp_chart2table", "slanext", "pp_formulanet"),
        r"(?:\A|(?<=vision_tower\.)|(?<=encoder\.))layers\.\d+\.attn",
        "qkv",
        Q_K_V,
        _thirds("hidden_size"),
        "models/got_ocr2 GotOcr2VisionAttention.forward; slanext, pp_formulanet alike",
    ),
    Row(
        "qkv",
        ("deepseek_ocr2_sam_vision_model", "unlimited_ocr_sam_vision_model"),
        r"(?:\A|(?<=sam_model\.)|(?<=sam_encoder\.))(?:blocks|layers)\.\d+\.attn",
        "qkv",
        Q_K_V,
        _thirds("hidden_size"),
        "models/deepseek_ocr2 DeepseekOcr2SamVisionAttention.forward; unlimited_ocr alike",
    ),
    Row(
        "qkv",
        ("sam2_hiera_det_model", "sam2_vision_model", "sam2", "sam2_video", "edgetam_video"),
        r"(?:\A|(?<=backbone\.))blocks\.\d+\.attn",
        "qkv",
        Q_K_V,
        equal(3),
        "models/sam2 Sam2MultiScaleAttention.forward: as wide as the stage that it leads to",
    ),
    Row(
        "qkv",
        ("hiera",),
        r"encoder\.stages\.\d+\.layers\.\d+\.attn",
        "qkv",
        Q_K_V,
        equal(3),
        "models/hiera HieraMaskUnitAttention.forward: as wide as the stage that it leads to",
    ),
    Row(
        "qkv",
        ("vitdet",),
        r"encoder\.layer\.\d+\.attention",
        "qkv",
        Q_K_V,
        _thirds("hidden_size"),
        "models/vitdet VitDetAttention.forward",
    ),
    Row(
        "qkv",
        ("seggpt",),
        r"encoder\.layers\.\d+\.attention",
        "qkv",
        Q_K_V,
        _thirds("hidden_size"),
        "models/seggpt SegGptAttention.forward",
    ),
    Row(
        "qkv",
        ("timesformer",),
        r"encoder\.layer\.\d+\.(?:temporal_)?attention\.attention",
        "qkv",
        Q_K_V,
        _thirds("hidden_size"),
        "models/timesformer TimesformerSelfAttention.forward",
    ),
    Row(
        "qkv",
        _tower("qwen2_vl"),
        _TOWER,
        "qkv",
        Q_K_V,
        _thirds("embed_dim"),
        "models/qwen2_vl VisionAttention.forward; hidden_size is the text's",
    ),
    Row(
        "qkv",
        _tower("qwen2_5_vl"),
        _TOWER,
        "qkv",
        Q_K_V,
        _thirds("hidden_size"),
        "models/qwen2_5_vl Qwen2_5_VLVisionAttention.forward",
    ),
    Row(
        "qkv",
        (
            *_tower(
                "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen4_exp", "cohere_compass", "cosmos3_omni"
            ),
            *("qwen3_omni_moe_vision_encoder", "qwen3_omni_moe_thinker", "qwen3_omni_moe_thinker_vision_model"),
        ),
        _TOWER,
        "qkv",
        Q_K_V,
        _thirds("hidden_size"),
        "models/qwen3_vl Qwen3VLVisionAttention.forward; qwen3_5, qwen3_omni_moe, qwen4_exp, cohere_compass alike",
    ),
    Row(
        "qkv",
        (
            *_tower(
                "glm4v", "glm4v_moe", "glm46v", "glm5_next", "glm_ocr", "glm_image", "ernie4_5_vl_moe", "dots3_note"
            ),
            "dots3_note_vision_encoder",
        ),
        _TOWER,
        "qkv",
        Q_K_V,
        _thirds("hidden_size"),
        "models/glm4v Glm4vVisionAttention.forward; glm_ocr, glm_image, glm5_next, ernie4_5_vl_moe, dots3_note alike",
    ),
    Row(
        "qkv",
        ("exaone4_5_vision", "exaone4_5_vision_model"),
        _TOWER,
        "qkv",
        Q_K_V,
        grouped_query(("num_heads",), ("num_key_value_heads",), ("hidden_size",)),
        "models/exaone4_5 Exaone4_5_VisionAttention.forward",
    ),
    Row(
        "qkv",
        ("florence_vision", "florence2", "florence2_vision_model"),
        r"spatial_block\.window_attn",
        "qkv",
        Q_K_V,
        equal(3),
        "models/florence2 Florence2VisionWindowAttention.forward",
    ),
    Row(
        "qkv",
        ("florence_vision", "florence2", "florence2_vision_model"),
        r"channel_block\.channel_attn",
        "qkv",
        Q_K_V,
        equal(3),
        "models/florence2 Florence2VisionChannelAttention.forward: channels attend to channels",
    ),
    Row(
        "qkv",
        ("mgp-str",),
        r"encoder\.blocks\.\d+\.attn",
        "qkv",
        Q_K_V,
        _thirds("hidden_size"),
        "models/mgp_str MgpstrAttention.forward",
    ),
    Row(
        "qkv",
        ("blip_vision_model",),
        r"encoder\.layers\.\d+\.self_attn",
        "qkv",
        Q_K_V,
        _thirds("hidden_size"),
        "models/blip BlipAttention.forward",
    ),
    Row(
        "qkv",
        ("blip_2_vision_model", "blip-2_vision_model", "instructblip_vision_model", "instructblipvideo_vision_model"),
        r"encoder\.layers\.\d+\.self_attn",
        "qkv",
        Q_K_V,
        _thirds("hidden_size"),
        "models/blip_2 Blip2Attention.forward; instructblip, instructblipvideo alike: one bias, of which k's third"
        " begins as zeros",
    ),
    Row(
        "qkv",
        ("pp_ocrv5_mobile_rec", "pp_ocrv5_server_rec", "pp_ocrv6_small_rec"),
        r"svtr_block\.\d+\.self_attn",
        "qkv",
        Q_K_V,
        _thirds("hidden_size"),
        "models/pp_ocrv5_server_rec PPOCRV5ServerRecAttention.forward; pp_ocrv5_mobile_rec, pp_ocrv6_small_rec alike",
    ),
    Row(
        "qkv",
        ("mobilevitv2",),
        r"transformer\.layer\.\d+\.attention",
        "qkv_proj.convolution",
        {key: f"{part}.convolution" for key, part in QKV_PROJ.items()},
        _single_query,
        "models/mobilevitv2 MobileViTV2LinearSelfAttention.forward: split [1, embed_dim, embed_dim]; a convolution,"
        " (out, in, 1, 1)",
    ),
    Row(
        "qkv",
        ("levit",),
        r"stages\.\d+\.layers\.\d+\.module",
        "queries_keys_values",
        {"q": "queries", "k": "keys", "v": "values"},
        _levit,
        "models/levit LevitAttention.forward: per head split [key_dim, key_dim, attention_ratio * key_dim], after the"
        " BatchNorm",
        tensors=_WITH_NORM,
        alike=(".batch_norm.num_batches_tracked",),
    ),
    Row(
        "kv",
        ("levit",),
        r"stages\.\d+\.layers\.\d+",
        "keys_values",
        {"k": "keys", "v": "values"},
        _levit_subsample,
        "models/levit LevitAttentionSubsample.forward: per head split [key_dim, attention_ratio * key_dim], after the"
        " BatchNorm",
        tensors=_WITH_NORM,
        alike=(".batch_norm.num_batches_tracked",),
    ),
    Row(
        "qkv",
        ("siglip_vision_model", "siglip2_vision_model", "phi4_multimodal_vision", "phi4_multimodal_vision_model"),
        r"head\.attention",
        "in_proj",
        QKV_PROJ,
        _thirds("hidden_size"),
        "models/siglip SiglipMultiheadAttentionPoolingHead: torch.nn.MultiheadAttention; siglip2, phi4_multimodal"
        " alike",
        tensors=IN_PROJ,
    ),
    Row(
        "qkv",
        ("aria",),
        r"cross_attn\.multihead_attn",
        "in_proj",
        QKV_PROJ,
        equal(3),
        "models/aria AriaCrossAttention: torch.nn.MultiheadAttention, after projections q_proj, k_proj, v_proj of"
        " its own",
        tensors=IN_PROJ,
    ),
    Row(
        "qkv",
        ("mask2former",),
        r"decoder\.layers\.\d+\.cross_attn",
        "in_proj",
        QKV_PROJ,
        _thirds("hidden_dim"),
        "models/mask2former Mask2FormerMaskedAttentionDecoderLayer: torch.nn.MultiheadAttention",
        tensors=IN_PROJ,
    ),
    Row(
        "qkv",
        ("oneformer",),
        r"(?:decoder\.layers\.\d+\.cross_attn\.multihead_attn"
        r"|query_transformer\.decoder\.layers\.\d+\.(?:self_attn|multihead_attn)"
        r"|text_encoder\.transformer\.layers\.\d+\.self_attn)",
        "in_proj",
        QKV_PROJ,
        equal(3),
        "models/oneformer OneFormerTransformerDecoderCrossAttentionLayer and others: torch.nn.MultiheadAttention",
        tensors=IN_PROJ,
    ),
    Row(
        "qkv",
        ("bridgetower", "bridgetower_vision_model"),
        rf"(?:\A|(?<=visual\.)){_RESBLOCK}",
        "in_proj",
        QKV_PROJ,
        equal(3),
        "models/bridgetower BridgeTowerResidualAttention: torch.nn.MultiheadAttention",
        tensors=IN_PROJ,
    ),
    Row(
        "qkv",
        ("rf_detr",),
        r"transformer\.decoder\.layers\.\d+\.self_attn",
        "in_proj",
        QKV_PROJ,
        _thirds("d_model"),
        "conversion_mapping.py rf_detr: Chunk(dim=0); models/rf_detr RfDetrAttention.forward",
        tensors=IN_PROJ,
        loads=True,
    ),
    Row(
        "qkv",
        ("tipsv2_text_model", "tipsv2_text", "tipsv2"),
        rf"(?:\A|(?<=text_encoder\.)){_RESBLOCK}",
        "in_proj",
        QKV_PROJ,
        _thirds("hidden_size"),
        "conversion_mapping.py Tipsv2TextModel: Chunk(dim=0); models/tipsv2 Tipsv2TextAttention.forward",
        tensors=IN_PROJ,
        loads=True,
    ),
    Row(
        "qkv",
        ("tipsv2_vision_model", "tipsv2_dpt", "tipsv2"),
        r"(?:\A|(?<=vision_encoder\.))blocks\.\d+",
        "attn.qkv",
        _within("attention", QKV_PROJ),
        _thirds("hidden_size"),
        "conversion_mapping.py Tipsv2VisionModel: Chunk(dim=0); models/tipsv2 Tipsv2VisionAttention.forward",
        loads=True,
    ),
    Row(
        "qkv",
        ("radio",),
        r"radio_model\.model\.blocks\.\d+",
        "attn.qkv",
        _within("attention", QKV_PROJ),
        _thirds("hidden_size"),
        "conversion_mapping.py radio: Chunk(dim=0); models/radio RadioAttention.forward",
        loads=True,
    ),
    Row(
        "qkv",
        ("qianfan_ocr", "qianfan_ocr_vision", "qianfan_ocr_vision_model"),
        r"encoder\.layers\.\d+",
        "attn.qkv",
        _within("attention", QKV_PROJ),
        _thirds("hidden_size"),
        "conversion_mapping.py qianfan_ocr: Chunk(dim=0); models/qianfan_ocr QianfanOCRVisionAttention.forward",
        loads=True,
    ),
    Row(
        "qkv",
        ("unlimited_ocr_vision_encoder", "unlimited_ocr_encoder_model", "unlimited_ocr_vision"),
        r"(?:\A|(?<=vision_model\.)|(?<=vision_encoder\.))transformer\.layers\.\d+\.self_attn",
        "qkv_proj",
        QKV_PROJ,
        _thirds("hidden_size"),
        "conversion_mapping.py UnlimitedOcrVisionEncoder: Chunk(dim=0); models/unlimited_ocr"
        " UnlimitedOcrAttention.forward",
        loads=True,
    ),
    Row(
        "qkv",
        _tower("kimi_k25"),
        r"vision_tower\.(?:encoder\.)?blocks\.\d+",
        "wqkv",
        _WQ_WK_WV,
        _thirds("hidden_size"),
        "conversion_mapping.py kimi_k25: Chunk(dim=0), PermuteForRope; the parts keep the file's order of rows, pairs"
        " of RoPE together",
    ),
    Row(
        "qkv",
        ("step3p5_vision", "step3p7", "step3p7_vision_model"),
        rf"(?:\A|(?<=vision_model\.)){_RESBLOCK}",
        "in_proj",
        _WQ_WK_WV,
        _thirds("hidden_size"),
        "conversion_mapping.py step3p5_vision: Chunk(dim=0), PermuteForRope; the parts keep the file's order of rows,"
        " as in kimi_k25",
        tensors=IN_PROJ,
    ),
    Row(
        "qkv",
        ("gradium_phonon_tts",),
        r"(?:\A|(?<=flow_lm\.transformer\.))layers\.\d+\.self_attn",
        "in_proj",
        _WQ_WK_WV,
        _thirds("hidden_size"),
        "conversion_mapping.py gradium_phonon_tts: Chunk(dim=0), PermuteForRope; the parts keep the file's order of"
        " rows, as in kimi_k25",
    ),
)
