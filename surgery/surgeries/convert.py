"""Convert: the same weights as another class of transformers loads them, with the config that makes it compute the
same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from ..checkpoint import Checkpoint
from ..errors import NothingMatched, PlanError, listed, series
from ..lazy.dropped import both
from ..models.alike import alike
from ..models.fused.given import Given
from ..models.skeleton import check_accepted, complete
from ..models.targets import TARGETS, targets_for, targets_of, why_not
from ..models.targets.target import Target
from ..names import natural
from ..quantization.converted import check_convertible, with_codes
from ..quantization.fused_names import lists_followed
from ..quantization.quantised import NOTHING, Quantisation, quantised
from ..quantization.settle import decoded
from ..step import Option, step
from .header_ties import along
from .originals import converted
from .rename import renamed
from .split import fused_in, split_at, split_in, without_note

_MODEL_TYPES = tuple(sorted({target.name for target in TARGETS}))
CARRIED = "the tokenizer's files, the chat template and generation_config.json are carried as they are"


@step
def convert(
    checkpoint: Checkpoint,
    to: Annotated[
        str,
        Option(
            "Write what this class of transformers loads, such as llama.",
            "MODEL_TYPE",
            ("--as",),
            words=_MODEL_TYPES,
        ),
    ],
) -> Checkpoint:
    """Write the same weights as another class of transformers loads them, such as a Phi-3 as llama.

        convert(open_checkpoint("phi3"), "llama")

    Fused modules are split, tensors renamed and moved, config.json is complete; nothing is computed.
    Quantised weights stay as they are: codes and scales under new names. Asks the class of transformers, on the meta
    device, whether it would load the result whole. Raises NothingMatched where no way is known, PlanError where the
    class would compute something else, or would not load every tensor, NotSupported where codes do not move as a whole.
    """
    if (original := converted(checkpoint, to)) is not None:
        return original
    target = _target(checkpoint, to)
    config, held = _resolved(checkpoint.config, target), quantised(checkpoint)
    _check_fits(checkpoint, target, config, held)
    moved = along(decoded(checkpoint, held), lambda parted: _moved(_named(parted, target), target))
    said = _written(config, target, checkpoint)
    written = {**complete(said), **said}
    check_accepted(written, target.model_class, moved.tensors)
    made = moved.with_config(written)
    gone = sorted(moved.dropped.keys() - checkpoint.dropped.keys(), key=natural)
    if held.weights:
        apart = along(checkpoint, lambda parted: _named(parted, target, held))
        made = with_codes(apart, made, held, quantised(apart).said)
    return made.with_step(
        {"surgery": "convert", "from": target.source, "to": target.name, "class": target.model_class},
        notes=(*without_note(checkpoint).notes, *_left_out(gone), *_notes(checkpoint.config, target, config)),
    )


def _named(checkpoint: Checkpoint, target: Target, held: Quantisation = NOTHING) -> Checkpoint:
    """Split and renamed, codes that are `held` as codes."""
    return _renamed(_apart(_without_buffers(checkpoint, target), target, held), target)


def _target(checkpoint: Checkpoint, to: str) -> Target:
    kind, known = checkpoint.config.get("model_type"), targets_of(checkpoint.config)
    if not kind:
        tip = "put the model's config.json beside the shards"
        raise NothingMatched(
            "without a model type in config.json no target is known", where=[checkpoint.path], help=tip
        )
    for target in known:
        if target.name == to:
            return target
    raise NothingMatched(
        f"no way is known from model type `{kind}` to `{to}`", where=[checkpoint.path], help=_known(kind, to, known)
    )


def _known(kind: object, to: str, known: Sequence[Target]) -> str:
    """What the type can become; where nothing is known of it, which types look like it."""
    if known:
        names = [target.name for target in known]
        return f"model type `{kind}` can become {series(names)}{alike(to, names)}"
    sources = {target.source for target in TARGETS}
    return f"no target is known for model type `{kind}`; {len(sources)} types have one{alike(kind, sources)}"


def _resolved(config: Mapping[str, Any], target: Target) -> dict[str, Any]:
    """The source's config with all that its class would assume."""
    if target.defaults:
        return {**target.defaults, **config, "dtype": config.get("dtype", config.get("torch_dtype"))}
    return complete(config)


def _check_fits(checkpoint: Checkpoint, target: Target, config: Mapping[str, Any], held: Quantisation) -> None:
    raw = checkpoint.config
    unlike, why = why_not(target, raw if target.defaults else config), list[str]()
    named = [str(name) for name in raw.get("architectures") or ()]
    if named and not set(named) & set(target.classes):
        why.append(f"its class is {', '.join(named)}: what is known is {' or '.join(target.classes)}")
    if raw.get("quantization_config") and not held.weights:
        why.append("quantization_config: the weights are quantised, as it says, and none has codes")
    if not (unlike or why):
        check_convertible(checkpoint, held)
        return
    others = [name for name in targets_for(raw) if name != target.name and not why]
    raise PlanError(
        f"this {target.source} is no {target.name}: it would load in silence and compute something else",
        where=[checkpoint.path, *unlike, *why],
        help=(
            f"{' or '.join(others)} would compute the same" if others else "no other class is known to compute the same"
        ),
    )


def _without_buffers(checkpoint: Checkpoint, target: Target) -> Checkpoint:
    """Without constants that old files hold, and that the class makes itself."""
    gone = {n: t for n, t in checkpoint.tensors.items() if target.buffers and re.fullmatch(target.buffers, n)}
    return replace(
        checkpoint,
        tensors={n: t for n, t in checkpoint.tensors.items() if n not in gone},
        weight_map={n: s for n, s in checkpoint.weight_map.items() if n not in gone},
        dropped=both(checkpoint.dropped, gone),
    )


def _apart(checkpoint: Checkpoint, target: Target, held: Quantisation) -> Checkpoint:
    """What is fused split, and what was split before under its own names called as the target calls it."""
    calls: dict[str, str] = {}
    for site in split_in(decoded(checkpoint, held), target.kinds):
        theirs = replace(site, row=site.row.called(target.names))
        calls |= dict(zip(site.parts, theirs.parts, strict=True))

    def name(old: str) -> str:
        ends = [i for i, sign in enumerate(old) if sign == "."]
        return next((f"{calls[old[:end]]}{old[end:]}" for end in reversed(ends) if old[:end] in calls), old)

    called = _called(checkpoint, {old: name(old) for old in checkpoint.tensors})
    held = quantised(called) if held.weights and calls else held
    sites = fused_in(decoded(called, held), target.kinds, Given(names=target.names))
    return split_at(called, sites, held, again=False) if sites else called


def _renamed(checkpoint: Checkpoint, target: Target) -> Checkpoint:
    rules = [rule for rule in target.rules if any(re.search(rule[0], name) for name in checkpoint.tensors)]
    return _called(checkpoint, renamed(list(checkpoint.tensors), rules))


def _called(checkpoint: Checkpoint, new: Mapping[str, str]) -> Checkpoint:
    """With new names, in the lists of what is quantised as well."""
    made = replace(
        checkpoint,
        tensors={new[n]: t for n, t in checkpoint.tensors.items()},
        weight_map={new[n]: s for n, s in checkpoint.weight_map.items()},
    )
    return lists_followed(made, checkpoint, new)


def _moved(checkpoint: Checkpoint, target: Target) -> Checkpoint:
    for move in target.moves:
        made = move(checkpoint.tensors)
        checkpoint = replace(
            checkpoint,
            tensors={**checkpoint.tensors, **{name: tensor for name, (tensor, _) in made.items()}},
            weight_map={
                **checkpoint.weight_map,
                **{name: checkpoint.weight_map[beside] for name, (_, beside) in made.items()},
            },
        )
    return checkpoint


def _written(config: Mapping[str, Any], target: Target, checkpoint: Checkpoint) -> dict[str, Any]:
    """What the target's config says because the source's does. Raises PlanError where that does not tell."""
    try:
        fields = target.fields(config)
    except KeyError as error:
        tip = "complete config.json from the model's configuration class: the result depends on it"
        raise PlanError(f"config.json has no {error.args[0]}", where=[checkpoint.path], help=tip) from error
    except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError) as error:
        tip = "mend it from the model's configuration class"
        raise PlanError(f"config.json makes no sense: {error}", where=[checkpoint.path], help=tip) from error
    return {"model_type": target.name, "architectures": [target.model_class], "dtype": config.get("dtype"), **fields}


def _left_out(gone: Sequence[str]) -> list[str]:
    return [f"left out, since the class makes it itself: {series(listed(gone))}"] if gone else []


def _notes(raw: Mapping[str, Any], target: Target, config: Mapping[str, Any]) -> list[str]:
    assumed = [f"{name} {config[name]}" for name in target.defaults if name not in raw and config[name] is not None]
    remote = [str(file) for file in (raw.get("auto_map") or {}).values()]
    return [
        *target.notes(config),
        *(
            [f"config.json does not say, and the model's code assumes: {', '.join(listed(assumed, 20))}"]
            if assumed
            else []
        ),
        *(["config.json names no remote code any more; the files with it are carried"] if remote else []),
        f"{target.model_class} takes every tensor: none is missing, unexpected or of another shape",
        CARRIED,
    ]
