"""A browser without a window, for tests of pages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def browser() -> Iterator[Any]:
    """Chromium, by playwright; a test without either is skipped."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    with api.sync_playwright() as playwright:
        try:
            made = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(f"no browser is found: {str(error).splitlines()[0]}")
        yield made
        made.close()


class Opened:
    """A page of a file, and all that it did: `asked` of a network, what of that its policy `refused`, `said` on the
    console, `failed` in scripts.
    """

    def __init__(self, made: Any, path: Path, **how: Any) -> None:
        self.asked, self.said, self.failed, self.refused = list[str](), list[str](), list[str](), list[str]()
        self.page = made.new_page(**how)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("requestfailed", self._refused)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.failed.append(str(error)))
        self.page.goto(path.as_uri())

    def _refused(self, request: Any) -> None:
        if request.failure == "csp":
            self.refused.append(request.url)

    def check_quiet(self, path: Path) -> None:
        """It asked for itself alone, and nothing went wrong."""
        assert (self.asked, self.said, self.failed) == ([path.as_uri()], [], [])
