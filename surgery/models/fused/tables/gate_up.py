"""Fused halves of a gated MLP. `gate` is the half that the activation is applied to, whatever the source calls it."""

from __future__ import annotations

from collections.abc import Mapping

from ....lazy.tensor import Shape
from ..layout import Config, Rule, alternating, equal
from ..row import LINEAR, PARAMETER, Condition, Row, Suffixes
from .experts import QWEN3_VL_MOE, QWEN3_VL_MOE_IN, in_out

GATE_UP_PROJ = {"gate": "gate_proj", "up": "up_proj"}
UP_GATE_PROJ = {"up": "up_proj", "gate": "gate_proj"}  # in this order
MLP = r"layers\.\d+\.mlp"
HALVES = equal(2)


def _row(
    types: tuple[str, ...],
    parent: str,
    fused: str,
    parts: Mapping[str, str],
    source: str,
    halves: Rule = HALVES,
    *,
    axis: int = 0,
    tensors: Suffixes = LINEAR,
    only: Condition | None = None,
) -> Row:
    return Row("gate_up", types, parent, fused, parts, halves, source, axis=axis, tensors=tensors, only=only)


def _dims(count: int) -> Condition:
    return lambda config, shape, there: len(shape) == count


def _gated(config: Config, shape: Shape, there: bool) -> bool:
    return bool(config.get("ffn_with_glu"))


LINEARS: tuple[Row, ...] = (
    _row(("phi3",), MLP, "gate_up_proj", GATE_UP_PROJ, "models/phi3 Phi3MLP.forward"),
    _row(("phi4_multimodal",), MLP, "gate_up_proj", GATE_UP_PROJ, "models/phi4_multimodal Phi4MultimodalMLP.forward"),
    _row(
        ("phi4_multimodal", "phi4_multimodal_audio"),
        r"encoders\.\d+\.feed_forward_(?:in|out)",
        "gate_up_proj",
        UP_GATE_PROJ,
        "models/phi4_multimodal Phi4MultimodalAudioMLP.forward: the activation is on the second half",
    ),
    _row(("glm", "glm4"), MLP, "gate_up_proj", GATE_UP_PROJ, "models/glm GlmMLP.forward, models/glm4 Glm4MLP.forward"),
    _row(
        ("glm4v", "glm4v_text", "glm46v", "glmga"),
        MLP,
        "gate_up_proj",
        GATE_UP_PROJ,
        "models/glm4v Glm4vTextMLP.forward",
    ),
    _row(("glm_ocr", "glm_ocr_text"), MLP, "gate_up_proj", GATE_UP_PROJ, "models/glm_ocr GlmOcrTextMLP.forward"),
    _row(
        ("glm_image", "glm_image_text"), MLP, "gate_up_proj", GATE_UP_PROJ, "models/glm_image GlmImageTextMLP.forward"
    ),
    _row(("dia", "dia_encoder", "dia_decoder"), MLP, "gate_up_proj", GATE_UP_PROJ, "models/dia DiaMLP.forward"),
    _row(("esmfold2",), "", "gate_up_proj", GATE_UP_PROJ, "models/esmfold2 EsmFold2SwiGLU.forward"),
    _row(
        ("zamba2",),
        "feed_forward",
        "gate_up_proj",
        GATE_UP_PROJ,
        "models/zamba2 Zamba2MLP.forward; the rows of gate_up_proj_adapter_list lie alike, and stay as they are",
    ),
    _row(("hrm_text",), MLP, "gate_up_proj", GATE_UP_PROJ, "conversion_mapping: hrm_text, Chunk(0) at loading"),
    _row(
        ("granitemoeshared", "granitemoehybrid", "granitemoe_swa"),
        r"layers\.\d+\.shared_mlp",
        "input_linear",
        GATE_UP_PROJ,
        "models/granitemoeshared GraniteMoeSharedMLP.forward",
    ),
    _row(
        ("modernbert", "modernbert-decoder"),
        MLP,
        "Wi",
        GATE_UP_PROJ,
        "models/modernbert ModernBertMLP.forward: act(input) * gate, so what it calls input is the gate here",
    ),
    _row(
        ("moshi", "kyutai_speech_to_text"),
        r"(?<!coder_transformer\.)layers\.\d+\.mlp",  # its audio codec is Mimi, whose fc1 has no gate
        "fc1",
        GATE_UP_PROJ,
        "models/moshi MoshiGatingMLP.forward: view(2, -1)",
        only=_dims(2),
    ),
    _row(
        ("moshi", "moshi_depth"),
        MLP,
        "fc1",
        GATE_UP_PROJ,
        "models/moshi MoshiGatingMLP.forward, MoshiFlexibleLinear: one matrix for each codebook",
        axis=1,
        only=_dims(3),
    ),
    _row(
        ("xlstm",),
        r"blocks\.\d+\.ffn",
        "proj_up_gate_z",
        {"gate": "proj_up_gate", "up": "proj_up"},
        "models/xlstm xLSTMFeedForward.forward; the parts are those of weight_mode single",
    ),
    _row(
        ("moonshine", "moonshine_streaming"),
        r"decoder\.layers\.\d+\.mlp",
        "fc1",
        UP_GATE_PROJ,
        "models/moonshine MoonshineDecoderMLP.forward: the activation is on the second half",
    ),
    _row(
        ("clvp", "clvp_encoder"),
        r"layers\.\d+\.mlp\.fc1",
        "proj",
        UP_GATE_PROJ,
        "models/clvp ClvpGatedLinearUnit.forward: the activation is on the second half",
    ),
    _row(("gte",), r"layer\.\d+\.mlp", "up_gate_proj", UP_GATE_PROJ, "conversion_mapping: gte, Chunk(0) at loading"),
    _row(
        ("molmo2", "molmo2_text"),
        r"(?:blocks|layers)\.\d+\.mlp",
        "ff_proj",
        UP_GATE_PROJ,
        "conversion_mapping: molmo2, Chunk(0) at loading",
    ),
    _row(
        ("dinov2", "dinov2_with_registers"),
        r"layer\.\d+\.mlp",
        "weights_in",
        GATE_UP_PROJ,
        "conversion_mapping: Dinov2Model, Chunk(0) at loading",
    ),
    _row(
        ("tipsv2", "tipsv2_vision_model"),
        r"blocks\.\d+\.mlp",
        "w12",
        GATE_UP_PROJ,
        "conversion_mapping: Tipsv2VisionModel, Chunk(0) at loading",
    ),
    _row(("sapiens2",), r"blocks\.\d+\.ffn", "w12", GATE_UP_PROJ, "conversion_mapping: sapiens2, Chunk(0) at loading"),
    _row(
        ("aya_vision",),
        "multi_modal_projector",
        "linear_1",
        UP_GATE_PROJ,
        "models/aya_vision AyaVisionMultiModalProjector.forward: the activation is on the second half",
    ),
    _row(
        ("cohere2_vision",),
        "multi_modal_projector",
        "linear_1",
        UP_GATE_PROJ,
        "models/cohere2_vision Cohere2VisionMultiModalProjector.forward: the activation is on the second half",
    ),
    _row(
        ("dots3_note", "dots3_note_audio_encoder"),
        r"speech_encoder\.layers\.\d+",
        "fc1",
        GATE_UP_PROJ,
        "models/dots3_note Dots3NoteAudioMLP.forward; in files fc1",
    ),
    _row(
        ("inkling_mm_model",),
        "mlp",
        "w13_dn",
        GATE_UP_PROJ,
        "conversion_mapping: inkling_mm_model, Interleave(0) and Chunk(0) at loading",
        alternating(2),
    ),
    _row(
        ("chatglm",),
        r"encoder\.layers\.\d+\.mlp",
        "dense_h_to_4h",
        GATE_UP_PROJ,
        "THUDM/chatglm3-6b modeling_chatglm.py MLP.forward; the first ChatGLM has no gate, nor this parent",
    ),
    _row(
        ("openelm",),
        r"layers\.\d+\.ffn",
        "proj_1",
        GATE_UP_PROJ,
        "apple/corenet corenet/modeling/models/language_modeling/general_gpt.py FeedForwardNetwork.forward",
        only=_gated,
    ),
    _row(
        ("phi3small",),
        MLP,
        "up_proj",
        {"gate": "gelu_proj", "up": "linear_proj"},  # not up_proj: that is the fused one
        "vllm-project/vllm model_executor/models/phi3_small.py gegelu: 0::2 and 1::2",
        alternating(2),
    ),
)

STACKS: tuple[Row, ...] = (
    _row(
        ("gpt_oss",),
        r"layers\.\d+\.mlp\.experts",
        "gate_up_proj",
        GATE_UP_PROJ,
        "models/gpt_oss GptOssExperts._apply_gate: gate_up[..., ::2], gate_up[..., 1::2]; (experts, in, out)",
        alternating(2),
        axis=2,
        tensors=PARAMETER,
    ),
    _row(
        ("openai_privacy_filter",),
        r"layers\.\d+\.mlp\.experts",
        "gate_up_proj",
        GATE_UP_PROJ,
        "models/openai_privacy_filter OpenAIPrivacyFilterExperts._apply_gate: halves, unlike gpt_oss",
        axis=2,
        tensors=PARAMETER,
    ),
    _row(
        ("llama4", "llama4_text"),
        r"layers\.\d+\.feed_forward\.experts",
        "gate_up_proj",
        GATE_UP_PROJ,
        "models/llama4 Llama4TextExperts.forward",
        axis=2,
        tensors=PARAMETER,
    ),
    _row(
        ("aria", "aria_text"),
        r"layers\.\d+\.mlp\.experts",
        "fc1",
        GATE_UP_PROJ,
        "models/aria AriaExperts.forward; in files fc1",
        axis=2,
    ),
    *(
        _row(
            QWEN3_VL_MOE,
            r"layers\.\d+\.mlp\.experts",
            "gate_up_proj",
            GATE_UP_PROJ,
            "models/qwen3_vl_moe Qwen3VLMoeTextExperts.forward; Transpose(1, 2, check_dims=True) at loading",
            axis=2 if transposed else 1,
            tensors=PARAMETER,
            only=in_out(QWEN3_VL_MOE_IN[0], transposed=transposed, parts_tell=True),
        )
        for transposed in (True, False)
    ),
    _row(
        ("mistral4", "hy_v4", "muse_spark", "muse_spark_text", "zaya"),
        r"layers\.\d+\.mlp\.experts",
        "gate_up_proj",
        GATE_UP_PROJ,
        "models/mistral4 Mistral4Experts.forward, and alike in models/hy_v4, models/muse_spark, models/zaya",
        axis=1,
        tensors=PARAMETER,
    ),
    _row(
        ("gemma4", "gemma4_text", "diffusion_gemma", "diffusion_gemma_text"),
        r"layers\.\d+\.experts",
        "gate_up_proj",
        GATE_UP_PROJ,
        "models/gemma4 Gemma4TextExperts.forward, models/diffusion_gemma DiffusionGemmaTextExperts.forward",
        axis=1,
        tensors=PARAMETER,
    ),
    _row(
        ("granitemoe_swa",),
        r"layers\.\d+\.block_sparse_moe\.experts",
        "gate_up_proj",
        GATE_UP_PROJ,
        "models/granitemoe_swa GraniteMoeSWAExperts.forward",
        axis=1,
        tensors=PARAMETER,
    ),
    _row(
        ("granitemoe", "granitemoeshared", "granitemoehybrid"),
        r"layers\.\d+\.block_sparse_moe",
        "input_linear",
        GATE_UP_PROJ,
        "models/granitemoe GraniteMoeExperts.forward; in files input_linear",
        axis=1,
    ),
    _row(
        ("inkling_mm_model", "inkling2", "inkling2_text"),
        r"mlp\.experts",
        "w13_weight",
        GATE_UP_PROJ,
        "conversion_mapping: inkling_mm_model and inkling2_text, Interleave(1) at loading",
        alternating(2),
        axis=1,
        tensors=PARAMETER,
    ),
    _row(
        ("inkling_mm_model",),
        r"mlp\.shared_experts",
        "shared_w13_weight",
        GATE_UP_PROJ,
        "conversion_mapping: inkling_mm_model, Interleave(1) and Chunk(1) at loading",
        alternating(2),
        axis=1,
        tensors=PARAMETER,
    ),
    _row(("jetmoe",), MLP, "input_linear", GATE_UP_PROJ, "models/jetmoe JetMoeMoE.forward", axis=1),
)

GATE_UP: tuple[Row, ...] = (*LINEARS, *STACKS)
