"""A report of a checkpoint: what it is, what changed in it, whether that is right, how it was made: one HTML file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..checkpoint import Checkpoint, open_checkpoint
from ..checks.change_map import ChangeMap
from ..checks.check import Verification
from ..checks.diff import OnTensor
from ..checks.inspection import Inspection, inspect_checkpoint
from ..checks.map_changes import map_changes
from ..checks.shard_map import shard_map
from ..checks.steps import told
from ..checks.verify import verify
from ..errors import printable
from ..files.adapters.opening import open_adapter
from ..files.folder import folder_at
from ..files.manifest import Manifest, read_manifest
from ..opened import takes_opened
from .gathered import Gathered
from .page import page_of
from .writing import check_picture, write_picture

_READING = ("format", "alpha", "enable_lora")


@dataclass(frozen=True)
class ReportPage:
    """A report, as one HTML file; with what it shows: `inspection`, and `changes` and `verification`, where there are
    any.
    """

    html: str
    inspection: Inspection
    changes: ChangeMap | None
    verification: Verification | None
    inputs: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<ReportPage of {printable(self.inspection.path)}: {len(self.html.encode())} bytes of HTML>"

    def _repr_html_(self) -> str:
        """In a notebook: the page, in a frame that reaches nothing around it."""
        from html import escape

        return f'<iframe sandbox="allow-scripts" width="100%" height="800" srcdoc="{escape(self.html)}"></iframe>'

    def check(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Raise DestinationError where `write` would."""
        check_picture(path, self.inputs, overwrite=overwrite)

    def write(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write it to `path`, whole or not at all. Raises DestinationError where a file is there, unless `overwrite`,
        and where it would lie in what it is of.
        """
        write_picture(path, self.html.encode(), self.inputs, overwrite=overwrite)


@takes_opened
def report(
    model: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    adapter: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    on_tensor: OnTensor | None = None,
    **said: Any,
) -> ReportPage:
    """A report of the checkpoint at `model`: what it is, its shards, dtypes, lineage and recipe.

    With `base`, also what differs from that; with `adapter`, what merging it into `model` would change; with both,
    what the merge changed, and the proof. What is `said` of merging and of adapters is as for `verify`. Nothing is
    written; raises what `verify` and `merge` raise.
    """
    adapters = [adapter] if isinstance(adapter, str | os.PathLike) else list(adapter)
    checkpoint = open_checkpoint(model)
    proved = base is not None and bool(adapters)
    on_tensor = _twice(on_tensor) if proved and on_tensor is not None else on_tensor
    checked = verify(model, check_class=False, check_record=False, on_tensor=on_tensor, **_proof(base, adapters, said))
    changes = None
    if proved:
        assert base is not None
        changes = map_changes(base, model, adapter=adapters, on_tensor=on_tensor, **said)
    elif base is not None:
        changes = map_changes(base, model, on_tensor=on_tensor)
    elif adapters:
        changes = map_changes(model, adapter=adapters, on_tensor=on_tensor, **said)
    reading = {key: said[key] for key in _READING if said.get(key) is not None}
    opened = tuple(open_adapter(one, **reading) for one in adapters)
    manifest = _manifest(checkpoint)
    found = Gathered(
        checkpoint,
        open_checkpoint(base) if base is not None else None,
        opened,
        inspect_checkpoint(checkpoint),
        shard_map(checkpoint),
        checked,
        changes,
        tuple(map(told, checkpoint.history)),
        _recipe(manifest),
        {"version": manifest.version, "inputs": manifest.inputs} if manifest else {},
    )
    return ReportPage(page_of(found), found.inspection, changes, checked, tuple(found.files))


def _twice(on_tensor: OnTensor) -> OnTensor:
    """For all bytes being gone through twice."""
    return lambda name, nbytes, total: on_tensor(name, nbytes, 2 * total)


def _proof(base: object, adapters: Sequence[object], said: Mapping[str, Any]) -> dict[str, Any]:
    """What `verify` is asked: the proof, where there are both."""
    return {"base": base, "adapter": adapters, **said} if base is not None and adapters else {}


def _manifest(checkpoint: Checkpoint) -> Manifest | None:
    folder = folder_at(checkpoint.path)
    return read_manifest(folder) if folder else None


def _recipe(manifest: Manifest | None) -> str:
    """The recipe in YAML."""
    if manifest is None or not manifest.recipe:
        return ""
    import yaml

    return yaml.safe_dump(dict(manifest.recipe), sort_keys=False, allow_unicode=False, width=100)
