"""Writing inside one folder: what is opened for writing is new, and no link is followed on the way to it.

Invariants. The folder is opened once, and every path is taken part by part from its descriptor: no name and no link,
there before or put there meanwhile, leads out of it. What is opened for writing did not exist before; only `reopen`
takes what is there, and only a file of one name. Unfinished files lie in a folder of their own, where no output may
be, under the names that they will have. An error names the whole path.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress

from ..errors import DestinationError
from ..files.opening import shut
from ..files.paths import fault_of

PARTS = ".surgery/parts"  # what is not finished; never published, and emptied when a run begins
TRIES = 100  # to empty a folder in which others are at work, a twentieth of a second apart
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | _FILE


def part_of(name: str, kind: str = "made") -> str:
    """Where what becomes `name` is made: no two names, and no two kinds of one, share a part."""
    return f"{PARTS}/{kind}/{name}"


class Inside:
    """A folder, and all that is written in it. Raises OSError as `os` does, DestinationError where a path would lead
    elsewhere.
    """

    def __init__(self, path: str) -> None:
        self.path, self.fd = path, os.open(path, _FOLDER)

    def close(self) -> None:
        """Close the folder."""
        shut(self.fd)

    def at(self, name: str) -> str:
        """The path of what is called `name` in it, to be read."""
        return os.path.join(self.path, name)

    def create(self, name: str) -> int:
        """A new, empty file, open for reading and writing, in folders that are made; what had its name has it no
        more.
        """
        with self._folder(name, make=True) as (folder, last):
            try:
                return os.open(last, _NEW, 0o666, dir_fd=folder)
            except FileExistsError:
                os.unlink(last, dir_fd=folder)
                return os.open(last, _NEW, 0o666, dir_fd=folder)

    def reopen(self, name: str) -> int:
        """A file of this run, as it is, open for reading and writing; a new one where there is none."""
        found = self.status(name)
        if found is None or found.st_nlink > 1:
            return self.create(name)
        with self._folder(name) as (folder, last):
            return os.open(last, os.O_RDWR | _FILE, dir_fd=folder)

    def status(self, name: str) -> os.stat_result | None:
        """The status of a regular file; None where there is none, or something else, or a link."""
        try:
            with self._folder(name) as (folder, last):
                found = os.stat(last, dir_fd=folder, follow_symlinks=False)
        except (FileNotFoundError, DestinationError):
            return None
        return found if stat.S_ISREG(found.st_mode) else None

    def rename(self, old: str, new: str) -> None:
        """The file `old` is called `new`, durable."""
        with self._folder(old) as (source, was), self._folder(new, make=True) as (folder, last):
            os.rename(was, last, src_dir_fd=source, dst_dir_fd=folder)
            durable(folder)

    def link(self, path: str, name: str) -> None:
        """`name` is a second name of the file at `path`, durable."""
        with self._folder(name, make=True) as (folder, last):
            with suppress(FileNotFoundError):
                os.unlink(last, dir_fd=folder)
            os.link(path, last, dst_dir_fd=folder, follow_symlinks=False)
            fd = os.open(last, os.O_RDONLY | _FILE, dir_fd=folder)
            try:
                durable(fd)
            finally:
                shut(fd)
            durable(folder)

    def remove(self, name: str) -> None:
        """Nothing is called `name`."""
        with suppress(FileNotFoundError), self._folder(name) as (folder, last):
            os.unlink(last, dir_fd=folder)

    def empty(self, name: str) -> None:
        """There is no folder `name`, and nothing that was in it: whoever still makes files there cannot any more."""
        for tries in range(TRIES + 1):
            try:
                with self._folder(name) as (folder, last):
                    os.stat(last, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                return
            try:
                self._empty_once(name)
            except OSError as error:  # a worker of a broken run, on another machine perhaps, makes or removes files
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.EBUSY) or tries == TRIES:
                    raise
                time.sleep(0.05)

    def _empty_once(self, name: str) -> None:
        with self._folder(name) as (folder, last):
            if stat.S_ISDIR(os.stat(last, dir_fd=folder, follow_symlinks=False).st_mode):
                shutil.rmtree(last, dir_fd=folder)
            else:
                os.unlink(last, dir_fd=folder)

    def keep(self, wanted: Container[str]) -> None:
        """What is left are the files that are wanted, each a regular one, and their folders, which are durable."""
        for here, folders, names, fd in os.fwalk(".", topdown=False, onerror=_raised, dir_fd=self.fd):
            inside = "" if here == "." else f"{here.removeprefix('./')}/"
            for name in (*folders, *names):
                mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode):
                    _removed_if_empty(name, fd)
                elif f"{inside}{name}" not in wanted or not stat.S_ISREG(mode):
                    os.unlink(name, dir_fd=fd)
            durable(fd)

    def folds(self) -> bool:
        """Whether the file system takes names for one that differ in letter case alone."""
        with suppress(FileExistsError):
            os.mkdir(".surgery-case", dir_fd=self.fd)
        try:
            os.stat(".SURGERY-CASE", dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        finally:
            os.rmdir(".surgery-case", dir_fd=self.fd)
        return True

    @contextmanager
    def _folder(self, name: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """The descriptor of the folder that `name` lies in, and the last part of it."""
        if fault := fault_of(name):
            raise DestinationError(
                f"no file of an output can be called so: {fault}", where=[self.path, name], help="report it"
            )
        *folders, last = name.split("/")
        fd = os.dup(self.fd)
        try:
            for at, part in enumerate(folders, 1):
                fd = self._down(fd, part, "/".join(folders[:at]), make=make)
            yield fd, last
        except OSError as error:
            error.filename, error.filename2 = self.at(name), None
            raise
        finally:
            shut(fd)

    def _down(self, fd: int, part: str, place: str, *, make: bool) -> int:
        """The descriptor of the folder `part` of an open one, which is closed."""
        if make:
            with suppress(FileExistsError):
                os.mkdir(part, dir_fd=fd)
        try:
            inner = os.open(part, _FOLDER, dir_fd=fd)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                what = "a link, or a file, is where a folder of the output is to be"
                raise DestinationError(what, where=[self.at(place)], help="remove it, and run again") from error
            raise
        shut(fd)
        return inner


def durable(fd: int) -> None:
    """What an open file holds, or an open folder lists, survives a loss of power."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # some network file systems cannot sync a folder
            raise


def _raised(error: OSError) -> None:
    raise error


def _removed_if_empty(name: str, folder: int) -> None:
    try:
        os.rmdir(name, dir_fd=folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
