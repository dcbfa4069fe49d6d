"""Which weights of a checkpoint are quantised: the table of schemes, and the one question that is asked of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import FormatError, NotSupported
from ..evaluation.read import content
from ..files.strict import MEND, parse_object
from ..lazy.tensor import Tensor
from . import (
    auto_round,
    awq,
    bitsandbytes,
    compressed_tensors,
    fbgemm,
    fp8,
    gguf,
    gpt_oss,
    gptq,
    mlx,
    modelopt,
    torchao,
)
from .declared import FILES, places
from .scheme import IN_16_BITS, Quantised, Scheme, Source

FAMILIES = (auto_round, awq, bitsandbytes, compressed_tensors, fbgemm, fp8, gpt_oss, gptq, mlx, modelopt, torchao)
READ = tuple(family.SCHEME for family in FAMILIES)
SCHEMES: Mapping[str, Scheme] = {name: scheme for scheme in READ for name in (scheme.method, *scheme.aliases)}

# What cannot be expressed as numbers of their own, or is laid out for one program's kernels.
REFUSED: Mapping[str, str] = {
    "hqq": "its zeros are fractions that are subtracted in 16 bits, and transformers no longer reads it",
    "bitnet": "its layers quantise their activations too, so that the weights in 16 bits are another model",
    "eetq": "its codes lie in the order of one GPU kernel",
    "quanto": "transformers cannot save it, and no other program reads it",
    "gguf": "its weights are blocks in a GGUF file, and no safetensors",
    "marlin": "its codes lie in the order of one GPU kernel",
    "bitblas": "its codes lie in the order of one GPU kernel",
    "qqq": "its codes lie in the order of one GPU kernel",
    "paroquant": "its weights are rotated, and the rotations lie beside them",
    "aqlm": "its codes stand for vectors",
    "vptq": "its codes stand for vectors",
    "spqr": "its codes stand for vectors",
    "higgs": "its codes stand for vectors of a rotated weight",
    "quip": "its codes stand for vectors of a rotated weight",
    "exl2": "its codes lie in the order of one program",
    "exl3": "its codes stand for vectors of a rotated weight",
}


@dataclass(frozen=True)
class Quantisation:
    """What is quantised in a checkpoint: nothing, or `weights` by the names that they have in 16 bits, by `scheme`,
    as is `said` at the place in config.json to which the keys `at` lead; () where it is said elsewhere. `left` are
    tensors that go where none of them is quantised any more.
    """

    scheme: Scheme | None
    weights: Mapping[str, Quantised]
    said: Mapping[str, Any]
    at: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    def over(self, inner: Callable[[Tensor], Tensor]) -> Quantisation:
        """The same with what `inner` makes of each weight."""
        return replace(self, weights={n: replace(one, weight=inner(one.weight)) for n, one in self.weights.items()})


# How the tensors end that go with codes, and who writes them so.
ENDINGS = {
    ".absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
    "_scale_inv": "fp8",
    ".qweight": "GPTQ or AWQ",
    ".weight_packed": "compressed-tensors",
    "_blocks": "mxfp4",
    "._weight_qdata": "torchao",
}

NOTHING = Quantisation(None, {}, {})


def quantised(checkpoint: Checkpoint) -> Quantisation:
    """What is quantised in it. Reads headers, and the small JSON that bitsandbytes stores.

    Raises FormatError where codes, companions and config.json contradict each other, NotSupported for a scheme that
    is not read.
    """
    for at, said, place in declared(checkpoint):
        method = method_of(said)
        if method in SCHEMES:
            return _found(SCHEMES[method], Source(checkpoint, said, place), at)
        where = [f"{checkpoint.path}: {': '.join((place, '.'.join(at))) if at else place}"]
        if method in REFUSED:
            raise NotSupported(
                f"weights quantised by {method} are not read: {REFUSED[method]}", where=where, help=IN_16_BITS
            )
        raise NotSupported(
            f"weights quantised by `{method}` are not known",
            where=where,
            help=f"{IN_16_BITS}; read are {', '.join(scheme.method for scheme in READ)}",
        )
    return _found(gguf.SCHEME, Source(checkpoint, {}), ()) if gguf.is_gguf(checkpoint) else NOTHING


def _found(scheme: Scheme, source: Source, at: tuple[str, ...]) -> Quantisation:
    """What is quantised by a scheme. Raises FormatError for codes that belong to no weight."""
    weights = scheme.find(source)
    used = {name for one in weights.values() for name in (*one.parts, *one.left)}
    if lone := [n for n, t in source.tensors.items() if n not in used and _is_codes(n, t)]:
        raise source.broken(f"codes lie here without what says their meaning in {scheme.method}", lone)
    left = [n for n in source.tensors if n.rpartition(".")[2] in scheme.activations and n not in used]
    return Quantisation(scheme, weights, source.said, at, tuple(left))


def undeclared(checkpoint: Checkpoint) -> str:
    """What to do about codes of which nothing says how they are meant; empty where there are none, or it is said."""
    if next(declared(checkpoint), None):
        return ""
    for name in checkpoint.tensors:
        if maker := next((maker for ending, maker in ENDINGS.items() if name.endswith(ending)), ""):
            where = "config.json has no quantization_config" if checkpoint.config else "there is no config.json"
            return f"{name} is as {maker} writes it, and {where} that says how: restore it from where the model is from"
    return ""


def _is_codes(name: str, tensor: Tensor) -> bool:
    """Whether a tensor can be nothing else, as masks of attention can that are stored as bytes (`attn.bias`)."""
    kind, last = tensor.dtype.name, name.rpartition(".")[2]
    return len(tensor.shape) > 1 and (kind.startswith("F8_E") or (kind in ("U8", "I8") and not last.endswith("bias")))


def declared(checkpoint: Checkpoint) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any], str]]:
    """What is said of it, and in which file: (keys that lead there, what is said, the file). What other files say
    counts where config.json says nothing.
    """
    found = list(places(checkpoint.config))
    for at, said in found:
        yield at, said, "config.json"
    for name, method in FILES.items() if not found else ():
        if name in checkpoint.files:
            yield (), {"quant_method": method, **said_in(checkpoint, name)}, name


def said_in(checkpoint: Checkpoint, name: str) -> Mapping[str, Any]:
    """The JSON in a file of the checkpoint. Raises FormatError."""
    where = [f"{checkpoint.path}: {name}"]
    return parse_object(content(checkpoint.files[name]), lambda what: FormatError(what, where=where, help=MEND))


def method_of(said: Mapping[str, Any]) -> str:
    """How config.json names the scheme."""
    nested = said.get("quantization_config")
    method = said.get("quant_method") or (nested.get("format") if isinstance(nested, Mapping) else None)
    if not method and (said.get("load_in_4bit") or said.get("load_in_8bit")):
        return "bitsandbytes"
    if not method and {"bits", "group_size"} <= said.keys():
        return "mlx"
    return str(method or said.get("format") or "")
