"""The base as the class that an adapter was trained in: a causal, masked or bare model that became a classifier, or
the bare model of it.

    LlamaForCausalLM, two labels         + SEQ_CLS, score of 5 rows    ->  LlamaForSequenceClassification, five
    labels, no lm_head BertModel (encoder.layer…)           + TOKEN_CLS                   ->
    BertForTokenClassification (bert.encoder.layer…), no pooler BertForSequenceClassification of 2   + SEQ_CLS of 5
                 ->  five labels, and the adapter's classifier

PEFT's Auto classes make this change before training, and an adapter does not hold it: the task type, the type's
classes and the head's rows tell what it was. What they leave open is refused with the option that decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...checkpoint import Checkpoint
from ...errors import AdapterError, NotSupported, PlanError, listed
from ...files.peft import Adapter
from ...lazy.dropped import both
from ...lazy.tensor import Tensor
from ...models.heads import heads_of
from ...models.tasks import BODY, TaskClass, prefix_of
from ...names import compiled, natural
from .changes import module_of
from .class_names import fronts_of, under_class
from .mending import leaving_out
from .which_class import DECIDES, called, class_of, current_class, missing_in

COLUMNS = frozenset({"objective.weight"})  # heads that have a column for each label
HEAD_BUFFERS = frozenset({"final_logits_bias"})  # of heads over the vocabulary, in any type


@dataclass(frozen=True)
class Selection:
    """What a merge was told of which of an adapter's tensors count, and under which names."""

    names: Sequence[tuple[str, str]] = ()
    only: str | None = None
    except_: str | None = None

    def name_of(self, key: str) -> str | None:
        """The tensor's name under the rules; None where it is left out."""
        for pattern, replacement in self.names:
            key = compiled(pattern).sub(replacement, key)
        module = module_of(key)
        out = self.only is not None and not compiled(self.only).fullmatch(module)
        return None if out or (self.except_ is not None and compiled(self.except_).fullmatch(module)) else key


@dataclass
class _Made:
    """A base on its way to another class."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    weight_map: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, Tensor] = field(default_factory=dict)
    replaced: dict[str, Tensor] = field(default_factory=dict)
    renamed: int = 0


def as_its_class(
    checkpoint: Checkpoint,
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    selection: Selection,
    architecture: str | None,
) -> Checkpoint:
    """The base as the class that the adapters were trained in, without the heads that they replace; as it is where
    that is its own.

    Raises AdapterError where the class cannot be told, or would have tensors that nothing holds, unless
    `architecture` names it; PlanError for adapters of two classes; SurgeryError for an `architecture` that the model
    type has not.
    """
    held = [_held(checkpoint, one, selection) for one in adapters]
    if architecture is not None:
        found = {architecture: called(checkpoint, architecture)}
    else:
        told = [class_of(checkpoint, one, heads) for one, heads in zip(adapters, held, strict=True)]
        found = {one.name: one for one in told if one}
    if len(found) > 1:
        rows = [f"{one.path}: {kind.name}" for one, kind in zip(adapters, told, strict=True) if kind]
        raise PlanError(
            "the adapters were trained in different classes", where=rows, help=f"merge them apart; {DECIDES}"
        )
    kind = next(iter(found.values()), None)
    if kind is None:
        return checkpoint
    if architecture is None:
        _check_reached(checkpoint, adapters, kind)
    heads = {name: tensor for one in held for name, tensor in one.items() if name in kind.head}
    made = _made(checkpoint, kind, heads)
    if made.replaced:
        _check_weights(adapters, weights, held, made)
    config = _config(checkpoint.config, kind, heads)
    if config == checkpoint.config and not (made.replaced or made.dropped or made.renamed):
        return checkpoint
    there = [*made.tensors, *heads, *_beside(checkpoint, adapters, selection)]
    if architecture is None and (missing := missing_in(checkpoint, kind, there)):
        raise _incomplete(checkpoint, adapters, kind, missing)
    return replace(
        checkpoint,
        tensors=made.tensors,
        weight_map=made.weight_map,
        dropped=both(checkpoint.dropped, made.dropped),
        replaced={**checkpoint.replaced, **made.replaced},
        notes=(*checkpoint.notes, *_notes(checkpoint, kind, heads, made)),
    ).with_config(config)


def _held(checkpoint: Checkpoint, adapter: Adapter, selection: Selection) -> dict[str, Tensor]:
    """The tensors of heads that the adapter holds whole, by the names that the type's classes have for them."""
    known = frozenset[str]().union(*heads_of(checkpoint.config).values())
    found = dict[str, Tensor]()
    for key, tensor in adapter.whole.items():
        parts = (selection.name_of(key) or "").split(".")
        tails = [".".join(parts[i:]) for i in range(len(parts))]
        if name := next((tail for tail in tails if tail in known), None):
            found[name] = tensor
    return found


def _made(checkpoint: Checkpoint, kind: TaskClass, held: Mapping[str, Tensor]) -> _Made:
    """The base's tensors as the class has them: heads of other classes dropped, the adapter's left out of it, the
    body under its prefix.
    """
    others = HEAD_BUFFERS.union(*heads_of(checkpoint.config).values())
    names = under_class(checkpoint, kind)
    made = _Made()
    for name, tensor in checkpoint.tensors.items():
        called, new = names[name]
        if called in kind.head or called in others:
            new = name if called in kind.head else None
        if new is None:
            made.dropped[name] = tensor
        elif called in held and held[called].shape != tensor.shape and called in _rows(kind):
            made.replaced[name] = tensor
        else:
            made.tensors[new], made.weight_map[new] = tensor, checkpoint.weight_map[name]
            made.renamed += new != name
    return made


def _rows(kind: TaskClass) -> tuple[str, str]:
    """The tensors that have a row for each label."""
    output = kind.output or "qa_outputs.weight"
    return output, f"{output.removesuffix('.weight')}.bias"


def _beside(checkpoint: Checkpoint, adapters: Sequence[Adapter], selection: Selection) -> list[str]:
    """The names of all tensors that the adapters hold whole, as they count."""
    return [name for one in adapters for key in one.whole if (name := selection.name_of(key))]


def _check_reached(checkpoint: Checkpoint, adapters: Sequence[Adapter], kind: TaskClass) -> None:
    """Raise AdapterError where the class holds the body under a name from which transformers does not load this
    base's.
    """
    old, new = fronts_of(checkpoint, kind)
    if old and new and old != new:
        raise AdapterError(
            f"{kind.name} holds its body under {new}, and transformers loads nothing into it from under {old}: the"
            " training began with random weights",
            where=[*(one.path for one in adapters), f"base: {checkpoint.path}"],
            help=f"if it was trained on these weights nevertheless: --architecture {kind.name}",
        )


def _incomplete(
    checkpoint: Checkpoint, adapters: Sequence[Adapter], kind: TaskClass, missing: Sequence[str]
) -> AdapterError:
    modules = list(dict.fromkeys(re.sub(r"\.(?:weight|bias)$", "", name) for name in missing))
    where = [
        *(one.path for one in adapters),
        f"base: {checkpoint.path}: {current_class(checkpoint) or 'no class'}",
        *listed(modules),
    ]
    if adapted := [one for one in modules if any(key.startswith(f"{one}.") for held in adapters for key in held.lora)]:
        return AdapterError(
            f"the adapter was trained in a {kind.name}, with LoRA on parts of it that the base has not",
            where=where,
            help=(
                "merge into a base that has them; or leave them out, and let every loading draw them anew:"
                f" --architecture {kind.name} --except '{leaving_out(adapted, ())}'"
            ),
        )
    return AdapterError(
        f"{kind.name} has {len(modules)} modules that neither the base nor the adapter holds: the training began with"
        " random ones",
        where=where,
        help=(
            "train it again with them in modules_to_save; or let every loading draw them anew: --architecture"
            f" {kind.name}"
        ),
    )


def _check_weights(
    adapters: Sequence[Adapter], weights: Sequence[float], held: Sequence[Mapping[str, Tensor]], made: _Made
) -> None:
    for one, weight, heads in zip(adapters, weights, held, strict=True):
        if weight != 1 and (names := sorted(heads.keys() & made.replaced.keys())):
            raise NotSupported(
                "an adapter that replaces whole tensors can only be merged with weight 1",
                where=[f"{one.path}: {name}" for name in names],
                help="leave the weight at 1, or leave the module out with --except",
            )


def labels_of(config: Mapping[str, Any]) -> int:
    """How many labels transformers takes the config to have."""
    named, said = config.get("id2label"), config.get("num_labels")
    return len(named) if isinstance(named, Mapping) else said if isinstance(said, int) else 2


def _labels(kind: TaskClass, held: Mapping[str, Tensor]) -> int | None:
    """How many the head has; None where there is no such head, or it does not tell."""
    if kind.task == BODY:
        return None
    name = _rows(kind)[0]
    head, axis = held.get(name), -1 if name in COLUMNS else 0
    return int(head.shape[axis]) if head is not None and head.shape else None


def _config(config: Mapping[str, Any], kind: TaskClass, held: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config of the class, with as many labels as the head has rows: their names where they are as many as
    before.
    """
    new, count = {**config, "architectures": [kind.name]}, _labels(kind, held)
    if kind.name.endswith("ForCTC") and (head := held.get("lm_head.weight")):
        new["vocab_size"] = head.shape[0]  # of letters: nothing but the head has a row for each
    if count is None or (count == labels_of(config) and kind.name in (config.get("architectures") or [])):
        return new
    if count != labels_of(config):
        new = {
            key: value
            for key, value in new.items()
            if key not in ("id2label", "label2id", "num_labels", "problem_type")
        }
        if count != 2:  # two is what transformers takes where nothing is said, and what it leaves out
            new["id2label"] = {str(i): f"LABEL_{i}" for i in range(count)}
            new["label2id"] = {f"LABEL_{i}": i for i in range(count)}
    if count == 1 and kind.task == "SEQ_CLS":
        new["problem_type"] = "regression"  # what transformers' classes take one label for
    return new


def _notes(checkpoint: Checkpoint, kind: TaskClass, held: Mapping[str, Tensor], made: _Made) -> list[str]:
    count, current = _labels(kind, held), current_class(checkpoint)
    labels = f", with {count} labels" if count is not None else ""
    named = f"config.json names {kind.name}{labels}" + (
        f", no more {current}" if current and current != kind.name else ""
    )
    if count is not None and count != labels_of(checkpoint.config):
        named += (
            f"; the base had {labels_of(checkpoint.config)}, and their names are not in the adapter: id2label in"
            " config.json"
        )
    notes = [f"{named}: the class that the adapter was trained in"]
    if made.dropped:
        notes.append(
            f"left out, since {kind.name} has no place for them: {', '.join(listed(sorted(made.dropped, key=natural)))}"
        )
    if made.renamed:
        how = f"are under {kind.prefix}. now" if kind.prefix else f"are without {prefix_of(checkpoint.config)}. now"
        notes.append(f"{made.renamed} tensors {how}, as {kind.name} has them")
    return notes
