"""Rules for adapters that read the base: what is made of their own tensors, and of thin products with the base."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Numbers = Mapping[str, float | str]


def road(inputs: Sequence[torch.Tensor], numbers: Numbers) -> torch.Tensor:
    """(2, out) from angles and lengths: length * cos(angle) - 1 of each output, and length * sin(angle), that of
    the first half of each group negated.
    """
    import torch

    group = int(numbers["group"])
    match numbers["variant"]:
        case "road_1":
            theta, alpha = (one.view(-1, 1, group // 2).expand(-1, 2, -1).reshape(-1) for one in inputs)
            pairs = (theta, alpha), (theta, alpha)
        case "road_2":
            pairs = (inputs[0], inputs[1]), (inputs[0], inputs[1])
        case _:
            halves = [one.view(-1, 2, group) for one in inputs]
            pairs = tuple(tuple(one[:, which].reshape(-1) for one in halves) for which in (0, 1))  # type: ignore[assignment]
    (theta, alpha), (turned, long) = pairs
    sines = (long * turned.sin()).view(-1, 2, group // 2) * torch.tensor([-1.0, 1.0], dtype=torch.float64)[:, None]
    return torch.stack([alpha * theta.cos() - 1, sines.reshape(-1)])


def delora(inputs: Sequence[torch.Tensor], numbers: Numbers) -> torch.Tensor:
    """(r): lambda / r, over the lengths of A's rows and of B's columns, which are 1e-4 at least."""
    a, b, strength = inputs
    return strength / a.shape[0] / (a.norm(dim=1).clamp(min=1e-4) * b.norm(dim=0).clamp(min=1e-4))


def orthonormal(inputs: Sequence[torch.Tensor], numbers: Numbers) -> torch.Tensor:
    """The Q of the input's QR."""
    import torch

    return torch.linalg.qr(inputs[0])[0]


def rectified(inputs: Sequence[torch.Tensor], numbers: Numbers) -> torch.Tensor:
    """The input, no number of it below zero."""
    return inputs[0].clamp(min=0.0)


def matrix_product(inputs: Sequence[torch.Tensor], numbers: Numbers) -> torch.Tensor:
    """The product of two."""
    return inputs[0] @ inputs[1]


def peanut(inputs: Sequence[torch.Tensor], numbers: Numbers) -> torch.Tensor:
    """(r, in) from A W, as many encoders as decoders, each (r, r): what they make of it under the activation `act`."""
    act, depth = activations()[str(numbers["act"])], (len(inputs) - 1) // 2
    value, kept = act(inputs[0]), []
    for encoder in inputs[1 : 1 + depth]:
        kept.append(value)
        value = act(encoder @ value)
    for decoder in inputs[1 + depth :]:
        value = act(decoder @ value) + kept.pop()
    return value


def activations() -> Mapping[str, Callable[[torch.Tensor], Any]]:
    """Functions of numbers by the names that transformers has for them."""
    from torch.nn import functional as f

    def tanh_gelu(x: torch.Tensor) -> torch.Tensor:
        return f.gelu(x, approximate="tanh")

    return {
        **dict.fromkeys(("gelu", "gelu_python"), f.gelu),
        **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate"), tanh_gelu),
        "gelu_10": lambda x: f.gelu(x).clip(-10, 10),
        "quick_gelu": lambda x: x * (1.702 * x).sigmoid(),
        **dict.fromkeys(("silu", "swish"), f.silu),
        "hardswish": f.hardswish,
        "linear": lambda x: x,
        "relu": f.relu,
        "relu2": lambda x: f.relu(x).square(),
        "relu6": f.relu6,
        "leaky_relu": f.leaky_relu,
        "mish": f.mish,
        "sigmoid": lambda x: x.sigmoid(),
        "tanh": lambda x: x.tanh(),
    }


RULES = {
    "road": road,
    "delora": delora,
    "orthonormal": orthonormal,
    "rectified": rectified,
    "matrix product": matrix_product,
    "peanut": peanut,
}
