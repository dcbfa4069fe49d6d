"""A step of a checkpoint's history in words, on one line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ..errors import listed

Step = Mapping[str, Any]
SHOWN = 4


def told(step: Step) -> str:
    """What was done in it. A step that nobody here knows, or that is not as surgery writes it, by its fields."""
    with suppress(KeyError, TypeError, ValueError, AttributeError, IndexError):
        return WORDS[step["surgery"]](step)
    rest = {key: value for key, value in step.items() if key != "surgery" and value not in (None, (), [], {}, "", 0)}
    return f"{step.get('surgery')}: " + "; ".join(f"{key} {_field(value)}" for key, value in rest.items())


def _field(value: Any) -> str:
    """A field of an unknown step, however it nests."""
    if isinstance(value, Mapping):
        return _some([f"{key} {_field(one)}" for key, one in value.items()])
    return _some(map(_field, value)) if isinstance(value, list | tuple) else str(value)


def _some(items: Iterable[Any]) -> str:
    return ", ".join(listed([str(item) for item in items], SHOWN))


def _line(verb: str, *more: str) -> str:
    return f"{verb}: {'; '.join(found)}" if (found := [part for part in more if part]) else verb


def _count(number: int, what: str) -> str:
    return f"{number} {what if number == 1 else f'{what}s'}"


def _given(step: Step, *keys: str) -> list[str]:
    """The options that were given, by name."""
    return [f"{key.replace('_', '-')} {_field(step[key])}" for key in keys if step.get(key) not in (None, [], {})]


def _rules(rules: Sequence[Sequence[str]]) -> str:
    return _some(f"{pattern} -> {replacement}" for pattern, replacement in rules)


def _merge(step: Step) -> str:
    adapters = _some(_adapter(one) for one in step["adapters"])
    into = f" into {step['base']}" if step.get("base") else ""
    return _line(
        f"merge {adapters}{into}",
        f"{_count(step['computed'], 'tensor')} computed",
        f"{step['replaced']} replaced" if step.get("replaced") else "",
        f"added {_some(step['added'])}" if step.get("added") else "",
        f"map {_rules(step['map'])}" if step.get("map") else "",
        *_given(step, "only", "except", "add", "tokenizer", "architecture", "given", "quantised"),
        "base as trained" if step.get("base_as_trained") else "",
    )


def _adapter(one: Mapping[str, Any]) -> str:
    name = one.get("name") or f"an adapter of digest {one['digest'][:12]}"
    weight = f"weight {one['weight']:g}" if one.get("weight", 1) != 1 else ""
    beside = f"with {_some(one['with'])}" if one.get("with") else ""
    said = [weight, _count(one["modules"], "module"), beside]
    return f"{name} ({', '.join(part for part in said if part)})"


def _convert_files(step: Step) -> str:
    return f"convert-files: {step['from']}"


def _split(step: Step) -> str:
    return _line(
        "split", *(f"{m['count']} × {m['fused']} into {_some(m['parts'])} ({m['layout']})" for m in step["modules"])
    )


def _fuse(step: Step) -> str:
    return _line(
        "fuse", *(f"{m['count']} × {_some(m['parts'])} into {m['fused']} ({m['layout']})" for m in step["modules"])
    )


def _rename(step: Step) -> str:
    return _line("rename", f"{_count(step['renamed'], 'tensor')} by {_rules(step['rules'])}")


def _drop(step: Step) -> str:
    dropped = step["dropped"]
    return _line("drop", f"{_count(len(dropped), 'tensor')} by {step['pattern']}", _some(dropped))


def _keep(step: Step) -> str:
    return _line("keep", f"{_count(step['kept'], 'tensor')} by {step['pattern']}", f"{len(step['dropped'])} left out")


def _tie(step: Step) -> str:
    return _line("tie", _some(f"{name} is {holder}" for name, holder in step["tied"].items()))


def _untie(step: Step) -> str:
    return _line("untie", _some(f"{name}, which was {holder}" for name, holder in step["stored"].items()))


def _convert(step: Step) -> str:
    return _line(f"convert {step['from']} to {step['to']}", str(step["class"]))


def _cast(step: Step) -> str:
    kept, number = step.get("kept"), step.get("cast")
    return _line(
        "cast",
        str(step["dtype"]),
        f"{_count(kept, 'tensor')} in a dtype of their own" if kept else "",
        _count(number, "tensor") if number is not None else "",
        *_given(step, "only", "except"),
        "what is beyond its range as torch has it" if step.get("allow_overflow") else "",
    )


def _replicate(step: Step) -> str:
    order = step["layers"]
    return _line("replicate", f"{len(order)} layers: {', '.join(listed(list(map(str, order)), 2 * SHOWN))}")


def _vocabulary(step: Step) -> str:
    sizes = f"vocabulary of {step['tokens']} tokens, {step['before']} before"
    return _line(sizes, f"that of {step['tokenizer']}" if step.get("tokenizer") else "", f"new rows {step['new']}")


def _layers(step: Step) -> str:
    order = step["layers"]
    return _line(f"layers of {step['stack']}: {', '.join(listed(list(map(str, order)), 2 * SHOWN))}")


def _add(step: Step) -> str:
    return _line(f"add {_count(step['tensors'], 'tensor')} of {step['other']}", *_given(step, "prefix", "pattern"))


def _combine(step: Step) -> str:
    told = _some(f"{one['name']} (weight {one['weight']:g})" for one in step["adapters"])
    return _line(f"combine {told}", "A's and B's averaged apart" if step.get("average_factors") else "")


def _convert_adapter(step: Step) -> str:
    return _line(f"convert {step['adapter']} to the form {step['to']}")


def _resize(step: Step) -> str:
    return _line("change the rank of an adapter", *_given(step, "rank", "energy", "max_rank"))


def _extract(step: Step) -> str:
    options = _given(step, "rank", "energy", "max_rank", "rest", "only", "except", "seed")
    return _line(f"extract LoRA from {step['tuned']} and {step['base']}", *options)


def _inject(step: Step) -> str:
    return _line("inject LoRA", *(f"{key.replace('_', ' ')} {_field(step[key])}" for key in step if key != "surgery"))


def _inject_into(step: Step) -> str:
    return _line("put LoRA into the checkpoint", _count(step["tensors"], "tensor"))


def _dequantize(step: Step) -> str:
    weights = f"{_count(step['weights'], 'weight')} of {_field(step['schemes'])}"
    return _line("dequantize", weights, *_given(step, "only", "except", "dtype"))


def _quantize(step: Step) -> str:
    return _line(
        "quantize", f"{_count(step['weights'], 'weight')} as {step['scheme']}", *_given(step, "only", "except")
    )


def _unmerge(step: Step) -> str:
    if step.get("approximate"):
        return _line("unmerge, approximately", f"adapters of digest {_some(d[:12] for d in step['adapters'])}")
    dropped = step.get("dropped")
    return _line(
        "unmerge", f"{_count(step['restored'], 'tensor')} restored", f"dropped {_some(dropped)}" if dropped else ""
    )


def _blend(step: Step) -> str:
    base = f" on {step['base']}" if step.get("base") else ""
    return _line(
        f"blend {_some(step['models'])}{base} by {step['method']}",
        f"{_count(step['tensors'], 'tensor')}",
        *([f"with {_some(step['parameters'])}"] if step.get("parameters") else []),
        *_given(step, "seed"),
    )


def _map_rows(step: Step) -> str:
    named = _some(f"{pattern}: {one['name']}" for pattern, one in step["functions"].items())
    return _line(f"map rows of {_count(step['tensors'], 'tensor')} by {named}", *_given(step, "dtype", "columns"))


WORDS: Mapping[str, Callable[[Step], str]] = {
    "add": _add,
    "blend": _blend,
    "map-rows": _map_rows,
    "cast": _cast,
    "convert_files": _convert_files,
    "combine": _combine,
    "convert": _convert,
    "convert_adapter": _convert_adapter,
    "dequantize": _dequantize,
    "drop": _drop,
    "extract": _extract,
    "fuse": _fuse,
    "inject": _inject,
    "inject_into": _inject_into,
    "keep": _keep,
    "layers": _layers,
    "merge": _merge,
    "quantize": _quantize,
    "rename": _rename,
    "replicate": _replicate,
    "resize_adapter": _resize,
    "split": _split,
    "tie": _tie,
    "unmerge": _unmerge,
    "untie": _untie,
    "vocabulary": _vocabulary,
}
