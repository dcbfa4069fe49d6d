"""What differs between two checkpoints, judged by torch on whole tensors."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from handmade import write_adapter, write_tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import surgery
from surgery.errors import NotACheckpoint, NothingMatched, SurgeryError
from surgery_cli.app import app

NAME = "model.layers.1.self_attn.o_proj.weight"


def written(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True)
    save_file({n: t.clone() for n, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def pair(folder: Path, a: torch.Tensor, b: torch.Tensor) -> surgery.Difference:
    return surgery.diff(written(folder / "a", {"x": a}), written(folder / "b", {"x": b}))


def steps_between(a: torch.Tensor, b: torch.Tensor) -> int:
    """How often torch.nextafter has to be asked, from a to b: a walk, for neighbours only."""
    count = 0
    while a != b:
        a, count = torch.nextafter(a, b), count + 1
    return count


def test_the_same_checkpoint_however_sharded(saved: Callable[..., Path], tmp_path: Path) -> None:
    """One shard or many, an index or none."""
    one = saved("llama")
    surgery.write(surgery.open_checkpoint(one), tmp_path / "many", "20KB")
    found = surgery.diff(one, tmp_path / "many")
    assert found.equal and not found.changed
    assert len(found.identical) == len(surgery.open_checkpoint(one).tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(700, 900), (1,), (3, 5, 7), (40_000, 3)])
def test_measures_are_torchs_own(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    """On tensors of one window and of several; some elements differ."""
    generator = torch.Generator().manual_seed(5)
    a = torch.randn(shape, generator=generator).to(dtype)
    b = torch.where(torch.rand(shape, generator=generator) < 0.3, a * 1.01, a)
    b.view(-1)[0] = a.view(-1)[0] + 1
    found = pair(tmp_path, a, b).changed[0].measure
    assert found is not None
    x, y = a.double(), b.double()
    assert (found.elements, found.differing) == (a.numel(), int((a != b).sum()))
    assert found.share == found.differing / a.numel()
    assert found.largest == (x - y).abs().max().item()
    assert math.isclose(found.mean, (x - y).abs().mean().item(), rel_tol=1e-12)
    assert found.relative is not None and math.isclose(
        found.relative, ((x - y).norm() / x.norm()).item(), rel_tol=1e-12
    )


FLOATS = {torch.float16: 16, torch.bfloat16: 16, torch.float32: 32, torch.float64: 64}


@settings(max_examples=60, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(list(FLOATS)), steps=st.integers(1, 30))
def test_ulps_are_steps(
    data: st.DataObject, dtype: torch.dtype, steps: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Through powers of two, subnormals and zero: as many as nextafter takes."""
    from surgery.evaluation.compare import distance

    low = data.draw(st.one_of(st.integers(0, 5), st.integers(0, (1 << FLOATS[dtype] - 2) - 50)))
    kind = {16: torch.int16, 32: torch.int32, 64: torch.int64}[FLOATS[dtype]]
    a = torch.tensor([low], dtype=kind).view(dtype)
    if data.draw(st.booleans()):
        a = -a
    b = a
    for _ in range(steps):
        b = torch.nextafter(b, torch.tensor([math.inf if data.draw(st.booleans()) else -math.inf], dtype=dtype))
    assert distance(a, b) == steps_between(a, b) == distance(b, a)


def test_ulps_from_end_to_end() -> None:
    from surgery.evaluation.compare import distance

    for dtype, width in FLOATS.items():
        top = torch.tensor([torch.finfo(dtype).max], dtype=dtype)
        fraction = -int(math.log2(torch.finfo(dtype).eps))
        places = (1 << width - 1) - (1 << fraction)  # of infinity
        assert distance(-top, top) == pytest.approx(2 * (places - 1), rel=1e-15)
        assert distance(top.new_tensor([0.0]), top.new_tensor([-0.0])) == 0


def test_what_is_not_a_number(tmp_path: Path) -> None:
    """NaN and infinity are counted, and spoil no measure; where they are equal they are no difference."""
    a = torch.tensor([1.0, math.nan, math.inf, 2.0, 0.0, 5.0])
    b = torch.tensor([1.0, math.nan, math.inf, math.nan, -0.0, 5.5])
    found = pair(tmp_path, a, b).changed[0].measure
    assert found is not None
    assert (found.differing, found.nonfinite, found.largest, found.mean) == (3, 1, 0.5, 0.1)


def test_a_zero_base_has_no_relative_norm(tmp_path: Path) -> None:
    found = pair(tmp_path, torch.zeros(4), torch.ones(4)).changed[0].measure
    assert found is not None and found.relative is None and found.largest == 1


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64]
)
def test_other_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    a = torch.tensor([0, 1, 1, 0, 1]).to(dtype)
    b = torch.tensor([0, 1, 0, 0, 1]).to(dtype)
    found = pair(tmp_path, a, b).changed[0].measure
    assert found is not None
    assert (found.differing, found.largest, found.ulps is not None) == (1, 1.0, dtype.is_floating_point)


def test_dtypes_that_torch_has_not(tmp_path: Path) -> None:
    """Their bytes are compared, their values are not read."""
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        write_tensors(tmp_path / name / "model.safetensors", {"x": ("F4", (6, 8))}, seed=seed)
    assert surgery.diff(tmp_path / "a", tmp_path / "b").equal
    assert surgery.diff(tmp_path / "a", tmp_path / "c").changed[0].measure is None


def test_another_dtype_or_shape(tmp_path: Path) -> None:
    """Equal shapes are measured, across dtypes."""
    x = torch.randn(8, 8)
    found = surgery.diff(
        written(tmp_path / "a", {"same": x, "cut": x, "cast": x}),
        written(tmp_path / "b", {"same": x, "cut": x[:5], "cast": x.bfloat16()}),
    )
    assert found.identical == ("same",) and not found.changed
    cast, cut = found.unlike
    assert (cast.name, cast.a, cast.b) == ("cast", "F32 [8, 8]", "BF16 [8, 8]")
    assert (cut.name, cut.a, cut.b, cut.measure) == ("cut", "F32 [8, 8]", "F32 [5, 8]", None)
    assert cast.measure is not None and cast.measure.ulps is None
    assert cast.measure.largest == (x.double() - x.bfloat16().double()).abs().max().item()


def test_tensors_of_one_side_and_fields_and_files(tmp_path: Path) -> None:
    x = torch.ones(3)
    a = written(
        tmp_path / "a",
        {"x": x, "layers.10.y": x, "layers.2.y": x},
        {"model_type": "a", "rope": {"theta": 1, "kind": "b"}, "n": None},
    )
    b = written(tmp_path / "b", {"x": x, "z": x}, {"rope": {"theta": 2, "kind": "b"}, "model_type": "a"})
    for folder, name, text in (
        (a, "notes.txt", "1"),
        (a, "both.txt", "12"),
        (b, "both.txt", "21"),
        (b, "more.txt", ""),
    ):
        (folder / name).write_text(text)
    found = surgery.diff(a, b)
    assert (found.only_a, found.only_b, found.identical) == (("layers.2.y", "layers.10.y"), ("z",), ("x",))
    assert [(f.name, f.a, f.b) for f in found.config] == [("rope.theta", "1", "2"), ("n", "null", "absent")]
    assert (found.files.only_a, found.files.only_b, found.files.changed) == (
        ("notes.txt",),
        ("more.txt",),
        ("both.txt",),
    )


@pytest.fixture
def one_changed(saved: Callable[..., Path], tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A checkpoint, and the same with one element of one tensor changed: its last."""
    folder = tmp_path / "changed"
    shutil.copytree(saved("llama"), folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[NAME].view(-1)[-1] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    yield saved("llama"), folder


def test_only_some_tensors(one_changed: tuple[Path, Path]) -> None:
    a, b = one_changed
    (b / "more.txt").write_text("")
    assert [c.name for c in surgery.diff(a, b).changed] == [NAME]
    assert not surgery.diff(a, b, tensors=r".*o_proj.*").equal
    found = surgery.diff(a, b, tensors=r".*q_proj.*")
    assert found.equal and len(found.identical) == 3
    with pytest.raises(NothingMatched):
        surgery.diff(a, b, tensors="o_proj")


def test_lazy_checkpoints(saved: Callable[..., Path], tmp_path: Path) -> None:
    """What a surgery would write, compared before it is written."""
    base = surgery.open_checkpoint(saved("phi3"))
    split = surgery.split_qkv(base)
    surgery.write(split, tmp_path / "split")
    assert surgery.diff(split, tmp_path / "split").equal
    assert surgery.diff(surgery.fuse_qkv(surgery.open_checkpoint(tmp_path / "split")), base, tensors=".*").equal
    module = "model.layers.0.self_attn.o_proj"
    adapter = surgery.open_adapter(
        write_adapter(tmp_path / "adapter", {module: base.tensors[f"{module}.weight"].shape})
    )  # type: ignore[arg-type]
    merged = surgery.merge(base, adapter)
    surgery.write(merged, tmp_path / "merged")
    assert surgery.diff(merged, tmp_path / "merged").equal
    assert [c.name for c in surgery.diff(base, merged).changed] == [f"{module}.weight"]


def test_adapters(tmp_path: Path) -> None:
    modules = {"model.layers.0.self_attn.o_proj": (12, 12)}
    a, b, c = (write_adapter(tmp_path / name, modules, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert surgery.diff(a, b).equal
    config = json.loads((b / "adapter_config.json").read_text())
    (b / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 1}))
    assert [(f.name, f.a, f.b) for f in surgery.diff(a, b).config] == [("lora_alpha", "8", "1")]
    assert len(surgery.diff(a, c).changed) == 2
    with pytest.raises(SurgeryError, match="a checkpoint and an adapter have no tensor in common"):
        surgery.diff(a, written(tmp_path / "model", {"x": torch.ones(2)}))


def test_equal_bytes_load_no_torch(saved: Callable[..., Path], tmp_path: Path) -> None:
    shutil.copytree(saved("llama"), tmp_path / "copy")
    code = "import sys, surgery; assert surgery.diff(*sys.argv[1:]).equal; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, saved("llama"), tmp_path / "copy"], check=True, timeout=60)


# The command


def surge(*args: object) -> Any:
    return CliRunner().invoke(app, ["diff", *map(str, args)])


def test_exit_statuses(one_changed: tuple[Path, Path], tmp_path: Path) -> None:
    """0 equal, 1 different, 1 with an error, 2 wrong usage."""
    a, b = one_changed
    assert (
        surge(a, a).exit_code,
        surge(a, b).exit_code,
        surge(a, tmp_path / "none").exit_code,
        surge(a).exit_code,
    ) == (0, 1, 1, 2)
    assert surge(a, b, "--quiet").stdout == ""
    assert "Exit status: 0 equal, 1 different" in surge("--help").stdout
    with pytest.raises(NotACheckpoint):
        surgery.diff(a, tmp_path / "none")


def test_what_people_see(one_changed: tuple[Path, Path]) -> None:
    a, b = one_changed
    shown = surge(a, b).stdout.splitlines()
    assert shown[0] == "different"
    assert f"  changed    1: {NAME}" in shown
    head, row = shown[-2:]
    assert head.split() == ["name", "max", "mean", "relative", "differing", "ulps"]
    assert row.split()[:2] == [NAME, "1"]
    assert surge(a, a).stdout.splitlines()[0] == "equal"


def test_what_programs_see(one_changed: tuple[Path, Path]) -> None:
    a, b = one_changed
    found = json.loads(surge(a, b, "--json").stdout)
    assert not found["equal"] and [c["name"] for c in found["changed"]] == [NAME]
    measure = found["changed"][0]["measure"]
    assert measure["differing"] == 1 and measure["share"] == 1 / measure["elements"]
    assert json.loads(surge(a, a, "--json").stdout)["equal"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
def test_what_is_measured_in_float32_is_what_float64_says(dtype: torch.dtype, scale: float, tmp_path: Path) -> None:
    """Neighbours, other signs, other magnitudes, NaN in one part alone: as computed over the whole in float64."""
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(700, 1000, generator=generator).mul_(min(scale, 1e3) if dtype == torch.float16 else scale).to(dtype)
    b = a.clone()
    b[::3] = (a[::3].double() * 1.01).to(dtype)
    b[5] = -a[5]
    b[7] = a[7].roll(1)
    b[9] = 0
    if scale == 1.0:
        b[400, 3], a[401, 4] = float("nan"), float("inf")
    for name, value in (("a", a), ("b", b)):
        (tmp_path / name).mkdir()
        save_file({"w": value}, tmp_path / name / "model.safetensors")
    found = surgery.diff(tmp_path / "a", tmp_path / "b").changed[0].measure
    x, y = a.double(), b.double()
    apart = (x - y).abs()
    finite = apart.isfinite()
    other = a.view(torch.int16 if dtype.itemsize == 2 else torch.int32) != b.view(
        torch.int16 if dtype.itemsize == 2 else torch.int32
    )
    assert found is not None and found.differing == int(other.sum()) and found.nonfinite == int((~finite & other).sum())
    assert found.largest == float(apart[finite].max())
    assert found.mean == pytest.approx(float(apart[finite].mean()), rel=1e-6)
    norm = x[x.isfinite()].square().sum()
    assert (
        found.relative == pytest.approx(float((apart[finite].square().sum() / norm).sqrt()), rel=1e-6) if norm else True
    )


def test_the_callback_tells_what_is_left(saved: Callable[..., Path]) -> None:
    seen: list[tuple[str, int, int]] = []
    surgery.diff(saved("llama"), saved("llama"), on_tensor=lambda *told: seen.append(told))
    assert seen and sum(nbytes for _, nbytes, _ in seen) == seen[0][2] and len({total for *_, total in seen}) == 1


def test_an_error_in_the_callback_ends_the_comparison(saved: Callable[..., Path]) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        surgery.diff(saved("llama"), saved("llama"), on_tensor=stop)
