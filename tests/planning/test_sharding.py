"""Laws of resharding: the Hub's rule, no tensor changed, and always a way back."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import hashes
from huggingface_hub import split_torch_state_dict_into_shards
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import MODELS, build

import surgery
from surgery.checkpoint import Checkpoint
from surgery.errors import NothingMatched, PlanError, SurgeryError
from surgery.hub.shards import split_into_shards
from surgery.lazy.dtypes import DTYPES
from surgery.lazy.tensor import Zeros
from surgery.names import natural
from surgery.planning.sharding import assign, in_order, parse_size

SIZES = ("17KB", "25KB", "40KiB", 77_777, "140KB")
INDEX = "model.safetensors.index.json"


def sized(sizes: Mapping[str, int], stem: str = "model") -> Checkpoint:
    """A checkpoint of tensors of so many bytes."""
    tensors = {name: Zeros(DTYPES["U8"], (size,)) for name, size in sizes.items()}
    return Checkpoint("x", tensors, dict.fromkeys(sizes, f"{stem}.safetensors"), {}, {}, (), stem=stem)


def loads(layout: Mapping[str, str], sizes: Mapping[str, int]) -> list[int]:
    """Bytes of each shard."""
    totals: Counter[str] = Counter()
    for name, shard in layout.items():
        totals[shard] += sizes[name]
    return [totals[shard] for shard in sorted(set(layout.values()))]


# Sizes


@settings(deadline=None)
@given(st.integers(1, 10**15), st.sampled_from(["B", " B", " b"]))
def test_bytes_are_bytes(number: int, unit: str) -> None:
    assert parse_size(number) == parse_size(f" {number}{unit} ") == number


@settings(deadline=None)
@given(st.integers(10**6, 10**15))
def test_a_large_number_needs_no_unit(number: int) -> None:
    assert parse_size(f" {number} ") == number


@pytest.mark.parametrize("text", ["5", " 5 ", "0005", "1.5", "512", "999999", "999999.9"])
def test_a_small_number_needs_a_unit(text: str) -> None:
    number = text.strip()
    with pytest.raises(SurgeryError) as caught:
        parse_size(text)
    assert caught.value.what == f"`{number}` has no unit, and would be {int(float(number))} bytes"
    assert caught.value.help == f"write {number}MB or {number}GB, or {number}B where bytes are meant"


@pytest.mark.parametrize(("size", "shards"), [("100KB", 1), ("1B", 3), (1, 3), (40, 2)])
def test_small_shards_are_made_where_they_are_asked_for(size: int | str, shards: int) -> None:
    assert len(loads(assign(sized({"a": 20, "b": 20, "c": 20}), size), dict.fromkeys("abc", 20))) == shards


def headers(found: surgery.Plan) -> list[int]:
    """Bytes of the JSON of each shard's header."""
    return [len(shard.header) - 8 for shard in found.shards]


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=40), st.integers(0, 99), min_size=1, max_size=30), st.integers(400, 2000))
def test_a_shard_whose_header_has_no_room_becomes_several(sizes: dict[str, int], most: int) -> None:
    sizes.pop("__metadata__", None)
    base = replace(sized({**sizes, "last": 1}), metadata={"model.safetensors": {"format": "pt", "by": "hand"}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("surgery.planning.sharding.MAX_HEADER", most)
        layout, found = assign(base, 500), surgery.plan(base, 500)
    assert [*layout] == in_order(base)
    assert [*layout.values()] == sorted(layout.values())  # no shard goes back
    assert max(headers(found)) <= most
    hubs = split_into_shards({name: base.tensors[name].nbytes for name in in_order(base)}, 500, "model")
    if max(headers(surgery.plan(base, 500))) <= most - 300:  # numbers are counted as long as they can be
        assert layout == hubs
    for shard in set(layout.values()):
        assert len({hubs[name] for name in layout if layout[name] == shard}) == 1  # what the Hub parts stays apart


def test_a_header_without_room_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surgery.files.safetensors.MAX_HEADER", 300)
    monkeypatch.setattr("surgery.planning.sharding.MAX_HEADER", 300)
    base = sized({f"layers.{i}.weight": 8 for i in range(9)})
    with pytest.raises(PlanError, match=r"a header of \d+ bytes would be above the format's 300") as caught:
        surgery.plan(base)
    assert caught.value.where == ("model.safetensors",)
    assert "--max-shard-size 5GB" in (caught.value.help or "")
    assert max(headers(surgery.plan(base, "5GB"))) <= 300  # which is so


@pytest.mark.slow
def test_the_format_s_own_limit_is_kept() -> None:
    """Names that fill the header that the format allows once and a half."""
    base = sized({f"{i}{'x' * 100_000}": 1 for i in range(1500)})
    layout = assign(base, "5GB")
    assert sorted(set(layout.values())) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def test_a_size_without_a_unit_makes_no_shards() -> None:
    with pytest.raises(SurgeryError, match="`5` has no unit"):
        assign(sized({"a": 20, "b": 20}), "5")


@settings(deadline=None)
@given(st.integers(1, 10**9), st.sampled_from("KMGT"))
def test_units(number: int, unit: str) -> None:
    power = "KMGT".index(unit) + 1
    for text in (f"{number}{unit}B", f"{number} {unit.lower()}b"):
        assert parse_size(text) == number * 1000**power
    for text in (f"{number}{unit}iB", f"{number} {unit.lower()}ib"):
        assert parse_size(text) == number * 1024**power


@settings(deadline=None)
@given(st.integers(0, 10**15))
def test_fractions_are_exact(number: int) -> None:
    assert parse_size(f"{number // 10**9 + 1}.{number % 10**9:09d}GB") == number + 10**9


def test_sizes_by_example() -> None:
    assert parse_size("5GB") == 5_000_000_000
    assert parse_size("5GiB") == 5 * 2**30
    assert parse_size("1.5kb") == 1500
    assert parse_size("9" * 400) == int("9" * 400)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "٥GB",
        "GB",
        "5XB",
        "5 G B",
        "-5GB",
        "0",
        "0.0GB",
        "0.1B",
        "1e9",
        "5GB!",
        "5,5GB",
        "nan",
        "inf",
        True,
        None,
        -1,
        0,
    ],
)
def test_nonsense_is_no_size(text: object) -> None:
    with pytest.raises(SurgeryError) as caught:
        parse_size(text)  # type: ignore[arg-type]
    assert caught.value.what == f"`{text}` is not a size"
    assert caught.value.help == "write 5GB (5 * 10^9 bytes), 5GiB (5 * 2^30 bytes) or a number of bytes"


# Order, and the Hub's rule


@pytest.mark.parametrize("family", MODELS)
def test_order_is_natural(saved: Callable[..., Path], family: str) -> None:
    checkpoint = surgery.open_checkpoint(saved(family, shard="20KB"))
    order = in_order(checkpoint)
    assert sorted(order) == sorted(checkpoint.tensors)
    assert all(natural(a) < natural(b) for a, b in pairwise(order))
    assert order == in_order(surgery.open_checkpoint(saved(family)))


def test_layer_2_is_before_layer_10() -> None:
    layout = assign(sized({f"h.{i}.{part}": 5 for i in range(12) for part in "ab"}), 10)
    assert layout == {f"h.{i}.{part}": f"model-{i + 1:05d}-of-00012.safetensors" for i in range(12) for part in "ab"}


@pytest.mark.parametrize("family", ["llama", "gpt2", "sam"])
@pytest.mark.parametrize("size", SIZES)
def test_shards_are_those_of_the_hub(saved: Callable[..., Path], family: str, size: str | int) -> None:
    checkpoint = surgery.open_checkpoint(saved(family))
    weights = load_file(saved(family) / "model.safetensors")
    theirs = split_torch_state_dict_into_shards(
        {name: weights[name] for name in in_order(checkpoint)},
        max_shard_size=parse_size(size),
        filename_pattern="model{suffix}.safetensors",
    )
    assert len(theirs.filename_to_tensors) > 1
    assert assign(checkpoint, size) == theirs.tensor_to_filename
    plan = surgery.plan(checkpoint, size)
    assert [shard.name for shard in plan.shards] == sorted(theirs.filename_to_tensors)
    assert json.loads(bytes(plan.files[INDEX]))["metadata"] == theirs.metadata  # type: ignore[arg-type]


sizes = st.lists(st.integers(0, 40), min_size=1, max_size=10).map(
    lambda sizes: {f"w{i}": size for i, size in enumerate(sizes)}
)


@settings(deadline=None)
@given(sizes, st.integers(1, 60), st.integers(1, 60))
def test_shards_do_not_depend_on_the_shards_before(sizes: dict[str, int], first: int, second: int) -> None:
    checkpoint = sized(sizes)
    again = replace(checkpoint, weight_map=assign(checkpoint, first))
    assert assign(again, second) == assign(checkpoint, second)


@settings(deadline=None)
@given(sizes, st.integers(1, 60), st.booleans())
def test_shards_keep_to_the_size(sizes: dict[str, int], limit: int, balanced: bool) -> None:
    layout = assign(sized(sizes), limit, balanced=balanced)
    assert set(layout) == set(sizes)
    for shard in set(layout.values()):
        members = [n for n in sizes if layout[n] == shard]
        assert sum(sizes[n] for n in members) <= limit or len(members) == 1


@settings(deadline=None)
@given(sizes, st.integers(1, 60))
@example({"w0": 6, "w1": 6, "w2": 6, "w3": 2}, 14)
def test_balanced_shards(sizes: dict[str, int], limit: int) -> None:
    checkpoint = sized(sizes)
    greedy, balanced = loads(assign(checkpoint, limit), sizes), loads(assign(checkpoint, limit, balanced=True), sizes)
    assert len(balanced) <= len(greedy)
    assert max(balanced) <= max(greedy)
    small = [size for size in sizes.values() if size <= limit]
    count = len(balanced) - sum(size > limit for size in sizes.values())
    if count:
        assert max(total for total in balanced if total <= limit) == least_maximum(tuple(small), count)


@cache
def least_maximum(sizes: tuple[int, ...], count: int) -> int:
    """The smallest possible size of the largest of at most `count` shards, each of neighbours."""
    if count == 1:
        return sum(sizes)
    return min(max(sum(sizes[:i]), least_maximum(sizes[i:], count - 1)) for i in range(len(sizes) + 1))


def test_balanced_by_example() -> None:
    checkpoint = sized({f"w{i}": 10 for i in range(6)})
    assert loads(assign(checkpoint, 50), dict.fromkeys(checkpoint.tensors, 10)) == [50, 10]
    assert loads(assign(checkpoint, 50, balanced=True), dict.fromkeys(checkpoint.tensors, 10)) == [30, 30]


def test_balanced_needs_a_size() -> None:
    with pytest.raises(SurgeryError, match="a balanced layout needs a size") as caught:
        assign(sized({"w": 1}), balanced=True)
    assert caught.value.help == "add --max-shard-size 5GB"


# Names of shards


@pytest.mark.parametrize("stem", ["model", "model.fp16", "diffusion_pytorch_model"])
def test_one_shard_has_no_number_and_no_index(stem: str) -> None:
    checkpoint = sized({"a": 5, "b": 5}, stem)
    assert set(assign(checkpoint, "1KB").values()) == {f"{stem}.safetensors"}
    assert surgery.plan(checkpoint, "1KB").files.keys() == {".surgery/manifest.json"}
    assert list(assign(checkpoint, 5).values()) == [
        f"{stem}-00001-of-00002.safetensors",
        f"{stem}-00002-of-00002.safetensors",
    ]
    odd = replace(checkpoint, weight_map=dict.fromkeys("ab", f"{stem}-00001-of-00001.safetensors"))
    assert set(assign(odd).values()) == {f"{stem}.safetensors"}


def test_variants_keep_their_names(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(8), "b": torch.ones(8)}, tmp_path / "model.fp16.safetensors")
    surgery.write(surgery.open_checkpoint(tmp_path / "model.fp16.safetensors"), tmp_path / "two", max_shard_size=32)
    assert set(hashes(tmp_path / "two")) == {
        "model.fp16-00001-of-00002.safetensors",
        "model.fp16-00002-of-00002.safetensors",
        "model.safetensors.index.fp16.json",
    }
    surgery.write(surgery.open_checkpoint(tmp_path / "two"), tmp_path / "one", max_shard_size="1MB")
    assert set(hashes(tmp_path / "one")) == {"model.fp16.safetensors"}


@pytest.mark.parametrize("family", MODELS)
def test_without_a_size_nothing_changes(saved: Callable[..., Path], tmp_path: Path, family: str) -> None:
    source = saved(family, shard="60KB")
    checkpoint = surgery.open_checkpoint(source)
    assert assign(checkpoint) == checkpoint.weight_map
    surgery.write(checkpoint, tmp_path / "out")
    assert hashes(tmp_path / "out") == hashes(source)


# Real checkpoints


@pytest.mark.parametrize("family", MODELS)
def test_there_and_back(saved: Callable[..., Path], tmp_path: Path, family: str) -> None:
    """To five sizes one after another and back to one file: the same bytes as save_pretrained wrote."""
    source = saved(family)
    made = source
    for i, size in enumerate(SIZES):
        surgery.write(surgery.open_checkpoint(made), tmp_path / f"{i}", max_shard_size=size, balanced=bool(i % 2))
        made = tmp_path / f"{i}"
        assert (made / INDEX).exists()
    surgery.write(surgery.open_checkpoint(made), tmp_path / "back", max_shard_size="1GB")
    assert hashes(tmp_path / "back") == hashes(source)
    surgery.write(surgery.open_checkpoint(made), tmp_path / "again", max_shard_size=SIZES[0])
    assert hashes(tmp_path / "again") == hashes(tmp_path / "0")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_shards_of_save_pretrained_join_to_its_one_file(
    saved: Callable[..., Path], tmp_path: Path, family: str
) -> None:
    surgery.write(surgery.open_checkpoint(saved(family, shard="20KB")), tmp_path / "out", max_shard_size="1GB")
    assert hashes(tmp_path / "out") == hashes(saved(family))


@pytest.mark.parametrize("family", MODELS)
def test_resharded_checkpoints_load(saved: Callable[..., Path], tmp_path: Path, family: str) -> None:
    surgery.write(surgery.open_checkpoint(saved(family, shard="60KB")), tmp_path / "out", max_shard_size="30KB")
    model = build(family)
    loaded, info = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


# Metadata of the index


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_totals_follow_what_is_dropped(saved: Callable[..., Path], family: str) -> None:
    checkpoint = surgery.open_checkpoint(saved(family, shard="20KB"))
    gone = checkpoint["model.norm.weight"]
    dropped = surgery.drop(checkpoint, r"model\.norm\.weight")
    before = checkpoint.index_metadata
    after = json.loads(bytes(surgery.plan(dropped, "20KB").files[INDEX]))["metadata"]  # type: ignore[arg-type]
    assert after == {
        "total_size": before["total_size"] - gone.nbytes,
        "total_parameters": before["total_parameters"] - gone.size,
    }


def test_other_metadata_of_the_index_stays(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(8), "b": torch.ones(8)}, tmp_path / "a.safetensors")
    content = {"metadata": {"total_size": 1.5, "mood": "good"}, "weight_map": dict.fromkeys("ab", "a.safetensors")}
    (tmp_path / INDEX).write_text(json.dumps(content))
    plan = surgery.plan(surgery.open_checkpoint(tmp_path), 32)
    assert json.loads(bytes(plan.files[INDEX]))["metadata"] == {"total_size": 64, "mood": "good"}  # type: ignore[arg-type]


# `__metadata__` of shards that are joined


def shards_with(folder: Path, *metadata: dict[str, str] | None) -> Checkpoint:
    for i, one in enumerate(metadata):
        save_file({f"w{i}": torch.zeros(4)}, folder / f"{i}.safetensors", one)
    return surgery.open_checkpoint(folder)


def written(checkpoint: Checkpoint, path: Path, drop: tuple[str, ...] = ()) -> dict[str, str]:
    """`__metadata__` of the one shard that the checkpoint becomes."""
    surgery.write(checkpoint, path, max_shard_size="1MB", drop_metadata=drop)
    with safe_open(path / "model.safetensors", "pt") as stream:
        return stream.metadata()


@pytest.mark.parametrize(
    ("metadata", "joined"),
    [
        ([None, None], {"format": "pt"}),
        ([{"format": "pt"}, {"format": "pt"}], {"format": "pt"}),
        ([{"format": "np"}, None], {"format": "np"}),
        ([{"format": "pt", "a": "1"}, {"format": "pt", "b": "2"}], {"format": "pt", "a": "1", "b": "2"}),
    ],
)
def test_metadata_that_agrees_is_joined(
    tmp_path: Path, metadata: list[dict[str, str] | None], joined: dict[str, str]
) -> None:
    (tmp_path / "in").mkdir()
    assert written(shards_with(tmp_path / "in", *metadata), tmp_path / "out") == joined


def test_metadata_that_disagrees_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    checkpoint = shards_with(tmp_path / "in", {"format": "pt", "step": "1"}, {"format": "pt", "step": "2"})
    with pytest.raises(PlanError) as caught:
        surgery.plan(checkpoint, "1MB")
    assert caught.value.what == "shards that are to be joined disagree on the metadata `step`"
    assert caught.value.where == ("model.safetensors", "'1' against '2' in 1.safetensors")
    assert caught.value.help == "leave it out with --drop-metadata step"
    assert written(checkpoint, tmp_path / "out", ("step",)) == {"format": "pt"}
    surgery.plan(checkpoint)  # not joined, so nothing disagrees


def test_metadata_that_no_shard_has_cannot_be_dropped(tmp_path: Path) -> None:
    checkpoint = shards_with(tmp_path, {"format": "pt", "step": "1"}, None)
    with pytest.raises(NothingMatched, match="no shard has the metadata stop") as caught:
        surgery.plan(checkpoint, drop_metadata=["step", "stop"])
    assert caught.value.help == "they have format, step"


def test_every_shard_of_a_split_keeps_the_metadata(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(8), "b": torch.ones(8)}, tmp_path / "model.safetensors", {"step": "7"})
    plan = surgery.plan(surgery.open_checkpoint(tmp_path), 32)
    found = [re.search(rb'"__metadata__":({.*?})', shard.header) for shard in plan.shards]
    assert [match and match[1] for match in found] == [b'{"step":"7"}'] * 2


def test_stem_with_braces_is_taken_as_it_is() -> None:
    assert split_into_shards({"a": 1, "b": 1}, 1, "a{0}") == {
        "a": "a{0}-00001-of-00002.safetensors",
        "b": "a{0}-00002-of-00002.safetensors",
    }
