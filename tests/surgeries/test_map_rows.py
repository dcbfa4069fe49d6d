"""A user's own surgery: what a function makes of rows is what is written, and one that needs more than a row is not
begun.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import hashes
from safetensors.torch import load_file, save_file

import surgery
from surgery.surgeries.own_function import function_of

FACTOR = 2.0


def clipped(rows: torch.Tensor) -> torch.Tensor:
    return rows.clamp(-0.02, 0.02)


def unit(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(rows.float(), dim=1)


def scaled(rows: torch.Tensor) -> torch.Tensor:
    return rows * FACTOR


def centred(rows: torch.Tensor) -> torch.Tensor:
    return rows - rows.mean(0)


def by_largest(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.abs().max()


def turned(rows: torch.Tensor) -> torch.Tensor:
    return rows.flip(0)


def drawn(rows: torch.Tensor) -> torch.Tensor:
    return rows + torch.rand_like(rows)


def numbered(rows: torch.Tensor) -> torch.Tensor:
    return rows + torch.arange(len(rows))[:, None].to(rows.dtype)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    save_file(
        {
            "w": torch.randn(200, 48).mul(0.02).bfloat16(),
            "experts": torch.randn(3, 20, 48).bfloat16(),
            "norm": torch.randn(48).bfloat16(),
            "scalar": torch.tensor(2.0).bfloat16(),
            "count": torch.arange(12),
            "empty": torch.zeros(0, 48).bfloat16(),
        },
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def written(checkpoint: surgery.Checkpoint, out: Path, **options: object) -> dict[str, torch.Tensor]:
    surgery.write(checkpoint, out, **options)  # type: ignore[arg-type]
    return {name: tensor for file in out.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_rows_are_what_the_function_makes_of_them(base: Path, tmp_path: Path) -> None:
    opened = surgery.open_checkpoint(base)
    old, new = load_file(base / "model.safetensors"), written(surgery.map_rows(opened, {"w|norm": clipped}), tmp_path)
    assert torch.equal(new["w"], old["w"].clamp(-0.02, 0.02))
    assert torch.equal(new["norm"], old["norm"].clamp(-0.02, 0.02))
    assert all(torch.equal(new[name], old[name]) for name in ("experts", "scalar", "count", "empty"))


def test_dtype_and_columns_may_be_others(base: Path, tmp_path: Path) -> None:
    opened = surgery.open_checkpoint(base)
    old = load_file(base / "model.safetensors")
    new = written(surgery.map_rows(opened, {"w|experts": unit}, dtype="float32"), tmp_path / "a")
    for name in ("w", "experts"):
        wanted = torch.nn.functional.normalize(old[name].float(), dim=-1)
        torch.testing.assert_close(new[name], wanted, rtol=1e-6, atol=1e-7)
    new = written(surgery.map_rows(opened, {"experts": lambda rows: rows[:, :7]}, columns=7), tmp_path / "b")
    assert torch.equal(new["experts"], old["experts"][..., :7])
    new = written(surgery.map_rows(opened, {"count": lambda rows: rows * 2}), tmp_path / "c")
    assert new["count"].tolist() == [2 * n for n in range(12)]


def test_neither_memory_nor_workers_change_a_byte(base: Path, tmp_path: Path) -> None:
    made = surgery.map_rows(surgery.open_checkpoint(base), {"w|experts": unit}, dtype="float32")
    surgery.write(made, tmp_path / "a", workers=1, memory="20MB")
    surgery.write(made, tmp_path / "b", workers=4, memory="96MB")
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


def test_it_joins_other_surgeries_in_one_pass(base: Path, tmp_path: Path) -> None:
    opened = surgery.open_checkpoint(base)
    chain = opened.pipe(surgery.map_rows, {"w": clipped}).pipe(surgery.rename, [("^w$", "v")])
    again = chain.pipe(surgery.map_rows, {"v": scaled})
    once = written(again, tmp_path / "once")
    surgery.write(surgery.map_rows(opened, {"w": clipped}), tmp_path / "first")
    second = surgery.map_rows(
        surgery.rename(surgery.open_checkpoint(tmp_path / "first"), [("^w$", "v")]), {"v": scaled}
    )
    assert torch.equal(once["v"], written(second, tmp_path / "second")["v"])
    assert torch.equal(once["v"], load_file(base / "model.safetensors")["w"].clamp(-0.02, 0.02) * 2)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (centred, "a row apart"),
        (by_largest, "a row apart"),
        (turned, "a row apart"),
        (numbered, "a row apart"),
        (drawn, "another time"),
        (lambda rows: rows[:-1], "not 5 rows"),
        (lambda rows: rows.T, "not 5 rows"),
        (lambda rows: rows.mean(), "not 5 rows"),
        (lambda rows: rows.float(), 'dtype="float32"'),
        (lambda rows: rows[:, ::2], "columns=24"),
        (lambda rows: None, "a NoneType, and no tensor"),
        (lambda rows: rows.nothing, "AttributeError"),
    ],
)
def test_what_is_no_function_of_a_row_is_refused_before_work(
    base: Path, function: Callable[[torch.Tensor], torch.Tensor], said: str
) -> None:
    with pytest.raises(surgery.SurgeryError, match=said) as error:
        surgery.map_rows(surgery.open_checkpoint(base), {"w": function})
    assert "w (BF16 [200, 48])" in str(error.value)


def test_patterns_that_miss_or_meet_are_refused(base: Path) -> None:
    opened = surgery.open_checkpoint(base)
    with pytest.raises(surgery.NothingMatched):
        surgery.map_rows(opened, {"nothing": clipped})
    with pytest.raises(surgery.PlanError, match="two patterns match w"):
        surgery.map_rows(opened, {"w": clipped, "[vw]": scaled})
    with pytest.raises(surgery.SurgeryError, match="no dtype"):
        surgery.map_rows(opened, {"w": clipped}, dtype="float12")


def test_a_function_that_turns_on_values_is_refused_where_it_does(base: Path, tmp_path: Path) -> None:
    """It passes the probe, and returns other columns for a block of the real rows: nothing is written."""
    made = surgery.map_rows(
        surgery.open_checkpoint(base),
        {"w": lambda rows: rows if rows.float().abs().max() < 1e3 and len(rows) < 6 else rows[:, :3]},
    )
    with pytest.raises(surgery.SurgeryError, match="something else of a block of 64 rows"):
        surgery.write(made, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_history_names_the_function(base: Path, tmp_path: Path) -> None:
    made = surgery.map_rows(surgery.open_checkpoint(base), {"w": clipped})
    (step,) = made.history
    assert step["functions"] == {"w": {"name": f"{__name__}.clipped", "sha256": function_of(clipped).digest}}
    json.dumps(step)
    assert not made.recipe.known


def test_the_digest_follows_all_that_is_computed_with() -> None:
    def by(factor: object) -> Callable[..., object]:
        return lambda rows: rows * factor

    assert function_of(by(2)).digest == function_of(by(2)).digest
    assert function_of(by(2)).digest != function_of(by(3)).digest
    assert function_of(by(torch.ones(2))).digest == function_of(by(torch.ones(2))).digest
    assert function_of(by(torch.ones(2))).digest != function_of(by(torch.zeros(2))).digest
    assert function_of(by(object())).digest != function_of(by(object())).digest  # nobody can tell
    partial = functools.partial
    assert function_of(partial(torch.clamp, min=0)).digest != function_of(partial(torch.clamp, min=1)).digest
    global FACTOR
    before = function_of(scaled).digest
    FACTOR = 3.0
    try:
        assert function_of(scaled).digest != before
    finally:
        FACTOR = 2.0
    assert function_of(scaled).digest == before


def test_another_function_is_another_plan(base: Path) -> None:
    opened = surgery.open_checkpoint(base)
    one, other = (surgery.plan(surgery.map_rows(opened, {"w": by})).identity for by in (clipped, scaled))
    assert one != other
    assert one == surgery.plan(surgery.map_rows(opened, {"w": clipped})).identity


def test_pipe_hands_itself_on(base: Path) -> None:
    opened = surgery.open_checkpoint(base)
    assert opened.pipe(surgery.drop, "w").tensors == surgery.drop(opened, "w").tensors
    assert opened.pipe(lambda one, more, *, key: (one, more, key), 1, key=2) == (opened, 1, 2)
