"""Laws of plans: nothing is lost or collides, every byte is planned once, and the identity tells plans apart."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import hashes
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import surgery
from surgery.checkpoint import Checkpoint, Input
from surgery.errors import LayoutError, PlanError
from surgery.files.safetensors import parse_header
from surgery.lazy.dtypes import DTYPES, F32
from surgery.lazy.tensor import File, Stored, Tensor, Zeros, add, concat, narrow, permute, reshape
from surgery.planning.plan import Plan
from surgery.planning.steps import Copy, Fill, ShardPlan

ONE = "model.safetensors"
IDENTITY = sys.modules["surgery.planning.identity"]


def of(tensors: Mapping[str, Tensor], opened: Mapping[str, Stored]) -> Checkpoint:
    """A checkpoint of `tensors`, made by some surgery from `opened`."""
    return Checkpoint("base", tensors, dict.fromkeys(tensors, ONE), {}, {}, (Input("base", "base", (), opened),))


def leaf(shape: Sequence[int], at: int = 0, dtype: str = "F32") -> Stored:
    return Stored(DTYPES[dtype], tuple(shape), File("x", 10**6, 0), at)


@st.composite
def cut(draw: st.DrawFn, whole: Tensor) -> list[Tensor]:
    """Two or more pieces, none empty, that hold every element of `whole` once, in whatever form."""
    axes = [a for a, n in enumerate(whole.shape) if n > 1]
    axis = draw(st.sampled_from(axes))
    at = draw(st.integers(1, whole.shape[axis] - 1))
    pieces = [narrow(whole, axis, 0, at), narrow(whole, axis, at, whole.shape[axis] - at)]
    for i in (0, 1):
        if draw(st.booleans()):
            pieces[i] = permute(pieces[i], draw(st.permutations(range(len(whole.shape)))))
        if draw(st.booleans()):
            pieces[i] = reshape(pieces[i], (pieces[i].size, 1))
    big = [p for p in pieces if p.size > 1]
    if big and draw(st.booleans()):
        pieces.remove(big[0])
        pieces += draw(cut(big[0]))
    return pieces


@st.composite
def surgeries(draw: st.DrawFn) -> tuple[Stored, list[Tensor]]:
    whole = leaf(draw(st.lists(st.integers(1, 7), min_size=1, max_size=3).filter(lambda shape: max(shape) > 1)))
    return whole, draw(cut(whole))


def check_lost(checkpoint: Checkpoint, *names: str) -> None:
    """The plan is refused, with these names."""
    with pytest.raises(PlanError) as caught:
        surgery.plan(checkpoint)
    assert caught.value.what == f"{len(names)} tensors of the base reach no output, or not in full"
    assert caught.value.where[1:] == names
    assert caught.value.help == "a surgery lost them; drop them by name if that is meant: surgery drop --pattern REGEX"


# Conservation


@settings(deadline=None)
@given(surgeries(), st.data())
def test_every_element_must_arrive(case: tuple[Stored, list[Tensor]], data: st.DataObject) -> None:
    whole, pieces = case
    named = {f"p{i}": piece for i, piece in enumerate(pieces)}
    surgery.plan(of(named, {"w": whole}))
    flat = concat([reshape(p, (p.size,)) for p in data.draw(st.permutations(pieces))], 0)
    surgery.plan(of({"w": flat}, {"w": whole}))
    gone = data.draw(st.sampled_from(list(named)))
    check_lost(of({n: p for n, p in named.items() if n != gone}, {"w": whole}), "w (in part)")


@settings(deadline=None)
@given(surgeries())
def test_a_piece_twice_does_not_stand_for_another(case: tuple[Stored, list[Tensor]]) -> None:
    whole, pieces = case
    check_lost(of({f"p{i}": piece for i, piece in enumerate(pieces[1:] * 7)}, {"w": whole}), "w (in part)")


def test_the_wrong_slot_of_a_fused_tensor() -> None:
    fused = leaf((12, 3))
    q, k, v = (narrow(fused, 0, 4 * i, 4) for i in range(3))
    surgery.plan(of({"q": q, "k": k, "v": v}, {"qkv": fused}))
    check_lost(of({"q": q, "k": q, "v": v}, {"qkv": fused}), "qkv (in part)")


@settings(deadline=None)
@given(surgeries(), st.integers(1, 3))
def test_a_tensor_may_be_used_more_than_once(case: tuple[Stored, list[Tensor]], times: int) -> None:
    whole, pieces = case
    used = {f"{i} {j}": p for i in range(times) for j, p in enumerate(pieces)}
    assert surgery.plan(of({"tied": whole, **used}, {"w": whole})).tensors == 1 + len(used)
    assert surgery.plan(of(used, {"w": whole})).tensors == len(used)


def test_what_is_lost_is_named_in_order() -> None:
    opened = {f"h.{i}": leaf((2,), 8 * i) for i in range(12)}
    with pytest.raises(PlanError, match="11 tensors of the base reach no output") as caught:
        surgery.plan(of({"h.3": opened["h.3"]}, opened))
    assert caught.value.where == ("base", "h.0", "h.1", "h.2", "h.4", "h.5", "(+6 more)")


def test_empty_tensors_count() -> None:
    opened = {"a": leaf((0, 4)), "b": leaf((0, 4)), "c": leaf((3,))}
    surgery.plan(of(opened, opened))
    surgery.plan(of({**opened, "a": reshape(opened["a"], (4, 0))}, opened))
    surgery.plan(of({"abc": concat([reshape(t, (t.size,)) for t in opened.values()], 0)}, opened))
    check_lost(of({"c": opened["c"]}, opened), "a", "b")
    check_lost(of({"a": opened["a"], "c": opened["c"]}, opened), "a", "b")


def test_arithmetic_holds_what_it_computes_on() -> None:
    opened = {"w": leaf((4, 4)), "v": leaf((4, 4), 64)}
    surgery.plan(of({n: add(t, [], DTYPES["F16"]) for n, t in opened.items()}, opened))
    check_lost(of({"w": add(opened["w"], [], DTYPES["F16"])}, opened), "v")


def test_drop_excuses(saved: Callable[..., Path]) -> None:
    checkpoint = surgery.open_checkpoint(saved("llama"))
    left = {n: t for n, t in checkpoint.tensors.items() if n != "lm_head.weight"}
    check_lost(replace(checkpoint, tensors=left), "lm_head.weight")
    plan = surgery.plan(surgery.drop(checkpoint, r"lm_head\.weight"))
    assert plan.dropped == ("lm_head.weight",)
    assert plan.tensors == len(left)


def test_nothing_left(saved: Callable[..., Path]) -> None:
    with pytest.raises(PlanError, match="no tensor is left to write") as caught:
        surgery.plan(surgery.drop(surgery.open_checkpoint(saved("llama")), ".*"))
    assert caught.value.where == (str(saved("llama")),)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A LoRA on two projections of the small Llama."""
    tensors = {}
    for layer in (0, 2):
        prefix = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors |= {f"{prefix}.lora_A.weight": torch.ones(2, 48), f"{prefix}.lora_B.weight": torch.ones(40, 2)}
    (tmp_path / "adapter").mkdir()
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4})
    )
    return tmp_path / "adapter"


def test_adapters_must_arrive(saved: Callable[..., Path], adapter: Path) -> None:
    checkpoint = surgery.open_checkpoint(saved("llama"))
    merged = surgery.merge(checkpoint, surgery.open_adapter(adapter))
    plan = surgery.plan(merged)
    assert plan.computed == tuple(f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 2))
    name = plan.computed[0]
    with pytest.raises(PlanError, match="2 tensors of the adapter reach no output") as caught:
        surgery.plan(replace(merged, tensors={**merged.tensors, name: checkpoint[name]}))
    assert caught.value.where == (
        str(adapter),
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",
    )


# Packed dtypes


def test_packed_tensors_are_cut_at_whole_bytes() -> None:
    packed = leaf((2, 6), dtype="F4")
    surgery.plan(of({"a": narrow(packed, 0, 0, 1), "b": narrow(packed, 0, 1, 1)}, {"w": packed}))
    surgery.plan(of({"a": narrow(packed, 1, 0, 2), "b": narrow(packed, 1, 2, 4)}, {"w": packed}))
    with pytest.raises(LayoutError, match="cannot cut packed F4 elements inside a byte") as caught:
        surgery.plan(of({"a": narrow(packed, 1, 0, 3), "b": narrow(packed, 1, 3, 3)}, {"w": packed}))
    assert caught.value.where == ("a",)
    assert caught.value.help == "leave this tensor whole, or cut it where both sides fill whole bytes"


# Bytes of a shard


def check_whole(shard: ShardPlan) -> None:
    """The header says what the slots say, and header, steps and zeros make every byte of the shard once."""
    header = parse_header(shard.header[8:], shard.nbytes, shard.name)
    assert {n: (e.dtype, e.shape, header.data + e.start) for n, e in header.entries.items()} == {
        s.name: (s.tensor.dtype, s.tensor.shape, s.to) for s in shard.slots
    }
    made = [(0, len(shard.header))]
    made += [(s.to, s.to + s.tensor.nbytes) for s in shard.slots if isinstance(s.tensor, Zeros)]
    for step in shard.steps():
        size = step.nbytes if isinstance(step, Copy) else (step.stop - step.start) * step.tensor.dtype.bits // 8
        made.append((step.to, step.to + size))
    end = 0
    for start, stop in sorted(made):
        assert start == end
        end = stop
    assert end == shard.nbytes


@settings(deadline=None)
@given(st.lists(surgeries(), min_size=1, max_size=4), st.booleans())
def test_steps_fill_a_shard(cases: list[tuple[Stored, list[Tensor]]], zeros: bool) -> None:
    opened = {f"w{i}": replace(whole, offset=10_000 * i) for i, (whole, _) in enumerate(cases)}
    tensors: dict[str, Tensor] = {**opened, **({"z": Zeros(F32, (3, 2)), "none": Zeros(F32, (0,))} if zeros else {})}
    tensors |= {f"p{i}.{j}": piece for i, (_, pieces) in enumerate(cases) for j, piece in enumerate(pieces)}
    every = {**opened, **{f"{i}": whole for i, (whole, _) in enumerate(cases)}}
    for shard in surgery.plan(of(tensors, every)).shards:
        check_whole(shard)


def test_long_runs_are_copied_and_short_ones_gathered() -> None:
    fused = leaf((64, 4096))  # rows of 16 KiB
    halves = {"a": narrow(fused, 0, 0, 32), "b": narrow(fused, 0, 32, 32)}
    (shard,) = surgery.plan(of(halves, {"w": fused})).shards
    assert list(shard.steps()) == [Copy(fused.file, 0, len(shard.header), fused.nbytes)]
    every = {
        "even": narrow(reshape(fused, (32, 2, 4096)), 1, 0, 1),
        "odd": narrow(reshape(fused, (32, 2, 4096)), 1, 1, 1),
    }
    (shard,) = surgery.plan(of(every, {"w": fused})).shards
    assert [(type(s), s.nbytes) for s in shard.steps() if isinstance(s, Copy)] == [(Copy, 16384)] * 64
    check_whole(shard)
    columns = {"left": narrow(fused, 1, 0, 4095), "right": narrow(fused, 1, 4095, 1)}
    (shard,) = surgery.plan(of(columns, {"w": fused})).shards
    assert [type(s) for s in shard.steps()] == [Fill, Fill]
    check_whole(shard)


def test_an_unchanged_file_is_one_copy(saved: Callable[..., Path]) -> None:
    checkpoint = surgery.open_checkpoint(saved("llama"))
    (shard,) = surgery.plan(checkpoint).shards
    (step,) = shard.steps()
    assert isinstance(step, Copy)
    assert len(shard.header) + step.nbytes == shard.nbytes == (saved("llama") / ONE).stat().st_size


def test_numbers_of_a_plan(saved: Callable[..., Path], adapter: Path) -> None:
    checkpoint = surgery.merge(surgery.open_checkpoint(saved("llama")), surgery.open_adapter(adapter))
    plan = surgery.plan(surgery.rename(checkpoint, [("lm_head", "head")]), "60KB")
    assert plan.tensors == len(checkpoint.tensors)
    assert plan.nbytes == sum(t.nbytes for t in checkpoint.tensors.values()) + sum(len(s.header) for s in plan.shards)
    assert plan.computed_bytes == 2 * 40 * 48 * 4
    assert plan.added == ("head.weight",)
    assert plan.needed == plan.nbytes + plan.file_bytes
    for shard in plan.shards:
        check_whole(shard)


# Paths


def test_a_shard_and_a_file_cannot_share_a_path(saved: Callable[..., Path]) -> None:
    checkpoint = surgery.open_checkpoint(saved("llama"))
    with pytest.raises(PlanError, match="a shard and a carried file would have the same path") as caught:
        surgery.plan(replace(checkpoint, files={**checkpoint.files, ONE: b""}))
    assert caught.value.where == (ONE,)
    assert caught.value.help == "rename the file in the source folder"
    surgery.plan(replace(checkpoint, files={**checkpoint.files, ONE: b""}), "60KB")


# Identity, and plans as values


@pytest.fixture
def source(saved: Callable[..., Path], tmp_path: Path) -> Path:
    """A checkpoint of one's own, to be changed."""
    return Path(shutil.copytree(saved("llama", shard="60KB"), tmp_path / "source"))


def later(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def retrain(adapter: Path) -> None:
    """Other values under the same header, size and time."""
    weights = adapter / "adapter_model.safetensors"
    status, raw = weights.stat(), weights.read_bytes()
    weights.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_pickled_plan_is_the_same_plan(source: Path, adapter: Path, tmp_path: Path) -> None:
    checkpoint = surgery.merge(surgery.open_checkpoint(source), surgery.open_adapter(adapter))
    plan = surgery.plan(surgery.drop(checkpoint, r"lm_head\.weight"), "40KB")
    again: Plan = pickle.loads(pickle.dumps(plan))
    assert again == plan
    assert again.identity == plan.identity
    assert [list(s.steps()) for s in again.shards] == [list(s.steps()) for s in plan.shards]
    surgery.execute(plan, tmp_path / "one")
    surgery.execute(again, tmp_path / "two")
    assert hashes(tmp_path / "one", without=()) == hashes(tmp_path / "two", without=())


def test_the_identity_is_stable(source: Path, adapter: Path) -> None:
    def identity() -> str:
        return surgery.plan(
            surgery.merge(surgery.open_checkpoint(source), surgery.open_adapter(adapter)), "40KB"
        ).identity

    assert identity() == identity()


OPTIONS: dict[str, dict[str, Any]] = {
    "size": {"max_shard_size": "60KB"},
    "none": {"max_shard_size": None},
    "balanced": {"balanced": True},
    "metadata": {"drop_metadata": ["format"]},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_the_identity_depends_on_options(source: Path, option: str) -> None:
    checkpoint = surgery.open_checkpoint(source)
    options: dict[str, Any] = {"max_shard_size": "40KB"}
    assert (
        surgery.plan(checkpoint, **options).identity != surgery.plan(checkpoint, **options | OPTIONS[option]).identity
    )


def edit(checkpoint: Checkpoint) -> Checkpoint:
    return replace(checkpoint, files={**checkpoint.files, "config.json": b"{}"})


SURGERIES: dict[str, Callable[[Checkpoint], Checkpoint]] = {
    "file edited": edit,
    "file edited otherwise": lambda c: replace(edit(c), files={**c.files, "config.json": b"{ }"}),
    "file left out": lambda c: replace(c, files={}),
    "renamed": lambda c: surgery.rename(c, [("lm_head", "head")]),
    "dropped": lambda c: surgery.drop(c, r"lm_head\.weight"),
    "two names exchanged": lambda c: surgery.rename(c, [("q_proj", "x"), ("o_proj", "q_proj"), ("x", "o_proj")]),
    "history": lambda c: c.with_step({"surgery": "none"}),
    "values exchanged": lambda c: replace(
        c,
        tensors={
            **c.tensors,
            "model.layers.0.mlp.up_proj.weight": c["model.layers.1.mlp.up_proj.weight"],
            "model.layers.1.mlp.up_proj.weight": c["model.layers.0.mlp.up_proj.weight"],
        },
    ),
    "rows reversed": lambda c: replace(
        c,
        tensors={
            **c.tensors,
            "lm_head.weight": concat([narrow(c["lm_head.weight"], 0, i, 1) for i in reversed(range(97))], 0),
        },
    ),
}


def test_the_identity_depends_on_the_surgery(source: Path) -> None:
    checkpoint = surgery.open_checkpoint(source)
    made = [surgery.plan(change(checkpoint)).identity for change in SURGERIES.values()]
    assert len({surgery.plan(checkpoint).identity, *made}) == 1 + len(SURGERIES)


CHANGES: dict[str, Callable[[Path, Path], object]] = {
    "a shard's time": lambda source, _: later(source / "model-00001-of-00005.safetensors"),
    "a file's time": lambda source, _: later(source / "config.json"),
    "a file's content": lambda source, _: (source / "generation_config.json").write_text("{}"),
    "a new file": lambda source, _: (source / "LICENSE").write_text("MIT"),
    "an adapter's values": lambda _, adapter: retrain(adapter),
    "an adapter's time": lambda _, adapter: later(adapter / "adapter_model.safetensors"),
    "an adapter's scale": lambda _, adapter: (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 8})
    ),
    "the place": lambda source, _: source.rename(source.parent / "moved"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_identity_depends_on_inputs(source: Path, adapter: Path, change: str) -> None:
    def identity(source: Path) -> str:
        return surgery.plan(surgery.merge(surgery.open_checkpoint(source), surgery.open_adapter(adapter))).identity

    before = identity(source)
    CHANGES[change](source, adapter)
    assert identity(source if source.exists() else source.parent / "moved") != before


def test_the_identity_depends_on_the_version(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = surgery.plan(surgery.open_checkpoint(source)).identity
    monkeypatch.setattr(IDENTITY, "__version__", "0")
    assert surgery.plan(surgery.open_checkpoint(source)).identity != before


def test_only_computed_plans_depend_on_torch(source: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = surgery.open_checkpoint(source)
    computed = surgery.merge(copied, surgery.open_adapter(adapter))
    before = surgery.plan(copied).identity, surgery.plan(computed).identity
    monkeypatch.setattr(IDENTITY, "arithmetic_identity", lambda: "another CPU")
    assert surgery.plan(copied).identity == before[0]
    assert surgery.plan(computed).identity != before[1]


def test_two_names_for_one_tensor_are_both_written(source: Path, tmp_path: Path) -> None:
    checkpoint = surgery.open_checkpoint(source)
    head = {"head.weight": checkpoint["lm_head.weight"]}
    twice = replace(
        checkpoint, tensors={**checkpoint.tensors, **head}, weight_map={**checkpoint.weight_map, "head.weight": ONE}
    )
    surgery.write(twice, tmp_path / "out", max_shard_size="1MB")
    weights = load_file(tmp_path / "out" / ONE)
    assert len(weights) == len(checkpoint.tensors) + 1
    assert weights["head.weight"].equal(weights["lm_head.weight"])
