"""Waves in both directions of a matrix: what FourierFT adds."""

from __future__ import annotations

from dataclasses import dataclass

from .at_places import AtPlaces


@dataclass(frozen=True, slots=True)
class Waves(AtPlaces):
    """The delta `scale / (tall * wide) * Σ_k values[k] cos(2π (p u_k / tall + q v_k / wide))` in row p and column q:
    the real part of what an inverse Fourier transform makes of the numbers at their places (u_k, v_k).
    """
