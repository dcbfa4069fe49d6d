"""Laws of the safetensors format: what we write is what `save_file` writes, what it refuses we refuse."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from surgery.errors import FormatError
from surgery.files.safetensors import Entry, Header, encode_header, in_file_order, parse_header, read_header
from surgery.files.strict import parse_object
from surgery.lazy.dtypes import DTYPES, F32, Dtype
from surgery.lazy.tensor import Shape

TORCH = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.uint16: "U16", torch.int16: "I16",
    torch.uint32: "U32",
    torch.int32: "I32", torch.uint64: "U64", torch.int64: "I64", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float32: "F32", torch.float64: "F64", torch.complex64: "C64", torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2", torch.float8_e8m0fnu: "F8_E8M0", torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ", torch.float4_e2m1fn_x2: "F4",
}  # fmt: skip
QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
names = text.filter(lambda name: name != "__metadata__")
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


def is_whole(tensor: tuple[Dtype, Shape]) -> bool:
    return math.prod(tensor[1]) * tensor[0].bits % 8 == 0


tables = st.dictionaries(names, st.tuples(st.sampled_from(list(DTYPES.values())), shapes).filter(is_whole), max_size=6)


@st.composite
def torch_tensors(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Tensors of every dtype that safetensors saves; values do not matter."""
    made = {}
    for name in draw(st.lists(names, max_size=6, unique=True)):
        dtype = draw(st.sampled_from(list(TORCH)))
        shape = draw(shapes.filter(bool) if dtype is torch.float4_e2m1fn_x2 else shapes)
        made[name] = torch.zeros(math.prod(shape) * dtype.itemsize, dtype=torch.uint8).view(dtype).reshape(shape)
    return made


def described(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[Dtype, Shape]]:
    """Dtypes and shapes as headers have them: a packed float4 counts its elements, torch its bytes."""
    found = {}
    for name, tensor in tensors.items():
        dtype, shape = DTYPES[TORCH[tensor.dtype]], tuple(tensor.shape)
        found[name] = (dtype, (*shape[:-1], 2 * shape[-1]) if dtype.bits == 4 else shape)
    return found


def encoded(header: Any, data: bytes = b"") -> bytes:
    """A file with this header (an object, or raw bytes) and this data."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def tensor(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def parsed(content: bytes) -> Header:
    return parse_header(content[8:][: int.from_bytes(content[:8], "little")], len(content), "file")


# Laws


@QUICK
@given(tables, st.none() | st.dictionaries(text, text, max_size=3))
def test_parse_inverts_encode(table: dict[str, tuple[Dtype, Shape]], metadata: dict[str, str] | None) -> None:
    raw = encode_header(table, metadata)
    size = len(raw) + sum(math.prod(shape) * dtype.bits // 8 for dtype, shape in table.values())
    header = parse_header(raw[8:], size, "file")
    assert {name: (e.dtype, e.shape) for name, e in header.entries.items()} == table
    assert header.metadata == metadata
    assert header.data == len(raw) and len(raw) % 8 == 0
    assert header.end == size
    again = {name: (e.dtype, e.shape) for name, e in header.entries.items()}
    assert encode_header(again, header.metadata) == raw


@QUICK
@given(torch_tensors(), st.none() | st.dictionaries(text, text, max_size=1))
def test_headers_are_those_of_save_file(
    tmp_path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None
) -> None:
    assume(tensors or metadata != {})  # of these two safetensors 0.8 makes a file that it cannot read
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, metadata)
    mine = encode_header(described(tensors), metadata)
    assert path.read_bytes()[: len(mine)] == mine
    file, header = read_header(str(path))
    assert header.end == file.size == path.stat().st_size
    assert {n: (e.dtype, e.shape) for n, e in header.entries.items()} == described(tensors)


def test_every_dtype_has_its_rank(tmp_path: Path) -> None:
    tensors = {f"{i}": torch.zeros(2 * t.itemsize, dtype=torch.uint8).view(t) for i, t in enumerate(TORCH)}
    save_file(tensors, tmp_path / "a.safetensors")
    mine = encode_header(described(tensors), None)
    assert (tmp_path / "a.safetensors").read_bytes()[: len(mine)] == mine


def test_metadata_keys_are_sorted() -> None:
    raw = encode_header({}, {"b": "1", "a": "2"})
    assert raw[8:].rstrip() == b'{"__metadata__":{"a":"2","b":"1"}}'


def test_order_is_rank_then_name() -> None:
    table = {"b": (F32, ()), "a": (F32, ()), "z": (DTYPES["I64"], ()), "c": (DTYPES["BOOL"], ())}
    assert in_file_order(table) == ["z", "a", "b", "c"]


SMALL = [
    encoded({"a": tensor("F32", [2, 1], [0, 8]), "b": tensor("U8", [3], [8, 11])}, bytes(11)),
    encoded(
        {"__metadata__": {"format": "pt"}, "é": tensor("F4", [10, 0], [0, 0]), "n": tensor("F4", [2], [0, 1])}, bytes(1)
    ),
    encoded({}),
]

edits = st.lists(
    st.tuples(
        st.integers(0, max(map(len, SMALL))),
        st.sampled_from(["change", "insert", "remove"]),
        st.sampled_from(b'{}[]",:-0123456789\\u_ .eE\n') | st.integers(0, 255),
    ),
    min_size=1,
    max_size=3,
)


def edited(content: bytes, changes: list[tuple[int, str, int]], *, fitting: bool) -> bytes:
    """The file after the changes; `fitting` adjusts the header's length by what was inserted and removed."""
    changed = bytearray(content)
    for at, kind, value in changes:
        changed[at : at + (kind != "insert")] = b"" if kind == "remove" else bytes([value])
    if fitting:
        changed[:8] = max(0, int.from_bytes(content[:8], "little") + len(changed) - len(content)).to_bytes(8, "little")
    return bytes(changed)


def check_no_laxer(path: Path, content: bytes) -> None:
    """What we accept, safetensors accepts, and reads the same from it."""
    path.write_bytes(content)
    try:
        _, header = read_header(str(path))
    except FormatError:
        return
    with safe_open(path, "pt") as theirs:
        slices = {name: theirs.get_slice(name) for name in theirs.keys()}  # noqa: SIM118
        assert {n: (e.dtype.name, list(e.shape)) for n, e in header.entries.items()} == {
            n: (s.get_dtype(), s.get_shape()) for n, s in slices.items()
        }
        assert (header.metadata or None) == (theirs.metadata() or None)


@settings(QUICK, max_examples=1200)
@given(st.sampled_from(SMALL), edits, st.booleans())
def test_what_safetensors_refuses_we_refuse(
    tmp_path: Path, content: bytes, changes: list[tuple[int, str, int]], fitting: bool
) -> None:
    check_no_laxer(tmp_path / "a.safetensors", edited(content, changes, fitting=fitting))


@QUICK
@given(st.binary(max_size=40), st.booleans())
def test_noise_is_refused_as_such(tmp_path: Path, noise: bytes, framed: bool) -> None:
    check_no_laxer(tmp_path / "a.safetensors", encoded(b"{" + noise) if framed else noise)


@pytest.mark.parametrize("shape", [[0, 2**33, 2**33], [2**33, 2**33, 0], [2**63, 0], [2**64, 0], [0, 2**70]])
def test_overflow_is_theirs(tmp_path: Path, shape: list[int]) -> None:
    path = tmp_path / "a.safetensors"
    content = encoded({"a": tensor("F32", shape, [0, 0])})
    path.write_bytes(content)
    try:
        with safe_open(path, "pt"):
            accepted = True
    except SafetensorError:
        accepted = False
    if accepted:
        assert parsed(content).entries["a"] == Entry(F32, tuple(shape), 0, 0)
    else:
        with pytest.raises(FormatError, match="overflows 64 bits"):
            parsed(content)


# Each invariant, broken

BROKEN = {
    "not an object": (encoded(b"[1]     "), "the header does not begin with `{`"),
    "blank first": (encoded(b" {}"), "the header does not begin with `{`"),
    "no header": (encoded(b""), "the header does not begin with `{`"),
    "truncated json": (encoded(b'{"a": '), "the header is wrong: cut off: Expecting value: line 1 column 7 (char 6)"),
    "two values": (encoded(b"{} {}"), "the header is wrong: not JSON: Extra data"),
    "not utf-8": (encoded(b'{"\xff": 1}'), "the header is wrong: not UTF-8: 'utf-8' codec can't decode byte 0xff"),
    "half a surrogate pair": (
        encoded({"\ud800": tensor()}, bytes(4)),
        "the header is wrong: half of a surrogate pair is not text",
    ),
    "nan": (encoded(b'{"a": NaN}'), "the header is wrong: NaN is not JSON"),
    "infinity": (encoded(b'{"a": -Infinity}'), "the header is wrong: -Infinity is not JSON"),
    "endless integer": (encoded(b'{"a": ' + b"1" * 5000 + b"}"), "the header is wrong: not JSON that can be read"),
    "bottomless": (encoded(b'{"a":' * 100_000), "the header is wrong: nested too deeply: "),
    "name twice": (
        encoded(
            b'{"a": {"dtype":"U8","shape":[1],"data_offsets":[0,1]}, "a":'
            b' {"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
            b"1",
        ),
        "the header is wrong: the key 'a' comes twice",
    ),
    "key of a tensor twice": (
        encoded(b'{"a": {"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1"),
        "the header is wrong: the key 'dtype' comes twice",
    ),
    "metadata key twice": (
        encoded(b'{"__metadata__": {"k":"1","k":"2"}}'),
        "the header is wrong: the key 'k' comes twice",
    ),
    "metadata twice": (
        encoded(b'{"__metadata__": {}, "__metadata__": {}}'),
        "the header is wrong: the key '__metadata__' comes twice",
    ),
    "metadata number": (encoded({"__metadata__": {"k": 1}}), "`__metadata__` may only map strings to strings"),
    "metadata list": (encoded({"__metadata__": ["k"]}), "`__metadata__` may only map strings to strings"),
    "too short": (encoded({"a": tensor()}, bytes(3)), "the file is cut off: "),
    "too long": (encoded({"a": tensor()}, bytes(5)), "the file has bytes that no tensor owns: "),
}
BROKEN_TENSORS = {
    "hole": ({"a": tensor(), "b": tensor(offsets=[5, 9])}, 9, "b",
    "offsets leave a hole: the tensor begins at byte 5, the one before"),
    "first hole": ({"a": tensor(offsets=[1, 5])}, 5, "a",
    "offsets leave a hole: the tensor begins at byte 1, the one before ends at 0"),
    "overlap": ({"a": tensor(), "b": tensor(offsets=[3, 7])}, 7, "b",
    "offsets overlap: the tensor begins at byte 3, the one before"),
    "not an object": ({"a": 1}, 4, "a", "a tensor needs `dtype`, `shape` and `data_offsets`, and nothing else"),
    "key missing": ({"a": {"dtype": "U8"}}, 4, "a",
    "a tensor needs `dtype`, `shape` and `data_offsets`, and nothing else"),
    "key too many": ({"a": tensor(order="C")}, 4, "a",
    "a tensor needs `dtype`, `shape` and `data_offsets`, and nothing else"),
    "dtype unknown": ({"a": tensor("F128")}, 4, "a", "unknown dtype 'F128'; known are BOOL, F4, "),
    "dtype lower case": ({"a": tensor("f32")}, 4, "a", "unknown dtype 'f32'; known are BOOL, F4, "),
    "dtype a number": ({"a": tensor(32)}, 4, "a", "unknown dtype 32; known are BOOL, F4, "),
    "shape a bool": ({"a": tensor(shape=[True])}, 4, "a", "the shape [True] is not a list of non-negative integers"),
    "shape negative": ({"a": tensor(shape=[-1])}, 4, "a", "the shape [-1] is not a list of non-negative integers"),
    "shape a float": ({"a": tensor(shape=[1.0])}, 4, "a", "the shape [1.0] is not a list of non-negative integers"),
    "shape no list": ({"a": {**tensor(), "shape": 1}}, 4, "a", "the shape 1 is not a list of non-negative integers"),
    "shape overflows": ({"a": tensor(shape=[2**31, 2**31])}, 4, "a",
    "the shape [2147483648, 2147483648] overflows 64 bits"),
    "shape overflows on the way": ({"a": tensor(shape=[2**32, 2**32, 0], offsets=[0, 0])}, 0, "a", "overflows 64 bits"),
    "offsets a bool": ({"a": tensor(offsets=[False, 4])}, 4, "a",
    "the offsets [False, 4] are not two non-negative integers"),
    "offsets negative": ({"a": tensor(offsets=[-4, 0])}, 4, "a",
    "the offsets [-4, 0] are not two non-negative integers"),
    "offsets a float": ({"a": tensor(offsets=[0, 4.0])}, 4, "a",
    "the offsets [0, 4.0] are not two non-negative integers"),
    "offsets three": ({"a": tensor(offsets=[0, 4, 8])}, 4, "a",
    "the offsets [0, 4, 8] are not two non-negative integers"),
    "offsets too far": ({"a": tensor(offsets=[0, 8])}, 8, "a", "F32 [1] takes 4 bytes, but the offsets [0, 8] span 8"),
    "offsets backwards": ({"a": tensor(offsets=[4, 0])}, 4, "a",
    "F32 [1] takes 4 bytes, but the offsets [4, 0] span -4"),
    "half a byte": ({"a": tensor("F4", [3], [0, 2])}, 2, "a", "F4 [3] does not fill whole bytes"),
    "three quarters of a byte": ({"a": tensor("F6_E2M3", [1], [0, 1])}, 1, "a",
    "F6_E2M3 [1] does not fill whole bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_headers(tmp_path: Path, case: str) -> None:
    content, what = BROKEN[case]
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        read_header(str(path))
    assert caught.value.what.startswith(what)
    assert caught.value.where == (str(path),)
    assert caught.value.help == "the file is damaged or was not written by safetensors; fetch it again"


@pytest.mark.parametrize("case", BROKEN_TENSORS)
def test_broken_tensors(case: str) -> None:
    header, data, name, what = BROKEN_TENSORS[case]
    with pytest.raises(FormatError) as caught:
        parsed(encoded(header, bytes(data)))
    assert what in caught.value.what
    assert caught.value.where == (f"file: {name}",)
    assert caught.value.help == "the file is damaged or was not written by safetensors; fetch it again"


def test_minus_zero_is_no_integer() -> None:
    with pytest.raises(FormatError, match=r"the shape \[-0.0\] is not a list of non-negative integers"):
        parsed(encoded(b'{"a": {"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}'))


LFS = (
    b"version https://git-lfs.github.com/spec/v1\noid"
    b" sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


@pytest.mark.parametrize(
    ("content", "length"),
    [
        (b"", 0),
        (b"\x02\0\0", 2),
        ((100_000_001).to_bytes(8, "little") + b"{}", 100_000_001),
        ((3).to_bytes(8, "little") + b"{}", 3),
        (bytes([255] * 8) + b"{}", 2**64 - 1),
    ],
    ids=["empty", "stump", "above 100 MB", "longer than the file", "all ones"],
)
def test_lengths_that_cannot_be(tmp_path: Path, content: bytes, length: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        read_header(str(path), where="shard 3")
    assert (
        caught.value.what
        == f"the file is not safetensors: {len(content)} bytes, and its first eight ask for a header of {length}"
    )
    assert caught.value.where == ("shard 3",)
    assert caught.value.help == "a broken download looks like this; fetch the file again"


def read_json(path: Path) -> dict[str, Any]:
    return parse_object(path.read_bytes(), lambda what: FormatError(what, where=[str(path)], help="mend it"))


def test_a_pointer_is_named_as_one(tmp_path: Path) -> None:
    """What a clone without Git LFS has in the place of weights and of larger JSON files."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(LFS)
    for read in (lambda: read_header(str(path)), lambda: read_json(path)):
        with pytest.raises(FormatError) as caught:
            read()
        assert caught.value.what == "a Git LFS pointer is here in the place of the file"
        assert caught.value.where == (str(path),)
        assert caught.value.help == "git lfs pull fetches it, in the clone that the file came from"


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"", "cut off: Expecting value"),
        (b'{"a": 1', "cut off: Expecting ',' delimiter"),
        (b'{"a": "b', "cut off: Unterminated string"),
        (b'{"a": "\xc3', "cut off in the midst of a character: "),
        (b'{"a": b}', "not JSON: Expecting value"),
        (b'{"a": "\xc3"}', "not UTF-8: "),
    ],
)
def test_json_that_is_cut_off_is_called_so(raw: bytes, what: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(raw)
    with pytest.raises(FormatError) as caught:
        read_json(path)
    assert caught.value.what.startswith(what)


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot read the file: No such file or directory") as caught:
        read_header(str(tmp_path / "a.safetensors"))
    assert caught.value.where == (str(tmp_path / "a.safetensors"),)


def test_header_too_long_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surgery.files.safetensors.MAX_HEADER", 64)
    with pytest.raises(FormatError, match="a header of 80 bytes would be above the format's 64") as caught:
        encode_header({"a" * 20: (F32, (1,))}, None)
    assert (caught.value.help or "").startswith("--max-shard-size 5GB writes as many shards as their headers need")


def test_a_tensor_cannot_be_called_metadata() -> None:
    with pytest.raises(FormatError, match="no tensor can be called __metadata__") as caught:
        encode_header({"__metadata__": (F32, (1,))}, {"format": "pt"})
    assert caught.value.help == "rename it: the format keeps this name for itself"


def test_digest_is_of_the_header_alone(tmp_path: Path) -> None:
    files = []
    for name, value in (("a", 0.0), ("b", 1.0)):
        save_file({"x": torch.full((3,), value)}, tmp_path / name)
        files.append(read_header(str(tmp_path / name))[0])
    save_file({"y": torch.zeros(3)}, tmp_path / "c")
    assert files[0].digest == files[1].digest != read_header(str(tmp_path / "c"))[0].digest
