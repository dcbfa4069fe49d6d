"""Small tensors of which kinds are made, and that hang on no adapter: ones, and identities side by side."""

from __future__ import annotations

from ...lazy.tensor import Tensor, made, reshape

# What PEFT's live layers do to convolutions, and no weight does.
PADS = "where a convolution's padding_mode is not zeros, PEFT's live {} pads with zeros, and what is merged does not"
DILATES = PADS + "; a dilation is lost there, and padding and stride are the first numbers of each"


def ones(*shape: int) -> Tensor:
    """Ones."""
    size = 1
    for length in shape:
        size *= length
    return reshape(made((size, 1), "blocks of ones", [], rows=float(size), columns=1.0), shape)


def tiled(value: Tensor | None, rows: int, columns: int) -> Tensor:
    """(rows, columns) of copies of a matrix side by side, above each other, and cut at the end; of the identity of
    `rows` where there is none.
    """
    return made((rows, columns), "tiled", [value] if value else [], rows=float(rows), columns=float(columns))
