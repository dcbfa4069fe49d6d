"""PVeRA, VeRA without its matrices, VB-LoRA, RandLoRA, Uni-LoRA, TinyLoRA, GraLoRA: what modules share, or blocks."""

from __future__ import annotations

from peft import (
    GraloraConfig,
    PveraConfig,
    RandLoraConfig,
    TinyLoraConfig,
    UniLoraConfig,
    VBLoRAConfig,
    VeraConfig,
)

from .cases import Case

LINEARS = ["q_proj", "v_proj", "down_proj"]
CONV1D = ["c_attn", "mlp.c_proj"]
BANK = {"r": 4, "num_vectors": 16, "vector_length": 4}
CASES: dict[str, Case] = {
    "VeRA, drawn again": Case(
        "linear", lambda: VeraConfig(r=8, target_modules=LINEARS, save_projection=False), size=0.5
    ),
    "VeRA, drawn again from another seed, on Conv1D": Case(
        "gpt2",
        lambda: VeraConfig(r=5, target_modules=CONV1D, save_projection=False, projection_prng_key=2**31 + 7),
        size=0.5,
    ),
    "PVeRA on Linear": Case("linear", lambda: PveraConfig(r=8, target_modules=LINEARS, bias="all"), size=0.5),
    "PVeRA, drawn again": Case(
        "bare", lambda: PveraConfig(r=6, target_modules=LINEARS, save_projection=False, generator_seed=3), size=0.5
    ),
    "PVeRA on Conv1D": Case("gpt2", lambda: PveraConfig(r=8, target_modules=["c_attn", "attn.c_proj"]), size=0.5),
    "VB-LoRA on Linear": Case(
        "linear",
        lambda: VBLoRAConfig(**BANK, target_modules=LINEARS, bias="vblora_only"),
        size=0.3,
        parts=("vblora_logits_A",),
    ),
    "VB-LoRA, weights alone": Case(
        "bare",
        lambda: VBLoRAConfig(
            **BANK, topk=3, save_only_topk_weights=True, target_modules=LINEARS, modules_to_save=["lm_head"]
        ),
        size=0.3,
        parts=("topk_indices",),
    ),
    "VB-LoRA, one vector each": Case(
        "linear",
        lambda: VBLoRAConfig(**BANK, topk=1, save_only_topk_weights=True, target_modules=LINEARS),
        size=0.3,
        parts=("topk_weights",),
    ),
    "VB-LoRA on Conv1D": Case("gpt2", lambda: VBLoRAConfig(**BANK, target_modules=CONV1D), size=0.3),
    "RandLoRA on Linear": Case("linear", lambda: RandLoraConfig(r=8, target_modules=LINEARS), size=0.02),
    "RandLoRA, rank that does not divide, both orders": Case(
        "linear",
        lambda: RandLoraConfig(r=5, randlora_alpha=20, target_modules=["up_proj", "down_proj"], bias="randlora_only"),
        size=0.1,
    ),
    "RandLoRA, sparse": Case("bare", lambda: RandLoraConfig(r=7, sparse=True, target_modules=LINEARS), size=0.02),
    "RandLoRA on Conv1D": Case("gpt2", lambda: RandLoraConfig(r=8, target_modules=CONV1D), size=0.02),
    "Uni-LoRA on Linear": Case(
        "linear", lambda: UniLoraConfig(r=4, theta_d_length=64, target_modules=LINEARS, save_indices=True), size=0.5
    ),
    "Uni-LoRA on Conv1D": Case(
        "gpt2",
        lambda: UniLoraConfig(r=4, theta_d_length=64, target_modules=CONV1D, save_indices=True, bias="all"),
        size=0.5,
    ),
    "TinyLoRA on Linear": Case(
        "linear", lambda: TinyLoraConfig(r=2, u=8, target_modules=LINEARS, bias="tinylora_only")
    ),
    "TinyLoRA, one group": Case("bare", lambda: TinyLoraConfig(r=3, u=4, weight_tying=1.0, target_modules=LINEARS)),
    "TinyLoRA, groups": Case(
        "bare", lambda: TinyLoraConfig(r=2, u=9, weight_tying=0.4, projection_seed=77, target_modules=LINEARS)
    ),
    "TinyLoRA, sixteen random numbers": Case(
        "bare", lambda: TinyLoraConfig(r=2, u=4, weight_tying=0.4, target_modules=LINEARS), size=0.3
    ),
    "TinyLoRA on an embedding": Case(
        "linear", lambda: TinyLoraConfig(r=2, u=8, target_modules=["embed_tokens", "q_proj"])
    ),
    "TinyLoRA on a tied embedding": Case(
        "tied", lambda: TinyLoraConfig(r=2, u=8, weight_tying=0.5, target_modules=["embed_tokens", "q_proj"])
    ),
    "TinyLoRA on Conv1D": Case("gpt2", lambda: TinyLoraConfig(r=2, u=16, target_modules=CONV1D)),
    "GraLoRA on Linear": Case("linear", lambda: GraloraConfig(r=4, gralora_k=2, target_modules=LINEARS)),
    "GraLoRA, hybrid": Case(
        "linear",
        lambda: GraloraConfig(r=8, gralora_k=4, hybrid_r=3, alpha=10, target_modules=LINEARS, bias="gralora_only"),
        parts=("gralora_A_general",),
    ),
    "GraLoRA on Conv1D": Case("gpt2", lambda: GraloraConfig(r=4, gralora_k=2, hybrid_r=2, target_modules=CONV1D)),
}
