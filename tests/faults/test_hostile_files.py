"""Hostile files, each met by a command that must refuse it: one clear error at once, and no harm. The record of all
commands is `python -m hostile`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commanded import practised
from hostile.judging import Watch, meet, outside, state, wrong
from hostile.rows import OUTSIDE, SECRET, Row, empty, prepare
from hostile.table import KINDS, ROWS

from surgery.errors import FormatError

BUSY = 4.0  # seconds of the processor: four times what the record allows, where others need it too


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """The folder where commands run; what they import is imported."""
    place = prepare(tmp_path_factory.mktemp("hostile"))
    for words in ("inspect", "verify", "convert-files", "merge"):
        practised([words, str(place / "good"), *{"merge": [str(place / "adapter")]}.get(words, [])])
    return place


@pytest.fixture
def watch(place: Path) -> Iterator[Watch]:
    held = outside(place)
    yield held
    held.close()
    empty(place)


def broken(row: Row, words: str, place: Path, watch: Watch, main: Callable[[], object] | None = None) -> list[str]:
    """What is wrong with how the command meets the row."""
    before = state(place)
    found = list(wrong(row, meet(words, place, watch, main), place, before, BUSY))
    empty(place, "w")
    return found


@pytest.mark.parametrize("name", ROWS)
def test_a_hostile_file_is_refused_and_does_no_harm(name: str, place: Path, watch: Watch) -> None:
    row = ROWS[name]
    row.make(place)
    met = row.refuse or row.read or row.around
    assert broken(row, met[sum(name.encode()) % len(met)], place, watch) == []


def test_there_are_enough_of_them() -> None:
    refused = [row for row in ROWS.values() if row.refuse]
    assert len(refused) > 400 and len(KINDS) > 8
    assert len(ROWS) == sum(len([*kind.rows()]) for kind in KINDS.values())  # no two are called alike


@pytest.mark.parametrize(
    "words", ["inspect good", "reshard good -o w/o", "merge good adapter -o w/o", "unmerge merged -o w/o"]
)
def test_what_is_good_is_taken(words: str, place: Path, watch: Watch) -> None:
    """What is refused is refused for what is wrong with it."""
    met = meet(words, place, watch)
    assert met.status == 0 and not met.stderr and not met.outside, met.error


# What the judge would see, done by what stands for the command line.


def refusing(what: str = "it is wrong\n  --> place/x/f") -> None:
    """As a command refuses a file."""
    sys.stderr.write(f"error: {what}\nhelp: mend it\n")
    sys.exit(1)


def first(action: Callable[[], object]) -> Callable[[], None]:
    """That, and then all is said as it should be."""

    def main() -> None:
        action()
        refusing()

    return main


def busy(seconds: float) -> None:
    begun = time.process_time()
    while time.process_time() - begun < seconds:
        pass


SABOTAGE: dict[str, tuple[Callable[[], object], str]] = {
    "it takes it": (lambda: None, "it is not refused: 0"),
    "another status": (lambda: sys.exit(3), "it ended with 3"),
    "an exception": (lambda: FormatError("x").nothing, "has a traceback"),  # type: ignore[attr-defined]
    "a signal": (lambda: os.kill(os.getpid(), 11), "it ended with -11"),
    "an escape": (lambda: refusing("\x1b[2J place/x/f"), "has control characters"),
    "an escape of eight bits": (lambda: refusing("\x9b2J place/x/f"), "has control characters"),
    "text turned round": (lambda: refusing("\u202e place/x/f"), "has control characters"),
    "no text": (first(lambda: os.write(1, b"\xff\xfe")), "is no text"),
    "an escape in the answer": (first(lambda: sys.stdout.write("\x1b[31m")), "standard output has control"),
    "two errors": (first(lambda: sys.stderr.write("error: one\nhelp: x\n")), "there is not one error"),
    "no error": (lambda: sys.exit(1), "there is not one error"),
    "another file": (lambda: refusing("it is wrong\n  --> g"), "does not name x/f"),
    "another cause": (lambda: refusing("place/x/f"), "does not say"),
    "no help": (lambda: (sys.stderr.write("error: it is wrong\n  --> x/f\n"), sys.exit(1)), "how to go on"),
    "a long error": (lambda: refusing("it is wrong: f" + "x" * 5000), "the error has"),
    "a long answer": (first(lambda: sys.stdout.write("x" * 2_000_000)), "the answer has"),
    "200 MB": (first(lambda: bytearray(200 << 20).replace(b"\0", b"\1")), "it took"),
    "200 GB, asked for": (first(lambda: __import__("mmap").mmap(-1, 200 << 30)), "it asked for"),
    "time": (first(lambda: busy(BUSY + 0.3)), "it took 4."),
    "a file of the folder is changed": (first(lambda: Path("x/f").write_text("mine")), "x/f was changed"),
    "a file of the folder is gone": (first(lambda: Path("x/f").unlink()), "x/f was changed"),
    "a good file is changed": (first(lambda: os.utime("good/config.json")), "config.json was changed"),
    "a file is left": (first(lambda: Path("w/o").write_text("x")), "something is left: ['o']"),
    "a stage is left": (first(lambda: Path("w/.o.surgery-1").mkdir()), "something is left"),
    "a file beside it": (first(lambda: Path("y").write_text("x")), "y was changed"),
    "a file outside is read": (first(lambda: Path(OUTSIDE, "secret").read_bytes()), "outside, secret was opened"),
    "a file outside is written": (first(lambda: Path(OUTSIDE, "new").write_text("x")), "outside, new was made"),
    "what lies outside is shown": (lambda: refusing(f"it is wrong\n --> x/f {SECRET}"), "has what lies outside"),
}


@pytest.mark.parametrize("how", SABOTAGE)
def test_the_judge_tells(how: str, place: Path, watch: Watch) -> None:
    (place / "x").mkdir()
    (place / "x" / "f").write_text("x")
    main, told = SABOTAGE[how]
    row = Row("", lambda place: None, "it is wrong", ("inspect x",), "x/f")
    found = broken(row, "inspect x", place, watch, main)
    Path(place, OUTSIDE, "new").unlink(missing_ok=True)
    assert any(told in one for one in found), found
    assert broken(row, "inspect x", place, watch, refusing) == [] or how.startswith("a ")


def test_a_command_that_hangs_is_told(place: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hostile.judging.PATIENCE", 1)
    (place / "x").mkdir()
    row = Row("", lambda place: None, "it is wrong", ("inspect x",), "x/f")
    found = broken(row, "inspect x", place, watch, lambda: time.sleep(30))
    assert "it ended with -14" in found


def test_a_secret_in_an_output_is_told(place: Path, watch: Watch) -> None:
    (place / "x").mkdir()
    row = Row("", lambda place: None, "", (), "")
    assert broken(row, "inspect x", place, watch, lambda: Path("w/o").write_text(SECRET)) == ["o has what lies outside"]
