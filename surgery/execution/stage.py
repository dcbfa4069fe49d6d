"""The stage: a folder beside the destination that becomes it by one rename.

Invariants. Beside a destination `out` there is at most one writer (`.out.surgery.lock`: `lock.py`). A run writes to
`.out.surgery-<identity>/`, named by its plan; the next run of the same plan finds its finished shards there. The
destination is absent or whole at every moment; with `overwrite` it is the old one or the new one. A stage that holds a
manifest of another identity, or the destination's own, is an old output on its way out, never something to resume; it
is renamed before it is removed, since half of it would look like a stage of ours.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count

from ..errors import DestinationError, FormatError, NoSpace, SurgeryError, VerificationFailed, listed
from ..files.edited import edited
from ..files.entries import entries
from ..files.folder import LocalFolder, absolute
from ..files.manifest import read_manifest
from ..files.opening import shut
from ..files.refs import has_scheme, is_ref
from .lock import locked
from .writing_inside import Inside, durable

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@dataclass(frozen=True, slots=True)
class Stage:
    """The folder of one run, and the destination that it becomes."""

    path: str
    dest: str
    inside: Inside  # the same folder, opened: all writing in it goes through this
    stale: tuple[str, ...]  # stages of other plans beside the same destination
    discarded: tuple[str, ...] = ()  # what was edited in the destination since it was written, and is to be replaced
    twin: str = ""  # the stage of the same plan that links, or does not; of no use once this one is published

    def left(self) -> list[str]:
        """What was replaced or removed beside the destination, and could not be erased."""
        return _gone(self.dest)

    def publish(self, *, overwrite: bool, discard_edits: bool = False) -> None:
        """One rename (or one exchange) makes the stage the destination; durable when this returns."""
        sync(self.path)
        if os.path.lexists(self.dest) and not _is_empty(self.dest):
            if not overwrite:
                raise DestinationError(
                    "the destination appeared while we were writing", where=[self.dest], help=_elsewhere()
                )
            _check_replaceable(self.dest, overwrite, discard_edits)  # again: hours may lie between
            _replace(self.path, self.dest)
        else:
            os.rename(self.path, self.dest)
        sync(os.path.dirname(self.dest))
        if self.twin and os.path.lexists(self.twin):
            _discard(self.twin, self.dest)


@contextmanager
def staged(
    dest: str, identity: str, *, overwrite: bool, inputs: Sequence[str], link: bool = False, discard_edits: bool = False
) -> Iterator[Stage]:
    """The stage of plan `identity` for `dest`, locked. Refuses destinations that may not be written.

    A run that links to inputs, and one that does not, never share a stage.
    """
    dest = os.path.abspath(dest)
    _check_destination(dest, inputs)
    try:
        _made_durable(os.path.dirname(dest))
        with locked(_lock_path(dest), dest):
            _recover(dest)
            discarded = _check_replaceable(dest, overwrite, discard_edits)
            path = stage_at(dest, identity, link=link)
            _check_no_link(path)
            if (found := _identity_of(path)) and (found != identity or found == _identity_of(dest)):
                _discard(path, dest)
            os.makedirs(path, exist_ok=True)
            twin, inside = stage_at(dest, identity, link=not link), Inside(path)
            try:
                yield Stage(path, dest, inside, _stale(dest, path, twin), discarded, twin)
            except VerificationFailed as error:  # which the same command ends in again
                kept = f"what was made until then is kept beside the destination: surgery clean {dest} removes it"
                raise VerificationFailed(error.what, where=[*error.where, kept], help=error.help) from error
            finally:
                inside.close()
    except OSError as error:
        raise as_ours(error, dest) from error


def stages(dest: str) -> list[str]:
    """The stages beside `dest`, of any plan."""
    parent, prefix = os.path.split(_stage_prefix(os.path.abspath(dest)))
    if not os.path.isdir(parent):
        return []
    return sorted(
        os.path.join(parent, f)
        for f in LocalFolder(parent).names()
        if f.startswith(prefix) and "." not in f[len(prefix) :]
    )


def _stale(dest: str, *ours: str) -> tuple[str, ...]:
    """The stages beside `dest` of other plans than ours."""
    return tuple(path for path in stages(dest) if path not in (*ours, *_gone(dest)))


def clean(folder: str) -> tuple[tuple[str, int], ...]:
    """Remove what broken runs left for the destination `folder`, and for all destinations inside it.

    For `hf://org/name`, what runs that wrote to that repository left here. Returns each removed path with its bytes.
    An old output that an interrupted overwrite moved aside is moved back first. Raises DestinationError where a run
    is at work, and for `org/name` without `hf://` where no folder `org` is.
    """
    given, folder = os.fspath(folder), _local(folder)
    found = [folder]
    if os.path.isdir(folder):
        marks = (f for f in LocalFolder(folder).names() if f.startswith(".") and ".surgery" in f)
        found += sorted(
            {os.path.join(folder, f[1:].rpartition(".surgery")[0]) for f in marks} - {os.path.join(folder, "")}
        )
    removed = []
    for dest in found:
        lock = _lock_path(dest)
        if not (stages(dest) or os.path.exists(lock) or os.path.exists(_aside(dest))):
            continue
        try:
            with locked(lock, dest):
                removed += [(path, size_of(path)) for path in stages(dest)]
                _recover(dest)
                for path in stages(dest):
                    _erased(path if path in _gone(dest) else _renamed(path, dest))
        except OSError as error:
            tip = "mend the permissions of what lies there, and run again"
            what, where = f"cannot clean up: {error.strerror}", [place_of(error, dest)]
            raise DestinationError(what, where=where, help=tip) from error
    if not os.path.isdir(os.path.dirname(folder)) and is_ref(given) and not has_scheme(given):
        tip = f"for what runs that wrote to the Hub left here: surgery clean hf://{given}"
        raise DestinationError("no such folder, and none that it would be in", where=[folder], help=tip)
    return tuple(removed)


def _local(dest: str) -> str:
    """The absolute path beside which the stages for a destination are."""
    if not has_scheme(os.fspath(dest)):
        return absolute(dest)
    from ..hub.resume import stage_of

    return stage_of(os.fspath(dest))


def size_of(folder: str) -> int:
    """Bytes that the files of a folder take on disk."""
    files = (entry for entry in entries(folder) if not entry.is_dir(follow_symlinks=False))
    return sum(entry.stat(follow_symlinks=False).st_blocks * 512 for entry in files)


def _made_durable(folder: str) -> None:
    """The folder is there; what had to be made of it, and above it, survives a loss of power."""
    missing = []
    while not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for path in reversed(missing):
        os.makedirs(path, exist_ok=True)  # which another run may make meanwhile
        sync(os.path.dirname(path))


def sync(path: str) -> None:
    """Make a file's bytes, or a folder's entries, durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        durable(fd)
    finally:
        shut(fd)


@contextmanager
def beside(path: str, content: bytes, prefix: str, mode: int) -> Iterator[str]:
    """The path of a new file in the folder of `path`, durable, to be given its name; gone where that fails."""
    with tempfile.NamedTemporaryFile(dir=os.path.dirname(path), prefix=prefix, delete=False) as stream:
        try:
            stream.write(content)
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())
            yield stream.name
        except BaseException:
            os.unlink(stream.name)
            raise


def write_at(fd: int, data: memoryview, to: int) -> None:
    """Write all of `data` from byte `to` on."""
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], to + done)


def as_ours(error: OSError, dest: str) -> SurgeryError:
    """An operating system's error as one of ours, with what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(
            "the disk is full",
            where=[place_of(error, dest), "what is finished is kept beside the destination, and a rerun resumes it"],
            help=f"make room and run again, or give the space back with: surgery clean {dest}",
        )
    return DestinationError(
        f"cannot write the output: {error.strerror}", where=[place_of(error, dest)], help=_elsewhere()
    )


def place_of(error: OSError, dest: str) -> str:
    """The path that an error is about; `dest` where it tells no more than a number."""
    return os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else dest


def _elsewhere() -> str:
    return "choose another output with -o"


def _lock_path(dest: str) -> str:
    parent, name = os.path.split(dest)
    return os.path.join(parent, f".{name}.surgery.lock")


def stage_at(dest: str, identity: str, *, link: bool = False) -> str:
    """The stage of plan `identity` beside `dest`; with `link`, that of runs in which files may be links to inputs."""
    return f"{_stage_prefix(dest)}{identity[:16]}{'-linked' if link else ''}"


def _stage_prefix(dest: str) -> str:
    parent, name = os.path.split(dest)
    return os.path.join(parent, f".{name}.surgery-")


def _aside(dest: str) -> str:
    """Where an old output waits while the new one takes its place, on systems without an atomic exchange."""
    parent, name = os.path.split(dest)
    return os.path.join(parent, f".{name}.surgery_old")


def _gone(dest: str) -> list[str]:
    """What is being removed, or could not be, beside a destination: under names that no plan has."""
    return [path for path in stages(dest) if path.startswith(f"{_stage_prefix(dest)}gone")]


def _is_empty(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path) and not os.listdir(path)


def _check_destination(dest: str, inputs: Sequence[str]) -> None:
    if dest.casefold().endswith(".gguf"):
        tip = "write safetensors into a folder, and run convert_hf_to_gguf.py of llama.cpp on that"
        raise DestinationError("GGUF is not written", where=[dest], help=tip)
    if os.path.islink(dest):
        raise DestinationError(
            "the destination is a symbolic link",
            where=[f"{dest} -> {os.readlink(dest)}"],
            help=f"a rename would replace the link; write to {os.path.join(dest, 'model')} or to the real folder",
        )
    if os.path.ismount(dest):
        raise DestinationError(
            "the destination is a mount point, which no rename can replace",
            where=[dest],
            help=f"write into a subfolder: -o {os.path.join(dest, 'model')}",
        )
    if os.path.lexists(dest) and not os.path.isdir(dest):
        raise DestinationError("the destination is a file", where=[dest], help=_elsewhere())
    real = os.path.realpath(dest)
    for source in dict.fromkeys(p for i in inputs for p in (os.path.abspath(i), os.path.realpath(i))):
        for inside, outside, what in (
            (real, source, "inside or equal to an input"),
            (source, real, "a folder that holds an input"),
        ):
            if inside == outside or inside.startswith(outside.rstrip(os.sep) + os.sep):
                raise DestinationError(f"the destination is {what}", where=[dest, f"input {source}"], help=_elsewhere())
        for ours in (_stage_prefix(real), _aside(real)):
            if source.startswith(ours):
                tip = "move it away first, or choose another output with -o"
                raise DestinationError(
                    "an input lies in what a broken run left here, and is to be removed", where=[source], help=tip
                )


def _check_replaceable(dest: str, overwrite: bool, discard_edits: bool) -> tuple[str, ...]:
    """An existing destination must be empty, or, with `overwrite`, hold only what surgery wrote, as it wrote it.

    What was edited or removed since is refused, or, with `discard_edits`, returned.
    """
    if not os.path.lexists(dest) or _is_empty(dest):
        return ()
    if not overwrite:
        ours = _identity_of(dest) is not None
        tip = (
            "choose another with -o, or replace it with --overwrite"
            if ours
            else "choose another with -o: surgery did not write this one"
        )
        raise DestinationError("the destination exists", where=[dest], help=tip)
    manifest = read_manifest(dest)
    if manifest is None:
        raise DestinationError(
            "the destination was not written by surgery, so --overwrite does not touch it",
            where=[dest],
            help=_elsewhere(),
        )
    here = {os.path.relpath(e.path, dest) for e in entries(dest) if not e.is_dir(follow_symlinks=False)}
    foreign = sorted(name for name in here - set(manifest.files) if not name.startswith(".surgery/"))
    if foreign:
        raise DestinationError(
            f"the destination holds {len(foreign)} files that surgery did not write",
            where=[dest, *listed(foreign)],
            help="move them away, or choose another output with -o",
        )
    edits = tuple(f"{name}: {what}" for name, what in edited(LocalFolder(dest), manifest).items())
    if edits and not discard_edits:
        raise edited_since("the destination", dest, edits)
    return edits


def edited_since(what: str, place: str, edits: Sequence[str]) -> DestinationError:
    """The error where an output that is to be replaced was edited since it was written."""
    return DestinationError(
        f"{what} was edited since surgery wrote it: {len(edits)} {'file' if len(edits) == 1 else 'files'}",
        where=[place, *listed(edits)],
        help="keep a copy, or choose another output with -o; to lose the edits: --overwrite --discard-edits, "
        "in Python overwrite=True, discard_edits=True",
    )


def _identity_of(path: str) -> str | None:
    """The identity in a folder's manifest; None where there is none, or only the begin of one."""
    try:
        manifest = read_manifest(path)
    except FormatError:
        return None
    return manifest.identity if manifest else None


def _recover(dest: str) -> None:
    """Finish or undo an overwrite that was interrupted between its two renames, and finish what was being removed."""
    aside = _aside(dest)
    for path in _gone(dest):
        _tried(path)
    if os.path.lexists(aside):
        if os.path.lexists(dest):
            _discard(aside, dest)
        else:
            os.rename(aside, dest)


def _discard(path: str, dest: str) -> None:
    """Nothing is at `path`. What cannot be removed stays beside the destination, where no run takes it for its own:
    nobody's output hangs on it, and `clean` says why.
    """
    _tried(_renamed(path, dest))


def _renamed(path: str, dest: str) -> str:
    """The name under which what was at `path` is to be removed, for good: half of it under its own could pass for a
    stage after a loss of power.
    """
    gone, kept = f"{_stage_prefix(dest)}gone", _gone(dest)
    free = next(name for i in count(1) if (name := f"{gone}{i if i > 1 else ''}") not in kept)
    os.rename(path, free)
    sync(os.path.dirname(dest))
    return free


def _tried(path: str) -> None:
    with suppress(OSError, RecursionError):
        _erased(path)


def _erased(path: str) -> None:
    """Nothing is at `path`; where a link was, what it points to stays. Raises OSError with all of its path."""
    try:
        if os.path.islink(path):
            os.unlink(path)
        else:
            shutil.rmtree(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def _check_no_link(stage: str) -> None:
    if os.path.islink(stage):
        where = [f"{stage} -> {os.readlink(stage)}"]
        raise DestinationError(
            "a link is where the output is to be made", where=where, help="remove it: it is none of surgery's"
        )


def _replace(new: str, old: str) -> None:
    """`new` takes the place of `old`, which is removed: exchanged at once, or by two renames with recovery."""
    if exchange(new, old):
        sync(os.path.dirname(old))
        _discard(new, old)
        return
    aside = _aside(old)
    os.rename(old, aside)
    os.rename(new, old)
    sync(os.path.dirname(old))
    _discard(aside, old)


def exchange(a: str, b: str) -> bool:
    """Swap two paths in one step; False where the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), b)
