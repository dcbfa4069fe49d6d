"""(IA)³, LoHa, VeRA."""

from __future__ import annotations

from peft import IA3Config, LoHaConfig, VeraConfig

from .cases import Case

LINEARS = ["q_proj", "v_proj", "down_proj"]
CONV1D = r".*conv_layers\.\d\.conv"
CASES: dict[str, Case] = {
    "IA3 on Linear": Case(
        "linear", lambda: IA3Config(target_modules=LINEARS, feedforward_modules=["down_proj"]), parts=("ia3_l",)
    ),
    "IA3 on Conv1D": Case(
        "gpt2", lambda: IA3Config(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"])
    ),
    "IA3 on square Conv1D": Case(
        "gpt2", lambda: IA3Config(target_modules=["attn.c_proj"], feedforward_modules=["attn.c_proj"])
    ),
    "IA3 on Conv2d": Case("resnet", lambda: IA3Config(target_modules=["convolution"], feedforward_modules=[])),
    "IA3 on inputs of Conv2d": Case(
        "resnet", lambda: IA3Config(target_modules=["convolution"], feedforward_modules=["convolution"])
    ),
    "IA3 on inputs of grouped Conv2d": Case(
        "convnext", lambda: IA3Config(target_modules=["dwconv"], feedforward_modules=["dwconv"])
    ),
    "IA3 on Conv3d": Case(
        "vivit",
        lambda: IA3Config(target_modules=["projection", "q_proj"], feedforward_modules=["projection"]),
    ),
    "IA3, saved head": Case(
        "linear", lambda: IA3Config(target_modules=LINEARS, feedforward_modules=[], modules_to_save=["lm_head"])
    ),
    "LoHa on Linear": Case("linear", lambda: LoHaConfig(r=4, alpha=6, target_modules=LINEARS), size=0.3),
    "LoHa, patterns": Case(
        "bare",
        lambda: LoHaConfig(
            r=4, alpha=6, target_modules=LINEARS, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3}
        ),
        size=0.3,
    ),
    "LoHa on Conv2d": Case("resnet", lambda: LoHaConfig(r=4, alpha=6, target_modules=["convolution"]), size=0.3),
    "LoHa on effective Conv2d": Case(
        "resnet",
        lambda: LoHaConfig(r=4, alpha=6, target_modules=["convolution"], use_effective_conv2d=True),
        size=0.3,
        parts=("hada_t1",),
    ),
    "LoHa on Conv1d": Case("wav2vec2", lambda: LoHaConfig(r=4, alpha=6, target_modules=CONV1D), size=0.3),
    "LoHa on effective Conv1d": Case(
        "wav2vec2",
        lambda: LoHaConfig(r=4, alpha=6, target_modules=CONV1D, use_effective_conv2d=True),
        size=0.3,
    ),
    "VeRA on Linear": Case("linear", lambda: VeraConfig(r=8, target_modules=LINEARS), size=0.5),
    "VeRA, biases": Case("linear", lambda: VeraConfig(r=8, target_modules=LINEARS, bias="vera_only"), size=0.5),
    "VeRA on Conv1D": Case("gpt2", lambda: VeraConfig(r=8, target_modules=["c_attn"]), size=0.5),
}
