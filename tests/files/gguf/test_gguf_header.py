"""The header of GGUF: what is read, and the files that lie about themselves, which are refused at once."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_files import F32, TEXT, U32, entry, key, laid_out, text, write
from hostile.ggufs import ARCH, DATA, HOSTILE, ONE, UNREAD, array
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery import open_checkpoint
from surgery.errors import FormatError, NotACheckpoint, NotSupported, SurgeryError
from surgery.files.gguf.header import Many, read_header


@pytest.mark.parametrize("name", [*HOSTILE, *UNREAD])
def test_a_file_that_lies_is_refused_at_once(tmp_path: Path, name: str) -> None:
    content, said = {**HOSTILE, **UNREAD}[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    begun = time.process_time()
    with pytest.raises(FormatError if name in HOSTILE else NotSupported, match=said) as caught:
        open_checkpoint(path)
    spent, (_, peak) = time.process_time() - begun, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (spent < 1, peak < 8 << 20) == (True, True)
    assert str(path) in str(caught.value)
    assert caught.value.help


def test_a_sparse_file_of_a_terabyte_costs_nothing(tmp_path: Path) -> None:
    """All of these sizes are there: what bounds the reader is not the file's end."""
    path = tmp_path / "m.gguf"
    path.write_bytes(laid_out([array(TEXT, 1 << 21)]))
    with open(path, "r+b") as stream:
        stream.truncate(1 << 40)
    begun = time.process_time()
    with pytest.raises(SurgeryError):
        open_checkpoint(path)
    assert time.process_time() - begun < 2  # two million empty texts are walked over
    path.write_bytes(laid_out([array(10, 1 << 36)]))
    with open(path, "r+b") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(FormatError, match="which no header has"):
        open_checkpoint(path)


def test_what_is_no_model_is_none(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(laid_out([ARCH]))
    with pytest.raises(NotACheckpoint, match="no tensors"):
        open_checkpoint(path)
    path.write_bytes(laid_out([ARCH, key("general.type", TEXT, text("adapter"))], [ONE], DATA))
    with pytest.raises(NotACheckpoint, match="adapter"):
        open_checkpoint(path)


def test_a_pointer_of_git_is_told(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(FormatError, match="Git LFS pointer"):
        open_checkpoint(path)


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), max_size=6),
    alignment=st.sampled_from([8, 32, 128, 4096]),
    values=st.dictionaries(
        st.text("abc.", min_size=1, max_size=8),
        st.one_of(
            st.integers(0, 2**32 - 1),
            st.booleans(),
            st.text(min_size=1, max_size=20),  # the package leaves out empty ones
            st.floats(width=32, allow_nan=False),
            st.lists(st.integers(0, 9), min_size=1, max_size=5),
            st.lists(st.text(max_size=3), min_size=1, max_size=5),
        ),
        max_size=8,
    ),
)
def test_what_the_package_writes_is_read_as_it_reads_it(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], alignment: int, values: dict[str, object]
) -> None:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    tensors = {f"t{n}": np.arange(np.prod(shape), dtype="f4").reshape(shape) for n, shape in enumerate(shapes)}
    writer = gguf.GGUFWriter(path, "none")
    writer.add_custom_alignment(alignment)
    write_into(writer, values, tensors)
    found, judge = read_header(str(path)), gguf.GGUFReader(path)
    assert [(t.name, t.shape, t.offset, t.nbytes) for t in found.tensors] == [
        (t.name, tuple(int(n) for n in reversed(t.shape)), int(t.data_offset), int(t.n_bytes)) for t in judge.tensors
    ]
    for name, value in values.items():
        texts = isinstance(value, list) and isinstance(value[0], str)
        assert found.metadata[name] == (Many(len(value)) if texts else value)  # type: ignore[arg-type]


def write_into(writer: gguf.GGUFWriter, values: dict[str, object], tensors: dict[str, np.ndarray]) -> None:
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for name, value in values.items():
        (writer.add_array if isinstance(value, list) else add[type(value)])(name, value)  # type: ignore[operator]
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_every_plain_type_is_read_as_it_lies(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {kind: rng.integers(-100, 100, (3, 5)).astype(kind) for kind in ("f8", "f4", "f2", "i8", "i4", "i2", "i1")}
    halves = rng.standard_normal((3, 8)).astype("f4")
    path = write(
        tmp_path / "m.gguf",
        "none",
        {},
        {**arrays, "bf": (gguf.quantize(halves, gguf.GGMLQuantizationType.BF16), gguf.GGMLQuantizationType.BF16)},
    )
    checkpoint = open_checkpoint(path)
    for kind, made in arrays.items():
        loaded = checkpoint.load(kind).numpy()
        assert loaded.dtype == made.dtype
        assert (loaded == made).all()
    bf = checkpoint.load("bf")
    assert str(bf.dtype) == "torch.bfloat16"
    assert (bf.float().numpy() == gguf.dequantize(gguf.quantize(halves, 30), 30)).all()


def test_a_large_vocabulary_is_not_held(tmp_path: Path) -> None:
    words = [f"word{n}" for n in range(50_000)]
    path = write(tmp_path / "m.gguf", "none", {"tokenizer.ggml.tokens": words}, {"a": np.zeros(4, "f4")})
    tracemalloc.start()
    found = read_header(str(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.metadata["tokenizer.ggml.tokens"] == Many(50_000)
    assert peak < 3 << 20


def test_looking_loads_nothing_heavy(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", "llama", {"llama.block_count": 1}, {"output_norm.weight": np.zeros(4, "f4")})
    code = "import sys, surgery; surgery.inspect(sys.argv[1]); print({'torch', 'numpy', 'gguf'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


F32_KEY = key("x.rope.freq_base", F32, struct.pack("<f", 1.0))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(0, 400),
)
def test_whatever_is_changed_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], cut: int
) -> None:
    """Never another error than ours."""
    raw = bytearray(laid_out([ARCH, F32_KEY, array(U32, 2, bytes(8))], [ONE, entry("b", [32, 2], 8, 32)], bytes(128)))
    for at, value in changes:
        raw[at % len(raw)] = value
    path = tmp_path_factory.mktemp("fuzz") / "m.gguf"
    path.write_bytes(bytes(raw[: len(raw) - cut % 40 if cut < 40 else len(raw)]))
    try:
        open_checkpoint(path)
    except SurgeryError as error:
        assert error.what
