"""DoRA: the rows of W + scale * B @ A get trained lengths: magnitude / ‖row‖ times each row, of (out, in).

A Conv1D's weight is (in, out), and an embedding's (vocabulary, dim): there it is the columns that have lengths. A
convolution's rows are its kernels, (out, in * k...); its magnitudes are stored as (1, out, 1...).

Source: peft 0.21.2, tuners/lora/dora.py `DoraLinearLayer.get_weight_norm`, and variants.py
`DoraLinearVariant.merge_safe`.
"""

from __future__ import annotations

from ..errors import AdapterError, NotSupported
from ..files.peft import Adapter
from ..lazy.dtypes import ARITHMETIC, F32
from ..lazy.gain import Gain
from ..lazy.low_rank import LowRank
from ..lazy.tensor import Norms, Sum, Tensor, reshape

MAGNITUDES = ("lora_magnitude_vector", "lora_magnitude_vector.weight")


def gain(adapter: Adapter, module: str, base: Tensor, delta: LowRank, weight: float) -> Gain | None:
    """What scales the rows of the base's matrix with its delta, or its columns; None where the module has no
    magnitudes.

    Raises NotSupported for a `weight` other than 1, AdapterError for magnitudes that do not fit.
    """
    parts = adapter.lora[module]
    key = next((key for key in MAGNITUDES if key in parts), None)
    asked = bool(adapter.config.get("use_dora"))
    where = [f"{adapter.path}: {adapter.names[f'{module}.{key or next(iter(parts))}']}"]
    if asked != (key is not None):
        said = (
            "says use_dora, but the module has no lora_magnitude_vector"
            if asked
            else "does not say use_dora, but the module has one"
        )
        raise AdapterError(f"adapter_config.json {said}", where=where, help="restore the file from the training")
    if key is None:
        return None
    if weight != 1:
        tip = "leave the weight at 1: rows with trained lengths have no part of themselves to add"
        raise NotSupported("a DoRA adapter can only be merged with weight 1", where=where, help=tip)
    b = parts.get("lora_B.weight")
    columns = b is None or delta.left != reshape(b, b.shape[:2])  # swapped factors: the weight is (in, out)
    wanted = base.shape[-1:] if columns else base.shape[:-1]
    magnitude = parts[key]
    if magnitude.dtype not in ARITHMETIC or magnitude.size != wanted[0]:
        raise AdapterError(
            f"{magnitude.dtype} magnitudes {magnitude.shape} do not fit the base's {base.shape}", where=where
        )
    return Gain(reshape(magnitude, wanted), Norms(Sum(F32, base, (delta,)), columns), columns)
