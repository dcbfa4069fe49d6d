"""Which files of an output are no longer what surgery wrote: told by size, and where the manifest has a digest, by
content.
"""

from __future__ import annotations

from ..errors import FormatError
from ..evaluation.read import git_hash, sha256
from ..lazy.tensor import File
from .folder import Folder
from .manifest import Manifest


def edited(folder: Folder, manifest: Manifest) -> dict[str, str]:
    """What became of each file that is not as it was written, by its path. Shards, and manifests without digests: by
    size alone.
    """
    return {name: what for name in manifest.files if (what := _edit(folder, manifest, name))}


def _edit(folder: Folder, manifest: Manifest, name: str) -> str:
    if not folder.has(name):
        return "missing"
    try:
        file = folder.file(name)
    except FormatError as error:
        return error.what
    if file.size != manifest.files[name]:
        return f"{file.size} bytes, and not of the size that surgery wrote, {manifest.files[name]}"
    digest = manifest.digests.get(name, "")
    return "edited: its content is another, of the same size" if digest and _hash_like(digest, file) != digest else ""


def _hash_like(digest: str, file: File) -> str:
    """The file's hash, of the kind of `digest`: git's, or SHA-256."""
    if file.remote and len(file.digest) == len(digest):
        return file.digest
    return git_hash(file) if len(digest) == 40 else sha256(file)
