"""The tables of the documentation that are tables of the code, written between two marks of a page.

    python docs/making/tables.py        write them anew

A page says `<!-- table: NAME -->`, and `<!-- end -->` after it; a test compares what lies between with the code.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from surgery.adapters import kinds
from surgery.evaluation.blending import METHODS
from surgery.evaluation.blending.method import Base
from surgery.files.adapters.table import FORMATS
from surgery.files.gguf.blocks import KINDS
from surgery.files.gguf.names import ARCHITECTURES
from surgery.lazy.dtypes import CASTABLE, DTYPES
from surgery.models.fused.tables import TABLE
from surgery.models.targets import TARGETS
from surgery.quantization import quantised

DOCS = Path(__file__).parent.parent
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
FUSED = {"qkv": "q, k and v", "kv": "k and v", "gate_up": "gate and up", "experts": "experts"}
BASES = {Base.NONE: "none", Base.ALLOWED: "may be given", Base.NEEDED: "yes"}


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
    return "\n".join(lines).replace("| --- |", "|---|").replace(" --- |", "---|")


def code(names: Iterable[str]) -> str:
    """Names in a row, as code."""
    return ", ".join(f"`{name}`" for name in names)


def families() -> str:
    """Model types with fused modules, by kind."""
    said = []
    for kind, called in FUSED.items():
        names = sorted({name for row in TABLE if row.kind == kind for name in row.model_types})
        words = textwrap.fill(f"**{called}** ({len(names)}): {code(names)}.", 140, break_on_hyphens=False)
        said.append(words)
    return "\n\n".join(said)


def counted() -> str:
    """How many model types have fused modules."""
    known = {name for row in TABLE for name in row.model_types}
    return f"{len(known)} model types have fused modules that surgery knows by name."


def layouts() -> str:
    """Where each row of the fused modules was read."""
    rows = [(code(row.model_types), f"`{row.fused}`", code(row.parts.values()), FUSED[row.kind]) for row in TABLE]
    return table(("model types", "fused", "parts", "kind"), rows)


def schemes() -> str:
    """The schemes of quantisation that are read, and those that are refused."""
    read = [
        (code(dict.fromkeys((one.method, *one.aliases))), "read", "yes" if one.skip else f"no: {one.why}")
        for one in quantised.READ
    ]
    refused = [(f"`{name}`", f"refused: {why}", "") for name, why in quantised.REFUSED.items()]
    return table(("in config.json", "", "some weights in 16 bits, others as codes"), [*read, *refused])


def targets() -> str:
    """Which classes load what was split."""
    found: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for one in TARGETS:
        found.setdefault((one.source, one.classes), []).append(one.name)
    rows = [(f"`{source}`", code(classes), code(names)) for (source, classes), names in found.items()]
    return table(("model type", "its classes", "`--as`"), rows)


def formats() -> str:
    """The formats of adapters that are told by their content, or said with --format."""
    rows = [
        (f"`{one.key}`", one.tool, code(f"--{name.replace('_', '-')}" for name in sorted(one.takes)))
        for one in FORMATS.values()
    ]
    return table(("`--format`", "whose", "what may have to be said"), rows)


def gguf() -> str:
    """The architectures of GGUF, and what its tensors may be stored as."""
    rows = [(f"`{name}`", f"`{one.model_type}`", f"`{one.loader}`") for name, one in ARCHITECTURES.items()]
    stored = [kind.name for kind in KINDS.values()]
    shown = table(("`general.architecture`", "model type", "class"), rows)
    return f"{shown}\n\nTensors are read that are stored as {code(stored)}."


def methods() -> str:
    """The ways of blending models."""
    rows = [
        (f"`{name}`", one.what, BASES[one.base], _models(one.least, one.most), _said({**one.each}, {**one.shared}))
        for name, one in METHODS.items()
    ]
    return table(("`--method`", "", "a base", "models", "parameters"), rows)


def _models(least: int, most: int | None) -> str:
    return f"{least} or more" if most is None else str(least) if least == most else f"{least} to {most}"


def _said(each: Mapping[str, float | None], shared: Mapping[str, float | None]) -> str:
    """Parameters, with what they are if nobody says them."""
    named = {f"{name}@": value for name, value in each.items()} | dict(shared)
    return ", ".join(f"`{name}`" + ("" if value is None else f" {value:g}") for name, value in named.items())


def dtypes() -> str:
    """The dtypes that are opened, and those that are written of others."""
    return f"Opened, moved and compared: {code(DTYPES)}. Written by `cast`: {code(one.name for one in CASTABLE)}."


TABLES: Mapping[str, Callable[[], str]] = {
    "families": families,
    "counted": counted,
    "layouts": layouts,
    "kinds": kinds.table,
    "schemes": schemes,
    "targets": targets,
    "formats": formats,
    "gguf": gguf,
    "methods": methods,
    "dtypes": dtypes,
}


def filled(text: str) -> str:
    """The page with the tables of today's code."""
    return MARKED.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}", text)


def main() -> None:
    """Write all pages anew that say tables."""
    for page in sorted(DOCS.rglob("*.md")):
        if (text := page.read_text()) != (new := filled(text)):
            page.write_text(new)
            print(page.relative_to(DOCS.parent))


if __name__ == "__main__":
    main()
