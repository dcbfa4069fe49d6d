"""What goes wrong with a push, its outcome and its words. Each fault is proven to have fired, and no token is in any
of it.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from handmade import write_phi3
from huggingface_hub import constants
from typer.testing import CliRunner

import surgery
from hub.conftest import environment
from hub.faults import Before, Drop, Kind, Lost, Status
from hub.server import Hub
from hub.test_push import REPO, local
from surgery.files.card import CARD
from surgery.hub import client
from surgery_cli.app import app


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A sharded checkpoint."""
    return write_phi3(tmp_path / "model", layers=2, hidden=64)


def holds(hub: Hub, model: Path, revision: str = "main", *, commits: int = 2) -> bool:
    """Whether the repository holds the folder, and was given it in one commit."""
    same = hub.hashes(REPO, revision, without=(".gitattributes", CARD, "theirs")) == local(model)
    return same and len(hub.titles(REPO, revision)) == commits


# What passes.

LFS, XET = "lfs", "xet"
BOTH = (LFS, XET)
PASSING = [
    (Status(503), "GET /api/models/org/model$", 3, BOTH),
    (Status(503), "POST /api/repos/create", 3, BOTH),
    (Lost(), "POST /api/repos/create", 1, BOTH),
    (Status(502), "GET .*/refs", 2, BOTH),
    (Status(500), "GET .*/tree/", 2, BOTH),
    (Status(503), "POST .*/preupload/", 2, BOTH),
    (Drop(), "POST .*/preupload/", 2, BOTH),
    (Status(429, {"Retry-After": "7"}), "POST .*/preupload/", 1, BOTH),
    (Status(503), "POST .*/objects/batch", 2, (LFS,)),
    (Status(503), "PUT /upload/", 2, (LFS,)),
    (Drop(after=10_000), "PUT /upload/", 2, (LFS,)),
    (Status(504), "POST /verify/", 2, (LFS,)),
    (Status(503), "GET .*/xet-write-token/", 1, (XET,)),
    (Status(503), "POST /v1/xorbs/", 1, (XET,)),
    (Drop(after=10_000), "POST /v1/xorbs/", 1, (XET,)),
    (Status(503), "POST /v1/shards", 1, (XET,)),
    (Status(503), "POST .*/commit/", 2, BOTH),
    (Status(429, {"Retry-After": "7"}), "POST .*/commit/", 1, BOTH),
    (Drop(), "POST .*/commit/", 2, BOTH),
    (Lost(), "POST .*/commit/", 1, BOTH),
]


@pytest.mark.parametrize(
    ("mode", "kind", "pattern", "times"),
    [(mode, *row) for *row, modes in PASSING for mode in modes],
    indirect=["mode"],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_passes_is_outlived(hub: Hub, mode: str, model: Path, kind: Kind, pattern: str, times: int) -> None:
    """Tried again until it works; one commit, whole, and no second one where only the answer was lost."""
    fault = hub.fault(kind, pattern, times=times)
    report = surgery.push(model, REPO)
    assert fault.fired == times and holds(hub, model)
    assert report.commit == hub.repos[REPO].branches["main"]
    if isinstance(kind, Status) and kind.headers:
        assert hub.slept == [8.0]


def test_a_lost_answer_to_a_pull_request_opens_no_second_one(hub: Hub, model: Path) -> None:
    hub.put(REPO, {"theirs.txt": b"1"})
    fault = hub.fault(Lost(), "/commit/")
    report = surgery.push(model, REPO, create_pr=True)
    assert fault.fired == 1 and list(hub.repos[REPO].pulls) == [1] and holds(hub, model, "refs/pr/1", commits=3)
    assert (
        report.pull_request == f"{hub.endpoint}/{REPO}/discussions/1"
        and report.commit == hub.repos[REPO].branches["refs/pr/1"]
    )


def test_a_lost_answer_to_a_tag_is_no_error(hub: Hub, model: Path) -> None:
    fault = hub.fault(Lost(), "/tag/")
    report = surgery.push(model, REPO, tag="v1")
    assert fault.fired == 1 and hub.repos[REPO].tags == {"v1": report.commit}


def test_an_answer_that_is_lost_before_someone_elses_commit_is_found_all_the_same(hub: Hub, model: Path) -> None:
    """Ours landed, its answer was lost, theirs came on top: ours is the one after the parent."""
    lost = hub.fault(Lost(), "POST .*/commit/")
    theirs = hub.fault(Before(lambda: hub.put(REPO, {"theirs.txt": b"1"})), "GET .*/commits/")
    report = surgery.push(model, REPO)
    assert (lost.fired, theirs.fired) == (1, 1) and hub.titles(REPO)[0] == "put" and len(hub.titles(REPO)) == 3
    assert report.commit == hub.repos[REPO].history("main")[1].sha and holds(hub, model, commits=3)


def test_what_cannot_be_told_is_said(hub: Hub, model: Path) -> None:
    """The answer was lost, and the history cannot be read: the same command again finds the commit."""
    lost, blind = hub.fault(Lost(), "POST .*/commit/"), hub.fault(Status(503), "GET .*/commits/", times=1000)
    with pytest.raises(surgery.HubUnreachable, match="; and cannot tell whether the commit was made") as caught:
        surgery.push(model, REPO)
    assert caught.value.where[-1].startswith("cannot read the history") and "makes no second commit" in str(
        caught.value
    )
    assert lost.fired == 1 and blind.fired
    assert surgery.push(model, REPO).sent == () and holds(hub, model)


def test_a_commit_that_cannot_be_looked_at_was_made(hub: Hub, model: Path) -> None:
    fault = hub.fault(Status(503), "GET .*/tree/", times=1000, skip=1)
    with pytest.raises(surgery.HubUnreachable, match="cannot look at the commit, which was made"):
        surgery.push(model, REPO)
    assert fault.fired and holds(hub, model)


# What does not pass.


def test_a_competing_commit(hub: Hub, mode: str, model: Path) -> None:
    """What changed is said; the same command again builds on it, and sends nothing twice."""
    hub.put(REPO, {"theirs.txt": b"1"})
    fault = hub.fault(
        Before(lambda: hub.put(REPO, {"theirs.txt": b"2", "more.txt": b"3"}, title="theirs")), "POST .*/commit/"
    )
    with pytest.raises(surgery.HubConflict) as caught:
        surgery.push(model, REPO)
    sha = hub.repos[REPO].branches["main"]
    assert str(caught.value) == (
        "someone else committed to main meanwhile, and nothing was changed by this push\n"
        f"  --> {REPO}\n      {sha[:8]} someone: theirs\n      changed there: more.txt, theirs.txt\n"
        "help: look at it, then run the same command again: what was sent already is not sent again"
    )
    assert fault.fired == 1 and hub.titles(REPO) == ["theirs", "put", "initial commit"]
    hub.log.clear()
    report = surgery.push(model, REPO)
    assert {"theirs.txt", "more.txt"} <= set(report.kept) and len(hub.titles(REPO)) == 4
    assert not hub.seen("PUT /upload/")


REFUSED = [
    (Status(503), "POST .*/commit/", surgery.HubUnreachable, "cannot commit to main: it answers 503, after all tries"),
    (
        Status(429, {"Retry-After": "99"}),
        "POST .*/commit/",
        surgery.HubUnreachable,
        "cannot commit to main: too many requests",
    ),
    (Drop(), "POST .*/commit/", surgery.HubUnreachable, "cannot commit to main: no answer from http"),
    (
        Status(400, {}, b'{"error": "no such thing"}'),
        "POST .*/commit/",
        surgery.HubError,
        "the Hub answers 400: no such thing",
    ),
    (
        Status(409),
        "POST .*/commit/",
        surgery.HubConflict,
        "cannot commit to main: the repository has changed meanwhile",
    ),
    (
        Status(403, {"X-Error-Message": "quota"}),
        "POST .*/commit/",
        surgery.NotAllowed,
        "the token does not permit it: quota",
    ),
    (Status(503), "GET .*/refs", surgery.HubUnreachable, "cannot list the branches: it answers 503"),
    (Status(503), "POST .*/create", surgery.HubUnreachable, "cannot make the repository org/model: it answers 503"),
    (Status(507), "POST .*/preupload/", surgery.HubError, "the Hub answers 507"),
]


@pytest.mark.parametrize(("kind", "pattern", "error", "what"), REFUSED, ids=lambda v: v if isinstance(v, str) else None)
def test_what_does_not_pass_is_said(
    hub: Hub, model: Path, kind: Kind, pattern: str, error: type[Exception], what: str
) -> None:
    fault = hub.fault(kind, pattern, times=1000)
    with pytest.raises(error, match=what) as caught:
        surgery.push(model, REPO)
    transient = not isinstance(kind, Status) or kind.code in client.TRANSIENT
    assert fault.fired == (client.TRIES if transient else 1)
    assert caught.value.__cause__ is not None and (caught.value.where or caught.value.help)
    assert REPO not in hub.repos or hub.titles(REPO) == ["initial commit"]


@pytest.mark.parametrize(
    ("mode", "kind", "pattern", "what"),
    [
        (LFS, Status(503), "PUT /upload/", "cannot send .*: it answers 503, after all tries"),
        (LFS, Drop(after=10_000), "PUT /upload/", "cannot send .*: no answer from"),
        (XET, Status(503), "POST /v1/xorbs/", "cannot send .*: it answers 503, after all tries"),
        (XET, Drop(after=10_000), "POST /v1/xorbs/", "cannot send .*: the connection failed, after all tries"),
        (XET, Status(403), "POST /v1/xorbs/", "cannot send .*: the token does not permit it"),
        (XET, Status(401), "GET .*/xet-write-token/", "cannot send .*: the Hub does not accept the token"),
        (XET, Status(404), "GET .*/xet-write-token/", "cannot send .*: the Hub has no such thing"),
        (XET, Status(400), "POST /v1/shards", "cannot send .*: the Hub answers 400"),
    ],
    indirect=["mode"],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_an_upload_that_does_not_pass(hub: Hub, mode: str, model: Path, kind: Kind, pattern: str, what: str) -> None:
    """All three families of errors come out as ours, with the cause kept; then the same push works."""
    fault = hub.fault(kind, pattern, times=1000)
    with pytest.raises(surgery.HubError, match=what) as caught:
        surgery.push(model, REPO)
    assert fault.fired and caught.value.__cause__ is not None and hub.titles(REPO) == ["initial commit"]
    assert "Error while uploading" not in str(caught.value) and "\n" not in caught.value.what
    assert mode == XET or any(row.startswith("model-0000") for row in caught.value.where)
    fault.times = fault.fired
    surgery.push(model, REPO)
    assert holds(hub, model)


@pytest.mark.parametrize(("skip", "code"), [(0, 400), (1, 403)])
def test_an_answer_that_is_not_the_hubs(hub: Hub, model: Path, skip: int, code: int) -> None:
    """A page of a proxy's where JSON should be, to us and to the client: said, and nothing is made; then it works."""
    fault = hub.fault(Status(code, {}, b"<html>"), "POST /api/validate-yaml", times=1000, skip=skip)
    with pytest.raises(surgery.HubUnreachable, match="the answer is not JSON"):
        surgery.push(model, REPO)
    assert fault.fired and (REPO not in hub.repos or hub.titles(REPO) == ["initial commit"])
    fault.times = fault.fired
    again = hub.fault(Status(403, {}, b"<html>"), "POST /api/validate-yaml", skip=1)
    surgery.push(model, REPO)
    assert again.fired == 1 and holds(hub, model)


def test_a_file_that_cannot_be_read_while_it_is_sent(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said as what it is, with the file, and no word of the client's on the Hub; then the same push works."""
    from huggingface_hub import lfs

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch, pytest.raises(surgery.SurgeryError) as caught:
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(lfs, "_upload_single_part", refused)
        surgery.push(model, REPO)
    assert not isinstance(caught.value, surgery.HubError) and hub.titles(REPO) == ["initial commit"]
    assert caught.value.what.startswith("cannot send ") and caught.value.what.endswith(os.strerror(errno.EIO))
    assert caught.value.where[-1].startswith("model-0") and "not sent again" in str(caught.value.help)
    surgery.push(model, REPO)
    assert holds(hub, model)


# Who asks.


def test_no_token(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(surgery.NotAllowed) as caught:
        surgery.push(model, REPO)
    assert str(caught.value) == (
        "cannot make the repository org/model: the Hub wants to know who asks: Invalid username or password.\n"
        f"  --> {REPO}\n      asked {hub.endpoint} with no token\n"
        f"help: log in with `hf auth login`, or set HF_TOKEN; tokens are made at {hub.endpoint}/settings/tokens"
    )


def test_a_token_that_is_none(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(surgery.NotAllowed) as caught:
        surgery.push(model, REPO)
    assert caught.value.what.endswith("the Hub does not accept the token: Invalid credentials in Authorization header")
    assert caught.value.where == (REPO, f"asked {hub.endpoint} with the token of the environment variable HF_TOKEN")


def test_a_token_that_may_only_read(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the token is from is said: of a file, which."""
    from huggingface_hub import constants

    hub.put(REPO, {"theirs.txt": b"1"})
    monkeypatch.delenv("HF_TOKEN")
    Path(constants.HF_TOKEN_PATH).parent.mkdir(parents=True)
    Path(constants.HF_TOKEN_PATH).write_text(hub.token("hf_reader", "someone", "org", write=False))
    with pytest.raises(surgery.NotAllowed) as caught:
        surgery.push(model, REPO)
    assert "the token does not permit it: Forbidden: you must use a write token" in caught.value.what
    assert caught.value.where[-1] == f"asked {hub.endpoint} with the token of the file {constants.HF_TOKEN_PATH}"
    assert caught.value.help.startswith("use a token that may write there: log in with `hf auth login`")
    assert hub.titles(REPO) == ["put", "initial commit"]


def test_a_private_repository_of_others(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks as if there were none; the attempt to make it says whose it is."""
    hub.create("others/model", private=True)
    with pytest.raises(
        surgery.NotAllowed, match="cannot make the repository others/model: the token does not permit it"
    ):
        surgery.push(model, "others/model")


def test_a_token_that_no_header_can_hold(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The HTTP library would quote it in its error."""
    monkeypatch.setenv("HF_TOKEN", "hf_sec ret\x07")
    with pytest.raises(surgery.NotAllowed, match="the token holds characters that no token has") as caught:
        surgery.push(model, REPO)
    assert "ret" not in str(caught.value).replace("token", "") and not hub.log


def test_offline(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    from huggingface_hub.utils import _http

    _http.close_session()
    with pytest.raises(surgery.HubUnreachable, match="the client is offline") as caught:
        surgery.push(model, REPO)
    assert "unset HF_HUB_OFFLINE" in str(caught.value) and not hub.slept


def test_nobody_there(hub: Hub, model: Path) -> None:
    hub.stop()
    with pytest.raises(
        surgery.HubUnreachable, match=f"cannot look at the repository: no answer from {hub.endpoint}"
    ) as caught:
        surgery.push(model, REPO)
    assert caught.value.help == "check the connection, and HF_ENDPOINT if it is set; then run again"
    assert hub.slept == [1, 2, 4, 8, 8]


# The command line: the words, the status, and no token anywhere.


def test_the_command_fails_with_a_word(hub: Hub, model: Path) -> None:
    hub.fault(Status(403, {"X-Error-Message": "not yours"}), "POST .*/commit/")
    result = CliRunner().invoke(app, ["push", str(model), REPO])
    assert result.exit_code == 1 and result.stderr.startswith(
        "error: cannot commit to main: the token does not permit it: not yours"
    )


SECRET = "hf_" + "DistinctiveSecret" * 2
FAILING = [
    (Status(401, {"X-Error-Message": "Invalid credentials in Authorization header"}), "", "0"),
    (Status(400, {}, b"you sent Bearer " + SECRET.encode()), "/preupload/", "0"),
    (Drop(), "/commit/", "1"),
    (Status(403), "PUT /upload/", "1"),
    (Status(403), "POST /v1/xorbs/", "0"),
    (None, "", "0"),
]


@pytest.mark.parametrize(("kind", "pattern", "disable_xet"), FAILING)
def test_no_token_in_any_output_log_or_file(
    hub: Hub, model: Path, tmp_path: Path, kind: Kind | None, pattern: str, disable_xet: str
) -> None:
    """Also with --debug, and the client's own log at its most talkative."""
    hub.token(SECRET, "someone", "org")
    fault = hub.fault(kind, pattern, times=1000) if kind else None
    loud = {"HF_HUB_VERBOSITY": "debug", "RUST_LOG": "debug", "TMPDIR": str(tmp_path)}
    env = environment(hub, tmp_path / "home", HF_TOKEN=SECRET, HF_HUB_DISABLE_XET=disable_xet, **loud)
    code = "import huggingface_hub.utils._http as h, surgery.hub.client as c, types; "
    code += "h.time = c.time = types.SimpleNamespace(sleep=lambda s: None); from surgery_cli import main; main()"
    command = [sys.executable, "-c", code, "push", str(model), REPO, "--debug"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert done.returncode == bool(kind) and ("\nsurgery.errors." in done.stderr) == bool(kind), done.stderr
    assert fault is None or fault.fired
    assert SECRET not in done.stdout + done.stderr
    for folder in (tmp_path, model):
        for path in folder.rglob("*"):
            assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    for repo in hub.repos:
        assert all(SECRET.encode() not in blob.read() for blob in hub.files(repo).values())
