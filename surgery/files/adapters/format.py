"""What a format of adapters is: how a file of it is told by its content, and how it is read.

A format is one file in this room and one row of `FORMATS` (`table.py`). It is told by names, shapes and the keys of an
adapter_config.json, never by the name of the file. What it reads becomes an `Adapter` in the project's own terms: LoRA
as PEFT has it, A (r, in) and B (out, r) with ranks and alphas in the config, by movement alone; what no name tells is
asked for (`Said`), never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ...errors import AdapterError, FormatError, listed
from ...lazy.dtypes import ARITHMETIC
from ...lazy.tensor import Tensor
from ..peft import Adapter

TOLD = ("format", "key", "alpha", "enable_lora")  # what of an adapter's `format` a history tells


@dataclass(frozen=True, slots=True)
class Found:
    """A file that may be an adapter: its header, and the adapter_config.json beside it, {} where there is none."""

    path: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Said:
    """What a user says of an adapter whose file does not: its format, its alpha (the scale is alpha / rank), and which
    parts of fused projections loralib trained. Where it is not `strict`, the file is only looked at, and an alpha that
    nobody said is None, with which nothing merges.
    """

    format: str | None = None
    alpha: float | None = None
    enable_lora: tuple[bool, ...] | None = None
    strict: bool = True


@dataclass(frozen=True, slots=True)
class Format:
    """A format of adapters.

    `recognise` gives what tells it in the file, "" where nothing does; `reads`, whether it can be this one where a user
    says so. `files` are names that its tool gives to the file that is meant among several, `heads` those that it gives
    to heads beside it. `takes` are the options that may be said of it. `into_config` tells names of tensors that are
    read into the config, `shared` those of tensors that several modules use. `fit` gives the modules the base's names,
    and rows its order, where that needs the base's config.json or the names of its tensors: such an adapter's `dialect`
    is the format's tool until then.
    """

    key: str
    tool: str
    recognise: Callable[[Found], str]
    read: Callable[[Found, Said], Adapter]
    reads: Callable[[Found], bool] | None = None
    marks: tuple[str, ...] = ()  # one of which is in a name of each such file, unless its config tells; (): any file
    files: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    takes: frozenset[str] = frozenset()
    into_config: Callable[[str], bool] = lambda name: False
    shared: Callable[[str], bool] = lambda name: False
    fit: Callable[[Adapter, Mapping[str, Any], Collection[str]], Adapter] | None = None

    def tells(self, found: Found, marks: Set[str]) -> str:
        """What tells it in the file, in whose names these marks are."""
        asked = not self.marks or found.config or not marks.isdisjoint(self.marks)
        return self.recognise(found) if asked else ""

    def can_be(self, found: Found) -> bool:
        """Whether the file can be read so where a user says it."""
        return self.reads(found) if self.reads else bool(self.recognise(found))


def marks_in(names: Iterable[str], marks: Collection[str]) -> frozenset[str]:
    """Which of the marks are in any of the names: many names at a time, since every checkpoint's are asked."""
    ahead, here = iter(names), set[str]()
    while some := "\n".join(islice(ahead, 10_000)):
        here |= {mark for mark in marks if mark not in here and mark in some}
    return frozenset(here)


def grouped(found: Found, rule: re.Pattern[str]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The tensors by module and part, as the rule's groups say, and the rest by name. Raises FormatError where two are
    one.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in found.tensors.items():
        match = rule.fullmatch(name)
        if match is None:
            rest[name] = tensor
            continue
        parts = modules.setdefault(match["module"], {})
        if match["part"] in parts:
            where = [found.path, name]
            raise FormatError("two adapter tensors mean the same", where=where, help="keep one of them")
        parts[match["part"]] = tensor
    return modules, rest


def all_grouped(found: Found, rule: re.Pattern[str], tool: str) -> dict[str, dict[str, Tensor]]:
    """All tensors by module and part. Raises FormatError for those that the rule has no meaning for, too."""
    modules, rest = grouped(found, rule)
    if rest:
        raise strangers(found, sorted(rest), tool)
    return modules


def pair_of(
    found: Found, module: str, parts: Mapping[str, Tensor], names: Sequence[str], axes: int = 2
) -> list[Tensor]:
    """The two factors of the module, of floats and of `axes` axes. Raises AdapterError."""
    if missing := [name for name in names if name not in parts]:
        tip = "the adapter's file is incomplete: save it again"
        raise AdapterError(f"the module has no {missing[0]}", where=[f"{found.path}: {module}"], help=tip)
    pair = [parts[name] for name in names]
    for name, tensor in zip(names, pair, strict=True):
        where = [f"{found.path}: {module}.{name}"]
        if tensor.dtype not in ARITHMETIC:
            tip = "save the adapter in float32, float16 or bfloat16"
            raise AdapterError(f"adapter tensors of {tensor.dtype} are not supported", where=where, help=tip)
        if len(tensor.shape) != axes or not tensor.size:
            what = f"{name} is {tensor.shape}, " + (f"and not of {axes} axes" if tensor.size else "and holds nothing")
            raise AdapterError(what, where=where, help="an ungathered ZeRO-3 or FSDP save looks like this")
    return pair


def told_alpha(found: Found, said: Said, rank: int, tool: str, first: str = "") -> float | None:
    """The alpha that was said, for a format that stores none. Raises AdapterError where none was; `first` is what
    helps before that.
    """
    if said.alpha is None and said.strict:
        raise AdapterError(
            f"the file is LoRA as {tool} writes it, which does not say alpha: the scale, alpha / rank, is not known",
            where=[found.path, f"rank {rank}"],
            help=f"{first + '; or ' if first else ''}say it: --alpha {2 * rank}, or what else the training had",
        )
    return said.alpha


def strangers(found: Found, rest: Sequence[str], tool: str) -> FormatError:
    """The error for tensors that a format has no meaning for."""
    tip = "a file holds one adapter and nothing else: take them out, or say the format that it is: --format"
    what = f"{len(rest)} tensors in an adapter's file are none of {tool}'s"
    return FormatError(what, where=[found.path, *listed(list(rest))], help=tip)
