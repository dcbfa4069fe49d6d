"""Laws of every registered kind of change: how it moves, what it adds or multiplies by, in which windows, and how it
is recorded.
"""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from changes import MADE, SIZE, Pools, leaf, pooled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from surgery.errors import LayoutError
from surgery.evaluation.arithmetic import exact
from surgery.evaluation.evaluate import into, load, workspace_of
from surgery.evaluation.kinds import DELTAS, GAINS, NAMES, undoable
from surgery.evaluation.workspace import DEFAULT_MEMORY, LEAST_BUDGET
from surgery.files.safetensors import read_header, tensors_of
from surgery.lazy.change import Change
from surgery.lazy.dtypes import DTYPES, F64
from surgery.lazy.hadamard import Hadamard
from surgery.lazy.low_rank import LowRank
from surgery.lazy.tensor import (
    Before,
    Norms,
    Stored,
    Sum,
    Tensor,
    add,
    children,
    narrow,
    permute,
    reshape,
    stored,
    substitute,
)
from surgery.planning.encoding import decoded, encoded

KINDS = sorted(NAMES, key=NAMES.__getitem__)
SHAPES = st.tuples(
    st.sampled_from([(), (1,), (3,), (65,), (130,), (4, 5), (2, 66), (3, 2, 4)]),
    st.one_of(st.integers(1, 40), st.sampled_from([64, 1023, 1024, 1025, 1500])),
).map(lambda shape: (*shape[0], shape[1]))


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Pools:
    """Numbers of each kind that a change may be made of, in a file."""
    path = tmp_path_factory.mktemp("pools") / "x.safetensors"
    real = pooled()
    save_file(real, path)
    found = tensors_of(*read_header(str(path)))
    return {name: (found[name], real[name]) for name in real}


def summed(draw: st.DrawFn, pools: Pools, kind: type[Change]) -> tuple[Tensor, torch.Tensor, Change]:
    """A sum that does one change of the kind to its base, its value in float64, and the change."""
    shape = draw(SHAPES.filter(lambda s: math.prod(s) * 8 < SIZE))
    base, values = leaf(draw, pools, shape)
    change, comes_to = MADE[kind](draw, pools, shape)
    dtype = DTYPES[draw(st.sampled_from([base.dtype.name, "F32", "F64"]))]
    if isinstance(change, tuple(row.kind for row in GAINS.values())):
        return add(base, [], dtype, change), values * comes_to, change
    return add(base, [change], dtype), values + comes_to, change  # type: ignore[list-item]


def moved(draw: st.DrawFn, lazy: Tensor, real: torch.Tensor) -> tuple[Tensor, torch.Tensor]:
    """Both after one movement."""
    axis = draw(st.integers(0, len(lazy.shape) - 1))
    size = lazy.shape[axis]
    match draw(st.sampled_from(["narrow", "permute", "split", "flatten"])):
        case "narrow":
            start = draw(st.integers(0, size - 1))
            length = draw(st.integers(1, size - start))
            return narrow(lazy, axis, start, length), real.narrow(axis, start, length)
        case "permute":
            axes = draw(st.permutations(range(len(lazy.shape))))
            return permute(lazy, axes), real.permute(*axes)
        case "split":
            factor = draw(st.sampled_from([f for f in range(1, size + 1) if size % f == 0]))
            shape = (*lazy.shape[:axis], factor, size // factor, *lazy.shape[axis + 1 :])
            return reshape(lazy, shape), real.reshape(shape)
    shape = (*lazy.shape[:axis], math.prod(lazy.shape[axis:]))
    return reshape(lazy, shape), real.reshape(shape)


def test_every_kind_has_a_maker_and_one_name() -> None:
    """What is registered is tested here."""
    assert set(MADE) == set(NAMES)
    assert len(NAMES) == len(DELTAS) + len(GAINS) == len(DELTAS.keys() | GAINS.keys())


@pytest.mark.parametrize("kind", KINDS, ids=NAMES.get)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_it_comes_to_what_it_says(kind: type[Change], pools: Pools, data: st.DataObject) -> None:
    lazy, real, _ = summed(data.draw, pools, kind)
    made = load(lazy).double()
    loose = {"F64": 1e-11, "F32": 1e-4, "BF16": 2e-2, "F16": 2e-3}[lazy.dtype.name]
    if F64 not in (lazy.dtype, children(lazy)[0].dtype):
        loose = max(loose, 1e-4)
    assert torch.allclose(made, real, rtol=loose, atol=loose * max(1.0, float(real.abs().max())))


@pytest.mark.parametrize("kind", KINDS, ids=NAMES.get)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_it_moves_as_its_value_does(kind: type[Change], pools: Pools, data: st.DataObject) -> None:
    """Bit for bit, whatever of the movement went under the sum."""
    lazy, _, _ = summed(data.draw, pools, kind)
    real = load(lazy)
    for _ in range(data.draw(st.integers(1, 4))):
        lazy, real = moved(data.draw, lazy, real)
    assert lazy.shape == tuple(real.shape)
    assert torch.equal(load(lazy), real)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES.get)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_windows_are_slices(kind: type[Change], pools: Pools, data: st.DataObject) -> None:
    """Of the sum, and of what undoes it, where that can be predicted."""
    lazy, _, _ = summed(data.draw, pools, kind)
    assert isinstance(lazy, Sum)
    tensors: list[Tensor] = [lazy]
    if undoable(lazy.deltas):
        tensors.append(Before(lazy.base.dtype, lazy.base, lazy.deltas, lazy.gain))
    start = data.draw(st.integers(0, lazy.size - 1))
    stop = data.draw(st.integers(start + 1, lazy.size))
    for tensor in tensors:
        item = tensor.dtype.bits // 8
        whole, part = bytearray(tensor.nbytes), bytearray((stop - start) * item)
        with exact():
            into(tensor, 0, tensor.size, memoryview(whole), workspace_of(DEFAULT_MEMORY))
            into(tensor, start, stop, memoryview(part), workspace_of(LEAST_BUDGET))
        assert part == whole[start * item : stop * item]


@pytest.mark.parametrize("kind", KINDS, ids=NAMES.get)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_an_undone_sum_is_the_base_again(kind: type[Change], pools: Pools, data: st.DataObject) -> None:
    """Nearly: the prediction is what a record corrects."""
    lazy, _, change = summed(data.draw, pools, kind)
    assert isinstance(lazy, Sum)
    if not undoable(lazy.deltas):
        return
    wide = add(lazy.base, lazy.deltas, F64, lazy.gain)
    base, back = load(lazy.base).double(), load(Before(F64, wide, lazy.deltas, lazy.gain))
    atol = 1e-3 * max(1.0, float(load(wide).abs().max())) + unsure(change)
    assert torch.allclose(back, base, rtol=1e-4, atol=atol)


def unsure(change: Change) -> float:
    """How far a product of low ranks may be predicted off: each is one of factors of 24 bits, and where one cancels,
    what it is off by is multiplied by the others.
    """
    if not isinstance(change, Hadamard):
        return 0.0
    sizes = [float((load(one.left).double().abs() @ load(one.right).double().abs()).max()) for one in change.of]
    scales = math.prod(abs(one.scale) for one in change.of) * abs(change.scale)
    return len(sizes) * 2**-23 * scales * math.prod(sizes)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES.get)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_records_and_pickles_keep_it(kind: type[Change], pools: Pools, data: st.DataObject) -> None:
    lazy, _, change = summed(data.draw, pools, kind)
    assert isinstance(lazy, Sum)
    before = Before(lazy.base.dtype, lazy.base, lazy.deltas, lazy.gain)
    kept: dict[Tensor, str] = {}
    tree = encoded(
        before, lambda one: "after" if one == lazy.base else None, lambda one: kept.setdefault(one, f"kept.{len(kept)}")
    )
    named: dict[str, Any] = {name: tensor for tensor, name in kept.items()} | {"after": lazy.base}
    assert decoded(json.loads(json.dumps(tree)), named.__getitem__) == before
    assert set(kept) <= {*change.factors}
    assert pickle.loads(pickle.dumps(lazy)) == lazy


@pytest.mark.parametrize("kind", KINDS, ids=NAMES.get)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_its_factors_are_what_it_is_made_of(kind: type[Change], pools: Pools, data: st.DataObject) -> None:
    lazy, _, change = summed(data.draw, pools, kind)
    assert set(stored(lazy)) == {*children(lazy)[:1], *change.factors}
    assert set(change.given) <= set(change.factors)
    for factor in change.factors:
        assert isinstance(factor, Stored)
        other = Stored(factor.dtype, factor.shape, factor.file, factor.offset + 10_000_000)
        assert other in set(stored(substitute(lazy, factor, other)))
        assert factor not in set(stored(substitute(lazy, factor, other))) - {children(lazy)[0]}


@pytest.mark.parametrize("kind", KINDS, ids=NAMES.get)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_base_that_it_does_not_fit_is_refused(kind: type[Change], pools: Pools, data: st.DataObject) -> None:
    lazy, _, change = summed(data.draw, pools, kind)
    rows, columns = lazy.shape[:-1], lazy.shape[-1]
    change.check(lazy.shape)
    with pytest.raises(LayoutError, match="fit"):
        change.check((*(n + 1 for n in rows), 7, columns + 1))


# What kinds do not decide


def test_older_records_are_read(pools: Pools) -> None:
    """The three kinds that records held before kinds had names are written as they were."""
    names = {
        name: Stored(DTYPES["F32"], shape, pools["F32"][0].file, i) for i, (name, shape) in enumerate(SHAPED.items())
    }
    tree = {
        "before": "after",
        "dtype": "F32",
        "deltas": [["b", "a", "0x1.0000000000000p-1"], ["d", None, "0x1.0000000000000p+0"]],
        "gain": ["m", "n", False],
    }
    made = decoded(tree, names.__getitem__)
    assert isinstance(made, Before) and [NAMES[type(d)] for d in made.deltas] == ["low rank", "dense"]
    assert encoded(made, {tensor: name for name, tensor in names.items()}.get, str) == tree


SHAPED = {"after": (4, 6), "b": (4, 2), "a": (2, 6), "d": (4, 6), "m": (4,), "n": (4,)}


@pytest.mark.parametrize("columns", [False, True])
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_norms_of_what_must_be_computed_first(columns: bool, pools: Pools, tmp_path: Path, data: st.DataObject) -> None:
    """Lengths of a sum whose base is another one, turned: the inner one is computed before."""
    (base, w), (left, b), (right, a) = (leaf(data.draw, pools, shape) for shape in ((70, 30), (70, 2), (2, 30)))
    turned = permute(add(base, [LowRank(left, right, 1.0)], DTYPES["F32"]), (1, 0))
    (left2, b2), (right2, a2) = (leaf(data.draw, pools, shape) for shape in ((30, 2), (2, 70)))
    norms = load(Norms(Sum(DTYPES["F32"], turned, (LowRank(left2, right2, 1.0),)), columns))
    wanted = ((w + b @ a).T + b2 @ a2).norm(dim=0 if columns else 1)
    assert torch.allclose(norms.double(), wanted, rtol=1e-4)
