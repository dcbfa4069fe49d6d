"""Fused attention in remote code and in other frameworks: no class of transformers has these names."""

from __future__ import annotations

from ..row import Row

ELSEWHERE: tuple[Row, ...] = ()
