"""Names that no file inside a folder can have, each with what is wrong with it."""

from __future__ import annotations

from surgery.files.paths import CONTROL, NO_TEXT, TOO_LONG

FAULTS = {
    "": "empty",
    "a\0b": CONTROL,
    "a\nb": CONTROL,
    "\x1b[2J": CONTROL,
    "a\x85b": CONTROL,
    "\udcff.txt": NO_TEXT,
    "a\\b": "a backslash is in it",
    "/etc/passwd": "an absolute path",
    "//a": "an absolute path",
    "C:/a": "a drive is named",
    "c:a": "a drive is named",
    "..": "it leads out of the folder",
    "a/../../b": "it leads out of the folder",
    "a/..": "it leads out of the folder",
    ".": "an empty part or `.` is in it",
    "./a": "an empty part or `.` is in it",
    "a//b": "an empty part or `.` is in it",
    "a/": "an empty part or `.` is in it",
    "a/" + "é" * 128: TOO_LONG,
}
