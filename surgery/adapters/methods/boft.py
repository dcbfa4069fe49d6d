"""BOFT: the inputs of a weight turned by butterflies of small rotations, its outputs times numbers.

    boft_R (m, n, k, k), boft_s (out, 1), or (1, out) of a convolution
    W' = s * (W @ (F_(m-1) … F_0)^T), F_i = P_i blockdiag(R_i) P_i^T, R the Cayley transform of the skew half

Together the m factors are one of blocks of k 2^(m - 1) inputs. Without its kernel for a GPU, PEFT makes one factor,
whatever number it writes into the config.
Source: peft 0.21.2, tuners/boft/layer.py `get_delta_weight`, `block_butterfly_perm`.
"""

from __future__ import annotations

from ...files.adapter_config import MEND
from ...files.peft import Adapter
from ...lazy.gain import Gain
from ...lazy.tensor import Shape, made, reshape
from ...lazy.turned import Turned
from .constants import DILATES
from .method import Effect, Method, Target, said


def effect(target: Target) -> Effect:
    """What it does to the module."""
    out, wide = target.matrix.shape
    factors = target.part("boft_R", None, None, None, None)
    levels, count, edge, _ = factors.shape
    together = edge << (levels - 1) if levels else 0
    if factors.shape[3] != edge or count * edge != wide or not together or wide % together or (levels > 1 and edge % 2):
        raise target.wrong(f"boft_R is {factors.shape}, which does not fit a weight {target.weight.shape}")
    _check_edge(target, levels, count, edge)
    blocks = made((1, wide // together, together, together), "butterfly", [factors])
    scales = target.part("boft_s")
    if scales.shape not in ((out, 1), (1, out)):
        raise target.wrong(f"boft_s is {scales.shape}, and not a number for each of {out} outputs")
    return Effect(deltas=(Turned(target.matrix, blocks, 1.0),), gain=Gain(reshape(scales, (out,)), None))


def _check_edge(target: Target, levels: int, count: int, edge: int) -> None:
    """Raise AdapterError for blocks that are not those that the config says."""
    held = {"boft_block_size": edge, "boft_block_num": count, "boft_n_butterfly_factor": levels}
    if sum(bool(target.adapter.config.get(key, key.endswith("size"))) for key in list(held)[:2]) != 1:
        raise target.wrong("one of boft_block_size and boft_block_num is 0 where PEFT makes blocks, and no more", MEND)
    for key, value in held.items():
        said = target.adapter.config.get(key) or 0
        if said and said != value and not (key == "boft_n_butterfly_factor" and levels == 1):  # PEFT's without a kernel
            raise target.wrong(f"{key} = {said}, and boft_R is {(levels, count, edge, edge)}", MEND)


def span(adapter: Adapter, module: str) -> Shape | None:
    """The outputs that have numbers, and the inputs of all blocks."""
    factors, scales = (adapter.lora[module].get(name) for name in ("boft_R", "boft_s"))
    if factors is None or scales is None or len(factors.shape) != 4:
        return None
    return scales.size, factors.shape[1] * factors.shape[2]


METHOD = Method(
    "BOFT",
    "BOFT",
    "inputs turned by butterflies of blocks, outputs times numbers; several adapters one after another",
    effect,
    span=span,
    options=said("boft_block_size boft_block_num boft_n_butterfly_factor boft_dropout init_weights bias"),
    several="first",
    conv1d=False,
    kernels=DILATES.format("BOFT"),
    layers="nn.Linear, convolutions in 2 dimensions",
)
