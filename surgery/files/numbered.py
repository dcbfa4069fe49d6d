"""Shards that are numbered: model-00001-of-00003.safetensors and such."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import islice

from ..errors import SHOWN, NotACheckpoint
from .folder import Folder

NUMBERED = re.compile(r"(?P<stem>.+)-\d+-of-(?P<count>\d+)\.(?P<end>safetensors|bin|pt|pth|ckpt)")


def numbered(names: Sequence[str]) -> list[re.Match[str]]:
    """Those of the names that are numbered; two are of one set where their groups are equal."""
    return [found for name in names if (found := NUMBERED.fullmatch(name))]


def check_all_there(folder: Folder, names: Sequence[str]) -> None:
    """Raise NotACheckpoint for numbered shards without an index that are not all there: half a model looks like a
    whole one.
    """
    shards = numbered(names)
    here = Counter(shard.groups() for shard in shards)
    for shard in shards:
        if here[shard.groups()] != int(shard["count"]):
            raise NotACheckpoint(
                f"{here[shard.groups()]} of {int(shard['count'])} shards were given, and no index",
                where=[folder.at(shard[0])],
                help="pass the folder with all of them; if some are missing there, fetch them, or the index",
            )


def missing_below(found: Collection[int]) -> list[str]:
    """The numbers that are missing below the highest, for a message: the first few, and how many more. As much work as
    there are numbers, however high one is.
    """
    top = max(found, default=-1)
    first = [str(number) for number in islice((n for n in range(top) if n not in found), SHOWN)]
    rest = top + 1 - len(found) - len(first)
    return [*first, f"(+{rest} more)"] if rest else first
