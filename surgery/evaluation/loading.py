"""Torch takes a while to load: that begins when a run needs it, in a thread of its own, beside copies and waits for the
disk; and what has to be known of it before is read without it.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import threading
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

_begun = threading.Lock()
_loading: threading.Thread | None = None
# What torch asks of an x86 for the code that it runs, the best first: flags as the kernel calls them.
_CAPABILITIES = {"AVX512": {"avx512vl", "avx512bw", "avx512dq", "fma"}, "AVX2": {"avx2", "fma"}, "DEFAULT": set[str]()}


def load_soon() -> None:
    """Torch is loaded, or being loaded."""
    global _loading
    with _begun:
        if _loading is None and "torch" not in sys.modules:
            _loading = threading.Thread(target=_load, name="surgery-torch")
            _loading.start()


def _load() -> None:
    with suppress(Exception):  # whoever computes imports it again, and is told
        import torch  # noqa: F401


def loaded() -> bool:
    """Whether whoever computes has not to wait."""
    return not (_loading and _loading.is_alive())


def version_and_capability() -> tuple[str, str]:
    """Torch's version, and the kind of code that it runs on this CPU: by torch where it is there, else as it would
    say.
    """
    if "torch" not in sys.modules and (told := _read()):
        return told
    import torch

    return str(torch.__version__), torch.backends.cpu.get_cpu_capability()


def _read() -> tuple[str, str] | None:
    """The same without torch; None where only torch can tell."""
    spec = find_spec("torch")
    if not spec or not spec.origin or platform.machine() != "x86_64" or "ATEN_CPU_CAPABILITY" in os.environ:
        return None
    with suppress(OSError):
        said = re.search(r"^__version__ = '([^']+)'", Path(spec.origin).with_name("version.py").read_text(), re.M)
        flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
        if said and flags:
            return said[1], capability(set(flags[1].split()))
    return None


def capability(flags: set[str]) -> str:
    """What torch calls an x86 with these flags."""
    return next(name for name, needed in _CAPABILITIES.items() if needed <= flags)
