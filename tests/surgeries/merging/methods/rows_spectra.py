"""FourierFT and WaveFT."""

from __future__ import annotations

from typing import Any

from peft import FourierFTConfig, WaveFTConfig

from .cases import Case

LINEARS = ["q_proj", "v_proj", "down_proj"]
CONV1D = ["c_attn", "attn.c_proj", "mlp.c_proj"]


def waves(**more: Any) -> FourierFTConfig:
    return FourierFTConfig(**{"n_frequency": 40, "scaling": 100.0, "target_modules": LINEARS, **more})


def wavelets(**more: Any) -> WaveFTConfig:
    return WaveFTConfig(**{"n_frequency": 60, "scaling": 2.0, "target_modules": LINEARS, **more})


CASES: dict[str, Case] = {
    "FourierFT on Linear": Case("linear", waves, size=0.5),
    "FourierFT, patterns, another seed, biases": Case(
        "linear",
        lambda: waves(n_frequency_pattern={"q_proj": 7}, random_loc_seed=5, bias="fourier_only"),
        size=0.5,
    ),
    "FourierFT, saved head": Case("bare", lambda: waves(modules_to_save=["lm_head"]), size=0.5),
    "FourierFT on Conv1D": Case("gpt2", lambda: waves(target_modules=CONV1D), size=0.5),
    "WaveFT on Linear": Case("linear", wavelets, size=0.5),
    "WaveFT without wavelets": Case("linear", lambda: wavelets(use_idwt=False, random_loc_seed=5), size=0.5),
    "WaveFT, db3": Case("linear", lambda: wavelets(wavelet_family="db3"), size=0.5),
    "WaveFT, sym4, all biases": Case("linear", lambda: wavelets(wavelet_family="sym4", bias="all"), size=0.5),
    "WaveFT, coif1, saved head": Case(
        "bare", lambda: wavelets(wavelet_family="coif1", modules_to_save=["lm_head"]), size=0.5
    ),
    "WaveFT, db4 on odd sizes": Case(
        "vivit",
        lambda: wavelets(wavelet_family="db4", target_modules=["classifier", "q_proj"], n_frequency=50),
        size=0.5,
    ),
    "WaveFT, sym9, shared out": Case(
        "bare", lambda: wavelets(wavelet_family="sym9", proportional_parameters=True), size=0.5
    ),
    "WaveFT, patterns": Case("linear", lambda: wavelets(n_frequency_pattern={"v_proj": 9}), size=0.5),
    "WaveFT on Conv1D": Case("gpt2", lambda: wavelets(wavelet_family="db3", target_modules=CONV1D), size=0.5),
    "WaveFT without wavelets on Conv1D": Case(
        "gpt2", lambda: wavelets(use_idwt=False, target_modules=CONV1D), size=0.5
    ),
}
