"""What a merge replaces or drops, beside what earlier merges did: names that come again stand for both tensors."""

from __future__ import annotations

from collections.abc import Mapping

from ...lazy.dropped import both
from ...lazy.tensor import Tensor


def replacements(
    before: Mapping[str, Tensor], dropped: Mapping[str, Tensor], now: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(replaced, dropped) once the tensors `now` have others in their places: what was put there by an earlier merge
    is dropped.
    """
    again = {name: tensor for name, tensor in now.items() if before.get(name, tensor) != tensor}
    return {**now, **before}, both(dropped, again)
