"""What a function of a user's computes with, as a digest: its source, its defaults, what it closes over, and what of
its module it names. Two runs with one digest compute the same; where that cannot be told, no two digests are the same.
"""

from __future__ import annotations

import functools
import inspect
import uuid
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from ..lazy.function import Function

PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), range, slice)


def function_of(call: Callable[..., Any]) -> Function:
    """The function, with its qualified name and its digest."""
    inner = call
    while isinstance(inner, functools.partial):
        inner = inner.func
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    digest = sha256()
    for part in _parts(call, set()):
        digest.update(len(part).to_bytes(8, "little") + part)
    return Function(f"{named.__module__}.{named.__qualname__}", digest.hexdigest(), call)


def _parts(value: Any, seen: set[int]) -> Iterator[bytes]:
    """All that the value is made of, in order."""
    yield type(value).__qualname__.encode()
    if isinstance(value, PLAIN):
        yield repr(value).encode()
    elif id(value) not in seen:
        yield from _compound(value, seen | {id(value)})


def _compound(value: Any, seen: set[int]) -> Iterator[bytes]:
    match value:
        case FunctionType():
            yield from _function(value, seen)
        case functools.partial():
            for part in (value.func, value.args, value.keywords):
                yield from _parts(part, seen)
        case MethodType():
            yield from _parts(value.__func__, seen)
            yield from _parts(value.__self__, seen)
        case ModuleType() | BuiltinFunctionType() | type():
            yield f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value.__name__)}".encode()
            yield from (_source(value) if isinstance(value, type) else ())
        case list() | tuple():
            for part in value:
                yield from _parts(part, seen)
        case Mapping():
            for key, part in value.items():
                yield from _parts(key, seen)
                yield from _parts(part, seen)
        case _ if hasattr(value, "numpy") and hasattr(value, "dtype"):
            yield f"{value.dtype} {tuple(value.shape)}".encode()
            yield _bytes_of(value)
        case _ if hasattr(value, "tobytes") and hasattr(value, "dtype"):
            yield f"{value.dtype} {value.shape}".encode()
            yield value.tobytes()
        case _ if type(value).__module__ == "torch" and type(value).__name__ in ("dtype", "device"):
            yield str(value).encode()
        case _:
            yield uuid.uuid4().bytes


def _bytes_of(tensor: Any) -> bytes:
    from ..evaluation.arithmetic import bytes_of

    return bytes_of(tensor)


def _function(function: FunctionType, seen: set[int]) -> Iterator[bytes]:
    yield f"{function.__module__}.{function.__qualname__}".encode()
    yield from _source(function)
    yield from _code(function.__code__)
    for part in (function.__defaults__, function.__kwdefaults__):
        yield from _parts(part, seen)
    for cell in function.__closure__ or ():
        try:
            yield from _parts(cell.cell_contents, seen)
        except ValueError:  # not filled yet
            yield b"empty"
    for name in sorted(_names(function.__code__)):
        if name in function.__globals__:
            yield name.encode()
            yield from _parts(function.__globals__[name], seen)


def _source(value: Any) -> Iterator[bytes]:
    try:
        yield inspect.getsource(value).encode()
    except (OSError, TypeError):
        yield b"no source"


def _code(code: CodeType) -> Iterator[bytes]:
    yield code.co_code
    for one in code.co_consts:
        yield from _code(one) if isinstance(one, CodeType) else [repr(one).encode()]
    yield repr(code.co_names).encode()


def _names(code: CodeType) -> set[str]:
    return {*code.co_names, *(name for one in code.co_consts if isinstance(one, CodeType) for name in _names(one))}
