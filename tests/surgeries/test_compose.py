"""Laws of composition: surgeries composed are surgeries run one by one, and movement commutes with arithmetic.

All of it bit for bit. What makes the second law true is the block law of `evaluate.py`, which is tested here too: an
element of a sum is the same whatever part of the sum is asked for, with whatever budget, threads and precision.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import hashes
from hypothesis import given, settings
from hypothesis import strategies as st
from movement import moved_once
from safetensors.torch import load_file, save_file
from test_split_oracle import CASES, rows_of

import surgery
from surgery.checkpoint import Checkpoint
from surgery.evaluation.arithmetic import exact
from surgery.evaluation.evaluate import blocks, load, workspace_of
from surgery.evaluation.scratch import scratch_of
from surgery.files.safetensors import read_header, tensors_of
from surgery.lazy.dtypes import DTYPES
from surgery.lazy.low_rank import LowRank
from surgery.lazy.tensor import Shape, Stored, Sum, Tensor, add, concat, narrow, permute, reshape

FAMILIES = ("phi3", "gpt2", "gpt_neox", "bloom", "sam")
OTHERS = {
    "phi3": "o_proj",
    "gpt2": "c_proj",
    "gpt_neox": "dense",
    "bloom": "dense",
    "sam": "proj",
}  # modules beside the fused ones


def lora(folder: Path, modules: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> Path:
    """A PEFT directory with these A and B by module, of one rank."""
    folder.mkdir(parents=True)
    tensors = {
        f"base_model.model.{m}.lora_{p}.weight": t.clone(memory_format=torch.contiguous_format)
        for m, pair in modules.items()
        for p, t in zip("AB", pair, strict=True)
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    rank = next(iter(modules.values()))[0].shape[0]
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 3.3}))
    return folder


def factors(
    checkpoint: Checkpoint, family: str, leaves: tuple[str, ...], *, rank: int = 5
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Random A (r, in) and B (out, r) for each module of these last names."""
    generator = torch.Generator().manual_seed(11)
    found = {}
    for name, tensor in checkpoint.tensors.items():
        module = name.removesuffix(".weight")
        if name != module and module.rpartition(".")[2] in leaves and len(tensor.shape) == 2:
            rows, columns = reversed(tensor.shape) if family == "gpt2" else tensor.shape
            found[module] = (
                torch.randn(rank, columns, generator=generator),
                0.1 * torch.randn(rows, rank, generator=generator),
            )
    assert found
    return found


def shards(folder: Path) -> dict[str, str]:
    """Hashes of all that was written but for the manifest, which tells the history."""
    return hashes(folder, without=(".surgery",))


# Surgeries


@pytest.mark.parametrize("size", [None, "9KB"])
@pytest.mark.parametrize("shard", [None, "20KB"])
@pytest.mark.parametrize("family", FAMILIES)
def test_composed_is_one_by_one(
    family: str, shard: str | None, size: str | None, saved: Callable[..., Path], tmp_path: Path
) -> None:
    """write(merge(split(x))) is split, write, open, merge, write: the same files, in any layout."""
    base = surgery.open_checkpoint(saved(family, shard=shard, dtype=torch.bfloat16))
    split = surgery.split_qkv(base)
    lora(tmp_path / "adapter", factors(split, family, (*CASES[family].parts, OTHERS[family])))
    adapter = surgery.open_adapter(tmp_path / "adapter")
    surgery.write(surgery.merge(split, adapter), tmp_path / "once", size)

    surgery.write(split, tmp_path / "split")
    report = surgery.write(
        surgery.merge(surgery.open_checkpoint(tmp_path / "split"), adapter), tmp_path / "twice", size
    )
    assert report.computed == len(adapter.lora)
    assert shards(tmp_path / "once") == shards(tmp_path / "twice")
    assert len(list((tmp_path / "once").glob("*.safetensors"))) > 1 or not (shard or size)

    if size:  # and with a reshard in between
        surgery.write(surgery.open_checkpoint(tmp_path / "split"), tmp_path / "thrice", "7KB")
        surgery.write(
            surgery.merge(surgery.open_checkpoint(tmp_path / "thrice"), adapter), tmp_path / "resharded", size
        )
        assert shards(tmp_path / "once") == shards(tmp_path / "resharded")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_split_and_merge_commute(family: str, dtype: torch.dtype, saved: Callable[..., Path], tmp_path: Path) -> None:
    """A LoRA on the fused tensor, merged and split, is its rows on the parts (same A, rows of B), split and merged."""
    base, case = surgery.open_checkpoint(saved(family, dtype=dtype)), CASES[family]
    fused = factors(base, family, (case.fused,))
    parts = {
        f"{module.rpartition('.')[0]}.{part}": (a, rows)
        for module, (a, b) in fused.items()
        for part, rows in zip(case.parts, rows_of(b, replace(case, axis=0)), strict=True)
    }
    on_fused = surgery.open_adapter(lora(tmp_path / "fused", fused))
    on_parts = surgery.open_adapter(lora(tmp_path / "parts", parts))
    surgery.write(surgery.split_qkv(surgery.merge(base, on_fused)), tmp_path / "merge, split")
    surgery.write(surgery.merge(surgery.split_qkv(base), on_parts), tmp_path / "split, merge")
    surgery.write(surgery.split_qkv(base), tmp_path / "split")
    assert shards(tmp_path / "merge, split") == shards(tmp_path / "split, merge")
    assert shards(tmp_path / "merge, split") != shards(tmp_path / "split")

    surgery.write(surgery.merge(base, on_fused), tmp_path / "merged")
    surgery.write(surgery.split_qkv(surgery.open_checkpoint(tmp_path / "merged")), tmp_path / "one by one")
    assert shards(tmp_path / "merge, split") == shards(tmp_path / "one by one")


@pytest.mark.parametrize("family", FAMILIES)
def test_splitting_a_cast_is_casting_the_parts(family: str, saved: Callable[..., Path]) -> None:
    """Sums without deltas, too: bfloat16 of the parts is the parts of bfloat16."""
    base = surgery.open_checkpoint(saved(family))
    cast = base.with_step({}, tensors={n: add(t, [], DTYPES["BF16"]) for n, t in base.tensors.items()})
    plain, made = surgery.split_qkv(base), surgery.split_qkv(cast)
    for name in plain.tensors:
        assert torch.equal(made.load(name), plain.load(name).bfloat16())


# Movement over arithmetic

POOL = 2_000_000  # elements of each dtype


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Stored]:
    """Normal random numbers of each dtype that is computed, in one file: leaves are cut from it."""
    path = tmp_path_factory.mktemp("pool") / "x.safetensors"
    values = torch.randn(POOL, generator=torch.Generator().manual_seed(5))
    kinds = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    save_file({str(k): values.to(k, copy=True) for k in kinds}, path)
    return {t.dtype.name: t for t in tensors_of(*read_header(str(path))).values()}  # type: ignore[misc]


def leaf(pool: dict[str, Stored], dtype: str, shape: tuple[int, ...], at: int) -> Stored:
    """Elements of the pool, from `at` on, as a stored tensor of `shape`."""
    source = pool[dtype]
    return Stored(
        source.dtype, shape, source.file, source.offset + at % (POOL - math.prod(shape)) * source.dtype.bits // 8
    )


RANKS = (1, 2, 7, 16, 64, 300)
OFFSETS = st.integers(0, POOL)


def summed(draw: st.DrawFn, pool: dict[str, Stored], shape: tuple[int, ...], rank: int | None = None) -> Tensor:
    """A sum of that shape: base and factors of any dtype, up to two deltas."""
    base = leaf(pool, draw(st.sampled_from(["F32", "BF16", "F16", "F64"])), shape, draw(OFFSETS))
    deltas = []
    for _ in range(1 if rank else draw(st.integers(0, 2))):
        r = rank or draw(st.sampled_from(RANKS))
        kind = draw(st.sampled_from(["F32", "BF16"]))
        left, right = leaf(pool, kind, (*shape[:-1], r), draw(OFFSETS)), leaf(pool, kind, (r, shape[-1]), draw(OFFSETS))
        deltas.append(LowRank(left, right, draw(st.sampled_from([1.0, 0.5, 0.7, -2.3]))))
    return add(base, deltas, DTYPES[draw(st.sampled_from([base.dtype.name, "BF16", "F32"]))])


COLUMNS = st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 1023, 1024, 1025, 1500]))


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_movement_commutes_with_arithmetic(pool: dict[str, Stored], data: st.DataObject) -> None:
    """load(movement(sum)) is movement(load(sum)), whatever of it was moved below the sum."""
    draw = data.draw
    lead = draw(st.sampled_from([(), (1,), (3,), (65,), (130,), (4, 5), (2, 66), (3, 2, 4)]))
    lazy = summed(draw, pool, (*lead, draw(COLUMNS)))
    real = load(lazy)

    def more(shape: Shape) -> tuple[Tensor, torch.Tensor]:
        made = add(leaf(pool, "F32", shape, draw(OFFSETS)), [], lazy.dtype)
        return made, load(made)

    for _ in range(draw(st.integers(1, 4))):
        lazy, real = moved_once(draw, lazy, real, more)
    made = load(lazy)
    assert made.dtype == real.dtype and made.shape == real.shape
    assert torch.equal(made, real)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_sums_of_sums(pool: dict[str, Stored], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A sum on a moved sum, with a sum for a factor, is the sum on what those are when they are stored first."""
    draw = data.draw
    rows, columns, rank = draw(st.integers(1, 140)), draw(COLUMNS), draw(st.sampled_from(RANKS[:4]))
    base = permute(summed(draw, pool, (columns, rows)), (1, 0))
    left, right = summed(draw, pool, (rows, rank)), summed(draw, pool, (rank, columns))
    path = tmp_path_factory.mktemp("sums") / "x.safetensors"
    save_file({"base": load(base).contiguous(), "left": load(left), "right": load(right)}, path)
    first = tensors_of(*read_header(str(path)))
    at_once = load(add(base, [LowRank(left, right, 0.7)]))
    assert torch.equal(at_once, load(add(first["base"], [LowRank(first["left"], first["right"], 0.7)])))


@pytest.mark.parametrize("options", [{"workers": 1, "memory": "20MB"}, {"workers": 3, "memory": "96MB"}], ids=str)
def test_what_is_written_is_what_is_loaded(options: dict[str, Any], pool: dict[str, Stored], tmp_path: Path) -> None:
    """Also where a sum must be computed as a whole, into scratch, before its movement."""
    shapes = ((450, 1500), (450, 7), (7, 1500))
    base, left, right = (leaf(pool, "BF16", shape, i) for i, shape in enumerate(shapes))
    total = add(base, [LowRank(left, right, 0.7)])
    tensors = {
        "whole": total,
        "transposed": permute(total, (1, 0)),
        "columns": narrow(total, 1, 3, 1401),
        "joined": concat([narrow(total, 1, 1000, 500), total], 1),
        "interleaved": permute(reshape(total, (9, 50, 1500)), (2, 0, 1)),
        "regrouped": narrow(reshape(total, (450 * 30, 50)), 0, 1, 13_000),
        "wider": add(permute(total, (1, 0)), [], DTYPES["F32"]),
        "cast": permute(add(base, [], DTYPES["F32"]), (1, 0)),
    }
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    checkpoint = surgery.open_checkpoint(tmp_path)
    made = checkpoint.with_step(
        {}, tensors=tensors, weight_map=dict.fromkeys(tensors, "model.safetensors"), dropped=checkpoint.tensors
    )
    out = tmp_path.parent / f"{tmp_path.name}-out"
    surgery.write(made, out, **options)
    assert {n for n, t in tensors.items() if scratch_of(t)} == {"transposed", "interleaved", "regrouped", "wider"}
    written = load_file(out / "model.safetensors")
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(written[name], load(tensor)), name
    assert torch.equal(written["joined"][:, 500:], written["whole"])


# The block law


@st.composite
def ranges(draw: st.DrawFn, size: int) -> tuple[int, int]:
    """[start, stop) within `size`, often a single entry or up to the end."""
    start = draw(st.one_of(st.integers(0, size - 1), st.just(size - 1)))
    return start, draw(st.one_of(st.integers(start + 1, size), st.just(start + 1), st.just(size)))


ROWS = st.one_of(st.integers(1, 200), st.sampled_from([1, 63, 64, 65, 127, 129, 193]))
WIDE = st.one_of(st.integers(1, 5000), st.sampled_from([1, 2, 1023, 1025, 4095, 4096, 4097, 5000]))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_part_alone_is_that_part_of_the_whole(pool: dict[str, Stored], data: st.DataObject) -> None:
    """Rows, columns and both, down to one element, as narrowed sums and as windows of the sum."""
    draw = data.draw
    rows, columns = draw(ROWS), draw(WIDE)
    total = summed(draw, pool, (rows, columns), rank=draw(st.sampled_from(RANKS)))
    whole = load(total)
    (a, b), (c, d) = draw(ranges(rows)), draw(ranges(columns))
    assert torch.equal(load(narrow(total, 0, a, b - a)), whole[a:b])
    assert torch.equal(load(narrow(total, 1, c, d - c)), whole[:, c:d])
    assert torch.equal(load(narrow(narrow(total, 1, c, d - c), 0, a, b - a)), whole[a:b, c:d])

    start, stop = draw(ranges(rows * columns))
    space = workspace_of(draw(st.sampled_from([50_000, 1_000_000, 96_000_000])))
    with exact():
        window = b"".join(bytes(block) for _, block in blocks(total, start, stop, space))
    space.close()
    assert window == whole.view(-1)[start:stop].view(torch.uint8).numpy().tobytes()


def test_torch_alone_breaks_the_law(pool: dict[str, Stored]) -> None:
    """The control: rows of a product of torch's are not the product of the rows, which is why there are blocks."""
    left, right = (load(leaf(pool, "F32", shape, 0)) for shape in ((65, 300), (300, 4097)))
    assert not torch.equal((left @ right)[64:], left[64:] @ right)


@contextmanager
def torch_set(threads: int | None = None, precision: str | None = None) -> Iterator[None]:
    """Torch's settings as a caller may have them; put back afterwards."""
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        if threads:
            torch.set_num_threads(threads)
        if precision:
            torch.set_float32_matmul_precision(precision)
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])


@pytest.fixture(scope="module")
def large(pool: dict[str, Stored]) -> tuple[Sum, torch.Tensor]:
    """A sum that torch would share among threads, and its value."""
    left, right = leaf(pool, "F32", (450, 300), 3), leaf(pool, "F32", (300, 4097), 7)
    total = add(leaf(pool, "F32", (450, 4097), 1), [LowRank(left, right, 0.7)])
    assert isinstance(total, Sum)
    with torch_set(1, "highest"):
        return total, load(total)


@pytest.mark.parametrize(
    "options", [{"threads": n} for n in (1, 2, 5)] + [{"precision": p} for p in ("highest", "high", "medium")], ids=str
)
def test_the_callers_settings_change_nothing(
    options: dict[str, Any], large: tuple[Sum, torch.Tensor], tmp_path: Path
) -> None:
    """Neither what is computed, by `load` and by `write`, nor, afterwards, the settings."""
    total, value = large
    with torch_set(**options):
        settings_then = torch.get_num_threads(), torch.get_float32_matmul_precision()
        assert torch.equal(load(total), value)
        save_file({"x": torch.zeros(450, 4097)}, tmp_path / "model.safetensors")
        base = surgery.open_checkpoint(tmp_path)
        made = base.with_step({}, tensors={"x": total}, dropped=base.tensors)
        out = tmp_path.parent / f"{tmp_path.name}-out"
        surgery.write(made, out)
        assert torch.equal(load_file(out / "model.safetensors")["x"], value)
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == settings_then


def test_medium_precision_would_show(large: tuple[Sum, torch.Tensor]) -> None:
    """The control: on CPUs with bfloat16 matrix units, and some others, torch's own product follows the setting."""
    total, _ = large
    left, right = load(total.deltas[0].left), load(total.deltas[0].right)
    with torch_set(precision="highest"):
        full = left @ right
    with torch_set(precision="medium"):
        medium = left @ right
    if torch.equal(full, medium):
        pytest.skip("the setting changes nothing on this CPU")
    assert torch.allclose(full, medium, rtol=0.05, atol=0.5)


def test_settings_are_restored_after_an_error(pool: dict[str, Stored], tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.ones(70, 30), "a": torch.ones(2, 30), "b": torch.ones(70, 2)}, path)
    stored = tensors_of(*read_header(str(path)))
    total = add(stored["x"], [LowRank(stored["b"], stored["a"], 1.0)])
    path.write_bytes(path.read_bytes()[:-4])
    with torch_set(2, "medium"), pytest.raises(surgery.SourceChanged):
        load(total)
    with torch_set(2, "medium"):
        with pytest.raises(surgery.SourceChanged):
            load(total)
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (2, "medium")
