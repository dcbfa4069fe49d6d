"""Command × call × fault: each call of a command fails, is cut short, or is its last; what must hold is looked at."""

from __future__ import annotations

import errno
import hashlib
import random
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from . import KILL, SHORT, Ended, Watch, run
from .crashes import Op, hasty, lasting, ops_in, states
from .jobs import Job, reset

ERRORS = ("ENOSPC", "EIO", "EROFS", "EACCES", "EDQUOT", "EMFILE", "ENOMEM", "EINTR")
FAULTS: Mapping[str, int] = {**{name: getattr(errno, name) for name in ERRORS}, "short": SHORT, "kill": KILL}
CHANGING = frozenset(
    "pwrite write copy_file_range sendfile ftruncate fsync rename exchange link unlink rmdir mkdir".split()
)
CUT = frozenset("read pread preadv pwrite write copy_file_range sendfile".split())  # what can be cut short
LOOKING = frozenset("lstat64 stat64 fstat64 fstatat64 readdir".split())  # of these there are hundreds

Tree = Mapping[str, bytes]


def tree(folder: Path) -> Tree | None:
    """What lies in a folder: the content of each file by its path, links as what they lead to; None: no folder."""
    if not folder.is_dir():
        return None
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = b"-> " + str(path.readlink()).encode()
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).digest()
        else:
            found[name] = b"folder"
    return found


@dataclass(frozen=True)
class Case:
    """The call number `k` of a command, called `call`, and what becomes of it."""

    k: int
    call: str
    fault: str


@dataclass(frozen=True)
class Undisturbed:
    """What a command makes of its inputs where nothing happens, what stood there before, and its calls."""

    inputs: Tree
    old: Tree | None
    new: Tree
    calls: tuple[str, ...]


def undisturbed(job: Job, root: Path, scratch: Path) -> Undisturbed:
    """The command as it should be; the second run, whose calls are told, has what caches hold."""
    for _ in range(2):
        reset(root, job)
        old, names = tree(root / job.dest), scratch / "names"
        ended = run(job.words.split(), root, scratch, Watch(names=names))
        assert ended.status == 0, ended.stderr
    new = tree(root / job.dest)
    assert new and new != old
    return Undisturbed(tree(root / "in") or {}, old, new, called_in(names))


def called_in(names: Path) -> tuple[str, ...]:
    """The calls that were written down there, in order."""
    return tuple(line.split("\t")[0] for line in names.read_text().splitlines())


def cases(calls: tuple[str, ...], *, each: int, looks: int, seed: int = 0) -> Iterator[Case]:
    """`each` faults for each call, drawn so that all come about equally often, and an end before each call that
    changes something; of those that only look, one in `looks`.
    """
    drawn = random.Random(seed)
    for k, call in enumerate(calls, 1):
        if call in LOOKING and (k + seed) % looks:
            continue
        kinds = [name for name in FAULTS if name != "kill" and (name != "short" or call in CUT)]
        for fault in drawn.sample(kinds, min(each if call not in LOOKING else 1, len(kinds))):
            yield Case(k, call, fault)
        if call in CHANGING or call == "open":
            yield Case(k, call, "kill")


def broken(case: Case, job: Job, whole: Undisturbed, root: Path, scratch: Path) -> list[str]:
    """The laws that a case breaks, in words: none, as it should be."""
    reset(root, job)
    names = scratch / "names"
    ended = run(job.words.split(), root, scratch, Watch(k=case.k, what=FAULTS[case.fault], names=names))
    called = called_in(names)  # threads may have come in another order
    case = replace(case, call=called[case.k - 1] if case.k <= len(called) else "none")
    found = [*after(ended, case, job, whole, root), *again(job, whole, root, scratch)]
    return [f"{case.call} #{case.k} {case.fault}: {one}" for one in found]


def _at(job: Job, root: Path) -> Tree | None:
    """What is at the destination; of a command that writes in the folder itself, without what it has not finished."""
    found = tree(root / job.dest)
    if found is None or not job.inside:
        return found
    return {name: content for name, content in found.items() if not name.startswith(".surgery-index-")}


def after(ended: Ended, case: Case, job: Job, whole: Undisturbed, root: Path) -> Iterator[str]:
    """What is wrong after a command to which this happened: nothing, as it should be."""
    dest = _at(job, root)
    if tree(root / "in") != whole.inputs:
        yield "an input is changed"
    if dest not in (whole.old, whole.new):
        yield f"the destination is neither old nor new: {_unlike(dest, whole.new)}"
    if ended.status == 0 and dest != whole.new:
        yield "it says that it is done, and it is not"
    yield from strange(job, root)
    if ended.killed:
        if case.fault != "kill":
            yield "it was killed"
        return
    left = [path.name for path in (root / "tmp").iterdir()]
    if left and case.call not in ("unlink", "rmdir", "opendir", "open", "close", *LOOKING):
        yield f"temporary files are left: {left}"
    if "Traceback" in ended.stderr or ended.status not in (0, 1):
        yield f"it ends with {ended.status}: {ended.said}"
    if ended.status and ("error: " not in ended.stderr or "help: " not in ended.stderr):
        yield f"it does not say what to do: {ended.stderr[-600:]}"


def strange(job: Job, root: Path) -> Iterator[str]:
    """What lies beside the destination, and is no stage of a run."""
    top = root / "w"
    for path in sorted(top.rglob("*")):
        parts = path.relative_to(root).parts
        if job.inside or any(part.startswith(".") and ".surgery" in part for part in parts):
            continue
        at = "/".join(parts)
        if not (at == job.dest or at.startswith(f"{job.dest}/") or job.dest.startswith(f"{at}/")):
            yield f"{at} lies outside the stage"


def again(job: Job, whole: Undisturbed, root: Path, scratch: Path) -> Iterator[str]:
    """What is wrong after the same command was run again, with nothing in its way."""
    done = tree(root / job.dest) == whole.new != whole.old
    ended = run(job.words.split(), root, scratch)
    if ended.status != 0 and not (done and not job.over and "Traceback" not in ended.stderr):
        yield f"again, it ends with {ended.status}: {ended.said}"
    if tree(root / job.dest) != whole.new:
        yield f"again, the destination is not right: {_unlike(tree(root / job.dest), whole.new)}"
    if ended.status == 0:
        beside = [path for path in (root / job.dest).parent.iterdir() if path != root / job.dest]
        if beside and not job.inside:
            yield f"again, {beside[0].name} is left"
    for path in (root / "tmp").iterdir():  # of a run that was killed
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _unlike(found: Tree | None, wanted: Tree) -> str:
    if found is None:
        return "it is not there"
    names = [name for name in {*found, *wanted} if found.get(name) != wanted.get(name)]
    return ", ".join(sorted(names)[:5])


def traced(job: Job, root: Path, scratch: Path) -> list[Op]:
    """What a command changed, call by call; its outputs are as they were before it."""
    reset(root, job)
    ended = run(job.words.split(), root, scratch, Watch(trace=scratch / "trace"))
    assert ended.status == 0, ended.stderr
    reset(root, job)
    return ops_in((scratch / "trace").read_bytes())


def out_of_order(job: Job, whole: Undisturbed, root: Path, scratch: Path) -> list[str]:
    """What is named before it is durable, and what is not when the command is done: nothing, as it should be."""
    ops = traced(job, root, scratch)
    found = hasty(root / "w", ops)
    lasting(root / "w", ops, scratch / "state")
    shutil.rmtree(root / "w")
    shutil.copytree(scratch / "state", root / "w", symlinks=True)
    return [*found, *([] if _at(job, root) == whole.new else ["the output is not durable when the command is done"])]


def crashed(
    job: Job, whole: Undisturbed, root: Path, scratch: Path, *, each: int, every: int = 1
) -> Iterator[list[str]]:
    """For each state that a loss of power may leave, the laws that it breaks: none, as it should be."""
    ops = traced(job, root, scratch)
    for i, number in enumerate(states(root / "w", ops, scratch / "state", each=each)):
        if i % every:
            continue
        shutil.rmtree(root / "w")
        shutil.copytree(scratch / "state", root / "w", symlinks=True)
        dest = _at(job, root)
        found = [] if dest in (whole.old, whole.new) else [f"the destination is neither: {_unlike(dest, whole.new)}"]
        found += [*strange(job, root), *again(job, whole, root, scratch)]
        yield [f"crash after {ops[number].what} #{number}: {one}" for one in found]
