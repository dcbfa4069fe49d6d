"""VeRA: two random matrices that all modules share, and two trained vectors of each: W + diag(b) B diag(d) A.

    vera_lambda_d (r), vera_lambda_b (out); shared: vera_A (r, at least in), vera_B (at least out, r)

PVeRA draws its A's outputs in training, and takes their means live: the first halves of a d and an A of 2 r rows.
Matrices that were not saved are drawn again: A, then B, Kaiming's uniform numbers from one generator on the CPU, as
wide and as tall as the largest of all modules.
Source: peft 0.21.2, tuners/vera/layer.py `get_delta_weight`, tuners/vera/model.py `_init_vera_A_vera_B`; tuners/pvera,
the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from ...errors import AdapterError, NotSupported
from ...files.peft import SHARED, Adapter
from ...lazy.dtypes import F32
from ...lazy.gain import Gain
from ...lazy.low_rank import LowRank
from ...lazy.tensor import MADE, Shape, Tensor, add, concat, made, narrow
from .method import Effect, Method, Target, said


def effect(target: Target) -> Effect:
    """What it does to the module."""
    out, wide = target.weight.shape
    kind, halves = _kind(target.adapter)
    d, b = target.part(f"{kind}_lambda_d", None), target.part(f"{kind}_lambda_b", out)
    rank = d.size // halves
    if rank * halves != d.size:
        raise target.wrong(f"{kind}_lambda_d has {d.size} numbers, and not two for each rank")
    a, shared = target.shared(f"{kind}_A", d.size, None), target.shared(f"{kind}_B", None, rank)
    if a.shape[1] < wide or shared.shape[0] < out:
        raise target.wrong(f"{kind}_A {a.shape} and {kind}_B {shared.shape} are smaller than the module")
    left = add(narrow(shared, 0, 0, out), [], F32, Gain(b, None))
    right = add(narrow(narrow(a, 0, 0, rank), 1, 0, wide), [], F32, Gain(narrow(d, 0, 0, rank), None))
    return Effect(deltas=(LowRank(left, right, 1.0),))


def prepared(adapter: Adapter, widest: Callable[[], int]) -> Adapter:
    """The adapter with the matrices that it did not save."""
    kind, halves = _kind(adapter)
    held = {f"{kind}_A", f"{kind}_B"} & adapter.shared.keys()
    if held or adapter.config.get("save_projection") is not False:
        return adapter
    tall = max(parts[f"{kind}_lambda_b"].size for parts in adapter.lora.values() if f"{kind}_lambda_b" in parts)
    rank, seed, wide = _whole(adapter, "r"), _whole(adapter, "projection_prng_key"), widest()
    _check_rank(adapter, f"{kind}_lambda_d", halves * rank)
    a, b = (halves * rank, wide), (tall, rank)
    shared = {f"{kind}_A": _drawn(a, seed, 0), f"{kind}_B": _drawn(b, seed, a[0] * a[1])}
    names = {part: f"{SHARED}.{part}" for part in shared}
    how = "drawn from its seed as torch does on a CPU"
    note = f"{adapter.path}: {kind}_A {a} and {kind}_B {b} are not in the file, and {how}"
    return replace(
        adapter,
        shared={**adapter.shared, **shared},
        names={**adapter.names, **names},
        notes=(*adapter.notes, note),
    )


def _check_rank(adapter: Adapter, part: str, size: int) -> None:
    """Raise AdapterError for a rank that is not the vectors': so much would be drawn in vain."""
    for module, parts in adapter.lora.items():
        if part in parts and parts[part].shape != (size,):
            where = [f"{adapter.path}: {adapter.names[f'{module}.{part}']} {parts[part].shape}"]
            tip = "restore adapter_config.json from the training"
            raise AdapterError(f"adapter_config.json says r = {adapter.config.get('r')}", where=where, help=tip)


def _drawn(shape: tuple[int, int], seed: int, skip: int) -> Tensor:
    """Numbers of `kaiming_uniform_`, in as many blocks of rows as are held at once."""
    rows, columns = shape
    step, bound = max(1, MADE // columns), math.sqrt(3) * (math.sqrt(2) / math.sqrt(columns))
    blocks = [
        made(
            (tall := min(step, rows - row), columns),
            "torch uniform",
            [],
            rows=float(tall),
            columns=float(columns),
            seed=float(seed % (1 << 32)),
            skip=float(skip + row * columns),
            bound=bound,
        )
        for row in range(0, rows, step)
    ]
    return concat(blocks, 0)


def _kind(adapter: Adapter) -> tuple[str, int]:
    """What the names of its tensors begin with, and how many rows of A there are for each rank."""
    return ("pvera", 2) if adapter.config.get("peft_type") == "PVERA" else ("vera", 1)


def _whole(adapter: Adapter, key: str) -> int:
    """A number of adapter_config.json. Raises AdapterError."""
    value = adapter.config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or (key == "r" and value < 1):
        what = f"{key} = {value!r}: matrices that the adapter did not save do not follow from it"
        tip = "restore adapter_config.json from the training, or save the adapter with save_projection=True"
        raise AdapterError(what, where=[f"{adapter.path}/adapter_config.json"], help=tip)
    return value


def _check_sampling(adapter: Adapter) -> None:
    if adapter.config.get("sample_at_inference"):
        where = [f"{adapter.path}/adapter_config.json", "sample_at_inference = true"]
        tip = "serve it live; or, where its means will do, set sample_at_inference to false in adapter_config.json"
        raise NotSupported("PVeRA that draws at inference is not merged: no weight is random", where=where, help=tip)


def span(adapter: Adapter, module: str) -> Shape | None:
    """Its outputs; the inputs are those of the largest module."""
    kind, parts = _kind(adapter)[0], adapter.lora[module]
    a = parts.get(f"{kind}_A", adapter.shared.get(f"{kind}_A"))
    return (
        (parts[f"{kind}_lambda_b"].size, a.shape[-1] if a is not None else 1) if f"{kind}_lambda_b" in parts else None
    )


METHOD = Method(
    "VERA",
    "VeRA",
    "its shared matrices from the file, or drawn again from their seed",
    effect,
    options=said("r projection_prng_key save_projection vera_dropout d_initial init_weights bias"),
    partly=lambda part: part in ("vera_A", "vera_B"),
    axes={"vera_lambda_d": ("r",), "vera_A": ("r", None), "vera_B": (None, "r")},
    span=span,
    prepared=prepared,
)
SAMPLED = replace(
    METHOD,
    peft_type="PVERA",
    name="PVeRA",
    why="the means of what it draws in training; refused with `sample_at_inference`",
    options=said(
        "r projection_prng_key save_projection pvera_dropout d_initial init_weights bias generator_seed"
        " sample_at_inference"
    ),
    axes={"pvera_B": (None, "r")},
    check=_check_sampling,
    partly=lambda part: part in ("pvera_A", "pvera_B", "pvera_lambda_d"),
)
