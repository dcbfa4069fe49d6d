"""Names of what lies on the Hub: `org/name[@revision][/path]`, or the same after `hf://`.

Decided by the text alone: whether a file or a folder of that name is here is asked first, by `folder.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

from ..errors import SurgeryError

SCHEME = "hf://"
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
# A revision ends at the next slash, unless it is one of the Hub's own refs, or its slashes are written as %2F.
_BARE = re.compile(rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>refs/(?:convert|pr)/\w+|[^/@]+))?(?:/(?P<path>.+?))?/?")
_ALONE = re.compile(rf"(?P<repo>{_PART})(?:@(?P<revision>[^/@]+))?/?")  # a repository without an owner, such as gpt2
_KINDS = ("datasets", "spaces", "buckets", "kernels")
_FILES = (".safetensors", ".json", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".git")  # no repository is called so


@dataclass(frozen=True, slots=True)
class HubRef:
    """A repository of models, at a revision (None: its main branch), and a folder or a file inside it ("": all of
    it).
    """

    repo_id: str
    revision: str | None = None
    subfolder: str = ""

    def __str__(self) -> str:
        revision = self.revision or ""
        shown = revision if _is_ref_of_hub(revision) else quote(revision, safe="")
        return f"{SCHEME}{self.repo_id}{f'@{shown}' if shown else ''}{f'/{self.subfolder}' if self.subfolder else ''}"


def is_ref(text: str) -> bool:
    """Whether `text` can name something on the Hub: with `hf://` always, without it where it is spelled `org/name…`."""
    return has_scheme(text) or _bare(text) is not None


def has_scheme(text: str) -> bool:
    """Whether `text` says itself that it is on the Hub; a `Path` has lost one of the two slashes."""
    return text.startswith("hf:/")


def is_address(text: str) -> bool:
    """Whether `text` is an address elsewhere, such as https:// or s3://, and no path here, nor a name on the Hub."""
    return not has_scheme(text) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text) is not None


def name_of_url(text: str) -> str:
    """`org/name`, with a revision where one is named, for the address of a repository's page; "" for every other
    text.
    """
    found = re.fullmatch(
        rf"https?://(?:huggingface\.co|hf\.co)/(?P<repo>{_PART}/{_PART})(?:/(?:tree|blob|resolve)/(?P<rest>.+?))?/?",
        text,
    )
    if found is None or found["repo"].partition("/")[0] in _KINDS:
        return ""
    revision, _, path = (found["rest"] or "").partition("/")
    return f"{found['repo']}{f'@{revision}' if revision not in ('', 'main') else ''}{f'/{path}' if path else ''}"


def parse_ref(text: str) -> HubRef:
    """What `text` names. Raises SurgeryError where it is nothing on the Hub."""
    if not has_scheme(text):
        found = _bare(text)
    else:
        inner = text.removeprefix("hf:").lstrip("/")
        if inner.partition("/")[0] in _KINDS:
            raise SurgeryError(
                "only repositories of models hold checkpoints", where=[text], help=f"pass {SCHEME}org/name"
            )
        found = _matched(inner) or _ALONE.fullmatch(inner)
    if found is None:
        raise SurgeryError(
            "this names no repository on the Hub", where=[text], help=f"write {SCHEME}org/name[@revision][/folder]"
        )
    said = found.groupdict()
    revision = unquote(said["revision"]) if said["revision"] else None
    return HubRef(said["repo"], revision, said.get("path") or "")


def _bare(text: str) -> re.Match[str] | None:
    found = _matched(text)
    return None if found is None or found["repo"].endswith(_FILES) else found


def _matched(text: str) -> re.Match[str] | None:
    found = _BARE.fullmatch(text)
    if found is None or "--" in found["repo"] or ".." in found["repo"]:
        return None
    parts = (found["path"] or "x").split("/")
    return None if any(part in ("", ".", "..") for part in parts) else found


def _is_ref_of_hub(revision: str) -> bool:
    return re.fullmatch(r"refs/(?:convert|pr)/\w+", revision) is not None
