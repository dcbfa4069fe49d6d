"""The command line in a child of this process, which has imported all that commands do: a run costs milliseconds."""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

CRASHED = 98  # how a command ends that ends in an exception


def warmed() -> None:
    """All that commands import is imported, and is not looked at again by the collector of what is unused."""
    import numpy  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch

    import surgery
    import surgery_cli

    torch.set_num_threads(1)
    for package in (surgery, surgery_cli):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.endswith("__main__"):
                importlib.import_module(found.name)
    practised(["env"])
    gc.freeze()


def practised(*commands: Sequence[str]) -> None:
    """Commands that are done in this process, for what they import."""
    from typer.testing import CliRunner

    from surgery_cli.app import app

    _commands()
    for words in commands:
        CliRunner().invoke(app, list(words))


@cache
def _commands() -> Callable[[], object]:
    """The command line with all its options, which takes a tenth of a second to put together."""
    from typer.main import get_command

    from surgery_cli.app import app

    return get_command(app)


def command_line() -> None:
    """What a user runs."""
    from surgery_cli.ending import ended

    ended(_commands())


def streams_into(said: Mapping[int, Path]) -> None:
    """Standard output and error of this process go to files."""
    for number, path in said.items():
        fd = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
        os.dup2(fd, number)
        os.close(fd)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in said)


def command(words: Sequence[str], temporary: Path) -> int:
    """Run a command in this process, and end as a process does: its exit status."""
    return status_of(command_line, words, temporary)


def status_of(main: Callable[[], object], words: Sequence[str], temporary: Path) -> int:
    """The exit status of a process whose arguments are `words`, and that does `main`. What the process that it was
    forked from has for its own end stays that one's.
    """
    from surgery.evaluation import spool

    weakref.finalize._registry.clear()  # type: ignore[attr-defined]
    spool._folders.clear()
    tempfile.tempdir = str(temporary)
    sys.argv = ["surgery", *words]
    code = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1 if ended.code else 0
    except BaseException:
        import traceback

        traceback.print_exc()
        code = CRASHED
    weakref.finalize._exitfunc()  # type: ignore[attr-defined]  # as at the end of a process: temporary folders go
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    return code
