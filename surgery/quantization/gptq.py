"""GPTQ: 2, 3, 4 or 8 bits that run down the columns of a weight stored as (in, out), with a zero for each group.

`g_idx` says which group each input belongs to; where it is not there, groups are neighbours. Files of the first
format hold zeros less one. Sources: GPTQModel 7.7 (`nn_modules/qlinear/__init__.py`, `quantization/config.py`),
AutoGPTQ 0.7.1, auto-round 0.16 (`inference/backend.py`, `auto_round_extension/torch`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..lazy.coding import Coding, Packing
from ..lazy.tensor import Decoded, permute
from .scheme import IN_16_BITS, Quantised, Scheme, Source

BITS = (2, 3, 4, 8)
FORMATS = {"gptq": 1, "gptq_v2": 0}  # what is added to stored zeros
OTHERS = {
    "gptq_p": "its words are split in planes, as no other program reads them",
    "marlin": "its codes lie in the order of one GPU kernel",
    "bitblas": "its codes lie in the order of one GPU kernel",
}
FILE = "quantize_config.json"
COMPANIONS = ("qzeros", "scales", "g_idx")
CODES = ".qweight"
INTS, FLOATS = ("I32",), ("F16", "BF16", "F32")
HEAD = "lm_head"


@dataclass(frozen=True, slots=True)
class Grid:
    """How a weight is quantised: `group` columns share a scale, all where it is -1; `step` is added to its zeros."""

    bits: int
    group: int
    step: int


def find(source: Source) -> dict[str, Quantised]:
    """Every module with codes. Raises FormatError where config.json contradicts them, NotSupported for what no other
    program reads.
    """
    grid = _grid(source)
    found = {f"{m}.weight": weight_of(source, m, given(source, m, grid, dynamic(source, m))) for m in modules(source)}
    check_complete(source, found)
    head = source.said.get(HEAD)
    if isinstance(head, bool) and head is not any(name.endswith(f"{HEAD}.weight") for name in found):
        heads = [n for n in source.tensors if n.rpartition(".")[0].endswith(HEAD)]
        if heads:
            raise source.broken(
                f"{HEAD} is said to be {'' if head else 'not '}quantised, and its tensors say not", heads
            )
    return found


def modules(source: Source) -> list[str]:
    """Those whose codes are here."""
    return [name.removesuffix(CODES) for name in source.tensors if name.endswith(CODES)]


def check_complete(source: Source, found: Mapping[str, Quantised]) -> None:
    """Raise FormatError where nothing is quantised, and config.json says so, or scales lie here without codes."""
    if not found and source.place == "config.json":
        raise source.broken("it says that weights are quantised, and no tensor has codes", [CODES.lstrip(".")])
    used = {part for one in found.values() for part in (*one.parts, *one.left)}
    ends = tuple(f".{last}" for last in COMPANIONS)
    if lone := [name for name in source.tensors if name.endswith(ends) and name not in used]:
        raise source.broken("zeros or scales lie here without codes that they belong to", lone)


def _grid(source: Source) -> Grid:
    """What config.json says of all modules. Raises NotSupported for formats of one program."""
    said = source.said
    form = str(said.get("checkpoint_format") or said.get("format") or "gptq").lower()
    form = "marlin" if said.get("is_marlin_format") else form
    if form not in FORMATS:
        why = OTHERS.get(form, f"read are {', '.join(FORMATS)}")
        tip = f"{IN_16_BITS}, or convert it with GPTQModel to the format gptq_v2"
        raise source.unread(f"weights quantised by GPTQ in the format `{form}` are not read: {why}", tip=tip)
    bits, group = (source.number(key, said.get(key, usual)) for key, usual in (("bits", None), ("group_size", 128)))
    return Grid(bits, group, FORMATS[form])


def dynamic(source: Source, module: str) -> Mapping[str, Any] | None:
    """What is said of one module: by the first pattern that matches the start of its name. None: that it is not
    quantised. Raises FormatError for what is no pattern.
    """
    said = source.said.get("dynamic") or {}
    if not isinstance(said, Mapping) or not all(isinstance(more, Mapping) for more in said.values()):
        raise source.broken(f"what `dynamic` says of single modules cannot be: {said!r}", ["dynamic"])
    for pattern, more in said.items():
        try:
            found = re.match(re.sub(r"^[+-]:", "", pattern), module)
        except re.error as error:
            raise source.broken(f"`dynamic` has a pattern that is none: {error}", [pattern]) from error
        if found:
            return None if pattern.startswith("-:") else more
    return {}


def given(source: Source, module: str, grid: Grid, more: Mapping[str, Any] | None) -> Grid:
    """`grid` with what is said of the module alone. Raises FormatError where that it is not quantised."""
    if more is None:
        raise source.broken(f"{module} is said to be not quantised, and has codes", [f"{module}{CODES}"])
    bits, group = (more.get("bits", grid.bits), more.get("group_size", grid.group))
    grid = replace(grid, bits=source.number("bits", bits), group=source.number("group_size", group))
    if grid.bits not in BITS:
        raise source.unread(f"{module} has {grid.bits} bits, and GPTQ of {', '.join(map(str, BITS))} is read")
    return grid


def weight_of(source: Source, module: str, grid: Grid) -> Quantised:
    """The weight (out, in) of a module: codes, zeros and scales are transposed, so that some rows are made of some
    columns of them.
    """
    codes, zeros, scales, index = (f"{module}.{last}" for last in ("qweight", *COMPANIONS))
    packing = Packing(grid.bits, 32)
    rows, wide = source.matrix(codes)
    order = source.tensors.get(index)
    columns = order.size if order is not None and order.size else rows * 32 // grid.bits
    group = columns if grid.group == -1 else grid.group
    groups = -(-columns // group)
    if packing.words > 1 and (columns % packing.fields or wide % packing.fields):
        what = f"{module} of {[wide, columns]} fills no whole words with {grid.bits} bits, of which {packing.fields} do"
        raise source.broken(what, [codes])
    source.check_shapes(
        f"{module}.weight",
        f"{columns} columns of {grid.bits} bits in groups of {group}",
        {
            codes: (INTS, (packing.length(columns), wide)),
            zeros: (INTS, (groups, packing.length(wide))),
            scales: (FLOATS, (groups, wide)),
        },
    )
    parts = {"scale": scales, "zero": zeros} | ({"index": index} if order is not None and order.size else {})
    coding = Coding("integer", packing, (1, group), zero=Packing(grid.bits, 32, down=True), step=grid.step, signed=True)
    held = {part: source.tensors[name] for part, name in parts.items()}
    turned = {part: permute(tensor, (1, 0)) if part != "index" else tensor for part, tensor in held.items()}
    stored = permute(source.tensors[codes], (1, 0))
    weight = Decoded(held["scale"].dtype, (wide, columns), coding, stored, tuple(turned.items()), codes)
    title = f"GPTQ, {grid.bits} bits, {'one group' if grid.group == -1 else f'groups of {group}'}"
    left = (index,) if order is not None and not order.size else ()
    return Quantised(title, source.as_filed(module, weight), (codes, *parts.values()), left)


WHY = "transformers and optimum make a quantised layer of every linear module, and leave one without codes at random"
SCHEME = Scheme("gptq", find, why=WHY, files=(FILE,))
