"""Laws of destinations: refused before anything is touched, replaced at one moment, and one writer at a time.

What a run leaves beside its destination is its stage, if it failed, and nothing if it did not; `clean` removes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import hashes
from forks import beside, die, dying_at, ended, forked, started
from handmade import write_adapter, write_tensors

import surgery
from surgery.checkpoint import Checkpoint
from surgery.errors import DestinationError, FormatError
from surgery.execution import stage
from surgery.files.manifest import MANIFEST

SIZES = {"a.weight": ("F32", (7, 5)), "b.weight": ("BF16", (64, 3)), "c.bias": ("F32", (1,))}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with a checkpoint and two carried files, one of them in a subfolder."""
    folder = tmp_path / "inputs" / "base"
    (folder / "more").mkdir(parents=True)
    write_tensors(folder / "model.safetensors", SIZES)
    (folder / "config.json").write_text('{"model_type": "none"}')
    (folder / "more" / "notes.txt").write_text("notes")
    return folder


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    (tmp_path / "outputs").mkdir()
    return tmp_path / "outputs" / "out"


def first(source: Path) -> Checkpoint:
    return surgery.drop(surgery.open_checkpoint(source), "c.bias")


def second(source: Path) -> Checkpoint:
    return surgery.rename(surgery.open_checkpoint(source), [("^b", "d")])


def whole(folder: Path) -> dict[str, str]:
    return hashes(folder, without=())


def expected(checkpoint: Checkpoint, tmp_path: Path) -> dict[str, str]:
    """What an undisturbed run writes."""
    place = tmp_path / "expected"
    surgery.write(checkpoint, place / "out")
    found = whole(place / "out")
    shutil.rmtree(place)
    return found


def refused(action: Callable[[], object], what: str, help: str | None = None) -> DestinationError:
    """The DestinationError that `action` raises, with this text and a way out."""
    with pytest.raises(DestinationError) as info:
        action()
    assert info.value.what == what
    assert info.value.help and (help is None or info.value.help == help)
    return info.value


def check_untouched(action: Callable[[], object], what: str, root: Path, help: str | None = None) -> DestinationError:
    """`action` is refused, and below `root` nothing came, went or changed."""
    before = sorted((str(p), os.lstat(p).st_mtime_ns) for p in root.rglob("*"))
    error = refused(action, what, help)
    after = sorted((str(p), os.lstat(p).st_mtime_ns) for p in root.rglob("*"))
    assert [p for p, _ in after] == [p for p, _ in before]
    files = {p for p, _ in before if not os.path.isdir(p)}
    assert [e for e in after if e[0] in files] == [e for e in before if e[0] in files]
    return error


@pytest.mark.parametrize("name", ["out", "new/folders/out", "é ü/out.v1", "my.surgery.out"])
def test_a_new_destination(source: Path, tmp_path: Path, name: str) -> None:
    """Folders on the way are made; no lock, stage or other file is left beside it."""
    dest = tmp_path / "outputs" / name
    report = surgery.write(first(source), dest)
    assert report.output == str(dest)
    assert whole(dest) == expected(first(source), tmp_path)
    assert beside(dest) == []


def test_a_relative_destination(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = surgery.write(first(source), "outputs/out/")
    assert report.output == str(tmp_path / "outputs" / "out")
    assert whole(tmp_path / "outputs" / "out") == expected(first(source), tmp_path)
    assert beside(tmp_path / "outputs" / "out") == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_empty_folder_is_as_good_as_none(source: Path, dest: Path, tmp_path: Path, overwrite: bool) -> None:
    dest.mkdir()
    surgery.write(first(source), dest, overwrite=overwrite)
    assert whole(dest) == expected(first(source), tmp_path)
    assert beside(dest) == []


def test_a_run_beside_other_files(source: Path, dest: Path) -> None:
    """What lies beside the destination is not ours."""
    others = {".out": "1", "out2": "2", ".surgery": "3", ".out.surgeryx": "4"}
    for name, text in others.items():
        (dest.parent / name).write_text(text)
    surgery.write(first(source), dest)
    surgery.clean(dest)
    surgery.clean(dest.parent)
    assert {name: (dest.parent / name).read_text() for name in beside(dest)} == others


def test_an_existing_destination_is_refused(source: Path, dest: Path) -> None:
    dest.mkdir()
    (dest / "thesis.txt").write_text("years")
    check_untouched(
        partial(surgery.write, first(source), dest),
        "the destination exists",
        dest.parent,
        "choose another with -o: surgery did not write this one",
    )


def test_what_surgery_did_not_write_is_never_overwritten(source: Path, dest: Path) -> None:
    dest.mkdir()
    write_tensors(dest / "model.safetensors", SIZES)
    check_untouched(
        partial(surgery.write, first(source), dest, overwrite=True),
        "the destination was not written by surgery, so --overwrite does not touch it",
        dest.parent,
        "choose another output with -o",
    )


def test_foreign_files_in_an_old_output_are_never_overwritten(source: Path, dest: Path) -> None:
    """They are named: files, hidden ones, files in subfolders, links to files and to folders."""
    surgery.write(first(source), dest)
    (dest / "thesis.txt").write_text("years")
    (dest / ".hidden").write_text("")
    (dest / "more" / "photo.jpg").write_text("")
    (dest / "link").symlink_to(source / "config.json")
    (dest / "tree").symlink_to(source)
    error = check_untouched(
        partial(surgery.write, second(source), dest, overwrite=True),
        "the destination holds 5 files that surgery did not write",
        dest.parent,
        "move them away, or choose another output with -o",
    )
    assert error.where == (str(dest), ".hidden", "link", "more/photo.jpg", "thesis.txt", "tree")


def test_a_foreign_file_that_comes_during_the_run_is_not_overwritten(source: Path, dest: Path) -> None:
    """Hours may lie between the look at the destination and its replacement."""
    surgery.write(first(source), dest)
    before = whole(dest)

    def put(step: surgery.Step) -> None:
        if step.kind == "staged":
            (dest / "thesis.txt").write_text("years")

    refused(
        partial(surgery.write, second(source), dest, overwrite=True, on_step=put),
        "the destination holds 1 files that surgery did not write",
    )
    assert whole(dest).items() >= before.items()
    assert (dest / "thesis.txt").read_text() == "years"


def test_a_destination_that_comes_during_the_run_is_refused(source: Path, dest: Path, tmp_path: Path) -> None:
    """It stays as it is; after it is moved away, a rerun needs to make nothing."""

    def put(step: surgery.Step) -> None:
        if step.kind == "staged":
            dest.mkdir()
            (dest / "thesis.txt").write_text("years")

    refused(partial(surgery.write, first(source), dest, on_step=put), "the destination appeared while we were writing")
    assert sorted(p.name for p in dest.iterdir()) == ["thesis.txt"]
    shutil.rmtree(dest)
    steps: list[surgery.Step] = []
    surgery.write(first(source), dest, on_step=steps.append)
    assert "begun" not in {s.kind for s in steps}
    assert whole(dest) == expected(first(source), tmp_path)


def test_a_broken_manifest_is_an_error(source: Path, dest: Path) -> None:
    surgery.write(first(source), dest)
    (dest / MANIFEST).write_text("{")
    before = whole(dest)
    with pytest.raises(FormatError):
        surgery.write(second(source), dest, overwrite=True)
    assert whole(dest) == before


@pytest.mark.parametrize("atomic", [True, False])
def test_overwriting_replaces_all_of_the_old_output(
    source: Path, dest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, atomic: bool
) -> None:
    """Nothing of the old one stays, whether the file system can exchange two folders or not."""
    surgery.write(surgery.open_checkpoint(source), dest, max_shard_size=200)
    old = whole(dest)
    real, calls = stage.exchange, []

    def spied(a: str, b: str) -> bool:
        calls.append((a, b))
        return real(a, b) if atomic else False

    monkeypatch.setattr(stage, "exchange", spied)
    steps: list[surgery.Step] = []
    surgery.write(second(source), dest, overwrite=True, on_step=steps.append)
    assert whole(dest) == expected(second(source), tmp_path)
    assert old.keys() - whole(dest).keys()
    (staged,) = [s.name for s in steps if s.kind == "staged"]
    assert calls == [(staged, str(dest))]
    assert beside(dest) == []


def test_two_folders_change_places_at_once(tmp_path: Path) -> None:
    """`exchange` is one step where the file system can; a path that is not there is an error, not a fallback."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    if not stage.exchange(str(tmp_path / "a"), str(tmp_path / "b")):
        pytest.skip("no exchange of folders here")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["a"]
    with pytest.raises(FileNotFoundError):
        stage.exchange(str(tmp_path / "a"), str(tmp_path / "c"))


def test_overwriting_with_the_same_plan_mends_a_changed_output(source: Path, dest: Path, tmp_path: Path) -> None:
    surgery.write(first(source), dest)
    raw = bytearray((dest / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (dest / "model.safetensors").write_bytes(raw)
    (dest / "config.json").unlink()
    surgery.write(first(source), dest, overwrite=True, discard_edits=True)
    assert whole(dest) == expected(first(source), tmp_path)


def test_a_changed_output_on_its_way_out_is_not_resumed(source: Path, dest: Path, tmp_path: Path) -> None:
    """Killed right after the exchange: what then lies in the stage's place has the plan's own identity, and wrong
    bytes.
    """
    surgery.write(first(source), dest)
    raw = bytearray((dest / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (dest / "model.safetensors").write_bytes(raw)

    def run() -> None:
        stage._discard = die
        surgery.write(first(source), dest, overwrite=True)

    assert forked(run) < 0
    assert whole(dest) == expected(first(source), tmp_path)
    assert len(stage.stages(str(dest))) == 1
    assert surgery.write(first(source), dest, overwrite=True).resumed == 0
    assert whole(dest) == expected(first(source), tmp_path)
    assert beside(dest) == []


def killed_between_the_renames(source: Path, dest: Path, renames: int) -> None:
    """An overwrite without exchange, killed after so many of its renames: `dest` -> aside, stage -> `dest`."""
    surgery.write(first(source), dest)

    def run() -> None:
        stage.exchange = lambda a, b: False  # type: ignore[assignment]
        real, done = os.rename, 0

        def rename(a: str, b: str, **folders: int) -> None:
            nonlocal done
            real(a, b, **folders)
            done += str(dest) in (a, b)
            if done == renames:
                die()

        os.rename = rename  # type: ignore[assignment]
        surgery.write(second(source), dest, overwrite=True)

    assert forked(run) < 0
    assert (dest.parent / ".out.surgery_old").is_dir()
    assert dest.exists() == (renames == 2)


def test_the_next_run_recovers_from_between_the_renames(source: Path, dest: Path, tmp_path: Path) -> None:
    """It puts the old output back, and publishes what was staged."""
    killed_between_the_renames(source, dest, 1)
    report = surgery.write(second(source), dest, overwrite=True)
    assert report.resumed > 0
    assert whole(dest) == expected(second(source), tmp_path)
    assert beside(dest) == []


def test_the_next_run_recovers_even_where_it_is_refused(source: Path, dest: Path, tmp_path: Path) -> None:
    """Without --overwrite the old output is back in its place, and stays."""
    killed_between_the_renames(source, dest, 1)
    refused(partial(surgery.write, second(source), dest), "the destination exists")
    assert whole(dest) == expected(first(source), tmp_path)


@pytest.mark.parametrize("parent", [False, True])
def test_clean_recovers_from_between_the_renames(source: Path, dest: Path, tmp_path: Path, parent: bool) -> None:
    """The old output is back, the stage is gone."""
    killed_between_the_renames(source, dest, 1)
    (staged,) = stage.stages(str(dest))
    assert [path for path, _ in surgery.clean(dest.parent if parent else dest)] == [staged]
    assert whole(dest) == expected(first(source), tmp_path)
    assert beside(dest) == []


@pytest.mark.parametrize("recover", ["run", "clean"])
def test_after_the_second_rename_the_new_output_stands(source: Path, dest: Path, tmp_path: Path, recover: str) -> None:
    killed_between_the_renames(source, dest, 2)
    assert whole(dest) == expected(second(source), tmp_path)
    if recover == "run":
        surgery.write(second(source), dest, overwrite=True)
    else:
        surgery.clean(dest)
    assert whole(dest) == expected(second(source), tmp_path)
    assert beside(dest) == []


def test_a_link_is_refused(source: Path, dest: Path) -> None:
    """A rename would replace the link and not what it points to; to a folder, to a file, to nothing."""
    (dest.parent / "real").mkdir()
    (dest.parent / "file").write_text("")
    for target in ("real", "file", "nothing"):
        dest.symlink_to(target)
        error = check_untouched(
            partial(surgery.write, first(source), dest), "the destination is a symbolic link", dest.parent
        )
        assert error.where == (f"{dest} -> {target}",)
        assert str(dest / "model") in str(error.help)
        dest.unlink()


def test_a_file_is_refused(source: Path, dest: Path) -> None:
    dest.write_text("years")
    for overwrite in (False, True):
        check_untouched(
            partial(surgery.write, first(source), dest, overwrite=overwrite),
            "the destination is a file",
            dest.parent,
            "choose another output with -o",
        )


def test_a_mount_point_is_refused(source: Path) -> None:
    """A whole disk as destination: its subfolder is the way out."""
    assert os.path.ismount("/proc")
    refused(
        partial(surgery.write, first(source), "/proc"),
        "the destination is a mount point, which no rename can replace",
        "write into a subfolder: -o /proc/model",
    )


def test_a_file_as_parent_is_refused(source: Path, dest: Path) -> None:
    dest.write_text("years")
    error = check_untouched(
        partial(surgery.write, first(source), dest / "out"), "cannot write the output: File exists", dest.parent
    )
    assert error.where == (str(dest),)


INSIDE, AROUND = "the destination is inside or equal to an input", "the destination is a folder that holds an input"


@pytest.mark.parametrize(
    ("place", "what"),
    [("inputs/base", INSIDE), ("inputs/base/out", INSIDE), ("inputs/base/more/a/b", INSIDE), ("inputs", AROUND)],
)
@pytest.mark.parametrize("link", ["none", "source", "destination", "both"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_source_and_destination_may_not_hold_each_other(
    source: Path, tmp_path: Path, place: str, what: str, link: str, overwrite: bool
) -> None:
    """Inside, equal, around; also where either is reached through a link."""
    (tmp_path / "link").symlink_to(tmp_path / "inputs")
    via = tmp_path / "link"
    opened = surgery.open_checkpoint(via / "base" if link in ("source", "both") else source)
    dest = via / Path(place).relative_to("inputs") if link in ("destination", "both") else tmp_path / place
    if dest == via:  # a link itself is refused as such
        what = "the destination is a symbolic link"
    error = check_untouched(partial(surgery.write, opened, dest, overwrite=overwrite), what, tmp_path)
    assert str(dest) in error.where[0]


def test_an_adapter_is_an_input_too(source: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapters" / "one", {"a": (7, 5)})
    merged = surgery.merge(surgery.open_checkpoint(source), surgery.open_adapter(adapter))
    check_untouched(partial(surgery.write, merged, adapter / "out"), INSIDE, tmp_path)
    check_untouched(partial(surgery.write, merged, adapter), INSIDE, tmp_path)
    check_untouched(partial(surgery.write, merged, adapter.parent), AROUND, tmp_path)


@pytest.fixture
def snapshot(source: Path, tmp_path: Path) -> Path:
    """A Hub cache: a snapshot of links to blobs."""
    root = tmp_path / "hub" / "models--x--y"
    (root / "blobs").mkdir(parents=True)
    folder = root / "snapshots" / "0123"
    folder.mkdir(parents=True)
    for i, name in enumerate(("model.safetensors", "config.json")):
        shutil.copy(source / name, root / "blobs" / str(i))
        (folder / name).symlink_to(Path("..", "..", "blobs", str(i)))
    return folder


@pytest.mark.parametrize(
    ("place", "what"),
    [(".", INSIDE), ("out", INSIDE), ("..", AROUND), ("../..", AROUND), ("../../blobs", AROUND), ("../../..", AROUND)],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_hub_cache_is_never_written_to(
    snapshot: Path, tmp_path: Path, place: str, what: str, overwrite: bool
) -> None:
    """Neither the snapshot nor the blobs that its links point to."""
    dest = Path(os.path.normpath(snapshot / place))
    check_untouched(
        partial(surgery.write, surgery.open_checkpoint(snapshot), dest, overwrite=overwrite), what, tmp_path
    )


def test_a_hub_cache_can_be_read(snapshot: Path, dest: Path) -> None:
    """The output holds files, not links."""
    surgery.write(surgery.open_checkpoint(snapshot), dest)
    assert not any(p.is_symlink() for p in dest.rglob("*"))
    assert hashes(dest).keys() == {"model.safetensors", "config.json"}


@pytest.mark.parametrize("linked", ["model.safetensors", "config.json"])
def test_an_old_output_that_an_input_links_into_is_not_overwritten(
    source: Path, dest: Path, tmp_path: Path, linked: str
) -> None:
    """The inputs' files may lie elsewhere than their folder: overwriting would remove them."""
    surgery.write(surgery.open_checkpoint(source), dest)
    links = tmp_path / "links"
    shutil.copytree(source, links)
    (links / linked).unlink()
    (links / linked).symlink_to(dest / linked)
    with surgery.following_links():
        error = check_untouched(partial(surgery.write, first(links), dest, overwrite=True), AROUND, tmp_path)
    assert error.where == (str(dest), f"input {dest / linked}")


@contextmanager
def running(source: Path, dest: Path, **options: Any) -> Iterator[None]:
    """A run of another process, held in its middle; it goes on at the end, and must succeed."""
    began, go_on = os.pipe(), os.pipe()

    def hold(step: surgery.Step) -> None:
        if step.kind == "finished":
            os.write(began[1], b".")
            os.read(go_on[0], 1)

    child = started(partial(surgery.write, first(source), dest, on_step=hold, **options))
    try:
        os.close(began[1])
        assert os.read(began[0], 1)
        yield
    finally:
        os.write(go_on[1], b".")
        assert ended(child) == 0
        for fd in (began[0], *go_on):
            os.close(fd)


def test_two_runs_at_once(source: Path, dest: Path, tmp_path: Path) -> None:
    """The second is refused, whatever it would write, and the first does not notice."""
    with running(source, dest):
        assert (dest.parent / ".out.surgery.lock").exists()
        for checkpoint in (first(source), second(source)):
            error = refused(
                partial(surgery.write, checkpoint, dest),
                "another run is writing there",
                "wait for it, or choose another output",
            )
            assert error.where[0] == str(dest)
        assert (dest.parent / ".out.surgery.lock").exists()
        surgery.write(second(source), dest.parent / "out2")
    assert whole(dest) == expected(first(source), tmp_path)
    assert beside(dest) == ["out2"]


def test_clean_does_not_disturb_a_run(source: Path, dest: Path, tmp_path: Path) -> None:
    with running(source, dest):
        for folder in (dest, dest.parent):
            refused(partial(surgery.clean, folder), "another run is writing there")
        assert len(stage.stages(str(dest))) == 1
    assert whole(dest) == expected(first(source), tmp_path)
    assert beside(dest) == []


def test_the_lock_is_free_after_a_failure(source: Path, dest: Path) -> None:
    """After an error its file is gone; after a kill it lies there, and nobody minds."""

    def fail(step: surgery.Step) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        surgery.write(first(source), dest, on_step=fail)
    assert beside(dest) == [Path(stage.stages(str(dest))[0]).name]
    assert forked(partial(surgery.write, first(source), dest, on_step=dying_at(1))) < 0
    assert ".out.surgery.lock" in beside(dest)
    surgery.write(first(source), dest)
    assert beside(dest) == []


def test_a_lock_that_was_removed_under_us_is_taken_again(
    source: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening the file and locking it, its owner may end and remove it: then what we hold locks nothing."""
    real, removed = fcntl.flock, []

    def flock(fd: int, operation: int) -> None:
        if not removed:
            removed.append(os.unlink(dest.parent / ".out.surgery.lock"))
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    seen: list[bool] = []
    surgery.write(first(source), dest, on_step=lambda step: seen.append((dest.parent / ".out.surgery.lock").exists()))
    assert removed and all(seen)
    assert beside(dest) == []


def left_by_a_killed_run(source: Path, dest: Path) -> str:
    """The stage that a run leaves which dies after its first shard."""
    assert forked(partial(surgery.write, first(source), dest, workers=1, on_step=dying_at(5))) < 0
    (left,) = stage.stages(str(dest))
    return left


@pytest.mark.parametrize("name", ["out", "my.surgery.out", "é ü"])
@pytest.mark.parametrize("parent", [False, True])
def test_clean_removes_what_a_killed_run_left(source: Path, tmp_path: Path, name: str, parent: bool) -> None:
    """By the destination's path or by the folder around it; each removed path comes back with its bytes on disk."""
    dest = tmp_path / "outputs" / name
    left = left_by_a_killed_run(source, dest)
    size = sum(p.lstat().st_blocks * 512 for p in Path(left).rglob("*") if not p.is_dir())
    assert size > 0
    assert surgery.clean(dest.parent if parent else dest) == ((left, size),)
    assert beside(dest) == []
    assert surgery.clean(dest) == ()


def test_clean_of_a_folder_does_all_destinations_in_it(source: Path, tmp_path: Path) -> None:
    left = [left_by_a_killed_run(source, tmp_path / "outputs" / name) for name in ("a", "b", "a.surgery-b")]
    surgery.write(first(source), tmp_path / "outputs" / "whole")
    before = whole(tmp_path / "outputs" / "whole")
    assert sorted(path for path, _ in surgery.clean(tmp_path / "outputs")) == sorted(left)
    assert [p.name for p in (tmp_path / "outputs").iterdir()] == ["whole"]
    assert whole(tmp_path / "outputs" / "whole") == before


def test_clean_of_one_destination_leaves_the_others(source: Path, tmp_path: Path) -> None:
    """Also where a name begins as another one's stage would."""
    names = ("a", "b", "a.surgery-b")
    left = {name: left_by_a_killed_run(source, tmp_path / "outputs" / name) for name in names}
    surgery.clean(tmp_path / "outputs" / "a")
    assert [name for name in names if os.path.exists(left[name])] == ["b", "a.surgery-b"]


def test_clean_where_there_is_nothing(source: Path, dest: Path, tmp_path: Path) -> None:
    """Whole outputs and foreign files are not touched; a folder that is not there is no error."""
    surgery.write(first(source), dest)
    before = whole(tmp_path)
    for folder in (dest, dest.parent, source, tmp_path / "nowhere"):
        assert surgery.clean(folder) == ()
    assert whole(tmp_path) == before


def test_clean_finishes_a_removal(source: Path, dest: Path, tmp_path: Path) -> None:
    """An old output that is half removed goes as a whole, by a run or by `clean`."""
    surgery.write(first(source), dest)

    def run() -> None:
        os.unlink = die  # type: ignore[assignment]
        surgery.write(second(source), dest, overwrite=True)

    assert forked(run) < 0
    assert whole(dest) == expected(second(source), tmp_path)
    (left,) = stage.stages(str(dest))
    assert [path for path, _ in surgery.clean(dest)] == [left]
    assert beside(dest) == []
