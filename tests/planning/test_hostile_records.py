"""Undo records that lie: each is refused in words, before anything is allocated by what it claims, and nothing is
published.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from conftest import hashes
from handmade import write_adapter, write_phi3
from hostile.records import TERABYTE, base_record, parts, put, shard_record, zeros

import surgery
from surgery.errors import FormatError, SurgeryError, VerificationFailed
from surgery.evaluation.corrections import SPARSE, correct
from surgery.planning.encoding import DEEPEST, check_depth
from surgery.planning.record import RATIO, ROOM, _packed, _unpacked

Facts = dict[str, Any]
ODD = (None, True, [], {}, "x", -1, 10**30, 1.5, [1], {"a": 1}, [[]], "../x", "", "after", [5], {"reshape": "after"})
NAME = "model.layers.0.self_attn.o_proj.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phi3(tmp_path_factory.mktemp("records") / "base", layers=1, hidden=32)


@pytest.fixture(scope="module")
def merged(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    adapter = write_adapter(tmp_path_factory.mktemp("records") / "adapter", {NAME.removesuffix(".weight"): (32, 32)})
    dest, opened = tmp_path_factory.mktemp("records") / "merged", surgery.open_checkpoint(base)
    surgery.write(surgery.reversible(surgery.merge(opened, surgery.open_adapter(adapter)), opened), dest)
    return dest


@pytest.fixture
def made(merged: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(merged, tmp_path / "merged"))


def check_refused(
    folder: Path, kind: type[SurgeryError] = FormatError, text: str = "the undo record is damaged"
) -> str:
    """Unmerging raises that, and leaves nothing but a stage."""
    out = folder.parent / "out" / "base"
    with pytest.raises(kind) as caught:
        surgery.write(surgery.unmerge(surgery.open_checkpoint(folder)), out)
    assert text in str(caught.value) and not out.exists()
    return str(caught.value)


def check_small(act: Callable[[], object], most: int = 60_000_000) -> None:
    """It allocates less than `most` bytes."""
    tracemalloc.start()
    try:
        act()
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def test_put_puts_back_what_parts_gives(made: Path, base: Path, tmp_path: Path) -> None:
    """So that what is refused below is refused for what was changed."""
    for path in (base_record(made), shard_record(made)):
        put(path, *parts(path))
    surgery.write(surgery.unmerge(surgery.open_checkpoint(made)), tmp_path / "out")
    assert hashes(tmp_path / "out") == hashes(base)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*at, key))


@pytest.mark.parametrize("record", [base_record, shard_record])
@pytest.mark.parametrize("seed", range(3))
def test_missing_and_mistyped_fields(made: Path, base: Path, record: Callable[[Path], Path], seed: int) -> None:
    """Refused, or what they say makes no difference to a byte of the base's weights."""
    path, source = record(made), random.Random(seed)
    header, said, held = parts(path)
    spots = [at for at in places(said) if at]
    weights = {name: value for name, value in hashes(base).items() if name.endswith(".safetensors")}
    for number in range(25):
        odd = copy.deepcopy(said)
        place, value = odd, source.choice(ODD)
        *above, last = source.choice(spots)
        for key in above:
            place = place[key]
        if source.random() < 0.3:
            del place[last]
        else:
            place[last] = value
        put(path, header, odd, held)
        out = made.parent / f"out{number}"
        try:
            surgery.write(surgery.unmerge(surgery.open_checkpoint(made)), out)
        except SurgeryError as error:
            assert str(error) and not out.exists()
        else:
            assert weights.items() <= hashes(out).items()


@pytest.mark.parametrize("notes", [[5], [None], [["x"]], "x", {}])
def test_notes_that_are_none_are_refused_before_all_is_written(made: Path, notes: Any) -> None:
    header, said, held = parts(base_record(made))
    put(base_record(made), header, said | {"notes": notes}, held)
    assert "`notes` must be a list of texts" in check_refused(made)


@pytest.mark.parametrize("levels", [DEEPEST + 1, 300, 490])
@pytest.mark.parametrize("kind", ["reshape", "before", "concat"])
def test_recipes_within_each_other(made: Path, levels: int, kind: str) -> None:
    header, said, held = parts(shard_record(made))
    tree: Any = "after"
    for _ in range(levels):
        tree = {
            "reshape": {"reshape": tree, "shape": [32, 32]},
            "before": {"before": tree, "dtype": "BF16", "deltas": [], "gain": None},
            "concat": {"concat": [tree] if levels < 490 else tree, "axis": 0},
        }[kind]
    said["tensors"][NAME]["predicted"] = tree
    raw = json.dumps(said).encode()
    assert b"predicted" in raw
    put(shard_record(made), header, said, held)
    check_refused(made)


def test_trees_of_ours_are_not_deep(merged: Path) -> None:
    _, said, _ = parts(shard_record(merged))
    assert said["tensors"][NAME]["predicted"]
    check_depth(said)


@pytest.mark.parametrize("scale", ["0x1p99999", "x", "", "0x1p-99999999999999999999"])
def test_scales_that_are_no_numbers(made: Path, scale: str) -> None:
    header, said, held = parts(shard_record(made))
    said["tensors"][NAME]["predicted"]["deltas"][0][2] = scale
    put(shard_record(made), header, said, held)
    if scale.startswith("0x1p-"):  # zero: it predicts what is no base
        check_refused(made, VerificationFailed, "what is restored is not what was")
    else:
        check_refused(made)


@pytest.mark.parametrize("scale", ["inf", "nan", "-inf"])
def test_scales_that_predict_nothing(made: Path, scale: str) -> None:
    header, said, held = parts(shard_record(made))
    said["tensors"][NAME]["predicted"]["deltas"][0][2] = scale
    put(shard_record(made), header, said, held)
    check_refused(made, SurgeryError, "")


def test_swapped_entries(made: Path) -> None:
    """One tensor's recipe and corrections under another one's name."""
    header, said, held = parts(shard_record(made))
    (one, first), (other, second), *rest = said["tensors"].items()
    put(shard_record(made), header, said | {"tensors": {other: first, one: second, **dict(rest)}}, held)
    check_refused(made, SurgeryError, "")
    swapped = {**held, "0.digests": held["1.digests"], "1.digests": held["0.digests"]}
    put(shard_record(made), header, said, swapped)
    check_refused(made, VerificationFailed, "what is restored is not what was")


@pytest.mark.parametrize("blob", [zeros(1 << 28), TERABYTE, b"", b"\x28\xb5\x2f\xfd", bytes(100)])
@pytest.mark.parametrize("name", ["file/config.json", "header/model-00001-of-00001.safetensors"])
def test_bombs_in_a_base_record(made: Path, name: str, blob: bytes) -> None:
    header, said, held = parts(base_record(made))
    put(base_record(made), header, said, held | {name: blob})
    check_small(lambda: check_refused(made))


def test_what_is_packed_comes_back() -> None:
    """However well it packs: the law that bounds what is unpacked holds for all that is written."""
    for raw in (b"", b"x", bytes(ROOM), bytes(ROOM + 1), bytes(30_000_000), random.Random(0).randbytes(100_000)):
        packed = _packed(raw)
        assert _unpacked(packed, "here") == raw
        assert (len(raw) <= ROOM + RATIO * len(packed) and len(packed) < len(raw) / 200 + 1000) or len(raw) == 100_000


def stream(packed: bytes) -> bytes:
    return len(packed).to_bytes(4, "little") + packed


FRAMES = {
    "three bombs": bytes((SPARSE,)) + 3 * stream(zeros(1 << 27)),
    "many streams": bytes((SPARSE,)) + 400 * stream(zstandard.compress(bytes(2048))),
    "a terabyte": bytes((SPARSE,)) + 3 * stream(TERABYTE),
    "longer than its block": bytes((SPARSE,)) + bytes(3000),
    "a length of 4 GB": bytes((SPARSE,)) + b"\xff\xff\xff\xff",
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_bombs_in_a_frame(frame: bytes) -> None:
    def act() -> None:
        with pytest.raises(FormatError, match="the undo record is damaged"):
            correct(frame, memoryview(bytearray(2048)), 16, "here")

    check_small(act, 1_000_000)


@pytest.mark.parametrize("sizes", [[2**32 - 1], [1], [0], [7]])
def test_frames_that_claim_more_than_is_there(made: Path, sizes: list[int]) -> None:
    header, said, held = parts(shard_record(made))
    number = list(said["tensors"]).index(NAME)
    claimed = b"".join(size.to_bytes(4, "little") for size in sizes)
    if claimed == held[f"{number}.sizes"]:
        pytest.fail("the record holds that already")
    put(shard_record(made), header, said, held | {f"{number}.sizes": claimed})
    check_small(lambda: check_refused(made))
