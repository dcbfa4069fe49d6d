"""What a kind of adapter is, besides LoRA: how its tensors on a module become a change of that module's weight.

A kind is a row of `METHODS` (`__init__.py`), made in a file of its own beside this one: a `Method`, whose `effect` is
a pure function of a `Target`, the module as the layer computes, to an `Effect`, lazy deltas and gains. Planner,
executor and reader know nothing of it. What depends on the adapter alone and needs more than movement is made by a
rule with a name, `lazy.tensor.made` and `evaluation/rules/`; what needs the base as a whole is a `Product` or `Norms`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ...errors import AdapterError, LayoutError, NotSupported, series
from ...files.adapter_config import MEND, MOST
from ...files.peft import Adapter
from ...lazy.change import Change, Delta
from ...lazy.dtypes import ARITHMETIC
from ...lazy.tensor import Shape, Tensor, reshape, stored
from ..lora import matrix_of, pattern

# What several adapters of a kind on one module come to: the sum of their deltas, each of the base alone; one after
# another, the first or the last one next to the base; whichever; or nothing that has a meaning.
Several = Literal["sum", "first", "last", "any", "one"]
# What each axis of a part is as long as: a number of adapter_config.json, or the weight's "out" or "in"; None for what
# the effect sees to.
Axes = Mapping[str, tuple[str | None, ...]]
PATTERNS = {
    "r": "rank_pattern",
    "alpha": "alpha_pattern",
    "block_size": "block_size_pattern",
    "n_frequency": "n_frequency_pattern",
}


@dataclass(frozen=True, slots=True)
class Effect:
    """What an adapter does to a module: `(matrix + Σ deltas) * gain`, and the same for its bias.

    The matrix is (out, in), kernels are its rows: (out, in / groups * k...). `several` is said where it is not the
    same for all that the kind does.
    """

    deltas: tuple[Delta, ...] = ()
    gain: Change | None = None
    bias: tuple[Delta, ...] = ()
    bias_gain: Change | None = None
    matrix: Tensor | None = None  # in the matrix's place, where deltas cannot say it
    notes: tuple[str, ...] = ()
    several: Several | None = None

    @property
    def changes(self) -> tuple[Change, ...]:
        """All of them."""
        return (*self.deltas, *self.bias, *(one for one in (self.gain, self.bias_gain) if one))


@dataclass(frozen=True, slots=True)
class Target:
    """A module of the base with the tensors that an adapter has of it.

    `weight` is as the layer computes with it: (out, in), though a Conv1D stores (in, out); (out, in / groups, k...) of
    a convolution; (vocabulary, dim) of an embedding.
    """

    adapter: Adapter
    module: str
    weight: Tensor
    bias: Tensor | None
    conv1d: bool = False

    @property
    def matrix(self) -> Tensor:
        """The weight with kernels as rows."""
        return reshape(self.weight, matrix_of(self.weight.shape))

    @property
    def parts(self) -> Mapping[str, Tensor]:
        """The adapter's tensors of the module."""
        return self.adapter.lora[self.module]

    @property
    def is_conv(self) -> bool:
        """Whether it is a convolution."""
        return len(self.weight.shape) > 2

    def part(self, name: str, *shape: int | None) -> Tensor:
        """The tensor called so, of floats and of `shape`, in which None is any size. Raises AdapterError."""
        if name not in self.parts:
            raise self.wrong(f"the module has no {name}", "the adapter file is incomplete: save it again")
        return self._of(self.parts[name], name, shape)

    def shared(self, name: str, *shape: int | None) -> Tensor:
        """The same of a tensor that all modules share. Raises AdapterError."""
        if name not in self.adapter.shared:
            drawn = not self.adapter.shared and "save_projection" in self.adapter.config
            tip = "save it again" + (" with all that it needs, in PEFT save_projection=True" if drawn else "")
            held = f", though it has {series(sorted(self.adapter.shared))}" if self.adapter.shared else ""
            what = f"the adapter's file has no {name}, which all its modules share{held}"
            raise self.wrong(what, f"the adapter file is incomplete: {tip}")
        return self._of(self.adapter.shared[name], name, shape)

    def number(self, key: str, default: float | None = None) -> float:
        """What adapter_config.json says, by pattern where it has some. Raises AdapterError."""
        value = stated(self.adapter, self.module, key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not -MOST < value < MOST:
            raise self.wrong(f"{key} = {str(value)[:40]!r} is no number that anything is multiplied by", MEND)
        return value

    def rank(self, default: int) -> int:
        """What adapter_config.json says of the module's rank. Raises AdapterError."""
        value = self.number("r", default)
        if value != int(value) or value < 1:
            raise self.wrong(f"r = {value!r} is no rank", MEND)
        return int(value)

    @property
    def said_rank(self) -> int | None:
        """The same; None where it says nothing, and the shapes tell."""
        return self.rank(0) if "r" in self.adapter.config else None

    def wrong(self, what: str, tip: str | None = None) -> AdapterError:
        """The error that says so of this module."""
        return AdapterError(
            what, where=self.where, help=tip or "the adapter belongs to another base, or to a changed one"
        )

    def unsupported(self, what: str, tip: str | None = None) -> NotSupported:
        """The same for what is right, and is not merged."""
        return NotSupported(what, where=self.where, help=tip or "merge it with PEFT, where it can: merge_and_unload()")

    @property
    def where(self) -> list[str]:
        """The module in the adapter's file, and in the base."""
        part = next(iter(self.parts))
        name = self.adapter.names.get(f"{self.module}.{part}", f"{self.module}.{part}")
        return [f"{self.adapter.path}: {name}", f"base: {self.module}.weight {self.weight.shape}"]

    def _of(self, tensor: Tensor, name: str, shape: Collection[int | None]) -> Tensor:
        if tensor.dtype not in ARITHMETIC:
            tip = "save the adapter in float32, float16 or bfloat16"
            raise self.unsupported(f"{name} of {tensor.dtype} is not supported", tip)
        wanted = tuple(shape)
        if wanted and (
            len(wanted) != len(tensor.shape)
            or any(want not in (None, has) for want, has in zip(wanted, tensor.shape, strict=True))
        ):
            said = ", ".join("any" if size is None else str(size) for size in wanted)
            raise self.wrong(f"{name} is {tensor.shape}, and not ({said})")
        return tensor


def stated(adapter: Adapter, module: str, key: str, default: Any = None) -> Any:
    """What adapter_config.json says of a module, by pattern where it has some."""
    return pattern(adapter.config.get(PATTERNS.get(key, "")), module, adapter.config.get(key, default))


@dataclass(frozen=True, slots=True)
class Method:
    """A kind of adapter.

    `options` are keys of adapter_config.json that it reads, or that tell of the training alone; any other one that
    says something is refused. `check` raises for a config, or a file, that no module can be merged of. `partly` are
    parts of which not each element is used once: tables that are cut, blocks that repeat. `idle` are parts that
    change nothing, and are dropped by name. `axes` and `span` are what the parts themselves tell of config and
    weight: `span` is the weight's shape, where `axes` do not say it, and None where the parts do not. `prepared` is
    the whole adapter with what its modules share put in their reach, given the widest of its modules' inputs.
    `together` is what a user should know where several of the kind are on one module.
    """

    peft_type: str
    name: str
    why: str
    effect: Callable[[Target], Effect]
    options: frozenset[str] = frozenset()
    several: Several = "sum"
    check: Callable[[Adapter], None] = lambda adapter: None
    partly: Callable[[str], bool] = lambda part: False
    idle: Callable[[str], bool] = lambda part: False
    prepared: Callable[[Adapter, Callable[[], int]], Adapter] = lambda adapter, widest: adapter
    axes: Axes = field(default_factory=dict, compare=False)
    span: Callable[[Adapter, str], Shape | None] | None = None
    unpatterned: bool = False  # whether PEFT may pass over patterns: a number is the usual one then, too
    conv1d: bool = True
    scaled: bool = True  # whether PEFT's layer of an embedding multiplies by what the embedding does
    layers: str = "nn.Linear, Conv1D"
    together: str = ""
    kernels: str = ""  # what is another in PEFT's live convolutions, and not in a checkpoint


def said(*keys: str) -> frozenset[str]:
    """Options of a method."""
    return frozenset(" ".join(keys).split())


def turned(effect: Effect) -> Effect:
    """The effect on a weight that is stored as (in, out). Raises LookupError where a change cannot be turned."""

    def turn(change: Any) -> Any:
        other = change.transposed()
        if other is None:
            raise LookupError
        return other

    return replace(effect, deltas=tuple(map(turn, effect.deltas)), gain=effect.gain and turn(effect.gain))


def effect_of(target: Target, method: Method) -> Effect:
    """What the adapter does to the module, as its layer computes. Raises AdapterError, NotSupported, also for parts
    that the kind makes nothing of.
    """
    try:
        effect = method.effect(target)
        for change in (*effect.deltas, *([effect.gain] if effect.gain else [])):
            change.check(target.matrix.shape)
        for change in (*effect.bias, *([effect.bias_gain] if effect.bias_gain else [])):
            if target.bias is not None:
                change.check(target.bias.shape)
    except LayoutError as error:
        raise target.wrong(error.what) from error
    for part in unused(target, effect):
        if not method.idle(part):
            raise target.unsupported(f"{method.name} with {part} is not supported")
    return effect


def unused(target: Target, effect: Effect) -> list[str]:
    """Parts of the module that the effect is not made of."""
    used = {leaf for change in effect.changes for factor in change.factors for leaf in stored(factor)}
    used |= set(stored(effect.matrix)) if effect.matrix is not None else set()
    return [name for name, tensor in target.parts.items() if not used & set(stored(tensor))]
