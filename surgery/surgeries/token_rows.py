"""Rows of tables that have one for each token: which row of the old table each of the new one is, and new ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from ..errors import NotSupported, SurgeryError
from ..files.tokens import Tokens
from ..lazy.dtypes import ARITHMETIC
from ..lazy.tensor import Random, Tensor, Zeros, concat, in_dtype, mean, narrow, permute, picked, reshape

NEW = ("zero", "mean", "drawn")
SCATTERED = 256  # runs of rows that are as many pieces
COPIES = 256  # rows of a mean that are held at once
Source = int | None


@dataclass(frozen=True, slots=True)
class Fresh:
    """What new rows are: `how` is one of NEW; drawn ones follow from `seed` and the tensor's name, with deviation
    `spread`.
    """

    how: str
    seed: int
    spread: float


@dataclass(frozen=True, slots=True)
class Run:
    """`length` rows that follow each other in the old table, from `first` on; None: new ones, of which `at` came
    before.
    """

    first: Source
    length: int
    at: int = 0


def rows_of(size: int, new: Tokens, old: Tokens, found: Mapping[int, int], before: int) -> list[Source]:
    """For each row of a table of `size`, the row that it was in one of `before`: that of the same token, of those
    `found`. A row that is no token's stays where it is.
    """

    def source(number: int) -> Source:
        if number in new.texts:
            row = found.get(number)
            return row if row is not None and row < before else None
        return number if number < before and number not in old.texts else None

    return [source(number) for number in range(size)]


def runs_of(rows: Sequence[Source]) -> list[Run]:
    """The rows as runs."""

    def key(pair: tuple[int, Source]) -> int | None:
        return None if pair[1] is None else pair[1] - pair[0]

    found, at = list[Run](), 0
    for _, group in groupby(enumerate(rows), key):
        held = list(group)
        found.append(Run(held[0][1], len(held), at if held[0][1] is None else 0))
        at += len(held) if held[0][1] is None else 0
    return found


def kept(size: int, before: int) -> list[Run]:
    """The runs of a table whose first rows stay as they are."""
    more = [Run(None, size - before)] if size > before else []
    return [Run(0, min(size, before)), *more]


def with_rows(tensor: Tensor, axis: int, runs: Sequence[Run], fresh: Fresh, key: str) -> Tensor:
    """The tensor with these rows, counted on `axis`; its new ones drawn by `key`."""
    order = (axis, *(one for one in range(len(tensor.shape)) if one != axis))
    turned = permute(tensor, order)
    table = reshape(turned, (turned.shape[0], turned.size // max(1, turned.shape[0])))
    flat = len(tensor.shape) == 1
    joined = (_scattered if len(runs) > SCATTERED else _joined)(table, runs, fresh, key, flat=flat)
    back = reshape(joined, (joined.shape[0], *turned.shape[1:]))
    return permute(back, [order.index(one) for one in range(len(order))])


def _joined(table: Tensor, runs: Sequence[Run], fresh: Fresh, key: str, *, flat: bool) -> Tensor:
    return concat([*_parts(table, runs, fresh, key, flat=flat)], 0)


def _scattered(table: Tensor, runs: Sequence[Run], fresh: Fresh, key: str, *, flat: bool) -> Tensor:
    """The same of so many runs that each row is picked by itself."""
    made = [run for run in runs if run.first is None]
    new = _new(table, made, fresh, key, flat=flat) if made else None
    new = narrow(new, 0, 0, 1) if new is not None and fresh.how == "mean" else new
    height, rows = table.shape[0], list[int]()
    for run in runs:
        if run.first is not None:
            rows += range(run.first, run.first + run.length)
        elif fresh.how == "mean":
            rows += [height] * run.length
        else:
            rows += range(height + run.at, height + run.at + run.length)
    return picked(table if new is None else concat([table, new], 0), rows)


def _parts(table: Tensor, runs: Sequence[Run], fresh: Fresh, key: str, *, flat: bool) -> Iterator[Tensor]:
    made = [run for run in runs if run.first is None]
    new = _new(table, made, fresh, key, flat=flat) if made else None
    for run in runs:
        if run.first is not None:
            yield narrow(table, 0, run.first, run.length)
        elif fresh.how == "mean" and new is not None:
            whole, rest = divmod(run.length, new.shape[0])
            yield from [new] * whole
            if rest:
                yield narrow(new, 0, 0, rest)
        elif new is not None:
            yield narrow(new, 0, run.at, run.length)


def _new(table: Tensor, made: Sequence[Run], fresh: Fresh, key: str, *, flat: bool) -> Tensor:
    """All new rows; of a mean, as many as are held at once. Biases are not drawn, they begin as zeros."""
    many = sum(run.length for run in made)
    if table.dtype not in ARITHMETIC:
        raise NotSupported(
            f"{key} has a row of {table.dtype} for each token, and what a new one is cannot be told",
            help="only rows that are there can be kept: with --size, no more than there are",
        )
    if fresh.how == "mean":
        return mean(table, min(COPIES, max(run.length for run in made)))
    if fresh.how == "zero" or flat or not fresh.spread:
        return Zeros(table.dtype, (many, table.shape[1]))
    return in_dtype(Random((many, table.shape[1]), f"{fresh.seed} {key}", fresh.spread, normal=True), table.dtype)


def check_how(how: str) -> None:
    """Raise SurgeryError for what new rows cannot be."""
    if how not in NEW:
        raise SurgeryError(f"new rows cannot be `{how}`", help=f"--new is one of {', '.join(NEW)}")
