"""A header read in one pass is what the JSON reader makes of it, or is left to that."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from handmade import write_tensors
from hypothesis import example, given
from hypothesis import strategies as st

from surgery.errors import FormatError
from surgery.files import safetensors
from surgery.files.adapters.table import FORMATS
from surgery.files.plain_header import METADATA, Entry, plain
from surgery.files.safetensors import Tensors, encode_header, parse_header, read_header, reading_once, tensors_of
from surgery.lazy.dtypes import BF16, DTYPES, F32

STYLES = {
    "save_file": {"separators": (",", ":"), "ensure_ascii": False},
    "json": {},
    "ascii": {"separators": (",", ":"), "ensure_ascii": True},
    "json, not ascii": {"ensure_ascii": False},
}
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ['},"', '": {"dtype"', "a.b", "},", 'x":{', "\\", "\\u", "\x00", "\x7f", "é", "e\u0301", "𝄞", "\u2028"]
)
WHOLE = [one for one in DTYPES.values() if one.bits % 8 == 0]


def by_json(raw: bytes) -> tuple[dict[str, str] | None, dict[str, Entry]] | None:
    try:
        return safetensors._from_json(raw, lambda what, name=None: FormatError(what))
    except FormatError:
        return None


def written(tensors: dict[str, tuple[str, list[int]]], metadata: dict[str, str] | None, style: str) -> bytes:
    content: dict[str, object] = {} if metadata is None else {METADATA: metadata}
    at = 0
    for name, (dtype, shape) in tensors.items():
        size = DTYPES[dtype].bits // 8
        for n in shape:
            size *= n
        content[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(content, **STYLES[style]).encode()  # type: ignore[arg-type]
    return raw + b" " * (-len(raw) % 8)


TENSORS = st.dictionaries(
    NAMES.filter(lambda name: name != METADATA),
    st.tuples(st.sampled_from([one.name for one in WHOLE]), st.lists(st.integers(0, 5), max_size=4)),
    max_size=6,
)
METADATAS = st.none() | st.dictionaries(NAMES, NAMES, max_size=3)


@given(TENSORS, METADATAS, st.sampled_from([*STYLES]))
@example({'a":{"b},"': ("F32", [1])}, {"},": '{"'}, "save_file")
def test_as_the_json_reader_reads_it(
    tensors: dict[str, tuple[str, list[int]]], metadata: dict[str, str] | None, style: str
) -> None:
    raw = written(tensors, metadata, style)
    wanted = by_json(raw)
    assert wanted is not None and list(wanted[1]) == list(tensors)
    assert plain(raw) in (wanted, None)
    ours = {name: (DTYPES[dtype], tuple(shape)) for name, (dtype, shape) in tensors.items()}
    ordered = encode_header(ours, metadata)[8:]
    assert plain(ordered) in (by_json(ordered), None)


@given(TENSORS, METADATAS, st.sampled_from([*STYLES]), st.data())
def test_what_the_json_reader_refuses_is_not_read(
    tensors: dict[str, tuple[str, list[int]]], metadata: dict[str, str] | None, style: str, data: st.DataObject
) -> None:
    """Bytes changed, left out, doubled and put in, at places that hypothesis chooses."""
    raw = bytearray(written(tensors, metadata, style))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        until = data.draw(st.integers(at, min(len(raw), at + 40)))
        new = data.draw(
            st.sampled_from([b"", b'"', b"{", b"}", b",", b"0", b"-", b" ", b"\\", b"\xff", b"\x01", b"[1]"])
        )
        raw[at:until] = new or bytes(raw[at:until]) * 2
    found = plain(bytes(raw))
    assert found is None or found == by_json(bytes(raw))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"a": '"}, "', "b": "é\\"}])
def test_what_writers_write_is_read_in_one_pass(style: str, metadata: dict[str, str] | None) -> None:
    names = {f"model.layers.{i}.é.weight": ("BF16", [i, 3]) for i in range(50)}
    raw = written(names, metadata, style)
    found = plain(raw)
    assert found is not None and found == by_json(raw)
    assert found[0] == metadata and found[1]["model.layers.2.é.weight"] == Entry(BF16, (2, 3), 6, 18)


def test_pieces_are_cut_between_two_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surgery.files.plain_header._PIECE", 100)
    raw = written({f"{i}": ("F32", [1]) for i in range(300)}, None, "json")
    assert plain(raw) == by_json(raw)


@pytest.mark.parametrize(
    "wrong",
    [
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        '{"a":{"dtype":"F32","shape":[01],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F32","shape":[1,],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}}',
        '{"a":{"dtype":"F4","shape":[1],"data_offsets":[0,0]}}',
        '{"a":{"dtype":"F32","shape":[1099511627776,1099511627776,0],"data_offsets":[0,0]}}',
        '{"__metadata__":{"a":"1","a":"2"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        '{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        '{"__metadata__":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    ],
)
def test_hostile(wrong: str) -> None:
    raw = wrong.encode()
    assert plain(raw) is None
    with pytest.raises(FormatError):
        parse_header(raw, 8 + len(raw) + 4, "x")


def test_a_header_is_parsed_once_and_again_where_the_file_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = safetensors.parse_header
    monkeypatch.setattr(safetensors, "parse_header", lambda *given: calls.append(given[2]) or real(*given))
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": ("F32", (2,))})
    with reading_once():
        first = read_header(str(path))
        assert read_header(str(path)) == first and len(calls) == 1
        write_tensors(tmp_path / "b", {"b": ("F32", (2,))})
        os.utime(tmp_path / "b", ns=(first[0].mtime_ns, first[0].mtime_ns))
        os.replace(tmp_path / "b", path)  # the same size and time
        assert [*read_header(str(path))[1].entries] == ["b"] and len(calls) == 2
    read_header(str(path))
    assert len(calls) == 3


def test_tensors_made_when_asked_for_are_those_made_at_once(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", {"a": ("F32", (2,)), "b": ("BF16", (3, 1))})
    file, header = read_header(str(tmp_path / "a"))
    lazily = Tensors(file, header)
    assert dict(lazily) == tensors_of(file, header) and len(lazily) == 2
    assert "a" in lazily and "c" not in lazily and lazily["a"].dtype is F32


def test_each_format_that_names_tell_has_marks_that_its_names_hold() -> None:
    """A format without marks is asked about every file; one with marks must not be passed over."""
    told = {
        "peft": "x.lora_A.weight", "mlx": "layers.0.q.lora_a", "loralib": "x.lora_A", "w+ab": "x.lora_A",
        "x@a@b": "x.lora.A", "torchtune": "x.lora_a.weight", "adapterhub": "x.loras.a.lora_A",
        "megatron": "decoder.layers.0.self_attention.linear_qkv.adapter.linear_in.weight",
    }  # fmt: skip
    assert {key for key, row in FORMATS.items() if row.marks} == set(told)
    assert all(any(mark in told[key] for mark in FORMATS[key].marks) for key in told)
