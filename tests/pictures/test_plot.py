"""Figures: what they say, that the same values give the same bytes, and what is said where matplotlib is missing."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from handmade import write_adapter
from typer.testing import CliRunner

import surgery
from surgery.checks.shard_map import shard_map
from surgery.errors import DestinationError, NotSupported
from surgery.pictures.measures import BY_KEY
from surgery.pictures.plot import plot_changes, plot_shards
from surgery_cli.app import app

pytest.importorskip("matplotlib", reason="figures need matplotlib: pip install 'checkpoint-surgery[plot]'")


@pytest.fixture(scope="module")
def base(saved: Callable[..., Path]) -> Path:
    return saved("llama", shard="20KB")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    modules = {
        f"model.layers.{i}.self_attn.{n}": (o, 48) for i in range(3) for n, o in (("q_proj", 40), ("k_proj", 20))
    }
    return write_adapter(tmp_path_factory.mktemp("plot") / "adapter", modules)


@pytest.mark.parametrize("key", BY_KEY)
def test_a_figure_says_each_value(base: Path, adapter: Path, tmp_path: Path, key: str) -> None:
    changes, measure = surgery.map_changes(base, adapter=adapter), BY_KEY[key]
    for name in ("one.svg", "two.svg"):
        plot_changes(changes, measure, tmp_path / name)
    drawn = (tmp_path / "one.svg").read_text()
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", drawn)
    assert {measure.text(cell) for cell in changes.cells.values()} <= set(texts)
    assert {"self_attn.q_proj", "self_attn.k_proj", "layer of model.layers", measure.title} <= set(texts)
    assert drawn == (tmp_path / "two.svg").read_text() and "<dc:date>" not in drawn


def test_what_is_wrong_is_marked(base: Path, adapter: Path, tmp_path: Path) -> None:
    changes, measure = surgery.map_changes(base, adapter=adapter), BY_KEY["relative"]
    (cell, *_) = changes.cells.values()
    for name, wrong in (("right.svg", []), ("wrong.svg", [cell.tensors[0].name, "model.norm.weight"])):
        plot_changes(changes, measure, tmp_path / name, wrong=wrong)
    right, wrong = ((tmp_path / name).read_text() for name in ("right.svg", "wrong.svg"))
    assert "✗" not in right and wrong.count(">✗ ") == 1 and f">✗ {measure.text(cell)}<" in wrong
    assert "#d55e00" in wrong and "#d55e00" not in right


def test_the_commands_write_figures(base: Path, adapter: Path, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    surgery.write(surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter)), merged)
    proved = ["verify", str(merged), "--base", str(base), "--adapter", str(adapter), "--no-class"]
    for at, words in enumerate((["inspect", str(base)], ["diff", str(base), str(merged)], proved, [*proved, "--json"])):
        out = tmp_path / f"{at}.png"
        plain = CliRunner().invoke(app, words)
        done = CliRunner().invoke(app, [*words, "--plot", str(out)])
        assert (done.exit_code, done.stdout) == (plain.exit_code, plain.stdout), done.output
        assert out.read_bytes().startswith(b"\x89PNG")
        again = CliRunner().invoke(app, [*words, "--plot", str(out)])
        assert again.exit_code == 1 and "already" in again.output
        assert CliRunner().invoke(app, [*words, "--plot", str(out), "--overwrite"]).exit_code == plain.exit_code
    inside = CliRunner().invoke(app, ["inspect", str(base), "--plot", str(base / "x.png")])
    assert inside.exit_code == 1 and not (base / "x.png").exists()


def test_other_formats_are_refused(base: Path, tmp_path: Path) -> None:
    for name in ("x.pdf", "x", "x.png.gz"):
        with pytest.raises(NotSupported, match="PNG or SVG"):
            plot_shards(shard_map(surgery.open_checkpoint(base)), tmp_path / name)
    with pytest.raises(DestinationError):
        plot_shards({}, base / "x.svg", [str(base)])


def test_without_matplotlib_it_says_what_to_install(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else found(name, *a))
    done = CliRunner().invoke(app, ["inspect", str(base), "--plot", str(tmp_path / "x.png")])
    assert done.exit_code == 1 and "checkpoint-surgery[plot]" in done.output and "tensors" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_names_are_no_formulas(tmp_path: Path) -> None:
    from surgery.checks.change_map import ChangeMap, Moved
    from surgery.evaluation.spread import Spread

    names = ("model.layers.0.$\\frac{1}{$.weight", "a$b.1.x$y$z.weight", "lm_head$.weight")
    moved = tuple(Moved(name, "F32", (2, 2), True, Spread(4, 4, None, None, 1.0, 2.0, 1.0)) for name in names)
    for changes in (ChangeMap("a", "b", moved), ChangeMap("a", "b", moved[2:]), ChangeMap("a", "b", ())):
        plot_changes(changes, BY_KEY["relative"], tmp_path / "x.svg", overwrite=True)
