"""Laws of signals: a run that is asked to end does so in words, leaves what a rerun resumes and nobody at work; what
is to be ignored is.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import hashes
from handmade import write_phi3

import surgery
from surgery.execution.stage import stages

# `surgery`, whose run says when its second shard is finished, and then waits for a line.
WAITING = """
import os, sys
from surgery.execution import execute
real, finished = execute._serial, []
def serial(on_step):
    def held(step):
        finished.extend([step.name] if step.kind == "finished" else [])
        if step.kind == "finished" and len(finished) == 2:
            os.write(1, b"here\\n")
            sys.stdin.readline()
    return real(held)
execute._serial = serial
import surgery_cli
surgery_cli.main()
"""
ENDED = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phi3(tmp_path_factory.mktemp("signals") / "base", layers=4, hidden=32)


def begun(base: Path, dest: Path, before: Callable[[], object] = lambda: None) -> subprocess.Popen[str]:
    """A run in the middle, in a group of its own."""
    words = ["reshard", str(base), "-o", str(dest), "--workers", "2", "--max-shard-size", "8KB"]
    run = subprocess.Popen(
        [sys.executable, "-c", WAITING, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=before,
    )
    assert run.stdout and run.stdout.readline() == "here\n"
    return run


def check_resumed(base: Path, dest: Path, tmp_path: Path) -> None:
    """A rerun takes up what is finished, and ends in the bytes of an undisturbed run."""
    (left,) = stages(str(dest))
    assert [path.name for path in dest.parent.iterdir()] == [Path(left).name]
    there = sum(path.stat().st_size for path in Path(left).glob("*.safetensors"))
    report = surgery.write(surgery.open_checkpoint(base), dest, "8KB")
    assert report.resumed == there > 0
    surgery.write(surgery.open_checkpoint(base), tmp_path / "want", "8KB")
    assert hashes(dest, without=()) == hashes(tmp_path / "want", without=())


@pytest.mark.parametrize("number", ENDED)
@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_ends_a_run(base: Path, tmp_path: Path, number: signal.Signals, times: int) -> None:
    """Once or twice: with its own status, in words, with no lock left and no process of the group."""
    dest = tmp_path / "o" / "out"
    run = begun(base, dest)
    for _ in range(times):
        run.send_signal(number)
    stdout, stderr = run.communicate("\n", timeout=60)
    assert run.returncode == ENDED[number]
    assert stderr.startswith("interrupted: the destination is as it was\nhelp: finished shards are kept beside it")
    assert "Traceback" not in stderr + stdout and not dest.exists()
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)
    check_resumed(base, dest, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_was_ignored_at_the_start_stays_so(base: Path, tmp_path: Path, number: signal.Signals) -> None:
    """As nohup has it, and as shells start what runs in the background."""
    dest = tmp_path / "o" / "out"
    run = begun(base, dest, lambda: signal.signal(number, signal.SIG_IGN))
    run.send_signal(number)
    _, stderr = run.communicate("\n", timeout=60)
    assert (run.returncode, stderr) == (0, "") and [p.name for p in dest.parent.iterdir()] == ["out"]


def test_a_signal_while_the_command_line_is_loaded() -> None:
    code = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'typer': os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from surgery_cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "interrupted\n")
