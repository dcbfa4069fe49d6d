"""Weights that are stored as codes, judged by what they mean: is this the merged weight, coded again?

Whoever coded it, with whatever scales: each code must be the nearest to the merged weight under the scales that lie
beside it, but where rounding before that explains another one. What of the delta D = E - W is in the weight that
the codes mean, S, is told: (S - W)·D / D·D. Where that is less than half, the merge is as good as not made.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..evaluation.compare import chunks, comparing
from ..evaluation.evaluate import load
from ..evaluation.workspace import Workspace
from ..lazy.dtypes import F16, F32, Dtype
from ..lazy.tensor import Decoded, Tensor, children, in_dtype, substitute
from ..quantization.recode import encoded
from ..quantization.scheme import Quantised
from .judgement import Judgement, Verdict, rounding

HALF_STEP = 0.0075  # of bitsandbytes' table for scales, the widest half of a step: codes are made before scales are


@dataclass
class _Tally:
    """Sums over a weight: `astray` elements are farther from E than the nearest code and rounding explain."""

    elements: int = 0
    astray: int = 0
    differing: int = 0
    same: bool = True
    dd: float = 0.0
    sd: float = 0.0

    @property
    def share(self) -> float:
        """What of the delta survives; 1 where there is none."""
        return self.sd / self.dd if self.dd else 1.0


def judged_codes(name: str, one: Quantised, base: Tensor, expected: Tensor, work: Workspace) -> Judgement:
    """The verdict on a weight that the codes of `one` mean, of which `base` was merged to `expected`."""
    if one.weight.shape != expected.shape:
        said = f"{list(one.weight.shape)}, not {list(expected.shape)}"
        return Judgement(name, Verdict.UNLIKE, one.weight.size, detail=said)
    touched = in_dtype(expected, F32) != in_dtype(base, F32)
    tally = _tally(one, base, expected, work)
    if not touched and tally.same:
        return Judgement(name, Verdict.KEPT, tally.elements, detail=f"{one.scheme}: other codes, the same values")
    if not touched:
        right = not tally.astray and not isinstance(base, Decoded)  # it was in 16 bits, and is quantised now
        verdict = Verdict.RECODED if right else Verdict.CHANGED
        return Judgement(name, verdict, tally.elements, tally.differing, detail=one.scheme)
    said = f"{one.scheme}: {tally.share:.1%} of what is merged survives"
    if tally.astray:
        return Judgement(name, Verdict.WRONG, tally.elements, tally.differing, beyond=tally.astray, detail=said)
    verdict = Verdict.RECODED if tally.share >= 0.5 else Verdict.ERASED
    return Judgement(name, verdict, tally.elements, tally.differing, factor=tally.share, detail=said)


def _tally(one: Quantised, base: Tensor, expected: Tensor, work: Workspace) -> _Tally:
    import torch

    tally, wide = _Tally(), in_dtype(expected, F32)
    codes = decoded_in(one.weight).codes
    nearest = substitute(in_dtype(one.weight, F32), codes, encoded(one.weight, wide))
    kinds: tuple[Dtype, ...] = (expected.dtype, F16)
    with comparing((wide, in_dtype(base, F32), in_dtype(one.weight, F32), nearest), work) as four:
        slack = _slack(one.weight)
        for e, w, s, n in chunks(four, work):
            after, before, stored, near = (x.to(torch.float64) for x in (e, w, s, n))
            d, columns = after - before, one.weight.shape[-1]
            tally.elements += len(s)
            tally.differing += int((stored != near).sum())
            tally.same &= bool((stored == before).all())
            tally.dd += float(d @ d)
            tally.sd += float((stored - before) @ d)
            limit = (near - after).abs() + rounding(before, after, d, columns, kinds, kinds) + slack
            tally.astray += int((~((stored - after).abs() <= limit)).sum())
    return tally


def _slack(weight: Tensor) -> float:
    """What scales that are quantised themselves may be off by, where codes were made with them as they were."""
    inner = decoded_in(weight).part("inner")
    return HALF_STEP * float(load(inner).abs().max()) if inner is not None else 0.0


def decoded_in(weight: Tensor) -> Decoded:
    """The decoded tensor under the movement of a quantised weight."""
    while not isinstance(weight, Decoded):
        (weight,) = children(weight)
    return weight
