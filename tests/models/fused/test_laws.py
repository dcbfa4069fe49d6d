"""Laws of splitting and fusing, for any groups, slots, order, axis, dtype and stacking, against plain indexing by
torch.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import hashes
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import surgery
from surgery.evaluation.evaluate import load
from surgery.lazy.tensor import Stored, is_computed
from surgery.models.fused.given import Given
from surgery.models.fused.layout import Layout
from surgery.models.fused.row import EXPERT, PARAMETER, STACKED, Row, Site

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.bool)
KEYS = ("q", "k", "v", "z")


@dataclass(frozen=True)
class Fused:
    """A layout, and the tensor that has it."""

    layout: Layout
    shape: tuple[int, ...]
    axis: int
    dtype: torch.dtype

    def real(self) -> torch.Tensor:
        size = math.prod(self.shape) * self.dtype.itemsize
        real = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))
        return (real % 2 if self.dtype == torch.bool else real).view(self.dtype).view(self.shape)

    def entries(self) -> list[list[int]]:
        """The entries of the fused axis that each part has, one after another, by counting."""
        found: list[list[int]] = [[] for _ in self.layout.slots]
        at = 0
        for _ in range(self.layout.groups):
            for part, slots in zip(found, self.layout.slots, strict=True):
                part += range(at, at + slots * self.layout.unit)
                at += slots * self.layout.unit
        assert at == self.shape[self.axis]
        return found


@st.composite
def fused(draw: st.DrawFn, *, lead: int = 2, tail: int = 2) -> Fused:
    layout = Layout(
        draw(st.integers(1, 5)),
        tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))),
        draw(st.integers(1, 4)),
    )
    before = draw(st.lists(st.integers(1, 4), max_size=lead))
    after = draw(st.lists(st.integers(1, 4), max_size=tail))
    return Fused(layout, (*before, layout.length, *after), len(before), draw(st.sampled_from(DTYPES)))


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which examples store a checkpoint, one after another."""
    return tmp_path_factory.mktemp("pool")


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, with a config.json."""
    return tmp_path_factory.mktemp("heads")


def stored(pool: Path, **tensors: torch.Tensor) -> surgery.Checkpoint:
    save_file(tensors, pool / "model.safetensors", metadata={"format": "pt"})
    return surgery.open_checkpoint(pool)


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def check_same(lazy: surgery.checkpoint.Tensor, real: torch.Tensor) -> None:
    assert lazy.shape == tuple(real.shape)
    assert not is_computed(lazy)
    assert bytes_of(load(lazy)) == bytes_of(real)


@settings(max_examples=150, deadline=None)
@given(example=fused())
def test_parts_are_the_entries_that_counting_gives_and_join_to_the_whole(pool: Path, example: Fused) -> None:
    real = example.real()
    whole = stored(pool, x=real)["x"]
    keys = KEYS[: len(example.layout.slots)]
    row = Row(
        "qkv", (), "", "x", dict(zip(keys, keys, strict=True)), lambda _: example.layout, "", example.axis, PARAMETER
    )
    site = Site(row, "x", example.layout, 0, "", "")
    parts = dict(zip(site.parts, site.cut("x", whole), strict=True))
    for part, entries in zip(parts.values(), example.entries(), strict=True):
        check_same(part, real.index_select(example.axis, torch.tensor(entries)))
    check_same(site.join(parts), real)
    if example.layout.groups == 1:
        assert isinstance(site.join(parts), Stored)


@settings(max_examples=100, deadline=None)
@given(example=fused(lead=0, tail=0), experts=st.integers(1, 4), width=st.integers(1, 5), transposed=st.booleans())
def test_stacked_parts_are_each_experts_own(
    pool: Path, example: Fused, experts: int, width: int, transposed: bool
) -> None:
    """(experts, in, out) and (experts, out, in) give (out, in) for each expert; a bias (experts, out) gives (out)."""
    n = example.layout.length
    weight = Fused(
        example.layout,
        (experts, width, n) if transposed else (experts, n, width),
        2 if transposed else 1,
        example.dtype,
    ).real()
    bias = Fused(example.layout, (experts, n), 1, example.dtype).real()
    checkpoint = stored(pool, x=weight, x_bias=bias)
    keys = KEYS[: len(example.layout.slots)]
    row = Row(
        "experts", (), "", "x", {key: f"e.{EXPERT}.{key}" for key in keys}, lambda _: example.layout, "",
        2 if transposed else 1, STACKED, stacked=True, transposed=transposed,
    )  # fmt: skip
    site = Site(row, "x", example.layout, experts, "", "")
    for name, real in (("x", weight), ("x_bias", bias)):
        parts = dict(zip(site.parts, site.cut(name, checkpoint[name]), strict=True))
        assert [*parts] == [f"e.{e}.{key}" for e in range(experts) for key in keys]
        for e in range(experts):
            for key, entries in zip(keys, example.entries(), strict=True):
                matrix = real[e].T if transposed and name == "x" else real[e]
                check_same(parts[f"e.{e}.{key}"], matrix[torch.tensor(entries)])
        check_same(site.join(parts), real)


@settings(max_examples=60, deadline=None)
@given(example=fused(lead=1, tail=1), data=st.data())
def test_given_in_numbers_means_what_it_says(pool: Path, example: Fused, data: st.DataObject) -> None:
    """Groups, slots, an order of parts and an axis, through the surgeries: split is indexing, and fuse undoes it."""
    order = tuple(data.draw(st.permutations(KEYS)))[: len(example.layout.slots)]
    real = example.real()
    checkpoint = stored(pool, **{"a.x.weight": real, "a.y.weight": torch.ones(2)})
    how = Given(
        groups=example.layout.groups,
        slots=example.layout.slots,
        order=order,
        axis=example.axis,
        fused="x",
        names={order[0]: "first"},
    )
    split = surgery.split(checkpoint, ("qkv",), given=how)
    names = [f"a.{'first' if i == 0 else f'{key}_proj'}.weight" for i, key in enumerate(order)]
    assert {*split.tensors} == {*names, "a.y.weight"}
    for name, entries in zip(names, example.entries(), strict=True):
        check_same(split[name], real.index_select(example.axis, torch.tensor(entries)))
    back = surgery.fuse(split, ("qkv",), given=how)
    assert {*back.tensors} == {*checkpoint.tensors}
    check_same(back["a.x.weight"], real)
    assert back.weight_map == checkpoint.weight_map and not back.dropped


@settings(max_examples=60, deadline=None)
@given(groups=st.integers(1, 4), shared=st.integers(1, 3), unit=st.integers(1, 4))
def test_styles_are_special_cases_of_groups_and_slots(heads: Path, groups: int, shared: int, unit: int) -> None:
    """blocked, interleaved and grouped by name, with head counts from config.json, are the same as in numbers."""
    length = groups * (shared + 2) * unit
    config = {"num_attention_heads": groups * shared, "num_key_value_heads": groups}
    (heads / "config.json").write_text(json.dumps(config))
    checkpoint = stored(heads, **{"a.qkv.weight": torch.randn(length, 3)})
    same = {
        "blocked": Given(slots=(groups * shared, groups, groups)),
        "grouped": Given(groups=groups, slots=(shared, 1, 1)),
        **({"interleaved": Given(groups=groups, slots=(1, 1, 1))} if shared == 1 else {}),
    }
    made = {}
    for style, numbers in same.items():
        by_name, by_number = (surgery.split_qkv(checkpoint, given=one) for one in (Given(style), numbers))
        made[style] = {n: bytes_of(load(t)) for n, t in by_name.tensors.items()}
        assert made[style] == {n: bytes_of(load(t)) for n, t in by_number.tensors.items()}
    if shared == 1:
        assert made["interleaved"] == made["grouped"]
    assert (made["blocked"] == made["grouped"]) == (groups == 1)


@settings(max_examples=12, deadline=None)
@given(
    example=fused(lead=0, tail=1),
    layers=st.integers(1, 3),
    size=st.sampled_from(["60B", "200B", "1KB", "1GB"]),
    bias=st.booleans(),
)
def test_files_come_back_byte_for_byte_whatever_the_shards(
    tmp_path_factory: pytest.TempPathFactory, example: Fused, layers: int, size: str, bias: bool
) -> None:
    """split, write in other shards, fuse, write: the files of the base in those shards; and resharding before is
    resharding after.
    """
    folder = tmp_path_factory.mktemp("files")
    (folder / "base").mkdir()
    tensors = {f"h.{i}.attn.x.weight": example.real() for i in range(layers)} | {"norm.weight": torch.randn(3)}
    if bias:
        flat = Fused(example.layout, (example.layout.length,), 0, example.dtype)
        tensors |= {f"h.{i}.attn.x.bias": flat.real() for i in range(layers)}
    save_file(tensors, folder / "base" / "model.safetensors", metadata={"format": "pt"})
    base = surgery.open_checkpoint(folder / "base")
    how = Given(
        groups=example.layout.groups, slots=example.layout.slots, order=KEYS[: len(example.layout.slots)], fused="x"
    )

    def split(checkpoint: surgery.Checkpoint) -> surgery.Checkpoint:
        return surgery.split(checkpoint, ("qkv",), given=how)

    surgery.write(base, folder / "resharded", size)
    surgery.execute(surgery.plan(split(base), max_shard_size=size), folder / "split")
    surgery.execute(
        surgery.plan(split(surgery.open_checkpoint(folder / "resharded")), max_shard_size=size), folder / "split2"
    )
    assert hashes(folder / "split") == hashes(folder / "split2")
    fuse = surgery.fuse(surgery.open_checkpoint(folder / "split"), ("qkv",), given=how)
    surgery.execute(surgery.plan(fuse, max_shard_size=size), folder / "fused")
    assert hashes(folder / "fused") == hashes(folder / "resharded")
    written = {n: t for file in (folder / "split").glob("*.safetensors") for n, t in load_file(file).items()}
    assert len(written) == len(example.layout.slots) * layers * (1 + bias) + 1


def test_another_layout_breaks_the_laws(pool: Path) -> None:
    """The control: the comparison by counting tells every other layout of the same length apart."""
    real = torch.arange(24.0).view(24, 1)
    whole = stored(pool, x=real)["x"]
    layout = Layout(2, (2, 1, 1), 3)
    for wrong in (Layout(1, (4, 2, 2), 3), Layout(3, (4, 2, 2), 1), Layout(2, (1, 2, 1), 3), Layout(6, (2, 1, 1), 1)):
        row = Row("qkv", (), "", "x", {key: key for key in "qkv"}, lambda _, wrong=wrong: wrong, "", 0, PARAMETER)
        parts = Site(row, "x", wrong, 0, "", "").cut("x", whole)
        with pytest.raises(AssertionError):
            for part, entries in zip(parts, Fused(layout, (24, 1), 0, torch.float32).entries(), strict=True):
                check_same(part, real[torch.tensor(entries)])
