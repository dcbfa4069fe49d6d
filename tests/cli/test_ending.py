"""How the command line ends where its streams are closed, full or no longer read, at Ctrl-C, and in a folder that is
gone: with a word and a status, never a traceback.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from handmade import write_phi3

SAYS = "from surgery_cli.ending import ended; ended(lambda: print('an answer' * {times}))"


def shell(line: str, *, code: str = SAYS.format(times=1), cwd: Path | None = None) -> tuple[int, str, str]:
    """(status, standard output, standard error) of a line of bash, in which `{}` is Python running `code`."""
    command = ["bash", "-c", "set -o pipefail; " + line.replace("{}", f'{sys.executable} -c "$CODE"'), "bash"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={"CODE": code, "PATH": "/usr/bin:/bin"}, check=False
    )
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("times", [1, 100_000])
def test_a_full_device_is_named(times: int) -> None:
    status, _, said = shell("{} > /dev/full", code=SAYS.format(times=times))
    assert status == 1
    assert said.splitlines()[0] == "error: the answer cannot be shown: No space left on device"
    assert said.splitlines()[1].startswith("help: point standard output elsewhere")


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-", "> /dev/null 2>&-"])
def test_closed_streams_lead_nowhere(closed: str) -> None:
    assert shell(f"{{}} {closed}")[0] == 0


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    code = f"from surgery_cli.ending import ended; ended(lambda: print(open({str(tmp_path / 'x')!r}, 'w').fileno()))"
    assert shell("{} >&-", code=code)[0] == 0
    code = (
        "import os; from surgery_cli.ending import ended\n"
        f"def body():\n    open({str(tmp_path / 'x')!r}, 'w').write('mine'); os.write(1, b'not yours')\n"
        "ended(body)"
    )
    assert shell("{} >&-", code=code)[0] == 0
    assert (tmp_path / "x").read_text() == "mine"


@pytest.mark.parametrize("times", [1, 100_000])
def test_a_pipe_that_nobody_reads_ends_it_in_silence(times: int) -> None:
    code = SAYS.format(times=times).replace("from", "import time; time.sleep(0.2); from", 1)
    assert shell("{} | true", code=code) == (141, "", "")


def test_neither_stream_takes_anything() -> None:
    assert shell("{} > /dev/full 2> /dev/full")[0] == 1


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        ("KeyboardInterrupt", 130, "interrupted\n"),
        ("SystemExit(7)", 7, ""),
        ("MemoryError", 1, "error: there is not enough memory\n"),
        ("RuntimeError('DefaultCPUAllocator: can\\'t allocate memory')", 1, "error: there is not enough memory\n"),
        ("ImportError('x.so: failed to map segment from shared object')", 1, "error: there is not enough memory\n"),
        ("RuntimeError('can\\'t start new thread')", 1, "error: the system starts no more threads\nhelp: "),
        ("PermissionError(13, 'Permission denied', 'a\\x1b[2J')", 1, "error: the system refuses: Permission denied\n"),
    ],
)
def test_what_is_raised_ends_it(raised: str, status: int, said: str) -> None:
    code = f"from surgery_cli.ending import ended\ndef body():\n    raise {raised}\nended(body)"
    done = shell("{}", code=code)
    assert (done[0], done[2][: len(said)]) == (status, said) and "\x1b" not in done[2]


def test_the_traceback_of_a_fault_is_to_be_had() -> None:
    code = (
        "import sys; sys.argv.append('--debug')\nfrom surgery_cli.ending import ended\nended(lambda: open('/none/x'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "FileNotFoundError" in done.stderr and "Traceback" in done.stderr


def test_nothing_heavy_is_imported_before_it_is_guarded() -> None:
    code = (
        "import sys, surgery_cli; print(sorted({'typer', 'rich', 'surgery', 'surgery_cli.app'} & sys.modules.keys()))"
    )
    assert shell("{}", code=code) == (0, "[]\n", "")


def test_ctrl_c_while_the_command_line_is_loaded() -> None:
    code = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'typer': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from surgery_cli import main; main()"
    )
    assert shell("{}", code=code) == (130, "", "interrupted\n")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phi3(tmp_path_factory.mktemp("ending") / "base", layers=1, hidden=16)


def test_in_a_folder_that_is_gone(tmp_path: Path, base: Path) -> None:
    """A whole path can be inspected; what is relative is refused, in words."""
    code = "from surgery_cli import main; main()"
    gone = tmp_path / "gone"
    status, found, _ = shell(f"mkdir {gone}; cd {gone}; rmdir {gone}; {{}} inspect --json {base}", code=code)
    assert status == 0 and json.loads(found)["model_type"] == "phi3"
    status, _, said = shell(f"mkdir {gone}; cd {gone}; rmdir {gone}; {{}} reshard {base} -o out", code=code)
    assert status == 1 and said.splitlines()[:2] == ["error: the working folder is not there any more", "  --> out"]


def test_a_merge_whose_report_nobody_reads_is_whole(tmp_path: Path, base: Path) -> None:
    code = "from surgery_cli import main; main()"
    status, _, said = shell(f"{{}} reshard -q --json {base} -o {tmp_path}/out > /dev/full", code=code)
    assert status == 1 and said.startswith("error: the answer cannot be shown")
    assert (tmp_path / "out" / ".surgery" / "manifest.json").exists()
