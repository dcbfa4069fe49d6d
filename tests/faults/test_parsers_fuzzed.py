"""Each parser of foreign bytes on what nobody wrote, for seconds: `benchmarks/fuzz.py` does it for long.

An input is read, or refused by an error of surgery's in a text that can be shown, and soon. What was once answered
otherwise lies in `tests/fuzz/corpus`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import pytest
from fuzz.against_safetensors import STRICTER, check_no_laxer, ours, theirs
from fuzz.harnesses import HARNESSES, Harness, corpus
from fuzz.judging import Wrong, judged
from fuzz.mutations import ODD, edited, grafted, mutated
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surgery.errors import FormatError


@pytest.fixture(autouse=True)
def kept_warnings(recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    """What odd expressions make Python warn of."""
    yield
    recwarn.clear()


@pytest.mark.parametrize("name", HARNESSES)
def test_what_is_kept_is_answered(name: str) -> None:
    """Some of the seeds are read, so that a parser is reached; nothing that is kept is answered wrongly."""
    assert any(judged(HARNESSES[name], raw) for raw in HARNESSES[name].seeds())
    for raw in corpus(name):
        judged(HARNESSES[name], raw)


@pytest.mark.parametrize("name", HARNESSES)
def test_what_is_changed_is_read_or_refused(name: str) -> None:
    harness, draw = HARNESSES[name], random.Random(name)
    seeds = [*harness.seeds(), *corpus(name)]
    for _ in range(150):
        judged(harness, mutated(draw.choice(seeds), harness.words, draw))


TREES = [name for name, one in HARNESSES.items() if one.seeds()[0][:1] == b"{"]


@pytest.mark.parametrize("name", TREES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 99), changes=st.lists(st.tuples(st.integers(0, 999), st.sampled_from(ODD)), max_size=3))
def test_values_of_other_types(name: str, which: int, changes: list[tuple[int, str]]) -> None:
    """By hypothesis, which gives the smallest change that is answered wrongly."""
    seeds = HARNESSES[name].seeds()
    raw = seeds[which % len(seeds)]
    for where, odd in changes:
        raw = grafted(raw, where, odd)
    judged(HARNESSES[name], raw)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(HARNESSES)), raw=st.binary(max_size=200))
def test_noise(name: str, raw: bytes) -> None:
    judged(HARNESSES[name], raw)


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (lambda raw: 1 // 0, "ZeroDivisionError at outside"),
        (lambda raw: sum(range(10**8)), "slow"),
        (lambda raw: exec("raise error", {"error": FormatError("")}), "an error with control characters"),
    ],
)
def test_what_is_wrong_is_seen(read: object, kind: str) -> None:
    """These tests would hold of nothing."""
    with pytest.raises(Wrong) as caught:
        judged(Harness(read, list), b"", 0.2)  # type: ignore[arg-type]
    assert caught.value.kind == kind


def test_changes_change() -> None:
    draw, raw = random.Random(1), json.dumps({"a": [1, {"b": 2}]}).encode()
    assert len({mutated(raw, (b"x",), draw) for _ in range(200)}) > 100
    assert len({edited(raw, (), draw) for _ in range(200)}) > 100
    assert {grafted(raw, n, "null") for n in range(4)} == {
        b'{"a": null}', b'{"a": [null, {"b": 2}]}', b'{"a": [1, null]}', b'{"a": [1, {"b": null}]}',
    }  # fmt: skip


# What safetensors takes and we refuse: an example of each row of the table, and nothing else.


def file(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


ENTRY = b'{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
MORE = {
    "a name twice": file(b'{"a":' + ENTRY + b',"a":' + ENTRY + b"}", b"x"),
    "a key of a tensor that nobody reads": file(b'{"a":{"x":1,' + ENTRY[1:] + b"}", b"x"),
}


@pytest.mark.parametrize("case", MORE)
def test_what_is_refused_besides_has_a_reason(case: str) -> None:
    assert theirs(MORE[case]) is not None and ours(MORE[case])[0] is None
    check_no_laxer(MORE[case])


def test_each_reason_has_an_example() -> None:
    import re

    for rule in STRICTER:
        assert any(re.match(rule, ours(raw)[1], re.DOTALL) for raw in MORE.values()), rule


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 2), where=st.integers(0, 99), odd=st.sampled_from(ODD), noise=st.integers(0, 2**32))
def test_what_safetensors_refuses_we_refuse(which: int, where: int, odd: str, noise: int) -> None:
    raw, draw = HARNESSES["header"].seeds()[which], random.Random(noise)
    tree, rest = raw[8 : 8 + int.from_bytes(raw[:8], "little")], raw[8 + int.from_bytes(raw[:8], "little") :]
    check_no_laxer(file(grafted(tree, where, odd), rest))
    check_no_laxer(mutated(raw, HARNESSES["header"].words, draw))
