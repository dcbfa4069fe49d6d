"""What a checkpoint says of its quantisation: in config.json, or in a file beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

KEYS = ("quantization_config", "compression_config")
MLX = "quantization"
# Files beside config.json in which older repositories say it, and how, where they do not say that themselves.
FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}


def places(config: Mapping[str, Any], at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """(keys that lead there, what is said) for each place of config.json that says something, the outermost first."""
    found = [key for key in KEYS if isinstance(said := config.get(key), Mapping) and said]
    yield from (((*at, key), config[key]) for key in found)
    if not at and not found and is_mlx(config.get(MLX)):
        yield (MLX,), config[MLX]
    for key, value in config.items():
        if isinstance(value, Mapping) and key not in KEYS and not (key == MLX and is_mlx(value)):
            yield from places(value, (*at, key))


def is_mlx(said: object) -> bool:
    """Whether this is what MLX says of its quantisation, which mlx-lm says a second time as others do."""
    return isinstance(said, Mapping) and {"bits", "group_size"} <= said.keys()


def without(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config that says nothing of quantisation, nor do those nested in it."""
    kept = {k: value for k, value in config.items() if k not in KEYS and not (k == MLX and is_mlx(value))}
    return {key: without(value) if isinstance(value, Mapping) else value for key, value in kept.items()}


def replaced(config: Mapping[str, Any], at: tuple[str, ...], said: Mapping[str, Any]) -> dict[str, Any]:
    """The config with `said` at the place to which the keys lead."""
    key, *rest = at
    inner = config.get(key)
    return {
        **config,
        key: replaced(inner if isinstance(inner, Mapping) else {}, tuple(rest), said) if rest else dict(said),
    }
