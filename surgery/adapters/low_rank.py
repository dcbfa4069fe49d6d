"""LoRA as two factors for each module, whatever it was called: what adapters are stacked, shortened and written by.

    module      lora_A (r, in), lora_B (out, r); a convolution's are (r, in, k...) and (out, r, 1...); an embedding's
                lora_embedding_A (r, vocabulary), lora_embedding_B (dim, r)
    parameter   lora_A (experts * r, in), the expert slowest; lora_B (out, r * experts), the expert fastest

A kind that is exactly low-rank by itself is made LoRA of whole factors (`low_rank_kinds.py`); every other one is
refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import AdapterError, NotSupported, listed
from ..files.peft import Adapter
from ..lazy.dense import Dense
from ..lazy.dtypes import F32
from ..lazy.tensor import Tensor, Zeros, add, concat, in_dtype, reshape
from .consistency import strangers
from .dora import MAGNITUDES
from .experts import by_parameter, wrapped
from .kinds import check_kind
from .lora import BIAS, check_factors, check_numbers, strength
from .low_rank_kinds import as_lora
from .plain import plain
from .unwrapped import unwrapped

LINEAR, EMBEDDING = ("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B")


@dataclass(frozen=True, slots=True)
class Factors:
    """`scale * b @ a` on a module, or on each of `experts` matrices of a parameter, under the names `parts`; `bias` is
    lora_B's own, and `rest` what else the module has.
    """

    a: Tensor
    b: Tensor
    rank: int
    scale: float
    experts: int
    parts: tuple[str, str]
    bias: Tensor | None
    rest: Mapping[str, Tensor]

    @property
    def alpha(self) -> float:
        """What the scale is of, divided by the rank: that of ordinary LoRA, whatever the config has."""
        return self.scale * self.rank

    @property
    def shape(self) -> tuple[object, ...]:
        """What two of them must have in common to be on one module."""
        return self.parts, self.experts, self.a.shape[1:], self.b.shape[0], self.b.shape[2:]

    @property
    def said(self) -> str:
        """Its shapes, for a message."""
        return f"{self.parts[0]} {self.a.shape}, {self.parts[1]} {self.b.shape}"


def as_low_rank(adapter: Adapter) -> Adapter:
    """The adapter as LoRA of whole factors, by module and by parameter. Raises NotSupported for a kind that is not
    low-rank, or not by itself; AdapterError where config and tensors contradict each other.
    """
    if adapter.dialect:
        tip = "which they are in PEFT's names follows from the base: make a PEFT adapter of it first"
        raise NotSupported(f"the adapter calls modules as {adapter.dialect} does", where=[adapter.path], help=tip)
    bare = unwrapped(adapter)
    check_kind(bare)
    made = as_lora(bare) or plain(bare)
    if made.config.get("peft_type") != "LORA":
        tip = "merge it into its base, where that can be done, and extract LoRA from the difference: surgery extract"
        what = (
            f"an adapter of kind {made.config.get('peft_type')} is no product of two thin matrices for each module that"
            " its file holds"
        )
        where = [adapter.path if adapter.format else f"{adapter.path}/adapter_config.json"]
        raise NotSupported(what, where=where, help=tip)
    check_numbers(made)
    made = by_parameter(made)
    if found := [module for module in strangers(made) if not is_inside(made, module)]:
        tip = "PEFT would pass over them: restore adapter_config.json from the training"
        what = f"adapter_config.json does not aim at {len(found)} of the modules that the adapter has LoRA on"
        raise AdapterError(what, where=[adapter.path, *listed(found)], help=tip)
    return made


def is_inside(adapter: Adapter, module: str) -> bool:
    """Whether it is the out_proj of an nn.MultiheadAttention, on which LoRA lies inside of that on the whole."""
    name = adapter.names[f"{module}.{next(iter(adapter.lora[module]))}"]
    return module.endswith(".out_proj") and ".base_layer.out_proj." in name


def factors_of(adapter: Adapter, module: str) -> Factors:
    """The LoRA on a module, or a parameter, of an adapter that `as_low_rank` made. Raises AdapterError,
    NotSupported.
    """
    parts = adapter.lora[module]
    rank, _, scale = strength(adapter.config, module)
    if module in adapter.parameters:
        one = wrapped(adapter, module)
        if one.a.shape[0] != one.b.shape[1] or one.a.shape[0] % rank:
            what = f"{module}: rank {rank} is said, but lora_A is {one.a.shape} and lora_B {one.b.shape}"
            raise AdapterError(what, where=[one.file], help="restore adapter_config.json from the training")
        return Factors(one.a, one.b, rank, scale, one.a.shape[0] // rank, LINEAR, None, {})
    a, b = check_factors(adapter, module)
    names = EMBEDDING if EMBEDDING[0] in parts else LINEAR
    rest = {part: parts[part] for part in MAGNITUDES if part in parts}
    return Factors(a, b, rank, scale, 1, names, parts.get(BIAS), rest)


def stacked(pairs: Sequence[tuple[Factors, float]]) -> tuple[Tensor, Tensor]:
    """One A and one B whose product is the sum of `number * b @ a`: ranks one after another.

    Movement alone where the numbers are 1; else B is multiplied in float32, rounded once.
    """
    many, rank = pairs[0][0].experts, sum(one.rank for one, _ in pairs)
    alls = alike([one.a for one, _ in pairs])
    bs = alike([times(one.b, number) for one, number in pairs])
    if many == 1:
        return concat(alls, 0), concat(bs, 1)
    into, out = alls[0].shape[1], bs[0].shape[0]
    by_expert = [reshape(a, (many, one.rank, into)) for a, (one, _) in zip(alls, pairs, strict=True)]
    by_rank = [reshape(b, (out, one.rank, many)) for b, (one, _) in zip(bs, pairs, strict=True)]
    return reshape(concat(by_expert, 1), (many * rank, into)), reshape(concat(by_rank, 1), (out, rank * many))


def alike(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors in one dtype: their own where it is one, else float32."""
    kinds = {tensor.dtype for tensor in tensors}
    return list(tensors) if len(kinds) == 1 else [in_dtype(tensor, F32) for tensor in tensors]


def times(tensor: Tensor, number: float) -> Tensor:
    """`number` times the tensor: itself for 1, else in float32, rounded once."""
    return tensor if number == 1 else summed([(tensor, number)])


def summed(terms: Sequence[tuple[Tensor, float]]) -> Tensor:
    """The sum of tensors of one shape, each times a number, in float32, rounded once."""
    shape = terms[0][0].shape
    flat = (shape[0], terms[0][0].size // shape[0])
    total = add(Zeros(F32, flat), [Dense(reshape(tensor, flat), number) for tensor, number in terms])
    return reshape(total, shape)
