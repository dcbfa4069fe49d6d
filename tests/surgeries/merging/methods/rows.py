"""All cases: a file of rows for each few kinds, and where kinds that have none here are tested."""

from __future__ import annotations

from .cases import Case
from .rows_placed import CASES as PLACED
from .rows_products import CASES as PRODUCTS
from .rows_reading import CASES as READING
from .rows_shared import CASES as SHARED
from .rows_spectra import CASES as SPECTRA
from .rows_turned import CASES as TURNED

CASES: dict[str, Case] = {**PLACED, **PRODUCTS, **READING, **SHARED, **SPECTRA, **TURNED}
ELSEWHERE: frozenset[str] = frozenset({"BONE"})  # kinds that PEFT does not make any more
