"""Shared fixtures: small checkpoints are made once per session, and never written to."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """saved(family, shard=None, dtype=torch.float32) -> the folder of a real checkpoint; the same call, the same folder."""
    from tiny_models import save

    made: dict[tuple[object, ...], Path] = {}

    def get(family: str, **options: object) -> Path:
        key = (family, *sorted((k, str(v)) for k, v in options.items()))
        if key not in made:
            made[key] = save(family, tmp_path_factory.mktemp(family), **options)  # type: ignore[arg-type]
        return made[key]

    return get


def hashes(folder: Path, *, without: tuple[str, ...] = (".surgery",)) -> dict[str, str]:
    """SHA-256 of every file below `folder`, by relative path, but for paths that begin with one of `without`."""
    found = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        if path.is_file() and not relative.startswith(without):
            found[relative] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
