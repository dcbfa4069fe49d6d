"""The scales of a quantised tensor in float32, one for each group: a way for each value of `Coding.scale`.

Each takes the `scale` numbers as they are stored, the first of which is number `first` of the tensor, the coding, and
a function that gives a whole part by its name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import FormatError, listed, series
from ..lazy.coding import Coding
from ..lazy.tensor import Decoded, stored

if TYPE_CHECKING:
    import torch

Part = Callable[[str], "torch.Tensor"]
Make = Callable[["torch.Tensor", int, Coding, Part], "torch.Tensor"]


def plain(scale: torch.Tensor, first: int, coding: Coding, part: Part) -> torch.Tensor:
    """They are the numbers."""
    import torch

    return scale.to(torch.float32)


def exponent(scale: torch.Tensor, first: int, coding: Coding, part: Part) -> torch.Tensor:
    """Bytes: powers of two, of which 127 is one (E8M0). Raises ValueError for 255, which is no number."""
    import torch

    bits = scale.view(torch.uint8).to(torch.int32)
    if bool((bits == 255).any()):
        raise ValueError("a scale byte is 255, which means no number")
    return torch.where(bits == 0, 1 << 22, bits << 23).view(torch.float32)


def quotient(scale: torch.Tensor, first: int, coding: Coding, part: Part) -> torch.Tensor:
    """Divided by the tensor's `outer` number."""
    import torch

    outer = part("outer").reshape(())
    check_possible(outer)
    return scale.to(torch.float32) / outer


def product(scale: torch.Tensor, first: int, coding: Coding, part: Part) -> torch.Tensor:
    """Multiplied with it."""
    import torch

    outer = part("outer").reshape(())
    check_possible(outer)
    return scale.to(torch.float32) * outer


def nested(scale: torch.Tensor, first: int, coding: Coding, part: Part) -> torch.Tensor:
    """Quantised themselves: entries of `map` times those of `inner`, one a block, then `shift` is added."""
    import torch

    inner = part("inner")
    check_possible(inner)
    values = part("map")[scale.to(torch.int64).flatten()]
    blocks = torch.arange(first, first + values.numel()).div_(coding.nested, rounding_mode="floor")
    return (values * inner[blocks] + coding.shift).view(scale.shape)


SCALES: dict[str, Make] = {
    "plain": plain,
    "exponent": exponent,
    "quotient": quotient,
    "product": product,
    "nested": nested,
}


def check_finite(scales: torch.Tensor) -> None:
    """Raise ValueError where one of them is NaN or infinite."""
    import torch

    if not bool(torch.isfinite(scales).all()):
        raise ValueError("a scale is NaN or infinite")


def check_possible(scales: torch.Tensor) -> None:
    """Raise ValueError where one of them is NaN, infinite, or negative, which a quotient of absolute values is not."""
    check_finite(scales)
    if bool((scales < 0).any()):
        raise ValueError("a scale is negative, which its scheme never makes")


def broken(decoded: Decoded, error: ValueError) -> FormatError:
    """What is wrong with a tensor's codes, or with what lies beside them."""
    files = sorted({leaf.file.path for leaf in stored(decoded)})
    return FormatError(
        f"quantised weights that mean no number: {error}",
        where=[decoded.name, *listed(files)],
        help=f"take {series(listed(files, 3))} again from where the model was published; if it is the same there,"
        " another quantised copy of it, or the model in 16 bits, is the way",
    )
