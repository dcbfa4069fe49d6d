"""What a recipe, or its reader, is told of outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import surgery
from surgery.errors import FormatError


@pytest.mark.parametrize("step", ["reshard", "push"])
def test_what_is_no_step_is_said_of_the_output(step: str, saved: Callable[..., Path]) -> None:
    with pytest.raises(FormatError, match=f"no step is called {step}") as caught:
        surgery.from_recipe({"source": str(saved("llama")), "steps": [step]})
    assert "output" in str(caught.value.help) and "nearest" not in str(caught.value.help)


def test_a_size_that_only_the_command_reads_is_told(saved: Callable[..., Path], tmp_path: Path) -> None:
    recipe = {"source": str(saved("llama")), "steps": [{"cast": {"dtype": "bf16"}}]}
    sized = surgery.from_recipe({**recipe, "output": {"output": "x", "max-shard-size": "20KB"}})
    report = surgery.write(sized, tmp_path / "out")
    assert any("the recipe's output says max-shard-size" in note for note in report.notes)
    assert not any("the recipe" in note for note in surgery.from_recipe({**recipe, "output": "x"}).notes)
