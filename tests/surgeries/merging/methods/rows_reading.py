"""DeLoRA, DEFT, PEANuT, HiRA, GLoRA: what reads the base."""

from __future__ import annotations

from peft import DeftConfig, DeloraConfig, GloraConfig, HiraConfig, PeanutConfig

from .cases import Case

LINEARS = ["q_proj", "v_proj", "down_proj"]
CONV1D = r".*conv_layers\.\d\.conv"
CASES: dict[str, Case] = {
    "DeLoRA on Linear": Case(
        "linear", lambda: DeloraConfig(r=4, target_modules=LINEARS, bias="delora_only", delora_lambda=3)
    ),
    "DeLoRA, patterns": Case(
        "bare",
        lambda: DeloraConfig(
            r=4, target_modules=LINEARS, rank_pattern={"q_proj": 2}, lambda_pattern={"v_proj": 9.0}, delora_lambda=3
        ),
    ),
    "DEFT on Linear": Case("linear", lambda: DeftConfig(r=4, target_modules=LINEARS, bias="deft_only")),
    "DEFT, alpha, from random": Case(
        "bare", lambda: DeftConfig(r=4, alpha=6, init_weights=False, target_modules=LINEARS)
    ),
    "DEFT by QR": Case("linear", lambda: DeftConfig(r=4, alpha=2, decomposition_method="qr", target_modules=LINEARS)),
    "DEFT, taking alone": Case(
        "linear", lambda: DeftConfig(r=4, para=True, decomposition_method="qr", target_modules=LINEARS)
    ),
    "DEFT, taking alone, rectified": Case("bare", lambda: DeftConfig(r=4, para=True, target_modules=LINEARS)),
    "DEFT on Conv1D": Case("gpt2", lambda: DeftConfig(r=4, target_modules=["c_attn"])),
    "DEFT on square Conv1D": Case("gpt2", lambda: DeftConfig(r=4, para=True, target_modules=["attn.c_proj"])),
    "PEANuT on Linear": Case("linear", lambda: PeanutConfig(r=4, target_modules=LINEARS, scaling=0.7)),
    "PEANuT of depth 2": Case(
        "bare",
        lambda: PeanutConfig(r=4, depth=2, act_fn="gelu", target_modules=LINEARS, modules_to_save=["lm_head"]),
    ),
    "PEANuT of depth 1": Case(
        "linear", lambda: PeanutConfig(r=4, depth=1, act_fn="silu", scaling=2.0, target_modules=LINEARS)
    ),
    "HiRA on Linear": Case("linear", lambda: HiraConfig(r=4, target_modules=LINEARS, modules_to_save=["lm_head"])),
    "HiRA, patterns": Case(
        "bare", lambda: HiraConfig(r=4, target_modules=LINEARS, rank_pattern={"q_proj": 2}), size=0.3
    ),
    "HiRA on Conv1D": Case("gpt2", lambda: HiraConfig(r=4, target_modules=["c_attn"])),
    "HiRA on square Conv1D": Case("gpt2", lambda: HiraConfig(r=4, target_modules=["attn.c_proj"]), size=0.3),
    "HiRA on an embedding": Case(
        "linear", lambda: HiraConfig(r=4, target_modules=["embed_tokens", "q_proj"]), parts=("hira_embedding_A",)
    ),
    "HiRA on a tied embedding": Case("tied", lambda: HiraConfig(r=4, target_modules=["embed_tokens", "q_proj"])),
    "HiRA on Conv1d": Case("wav2vec2", lambda: HiraConfig(r=4, target_modules=CONV1D), size=0.3),
    "HiRA on Conv2d": Case("resnet", lambda: HiraConfig(r=4, target_modules=["convolution"])),
    "HiRA on Conv3d": Case("vivit", lambda: HiraConfig(r=4, target_modules=["projection", "q_proj"])),
    "GLoRA on Linear": Case("linear", lambda: GloraConfig(r=4, target_modules=LINEARS), parts=("glora_C.X",)),
    "GLoRA, vectors": Case(
        "linear",
        lambda: GloraConfig(
            r=4, target_modules=LINEARS, config_A_B="vector", config_C="vector", config_D_E="vector", bias="glora_only"
        ),
    ),
    "GLoRA, constants": Case(
        "linear",
        lambda: GloraConfig(r=4, target_modules=LINEARS, config_A_B="constant", config_C="none", config_D_E="constant"),
        parts=("glora_C.zeros",),
    ),
    "GLoRA, biases alone": Case(
        "linear",
        lambda: GloraConfig(r=4, target_modules=LINEARS, config_A_B="none", config_C="lora", config_D_E="vector"),
        parts=("glora_A.zeros",),
    ),
    "GLoRA without biases": Case("bare", lambda: GloraConfig(r=4, target_modules=LINEARS)),
}
