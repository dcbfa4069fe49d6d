"""The table of fused modules, one row per family.

`text.py` and `vision.py`: attention in transformers 5.23; `elsewhere.py`: attention in remote code and other
frameworks; `gate_up.py`: halves of gated MLPs; `experts.py`: experts stacked in one tensor. Each row names the class
whose forward pass was read; which rows were also checked numerically stands in `tests/models/fused/`. The names of the
parts are the family's habit.
"""

from __future__ import annotations

from ..row import Row
from .elsewhere import ELSEWHERE
from .experts import EXPERTS
from .gate_up import GATE_UP
from .text import TEXT
from .vision import VISION

TABLE: tuple[Row, ...] = (
    *TEXT,
    *VISION,
    *ELSEWHERE,
    *EXPERTS,
    *GATE_UP,
)  # where two rows match a module, the first holds
