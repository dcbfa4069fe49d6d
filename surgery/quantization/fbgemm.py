"""`fbgemm_fp8`, as Llama-3.1-405B and Llama 4 have it: float8 weights with a scale for each output.

    linear weight (out, in), weight_scale (out, 1)    experts X (experts, in, out), X_scale, one for each output

Source: transformers 5.23 `integrations/fbgemm_fp8.py`.
"""

from __future__ import annotations

from ..lazy.coding import Coding
from ..lazy.tensor import Decoded, reshape
from .fp8 import FLOATS, LEFT
from .scheme import Quantised, Scheme, Source
from .skip_lists import check_listed, extended

KEY = "modules_to_not_convert"
MORE = ("input_scale_ub",)


def find(source: Source) -> dict[str, Quantised]:
    """Every float8 tensor. Raises FormatError for one without scales, or with others than its outputs need."""
    found = {n: _weight(source, n) for n, t in source.tensors.items() if t.dtype.name in FLOATS}
    stray = [n for n in source.tensors if n.endswith(".weight_scale") and n.removesuffix("_scale") not in found]
    if stray:
        raise source.broken("scales are here, and no float8 weights that they belong to", stray)
    check_listed(source, KEY, found)
    return found


def _weight(source: Source, name: str) -> Quantised:
    codes, scale = source.tensors[name], f"{name}_scale"
    if len(codes.shape) not in (2, 3):
        raise source.broken(f"{name} is quantised, and no matrix: {list(codes.shape)}", [name])
    *lead, rows, columns = codes.shape
    wanted, block = ((*lead, 1, columns), (rows, 1)) if lead else ((rows, 1), (1, columns))
    source.check_sizes(name, {scale: columns * lead[0] if lead else rows})
    parts = (("scale", reshape(source.tensors[scale], wanted)),)
    decoded = Decoded(source.dtype, codes.shape, Coding("float", None, block), codes, parts, name)
    module = name.rpartition(".")[0]
    left = tuple(n for last in (*LEFT, *MORE) if (n := f"{module}.{last}") in source.tensors)
    return Quantised("FP8 of fbgemm, a scale for each output", decoded, (name, scale), left)


SCHEME = Scheme("fbgemm_fp8", find, lambda said, modules, quantised: extended(said, KEY, modules, quantised))
