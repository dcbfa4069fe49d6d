"""Bytes and shapes for people."""

from __future__ import annotations

from collections.abc import Sequence


def size(nbytes: int) -> str:
    """Bytes in powers of ten, with three digits: 4.9 GB."""
    value, units = float(nbytes), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{nbytes} B" if units[0] == "B" else f"{value:.3g} {units[0]}"


def extent(shape: Sequence[int]) -> str:
    """A shape: 4096×512."""
    return "×".join(map(str, shape)) or "scalar"
