"""Where a quantised weight can be cut: how each tensor that it is stored in lies along an axis of it.

Codes are cut between whole words of them. A scale may be that of several rows: each part has it, where no group of a
part has numbers of two groups of the whole. What lies along no axis, such as a scale of all, each part has.

    rows of W       0 … 127 | 128 … 255           a part of rows [128, 192) has scale 1, its own rows 0 … 63
    entries         scale 0 | scale 1             one of rows [64, 192) has none: that is refused
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate, pairwise
from math import ceil, prod

from ..errors import NotSupported
from ..lazy.coding import Packing
from ..lazy.tensor import Constant, Decoded, File, Narrow, Permute, Reshape, Stored, Tensor
from ..models.fused.layout import Layout, in_groups
from .scheme import Quantised

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Lies:
    """`each` entries of a stored tensor's `axis` for one row of a weight (or column, whichever is cut); None: what it
    says holds for all of them. One entry that is `shared` is a number for several rows, else codes of them.
    """

    axis: int | None = None
    each: Fraction = Fraction(1)
    shared: bool = False


def opaque(name: str, tensor: Tensor) -> Tensor:
    """A leaf in place of a tensor that was moved, so that what a scheme makes of it is told from that."""
    if isinstance(tensor, Stored | Constant):
        return tensor
    return Stored(tensor.dtype, tensor.shape, File(f"\0{name}", tensor.nbytes, 0), 0)


def lies(one: Quantised, tensors: Mapping[str, Tensor], axis: int) -> dict[str, Lies]:
    """How each stored part of a weight lies along the `axis` of what files of 16 bits have. `tensors` are leaves.
    Raises NotSupported where one has no order along it.
    """
    decoded, axis = under(one.weight, axis)
    own = {tensors[name]: name for name in one.parts}
    found = {name: Lies() for name in (*one.parts, *one.left)}
    for part, component in (("codes", decoded.codes), *decoded.parts):
        flat = decoded.coding.flat
        leaf, at = _flat(component) if flat else _traced(component, axis)
        each, shared = _grain(decoded, part, axis)
        of_all = leaf.size == 1 and len(leaf.shape) < 2 and not flat
        if each and at is not None and not of_all:
            found[own[leaf]] = Lies(at, each, shared)
    return found


def under(weight: Tensor, axis: int = 0) -> tuple[Decoded, int]:
    """What is decoded, and which of its axes is that of the weight. Raises NotSupported where more than an order of
    axes is between.
    """
    match weight:
        case Decoded():
            return weight, axis
        case Permute(base, axes):
            return under(base, axes[axis])
    raise NotSupported("the weight is not what one quantised tensor means")


def _grain(decoded: Decoded, part: str, axis: int) -> tuple[Fraction, bool]:
    """How many entries of a part there are for a row (or column) of the weight, and whether one may be that of
    several; none where it does not lie along that axis. Raises NotSupported for columns that are in no order.
    """
    coding, columns = decoded.coding, axis - len(decoded.shape) + 2
    if columns not in (0, 1) or (columns and (coding.flat or part == "index")):
        raise NotSupported(f"the {part} of {decoded.name} does not lie along the axis that is cut")
    wide = decoded.shape[-1] if coding.flat else 1
    group = Fraction(wide, coding.block[1 if coding.flat else columns])
    match part:
        case "codes" if coding.flat and coding.packing:
            return Fraction(wide * coding.packing.bits, decoded.codes.dtype.bits), False
        case "codes":
            return _words(coding.packing, columns), False
        case "zero":
            return group * _words(coding.zero, columns), _words(coding.zero, columns) == 1
        case "scale" | "bias":
            return group, True
        case "inner":
            return group / coding.nested, True
    return Fraction(0), True


def _words(packing: Packing | None, columns: int) -> Fraction:
    """Words for one element of the axis that is cut."""
    along = packing is not None and packing.down != bool(columns)
    return Fraction(packing.words, packing.fields) if packing and along else Fraction(1)


def _flat(component: Tensor) -> tuple[Tensor, int]:
    """The axis along which the elements of a tensor lie that counts through the whole weight."""
    return component, max(range(len(component.shape)), key=lambda i: component.shape[i])


def _traced(component: Tensor, axis: int) -> tuple[Tensor, int | None]:
    """The stored tensor that a component is made of, and which of its axes is that of the component."""
    match component:
        case Permute(base, axes):
            return _traced(base, axes[axis] if axis < len(axes) else axis)
        case Narrow(base, other) if axis != other:
            return _traced(base, axis)
        case Reshape(base, shape) if axis < len(shape):
            before, length = prod(shape[:axis]), shape[axis]
            fits = (i for i, n in enumerate(base.shape) if n == length and prod(base.shape[:i]) == before)
            found = next(fits, None)
            return _traced(base, found) if found is not None else (_leaf(base), None)
        case Stored() | Constant():
            return component, axis if axis < len(component.shape) else None
    raise NotSupported("a part of the weight is not stored as one tensor")


def _leaf(tensor: Tensor) -> Tensor:
    """What is stored, under movement."""
    return _leaf(tensor.base) if isinstance(tensor, Permute | Narrow | Reshape) else tensor


def coarser(layout: Layout, each: Fraction) -> Layout | None:
    """The layout of entries where rows have that of the weight; None where a part begins or ends within one."""
    sizes = [slots * layout.unit * each for slots in layout.slots]
    cuts = [*accumulate(sizes)]
    if any(cut.denominator > 1 for cut in (cuts if layout.groups > 1 else cuts[:-1])):
        return None
    ends = [0, *map(ceil, cuts)]
    return in_groups(layout.groups, *(end - start for start, end in pairwise(ends)))


def spans(layout: Layout) -> list[list[Span]]:
    """The rows of the fused axis that each part has, in its order."""
    ends = [0, *accumulate(slots * layout.unit for slots in layout.slots)]
    return [
        [(group * ends[-1] + start, group * ends[-1] + end) for group in range(layout.groups)]
        for start, end in pairwise(ends)
    ]


def steps(rows: Sequence[Span], each: Fraction) -> Iterator[tuple[int, int]]:
    """(entry of a part, entry of the whole) that the part's rows have, in order."""
    times, per, at = each.numerator, each.denominator, 0
    for first, last in rows:
        start, stop = first * times, last * times
        while start < stop:
            yield at // per, start // per
            step = min(stop - start, per - at % per, per - start % per)
            at, start = at + step, start + step


def whole_of(rows: Sequence[Span], each: Fraction) -> list[int] | None:
    """The entry of the whole that each entry of a part is; None where one would be two."""
    found = list[int]()
    for mine, whole in steps(rows, each):
        if mine == len(found):
            found.append(whole)
        elif found[mine] != whole:
            return None
    return found


def parts_of(layout: Layout, each: Fraction) -> list[list[tuple[int, int]]]:
    """The (part, entry of it) that each entry of the whole would be: more than one where these must be equal."""
    found = list[dict[tuple[int, int], None]]()
    for part, rows in enumerate(spans(layout)):
        for mine, whole in steps(rows, each):
            found += [{} for _ in range(whole + 1 - len(found))]
            found[whole][part, mine] = None
    return [list(entries) for entries in found]


def same_coding(one: Decoded, other: Decoded, *, turned: bool = False) -> bool:
    """Whether a weight is coded as another is, or a part of it, where one scale holds for all of an axis."""
    coding = one.coding.turned() if turned else one.coding
    if coding.flat or other.coding.flat:
        return coding == other.coding
    lengths = other.shape[-2:]
    same = all(a == b or b >= length for a, b, length in zip(coding.block, other.coding.block, lengths, strict=True))
    return same and replace(coding, block=(1, 1)) == replace(other.coding, block=(1, 1))
