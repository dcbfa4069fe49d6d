"""An index that is stale: which files beside it hold the tensors that it names, whatever it calls them, and which
shards of its own set it leaves out.
"""

from __future__ import annotations

from collections.abc import Collection

from ..errors import SurgeryError, listed
from ..names import natural
from .folder import Folder
from .index import Index
from .numbered import numbered
from .refs import has_scheme, parse_ref


def holding(folder: Folder, index: Index) -> list[str]:
    """The safetensors files directly in `folder` that hold all tensors of the index between them, each once; none
    where they do not.
    """
    try:
        headers = folder.headers([name for name in folder.names() if name.endswith(".safetensors")])
    except SurgeryError:
        return []
    found = {shard: [n for n in header.entries if n in index.weight_map] for shard, (_, header) in headers.items()}
    if sorted(name for names in found.values() for name in names) != sorted(index.weight_map):
        return []
    return sorted((shard for shard, names in found.items() if names), key=natural)


def stale(folder: Folder, index: Index, name: str) -> str:
    """What to do where the index is stale alone, and the files in the folder hold just its tensors; "" where they do
    not.
    """
    shards = holding(folder, index)
    if not shards:
        return ""
    said = f"the index is stale: {', '.join(listed(shards, 3))} hold all its tensors"
    if not has_scheme(folder.path):
        return f"{said}; surgery reindex {folder.path} writes a right one beside them; or remove {name}"
    if len(shards) == 1:
        return f"{said}: pass that file, {folder.at(shards[0])}"
    return (
        f"{said}; download the repository (hf download {parse_ref(folder.path).repo_id} --local-dir DIR), surgery"
        " reindex DIR, and pass DIR"
    )


def left_out(folder: Folder, shards: Collection[str]) -> list[str]:
    """The numbered shards in the folder that belong to the set of these, by stem and count, and are none of them."""
    sets = {found.groups() for found in numbered(list(shards))}
    others = numbered([name for name in folder.names() if name not in shards])
    return sorted((found[0] for found in others if found.groups() in sets), key=natural)
