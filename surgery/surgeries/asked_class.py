"""The class that a checkpoint is of, where transformers is asked what it builds."""

from __future__ import annotations

from ..checkpoint import Checkpoint
from ..errors import PlanError, series


def class_of(checkpoint: Checkpoint, asked: str) -> str:
    """The class that config.json names; `asked` is what it is to say. Raises PlanError where none is named."""
    named = checkpoint.config.get("architectures")
    if isinstance(named, list) and named and isinstance(named[0], str):
        return named[0]
    if checkpoint.parts:
        raise PlanError(
            f"a pipeline is of several classes: {asked} cannot be asked",
            where=[checkpoint.path],
            help=f"say which component: --component {next(iter(checkpoint.parts))}; there are"
            f" {series(list(checkpoint.parts))}",
        )
    raise PlanError(
        f"config.json names no architecture: {asked} cannot be asked",
        where=[checkpoint.path],
        help='add "architectures": ["LlamaForCausalLM"], with the class that the model is of',
    )
