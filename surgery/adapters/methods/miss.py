"""MiSS, which was Bone: one small block, over and over.

    miss_block (r, out)             W'[o, i] = W[o, i] + block[i mod r, o]
    miss_block (r, mini_r), "mini"  W'[o, i] = W[o, i] + block[i mod r, o mod mini_r]
    miss_block (out / r, r, r), "bat": of blocks of r rows and r columns, each of the p-th rows is W + W B_p + B_p

`bone_block`, of peft 0.15 to 0.17, is the same without "mini". Several that read the weight come one after another.
Source: peft 0.21.2, tuners/miss/layer.py `get_delta_weight`, `get_delta_weight_miss`.
"""

from __future__ import annotations

from dataclasses import replace

from ...files.peft import Adapter
from ...lazy.low_rank import LowRank
from ...lazy.tensor import Shape, Tensor, permute, reshape
from ...lazy.turned import Turned
from .constants import tiled
from .method import Effect, Method, Target, said


def effect(target: Target) -> Effect:
    """What it does to the module."""
    name = "bone_block" if "bone_block" in target.parts else "miss_block"
    kind, block = target.adapter.config.get("init_weights", True), target.part(name)
    if (kind == "bat") != (len(block.shape) == 3):
        raise target.wrong(
            f"{name} is {block.shape}, which is not what init_weights = {kind!r} makes",
            "restore adapter_config.json from the training",
        )
    if kind not in (True, False, None, "mini", "bat"):
        raise target.unsupported(f"init_weights = {kind!r} is not known")
    return _bat(target, name) if kind == "bat" else _repeated(target, name, mini=kind == "mini")


def _repeated(target: Target, name: str, *, mini: bool) -> Effect:
    out, wide = target.weight.shape
    size = int(target.number("mini_r", 1)) if mini else out
    block = permute(target.part(name, target.said_rank, size), (1, 0))
    if size < 1 or out % size or block.shape[1] > wide:
        raise target.wrong(f"{name} is {target.part(name).shape}, which does not fit a weight {target.weight.shape}")
    rank = block.shape[1]
    left: Tensor = block if size == out else tiled(block, out, rank)
    return Effect(deltas=(LowRank(left, tiled(None, rank, wide), 1.0),))


def _bat(target: Target, name: str) -> Effect:
    out, wide = target.weight.shape
    block = target.part(name, None, target.said_rank, target.said_rank)
    runs, rank, _ = block.shape
    if block.shape != (runs, rank, rank) or runs * rank != out or wide % rank:
        raise target.wrong(f"{name} is {block.shape}, which does not fit a weight {target.weight.shape}")
    turn = Turned(target.matrix, reshape(block, (runs, 1, rank, rank)), 1.0)
    plus = LowRank(reshape(block, (out, rank)), tiled(None, rank, wide), 1.0)
    return Effect(deltas=(turn, plus), several="first")


def span(adapter: Adapter, module: str) -> Shape | None:
    """The outputs, and as many inputs as one block has."""
    parts = adapter.lora[module]
    block = parts.get("bone_block") or parts.get("miss_block")
    if block is None or len(block.shape) not in (2, 3):
        return None
    return (block.shape[0] * block.shape[1], block.shape[1]) if len(block.shape) == 3 else block.shape[::-1]


METHOD = Method(
    "MISS",
    "MiSS",
    "one small block, over and over",
    effect,
    span=span,
    options=said("r mini_r miss_dropout init_weights bias"),
    partly=lambda part: part in ("miss_block", "bone_block"),
    conv1d=False,
    layers="nn.Linear",
)
OLD = replace(METHOD, peft_type="BONE", name="Bone", options=said("r init_weights bias"))
