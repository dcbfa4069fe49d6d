"""`surgery browse`, by textual's own pilot."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from textual.widgets import Static
from typer.testing import CliRunner

import surgery
from surgery_cli.app import app
from surgery_cli.browser import Browser

SIZES = [(80, 24), (160, 50)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browse")
    drawn = torch.Generator().manual_seed(0)
    tensors = {f"model.layers.{i}.mlp.up_proj.weight": torch.randn(6, 4, generator=drawn) for i in range(11)}
    tensors["model.layers.0.mlp.up_proj.weight"][1, 2] = torch.nan
    tensors["[bold]\x1b[31mnorm.weight"] = torch.zeros(3, dtype=torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def piloted(base: Path, steps: Callable[[Any], Awaitable[None]], size: tuple[int, int] = (80, 24)) -> None:
    async def run() -> None:
        browser = Browser(surgery.open_checkpoint(base))
        async with browser.run_test(size=size) as pilot:
            await pilot.pause()
            await steps(pilot)

    asyncio.run(run())


def text(pilot: Any, where: str) -> str:
    return str(pilot.app.query_one(f"#{where}", Static).render())


async def settled(pilot: Any) -> None:
    await pilot.pause()
    await pilot.app.workers.wait_for_complete()
    await pilot.pause()


async def to_the_first(pilot: Any) -> None:
    """The cursor is on the first layer's weight, which the walk through the tree has opened."""
    for _ in range(30):
        if pilot.app.at_hand == "model.layers.0.mlp.up_proj.weight":
            return
        node = pilot.app.modules.cursor_node
        if node is not None and node.allow_expand and not node.is_expanded:
            await pilot.press("enter")
        await pilot.press("down")
        await pilot.pause()
    raise AssertionError("it is not there")


@pytest.mark.parametrize("size", SIZES)
def test_a_tensor_is_found_and_told(base: Path, size: tuple[int, int]) -> None:
    async def steps(pilot: Any) -> None:
        await to_the_first(pilot)
        said = text(pilot, "facts")
        assert "model.layers.0.mlp.up_proj.weight" in said and "6×4" in said and "F32" in said and "96 B" in said
        assert "model.safetensors" in said
        await pilot.press("s")
        await settled(pilot)
        assert "NaN       1" in text(pilot, "values")

    piloted(base, steps, size)


def test_layers_come_in_their_order(base: Path) -> None:
    async def steps(pilot: Any) -> None:
        layers = next(node for node in pilot.app.modules.root.children if node.allow_expand)
        layers.expand()
        await pilot.pause()
        assert layers.data.path == "model.layers"
        assert [node.data.split(".")[2] for node in layers.children] == [str(i) for i in range(11)]

    piloted(base, steps)


def test_values_of_a_part(base: Path) -> None:
    async def steps(pilot: Any) -> None:
        await to_the_first(pilot)
        await pilot.press("v", *"1, 2:4", "enter")
        await settled(pilot)
        value = surgery.open_checkpoint(base).load("model.layers.0.mlp.up_proj.weight")
        assert text(pilot, "values").split() == ["nan", f"{float(value[1, 3]):.6g}"]
        await pilot.press("v", *"9:12", "enter")
        await settled(pilot)
        assert "lies outside an axis of 6 entries" in text(pilot, "values")

    piloted(base, steps)


def test_find(base: Path) -> None:
    async def steps(pilot: Any) -> None:
        await pilot.press("slash", *"layers.3.", "enter")
        await pilot.pause()
        assert pilot.app.modules.root.data.count == 1
        await pilot.press("down")  # what was found is open, down to the tensor
        assert pilot.app.at_hand == "model.layers.3.mlp.up_proj.weight"
        await pilot.press("slash", *"nowhere", "enter")
        await pilot.pause()
        assert "no tensor's name has nowhere in it" in text(pilot, "values")
        await pilot.press("slash", *"(", "enter")
        await pilot.pause()
        assert "error" not in text(pilot, "facts") and text(pilot, "values")
        await pilot.press("slash", "enter")
        await pilot.pause()
        assert pilot.app.modules.root.data.count == 12

    piloted(base, steps)


def test_names_are_text(base: Path) -> None:
    """No markup and no escape of a name is obeyed."""

    async def steps(pilot: Any) -> None:
        shown = [str(node.label) for node in pilot.app.modules.root.children]
        assert any(r"[bold]\x1b[31mnorm" in label for label in shown)

    piloted(base, steps)


def test_without_textual_it_is_said_how_to_get_it(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import surgery_cli.browse as command

    monkeypatch.setattr(command, "find_spec", lambda name: None)
    done = CliRunner().invoke(app, ["browse", str(base)])
    assert done.exit_code == 1 and "checkpoint-surgery[browse]" in done.stderr
    assert "surgery_cli.browser" in sys.modules  # by this test; the command line loads it for this command alone
