"""The commands of a soak, as they may follow each other, each with its law."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calls.jobs import quantised
from surgeries.test_split_oracle import CASES

from . import laws
from .drawing import DTYPES, Lora, Tensors, adapter, linear, read, shaken, written
from .laws import Law, exactly

PLACED = ("adapters", "tuned", "other")  # what is said by its place in the words
TIED = {"llama-tied": "model.embed_tokens", "gpt2": "transformer.wte", "bloom": "transformer.word_embeddings"}
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Act:
    """A command: its step, what flows into it, what is said to it, and what must hold of its output."""

    step: str
    sources: tuple[str, ...]
    said: Mapping[str, Any]
    law: Law
    files: bool = True  # whether what lies beside the weights comes along

    @property
    def words(self) -> list[str]:
        """As it is typed."""
        placed = [one for key in PLACED for one in _listed(self.said.get(key, []))]
        options = [word for key, value in self.said.items() if key not in PLACED for word in _typed(key, value)]
        return [self.step, *self.sources, *placed, *options]


def _listed(value: Any) -> list[str]:
    return list(value) if isinstance(value, list) else [value]


def _typed(key: str, value: Any) -> list[str]:
    if value is True:
        return [f"--{key}"]
    if key == "map":
        return [word for one in value for word in ("--map", one)]
    return [f"--{key}={','.join(map(str, value)) if isinstance(value, list) else value}"]


@dataclass
class Chain:
    """What a chain has come to: the checkpoint at `at`, and what was done to it."""

    draw: random.Random
    root: Path
    family: str
    at: str = "in/0"
    begun: tuple[str, ...] = ("in/0",)
    split: bool = False
    untied: bool = False
    coded: Tensors = field(default_factory=dict)  # what was coded, as it was
    ended: bool = False
    adapters: int = 0

    @property
    def tensors(self) -> Tensors:
        """What is in the checkpoint."""
        return read(self.root / self.at)

    def adapter(self, tensors: Tensors) -> Lora:
        """One that fits."""
        self.adapters += 1
        return adapter(self.draw, tensors, self.root, f"a{self.adapters}", turned=self.family == "gpt2")

    def next(self, *, last: bool) -> Act:
        """Another act, and the state after it."""
        tensors = self.tensors
        if self.coded:
            like, self.coded = self.coded, {}
            return self._act("dequantize", {}, laws.decoded(tensors, like))
        names = ["merge", "merge", "cast"]
        if self.family in CASES:
            names += ["fuse"] if self.split else ["split", "split-qkv"]
        if self.family not in ("sam", "bert") and not self.split:
            names.append("layers")
        if self.family in TIED:
            names.append("tie" if self.untied else "untie")
        if not last and not self.split and self.family not in ("sam", "gpt2"):
            names.append("quantize")
        if last:
            names += ["rename", "keep", "drop", "add"]
        return getattr(self, f"_{self.draw.choice(names).replace('-', '_')}")(tensors)  # type: ignore[no-any-return]

    def _act(self, step: str, said: Mapping[str, Any], law: Law) -> Act:
        return Act(step, (self.at,), said, law)

    def first(self) -> Act | None:
        """What a chain may begin with and not go on: one model of two, and safetensors of what torch saved."""
        if (self.root / self.at / "pytorch_model.bin").exists():
            return Act("convert-files", self.begun, {}, exactly(self.tensors), files=False)
        if self.draw.random() > 0.15:
            return None
        tensors = self.tensors
        other = shaken(self.draw, tensors)
        config = (self.root / self.at / "config.json").read_bytes()
        written(self.draw, other, {}, self.root / "in/other")
        (self.root / "in/other/config.json").write_bytes(config)
        self.begun, weights = ("in/0", "in/other"), [self.draw.choice((1.0, 0.25)), self.draw.choice((1.0, 0.5))]
        return Act("blend", self.begun, {"weights": weights}, laws.blended([tensors, other], weights))

    def _merge(self, tensors: Tensors) -> Act:
        chosen = [self.adapter(tensors) for _ in range(self.draw.randint(1, 2))]
        weights = [self.draw.choice((1.0, 0.5, -0.25)) for _ in chosen]
        said = {"adapters": [one.path for one in chosen], "weights": weights}
        return self._act("merge", said, laws.merged(tensors, chosen, weights))

    def _cast(self, tensors: Tensors) -> Act:
        name = self.draw.choice(list(DTYPES))
        law = exactly({n: t.to(DTYPES[name]) for n, t in tensors.items()})
        return self._act("cast", {"dtype": name, "allow-overflow": True}, law)

    def _split(self, tensors: Tensors) -> Act:
        self.split = True
        return self._act("split", {}, exactly(laws.apart(self.family, tensors, gated=True)))

    def _split_qkv(self, tensors: Tensors) -> Act:
        self.split = True
        return self._act("split-qkv", {}, exactly(laws.apart(self.family, tensors, gated=False)))

    def _fuse(self, tensors: Tensors) -> Act:
        self.split = False
        return self._act("fuse", {}, exactly(laws.together(self.family, tensors)))

    def _layers(self, tensors: Tensors) -> Act:
        stack = re.compile(r"(.*(?:\.layers|\.h)\.)(\d+)(\..*)")
        found = {name: match for name in tensors if (match := stack.fullmatch(name))}
        there = sorted({int(match[2]) for match in found.values()})
        order = [self.draw.choice(there) for _ in range(self.draw.randint(1, 3))]
        wanted = {name: one for name, one in tensors.items() if name not in found}
        for new, old in enumerate(order):
            of = {match[1] + str(new) + match[3]: tensors[n] for n, match in found.items() if int(match[2]) == old}
            wanted |= of
        return self._act("layers", {"order": ",".join(map(str, order))}, exactly(wanted))

    def _untie(self, tensors: Tensors) -> Act:
        self.untied = True
        return self._act("untie", {}, exactly({**tensors, HEAD: tensors[f"{TIED[self.family]}.weight"]}))

    def _tie(self, tensors: Tensors) -> Act:
        self.untied = False
        return self._act("tie", {}, exactly({n: t for n, t in tensors.items() if n != HEAD}))

    def _quantize(self, tensors: Tensors) -> Act:
        self.coded = tensors
        return self._act("quantize", {"scheme": "nf4"}, laws.coded(tensors))

    def _rename(self, tensors: Tensors) -> Act:
        return self._act("rename", {"map": ["^=all."]}, exactly({f"all.{n}": t for n, t in tensors.items()}))

    def _chosen(self, tensors: Tensors) -> str:
        """A pattern that some names match, and not all, nor one of the ends of a tie."""
        names = [one.split(".")[-2] for one in linear(tensors)]
        return rf".*\.{self.draw.choice(names)}\..*"

    def _keep(self, tensors: Tensors) -> Act:
        pattern = self._chosen(tensors)
        law = exactly({n: t for n, t in tensors.items() if re.fullmatch(pattern, n)})
        return self._act("keep", {"pattern": pattern}, law)

    def _drop(self, tensors: Tensors) -> Act:
        pattern = self._chosen(tensors)
        law = exactly({n: t for n, t in tensors.items() if not re.fullmatch(pattern, n)})
        return self._act("drop", {"pattern": pattern}, law)

    def _add(self, tensors: Tensors) -> Act:
        law = exactly({**tensors, **{f"more.{n}": t for n, t in read(self.root / "in/0").items()}})
        return self._act("add", {"other": "in/0", "prefix": "more."}, law)

    def beside(self) -> Sequence[Act]:
        """Commands on what the chain came to, whose outputs nothing flows into but each other: the last is what they
        are drawn for.
        """
        tensors, at = self.tensors, self.at
        match self.draw.choice(("reshard", "undo", "undo", "subtract", "extract", "inject", "combine", "decode")):
            case "reshard":
                return [Act("reshard", (at,), self.draw.choice(({}, {"link": True})), exactly(tensors))]
            case "decode":
                quantised(self.root / "in/fp8")
                return [Act("dequantize", ("in/fp8",), {}, laws.scaled(read(self.root / "in/fp8")))]
            case "combine":
                pair, weights = [self.adapter(tensors), self.adapter(tensors)], [self.draw.choice((1.0, -0.5)), 1.0]
                law = laws.combined(pair, weights)
                return [Act("combine", tuple(one.path for one in pair), {"weights": weights}, law, files=False)]
            case "inject":
                rank = self.draw.randint(1, 5)
                modules = sorted({one.split(".")[-2] for one in linear(tensors)})
                some = self.draw.sample(modules, self.draw.randint(1, len(modules)))
                said = {"rank": rank, "target-modules": some, "seed": self.draw.randrange(99)}
                return [Act("inject", (at,), said, laws.injected(tensors, rank, some), files=False)]
            case kind:
                return self._undone(kind, tensors, at)

    def _undone(self, kind: str, tensors: Tensors, at: str) -> Sequence[Act]:
        """A merge, and what gives the base back, or the adapter."""
        one = self.adapter(tensors)
        law, said = laws.merged(tensors, [one], [1.0]), {"adapters": [one.path]}
        if kind == "undo":
            there = Act("merge", (at,), {**said, "reversible": True}, law)
            return [there, Act("unmerge", ("in/side",), {}, exactly(tensors))]
        there = Act("merge", (at,), said, law)
        if kind == "extract":
            both = {"tuned": "in/side", "rank": 64}
            return [
                there,
                Act("extract", (at,), both, lambda out: laws.extracted(tensors, self._side())(out), files=False),
            ]
        return [
            there,
            Act(
                "unmerge",
                ("in/side",),
                {**said, "approximate": True},
                lambda out: laws.merged(self._side(), [one], [-1.0])(out),
            ),
        ]

    def _side(self) -> Tensors:
        return read(self.root / "in/side")
