"""What a command's output must be, told from its inputs by torch and the safetensors library alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from surgeries.test_split_oracle import CASES, bytes_of, rows_of

from .drawing import Lora, Tensors, factors_in, read

Law = Callable[[Path], Iterator[str]]  # of the output: what is wrong with it
GATED = ("gate_proj", "up_proj")
Exact = tuple[torch.Tensor, torch.Tensor]  # in float64: values, and the sums of the sizes of their terms


def exactly(wanted: Tensors) -> Law:
    """Every bit of these tensors, and no others."""

    def law(out: Path) -> Iterator[str]:
        found = read(out)
        if found.keys() != wanted.keys():
            yield f"other names: {sorted(found.keys() ^ wanted.keys())[:4]}"
            return
        for name, one in wanted.items():
            if (found[name].dtype, found[name].shape) != (one.dtype, one.shape):
                yield f"{name} is {found[name].dtype} {tuple(found[name].shape)}"
            elif bytes_of(found[name]) != bytes_of(one):
                yield f"{name} has other bytes"

    return law


def nearly(before: Tensors, exact: Callable[[str], Exact | None], terms: int) -> Law:
    """What was computed in float32 of sums of so many terms, and rounded once: within what that may be off, and a unit
    of the last place; every bit of what nothing was added to.
    """

    def law(out: Path) -> Iterator[str]:
        found = read(out)
        still = {name: one for name, one in before.items() if exact(name) is None}
        if found.keys() != before.keys():
            yield f"other names: {sorted(found.keys() ^ before.keys())[:4]}"
            return
        for name, one in found.items():
            if name in still:
                if bytes_of(one) != bytes_of(still[name]):
                    yield f"{name} has other bytes"
                continue
            values, sizes = exact(name) or (one, one)
            off = (one.double() - values).abs() > unit(values, one.dtype) + 2.0**-24 * (terms + 4) * sizes
            if one.dtype != before[name].dtype or not bool(one.isfinite().all()) or bool(off.any()):
                yield f"{name}: {int(off.sum())} of {off.numel()} values are off"

    return law


def unit(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The distance to the next number of the dtype."""
    said = torch.finfo(dtype)
    return torch.ldexp(torch.tensor(said.eps).double(), values.abs().clamp(min=said.tiny).frexp()[1] - 1)


def merged(before: Tensors, adapters: Sequence[Lora], weights: Sequence[float]) -> Law:
    """The base and the weighted sum of what the adapters add."""

    def exact(name: str) -> Exact | None:
        parts = [(w, found) for one, w in zip(adapters, weights, strict=True) if (found := one.change(name))]
        if not parts:
            return None
        base = before[name].double()
        return base + sum(w * d for w, (d, _) in parts), base.abs() + sum(abs(w) * s for w, (_, s) in parts)

    return nearly(before, exact, sum(len(a) for one in adapters for a, _ in list(one.factors.values())[:1]))


def blended(models: Sequence[Tensors], weights: Sequence[float]) -> Law:
    """The mean by weights."""

    def exact(name: str) -> Exact | None:
        held = [one[name].double() * w / sum(weights) for one, w in zip(models, weights, strict=True)]
        return torch.stack(held).sum(0), torch.stack(held).abs().sum(0)

    return nearly(models[0], exact, 2 * len(models))


def apart(family: str, tensors: Tensors, *, gated: bool) -> Tensors:
    """Fused modules by their parts, as their modeling code cuts them."""
    case, found = CASES[family], dict[str, torch.Tensor]()
    for name, one in tensors.items():
        stem, module, suffix = _named(name)
        if module == case.fused:
            found |= {f"{stem}{part}{suffix}": cut for part, cut in zip(case.parts, rows_of(one, case), strict=True)}
        elif module == "gate_up_proj" and gated:
            found |= {f"{stem}{part}{suffix}": cut for part, cut in zip(GATED, one.chunk(2), strict=True)}
        else:
            found[name] = one
    return found


def together(family: str, tensors: Tensors) -> Tensors:
    """The parts in fused modules again, wherever they are apart."""
    case, found = CASES[family], dict(tensors)
    for name in tensors:
        stem, module, suffix = _named(name)
        for parts, fused in ((case.parts, case.fused), (GATED, "gate_up_proj")):
            if module == parts[0] and all(f"{stem}{one}{suffix}" in found for one in parts):
                held = [found.pop(f"{stem}{one}{suffix}") for one in parts]
                axis = case.axis if held[0].dim() > 1 else 0
                if case.per_head and parts == case.parts:
                    held = [one.unflatten(axis, (case.sizes[0], 1, case.sizes[2])) for one in held]
                    found[f"{stem}{fused}{suffix}"] = torch.cat(held, axis + 1).flatten(axis, axis + 2)
                else:
                    found[f"{stem}{fused}{suffix}"] = torch.cat(held, axis)
    return found


def _named(name: str) -> tuple[str, str, str]:
    """What stands before the module's last name, that, and what stands behind it."""
    module, _, suffix = name.rpartition(".")
    stem, _, last = module.rpartition(".")
    return f"{stem}.", last, f".{suffix}"


def coded(before: Tensors) -> Law:
    """NF4 of bitsandbytes: each code is the nearest of its block's 16 values, and what has none is as it was."""

    def law(out: Path) -> Iterator[str]:
        found = read(out)
        made, count = dict[str, torch.Tensor](), 0
        for name, one in before.items():
            if f"{name}.absmax" not in found:
                made[name] = one
                continue
            count += 1
            meant, steps = _meant(found, name, one)
            best = (one.float().reshape(-1, 1) - steps).abs().amin(1)
            if bool(((one.float().flatten() - meant).abs() > best * 1.0001 + 1e-7).any()):
                yield f"{name} has codes that are not the nearest"
        if not count:
            yield "nothing is coded"
        rest = {
            n: t for n, t in found.items() if not any(n == m or n.startswith(f"{m}.") for m in before.keys() - made)
        }
        if rest.keys() != made.keys() or any(bytes_of(t) != bytes_of(made[n]) for n, t in rest.items()):
            yield "what is not coded has changed"

    return law


def _meant(found: Tensors, name: str, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What codes of NF4 mean, in float32, and what each of them could have meant."""
    packed = found[name].flatten().int()
    codes = torch.stack([packed >> 4, packed & 15], 1).flatten()[: like.numel()]
    levels, absmax = found[f"{name}.quant_map"], found[f"{name}.absmax"]
    largest = absmax.repeat_interleave(64)[: like.numel()]
    return levels[codes] * largest, levels * largest[:, None]


def decoded(before: Tensors, like: Tensors) -> Law:
    """What those codes mean, where there are some."""
    wanted = {}
    for name, one in like.items():
        wanted[name] = one
        if f"{name}.absmax" in before:
            wanted[name] = _meant(before, name, one)[0].view(one.shape).to(one.dtype)
    return exactly(wanted)


def scaled(before: Tensors) -> Law:
    """What FP8 in blocks of 128 x 128 means, in bfloat16."""
    wanted = {name: one for name, one in before.items() if not name.endswith("_scale_inv")}
    for name, scales in before.items():
        if of := name.removesuffix("_scale_inv") * name.endswith("_scale_inv"):
            blocks = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)
            wanted[of] = (before[of].float() * blocks).bfloat16()
    return exactly(wanted)


def extracted(base: Tensors, tuned: Tensors) -> Law:
    """B·A, of a rank that is enough, is the difference, but for what float32 leaves of it."""

    def law(out: Path) -> Iterator[str]:
        found = factors_in(out)
        for name, one in base.items():
            module, wanted = name.removesuffix(".weight"), tuned[name].double() - one.double()
            if module not in found:
                if bool(wanted.any()):
                    yield f"{name} differs and is left out"
                continue
            scale, a, b = found[module]
            got = scale * (b.double() @ a.double())
            got = got.T if got.shape != wanted.shape else got
            wrong = (got - wanted).norm() / wanted.norm()
            square = got.shape[0] == got.shape[1] and (got.T - wanted).norm() / wanted.norm() < 1e-3
            if wrong > 1e-3 and not square:
                yield f"{name}: a share of {float(wrong):.1e} of the difference is wrong"

    return law


def injected(before: Tensors, rank: int, modules: Sequence[str]) -> Law:
    """Factors of that rank for each module that ends so; one of the two is zero: of an embedding A, else B."""

    def law(out: Path) -> Iterator[str]:
        found = factors_in(out)
        wanted = {n.removesuffix(".weight") for n in before if n.endswith(tuple(f".{m}.weight" for m in modules))}
        if found.keys() != wanted:
            yield f"other modules: {sorted(found.keys() ^ wanted)[:4]}"
        for module, (_, a, b) in found.items():
            sides = sorted((a.shape[1], b.shape[0]))
            if len(a) != rank or bool(b.any()) == bool(a.any()) or sides != sorted(before[f"{module}.weight"].shape):
                yield f"{module} has wrong factors"

    return law


def combined(adapters: Sequence[Lora], weights: Sequence[float]) -> Law:
    """One adapter that adds what they add together."""

    def law(out: Path) -> Iterator[str]:
        found = factors_in(out)
        names = {name for one in adapters for name in one.factors}
        if {f"{module}.weight" for module in found} != names:
            yield "other modules"
            return
        for name in names:
            scale, a, b = found[name.removesuffix(".weight")]
            parts = [(w, c) for one, w in zip(adapters, weights, strict=True) if (c := one.change(name))]
            wanted, sizes = sum(w * c for w, (c, _) in parts), sum(abs(w) * s for w, (_, s) in parts)
            got = scale * (b.double() @ a.double())
            got = got.T if adapters[0].turned else got
            if bool(((got - wanted).abs() > 1e-5 * sizes).any()):
                yield f"{name}: the sum is another"

    return law
