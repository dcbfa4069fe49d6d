"""The site as mkdocs builds it: strict, and no page asks another host for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import documents
import pytest

ASKS = re.compile(r'<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc="((?:https?:)?//[^"]+)"', re.IGNORECASE)
LOADS = re.compile(r'<link\b(?=[^>]*\brel="(?:stylesheet|preload|preconnect|icon)")[^>]*\bhref="((?:https?:)?//[^"]+)"')
IMPORTS = re.compile(r"""(?:@import\s+|url\()\s*["']?((?:https?:)?//[^"')]+)""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("mkdocs") is None:
        pytest.skip("the extra docs is not installed: .ci/run builds the site")
    made = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(made)]
    told = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=documents.ROOT, env=told, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return made


@pytest.mark.slow
def test_no_page_asks_another_host(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    asked = {(page.name, url) for page in pages for what in (ASKS, LOADS) for url in what.findall(page.read_text())}
    assert asked == set()
    styles = {url for style in site.rglob("*.css") for url in IMPORTS.findall(style.read_text())}
    assert styles == set()


@pytest.mark.slow
def test_what_is_made_of_the_code_is_there(site: Path) -> None:
    """Every command in the reference, and every public name."""
    import surgery
    from surgery_cli.examples import EXAMPLES

    commands = (site / "reference" / "command-line" / "index.html").read_text()
    assert [name for name in EXAMPLES if f"surgery {name}" not in commands] == []
    names = (site / "reference" / "python" / "index.html").read_text()
    assert [name for name in surgery.__all__ if name not in names and name != "__version__"] == []


def test_the_reader_sees_what_a_page_asks_for() -> None:
    page = '<script async src="https://a.example/x.js"></script><link rel="stylesheet" href="//b.example/y.css">'
    assert ASKS.findall(page) == ["https://a.example/x.js"] and LOADS.findall(page) == ["//b.example/y.css"]
    assert IMPORTS.findall('@import "https://c.example/z.css"; a { background: url(data:x) }') == [
        "https://c.example/z.css"
    ]
