"""Laws of corrections: a frame turns the prediction into the original, whatever the bits; a broken frame never goes
unnoticed.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surgery.errors import FormatError
from surgery.evaluation.corrections import RAW, SPARSE, block_of, blocks_of, correct, difference, digest

BITS = st.sampled_from([8, 16, 32, 64])


@st.composite
def blocks(draw: st.DrawFn) -> tuple[bytes, bytes, int]:
    """(original, predicted, bits): the same, near each other, or unrelated, with every pattern of bits in them."""
    bits = draw(BITS)
    size = draw(st.integers(1, 60)) * bits // 8
    original = bytearray(draw(st.binary(min_size=size, max_size=size)))
    predicted = bytearray(original)
    for at in draw(st.lists(st.integers(0, size - 1), max_size=size)):
        predicted[at] = draw(st.integers(0, 255))
    return bytes(original), bytes(predicted), bits


@given(blocks())
def test_a_frame_turns_the_prediction_into_the_original(made: tuple[bytes, bytes, int]) -> None:
    original, predicted, bits = made
    frame = difference(memoryview(bytearray(original)), memoryview(bytearray(predicted)), bits)
    assert len(frame) <= len(original) + 1
    assert (frame == b"") == (original == predicted)
    data = bytearray(predicted)
    if frame:
        correct(frame, memoryview(data), bits, "here")
    assert data == original


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.0003, 0.03, 0.6, 1.0])
def test_frames_of_floats(dtype: torch.dtype, share: float) -> None:
    """Gaps above a byte, values off by a few, by many, NaN and infinities; the better the prediction, the shorter
    the frame.
    """
    generator = torch.Generator().manual_seed(0)
    guess = torch.randn(50_000, generator=generator).to(dtype)
    off = torch.rand(50_000, generator=generator) < share
    true = torch.where(off, (guess * 1.01).to(dtype), guess)
    true[3], true[-1], guess[7] = float("nan"), float("-inf"), float("inf")
    original, data = raw(true), raw(guess)
    frame = difference(memoryview(original), memoryview(data), guess.element_size() * 8)
    correct(frame, memoryview(data), guess.element_size() * 8, "here")
    assert data == original
    assert len(frame) < (share + 0.005) * len(original)


@given(blocks(), st.data())
def test_a_broken_frame_is_an_error_or_another_digest(made: tuple[bytes, bytes, int], data: st.DataObject) -> None:
    original, predicted, bits = made
    frame = bytearray(difference(memoryview(bytearray(original)), memoryview(bytearray(predicted)), bits))
    if not frame:
        return
    match data.draw(st.sampled_from(["flip", "cut", "more"])):
        case "flip":
            frame[data.draw(st.integers(0, len(frame) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        case "cut":
            del frame[data.draw(st.integers(1, len(frame))) :]
        case "more":
            frame += data.draw(st.binary(min_size=1, max_size=9))
    found = bytearray(predicted)
    try:
        correct(bytes(frame), memoryview(found), bits, "here")
    except FormatError as error:
        assert "damaged" in str(error) and "here" in str(error)
    else:
        assert found == original or digest(memoryview(found)) != digest(memoryview(bytearray(original)))


def test_modes() -> None:
    """Few corrections go one by one; noise that was not predicted is kept as it is."""
    noise = bytearray(
        torch.randint(0, 256, (4096,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).tolist()
    )
    near = bytearray(noise)
    near[100] ^= 1
    assert difference(memoryview(noise), memoryview(near), 16)[0] == SPARSE
    assert difference(memoryview(noise), memoryview(bytearray(4096)), 16)[0] == RAW


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3_000_000,), (5000, 11008), (8, 300, 4096), (2, 2_000_000)])
def test_blocks_hold_whole_tiles(shape: tuple[int, ...]) -> None:
    size, block = torch.Size(shape).numel(), block_of(shape)
    assert 1 << 19 <= block <= 1 << 20
    assert blocks_of(shape) == -(-size // block)
    assert not shape or 64 * shape[-1] > 1 << 20 or block % (64 * shape[-1]) == 0


def raw(tensor: torch.Tensor) -> bytearray:
    return bytearray(tensor.view(torch.uint8).numpy().tobytes())
