"""The paths of a plan's outputs: each is a file inside the output's folder, and none stands where another is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..checkpoint import UNDO
from ..errors import DestinationError, PlanError, listed
from ..files.manifest import MANIFEST
from ..files.paths import GIT, faults_in, folded, within
from .steps import ShardPlan

KEPT = (".surgery", GIT)  # programs believe, or run, what lies in these folders
_MEND = "rename it where it comes from: a shard in the index, a file in the source folder"


def outputs_of(shards: Sequence[ShardPlan], files: Iterable[str]) -> list[tuple[str, str]]:
    """(path, what it is) of all that a run leaves. `files` are the carried ones, the index, and the undo record of
    the base.
    """
    records = [s.sidecar.name for s in shards if s.sidecar]
    ours = {UNDO} if records else set()
    return [
        *((shard.name, "a shard") for shard in shards),
        *((path, "an undo record") for path in records),
        *((path, "an undo record" if path in ours else "a carried file") for path in files),
        (MANIFEST, "the manifest"),
    ]


def check_paths(shards: Sequence[ShardPlan], files: Iterable[str]) -> None:
    """Each output is a file inside the folder, with no other at its path or above it; `.surgery/` holds ours alone.

    `files` are without the manifest. Raises PlanError.
    """
    outputs = outputs_of(shards, files)
    if wrong := faults_in(path for path, _ in outputs):
        raise PlanError(
            f"{len(wrong)} outputs would have names that are no paths inside a folder", where=listed(wrong), help=_MEND
        )
    given = [path for path, what in outputs if what in ("a shard", "a carried file")]
    if kept := [path for path in given if _is_kept(path)]:
        what = f"{len(kept)} outputs would lie in a folder that is not theirs"
        raise PlanError(
            what, where=listed(kept), help=f"nothing is carried into {' or '.join(KEPT)}; rename it where it comes from"
        )
    _check_apart(outputs)


def _is_kept(path: str) -> bool:
    """Whether it lies in surgery's own folder, or in one of git's, at any depth."""
    parts = path.casefold().split("/")
    return parts[0] in KEPT or GIT in parts


def _check_apart(outputs: Sequence[tuple[str, str]]) -> None:
    """No two have one path, and none is a folder of another's."""
    there: dict[str, str] = {}
    both: dict[tuple[str, str], list[str]] = {}
    for path, what in outputs:
        if path in there:
            both.setdefault((there[path], what), []).append(path)
        there[path] = what
    for (one, other), paths in both.items():
        raise PlanError(
            f"{one} and {other} would have the same path",
            where=listed(paths),
            help="rename the file in the source folder",
        )
    if nested := [
        f"{above}: {there[above]}, and the folder of {path}"
        for path in there
        for above in within(path)
        if above in there
    ]:
        raise PlanError("a file and a folder would have the same path", where=listed(nested), help=_MEND)


def check_distinct(paths: Iterable[str], dest: str) -> None:
    """Where letter case makes no difference, no two outputs differ in that alone. Raises DestinationError."""
    there: dict[str, str] = {}
    alike = [f"{path}, {there[folded(path)]}" for path in paths if there.setdefault(folded(path), path) != path]
    if alike:
        tip = "choose another output with -o, or rename one of them where it comes from"
        raise DestinationError(
            "outputs differ in letter case alone, and the disk takes no notice of it",
            where=[dest, *listed(alike)],
            help=tip,
        )
