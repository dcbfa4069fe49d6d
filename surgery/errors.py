"""The error tree. Each error says what is wrong, where, and how to mend it.

    SurgeryError
    ├── WrongUsage            what was said contradicts itself, whatever it is said of
    ├── FormatError           bytes that are not what their format demands (safetensors, index, config)
    ├── NotACheckpoint        a path that holds nothing we can open
    ├── NothingMatched        a pattern or a surgery that found no tensor
    ├── LayoutError           a fused tensor that does not fit its layout, or whose layout is unknown
    ├── AdapterError          an adapter that cannot be applied
    │   ├── NotPlaced         its tensors have no place in the base
    │   └── NotSupported      its kind or one of its options is not supported
    ├── PlanError             names collide, tensors are unaccounted for, metadata contradicts itself
    ├── DestinationError      the output may not be written there
    ├── NoSpace               the disk is, or would be, full
    ├── SourceChanged         an input changed after it was opened
    ├── VerificationFailed    a checkpoint that is not what it should be
    └── HubError              the Hub refused, failed, or could not be reached
        ├── NotAllowed        the token may not do that, or there is none
        ├── NotOnHub          no such repository, revision or file
        ├── HubConflict       someone else changed the repository meanwhile
        └── HubUnreachable    no answer, or none but errors, after all tries

What, where and help are lower case, without a full stop, with real values in them. Options are written as the
command line has them; `str` adds what they are in Python, by the rule in `arguments.py`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from .arguments import in_python

SHOWN = 5
LONGEST, END, MOST_LINES = 1_000, 200, 200  # characters of a line of a message, and of its end; lines


class SurgeryError(Exception):
    """`what` went wrong, `where` (one line each), and the `help` that mends it."""

    def __init__(self, what: str, *, where: Iterable[str] = (), help: str | None = None) -> None:
        self.what = public(what)
        self.where = tuple(map(public, where))
        self.help = public(help) if help else help
        super().__init__(self.what)

    @property
    def told(self) -> str:
        """All of it, with options as the command line spells them."""
        lines = [_line(self.what)]
        lines += [f"  --> {_line(self.where[0])}"] if self.where else []
        lines += [f"      {_line(line)}" for line in listed(self.where[1:], MOST_LINES)]
        lines += [f"help: {_line(self.help)}"] if self.help else []
        return "\n".join(lines)

    def __str__(self) -> str:
        arguments = in_python(f"{self.what}; {self.help}")
        return f"{self.told}\n      {printable(arguments)}" if arguments else self.told

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.where, self.help)


def _rebuild(kind: type[SurgeryError], what: str, where: tuple[str, ...], help: str | None) -> SurgeryError:
    return kind(what, where=where, help=help)


class WrongUsage(SurgeryError):
    """What was said contradicts itself, whatever it is said of: the command line ends with status 2."""


class FormatError(SurgeryError):
    """Bytes that break a rule of their file format."""


class NotACheckpoint(SurgeryError):
    """A path that holds neither a checkpoint nor an adapter."""


class NothingMatched(SurgeryError):
    """A pattern, or a surgery, that matched no tensor."""


class LayoutError(SurgeryError):
    """A fused tensor that does not fit its layout, or whose layout is not known."""


class AdapterError(SurgeryError):
    """An adapter that cannot be applied."""


class NotPlaced(AdapterError):
    """Adapter tensors that have no place in the base."""


class NotSupported(AdapterError):
    """An adapter kind, option or dtype that is not supported."""


class PlanError(SurgeryError):
    """A checkpoint that cannot be written as it stands."""


class DestinationError(SurgeryError):
    """An output that may not be written where it was asked for."""


class NoSpace(SurgeryError):
    """Too little disk space."""


class SourceChanged(SurgeryError):
    """An input that changed after it was opened."""


class VerificationFailed(SurgeryError):
    """A checkpoint that is not what it should be."""


class HubError(SurgeryError):
    """The Hub refused, failed, or could not be reached."""


class NotAllowed(HubError):
    """What the token at hand may not do, or nobody without one."""


class NotOnHub(HubError):
    """A repository, a revision or a file that the Hub does not have, or does not show."""


class HubConflict(HubError):
    """A repository that someone else changed meanwhile."""


class HubUnreachable(HubError):
    """No answer from the Hub, or none but errors, after all tries."""


def _line(text: str) -> str:
    """A line of a message: printable, and cut in its midst where a file made it long: causes stand at the ends."""
    cut = f"{text[: LONGEST - END]}… ({len(text)} characters) …{text[-END:]}" if len(text) > LONGEST else text
    return printable(cut)


def printable(text: str) -> str:
    """The text with control characters escaped: a tensor's name may hold anything, and a terminal obeys."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


_NAMED = re.compile(r"\b(https?:/+)[^\s/]*@|\b([a-z][a-z0-9+.]*:/+)[^\s/@:]*:[^\s/]*@", re.IGNORECASE)
_ASKED = re.compile(r"\b(https?:/+[^\s?'\"`]+)\?[^\s'\"`]+", re.IGNORECASE)


def public(text: str) -> str:
    """The text without what its addresses may hold of secrets: name and password before the host, and the query."""
    return _ASKED.sub(r"\1?…", _NAMED.sub(r"\1\2…@", text)) if ":/" in text else text


def shown(value: object, most: int = 60) -> str:
    """A value of a file in a message: short, however long, deep or great it is."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        text = f"a {type(value).__name__} that is nested too deeply or too great"
    return text if len(text) <= most else f"{text[:most]}…"


def listed(items: Sequence[str], shown: int = SHOWN) -> list[str]:
    """The first `shown` items, then a count of the rest."""
    rest = len(items) - shown
    return [*items[:shown], *([f"(+{rest} more)"] if rest > 0 else [])]


def series(items: Iterable[str], by: str = ", ") -> str:
    """The items in a row, for a message: `none` where there are none, so that no message has a hole."""
    return by.join(items) or "none"


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names that look most like `name`, best first."""
    known = list(known)
    if len(known) > 5000:  # difflib is quadratic: compare within the names that share an ending
        tail = name.rsplit(".", 2)[-2:]
        known = [k for k in known if k.rsplit(".", 2)[-2:] == tail][:5000] or known[:5000]
    return difflib.get_close_matches(name, known, n=count, cutoff=0.5)
