"""The classes that a model type has, for a task of PEFT's or for another: where each holds the body, what it leaves out
of it, and its head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from . import classes_table
from .fused.layout import Config
from .heads import heads_of
from .tasks_table import BODIES, CLASSES

BODY = "FEATURE_EXTRACTION"  # the task of the bare model
# Ends of names of classes -> PEFT's task for them, where no auto class of text has one: Wav2Vec2's are of audio.
_TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
# Ends of names of classes of speech -> the tensor of their heads whose columns config.json knows, and its entry.
_WIDTHS = {
    "ForSequenceClassification": ("classifier.weight", "classifier_proj_size"),
    "ForAudioClassification": ("classifier.weight", "classifier_proj_size"),
    "ForAudioFrameClassification": ("classifier.weight", "hidden_size"),
    "ForXVector": ("classifier.weight", "xvector_output_dim"),
}


@dataclass(frozen=True, slots=True)
class TaskClass:
    """A class: its body lies under `prefix` (empty: under none) without the parts `lacks`; `output` has a row for
    each label. `task`: PEFT's, empty where it has none for it.
    """

    name: str
    task: str
    prefix: str
    lacks: frozenset[str]
    output: str
    head: frozenset[str]


def classes_of(config: Config) -> Mapping[str, TaskClass]:
    """Task -> the class that the config's model type has for it; empty where the type is not in the table."""
    return {one.task: one for one in all_classes_of(config).values() if one.task}


def all_classes_of(config: Config) -> Mapping[str, TaskClass]:
    """Name -> class, for all classes of the model type whose bodies are known, the bare model among them."""
    heads = heads_of(config)
    return {
        name: TaskClass(name, task, prefix, frozenset(lacks.split(",")) - {""}, output, heads.get(name, frozenset()))
        for task, name, prefix, lacks, output in _by_type().get(str(config.get("model_type", "")), ())
    }


def sizes_of(config: Config, kind: TaskClass) -> Mapping[str, tuple[int, int]]:
    """A tensor of the class's head -> (axis, how many it has there), where class or config.json tell."""
    if kind.name.endswith("ForMultipleChoice"):
        return {"classifier.weight": (0, 1)}  # a choice has one number
    name, entry = next((row for end, row in _WIDTHS.items() if kind.name.endswith(end)), ("", ""))
    width = config.get(entry) if "classifier_proj_size" in config else None
    return {name: (-1, width)} if name in kind.head and isinstance(width, int) else {}


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
    """The parts of the body that some class of the type leaves out, such as a `pooler`; not a `shared` embedding, which
    may be stored under the name of one that is tied to it.
    """
    return frozenset[str]().union(*(one.lacks for one in all_classes_of(config).values())) - {"shared"}


@cache
def _by_type() -> Mapping[str, list[tuple[str, str, str, str, str]]]:
    """Model type -> (task, name, prefix, lacks, output) of each of its classes."""
    found: dict[str, list[tuple[str, str, str, str, str]]] = {}
    rows = [((BODY, "", "", ""), row) for row in _rows(*BODIES.values(), *classes_table.BODIES.values())]
    rows += [(key, row) for key, classes in CLASSES.items() for row in _rows(classes)]
    rows += [(("", *key), row) for key, classes in classes_table.CLASSES.items() for row in _rows(classes)]
    for (task, *rest), (kind, name) in rows:
        tasks = {one for one, *_ in found.setdefault(kind, [])}
        said = next((one for end, one in _TASKS.items() if name.endswith(end) and one not in tasks), "")
        prefix, lacks, output = rest
        found[kind].append((task or said, name, prefix, lacks, output))
    return found


@cache
def _prefixes() -> Mapping[str, str]:
    bodies = [*BODIES.items(), *classes_table.BODIES.items()]
    return {kind: prefix for prefix, classes in bodies for kind, _ in _rows(classes)}


def _rows(*classes: str) -> list[tuple[str, str]]:
    """(model type, class) of each row."""
    pairs = (row.partition("/") for text in classes for row in text.split())
    return [(kind, name) for kind, _, name in pairs]
