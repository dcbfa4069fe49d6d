"""Shards that are numbered: model-00001-of-00003.safetensors and such."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from ..errors import NotACheckpoint
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
