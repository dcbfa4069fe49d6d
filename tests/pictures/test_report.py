"""A report as a file: how large it becomes, where it may be written, that the same inputs give the same bytes."""

from __future__ import annotations

import json
import re
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import hashes
from handmade import write_adapter, write_phi3, write_tensors
from typer.testing import CliRunner

import surgery
from surgery.checks.change_map import ChangeMap, Moved
from surgery.errors import DestinationError
from surgery.evaluation.spread import Spread
from surgery.pictures.tensor_rows import tensor_rows
from surgery_cli.app import app


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phi3(tmp_path_factory.mktemp("report") / "base", layers=3, hidden=64)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    modules = {f"model.layers.{i}.self_attn.o_proj": (64, 64) for i in range(3)}
    return write_adapter(tmp_path_factory.mktemp("report") / "adapter", modules)


def names_in(page: str) -> list[str]:
    """The names that the page's script would list."""
    rows = json.loads(re.search(r'id="rows">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    numbers, found = iter(rows["N"]), []
    for pattern in (rows["patterns"][at] for at in rows["T"]):
        found.append(pattern[0] + "".join(f"{next(numbers)}{part}" for part in pattern[1:]))
    return found


def test_what_it_shows_is_what_is_there(base: Path, adapter: Path) -> None:
    found = surgery.report(base, adapter=adapter)
    checkpoint = surgery.open_checkpoint(base)
    assert sorted(names_in(found.html)) == sorted(checkpoint.tensors)
    assert "What merging would change" in found.html and all(
        shard in found.html for shard in checkpoint.weight_map.values()
    )
    assert found.changes is not None and len(found.changes.cells) == 3
    alone = surgery.report(base)
    assert alone.changes is None and 'id="changed"' not in alone.html and '"R"' not in alone.html


def test_the_same_inputs_give_the_same_bytes(base: Path, adapter: Path, tmp_path: Path) -> None:
    """At another time, in another folder, by name only: a page tells nobody where it was made."""
    copies = [shutil.copytree(one, tmp_path / one.name) for one in (base, adapter)]
    pages = [surgery.report(base, adapter=adapter).html, surgery.report(base, adapter=adapter).html]
    pages.append(surgery.report(copies[0], adapter=copies[1]).html)
    assert pages[0] == pages[1] == pages[2]
    assert str(tmp_path) not in pages[2] and str(base.parent) not in pages[0]


def test_what_has_nothing_beside_it_is_not_called_unchanged(base: Path, tmp_path: Path) -> None:
    """Under other names, each weight is only in one: in the page, and in the terminal."""
    surgery.write(surgery.split_qkv(surgery.open_checkpoint(base)), tmp_path / "split")
    page = surgery.report(tmp_path / "split", base=base).html
    assert "Nothing changed in the 9 weights that both have" in page
    assert "3 only in the base: <code>model.layers.0.self_attn.qkv_proj.weight</code>" in page
    assert "9 only in what is shown" in page
    done = CliRunner().invoke(app, ["diff", str(base), str(tmp_path / "split"), "--map"], env={"COLUMNS": "80"})
    assert "nothing changed in 9 tensors" in done.output and "only in the second: 9:" in done.output


def test_a_notebook_shows_it_in_a_frame(base: Path) -> None:
    """All of it is in one attribute, and nothing of it gets out."""
    shown = surgery.report(base)._repr_html_()
    assert re.fullmatch(r'<iframe sandbox="allow-scripts" width="100%" height="800" srcdoc="[^"<>]*"></iframe>', shown)


def test_lineage_and_recipe_are_the_manifests(base: Path, adapter: Path, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    done = CliRunner().invoke(app, ["merge", str(base), str(adapter), "-o", str(merged), "--quiet"])
    assert done.exit_code == 0, done.output
    page = surgery.report(merged).html
    assert re.search(r"<ol class='steps'><li>merge adapter \(3 modules\)", page)
    assert "base: <code>base</code>" in page and re.search(r"<pre[^>]*>[^<]*steps:\n- merge:", page)


def test_it_is_written_whole_and_over_nothing(base: Path, adapter: Path, tmp_path: Path) -> None:
    found, before = surgery.report(base, adapter=adapter), hashes(base, without=()) | hashes(adapter, without=())
    out = tmp_path / "report.html"
    found.write(out)
    assert out.read_text() == found.html and [one.name for one in tmp_path.iterdir()] == ["report.html"]
    out.write_text("mine")
    with pytest.raises(DestinationError, match="there is a file already"):
        found.write(out)
    assert out.read_text() == "mine"
    found.write(out, overwrite=True)
    assert out.read_text() == found.html
    link = tmp_path / "link"
    link.symlink_to(base / "config.json")
    for place in (
        link,
        base / "report.html",
        base / "config.json",
        adapter / "x.html",
        tmp_path / "nowhere" / "x",
        tmp_path,
    ):
        with pytest.raises(DestinationError):
            found.write(place, overwrite=True)
    (tmp_path / "way").symlink_to(base)
    with pytest.raises(DestinationError, match="only read"):
        found.write(tmp_path / "way" / "report.html")
    assert hashes(base, without=()) | hashes(adapter, without=()) == before


def test_a_shard_beside_the_one_file_that_is_given_stays(base: Path, tmp_path: Path) -> None:
    """Of an index, the shards are inputs, and so is config.json beside a file."""
    copy = shutil.copytree(base, tmp_path / "copy")
    found = surgery.report(copy / "model.safetensors.index.json")
    for name in ("model-00001-of-00003.safetensors", "config.json"):
        with pytest.raises(DestinationError, match="only read"):
            found.write(copy / name, overwrite=True)
    assert hashes(copy) == hashes(base)


def test_the_command_writes_it(base: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    words = ["report", str(base), "--adapter", str(adapter), "-o", str(out)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and out.read_text() == surgery.report(base, adapter=adapter).html
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 1 and "already" in again.output
    done = CliRunner().invoke(app, [*words, "--overwrite", "--json"])
    assert json.loads(done.stdout) == {"output": str(out), "nbytes": out.stat().st_size, "ok": True}
    assert CliRunner().invoke(app, ["report", str(base)]).exit_code == 2
    assert CliRunner().invoke(app, ["report", str(base), "-o", str(out), "--scale", "2"]).exit_code == 2


def experts(count: int) -> list[str]:
    """Names of a mixture of experts with so many tensors."""
    kinds = ("gate_proj", "up_proj", "down_proj")
    return [f"model.layers.{i // 768}.mlp.experts.{i // 3 % 256}.{kinds[i % 3]}.weight" for i in range(count)]


def test_100_000_tensors_fit_in_5_mb(tmp_path: Path) -> None:
    """All of them listed, all of them changed."""
    names = experts(100_000)
    (tmp_path / "m").mkdir()
    write_tensors(tmp_path / "m" / "model.safetensors", dict.fromkeys(names, ("F16", (1,))))
    begun = time.monotonic()
    page = surgery.report(tmp_path / "m").html
    assert time.monotonic() - begun < 30
    assert len(page.encode()) < 2_500_000 and len(names_in(page)) == 100_000
    checkpoint = surgery.open_checkpoint(tmp_path / "m")
    moved = tuple(
        Moved(n, "F16", (1,), True, Spread(1000, 123 + i % 877, 999, i % 999, 1.2345 + i, 3.7, 7.654 + i % 50))
        for i, n in enumerate(names)
    )
    rows = tensor_rows(
        checkpoint.tensors, checkpoint.weight_map, ChangeMap("a", "b", moved, merging=True), {}, 4_800_000
    )
    assert rows["left"] == 0 and len(json.dumps(rows, separators=(",", ":"))) < 4_500_000


def test_names_without_a_pattern_are_cut_and_counted(tmp_path: Path) -> None:
    """Of any names, a page stays below 5 MB; what has no room is counted."""
    names = [
        f"{i}-{'q' * 97}é".translate(dict(zip(b"0123456789", "abcdefghij", strict=True)))
        for i in range(100_000, 160_000)
    ]
    entries = {name: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for name in dict.fromkeys(names)}
    header = json.dumps(entries).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    page = surgery.report(path).html
    left = json.loads(re.search(r'id="rows">(.*?)</script>', page, re.DOTALL)[1])["left"]  # type: ignore[index]
    assert len(page.encode()) < 5_000_000 and 0 < left == len(entries) - len(names_in(page))


def test_a_model_of_quantised_weights(quantised: Callable[[str], Path]) -> None:
    page = surgery.report(quantised("nf4")).html
    assert "Quantised by bitsandbytes" in page and "nf4" in page.lower()
