"""Make the pictures in this folder, from models that are made on the spot: `python docs/pictures/make.py WORKDIR`.

Needs the extra `test` and a Chromium. What they show is random weights.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import models
from PIL import Image
from playwright.sync_api import Browser, sync_playwright
from rich.console import Console

import surgery
from surgery.checks.shard_map import shard_map
from surgery.pictures.measures import BY_KEY
from surgery_cli.maps import show_change_map, show_shard_map

HERE = Path(__file__).parent


def made(folder: Path) -> dict[str, Path]:
    """A base, an adapter, the merge, and one that was tampered with."""
    if not (folder / "base").exists():
        models.base(folder / "base")
        models.adapter(folder / "adapter")
        base, adapter = surgery.open_checkpoint(folder / "base"), surgery.open_adapter(folder / "adapter")
        surgery.write(surgery.merge(base, adapter), folder / "merged")
        shutil.copytree(folder / "merged", folder / "sabotaged")
        models.sabotage(folder / "sabotaged")
    return {name: folder / name for name in ("base", "adapter", "merged", "sabotaged")}


def of_report(browser: Browser, folder: dict[str, Path], work: Path) -> None:
    """The first screen of two reports."""
    for model, scheme, name in (("merged", "light", "report"), ("sabotaged", "dark", "report-wrong")):
        page = work / f"{name}.html"
        surgery.report(folder[model], base=folder["base"], adapter=folder["adapter"]).write(page, overwrite=True)
        shown = browser.new_page(viewport={"width": 1000, "height": 1170}, color_scheme=scheme)  # type: ignore[arg-type]
        shown.goto(page.as_uri())
        _saved(shown.screenshot(), name)


def of_terminal(browser: Browser, folder: dict[str, Path], work: Path) -> None:
    """The maps in a terminal of 80 columns."""
    out = Console(record=True, width=80, force_terminal=True, color_system="truecolor", file=io.StringIO())
    changes = surgery.map_changes(folder["base"], folder["merged"], adapter=folder["adapter"])
    out.print("$ surgery verify merged --base base --adapter adapter --map", highlight=False)
    show_change_map(changes, BY_KEY["relative"], out=out)
    out.print("\n$ surgery inspect base --map", highlight=False)
    show_shard_map(shard_map(surgery.open_checkpoint(folder["base"])), out)
    drawn = work / "terminal.svg"
    drawn.write_text(out.export_svg(title="surgery", font_aspect_ratio=0.61))
    shown = browser.new_page(viewport={"width": 1010, "height": 910})
    shown.goto(drawn.as_uri())
    _saved(shown.locator("svg").first.screenshot(), "terminal")


def _saved(raw: bytes, name: str) -> None:
    """The picture in 128 colours, which halves it."""
    Image.open(io.BytesIO(raw)).convert("RGB").quantize(128).save(HERE / f"{name}.png", optimize=True)


def main(work: Path) -> None:
    """All of them."""
    folder = made(work)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        of_report(browser, folder, work)
        of_terminal(browser, folder, work)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
