"""The oracle of fused attention: the parts of a split checkpoint are the operands of the model's own attention
arithmetic.

It knows no layout. It records what reaches the model's matrix products after the fused projection was entered, with
rotary embeddings and norms of q and k made the identity, and compares that with what the parts in the written files
compute from the same input. Every case has its controls: other layouts of as many rows, which must fail the same
comparison.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from conftest import hashes
from safetensors.torch import load_file, save_file

import surgery

Rows = tuple[int, tuple[int, ...], int]  # groups, slots of each part, unit
Wrong = tuple[Rows, tuple[int, ...]]  # another layout, and which of its parts is taken for each of the case's


@dataclass
class Call:
    """One forward pass of a fused module: its name, its input, and since then the operands of the products, and what
    reached the functions and modules that the case records.
    """

    module: str
    hidden: torch.Tensor
    products: list[tuple[torch.Tensor, ...]] = field(default_factory=list)
    recorded: dict[str, tuple[torch.Tensor, ...]] = field(default_factory=dict)


States = Callable[[Call], Sequence[torch.Tensor]]


def attention(call: Call) -> list[torch.Tensor]:
    """q, k, v of the first attention: of the fused function, else of q @ kᵀ and p @ v."""
    if whole := next((operands for operands in call.products if len(operands) == 3), None):
        return list(whole)
    (q, k), (_, v) = call.products[:2]
    return [q, k.transpose(-1, -2), v]


def keys_and_values(call: Call) -> list[torch.Tensor]:
    """k, v of the first attention, of a module that projects nothing else."""
    return attention(call)[1:]


@dataclass(frozen=True)
class Case:
    """A family as the oracle meets it."""

    model: Callable[[], Any]  # tiny; `build` makes its biases and norms random
    inputs: Callable[[], Mapping[str, Any]]
    fused: str  # end of the fused module's name in memory
    parts: tuple[str, ...]  # last names of its parts in the files, in the order of `states`
    heads: tuple[int, ...]  # of each part
    wrong: tuple[Wrong, ...] = ()  # beside those that `others` finds
    order: tuple[int, ...] = ()  # which part of the fused axis each one of `parts` is; empty: in their order
    axis: int = 0
    identity: tuple[str, ...] = ()  # last names of modules made the identity, such as norms of q and k
    patches: Mapping[str, Any] = field(default_factory=dict)  # in the modeling module
    records: tuple[
        str, ...
    ] = ()  # functions of the modeling module, and last names of modules, whose first tensors `states` needs
    settle: Callable[[Any], Any] = lambda model: None  # what is set in the model after its parameters were made random
    states: States = attention
    scales: tuple[float, ...] = ()  # by which the module multiplies its states before the product
    module: Callable[[str], str] = str  # name of the fused module in memory -> in the files
    weight: str = ".weight"  # what follows the fused module's name in the files
    bias: str = ".bias"
    save: Callable[[Any, Path], Any] = lambda model, folder: model.save_pretrained(folder)
    shard: str = ""  # max_shard_size of save_pretrained
    source: str = ""  # modules of transformers that the classes are in; empty: the model's own


@dataclass
class Evidence:
    """What one run of a case gives: the folders, their tensors, and the calls."""

    case: Case
    base: Path
    split: Path
    fused: dict[str, torch.Tensor]
    parts: dict[str, torch.Tensor]
    calls: list[Call]


def build(case: Case) -> Any:
    """The case's model in eval mode, with random biases and norms."""
    torch.manual_seed(0)
    model = case.model().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2 or "bias" in name.rpartition(".")[2]:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        case.settle(model)
    return model


def evidence(case: Case, folder: Path) -> Evidence:
    """Save the case's model in `folder`, split what was saved, and record the model's calls."""
    model = build(case)
    if case.shard:
        model.save_pretrained(folder / "base", max_shard_size=case.shard)
    else:
        case.save(model, folder / "base")
    surgery.write(surgery.split_qkv(surgery.open_checkpoint(folder / "base")), folder / "split")
    with torch.no_grad(), recorded(model, case) as calls:
        model(**case.inputs())
    return Evidence(
        case, folder / "base", folder / "split", tensors_in(folder / "base"), tensors_in(folder / "split"), calls
    )


def evidence_of(cases: Mapping[str, Case], factory: pytest.TempPathFactory) -> Callable[[str], Evidence]:
    """What the case of a name gives, made once."""
    return cache(lambda name: evidence(cases[name], factory.mktemp("case")))


def check_fuses_back(folder: Path) -> None:
    """The checkpoint `folder`/base is split into `folder`/split, and what is fused from that, `folder`/fused, has the
    same files.
    """
    surgery.write(surgery.split_qkv(surgery.open_checkpoint(folder / "base")), folder / "split")
    surgery.write(surgery.fuse_qkv(surgery.open_checkpoint(folder / "split")), folder / "fused")
    assert hashes(folder / "fused") == hashes(folder / "base")


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint's folder, read by safetensors."""
    return {n: t for file in sorted(folder.glob("*.safetensors")) for n, t in load_file(file).items()}


def saves_as(prefix: str, config: Any) -> Callable[[Any, Path], None]:
    """Saves a bare module of a model's, with the names and the config that the model's checkpoint has."""

    def save(module: torch.nn.Module, folder: Path) -> None:
        folder.mkdir(parents=True)
        state = {f"{prefix}{name}": tensor.contiguous() for name, tensor in module.state_dict().items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(folder)

    return save


# Recording

PRODUCTS = (
    (torch.nn.functional, "scaled_dot_product_attention"),
    *((owner, name) for owner in (torch, torch.Tensor) for name in ("matmul", "bmm", "baddbmm")),
    (torch.Tensor, "__matmul__"),
    (torch, "einsum"),
)


@contextmanager
def recorded(model: Any, case: Case) -> Iterator[list[Call]]:
    """The calls of the model's fused modules, in order, and the operands of the products that follow."""
    calls: list[Call] = []
    modules = dict(model.named_modules())
    named = {n: m for n, m in modules.items() if f".{n}".endswith(f".{case.fused}")}
    assert named, f"no {case.fused} among {sorted(modules)}"
    with ExitStack() as stack:
        for name, module in named.items():
            hook = module.register_forward_pre_hook(_entered(calls, name), with_kwargs=True)
            stack.callback(hook.remove)
        for owner, name in PRODUCTS:
            stack.enter_context(patch.object(owner, name, _recording(calls, getattr(owner, name), name)))
        for name, module in modules.items():
            if (leaf := name.rpartition(".")[2]) in case.identity:
                stack.enter_context(patch.object(module, "forward", lambda x, *_, **__: x))
            if leaf in case.records:
                stack.enter_context(patch.object(module, "forward", _noting(calls, module.forward, leaf)))
        for source in modeling(case, model):
            new = {**_rotary(source), **{n: f for n, f in case.patches.items() if hasattr(source, n)}}
            new |= {n: _noting(calls, getattr(source, n), n) for n in case.records if hasattr(source, n)}
            stack.enter_context(patch.multiple(source, **new) if new else ExitStack())
        yield calls
    assert {call.module for call in calls} == named.keys()


def _entered(calls: list[Call], name: str) -> Callable[..., None]:
    return lambda module, args, kwargs: calls.append(Call(name, (args or tuple(kwargs.values()))[0].detach()))


def _recording(calls: list[Call], function: Any, name: str) -> Any:
    def record(*args: Any, **kwargs: Any) -> Any:
        if calls:
            tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
            calls[-1].products.append(tuple(t.detach() for t in (tensors[1:] if name == "baddbmm" else tensors)[:3]))
        return function(*args, **kwargs)

    return record


def _noting(calls: list[Call], function: Any, name: str) -> Any:
    def note(*args: Any, **kwargs: Any) -> Any:
        if calls:
            tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
            calls[-1].recorded.setdefault(name, tuple(t.detach().clone() for t in tensors))
        return function(*args, **kwargs)

    return note


def modeling(case: Case, model: Any) -> list[Any]:
    """The modeling modules whose functions the model calls."""
    names = case.source.split() or sorted(
        {type(m).__module__ for m in model.modules() if ".modeling_" in type(m).__module__}
    )
    return [importlib.import_module(name) for name in names]


def _rotary(module: Any) -> dict[str, Any]:
    """The modeling module's functions of rotary embeddings, made the identity."""
    found = {
        n: f
        for n, f in vars(module).items()
        if re.match(r"apply_(multimodal_)?(rotary|rope)", n) and inspect.isfunction(f)
    }
    return {n: _identity(f) for n, f in found.items()}


def _identity(function: Any) -> Any:
    """Of q, or of q and k, as the function takes them."""
    second = [*inspect.signature(function).parameters][1]
    if second.startswith(("k", "xk")):
        return lambda q, k=None, *_, **__: q if k is None else (q, k)
    return lambda x, *_, **__: x


# Comparing


def compare(call: Call, parts: Sequence[tuple[torch.Tensor, torch.Tensor | None]], case: Case) -> None:
    """The parts (weight, bias) map the fused module's input to the states of its attention."""
    states = case.states(call)
    assert len(states) == len(parts) == len(case.heads)
    for i, ((weight, bias), state, heads) in enumerate(zip(parts, states, case.heads, strict=True)):
        state = state if state.dim() == 4 else state.unflatten(0, (-1, heads))
        hidden = call.hidden.reshape(state.shape[0], -1, call.hidden.shape[-1])
        made = torch.nn.functional.linear(hidden, weight.T if case.axis else weight, bias)
        made = (
            made.unflatten(-1, (heads, -1)).transpose(1, 2).repeat_interleave(state.shape[1] // heads, 1)
        )  # shared by queries
        assert made.shape == state.shape
        assert (made * (case.scales[i] if case.scales else 1.0) - state).abs().max() < 1e-5


def check_parts(run: Evidence) -> None:
    """What was written computes what reaches the model's attention, in every call."""
    for call in run.calls:
        compare(call, parts_of(run, call), run.case)


def parts_of(run: Evidence, call: Call) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """The written parts (weight, bias) of a call's fused module."""
    parent = run.case.module(call.module).rpartition(".")[0]
    stems = [f"{parent}.{part}".lstrip(".") for part in run.case.parts]
    return [(ending(run.parts, f"{stem}.weight"), run.parts.get(_name(run.parts, f"{stem}.bias"))) for stem in stems]


def check_controls(run: Evidence) -> None:
    """No other layout of as many rows computes it, and neither do parts that change places."""
    call, case = run.calls[0], run.case
    name = case.module(call.module)
    weight, bias = ending(run.fused, f"{name}{case.weight}"), run.fused.get(_name(run.fused, f"{name}{case.bias}"))
    parts = parts_of(run, call)
    told = 0
    for rows, order in others(weight.shape[case.axis], [part.shape[case.axis] for part, _ in parts], case):
        weights = _cut(weight, rows, case.axis, order)
        biases = (
            [b for _, b in parts] if bias is None else _cut(bias, rows, case.axis, order)
        )  # these belong to the parts
        made = list(zip(weights, biases, strict=True))
        if all(torch.equal(one, part) for one, (part, _) in zip(weights, parts, strict=True)):
            compare(call, made, case)  # the right one under another name
            continue
        told += 1
        with pytest.raises(AssertionError):
            compare(call, made, case)
    assert told, "every other layout is the same one at these sizes: choose others"


def check_round_trip(run: Evidence) -> None:
    """Fusing what was split gives the base's files, byte for byte."""
    fused = run.split.parent / "fused"
    surgery.write(surgery.fuse_qkv(surgery.open_checkpoint(run.split)), fused)
    assert hashes(fused) == hashes(run.base)
    assert hashes(run.split, without=(".surgery", "config.json")) != hashes(run.base, without=("config.json",))


def others(length: int, lengths: Sequence[int], case: Case) -> list[Wrong]:
    """Layouts that a fused axis of this length could have, with parts of these lengths: blocked, one group or head
    after another, one entry after another; and the parts taken for each other.
    """
    order = case.order or tuple(range(len(case.parts)))
    heads = [case.heads[order.index(i)] for i in range(len(order))]
    inside = [lengths[order.index(i)] for i in range(len(order))]
    groups = sorted({1, 2, min(heads), max(heads), min(inside)})
    found: list[Wrong] = [
        ((g, tuple(n // g for n in inside), 1), order) for g in groups if not any(n % g for n in inside)
    ]
    for rows, _ in list(found):
        for i in range(len(order) - 1):
            swapped = [*order[:i], order[i + 1], order[i], *order[i + 2 :]]
            if inside[order[i]] == inside[order[i + 1]]:
                found.append((rows, tuple(swapped)))
    assert sum(inside) == length
    return [*found, *case.wrong]


def _cut(fused: torch.Tensor | None, rows: Rows, axis: int, order: Sequence[int]) -> list[Any]:
    """The parts of a fused tensor, viewed by torch."""
    if fused is None:
        return [None] * len(order)
    groups, slots, unit = rows
    axis = min(axis, fused.dim() - 1)
    parts = fused.unflatten(axis, (groups, sum(slots), unit)).split(list(slots), axis + 1)
    return [parts[i].flatten(axis, axis + 2) for i in order]


def _name(tensors: Mapping[str, Any], end: str) -> str:
    """The one name that is `end`, or ends with it; or nothing."""
    found = [n for n in tensors if n == end] or [n for n in tensors if n.endswith(f".{end}")]
    assert len(found) < 2, found
    return found[0] if found else ""


def ending(tensors: Mapping[str, torch.Tensor], end: str) -> torch.Tensor:
    """The one tensor whose name is `end`, or ends with it."""
    name = _name(tensors, end)
    assert name, f"no {end} among {sorted(tensors)}"
    return tensors[name]
