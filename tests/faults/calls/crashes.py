"""What a loss of power leaves, from a trace of the calls that changed something.

The machine may stop after each call. What was not durable by then is there or not, each change by itself: a write to
a file until that file is synced, a name until its folder is. A rename happens as a whole, and never before the change
that gave the same file its name. That is more than file systems lose.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Op:
    """A call that changed something: what it is, the paths or the file that it is about, and what was written."""

    what: str
    a: str
    b: str
    inode: int
    at: int
    data: bytes


def ops_in(trace: bytes) -> list[Op]:
    """The calls of a trace as `shim.c` writes it."""
    found, i = list[Op](), 0
    while i < len(trace):
        end = trace.index(b"\n", i)
        what, a, b, inode, at, size = trace[i:end].split(b"\t")
        i = end + 1 + int(size)
        found.append(Op(what.decode(), os.fsdecode(a), os.fsdecode(b), int(inode), int(at), trace[end + 1 : i]))
    return found


@dataclass(eq=False)
class Node:
    """A folder with names, a file with bytes, or a link: as it was when the trace begins."""

    kind: str
    names: dict[str, Node] = field(default_factory=dict)
    data: bytes = b""


def found_at(path: Path) -> Node:
    """What lies on the disk."""
    if path.is_symlink():
        return Node("link", data=os.fsencode(os.readlink(path)))
    if path.is_dir():
        return Node("folder", {one.name: found_at(one) for one in sorted(path.iterdir())})
    return Node("file", data=path.read_bytes())


@dataclass(eq=False)
class Change:
    """What one call changed: names in folders, each now this node or none; or bytes of a file from `at` on, or, where
    `data` is None, its length. `waits` are those of its owners that are not synced since, `after` what it follows.
    """

    names: tuple[tuple[Node, str, Node | None], ...] = ()
    file: Node | None = None
    at: int = 0
    data: bytes | None = None
    waits: set[Node] = field(default_factory=set)
    after: tuple[Change, ...] = ()


class Disk:
    """A folder as calls change it, and what of that is durable."""

    def __init__(self, path: Path) -> None:
        self.path, self.top = path, found_at(path)
        self.changes = list[Change]()
        self._live: dict[Node, dict[str, Node]] = {}
        self._inodes = dict[int, Node]()
        self._named = dict[Node, Change]()  # what gave a node its name

    def apply(self, op: Op) -> None:
        """One call; those outside the folder change nothing in it."""
        if op.what == "fsync":
            self._synced(self._inodes.get(op.inode) if op.inode in self._inodes else self.node(op.a))
        elif op.what in ("write", "truncate") and (file := self._inodes.get(op.inode) or self.node(op.a)):
            data = op.data if op.what == "write" else None
            self.changes.append(Change(file=file, at=op.at, data=data, waits={file}))
        elif op.what in ("create", "mkdir"):
            node = Node("folder" if op.what == "mkdir" else "file")
            if self._rename((op.a, node)) and op.inode:
                self._inodes[op.inode] = node
        elif op.what == "symlink":
            self._rename((op.b, Node("link", data=os.fsencode(op.a))))
        elif op.what in ("unlink", "rmdir"):
            self._rename((op.a, None))
        elif op.what == "rename":
            self._rename((op.a, None), (op.b, self.node(op.a)))
        elif op.what == "exchange":
            self._rename((op.a, self.node(op.b)), (op.b, self.node(op.a)))
        elif op.what == "link":
            self._rename((op.b, self.node(op.a) or found_at(Path(op.a))))

    def _names(self, folder: Node) -> dict[str, Node]:
        return self._live.setdefault(folder, dict(folder.names))

    def _place(self, path: str) -> tuple[Node, str] | None:
        """The folder that a path lies in, and its last part."""
        if not path.startswith(f"{self.path}/"):
            return None
        *folders, last = path[len(str(self.path)) + 1 :].split("/")
        here = self.top
        for part in folders:
            here = self._names(here)[part]
        return here, last

    def node(self, path: str) -> Node | None:
        """What is called so now."""
        if path == str(self.path):
            return self.top
        place = self._place(path)
        return self._names(place[0]).get(place[1]) if place else None

    def _rename(self, *pairs: tuple[str, Node | None]) -> bool:
        places = [(place, node) for path, node in pairs if (place := self._place(path))]
        if not places:
            return False
        names = tuple((folder, name, node) for (folder, name), node in places)
        touched = [node for _, _, node in names if node] + [
            n for f, name, _ in names if (n := self._names(f).get(name))
        ]
        after = tuple(self._named[node] for node in touched if node in self._named)
        change = Change(names, waits={folder for folder, _, _ in names}, after=after)
        for folder, name, node in names:
            self._names(folder).pop(name, None)
            if node is not None:
                self._names(folder)[name] = node
        for node in touched:
            self._named[node] = change
        self.changes.append(change)
        return True

    def _synced(self, node: Node | None) -> None:
        for change in self.changes:
            change.waits.discard(node)  # type: ignore[arg-type]

    def kept(self, drawn: random.Random, share: float) -> list[Change]:
        """The changes that a crash leaves: what is durable, and of the rest about a share."""
        keeps = set[Change]()
        for change in self.changes:
            if not change.waits or (drawn.random() < share and all(one in keeps for one in change.after)):
                keeps.update((change, *_before(change)))
        return [change for change in self.changes if change in keeps]

    def write(self, kept: Sequence[Change], path: Path) -> None:
        """The folder as it is with these changes, at `path`."""
        names, data = dict[Node, dict[str, Node]](), dict[Node, bytearray]()
        for change in kept:
            for folder, name, node in change.names:
                entries = names.setdefault(folder, dict(folder.names))
                entries.pop(name, None)
                if node is not None:
                    entries[name] = node
            if change.file is not None:
                _put(data.setdefault(change.file, bytearray(change.file.data)), change.at, change.data)
        shutil.rmtree(path, ignore_errors=True)
        _write(self.top, path, names, data)


def hasty(start: Path, ops: Sequence[Op]) -> list[str]:
    """The renames of files and folders whose bytes, or names, were not durable before: none, as it should be."""
    disk, found = Disk(start), list[str]()
    for number, op in enumerate(ops):
        if op.what in ("rename", "exchange", "link"):
            moved = disk.node(op.a)
            if waiting := [one for one in disk.changes if moved and moved in one.waits]:
                found.append(f"{op.what} #{number} of {op.a}: {len(waiting)} changes of it may be lost")
        disk.apply(op)
    return found


def lasting(start: Path, ops: Sequence[Op], into: Path) -> None:
    """The folder `start` after all calls, and a loss of power right after them, in `into`."""
    disk = Disk(start)
    for op in ops:
        disk.apply(op)
    disk.write(disk.kept(random.Random(0), 0.0), into)


def _before(change: Change) -> Iterator[Change]:
    for one in change.after:
        yield one
        yield from _before(one)


def _put(content: bytearray, at: int, data: bytes | None) -> None:
    if data is None:
        content[at:] = b"" if len(content) > at else bytes(at - len(content))
        return
    content.extend(bytes(max(0, at + len(data) - len(content))))
    content[at : at + len(data)] = data


def _write(node: Node, path: Path, names: dict[Node, dict[str, Node]], data: dict[Node, bytearray]) -> None:
    if node.kind == "link":
        path.symlink_to(os.fsdecode(node.data))
    elif node.kind == "file":
        path.write_bytes(data.get(node, node.data))
    else:
        path.mkdir()
        for name, inner in names.get(node, node.names).items():
            _write(inner, path / name, names, data)


def states(start: Path, ops: Sequence[Op], into: Path, *, each: int, seed: int = 0) -> Iterator[int]:
    """The folder `start`, as it was before these calls, written to `into` as a crash after each of them may leave it:
    what is durable, all that was done, and `each` draws between. Yields the number of the call; a state that came
    before is not shown again. `start` has to be as it was until the first state is asked for.
    """
    disk, drawn, seen = Disk(start), random.Random(seed), set[bytes]()
    for number, op in enumerate(ops):
        disk.apply(op)
        for share in (0.0, 1.0, *(drawn.choice((0.2, 0.5, 0.8, 0.95)) for _ in range(each))):
            disk.write(disk.kept(drawn, share), into)
            key = _digest(into)
            if key not in seen:
                seen.add(key)
                yield number


def _digest(folder: Path) -> bytes:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        content = b"" if path.is_dir() or path.is_symlink() else path.read_bytes()
        digest.update(f"{path.relative_to(folder)}\0{len(content)}\0".encode() + content)
    return digest.digest()
