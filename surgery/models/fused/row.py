"""A row of the table, and a place where it applies: from the fused tensors to their parts, and back.

A row is read in both directions, so that what is split can be fused. Nothing here looks at a value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import LayoutError
from ...lazy.tensor import Shape, Tensor, concat, narrow, permute, reshape
from .layout import Config, Layout, Rule, fuse_axis, split_axis

# The tensors of a module: what follows its name, fused and in a part. The first one must exist.
Suffixes = tuple[tuple[str, str], ...]
LINEAR: Suffixes = ((".weight", ".weight"), (".bias", ".bias"))
PARAMETER: Suffixes = (("", ""), ("_bias", "_bias"))  # a parameter of the module above: experts.gate_up_proj
IN_PROJ: Suffixes = (("_weight", ".weight"), ("_bias", ".bias"))  # torch.nn.MultiheadAttention
STACKED: Suffixes = (("", ".weight"), ("_bias", ".bias"))  # a parameter with all experts in it, to one Linear each

# What families call the parts: key -> last name.
QKV_PROJ = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}
QUERY_KEY_VALUE = {"q": "query", "k": "key", "v": "value"}
Q_K_V = {"q": "q", "k": "k", "v": "v"}
CONV1D = {"q": "q_attn", "k": "k_attn", "v": "v_attn"}  # q_attn as in GPT-2's own cross-attention

EXPERT = "{expert}"  # in the names of parts: the expert's number

# Whether a row is meant, where two have the same names: by the config, the shape of the fused weight, and whether
# that is there
# (or would be made of its parts). Raises LayoutError where that cannot be told.
Condition = Callable[[Config, Shape, bool], bool]


@dataclass(frozen=True, slots=True)
class Beside:
    """A tensor beside the fused module that belongs to one part, such as `q_bias`: (*ones, n) there, (n) in the
    part.
    """

    name: str  # beside the fused module
    part: str  # key of the part
    suffix: str = ".bias"
    dims: int = 1  # how many axes it has beside the fused module


@dataclass(frozen=True, slots=True)
class Row:
    """The fused modules of some model types, and the names and places of their parts."""

    kind: str  # "qkv", "kv", "gate_up" or "experts"
    model_types: tuple[str, ...]
    parent: str  # regular expression for the end of the name of the module that holds the fused one; empty: any
    fused: str  # last name of the fused module, or its last names
    parts: Mapping[str, str]  # key (q, k, v, gate, up, …) -> last name of the part, in the order of the fused axis
    layout: Rule
    source: str  # the modeling code that it was read from
    axis: int = 0  # of the weight; a bias has one axis less
    tensors: Suffixes = LINEAR
    beside: tuple[Beside, ...] = ()
    alike: tuple[str, ...] = ()  # suffixes of tensors that are the same in every part: a BatchNorm's counter
    zeros: tuple[tuple[str, str], ...] = ()  # (key, suffix) of what the parts' class has and the fused one has not
    stacked: bool = False  # axis 0 of the weight is experts, each of which gets tensors of its own
    transposed: bool = False  # stacked (in, out) matrices, of which the parts are (out, in)
    only: Condition | None = None  # where it applies; None: wherever its names are
    asked: bool = (
        False  # applies only where its kind is asked for, not where all are: files have the parts, the class fuses them
    )
    loads: bool = False  # whether the family's own class loads the parts under these names, which it has in memory
    config: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)  # config.json's fields: (fused, split)

    def called(self, names: Mapping[str, str]) -> Row:
        """The row with other names for its parts; names of parts that it has not are passed over."""
        return replace(self, parts={key: _named(leaf, names.get(key, "")) for key, leaf in self.parts.items()})

    def fused_rule(self) -> re.Pattern[str]:
        """Matches the names of fused tensors: module and suffix."""
        return self._rule(re.escape(self.fused), self.fused_suffixes)

    def part_rule(self) -> re.Pattern[str]:
        """Matches the names of the parts' tensors: module, and suffix; `parent` is where the fused module is, too."""
        leaves = "|".join(re.escape(leaf).replace(re.escape(EXPERT), r"\d+") for leaf in self.parts.values())
        return self._rule(f"(?:{leaves})", self.part_suffixes)

    def _rule(self, leaf: str, suffixes: Sequence[str]) -> re.Pattern[str]:
        """With whatever else begins like one of the suffixes, such as a scale: it is noticed, and not left behind."""
        parent = rf"(?P<parent>(?:.*\.)?(?:{self.parent})\.)" if self.parent else r"(?P<parent>(?:.*\.)?)"
        marks = {suffix[:1] for suffix in suffixes}
        others = [rf"{re.escape(mark)}(?:[^.]+|weight\..+)" for mark in sorted(marks) if mark]
        return re.compile(rf"{parent}{leaf}(?P<suffix>{'|'.join([*map(re.escape, suffixes), *others])})", re.DOTALL)

    @property
    def fused_suffixes(self) -> list[str]:
        """What may follow the name of a fused module."""
        return [*(fused for fused, _ in self.tensors), *self.alike]

    @property
    def part_suffixes(self) -> list[str]:
        """What may follow the name of a part."""
        return [*(part for _, part in self.tensors), *self.alike, *(one.suffix for one in self.beside)]


def _named(leaf: str, name: str) -> str:
    """`leaf` under another last name, or as it was; an expert keeps its number."""
    if not name or EXPERT not in leaf or EXPERT in name:
        return name or leaf
    return f"{leaf.rpartition('.')[0]}.{name}"


@dataclass(frozen=True, slots=True)
class Site:
    """A fused module of a checkpoint, or the place of one: its name, its layout there, and why we believe in it."""

    row: Row
    module: str
    layout: Layout
    experts: int  # how many are stacked; 0: none
    model_type: str
    why: str

    @property
    def parent(self) -> str:
        """What stands before the fused module's own name, with its dot."""
        return self.module.removesuffix(self.row.fused)

    @property
    def parts(self) -> list[str]:
        """Names of the parts' modules: in the order of the fused axis, one expert after another."""
        leaves = self.row.parts.values()
        if not self.row.stacked:
            return [f"{self.parent}{leaf}" for leaf in leaves]
        return [f"{self.parent}{leaf.replace(EXPERT, str(e))}" for e in range(self.experts) for leaf in leaves]

    def part(self, key: str) -> str:
        """The name of one part's module."""
        return f"{self.parent}{self.row.parts[key]}"

    def names(self) -> Iterator[tuple[str, list[str]]]:
        """(name of a fused tensor, names of its parts) for each suffix that the row knows."""
        for fused, part in self.row.tensors:
            yield f"{self.module}{fused}", [f"{module}{part}" for module in self.parts]

    def cut(self, name: str, tensor: Tensor) -> list[Tensor]:
        """The parts of the fused tensor `name`, in the order of `parts`. Raises LayoutError where it does not fit."""
        axis = min(self.row.axis, len(tensor.shape) - 1)
        if self.row.stacked and (len(tensor.shape) < 2 or tensor.shape[0] != self.experts):
            raise self._misfit(name, f"{tensor.shape} along axis 0 is not {self.experts} experts")
        if axis < 0 or tensor.shape[axis] != self.layout.length:
            raise self._misfit(name, f"{tensor.shape} along axis {axis} is not {self.layout.length} = {self.layout}")
        if not self.row.stacked:
            return split_axis(tensor, axis, self.layout)
        found = []
        for e in range(self.experts):
            expert = reshape(narrow(tensor, 0, e, 1), tensor.shape[1:])
            found += [self._turned(part) for part in split_axis(expert, axis - 1, self.layout)]
        return found

    def join(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The inverse of `cut`, of parts by name, in the order of `parts`. Raises LayoutError, naming the part that
        does not fit.
        """
        if not self.row.stacked:
            return self._joined(parts, self.row.axis)
        each, named = len(self.row.parts), list(parts.items())
        experts = []
        for at in range(0, len(named), each):
            expert = self._joined({name: self._turned(part) for name, part in named[at : at + each]}, self.row.axis - 1)
            experts.append(reshape(expert, (1, *expert.shape)))
        return concat(experts, 0)

    def _joined(self, parts: Mapping[str, Tensor], axis: int) -> Tensor:
        tensors = list(parts.values())
        axis = min(axis, len(tensors[0].shape) - 1)
        for (name, part), length in zip(parts.items(), self.layout.lengths, strict=True):
            if part.dtype != tensors[0].dtype:
                raise LayoutError(
                    f"cannot join {part.dtype} to {tensors[0].dtype}",
                    where=[name, f"the parts of {self.module} need one dtype"],
                    help="fetch the checkpoint again: one of its parts was converted, and the others were not",
                )
            if not 0 <= axis < len(part.shape) or part.shape[axis] != length:
                raise self._misfit(name, f"{part.shape} along axis {axis} is not {length}, its part of {self.layout}")
        return fuse_axis(tensors, axis, self.layout)

    def _turned(self, part: Tensor) -> Tensor:
        return permute(part, (1, 0)) if self.row.transposed and len(part.shape) == 2 else part

    def _misfit(self, name: str, detail: str) -> LayoutError:
        known = self.row.model_types and self.model_type
        kind = f"of model type `{self.model_type}`" if known else "that was given"
        told = "the head counts in config.json" if known else "what was given"
        tip = f"{told} and the tensor's shape contradict each other; one of them is not this model's"
        return LayoutError(f"the fused {self.row.kind} does not fit the layout {kind}", where=[name, detail], help=tip)
