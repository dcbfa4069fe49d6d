"""`.surgery/manifest.json`: what was done to make a folder, with what, and which files of it are ours.

Its presence marks a folder as written by surgery. It holds no time, no user and no absolute path, so the same surgery
gives the same bytes anywhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import FormatError, shown
from .folder import Folder, LocalFolder
from .history import check_history, check_inputs
from .strict import LONE, parse_object

MANIFEST = ".surgery/manifest.json"
FORMAT = 1
MEND = "restore it from a copy, or remove it: then nothing says what was done to the folder"


@dataclass(frozen=True, slots=True)
class Manifest:
    """A parsed manifest; `files` maps each written file to its bytes, `identity` names the plan that wrote them.

    `digests` has the content of those that are not large and no shards: SHA-256, or git's hash; empty in older
    manifests.
    """

    version: str
    identity: str
    history: tuple[Mapping[str, Any], ...]
    inputs: tuple[Mapping[str, Any], ...]
    options: Mapping[str, Any]
    files: Mapping[str, int]
    digests: Mapping[str, str] = field(default_factory=dict)
    recipe: Mapping[str, Any] | None = None  # by which `surgery run` makes it again


def encode_manifest(manifest: Manifest) -> bytes:
    """The file's bytes."""
    content = {
        "format": FORMAT,
        "tool": "surgery",
        "version": manifest.version,
        "identity": manifest.identity,
        "history": list(manifest.history),
        "inputs": list(manifest.inputs),
        "options": dict(manifest.options),
        **({"recipe": manifest.recipe} if manifest.recipe else {}),
        "files": dict(manifest.files),
        **({"digests": dict(manifest.digests)} if manifest.digests else {}),
    }
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return LONE.sub(_shown, text).encode("utf-8")


def _shown(found: re.Match[str]) -> str:
    """A byte of a path that is no text, in JSON, as it is shown: a folder may be called anything."""
    code = ord(found[0])
    return f"\\\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\\\u{code:04x}"


def read_manifest(folder: str | Folder) -> Manifest | None:
    """The manifest in `folder`, or in the local folder of that path; None where there is none. Raises FormatError
    where it is broken.
    """
    folder = LocalFolder(folder) if isinstance(folder, str) else folder
    if not folder.has(MANIFEST):
        return None
    path = folder.at(MANIFEST)
    content = parse_object(folder.read(MANIFEST), lambda what: FormatError(what, where=[path], help=MEND))
    return manifest_of(content, path)


def manifest_of(content: Mapping[str, Any], path: str) -> Manifest:
    """The manifest that the content of a file at `path` is. Raises FormatError where it is none."""
    try:
        if content["tool"] != "surgery" or content["format"] != FORMAT:
            what = f"a manifest of format {shown(content['format'])} by {shown(content['tool'])}"
            raise FormatError(what, where=[path], help=f"this reads format {FORMAT}: take the version that wrote it")
        check_history(content["history"])
        check_inputs(content["inputs"])
        return Manifest(
            str(content["version"]),
            str(content["identity"]),
            tuple(dict(step) for step in content["history"]),
            tuple(dict(entry) for entry in content["inputs"]),
            dict(content["options"]),
            {str(k): int(v) for k, v in content["files"].items()},
            {str(k): str(v) for k, v in content.get("digests", {}).items()},
            dict(content["recipe"]) if "recipe" in content else None,
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise FormatError(f"the manifest is not one that surgery writes: {error!r}", where=[path], help=MEND) from error
