"""The class that a model type has for a task of PEFT's: where it holds the body, what it leaves out of it, and its
head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from .fused.layout import Config
from .heads import heads_of
from .tasks_table import BODIES, CLASSES

BODY = "FEATURE_EXTRACTION"  # the task of the bare model


@dataclass(frozen=True, slots=True)
class TaskClass:
    """A class: its body lies under `prefix` (empty: under none) without the parts `lacks`; `output` has a row for
    each label.
    """

    name: str
    task: str
    prefix: str
    lacks: frozenset[str]
    output: str
    head: frozenset[str]


def classes_of(config: Config) -> Mapping[str, TaskClass]:
    """Task -> the class that the config's model type has for it; empty where the type is not in the table."""
    kind = str(config.get("model_type", ""))
    heads = heads_of(config)
    rows = {task: (name, *rest) for task, name, *rest in _by_type().get(kind, ())}
    return {
        task: TaskClass(name, task, prefix, frozenset(lacks.split(",")) - {""}, output, heads.get(name, frozenset()))
        for task, (name, prefix, lacks, output) in rows.items()
    }


def is_bare(config: Config) -> bool:
    """Whether config.json names the bare model of its type, which has no head."""
    bare = classes_of(config).get(BODY)
    return bare is not None and [bare.name] == config.get("architectures")


def prefix_of(config: Config) -> str:
    """Under what the type's other classes hold what is the whole of its bare model; empty: not known, or under
    nothing.
    """
    return _prefixes().get(str(config.get("model_type", "")), "")


def parts_of(config: Config) -> frozenset[str]:
    """The parts of the body that some class of the type leaves out, such as a `pooler`."""
    return frozenset[str]().union(*(one.lacks for one in classes_of(config).values()))


@cache
def _by_type() -> Mapping[str, list[tuple[str, str, str, str, str]]]:
    found: dict[str, list[tuple[str, str, str, str, str]]] = {}
    rows = {(BODY, "", "", ""): " ".join(BODIES.values())} | dict(CLASSES)
    for (task, prefix, lacks, output), classes in rows.items():
        for row in classes.split():
            kind, _, name = row.partition("/")
            found.setdefault(kind, []).append((task, name, prefix, lacks, output))
    return found


@cache
def _prefixes() -> Mapping[str, str]:
    return {row.partition("/")[0]: prefix for prefix, classes in BODIES.items() for row in classes.split()}
