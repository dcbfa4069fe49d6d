"""What `open_checkpoint` opens, carries, leaves out, and refuses."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from conftest import hashes
from safetensors.torch import load_file, save_file

import surgery
from surgery.errors import FormatError, NotACheckpoint, NotSupported, SurgeryError

Content = Mapping[str, torch.Tensor] | bytes | str


def filled(folder: Path, content: Mapping[str, Content]) -> Path:
    """The folder with these files: tensors, bytes, or text."""
    for name, value in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(value, Mapping):
            save_file(dict(value), path, {"format": "pt"})
        else:
            path.write_bytes(value.encode() if isinstance(value, str) else value)
    return folder


def numbered(*values: int) -> dict[str, torch.Tensor]:
    """Tensors w1, w2, … of these numbers."""
    return {f"w{value}": torch.full((2, 3), float(value)) for value in values}


def index(**weight_map: str) -> str:
    return json.dumps({"metadata": {"total_size": 48}, "weight_map": weight_map})


def check_opens(path: Path, weight_map: Mapping[str, str]) -> surgery.Checkpoint:
    """The checkpoint at `path` holds just these tensors, in these shards, with the numbers that their names say."""
    checkpoint = surgery.open_checkpoint(path)
    assert checkpoint.weight_map == weight_map
    assert set(checkpoint.tensors) == set(weight_map)
    for name in weight_map:
        assert torch.equal(checkpoint.load(name), numbered(int(name[1:]))[name])
    return checkpoint


def check_refuses(path: Path, kind: type[SurgeryError], what: str) -> SurgeryError:
    """Opening raises just this kind of error, with just this text."""
    with pytest.raises(SurgeryError) as caught:
        surgery.open_checkpoint(path)
    assert (type(caught.value), caught.value.what) == (kind, what)
    return caught.value


# Which weights are meant


def test_one_file(tmp_path: Path) -> None:
    checkpoint = check_opens(
        filled(tmp_path, {"model.safetensors": numbered(1, 2)}), {"w1": "model.safetensors", "w2": "model.safetensors"}
    )
    assert (checkpoint.stem, checkpoint.index_name, checkpoint.notes) == ("model", "model.safetensors.index.json", ())
    assert checkpoint.metadata == {"model.safetensors": {"format": "pt"}}


def test_relative_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, {"model.safetensors": numbered(1)})
    monkeypatch.chdir(tmp_path.parent)
    checkpoint = surgery.open_checkpoint(tmp_path.name)
    monkeypatch.chdir("/")
    assert checkpoint.path == str(tmp_path)
    assert torch.equal(checkpoint.load("w1"), numbered(1)["w1"])


SETS = {
    "model": ("model.safetensors.index.json", "model-0000{}-of-00002.safetensors", "model"),
    "repeated suffix": ("model.safetensors.index.json", "model.safetensors-0000{}-of-00002.safetensors", "model"),
    "diffusers": (
        "diffusion_pytorch_model.safetensors.index.json",
        "diffusion_pytorch_model-0000{}-of-00002.safetensors",
        "diffusion_pytorch_model",
    ),
    "variant": ("model.safetensors.index.fp16.json", "model.fp16-0000{}-of-00002.safetensors", "model.fp16"),
    "diffusers variant": (
        "diffusion_pytorch_model.safetensors.index.fp16.json",
        "diffusion_pytorch_model.fp16-0000{}-of-00002.safetensors",
        "diffusion_pytorch_model.fp16",
    ),
    "consolidated": ("consolidated.safetensors.index.json", "consolidated-0000{}-of-00002.safetensors", "consolidated"),
}


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("indexed", [True, False])
def test_sets_of_shards(tmp_path: Path, kind: str, indexed: bool) -> None:
    index_name, pattern, stem = SETS[kind]
    first, second = pattern.format(1), pattern.format(2)
    files = {first: numbered(1), second: numbered(2)} | ({index_name: index(w1=first, w2=second)} if indexed else {})
    checkpoint = check_opens(filled(tmp_path, files), {"w1": first, "w2": second})
    assert (checkpoint.stem, checkpoint.index_name, checkpoint.notes) == (stem, index_name, ())
    assert checkpoint.index_metadata == ({"total_size": 48} if indexed else {})


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "diffusion_pytorch_model.bf16.safetensors"])
def test_one_file_of_a_variant(tmp_path: Path, name: str) -> None:
    checkpoint = check_opens(filled(tmp_path, {name: numbered(1)}), {"w1": name})
    head, variant, _ = name.split(".")
    assert checkpoint.stem == f"{head}.{variant}"
    assert checkpoint.index_name == f"{head}.safetensors.index.{variant}.json"


def test_shards_of_any_names(tmp_path: Path) -> None:
    checkpoint = check_opens(
        filled(tmp_path, {"a.safetensors": numbered(1), "b.safetensors": numbered(2)}),
        {"w1": "a.safetensors", "w2": "b.safetensors"},
    )
    assert (checkpoint.stem, checkpoint.index_name) == ("model", "model.safetensors.index.json")


def test_one_file_of_any_name_keeps_it(tmp_path: Path) -> None:
    checkpoint = check_opens(
        filled(tmp_path, {"state-of-the-art.safetensors": numbered(1)}), {"w1": "state-of-the-art.safetensors"}
    )
    assert checkpoint.stem == "state-of-the-art"


def test_one_shard_of_one(tmp_path: Path) -> None:
    name = "model-00001-of-00001.safetensors"
    assert check_opens(filled(tmp_path, {name: numbered(1)}), {"w1": name}).stem == "model"


def test_shards_in_a_subfolder_of_the_index(tmp_path: Path) -> None:
    files = {
        "model.safetensors.index.json": index(w1="x/1.safetensors", w2="./2.safetensors"),
        "x/1.safetensors": numbered(1),
    }
    filled(tmp_path / "in", {**files, "2.safetensors": numbered(2)})
    checkpoint = check_opens(tmp_path / "in", {"w1": "x/1.safetensors", "w2": "2.safetensors"})
    assert (checkpoint.notes, checkpoint.files) == ((), {})
    surgery.write(checkpoint, tmp_path / "out")
    check_opens(tmp_path / "out", {"w1": "x/1.safetensors", "w2": "2.safetensors"})


@pytest.mark.parametrize("shard", ["model-00001-of-00003.safetensors", "model.safetensors-00001-of-00003.safetensors"])
def test_incomplete_sets_without_an_index(tmp_path: Path, shard: str) -> None:
    filled(tmp_path, {shard: numbered(1)})
    error = check_refuses(tmp_path, NotACheckpoint, "1 of 3 shards were given, and no index")
    assert error.where == (str(tmp_path / shard),)
    assert error.help == "pass the folder with all of them; if some are missing there, fetch them, or the index"
    filled(tmp_path, {shard.replace("00001", "00002"): numbered(2)})
    check_refuses(tmp_path, NotACheckpoint, "2 of 3 shards were given, and no index")
    filled(tmp_path, {shard.replace("00001", "00003"): numbered(3)})
    assert len(surgery.open_checkpoint(tmp_path).tensors) == 3
    check_refuses(tmp_path / shard, NotACheckpoint, "1 of 3 shards were given, and no index")


def test_empty_checkpoint(tmp_path: Path) -> None:
    assert surgery.open_checkpoint(filled(tmp_path, {"model.safetensors": {}})).tensors == {}


# One path among several


def test_one_file_by_path_comes_alone(tmp_path: Path) -> None:
    filled(tmp_path, {"model.safetensors": numbered(1), "notes.txt": "x"})
    checkpoint = check_opens(tmp_path / "model.safetensors", {"w1": "model.safetensors"})
    assert (checkpoint.files, checkpoint.notes) == ({}, ())
    surgery.write(checkpoint, tmp_path / "out")
    check_opens(tmp_path / "out", {"w1": "model.safetensors"})


def test_one_file_by_path_brings_the_files_of_a_model(tmp_path: Path) -> None:
    filled(
        tmp_path,
        {"model.safetensors": numbered(1), "b.safetensors": numbered(2), "config.json": "{}", "notes.txt": "x"},
    )
    checkpoint = check_opens(tmp_path / "b.safetensors", {"w2": "b.safetensors"})
    assert set(checkpoint.files) == {"config.json", "notes.txt"}
    assert checkpoint.notes == ("left out, since they would still hold the old weights: model.safetensors",)
    assert checkpoint.stem == "b"


def test_index_by_path(tmp_path: Path) -> None:
    filled(
        tmp_path,
        {
            "a.safetensors": numbered(1),
            "b.safetensors": numbered(2),
            "model.safetensors.index.json": index(w1="a.safetensors"),
        },
    )
    filled(tmp_path, {"model.safetensors.index.fp16.json": index(w2="b.safetensors"), "config.json": "{}"})
    one = check_opens(tmp_path / "model.safetensors.index.json", {"w1": "a.safetensors"})
    assert one.notes == (
        "left out, since they would still hold the old weights: b.safetensors, model.safetensors.index.fp16.json",
    )
    two = check_opens(tmp_path / "model.safetensors.index.fp16.json", {"w2": "b.safetensors"})
    assert (two.stem, set(two.files)) == ("model.fp16", {"config.json"})


def test_index_of_any_name(tmp_path: Path) -> None:
    filled(tmp_path, {"a.safetensors": numbered(1), "map.json": index(w1="a.safetensors")})
    checkpoint = check_opens(tmp_path / "map.json", {"w1": "a.safetensors"})
    assert (checkpoint.stem, checkpoint.index_name) == ("model", "map.json")


def test_subfolder(tmp_path: Path) -> None:
    filled(
        tmp_path,
        {"unet/diffusion_pytorch_model.safetensors": numbered(1), "unet/config.json": "{}", "model_index.json": "{}"},
    )
    checkpoint = check_opens(tmp_path / "unet", {"w1": "diffusion_pytorch_model.safetensors"})
    assert (checkpoint.stem, set(checkpoint.files)) == ("diffusion_pytorch_model", {"config.json"})


def test_further_sets_are_left_out_by_name(tmp_path: Path) -> None:
    filled(
        tmp_path,
        {
            "model.safetensors": numbered(1),
            "model.fp16.safetensors": numbered(1),
            "consolidated.safetensors": numbered(2),
        },
    )
    checkpoint = check_opens(tmp_path, {"w1": "model.safetensors"})
    assert checkpoint.notes == (
        "left out, since they would still hold the old weights: consolidated.safetensors, model.fp16.safetensors",
    )


def test_index_wins_over_files_that_it_does_not_name(tmp_path: Path) -> None:
    filled(tmp_path, {"model.safetensors.index.json": index(w1="a.safetensors"), "a.safetensors": numbered(1)})
    filled(tmp_path, {"model.safetensors.index.fp16.json": index(w1="b.safetensors"), "b.safetensors": numbered(1)})
    filled(
        tmp_path,
        {"consolidated.safetensors.index.json": index(w9="c.safetensors"), "consolidated-1.safetensors": numbered(9)},
    )
    checkpoint = check_opens(tmp_path, {"w1": "a.safetensors"})
    assert checkpoint.files == {}
    assert checkpoint.notes == (
        (
            "left out, since they would still hold the old weights: b.safetensors, consolidated-1.safetensors, "
            "consolidated.safetensors.index.json, model.safetensors.index.fp16.json"
        ),
    )


def test_one_file_beside_an_index(tmp_path: Path) -> None:
    filled(
        tmp_path,
        {
            "model.safetensors.index.json": index(w1="a.safetensors"),
            "a.safetensors": numbered(1),
            "model.safetensors": numbered(1),
        },
    )
    error = check_refuses(
        tmp_path,
        NotACheckpoint,
        "the folder holds more than one set of weights: model.safetensors.index.json, model.safetensors",
    )
    assert error.where == (str(tmp_path),)
    assert error.help == (
        "loaders prefer one of them in silence; pass the one that you mean: "
        + str(tmp_path / "model.safetensors.index.json")
    )
    check_opens(tmp_path / "model.safetensors", {"w1": "model.safetensors"})


def test_one_file_that_the_index_names(tmp_path: Path) -> None:
    name = "model.safetensors"
    check_opens(filled(tmp_path, {"model.safetensors.index.json": index(w1=name), name: numbered(1)}), {"w1": name})


def test_two_indices(tmp_path: Path) -> None:
    filled(
        tmp_path,
        {f"{n}.safetensors.index.json": index(w1=f"{n}.safetensors") for n in "ab"}
        | {f"{n}.safetensors": numbered(1) for n in "ab"},
    )
    check_refuses(
        tmp_path,
        NotACheckpoint,
        "the folder holds more than one set of weights: a.safetensors.index.json, b.safetensors.index.json",
    )


# What an index may not say


def test_index_names_another_shard(tmp_path: Path) -> None:
    filled(tmp_path, {"a.safetensors": numbered(1), "b.safetensors": numbered(2)})
    filled(
        tmp_path, {"model.safetensors.index.json": index(w1="b.safetensors", w2="b.safetensors", w3="a.safetensors")}
    )
    error = check_refuses(tmp_path, FormatError, "the index and the shards disagree about 2 tensors")
    assert error.where == (
        str(tmp_path / "model.safetensors.index.json"),
        "w1: the index says b.safetensors, it is in a.safetensors",
        "w3: the index says a.safetensors, it is in no shard",
    )
    assert (
        error.help
        == f"surgery reindex {tmp_path} writes a right one if the shards are right; else fetch the checkpoint again"
    )


def test_index_names_missing_files(tmp_path: Path) -> None:
    filled(
        tmp_path,
        {
            "model.safetensors.index.json": index(**{f"w{i}": f"{i}.safetensors" for i in range(8)}),
            "3.safetensors": numbered(3),
        },
    )
    error = check_refuses(tmp_path, FormatError, "the index names 7 files that are not there")
    assert error.where[1:] == (
        "0.safetensors",
        "1.safetensors",
        "2.safetensors",
        "4.safetensors",
        "5.safetensors",
        "(+2 more)",
    )
    assert error.help == "the download is incomplete; fetch the missing files"


@pytest.mark.parametrize("shard", ["{}/a.safetensors", "../a.safetensors"])
def test_index_points_outside(tmp_path: Path, shard: str) -> None:
    filled(
        tmp_path, {"a.safetensors": numbered(1), "in/model.safetensors.index.json": index(w1=shard.format(tmp_path))}
    )
    check_refuses(tmp_path / "in", FormatError, f"the index points outside the checkpoint: {shard.format(tmp_path)}")


def test_index_of_a_pickle(tmp_path: Path) -> None:
    filled(
        tmp_path,
        {"model.safetensors.index.json": index(w1="pytorch_model.bin"), "pytorch_model.bin": b"\x80\x02" + bytes(20)},
    )
    with pytest.raises(FormatError, match="the file is not safetensors"):
        surgery.open_checkpoint(tmp_path)


def test_config_is_no_index(tmp_path: Path) -> None:
    filled(tmp_path, {"model.safetensors": numbered(1), "config.json": "{}"})
    error = check_refuses(
        tmp_path / "config.json", NotACheckpoint, "this is the configuration of a model, and not its weights"
    )
    assert error.help == f"pass its folder: {tmp_path}"


def test_tensors_that_the_index_forgot(tmp_path: Path) -> None:
    filled(tmp_path, {"model.safetensors.index.json": index(w1="a.safetensors"), "a.safetensors": numbered(1, 2)})
    checkpoint = check_opens(tmp_path, {"w1": "a.safetensors", "w2": "a.safetensors"})
    assert checkpoint.notes == ("1 tensors are in the shards but not in the index: kept, and indexed from now on",)


@pytest.mark.parametrize("indexed", [True, False])
def test_a_tensor_in_two_shards(tmp_path: Path, indexed: bool) -> None:
    filled(tmp_path, {"a.safetensors": numbered(1, 2), "b.safetensors": numbered(2, 3)})
    if indexed:
        filled(tmp_path, {"model.safetensors.index.json": index(w1="a.safetensors", w2="b.safetensors")})
    error = check_refuses(tmp_path, FormatError, "1 tensors are in two shards")
    assert error.where == (str(tmp_path), "w2: a.safetensors and b.safetensors")
    assert (
        error.help
        == "pass the one file that you mean; where one of them is of another save, fetch the checkpoint again"
    )


# Folders and files that are no checkpoint


@pytest.mark.parametrize(
    ("files", "what", "help"),
    [
        (
            {"x.txt": ""},
            "no safetensors file is here",
            "pass a folder with model.safetensors or an index with its shards",
        ),
        (
            {"adapter_config.json": "{}", "adapter_model.safetensors": numbered(1)},
            "this is an adapter, and no checkpoint",
            (
                "where both are given, the base comes first: surgery merge BASE ADAPTER -o OUT; alone, it can be"
                " inspected and verified"
            ),
        ),
        (
            {"unet/a.safetensors": numbered(1), "x/y": ""},
            "the weights are in subfolders",
            "pass one of them: {0}/unet",
        ),
    ],
    ids=["nothing", "adapter", "subfolders"],
)
def test_folders_without_weights(tmp_path: Path, files: dict[str, Content], what: str, help: str) -> None:
    error = check_refuses(filled(tmp_path, files), NotACheckpoint, what)
    assert error.where == (str(tmp_path),)
    assert error.help == help.format(tmp_path)


def test_paths_that_are_nothing(tmp_path: Path) -> None:
    check_refuses(tmp_path / "nowhere", NotACheckpoint, "no such file or folder")
    filled(tmp_path, {"pytorch_model.bin": b"", "README.md": ""})
    check_refuses(tmp_path / "pytorch_model.bin", FormatError, "the file is none that torch saved")
    check_refuses(tmp_path / "README.md", NotACheckpoint, "neither safetensors, nor GGUF, nor what torch saves")


@pytest.mark.parametrize("indexed", [True, False])
def test_a_shard_that_is_a_broken_link(tmp_path: Path, indexed: bool) -> None:
    filled(tmp_path, {"model.safetensors.index.json": index(w1="a.safetensors")} if indexed else {})
    (tmp_path / "a.safetensors").symlink_to(tmp_path / "nowhere")
    error = check_refuses(tmp_path, FormatError, "a link leads nowhere")
    assert error.where == (f"{tmp_path / 'a.safetensors'} -> {tmp_path / 'nowhere'}",)
    assert error.help == "remove it, or mend the link"


# The Hub's cache


@pytest.fixture
def cached(saved: Callable[..., Path], tmp_path: Path) -> Path:
    """The cache entry of a model, as huggingface_hub lays it out: every file of the snapshot is a link to a blob."""
    root = tmp_path / "models--org--name"
    snapshot = root / "snapshots" / "0123abcd"
    for made in ("blobs", "refs", "snapshots/0123abcd"):
        (root / made).mkdir(parents=True)
    (root / "refs" / "main").write_text("0123abcd")
    for path in sorted(saved("llama", shard="60KB").iterdir()):
        digest = hashes(path.parent)[path.name]
        shutil.copyfile(path, root / "blobs" / digest)
        (root / "blobs" / digest).chmod(0o444)
        (snapshot / path.name).symlink_to(f"../../blobs/{digest}")
    return root


def test_snapshot_of_the_hub_cache(saved: Callable[..., Path], cached: Path, tmp_path: Path) -> None:
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in (cached / "blobs").iterdir()}
    surgery.write(surgery.open_checkpoint(cached / "snapshots" / "0123abcd"), tmp_path / "out")
    assert hashes(tmp_path / "out") == hashes(saved("llama", shard="60KB"))
    assert not any(p.is_symlink() for p in (tmp_path / "out").rglob("*"))
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in (cached / "blobs").iterdir()} == before
    assert all(p.stat().st_mode & 0o200 for p in (tmp_path / "out").iterdir())


def test_root_of_the_hub_cache(cached: Path) -> None:
    (cached / "snapshots" / "ffff").mkdir()
    error = check_refuses(cached, NotACheckpoint, "this is the root of a Hub cache entry")
    assert (
        error.help == f"pass one of its snapshots: {cached / 'snapshots' / '0123abcd'}, {cached / 'snapshots' / 'ffff'}"
    )


# Files that belong to a checkpoint

CARRIED = {
    "config.json": '{"model_type": "llama"}\n',
    "LICENSE": "MIT\r\n",
    "chat_template.jinja": "{{ x }}",
    "modeling_x.py": "import os\n",
    "tokenizer.model": bytes(range(256)),
    "empty": b"",
    ".gitattributes": "*.safetensors filter=lfs\n",
    "additional_chat_templates/rag.jinja": "x",
    "assets/deep/er/image.png": b"\x89PNG",
    "onnx/config.json": "{}",
    "model.safetensors.txt": "x",
}
LEFT = {
    "pytorch_model.bin": b"x",
    "pytorch_model.bin.index.json": "{}",
    "optimizer.pt": b"x",
    "rng_state.pth": b"x",
    "tf_model.h5": b"x",
    "flax_model.msgpack": b"x",
    "q4.gguf": b"x",
    "onnx/model.onnx": b"x",
    "onnx/model.onnx_data": b"x",
    "runs/model.ckpt": b"x",
    "consolidated.00.pth": b"x",
    "consolidated.safetensors": {"x": torch.zeros(1)},
    "original/params.json": "{}",
    ".git/HEAD": "ref",
    ".cache/huggingface/x.metadata": "x",
}


def test_files_are_carried_byte_for_byte(tmp_path: Path) -> None:
    filled(tmp_path / "in", {"model.safetensors": numbered(1), **CARRIED, **LEFT})
    checkpoint = surgery.open_checkpoint(tmp_path / "in")
    assert set(checkpoint.files) == set(CARRIED)
    surgery.write(checkpoint, tmp_path / "out")
    before = hashes(tmp_path / "in")
    assert hashes(tmp_path / "out") == {name: before[name] for name in ("model.safetensors", *CARRIED)}


@pytest.mark.parametrize("name", LEFT)
def test_weights_of_other_formats_are_left_out_by_name(tmp_path: Path, name: str) -> None:
    checkpoint = surgery.open_checkpoint(filled(tmp_path, {"model.safetensors": numbered(1), name: LEFT[name]}))
    top = name.partition("/")[0]
    named = f"{top}/" if top in ("original", ".git", ".cache") else name
    assert checkpoint.files == {}
    why = (
        "they are a training's state"
        if name in ("optimizer.pt", "rng_state.pth")
        else "they would still hold the old weights"
    )
    assert checkpoint.notes == (f"left out, since {why}: {named}",)


NESTED = {
    "1_Dense/model.safetensors": numbered(1),
    "1_Dense/pytorch_model.bin": b"x",
    "1_Dense/config.json": "{}",
    "unet/diffusion_pytorch_model.safetensors": numbered(2),
    "unet/deeper/model.fp16.safetensors": numbered(2),
}


def test_checkpoints_inside_are_carried_untouched(tmp_path: Path) -> None:
    filled(tmp_path / "in", {"model.safetensors": numbered(1), "1_Dense.txt": "x", **NESTED})
    checkpoint = check_opens(tmp_path / "in", {"w1": "model.safetensors"})
    assert checkpoint.notes == ("carried untouched, with checkpoints of their own: 1_Dense/, unet/, unet/deeper/",)
    surgery.write(surgery.rename(checkpoint, [("w1", "v1")]), tmp_path / "out")
    before, after = hashes(tmp_path / "in"), hashes(tmp_path / "out")
    assert {n: h for n, h in after.items() if n != "model.safetensors"} == {
        n: h for n, h in before.items() if n != "model.safetensors"
    }


def test_a_broken_link_is_no_file(tmp_path: Path) -> None:
    filled(tmp_path, {"model.safetensors": numbered(1), "x/config.json": "{}"})
    (tmp_path / "x" / "tokenizer.json").symlink_to("nowhere")
    error = check_refuses(tmp_path, FormatError, "a link leads nowhere")
    assert error.where == (f"{tmp_path / 'x' / 'tokenizer.json'} -> nowhere",)
    assert error.help == "remove it, or mend the link"


def test_links_to_folders(tmp_path: Path) -> None:
    filled(tmp_path, {"model.safetensors": numbered(1), "a/x.txt": "x"})
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert set(surgery.open_checkpoint(tmp_path).files) == {"a/x.txt", "b/x.txt"}


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, {"model.safetensors": numbered(1), "a/x.txt": "x"})
    scan = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert check_refuses(tmp_path, FormatError, "cannot read a folder: Permission denied").where == (
        str(tmp_path / "a"),
    )


def test_config_is_read_where_it_is(tmp_path: Path) -> None:
    filled(tmp_path, {"model.safetensors": numbered(1)})
    assert surgery.open_checkpoint(tmp_path).config == {}
    filled(tmp_path, {"config.json": '{"model_type": "x"}'})
    assert surgery.open_checkpoint(tmp_path).config == {"model_type": "x"}
    filled(tmp_path, {"config.json": '{"model_type": "x", "model_type": "y"}'})
    with pytest.raises(FormatError, match="the key 'model_type' comes twice") as caught:
        _ = surgery.open_checkpoint(tmp_path).config
    assert caught.value.where == (str(tmp_path / "config.json"),)


# Values

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.uint64,
    torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e8m0fnu, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_load_is_safetensors_own(tmp_path: Path, dtype: torch.dtype) -> None:
    raw = torch.randint(
        0, 2 if dtype is torch.bool else 256, (6 * dtype.itemsize,), generator=torch.manual_seed(0), dtype=torch.uint8
    )
    whole = raw.view(dtype)
    save_file(
        {"a": whole.reshape(2, 3), "scalar": whole[0].clone(), "empty": whole[:0].reshape(0, 3)},
        tmp_path / "model.safetensors",
    )
    checkpoint = surgery.open_checkpoint(tmp_path)
    for name, theirs in load_file(tmp_path / "model.safetensors").items():
        mine = checkpoint.load(name)
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
        assert mine.reshape(-1).view(torch.uint8).equal(theirs.reshape(-1).view(torch.uint8))


def test_load_of_packed_floats(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}, tmp_path / "model.safetensors")
    with pytest.raises(NotSupported, match="torch has no dtype for F4"):
        surgery.open_checkpoint(tmp_path).load("a")


def test_load_of_a_whole_model(saved: Callable[..., Path]) -> None:
    checkpoint = surgery.open_checkpoint(saved("llama", shard="20KB"))
    shards = {path: load_file(path) for path in saved("llama", shard="20KB").glob("*.safetensors")}
    assert set(checkpoint.tensors) == {name for shard in shards.values() for name in shard}
    for path, shard in shards.items():
        for name, theirs in shard.items():
            assert checkpoint.weight_map[name] == path.name
            assert checkpoint.load(name).equal(theirs)


def test_unknown_names_get_the_nearest(saved: Callable[..., Path]) -> None:
    checkpoint = surgery.open_checkpoint(saved("llama"))
    with pytest.raises(SurgeryError) as caught:
        checkpoint.load("model.layers.1.self_attn.q_proj.wieght")
    assert caught.value.what == "no tensor is called model.layers.1.self_attn.q_proj.wieght"
    assert caught.value.where == (str(saved("llama")),)
    assert caught.value.help is not None
    assert caught.value.help.startswith("the nearest names are model.layers.1.self_attn.q_proj.weight, ")
    with pytest.raises(SurgeryError) as caught:
        checkpoint["?"]
    assert caught.value.help is None


def test_inputs_list_all_that_was_opened(saved: Callable[..., Path]) -> None:
    checkpoint = surgery.open_checkpoint(saved("llama", shard="60KB"))
    (base,) = checkpoint.inputs
    assert (base.role, base.path) == ("base", str(saved("llama", shard="60KB")))
    assert base.tensors == checkpoint.tensors
    assert sorted(f.path for f in base.files) == sorted(map(str, saved("llama", shard="60KB").glob("*.safetensors")))


@pytest.mark.parametrize("lost", ["the last", "the first"])
def test_an_index_that_leaves_out_a_shard_of_its_set(lost: str, saved: Callable[..., Path], tmp_path: Path) -> None:
    """It holds the only copy of its tensors; an older set of another count is left out, as ever."""
    folder = shutil.copytree(saved("llama", shard="20KB"), tmp_path / "model")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    shards = sorted(set(index["weight_map"].values()))
    gone = shards[-1 if lost == "the last" else 0]
    index["weight_map"] = {name: shard for name, shard in index["weight_map"].items() if shard != gone}
    path.write_text(json.dumps(index))
    with pytest.raises(FormatError, match="the index leaves out 1 shards of its own set") as caught:
        surgery.open_checkpoint(folder)
    assert gone in caught.value.where and "surgery reindex" in str(caught.value.help)
    surgery.reindex(folder)
    assert (
        surgery.open_checkpoint(folder).tensors.keys()
        == surgery.open_checkpoint(saved("llama", shard="20KB")).tensors.keys()
    )
    shutil.copy(folder / shards[0], folder / "model-00001-of-00099.safetensors")
    assert any("00099" in note for note in surgery.open_checkpoint(folder).notes)
