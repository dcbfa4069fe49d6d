"""A part of a matrix: how a delta moves that is given for all of the matrix, and not row by row."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

from ..errors import LayoutError
from .tensor import Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The part: rows from `row` on, as many as the axes `rows` have, and `columns` from `column` on."""

    rows: Shape
    columns: int
    row: int = 0
    column: int = 0

    @property
    def whole(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        raise NotImplementedError

    def check(self, shape: Shape) -> None:
        """Raise LayoutError unless it fits a base of `shape`, and lies in the matrix."""
        tall, wide = self.whole
        if self.row + math.prod(self.rows) > tall or self.column + self.columns > wide:
            raise LayoutError(f"a delta of ({tall}, {wide}) does not fit {shape}")
        if (*self.rows, self.columns) != shape:
            raise LayoutError(f"a delta of {(*self.rows, self.columns)} does not fit {shape}")

    def reshape_rows(self, rows: Shape) -> Self | None:
        """They are the same ones, in the same order."""
        return replace(self, rows=tuple(rows))

    def permute_rows(self, axes: Shape) -> Self | None:
        """Only what leaves them in order."""
        return self if tuple(axes) == tuple(range(len(self.rows))) else None

    def narrow_rows(self, axis: int, start: int, length: int) -> Self | None:
        """Only neighbours in the matrix."""
        if math.prod(self.rows[:axis]) != 1:
            return None
        rows = (*self.rows[:axis], length, *self.rows[axis + 1 :])
        return replace(self, rows=rows, row=self.row + start * math.prod(self.rows[axis + 1 :]))

    def narrow_columns(self, start: int, length: int) -> Self | None:
        """Fewer of them."""
        return replace(self, columns=length, column=self.column + start)

    def turned(self) -> dict[str, object]:
        """The same part of the matrix that lies in the other order, where it has two axes: `replace`'s arguments."""
        return {"rows": (self.columns,), "columns": self.rows[0], "row": self.column, "column": self.row}
