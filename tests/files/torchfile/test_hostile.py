"""Pickles and zips that were made to harm: refused in a moment, nothing run, nothing allocated by their numbers."""

from __future__ import annotations

import contextlib
import functools
import io
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hostile.distributed import Pairs
from hostile.pickles import CANARY, FILES, FINE, Runs, archive, doubling
from hypothesis import given, settings
from hypothesis import strategies as st

import surgery
from surgery.errors import SurgeryError
from surgery.files.torchfile.reader import read_torch
from surgery.files.torchfile.records import read_pickle


def test_a_pointer_of_git_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n")
    with pytest.raises(SurgeryError, match="Git LFS pointer"):
        read_torch(str(tmp_path / "x.bin"))


def test_there_are_enough_of_them() -> None:
    assert len(FILES) >= 60


def test_the_fine_one_is_read(tmp_path: Path) -> None:
    """What the others are made from is none of them."""
    (tmp_path / "x.bin").write_bytes(archive(FINE))
    assert read_torch(str(tmp_path / "x.bin")).tensors["a"].shape == (2, 3)


@pytest.mark.parametrize("name", FILES)
def test_it_is_refused_in_a_second_and_nothing_runs(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(FILES[name])
    CANARY.unlink(missing_ok=True)
    start = time.process_time()
    with pytest.raises(SurgeryError) as caught:
        read_torch(str(path))
    assert time.process_time() - start < 2
    assert str(path) in str(caught.value)
    assert not CANARY.exists()


def test_nothing_is_imported_and_memory_stays_small(tmp_path: Path) -> None:
    """All of them in one process, which hears of every import and every process that is started."""
    for number_, raw in enumerate(FILES.values()):
        (tmp_path / f"{number_}.bin").write_bytes(raw)
    code = """
import resource, sys
from pathlib import Path
from surgery.errors import SurgeryError
from surgery.files.torchfile.reader import read_torch
read_torch  # all that reading needs is loaded by a first file
try: read_torch(str(next(Path(sys.argv[1]).iterdir())))
except SurgeryError: pass
bad = []
def hook(event, args):
    if event in ("os.system", "subprocess.Popen", "os.exec", "exec", "pickle.find_class", "os.posix_spawn"):
        bad.append((event, str(args)[:80]))
    if event == "import" and not str(args[0]).startswith(("surgery", "encodings", "zipfile")):
        bad.append((event, args[0]))
sys.addaudithook(hook)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(Path(sys.argv[1]).iterdir()):
    try: read_torch(str(path))
    except SurgeryError: pass
print(bad, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    said, grown = done.stdout.rsplit(" ", 1)
    assert said == "[]" and int(grown) < 100, done.stdout


@pytest.mark.parametrize("held", [Runs(), {"w": Runs(), "n": 5}, [1, [Runs()]], {"a": {"b": (Runs(),)}}])
def test_a_call_is_told_that_was_not_run(held: Any, tmp_path: Path) -> None:
    """Of a file alone, without a configuration beside it."""
    (tmp_path / "x.bin").write_bytes(archive(pickle.dumps(held, 2)))
    with pytest.raises(SurgeryError) as caught:
        surgery.open_checkpoint(tmp_path / "x.bin")
    assert "it calls posix.system, which was not run" in str(caught.value)
    assert not CANARY.exists()


def test_a_call_beside_weights_is_left_out_and_told(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2), "hook": Runs()}, tmp_path / "x.bin")
    made = surgery.open_checkpoint(tmp_path / "x.bin")
    assert any("hook (a call of posix.system, which was not run)" in note for note in made.notes)
    assert list(made.tensors) == ["w"] and not CANARY.exists()


class Builds:
    """An object that is unpickled by a call of this name with these arguments."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __reduce__(self) -> Any:
        return torch._tensor._rebuild_from_type_v2, self.args  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "held",
    [
        {"a": Builds(len, doubling(200), (), ((), doubling(200)))},
        {"a": Builds(len, torch.Tensor, (), ({}, doubling(200)))},
        {"a": functools.reduce(lambda inner, _: {"a": inner, "b": inner}, range(60), {"a": torch.ones(1)})},
        functools.reduce(lambda inner, _: {"a": inner, "b": inner}, range(60), {"a": torch.ones(1)}),
        {2**16_000: 1, "b": doubling(200)},
    ],
)
def test_ranks_whose_records_cost_more_with_each_look(held: Any, tmp_path: Path) -> None:
    torch.save(held, tmp_path / "model_world_size_1_rank_0.pt")
    begun = time.process_time()
    with pytest.raises(SurgeryError):
        surgery.open_checkpoint(tmp_path)
    assert time.process_time() - begun < 3


@pytest.mark.parametrize("what", ["a path", "a name", "a file", "a key"])
def test_metadata_whose_records_cost_more_with_each_look(what: str, tmp_path: Path) -> None:
    dcp.save({"a": torch.ones(3)}, checkpoint_id=tmp_path, no_dist=True)
    metadata = pickle.loads((tmp_path / ".metadata").read_bytes())
    index, info = next(iter(metadata.storage_data.items()))
    match what:
        case "a path":
            metadata.planner_data["a"] = (doubling(200), 2**16_000)
        case "a name":
            object.__setattr__(index, "fqn", [doubling(200)])
            metadata.storage_data = Pairs([(index, info)])
        case "a file":
            info.relative_path = doubling(200)
        case "a key":
            metadata.state_dict_metadata = Pairs([(doubling(200), 1), (2**16_000, 2)])
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    begun = time.process_time()
    with contextlib.suppress(SurgeryError):
        surgery.open_checkpoint(tmp_path)
    assert time.process_time() - begun < 3


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_records_or_are_refused(raw: bytes) -> None:
    """No other error than ours."""
    with contextlib.suppress(SurgeryError):
        read_pickle(raw, "x")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_file_with_bytes_changed_is_read_or_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = io.BytesIO()
    torch.save({"a": torch.arange(6.0).reshape(2, 3).t(), "b": [torch.ones(2), 5, "x"]}, out)
    raw = bytearray(out.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("fuzz") / "x.bin"
    path.write_bytes(raw)
    with contextlib.suppress(SurgeryError):
        read_torch(str(path))
