"""Files that torch saved, read without torch: every tensor as `torch.load` gives it, bit for bit."""

from __future__ import annotations

import collections
import io
import os
import re
import struct
import types
import zipfile
import zlib
from pathlib import Path
from random import Random
from typing import Any

import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import surgery
from surgery.errors import SurgeryError
from surgery.evaluation.evaluate import load
from surgery.files.torchfile.reader import read_torch

DTYPES = [
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu,
]  # fmt: skip


def numbers(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Random bits of a dtype."""
    size = torch.empty(0, dtype=dtype).element_size()
    count = size * int(torch.tensor(shape).prod()) if shape else size
    raw = torch.randint(
        0, 2 if dtype == torch.bool else 256, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    return raw.view(dtype).reshape(shape)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """A tensor, or a view of one: sliced, stepped, permuted, a column, a row, a scalar, an empty one."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=0, max_size=4)))
    value = numbers(draw(st.sampled_from(DTYPES)), shape, draw(st.integers(0, 99)))
    for _ in range(draw(st.integers(0, 3))):
        if not value.dim():
            break
        axis = draw(st.integers(0, value.dim() - 1))
        size = value.shape[axis]
        match draw(st.sampled_from(["narrow", "step", "permute", "select", "empty", "parameter"])):
            case "narrow":
                start = draw(st.integers(0, size - 1))
                value = value.narrow(axis, start, draw(st.integers(1, size - start)))
            case "step":
                value = value[
                    (slice(None),) * axis + (slice(draw(st.integers(0, size - 1)), None, draw(st.integers(1, 3))),)
                ]
            case "permute":
                value = value.permute(draw(st.permutations(range(value.dim()))))
            case "select":
                value = value.select(axis, draw(st.integers(0, size - 1)))
            case "empty":
                return value.narrow(axis, 0, 0)
            case "parameter":
                if value.is_floating_point() and value.dtype.itemsize > 1:
                    value = torch.nn.Parameter(value)
    return value


def alike(made: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether two are the same bits."""
    wanted = wanted.detach().clone(memory_format=torch.contiguous_format)
    return (
        made.dtype == wanted.dtype
        and made.shape == wanted.shape
        and bool((made.reshape(-1).view(torch.uint8) == wanted.reshape(-1).view(torch.uint8)).all())
    )


def repacked(path: Path, seed: int) -> None:
    """The zip with its entries in another order, as another tool would write them."""
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    Random(seed).shuffle(entries)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries:
            archive.writestr(name, content)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    held=st.dictionaries(st.text("abc.", min_size=1, max_size=5), tensors(), min_size=1, max_size=6),
    protocol=st.integers(2, 5),
    how=st.sampled_from(["zip", "repacked", "legacy"]),
    ordered=st.booleans(),
    tie=st.booleans(),
)
def test_every_tensor_is_as_torch_loads_it(
    tmp_path: Path, held: dict[str, torch.Tensor], protocol: int, how: str, ordered: bool, tie: bool
) -> None:
    path = tmp_path / "x.bin"
    if how == "legacy":  # torch itself cannot read its files of old where they hold these
        held = {name: value for name, value in held.items() if value.dtype not in DTYPES[11:]}
    if tie and held:
        held["tied"] = next(iter(held.values()))
    if not held:
        return
    value: Any = collections.OrderedDict(held) if ordered else held
    torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=how != "legacy")
    if how == "repacked":
        repacked(path, protocol)
    wanted = torch.load(path, weights_only=False)
    made = read_torch(str(path))
    assert list(made.tensors) == list(wanted)
    assert all(alike(load(made.tensors[name]), wanted[name]) for name in wanted)
    assert not tie or any("tied" in names for names in made.shared) or not held["tied"].numel()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype: torch.dtype, legacy: bool, tmp_path: Path) -> None:
    value = numbers(dtype, (4, 6), 0)
    torch.save({"a": value, "b": value.t()[1:4]}, tmp_path / "x.bin", _use_new_zipfile_serialization=not legacy)
    made = read_torch(str(tmp_path / "x.bin")).tensors
    assert alike(load(made["a"]), value) and alike(load(made["b"]), value.t()[1:4])


def test_two_numbers_a_byte(tmp_path: Path) -> None:
    """They are written as safetensors itself writes them."""
    value = numbers(torch.uint8, (4, 6), 0).view(torch.float4_e2m1fn_x2)
    torch.save({"a": value, "b": value[1:3]}, tmp_path / "x.bin")
    surgery.write(surgery.open_checkpoint(tmp_path / "x.bin"), tmp_path / "out")
    save_file({"a": value, "b": value[1:3].clone()}, tmp_path / "y.safetensors", {"format": "pt"})
    made, wanted = load_file(tmp_path / "out/model.safetensors"), load_file(tmp_path / "y.safetensors")
    assert all(alike(made[name], wanted[name]) and made[name].shape == wanted[name].shape for name in wanted)
    torch.save({"a": value, "b": value[:, 1:3]}, tmp_path / "x.bin")
    with pytest.raises(SurgeryError, match="share bytes"):
        read_torch(str(tmp_path / "x.bin"))


def inside(value: Any, path: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """The tensors in a value by the keys that lead to them, with dots between."""
    if isinstance(value, torch.Tensor):
        return {".".join(path): value}
    rows = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {name: one for key, child in rows for name, one in inside(child, (*path, str(key))).items()}


def nested() -> st.SearchStrategy[Any]:
    """Dictionaries, lists and tuples within one another, of tensors and of what else lies in files."""
    other = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
    keys = st.text("ab", min_size=1, max_size=3) | st.integers(0, 9)
    return st.recursive(
        tensors() | tensors() | other,
        lambda of: (
            st.dictionaries(keys, of, max_size=4)
            | st.lists(of, max_size=4)
            | st.tuples(of, of)
            | st.dictionaries(keys, of, max_size=3).map(collections.OrderedDict)
        ),
        max_leaves=12,
    )


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(held=st.dictionaries(st.text("cd", min_size=1, max_size=2), nested(), min_size=1, max_size=4), more=st.data())
def test_whatever_lies_in_whatever(tmp_path: Path, held: dict[str, Any], more: st.DataObject) -> None:
    """All of a file, by the paths to it; a value that lies at two places has two names, and is told as one."""
    first = next(iter(inside(held).values()), None)
    if first is not None:
        held = {**held, "again": [first]}
    torch.save(held, tmp_path / "x.pt", pickle_protocol=more.draw(st.integers(2, 5)))
    wanted = inside(torch.load(tmp_path / "x.pt", weights_only=False))
    if not wanted:
        return
    made = read_torch(str(tmp_path / "x.pt"), key=".")
    assert made.tensors.keys() == wanted.keys()
    assert all(alike(load(made.tensors[name]), wanted[name]) for name in wanted)
    told = {frozenset(names) for names in made.shared}
    same: dict[Any, set[str]] = {}
    for name, one in wanted.items():
        where = (one.untyped_storage().data_ptr(), one.storage_offset(), one.shape, one.stride(), one.dtype)
        same.setdefault(where if one.numel() else name, set()).add(name)
    assert told == {frozenset(names) for names in same.values() if len(names) > 1}


def rewritten(path: Path, how: str) -> None:
    """The zip as another writer would have laid it out."""
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    out: Any = io.BytesIO()
    pipe = types.SimpleNamespace(write=out.write, flush=out.flush)  # sizes come behind the data
    with zipfile.ZipFile(pipe if how == "into a pipe" else out, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries:
            wide = how == "8 bytes for each size"
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=wide) as stream:
                stream.write(content)
        archive.comment = b"saved by hand" if how == "with a comment" else b""
    path.write_bytes(out.getvalue())


@pytest.mark.parametrize("how", ["plain", "into a pipe", "8 bytes for each size", "with a comment"])
def test_zips_of_other_writers(how: str, tmp_path: Path) -> None:
    held = {"a": numbers(torch.float32, (3, 5), 1), "b": numbers(torch.int64, (4,), 2)}
    torch.save(held, tmp_path / "x.bin")
    rewritten(tmp_path / "x.bin", how)
    made = read_torch(str(tmp_path / "x.bin")).tensors
    assert all(alike(load(made[name]), held[name]) for name in held)


@pytest.mark.parametrize("name", ["модель.bin", "a b.bin", "x.tar.gz.bin"])
def test_torch_s_own_options(name: str, tmp_path: Path) -> None:
    """Other alignments, no checksums, names of the file in other letters."""
    from torch.utils.serialization import config

    held = {"a": numbers(torch.float32, (3, 5), 1), "b": numbers(torch.int8, (7,), 2)}
    before, sums = config.save.storage_alignment, torch.serialization.get_crc32_options()
    try:
        for alignment, checked in ((64, True), (4096, False), (1, True)):
            config.save.storage_alignment = alignment
            torch.serialization.set_crc32_options(checked)
            torch.save(held, tmp_path / name)
            made = read_torch(str(tmp_path / name)).tensors
            assert all(alike(load(made[key]), held[key]) for key in held)
    finally:
        config.save.storage_alignment = before
        torch.serialization.set_crc32_options(sums)


def test_beyond_4_gb(tmp_path: Path) -> None:
    """A sparse file, whose second storage begins where 4 bytes no longer say it, and whose first is as large."""
    path, large, small = tmp_path / "x.bin", 5 << 30, numbers(torch.float32, (3, 5), 1)
    torch.save({"a": torch.zeros(1), "b": small}, tmp_path / "y.bin")
    with zipfile.ZipFile(tmp_path / "y.bin") as archive:
        held = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    count = b"\x8a\x08" + struct.pack("<q", large // 4)
    said = re.sub(rb"(\0cpuq.)K\x01", lambda found: found[1] + count, held["data.pkl"], count=1)
    said = said.replace(b"K\x00K\x01\x85", b"K\x00" + count + b"\x85", 1)
    rows = [
        ("data.pkl", said, len(said)),
        ("data/0", b"", large),
        ("data/1", held["data/1"], 60),
        ("version", b"3\n", 2),
    ]
    directory = b""
    with open(path, "wb") as stream:
        for name, content, size in rows:
            at, raw, sizes = stream.tell(), f"y/{name}".encode(), struct.pack("<2Q", size, size)
            common = (0x800, 0, 0, 0, zlib.crc32(content))
            stream.write(struct.pack("<4s5H3L2H", b"PK\3\4", 45, *common, 2**32 - 1, 2**32 - 1, len(raw), 20))
            stream.write(raw + struct.pack("<2H", 1, 16) + sizes + content)
            stream.seek(size - len(content), os.SEEK_CUR)
            directory += struct.pack(
                "<4s6H3L5H2L", b"PK\1\2", 45, 45, *common, 2**32 - 1, 2**32 - 1, len(raw), 28, 0, 0, 0, 0, 2**32 - 1
            )
            directory += raw + struct.pack("<2H", 1, 24) + sizes + struct.pack("<Q", at)
        at, end = stream.tell(), stream.tell() + len(directory)
        stream.write(directory + struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 4, 4, len(directory), at))
        stream.write(struct.pack("<4sLQL", b"PK\6\7", 0, end, 1))
        stream.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 4, 4, len(directory), 2**32 - 1, 0))
    made = read_torch(str(path)).tensors
    wanted = torch.load(path, mmap=True)
    assert made["a"].shape == wanted["a"].shape == (large // 4,)
    assert alike(load(made["b"]), small) and alike(wanted["b"], small)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("made_anew", torch.ones(3), persistent=False)
        self.register_buffer("kept", torch.ones(2))
        self.attribute = torch.ones(5)  # no state dict has it
        self.a = torch.nn.Linear(3, 4)
        self.b = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.BatchNorm1d(2))


def test_a_module_that_was_pickled_whole(tmp_path: Path) -> None:
    net = Net()
    torch.save(net, tmp_path / "x.pt")
    made = read_torch(str(tmp_path / "x.pt"))
    assert made.tensors.keys() == net.state_dict().keys()
    assert all(alike(load(made.tensors[name]), value) for name, value in net.state_dict().items())


def test_torchscript(tmp_path: Path) -> None:
    net = Net().eval()
    torch.jit.script(net).save(str(tmp_path / "x.pt"))
    made = read_torch(str(tmp_path / "x.pt"))
    assert made.tensors.keys() >= net.state_dict().keys() - {"b.1.num_batches_tracked"}
    assert all(
        alike(load(made.tensors[name]), value) for name, value in net.state_dict().items() if name in made.tensors
    )


def trained() -> dict[str, Any]:
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters())
    net.a(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    return {"state_dict": net.state_dict(), "optimizer_states": [optimizer.state_dict()], "epoch": 3, "lr": 1e-3}


def test_a_training_s_file_is_its_model(tmp_path: Path) -> None:
    held = trained()
    torch.save(held, tmp_path / "x.ckpt")
    made = read_torch(str(tmp_path / "x.ckpt"))
    assert made.tensors.keys() == held["state_dict"].keys()
    assert "read from the key state_dict" in made.notes
    assert any("optimizer_states, epoch, lr" in note for note in made.notes)


def test_one_of_several_models_has_to_be_named(tmp_path: Path) -> None:
    held = trained() | {"state_dict_ema": {"a.weight": torch.ones(2)}}
    torch.save(held, tmp_path / "x.ckpt")
    with pytest.raises(SurgeryError, match="more than one set of weights") as caught:
        read_torch(str(tmp_path / "x.ckpt"))
    assert "--key state_dict" in str(caught.value)
    assert list(read_torch(str(tmp_path / "x.ckpt"), key="state_dict_ema").tensors) == ["a.weight"]
    with pytest.raises(SurgeryError, match="nothing lies under the key model"):
        read_torch(str(tmp_path / "x.ckpt"), key="model")


def test_counters_beside_a_model_are_no_weights(tmp_path: Path) -> None:
    """Deep in a trainer's state, too; what is no tensor is named."""
    held = {"app": {"model": Net().state_dict(), "optim": {"x": torch.ones(3)}, "step": torch.tensor(5), "args": "x"}}
    torch.save(held, tmp_path / "x.pt")
    made = read_torch(str(tmp_path / "x.pt"))
    assert made.tensors.keys() == Net().state_dict().keys()
    assert any("app.optim, app.step, app.args" in note for note in made.notes)
    torch.save({**Net().state_dict(), "hook": len}, tmp_path / "y.pt")
    assert any("hook" in note for note in read_torch(str(tmp_path / "y.pt")).notes)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_what_wrappers_put_before_all_names_is_taken_off(prefix: str, tmp_path: Path) -> None:
    torch.save({f"{prefix}{name}": value for name, value in Net().state_dict().items()}, tmp_path / "x.pt")
    made = read_torch(str(tmp_path / "x.pt"))
    assert made.tensors.keys() == Net().state_dict().keys()
    assert made.notes


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("value", "what"),
    [
        (torch.ones(3).expand(4, 3), "share elements"),
        (torch.ones(4).as_strided((3, 2), (1, 1)), "share elements"),
        (torch.ones(2, 2).to_sparse(), "a sparse tensor"),
        (torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "a quantised tensor"),
        (torch.ones(3, dtype=torch.complex64).conj(), "conjugated"),
        (torch.ones(3, dtype=torch.complex128), "ComplexDoubleStorage"),
        (torch.empty(3, device="meta"), "without values"),
        (torch.nn.UninitializedParameter(), "without values"),
        (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "a nested tensor"),
        (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged), "a nested tensor"),
        (torch.eye(3).to_sparse_csr(), "a sparse tensor"),
        (torch.ones(3, dtype=torch.complex64).conj().imag, "negated"),
        (torch.ones(3, dtype=torch.uint8).view(torch.bits8), "bits8"),
        (numpy.ones(3), "an array of numpy's"),
        (torch.ones(3).untyped_storage(), "a storage"),
        (torch.ones(3).storage(), "a storage"),
    ],
)
def test_what_is_no_strided_bytes_is_refused_by_name(value: Any, what: str, legacy: bool, tmp_path: Path) -> None:
    torch.save({"fine": torch.ones(2), "strange": value}, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(SurgeryError) as caught:
        read_torch(str(tmp_path / "x.pt"))
    assert "strange" in str(caught.value) and what in str(caught.value)


def test_arrays_beside_a_model_are_no_part_of_it(tmp_path: Path) -> None:
    state = {
        "model": {"w": torch.ones(2)},
        "mean": numpy.ones(3),
        "rng": numpy.random.get_state(),
        "lr": numpy.float64(1),
    }
    torch.save(state, tmp_path / "x.pt")
    made = read_torch(str(tmp_path / "x.pt"))
    assert list(made.tensors) == ["w"] and any("mean" in note and "rng" in note for note in made.notes)
    torch.save({"w": torch.ones(2), "rng_state": numpy.ones(3), "step": numpy.ones(1)}, tmp_path / "x.pt")
    assert list(read_torch(str(tmp_path / "x.pt")).tensors) == ["w"]


def test_a_tensor_alone_has_no_name(tmp_path: Path) -> None:
    torch.save(torch.ones(2), tmp_path / "x.pt")
    with pytest.raises(SurgeryError, match="one tensor, without a name"):
        read_torch(str(tmp_path / "x.pt"))
