"""Torch as sums use it: its names of dtypes, one thread, full precision, and what computed bytes depend on besides
their inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import TYPE_CHECKING

from ..lazy.dtypes import Dtype
from .loading import version_and_capability

if TYPE_CHECKING:
    import torch

TORCH_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "I32": "int32", "U32": "uint32",
    "I64": "int64", "U64": "uint64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip


def torch_dtype(dtype: Dtype) -> torch.dtype:
    """What torch calls it."""
    import torch

    return getattr(torch, TORCH_NAMES[dtype.name])


def bytes_of(tensor: torch.Tensor) -> bytes:
    """A tensor's values, in row-major order."""
    import torch

    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


_held = Lock()
_before: list[tuple[int, str]] = []  # what was set before each `exact` that has not ended


@contextmanager
def exact() -> Iterator[None]:
    """One torch thread, full float32 precision, denormal numbers as they are: part of the block law. Restored when the
    last of several at once ends.
    """
    import torch

    with _held:
        _before.append((torch.get_num_threads(), torch.get_float32_matmul_precision()))
        torch.set_num_threads(1)
        torch.set_float32_matmul_precision("highest")
    flushed = _flushes()
    one_thread()
    try:
        yield
    finally:
        with _held:
            threads, precision = _before[0]
            _before.pop()
            if not _before:
                torch.set_num_threads(threads)
                torch.set_float32_matmul_precision(precision)
        if flushed:
            torch.set_flush_denormal(True)


@contextmanager
def exact_at_last() -> Iterator[Callable[[], None]]:
    """The same from the first call on of what is given here, from any thread: until then torch need not be there."""
    with ExitStack() as held:
        lock, entered = Lock(), list[bool]()

        def ready() -> None:
            with lock:
                if not entered:
                    held.enter_context(exact())
                    entered.append(True)

        yield ready


def one_thread() -> None:
    """A thread of ours takes over the one torch thread of `exact` only when it asks. That denormal numbers are made
    zero is said to each thread, and handed on to those that it starts: here they are not.
    """
    import torch

    torch.get_num_threads()
    torch.set_flush_denormal(False)


def _flushes() -> bool:
    """Whether this thread makes denormal numbers zero."""
    import torch

    return not bool(torch.tensor([1e-40]).mul(1).count_nonzero())


def arithmetic_identity() -> str:
    """What computed bytes depend on besides their inputs: torch's version and the CPU's capability."""
    version, capability = version_and_capability()
    return f"torch {version} {capability}"
