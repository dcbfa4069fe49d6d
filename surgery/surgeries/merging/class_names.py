"""What the tensors of a base are called in a file of another class of its type: its body under the prefix of that
class, by names that transformers' renames turn into those in memory.

    ViTModel, in files    encoder.layer.0.attention.attention.query.weight
    in memory             layers.0.attention.q_proj.weight
    ViTForImage…          vit.layers.0.attention.q_proj.weight
    in files              vit.encoder.layer.0.attention.attention.query.weight
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ...checkpoint import Checkpoint
from ...errors import NotSupported
from ...models.names_v5 import Rename, in_memory, renames_of
from ...models.tasks import TaskClass, prefix_of

Fronts = tuple[str, str]  # what the names of the body begin with, and what they shall, each with its dot


def fronts_of(checkpoint: Checkpoint, kind: TaskClass) -> Fronts:
    """(what the names of the base's body begin with in memory, what they shall)."""
    renames = renames_of(checkpoint.config)
    return _fronts([in_memory(name, renames) for name in checkpoint.tensors], checkpoint, kind)


def under_class(checkpoint: Checkpoint, kind: TaskClass) -> Mapping[str, tuple[str, str | None]]:
    """A base tensor's name -> (in memory, in a file of the class; None where that leaves it out).

    What stands beside the body keeps its name. Raises NotSupported where no name in a file becomes the one in memory.
    """
    now = renames_of(checkpoint.config)
    then = renames_of({**checkpoint.config, "architectures": [kind.name]})
    called = {name: in_memory(name, now) for name in checkpoint.tensors}
    fronts = _fronts(called.values(), checkpoint, kind)
    return {name: (one, _in_file(checkpoint, name, one, kind, fronts, then)) for name, one in called.items()}


def _fronts(names: Collection[str], checkpoint: Checkpoint, kind: TaskClass) -> Fronts:
    here = [f"{one}." for one in dict.fromkeys((kind.prefix, prefix_of(checkpoint.config))) if one]
    old = next((front for front in here if any(name.startswith(front) for name in names)), "")
    return old, f"{kind.prefix}." if kind.prefix else ""


def _in_file(
    checkpoint: Checkpoint, name: str, called: str, kind: TaskClass, fronts: Fronts, renames: list[Rename]
) -> str | None:
    """The name that transformers loads as what the class has for this tensor: as much like the base's as may be."""
    old, new = fronts
    bare = called.removeprefix(old)
    if bare.partition(".")[0] in kind.lacks and called.startswith(old):
        return None
    wanted = f"{new}{bare}" if called.startswith(old) else called
    offers = [f"{new}{name.removeprefix(old)}" if wanted != called else name, name, wanted]
    found = next((one for one in offers if in_memory(one, renames) == wanted), None)
    if found is None:
        raise NotSupported(
            f"what {kind.name} calls a tensor in its files is not known",
            where=[f"base: {checkpoint.path}: {name}", f"in memory: {wanted}"],
            help=f"load it as a {kind.name}, save it, and merge into that",
        )
    return found
