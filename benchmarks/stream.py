"""A merge straight to the Hub, with the tests' server in a process of its own: time, peak memory, peak disk; killed
half way.

python benchmarks/stream.py serve          prints its address; then, for each repository named on standard input,
what it holds
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import measured

TESTS = Path(__file__).parent.parent / "tests"
REPO = "org/merged"


def serve() -> None:
    """Be the Hub until standard input ends."""
    sys.path.insert(0, str(TESTS))
    from hub.server import Hub

    with Hub() as hub:
        print(hub.endpoint, flush=True)
        for line in sys.stdin:
            name, uploads = line.strip(), hub.seen("(PUT /upload/|POST /v1/xorbs/)")
            known = name in hub.repos
            print(
                json.dumps(
                    {
                        "hashes": hub.hashes(name) if known else {},
                        "titles": hub.titles(name) if known else [],
                        "received": sum(seen.received for seen in uploads),
                    }
                ),
                flush=True,
            )


@dataclass(frozen=True)
class Server:
    """The Hub's process."""

    process: subprocess.Popen[str]
    endpoint: str

    def holds(self, name: str) -> dict[str, Any]:
        """Hashes, commits, bytes received so far."""
        assert self.process.stdin and self.process.stdout
        print(name, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A Hub with its files below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "serve"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(folder)}
    )
    assert process.stdin and process.stdout
    try:
        yield Server(process, process.stdout.readline().strip())
    finally:
        process.stdin.close()
        process.wait()
        shutil.rmtree(folder)


@contextmanager
def watched(folder: Path) -> Iterator[list[int]]:
    """The most bytes that files below `folder` took, by blocks, as a list of one number."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], _size(folder))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def _size(folder: Path) -> int:
    total = 0
    for here, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(here, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def environment(server: Server, home: Path, *, xet: bool) -> dict[str, str]:
    """For a process that shall use the server."""
    sys.path.insert(0, str(TESTS))
    from hub.server import TOKEN

    home.mkdir(parents=True, exist_ok=True)
    more = {"HF_HUB_DISABLE_XET": "0" if xet else "1", "HF_XET_XORB_COMPRESSION_POLICY": "none"}
    return {"HF_ENDPOINT": server.endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(home), **more}


def streamed(work: Path, surgery: Sequence[str], base: Path, adapter: Path) -> None:
    """By LFS and by Xet: an undisturbed run, then one that is killed with two shards sent and run again; rows of a
    table.
    """
    merge = [*surgery, "merge", str(base), str(adapter)]
    local = work / "out"
    shutil.rmtree(local, ignore_errors=True)
    run = measured([*merge, "-o", str(local), "--quiet"])
    print(f"| merge -o DIR | {run.seconds:.1f} s | {run.peak / 1e6:.0f} MB | | |", flush=True)
    want = _hashes(local)
    shutil.rmtree(local)
    for title, xet, room in (("LFS", False, 1), ("LFS, two shards", False, 2), ("Xet", True, 1)):
        with serving(work / "server") as server:
            home = work / "home"
            command = [*merge, "-o", f"hf://{REPO}", "--quiet", "--stage-shards", str(room)]
            env = environment(server, home, xet=xet)
            with watched(home) as disk:
                run = measured(command, env=env)
            found = server.holds(REPO)
            assert found["hashes"].items() >= want.items() and len(found["titles"]) == 2, (
                "not the local result in one commit"
            )
            peak, total = f"{run.peak / 1e6:.0f} MB", f"{disk[0] / 1e6:.0f} MB"
            print(
                f"| {title} | {run.seconds:.1f} s | {peak} | {total} | {found['received'] / 1e6:.0f} MB |", flush=True
            )
            shutil.rmtree(home)
        if room == 1:
            with serving(work / "server") as server:
                _killed(
                    title,
                    server,
                    [*merge, "-o", f"hf://{REPO}", "--json"],
                    environment(server, home, xet=xet),
                    home,
                    want,
                )
                shutil.rmtree(home)


def _killed(
    title: str, server: Server, command: Sequence[str], env: dict[str, str], home: Path, want: dict[str, str]
) -> None:
    process = subprocess.Popen(
        list(command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **env}
    )
    while len(_sent(home)) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.3)
    process.kill()
    process.wait()
    before = server.holds(REPO)
    assert len(before["titles"]) == 1, "something is visible before the commit"
    with watched(home) as disk:
        run = measured(command, env=env)
    found = server.holds(REPO)
    assert found["hashes"].items() >= want.items() and len(found["titles"]) == 2, "not the local result in one commit"
    peak, received = f"{run.peak / 1e6:.0f} MB", (found["received"] - before["received"]) / 1e6
    resumed = json.loads(run.stdout)["resumed"] / 1e6
    print(
        f"| {title}, killed and run again: {resumed:.0f} MB taken up | {run.seconds:.1f} s | {peak} |"
        f" {disk[0] / 1e6:.0f} MB | {received:.0f} MB |",
        flush=True,
    )


def _sent(home: Path) -> dict[str, Any]:
    for path in home.glob("surgery/.*/.surgery/sent.json"):
        return json.loads(path.read_text())["files"]
    return {}


def _hashes(folder: Path) -> dict[str, str]:
    """Of all files but the manifest, which lists the card that the Hub's copy has and a folder has not."""
    import hashlib

    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and path.name not in ("manifest.json", "README.md"):
            with open(path, "rb") as stream:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


if __name__ == "__main__" and sys.argv[1:] == ["serve"]:
    serve()
