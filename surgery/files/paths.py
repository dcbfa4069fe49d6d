"""Paths inside a folder: the one place that decides what may name a file of an index, a record, an output or a push.

A path that passes is relative, has `/` between its parts and is spelled in the one way; it means the same file on
every system, and none outside the folder. Links are not its matter: who writes follows none.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

LONGEST = 255  # bytes that a file system takes for one part of a path
DEEPEST = 100  # folders that one may lie in
CONTROL, NO_TEXT, TOO_LONG = "a control character is in it", "not UTF-8", f"a part of more than {LONGEST} bytes"
TOO_DEEP = f"in more than {DEEPEST} folders"
GIT = ".git"
_DRIVE = re.compile(r"[A-Za-z]:")


def fault_of(path: object) -> str:
    """What is wrong with `path` as the name of a file inside a folder; "" where nothing is."""
    if not isinstance(path, str):
        return "not a text"
    parts, kinds = path.split("/"), {unicodedata.category(character) for character in path}
    rules = {
        "empty": not path,
        CONTROL: "Cc" in kinds,
        NO_TEXT: "Cs" in kinds,
        "a backslash is in it": "\\" in path,
        "an absolute path": path.startswith("/"),
        "a drive is named": bool(_DRIVE.match(path)),
        "it leads out of the folder": ".." in parts,
        TOO_DEEP: len(parts) > DEEPEST,
        "an empty part or `.` is in it": bool({"", "."} & set(parts)),
    }
    found = next((fault for fault, holds in rules.items() if holds), "")
    return found or (TOO_LONG if any(len(part.encode()) > LONGEST for part in parts) else "")


def faults_in(paths: Iterable[object]) -> list[str]:
    """One line for each that names no file inside a folder: the path, and why."""
    return [f"{path if isinstance(path, str) else repr(path)}: {fault}" for path in paths if (fault := fault_of(path))]


def without_git(paths: Iterable[str]) -> tuple[list[str], list[str]]:
    """The paths outside git's own folders, or files of that name, at any depth; and these folders, each once."""
    kept, left = list[str](), dict[str, None]()
    for path in paths:
        parts = path.split("/")
        at = next((i for i, part in enumerate(parts) if part.casefold() == GIT), -1)
        if at < 0:
            kept.append(path)
        else:
            left["/".join(parts[: at + 1]) + ("/" if at + 1 < len(parts) else "")] = None
    return kept, list(left)


def within(path: str) -> list[str]:
    """The folders that a file of this path lies in: `a` and `a/b` of `a/b/c`."""
    return [path[:at] for at, character in enumerate(path) if character == "/"]


def folded(path: str) -> str:
    """What a file system that knows no letter case takes `path` for."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
