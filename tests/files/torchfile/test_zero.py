"""Checkpoints of DeepSpeed's ZeRO: its own, saved by real ranks, and layouts by hand, whole and spoilt."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import hashes, unpacked
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from zero_layouts import Laid, laid_out

import surgery
from surgery.errors import NotACheckpoint, NotSupported, SurgeryError

FIXTURE = Path(__file__).parents[2] / "fixtures/deepspeed/checkpoints.tar.xz"
CASES = (
    "two/z1-bf16-frozen-groups two/z2-bf16-frozen-tied-groups two/z2-fp32-robin-groups two/z2-bf16-nofrozen-frozen"
    " two/z3-bf16-frozen-tied-groups two/z1-bf16-fp32sums-frozen-groups four/z2-fp16-frozen"
    " four/z3-fp16-small-tied-frozen"
).split()
NOT_CONVERTED = "two/z1-bf16-fp32sums-frozen-groups"  # DeepSpeed's converter refuses it: no stage is said


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What DeepSpeed's engine saved: never written to."""
    return unpacked(FIXTURE, tmp_path_factory)


def written(folder: Path, out: Path, key: str = "") -> dict[str, torch.Tensor]:
    surgery.write(surgery.open_checkpoint(folder, key=key), out)
    return load_file(out / "model.safetensors")


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


@pytest.mark.parametrize("case", CASES)
def test_it_is_what_deepspeed_s_own_converter_makes_of_it(case: str, real: Path, tmp_path: Path) -> None:
    before = hashes(real / case)
    held = written(real / case / "ds", tmp_path / "out")
    live = torch.load(real / case / "live.pt")
    if case != NOT_CONVERTED:
        wanted = torch.load(real / case / "fp32.pt")
        assert all(same(held[name], wanted[name]) for name in wanted)
        # stage 1 saves frozen weights in the model's copy alone, and the converter loses them
        assert held.keys() - wanted.keys() <= {"frozen.weight", "frozen.bias"}
    assert held.keys() == live.keys() - ({"frozen.weight", "frozen.bias"} if "nofrozen" in case else set())
    if "z3" not in case:  # what is trained further is the master, rounded
        assert all(torch.equal(held[name].to(live[name].dtype), live[name]) for name in held)
    assert hashes(real / case) == before
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".surgery", "model.safetensors"}


def test_the_folder_of_a_save_is_opened_too_and_another_save_is_another(real: Path, tmp_path: Path) -> None:
    folder = real / "two/z3-bf16-frozen-tied-groups/ds"
    last, before = (written(folder / tag, tmp_path / tag) for tag in ("global_step3", "global_step2"))
    assert not torch.equal(last["first.weight"], before["first.weight"])
    assert all(same(last[n], t) for n, t in written(folder, tmp_path / "out").items())


def test_the_16_bit_copy_is_taken_where_it_is_asked_for_and_whole(real: Path, tmp_path: Path) -> None:
    live = torch.load(real / "two/z2-bf16-frozen-tied-groups/live.pt")
    held = written(real / "two/z2-bf16-frozen-tied-groups/ds", tmp_path / "out", key="module")
    assert held.keys() == live.keys() and all(same(held[name], live[name]) for name in live)
    notes = surgery.open_checkpoint(real / "two/z2-bf16-frozen-tied-groups/ds").notes
    assert any("master weights were taken (F32)" in note and "--key module" in note for note in notes)
    assert any("2 weights were not trained" in note and "BF16" in note for note in notes)
    assert any("embed.weight = head.weight" in note for note in notes)
    with pytest.raises(NotSupported, match="no whole copy of the model") as caught:
        surgery.open_checkpoint(real / "two/z3-bf16-frozen-tied-groups/ds", key="module")
    assert "leave --key away" in str(caught.value)


def test_without_zero_or_without_optimizer_states_the_copy_is_taken_and_said(real: Path, tmp_path: Path) -> None:
    plain = real / "two/z0-bf16-frozen"
    live, held = torch.load(plain / "live.pt"), written(plain / "ds", tmp_path / "out")
    assert held.keys() == live.keys() and all(same(held[name], live[name]) for name in live)
    assert any("trained without ZeRO" in note for note in surgery.open_checkpoint(plain / "ds").notes)
    folder = shutil.copytree(real / "two/z2-bf16-frozen-tied-groups/ds", tmp_path / "ds")
    for file in folder.glob("*/*optim_states.pt"):
        file.unlink()
    assert any("no optimizer states are here" in note for note in surgery.open_checkpoint(folder).notes)
    gone = shutil.copytree(real / "two/z3-bf16-frozen-tied-groups/ds", tmp_path / "gone")
    for file in gone.glob("*/*optim_states.pt"):
        file.unlink()
    with pytest.raises(SurgeryError, match="parts of the weights are missing"):
        surgery.open_checkpoint(gone)


BOTH = ["two/z2-bf16-frozen-tied-groups", "two/z3-bf16-frozen-tied-groups"]


@pytest.mark.parametrize("case", BOTH)
def test_universal_ones_are_the_same(case: str, real: Path, tmp_path: Path) -> None:
    wanted = torch.load(real / case / "fp32.pt")
    for place in ("uni", "uni/global_step3_universal"):
        held = written(real / case / place, tmp_path / place.replace("/", "-"))
        assert held.keys() == wanted.keys() and all(same(held[name], wanted[name]) for name in wanted)
    assert {path.name for path in (tmp_path / "uni").iterdir()} == {".surgery", "model.safetensors"}
    folder = shutil.copytree(real / case / "uni", tmp_path / "in")
    file = folder / "global_step3_universal/zero/first.weight/fp32.pt"
    torch.save({"param": torch.zeros(7, 6)}, file)
    with pytest.raises(SurgeryError, match="belongs there"):
        surgery.open_checkpoint(folder)
    file.unlink()
    with pytest.raises(SurgeryError, match="file is missing"):
        surgery.open_checkpoint(folder)


@pytest.mark.parametrize("case", BOTH)
@pytest.mark.parametrize("kind", ["optim", "model"])
def test_ranks_of_two_steps_are_refused_by_name(case: str, kind: str, real: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(real / case / "ds", tmp_path / "ds")
    rank = "1" if "z3" in case or kind == "optim" else ""
    (file,) = (folder / "global_step2").glob(f"*rank_{rank}*{kind}_states.pt")
    shutil.copy(file, folder / "global_step3" / file.name)
    with pytest.raises(SurgeryError) as caught:
        surgery.open_checkpoint(folder)
    said = str(caught.value)
    assert file.name in said and ("do not say the same" in said or "what its master rounds to" in said)


def test_a_trainer_s_folder_keeps_its_config_and_leaves_the_training_behind(real: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(real / "two/z3-bf16-frozen-tied-groups/ds", tmp_path / "checkpoint-3")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "zero_to_fp32.py").write_text("raise SystemExit")
    torch.save({}, folder / "scheduler.pt")
    surgery.write(surgery.open_checkpoint(folder), tmp_path / "out")
    here = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors"} <= here
    assert not here & {"zero_to_fp32.py", "latest", "global_step3", "global_step2", "scheduler.pt"}


# Layouts by hand


@st.composite
def trainings(draw: Any) -> tuple[Laid, dict[str, torch.Tensor]]:
    """A training with some groups of weights of odd sizes, and what it holds."""
    ranks, stage = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    shape = st.lists(st.integers(1, 5), max_size=3).map(tuple)
    groups, count = [], 0
    for shapes in draw(st.lists(st.lists(shape, min_size=1, max_size=4), min_size=1, max_size=3)):
        groups.append({f"w{count + i}": torch.randn(one) for i, one in enumerate(shapes)})
        count += len(shapes)
    frozen = {f"f{i}": torch.randn(one).bfloat16() for i, one in enumerate(draw(st.lists(shape, max_size=2)))}
    shared = {"tied": "w0"} if draw(st.booleans()) else {}
    buffers = {"b.half": torch.randn(3).half(), "b.count": torch.tensor(3), "b.mask": torch.tensor([True, False])}
    paddings = (
        [[draw(st.integers(0, 3)) for _ in group] for group in groups] if stage < 3 and draw(st.booleans()) else None
    )
    laid = laid_out(groups, stage, ranks, frozen=frozen, buffers=buffers, shared=shared, paddings=paddings)
    wanted = {n: t for group in groups for n, t in group.items()} | frozen | buffers
    return laid, wanted | {"b.half": buffers["b.half"].float()} | {name: wanted[of] for name, of in shared.items()}


@given(trainings())
@settings(max_examples=60, deadline=None)
def test_any_layout_is_whole_again(tmp_path_factory: pytest.TempPathFactory, made: tuple[Laid, Any]) -> None:
    laid, wanted = made
    folder = tmp_path_factory.mktemp("zero")
    held = written(laid.write(folder / "ds"), folder / "out")
    assert held.keys() == wanted.keys()
    assert all(same(held[name], wanted[name]) for name in wanted)


def made(stage: int, ranks: int = 2) -> Laid:
    torch.manual_seed(0)
    groups = [{"a": torch.randn(3, 5), "b": torch.randn(7)}, {"c": torch.randn(4)}]
    frozen, buffers = {"f": torch.randn(5).bfloat16()}, {"seen": torch.tensor(3)}
    return laid_out(groups, stage, ranks, frozen=frozen, buffers=buffers, shared={"t": "a"})


def shape(laid: Laid, name: str, to: tuple[int, ...]) -> None:
    """Says another shape of a weight in every file."""
    for model in laid.models:
        for group in (*model["param_shapes"], model["frozen_param_shapes"]):
            if name in group:
                group[name] = torch.Size(to)


def cut(laid: Laid, rank: int, group: int, by: int) -> None:
    """Takes elements off a rank's part."""
    laid.vectors(rank)[group] = laid.vectors(rank)[group][:-by].clone()


def count(laid: Laid, to: Any) -> None:
    for rank in range(len(laid.optimizers)):
        laid.optimizer(rank)["partition_count"] = to


def without(laid: Laid, rank: int) -> None:
    laid.left_out.add(f"{laid.prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")


def later(laid: Laid, rank: int) -> None:
    base = "optimizer_state_dict" if laid.stage == 3 else "base_optimizer_state"
    laid.optimizer(rank)[base]["state"][0]["step"] = torch.tensor(8.0)


def changed(laid: Laid, rank: int) -> None:
    """The rank's part is of another time, and nothing says so."""
    laid.vectors(rank)[0] += 1.0


def pad(laid: Laid, paddings: list[list[int]]) -> None:
    laid.optimizer(0)["param_alignment_paddings"] = paddings


def twice(laid: Laid) -> None:
    for model in laid.models:
        model["param_shapes"][1]["a"] = model["param_shapes"][1].pop("c")


SPOILT: dict[str, tuple[tuple[int, ...], Callable[[Laid], Any], str]] = {
    "a weight that is longer": ((1, 2, 3), lambda laid: shape(laid, "b", (70,)), "elements"),
    "a weight that is shorter": ((1, 2, 3), lambda laid: shape(laid, "a", (1, 5)), "elements"),
    "a shape that is none": ((1, 2, 3), lambda laid: shape(laid, "a", (-3, -5)), "-3"),
    "a part that is cut off": ((1, 2, 3), lambda laid: cut(laid, 0, 0, 5), "and"),
    "the last rank's file is missing": ((1, 2, 3), lambda laid: without(laid, 1), "2 ranks"),
    "a rank's file is missing": ((1, 2, 3), lambda laid: without(laid, 0), "rank 0"),
    "files of fewer ranks": ((1, 2, 3), lambda laid: count(laid, 3), "3 ranks"),
    "no ranks": ((1, 2, 3), lambda laid: count(laid, "many"), "no part of the weights"),
    "experts cut otherwise": ((1, 2), lambda laid: count(laid, [2, 1]), "different numbers"),
    "a rank of another step": ((1, 2, 3), lambda laid: later(laid, 1), "step"),
    "a master of another time": ((1, 2), lambda laid: changed(laid, 1), "rounds to"),
    "a weight in two vectors": ((1, 2, 3), twice, ""),
    "one vector less": ((1, 2), lambda laid: laid.vectors(1).pop(), "vectors"),
    "a vector that is none": ((1, 2, 3), lambda laid: laid.vectors(1).__setitem__(0, torch.zeros(2, 2)), "no vector"),
    "another dtype": ((1, 2, 3), lambda laid: laid.vectors(1).__setitem__(1, laid.vectors(1)[1].half()), "F16"),
    "a stage that is none": ((1, 2, 3), lambda laid: laid.optimizer(0).__setitem__("zero_stage", 9), "stage is 9"),
    "another stage": ((1, 2), lambda laid: [laid.optimizer(r).__setitem__("zero_stage", 3) for r in (0, 1)], "stage"),
    "no frozen weights": ((3,), lambda laid: [m.update(frozen_param_shapes=None) for m in laid.models], "in no rank"),
    "a frozen piece too few": ((3,), lambda laid: laid.models[1]["frozen_param_fragments"].clear(), "a piece of 3"),
    "a frozen weight of another shape": ((1, 2), lambda laid: shape(laid, "f", (6,)), "frozen weight"),
    "ranks of other names": ((3,), lambda laid: laid.models[1]["param_shapes"][1].update(d=torch.Size([1])), "names"),
    "a step of the trainer's": ((3,), lambda laid: laid.models[1].update(global_steps=9), "global_steps"),
    "no table of a model": ((1, 2, 3), lambda laid: [m.pop("module") for m in laid.models], "no model states"),
    "paddings of other weights": ((1, 2), lambda laid: pad(laid, [[0], [0]]), "paddings"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "stage"), [(name, stage) for name, (stages, *_) in SPOILT.items() for stage in stages]
)
def test_spoilt_ones_are_refused_by_name(name: str, stage: int, tmp_path: Path) -> None:
    _, spoil, what = SPOILT[name]
    laid = made(stage)
    spoil(laid)
    with pytest.raises(SurgeryError) as caught:
        surgery.open_checkpoint(laid.write(tmp_path / "ds"))
    assert what in str(caught.value) and str(tmp_path) in str(caught.value)


def test_masters_can_be_asked_for_where_the_copy_is_another(tmp_path: Path) -> None:
    """A user who changed the module after the last step has the say."""
    laid = made(2)
    laid.models[0]["module"]["b"] += 1
    folder = laid.write(tmp_path / "ds")
    with pytest.raises(SurgeryError, match="--key module takes the copy, --key optimizer_state_dict the masters"):
        surgery.open_checkpoint(folder)
    masters = written(folder, tmp_path / "masters", key="optimizer_state_dict")
    assert torch.equal(masters["b"].bfloat16() + 1, written(folder, tmp_path / "copy", key="module")["b"])


def test_other_layouts_are_refused_and_a_tool_is_named(tmp_path: Path) -> None:
    for name, what in {
        "mp_rank_01_model_states.pt": "tensor parallelism",
        "layer_0_expert_1_mp_rank_00_model_states.pt": "MoE",
        "expp_rank_0_mp_rank_00_optim_states.pt": "MoE",
        "layer_03-model_states.pt": "pipeline",
        "layer_03-model_00-model_states.pt": "pipeline",
        "zero_pp_rank_0_mp_rank_00_model_states.pt": "several saves",
        "zero_pp_rank_1_mp_rank_00_optim_states.pt": "several saves",
    }.items():
        folder = made(2).write(tmp_path / name)
        shutil.copy(folder / "global_step7/mp_rank_00_model_states.pt", folder / "global_step7" / name)
        with pytest.raises(SurgeryError, match=what) as caught:
            surgery.open_checkpoint(folder)
        assert caught.value.help


def test_which_save_is_meant_is_never_guessed(tmp_path: Path) -> None:
    folder = made(3).write(tmp_path / "ds")
    (folder / "latest").write_text("../elsewhere")
    with pytest.raises(SurgeryError, match=r"names '\.\./elsewhere', which is no folder of a save"):
        surgery.open_checkpoint(folder)
    (folder / "latest").unlink()
    assert surgery.open_checkpoint(folder).tensors
    shutil.copytree(folder / "global_step7", folder / "global_step8")
    with pytest.raises(NotACheckpoint, match="several saves"):
        surgery.open_checkpoint(folder)
    with pytest.raises(NotSupported, match="not read alone"):
        surgery.open_checkpoint(folder / "global_step7/zero_pp_rank_0_mp_rank_00_model_states.pt")


def test_nothing_in_them_runs(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Runs:
        def __reduce__(self) -> Any:
            return Path.touch, (canary,)

    laid = made(2)
    laid.models[0]["ds_config"] = laid.optimizers[0]["ds_config"] = Runs()
    folder = laid.write(tmp_path / "ds")
    (folder / "zero_to_fp32.py").write_text(f"open({str(canary)!r}, 'w')")
    assert pickle.dumps(Runs()) and written(folder, tmp_path / "out") and not canary.exists()
