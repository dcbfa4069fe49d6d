"""Folders that link to each other: every path of every folder is walked, in a bounded number of steps."""

from __future__ import annotations

import os
from itertools import permutations
from pathlib import Path

import pytest
from handmade import write_adapter, write_phi3, write_tensors

import surgery
from surgery.errors import FormatError
from surgery.files import walking
from surgery.files.folder import LocalFolder
from surgery.files.walking import MOST, walked


def linked(root: Path, count: int) -> list[Path]:
    """Folders with a file in each, and in each a link to every other."""
    folders = [root / f"d{i}" for i in range(count)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "x.txt").write_text(folder.name)
    for folder in folders:
        for other in folders:
            if other != folder:
                (folder / other.name).symlink_to(other)
    return folders


def check_tangled(root: Path, one: Path) -> None:
    """Refused, with a folder of many paths and one of them."""
    with pytest.raises(FormatError, match=f"links between folders give one of them more than {MOST} paths") as caught:
        list(LocalFolder(str(root)).walk())
    real, path = caught.value.where
    assert Path(real).parent == one.parent and path.startswith(f"{root}: one of them is ")
    assert os.path.realpath(root / path.partition(" is ")[2]) == real
    assert caught.value.help == "each path would be a copy of it: remove the links that are not needed"


@pytest.mark.parametrize("count", [2, 3, 5])
def test_each_folder_has_all_its_paths(tmp_path: Path, count: int) -> None:
    """As many as there are orders to visit the others in, each once: as `cp -rL` copies them."""
    names = [folder.name for folder in linked(tmp_path, count)]
    orders = [order for length in range(1, count + 1) for order in permutations(names, length)]
    assert sorted(walked(str(tmp_path))) == sorted("/".join((*order, "x.txt")) for order in orders)


def test_a_cycle_of_three(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").write_text(name)
        (tmp_path / name / "next").symlink_to(tmp_path / other)
    ways = {"a": "abc", "b": "bca", "c": "cab"}
    wanted = {f"{first}{'/next' * i}/{way[i]}.txt" for first, way in ways.items() for i in range(3)}
    found = list(LocalFolder(str(tmp_path)).walk())
    assert set(found) == wanted and len(found) == 9


def test_a_fan_of_twelve(tmp_path: Path) -> None:
    """1.3 thousand million paths, of which a small part is looked at."""
    check_tangled(tmp_path, linked(tmp_path, 12)[0])


def test_a_chain_that_doubles(tmp_path: Path) -> None:
    """No cycle is needed: thirty folders, each with two links to the next one."""
    for i in range(30):
        (tmp_path / f"d{i}").mkdir()
        for name in "ab":
            (tmp_path / f"d{i}" / name).symlink_to(tmp_path / f"d{i + 1}")
    (tmp_path / "d30").mkdir()
    check_tangled(tmp_path, tmp_path / "d30")


def test_many_links_to_one_folder_are_no_tangle(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "x.txt").write_text("x")
    for i in range(MOST - 1):
        (tmp_path / f"l{i}").symlink_to("shared")
    assert len(list(walked(str(tmp_path)))) == MOST
    (tmp_path / "one more").symlink_to("shared")
    with pytest.raises(FormatError, match="links between folders"):
        list(walked(str(tmp_path)))


def test_a_checkpoint_of_folders_that_link_to_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is carried with all its paths; a push of it is refused as opening is, where they are too many."""
    base = write_phi3(tmp_path / "base", layers=2, hidden=32)
    linked(base / "more", 3)
    surgery.write(surgery.open_checkpoint(base), tmp_path / "out", link=False)
    assert (tmp_path / "out" / "more" / "d0" / "d1" / "d2" / "x.txt").read_text() == "d2"
    monkeypatch.setattr(walking, "MOST", 4)
    with pytest.raises(FormatError, match="links between folders give one of them more than 4 paths"):
        surgery.open_checkpoint(base)


def test_what_lies_beside_an_adapter_is_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each folder is entered once, however many links lead to it; what only a link leads to is found, too."""
    adapter = write_adapter(tmp_path / "adapter", {"model.layers.0.self_attn.o_proj": (32, 32)})
    folders = linked(adapter, 12)
    write_tensors(folders[7] / "extra.safetensors", {"x": ("F32", (2,))})
    deep = adapter / "a" / "b" / "c" / "d" / "e"
    deep.mkdir(parents=True)
    (deep / "mm_projector.bin").write_bytes(b"")
    (adapter / "near").symlink_to(deep)
    listed, names = [], LocalFolder.names
    monkeypatch.setattr(LocalFolder, "names", lambda self, inside="": listed.append(inside) or names(self, inside))
    assert surgery.open_adapter(adapter).unread == ("d7/extra.safetensors", "near/mm_projector.bin")
    assert len(listed) < 30
