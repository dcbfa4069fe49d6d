"""What can be shared: whole blocks at the same offsets within a block, and headers that end in spaces so that there are
such.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import surgery
from surgery.errors import SurgeryError
from surgery.files.manifest import read_manifest
from surgery.lazy.tensor import Zeros
from surgery.planning.sharing import BLOCK, Shareable, aligned, inner, parse_align


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder of one shard whose tensors fill blocks, but for small ones."""
    (tmp_path / "base").mkdir()
    made = {f"l.{i}.{n}": torch.full((64, 128), float(i), dtype=torch.bfloat16) for i in range(4) for n in "ab"}
    made |= {f"l.{i}.norm": torch.ones(2048, dtype=torch.bfloat16) for i in range(4)}
    save_file(made, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "base" / "config.json").write_text("{}")
    return tmp_path / "base"


@given(st.integers(0, 3 * BLOCK), st.integers(0, 3 * BLOCK), st.integers(0, 5 * BLOCK), st.sampled_from([512, BLOCK]))
def test_the_blocks_inside_a_run(at: int, to: int, nbytes: int, block: int) -> None:
    """All whole blocks of both files that lie in the run, and nothing else."""
    begin, stop = inner(at, to, nbytes, block)
    both = [i for i in range(nbytes) if (at + i) % block == (to + i) % block == 0 and i + block <= nbytes]
    assert (begin, stop) == ((both[0], both[-1] + block) if both else (0, 0))


def test_one_byte_apart_nothing_is_shared() -> None:
    assert inner(0, 1, 100 * BLOCK, BLOCK) == (0, 0)
    assert inner(1, 1, 100 * BLOCK, BLOCK) == (BLOCK - 1, 100 * BLOCK - 1)


def test_a_whole_shard_is_shared_with_its_header(base: Path) -> None:
    made = surgery.plan(surgery.open_checkpoint(base))
    assert made.shareable == Shareable(shared=(base / "model.safetensors").stat().st_size)


def test_aligned_data_can_be_shared(base: Path) -> None:
    """In shards of other headers: without spaces nothing lies where it did, with them nearly all."""
    checkpoint = surgery.open_checkpoint(base)
    plain, shifted = (surgery.plan(checkpoint, "50KB", align=a) for a in (None, "auto"))
    data = sum(t.nbytes for t in checkpoint.tensors.values())
    assert plain.shareable.shared == 0 and plain.shareable.apart > 0.9 * data
    assert shifted.shareable.apart == 0
    assert shifted.shareable.shared >= data - 2 * BLOCK * len(shifted.shards)
    assert plain.identity != shifted.identity
    assert shifted.options["align"] == BLOCK and "align" not in plain.options


@pytest.mark.parametrize("align", [8, 512, "auto", "64KiB"])
def test_aligned_headers_are_read_and_hold_the_same(base: Path, tmp_path: Path, align: int | str) -> None:
    """By safetensors, and by our own parser; the manifest says how."""
    surgery.write(surgery.open_checkpoint(base), tmp_path / "out", "50KB", align=align)
    size, want = parse_align(align), load_file(base / "model.safetensors")
    found = dict[str, torch.Tensor]()
    for path in sorted((tmp_path / "out").glob("*.safetensors")):
        with safe_open(path, "pt") as stream:
            assert stream.metadata() == {"format": "pt"}
        found |= load_file(path)
        raw = path.read_bytes()
        assert int.from_bytes(raw[:8], "little") % 8 == 0 and raw[8:9] == b"{"
    assert found.keys() == want.keys() and all(torch.equal(found[n], want[n]) for n in want)
    assert surgery.verify(tmp_path / "out").ok
    assert (said := read_manifest(str(tmp_path / "out"))) and said.options["align"] == size
    again = surgery.open_checkpoint(tmp_path / "out")
    for name, tensor in surgery.open_checkpoint(base).tensors.items():
        assert (again.tensors[name].offset - tensor.offset) % size == 0  # type: ignore[union-attr, operator]


def test_what_is_aligned_stays_so_by_the_same_option(base: Path, tmp_path: Path) -> None:
    """Each shard of an aligned checkpoint is written again as it is, and can be shared whole."""
    surgery.write(surgery.open_checkpoint(base), tmp_path / "a", "50KB", align="auto")
    made = surgery.plan(surgery.open_checkpoint(tmp_path / "a"), align="auto")
    assert made.shareable == Shareable(shared=made.nbytes)
    surgery.write(surgery.open_checkpoint(tmp_path / "a"), tmp_path / "b", align="auto")
    for path in (tmp_path / "a").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_where_nothing_is_copied_the_data_begins_with_a_block(base: Path) -> None:
    """For the next surgery on it."""
    shard = surgery.plan(surgery.open_checkpoint(base)).shards[0]
    empty = replace(shard, slots=tuple(replace(s, tensor=Zeros(s.tensor.dtype, s.tensor.shape)) for s in shard.slots))
    made = aligned(empty, 1 << 16)
    assert len(made.header) == 1 << 16 == made.slots[0].to
    assert made.nbytes - shard.nbytes == made.slots[-1].to - shard.slots[-1].to == (1 << 16) - len(shard.header)


def test_the_larger_part_of_two_sources_is_shared(tmp_path: Path) -> None:
    """A shard of two files with headers of other lengths: the data begins as for the one of which there is more."""
    (tmp_path / "base").mkdir()
    big, small = torch.ones(40, 1024), torch.ones(10, 1024)
    save_file({"a.big": big}, tmp_path / "base" / "model-00001-of-00002.safetensors")
    save_file({"b.small": small}, tmp_path / "base" / "model-00002-of-00002.safetensors", metadata={"format": "p" * 50})
    names = {"a.big": "model-00001-of-00002.safetensors", "b.small": "model-00002-of-00002.safetensors"}
    index = json.dumps({"metadata": {}, "weight_map": names})
    (tmp_path / "base" / "model.safetensors.index.json").write_text(index)
    made = surgery.plan(surgery.open_checkpoint(tmp_path / "base"), "1MB", align="auto", drop_metadata=["format"])
    assert len(made.shards) == 1
    assert made.shareable.shared >= big.nbytes - 2 * BLOCK and made.shareable.apart == small.nbytes


@pytest.mark.parametrize("align", [0, 3, 4, 4097, 1 << 25, "12", "-8", "much", "96KiB"])
def test_what_is_no_alignment_is_refused(base: Path, align: int | str) -> None:
    with pytest.raises(SurgeryError):
        surgery.plan(surgery.open_checkpoint(base), align=align)
    with pytest.raises(SurgeryError, match="4097 bytes"):
        parse_align(4097)
