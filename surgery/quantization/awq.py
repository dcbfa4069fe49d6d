"""AWQ: 4 bits, with a zero for each group of inputs, in the orders of two kernels.

`gemm` stores (in, out), eight outputs to a word in an order of their own; `gemv` (out, in), and scales and zeros are
padded to whole words. AWQ multiplies input channels before it quantises, and divides what comes before them: the
norm, or an activation that gets `scales` of its own. So weights are not close to those of the model that it was made
from, whose adapters do not fit it. Sources: AutoAWQ 0.2.9 (`modules/linear/gemm.py`, `gemv.py`, `quantize/scale.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..lazy.coding import Coding, Packing
from ..lazy.tensor import Decoded, narrow, permute
from .gptq import FLOATS, INTS, check_complete, modules
from .scheme import Quantised, Scheme, Source
from .skip_lists import check_listed, extended

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
ROW, DOWN = Packing(4, 32), Packing(4, 32, down=True)
OUTPUTS = Packing(4, 32, down=True, order=ORDER)
VERSIONS = {"gemm": "gemm", "exllama": "gemm", "ipex": "gemm", "gemv": "gemv"}  # by which of them codes are stored
OTHERS = {
    "gemv_fast": "its codes are interleaved for one GPU kernel",
    "llm-awq": "its codes are interleaved for one GPU kernel",
    "marlin": "its codes lie in the order of one GPU kernel",
}
PADDED = {64: 2, 32: 4}  # words of zeros come in such numbers, by the size of groups
LIST = "modules_to_not_convert"
FILES = ("quant_config.json", "quantize_config.json")
CHANGED = "AWQ multiplied the inputs of its weights, and what comes before them undoes it"


def find(source: Source) -> dict[str, Quantised]:
    """Every module with codes. Raises FormatError where config.json contradicts them, NotSupported for codes in the
    order of one kernel, and where activations are scaled.
    """
    version, group = _version(source), _group(source)
    _check_unscaled(source)
    found = {f"{m}.weight": weight_of(source, m, group, version) for m in modules(source)}
    check_complete(source, found)
    check_listed(source, LIST, found)
    return found


def _version(source: Source) -> str:
    """How codes lie. Raises NotSupported for what is not read."""
    said = source.said
    version = str(said.get("version") or said.get("checkpoint_format") or said.get("format") or "gemm").lower()
    version = "llm-awq" if said.get("backend") == "llm-awq" else version
    bits = source.number("bits", said.get("bits", said.get("w_bit", 4)))
    if version in VERSIONS and bits == 4:
        return VERSIONS[version]
    what = f"in the version `{version}`" if version not in VERSIONS else f"of {bits} bits"
    why = OTHERS.get(version, f"read are {', '.join(VERSIONS)}") if version not in VERSIONS else "it has 4"
    raise source.unread(f"weights quantised by AWQ {what} are not read: {why}")


def _group(source: Source) -> int:
    """Inputs that share a scale; -1: all."""
    said = source.said
    return source.number("group_size", said.get("group_size", said.get("q_group_size", 128)))


def _check_unscaled(source: Source) -> None:
    """Raise NotSupported where what AWQ did is undone by scales of activations, which a model in 16 bits ignores."""
    if scales := [name for name in source.tensors if name.endswith(".act.scales")]:
        raise source.unread("activations are divided by scales that AWQ made, and a model in 16 bits has none", scales)


def weight_of(source: Source, module: str, group: int, version: str = "gemm") -> Quantised:
    """The weight (out, in) of a module."""
    codes, zeros, scales = (f"{module}.{last}" for last in ("qweight", "qzeros", "scales"))
    make = _gemm if version == "gemm" else _gemv
    weight = make(source, codes, zeros, scales, group)
    title = f"AWQ {version}, {'one group' if group == -1 else f'groups of {group}'}"
    padded = (scales,) if source.tensors[scales].size != dict(weight.parts)["scale"].size else ()
    return Quantised(title, source.as_filed(module, weight), (codes, scales, zeros), padded=padded)


def _gemm(source: Source, codes: str, zeros: str, scales: str, group: int) -> Decoded:
    """Words go along the outputs, which are the rows of the weight."""
    columns, words = source.matrix(codes)
    rows, size = 8 * words, columns if group == -1 else group
    groups = -(-columns // size)
    wanted = {codes: (INTS, (columns, words)), zeros: (INTS, (groups, words)), scales: (FLOATS, (groups, rows))}
    source.check_shapes(codes, f"{columns} inputs in groups of {size}", wanted)
    parts = {"scale": permute(source.tensors[scales], (1, 0)), "zero": permute(source.tensors[zeros], (1, 0))}
    coding = Coding("integer", OUTPUTS, (1, size), zero=OUTPUTS, signed=True)
    stored = permute(source.tensors[codes], (1, 0))
    return Decoded(source.tensors[scales].dtype, (rows, columns), coding, stored, tuple(parts.items()), codes)


def _gemv(source: Source, codes: str, zeros: str, scales: str, group: int) -> Decoded:
    """Words go along the inputs; there are more scales and zeros than groups."""
    rows, words = source.matrix(codes)
    columns = 8 * words
    size = columns if group == -1 else group
    groups = -(-columns // size)
    some = PADDED.get(size, 1)
    wide = -(-groups // (8 * some)) * some
    wanted = {codes: (INTS, (rows, words)), zeros: (INTS, (rows, wide)), scales: (FLOATS, (rows, 8 * wide))}
    source.check_shapes(codes, f"{columns} inputs in groups of {size}", wanted)
    parts = {"scale": narrow(source.tensors[scales], 1, 0, groups), "zero": source.tensors[zeros]}
    coding = Coding("integer", ROW, (1, size), zero=ROW, signed=True)
    return Decoded(parts["scale"].dtype, (rows, columns), coding, source.tensors[codes], tuple(parts.items()), codes)


def skip(said: Mapping[str, Any], modules: Sequence[str], quantised: Sequence[str]) -> Mapping[str, Any]:
    """The one list that AWQ has."""
    return extended(said, LIST, modules, quantised)


SCHEME = Scheme("awq", find, skip, files=FILES, rescaled=CHANGED)
