"""LoRA that was written by hand: a wrapper around a linear layer, with two bare matrices A (in, r) and B (r, out).

    X.lora_A, X.lora_B; X.A, X.B; X.lora.A, X.lora.B                in either case; with or without `.weight`
    X.original_layer.weight, X.linear.weight, X.base_layer.weight   the base's own, where the whole state was saved

Two programs give these shapes two meanings, and on square layers nothing tells them apart:

    w+ab      the layer computes with the weight W + s * A @ B                        W (out, in), in == out
    x@a@b     the layer's output is increased by s * x @ A @ B: W + s * (A @ B).T     any layer

s is alpha / rank; no file says alpha. A layer that is not square can only be x@a@b.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ...errors import AdapterError, FormatError
from ...lazy.tensor import Tensor, permute
from ..peft import Adapter
from .format import Format, Found, Said, pair_of, told_alpha
from .lora import lora_adapter
from .state import held_whole

TOOL = "a program of its own"
_NAME = re.compile(r"(?P<module>.+?)\.(?:lora\.|lora_)?(?P<part>[ABab])(?:\.weight)?")
_HUB = re.compile(r"\.(?:loras|shared_parameters)\.")  # AdapterHub's
_SURE = re.compile(r"(?!base_model\.).+\.(?:lora_[AB]|lora\.[AB])")


def pairs_in(found: Found) -> dict[str, dict[str, Tensor]]:
    """The factors A and B of each module, whatever they are called."""
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in found.tensors.items():
        if not _HUB.search(name) and (match := _NAME.fullmatch(name)):
            parts = modules.setdefault(match["module"], {})
            if match["part"].upper() in parts:
                where = [found.path, name]
                raise FormatError("two adapter tensors mean the same", where=where, help="keep one of them")
            parts[match["part"].upper()] = tensor
    return modules


def bare_pairs(found: Found) -> dict[str, dict[str, Tensor]]:
    """The same of those that are surely LoRA's, and bare: X.lora_A, X.lora_B."""
    sure = {name: one for name, one in found.tensors.items() if _SURE.fullmatch(name) and not _HUB.search(name)}
    return pairs_in(Found(found.path, sure))


def is_in_r(parts: Mapping[str, Tensor]) -> bool:
    """Whether the shapes are A (in, r) and B (r, out), the rank being the shorter side."""
    a, b = (parts[name].shape if name in parts else () for name in "AB")
    return len(a) == len(b) == 2 and a[1] == b[0] and a[1] <= min(a[0], b[1])


def is_r_in(parts: Mapping[str, Tensor]) -> bool:
    """Whether they are A (r, in) and B (out, r), or loralib's of several parts: the rank is the shorter side."""
    a, b = (parts[name].shape if name in parts else () for name in "AB")
    return len(a) == len(b) == 2 and 0 < b[1] <= b[0] and a[0] % b[1] == 0 and b[1] <= a[1]


def _square(found: Found) -> bool:
    pairs = bare_pairs(found).values()
    return all(parts["A"].shape[0] == parts["B"].shape[1] for parts in pairs if is_in_r(parts))


def _recognise(found: Found, product: bool) -> str:
    pairs = bare_pairs(found)
    if not pairs or not all(map(is_in_r, pairs.values())) or (product and not _square(found)):
        return ""
    module, parts = next(iter(pairs.items()))
    said = "which are square, all" if _square(found) else "which are not all square"
    return f"{module} and such have A {parts['A'].shape} and B {parts['B'].shape}, for layers {said}"


def _reads(found: Found) -> bool:
    return any(is_in_r(parts) for parts in pairs_in(found).values())


def _read(found: Found, said: Said, product: bool) -> Adapter:
    """The adapter: of W + s * A @ B where `product`, else of y + s * x @ A @ B. Raises AdapterError."""
    lora: dict[str, dict[str, Tensor]] = {}
    names, ranks = dict[str, str](), dict[str, tuple[int, float | None]]()
    rest = dict(found.tensors)
    for module, parts in pairs_in(found).items():
        a, b = pair_of(found, module, parts, ("A", "B"))
        _check(found, module, a, b, product)
        lora[module] = _factors(a, b, product)
        ranks[module] = (a.shape[1], told_alpha(found, said, a.shape[1], TOOL))
        keys = {"lora_B.weight": a, "lora_A.weight": b} if product else {"lora_A.weight": a, "lora_B.weight": b}
        for part, tensor in keys.items():
            name = next(name for name, one in rest.items() if one is tensor)
            names[f"{module}.{part}"] = name
            del rest[name]
    whole, more = held_whole(rest, lora)
    return lora_adapter(found, TOOL, lora, names | more, ranks, whole=whole)


def _factors(a: Tensor, b: Tensor, product: bool) -> dict[str, Tensor]:
    """PEFT's A (r, in) and B (out, r)."""
    if product:
        return {"lora_A.weight": b, "lora_B.weight": a}
    return {"lora_A.weight": permute(a, (1, 0)), "lora_B.weight": permute(b, (1, 0))}


def _check(found: Found, module: str, a: Tensor, b: Tensor, product: bool) -> None:
    where = [f"{found.path}: {module}", f"A is {a.shape}, B {b.shape}"]
    if a.shape[1] != b.shape[0]:
        tip = "A (r, in) and B (out, r) are loralib's: --format loralib"
        raise AdapterError("the factors are not A (in, r) and B (r, out)", where=where, help=tip)
    if product and a.shape[0] != b.shape[1]:
        tip = "what increases the output of such a layer is --format x@a@b"
        raise AdapterError("W + A·B has no meaning on a layer that is not square", where=where, help=tip)


PRODUCT = Format(
    "w+ab",
    TOOL,
    lambda found: _recognise(found, True),
    lambda found, said: _read(found, said, True),
    _reads,
    marks=("lora",),
    takes=frozenset({"alpha"}),
)
OUTPUT = Format(
    "x@a@b",
    TOOL,
    lambda found: _recognise(found, False),
    lambda found, said: _read(found, said, False),
    _reads,
    marks=("lora",),
    takes=frozenset({"alpha"}),
)
