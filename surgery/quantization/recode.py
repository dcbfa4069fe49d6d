"""Weights that were changed, as codes again: under the scales and zeros that are stored."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import LayoutError
from ..lazy.tensor import Decoded, Encoded, Permute, Reshape, Tensor, permute, reshape, unrounded


def recoded(weight: Tensor, now: Tensor) -> Tensor:
    """The stored codes of `weight`, a decoded tensor under movement, made again of `now`, which has its shape and is
    in float32. Raises LayoutError where `weight` was moved otherwise than as a whole.
    """
    return _back(encoded(weight, now), _decoded(weight).codes)


def encoded(weight: Tensor, now: Tensor) -> Encoded:
    """The same in the order in which the decoded tensor takes its codes, however they are stored."""
    return Encoded(_back(now, weight), _decoded(weight))


def _decoded(weight: Tensor) -> Decoded:
    match weight:
        case Decoded():
            found = unrounded(weight)
            assert isinstance(found, Decoded)
            return found
        case Permute(base) | Reshape(base):
            return _decoded(base)
    raise LayoutError("the weight is not what one quantised tensor means", help="merge without --requantize")


def _back(tensor: Tensor, moved: Tensor) -> Tensor:
    """`tensor` with the movement undone that made `moved`."""
    match moved:
        case Permute(base, axes):
            return _back(permute(tensor, _inverse(axes)), base)
        case Reshape(base):
            return _back(reshape(tensor, base.shape), base)
    return tensor


def _inverse(axes: Sequence[int]) -> list[int]:
    return sorted(range(len(axes)), key=lambda i: axes[i])
