"""Which known names look like one that is not known, for a message."""

from __future__ import annotations

from collections.abc import Collection

from ..errors import nearest, series


def alike(name: object, known: Collection[str]) -> str:
    """What follows a count of the known: ", nearest to `falcom` falcon, falcon_mamba"; empty where none is alike."""
    near = nearest(str(name or ""), sorted(known))
    return f", nearest to `{name}` {series(near)}" if near else ""
