"""What the pages show is what happens: their blocks run as they stand, from top to bottom, and say what is shown."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import documents
import pytest
from conftest import hashes
from documents import FILES, ROOT, RUN_BY
from hub.conftest import hub
from hub.server import TOKEN, Hub

__all__ = ["hub"]
HUB = ("how-to/hub.md",)
PAGES = [page for page in documents.pages() if page not in HUB]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """made(page) -> the folder in which it runs, made once for all such pages."""
    found: dict[Callable[[Path], None], Path] = {}

    def get(page: str) -> Path:
        make = documents.PLACES.get(page, documents.play)
        if make not in found:
            found[make] = tmp_path_factory.mktemp("place")
            make(found[make])
        return found[make]

    return get


def run(page: str, folder: Path) -> list[str]:
    """What all its commands said, one after another, in one folder; what the page shows of them is that."""
    scope: dict[str, object] = {}
    found = []
    for block in documents.here(page):
        for command, shown, told in documents.said(block, page, scope):
            documents.compare(page, command, shown, told, folder)
            found.append(told)
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if documents.here(page)])
def test_a_page_runs_from_top_to_bottom(
    page: str, made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(documents.again(made(page), tmp_path / "play"))
    run(page, tmp_path / "play")


def test_the_page_of_the_hub_runs(
    hub: Hub, made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a server that speaks its protocol; and nothing that is said holds the token."""
    play = documents.again(made("how-to/hub.md"), tmp_path / "play")
    monkeypatch.chdir(play)
    for name in ("base", "adapter"):
        hub.create(f"org/{name}")
        hub.put(f"org/{name}", {path.name: path for path in (play / name).iterdir()})
    said = run("how-to/hub.md", play)
    assert said and TOKEN not in "".join(said)
    written = {name: hub.hashes(f"org/{name}", without=()) for name in ("merged", "merged-too", "direct", "new")}
    assert (
        all(written.values())
        and written["merged"].items()
        >= {name: digest for name, digest in hashes(play / "merged").items() if not name.startswith("README")}.items()
    )


@pytest.mark.parametrize("page", documents.pages())
def test_no_block_is_passed_over(page: str) -> None:
    """Each is run here, or names what runs it."""
    for block in documents.blocks(page):
        if block.mark.startswith(RUN_BY):
            path, _, test = block.mark.removeprefix(RUN_BY).partition("::")
            assert test in (ROOT / path).read_text(), block.mark
        else:
            if block.content.lstrip().startswith("--8<--"):  # a file of the code, which its own tests run
                continue
            assert block.language in ("text", "bash", "python", "mermaid", *FILES), block
            assert block.language != "text" or block.content.startswith("$ "), block
            assert block.language not in FILES or re.match(r"# \S+\n", block.content), block


def test_every_fence_is_seen() -> None:
    """A block that the reader of pages missed would be run by nobody."""
    for page, path in documents.pages().items():
        fences = re.findall(r"^ *```", path.read_text(), re.MULTILINE)
        assert len(fences) == 2 * len(documents.blocks(page)), page
