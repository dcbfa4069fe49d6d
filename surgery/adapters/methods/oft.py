"""OFT: the inputs of a weight turned, block by block: W' = W @ blockdiag(R)^T; of an embedding W @ blockdiag(R).

    oft_R.weight (n, k (k - 1) / 2), oft_embedding_R.weight: upper triangles of skew Q, row by row; one of them for all
    blocks with block_share
    use_cayley_neumann (default): R = I + 2 (Q + … + Q^(t - 2)) + Q^(t - 1) for t terms
    exactly: R = (I - Q) (I + Q)^-1, which for a small Q is the inverse of the other
    coft: each Q no longer than eps / sqrt(n)

peft 0.16 and 0.17, which said no version in adapter_config.json, doubled the last term too. Before 0.16 there were
whole matrices, oft_r (n, k, k), whose skew half is Q, and a factor for each output, oft_s (out, 1).
On kernels above 1 x 1 the live layer folds overlapping windows in another order than it unfolded them: no weight does
that. Of two adapters the last is next to W, as in the live model; PEFT's own merge has them the other way round. On
embeddings, and before 0.16, the first was.
Source: peft 0.21.2, tuners/oft/layer.py `_cayley_batch`, `_project_batch`; 0.15.2 and 0.17.1, the same.
"""

from __future__ import annotations

import math
import re

from ...files.adapter_config import MEND
from ...files.peft import Adapter
from ...lazy.gain import Gain
from ...lazy.tensor import Shape, Tensor, made, reshape
from ...lazy.turned import Turned
from .method import Effect, Method, Target, said

DOUBLED_BEFORE = (0, 18)  # versions of peft


def effect(target: Target) -> Effect:
    """What it does to the module."""
    if "oft_r" in target.parts:
        return _old(target)
    if math.prod(target.weight.shape[2:]) > 1:
        tip = "use it live, or train it with these convolutions left out"
        raise target.unsupported(f"no weight does what OFT does on a kernel of {target.weight.shape[2:]}", tip)
    embedding = "oft_embedding_R.weight" in target.parts
    upper = target.part("oft_embedding_R.weight" if embedding else "oft_R.weight", None, None)
    edge = (1 + math.isqrt(1 + 8 * upper.shape[1])) // 2
    if edge * (edge - 1) // 2 != upper.shape[1]:
        raise target.wrong(f"oft_R has {upper.shape[1]} numbers for each block, which are no half of a matrix")
    _check_edge(target, upper.shape[0], edge)
    blocks = _turns(target, upper, edge, float(not embedding))
    turn = Turned(target.matrix, _placed(target, blocks), 1.0)
    return Effect(deltas=(turn,), notes=_notes(target), several="first" if embedding else None)


def _turns(target: Target, upper: Tensor, edge: int, transposed: float) -> Tensor:
    """R - I of each block, transposed or not, as the version that trained it makes it."""
    shape, limit = (upper.shape[0], edge, edge), _limit(target, upper.shape[0])
    if not _is_series(target):
        return made(shape, "cayley", [upper], limit=limit, transposed=transposed)
    terms, last = target.number("num_cayley_neumann_terms", 5), 2.0 if _is_old(target) else 1.0
    return made(shape, "neumann", [upper], limit=limit, transposed=transposed, terms=float(terms), last=last)


def _is_series(target: Target) -> bool:
    """Whether R is the series: of the two, one is nearly the other's inverse, so it is not guessed."""
    said = target.adapter.config.get("use_cayley_neumann")
    if isinstance(said, bool):
        return said
    what = f"use_cayley_neumann = {said!r}: which way its rotations turn is not said"
    raise target.wrong(what, "restore adapter_config.json from the training")


def _is_old(target: Target) -> bool:
    """Whether a version before 0.18 trained it, none of which wrote its number."""
    version = str(target.adapter.config.get("peft_version") or "0.0")
    if version.startswith("0.18.0.dev"):
        tip = (
            "load and save it with the commit of peft that trained it, and say in adapter_config.json 0.17.0 or 0.18.0"
        )
        raise target.unsupported(f"peft_version = {version}: while it was made, the series changed", tip)
    found = re.match(r"(\d+)\.(\d+)", version)
    return not found or tuple(map(int, found.groups())) < DOUBLED_BEFORE


def _notes(target: Target) -> tuple[str, ...]:
    if not (_is_series(target) and _is_old(target)):
        return ()
    said = target.adapter.config.get("peft_version") or "no version"
    return (f"adapter_config.json says peft_version = {said}: its rotations are those of peft 0.16 and 0.17",)


def _limit(target: Target, count: int) -> float:
    """How long a skew matrix is at most; negative where there is no limit."""
    return target.number("eps", 6e-5) / math.sqrt(count) if target.adapter.config.get("coft") else -1.0


def _placed(target: Target, blocks: Tensor) -> Tensor:
    """(runs, n, k, k): the blocks on the weight's columns; of a grouped convolution each group has its own."""
    count, edge, _ = blocks.shape
    (out, wide), shared = target.matrix.shape, bool(target.adapter.config.get("block_share"))
    if shared and count == 1 and wide % edge == 0:
        return reshape(blocks, (1, 1, edge, edge))
    if not shared and count * edge == wide:
        return reshape(blocks, (1, count, edge, edge))
    groups = count * edge // wide
    if target.is_conv and not shared and groups * wide == count * edge and out % groups == 0:
        if wide % edge:
            raise target.unsupported(f"blocks of {edge} inputs reach across groups of {wide}: no weight does that")
        return reshape(blocks, (groups, wide // edge, edge, edge))
    raise target.wrong(f"{count} blocks of {edge} inputs do not fit a weight {target.weight.shape}")


def _check_edge(target: Target, count: int, edge: int) -> None:
    """Raise AdapterError for blocks of another size than PEFT makes of what the config says."""
    config = target.adapter.config
    wide = target.matrix.shape[1] if config.get("block_share") else count * edge
    size, number = (int(target.number(key, 0)) for key in ("oft_block_size", "r"))
    if ("oft_block_size" in config or "r" in config) and (min(size, number) < 0 or bool(size) == bool(number)):
        raise target.wrong(f"oft_block_size = {size} and r = {number} make no blocks", MEND)
    if size and _near(wide, size) != edge:
        raise target.wrong(
            f"oft_block_size = {size} makes blocks of {_near(wide, size)}, and oft_R's are of {edge}", MEND
        )
    if number and wide // _near(wide, number) != edge:
        raise target.wrong(f"r = {number} makes {_near(wide, number)} blocks, and oft_R's are {wide // edge}", MEND)


def _near(wide: int, said: int) -> int:
    """What PEFT takes for a number of inputs or blocks: the nearest that divides the inputs, the lower of two."""
    if said >= wide:
        return wide
    return min((n for n in range(1, wide + 1) if wide % n == 0), key=lambda n: (abs(n - said), n))


def _span(adapter: Adapter, module: str) -> Shape | None:
    """One output for each that a factor is of, and the inputs of all blocks; None where one block is for all of them,
    as many as the base has inputs for.
    """
    parts = adapter.lora[module]
    if (whole := parts.get("oft_r")) is not None:
        return (parts["oft_s"].size if "oft_s" in parts else 1, whole.size // max(1, whole.shape[-1]))
    upper = parts.get("oft_embedding_R.weight", parts.get("oft_R.weight"))
    if upper is None or len(upper.shape) != 2 or adapter.config.get("block_share"):
        return None
    return 1, upper.shape[0] * ((1 + math.isqrt(1 + 8 * upper.shape[1])) // 2)


def _old(target: Target) -> Effect:
    """Of whole matrices, and a factor for each output; `eps` counts as often as a block has outputs, squared."""
    out, wide = target.matrix.shape
    whole = target.part("oft_r", None, None, None)
    count, edge, _ = whole.shape
    if edge != whole.shape[2] or wide % edge:
        raise target.wrong(f"oft_r is {whole.shape}, which does not fit a weight {target.weight.shape}")
    said = target.adapter.config.get("r", wide // edge)
    if said != wide // edge:
        raise target.wrong(f"r = {said} makes {said} blocks, and oft_r's are {wide // edge}", MEND)
    limit = _limit(target, count) * math.ceil(out / (wide // edge)) ** 2
    blocks = made(whole.shape, "old cayley", [whole], limit=limit)
    gain = Gain(reshape(target.part("oft_s"), (out,)), None)
    return Effect(deltas=(Turned(target.matrix, _placed(target, blocks), 1.0),), gain=gain, several="first")


METHOD = Method(
    "OFT",
    "OFT",
    "inputs turned block by block, of several adapters the last one first; on kernels of 1 x 1 alone",
    effect,
    options=said(
        "r oft_block_size module_dropout init_weights coft eps block_share use_cayley_neumann num_cayley_neumann_terms"
        " bias"
    ),
    several="last",
    together="of several OFT adapters the last one is next to the weight, as in PEFT's live model: its own"
    " merge_and_unload has them the other way round",
    partly=lambda part: part.startswith("oft_"),
    span=_span,
    conv1d=False,
    layers="nn.Linear, embeddings, convolutions in 2 dimensions",
)
