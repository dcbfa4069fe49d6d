"""A tensor from pieces that lie in different files: each piece has its place, and together they are the whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import LayoutError
from ..lazy.tensor import Shape, Tensor, concat


@dataclass(frozen=True, slots=True)
class Tile:
    """A piece of a tensor: where its first element belongs, and what it is."""

    at: Shape
    tensor: Tensor


def joined(tiles: Sequence[Tile], shape: Shape) -> Tensor:
    """The tensor of `shape` that the tiles make, as a run of pieces along one axis, of such runs, and so on.

    Raises LayoutError where they leave a hole, overlap, reach outside, or cannot be cut apart straight through.
    """
    full = [tile for tile in tiles if tile.tensor.size]
    for tile in full:
        if len(tile.at) != len(shape) or any(
            at < 0 or at + size > whole for at, size, whole in zip(tile.at, tile.tensor.shape, shape, strict=True)
        ):
            raise LayoutError(f"a piece {tile.tensor.shape} at {tile.at} reaches outside of {shape}")
    if sum(tile.tensor.size for tile in full) != math.prod(shape):
        raise LayoutError(f"pieces of {sum(t.tensor.size for t in full)} elements make no {shape}")
    if not full:
        return tiles[0].tensor
    return _joined(full, (0,) * len(shape), shape)


def _joined(tiles: Sequence[Tile], at: Shape, shape: Shape) -> Tensor:
    if len(tiles) == 1:
        if tiles[0].at != at or tiles[0].tensor.shape != shape:
            raise LayoutError(f"a piece {tiles[0].tensor.shape} at {tiles[0].at} is not what {shape} at {at} needs")
        return tiles[0].tensor
    for axis in range(len(shape)):
        runs = _runs(tiles, axis)
        if len(runs) > 1:
            parts = []
            for run in runs:
                start = min(tile.at[axis] for tile in run)
                stop = max(tile.at[axis] + tile.tensor.shape[axis] for tile in run)
                inside = (*shape[:axis], stop - start, *shape[axis + 1 :])
                parts.append(_joined(run, (*at[:axis], start, *at[axis + 1 :]), inside))
            return concat(parts, axis)
    raise LayoutError(f"{len(tiles)} pieces of {shape} at {at} overlap, or cannot be cut apart straight through")


def _runs(tiles: Sequence[Tile], axis: int) -> list[list[Tile]]:
    """The tiles in groups along an axis, between which no tile lies on both sides."""
    runs: list[list[Tile]] = []
    end = -1
    for tile in sorted(tiles, key=lambda one: one.at[axis]):
        if not runs or tile.at[axis] >= end:
            runs.append([])
        runs[-1].append(tile)
        end = max(end, tile.at[axis] + tile.tensor.shape[axis])
    return runs
