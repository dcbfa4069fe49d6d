"""Chains over quantised bases: one pass gives the bytes of the commands one after another, so what a step decoded is
rounded before the next one computes on it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import hashes
from quantization.live import Quantised, adapter

import surgery
from surgery import Adapter, Checkpoint

Step = Callable[[Checkpoint, Adapter], Checkpoint]


def dequantized(checkpoint: Checkpoint, _: Adapter) -> Checkpoint:
    return surgery.dequantize(checkpoint)


def merged(checkpoint: Checkpoint, lora: Adapter) -> Checkpoint:
    return surgery.merge(checkpoint, lora, again=True)


def widened(checkpoint: Checkpoint, lora: Adapter) -> Checkpoint:
    return surgery.merge(checkpoint, lora, again=True, dtype="float32")


def whole(checkpoint: Checkpoint, lora: Adapter) -> Checkpoint:
    return surgery.merge(checkpoint, lora, dequantize=True, again=True)


def cut(checkpoint: Checkpoint, _: Adapter) -> Checkpoint:
    return surgery.layers(checkpoint, keep="0")


CHAINS: dict[str, list[Step]] = {
    "decoded, then merged": [dequantized, merged],
    "decoded, cut, then merged wider": [dequantized, cut, widened],
    "merged in part, then all": [merged, whole],
    "merged twice": [merged, merged],
    "merged, then merged wider": [whole, widened],
}


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("how", ["nf4", "fp8"])
def test_one_pass_is_one_after_another(quantised: Quantised, tmp_path: Path, how: str, chain: str) -> None:
    base = quantised(how)
    lora = surgery.open_adapter(
        adapter(base, tmp_path / "lora", 0.05, target_modules=["q_proj"], layers_to_transform=[0])
    )
    at_once = surgery.open_checkpoint(base)
    at = base
    for number, step in enumerate(CHAINS[chain]):
        at_once = step(at_once, lora)
        surgery.write(step(surgery.open_checkpoint(at), lora), tmp_path / str(number))
        at = tmp_path / str(number)
    surgery.write(at_once, tmp_path / "at-once")
    mine, theirs = (
        {name: digest for name, digest in hashes(folder).items() if not name.startswith(".surgery")}
        for folder in (tmp_path / "at-once", at)
    )
    assert mine == theirs
