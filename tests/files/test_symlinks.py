"""Where links in a folder may lead, and what is said of those that may not be followed, or cannot."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import hashes
from handmade import write_adapter, write_phi3, write_tensors
from typer.testing import CliRunner

import surgery
from surgery.errors import FormatError
from surgery.files.symlinks import leads_out
from surgery_cli.app import app

WHAT = "a link leads out of the folder"
SECRET = b"a key of the system"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A checkpoint whose tokenizer.json is a link to a secret file elsewhere."""
    folder = write_phi3(tmp_path / "base", layers=2, hidden=32)
    (tmp_path / "secret").write_bytes(SECRET)
    (folder / "tokenizer.json").symlink_to(tmp_path / "secret")
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", {"model.layers.0.self_attn.o_proj": (32, 32)})


def moved(path: Path, elsewhere: Path) -> Path:
    """What lay at `path` lies elsewhere, and a link is in its place."""
    elsewhere.mkdir(exist_ok=True)
    target = elsewhere / path.name
    shutil.move(path, target)
    path.symlink_to(target)
    return target


def check_refused(call: Callable[[], object], *links: Path) -> None:
    """Refused, with just these links and where they lead."""
    with pytest.raises(FormatError) as caught:
        call()
    assert caught.value.what == (WHAT if len(links) == 1 else f"{len(links)} links lead out of the folder")
    assert sorted(caught.value.where) == sorted(f"{link} -> {os.readlink(link)}" for link in links)
    assert "--follow-links, in Python `with surgery.following_links():`" in str(caught.value.help)


def test_a_carried_file_is_not_fetched_from_elsewhere(base: Path, tmp_path: Path) -> None:
    check_refused(lambda: surgery.open_checkpoint(base), base / "tokenizer.json")
    result = CliRunner().invoke(app, ["reshard", str(base), "-o", str(tmp_path / "out"), "--max-shard-size", "5GB"])
    assert result.exit_code == 1 and WHAT in result.output
    assert not (tmp_path / "out").exists()


WITHIN = {
    "a shard": "model-00001-of-00002.safetensors",
    "the index": "model.safetensors.index.json",
    "the configuration": "config.json",
    "a file in a folder": "x/y.txt",
    "a folder": "x",
}


@pytest.mark.parametrize("which", WITHIN)
def test_every_kind_of_file_stays_inside(base: Path, tmp_path: Path, which: str) -> None:
    (base / "tokenizer.json").unlink()
    (base / "x").mkdir()
    (base / "x" / "y.txt").write_text("y")
    surgery.write(surgery.open_checkpoint(base), tmp_path / "before")
    moved(base / WITHIN[which], tmp_path / "elsewhere")
    check_refused(lambda: surgery.open_checkpoint(base), base / WITHIN[which])
    with surgery.following_links():
        surgery.write(surgery.open_checkpoint(base), tmp_path / "out")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "before")
    check_refused(lambda: surgery.open_checkpoint(base), base / WITHIN[which])


def test_a_shard_of_the_index_in_a_folder_that_is_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    write_tensors(tmp_path / "out" / "a.safetensors", {"w": ("F32", (2,))})
    (tmp_path / "in" / "sub").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"w": "sub/a.safetensors"}})
    )
    check_refused(lambda: surgery.open_checkpoint(tmp_path / "in"), tmp_path / "in" / "sub")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_an_adapter_stays_inside(adapter: Path, tmp_path: Path, name: str) -> None:
    moved(adapter / name, tmp_path / "elsewhere")
    check_refused(lambda: surgery.open_adapter(adapter), adapter / name)
    with surgery.following_links():
        assert surgery.open_adapter(adapter).lora


def test_what_lies_beside_an_adapter_stays_inside(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(SECRET)
    (adapter / "tokenizer.json").symlink_to("../secret")
    check_refused(lambda: surgery.write(surgery.open_adapter(adapter), tmp_path / "out"), adapter / "tokenizer.json")


def test_a_push_sends_nothing_from_elsewhere(base: Path, adapter: Path, tmp_path: Path) -> None:
    from surgery.hub.push import _files

    check_refused(lambda: _files(str(base)), base / "tokenizer.json")
    (adapter / "logs").symlink_to(tmp_path / "base")
    check_refused(lambda: _files(str(adapter)), adapter / "logs")
    with surgery.following_links():
        assert _files(str(base))[0]["tokenizer.json"].nbytes == len(SECRET)


def test_all_links_are_named_at_once(base: Path, tmp_path: Path) -> None:
    shards = sorted(base.glob("*.safetensors"))
    for path in shards:
        moved(path, tmp_path / "blobs")
    check_refused(lambda: surgery.open_checkpoint(base), *shards, base / "tokenizer.json")


def test_the_command_line_follows_when_it_is_told_to(base: Path, tmp_path: Path) -> None:
    command = [
        "reshard",
        str(base),
        "-o",
        str(tmp_path / "out"),
        "--max-shard-size",
        "5GB",
        "--follow-links",
        "--quiet",
    ]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == SECRET
    assert not (tmp_path / "out" / "tokenizer.json").is_symlink()
    for words in (["inspect", base], ["diff", base, tmp_path / "out"], ["verify", base, "--no-class"]):
        assert CliRunner().invoke(app, list(map(str, words))).exit_code == 1
        assert CliRunner().invoke(app, [*map(str, words), "--follow-links"]).exit_code == 0, words


@pytest.mark.parametrize("target", ["../base/config.json", "config.json", "x/../config.json"])
def test_links_inside_are_followed(tmp_path: Path, target: str) -> None:
    base = write_phi3(tmp_path / "base", layers=1, hidden=32)
    (base / "x").mkdir()
    (base / "copy.json").symlink_to(target)
    surgery.write(surgery.open_checkpoint(base), tmp_path / "out")
    assert (tmp_path / "out" / "copy.json").read_bytes() == (base / "config.json").read_bytes()


def test_a_folder_whose_name_begins_alike_is_outside(tmp_path: Path) -> None:
    base, other = write_phi3(tmp_path / "base", layers=1, hidden=32), tmp_path / "base-private"
    other.mkdir()
    (other / "x").write_bytes(SECRET)
    (base / "x").symlink_to(other / "x")
    check_refused(lambda: surgery.open_checkpoint(base), base / "x")


def test_a_folder_that_is_a_link_itself(tmp_path: Path) -> None:
    write_phi3(tmp_path / "base", layers=1, hidden=32)
    (tmp_path / "latest").symlink_to("base")
    assert surgery.open_checkpoint(tmp_path / "latest").tensors


# The Hub's cache


@pytest.fixture
def snapshot(base: Path, tmp_path: Path) -> Path:
    """A snapshot of the Hub's cache: each file a link to a blob of the repository."""
    (base / "tokenizer.json").unlink()
    root = tmp_path / "hub" / "models--org--name"
    place = root / "snapshots" / "0123abcd"
    place.mkdir(parents=True)
    (root / "blobs").mkdir()
    for number, path in enumerate(sorted(base.iterdir())):
        shutil.copyfile(path, root / "blobs" / str(number))
        (place / path.name).symlink_to(f"../../blobs/{number}")
    return place


def test_a_snapshot_links_to_its_blobs_and_no_further(snapshot: Path, tmp_path: Path) -> None:
    assert surgery.open_checkpoint(snapshot).tensors
    other = tmp_path / "hub" / "models--org--private" / "blobs"
    other.mkdir(parents=True)
    (other / "0").write_bytes(SECRET)
    (snapshot / "tokenizer.json").symlink_to("../../../models--org--private/blobs/0")
    check_refused(lambda: surgery.open_checkpoint(snapshot), snapshot / "tokenizer.json")


@pytest.mark.parametrize("name", ["config.json", "model-00002-of-00002.safetensors", "model.safetensors.index.json"])
def test_a_blob_that_is_gone_is_fetched_again(snapshot: Path, name: str) -> None:
    (snapshot / name).resolve().unlink()
    with pytest.raises(FormatError) as caught:
        surgery.open_checkpoint(snapshot)
    assert caught.value.what == "a link leads nowhere"
    assert caught.value.where == (f"{snapshot / name} -> {os.readlink(snapshot / name)}",)
    assert caught.value.help == "the cache has lost its file; fetch it again: hf download org/name --revision 0123abcd"


@pytest.mark.parametrize(
    ("blob", "ours"),
    [
        ("blobs/ab/ab" + "0" * 62, True),
        ("blobs/cd/ab" + "0" * 62, False),
        ("blobs/secret", False),
        ("models--org--other/blobs/ab" + "0" * 62, False),
        ("token", False),
    ],
)
def test_blobs_that_the_cache_shares_are_its_own(blob: str, ours: bool, tmp_path: Path) -> None:
    """A blob of a repository may be a link to the store beside the repositories, and to nothing else there."""
    held = tmp_path / blob
    held.parent.mkdir(parents=True, exist_ok=True)
    held.write_text("{}")
    own = tmp_path / "models--org--name" / "blobs" / "x"
    own.parent.mkdir(parents=True)
    own.symlink_to(os.path.relpath(held, own.parent))
    snapshot = tmp_path / "models--org--name" / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../blobs/x")
    assert leads_out(str(snapshot / "config.json"), str(snapshot)) != ours
