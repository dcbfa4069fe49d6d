"""Which classes a model's type has, and which tensors each holds beside its body: what may be new in a checkpoint of
that type.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from .fused.layout import Config
from .heads_table import CLASSES


def heads_of(config: Config) -> Mapping[str, frozenset[str]]:
    """Class -> the tensors of its head, for the classes of the model type; none where the type is not in the table."""
    return _by_type().get(str(config.get("model_type", "")), {})


def classes_with(config: Config, name: str) -> list[str]:
    """The classes of the model type whose head has a tensor of this whole name."""
    return sorted(found for found, head in heads_of(config).items() if name in head)


@cache
def _by_type() -> Mapping[str, Mapping[str, frozenset[str]]]:
    found: dict[str, dict[str, frozenset[str]]] = {}
    for names, classes in CLASSES.items():
        head = frozenset(names.split())
        for row in classes.split():
            kind, _, name = row.partition("/")
            found.setdefault(kind, {})[name] = head
    return found
