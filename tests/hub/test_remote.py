"""Reading from the Hub: what a name means, what is listed, and that bytes arrive whole whatever happens on the way."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from handmade import write_adapter, write_phi3, write_tensors
from huggingface_hub import constants, hf_hub_download, snapshot_download
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import surgery
from hub.conftest import environment
from hub.faults import Before, Drop, Reset, Short, Slow, Status
from hub.server import TOKEN, Hub
from surgery.errors import (
    FormatError,
    HubUnreachable,
    NotACheckpoint,
    NotAllowed,
    NotOnHub,
    SourceChanged,
    SurgeryError,
)
from surgery.evaluation.read import AHEAD, NEAR, Reader, content, same_content
from surgery.files.folder import LocalFolder, locate
from surgery.files.refs import HubRef, is_ref, parse_ref
from surgery.files.safetensors import read_header
from surgery.hub import remote
from surgery.lazy.tensor import File

GET = "GET .*/(resolve|file)/"


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, which are not made."""
    made: list[float] = []
    monkeypatch.setattr(remote, "_wait", lambda seconds, stop: made.append(seconds))
    return made


@pytest.fixture
def base(hub: Hub, tmp_path: Path) -> Path:
    """A checkpoint of two shards, and the same as `org/name`, whose large files are on the second origin."""
    folder = write_phi3(tmp_path / "base", layers=2, hidden=64)
    (folder / "tokenizer.json").write_bytes(b"x" * 50_000)
    hub.put_folder("org/name", folder)
    hub.redirect = True
    return folder


# Names


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("org/name", HubRef("org/name")),
        ("org/name/", HubRef("org/name")),
        ("hf://org/name", HubRef("org/name")),
        ("hf:/org/name", HubRef("org/name")),  # what pathlib makes of it
        ("org/name@v1.0", HubRef("org/name", "v1.0")),
        ("hf://org/name@main/sub/folder", HubRef("org/name", "main", "sub/folder")),
        ("org/name/model.safetensors", HubRef("org/name", None, "model.safetensors")),
        ("org/name@refs/pr/3/sub", HubRef("org/name", "refs/pr/3", "sub")),
        ("org/name@a%2Fb/sub", HubRef("org/name", "a/b", "sub")),
        ("hf://gpt2", HubRef("gpt2")),
        ("hf://gpt2@main", HubRef("gpt2", "main")),
        ("Qwen/Qwen2.5-0.5B_x", HubRef("Qwen/Qwen2.5-0.5B_x")),
    ],
)
def test_names_on_the_hub(text: str, ref: HubRef) -> None:
    assert is_ref(text)
    assert parse_ref(text) == ref
    assert parse_ref(str(ref)) == ref


PATHS = (
    "gpt2 /org/name ./org/name ../name ~/name org/../name org//name a/model.safetensors a\\b/c a/.b org/name@"
    " org/na--me org/name@v1@v2"
)


@pytest.mark.parametrize("text", [*PATHS.split(), "", "a b/c", "a/x.index.json", "org/name/../x"])
def test_names_that_are_paths(text: str) -> None:
    assert not is_ref(text)


@pytest.mark.parametrize("text", ["hf://", "hf://a/b/../c", "hf:///", "hf://a@b@c", "hf://a--b/c"])
def test_names_that_are_nothing(text: str) -> None:
    with pytest.raises(SurgeryError, match="this names no repository on the Hub") as caught:
        parse_ref(text)
    assert caught.value.help == "write hf://org/name[@revision][/folder]"


@pytest.mark.parametrize("kind", ["datasets", "spaces"])
def test_only_models(kind: str) -> None:
    with pytest.raises(SurgeryError, match="only repositories of models hold checkpoints"):
        parse_ref(f"hf://{kind}/org/name")


PARTS = st.lists(st.sampled_from(["a", "Z", "0", "_", "-x", ".y"]), max_size=6).map(lambda parts: f"n{''.join(parts)}")


@given(
    PARTS, PARTS, st.none() | st.sampled_from(["main", "v1", "a/b", "refs/pr/7", "50%"]), st.lists(PARTS, max_size=3)
)
def test_a_name_is_its_own_spelling(org: str, name: str, revision: str | None, inside: list[str]) -> None:
    ref = HubRef(f"{org}/{name}", revision, "/".join(inside))
    assert parse_ref(str(ref)) == ref


def test_what_is_here_wins(hub: Hub, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_phi3(tmp_path / "org" / "name", layers=1, hidden=32)
    assert surgery.open_checkpoint("org/name").path == str(tmp_path / "org" / "name")
    assert hub.log == []
    assert surgery.open_checkpoint("hf://org/name").path.startswith("hf://org/name@")


def test_a_typo_names_both_readings(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        NotOnHub, match="cannot open hf://models/lama: there is no such repository, or it is private"
    ) as caught:
        surgery.open_checkpoint("models/lama")
    read = (
        f"{tmp_path / 'models' / 'lama'}: no such file or folder here, so it was read as the name of a repository on"
        " the Hub"
    )
    assert caught.value.where[-1] == read
    assert "check the name" in str(caught.value.help)
    assert TOKEN not in str(caught.value)


def test_a_typo_without_a_network(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    """Where nothing answers, there is one try, not half a minute of them."""
    monkeypatch.chdir(tmp_path)
    hub.stop()
    with pytest.raises(HubUnreachable, match=f"no answer from {hub.endpoint}") as caught:
        surgery.open_checkpoint("models/lama")
    assert "no such file or folder here" in caught.value.where[-1]
    assert pauses == hub.slept == []


def test_a_hub_that_hesitates(hub: Hub, base: Path, pauses: list[float]) -> None:
    """One that answers, if only with errors, is asked again."""
    faults = [
        hub.fault(Status(503), "GET /api/models/org/name$", times=3),
        hub.fault(Reset(10), "GET .*/tree/", times=2),
    ]
    assert surgery.open_checkpoint("org/name").tensors
    assert [fault.fired for fault in faults] == [3, 2]
    assert len(pauses) + len(hub.slept) >= 5


@pytest.mark.parametrize("path", ["nowhere", "./a/b", "a/model.safetensors", "/a/b"])
def test_paths_are_not_looked_for_on_the_hub(
    hub: Hub, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for opening in (surgery.open_checkpoint, surgery.open_adapter, surgery.open_any, surgery.inspect):
        with pytest.raises(NotACheckpoint, match="no such file or folder") as caught:
            opening(path)
        assert caught.value.help == "a model on the Hub is called org/name, or hf://org/name"
    assert not surgery.is_adapter(path)
    assert hub.log == []


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://huggingface.co/org/gpt2", "org/gpt2"),
        ("https://huggingface.co/org/gpt2/tree/main", "org/gpt2"),
        ("https://hf.co/org/gpt2/blob/v2/sub/model.safetensors", "org/gpt2@v2/sub/model.safetensors"),
        ("https://huggingface.co/datasets/x", ""),
        ("https://elsewhere.org/org/gpt2", ""),
    ],
)
def test_the_address_of_a_page(url: str, name: str) -> None:
    """It is not opened; what to write for it is said."""
    with pytest.raises(NotACheckpoint, match="no such file or folder") as caught:
        surgery.open_checkpoint(url)
    assert caught.value.help == (f"write {name}" if name else "a model on the Hub is called org/name, or hf://org/name")


def test_what_does_not_open_is_called_as_on_the_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hub.put("org/phi", {"model.safetensors": b"no header"})
    found = surgery.verify("org/phi")
    assert not found.ok and found.path == "hf://org/phi"


def test_a_local_folder_needs_no_client(tmp_path: Path) -> None:
    write_phi3(tmp_path / "base", layers=1, hidden=32)
    code = "import sys, surgery; surgery.inspect(sys.argv[1]); assert 'huggingface_hub' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, tmp_path / "base"], check=True)


# Folders


def test_a_folder_is_what_it_is_here(hub: Hub, tmp_path: Path) -> None:
    """Both kinds of folders answer alike."""
    for name in (
        "config.json",
        "a b.txt",
        "sub/x.txt",
        "sub/deeper/y.txt",
        "tub/z.txt",
        "original/params.json",
        "empty",
    ):
        path = tmp_path / "x" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if name == "empty" else name)
    hub.put_folder("org/name", tmp_path / "x")
    hub.put("org/name", {".gitattributes": None})
    here, there = locate(tmp_path / "x")[0], locate("org/name")[0]
    assert there.names() == here.names() and there.names("sub") == here.names("sub") == ["deeper", "x.txt"]
    assert list(there.walk()) == list(here.walk())
    assert list(there.walk(["original", "sub"])) == list(here.walk(["original", "sub"]))
    for name in here.walk():
        assert there.has(name) and there.file(name).size == here.file(name).size
        assert there.read(name) == here.read(name)
    assert not there.has("sub") and not here.has("sub") and there.names("none") == here.names("none") == []
    assert isinstance(here, LocalFolder)


def test_a_large_repository_is_listed_in_pages(hub: Hub, base: Path) -> None:
    hub.page = 2
    assert len(list(locate("org/name")[0].walk())) == 6
    assert len(hub.seen("/tree/")) == 3


def test_inspecting_reads_headers_and_small_files(hub: Hub, base: Path) -> None:
    there, here = surgery.inspect("org/name"), surgery.inspect(base)
    assert (there.total, there.dtypes, there.shards, there.fused, there.targets) == (
        here.total,
        here.dtypes,
        here.shards,
        here.fused,
        here.targets,
    )
    assert set(there.files) - set(here.files) == {".gitattributes"}
    asked = {seen.path.rpartition("/")[2] for seen in hub.seen(GET)}
    assert asked == {"config.json", "model.safetensors.index.json", *(p.name for p in base.glob("*.safetensors"))}
    assert len(hub.seen("GET /file/")) == 2  # one for each shard
    assert len(hub.seen("GET /api/models/org/name")) == 2  # what the branch means, and what is in the commit
    small = sum((base / name).stat().st_size for name in ("config.json", "model.safetensors.index.json"))
    assert sum(seen.sent for seen in hub.seen(GET)) == small + 2 * remote.FIRST


def test_a_large_header_takes_a_second_request(hub: Hub, tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.safetensors", {f"model.layers.{i}.weight": ("F16", (64,)) for i in range(2000)})
    hub.put("org/name", {"model.safetensors": tmp_path / "model.safetensors"})
    assert len(surgery.open_checkpoint("org/name").tensors) == 2000
    data = read_header(str(tmp_path / "model.safetensors"))[1].data
    assert [seen.range for seen in hub.seen(GET)] == [f"bytes=0-{remote.FIRST - 1}", f"bytes={remote.FIRST}-{data - 1}"]


def test_headers_are_read_at_once(hub: Hub, tmp_path: Path) -> None:
    """Of twelve answers that wait for each other, each comes."""
    hub.put_folder("org/name", write_phi3(tmp_path / "base", layers=12, hidden=32))
    together = threading.Barrier(remote.CONNECTIONS, timeout=10)
    fault = hub.fault(Before(together.wait), r"GET .*\.safetensors$", times=12)
    surgery.open_checkpoint("org/name")
    assert fault.fired == 12


def test_what_is_no_safetensors(hub: Hub) -> None:
    page = b"<!DOCTYPE html><html>"
    hub.put("org/name", {"model.safetensors": page})
    with pytest.raises(FormatError, match=f"the file is not safetensors: {len(page)} bytes") as caught:
        surgery.open_checkpoint("org/name")
    hub.put("org/other", {"model.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n"})
    with pytest.raises(FormatError, match="a Git LFS pointer is here in the place of the file"):
        surgery.open_checkpoint("org/other")
    assert re.fullmatch(r"hf://org/name@[0-9a-f]{40}/model\.safetensors", caught.value.where[0])


def test_a_folder_without_weights(hub: Hub, base: Path) -> None:
    hub.put("org/other", {"unet/a.safetensors": base / "model-00001-of-00002.safetensors"})
    with pytest.raises(NotACheckpoint, match="the weights are in subfolders") as caught:
        surgery.open_checkpoint("org/other")
    assert caught.value.help == f"pass one of them: hf://org/other@{hub.repos['org/other'].branches['main']}/unet"
    assert surgery.open_checkpoint(str(caught.value.help).rpartition(" ")[2]).weight_map


# Revisions, folders, files


def test_revisions(hub: Hub, base: Path) -> None:
    repo = hub.repos["org/name"]
    first = repo.branches["main"]
    repo.tags["v1"] = repo.branches["a/b"] = repo.branches["refs/pr/1"] = first
    hub.put("org/name", {"config.json": b'{"model_type": "new"}'})
    for revision in ("v1", first, "a%2Fb", "refs/pr/1", first[:10]):
        opened = surgery.open_checkpoint(f"org/name@{revision}")
        assert opened.path == f"hf://org/name@{first}"
        assert opened.config["model_type"] == "phi3"
    assert surgery.open_checkpoint("org/name").config["model_type"] == "new"
    with pytest.raises(NotOnHub, match="cannot open hf://org/name@v2: there is no such revision"):
        surgery.open_checkpoint("org/name@v2")


def test_subfolders_and_files(hub: Hub, base: Path) -> None:
    hub.put_folder("org/two", base.parent)
    shard = "model-00001-of-00002.safetensors"
    inside = surgery.open_checkpoint("org/two/base")
    assert inside.config["model_type"] == "phi3" and "tokenizer.json" in inside.files
    assert inside.path.endswith("/base")
    assert (
        surgery.open_checkpoint("hf://org/two/base/model.safetensors.index.json").tensors.keys()
        == inside.tensors.keys()
    )
    with pytest.raises(NotACheckpoint, match="1 of 2 shards were given, and no index") as caught:
        surgery.open_checkpoint(f"org/two/base/{shard}")
    assert caught.value.where[0].endswith(f"/base/{shard}")
    with pytest.raises(NotOnHub, match="the repository has no such folder or file") as missing:
        surgery.open_checkpoint("org/two/bas")
    assert str(missing.value.help).startswith("the nearest paths are base")
    with pytest.raises(NotACheckpoint, match="neither safetensors, nor GGUF, nor what torch saves"):
        surgery.open_checkpoint("org/name/.gitattributes")


def test_adapters(hub: Hub, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", {"model.layers.0.x": (8, 6)})
    hub.put_folder("org/adapter", folder)
    assert surgery.is_adapter("org/adapter")
    there, here = surgery.open_adapter("org/adapter"), surgery.open_adapter(folder)
    assert there.digest == here.digest  # so that a base knows what is merged into it, wherever it came from
    assert surgery.inspect("org/adapter").kind == "adapter"
    assert "README.md" not in surgery.inspect("org/adapter").files
    hub.put_folder("org/many", tmp_path)
    with pytest.raises(NotACheckpoint, match=r"no adapter is here: there is no adapter_config\.json") as caught:
        surgery.open_adapter("org/many")
    assert str(caught.value.help).endswith("/a")


# Access


def test_a_private_repository(hub: Hub, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["org/name"].private = True
    assert surgery.open_checkpoint("org/name").tensors
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(NotOnHub, match="there is no such repository, or it is private"):
        surgery.open_checkpoint("org/name")


def test_a_gated_repository(hub: Hub, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["org/name"].gated = True
    monkeypatch.setenv("HF_TOKEN", hub.token("hf_another", "other"))
    with pytest.raises(NotAllowed, match="access to this repository has to be granted"):
        surgery.open_checkpoint("org/name")
    assert len(hub.seen("GET .*/resolve/")) == 1  # asking again would not help


def test_no_token_for_the_second_origin(hub: Hub, base: Path) -> None:
    checkpoint = surgery.open_checkpoint("org/name")
    checkpoint.load("model.layers.0.self_attn.o_proj.weight")
    assert {seen.authorized for seen in hub.log if seen.origin == "cdn"} == {False}
    assert {seen.authorized for seen in hub.log if "/resolve/" in seen.path} == {True}


# Ranges


@pytest.fixture
def blob(hub: Hub) -> tuple[File, bytes]:
    """A file of 3 MB on the second origin, with its content."""
    raw = hashlib.shake_256(b"x").digest(3_000_000)
    hub.put("org/blob", {"x.bin": raw})
    hub.redirect = True
    folder = locate("org/blob")[0]
    hub.log.clear()
    return folder.file("x.bin"), raw


def got(file: File, start: int, end: int) -> bytes:
    return b"".join(remote.fetch(file, start, end))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_range(blob: tuple[File, bytes], data: st.DataObject) -> None:
    file, raw = blob
    start = data.draw(st.integers(0, file.size))
    end = data.draw(st.integers(start, file.size))
    assert got(file, start, end) == raw[start:end]


BROKEN = {
    "reset": Reset(100_000),
    "short": Short(100_000),
    "503": Status(503),
    "500": Status(500),
    "408": Status(408),
    "dropped": Drop(),
}


@pytest.mark.parametrize("origin", ["hub", "cdn"])
@pytest.mark.parametrize("name", BROKEN)
def test_what_passes_is_tried_again(
    hub: Hub, blob: tuple[File, bytes], pauses: list[float], name: str, origin: str
) -> None:
    hub.redirect = origin == "cdn"
    file, raw = blob
    fault = hub.fault(BROKEN[name], GET, times=3, origin=origin)
    assert got(file, 500, 2_000_500) == raw[500:2_000_500]
    assert fault.fired == 3
    assert len(pauses) == 3


def test_it_goes_on_from_the_byte_that_it_reached(hub: Hub, blob: tuple[File, bytes]) -> None:
    hub.redirect = False
    file, raw = blob
    fault = hub.fault(Short(1_000_000), GET, times=2)
    assert got(file, 0, file.size) == raw
    assert fault.fired == 2
    assert [seen.range for seen in hub.seen(GET)] == [f"bytes={n}-2999999" for n in (0, 1_000_000, 2_000_000)]
    assert sum(seen.sent for seen in hub.seen(GET)) == file.size


def test_the_hub_says_how_long_to_wait(hub: Hub, blob: tuple[File, bytes], pauses: list[float]) -> None:
    file, raw = blob
    fault = hub.fault(Status(429, {"Retry-After": "7"}), GET, times=2)
    assert got(file, 0, 10) == raw[:10]
    assert fault.fired == 2
    assert pauses == [8, 8]


def test_failures_in_a_row_are_an_error(hub: Hub, blob: tuple[File, bytes], pauses: list[float]) -> None:
    file, _ = blob
    fault = hub.fault(Status(503), GET, times=100)
    with pytest.raises(HubUnreachable, match="it answers 503, after all tries") as caught:
        got(file, 7, 100)
    assert fault.fired == remote.TRIES
    assert pauses == [1, 2, 4, 8, 8]
    assert caught.value.where[0] == f"{file.path}: byte 7"
    assert TOKEN not in repr(caught.value.__cause__)


def test_short_answers_in_a_row_are_an_error(hub: Hub, blob: tuple[File, bytes]) -> None:
    file, _ = blob
    fault = hub.fault(Short(0), GET, times=100, origin="cdn")
    with pytest.raises(HubUnreachable, match="cannot read from the Hub"):
        got(file, 0, 100)
    assert fault.fired == remote.TRIES


def test_failures_between_progress_are_none(hub: Hub, blob: tuple[File, bytes]) -> None:
    """A bad connection that gives up every 100 kB still brings all."""
    file, raw = blob
    fault = hub.fault(Reset(200_000), GET, times=10, origin="cdn")
    assert got(file, 0, file.size) == raw
    assert fault.fired == 10 > remote.TRIES


@pytest.mark.parametrize(("status", "kind"), [(403, NotAllowed), (404, NotOnHub), (410, SurgeryError)])
def test_what_does_not_pass_is_not_tried_again(
    hub: Hub, blob: tuple[File, bytes], status: int, kind: type[Exception]
) -> None:
    fault = hub.fault(Status(status), GET, times=10, origin="hub")
    with pytest.raises(kind):
        got(blob[0], 0, 10)
    assert fault.fired == 1


def test_slow_bytes_arrive(hub: Hub, blob: tuple[File, bytes], pauses: list[float]) -> None:
    file, raw = blob
    fault = hub.fault(Slow(piece=100_000, pause=0.01), GET, origin="cdn")
    assert got(file, 0, 1_000_000) == raw[:1_000_000]
    assert (fault.fired, pauses) == (1, [])


def test_bytes_that_stop_coming_are_asked_for_again(
    hub: Hub, blob: tuple[File, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    file, raw = blob
    fault = hub.fault(Slow(piece=200_000, pause=2), GET, origin="cdn")
    assert got(file, 0, 1_000_000) == raw[:1_000_000]
    assert fault.fired == 1
    assert [seen.range for seen in hub.seen("GET /file/")] == ["bytes=0-999999", "bytes=200000-999999"]


def test_it_can_be_stopped(hub: Hub, blob: tuple[File, bytes]) -> None:
    """Ctrl-C does not wait for the rest of a slow answer."""
    file, stop = blob[0], threading.Event()
    fault = hub.fault(Slow(piece=1000, pause=0.01), GET, origin="cdn")
    parts = remote.fetch(file, 0, file.size, stop)
    next(parts)
    stop.set()
    with pytest.raises(SurgeryError, match="stopped while reading from the Hub"):
        next(parts)
    assert fault.fired == 1


def test_a_link_is_kept_and_renewed(hub: Hub, blob: tuple[File, bytes], pauses: list[float]) -> None:
    file, raw = blob
    for start in (0, 100, 200):
        assert got(file, start, start + 10) == raw[start : start + 10]
    assert len(hub.seen("/resolve/")) == 1 and len(hub.seen("GET /file/")) == 3
    hub.expire_links()
    assert got(file, 300, 310) == raw[300:310]
    assert [seen.status for seen in hub.log][-3:] == [403, 302, 206]
    assert pauses == []


def test_other_bytes_than_asked_for_are_refused(hub: Hub, blob: tuple[File, bytes]) -> None:
    """A proxy that knows no ranges sends the begin of the file; it must not become the middle of a tensor."""
    file, raw = blob
    fault = hub.fault(Status(200, body=raw), GET)
    with pytest.raises(SourceChanged, match="the Hub sends other bytes of a file than were asked for") as caught:
        got(file, 100, 200)
    assert caught.value.where == (file.path, f"asked for 100-199 of {file.size}, got status 200")
    assert fault.fired == 1
    hub.fault(Status(206, {"Content-Range": "bytes 100-199/5000000"}, raw[100:200]), GET)
    with pytest.raises(SourceChanged, match="the Hub sends other bytes"):
        got(file, 100, 200)


# Whole files


def test_whole_files_have_the_hash_that_the_hub_says(hub: Hub, blob: tuple[File, bytes]) -> None:
    file, raw = blob
    other = raw[:-1] + b"!"
    fault = hub.fault(Status(206, {"Content-Range": f"bytes 0-{len(raw) - 1}/{len(raw)}"}, other), GET, times=2)
    with pytest.raises(SourceChanged, match="a file is not what the Hub says it is") as caught:
        content(file)
    assert caught.value.where == (
        file.path,
        f"its hash is {hashlib.sha256(other).hexdigest()}, not {hashlib.sha256(raw).hexdigest()}",
    )
    assert fault.fired == 1


def test_small_files_have_the_hash_of_git(hub: Hub, base: Path) -> None:
    raw = (base / "config.json").read_bytes().replace(b"phi3", b"phi4")
    fault = hub.fault(Status(206, {"Content-Range": f"bytes 0-{len(raw) - 1}/{len(raw)}"}, raw), "GET .*/config.json")
    with pytest.raises(SourceChanged, match="a file is not what the Hub says it is"):
        _ = surgery.open_checkpoint("org/name").config
    assert fault.fired == 1


def test_files_are_compared_by_what_the_hub_says(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"a" * 1000)
    hub.put("org/a", {"x.bin": b"a" * 1000})
    hub.put("org/b", {"x.bin": b"b" * 1000})
    a, b, here = (locate(path)[0].file("x.bin") for path in ("org/a", "org/b", tmp_path))
    assert same_content(a, here) and same_content(here, a) and not same_content(a, b) and not same_content(b, here)
    assert same_content(b"a" * 1000, a) and not same_content(b"a", a)
    assert hub.seen(GET) == []


# Reading ahead


class Counted:
    """A reader, and what it fetched."""

    def __init__(self, hub: Hub) -> None:
        self.hub, self.reader = hub, Reader()

    def read(self, file: File, at: int, nbytes: int, until: int) -> bytes:
        out = bytearray(nbytes)
        self.reader.read(file, at, memoryview(out), until)
        return bytes(out)

    @property
    def fetched(self) -> tuple[int, int]:
        """(requests, bytes)."""
        seen = self.hub.seen("GET /file/")
        return len(seen), sum(s.sent for s in seen)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2_900_000), st.integers(1, 100_000), st.integers(0, 3_000_000)), max_size=8))
def test_windows_hold_the_right_bytes(hub: Hub, blob: tuple[File, bytes], reads: list[tuple[int, int, int]]) -> None:
    file, raw = blob
    counted = Counted(hub)
    for at, nbytes, until in reads:
        assert counted.read(file, at, nbytes, until) == raw[at : at + nbytes]


@pytest.fixture
def others(hub: Hub) -> list[tuple[File, bytes]]:
    """Three files that differ in each byte."""
    raw = [bytes([number]) * 3_000_000 for number in range(3)]
    hub.put("org/others", {f"{number}.safetensors": content for number, content in enumerate(raw)})
    folder = locate("org/others")[0]
    return [(folder.file(f"{number}.safetensors"), content) for number, content in enumerate(raw)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.integers(0, 1),
            st.integers(0, 8),
            st.sampled_from([100, 29_000, 900_000]),
            st.sampled_from([0, 3_000_000]),
        ),
        max_size=12,
    )
)
def test_a_window_of_one_file_is_never_anothers(
    hub: Hub, others: list[tuple[File, bytes]], reads: list[tuple[int, int, int, int]]
) -> None:
    """Reads of several files in turn, small and large, near and far: the bytes are those of the file that was asked
    for.
    """
    counted = Counted(hub)
    for number, place, nbytes, until in reads:
        file, raw = others[number]
        assert counted.read(file, place * 30_000, nbytes, until) == raw[place * 30_000 : place * 30_000 + nbytes]


def test_a_long_read_of_another_file_ends_the_window(hub: Hub, others: list[tuple[File, bytes]]) -> None:
    (one, first), (other, second), _ = others
    counted = Counted(hub)
    for at in (0, 40_000, 80_000):
        assert counted.read(one, at, 30_000, 2_000_000) == first[at : at + 30_000]
    assert counted.read(other, 1_000_000, 500_000, 1_500_000) == second[1_000_000:1_500_000]
    assert counted.read(other, 120_000, 30_000, 0) == second[120_000:150_000]


def test_reads_one_after_the_other_are_few_requests(hub: Hub, blob: tuple[File, bytes]) -> None:
    file, raw = blob
    counted = Counted(hub)
    for at in range(0, 2_000_000, 10_000):  # with gaps between them
        assert counted.read(file, at, 4_000, 2_000_000) == raw[at : at + 4_000]
    requests, nbytes = counted.fetched
    assert requests <= 12
    assert nbytes <= 2_000_000


def test_reads_far_apart_are_exact(hub: Hub, blob: tuple[File, bytes]) -> None:
    file, raw = blob
    counted = Counted(hub)
    step = NEAR + 8_000
    for at in range(0, 2_000_000, step):
        assert counted.read(file, at, 4_000, 2_000_000) == raw[at : at + 4_000]
    assert counted.fetched == (-(-2_000_000 // step), 4_000 * -(-2_000_000 // step))


def test_long_reads_are_exact(hub: Hub, blob: tuple[File, bytes]) -> None:
    file, raw = blob
    counted = Counted(hub)
    counted.reader = Reader(ahead=1 << 16)
    for at in range(0, 2_000_000, 500_000):
        assert counted.read(file, at, 500_000, 2_000_000) == raw[at : at + 500_000]
    assert counted.fetched == (4, 2_000_000)
    assert AHEAD == 4 << 20


# The local cache


def test_what_is_in_the_cache_is_read_there(hub: Hub, base: Path) -> None:
    snapshot_download("org/name")
    hub.log.clear()
    checkpoint = surgery.open_checkpoint("org/name")
    checkpoint.load("model.layers.1.self_attn.o_proj.weight")
    assert checkpoint.config["model_type"] == "phi3"
    assert hub.seen(GET) == []


def test_what_is_not_in_the_cache_is_fetched(hub: Hub, base: Path) -> None:
    hf_hub_download("org/name", "model-00001-of-00002.safetensors")
    hub.log.clear()
    surgery.open_checkpoint("org/name")
    assert {seen.path.rpartition("/")[2] for seen in hub.seen(r"GET .*\.safetensors$")} == {
        "model-00002-of-00002.safetensors"
    }


def test_another_commit_in_the_cache_is_no_use(hub: Hub, base: Path) -> None:
    snapshot_download("org/name")
    hub.put("org/name", {"config.json": b'{"model_type": "new"}'})
    assert surgery.open_checkpoint("org/name").config["model_type"] == "new"


def test_a_broken_copy_is_not_read(hub: Hub, base: Path) -> None:
    path = hf_hub_download("org/name", "model-00001-of-00002.safetensors")
    os.truncate(os.path.realpath(path), 10)
    hub.log.clear()
    assert surgery.open_checkpoint("org/name").tensors
    assert len(hub.seen("GET /file/.*00001")) == 1


def test_offline_the_cache_is_all(hub: Hub, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    online = surgery.open_checkpoint("org/name")
    snapshot_download("org/name")
    hub.log.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = surgery.open_checkpoint("org/name")
    assert (offline.path, offline.tensors, offline.config) == (online.path, online.tensors, online.config)
    said = (
        "offline: only the files in the cache are known, and others of this commit may be missing: hf download org/name"
        " fetches all"
    )
    assert offline.notes == (said, *online.notes)
    assert surgery.plan(offline).identity == surgery.plan(online).identity
    offline.load("model.layers.1.self_attn.o_proj.weight")
    assert hub.log == []
    with pytest.raises(HubUnreachable, match="offline, and not in the local cache") as caught:
        surgery.open_checkpoint("org/name@v2")
    assert caught.value.help == "unset HF_HUB_OFFLINE, or fetch it where there is a network: hf download org/name"


def test_offline_and_half_in_the_cache(hub: Hub, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hf_hub_download("org/name", "model.safetensors.index.json")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FormatError, match="the index names 2 files that are not there"):
        surgery.open_checkpoint("org/name")


@pytest.mark.parametrize("name", ["config.json", "model-00001-of-00002.safetensors", "tokenizer.json"])
def test_offline_and_a_blob_is_lost(hub: Hub, base: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    snapshot = Path(snapshot_download("org/name"))
    os.unlink(os.path.realpath(snapshot / name))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FormatError, match="a link leads nowhere") as caught:
        surgery.open_checkpoint("org/name")
    assert caught.value.where[0].startswith(str(snapshot / name)) and "hf download org/name" in str(caught.value.help)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_stale_index_there_says_what_to_pass(hub: Hub, base: Path, tmp_path: Path, shards: int) -> None:
    """One file that holds all is passed itself, and opens; several are mended in a copy."""
    folder, names = base, sorted(p.name for p in base.glob("*.safetensors"))
    if shards == 1:
        folder = tmp_path / "one"
        surgery.write(surgery.open_checkpoint(base), folder, "5GB")
        (folder / "model.safetensors").rename(folder / "weights.safetensors")
        names = ["weights.safetensors"]
    index = json.loads((base / "model.safetensors.index.json").read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "gone.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    hub.put_folder("org/stale", folder)
    with pytest.raises(FormatError, match="files that are not there") as caught:
        surgery.open_checkpoint("org/stale")
    said = str(caught.value.help)
    assert said.startswith("the index is stale: ") and all(name in said for name in names)
    if shards == 1:
        assert surgery.open_checkpoint(said.rpartition(" ")[2]).tensors
    else:
        assert "hf download org/stale --local-dir DIR" in said and "surgery reindex DIR" in said


def test_a_process_takes_all_from_its_environment(hub: Hub, base: Path, tmp_path: Path) -> None:
    """HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE."""
    hub.repos["org/name"].private = True
    command = [sys.executable, "-m", "surgery_cli", "inspect", "hf://org/name"]
    run: Callable[..., Any] = lambda **more: subprocess.run(  # noqa: E731
        command, env=environment(hub, tmp_path / "home", **more), capture_output=True, text=True
    )
    assert "phi3" in run().stdout
    offline = run(HF_HUB_OFFLINE="1")
    assert offline.returncode == 1 and "offline, and not in the local cache" in offline.stderr
    assert f"cache: {tmp_path / 'home' / 'hub'}" in offline.stderr
    stranger = run(HF_TOKEN="hf_nobody")
    assert stranger.returncode == 1 and "hf_nobody" not in stranger.stderr + stranger.stdout
    assert "the environment variable HF_TOKEN" in stranger.stderr
