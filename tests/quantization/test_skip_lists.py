"""Lists of modules: many entries and modules at once are what each is with each."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from surgery.quantization.skip_lists import matches, skipped

WORD = st.sampled_from(["model", "layers", "1", "11", "mlp", "gate", "gate_proj", "lm_head", "visual", "q_proj"])
MODULE = st.lists(WORD, min_size=1, max_size=5).map(".".join)
ENTRY = MODULE | st.sampled_from(
    [
        "",
        "proj",
        "layers",
        r"model\.layers\.\d+\.mlp",
        "model.layers.*",
        ".*gate",
        "(",
        "a|model",
        "x|y",
        "[",
        "*",
        "q$",
    ]
)


@given(st.lists(ENTRY, max_size=6), MODULE)
def test_a_list_is_its_entries(entries: list[str], module: str) -> None:
    assert skipped(entries, module) == any(matches(entry, module) for entry in entries)


@given(st.lists(MODULE, max_size=6), MODULE)
def test_a_long_list_is_its_entries(entries: list[str], module: str) -> None:
    long = [*entries, *(f"other.{i}.thing" for i in range(300))]
    assert skipped(long, module) == any(matches(entry, module) for entry in entries)


def test_long_lists_take_no_time() -> None:
    modules = [f"model.layers.{i // 500}.mlp.experts.{i % 500}.up_proj" for i in range(45_000)]
    entries, begun = [f"{module}x" for module in modules], time.monotonic()
    assert not any(skipped(entries, module) for module in modules[:50])
    assert time.monotonic() - begun < 5
