"""The sections of a config.json: itself, and what is nested in it, each with the keys that lead there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Config = Mapping[str, Any]
At = tuple[str, ...]
_OF_NO_MODEL = ("quantization_config", "rope_parameters", "rope_scaling")


def sections_in(config: Config, at: At = ()) -> Iterator[tuple[At, Config]]:
    """Each section, and the keys that lead to it."""
    yield at, config
    for key, value in config.items():
        if isinstance(value, Mapping) and key not in _OF_NO_MODEL:
            yield from sections_in(value, (*at, key))


def section_at(config: Config, at: At) -> Config:
    """The section that the keys lead to; empty where there is none."""
    for key in at:
        config = config.get(key) or {}
    return config


def with_fields(config: Config, at: At, fields: Config) -> dict[str, Any]:
    """The config with these fields in the section that the keys lead to."""
    if not at:
        return {**config, **fields}
    return {**config, at[0]: with_fields(config.get(at[0]) or {}, at[1:], fields)}
