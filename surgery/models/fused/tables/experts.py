"""Experts of a layer in one 3-D tensor, and one module per expert, with gate and up apart.

Stored (experts, out, in), or (experts, in, out) where a row says `transposed`; the parts are (out, in) as nn.Linear
has them. `SAVED` are types whose files have the 3-D tensors; the files of `LOADED` have one module per expert, and
the 3-D tensors are what their classes hold in memory, and load as well: where a file has these, they are split among
all kinds; they are made only where experts are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ....errors import LayoutError, NotSupported
from ....lazy.tensor import Shape
from ..layout import Config, Rule, alternating, equal, number
from ..row import STACKED, Condition, Row, Suffixes

PROJ = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
W123 = {"gate": "w1", "up": "w3", "down": "w2"}
WEIGHT: Suffixes = ((".weight", ".weight"),)
WEIGHTS: Suffixes = (("", ".weight"),)
HALVES = equal(2)
MISFIT = "config.json and the tensors contradict each other; one of them is not this model's"

# Last names of the 3-D tensors, and what is in each of them.
Stacks = Mapping[str, tuple[str, ...]]
PARAMETERS: Stacks = {"experts.gate_up_proj": ("gate", "up"), "experts.down_proj": ("down",)}
LINEARS: Stacks = {"input_linear": ("gate", "up"), "output_linear": ("down",)}
FC12: Stacks = {"experts.fc1": ("gate", "up"), "experts.fc2": ("down",)}
W13: Stacks = {"experts.w13_weight": ("gate", "up"), "experts.w2_weight": ("down",)}
APART: Stacks = {"gate_proj": ("gate",), "up_proj": ("up",), "down_proj": ("down",)}
NO_GATE: Stacks = {"experts.up_proj": ("up",), "experts.down_proj": ("down",)}


def _rows(
    types: tuple[str, ...],
    parent: str,
    source: str,
    stacks: Stacks = PARAMETERS,
    names: Mapping[str, str] = PROJ,
    halves: Rule = HALVES,
    *,
    tensors: Suffixes = STACKED,
    transposed: bool = False,
    only: tuple[Condition | None, ...] = (None, None, None),
    asked: bool = False,
) -> tuple[Row, ...]:
    """A row for each of the 3-D tensors."""
    return tuple(
        Row(
            "experts",
            types,
            parent,
            fused,
            {key: f"experts.{{expert}}.{names[key]}" for key in keys},
            halves if len(keys) > 1 else equal(1),
            source,
            axis=2 if transposed else 1,
            tensors=tensors,
            stacked=True,
            transposed=transposed,
            only=condition,
            asked=asked,
        )
        for (fused, keys), condition in zip(stacks.items(), only, strict=False)
    )


def in_out(width: tuple[str, ...], *, transposed: bool, parts_tell: bool = False) -> Condition:
    """Where a class has both orders of axes in its files: (experts, in, out) before transformers 5, (experts, out,
    in) since.

    The shape tells which, where there is one: of the fused tensor, and where `parts_tell`, of its halves. Else
    config.json's `transformers_version` does. `width` names the length of the input in config.json. Raises
    NotSupported where a fused tensor's in and out are equally long (transformers 5 would take the first for the
    second), LayoutError where neither fits.
    """

    def only(config: Config, shape: Shape, there: bool) -> bool:
        if len(shape) != 3:
            raise LayoutError(f"experts of {shape} have not three axes", where=[width[-1]], help=MISFIT)
        whole, length = shape, number(config, *width)
        if not there and parts_tell:
            shape = (shape[0], shape[1], shape[2] // 2) if transposed else (shape[0], shape[1] // 2, shape[2])
        elif shape[1] == shape[2]:
            raise NotSupported(
                f"experts of {shape[1]} × {shape[2]} are (in, out) or (out, in), and nothing tells which",
                where=[f"model type {config.get('model_type')!r}"],
                help=(
                    "transformers before 5 wrote (experts, in, out), later ones write (experts, out, in): other sizes"
                    " tell which"
                ),
            )
        if (not there and not parts_tell) or shape[1] == shape[2]:
            return transposed == bool(re.match(r"[0-4]\.", str(config.get("transformers_version", ""))))
        if length not in shape[1:]:
            raise LayoutError(
                f"experts of {whole} have no axis of {length}, which config.json says", where=[width[-1]], help=MISFIT
            )
        return transposed == (shape[1] == length)

    return only


QWEN3_VL_MOE = ("qwen3_vl_moe", "qwen3_vl_moe_text")
QWEN3_VL_MOE_IN = (
    ("text_config.hidden_size", "hidden_size"),
    ("text_config.moe_intermediate_size", "moe_intermediate_size"),
)

SAVED: tuple[Row, ...] = (
    *_rows(
        ("gpt_oss",),
        r"layers\.\d+\.mlp",
        "models/gpt_oss GptOssExperts._apply_gate: gate_up[..., ::2], gate_up[..., 1::2]",
        halves=alternating(2),
        transposed=True,
    ),
    *_rows(
        ("openai_privacy_filter",),
        r"layers\.\d+\.mlp",
        "models/openai_privacy_filter OpenAIPrivacyFilterExperts._apply_gate: halves, unlike gpt_oss",
        transposed=True,
    ),
    *_rows(
        ("llama4", "llama4_text"),
        r"layers\.\d+\.feed_forward",
        "models/llama4 Llama4TextExperts.forward",
        transposed=True,
    ),
    *_rows(
        ("aria", "aria_text"),
        r"layers\.\d+\.mlp",
        "models/aria AriaExperts.forward; in files fc1 and fc2",
        FC12,
        tensors=WEIGHT,
        transposed=True,
    ),
    *(
        row
        for transposed in (True, False)
        for row in _rows(
            QWEN3_VL_MOE,
            r"layers\.\d+\.mlp",
            "models/qwen3_vl_moe Qwen3VLMoeTextExperts.forward; Transpose(1, 2, check_dims=True) at loading",
            transposed=transposed,
            only=(in_out(QWEN3_VL_MOE_IN[0], transposed=transposed), in_out(QWEN3_VL_MOE_IN[1], transposed=transposed)),
        )
    ),
    *_rows(("mistral4",), r"layers\.\d+\.mlp", "models/mistral4 Mistral4NaiveMoe.forward"),
    *_rows(("hy_v4",), r"layers\.\d+\.mlp", "models/hy_v4 HYV4Experts._apply_gate"),
    *_rows(("muse_spark", "muse_spark_text"), r"layers\.\d+\.mlp", "models/muse_spark MuseSparkTextExperts.forward"),
    *_rows(("zaya",), r"layers\.\d+\.mlp", "models/zaya ZayaExperts.forward"),
    *_rows(
        ("gemma4", "gemma4_text", "diffusion_gemma", "diffusion_gemma_text"),
        r"layers\.\d+",
        "models/gemma4 Gemma4TextExperts.forward, models/diffusion_gemma",
    ),
    *_rows(("granitemoe_swa",), r"layers\.\d+\.block_sparse_moe", "models/granitemoe_swa GraniteMoeSWAExperts.forward"),
    *_rows(
        ("granitemoe", "granitemoeshared", "granitemoehybrid"),
        r"layers\.\d+\.block_sparse_moe",
        "models/granitemoe GraniteMoeExperts.forward; in files input_linear and output_linear",
        LINEARS,
        tensors=WEIGHT,
    ),
    *_rows(("jetmoe",), r"layers\.\d+\.mlp", "models/jetmoe JetMoeMoE.forward", LINEARS, tensors=WEIGHT),
    *_rows(
        ("step3p7",),
        r"layers\.\d+\.moe",
        "conversion_mapping: step3p7, Concatenate(1) at loading",
        APART,
        tensors=WEIGHT,
    ),
    *_rows(
        ("inkling_mm_model", "inkling2", "inkling2_text"),
        r"\d+\.mlp",
        "conversion_mapping: inkling_mm_model and inkling2_text, Interleave(1) at loading",
        W13,
        halves=alternating(2),
        tensors=WEIGHTS,
    ),
)
# Types of the pattern `qwen2_moe` in transformers' conversion_mapping, and those that repeat it: of those that were
# tried.
QWEN2_MOE = (
    "afmoe", "axk1", "axk2", "bailing_hybrid", "beam", "cohere2_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32",
    "dots1",
    "ernie4_5_moe", "exaone_moe", "flex_olmo", "flint", "glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm_moe_dsa",
    "hunyuan_v1_moe",
    "hy_v3", "kolibri1", "laguna", "longcat_flash", "mellum", "mimo_v2_flash", "olmoe", "qwen2_moe", "qwen3_moe",
    "qwen3_next",
    "qwen3_5_moe_text", "solar_open", "unlimited_ocr",
)  # fmt: skip

LOADED: tuple[Row, ...] = (
    *_rows(QWEN2_MOE, r"layers\.\d+\.mlp", "conversion_mapping: qwen2_moe", tensors=WEIGHTS, asked=True),
    *_rows(("jamba",), r"layers\.\d+\.feed_forward", "conversion_mapping: jamba", tensors=WEIGHTS, asked=True),
    *_rows(
        ("lfm2_moe",),
        r"layers\.\d+\.feed_forward",
        "conversion_mapping: lfm2_moe",
        names=W123,
        tensors=WEIGHTS,
        asked=True,
    ),
    *_rows(
        ("mixtral", "minimax", "minimax_m2", "phimoe", "kimi_linear"),
        r"layers\.\d+\.(?:block_sparse_moe|mlp)",  # in files, and in memory
        "conversion_mapping: mixtral, and those that repeat it",
        names=W123,
        tensors=WEIGHTS,
        asked=True,
    ),
    *_rows(
        ("deepseek_v4",),
        r"layers\.\d+\.(?:ffn|mlp)",
        "conversion_mapping: deepseek_v4",
        names=W123,
        tensors=WEIGHTS,
        asked=True,
    ),
    *_rows(
        ("nemotron_h",),
        r"layers\.\d+\.mixer",
        "conversion_mapping: nemotron_h; there is no gate",
        NO_GATE,
        tensors=WEIGHTS,
        asked=True,
    ),
)

EXPERTS: tuple[Row, ...] = (*SAVED, *LOADED)
