"""Pushes to a Hub on 127.0.0.1 in which each request fails, or each call to the file system: what is there afterwards
is all of it or none, and the same command, run again, makes it whole, in one commit.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commanded import warmed
from handmade import write_phi3
from hub.conftest import environment, use
from hub.faults import Before, Drop, Kind, Lost, Reset, Short, Slow, Status
from hub.server import Hub
from hub.xet import Store

import surgery
from surgery.hub import client

from . import Ended, Watch
from . import environment as watching
from . import run as in_child
from .matrix import FAULTS, Tree, called_in, cases, tree

REPO = "org/model"
WORDS = ("push", "model", REPO)
KINDS: Mapping[str, Kind] = {
    "500": Status(500),
    "429": Status(429, {"Retry-After": "1"}),
    "403": Status(403),
    "dropped": Drop(),
    "lost answer": Lost(),
    "cut answer": Reset(3),
    "short answer": Short(3),
    "slow": Slow(512, 0.0005),
}
WAYS = ("once", "from then on")
ALL = 10**6


@dataclass(frozen=True)
class Pushed:
    """What the repository holds before a push and after it, by hash; and the folder that is pushed."""

    old: Mapping[str, str]
    new: Mapping[str, str]
    model: Tree


def prepare(root: Path) -> None:
    """The folder that is pushed, and what is in its place before."""
    write_phi3(root / "model", layers=2, hidden=64)
    write_phi3(root / "old", layers=1, hidden=64, seed=1)
    (root / "tmp").mkdir()


def beside(root: Path) -> Path:
    """Where notes are kept, whose calls are not watched."""
    return root.with_name(f"{root.name}-notes")


def renewed(hub: Hub, root: Path) -> None:
    """The repository as it is before a push; nothing is kept of an earlier one."""
    hub._faults.set.clear()
    hub.repos.clear()
    hub.store = Store()
    hub.put_folder(REPO, root / "old")
    hub.log.clear()
    shutil.rmtree(root / "home", ignore_errors=True)


def held(hub: Hub) -> dict[str, str]:
    return hub.hashes(REPO)


def wrong(hub: Hub, whole: Pushed, root: Path, *, done: bool) -> Iterator[str]:
    """What is wrong after a push that something happened to."""
    found, made = held(hub), len(hub.titles(REPO))
    if found not in (whole.old, whole.new):
        yield f"half of it is there: {sorted(name for name in found if found[name] != whole.new.get(name))}"
    if done and found != whole.new:
        yield "it says that it is done, and it is not"
    if made > 3:
        yield f"{made - 2} commits were made of it"
    if tree(root / "model") != whole.model:
        yield "the folder that is pushed is changed"


# Requests: in this process, or, where it is to be killed, in another.


def by_request(root: Path, *, xet: bool, most: int = 0, seed: int = 0) -> Iterator[tuple[str, list[str]]]:
    """For each case, what happens to a request, and the laws that it breaks; `most` cases of all, if it is given."""
    with Hub() as hub, pytest.MonkeyPatch.context() as patch:
        from huggingface_hub import constants

        use(hub, patch, root / "home")
        patch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
        _undisturbed(hub, root)  # once for what is kept of it
        use(hub, patch, root / "home")
        whole = _undisturbed(hub, root)
        asked = [str(seen) for seen in hub.log]
        every = [(k, kind, way) for k in range(len(asked)) for kind in KINDS for way in WAYS]
        every += [(k, "kill", "") for k in range(len(asked))]
        for k, kind, way in random.Random(seed).sample(every, min(most or len(every), len(every))):
            renewed(hub, root)
            use(hub, patch, root / "home")
            done, said = _killed(hub, k, root, xet=xet) if kind == "kill" else _failed(hub, k, kind, way, root)
            found = [*wrong(hub, whole, root, done=done), *said]
            hub._faults.set.clear()
            use(hub, patch, root / "home")
            surgery.push(root / "model", REPO)
            found += [f"again: {one}" for one in wrong(hub, whole, root, done=True)]
            method, _, path = asked[k].partition(" ")
            yield f"{kind} {way}".strip(), [f"request #{k} {method} {path[:60]} {kind} {way}: {one}" for one in found]


def _undisturbed(hub: Hub, root: Path) -> Pushed:
    renewed(hub, root)
    old = held(hub)
    surgery.push(root / "model", REPO)
    return Pushed(old, held(hub), tree(root / "model") or {})


def _failed(hub: Hub, k: int, kind: str, way: str, root: Path) -> tuple[bool, list[str]]:
    """Whether the push says that it is done, and what is wrong with how it ends."""
    fault = hub.fault(KINDS[kind], "", times=1 if way == "once" else ALL, skip=k)
    try:
        surgery.push(root / "model", REPO)
    except surgery.SurgeryError as error:
        needless = kind == "slow" or (way == "once" and kind != "403")
        return False, [f"it ends with {error}"] if needless or not isinstance(error, surgery.HubError) else []
    except Exception as error:
        return False, [f"{type(error).__name__}: {error}"]
    return True, [] if fault.fired else ["nothing happened to it"]


def _killed(hub: Hub, k: int, root: Path, *, xet: bool) -> tuple[bool, list[str]]:
    """The same of a process that is killed before that request is carried out."""
    held, env = list[subprocess.Popen[str]](), environment(hub, root / "home", HF_HUB_DISABLE_XET=str(int(not xet)))
    hub.fault(Before(lambda: held[0].kill()), "", skip=k)
    held.append(
        subprocess.Popen(
            [sys.executable, "-m", "surgery_cli", *WORDS], cwd=root, env=env | {"TMPDIR": str(root / "tmp")},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
    )  # fmt: skip
    said = held[0].communicate(timeout=120)[1]
    status = held[0].returncode
    return status == 0, [] if status in (0, -signal.SIGKILL) else [f"it ends with {status}: {said[-600:]}"]


# Calls to the file system: in children of a process without threads, to which the Hub's address was given.


def by_call(
    root: Path, shim: Path, *, xet: bool, each: int, looks: int, most: int = 0
) -> Iterator[tuple[str, list[str]]]:
    """For each case, what happens to a call, and the laws that it breaks; `most` cases of all, if it is given."""
    with Hub() as hub:
        more = environment(hub, root / "home", HF_HUB_DISABLE_XET=str(int(not xet)))
        more = {name: text for name, text in more.items() if name.startswith("HF_")}
        env = watching(shim) | more | {"HF_HUB_OFFLINE": "0"}
        words = [sys.executable, "-m", "calls.pushes", str(root)]
        with subprocess.Popen(words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:

            def push(k: int = 0, what: int = 0) -> Ended:
                assert server.stdin and server.stdout
                server.stdin.write(f"{json.dumps([k, what])}\n")
                server.stdin.flush()
                return Ended(**json.loads(server.stdout.readline()))

            renewed(hub, root)
            old, ended = held(hub), push()
            assert ended.status == 0, ended.stderr
            whole = Pushed(old, held(hub), tree(root / "model") or {})
            every = list(cases(called_in(beside(root) / "names"), each=each, looks=looks))
            for case in random.Random(0).sample(every, min(most or len(every), len(every))):
                renewed(hub, root)
                ended = push(case.k, FAULTS[case.fault])
                found = [*wrong(hub, whole, root, done=ended.status == 0), *_said(ended, killed=case.fault == "kill")]
                again = push()
                found += [f"again: {one}" for one in wrong(hub, whole, root, done=True)]
                found += [f"again, it ends with {again.status}: {again.said}"] if again.status else []
                called = (called_in(beside(root) / "first") + ("none",) * case.k)[case.k - 1]
                yield case.fault, [f"{called} #{case.k} {case.fault}: {one}" for one in found]
            assert server.stdin
            server.stdin.close()


def _said(ended: Ended, *, killed: bool) -> Iterator[str]:
    """What is wrong with how a push ends."""
    if ended.killed:
        if not killed:
            yield "it was killed"
    elif "Traceback" in ended.stderr or ended.status not in (0, 1):
        yield f"it ends with {ended.status}: {ended.said}"
    elif ended.status and ("error: " not in ended.stderr or "help: " not in ended.stderr):
        yield f"it does not say what to do: {ended.said}"


def serve(root: Path) -> None:
    """Push for each line that comes in, which says what is to happen to which call."""
    import hf_xet  # noqa: F401
    from huggingface_hub import file_download, hf_api  # noqa: F401
    from huggingface_hub.utils import _http

    warmed()
    hurry: Any = SimpleNamespace(sleep=lambda seconds: None, time=time.time)
    _http.time = client.time = hurry  # type: ignore[attr-defined]
    scratch = beside(root)
    scratch.mkdir(exist_ok=True)
    for line in sys.stdin:
        k, what = json.loads(line)
        ended = in_child(WORDS, root, scratch, Watch(k=k, what=what, names=scratch / "names"))
        if k:
            os.replace(scratch / "names", scratch / "first")
        print(json.dumps(asdict(ended)), flush=True)  # noqa: T201


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
