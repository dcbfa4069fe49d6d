"""Files that are read whole are as large as they may be, and no larger: asked before a byte is read."""

from __future__ import annotations

import json
import os
import resource
import shutil
import tracemalloc
from pathlib import Path

import pytest
from forks import forked
from handmade import write_adapter, write_phi3

import surgery
from surgery.errors import FormatError, SurgeryError
from surgery.files.small import MOST, MOST_OF_NAMES, check_small

WHOLE = "the file is too large to be read whole"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phi3(tmp_path_factory.mktemp("small") / "base", layers=2, hidden=16)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("small") / "a", {"model.layers.0.self_attn.o_proj": (16, 16)})


def sparse(path: Path, size: int) -> None:
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    with path.open("wb") as stream:
        stream.truncate(size)


@pytest.mark.parametrize(
    "name",
    [
        "config.json", "model.safetensors.index.json", ".surgery/manifest.json", "model_index.json",
        "pytorch_model.bin.index.json",
    ],
)  # fmt: skip
def test_two_sparse_gigabytes_are_not_read(base: Path, tmp_path: Path, name: str) -> None:
    made = Path(shutil.copytree(base, tmp_path / "made"))
    if name == "pytorch_model.bin.index.json":
        for path in made.glob("model*"):
            path.unlink()
    sparse(made / name, 2 * 10**9)
    tracemalloc.start()
    try:
        with pytest.raises(SurgeryError) as caught:
            surgery.plan(surgery.split_qkv(surgery.open_checkpoint(made)))
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert WHOLE in caught.value.what and str(2 * 10**9) in caught.value.what
    assert caught.value.where == (str(made / name),) and caught.value.help


def test_an_adapter_whose_config_is_no_small_file(adapter: Path, tmp_path: Path) -> None:
    made = Path(shutil.copytree(adapter, tmp_path / "made"))
    sparse(made / "adapter_config.json", 2 * 10**9)
    with pytest.raises(FormatError, match=WHOLE):
        surgery.open_adapter(made)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.index", "a/b/.metadata"])
def test_the_bound(name: str) -> None:
    most = MOST_OF_NAMES if "index" in name or "metadata" in name else MOST
    check_small(f"/x/{name}", most)
    with pytest.raises(FormatError, match=rf"{most + 1} bytes, and {os.path.basename(name)} may have {most}"):
        check_small(f"/x/{name}", most + 1)


def test_a_large_carried_file_is_never_held(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Also where a merge records what the base was: in a process that has no memory for the file."""
    made = Path(shutil.copytree(base, tmp_path / "made"))
    sparse(made / "extra.dat", 600_000_000)

    def merge() -> None:
        import numpy  # noqa: F401
        import torch  # noqa: F401
        import zstandard  # noqa: F401

        before = int(Path("/proc/self/status").read_text().partition("VmSize:")[2].split()[0]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (before + 500_000_000, resource.RLIM_INFINITY))
        opened = surgery.open_checkpoint(made)
        surgery.plan(surgery.reversible(surgery.merge(opened, surgery.open_adapter(adapter)), opened))

    assert forked(merge) == 0


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "adapter_config.json"])
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/full", "/dev/stdin"])
def test_devices_behind_links(base: Path, adapter: Path, tmp_path: Path, name: str, device: str) -> None:
    """Also where links are followed wherever they lead."""
    made = Path(shutil.copytree(adapter if name.startswith("adapter") else base, tmp_path / "made"))
    (made / name).unlink()
    (made / name).symlink_to(device)
    for follow in (False, True):
        with pytest.raises(SurgeryError), surgery.following_links(follow):
            opened = surgery.open_any(made)
            surgery.split_qkv(opened) if isinstance(opened, surgery.Checkpoint) else None


def test_links_that_fan_out(base: Path, tmp_path: Path) -> None:
    """24 levels of two links each are 16 million paths to one folder: refused after a thousand of them."""
    made = Path(shutil.copytree(base, tmp_path / "made"))
    (made / "d0").mkdir()
    (made / "d0" / "f").write_text(json.dumps(1))
    for level in range(1, 25):
        (made / f"d{level}").mkdir()
        for side in "ab":
            (made / f"d{level}" / side).symlink_to(made / f"d{level - 1}")
    with pytest.raises(FormatError, match="links between folders give one of them more than 1000 paths"):
        surgery.inspect(made)
