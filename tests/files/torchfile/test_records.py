"""Pickles of plain values mean what Python's own reader makes of them; calls are told, and not made."""

from __future__ import annotations

import argparse
import collections
import io
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.errors import FormatError
from surgery.files.torchfile.records import Call, Global, Persistent, read_pickle, read_pickles

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**2000), 2**2000)
    | st.floats(allow_nan=False)
    | st.text()
    | st.text(st.characters(categories=["Cs"]), max_size=3)
    | st.binary()
)
VALUES = st.recursive(
    SCALARS | st.binary(min_size=256, max_size=300) | st.text("ab", min_size=256, max_size=300),
    lambda of: (
        st.lists(of)
        | st.dictionaries(st.text() | st.integers() | st.binary() | st.tuples(st.text(), st.integers()), of)
        | st.lists(of, max_size=5).map(tuple)
    ),
)


def bytes_again(value: Any) -> Any:
    """Records in which the bytes of old protocols, which are calls there, are bytes again."""
    if isinstance(value, Call):
        if value.function == Global("_codecs", "encode"):
            return value.args[0].encode(value.args[1])
        return b"" if value.function.name == "bytes" else value
    if isinstance(value, dict):
        return {bytes_again(key): bytes_again(one) for key, one in value.items()}
    return type(value)(map(bytes_again, value)) if isinstance(value, list | tuple) else value


@settings(max_examples=400, deadline=None)
@given(VALUES, st.integers(0, 5))
def test_plain_values_are_what_python_reads(value: Any, protocol: int) -> None:
    assert bytes_again(read_pickle(pickle.dumps(value, protocol), "x")) == value


@settings(max_examples=50, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=4), st.integers(3, 5))
def test_pickles_in_a_row(values: list[Any], protocol: int) -> None:
    raw = [pickle.dumps(value, protocol) for value in values]
    assert read_pickles(io.BytesIO(b"".join(raw) + b"rest"), len(raw), "x") == (values, sum(map(len, raw)))


def test_pickles_in_a_row_that_are_larger_than_what_is_read_at_once() -> None:
    raw = [pickle.dumps(list(range(n)), 2) for n in (3, 700_000, 5)]
    values, at = read_pickles(io.BytesIO(b"".join(raw)), 3, "x")
    assert [len(value) for value in values] == [3, 700_000, 5] and at == sum(map(len, raw))
    with pytest.raises(FormatError, match="cut off"):
        read_pickles(io.BytesIO(b"".join(raw)[:-1]), 3, "x")


def test_one_value_at_two_places_is_one() -> None:
    inner = [1]
    made = read_pickle(pickle.dumps({"a": inner, "b": inner, "c": [1]}), "x")
    assert made["a"] is made["b"] and made["a"] is not made["c"]


def test_what_is_called_is_a_record() -> None:
    made = read_pickle(pickle.dumps(argparse.Namespace(a=1), 2), "x")
    assert isinstance(made, Call) and made.state == {"a": 1}
    made = read_pickle(pickle.dumps(collections.OrderedDict(a=1, b=2)), "x")
    assert made.function == Global("collections", "OrderedDict") and made.entries == {"a": 1, "b": 2}
    made = read_pickle(pickle.dumps(collections.deque([1, 2])), "x")
    assert made.items == [1, 2]
    assert read_pickle(pickle.dumps({3, 4}, 4), "x") == [3, 4]


def test_what_lies_outside_is_a_record() -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", 5) if obj is Ellipsis else None

    out = io.BytesIO()
    Pickler(out, 2).dump([..., 1])
    made = read_pickle(out.getvalue(), "x")
    assert isinstance(made[0], Persistent) and made[0].said == ("storage", 5) and made[1] == 1
