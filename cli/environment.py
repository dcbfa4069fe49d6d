"""What a bug report needs of the surroundings: versions, the machine's kind, where things are cached.

Names nobody, no machine and no token: the home folder is `~`, and what a variable holds besides a path is left out.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from surgery.units import size
from surgery.version import __version__

PACKAGES = (
    "torch safetensors huggingface_hub hf-xet transformers tokenizers numpy rich typer PyYAML zstandard accelerate peft"
    " ray bitsandbytes matplotlib textual".split()
)
CACHES = {"HF_HOME": "~/.cache/huggingface", "HF_HUB_CACHE": "", "HF_XET_CACHE": "", "TMPDIR": "/tmp"}
FLAGS = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET", "HF_XET_HIGH_PERFORMANCE", "NO_COLOR", "PYTHONHASHSEED")


def environment() -> dict[str, object]:
    """What there is, by name: versions of packages (None: not installed), the machine's kind, caches."""
    return {
        "surgery": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "libc": " ".join(platform.libc_ver()),
        "cpu": _cpu(),
        "cores": _cores(),
        "memory": _memory(),
        "installed in": "a virtual environment" if sys.prefix != sys.base_prefix else "the system",
        "encoding": f"{sys.stdout.encoding}, file names {sys.getfilesystemencoding()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "caches": dict(_caches(os.environ)),
        "set": {name: os.environ[name] for name in FLAGS if os.environ.get(name, "").isalnum()},
        "Hub": "another endpoint than huggingface.co" if os.environ.get("HF_ENDPOINT") else "huggingface.co",
    }


def _version(name: str) -> str | None:
    """Of an installed package, which is not imported for it."""
    with suppress(PackageNotFoundError):
        return version(name)
    return None


def _cpu() -> str:
    """The processor's model, and the widest vectors that it has."""
    lines = dict(_fields(Path("/proc/cpuinfo")))
    flags = {*lines.get("flags", lines.get("Features", "")).split()}
    wide = next((flag for flag in ("amx_tile", "avx512f", "avx2", "sve", "asimd") if flag in flags), "")
    return ", ".join(filter(None, (lines.get("model name", platform.processor() or platform.machine()), wide)))


def _cores() -> str:
    from surgery.execution.share import cores

    return f"{cores()} of {os.cpu_count()} may be used"


def _memory() -> str:
    total = dict(_fields(Path("/proc/meminfo"))).get("MemTotal", "")
    return size(int(total.split()[0]) << 10) if total else "unknown"


def _fields(path: Path) -> Iterator[tuple[str, str]]:
    with suppress(OSError):
        for line in path.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            yield name.strip(), value.strip()


def _caches(variables: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, usual in CACHES.items():
        if found := variables.get(name, usual):
            yield name, _without_home(found)


def _without_home(path: str) -> str:
    home = str(Path.home())
    return f"~{path.removeprefix(home)}" if path == home or path.startswith(f"{home}{os.sep}") else path
