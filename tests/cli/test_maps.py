"""Maps in the terminal: what they say, in how many columns, with and without colours."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import surgery
from surgery.checks.change_map import ChangeMap, Moved
from surgery.checks.shard_map import Piece, shard_map
from surgery.evaluation.spread import Spread
from surgery.pictures.measures import BY_KEY, MEASURES, VIRIDIS, Scale, percent, short
from surgery_cli.app import app
from surgery_cli.helping import with_heat_map
from surgery_cli.maps import show_change_map, show_shard_map


def changes(values: dict[str, float]) -> ChangeMap:
    """A map of weights that changed by so much."""
    moved = tuple(
        Moved(
            name,
            "F32",
            (10, 10),
            bool(v),
            Spread(100, 50 if v else 0, 100 if v else 0, 25 if v else 0, v * v, 1.0, 2.0 if v else None),
        )
        for name, v in values.items()
    )
    return ChangeMap("a", "b", moved, merging=True)


def drawn(found: ChangeMap, key: str = "relative", *, colour: bool = False, width: int = 80, wrong: str = "") -> str:
    system = "truecolor" if colour else None
    out = Console(file=io.StringIO(), force_terminal=colour, color_system=system, width=width, highlight=False)  # type: ignore[arg-type]
    show_change_map(found, BY_KEY[key], [wrong], out)
    return out.file.getvalue()  # type: ignore[attr-defined]


MANY = {f"model.layers.{i}.{m}.weight": (i + 1) / 100 for i in range(12) for m in ("attn.q", "attn.k", "mlp.up")}


def test_a_row_for_each_layer_and_a_cell_for_each_module() -> None:
    lines = drawn(changes(MANY)).splitlines()
    rows = [line.split() for line in lines if re.match(r" +\d+ ", line)]
    assert [row[0] for row in rows] == [str(i) for i in range(12)]
    assert all(row[2::2] == [short((i + 1) / 100)] * 3 for i, row in enumerate(rows))
    assert any(line.split() == ["attn", "mlp"] for line in lines) and any(
        line.split() == ["q", "k", "up"] for line in lines
    )


@pytest.mark.parametrize(("key", "text"), [("changed", "50%"), ("erased", "25%"), ("rank", "2.0")])
def test_each_measure_is_what_it_says(key: str, text: str) -> None:
    assert f" {text} " in drawn(changes(MANY), key)


def test_larger_is_heavier() -> None:
    """The characters that stand for colours grow with the values."""
    first, last = drawn(changes(MANY)).splitlines()[5], drawn(changes(MANY)).splitlines()[16]
    assert "█" in last and "█" not in first


@pytest.mark.parametrize("columns", [1, 5, 11, 40])
@pytest.mark.parametrize("colour", [False, True])
def test_it_fits_80_columns(columns: int, colour: bool) -> None:
    names = {f"model.layers.{i}.part{m}.a_long_name_of_a_module.weight": 0.1 for i in (0, 1200) for m in range(columns)}
    shown = re.sub(r"\x1b\[[\d;]*m", "", drawn(changes({**names, "lm_head." + "x" * 200: 1.0}), colour=colour))
    assert max(map(len, shown.splitlines())) <= 80
    assert len(re.findall(r"^ *1200 ", shown, re.MULTILINE)) == -(-columns // 10)


def test_colours_are_there_and_degrade() -> None:
    assert "\x1b[" in drawn(changes(MANY), colour=True) and "\x1b[" not in drawn(changes(MANY))


def test_what_is_wrong_is_marked_without_a_colour() -> None:
    shown = drawn(changes(MANY), wrong="model.layers.3.mlp.up.weight")
    assert len(re.findall(r"![\d.]", shown)) == 1 and "! not as it should be" in shown


def test_names_obey_nothing() -> None:
    """Control characters, markup and what turns the line round are shown, not obeyed."""
    names = {"model.layers.0.[bold]\x1b[31mx\u202e.weight": 1.0, "\x1b]0;title\x07": 1.0, "a\n.0.b\rc.weight": 1.0}
    shown = drawn(changes(names))
    assert not re.search(r"[\x1b\x07\r\u202e]", shown) and "[bold]" in shown


def test_nothing_changed() -> None:
    assert "nothing changed" in drawn(changes({"model.layers.0.a.weight": 0.0}))


def test_bars_are_as_long_as_the_bytes() -> None:
    pieces = {"a": (Piece("attention", 600, ("x",)), Piece("MLP", 200, ("y",))), "b": (Piece("norms", 400, ("z",)),)}
    out = Console(file=io.StringIO(), color_system=None, width=80)
    show_shard_map(pieces, out)
    first, second, legend = out.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert 2.8 <= first.count("A") / first.count("M") <= 3.2
    assert abs((first.count("A") + first.count("M")) / second.count("N") - 2) < 0.1
    assert legend.split() == ["A", "attention", "M", "MLP", "N", "norms"]


def test_scales() -> None:
    scale = Scale(0.01, 1, log=True)
    last = len(VIRIDIS) - 1
    assert [scale.step(x) for x in (0.0, 0.01, 0.1, 1.0, float("inf"), float("nan"))] == [
        0,
        0,
        round(last / 2),
        last,
        last,
        0,
    ]
    assert [percent(x) for x in (0, 1, 0.999, 0.5, 0.012)] == ["0%", "100%", ">99%", "50%", "1.2%"]
    assert [short(x) for x in (0.0123, 1.234, 123.4, 0.00001, 123456.0, float("inf"))] == [
        "0.012", "1.2", "123", "1.0e-5", "1.2e+5", "∞",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (["m", "--map"], ["m", "--heat-map"]),
        (["--map", "m"], ["--heat-map", "m"]),
        (["m", "--map", "a=b"], ["m", "--map", "a=b"]),
        (["m", "--map", "a=b", "--map", "--by", "rank"], ["m", "--map", "a=b", "--heat-map", "--by", "rank"]),
        (["--", "--map"], ["--", "--map"]),
    ],
)
def test_a_map_and_a_rule_are_told_apart(said: list[str], meant: list[str]) -> None:
    assert with_heat_map(said) == meant


@pytest.fixture(scope="module")
def merged(saved: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A base, an adapter, and the merge."""
    from handmade import write_adapter

    folder, base = tmp_path_factory.mktemp("maps"), saved("llama", dtype=torch.bfloat16)
    modules = {
        f"model.layers.{i}.self_attn.{n}": (o, 48) for i in range(3) for n, o in (("q_proj", 40), ("k_proj", 20))
    }
    adapter = write_adapter(folder / "adapter", modules)
    surgery.write(surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter)), folder / "merged")
    return base, adapter, folder / "merged"


def ran(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "80", "NO_COLOR": "1"})
    assert done.exit_code in (0, 1) and not isinstance(done.exception, Exception), done.output
    return done.stdout


def test_the_commands_draw(merged: tuple[Path, Path, Path]) -> None:
    base, adapter, result = merged
    for words in (("diff", base, result), ("verify", result, "--base", base, "--adapter", adapter, "--no-class")):
        plain, shown = ran(*words), ran(*words, "--map")
        assert shown.startswith(plain) and "q_proj" in shown.removeprefix(plain)
        assert len(re.findall(r"^ +[012] \S+ +[\d.]+ +\S+ +[\d.]+ *$", shown.removeprefix(plain), re.MULTILINE)) == 3
    rule = ("--map", r"^model\.layers=model.layers")
    assert ran("verify", result, "--base", base, "--adapter", adapter, "--no-class", *rule, "--map").endswith(
        shown.removeprefix(plain)
    )
    assert "erased" in ran(
        "verify", result, "--base", base, "--adapter", adapter, "--no-class", "--map", "--by", "erased"
    )
    plain, shown = ran("inspect", base), ran("inspect", base, "--map")
    assert shown.startswith(plain) and re.search(r"model\.safetensors W+A+M+", shown)


def test_what_is_asked_for_nothing_is_wrong_usage(merged: tuple[Path, Path, Path]) -> None:
    base, _, result = map(str, merged)
    for words in (
        ["diff", base, result, "--map", "--by", "size"],
        ["diff", base, result, "--by", "rank"],
        ["diff", base, result, "--map", "--by", "erased"],
        ["verify", result, "--map"],
    ):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 2 and "Error" in done.output
    assert len(MEASURES) == 4 and shard_map(surgery.open_checkpoint(base))
