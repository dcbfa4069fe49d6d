"""Codes and what belongs to them lie in one shard, where its size allows."""

from __future__ import annotations

from pathlib import Path

import pytest
from quantization.live import HOW, Quantised, raw

import surgery
from surgery.quantization.quantised import quantised as held_in


@pytest.mark.parametrize("how", [*HOW, "fp8"])
@pytest.mark.parametrize("balanced", [False, True])
def test_codes_and_companions_share_a_shard(quantised: Quantised, tmp_path: Path, how: str, balanced: bool) -> None:
    base = surgery.open_checkpoint(quantised(how))
    for size in (26_000, 30_000, 41_000, 77_000):
        plan = surgery.plan(base, size, balanced=balanced)
        shard_of = {slot.name: shard.name for shard in plan.shards for slot in shard.slots}
        assert shard_of.keys() == base.tensors.keys() and len(plan.shards) > 2
        for one in held_in(base).weights.values():
            assert len({shard_of[part] for part in (*one.parts, *one.left)}) == 1
        assert all(shard.nbytes - len(shard.header) <= size for shard in plan.shards if len(shard.slots) > 1)
    small = surgery.plan(base, 5_000)
    assert len(small.shards) > 15
    out = tmp_path / "out"
    surgery.write(surgery.open_checkpoint(quantised(how)), out, max_shard_size=30_000)
    assert raw(out) == raw(quantised(how))


def test_plain_layouts_are_the_hubs(quantised: Quantised) -> None:
    from surgery.hub.shards import split_into_shards
    from surgery.planning.sharding import assign, in_order

    plain = surgery.open_checkpoint(quantised("nf4").parent / "plain")
    sizes = {name: plain.tensors[name].nbytes for name in in_order(plain)}
    assert assign(plain, 50_000) == split_into_shards(sizes, 50_000, "model")
