"""Shards: what their eight bytes of length, and their headers, may lie about."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from typing import Any

from .rows import MEMORY, OF_CHECKPOINTS, SHARD, Content, Row, checkpoint, made_of, sparse

HUGE = (1 << 64) - 1


def file(header: bytes | str, data: bytes = b"", length: int | None = None) -> bytes:
    """A file of that header, which may claim another length."""
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype: Any = "F32", shape: Any = (2, 2), offsets: Any = (0, 16), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def of(*entries: Any, data: int = 16, **others: Any) -> bytes:
    """A file of entries called a, b, …, and that many bytes of data."""
    named = dict(zip("abcdefgh", entries, strict=False))
    return file(json.dumps({**named, **others}), bytes(data))


def archive() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        made.writestr("model.safetensors", b"x" * 100)
    return out.getvalue()


def tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as made:
        made.addfile(tarfile.TarInfo("../../etc/passwd"))
    return out.getvalue()


ENTRY = json.dumps(entry())
SHOWN = "the file is not safetensors"
SHARDS: dict[str, tuple[Content, str]] = {
    "nothing": (b"", SHOWN),
    "seven bytes": (b"\0" * 7, SHOWN),
    "a length of nothing": (file(b""), "does not begin with `{`"),
    "a length beyond the file": (file("{}", length=3), SHOWN),
    "a length of 2^63": (file("{}", length=1 << 63), SHOWN),
    "a length of 2^64 - 1": (file("{}", length=HUGE), "ask for a header of 18446744073709551615"),
    "a length of 2^64 - 8, which wraps round": (file("{}", length=HUGE - 7), SHOWN),
    "a length above the format's, in a file that has it": (sparse(200_000_000, struct.pack("<Q", 150_000_000)), SHOWN),
    "a header of 99 MB of nothing": (sparse(100_000_000, struct.pack("<Q", 99_000_000)), "does not begin with `{`"),
    "a terabyte that nobody owns": (sparse(1 << 40, file("{}")), "bytes that no tensor owns"),
    "a zip under that name": (archive(), SHOWN),
    "a tar under that name": (tar(), SHOWN),
    "a pickle under that name": (b"\x80\x02cos\nsystem\n(S'touch ../outside/x'\ntR.", SHOWN),
    "HTML under that name": (b"<!DOCTYPE html><html><body>404</body></html>", SHOWN),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "Git LFS pointer"),
    "no JSON": (file("{'a': 1}"), "not JSON"),
    "JSON that is cut": (file('{"a": {"dtype": "F32"'), "cut off"),
    "a list": (file(f"[{ENTRY}]", bytes(16)), "does not begin with `{`"),
    "a space before it": (file(f' {{"a": {ENTRY}}}', bytes(16)), "does not begin with `{`"),
    "more after it": (file(f'{{"a": {ENTRY}}} {{}}', bytes(16)), "not JSON"),
    "NUL bytes after it": (file(b'{"a": ' + ENTRY.encode() + b"}\0\0", bytes(16)), "not JSON"),
    "no UTF-8": (file(b'{"\xff": ' + ENTRY.encode() + b"}", bytes(16)), "UTF-8"),
    "half of a surrogate pair": (file(f'{{"\\ud800": {ENTRY}}}', bytes(16)), "half of a surrogate pair"),
    "100,000 objects in each other": (file('{"a":' * 100_000 + "1" + "}" * 100_000), "nested too deeply"),
    "100,000 lists in a shape": (file(f'{{"a": {{"dtype": "F32", "shape": {"[" * 100_000}'), "nested too deeply"),
    "a tensor twice": (file(f'{{"a": {ENTRY}, "a": {ENTRY}}}', bytes(16)), "'a' comes twice"),
    "a dtype twice": (file(f'{{"a": {ENTRY[:-1]}, "dtype": "F16"}}}}', bytes(16)), "'dtype' comes twice"),
    "metadata twice": (file(f'{{"__metadata__": {{}}, "__metadata__": {{}}, "a": {ENTRY}}}', bytes(16)), "comes twice"),
    "a key of metadata twice": (
        file(f'{{"__metadata__": {{"a": "", "a": ""}}, "a": {ENTRY}}}', bytes(16)),
        "comes twice",
    ),
    "metadata that is a tensor": (of(entry(), __metadata__=entry()), "may only map strings to strings"),
    "metadata of numbers": (of(entry(), __metadata__={"format": 1}), "may only map strings to strings"),
    "a tensor that is a number": (of(5), "a tensor needs"),
    "a tensor without offsets": (of({"dtype": "F32", "shape": [2, 2]}), "a tensor needs"),
    "a tensor with something else": (of(entry(strides=[1])), "a tensor needs"),
    "a dtype that is none": (of(entry("F33")), "unknown dtype"),
    "a dtype with escapes": (of(entry("\x1b[2J\x9b2J")), "unknown dtype"),
    "a dtype of 100,000 letters": (of(entry("F" * 100_000)), "unknown dtype"),
    "a dtype that is a list": (of(entry(["F32"])), "unknown dtype"),
    "a shape that is a number": (of(entry(shape=4)), "is not a list"),
    "a shape of texts": (of(entry(shape=["2", "2"])), "is not a list"),
    "a shape of true": (of(entry(shape=[True, 4])), "is not a list"),
    "a shape of fractions": (of(entry(shape=[2.0, 2])), "is not a list"),
    "a shape below nothing": (of(entry(shape=[-2, -2])), "is not a list"),
    "a shape of -0": (file('{"a": {"dtype": "F32", "shape": [-0], "data_offsets": [0, 0]}}'), "is not a list"),
    "a shape of NaN": (
        file('{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 16]}}', bytes(16)),
        "NaN is not",
    ),
    "a shape of 4,300 digits": (
        file(f'{{"a": {{"dtype": "F32", "shape": [{"9" * 4300}], "data_offsets": [0, 16]}}}}', bytes(16)),
        "overflows",
    ),
    "a shape of a million digits": (
        file(f'{{"a": {{"dtype": "F32", "shape": [{"9" * 1_000_000}], "data_offsets": [0, 16]}}}}', bytes(16)),
        "not JSON that can be read",
    ),
    "a shape that wraps round": (of(entry(shape=[1 << 32, 1 << 32], offsets=[0, 0]), data=0), "overflows 64 bits"),
    "a shape that wraps round to its size": (of(entry(shape=[(1 << 62) + 4]), data=16), "overflows 64 bits"),
    "a shape that overflows on its way to nothing": (
        of(entry(shape=[1 << 40, 1 << 40, 0], offsets=[0, 0]), data=0),
        "overflows",
    ),
    "a shape of 100,000 axes": (of(entry(shape=[2] * 100_000)), "overflows 64 bits"),
    "half a byte": (of(entry("F4", [3], [0, 1]), data=1), "does not fill whole bytes"),
    "offsets that are three": (of(entry(offsets=[0, 8, 16])), "are not two"),
    "offsets that are texts": (of(entry(offsets=["0", "16"])), "are not two"),
    "offsets below nothing": (of(entry(offsets=[-16, 0])), "are not two"),
    "offsets that turn round": (of(entry(offsets=[16, 0])), "span -16"),
    "offsets of 2^64 - 1": (of(entry(offsets=[HUGE - 16, HUGE])), "hole|span"),
    "offsets that are no span of it": (of(entry(offsets=[0, 12]), data=12), "takes 16 bytes"),
    "tensors over each other": (of(entry(), entry()), "overlap"),
    "a tensor inside another": (of(entry("U8", [16], [0, 16]), entry("U8", [4], [4, 8])), "overlap"),
    "a hole before the first": (of(entry(offsets=[8, 24]), data=24), "leave a hole"),
    "a hole between two": (of(entry(), entry(offsets=[24, 40]), data=40), "leave a hole"),
    "a hole after the last": (of(entry(), data=20), "bytes that no tensor owns"),
    "data that is cut off": (of(entry(), data=12), "is cut off"),
    "a tensor of 16 exabytes": (of(entry("U8", [HUGE >> 3], [0, HUGE >> 3])), "is cut off"),
    "a million tensors of nothing over each other": (
        file('{"":1' + "".join(f',"{n}":1' for n in range(100_000)) + "}"),
        "a tensor needs",
    ),
    "a name of 100,000 letters, without data": (file(f'{{"{"n" * 100_000}": {ENTRY}}}'), "is cut off"),
    "a name of escapes, over another": (of(entry(), **{"\x1b]0;x\x07\x9b2J\u202e": entry()}), "overlap"),
    "a name of new lines, over another": (of(entry(), **{"a\nerror: all is well\n\r": entry()}), "overlap"),
}


def rows() -> Iterator[Row]:
    """Each as the shard of a model; some as that of an adapter."""
    for name, (content, says) in SHARDS.items():
        yield checkpoint(f"shard: {name}", SHARD, content, says, memory=160 << 20 if "99 MB" in name else MEMORY)
    named = {
        "\x1b[2J": entry("U8", [1], [0, 1]),
        "\x9b31m\u202e\u2028": entry("U8", [1], [1, 2]),
        "a\nb\r": entry("U8", [1], [2, 3]),
    }
    make = made_of("good", {SHARD: file(json.dumps(named), bytes(3))})
    yield Row(
        "shard: names of control characters", make, r"\\x1b\[2J", (), SHARD, OF_CHECKPOINTS, ("inspect x --tensors .*",)
    )
    name, count = "model.layers.0.mlp.experts", 1 << 40
    shapes = {f"{name}.gate_up_proj": [count, 0, 32], f"{name}.down_proj": [count, 16, 0]}
    stacks = {called: entry("BF16", shape, [0, 0]) for called, shape in shapes.items()}
    moe = {"model_type": "qwen3_moe", "hidden_size": 16, "num_experts": count, "num_hidden_layers": 1}
    make = made_of("good", {SHARD: file(json.dumps(stacks)), "config.json": json.dumps(moe)})
    yield Row("shard: 2^40 experts of nothing", make, "experts without an element", ("split-experts x -o w/o",), SHARD)
