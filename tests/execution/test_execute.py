"""Laws of the executor: the bytes depend on the plan alone, each input byte is read once, and every step is told.

Not on the number of workers, the memory, what the kernel can copy, or what broke before.
"""

from __future__ import annotations

import errno
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import hashes
from forks import beside, forked
from handmade import write_adapter, write_phi3, write_tensors
from safetensors.torch import load_file, save_file

import surgery
from surgery import Step
from surgery.checkpoint import Checkpoint
from surgery.errors import LayoutError, SurgeryError
from surgery.execution.stage import stages
from surgery.execution.writing_inside import part_of
from surgery.files.safetensors import read_header
from surgery.lazy.dtypes import DTYPES
from surgery.lazy.low_rank import LowRank
from surgery.lazy.tensor import Stored, Tensor, Zeros, add, concat, narrow, permute, reshape

crew = importlib.import_module("surgery.execution.crew")
MEMORY, WORKERS = ("20MB", "64MB", "512MB"), (1, 2, 4)


def opened(folder: Path, tensors: Mapping[str, torch.Tensor]) -> Checkpoint:
    """A checkpoint of these tensors, saved at `folder`."""
    folder.mkdir(parents=True)
    save_file(dict(tensors), folder / "model.safetensors")
    return surgery.open_checkpoint(folder)


def extended(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> Checkpoint:
    """The checkpoint with more tensors, in its first shard."""
    shard = min(checkpoint.weight_map.values())
    return replace(
        checkpoint,
        tensors={**checkpoint.tensors, **tensors},
        weight_map={**checkpoint.weight_map, **dict.fromkeys(tensors, shard)},
    )


def whole(folder: Path) -> dict[str, str]:
    return hashes(folder, without=())


def moved(tensor: Tensor) -> Tensor:
    """The same shape, elements elsewhere: rows and columns change places, so that of a sum no block of rows would
    do.
    """
    rows, columns = tensor.shape
    return reshape(permute(reshape(tensor, (rows // 3, 3, columns // 2, 2)), (3, 1, 0, 2)), (rows, columns))


def moved_value(value: torch.Tensor) -> torch.Tensor:
    """`moved`, of a value."""
    rows, columns = value.shape
    return value.view(rows // 3, 3, columns // 2, 2).permute(3, 1, 0, 2).reshape(rows, columns)


def split_and_merged(saved: Callable[..., Path], tmp_path: Path) -> Checkpoint:
    """GPT-2: q, k and v are gathered from columns of a fused matrix, which is merged in two of three layers."""
    base = surgery.open_checkpoint(saved("gpt2", dtype=torch.bfloat16))
    adapter = write_adapter(tmp_path / "adapter", {f"transformer.h.{i}.attn.c_attn": (108, 36) for i in range(2)})
    return surgery.split_qkv(surgery.merge(base, surgery.open_adapter(adapter)))


def odd(saved: Callable[..., Path], tmp_path: Path) -> Checkpoint:
    """Sizes that no tile, window or chunk divides: one row too many, rows longer than a window, sums joined inside a
    row.
    """
    draw = torch.Generator().manual_seed(3)
    shapes = {"tall": (1025, 1003), "tall.l": (1025, 300), "tall.r": (300, 1003)}
    shapes |= {"wide": (3, 700_001), "wide.l": (3, 5), "wide.r": (5, 700_001)}
    values = {n: torch.randn(shape, generator=draw) for n, shape in shapes.items()}
    checkpoint = opened(tmp_path / "base", {**values, "tall": values["tall"].bfloat16()})
    tall = add(checkpoint["tall"], [LowRank(checkpoint["tall.l"], checkpoint["tall.r"], 0.7)])
    wide = add(checkpoint["wide"], [LowRank(checkpoint["wide.l"], checkpoint["wide.r"], 0.3)])
    return extended(
        checkpoint,
        {
            "sum": tall,
            "sum.wide": wide,
            "sum.joined": concat([narrow(tall, 0, 3, 1), narrow(tall, 0, 64, 900), narrow(tall, 0, 1024, 1)], 0),
            "columns": narrow(checkpoint["tall"], 1, 1, 1001),
            "transposed": permute(checkpoint["tall"], (1, 0)),
            "row": narrow(checkpoint["tall"], 0, 1024, 1),
            "zeros": Zeros(DTYPES["BF16"], (1025, 3)),
        },
    )


def scratched(saved: Callable[..., Path], tmp_path: Path) -> Checkpoint:
    """Sums that are needed as a whole, one of them made of another one."""
    draw = torch.Generator().manual_seed(4)
    shapes = {"w": (210, 202), "l": (210, 5), "r": (5, 202), "l2": (210, 3), "r2": (3, 202)}
    checkpoint = opened(tmp_path / "base", {n: torch.randn(shape, generator=draw) for n, shape in shapes.items()})
    once = moved(add(checkpoint["w"], [LowRank(checkpoint["l"], checkpoint["r"], 0.7)]))
    twice = moved(add(once, [LowRank(checkpoint["l2"], checkpoint["r2"], 0.3)]))
    return extended(checkpoint, {"once": once, "twice": twice})


CASES = [split_and_merged, odd, scratched]


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Torch computes in more than one thread outside of workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(2, before))
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("case", CASES)
def test_bytes_do_not_depend_on_workers_memory_or_chunks(
    case: Callable[..., Checkpoint], saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And they are the bytes that `load` gives, which runs in the caller's thread, in one piece."""
    checkpoint = case(saved, tmp_path)
    found = set()
    for chunk in (None, 100_003):
        if chunk:
            monkeypatch.setattr(crew, "COPY_CHUNK", chunk)
            monkeypatch.setattr(crew, "FILL_CHUNK", chunk)
        for workers in WORKERS:
            for memory in MEMORY if workers != 2 else MEMORY[:1]:
                dest = tmp_path / "outputs" / f"{workers}-{memory}-{chunk}"
                surgery.write(checkpoint, dest, workers=workers, memory=memory)
                found.add(tuple(sorted(whole(dest).items())))
    assert len(found) == 1
    values = load_file(dest / "model.safetensors")
    for name in checkpoint.tensors:
        assert values[name].view(torch.uint8).equal(checkpoint.load(name).view(torch.uint8)), name


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("rows", "columns", "rank"), [(70, 100, 5), (3, 1000, 5), (100, 300, 20), (1, 5000, 3)])
def test_a_worker_computes_in_one_thread(tmp_path: Path, rows: int, columns: int, rank: int) -> None:
    """A new thread takes over torch's number of threads late: small sums came out otherwise than in the caller's
    thread.
    """
    draw = torch.Generator().manual_seed(rows)
    checkpoint = opened(
        tmp_path / "base",
        {
            n: torch.randn(s, generator=draw)
            for n, s in {"w": (rows, columns), "l": (rows, rank), "r": (rank, columns)}.items()
        },
    )
    checkpoint = extended(checkpoint, {"sum": add(checkpoint["w"], [LowRank(checkpoint["l"], checkpoint["r"], 0.7)])})
    surgery.write(checkpoint, tmp_path / "out", workers=1)
    assert load_file(tmp_path / "out" / "model.safetensors")["sum"].equal(checkpoint.load("sum"))


def test_torch_is_left_as_it_was(saved: Callable[..., Path], tmp_path: Path) -> None:
    """The caller's number of threads and precision come back, after an error too."""
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        torch.set_num_threads(3)
        torch.set_float32_matmul_precision("medium")
        surgery.write(scratched(saved, tmp_path), tmp_path / "out")
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (3, "medium")
        with pytest.raises(ZeroDivisionError):
            surgery.write(surgery.open_checkpoint(tmp_path / "base"), tmp_path / "out2", on_step=lambda step: 1 // 0)
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (3, "medium")
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])


def test_scratch_is_right_and_no_output(saved: Callable[..., Path], tmp_path: Path) -> None:
    """What is computed before the shards is computed in order, and its file is gone at the end."""
    checkpoint = scratched(saved, tmp_path)
    made = surgery.plan(checkpoint)
    assert made.scratch is not None and len(made.scratch.slots) == 2
    assert made.computed == ("once", "twice")
    assert made.needed == made.nbytes + made.file_bytes + 2 * 210 * 202 * 4
    steps: list[Step] = []
    surgery.execute(made, tmp_path / "out", on_step=steps.append)
    assert {s.name for s in steps if s.kind in ("begun", "filled")} == {"scratch", "model.safetensors"}
    assert whole(tmp_path / "out").keys() == {"model.safetensors", ".surgery/manifest.json"}
    value = load_file(tmp_path / "base" / "model.safetensors")
    once = moved_value(value["w"] + 0.7 * value["l"] @ value["r"])
    twice = moved_value(once + 0.3 * value["l2"] @ value["r2"])
    found = load_file(tmp_path / "out" / "model.safetensors")
    torch.testing.assert_close(found["once"], once, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["twice"], twice, rtol=1e-5, atol=1e-5)


def test_a_plan_with_scratch_depends_on_the_arithmetic(
    saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another torch, or another CPU: another identity, so that no stage of the first is resumed."""
    checkpoint = scratched(saved, tmp_path)
    before = surgery.plan(checkpoint).identity
    monkeypatch.setattr(importlib.import_module("surgery.planning.identity"), "arithmetic_identity", lambda: "another")
    assert surgery.plan(checkpoint).identity != before


def test_scratch_is_made_anew_for_a_resumed_run(saved: Callable[..., Path], tmp_path: Path) -> None:
    """What a broken run left of the scratch file is never trusted; where no shard is missing it is not made at all."""
    checkpoint = scratched(saved, tmp_path)
    surgery.write(checkpoint, tmp_path / "want")
    for kind in ("filled", "staged"):
        dest = tmp_path / "outputs" / kind

        def stop(step: Step, kind: str = kind) -> None:
            if (step.kind, step.name) != ("filled", "scratch") and step.kind == kind:
                raise RuntimeError("stop")

        with pytest.raises(RuntimeError):
            surgery.write(checkpoint, dest, workers=1, on_step=stop)
        (stage,) = map(Path, stages(str(dest)))
        (stage / part_of("scratch", "scratch")).parent.mkdir(parents=True, exist_ok=True)
        (stage / part_of("scratch", "scratch")).write_bytes(b"x" * 1_000_000)
        steps: list[Step] = []
        surgery.write(checkpoint, dest, on_step=steps.append)
        assert any(s.name == "scratch" for s in steps) == (kind == "filled")
        assert whole(dest) == whole(tmp_path / "want")


@pytest.mark.parametrize("memory", ["1MB", 19_999_999])
def test_too_little_memory_for_sums_is_refused(saved: Callable[..., Path], tmp_path: Path, memory: int | str) -> None:
    checkpoint = scratched(saved, tmp_path)
    with pytest.raises(SurgeryError, match="bytes of memory are too few") as info:
        surgery.write(checkpoint, tmp_path / "outputs" / "out", memory=memory)
    assert info.value.help == "this plan needs --memory 20MB or more"
    assert not (tmp_path / "outputs").exists()
    surgery.write(checkpoint, tmp_path / "outputs" / "out", memory="20MB")


def test_too_little_memory_for_copies_is_refused(saved: Callable[..., Path], tmp_path: Path) -> None:
    """They need less; what the help names is enough."""
    checkpoint = surgery.open_checkpoint(saved("llama"))
    with pytest.raises(SurgeryError, match="4000000 bytes of memory are too few") as info:
        surgery.write(checkpoint, tmp_path / "outputs" / "out", memory=4_000_000)
    assert not (tmp_path / "outputs").exists()
    surgery.write(checkpoint, tmp_path / "out", memory=str(info.value.help).split()[4])


@pytest.mark.parametrize("workers", [0, -1])
def test_no_workers_are_refused(saved: Callable[..., Path], tmp_path: Path, workers: int) -> None:
    with pytest.raises(SurgeryError) as info:
        surgery.write(surgery.open_checkpoint(saved("llama")), tmp_path / "outputs" / "out", workers=workers)
    assert info.value.what == f"{workers} workers can do nothing"
    assert info.value.help == "pass --workers 1 or more"
    assert not (tmp_path / "outputs").exists()


def fails(code: int) -> Callable[..., int]:
    def copy(*args: Any, **kwargs: Any) -> int:
        raise OSError(code, os.strerror(code))

    return copy


def copies_nothing(*args: Any) -> int:
    return 0


def copies_a_little(source: int, target: int, count: int, at: int, to: int) -> int:
    return REAL_COPY(source, target, min(count, 1009), at, to)


def copies_a_little_then_nothing(source: int, target: int, count: int, at: int, to: int) -> int:
    return REAL_COPY(source, target, min(count, 1009), at, to) if at % 2 else 0


REAL_COPY = os.copy_file_range
COPIES = {
    "EXDEV": fails(errno.EXDEV),
    "ENOSYS": fails(errno.ENOSYS),
    "EINVAL": fails(errno.EINVAL),
    "EOPNOTSUPP": fails(errno.EOPNOTSUPP),
    "EPERM": fails(errno.EPERM),
    "nothing": copies_nothing,
    "a little": copies_a_little,
    "a little, then nothing": copies_a_little_then_nothing,
}


@pytest.mark.parametrize("copy", COPIES)
def test_copies_without_the_kernel(
    saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copy: str
) -> None:
    """Where the kernel cannot copy, copies less than asked, or stops: the same bytes."""
    checkpoint = surgery.open_checkpoint(saved("llama", shard="40KB"))
    surgery.write(checkpoint, tmp_path / "want", "50KB")
    calls, reads, read = [], [], os.preadv

    def copied(*args: Any) -> int:
        calls.append(args)
        return COPIES[copy](*args)

    def counted(*args: Any) -> int:
        reads.append(args)
        return read(*args)

    plan = surgery.plan(checkpoint, "50KB")  # reads the small files, for their digests
    monkeypatch.setattr(os, "copy_file_range", copied)
    monkeypatch.setattr(os, "preadv", counted)
    surgery.execute(plan, tmp_path / "out")
    assert calls
    assert any(at > 8 for _, _, at in reads) == (copy != "a little")  # headers are read again, and nothing else
    assert whole(tmp_path / "out") == whole(tmp_path / "want")


def test_a_copy_is_cut_into_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor larger than a part is shared by the workers, and told part by part."""
    checkpoint = opened(tmp_path / "base", {"a": torch.randn(250_001), "b": torch.randn(7)})
    monkeypatch.setattr(crew, "COPY_CHUNK", 300_000)
    steps: list[Step] = []
    surgery.write(checkpoint, tmp_path / "out", workers=4, on_step=steps.append)
    begin = surgery.plan(checkpoint).shards[0].slots[0].to  # parts are cut where whole chunks of the file end
    cut = [100_032 + begin, 300_000 - begin, 300_000, 300_000]
    assert sorted(s.nbytes for s in steps if s.kind == "filled") == cut
    data = [(tmp_path / folder / "model.safetensors").read_bytes()[-1_000_032:] for folder in ("base", "out")]
    assert data[0] == data[1]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("workers", [1, 3])
def test_the_steps_tell_every_byte(
    case: Callable[..., Checkpoint], saved: Callable[..., Path], tmp_path: Path, workers: int
) -> None:
    """Headers and filled parts are the shards' bytes, but for zeros, which nobody writes; each tensor is told by name.

    The callback may be slow, and is still called by one thread at a time.
    """
    made = surgery.plan(case(saved, tmp_path))
    steps: list[Step] = []
    inside = threading.Lock()

    def on_step(step: Step) -> None:
        assert inside.acquire(blocking=False)
        time.sleep(0.0005)
        steps.append(step)
        inside.release()

    surgery.execute(made, tmp_path / "outputs" / "out", workers=workers, on_step=on_step)
    for shard in [*made.shards, *([made.scratch] if made.scratch else [])]:
        mine = [s for s in steps if s.name == shard.name]
        zeros = sum(slot.tensor.nbytes for slot in shard.slots if isinstance(slot.tensor, Zeros))
        assert sum(s.nbytes for s in mine if s.kind in ("begun", "filled")) == shard.nbytes - zeros
        computed = {slot.name for slot in shard.slots if not isinstance(slot.tensor, Stored | Zeros)}
        assert {s.tensor for s in mine if s.kind == "filled"} >= computed
    assert {s.name: s.nbytes for s in steps if s.kind == "file"} == {
        name: (tmp_path / "outputs" / "out" / name).stat().st_size for name in made.files
    }
    for shard in made.shards:
        kinds = [s.kind for s in steps if s.name == shard.name]
        assert (kinds[0], kinds[-2], kinds[-1]) == ("begun", "synced", "finished")
        assert kinds.count("begun") == kinds.count("synced") == kinds.count("finished") == 1
    assert [s.kind for s in steps[-2:]] == ["staged", "published"]


def test_the_report_counts_what_was_done(saved: Callable[..., Path], tmp_path: Path) -> None:
    """Tensors by what became of them, files, and all bytes of the output."""
    base = surgery.open_checkpoint(saved("phi3", shard="40KB"))
    modules = ("model.layers.1.self_attn.q_proj", "model.layers.2.self_attn.o_proj")
    adapter = write_adapter(tmp_path / "adapter", dict.fromkeys(modules, (48, 48)))
    made = surgery.drop(surgery.merge(surgery.split_qkv(base), surgery.open_adapter(adapter)), "lm_head.weight")
    report = surgery.write(made, tmp_path / "outputs" / "out", "60KB")
    files = [p for p in (tmp_path / "outputs" / "out").rglob("*") if p.is_file()]
    shards = [p for p in files if p.suffix == ".safetensors"]
    tensors = {n for p in shards for n in read_header(str(p))[1].entries}
    assert report.tensors == len(tensors) == len(base.tensors) - 1 + 3 * 2
    assert (report.computed, report.copied) == (2, len(tensors) - 2)
    assert report.dropped == 1
    assert report.added == len(tensors - set(base.tensors)) == 9
    assert report.shards == len(shards) > 1
    assert report.files == len(files) - len(shards)
    assert report.nbytes == sum(p.stat().st_size for p in files)
    assert report.resumed == 0
    assert [step["surgery"] for step in report.history] == ["split", "merge", "drop"]  # type: ignore[index]
    assert report.seconds > 0


def test_zeros_are_zero_over_what_a_broken_run_left(tmp_path: Path) -> None:
    """Nobody writes them, so an unfinished part must be empty when it is begun again."""
    checkpoint = extended(opened(tmp_path / "base", {"a": torch.ones(3, 5)}), {"zeros": Zeros(DTYPES["F32"], (100, 7))})
    dest = tmp_path / "outputs" / "out"

    def stop(step: Step) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        surgery.write(checkpoint, dest, on_step=stop)
    part = Path(stages(str(dest))[0]) / part_of("model.safetensors")
    part.write_bytes(b"x" * 10_000)
    surgery.write(checkpoint, dest)
    assert not load_file(dest / "model.safetensors")["zeros"].any()


def test_all_is_synced_before_it_gets_its_name(
    saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no test can show by pulling the plug, the order of calls does: written, synced, renamed, and the folder
    synced.
    """
    checkpoint = surgery.open_checkpoint(saved("llama", shard="40KB"))
    dest = tmp_path / "out"
    unsynced: set[str] = set()
    renamed: list[str] = []
    real = {
        name: getattr(os, name)
        for name in ("open", "mkdir", "pwrite", "copy_file_range", "truncate", "fsync", "rename")
    }

    def path_of(fd: int) -> str:
        return os.readlink(f"/proc/self/fd/{fd}")

    def whole_path(path: str, fd: int | None) -> str:
        return os.path.normpath(path if fd is None else os.path.join(path_of(fd), path))

    def made(name: str) -> Callable[..., Any]:
        def call(path: str, *args: Any, dir_fd: int | None = None, **kwargs: Any) -> Any:
            given, path = path, whole_path(path, dir_fd)
            if not os.path.exists(path) and not path.endswith(".lock"):
                unsynced.add(os.path.dirname(path))
            return real[name](given, *args, dir_fd=dir_fd, **kwargs)

        return call

    def wrote(name: str, place: int) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if not path_of(args[place]).endswith(".lock"):  # which says who writes, and may be lost
                unsynced.add(path_of(args[place]))
            return real[name](*args)

        return call

    def fsync(fd: int) -> None:
        real["fsync"](fd)
        unsynced.discard(path_of(fd))

    def rename(old: str, new: str, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        given, old, new = (old, new), whole_path(old, src_dir_fd), whole_path(new, dst_dir_fd)
        assert old not in unsynced
        assert new != str(dest) or not {p for p in unsynced if p.startswith(old + os.sep)}
        real["rename"](*given, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        unsynced.add(os.path.dirname(new))
        renamed.append(os.path.basename(new))

    for name, place in (("pwrite", 0), ("truncate", 0), ("copy_file_range", 1)):
        monkeypatch.setattr(os, name, wrote(name, place))
    for name in ("open", "mkdir"):
        monkeypatch.setattr(os, name, made(name))
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    surgery.write(checkpoint, dest, workers=2)
    assert sorted(renamed) == sorted([*{checkpoint.weight_map[n] for n in checkpoint.tensors}, "out"])
    assert renamed[-1] == "out"
    assert unsynced == set()


@pytest.mark.parametrize("damage", [b"", b"cut", b"x" * 100_000])
def test_a_staged_shard_that_is_not_as_planned_is_made_anew(
    saved: Callable[..., Path], tmp_path: Path, damage: bytes
) -> None:
    """A final name is not believed blindly: header and size must be the plan's."""
    checkpoint = surgery.open_checkpoint(saved("llama", shard="40KB"))
    surgery.write(checkpoint, tmp_path / "want")
    dest = tmp_path / "outputs" / "out"

    def stop(step: Step) -> None:
        if step.kind == "staged":
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        surgery.write(checkpoint, dest, on_step=stop)
    shard = Path(stages(str(dest))[0]) / min(checkpoint.weight_map.values())
    if damage == b"cut":
        os.truncate(shard, shard.stat().st_size - 1)
    else:
        shard.write_bytes(damage)
    steps: list[Step] = []
    surgery.write(checkpoint, dest, on_step=steps.append)
    assert [s.name for s in steps if s.kind == "begun"] == [shard.name]
    assert whole(dest) == whole(tmp_path / "want")


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("kind", [ValueError, SurgeryError, KeyboardInterrupt, SystemExit])
def test_an_error_in_a_worker_reaches_the_caller(
    saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, kind: type[BaseException]
) -> None:
    """It is that very error; the other workers end their part and stop; a rerun resumes."""
    checkpoint = surgery.open_checkpoint(saved("llama", shard="40KB"))
    dest = tmp_path / "outputs" / "out"
    boom = kind("boom")
    real, calls = crew._fill, []

    def fill(*args: Any) -> int:
        calls.append(threading.current_thread())
        if len(calls) == 5:
            raise boom
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(crew, "_fill", fill)
        with pytest.raises(kind) as info:
            surgery.write(checkpoint, dest, workers=workers, on_step=lambda step: time.sleep(0.001))
    assert info.value is boom
    assert threading.main_thread() not in calls
    assert len(calls) < 5 + workers
    for thread in calls:
        thread.join(1)
        assert not thread.is_alive()
    assert beside(dest) == [Path(stages(str(dest))[0]).name]
    surgery.write(checkpoint, tmp_path / "want")
    surgery.write(checkpoint, dest)
    assert whole(dest) == whole(tmp_path / "want")


def test_no_file_stays_open(saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither after a run nor after an error."""
    checkpoint = surgery.open_checkpoint(saved("llama", shard="40KB"))
    surgery.write(checkpoint, tmp_path / "warm")
    before = len(os.listdir("/proc/self/fd"))
    surgery.write(checkpoint, tmp_path / "out")
    for i, call in enumerate(("pwrite", "truncate", "copy_file_range", "fsync", "rename")):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fails(errno.ENOSPC))
            with pytest.raises(SurgeryError):
                surgery.write(checkpoint, tmp_path / "outputs" / str(i))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_leaves_only_the_stage(saved: Callable[..., Path], tmp_path: Path, workers: int) -> None:
    """The main thread is interrupted while the workers work: it waits for their parts, none writes on, a rerun
    resumes.
    """
    checkpoint = surgery.open_checkpoint(saved("llama", shard="40KB"))
    surgery.write(checkpoint, tmp_path / "want")
    dest = tmp_path / "outputs" / "out"

    def run() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        seen: list[str] = []

        def on_step(step: Step) -> None:
            seen.append(step.kind)
            if seen.count("finished") == 2 and step.kind == "finished":
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.3)
                seen.append("locked" if ".out.surgery.lock" in beside(dest) else "no lock")

        with pytest.raises(KeyboardInterrupt):
            surgery.write(checkpoint, dest, workers=workers, on_step=on_step)
        told = len(seen)
        time.sleep(0.5)
        assert len(seen) == told
        assert "locked" in seen
        assert "staged" not in seen

    assert forked(run) == 0
    assert beside(dest) == [Path(stages(str(dest))[0]).name]
    assert surgery.write(checkpoint, dest).resumed > 0
    assert whole(dest) == whole(tmp_path / "want")


def script(text: str, *args: object) -> Any:
    """What a fresh Python prints as JSON when it runs `text` with `args`."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text), *map(str, args)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_zeros_need_no_torch(tmp_path: Path) -> None:
    write_tensors(tmp_path / "base.safetensors", {"a": ("F32", (3, 5))})
    code = """
        import dataclasses, json, sys
        import surgery
        from surgery.lazy.dtypes import BF16
        from surgery.lazy.tensor import Zeros
        checkpoint = surgery.open_checkpoint(sys.argv[1])
        checkpoint = dataclasses.replace(
            checkpoint,
            tensors={**checkpoint.tensors, "zeros": Zeros(BF16, (5, 7))},
            weight_map={**checkpoint.weight_map, "zeros": "base.safetensors"},
        )
        report = surgery.write(checkpoint, sys.argv[2])
        print(json.dumps([report.copied, "torch" in sys.modules]))
    """
    assert script(code, tmp_path / "base.safetensors", tmp_path / "outputs" / "out") == [2, False]
    (shard,) = (tmp_path / "outputs" / "out").glob("*.safetensors")
    zeros = load_file(shard)["zeros"]
    assert zeros.shape == (5, 7) and zeros.dtype == torch.bfloat16 and not zeros.any()


def test_each_input_byte_is_read_once(tmp_path: Path) -> None:
    """Split, merged and sharded anew in one pass: at most 1.1 times the input's bytes are read.

    Counted by the kernel, as `rchar` of a process of its own. What `copy_file_range` copies counts there once (seen on
    Linux 6.18), so a run that reads less than 0.9 times the input would not have been counted.
    """
    base = write_phi3(tmp_path / "base", layers=4, hidden=1408)
    modules = [f"model.layers.{i}.self_attn.{part}" for i in range(4) for part in ("q_proj", "o_proj")]
    adapter = write_adapter(tmp_path / "adapter", dict.fromkeys(modules, (1408, 1408)))
    size = sum(p.stat().st_size for folder in (base, adapter) for p in folder.iterdir())
    assert size > 95e6
    code = """
        import json, sys
        import torch
        import surgery
        from huggingface_hub import split_state_dict_into_shards_factory

        def read():
            return int(open("/proc/self/io").readline().split()[1])

        base, adapter, dest = sys.argv[1:]
        surgery.write(surgery.open_adapter(adapter), dest + "-warm")
        begin = read()
        checkpoint = surgery.merge(surgery.split_qkv(surgery.open_checkpoint(base)), surgery.open_adapter(adapter))
        report = surgery.write(checkpoint, dest, "40MB", workers=2)
        print(json.dumps([read() - begin, report.computed]))
    """
    read, computed = script(code, base, adapter, tmp_path / "outputs" / "out")
    assert computed == 8
    assert 0.9 * size < read < 1.1 * size


PACKED = {"w": ("F4", (6, 10)), "x": ("F4", (4, 3)), "y": ("U8", (5,)), "z": ("F4", (1000, 64))}


def test_packed_tensors_are_copied_byte_for_byte(tmp_path: Path) -> None:
    """Two elements of F4 share a byte; sharding anew does not look at them."""
    write_tensors(tmp_path / "base.safetensors", PACKED)
    base = surgery.open_checkpoint(tmp_path / "base.safetensors")
    report = surgery.write(base, tmp_path / "outputs" / "out", 30)
    assert report.shards > 1
    again = surgery.open_checkpoint(tmp_path / "outputs" / "out")
    assert again.tensors.keys() == base.tensors.keys()
    for name in PACKED:
        assert again[name].shape == base[name].shape and again[name].dtype == base[name].dtype
        assert raw(again[name]) == raw(base[name])


def raw(tensor: Tensor) -> bytes:
    assert isinstance(tensor, Stored)
    with open(tensor.file.path, "rb") as stream:
        stream.seek(tensor.offset)
        return stream.read(math.prod(tensor.shape) * tensor.dtype.bits // 8)


def test_packed_tensors_are_cut_at_whole_bytes_only(tmp_path: Path) -> None:
    """Where a cut fills whole bytes on both sides it is made; inside a byte it is refused by the plan."""
    write_tensors(tmp_path / "base.safetensors", PACKED)
    base = surgery.open_checkpoint(tmp_path / "base.safetensors")
    w = base["w"]
    halves = extended(
        surgery.drop(base, "w"), {"left": narrow(w, 1, 0, 4), "right": narrow(w, 1, 4, 6), "rows": narrow(w, 0, 1, 3)}
    )
    surgery.write(halves, tmp_path / "outputs" / "out")
    out = surgery.open_checkpoint(tmp_path / "outputs" / "out")
    rows = [raw(w)[i : i + 5] for i in range(0, 30, 5)]
    assert raw(out["left"]) == b"".join(r[:2] for r in rows)
    assert raw(out["right"]) == b"".join(r[2:] for r in rows)
    assert raw(out["rows"]) == b"".join(rows[1:4])
    for cut in (narrow(w, 1, 1, 4), narrow(w, 1, 0, 3), narrow(base["x"], 0, 1, 2), permute(w, (1, 0))):
        with pytest.raises(LayoutError, match="cannot cut packed F4 elements inside a byte"):
            surgery.plan(extended(base, {"cut": cut}))
