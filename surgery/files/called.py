"""What a checkpoint or an adapter is called, for a history that others read: never a path of the machine."""

from __future__ import annotations

import os
import re

from ..errors import SurgeryError
from .refs import has_scheme, parse_ref

CACHED = re.compile(r".*/models--(?P<org>[^/]+?)--(?P<name>[^/]+)/snapshots/[^/]+(?P<folder>/.+)?")


def called(path: str) -> str:
    """Its name on the Hub, where it lies there or in the Hub's cache; else the last part of its path."""
    if has_scheme(path):
        return _on_hub(path)
    whole = os.path.abspath(path)
    if found := CACHED.fullmatch(whole):
        return f"{found['org']}/{found['name']}{found['folder'] or ''}"
    return os.path.basename(whole)


def _on_hub(path: str) -> str:
    try:
        ref = parse_ref(path)
    except SurgeryError:
        return path.rstrip("/").rpartition("/")[2]
    return f"{ref.repo_id}/{ref.subfolder}" if ref.subfolder else ref.repo_id
