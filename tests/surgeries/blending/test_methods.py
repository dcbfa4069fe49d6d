"""Each way of blending against its formula, on whole tensors, written down anew here: in float64 where it is
arithmetic, on the float32 differences where it chooses among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import surgery
from surgery.evaluation.blending import METHODS
from surgery.evaluation.blending.drawn import uniform

SHAPES = {"model.layers.0.w": (70, 53), "model.layers.1.w": (3, 20, 31), "norm": (97,), "one": (1,)}
Tensors = Sequence[torch.Tensor]


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def places(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and three models that were trained from it: many changes are of one size, and many are none."""
    folder, generator = tmp_path_factory.mktemp("models"), torch.Generator().manual_seed(5)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    made = [base]
    for _ in range(3):
        steps = {n: torch.randn(v.shape, generator=generator).mul(4).round() / 64 for n, v in base.items()}
        made.append({n: v + steps[n] for n, v in base.items()})
    for i, one in enumerate(made):
        (folder / str(i)).mkdir()
        save_file({n: v.to(request.param) for n, v in one.items()}, folder / str(i) / "model.safetensors")
    return [folder / str(i) for i in range(4)]


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.flatten() @ b.flatten()) / (a.norm() * b.norm()))


def arc(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    if abs(cosine(a, b)) > 0.9995:
        return (1 - t) * a + t * b
    angle = math.acos(cosine(a, b))
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


def exact_arc(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    """Without a line where they are nearly parallel."""
    angle = math.acos(min(1.0, cosine(a, b)))
    return (
        (1 - t) * a + t * b
        if angle < 1e-8
        else (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)
    )


def by_rows(law: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def rows(*tensors: torch.Tensor) -> torch.Tensor:
        flat = [one.reshape(-1, one.shape[-1]) for one in tensors]
        return torch.stack([law(*row) for row in zip(*flat, strict=True)]).view(tensors[0].shape)

    return rows


def largest(delta: torch.Tensor, density: float) -> torch.Tensor:
    keep = max(1, int(density * delta.numel()))
    order = delta.abs().float().flatten().argsort(descending=True, stable=True)
    mask = torch.zeros(delta.numel(), dtype=delta.dtype)
    mask[order[:keep]] = 1
    return delta * mask.view(delta.shape)


def middle(delta: torch.Tensor, density: float, gamma: float) -> torch.Tensor:
    size = delta.numel()
    keep, top = int(density * size), int(gamma * size)
    first = max(0, size - keep - top)
    mask = torch.zeros(size, dtype=delta.dtype)
    mask[delta.abs().float().flatten().argsort(stable=True)[first : first + keep]] = 1
    return delta * mask.view(delta.shape)


def longer(sparse: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    after = sparse.double().abs().sum()
    return sparse if after < 1e-7 else sparse.double() * (delta.double().abs().sum() / after)


def signs(deltas: Tensors, weights: Sequence[float], *, normal: bool) -> torch.Tensor:
    scaled = torch.stack([(d.float() * w) for d, w in zip(deltas, weights, strict=True)])
    majority = torch.where(scaled.sum(0) >= 0, 1.0, -1.0)
    agree = (scaled.sign() == majority).double()
    by = (torch.tensor(weights, dtype=torch.float64).view(-1, *[1] * deltas[0].dim()) * agree).sum(0)
    return (scaled.double() * agree).sum(0) / (torch.where(by == 0, 1, by) if normal else 1)


def of(base: torch.Tensor, models: Tensors) -> list[torch.Tensor]:
    """Differences, rounded to float32 as they are computed."""
    return [one.float() - base.float() for one in models]


def total(values: Tensors, by: Sequence[float]) -> torch.Tensor:
    return torch.stack([v.double() * w for v, w in zip(values, by, strict=True)]).sum(0)


def stock(base: torch.Tensor, *models: torch.Tensor) -> torch.Tensor:
    d, n = [one - base for one in models], len(models)
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    each = [float(d[i].flatten() @ d[j].flatten() / max(d[i].norm() * d[j].norm(), 1e-6)) for i, j in pairs]
    mean = sum(each) / len(each)
    t = n * mean / (1 + (n - 1) * mean)
    return t * sum(models) / n + (1 - t) * base


def sphere(models: Tensors, weights: Sequence[float]) -> torch.Tensor:
    by = [w / sum(weights) for w in weights]
    units = [one / (one.norm() + 1e-8) for one in models]
    mean = total(units, by)
    mean = mean / mean.norm()
    flat = total([u - (u * mean).sum() * mean for u in units], by)
    angle = flat.norm() + 1e-8
    return (mean * angle.cos() + flat * angle.sin() / angle) * sum(
        float(m.norm()) * w for m, w in zip(models, by, strict=True)
    )


def karcher(models: Tensors) -> torch.Tensor:
    units = [one / one.norm() for one in models]
    mean = sum(units) / len(units)  # type: ignore[assignment]
    mean = mean / mean.norm()  # type: ignore[union-attr]
    for _ in range(10):
        dots = [float((mean * u).sum().clamp(-1, 1)) for u in units]
        parts = [
            math.acos(c) / math.sin(math.acos(c)) * (u - c * mean)
            for c, u in zip(dots, units, strict=True)
            if math.acos(c) >= 1e-5
        ]
        step = sum(parts) / len(units) if parts else mean * 0
        if step.norm() < 1e-5:
            break
        mean = step.norm().cos() * mean + step.norm().sin() * step / step.norm()
        mean = mean / mean.norm()
    return sum(float(one.norm()) for one in models) / len(models) * mean


def chosen(base: torch.Tensor, models: Tensors, share: float) -> torch.Tensor:
    d = torch.stack(of(base, models))
    if share < 1:
        spread = d.var(0, unbiased=False)
        keep = int(int(spread.count_nonzero()) * share)
        mask = torch.zeros(spread.numel())
        mask[spread.flatten().argsort(descending=True, stable=True)[:keep]] = 1
        d = d * mask.view(spread.shape)
    squares = d.double().square().flatten(1).mean(1)
    by = squares / squares.sum() if squares.sum() >= 1e-6 else torch.ones(len(d)) / len(d)
    agree = (d.sign() == torch.where(d.sum(0) >= 0, 1.0, -1.0)).double() * by.view(-1, *[1] * base.dim())
    return base.double() + (d.double() * agree).sum(0) / agree.sum(0).clamp(min=1e-6)


def fused(base: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    a, b = base.float(), model.float()
    p, q = b.softmax(-1) + 1e-8, a.softmax(-1) + 1e-8
    matter = (b - a).abs() * (p * (p / q).log()).sum(-1, keepdim=True)
    ordered = matter.flatten().sort().values
    at = [ordered[int((torch.tensor(x) * (len(ordered) - 1)).long())] for x in (0.25, 0.5, 0.75)]
    return a + (b - a) * (matter >= at[1] + 1.5 * (at[2] - at[0]))


def shared(base: torch.Tensor, models: Tensors, r: float = 0.0) -> torch.Tensor:
    d = torch.stack(of(base, models))
    moved = d.abs() > 0.03
    count = moved.sum(0)
    by = []
    for one in moved:
        alone = max(int((one & (count == 1)).sum()), 0.03)
        by.append(1 + r * min(max(int((one & (count > 1)).sum()) / alone, 0.0), 0.2))
    factors = torch.tensor(by, dtype=torch.float64).view(-1, *[1] * base.dim())
    held = d.double() * moved
    return base.double() + (held * (count == 1) * factors + held * (count > 1) / count.clamp(min=1)).sum(0)


W, D = [0.7, 0.4, -0.2], [0.53, 0.3, 1.0]
T = 0.3
CASES: dict[str, tuple[str, int, bool, dict[str, object], Callable[[torch.Tensor, Tensors], torch.Tensor]]] = {
    "linear": ("linear", 3, False, {"weights": W}, lambda b, m: total(m, W) / sum(W)),
    "sum": ("linear", 3, False, {"weights": W, "parameters": {"normalize": "0"}}, lambda b, m: total(m, W)),
    "slerp": ("slerp", 1, True, {"t": T}, lambda b, m: arc(b.double(), m[0].double(), T)),
    "nuslerp": (
        "nuslerp", 2, False, {"weights": W[:2]}, lambda b, m: exact_arc(m[0].double(), m[1].double(), 0.4 / 1.1)
    ),
    "nuslerp of a base": (
        "nuslerp", 2, True, {"weights": W[:2]},
        lambda b, m: b + exact_arc(m[0].double() - b, m[1].double() - b, 0.4 / 1.1),
    ),
    "nuslerp of rows": (
        "nuslerp", 2, True, {"weights": W[:2], "parameters": {"nuslerp_flatten": False}},
        lambda b, m: b + by_rows(lambda x, y: exact_arc(x, y, 0.4 / 1.1))(m[0].double() - b, m[1].double() - b),
    ),
    "multislerp": (
        "multislerp", 3, False, {"weights": [0.5, 0.2, 0.3]},
        lambda b, m: sphere([x.double() for x in m], [0.5, 0.2, 0.3]),
    ),
    "multislerp of a base": (
        "multislerp", 3, True, {"weights": [0.5, 0.2, 0.3]},
        lambda b, m: b + sphere([x.double() - b for x in m], [0.5, 0.2, 0.3]),
    ),
    "karcher": ("karcher", 3, False, {}, lambda b, m: karcher([x.double() for x in m])),
    "task": (
        "task_arithmetic", 3, True, {"weights": W, "parameters": {"lambda": 1.1}},
        lambda b, m: b.double() + 1.1 * total(of(b, m), W),
    ),
    "task, normal": (
        "task-arithmetic", 3, True, {"weights": W, "parameters": {"normalize": True}},
        lambda b, m: b.double() + total(of(b, m), W) / sum(W),
    ),
    "ties": (
        "ties", 3, True, {"weights": W, "density": D},
        lambda b, m: b.double() + signs([largest(d, k) for d, k in zip(of(b, m), D, strict=True)], W, normal=True),
    ),
    "ties, rescaled": (
        "ties", 2, True, {"weights": W[:2], "density": D[:2], "parameters": {"rescale": 1, "normalize": 0}},
        lambda b, m: b.double() + signs(
            [longer(largest(d, k), d) for d, k in zip(of(b, m), D, strict=False)], W[:2], normal=False
        ),
    ),
    "breadcrumbs": (
        "breadcrumbs", 3, True, {"weights": W, "density": D, "parameters": {"gamma@1": "0.2"}},
        lambda b, m: b.double()
        + total([middle(d, k, g) if k < 1 else d for d, k, g in zip(of(b, m), D, (0.2, 0.01, 0.01), strict=True)], W),
    ),
    "breadcrumbs by signs": (
        "breadcrumbs_ties", 2, True, {"weights": W[:2], "density": D[:2], "parameters": {"gamma": "0.1"}},
        lambda b, m: b.double() + signs(
            [middle(d, k, 0.1) for d, k in zip(of(b, m), D, strict=False)], W[:2], normal=False
        ),
    ),
    "sce": ("sce", 3, True, {}, lambda b, m: chosen(b, m, 1)),
    "sce, chosen": ("sce", 3, True, {"parameters": {"select_topk": 0.4}}, lambda b, m: chosen(b, m, 0.4)),
    "ram": ("ram", 3, True, {"parameters": {"epsilon": 0.03}}, lambda b, m: shared(b, m)),
    "ramplus": ("ramplus_tl", 3, True, {"parameters": {"epsilon": 0.03}}, lambda b, m: shared(b, m, 0.1)),
    "stock": ("model_stock", 3, True, {}, lambda b, m: stock(b.double(), *(x.double() for x in m))),
    "stock of rows": (
        "model_stock", 3, True, {"parameters": {"filter_wise": 1}},
        lambda b, m: by_rows(stock)(b.double(), *(x.double() for x in m)),
    ),
    "nearswap": (
        "nearswap", 1, True, {"t": 0.02},
        lambda b, m: b.double() + (0.02 / (b.double() - m[0]).abs().clamp(min=1e-6)).clamp(0, 1) * (m[0].double() - b),
    ),
    "fusion": ("arcee_fusion", 1, True, {}, lambda b, m: fused(b, m[0])),
    "scaled": ("passthrough", 1, False, {"parameters": {"scale": 0.7}}, lambda b, m: m[0].double() * 0.7),
}  # fmt: skip


def made(places: Sequence[Path], case: str, out: Path, **more: object) -> dict[str, torch.Tensor]:
    method, many, based, said, _ = CASES[case]
    models = [surgery.open_checkpoint(one) for one in places[1 : many + 1]]
    base = surgery.open_checkpoint(places[0]) if based else None
    surgery.write(surgery.blend(models, base=base, method=method, **said, **more), out)  # type: ignore[arg-type]
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("case", CASES)
def test_it_is_its_formula(places: list[Path], case: str, tmp_path: Path) -> None:
    """Up to what rounding in float32 makes of numbers as large as the inputs; in bfloat16, up to one rounding."""
    _, many, _, _, law = CASES[case]
    read = [load_file(one / "model.safetensors") for one in places]
    for name, found in made(places, case, tmp_path / "out").items():
        base, models = read[0][name], [one[name] for one in read[1 : many + 1]]
        wanted = law(base.float(), [one.float() for one in models])
        size = torch.stack([base.float(), *(one.float() for one in models), wanted.float()]).abs().amax(0)
        eps = torch.finfo(found.dtype).eps
        rounding = wanted.abs() * eps * 0.5 if found.dtype == torch.bfloat16 else 0
        assert bool(((found.double() - wanted).abs() <= 16 * 2**-23 * size + rounding).all()), name
        assert found.dtype == base.dtype


def test_every_method_has_a_case() -> None:
    assert {*METHODS} == {case[0].replace("-", "_") for case in CASES.values()} | DRAWN.keys()


DRAWN = {"dare_linear": False, "dare_ties": True, "della": True, "della_linear": False}


@pytest.mark.parametrize("method", DRAWN)
def test_what_is_drawn_is_kept_at_its_rate_and_made_as_long(method: str, tmp_path: Path) -> None:
    """One model: what is kept is scaled so that all sizes together are as before. Another seed keeps others; the same
    keeps the same.
    """
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(300, 400, generator=generator)
    step = torch.randn(300, 400, generator=generator)
    for name, value in (("base", base), ("model", base + step)):
        (tmp_path / name).mkdir()
        save_file({"w": value}, tmp_path / name / "model.safetensors")
    opened = [surgery.open_checkpoint(tmp_path / name) for name in ("model", "base")]

    def drawn(seed: int, density: float = 0.3, **said: object) -> torch.Tensor:
        out = tmp_path / f"{seed} {density} {said}"
        made = surgery.blend(opened[:1], base=opened[1], method=method, density=[density], seed=seed, parameters=said)  # type: ignore[arg-type]
        surgery.write(made, out, overwrite=True)
        return load_file(out / "model.safetensors")["w"] - base

    found = drawn(1, normalize=False)
    kept = found != 0
    assert abs(float(kept.float().mean()) - 0.3) < 0.01
    assert abs(float(found.abs().sum() / step.abs().sum()) - 1) < 1e-4
    factor = (found / step)[kept]
    assert float(factor.std() / factor.mean()) < 1e-2
    assert torch.equal(drawn(1, normalize=False), found)
    assert not torch.equal(drawn(2, normalize=False) != 0, kept)
    plain = drawn(1, rescale=False, normalize=False)
    torch.testing.assert_close(plain[kept], step[kept], rtol=0, atol=1e-5)
    rest = [drawn(seed, normalize=False) / 40 for seed in range(40)]
    mean = torch.stack(rest).sum(0)
    if "dare" in method:
        assert abs(float((mean * step).sum() / (step * step).sum()) - 1) < 0.02  # what is expected is the whole change
    else:
        rates = torch.stack([(one != 0).float() for one in rest]).mean(0)
        order = step.abs().argsort(1)
        low, high = (rates.gather(1, order[:, part]).mean() for part in (slice(0, 40), slice(-40, None)))
        assert abs(float(low) - 0.165) < 0.01 and abs(float(high) - 0.435) < 0.01


def test_draws_follow_from_key_and_place_alone() -> None:
    whole = uniform("key", 0, 10_000)
    assert torch.equal(torch.cat([uniform("key", at, 1000) for at in range(0, 10_000, 1000)]), whole)
    assert not torch.equal(uniform("other", 0, 10_000), whole)
    assert abs(float(whole.mean()) - 0.5) < 0.01 and abs(float(whole.std()) - 12**-0.5) < 0.01
    assert float(whole.min()) >= 0 and float(whole.max()) < 1
    assert [round(float(x), 6) for x in uniform("key", 0, 3)] == GOLDEN  # the same on every machine


GOLDEN = [0.784254, 0.578928, 0.565909]
