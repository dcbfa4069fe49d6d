"""In each worker of a Ray cluster that is started with this folder on its path: calls are watched while it makes
shards. See `nodes.py`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

NAME = "surgery.execution.node"


class Finder:
    """Finds the module of workers, and has its `work` watched."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> Any:
        if name != NAME:
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        spec: Any = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            module.work = watched(module.work)

        spec.loader.exec_module = exec_module
        return spec


def watched(work: Callable[[bytes, str], Any]) -> Callable[[bytes, str], Any]:
    def there(asked: bytes, node: str) -> Any:
        told = json.loads(os.environ["SURGERY_FAULT"])
        with suppress(FileExistsError):
            os.close(os.open(f"{told['told']}/first", os.O_CREAT | os.O_EXCL))
            told["once"] = False
        k = 0 if told["once"] else told["k"]
        names = os.open(f"{told['told']}/names-{os.getpid()}", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        shim = ctypes.CDLL(os.environ["SURGERY_SHIM"])
        shim.calls_watch(os.fsencode(told["root"]), ctypes.c_long(k), told["what"], -1, names)
        try:
            return work(asked, node)
        finally:
            shim.calls_watch(b"/nowhere", ctypes.c_long(0), 0, -1, -1)

    return there


if "SURGERY_FAULT" in os.environ and any("default_worker" in word for word in sys.orig_argv):
    sys.meta_path.insert(0, Finder())  # type: ignore[arg-type]
