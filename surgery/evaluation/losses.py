"""What rounding does to sums: weights that become infinite, and changes that are rounded away. Counted while they
are made.

The counts do not depend on workers, memory, or the windows in which a tensor is made: overflow is counted in all
elements, what is rounded away in rows that the tensor's shape alone chooses.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import VerificationFailed, listed, series
from ..lazy.dtypes import E4M3, F16, Dtype
from ..names import natural

if TYPE_CHECKING:
    import torch

GROUPS, SAMPLED = 4, 4  # of so many rows each, in which what is rounded away is counted
HUGE = 1e38  # no magnitude up to here leaves the range of float32 or bfloat16
ERASED = 0.5  # share of the changed weights from which it is said that rounding leaves them as they were


@dataclass(slots=True)
class Loss:
    """Counts of elements: `overflowed` are infinite or NaN where the base was finite, `broken` were so in the base;
    of the `changed` ones that were looked at, `erased` are the base's again after rounding.

    Of `codes` that were made again, `moved` are others now. `wanted` is the square of what was added to the weights
    that they mean, `arrived` its product with what did change, `noise` the square of what that is off by.

    Where nothing but the dtype changes: `zeroed` were not zero, and are; `beyond` are out of the dtype's range, and
    may be; of those that may not be, which are `overflowed`, that many are of a `cast`.
    """

    overflowed: int = 0
    broken: int = 0
    changed: int = 0
    erased: int = 0
    codes: int = 0
    moved: int = 0
    wanted: float = 0.0
    arrived: float = 0.0
    noise: float = 0.0
    zeroed: int = 0
    beyond: int = 0
    cast: int = 0

    def __iadd__(self, other: Loss) -> Loss:
        self.overflowed += other.overflowed
        self.broken += other.broken
        self.changed += other.changed
        self.erased += other.erased
        self.codes += other.codes
        self.moved += other.moved
        self.wanted += other.wanted
        self.arrived += other.arrived
        self.noise += other.noise
        self.zeroed += other.zeroed
        self.beyond += other.beyond
        self.cast += other.cast
        return self

    @property
    def share(self) -> float:
        """Of the changed elements that were looked at, those that rounding made the base's again."""
        return self.erased / self.changed if self.changed else 0.0

    @property
    def survival(self) -> float:
        """Of what was added to weights that were coded again, the part that is in the codes; 1 where nothing was."""
        return self.arrived / self.wanted if self.wanted else 1.0


@dataclass(frozen=True, slots=True)
class Erased:
    """A tensor of which rounding leaves as they were `share` of the weights that adapters change."""

    tensor: str
    share: float


def samples(first: int, tall: int, rows: int) -> list[slice]:
    """Which of the rows [first, first + tall) of a tensor of `rows` are looked at, counted from `first`: a few, at
    even distances.
    """
    every = max(SAMPLED, rows // GROUPS)
    starts = range(first // every * every, first + tall, every)
    found = [slice(max(start - first, 0), min(start + SAMPLED - first, tall)) for start in starts]
    return [rows for rows in found if rows.start < rows.stop]


def rounded_away(before: torch.Tensor, values: torch.Tensor, after: torch.Tensor) -> Loss:
    """How many elements differ from the base before they are rounded, and how many of these do not any more."""
    changed = values != before
    return Loss(changed=int(changed.sum()), erased=int((changed & (after == before.to(after.dtype))).sum()))


def requantised(before: torch.Tensor, values: torch.Tensor, after: torch.Tensor) -> Loss:
    """What is left of `values` where codes can mean `after` alone, and meant `before`."""

    def dot(one: torch.Tensor, other: torch.Tensor) -> float:
        return float((one * other).sum())

    wanted, change = values - before, after - before
    off = change - wanted
    return Loss(
        codes=before.numel(),
        moved=int((after != before).count_nonzero()),
        wanted=dot(wanted, wanted),
        arrived=dot(change, wanted),
        noise=dot(off, off),
    )


def usual(values: torch.Tensor) -> bool:
    """Whether no magnitude is near the end of float32's range, and none is NaN. Of a sum, large ones may cancel."""
    import torch

    if not values.numel():
        return True
    low, high = torch.aminmax(values)
    return float(low) > -HUGE and float(high) < HUGE  # false for NaN


def broken(before: torch.Tensor) -> int:
    """How many elements are infinite or NaN."""
    import torch

    return int((~torch.isfinite(before)).sum())


def watched(values: torch.Tensor, loss: Loss) -> int:
    """How many elements of what many results are made of are infinite or NaN; counted as lost, since it spreads."""
    found = 0 if usual(values) else broken(values)
    loss.broken += found
    loss.overflowed += found
    return found


def overflow(before: torch.Tensor, after: torch.Tensor) -> int:
    """How many elements are infinite or NaN after a step, and were not before it; NaN of infinity is one, too."""
    import torch

    return int((~torch.isfinite(after) & (torch.isfinite(before) | (after.isnan() & ~before.isnan()))).sum())


def check_finite(losses: Mapping[str, Loss], dtypes: Mapping[str, Dtype]) -> None:
    """Raise VerificationFailed, naming each tensor in which weights became infinite: a model with one of them
    computes NaN.
    """
    lost = {name: losses[name].overflowed for name in sorted(losses, key=natural) if losses[name].overflowed}
    if lost:
        far = any(
            dtypes[name] == E4M3 and losses[name].cast for name in lost
        )  # which torch makes the largest value of that dtype
        became = "are beyond the range of their dtype" if far else "became infinite or NaN"
        raise VerificationFailed(
            f"{sum(lost.values())} weights of {len(lost)} tensors {became}",
            where=listed([f"{name} ({dtypes[name]}): {count}{_before(losses[name])}" for name, count in lost.items()]),
            help=_how_finite([losses[name] for name in lost], {dtypes[name] for name in lost}),
        )


def _before(loss: Loss) -> str:
    return f", and {loss.broken} were so before" if loss.broken else ""


def _how_finite(losses: Sequence[Loss], dtypes: Collection[Dtype]) -> str:
    """What to do about weights that became infinite or NaN."""
    if any(loss.cast for loss in losses):
        return (
            "write a dtype that reaches further, such as --dtype bfloat16; surgery cast leaves tensors as they are with"
            " --except, and takes what torch makes of such values with --allow-overflow"
        )
    if any(loss.broken for loss in losses):
        return (
            "each result is made of several weights, and NaN or infinity that was among what is read spreads: mend"
            " that; surgery verify --values says where it is"
        )
    if E4M3 in dtypes:
        return "numbers of a block are too small for its scale: leave their modules as they are, with --except"
    wider = "write a wider dtype, with --dtype bfloat16 or float32; or " if F16 in dtypes else ""
    return (
        f"{wider}weaken what is added: an adapter with --scale, where its kind can be, models with --weights; are alpha"
        " and the config right?"
    )


def note_on_broken(losses: Mapping[str, Loss]) -> list[str]:
    """What the report says of NaN and infinity that were in what is changed, or blended."""
    found = {name: loss.broken for name, loss in losses.items() if loss.broken}
    if not found:
        return []
    rows = series(listed([f"{name} ({count})" for name, count in found.items()], 3))
    return [f"NaN or infinity was in {len(found)} of the tensors that are changed, and is in the result: {rows}"]


def erased_in(losses: Mapping[str, Loss]) -> tuple[Erased, ...]:
    """The tensors in which rounding leaves most of the changed weights as they were, the worst first."""
    found = [Erased(name, loss.share) for name, loss in losses.items() if loss.share >= ERASED]
    return tuple(sorted(found, key=lambda one: (-one.share, one.tensor)))


def note_on(erased: tuple[Erased, ...], losses: Mapping[str, Loss]) -> list[str]:
    """What the report says of them."""
    if not erased:
        return []
    worst, many = erased[0], sum(1 for loss in losses.values() if loss.changed)
    return [
        f"rounding leaves as they were most of the weights that the adapters change in {len(erased)} of {many} tensors:"
        f" {100 * worst.share:.1f} % in {worst.tensor}; --dtype float32 keeps the change"
    ]


@dataclass(frozen=True, slots=True)
class Narrowed:
    """What a tensor lost that has a dtype of less reach now: so many values became zero, so many were `beyond` it."""

    tensor: str
    dtype: str
    zeroed: int
    beyond: int


def narrowed_in(losses: Mapping[str, Loss], dtypes: Mapping[str, Dtype]) -> tuple[Narrowed, ...]:
    """The tensors in which values became zero, or something else, for want of reach: those that lost most first."""
    found = [Narrowed(n, str(dtypes[n]), o.zeroed, o.beyond) for n, o in losses.items() if o.zeroed or o.beyond]
    return tuple(sorted(found, key=lambda one: (-one.zeroed - one.beyond, one.tensor)))


def note_on_narrowed(narrowed: Sequence[Narrowed], *, resumed: bool) -> list[str]:
    """What the report says of them."""
    zeroed = {one.tensor: one.zeroed for one in narrowed if one.zeroed}
    beyond = {one.tensor: one.beyond for one in narrowed if one.beyond}
    kinds = (
        (zeroed, "became zero"),
        (beyond, "were beyond the range of their new dtype, and are what torch makes of them"),
    )
    rest = "; shards that were there from a broken run are not counted" if resumed else ""
    return [
        f"{sum(found.values())} values of {len(found)} tensors {what}:"
        f" {series(listed([f'{name} ({count})' for name, count in found.items()]))}{rest}"
        for found, what in kinds
        if found
    ]


@dataclass(frozen=True, slots=True)
class Recoded:
    """What is left of a change in weights that had to be coded again under their stored scales.

    Of `codes`, `moved` are others now. `share` is the part of the change that survives: 1 is all of it, 0 as if
    nothing had been merged; `noise` is the size of what is off, as a part of the change's. `worst` is the tensor in
    which least survives, with its share.
    """

    tensors: int
    codes: int
    moved: int
    share: float
    noise: float
    worst: str
    worst_share: float


def recoded_in(losses: Mapping[str, Loss]) -> Recoded | None:
    """What all of them say together; None where nothing was coded again."""
    coded = {name: loss for name, loss in losses.items() if loss.codes}
    if not coded:
        return None
    total = Loss()
    for loss in coded.values():
        total += loss
    worst = min(coded, key=lambda name: (coded[name].survival, name))
    noise = (total.noise / total.wanted) ** 0.5 if total.wanted else 0.0
    return Recoded(len(coded), total.codes, total.moved, total.survival, noise, worst, coded[worst].survival)


def check_survives(found: Recoded | None, least: float) -> None:
    """Raise VerificationFailed where less than `least` of a change is left in the codes."""
    if found and found.share < least:
        raise VerificationFailed(
            f"{100 * found.share:.1f} % of what was to be merged survives in the codes, and {100 * least:.0f} % must",
            where=[
                f"{found.moved} of {found.codes} codes of {found.tensors} tensors would change",
                f"{found.worst}: {100 * found.worst_share:.1f} % survives, the least of all",
            ],
            help=(
                "leave --requantize away, then what is touched is written in 16 bits; or merge into the 16-bit model"
                " and quantise that; or, if that is meant: --lossy, in Python lossy=True, which goes on from what is"
                " made already (surgery clean removes that)"
            ),
        )


def note_on_recoded(found: Recoded | None) -> list[str]:
    """What the report says of it."""
    if not found:
        return []
    return [
        f"{100 * found.moved / found.codes:.2f} % of the codes of {found.tensors} tensors changed, and"
        f" {100 * found.share:.1f} % of what was added to them survives, with noise of {100 * found.noise:.0f} % of it;"
        f" the least in {found.worst}: {100 * found.worst_share:.1f} %"
    ]
