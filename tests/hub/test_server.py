"""The Hub of the tests is one: the real client and transformers work with it as with the other, and its faults are
what they say.
"""

from __future__ import annotations

import http.client
import random
from pathlib import Path

import pytest
import torch
import transformers as tf
import transformers.utils.hub
from huggingface_hub import HfApi, ModelCard, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    BadRequestError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tiny_models import build, output

from hub.faults import Before, Drop, Kind, Lost, Reset, Short, Slow, Status
from hub.server import Hub


@pytest.mark.parametrize("redirect", [False, True])
def test_what_goes_up_comes_down(hub: Hub, mode: str, redirect: bool, tmp_path: Path) -> None:
    hub.redirect, hub.part_size = redirect, 1_000_000 if redirect else 0
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.safetensors").write_bytes(random.Random(0).randbytes(2_500_000))
    (folder / "sub" / "b.txt").write_bytes(b"text")
    HfApi().create_repo("org/name")
    HfApi().upload_folder(repo_id="org/name", folder_path=folder, commit_message="up")
    assert hub.titles("org/name") == ["up", "initial commit"]
    got = Path(snapshot_download("org/name"))
    for path in ("a.safetensors", "sub/b.txt"):
        assert (got / path).read_bytes() == (folder / path).read_bytes()
        assert hub.files("org/name")[path].read() == (folder / path).read_bytes()
    assert len(hub.seen("PUT /upload/")) == (0 if mode == "xet" else 3 if redirect else 1)
    assert bool(hub.seen("POST /v1/xorbs/")) == (mode == "xet")
    assert not [
        seen
        for seen in hub.log
        if seen.origin == "cdn" and seen.authorized and seen.path.startswith(("/upload", "/file"))
    ]


def test_transformers_push_and_load(hub: Hub, mode: str) -> None:
    """Sharded, through save_pretrained's own upload, and back: the same outputs."""
    model = build("llama")
    model.push_to_hub("org/llama", max_shard_size="100KB")
    assert len([path for path in hub.files("org/llama") if path.endswith(".safetensors")]) > 1
    again = tf.AutoModelForCausalLM.from_pretrained("org/llama")
    assert torch.equal(output(again, "llama"), output(model, "llama"))


def test_a_card_goes_up_by_itself(hub: Hub) -> None:
    hub.create("org/name")
    ModelCard("---\nlicense: mit\n---\n# A card").push_to_hub("org/name")
    assert ModelCard.load("org/name").data.license == "mit"
    assert HfApi().model_info("org/name").card_data.license == "mit"


def test_revisions(hub: Hub) -> None:
    """Branches, tags, commits and pull requests are what they are on the Hub."""
    first = hub.put("org/name", {"a.txt": b"1"})
    api = HfApi()
    api.create_branch("org/name", branch="dev")
    api.create_tag("org/name", tag="v1", revision=first.sha)
    api.upload_file(path_or_fileobj=b"2", path_in_repo="a.txt", repo_id="org/name", revision="dev")
    pull = api.upload_file(path_or_fileobj=b"3", path_in_repo="a.txt", repo_id="org/name", create_pr=True)
    assert pull.pr_revision == "refs/pr/1"
    content = {
        r: Path(hf_hub_download("org/name", "a.txt", revision=r)).read_bytes()
        for r in ("main", "dev", "v1", first.sha, "refs/pr/1")
    }
    assert content == {"main": b"1", "dev": b"2", "v1": b"1", first.sha: b"1", "refs/pr/1": b"3"}
    api.merge_pull_request("org/name", 1)
    assert hub.files("org/name")["a.txt"].read() == b"3"
    refs = api.list_repo_refs("org/name", include_pull_requests=True)
    assert [b.name for b in refs.branches] == ["main", "dev"] and [t.name for t in refs.tags] == ["v1"]
    assert [c.title for c in api.list_repo_commits("org/name")] == hub.titles("org/name")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("org/name", revision="no-such")
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download("org/name", "no-such")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag("org/name", tag="v1")


def test_a_tree_comes_in_pages(hub: Hub) -> None:
    hub.page = 7
    hub.put("org/name", {f"folder/{i}.txt": b"x" for i in range(30)})
    entries = list(HfApi().list_repo_tree("org/name", recursive=True))
    assert len(entries) == 32 and len(hub.seen("/tree/")) == 5
    assert len(HfApi().list_repo_files("org/name")) == 31
    assert [e.path for e in HfApi().list_repo_tree("org/name")] == [".gitattributes", "folder"]
    assert [e.size for e in HfApi().get_paths_info("org/name", ["folder/3.txt", "none"])] == [1]


def test_commits_are_atomic_and_know_their_parent(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    api, first = HfApi(), hub.put("org/name", {"a.txt": b"1", "b.txt": b"1"})
    hub.put("org/name", {"a.txt": b"2"})
    with pytest.raises(HfHubHTTPError, match="412"):
        api.delete_file("b.txt", "org/name", parent_commit=first.sha)
    with pytest.raises(BadRequestError):
        api.delete_file("none.txt", "org/name")
    api.delete_file("b.txt", "org/name")
    assert set(hub.files("org/name")) == {".gitattributes", "a.txt"}


def test_a_shard_that_never_arrived_cannot_be_committed(hub: Hub) -> None:
    answer = _raw(
        hub, "POST", "/api/models/org/name/commit/main", b'{"key": "header", "value": {"summary": "x"}}\n' + _POINTER
    )
    assert answer.status == 400 and b"does not exist" in answer.read()


_POINTER = b'{"key": "lfsFile", "value": {"path": "a", "algo": "sha256", "oid": "%s", "size": 3}}\n' % (b"0" * 64)


def _raw(hub: Hub, method: str, path: str, body: bytes = b"", **headers: str) -> http.client.HTTPResponse:
    hub.repos.get("org/name") or hub.create("org/name")
    connection = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=5)
    token = next(iter(hub.users))
    connection.request(method, path, body, {"Authorization": f"Bearer {token}", **headers})
    return connection.getresponse()


def test_who_may_what(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("org/open", {"a.txt": b"1"})
    hub.put("org/closed", {"a.txt": b"1"})
    hub.put("org/gated", {"a.txt": b"1"})
    hub.repos["org/closed"].private = True
    hub.repos["org/gated"].gated = True
    stranger = HfApi(token=hub.token("hf_stranger", "stranger"))
    reader = HfApi(token=hub.token("hf_reader", "someone", "org", write=False))
    assert HfApi().whoami()["name"] == "someone" and HfApi().model_info("org/closed").private
    assert stranger.model_info("org/open") and reader.model_info("org/closed")
    for api, repo, error in (
        (stranger, "closed", RepositoryNotFoundError),
        (HfApi(token=False), "closed", RepositoryNotFoundError),
    ):
        with pytest.raises(error):
            api.model_info(f"org/{repo}")
    with pytest.raises(GatedRepoError):
        stranger.hf_hub_download("org/gated", "a.txt")
    for api in (reader, stranger):
        with pytest.raises(HfHubHTTPError, match="403"):
            api.upload_file(path_or_fileobj=b"2", path_in_repo="a.txt", repo_id="org/open")
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi(token="hf_nobody").upload_file(path_or_fileobj=b"2", path_in_repo="a.txt", repo_id="org/open")
    with pytest.raises(HfHubHTTPError, match="403"):
        stranger.create_repo("org/new")
    assert hub.titles("org/open") == ["put", "initial commit"]


def test_a_sparse_terabyte_is_served_in_ranges(hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with open(path, "wb") as stream:
        stream.write(b"begin")
        stream.truncate(10**12)
    hub.put("org/name", {"m.safetensors": path}, hashed=False)
    answer = _raw(hub, "GET", "/org/name/resolve/main/m.safetensors", Range="bytes=0-9")
    assert (
        answer.status == 206
        and answer.read() == b"begin\0\0\0\0\0"
        and answer.getheader("Content-Range") == f"bytes 0-9/{10**12}"
    )
    assert HfApi().get_paths_info("org/name", "m.safetensors")[0].lfs.size == 10**12
    answer = _raw(hub, "GET", "/org/name/resolve/main/m.safetensors", Range=f"bytes={10**12}-")
    assert answer.status == 416
    assert sum(seen.sent for seen in hub.log) < 10_000


def test_links_to_the_second_origin_expire(hub: Hub) -> None:
    hub.redirect = True
    hub.put("org/name", {"m.safetensors": b"12345678"})
    location = _raw(hub, "GET", "/org/name/resolve/main/m.safetensors").getheader("Location")
    assert location.startswith(hub.cdn.url)

    def get(**headers: str) -> int:
        connection = http.client.HTTPConnection(hub.cdn.url.removeprefix("http://"), timeout=5)
        connection.request("GET", location.removeprefix(hub.cdn.url), headers=headers)
        return connection.getresponse().status

    assert get() == 200
    assert get(Authorization="Bearer leaked") == 400
    hub.expire_links()
    assert get() == 403


FILE = "/org/name/resolve/main/a.txt"
CONTENT = bytes(range(256)) * 4000


def _whole(hub: Hub) -> bytes:
    return _raw(hub, "GET", FILE).read()


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        (Status(503, {"Retry-After": "7"}, b"busy"), b"busy"),
        (Drop(), ConnectionResetError),
        (Lost(), ConnectionResetError),
        (Reset(100_000), ConnectionResetError),
        (Short(100_000), http.client.IncompleteRead),
        (Slow(200_000, 0.001), CONTENT),
        (Before(lambda: None), CONTENT),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_fault_fires_as_often_as_it_is_set(hub: Hub, kind: Kind, outcome: bytes | type[Exception]) -> None:
    hub.put("org/name", {"a.txt": CONTENT})
    fault = hub.fault(kind, "GET .*/a.txt", times=2, skip=1)
    assert _whole(hub) == CONTENT and fault.fired == 0
    for fired in (1, 2):
        if isinstance(outcome, bytes):
            assert _whole(hub) == outcome
        else:
            with pytest.raises(outcome):
                _whole(hub)
        assert fault.fired == fired
    assert _whole(hub) == CONTENT and fault.fired == 2


def test_what_is_dropped_was_not_done_and_what_is_lost_was(hub: Hub) -> None:
    hub.put("org/name", {"a.txt": b"1"})
    line = b'{"key": "header", "value": {"summary": "new"}}\n{"key": "deletedFile", "value": {"path": "a.txt"}}\n'
    for kind, titles in ((Drop(), ["put", "initial commit"]), (Lost(), ["new", "put", "initial commit"])):
        fault = hub.fault(kind, "/commit/")
        with pytest.raises((ConnectionResetError, http.client.RemoteDisconnected)):
            _raw(hub, "POST", "/api/models/org/name/commit/main", line)
        assert fault.fired == 1 and hub.titles("org/name") == titles


def test_the_log_counts_bytes(hub: Hub) -> None:
    hub.put("org/name", {"a.txt": CONTENT})
    assert len(_raw(hub, "GET", FILE, Range="bytes=10-109").read()) == 100
    (seen,) = hub.seen("a.txt")
    assert (seen.method, seen.status, seen.range, seen.sent, seen.authorized) == ("GET", 206, "bytes=10-109", 100, True)


def test_the_client_of_this_process_is_pointed_here(hub: Hub) -> None:
    assert {constants.ENDPOINT, HfApi().endpoint} == {hub.endpoint}
