"""All rows."""

from __future__ import annotations

from collections.abc import Mapping

from . import adapters, configs, distributed, folders, ggufs, headers, indexes, pickles, quantised, recipes, records
from .rows import Row

KINDS = {
    "shards": headers, "indices": indexes, "configs": configs, "adapters": adapters, "records": records,
    "recipes": recipes, "torch": pickles, "gguf": ggufs, "folders": folders, "distributed": distributed,
    "quantised": quantised,
}  # fmt: skip
ROWS: Mapping[str, Row] = {row.name: row for kind in KINDS.values() for row in kind.rows()}
