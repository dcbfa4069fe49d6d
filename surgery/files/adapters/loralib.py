"""LoRA of microsoft/LoRA's loralib, as `lora_state_dict` or the whole state dict saves it.

    X.lora_A (r, in), X.lora_B (out, r)                    Linear: PEFT's; an embedding's are (r, vocabulary), (dim, r)
    X.lora_A (r * n, in), X.lora_B (out / slots * n, r)    MergedLinear: n of the slots of a fused projection

A MergedLinear is a grouped convolution: rows g of B times rows g of A are added to the rows of the g-th slot that was
enabled. Which those are no file says: `--enable-lora 1,0,1`. It is LoRA of rank n * r whose B holds blocks; alpha
becomes n * alpha. The scale is alpha / r, and no file says alpha. A whole state dict that was saved after eval() holds
weights that are merged already: the base tells.

Source: loralib 0.1.2, layers.py. Its convolutions are not read: their product is viewed under another shape.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...errors import AdapterError
from ...lazy.tensor import Tensor, Zeros, concat, narrow
from ..peft import Adapter
from .format import Format, Found, Said, grouped, pair_of, told_alpha
from .handwritten import bare_pairs, is_in_r, is_r_in
from .lora import is_embedding, lora_adapter
from .state import held_whole

TOOL = "loralib"
_NAME = re.compile(r"(?P<module>.+)\.(?P<part>lora_[AB])")
_PAIR = ("lora_A", "lora_B")


def recognise(found: Found) -> str:
    """What tells it."""
    pairs = bare_pairs(found)
    if not pairs or (all(map(is_in_r, pairs.values())) and not all(map(is_r_in, pairs.values()))):
        return ""
    module, parts = next(iter(pairs.items()))
    shapes = ", ".join(f"{name} {one.shape}" for name, one in sorted(parts.items()))
    return f"{module}.lora_A and such are called as its LoRA is, and have its shapes: {shapes}"


def read(found: Found, said: Said) -> Adapter:
    """The adapter. Raises FormatError, AdapterError."""
    modules, rest = grouped(found, _NAME)
    lora: dict[str, dict[str, Tensor]] = {}
    names, ranks = dict[str, str](), dict[str, tuple[int, float | None]]()
    for module, parts in modules.items():
        a, b = pair_of(found, module, parts, _PAIR)
        count = _parts_of(found, module, a, b, said)
        alpha = told_alpha(found, said, b.shape[1], TOOL)
        ranks[module] = (a.shape[0], None if alpha is None else alpha * count)
        keys = ("lora_embedding_A", "lora_embedding_B") if is_embedding(module) else ("lora_A.weight", "lora_B.weight")
        lora[module] = dict(zip(keys, (a, placed(b, count, said.enable_lora)), strict=True))
        names |= {f"{module}.{key}": f"{module}.{part}" for key, part in zip(keys, _PAIR, strict=True)}
    whole, more = held_whole(rest, lora)
    return lora_adapter(found, TOOL, lora, names | more, ranks, whole=whole)


def _parts_of(found: Found, module: str, a: Tensor, b: Tensor, said: Said) -> int:
    """How many parts of a fused projection have LoRA; 1 of a linear layer. Raises AdapterError."""
    count, left = divmod(a.shape[0], b.shape[1])
    where = [f"{found.path}: {module}", f"lora_A is {a.shape}, lora_B {b.shape}"]
    if left or not count or (count > 1 and b.shape[0] % count) or not is_r_in({"A": a, "B": b}):
        tip = "A (in, r) and B (r, out) are of another program: --format x@a@b or w+ab"
        raise AdapterError("the factors are not A (r * n, in) and B (rows, r)", where=where, help=tip)
    if count == 1:
        return 1
    if said.enable_lora is None:
        if not said.strict:
            return 1
        what = f"LoRA on {count} parts of a fused projection: which of its parts they are, the file does not say"
        tip = "say it as the training did: --enable-lora 1,0,1, for the first and last of three"
        raise AdapterError(what, where=where, help=tip)
    if sum(said.enable_lora) != count:
        marks = ",".join(str(int(one)) for one in said.enable_lora)
        what = f"the module has LoRA on {count} parts, and --enable-lora {marks} names {sum(said.enable_lora)}"
        raise AdapterError(what, where=where, help="name as many as there are")
    return count


def placed(b: Tensor, count: int, enabled: Sequence[bool] | None) -> Tensor:
    """B (slots * rows, count * r): each part's block in the rows of its slot and the columns of its rank."""
    if enabled is None or (count == 1 and sum(enabled) != 1):
        return b
    rows, rank = b.shape[0] // count, b.shape[1]
    blocks, at = list[Tensor](), 0
    for on in enabled:
        row: list[Tensor] = [Zeros(b.dtype, (rows, rank))] * count
        if on:
            row[at], at = narrow(b, 0, at * rows, rows), at + 1
        blocks.append(concat(row, 1))
    return concat(blocks, 0)


def reads(found: Found) -> bool:
    """Whether it can be, where a user says so."""
    return bool(bare_pairs(found))


FORMAT = Format("loralib", TOOL, recognise, read, reads, marks=("lora",), takes=frozenset({"alpha", "enable_lora"}))
