"""A quantised checkpoint under the names and the config of another class: codes as they are.

What is converted in 16 bits says which tensors there are, of which shapes; the codes were split and renamed beside
it, and must mean those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import NotSupported, listed
from ..lazy.tensor import Decoded, Tensor, children, narrow
from ..names import natural
from .declared import replaced
from .fused_codes import FIRST, content_of
from .quantised import Quantisation, quantised


def check_convertible(checkpoint: Checkpoint, held: Quantisation) -> None:
    """Raise NotSupported for what is said of the quantisation in a config that the result has not."""
    if held.weights and len(held.at) > 1:
        where, tip = f"{checkpoint.path}: {'.'.join(held.at)}", FIRST.format(checkpoint.path)
        raise NotSupported("what is quantised is said in a nested config", where=[where], help=tip)


def with_codes(apart: Checkpoint, moved: Checkpoint, held: Quantisation, said: Mapping[str, Any]) -> Checkpoint:
    """`apart`, whose codes have their new names, as `moved` is in 16 bits, which has the config of its class; `said`
    is what that says of quantisation. Raises NotSupported unless each weight means what it does there.
    """
    files = {**apart.files, "config.json": moved.files["config.json"]}
    made = replace(apart, files=files, history=moved.history)
    made = made.with_config(replaced(moved.config, held.at, said)) if held.at else made
    now = quantised(made)
    found, named = now.weights, [part for one in now.weights.values() for part in (*one.parts, *one.left)]
    parts = [part for part in dict.fromkeys((*named, *now.left)) if part in apart.tensors]
    plain = {name: tensor for name, tensor in moved.tensors.items() if name not in found}
    others = [*(n for n, t in plain.items() if _is_decoded(t)), *(found.keys() - moved.tensors.keys())]
    wrong = others or [n for n, one in found.items() if not _means(one.weight, moved.tensors[n])]
    lost = [name for name in apart.tensors if name not in parts and name not in plain]
    if wrong or lost:
        raise NotSupported(
            "the codes would not mean what the class computes with",
            where=[apart.path, *listed(sorted([*wrong, *lost], key=natural))],
            help=FIRST.format(apart.path),
        )
    tensors = {**plain, **{part: apart.tensors[part] for part in parts}}
    shards = {name: moved.weight_map[name] for name in plain} | {part: apart.weight_map[part] for part in parts}
    return replace(made, tensors=tensors, weight_map=shards)


def _is_decoded(tensor: Tensor) -> bool:
    return isinstance(tensor, Decoded) or any(map(_is_decoded, children(tensor)))


def _means(one: Tensor, wanted: Tensor) -> bool:
    """Whether two weights are of one shape and agree in some rows: they do not where one is turned, or another's."""
    if one.shape != wanted.shape or one.dtype != wanted.dtype:
        return False
    rows = one.shape[-2]
    looked = [[narrow(weight, -2, row, 1) for row in (0, rows // 2, rows - 1)] for weight in (one, wanted)]
    return [content_of(row) for row in looked[0]] == [content_of(row) for row in looked[1]]
