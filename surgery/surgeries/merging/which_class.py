"""Which class an adapter was trained in: as its task type says, what PEFT noted, or the heads that it holds whole.

    Wav2Vec2Model     + SEQ_CLS, projector and classifier   ->  Wav2Vec2ForSequenceClassification
    Wav2Vec2Model     + lm_head                             ->  Wav2Vec2ForCTC
    ViTModel          + classifier                          ->  ViTForImageClassification
    BertForMaskedLM   + classifier, pooler                  ->  BertForSequenceClassification

A class fits where its head has all that the adapter holds, in its sizes, and the base and the adapter together have
all that the class has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...checkpoint import Checkpoint
from ...errors import AdapterError, SurgeryError, listed, nearest, series
from ...files.peft import Adapter
from ...lazy.tensor import Tensor
from ...models.heads import heads_of
from ...models.names_v5 import in_memory, renames_of
from ...models.tasks import BODY, TaskClass, all_classes_of, classes_of, parts_of, prefix_of, sizes_of
from .changes import module_of

# PEFT's tasks that make no head -> how the classes are called that they are of.
_ENDS = {"CAUSAL_LM": ("ForCausalLM", "LMHeadModel"), "SEQ_2_SEQ_LM": ("ForConditionalGeneration", "MTModel")}
DECIDES = "--architecture NAME says which class the result is of"


def current_class(checkpoint: Checkpoint) -> str:
    """The class that config.json names; empty where it names none."""
    return str(next(iter(checkpoint.config.get("architectures") or []), ""))


def called(checkpoint: Checkpoint, architecture: str) -> TaskClass | None:
    """The class of this name; None where it is what config.json names already, and no known one.

    Raises SurgeryError for one that the model type has not.
    """
    known, current = all_classes_of(checkpoint.config), current_class(checkpoint)
    if architecture in known:
        return known[architecture]
    if architecture == current:
        return None
    names = nearest(architecture, [*known, current]) or sorted(known)
    kind = checkpoint.config.get("model_type")
    raise SurgeryError(
        f"how model type `{kind}` becomes a `{architecture}` is not known",
        where=[f"{checkpoint.path}: config.json"],
        help=f"known are {series(listed(names))}; --architecture" if known else "leave --architecture away",
    )


def class_of(checkpoint: Checkpoint, adapter: Adapter, held: Mapping[str, Tensor]) -> TaskClass | None:
    """The class in which the adapter was trained; None where the base stays what it is.

    Raises AdapterError where more than one fits.
    """
    known, current = classes_of(checkpoint.config), current_class(checkpoint)
    task = str(adapter.config.get("task_type") or "").upper()
    chosen = known.get(task)
    if chosen and task == BODY and not held:
        return chosen if _is_of_bare(checkpoint, adapter) else None
    if chosen and held and held.keys() <= chosen.head and _is_sized(checkpoint, chosen, held):
        return None if chosen.name != current and _is_other(checkpoint, known, held) else chosen
    if not held or _has(checkpoint, held) or held.keys() <= heads_of(checkpoint.config).get(current, frozenset()):
        return None
    if said := _said(adapter, all_classes_of(checkpoint.config)):
        return said
    return _fitting(checkpoint, adapter, held)


def missing_in(checkpoint: Checkpoint, kind: TaskClass, there: Sequence[str]) -> list[str]:
    """The parts and tensors of heads that the class has, and that are not among these names, which are those of the
    class.
    """
    front = f"{kind.prefix}." if kind.prefix else ""
    parts = [f"{front}{part}" for part in parts_of(checkpoint.config) - kind.lacks]
    lost = [part for part in parts if not any(name == part or name.startswith(f"{part}.") for name in there)]
    return [*lost, *(name for name in kind.head if name not in set(there))]


def _fitting(checkpoint: Checkpoint, adapter: Adapter, held: Mapping[str, Tensor]) -> TaskClass | None:
    """The one class that the heads fit. Raises AdapterError where there are several."""
    known, parts = all_classes_of(checkpoint.config), _parts_held(checkpoint, adapter)
    names = sorted(name for name, head in heads_of(checkpoint.config).items() if held.keys() <= head)
    names = [name for name in names if name not in known or not parts & known[name].lacks]
    ends = _ENDS.get(str(adapter.config.get("task_type") or "").upper(), ())
    names = [name for name in names if name.endswith(ends)] or names if ends else names
    sized = [name for name in names if name not in known or _is_sized(checkpoint, known[name], held)]
    whole = [name for name in sized if heads_of(checkpoint.config)[name] <= held.keys() | checkpoint.tensors.keys()]
    found = whole or sized
    if len(found) > 1:
        raise _open(checkpoint, adapter, held, found)
    kind, current = known.get(found[0]) if found else None, current_class(checkpoint)
    own = bool(current) and current not in known and current not in heads_of(checkpoint.config)
    return kind if kind and (kind.task or not own) else None  # a class of one's own may well have a head of that name


def _parts_held(checkpoint: Checkpoint, adapter: Adapter) -> set[str]:
    """The parts of the body that some classes leave out, and the adapter holds whole."""
    return {part for part in parts_of(checkpoint.config) if any(part in key.split(".") for key in adapter.whole)}


def _is_of_bare(checkpoint: Checkpoint, adapter: Adapter) -> bool:
    """Whether the adapter's names are those of the bare model, and not the base's own."""
    front, renames = prefix_of(checkpoint.config), renames_of(checkpoint.config)
    own = {*checkpoint.tensors, *(in_memory(name, renames) for name in checkpoint.tensors)}
    return not any(front in key.split(".") or f"{key}.weight" in own for key in adapter.lora)


def _is_other(checkpoint: Checkpoint, known: Mapping[str, TaskClass], held: Mapping[str, Tensor]) -> bool:
    """Whether the base is of a class beside the type's task classes that has these heads, such as one for multiple
    choice.
    """
    return current_class(checkpoint) not in {one.name for one in known.values()} and _has(checkpoint, held)


def _has(checkpoint: Checkpoint, held: Mapping[str, Tensor]) -> bool:
    """Whether the base stores all these heads, each in its shape."""
    return all(
        name in checkpoint.tensors and checkpoint.tensors[name].shape == tensor.shape for name, tensor in held.items()
    )


def _is_sized(checkpoint: Checkpoint, kind: TaskClass, held: Mapping[str, Tensor]) -> bool:
    """Whether the heads have the sizes that the class has, where it or config.json tells."""
    said = sizes_of(checkpoint.config, kind)
    return all(
        held[name].shape and held[name].shape[axis] == size for name, (axis, size) in said.items() if name in held
    )


def _said(adapter: Adapter, known: Mapping[str, TaskClass]) -> TaskClass | None:
    """The class that PEFT noted where it was given no task type."""
    noted: Any = adapter.config.get("auto_mapping")
    name = noted.get("base_model_class") if isinstance(noted, Mapping) else None
    return known.get(name) if isinstance(name, str) else None


def _open(checkpoint: Checkpoint, adapter: Adapter, held: Mapping[str, Tensor], names: Sequence[str]) -> AdapterError:
    modules, options = sorted({module_of(name) for name in held}), [f"--architecture {one}" for one in listed(names)]
    return AdapterError(
        f"the adapter holds a head that {current_class(checkpoint) or 'the base'} has not, and which class it is of is"
        " not clear",
        where=[
            adapter.path,
            *listed(modules),
            f"task_type = {adapter.config.get('task_type')!r}",
            f"could be {series(names)}",
        ],
        help=f"say which class the result is of: {series(options, ' or ')}",
    )
