"""What comes of an input: it is read, or refused by an error of surgery's; anything else is wrong."""

from __future__ import annotations

import time
import traceback
from pathlib import Path

import surgery
from surgery.errors import SurgeryError

from .harnesses import Harness

SLOW = 3.0  # seconds of the processor that no input may take, with every line of it counted
ROOT = Path(surgery.__file__).parent.as_posix()


class Wrong(Exception):
    """An input that was answered wrongly: `kind` says how, in a line that is the same for all inputs of that kind."""

    def __init__(self, kind: str, told: str) -> None:
        super().__init__(f"{kind}\n{told}")
        self.kind = kind


def judged(harness: Harness, raw: bytes, slow: float = SLOW) -> bool:
    """Whether the input was read, and not refused. Raises Wrong."""
    begun = time.process_time()
    try:
        harness.read(raw)
        read = True
    except SurgeryError as error:
        _check_told(error)
        read = False
    except Wrong:
        raise
    except Exception as error:
        raise Wrong(_kind(error), traceback.format_exc(limit=-6)) from error
    if (took := time.process_time() - begun) > slow:
        raise Wrong("slow", f"{took:.1f} s")
    return read


def _kind(error: Exception) -> str:
    frames = [one for one in traceback.extract_tb(error.__traceback__) if one.filename.startswith(ROOT)]
    at = f"{frames[-1].filename[len(ROOT) + 1 :]}:{frames[-1].lineno}" if frames else "outside"
    return f"{type(error).__name__} at {at}"


def _check_told(error: SurgeryError) -> None:
    """An error that can be shown, in a bounded text without what a terminal obeys."""
    told = str(error)
    if not told or any(not character.isprintable() and character != "\n" for character in told):
        raise Wrong("an error with control characters", repr(told))
    if len(told) > 50_000:
        raise Wrong("an error of more than 50,000 characters", told[:300])
