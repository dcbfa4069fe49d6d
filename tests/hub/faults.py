"""What can go wrong on demand. Each fault counts how often it fired, so that a test of a failure proves that there
was one.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Status:
    """This answer in place of the true one; the request is not carried out."""

    code: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Drop:
    """The connection is reset after `after` bytes of the request's body; the request is not carried out."""

    after: int = 0


@dataclass(frozen=True)
class Lost:
    """The request is carried out, and the connection reset in place of an answer."""


@dataclass(frozen=True)
class Reset:
    """The connection is reset after `after` bytes of the answer's body."""

    after: int


@dataclass(frozen=True)
class Short:
    """The connection is closed, as if all were well, after `after` bytes of the answer's body."""

    after: int


@dataclass(frozen=True)
class Slow:
    """The answer's body comes in pieces of `piece` bytes with `pause` seconds between them."""

    piece: int = 1 << 16
    pause: float = 0.01


@dataclass(frozen=True)
class Before:
    """`do` is called before the request is carried out as usual."""

    do: Callable[[], object]


Kind = Status | Drop | Lost | Reset | Short | Slow | Before


@dataclass
class Fault:
    """A fault of a kind for requests whose `METHOD /path?query` holds `pattern`, the first `times` of them after
    `skip`.
    """

    kind: Kind
    pattern: str
    times: int
    skip: int = 0
    origin: str = ""
    fired: int = 0


class Faults:
    """The faults that are set; the first one that matches a request fires."""

    def __init__(self) -> None:
        self.set: list[Fault] = []
        self._lock = threading.Lock()

    def fires(self, origin: str, line: str) -> Kind | None:
        with self._lock:
            for fault in self.set:
                if fault.fired >= fault.times or fault.origin not in ("", origin) or not re.search(fault.pattern, line):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.fired += 1
                return fault.kind
        return None
