"""What a repository on the Hub holds now: its branches, tags, pull requests and files."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ..errors import HubConflict, NotOnHub
from .client import retried, translated
from .content import PushPlan, Remote

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def remote_file(api: HfApi, repo_id: str, revision: str, path: str, what: str = "config") -> bytes:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    def fetch() -> bytes:
        answer = get_session().get(
            hf_hub_url(repo_id, path, revision=revision, endpoint=api.endpoint), headers=build_hf_headers()
        )
        hf_raise_for_status(answer)
        return bytes(answer.content)

    return retried(fetch, f"read the {what}", [f"{repo_id}: {path}"])


def about_repository(api: HfApi, repo_id: str) -> Any:
    """What the Hub says of the repository; None where it has none of that name, or shows none."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return retried(lambda: api.model_info(repo_id), "look at the repository", [repo_id])
    except NotOnHub as error:
        if isinstance(error.__cause__, RepositoryNotFoundError) and not isinstance(error.__cause__, GatedRepoError):
            return None
        raise


def head_of(api: HfApi, repo_id: str, revision: str) -> str:
    """The commit that the branch is at; "" where there is no such branch."""
    refs = refs_of(api, repo_id)
    if revision in refs:
        return refs[revision]
    if revision.startswith("refs/") or re.fullmatch(r"[0-9a-f]{40}", revision):
        tip = "pass the name of a branch; it is made if it is not there"
        raise NotOnHub("there is no such branch or pull request to push to", where=[f"{repo_id}: {revision}"], help=tip)
    return ""


def refs_of(api: HfApi, repo_id: str) -> dict[str, str]:
    """Branches by name, and pull requests as refs/pr/N: the commit that each is at."""
    found = retried(lambda: api.list_repo_refs(repo_id, include_pull_requests=True), "list the branches", [repo_id])
    return {ref.name: ref.target_commit for ref in found.branches} | {
        ref.ref: ref.target_commit for ref in found.pull_requests or []
    }


def tree_of(api: HfApi, repo_id: str, revision: str, doing: str = "list the files") -> dict[str, Remote]:
    """All files of a revision."""
    from huggingface_hub.hf_api import RepoFile

    with translated(doing, [f"{repo_id}@{revision}"]):
        entries = [e for e in api.list_repo_tree(repo_id, recursive=True, revision=revision) if isinstance(e, RepoFile)]
    return {e.path: Remote(e.size, e.blob_id, e.lfs.sha256 if e.lfs else "") for e in entries}


def check_tag(api: HfApi, plan: PushPlan, commit: str) -> None:
    """A tag of that name, if there is one, names `commit`: another one is in the way."""
    tags = retried(lambda: api.list_repo_refs(plan.repo_id), "list the tags", [plan.repo_id]).tags if plan.tag else []
    if taken := [t.target_commit for t in tags if t.name == plan.tag and t.target_commit != commit]:
        raise HubConflict(
            f"the tag {plan.tag} is taken",
            where=[f"{plan.repo_id}: {plan.tag} names {taken[0]}"],
            help="choose another tag",
        )
