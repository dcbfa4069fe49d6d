"""What several adapters hold whole, in one: saved modules, trained biases and tokens take a tensor's place, and have
no weighted sum.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import NotSupported
from ...files.peft import TOKENS, Adapter
from ...lazy.tensor import Tensor

COPY = ".base_layer.weight"  # of a base's own tensor that PEFT saves beside LoRA on it


def held_whole(adapters: Sequence[Adapter], weights: Sequence[float]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the adapters hold whole, each once, and what is dropped since another one holds the same, by name.

    Raises NotSupported where two hold different values, and where one that not all hold has a weight other than 1.
    """
    kept, dropped = dict[str, Tensor](), dict[str, Tensor]()
    for key in dict.fromkeys(key for one in adapters for key in one.whole):
        holders = [(one, weight) for one, weight in zip(adapters, weights, strict=True) if key in one.whole]
        first, others = holders[0][0], [one for one, _ in holders[1:]]
        _check_same(key, first, others)
        if len(holders) < len(adapters):
            for one, weight in holders:
                _check_weight(one, key, weight)
        kept[key] = first.whole[key]
        dropped |= {f"{one.path}: {one.names[key]}": one.whole[key] for one in others}
    return kept, dropped


def _check_same(key: str, first: Adapter, others: Sequence[Adapter]) -> None:
    from ...evaluation.compare import same

    for one in others:
        tokens = TOKENS.fullmatch(key) and _tokens(one) != _tokens(first)
        if tokens or not same(first.whole[key], one.whole[key]):
            raise NotSupported(
                f"two adapters hold {key} whole, and not the same: what takes a tensor's place has no sum",
                where=[f"{who.path}: {who.names[key]}" for who in (first, one)],
                help="merge one of them into the base, and the other one into that",
            )


def _tokens(adapter: Adapter) -> object:
    return adapter.config.get("trainable_token_indices")


def _check_weight(adapter: Adapter, key: str, weight: float) -> None:
    if weight != 1 and not adapter.names[key].endswith(COPY):
        raise NotSupported(
            f"{adapter.path} holds {key} whole, which takes the base's place, and has no part of {weight:g}",
            where=[f"{adapter.path}: {adapter.names[key]}"],
            help="give this adapter the weight 1, or merge it into its base with --except on that module",
        )
