"""The identity of a plan: a digest over all that its output's bytes depend on, and its inputs as the manifest names
them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluation.arithmetic import arithmetic_identity
from ..evaluation.spool import is_spooled, without_places
from ..files.refs import SCHEME, has_scheme
from ..lazy.tensor import File, Input, Stored, Tensor, has_arithmetic
from ..version import __version__
from .steps import ShardPlan


def described(source: Input) -> dict[str, Any]:
    """An input as the manifest names it: by digests, without the machine's paths; one on the Hub by its name and
    commit there.
    """
    remote = has_scheme(source.path)
    files = {
        f.path.rsplit("/", 1)[-1]: {"size": f.size, "git" if len(f.digest) == 40 else "sha256": f.digest}
        for f in source.files
    }
    what = "sha256 of the whole file" if source.role == "adapter" or remote else "sha256 of the header"
    name = source.path.removeprefix(SCHEME) if remote else source.path.rstrip("/").rsplit("/", 1)[-1]
    name = name.encode(errors="surrogateescape").decode(errors="backslashreplace")  # a folder may be called anything
    return {"role": source.role, "name": name, "digest": what, "files": files}


def identity_of(
    shards: Sequence[ShardPlan],
    scratch: ShardPlan | None,
    files: Mapping[str, File | bytes],
    options: Mapping[str, Any],
    inputs: Sequence[Input],
    history: Sequence[Mapping[str, Any]],
) -> str:
    """SHA-256 over all that the output's bytes depend on."""
    digest = hashlib.sha256(f"surgery {__version__}".encode())
    for source in inputs:
        for file in source.files:
            digest.update(f"{file.path}\0{file.size}\0{file.mtime_ns}\0{file.digest}\n".encode(errors="surrogatepass"))
    digest.update(json.dumps([options, list(history)], sort_keys=True).encode())
    names: dict[int, str] = {}
    for shard in [*shards, *([scratch] if scratch else [])]:
        digest.update(shard.name.encode() + b"\0" + shard.header)
        for slot in shard.slots:
            digest.update(_recipe(slot.tensor, names).encode(errors="surrogatepass"))
        if shard.sidecar:
            digest.update(shard.sidecar.recipe.encode())
    for path, carried in files.items():
        content = (
            hashlib.sha256(carried).hexdigest() if isinstance(carried, bytes) else f"{carried.size} {carried.mtime_ns}"
        )
        digest.update(f"{path}\0{content}\n".encode())
    if scratch or any(has_arithmetic(s.tensor) for shard in shards for s in shard.slots):
        digest.update(arithmetic_identity().encode())
    return digest.hexdigest()


def _recipe(tensor: Tensor, names: dict[int, str]) -> str:
    """A text that two tensors share only if they are made the same way."""
    if isinstance(tensor, Stored):
        path = "" if is_spooled(tensor.file) else tensor.file.path
        file = names.setdefault(id(tensor.file), f"{path} {tensor.file.digest}")
        return f"{tensor.dtype}{tensor.shape}@{tensor.offset} {file}\n"
    return without_places(repr(tensor))
