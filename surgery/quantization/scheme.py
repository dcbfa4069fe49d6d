"""What a scheme's file answers: which weights of a checkpoint are quantised, what they mean, and how a config says
that some are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import FormatError, NotSupported, listed, series
from ..evaluation.read import Reader
from ..lazy.dtypes import BF16, F16, F32, Dtype
from ..lazy.tensor import Constant, Decoded, Shape, Stored, Tensor, permute
from ..models.families import is_conv1d

DTYPES = {"bfloat16": BF16, "float16": F16, "float32": F32}
ELSE = "if it is the same there, another quantised copy of it, or the model in 16 bits, is the way"
MOST = 1 << 20  # bytes of a tensor that says how others are meant
IN_16_BITS = "take the model in 16 bits that it was made from"


@dataclass(frozen=True)
class Quantised:
    """A weight that is stored as codes: `weight` is the lazy tensor that they mean, as a file of 16 bits has it.

    `parts` are the names of all stored tensors that it is made of, the codes first; `left` those that belong to it
    and say nothing of a weight in 16 bits, such as scales of activations; `padded` those of the parts that are longer
    than the weight needs. `scheme` says how, in the field's terms.
    """

    scheme: str
    weight: Tensor
    parts: tuple[str, ...]
    left: tuple[str, ...] = ()
    padded: tuple[str, ...] = ()

    @property
    def codes(self) -> str:
        """The name of the codes."""
        return self.parts[0]


def module_of(weight: str) -> str:
    """The module that a config names for a weight: of a stacked parameter, itself."""
    return weight.removesuffix(".weight")


def same_but_ones(one: Shape, other: Shape) -> bool:
    """Whether two shapes differ in axes of one element alone."""
    return [n for n in one if n != 1] == [n for n in other if n != 1]


@dataclass(frozen=True)
class Source:
    """A checkpoint that says of itself that it is quantised: `said`, which lies in `place`."""

    checkpoint: Checkpoint
    said: Mapping[str, Any]
    place: str = "config.json"

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Its tensors by name."""
        return self.checkpoint.tensors

    @cached_property
    def dtype(self) -> Dtype:
        """What config.json says that weights are of; BF16 where it does not."""
        nested = [c for c in self.checkpoint.config.values() if isinstance(c, Mapping)]
        found = (c.get(key) for c in (self.checkpoint.config, *nested) for key in ("dtype", "torch_dtype"))
        return next((DTYPES[said] for said in found if isinstance(said, str) and said in DTYPES), BF16)

    def as_filed(self, module: str, weight: Decoded) -> Tensor:
        """A weight (out, in) as files of 16 bits have it: that of a Conv1D is (in, out)."""
        return permute(weight, (1, 0)) if is_conv1d(self.checkpoint.config, module) else weight

    def stored(self, name: str) -> Tensor:
        """The tensor of that name. Raises FormatError where there is none."""
        if name not in self.tensors:
            what = "the codes of a quantised weight are not there, and what says their meaning is"
            raise self.broken(what, [name], self._lost(name))
        return self.tensors[name]

    def check_there(self, weight: str, names: Sequence[str]) -> None:
        """Raise FormatError unless each of these parts of a weight is there."""
        if missing := [name for name in names if name not in self.tensors]:
            what = f"{weight} has codes, and not all that says what they mean"
            raise self.broken(what, missing, self._lost(missing[0]))

    def check_sizes(self, weight: str, wanted: Mapping[str, int], said: str = "") -> None:
        """Raise FormatError unless each of these parts of a weight is there, with so many elements."""
        self.check_there(weight, list(wanted))
        wrong = [
            f"{n}: {self.tensors[n].size}, not {size}" for n, size in wanted.items() if self.tensors[n].size != size
        ]
        if wrong:
            raise self.broken(f"what belongs to the codes of {weight} has another size than they need{said}", wrong)

    def matrix(self, name: str) -> tuple[int, int]:
        """The shape of a stored matrix. Raises FormatError where it is none."""
        shape = self.stored(name).shape
        if len(shape) != 2 or not all(shape):
            raise self.broken(f"codes are {list(shape)}, and no matrix", [name])
        return shape[0], shape[1]

    def number(self, key: str, value: object) -> int:
        """What is said of `key`: a number of bits or of elements, or -1. Raises FormatError where it is none."""
        if type(value) is not int or value < -1 or not value:
            raise self.broken(f"`{key}` is {value!r}, and not a number of bits or elements", [key])
        return value

    def check_shapes(self, weight: str, said: str, wanted: Mapping[str, tuple[Sequence[str], Shape]]) -> None:
        """Raise FormatError unless each of these parts of a weight is there, in one of the dtypes and of the shape
        that follow from what is `said`.
        """
        self.check_sizes(weight, {name: prod(shape) for name, (_, shape) in wanted.items()}, f", with {said}")
        wrong = [
            f"{name}: {found.dtype} {list(found.shape)}, not {series(dtypes, ' or ')} {list(shape)}"
            for name, (dtypes, shape) in wanted.items()
            if (found := self.tensors[name]).shape != shape or found.dtype.name not in dtypes
        ]
        if wrong:
            raise self.broken(f"what belongs to the codes of {weight} is not what they need, with {said}", wrong)

    def contents(self, names: Sequence[str]) -> dict[str, bytes]:
        """The content of small stored tensors, read in the order of the files. Raises FormatError for a large one."""
        if large := [f"{name}: {size} bytes" for name in names if (size := self.tensors[name].nbytes) > MOST]:
            raise self.broken("what says how weights are quantised is larger than that ever is", large)
        tensors = {name: tensor for name in names if isinstance(tensor := self.tensors[name], Stored)}
        found = {name: tensor.data for name in names if isinstance(tensor := self.tensors[name], Constant)}
        if changed := [name for name in names if name not in tensors and name not in found]:
            raise self.broken(f"{changed[0]} was changed, and is needed as it was stored", changed)
        ends = dict[str, int]()
        for tensor in tensors.values():
            ends[tensor.file.path] = max(ends.get(tensor.file.path, 0), tensor.offset + tensor.nbytes)
        with closing(Reader()) as reader:
            for name, tensor in sorted(tensors.items(), key=lambda one: (one[1].file.path, one[1].offset)):
                data = bytearray(tensor.nbytes)
                reader.read(tensor.file, tensor.offset, memoryview(data), ends[tensor.file.path])
                found[name] = bytes(data)
        return found

    def broken(self, what: str, names: Sequence[str], tip: str = "") -> FormatError:
        """The error for tensors that contradict each other, or what is said of them."""
        return FormatError(
            what, where=[f"{self.checkpoint.path}: {self.place}", *listed(names)], help=tip or self._again(names)
        )

    def _again(self, names: Sequence[str]) -> str:
        """Where to take what is broken from: the shards of these names, and what says how they are meant."""
        shards = self.checkpoint.weight_map
        found = [shards[one] for name in names if (one := name.partition(": ")[0]) in shards]
        which = [*dict.fromkeys(found), *([self.place] if self.place in self.checkpoint.files else [])]
        return f"take {series(listed(which, 3))} again from where the model was published; {ELSE}"

    def _lost(self, name: str) -> str:
        """Where to take a tensor from that is not there."""
        return f"take the shard that holds {name}, and the index, again from where the model was published; {ELSE}"

    def unread(self, what: str, names: Sequence[str] = (), tip: str = IN_16_BITS) -> NotSupported:
        """The error for what is not read, though it may be as it should."""
        return NotSupported(what, where=[f"{self.checkpoint.path}: {self.place}", *listed(names)], help=tip)


Find = Callable[[Source], Mapping[str, Quantised]]


@dataclass(frozen=True)
class Scheme:
    """A family of schemes as config.json names it.

    `find` gives the quantised weights by the names that they have in 16 bits. `skip(said, modules, all)` is what is
    said where `modules` are in 16 bits now, of `all` that were quantised; None where no loader would honour it, and
    `why` says so. `rescaled` says what was done to the model around its weights, where they are not close to those
    that it was made from: adapters of the one do not fit the other then. It goes by `aliases` too. `activations` are
    the last names of tensors that say nothing of weights, and go where no weight is quantised any more. `header` is
    what a shard's `__metadata__` says then. Tensors in whose names `shape_in` occurs say the shape of a weight:
    `restated(content, shape)` is what they say of another. What is not `written` comes out in 16 bits, all of it.
    """

    method: str
    find: Find
    skip: Callable[[Mapping[str, Any], Sequence[str], Sequence[str]], Mapping[str, Any]] | None = None
    why: str = ""
    aliases: tuple[str, ...] = ()
    activations: tuple[str, ...] = ()
    files: tuple[str, ...] = field(default=())  # beside config.json, that say the same, and are dropped in 16 bits
    rescaled: str = ""
    header: Callable[[Mapping[str, str]], Mapping[str, str]] | None = None
    shape_in: str = ""
    restated: Callable[[bytes, Shape], bytes] = lambda content, shape: content
    written: bool = True
