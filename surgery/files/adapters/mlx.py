"""Adapters of mlx-lm: `adapters.safetensors`, with an adapter_config.json beside it.

    X.lora_a (in, r), X.lora_b (r, out)        y + scale * x @ lora_a @ lora_b: PEFT's A and B, transposed
    embeddings: (vocabulary, r), (r, dim)      scale * lora_a @ lora_b is added to the weight
    SwitchLinear (experts): lora_a (experts, r, in), lora_b (experts, out, r), not transposed
    X.m (out)                                  DoRA's magnitude, with `fine_tune_type: dora`

`lora_parameters.scale` is the scale itself, and so PEFT's alpha is scale * r. Until spring 2024 the config said alpha,
too, and the scale was scale * alpha / rank. `fine_tune_type: full` are whole weights, which take the base's place.

Source: mlx-lm, tuner/lora.py, tuner/dora.py, tuner/utils.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ...errors import AdapterError, NotSupported, listed
from ...lazy.tensor import Tensor, narrow, permute, reshape
from ...names import is_called
from ..peft import Adapter
from .format import Format, Found, Said, all_grouped, pair_of, told_alpha
from .lora import is_embedding, lora_adapter

TOOL = "MLX"
_NAME = re.compile(r"(?P<module>.+)\.(?P<part>lora_a|lora_b|m)")
_PAIR = ("lora_a", "lora_b")
# What the experts' own tensors are called, where they are stacked in MLX: by the module that holds them.
_EXPERTS = {"block_sparse_moe": {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}}


def recognise(found: Found) -> str:
    """What tells it."""
    factors = [name for name in found.tensors if re.fullmatch(r".+(?<!\.weight)\.lora_[ab]", name)]
    said = [key for key in ("fine_tune_type", "lora_parameters") if key in found.config]
    if factors:
        config = f", adapter_config.json has {' and '.join(said)}" if said else ""
        return f"{factors[0]} and such are called as its LoRA is{config}"
    if said and found.config.get("fine_tune_type") == "full":
        return "adapter_config.json has fine_tune_type full"
    return ""


def read(found: Found, said: Said) -> Adapter:
    """The adapter. Raises FormatError, AdapterError, NotSupported."""
    kind = found.config.get("fine_tune_type", "lora")
    if kind == "full":
        return _whole(found)
    if kind not in ("lora", "dora"):
        raise NotSupported(f"fine_tune_type {kind!r} of MLX is not known", where=[found.path], help="fuse it with MLX")
    modules = all_grouped(found, _NAME, TOOL)
    dora = {module for module, parts in modules.items() if "m" in parts}
    if (found.config and bool(dora) != (kind == "dora")) or (dora and dora != modules.keys()):
        what = f"{len(dora)} of {len(modules)} modules have DoRA's magnitudes, and fine_tune_type is {kind!r}"
        raise AdapterError(what, where=[found.path], help="config and file are not of one training; restore them")
    _check_aimed_at(found, modules)
    lora: dict[str, dict[str, Tensor]] = {}
    names, ranks = dict[str, str](), dict[str, tuple[int, float | None]]()
    for module, parts in modules.items():
        for name, (made, rank) in _factors(found, module, parts).items():
            lora[name], ranks[name] = made, (rank, _alpha(found, said, rank))
            names |= {f"{name}.{part}": f"{module}.{_FILE[part]}" for part in made}
    tied = any(map(is_embedding, lora))  # its embedding is the head with what LoRA adds, too, where they are one
    return lora_adapter(found, TOOL, lora, names, ranks, use_dora=bool(dora), ensure_weight_tying=tied)


def _check_aimed_at(found: Found, modules: Iterable[str]) -> None:
    """Raise AdapterError for LoRA on modules, or in more layers, than the config speaks of: MLX passes over them."""
    said = found.config.get("lora_parameters")
    keys, layers = said.get("keys") if isinstance(said, Mapping) else None, found.config.get("num_layers")
    lost = [one for one in modules if isinstance(keys, list) and keys and not is_called(one, map(str, keys))]
    numbers = {number[0] for one in modules if (number := re.search(r"(?<=layers\.)\d+(?=\.)", one))}
    if lost:
        rows = [found.path, *listed(sorted(lost)), f"keys = {keys!r}"]
        tip = "MLX would pass over them: restore adapter_config.json from the training"
        raise AdapterError("lora_parameters does not aim at modules that the adapter has LoRA on", where=rows, help=tip)
    if isinstance(layers, int) and not isinstance(layers, bool) and 0 <= layers < len(numbers):
        rows = [found.path, f"num_layers = {layers}"]
        tip = "MLX would pass over the first ones: restore adapter_config.json from the training"
        raise AdapterError(f"the adapter has LoRA in {len(numbers)} layers", where=rows, help=tip)


_FILE = {
    "lora_A.weight": "lora_a",
    "lora_B.weight": "lora_b",
    "lora_embedding_A": "lora_a",
    "lora_embedding_B": "lora_b",
    "lora_magnitude_vector": "m",
}


def _factors(found: Found, module: str, parts: Mapping[str, Tensor]) -> dict[str, tuple[dict[str, Tensor], int]]:
    """PEFT's tensors, and the rank, of the module, or of each expert in it."""
    if any(len(parts[name].shape) == 3 for name in _PAIR if name in parts):
        return _experts(found, module, parts)
    a, b = pair_of(found, module, parts, _PAIR)
    if a.shape[1] != b.shape[0]:
        what = f"lora_a {a.shape} and lora_b {b.shape} are not (in, r) and (r, out)"
        tip = "the file is of another tool, or of two trainings: --format says which tool's it is"
        raise AdapterError(what, where=[f"{found.path}: {module}.lora_a"], help=tip)
    first, second = (
        ("lora_embedding_A", "lora_embedding_B") if is_embedding(module) else ("lora_A.weight", "lora_B.weight")
    )
    made: dict[str, Tensor] = {first: permute(a, (1, 0)), second: permute(b, (1, 0))}
    if "m" in parts and is_embedding(module):
        what = "DoRA on an embedding gives its rows lengths in MLX, and its columns in PEFT"
        raise NotSupported(what, where=[f"{found.path}: {module}.m"], help="fuse it with MLX")
    if "m" in parts:
        made["lora_magnitude_vector"] = parts["m"]
    return {module: (made, a.shape[1])}


def _experts(found: Found, module: str, parts: Mapping[str, Tensor]) -> dict[str, tuple[dict[str, Tensor], int]]:
    """The LoRA of each expert, under the name that its own tensor has: X.switch_mlp.up_proj is X.experts.N.up_proj."""
    a, b = pair_of(found, module, parts, _PAIR, 3)
    count, rank = a.shape[:2]
    holder, _, leaf = module.partition(".switch_mlp.")
    if "m" in parts or not leaf or b.shape[0] != count or b.shape[2] != rank:
        what = f"lora_a {a.shape} and lora_b {b.shape} are not (experts, r, in) and (experts, out, r) of a switch_mlp"
        raise NotSupported(what, where=[f"{found.path}: {module}"], help="fuse it with MLX")
    leaf = _EXPERTS.get(holder.rpartition(".")[2], {}).get(leaf, leaf)
    return {
        f"{holder}.experts.{i}.{leaf}": (
            {"lora_A.weight": _one(a, i), "lora_B.weight": _one(b, i)},
            rank,
        )
        for i in range(count)
    }


def _one(stack: Tensor, i: int) -> Tensor:
    return reshape(narrow(stack, 0, i, 1), stack.shape[1:])


def _alpha(found: Found, said: Said, rank: int) -> float | None:
    """PEFT's alpha: scale * r. Raises AdapterError."""
    given: Any = found.config.get("lora_parameters") or {}
    where = [found.path, f"adapter_config.json: lora_parameters = {given!r}"]
    mend = "restore adapter_config.json from the training"
    if not isinstance(given, Mapping):
        raise AdapterError("lora_parameters are no numbers by their names", where=where, help=mend)
    if odd := [key for key in ("scale", "alpha", "rank") if key in given and not _is_number(given[key])]:
        what = f"the adapter's {odd[0]} is not a number: lora_parameters has {odd[0]} = {given[odd[0]]!r}"
        raise AdapterError(what, where=where, help=mend)
    scale = given.get("scale")
    if not found.config or scale is None:
        return told_alpha(found, said, rank, TOOL)
    if said.alpha is not None:
        tip = "leave --alpha away; --scale multiplies what an adapter does"
        raise AdapterError("adapter_config.json says the scale, and --alpha another", where=where, help=tip)
    if given.get("rank", rank) != rank:
        what = f"adapter_config.json says rank {given['rank']}, and the factors are of rank {rank}"
        raise AdapterError(what, where=where, help="config and file are not of one training; restore them")
    return float(scale) * rank * (given["alpha"] / rank if "alpha" in given else 1)


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)


def _whole(found: Found) -> Adapter:
    """A full fine-tune: every tensor takes the place of the base's."""
    whole = dict(found.tensors)
    return lora_adapter(found, TOOL, {}, {name: name for name in whole}, {}, whole=whole)


FORMAT = Format(
    "mlx", TOOL, recognise, read, marks=("lora",), files=("adapters.safetensors",), takes=frozenset({"alpha"})
)
