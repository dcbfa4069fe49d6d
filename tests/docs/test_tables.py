"""The tables of the documentation are those of the code."""

from __future__ import annotations

import re

import documents
import pytest
from making import tables

from surgery.models.targets import TARGETS
from surgery.quantization import quantised


@pytest.mark.parametrize("page", documents.pages())
def test_tables_are_current(page: str) -> None:
    text = documents.text(page)
    assert tables.filled(text) == text, "python docs/making/tables.py writes them anew"


def test_every_table_is_somewhere() -> None:
    shown = [name for page in documents.pages() for _, name, _ in tables.MARKED.findall(documents.text(page))]
    assert sorted(shown) == sorted(tables.TABLES)


def test_a_table_that_is_old_is_noticed() -> None:
    text = documents.text("supported.md")
    assert tables.filled(text.replace("`phi3`", "`phi2`")) == text


def test_targets_are_those_of_the_table() -> None:
    """What stands in words on the page names each class once at least."""
    said = set(re.findall(r"`([\w-]+)`", documents.text("how-to/convert.md")))
    assert {one.name for one in TARGETS} <= said


def test_the_schemes_are_those_of_the_table() -> None:
    text = documents.text("how-to/quantised.md")
    section = text[text.index("| scheme | in config.json |") : text.index("Limits: weights whose codes")]
    rows = [line.split("|")[1:-1] for line in section.strip().splitlines()[2:]]
    read = {name: cells for cells in rows if "refused" not in cells[0] for name in re.findall(r"`([^`]+)`", cells[1])}
    assert read.keys() == {scheme.method for scheme in quantised.READ}
    for scheme in quantised.READ:
        assert ("none" in read[scheme.method][3]) is (scheme.skip is None)
    refused = {name for cells in rows if "refused" in cells[0] for name in re.findall(r"`([^`]+)`", cells[1])}
    assert refused and refused <= quantised.REFUSED.keys()


def test_the_formats_of_the_page_are_those_of_the_table() -> None:
    """And say each what may be asked for."""
    section = documents.text("how-to/adapters.md").partition("| `--format` |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1:-1] for line in section.splitlines()[2:]]
    from surgery.files.adapters.table import FORMATS

    told = {re.findall(r"`([^`]+)`", cells[0])[0]: cells[2] for cells in rows}
    assert told.keys() == FORMATS.keys()
    for key, one in FORMATS.items():
        assert ("--enable-lora" in told[key]) is ("enable_lora" in one.takes), key
        assert ("--alpha" in told[key]) is ("alpha" in one.takes), key
