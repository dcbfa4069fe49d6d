"""LoKr, SHiRA, Super-Tuning, C³A, BEFT."""

from __future__ import annotations

from peft import BeftConfig, C3AConfig, LoKrConfig, ShiraConfig, SupertuningConfig

from .cases import Case

LINEARS = ["q_proj", "v_proj", "down_proj"]
CONV1D = r".*conv_layers\.\d\.conv"
CASES: dict[str, Case] = {
    "LoKr on Linear": Case(
        "linear", lambda: LoKrConfig(r=2, alpha=6, target_modules=LINEARS), size=0.3, parts=("lokr_w2_a",)
    ),
    "LoKr, whole factors": Case(
        "linear", lambda: LoKrConfig(r=8, alpha=6, target_modules=LINEARS), size=0.3, parts=("lokr_w2",)
    ),
    "LoKr, both decomposed": Case(
        "bare",
        lambda: LoKrConfig(r=2, alpha=6, target_modules=LINEARS, decompose_both=True, decompose_factor=8),
        size=0.3,
        parts=("lokr_w1_a",),
    ),
    "LoKr, patterns, saved head": Case(
        "linear",
        lambda: LoKrConfig(
            r=2,
            alpha=6,
            target_modules=LINEARS,
            rank_pattern={"q_proj": 3},
            alpha_pattern={"v_proj": 3},
            modules_to_save=["lm_head"],
        ),
        size=0.3,
    ),
    "LoKr on Conv2d": Case(
        "resnet", lambda: LoKrConfig(r=1, alpha=6, target_modules=["convolution"]), size=0.3, parts=("lokr_w2_a",)
    ),
    "LoKr on Conv2d, whole factors": Case(
        "resnet", lambda: LoKrConfig(r=8, alpha=6, target_modules=["convolution"]), size=0.3, parts=("lokr_w2",)
    ),
    "LoKr on effective Conv2d": Case(
        "resnet",
        lambda: LoKrConfig(r=1, alpha=2, target_modules=["convolution"], use_effective_conv2d=True),
        size=0.3,
        parts=("lokr_t2",),
    ),
    "LoKr on Conv2d of 1 × 1": Case(
        "bottleneck", lambda: LoKrConfig(r=2, alpha=6, target_modules=["convolution"]), size=0.3
    ),
    "LoKr on grouped Conv2d": Case("convnext", lambda: LoKrConfig(r=1, alpha=2, target_modules=["dwconv"]), size=0.3),
    "LoKr on Conv1d": Case(
        "wav2vec2", lambda: LoKrConfig(r=1, alpha=2, target_modules=CONV1D), size=0.3, parts=("lokr_w2_b",)
    ),
    "LoKr on Conv1d, whole factors": Case(
        "wav2vec2", lambda: LoKrConfig(r=8, alpha=6, target_modules=CONV1D), size=0.3, parts=("lokr_w2",)
    ),
    "LoKr on Conv1d, whole and decomposed": Case(
        "wav2vec2",
        lambda: LoKrConfig(r=2, alpha=6, target_modules=CONV1D, decompose_both=True, decompose_factor=5),
        size=0.3,
    ),
    "SHiRA on Linear": Case("linear", lambda: ShiraConfig(r=4, target_modules=LINEARS)),
    "SHiRA, saved head": Case("bare", lambda: ShiraConfig(r=2, target_modules=LINEARS, modules_to_save=["lm_head"])),
    "Super-Tuning on Linear": Case("linear", lambda: SupertuningConfig(target_modules=LINEARS, sparsity=0.9)),
    "Super-Tuning of the smallest, Supra": Case(
        "bare",
        lambda: SupertuningConfig(target_modules=LINEARS, sparsity=0.9, select_top=False, r=4, lora_alpha=6),
        parts=("supertuning_lora_A",),
    ),
    "Super-Tuning, Supra, usual strength, saved head": Case(
        "linear", lambda: SupertuningConfig(target_modules=LINEARS, sparsity=0.95, r=2, modules_to_save=["lm_head"])
    ),
    "C3A on Linear": Case("linear", lambda: C3AConfig(block_size=8, target_modules=LINEARS)),
    "C3A, patterns, biases": Case(
        "linear",
        lambda: C3AConfig(block_size=2, target_modules=LINEARS, block_size_pattern={"q_proj": 24}, bias="c3a_only"),
    ),
    "C3A, all biases": Case("linear", lambda: C3AConfig(block_size=4, target_modules=LINEARS, bias="all")),
    "BEFT on Linear": Case("linear", lambda: BeftConfig(target_modules=LINEARS), size=0.5),
    "BEFT, saved head": Case("linear", lambda: BeftConfig(target_modules=["k_proj"], modules_to_save=["lm_head"])),
}
