"""Files that torch saved, read without torch: every tensor as `torch.load` gives it, bit for bit."""

from __future__ import annotations

import collections
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surgery.errors import SurgeryError
from surgery.evaluation.evaluate import load
from surgery.files.torchfile.reader import read_torch

DTYPES = [
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn,
    torch.float8_e5m2,
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


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
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
    assert all(alike(load(made.tensors[name]), net.state_dict()[name]) for name in made.tensors)


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
    torch.save({**Net().state_dict(), "hook": print}, tmp_path / "y.pt")
    assert any("hook" in note for note in read_torch(str(tmp_path / "y.pt")).notes)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_what_wrappers_put_before_all_names_is_taken_off(prefix: str, tmp_path: Path) -> None:
    torch.save({f"{prefix}{name}": value for name, value in Net().state_dict().items()}, tmp_path / "x.pt")
    made = read_torch(str(tmp_path / "x.pt"))
    assert made.tensors.keys() == Net().state_dict().keys()
    assert made.notes


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
    ],
)
def test_what_is_no_strided_bytes_is_refused_by_name(value: torch.Tensor, what: str, tmp_path: Path) -> None:
    torch.save({"fine": torch.ones(2), "strange": value}, tmp_path / "x.pt")
    with pytest.raises(SurgeryError) as caught:
        read_torch(str(tmp_path / "x.pt"))
    assert "strange" in str(caught.value) and what in str(caught.value)
