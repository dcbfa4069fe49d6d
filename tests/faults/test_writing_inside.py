"""The law of writing: whatever a record, an index, a manifest or a folder says, nothing is touched but the stage and
the destination.

Each run happens in a child whose every opening for writing, renaming, linking, making, cutting and removing is seen
by an audit hook, which asks the kernel where it leads: what came of it at the end alone would not show what was put
back. Controls show that the watch sees an escape.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import hashes
from forks import ended, started
from handmade import write_adapter, write_tensors
from hostile.names import FAULTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import surgery
from surgery.checkpoint import UNDO
from surgery.errors import SurgeryError
from surgery.execution import writing_inside
from surgery.execution.stage import stage_at, stages
from surgery.execution.writing_inside import Inside
from surgery.files.safetensors import encode_header, in_file_order, read_header, tensors_of
from surgery.lazy.dtypes import DTYPES
from surgery.planning.record import _packed, _unpacked, sealed

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PATHS = {  # where the arguments of an event are paths, and which of them is the folder's descriptor
    "os.rename": ((0, 2), (1, 3)), "os.link": ((1, 3),), "os.symlink": ((1, 2),), "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),), "os.rmdir": ((0, 1),), "os.truncate": ((0, None),), "os.chmod": ((0, 2),), "os.utime": ((0,
    3),),
}  # fmt: skip


def place_of(path: Any, folder: int | None) -> str:
    """Where the kernel would find an entry: its folder with all links resolved, and its own name."""
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}")
    base = os.getcwd() if folder in (None, -1) else os.readlink(f"/proc/self/fd/{folder}")
    parent, name = os.path.split(
        os.path.normpath(os.path.join(base, os.fsdecode(path)))
        if ".." not in os.fsdecode(path)
        else os.path.join(base, os.fsdecode(path))
    )
    return (
        os.path.realpath(os.path.join(parent, name)) if name == ".." else os.path.join(os.path.realpath(parent), name)
    )


def watched(action: Callable[[], object], dest: Path, log: Path) -> list[str]:
    """The events of `action`, run in a child, that touched anything but the destination, its stages and its lock."""
    log.write_text("")
    to = os.open(log, os.O_WRONLY | os.O_APPEND)

    def run() -> None:
        told, real = threading.local(), os.open
        beside = f"{os.path.realpath(dest.parent)}/.{dest.name}.surgery"
        ours = (os.path.realpath(dest.parent) + f"/{dest.name}/", beside)

        def opened(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            told.folder = dir_fd
            try:
                return real(path, flags, mode, dir_fd=dir_fd)
            finally:
                told.folder = None

        def check(event: str, place: str) -> None:
            fine = (
                (place + "/").startswith(ours[0])
                or place.startswith(ours[1])
                or place in (str(dest.parent), os.devnull)
            )
            if not fine:
                os.write(to, f"{event} {place}\n".encode(errors="replace"))

        def hook(event: str, args: tuple[Any, ...]) -> None:
            if event == "open" and isinstance(args[2], int) and args[2] & WRITING and not isinstance(args[0], int):
                place = place_of(args[0], getattr(told, "folder", None))
                follows = not args[2] & (os.O_NOFOLLOW | os.O_EXCL)
                check(event, os.path.realpath(place) if follows else place)
                nameless = args[2] & os.O_TMPFILE == os.O_TMPFILE  # a file without a name in the folder
                with suppress(OSError):
                    if (
                        not args[2] & os.O_EXCL
                        and not nameless
                        and os.stat(place, follow_symlinks=follows).st_nlink > 1
                    ):
                        os.write(to, f"open of a file with two names {place}\n".encode())
            for path, folder in PATHS.get(event, ()):
                fd = args[folder] if folder is not None and folder < len(args) else None
                check(event, place_of(args[path], fd))

        os.open = opened  # type: ignore[assignment]
        sys.addaudithook(hook)
        with suppress(SurgeryError):
            action()

    code = ended(started(run))
    os.close(to)
    assert code == 0, "an error that is none of surgery's"
    return log.read_text().splitlines()


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merge of two shards with an undo record."""
    place = tmp_path_factory.mktemp("inside")
    (base := place / "base").mkdir()
    shards = {f"model-0000{i}-of-00002.safetensors": f"layers.{i}.q_proj.weight" for i in (1, 2)}
    for shard, name in shards.items():
        write_tensors(base / shard, {name: ("F32", (16, 16))})
    index = {"metadata": {}, "weight_map": {name: shard for shard, name in shards.items()}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    (base / "config.json").write_text("{}")
    adapter = write_adapter(place / "adapter", dict.fromkeys(("layers.1.q_proj", "layers.2.q_proj"), (16, 16)))
    opened = surgery.open_checkpoint(base)
    surgery.write(surgery.reversible(surgery.merge(opened, surgery.open_adapter(adapter)), opened), place / "merged")
    surgery.write(surgery.unmerge(surgery.open_checkpoint(place / "merged")), place / "back")  # torch and all is loaded
    assert hashes(place / "back") == hashes(base)
    return place / "merged"


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a neighbour's things in it, which nobody may touch."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(os.path.realpath(folder))
        (root / "home").mkdir()
        (root / "home" / ".profile").write_text("mine")
        (root / "outputs").mkdir()
        yield root


def unmerging(folder: Path, dest: Path, **options: Any) -> None:
    surgery.write(surgery.unmerge(surgery.open_checkpoint(folder)), dest, workers=1, **options)


def resharding(folder: Path, dest: Path, **options: Any) -> None:
    surgery.write(surgery.open_checkpoint(folder), dest, workers=1, **options)


def rewritten(folder: Path, change: Callable[[dict[str, bytes], dict[str, Any]], None]) -> None:
    """The record of a merged folder with `change` made to its blobs and its facts, and its checksums right again."""
    file, header = read_header(str(folder / UNDO))
    raw = (folder / UNDO).read_bytes()
    blobs = {n: _unpacked(raw[t.offset : t.offset + t.nbytes], n) for n, t in tensors_of(file, header).items()}
    facts = json.loads((header.metadata or {})["undo"])
    change(blobs, facts)
    packed = {name: _packed(blob) for name, blob in blobs.items()}
    shapes: Any = {name: (DTYPES["U8"], (len(blob),)) for name, blob in packed.items()}
    (folder / UNDO).write_bytes(
        encode_header(shapes, sealed(json.dumps(facts))) + b"".join(packed[n] for n in in_file_order(shapes))
    )


def with_file(path: str, blobs: dict[str, bytes], facts: dict[str, Any]) -> None:
    blobs[f"file/{path}"] = b"evil"
    facts["files"][path] = {"size": 4, "sha256": hashlib.sha256(b"evil").hexdigest()}


def with_header(path: str, blobs: dict[str, bytes], facts: dict[str, Any]) -> None:
    first = next(name for name in blobs if name.startswith("header/"))
    blobs[f"header/{path}"] = blobs.pop(first)


def with_fact(key: str, value: Any, blobs: dict[str, bytes], facts: dict[str, Any]) -> None:
    facts[key] = value


def elsewhere(root: Path) -> list[str]:
    """Names that would lead to the neighbour's file, or to where something believes it."""
    out = [
        "../home/.profile",
        "../../home/.profile",
        "a/../../home/.profile",
        "..",
        f"{root}/home/.profile",
        "~/.profile",
    ]
    believed = [".surgery/manifest.json", ".surgery/parts/made/x", ".surgery/undo/x", ".git/config", "config.json/x"]
    return [*out, *believed, *(path for path in FAULTS if "\udcff" not in path)]


def check_inside(action: Callable[[Path, Path], object], folder: Path, root: Path) -> None:
    """Nothing but the destination is touched, and the folder that was read and the neighbour's are what they were."""
    before = hashes(folder, without=()), hashes(root / "home", without=())
    assert watched(partial(action, folder, root / "outputs" / "out"), root / "outputs" / "out", root / "log") == []
    assert (hashes(folder, without=()), hashes(root / "home", without=())) == before
    assert {path.name for path in root.iterdir()} <= {"home", "outputs", "log", folder.name}


CHANGES: dict[str, Callable[[str], Callable[[dict[str, bytes], dict[str, Any]], None]]] = {
    "file": lambda path: partial(with_file, path),
    "header": lambda path: partial(with_header, path),
    "stem": lambda path: partial(with_fact, "stem", path),
    "index_name": lambda path: partial(with_fact, "index_name", path),
    "shards": lambda path: partial(with_fact, "shards", [path]),
}


@pytest.mark.parametrize("where", CHANGES)
def test_a_record_names_files_elsewhere(merged: Path, place: Path, where: str) -> None:
    """By each name, in each place where a record has names; as it is, and with shards of another size."""
    for number, path in enumerate(elsewhere(place)):
        folder = Path(shutil.copytree(merged, place / "merged"))
        rewritten(folder, CHANGES[where](path))
        check_inside(partial(unmerging, max_shard_size="2KB" if number % 2 else None), folder, place)
        shutil.rmtree(folder)
        shutil.rmtree(place / "outputs" / "out", ignore_errors=True)


VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=4)
    | st.lists(st.integers(), max_size=2)
    | st.just({"a": 1})
)
KEYS = ["files", "shards", "history", "notes", "stem", "index_name", "format"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from(KEYS), value=VALUES, path=st.text(max_size=6), where=st.sampled_from([*CHANGES, "type", "gone"])
)
def test_any_record(merged: Path, key: str, value: Any, path: str, where: str) -> None:
    """Fields of other types, or missing, and any names: an error of ours, or a base; nothing else is touched."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(os.path.realpath(name))
        for made in ("home", "outputs"):
            (root / made).mkdir()
        folder = Path(shutil.copytree(merged, root / "merged"))
        if where == "gone":
            rewritten(folder, lambda _, facts: facts.pop(key))
        else:
            rewritten(folder, partial(with_fact, key, value) if where == "type" else CHANGES[where](path))
        check_inside(unmerging, folder, root)


@pytest.mark.parametrize("seed", range(3))
def test_an_index_names_files_elsewhere(place: Path, seed: int) -> None:
    """Shards that lie where their names lead to, so that reading finds them."""
    for path in [*elsewhere(place)][seed::3]:
        folder = place / "base"
        folder.mkdir()
        write_tensors(folder / "a.safetensors", {"a": ("F32", (4, 4))})
        target = folder / path
        with suppress(OSError, ValueError):
            if target.resolve().is_relative_to(folder):
                target.parent.mkdir(parents=True, exist_ok=True)
                write_tensors(target, {"b": ("F32", (4, 4))})
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": "a.safetensors", "b": path}})
        )
        check_inside(resharding, folder, place)
        shutil.rmtree(folder)
        shutil.rmtree(place / "outputs" / "out", ignore_errors=True)


def planted(root: Path, identity: str, what: str) -> None:
    """A link of a neighbour's making where a run will write."""
    dest = str(root / "outputs" / "out")
    stage, home = stage_at(dest, identity), root / "home"
    names = {"shard": "model-00001-of-00002.safetensors", "file": "config.json", "manifest": ".surgery/manifest.json"}
    if what == "stage":
        os.symlink(home, stage)
    elif what == "lock":
        os.symlink(home / ".profile", f"{root}/outputs/.out.surgery.lock")
    elif what == "folder":
        os.mkdir(stage)
        os.symlink(home, f"{stage}/.surgery")
    elif what == "parts":
        os.makedirs(f"{stage}/.surgery")
        os.symlink(home, f"{stage}/.surgery/parts")
    elif what == "stray":
        os.mkdir(stage)
        os.symlink(home, f"{stage}/stray")
    elif what in ("gone", "_old"):
        os.symlink(home, f"{root}/outputs/.out.surgery{'-gone' if what == 'gone' else what}")
    elif what.startswith("hard "):
        os.makedirs(f"{stage}/.surgery/parts/made")
        os.link(home / ".profile", f"{stage}/.surgery/parts/made/{names['shard']}")
        os.link(home / ".profile", f"{stage}/{names['file']}")
    else:
        os.makedirs(f"{stage}/.surgery")
        os.symlink(home / ".profile", f"{stage}/{names[what]}")


PLANTED = ["stage", "lock", "folder", "parts", "stray", "gone", "_old", "hard links", "shard", "file", "manifest"]


@pytest.mark.parametrize("what", PLANTED)
def test_a_link_lies_where_a_run_writes(merged: Path, place: Path, what: str) -> None:
    """It is removed, or refused; what it leads to stays, and no link is published."""
    planted(place, surgery.plan(surgery.open_checkpoint(merged)).identity, what)
    check_inside(resharding, merged, place)
    out = place / "outputs" / "out"
    assert not out.is_symlink() or what == "_old"
    if out.exists() and not out.is_symlink():
        assert not [
            path for path in out.rglob("*") if path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1)
        ]
    with suppress(SurgeryError):
        surgery.clean(place / "outputs")
    assert (place / "home" / ".profile").read_text() == "mine"


def test_a_file_called_as_an_unfinished_shard_is_no_shard(merged: Path, place: Path) -> None:
    """A run with links that died, and then one without: the input's file is what it was, whatever its name."""
    folder = Path(shutil.copytree(merged, place / "base", ignore=shutil.ignore_patterns(".surgery")))
    for name in ("model-00001-of-00002.safetensors.part", "scratch.part", "model-00001-of-00002.safetensors.new"):
        (folder / name).write_bytes(b"8 bytes!")
    dest = place / "outputs" / "out"
    before = hashes(folder, without=())

    def stop(step: surgery.Step) -> None:
        if step.kind == "staged":
            raise RuntimeError

    with pytest.raises(RuntimeError):
        resharding(folder, dest, link=True, on_step=stop)
    (left,) = stages(str(dest))
    assert left.endswith("-linked")
    check_inside(resharding, folder, place)
    assert hashes(folder, without=()) == before == hashes(dest)
    assert not stages(str(dest))


ESCAPES: dict[str, Callable[[Path], object]] = {
    "open": lambda home: os.close(os.open(home / "new", os.O_CREAT | os.O_WRONLY)),
    "write": lambda home: (home / ".profile").write_text("theirs"),
    "through a link": lambda home: os.open(home.parent / "outputs" / ".out.surgery-x", os.O_RDWR),
    "by a descriptor": lambda home: os.open("new", os.O_CREAT | os.O_RDWR, dir_fd=os.open(home, os.O_RDONLY)),
    "upwards": lambda home: os.open(
        "../../home/new", os.O_CREAT | os.O_RDWR, dir_fd=os.open(home.parent / "outputs" / "out", os.O_RDONLY)
    ),
    "rename": lambda home: os.rename(home / ".profile", home.parent / "outputs" / "out" / "x"),
    "link": lambda home: os.link(home / ".profile", home / "two"),
    "mkdir": lambda home: os.mkdir(home / "folder"),
    "remove": lambda home: os.unlink(home / ".profile"),
    "truncate": lambda home: os.truncate(home / ".profile", 0),
    "rmtree": lambda home: shutil.rmtree(home),
    "a second name": lambda home: os.open(home.parent / "outputs" / "out" / "two", os.O_WRONLY),
}


@pytest.mark.parametrize("how", ESCAPES)
def test_the_watch_sees_an_escape(place: Path, how: str) -> None:
    (out := place / "outputs" / "out").mkdir()
    os.link(place / "home" / ".profile", out / "two")
    os.symlink(place / "home" / ".profile", place / "outputs" / ".out.surgery-x")
    assert watched(partial(ESCAPES[how], place / "home"), out, place / "log")


def test_the_watch_sees_what_the_rule_of_names_prevents(
    merged: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the rule taken away everywhere, the same record does write elsewhere: it is the rule that holds."""
    folder = Path(shutil.copytree(merged, place / "merged"))
    rewritten(folder, partial(with_file, "../../home/.profile"))
    for module in ("recorded", "outputs"):
        monkeypatch.setattr(f"surgery.planning.{module}.faults_in", lambda paths: [])
    dest = place / "outputs" / "out"
    assert watched(partial(unmerging, folder, dest), dest, place / "log") == []  # the stage refuses it still
    monkeypatch.setattr(writing_inside, "fault_of", lambda path: "")
    assert watched(partial(unmerging, folder, dest), dest, place / "log")
    assert (place / "home" / ".profile").read_text() == "evil"


def test_a_folder_that_does_not_close_is_closed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number may be another thread's by then."""
    (tmp_path / "out").mkdir()
    inside = Inside(str(tmp_path / "out"))
    closed, close = [], os.close

    def failing(fd: int) -> None:
        closed.append(os.fstat(fd).st_ino)  # EBADF at a second time
        close(fd)
        raise OSError(errno.EIO, "it does not close")

    monkeypatch.setattr(os, "close", failing)
    fd = inside.create("a/b/c")
    inside.close()
    monkeypatch.undo()
    os.close(fd)
    assert len(closed) == 4 and (tmp_path / "out/a/b/c").is_file()  # the copy of out, a, a/b, and out itself
