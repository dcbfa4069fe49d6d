"""All cases: a file of rows for each few kinds, and where kinds that have none here are tested."""

from __future__ import annotations

from .cases import Case
from .rows_products import CASES as PRODUCTS
from .rows_reading import CASES as READING
from .rows_shared import CASES as SHARED
from .rows_turned import CASES as TURNED

CASES: dict[str, Case] = {**PRODUCTS, **READING, **SHARED, **TURNED}
ELSEWHERE: frozenset[str] = frozenset({"BONE"})  # kinds that PEFT does not make any more
