"""Proof: is this checkpoint the base with these adapters merged into it, whoever merged them?

The merge is replayed lazily and compared with what is stored, in a stream. Of each tensor: S is what is stored, W
the base's, E = W + Σ deltas before its last rounding, D = E - W, R = E rounded to what is stored. What is told
apart:

    exact, rounded     S is R, but for rounding
    never applied      S is W
    scaled             S - W is about f * D with another f than 1: 2 where it was applied twice, alpha / r as a
    mistake transposed         S - W is about D with its last two axes exchanged
    wrong              none of these
    kept, changed      no adapter touches it, and it is as in the base, or it is not
    coded again        it is quantised, and its codes are nearest to E; or lost, where less than half of D is in them
    missing, added, unlike   not there, there too much, of another dtype or shape than can be compared

Rounding explains |S - E| of at most 4 ulps of max(|W|, |E|) in the coarser of the stored dtype and the base's, 2
ulps of the largest |D| of the row in the coarsest of these and the adapters', and 16 float32 ulps of that. The first
is the sum rounded once more than we do, or by a DoRA factor that was rounded; the second, factors and deltas rounded
before they are added, as PEFT does; the third, the order of summation. As every element of a small delta lies within
that, the whole must fit too: the factor f is 1 to within 1 %, or to within 6 times what these very differences would
make by chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, sqrt
from typing import TYPE_CHECKING, Any

from ..checkpoint import Checkpoint
from ..evaluation.compare import bits, chunks, comparing, identical, ulp, workspace
from ..evaluation.workspace import Workspace
from ..files.peft import Adapter
from ..lazy.dtypes import ARITHMETIC, F32, F64, Dtype
from ..lazy.tensor import Tensor, Zeros, add, in_dtype, permute
from ..models.families import EMBEDDINGS, HEADS, is_tied
from ..models.fused.given import Given
from ..models.header_ties import header_ties
from ..models.tying import all_families, holder_of
from ..names import natural
from ..surgeries.merging.merge import merge
from ..surgeries.merging.quantised import read_quantised
from ..surgeries.rename import Rule
from .diff import OnTensor
from .facing import facing
from .judgement import Judgement, Verdict, rounding
from .recoded import judged_codes

if TYPE_CHECKING:
    import torch

LEAST_FACTOR, SIGMAS = 0.01, 6
# Of the change's square norm, what may be something else where the change is called a multiple of a delta, and as
# many times the
# square norm of what one rounding makes.
UNEXPLAINED, ROUNDINGS = 0.01, 3
MOST_ULPS = (
    1e18  # of more it is not said how many: from zero to a number of float64 there are up to 10^630 of the least
)


@dataclass(frozen=True, slots=True)
class Merging:
    """How adapters were merged: what `merge` was told."""

    weights: Sequence[float] | None = None
    names: Sequence[Rule] = ()
    scale: float = 1.0
    only: str | None = None
    except_: str | None = None
    tied: str = "untie"
    dtype: str | None = None
    add: str | None = None
    architecture: str | None = None
    base_as_trained: bool = False
    given: Given | None = None
    dequantize: bool = False
    requantize: bool = False
    through: str | None = None

    def __call__(self, base: Checkpoint, adapters: Sequence[Adapter]) -> Checkpoint:
        """The base with the adapters merged so; raises what `merge` raises. What it may lose is no matter here."""
        return merge(
            base,
            adapters,
            self.weights,
            names=self.names,
            scale=self.scale,
            only=self.only,
            except_=self.except_,
            tied=self.tied,
            dtype=self.dtype,
            add=self.add,
            architecture=self.architecture,
            base_as_trained=self.base_as_trained,
            given=self.given,
            through=self.through,
            again=True,
            tokenizer="base",
            any_base=True,
            dequantize=self.dequantize,
            requantize=self.requantize,
            lossy=self.requantize,
        )

    def whole(self, base: Checkpoint, adapters: Sequence[Adapter]) -> Checkpoint:
        """The same with all weights in 16 bits."""
        dequantize = bool(read_quantised(base).weights)
        return replace(self, dequantize=dequantize, requantize=False)(base, adapters)


# What is said of tensors that adapters touch; and the part of these that are wrong where another adapter was merged.
_TOUCHED = frozenset(
    {Verdict.EXACT, Verdict.ROUNDED, Verdict.NOT_APPLIED, Verdict.SCALED, Verdict.TRANSPOSED, Verdict.WRONG}
)
_NEARLY = 0.9


@dataclass(frozen=True, slots=True)
class Proof:
    """What is said of every tensor of the merged checkpoint, and of those that it lacks."""

    tensors: tuple[Judgement, ...]

    def __repr__(self) -> str:
        return f"<Proof of {len(self.tensors)} tensors: {len(self.wrong)} wrong>"

    @property
    def ok(self) -> bool:
        """Whether every adapter is merged into its tensors, once, and all else is the base's."""
        return all(one.ok for one in self.tensors)

    def __bool__(self) -> bool:
        return self.ok

    @property
    def wrong(self) -> tuple[Judgement, ...]:
        """Those with which something is wrong."""
        return tuple(one for one in self.tensors if not one.ok)

    @property
    def of_another(self) -> bool:
        """Whether next to nothing of what the adapters do is there, and something else is: another adapter was
        merged, or another base.
        """
        touched = [one.verdict for one in self.tensors if one.verdict in _TOUCHED]
        strange = [one for one in touched if one in (Verdict.WRONG, Verdict.NOT_APPLIED)]
        other = Verdict.WRONG in touched or bool(self.of(Verdict.CHANGED))
        return other and len(touched) > 1 and len(strange) >= _NEARLY * len(touched)

    def of(self, verdict: Verdict) -> tuple[Judgement, ...]:
        """Those with that verdict."""
        return tuple(one for one in self.tensors if one.verdict is verdict)


def prove(
    merged: Checkpoint,
    base: Checkpoint,
    adapters: Sequence[Adapter],
    how: Merging,
    *,
    on_tensor: OnTensor | None = None,
) -> Proof:
    """Judge every tensor of `merged` against the base with the adapters merged as `how` says, tensor names being the
    base's.

    Raises what `merge` raises. Holds a few windows of 4 MB; a tensor that has to be transposed lies in a temporary
    file.
    """
    whole, again = how.whole(base, adapters), how(base, adapters) if how.requantize else None
    kinds = {t.dtype for a in adapters for t in a.tensors.values() if t.dtype in ARITHMETIC}
    judged, total = [], sum(tensor.nbytes for tensor in merged.tensors.values())
    with workspace() as work:
        sides = facing(merged, base, whole, again, work)
        for name in sorted({*sides.wanted, *sides.got, *sides.codes}, key=natural):
            if name in sides.codes:
                judged.append(judged_codes(name, *sides.codes[name], work))
            elif name not in sides.got:
                judged.append(_missing(name, sides.wanted[name], merged, base, work))
            elif name not in sides.wanted:
                judged.append(Judgement(name, Verdict.ADDED, detail="neither the base nor an adapter has it"))
            else:
                judged.append(_judged(name, sides.got[name], sides.before.get(name), sides.wanted[name], kinds, work))
            if on_tensor:
                on_tensor(name, merged.tensors[name].nbytes if name in merged.tensors else 0, total)
    return Proof(tuple(judged))


def _missing(name: str, expected: Tensor, merged: Checkpoint, base: Checkpoint, work: Workspace) -> Judgement:
    """A tied tensor need not be stored twice, if it is the same."""
    ends = EMBEDDINGS | HEADS
    if is_tied(merged.config) and _leaf(name) in ends:
        for other, tensor in merged.tensors.items():
            if (
                _leaf(other) in ends
                and tensor.shape == expected.shape
                and identical(add(expected, (), tensor.dtype), tensor, work)
            ):
                return Judgement(name, Verdict.TIED, expected.size, detail=f"stored as {other}")
    holder = header_ties(merged.metadata, merged.tensors).get(name)
    if holder and identical(in_dtype(expected, merged.tensors[holder].dtype), merged.tensors[holder], work):
        return Judgement(name, Verdict.TIED, expected.size, detail=f"stored as {holder}, as the header says")
    return Judgement(name, Verdict.MISSING, expected.size, detail=_untied(name, base))


def _untied(name: str, base: Checkpoint) -> str:
    """Why a tensor may be missing that the base does not store either."""
    family = next((names for names in all_families(base.config, base.tensors, base.metadata) if name in names), None)
    if family is None or name in base.tensors:
        return ""
    holder = holder_of(family, base.tensors)
    return (
        f"tied to {holder} in the base, and apart once the adapter is on one of them: a merge in memory, as PEFT's,"
        " leaves them tied"
    )


def _leaf(name: str) -> str:
    return name.removesuffix(".weight").rpartition(".")[2]


def _judged(
    name: str, stored: Tensor, base: Tensor | None, expected: Tensor, kinds: set[Dtype], work: Workspace
) -> Judgement:
    unlike = stored.shape != expected.shape
    if unlike or (stored.dtype != expected.dtype and not {stored.dtype, expected.dtype} <= set(ARITHMETIC)):
        said = f"{stored.dtype} {list(stored.shape)}, not {expected.dtype} {list(expected.shape)}"
        return Judgement(name, Verdict.UNLIKE, stored.size, detail=said)
    touched = expected != base
    cast = f"rounded to {stored.dtype}" if stored.dtype.bits < expected.dtype.bits else ""
    if identical(stored, in_dtype(expected, stored.dtype), work):
        return Judgement(name, Verdict.EXACT if touched else Verdict.KEPT, stored.size, detail=cast)
    if stored.dtype not in ARITHMETIC:
        return Judgement(name, Verdict.WRONG if touched else Verdict.CHANGED, stored.size, detail="not read as numbers")
    wide = F64 if F64 in (stored.dtype, expected.dtype) else F32
    zeros = Zeros(wide, expected.shape)
    before = (
        in_dtype(base, wide)
        if base is not None and base.shape == expected.shape and base.dtype in ARITHMETIC
        else zeros
    )
    sides = _Sides(
        stored,
        before,
        in_dtype(expected, wide),
        (stored.dtype, expected.dtype),
        tuple({stored.dtype, expected.dtype, *kinds}),
    )
    tally = _tally(sides, work)
    found = Judgement(name, Verdict.WRONG, tally.elements, tally.differing, tally.ulps, tally.beyond, None, cast)
    return replace(found, **_verdict(sides, tally, work)) if touched else replace(found, verdict=Verdict.CHANGED)


@dataclass(frozen=True, slots=True)
class _Sides:
    """S, W and E of one tensor, W and E in float32 or float64, and the dtypes that a sum and a delta may have been
    rounded to.
    """

    stored: Tensor
    base: Tensor
    expected: Tensor
    sums: tuple[Dtype, ...]
    deltas: tuple[Dtype, ...]


@dataclass
class _Tally:
    """Sums over a tensor. `dd` is D·D, `rd` (R - W)·D, `sd` (S - W)·D, `ss` (S - W)², `noise` (R - E)²; `drift` is
    (S - R)·D and `chance` its variance, were the signs of S - R chance.
    """

    elements: int = 0
    differing: int = 0
    beyond: int = 0
    ulps: int = 0
    as_base: bool = True
    dd: float = 0.0
    rd: float = 0.0
    sd: float = 0.0
    ss: float = 0.0
    noise: float = 0.0
    drift: float = 0.0
    chance: float = 0.0

    @property
    def factor(self) -> float:
        """How often the delta was applied; where rounding erases next to all of it, roughly."""
        return 1 + self.drift / (max(self.rd, 0.05 * self.dd) or 1)

    @property
    def systematic(self) -> bool:
        """Whether the factor is not 1, and that is no chance."""
        return abs(self.factor - 1) > LEAST_FACTOR and abs(self.drift) > SIGMAS * sqrt(self.chance)

    @property
    def rest(self) -> float:
        """Of (S - W)², what no multiple of D explains."""
        return self.ss - self.sd**2 / self.dd if self.dd else self.ss

    @property
    def explained(self) -> bool:
        """Whether a multiple of D, rounded, explains S - W."""
        return self.rest <= UNEXPLAINED * self.ss + ROUNDINGS * self.noise


def _verdict(sides: _Sides, tally: _Tally, work: Workspace) -> dict[str, Any]:
    """The verdict on a tensor that adapters touch, and that is not exact."""
    if tally.as_base:
        return {"verdict": Verdict.NOT_APPLIED}
    if not tally.beyond and not tally.systematic:
        return {"verdict": Verdict.ROUNDED}
    shape = sides.stored.shape
    if len(shape) > 1 and shape[-1] == shape[-2]:
        axes = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
        with comparing(
            (sides.stored, sides.base, permute(sides.base, axes), permute(sides.expected, axes)), work
        ) as four:
            turned = _turned(four, work)
        if turned.explained and turned.rest < tally.rest:
            return {"verdict": Verdict.TRANSPOSED, "factor": turned.sd / turned.dd}
    if abs(tally.factor - 1) > LEAST_FACTOR and tally.explained:
        return {"verdict": Verdict.SCALED, "factor": tally.factor}
    return {}


def _tally(sides: _Sides, work: Workspace) -> _Tally:
    import torch

    tally, columns = _Tally(), sides.stored.shape[-1] if sides.stored.shape else 1
    for e, w, s in _sided(sides, work):
        r = e.to(s.dtype)
        stored, before, after, rounded = (x.to(torch.float64).nan_to_num(0, 0, 0) for x in (s, w, e, r))
        d, got = after - before, stored - before
        other = (bits(r) != bits(s)) & ~(r.isnan() & s.isnan())  # NaN has many patterns
        tally.elements += len(s)
        tally.as_base &= bool((bits(s) == bits(w.to(s.dtype))).all())
        tally.dd += float(d @ d)
        tally.rd += float((rounded - before) @ d)
        tally.sd += float(got @ d)
        tally.ss += float(got @ got)
        tally.noise += float((rounded - after) @ (rounded - after))
        if not bool(other.any()):
            continue
        tally.differing += int(other.sum())
        part = ((stored - rounded) * d)[other]
        tally.drift += float(part.sum())
        tally.chance += float(part @ part)
        error = (s.to(torch.float64) - e.to(torch.float64)).abs()[other]  # NaN where one is none: beyond any bound
        tally.beyond += int((~(error <= rounding(before, after, d, columns, sides.sums, sides.deltas)[other])).sum())
        away = (stored - rounded).abs() / ulp(torch.maximum(before.abs(), after.abs()), sides.sums[:1])
        tally.ulps = max(tally.ulps, ceil(min(float(away.max()), MOST_ULPS)))
    return tally


def _sided(sides: _Sides, work: Workspace) -> Iterator[list[torch.Tensor]]:
    with comparing((sides.expected, sides.base, sides.stored), work) as three:
        yield from chunks(three, work)


def _turned(four: Sequence[Tensor], work: Workspace) -> _Tally:
    """The fit of S - W to the transposed D."""
    import torch

    tally = _Tally()
    for s, w, turned_w, turned_e in chunks(four, work):
        stored, before, w2, e2 = (x.to(torch.float64).nan_to_num(0, 0, 0) for x in (s, w, turned_w, turned_e))
        d, got = e2 - w2, stored - before
        error = (before + d).to(s.dtype).to(torch.float64) - (before + d)
        tally.dd += float(d @ d)
        tally.sd += float(got @ d)
        tally.ss += float(got @ got)
        tally.noise += float(error @ error)
    return tally
