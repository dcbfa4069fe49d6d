"""Shared blocks: the bytes are those of a copy whatever the file system says, and what is said of sharing is so.

The system's calls are replaced by ones that keep Linux's rules (whole blocks, inside the files) and copy. What a real
Btrfs and XFS do is measured, and compared by hash, by `benchmarks/reflinks.py`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from conftest import hashes
from safetensors.torch import save_file
from typer.testing import CliRunner

import surgery
from surgery.errors import DestinationError, NoSpace, SourceChanged, SurgeryError
from surgery.execution import reflinks
from surgery.planning.sharing import BLOCK
from surgery_cli.app import app


@dataclass
class Blocks:
    """A file system that shares blocks of `block` bytes, and refuses with `error` after `limit` calls."""

    block: int = BLOCK
    error: int = errno.EINVAL
    limit: int = 1 << 30
    calls: int = 0
    ranges: list[tuple[int, int, int]] = field(default_factory=list)
    files: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def share_range(self, source: int, at: int, fd: int, to: int, nbytes: int) -> None:
        self._called()
        if at % self.block or to % self.block or nbytes % self.block or not nbytes:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        data = os.pread(source, nbytes, at)
        assert len(data) == nbytes
        os.pwrite(fd, data, to)
        self.ranges.append((at, to, nbytes))

    def share_file(self, source: int, fd: int) -> None:
        self._called()
        size = os.fstat(source).st_size
        os.pwrite(fd, os.pread(source, size, 0), 0)
        self.files += 1

    def _called(self) -> None:
        with self.lock:
            self.calls += 1
            if self.calls > self.limit:
                raise OSError(self.error, os.strerror(self.error))


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Blocks]:
    """Install a file system that shares blocks."""

    def install(**how: int) -> Blocks:
        blocks = Blocks(**how)
        monkeypatch.setattr(reflinks, "share_range", blocks.share_range)
        monkeypatch.setattr(reflinks, "share_file", blocks.share_file)
        return blocks

    return install


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Two shards of tensors that differ, of which small ones fill no block."""
    folder = tmp_path / "base"
    folder.mkdir()
    draw = torch.Generator().manual_seed(0)
    names = {}
    for shard in (1, 2):
        file = f"model-{shard:05}-of-00002.safetensors"
        made = {
            f"l.{shard}{i}.{n}": torch.randn(size, generator=draw).to(torch.bfloat16)
            for i in range(4)
            for n, size in (("a", 20480), ("b", 30720), ("norm", 512))
        }
        save_file(made, folder / file, metadata={"format": "pt"})
        names |= dict.fromkeys(made, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("x" * 10_000)
    return folder


def copied(base: Path, dest: Path, size: str | None = None, align: str | None = None) -> dict[str, str]:
    """The hashes of what is written without sharing."""
    report = surgery.write(surgery.open_checkpoint(base), dest, size, align=align, reflink="never")
    assert report.shared == 0
    return hashes(dest, without=())


@pytest.mark.parametrize(("size", "align"), [(None, None), ("150KB", None), ("150KB", "auto"), ("1GB", "auto")])
def test_bytes_are_those_of_a_copy(
    base: Path, tmp_path: Path, system: Callable[..., Blocks], size: str | None, align: str | None
) -> None:
    want, blocks = copied(base, tmp_path / "copied", size, align), system()
    report = surgery.write(surgery.open_checkpoint(base), tmp_path / "shared", size, align=align)
    assert hashes(tmp_path / "shared", without=()) == want
    assert (len(blocks.ranges) > 1) == (align is not None)  # one was asked before work
    carried = sum((base / name).stat().st_size for name in ("config.json", "tokenizer.json"))
    planned = surgery.plan(surgery.open_checkpoint(base), size, align=align).shareable.shared
    assert report.shared - carried == planned
    assert report.notes[0].startswith(f"shared with the inputs, block by block: {report.shared} bytes")


def test_untouched_shards_are_one_clone_each(base: Path, tmp_path: Path, system: Callable[..., Blocks]) -> None:
    blocks, steps = system(), list[surgery.Step]()
    surgery.write(surgery.open_checkpoint(base), tmp_path / "out", on_step=steps.append)
    assert [s.name for s in steps if s.kind == "shared" and s.name.endswith("safetensors")] == sorted(
        p.name for p in base.glob("*.safetensors")
    )
    assert blocks.files >= 2 and len(blocks.ranges) == 1  # what was asked before work


def test_never_shares_nothing(
    base: Path, tmp_path: Path, system: Callable[..., Blocks], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor may the kernel, whose own copies may share, where it can."""
    blocks = system()

    def kernel(*_: object) -> int:
        raise AssertionError("the kernel was asked to copy")

    monkeypatch.setattr(os, "copy_file_range", kernel)
    copied(base, tmp_path / "out", "150KB", "auto")
    assert blocks.files == 0 and len(blocks.ranges) == 1


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EXDEV, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY])
@pytest.mark.parametrize("limit", [0, 1, 3])
def test_what_the_system_refuses_is_copied(
    base: Path, tmp_path: Path, system: Callable[..., Blocks], code: int, limit: int
) -> None:
    """Before work, or only then."""
    want, _ = copied(base, tmp_path / "copied", "150KB", "auto"), system(limit=limit, error=code)
    report = surgery.write(surgery.open_checkpoint(base), tmp_path / "out", "150KB", align="auto", workers=1)
    assert hashes(tmp_path / "out", without=()) == want
    said = [note for note in report.notes if note.startswith("copied, since the file system would not share it: ")]
    assert bool(said) == (limit > 0) and all(os.strerror(code) in note for note in said)
    assert (report.shared > 0) == (limit > 1)


def test_a_full_disk_is_no_refusal(base: Path, tmp_path: Path, system: Callable[..., Blocks]) -> None:
    system(limit=2, error=errno.ENOSPC)
    with pytest.raises(NoSpace, match="the disk is full"):
        surgery.write(surgery.open_checkpoint(base), tmp_path / "out", "150KB", align="auto")
    assert not (tmp_path / "out").exists()


def test_larger_blocks_are_found_and_kept_to(
    base: Path, tmp_path: Path, system: Callable[..., Blocks], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system that was made with 16 KiB: 4096 bytes are refused, what it says itself is taken."""
    real = os.fstatvfs

    def large(fd: int) -> os.statvfs_result:
        return os.statvfs_result((1 << 14, *real(fd)[1:]))

    monkeypatch.setattr(os, "fstatvfs", large)
    want, blocks = copied(base, tmp_path / "copied", "150KB", "16KiB"), system(block=1 << 14)
    report = surgery.write(surgery.open_checkpoint(base), tmp_path / "out", "150KB", align="16KiB")
    assert hashes(tmp_path / "out", without=()) == want
    assert len(blocks.ranges) > 1 and report.shared > 0


def test_always_says_what_file_system_cannot(base: Path, tmp_path: Path, system: Callable[..., Blocks]) -> None:
    system(limit=0, error=errno.EOPNOTSUPP)
    with pytest.raises(DestinationError) as caught:
        surgery.write(surgery.open_checkpoint(base), tmp_path / "out", reflink="always")
    kind = reflinks.kind_of(str(tmp_path))
    assert caught.value.what == "files at the destination cannot share blocks with an input: Operation not supported"
    assert f"({kind})" in caught.value.where[0] and f"({kind})" in caught.value.where[1]
    assert "--reflink auto" in (caught.value.help or "")
    assert sorted(os.listdir(tmp_path)) == ["base"]


def test_always_says_how_much_lies_elsewhere(base: Path, tmp_path: Path, system: Callable[..., Blocks]) -> None:
    system()
    made = surgery.plan(surgery.open_checkpoint(base), "150KB")
    with pytest.raises(DestinationError) as caught:
        surgery.execute(made, tmp_path / "out", reflink="always")
    assert caught.value.what.startswith(f"{made.shareable.apart} bytes that stay as they are cannot be shared: ")
    assert "--align auto" in (caught.value.help or "")
    assert sorted(os.listdir(tmp_path)) == ["base"]


def test_always_shares_what_can_be(base: Path, tmp_path: Path, system: Callable[..., Blocks]) -> None:
    system()
    report = surgery.write(surgery.open_checkpoint(base), tmp_path / "out", reflink="always")
    assert report.shared >= sum(p.stat().st_size for p in base.glob("*.safetensors"))
    system(limit=1)
    with pytest.raises(DestinationError, match="the file system refused to share"):
        surgery.write(surgery.open_checkpoint(base), tmp_path / "again", reflink="always")
    assert not (tmp_path / "again").exists()


def test_another_word_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match="`sometimes` is no way to share blocks"):
        surgery.write(surgery.open_checkpoint(base), tmp_path / "out", reflink="sometimes")
    assert sorted(os.listdir(tmp_path)) == ["base"]


def test_links_come_first(base: Path, tmp_path: Path, system: Callable[..., Blocks]) -> None:
    """A hard link where one is wanted; blocks where there can be none."""
    blocks = system()
    report = surgery.write(surgery.open_checkpoint(base), tmp_path / "out", link=True)
    assert report.linked > 0 and report.shared == blocks.files == 0
    second = surgery.write(surgery.open_checkpoint(base), tmp_path / "two", "150KB", align="auto", link=True)
    assert second.shared > 0


def test_an_input_that_changed_is_not_shared_in_silence(
    base: Path, tmp_path: Path, system: Callable[..., Blocks]
) -> None:
    system()
    checkpoint = surgery.open_checkpoint(base)
    shard = next(base.glob("*.safetensors"))
    os.utime(shard, ns=(1, 1))
    with pytest.raises(SourceChanged):
        surgery.write(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_whoever_dies_is_resumed(base: Path, tmp_path: Path, system: Callable[..., Blocks]) -> None:
    """At each step, sharing; the rerun copies all."""
    want, _ = copied(base, tmp_path / "copied", "150KB", "auto"), system()
    checkpoint = surgery.open_checkpoint(base)
    for at in range(0, 30, 3):

        def failing(step: surgery.Step, left: list[int] = [at]) -> None:  # noqa: B006
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt

        dest = tmp_path / f"out{at}"
        try:
            surgery.write(checkpoint, dest, "150KB", align="auto", on_step=failing, workers=1)
        except KeyboardInterrupt:
            surgery.write(checkpoint, dest, "150KB", align="auto", reflink="never")
        assert hashes(dest, without=()) == want


def test_what_a_broken_run_shared_is_made_anew_where_nothing_is_to_be(
    base: Path, tmp_path: Path, system: Callable[..., Blocks], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks, checkpoint = system(), surgery.open_checkpoint(base)

    def failing(step: surgery.Step) -> None:
        if step.kind == "staged":
            raise KeyboardInterrupt

    for mode, shared, resumed in (("never", 4096, False), ("never", 0, True), ("always", 1 << 30, True)):
        with pytest.raises(KeyboardInterrupt):
            surgery.write(checkpoint, tmp_path / "out", on_step=failing)
        monkeypatch.setattr(reflinks, "shared_in", lambda path, n=shared: n)
        report = surgery.write(checkpoint, tmp_path / "out", reflink=mode)
        assert (report.resumed > 0) == resumed
        shutil.rmtree(tmp_path / "out")
    assert blocks.files > 0


def test_the_command_line_shares_and_says_so(base: Path, tmp_path: Path, system: Callable[..., Blocks]) -> None:
    system()
    words = ["reshard", str(base), "--max-shard-size", "0.15MB", "--align", "auto"]
    dry = CliRunner().invoke(app, [*words, "--dry-run"])
    want = surgery.plan(surgery.open_checkpoint(base), "0.15MB", align="auto").shareable.shared
    assert dry.exit_code == 0 and f"{want / 1000:.0f} kB, where the file system shares blocks" in dry.stdout
    done = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "out")])
    assert done.exit_code == 0 and "shared with the inputs, block by block" in done.stdout
    none = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "none"), "--reflink", "never", "--json"])
    assert none.exit_code == 0 and json.loads(none.stdout)["shared"] == 0
    assert hashes(tmp_path / "out", without=()) == hashes(tmp_path / "none", without=())
    told = CliRunner().invoke(app, ["reshard", str(base), "-o", str(tmp_path / "all"), "--reflink", "always"])
    assert told.exit_code == 1 and "bytes that stay as they are cannot be shared" in told.stderr


@pytest.mark.parametrize("words", [["--reflink", "maybe"], ["--align", "17"], ["--align", "some"]])
def test_wrong_usage_has_status_2(base: Path, tmp_path: Path, words: list[str]) -> None:
    done = CliRunner().invoke(app, ["reshard", str(base), "-o", str(tmp_path / "out"), *words])
    assert done.exit_code == 2 and words[0] in done.output
    assert not (tmp_path / "out").exists()


def test_the_kind_of_a_file_system_is_that_of_the_longest_mount() -> None:
    assert reflinks.kind_of("/proc/self/status") == "proc"
    assert reflinks.kind_of("/dev/shm/nothing") == "tmpfs"


def test_extents_of_a_plain_file_are_not_shared(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100_000)
    assert not reflinks.shared_in(str(path))
