"""Each call to the file system may fail, be cut short, or be the last: a sample of what benchmarks/faults.py runs.

Inputs stay as they are, a destination is old or new and never in between, nothing lies outside the stage, what goes
wrong is said with what to do, and the same command, run again, makes what an undisturbed run makes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from calls import built, environment, pushes
from calls.crashes import Op, hasty, lasting, ops_in, states

JOBS = ("reshard", "merge --reversible --overwrite", "unmerge", "reindex", "run")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    folder = tmp_path_factory.mktemp("calls")
    shim = built(folder)
    if shim is None:
        pytest.skip("no C compiler is here")
    command = [sys.executable, "-m", "calls", str(folder), *JOBS, "--most", "8"]
    done = subprocess.run(command, env=environment(shim), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return {one["job"]: one for one in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("job", JOBS)
def test_laws_hold_whatever_fails(told: dict[str, dict[str, object]], job: str) -> None:
    found = told[job]
    assert found["broken"] == []
    assert found["cases"] == 8 and found["states"]
    assert isinstance(found["calls"], int) and found["calls"] > 100


def op(what: str, a: Path | str, b: Path | str = "", inode: int = 0, data: bytes = b"") -> Op:
    return Op(what, str(a), str(b), inode, 0, data)


def test_a_rename_before_the_bytes_are_durable_is_seen(tmp_path: Path) -> None:
    """The laws can fail: without a sync the new name holds nothing, and the end is lost."""
    top = tmp_path / "top"
    top.mkdir()
    (top / "f").write_bytes(b"old")
    written = [op("create", top / "new", inode=7), op("write", top / "new", inode=7, data=b"new")]
    synced, named = op("fsync", top / "new", inode=7), op("rename", top / "new", top / "f")
    assert hasty(top, [*written, named]) and not hasty(top, [*written, synced, named])
    after = set()
    for _ in states(top, [*written, named], tmp_path / "state", each=20):
        after.add((tmp_path / "state" / "f").read_bytes())
    assert after == {b"old", b"", b"new"}
    lasting(top, [*written, synced, named], tmp_path / "last")
    assert (tmp_path / "last" / "f").read_bytes() == b"old"
    lasting(top, [*written, synced, named, op("fsync", top)], tmp_path / "last")
    assert (tmp_path / "last" / "f").read_bytes() == b"new" and not (tmp_path / "last" / "new").exists()


def test_a_trace_is_read_as_it_was_written() -> None:
    assert ops_in(b"create\t/a\t\t5\t0\t0\nwrite\t/a\t\t5\t3\t4\n\n\t\n\nrename\t/a\t/b\t0\t0\t0\n") == [
        Op("create", "/a", "", 5, 0, b""),
        Op("write", "/a", "", 5, 3, b"\n\t\n\n"),
        Op("rename", "/a", "/b", 0, 0, b""),
    ]


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_a_push_is_there_or_not_whatever_fails(tmp_path: Path, xet: bool) -> None:
    """A sample of its requests, and of its calls: the whole is in benchmarks/faults.py --pushes."""
    shim = built(tmp_path)
    if shim is None:
        pytest.skip("no C compiler is here")
    root = tmp_path / "root"
    root.mkdir()
    pushes.prepare(root)
    told = list(pushes.by_request(root, xet=xet, most=8))
    told += pushes.by_call(root, shim, xet=xet, each=1, looks=40, most=3)
    assert [line for _, found in told for line in found] == []
    assert len(told) == 11 and len({kind for kind, _ in told}) > 3


def test_what_fails_in_a_worker_of_a_cluster(tmp_path: Path) -> None:
    """Two cases: the whole is in benchmarks/faults.py --ray."""
    pytest.importorskip("ray")
    shim = built(tmp_path)
    if shim is None:
        pytest.skip("no C compiler is here")
    command = [sys.executable, "-m", "calls.nodes", str(tmp_path / "nodes"), "--cases", "2"]
    done = subprocess.run(command, env=environment(shim), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["broken"] == [] and found["cases"] == 2 and found["calls"] > 100
