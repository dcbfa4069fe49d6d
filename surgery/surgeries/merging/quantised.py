"""Bases whose weights are quantised: which of the adapter's modules are, and which base is the usual one instead."""

from __future__ import annotations

from collections.abc import Sequence

from ...checkpoint import Checkpoint
from ...errors import NotSupported, SurgeryError, listed, series
from ...files.peft import Adapter
from ...lazy.dtypes import ARITHMETIC
from ...lazy.tensor import Tensor
from ...quantization.quantised import NOTHING, Quantisation, declared, method_of, quantised, undeclared
from ...quantization.settle import How

# Schemes in which a model is quantised while it is loaded, so that adapters are trained on what lies in 16 bit on
# the Hub.
ON_LOADING = frozenset({"bitsandbytes", "hqq", "eetq", "quanto", "torchao", "bitnet"})
_READ = "F16, BF16, F32 and F64 are computed"


def way(*, dequantize: bool, requantize: bool, lossy: bool) -> How:
    """What becomes of quantised weights that adapters touch. Raises SurgeryError for options that contradict each
    other.
    """
    if dequantize and requantize:
        raise SurgeryError("--dequantize and --requantize contradict each other", help="give one of them")
    if lossy and not requantize:
        raise SurgeryError("--lossy says what --requantize may lose", help="give both, or neither")
    return "dequantized" if dequantize else "requantized" if requantize else "mixed"


def read_quantised(checkpoint: Checkpoint) -> Quantisation:
    """What is quantised in the base; nothing where that cannot be read: then its other tensors can be merged into."""
    try:
        return quantised(checkpoint)
    except NotSupported:
        return NOTHING


def check_way(checkpoint: Checkpoint, held: Quantisation, how: How, dtype: str | None) -> None:
    """Raise SurgeryError where what was asked goes with a quantised base alone, or not with one."""
    if how != "mixed" and not held.weights:
        quantised(checkpoint)  # says why it cannot be read, where it is that
        option = "--dequantize" if how == "dequantized" else "--requantize"
        raise SurgeryError(f"nothing is quantised in the base, and {option} was given", where=[checkpoint.path])
    if how == "requantized" and held.scheme and not held.scheme.written:
        raise NotSupported(held.scheme.why, where=[checkpoint.path], help="merge without --requantize")
    if dtype is not None and held.weights and how != "dequantized":
        tip = "add --dequantize, or leave --dtype away"
        raise SurgeryError(f"weights that stay quantised have no dtype {dtype}", where=[checkpoint.path], help=tip)


def check_computed(checkpoint: Checkpoint, adapter: Adapter, module: str, now: Tensor) -> None:
    """Raise NotSupported where the module's weight, or what takes its place `now`, is in a dtype that is not
    computed.
    """
    name = f"{module}.weight"
    for dtype in (checkpoint.tensors[name].dtype, now.dtype):
        if dtype not in ARITHMETIC:
            where = [f"{adapter.path}: {module}", f"base: {name}", *_said(checkpoint), *why_unread(checkpoint)]
            raise NotSupported(
                f"cannot compute on {dtype} tensors", where=where, help=f"{_instead(checkpoint, adapter)}; {_READ}"
            )


def check_quantised(checkpoint: Checkpoint, adapter: Adapter, lost: Sequence[str]) -> None:
    """Raise NotSupported where modules without a weight have other tensors in a quantised base: then it is no other
    one's; and where a GGUF has names of its own.
    """
    if lost and checkpoint.format.startswith("GGUF") and any(name.startswith("blk.") for name in checkpoint.tensors):
        what = "the base has the names of GGUF, since none others are known of its architecture"
        tip = "merge into the model that the GGUF was made from, in safetensors"
        raise NotSupported(what, where=[checkpoint.path, adapter.path, *listed(list(lost))], help=tip)
    here = (
        [m for m in lost if any(name.startswith(f"{m}.") for name in checkpoint.tensors)] if _said(checkpoint) else []
    )
    if here:
        why = why_unread(checkpoint)
        names = [n for n in checkpoint.tensors if n.startswith(f"{here[0]}.")]
        raise NotSupported(
            f"{len(here)} of the adapter's {len(adapter.lora)} modules are quantised in the base",
            where=[adapter.path, *listed(here), f"{here[0]} has {series(listed(names))}", *_said(checkpoint), *why],
            help=_instead(checkpoint, adapter),
        )


def why_unread(checkpoint: Checkpoint) -> list[str]:
    """Why its quantised weights are not read, where they are not."""
    try:
        quantised(checkpoint)
    except NotSupported as error:
        return [error.what]
    return []


def _methods(checkpoint: Checkpoint) -> dict[str, str]:
    """How the weights are quantised, by the place that says so."""
    found = declared(checkpoint)
    return {f"{place}: {'.'.join(at)}" if at else place: method_of(said) or "not how" for at, said, place in found}


def _said(checkpoint: Checkpoint) -> list[str]:
    return [f"{place} says {method}" for place, method in _methods(checkpoint).items()][:1]


def _instead(checkpoint: Checkpoint, adapter: Adapter) -> str:
    """Which base to take."""
    if lost := undeclared(checkpoint):
        return lost
    named = adapter.config.get("base_model_name_or_path")
    which = f" (the adapter names {named})" if isinstance(named, str) and named else ""
    if set(_methods(checkpoint).values()) & ON_LOADING:
        return f"merge into the 16-bit model that this one was made from{which}: it is the usual base of such adapters"
    how = ", with the program that made it" if why_unread(checkpoint) else ""
    return f"merge into the 16-bit model that this one was made from{which}, or dequantise the base first{how}"
