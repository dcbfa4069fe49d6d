"""An adapter's names without the wrappers that frameworks leave in them: DDP, FSDP, torch.compile, a second PEFT
model, …

    module.base_model.model.lm_head.weight                                       lm_head.weight
    base_model.model._orig_mod.model.layers.0.self_attn.q_proj.lora_A.weight     model.layers.0.self_attn.q_proj
    base_model.model.model.layers.0._fsdp_wrapped_module.mlp.up_proj.bias        model.layers.0.mlp.up_proj.bias

The base decides what is one. A part of a name that none of the base's names has is no module of it; where the base
has modules called so, as few are taken off as give the name a place.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from ..errors import FormatError, NotSupported
from ..files.peft import PREFIX, Adapter, module_of
from ..files.wrappers import WRAPPERS, without

_AROUND = re.compile(
    r"(?:.*\.)?base_model\.model\."
)  # the front of a name, up to the model in the innermost PEFT model
_SAYING = (
    "target_modules exclude_modules modules_to_save target_parameters rank_pattern alpha_pattern"
    " trainable_token_indices".split()
)
_MOST = 4  # of the parts of one name that may be modules or wrappers


def unwrapped(adapter: Adapter, base: Iterable[str] = ()) -> Adapter:
    """The adapter, and what its config says of names, without wrappers; a note says which were taken off.

    `base` are the names of the base's tensors, in its files and in memory; without any, nothing called like a
    wrapper is a module. Raises FormatError where two tensors would get one name.
    """
    modules, parts = _modules_of(base)
    found = {key: _bare(key, adapter, modules, parts) for key in (*adapter.lora, *adapter.whole)}
    gone = {key: removed for key, (_, removed) in found.items() if removed}
    if not gone:
        return adapter
    new = {key: bare for key, (bare, _) in found.items()}
    _check_apart(adapter, new)
    names = {
        f"{new[key]}.{part}": adapter.names[f"{key}.{part}"] for key, held in adapter.lora.items() for part in held
    }
    return replace(
        adapter,
        config=_config(adapter.config, {part for removed in gone.values() for part in removed} - parts),
        lora={new[key]: held for key, held in adapter.lora.items()},
        whole={new[key]: tensor for key, tensor in adapter.whole.items()},
        names=names
        | {key: adapter.names[key] for key in adapter.shared}
        | {new[key]: adapter.names[key] for key in adapter.whole},
        notes=(*adapter.notes, _note(adapter, new, gone)),
    )


def check_unwrapped(adapter: Adapter, base: Iterable[str]) -> None:
    """Raise NotSupported where names have wrappers, which would go on into what is written, where loaders pass over
    them.
    """
    bare = unwrapped(adapter, base)
    if bare is not adapter:
        tip = (
            "merge takes them off; or save the adapter with PEFT's save_pretrained, from the model that the framework"
            " wrapped"
        )
        raise NotSupported(
            "the adapter's names have wrappers that a framework left in them", where=[bare.notes[-1]], help=tip
        )


def _modules_of(base: Iterable[str]) -> tuple[set[str], set[str]]:
    """Every module of the base by its whole name; and every part of these names."""
    paths, todo = set[str](), {name.rpartition(".")[0] for name in base}
    while todo:
        paths |= todo
        todo = {path.rpartition(".")[0] for path in todo} - paths
    return paths, {part for path in paths for part in path.split(".")}


def _bare(key: str, adapter: Adapter, modules: Collection[str], parts: Collection[str]) -> tuple[str, list[str]]:
    """The name without wrappers, and these; beside them those that stand behind the module in the file's name."""
    module = module_of(key) if key in adapter.whole else key
    file = _in_file(adapter, key)
    around = None if "base_model" in parts else _AROUND.match(f"{module}.")
    front = around[0].removesuffix(".") if around else ""
    own = f"{module}.".removeprefix(around[0]).removesuffix(".") if around else module
    sure = [part for part in own.split(".") if part not in WRAPPERS or part in parts]
    ways = [".".join(way) for way in _fewer(sure)]
    bare = next((way for way in ways if way in modules), None)
    bare = bare or next((way for way in ways if (parent := way.rpartition(".")[0]) and parent in modules), ways[0])
    if not bare:
        return key, []
    removed = [front if file.startswith(PREFIX) else front.removesuffix("base_model.model").removesuffix(".")]
    removed += list(
        (
            Counter(p for p in file.split(".") if p in WRAPPERS) - Counter(bare.split(".")) - Counter(front.split("."))
        ).elements()
    )
    return f"{bare}{key.removeprefix(module)}", [part for part in removed if part]


def _in_file(adapter: Adapter, key: str) -> str:
    return adapter.names[key] if key in adapter.whole else adapter.names[f"{key}.{next(iter(adapter.lora[key]))}"]


def _fewer(names: Sequence[str]) -> Iterator[list[str]]:
    """The parts of a name, and then without one, two, … of those that may be wrappers."""
    loose = [i for i, part in enumerate(names) if part in WRAPPERS][:_MOST]
    for count in range(len(loose) + 1):
        for gone in combinations(loose, count):
            yield [part for i, part in enumerate(names) if i not in gone]


def _check_apart(adapter: Adapter, new: Mapping[str, str]) -> None:
    back = dict[str, str]()
    for key, bare in new.items():
        if back.setdefault(bare, key) != key:
            where = [f"{adapter.path}: {_in_file(adapter, back[bare])}", _in_file(adapter, key)]
            raise FormatError(
                f"without wrappers, two adapter tensors mean the same: {bare}", where=where, help="keep one of them"
            )


def _config(config: Mapping[str, Any], gone: set[str]) -> dict[str, Any]:
    """The config with names and patterns that do without the wrappers."""

    def bare(said: Any) -> Any:
        match said:
            case str():
                return without(said, gone)
            case list():
                return [bare(one) for one in said]
            case dict():
                return {without(str(key), gone): value for key, value in said.items()}
        return said

    return {key: bare(value) if key in _SAYING else value for key, value in config.items()}


def _note(adapter: Adapter, new: Mapping[str, str], gone: Mapping[str, Sequence[str]]) -> str:
    kinds = Counter(part for removed in gone.values() for part in dict.fromkeys(removed))
    said = ", ".join(
        f"{part}. of {count} ({WRAPPERS.get(part, 'what held the model')})" for part, count in kinds.items()
    )
    first = next(iter(gone))
    return f"wrappers were taken off the names in {adapter.path}: {said}; {_in_file(adapter, first)} is of {new[first]}"
