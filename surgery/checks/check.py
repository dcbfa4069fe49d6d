"""What a verification answers: checks, and what was held against a base and adapters."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import VerificationFailed, printable
from .proof import Proof


@dataclass(frozen=True, slots=True)
class Check:
    """One answer: `ok` is None where the question could not be asked, and `detail` says why."""

    name: str
    ok: bool | None
    detail: str
    where: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        raise TypeError("a check may be unanswered: ask for `ok`, which is True, False or None")


@dataclass(frozen=True, slots=True)
class Verification:
    """The answers for the checkpoint or adapter at `path`; `proof` where it was held against a base and adapters."""

    path: str
    checks: tuple[Check, ...]
    proof: Proof | None = None

    def __repr__(self) -> str:
        failed = sum(check.ok is False for check in self.checks)
        return f"<Verification of {printable(self.path)}: {len(self.checks)} checks, {failed} failed>"

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(check.ok is not False for check in self.checks)

    def __bool__(self) -> bool:
        return self.ok

    def require(self) -> None:
        """Raise VerificationFailed, with all that failed, unless all is well."""
        failed = [check for check in self.checks if check.ok is False]
        if failed:
            rows = [row for check in failed for row in (f"{check.name}: {check.detail}", *check.where)]
            tip = f"mend that, and run again; surgery verify {self.path} asks the same" if self.proof is None else None
            what = f"{len(failed)} of {len(self.checks)} checks failed"
            raise VerificationFailed(what, where=[self.path, *rows], help=tip)
