"""The table of targets, one row per way from a model type to a class of transformers: `llama.py` and `gpt.py`.

Each row names in its module the code that both sides were read from; which was checked numerically stands in
`tests/models/targets/`.
"""

from __future__ import annotations

from ..fused.layout import Config
from .gpt import GPT
from .llama import LLAMA
from .target import Target

TARGETS: tuple[Target, ...] = (*LLAMA, *GPT)


def targets_of(config: Config) -> list[Target]:
    """The rows for the model type that config.json names, whether they fit or not."""
    return [target for target in TARGETS if target.source == config.get("model_type")]


def targets_for(config: Config) -> list[str]:
    """Model types as which the checkpoint of this config.json can be written, computing the same. Loads nothing."""
    return [target.name for target in targets_of(config) if not why_not(target, config)]


def why_not(target: Target, config: Config) -> list[str]:
    """Why the class would compute something else; empty where it computes the same."""
    try:
        return target.unfit(config)
    except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError) as error:  # no model's code reads that
        return [f"config.json makes no sense: {error}"]
