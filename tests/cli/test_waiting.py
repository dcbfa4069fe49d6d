"""What a command waits for is said on a terminal, after half a second, and is gone when anything else is shown."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import types
from pathlib import Path

import pytest

from surgery_cli import waiting

SLOW = """
import sys, time
from surgery_cli import ending, waiting

def slow():
    asking = compile("import time; time.sleep(1.2)", "/x/surgery/hub/remote.py", "exec")
    exec(asking, {"__name__": "surgery.hub.remote"})
    print("the answer")
    if "bar" in sys.argv:
        with waiting.silent():
            exec(compile("import time; time.sleep(1)", "/x/surgery/execution/crew.py", "exec"), {})

def command():
    with waiting.watched():
        slow()

ending.ended(command)
"""


def on_terminal(*words: str, stderr: bool = True) -> str:
    """What a terminal is sent by the code."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs if stderr else subprocess.DEVNULL,
        close_fds=True,
    ) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                more = os.read(ours, 4096)
            except OSError:
                break
            if not more:
                break
            said += more
    os.close(ours)
    assert process.returncode == 0, said
    return said.decode()


def seen(sent: str) -> list[str]:
    """The lines that are left to be seen."""
    lines = []
    for line in sent.replace("\r\n", "\n").split("\n"):
        lines.append(line.rpartition("\r\x1b[2K")[2])
    return [line for line in lines if line]


def test_a_long_phase_says_what_it_is(tmp_path: Path) -> None:
    sent = on_terminal()
    assert sent.count("… asking the Hub") == 1
    assert seen(sent) == ["the answer"]


@pytest.mark.parametrize("words", [("--quiet",), ("-q",)])
def test_nothing_is_said_to_who_wants_silence(words: tuple[str, ...]) -> None:
    assert on_terminal(*words) == "the answer\r\n"


def test_nothing_is_said_where_standard_error_is_no_terminal() -> None:
    assert on_terminal(stderr=False) == "the answer\r\n"


def test_nothing_is_said_beside_a_bar() -> None:
    sent = on_terminal("bar")
    assert "writing" not in sent
    assert seen(sent) == ["the answer"]


def frame_in(path: str, name: str, inner: str = "import sys; found.append(sys._getframe())") -> types.FrameType:
    found = list[types.FrameType]()
    exec(compile(inner, path, "exec"), {"__name__": name, "found": found})
    return found[0]


@pytest.mark.parametrize(
    ("path", "name", "said"),
    [
        ("/a/surgery/files/safetensors.py", "surgery.files.safetensors", "reading headers"),
        ("/a/surgery/evaluation/read.py", "surgery.evaluation.read", "reading tensors"),
        ("/a/surgery/checks/loadable.py", "surgery.checks.loadable", "asking the model's class"),
        ("/a/surgery/surgery/hub/push.py", "surgery.hub.push", "asking the Hub"),
        ("/a/torch/__init__.py", "torch", "loading torch"),
        ("/a/transformers/utils/x.py", "transformers.utils.x", "loading transformers"),
        ("/a/else.py", "else", ""),
    ],
)
def test_what_code_is_for(path: str, name: str, said: str) -> None:
    assert waiting.doing(frame_in(path, name)) == said


def test_the_package_that_was_asked_for_is_named() -> None:
    """transformers loads torch: what is waited for is transformers."""
    inner = "import types; exec(compile('import sys; found.append(sys._getframe())', '/a/torch/x.py', 'exec'), there)"
    found = list[types.FrameType]()
    outer = {"__name__": "transformers", "found": found, "there": {"__name__": "torch.x", "found": found}}
    exec(compile(inner, "/a/transformers/__init__.py", "exec"), outer)
    assert waiting.doing(found[0]) == "loading transformers"


def test_every_room_says_what_it_does() -> None:
    import surgery

    root = Path(surgery.__file__).parent
    assert all((root.parent / begin).exists() or (root.parent / f"{begin}.py").exists() for begin in waiting.DOES)
