"""Which weights of a checkpoint are quantised, as data: told from headers, config.json, and what a scheme stores of
itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..checkpoint import Checkpoint
from ..errors import SurgeryError, listed, series
from ..lazy.tensor import Tensor, stored
from ..quantization.declared import places
from ..quantization.quantised import Quantisation, method_of, quantised
from ..quantization.scheme import Quantised, module_of
from ..quantization.settle import decoded
from .counted import Count, Target, count, targets_of


@dataclass(frozen=True, slots=True)
class QuantisedWeights:
    """Weights that one scheme has: `parameters` of what they mean, `nbytes` of codes and companions as stored."""

    scheme: str
    weights: int
    parameters: int
    nbytes: int
    modules: tuple[Target, ...]


@dataclass(frozen=True, slots=True)
class Quantization:
    """What is quantised: the method as config.json names it, its weights by scheme, and what is stored as numbers of
    its own. No schemes where the codes are not read: a note says why.
    """

    method: str
    schemes: tuple[QuantisedWeights, ...]
    others: Count


def quantization_in(checkpoint: Checkpoint) -> tuple[Quantization | None, Checkpoint, list[str]]:
    """What is quantised; the checkpoint as its codes mean; a note where the codes are not read, and it is as it
    was.
    """
    try:
        held = quantised(checkpoint)
        meant = decoded(checkpoint, held)
    except SurgeryError as error:
        found = Quantization(_said(checkpoint) or "unnamed", (), count(checkpoint.tensors.values()))
        return found, checkpoint, [f"its codes are not read: {series([error.what, *listed(error.where[1:], 3)], '; ')}"]
    method = held.scheme.method if held.scheme else _said(checkpoint)
    return _found(checkpoint, held, method) if method else None, meant, []


def _said(checkpoint: Checkpoint) -> str:
    """What config.json calls it; "" where it says nothing."""
    return next((method_of(said) or "unnamed" for _, said in places(checkpoint.config)), "")


def _found(checkpoint: Checkpoint, held: Quantisation, method: str) -> Quantization:
    groups: dict[str, dict[str, Quantised]] = defaultdict(dict)
    for name, one in held.weights.items():
        groups[one.scheme][name] = one
    coded = {part for one in held.weights.values() for part in (*one.parts, *one.left)} | set(held.left)
    others = count(tensor for name, tensor in checkpoint.tensors.items() if name not in coded)
    return Quantization(method, tuple(_weights(checkpoint, title, those) for title, those in groups.items()), others)


def _weights(checkpoint: Checkpoint, scheme: str, those: Mapping[str, Quantised]) -> QuantisedWeights:
    """What is stored of the weights of one scheme, and what they mean."""
    parts = {part for one in those.values() for part in (*one.parts, *one.left)}
    return QuantisedWeights(
        scheme,
        len(those),
        sum(one.weight.size for one in those.values()),
        sum(leaf.nbytes for tensor in _there(checkpoint, parts) for leaf in stored(tensor)),
        targets_of({module_of(name): one.weight.shape for name, one in those.items()}),
    )


def _there(checkpoint: Checkpoint, names: Iterable[str]) -> list[Tensor]:
    return [checkpoint.tensors[name] for name in names if name in checkpoint.tensors]
