"""A quantised checkpoint with some of its weights in 16 bits, and a config.json that says which."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import NotSupported, listed
from ..lazy.dropped import both
from ..lazy.dtypes import Dtype
from ..lazy.tensor import File, Tensor, stored
from ..names import natural
from .declared import replaced, without
from .quantised import Quantisation, said_in
from .scheme import DTYPES, Quantised, module_of

NAMES = {dtype: name for name, dtype in DTYPES.items()}


def widened(checkpoint: Checkpoint, held: Quantisation, names: Collection[str]) -> Checkpoint:
    """The checkpoint with the weights called `names` as what their codes mean; codes and companions are gone.

    config.json says nothing of quantisation if all are, else that these are not quantised. Raises NotSupported where
    no loader honours that.
    """
    tensors, weight_map = dict(checkpoint.tensors), dict(checkpoint.weight_map)
    gone = dict[str, Tensor]()
    for name in names:
        one = held.weights[name]
        shard = weight_map[one.codes]
        for part in (*one.parts, *one.left):
            tensors.pop(part, None)
            weight_map.pop(part, None)
        gone |= _unsaid(checkpoint, one)
        tensors[name], weight_map[name] = one.weight, shard
    for name in held.left if len(names) == len(held.weights) else ():
        gone[name] = tensors.pop(name)
        del weight_map[name]
    made = replace(checkpoint, tensors=tensors, weight_map=weight_map, dropped=both(checkpoint.dropped, gone))
    return _configured(made, held, names)


def _unsaid(checkpoint: Checkpoint, one: Quantised) -> Mapping[str, Tensor]:
    """The tensors of a weight of which nothing goes into its value, or not all."""
    used = set(stored(one.weight))
    return {
        part: tensor
        for part in (*one.parts, *one.left)
        if (tensor := checkpoint.tensors.get(part)) is not None
        and (leaves := set(stored(tensor)))
        and (part in one.padded or not used & leaves)
    }


def _configured(made: Checkpoint, held: Quantisation, names: Collection[str]) -> Checkpoint:
    """With what config.json, and the files beside it, say of the quantisation now."""
    assert held.scheme
    if len(names) == len(held.weights) or not held.scheme.written:
        files = {name: file for name, file in made.files.items() if name not in held.scheme.files}
        made = replace(made, files=files, metadata=_headers(made, held))
        config = _of_dtype(without(made.config), [made.tensors[name].dtype for name in held.weights])
        return made.with_config(config) if "config.json" in files else made
    said = mixed(made, held, names)
    made = replace(made, files={**made.files, **beside(made, held, names)})
    return made.with_config(replaced(made.config, held.at, said)) if held.at else made


def beside(checkpoint: Checkpoint, held: Quantisation, names: Collection[str]) -> Mapping[str, File | bytes]:
    """The files that say the same as config.json, with what they say where the weights `names` are in 16 bits."""
    assert held.scheme
    found = {name: file for name in held.scheme.files if (file := checkpoint.files.get(name)) is not None}
    if held.scheme.skip is None or not names:
        return found
    wide, still = _modules(held, names)
    return {
        name: f"{json.dumps(held.scheme.skip(said_in(checkpoint, name), wide, still), indent=4)}\n".encode()
        for name in found
    }


def _headers(made: Checkpoint, held: Quantisation) -> Mapping[str, Mapping[str, str] | None]:
    """The `__metadata__` of its shards, where nothing is quantised any more."""
    unsaid = held.scheme.header if held.scheme else None
    return {shard: unsaid(said) if unsaid and said else said for shard, said in made.metadata.items()}


def mixed(checkpoint: Checkpoint, held: Quantisation, names: Collection[str]) -> Mapping[str, Any]:
    """What is to be said where only the weights called `names` are in 16 bits. Raises NotSupported."""
    assert held.scheme
    if held.scheme.skip is None or not (held.at or held.scheme.files):
        why = held.scheme.why or "config.json does not say how it is quantised"
        raise NotSupported(
            f"some weights in 16 bits and others quantised is what no loader of {held.scheme.method} takes: {why}",
            where=[checkpoint.path, *listed(sorted(names, key=natural))],
            help="dequantise all of it: --dequantize; or keep the codes, at a price: --requantize",
        )
    return held.scheme.skip(held.said, *_modules(held, names))


def _modules(held: Quantisation, names: Collection[str]) -> tuple[list[str], list[str]]:
    """The modules of the weights called `names`, and those of the others."""
    names = frozenset(names)
    wide = sorted({module_of(name) for name in names}, key=natural)
    return wide, sorted({module_of(name) for name in held.weights if name not in names}, key=natural)


def _of_dtype(config: Mapping[str, Any], dtypes: list[Dtype]) -> dict[str, Any]:
    """The config with the dtype that most weights are decoded to, where it says one."""
    main = NAMES.get(Counter(dtypes).most_common(1)[0][0])
    said = {key: main for key in ("dtype", "torch_dtype") if main and isinstance(config.get(key), str)}
    return {**config, **said}
