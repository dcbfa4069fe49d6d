"""FourierFT: waves, of which the numbers are trained: W + scaling * Re(ifft2(S)).

    fourierft_spectrum (n); S is zero but at n places that follow from random_loc_seed

Source: peft 0.21.2, tuners/fourierft/layer.py `update_layer`, `get_delta_weight`.
"""

from __future__ import annotations

from ...lazy.tensor import made
from ...lazy.waves import Waves
from .method import Effect, Method, Target, said
from .spectra import check_counts, drawing, spectrum

BROKEN = (2048, 2048)


def effect(target: Target) -> Effect:
    """What it does to the module."""
    values, (tall, wide) = spectrum(target, "fourierft_spectrum"), target.weight.shape
    places = made((2, values.size), "drawn places", [], **drawing(target, values.size))
    note = "some builds of torch scale a float32 ifft2 of 2048 × 2048 twice: compare with PEFT's FourierFT in float64"
    notes = (note,) if (tall, wide) == BROKEN else ()
    return Effect(deltas=(Waves.of(places, values, target.number("scaling", 150), tall, wide),), notes=notes)


METHOD = Method(
    "FOURIERFT",
    "FourierFT",
    "waves at places that are drawn again",
    effect,
    check=lambda adapter: check_counts(adapter, "fourierft_spectrum"),
    options=said("n_frequency n_frequency_pattern scaling random_loc_seed init_weights bias"),
)
