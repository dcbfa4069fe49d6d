"""WaveFT: wavelets, of which the numbers are trained: W + scaling * idwt2(S).

    waveft_spectrum (n); S is zero but at n places that follow from random_loc_seed; use_idwt false: W + scaling * S

Wavelets of which PEFT has the filters but for the longer coiflets: db1 to db10, sym2 to sym10, coif1.
Source: peft 0.21.2, tuners/waveft/layer.py `update_layer`, `get_delta_weight`.
"""

from __future__ import annotations

from ...errors import NotSupported
from ...evaluation.rules.wavelets import TAPS
from ...files.peft import Adapter
from ...lazy.scatter import Scatter
from ...lazy.tensor import made
from .method import Effect, Method, Target, said
from .spectra import check_counts, drawing, spectrum


def effect(target: Target) -> Effect:
    """What it does to the module."""
    values, (tall, wide) = spectrum(target, "waveft_spectrum"), target.weight.shape
    scaling, drawn = target.number("scaling", 25), drawing(target, values.size)
    if not target.adapter.config.get("use_idwt", True):
        places = made((2, values.size), "drawn places", [], **drawn)
        return Effect(deltas=(Scatter.of(places, values, scaling, tall, wide),))
    family = _family(target.adapter)
    count = values.size * TAPS[family] ** 2
    places = made((2, count), "wavelet places", [], family=family, **drawn)
    patches = made((count,), "wavelet values", [values], family=family, **drawn)
    return Effect(deltas=(Scatter.of(places, patches, scaling, tall, wide),))


def check(adapter: Adapter) -> None:
    """Raise NotSupported for wavelets that are not known, AdapterError for another count of them than is said."""
    if adapter.config.get("use_idwt", True) and _family(adapter) not in TAPS:
        raise NotSupported(
            f"WaveFT with wavelet_family = {_family(adapter)!r} is not supported",
            where=[f"{adapter.path}/adapter_config.json"],
            help=f"supported: {', '.join(TAPS)}; merge others with PEFT, where it can: merge_and_unload()",
        )
    check_counts(adapter, "waveft_spectrum")


def _family(adapter: Adapter) -> str:
    return str(adapter.config.get("wavelet_family", "db1"))


METHOD = Method(
    "WAVEFT",
    "WaveFT",
    "wavelets db1 to db10, sym2 to sym10 and coif1, or none, at places that are drawn again",
    effect,
    options=said(
        "n_frequency n_frequency_pattern proportional_parameters scaling wavelet_family use_idwt random_loc_seed"
        " init_weights bias"
    ),
    check=check,
)
