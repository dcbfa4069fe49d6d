"""Make the pictures in this folder, from models that are made on the spot: `python docs/pictures/make.py WORKDIR`.

Needs the extra `test` and a Chromium. What they show is random weights.
"""

from __future__ import annotations

import asyncio
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
from surgery_cli.browser import Browser as ModelBrowser
from surgery_cli.maps import show_change_map, show_shard_map

HERE = Path(__file__).parent


REPORTS = {  # picture: (model, base, adapter, colours, the measure that is chosen)
    "report": ("merged", "base", "adapter", "light", None),
    "report-wrong": ("sabotaged", "base", "adapter", "dark", None),
    "report-dora": ("with-dora", "base", "dora", "light", "rank"),
    "report-quantised": ("requantised", "quantised", "adapter", "dark", "erased"),
}
SIZES = {"browser": (80, 24), "browser-wide": (160, 50)}


def made(folder: Path) -> dict[str, Path]:
    """A base, as it is and in FP8; a LoRA and a DoRA; what they are merged to, and a merge that was tampered with."""
    if not (folder / "base").exists():
        models.base(folder / "base")
        models.adapter(folder / "adapter")
        models.adapter(folder / "dora", dora=True)
        base, adapter = surgery.open_checkpoint(folder / "base"), surgery.open_adapter(folder / "adapter")
        surgery.write(surgery.merge(base, adapter), folder / "merged")
        surgery.write(surgery.merge(base, surgery.open_adapter(folder / "dora")), folder / "with-dora")
        surgery.write(surgery.quantize(base, "fp8"), folder / "quantised")
        again = surgery.merge(surgery.open_checkpoint(folder / "quantised"), adapter, requantize=True, lossy=True)
        surgery.write(again, folder / "requantised")
        shutil.copytree(folder / "merged", folder / "sabotaged")
        models.sabotage(folder / "sabotaged")
    return {path.name: path for path in folder.iterdir() if path.is_dir()}


def of_report(browser: Browser, folder: dict[str, Path], work: Path) -> None:
    """The first screen of reports, by the measure that says most."""
    for name, (model, base, adapter, scheme, measure) in REPORTS.items():
        page = work / f"{name}.html"
        surgery.report(folder[model], base=folder[base], adapter=folder[adapter]).write(page, overwrite=True)
        shown = browser.new_page(viewport={"width": 1000, "height": 1170}, color_scheme=scheme)  # type: ignore[arg-type]
        shown.goto(page.as_uri())
        if measure:
            shown.locator(f"label[for=by-{measure}]").click()
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


def of_browser(browser: Browser, work: Path) -> None:
    """The browser in two terminals, at a tensor whose statistics were asked for."""
    for name, size in SIZES.items():
        shown = browser.new_page(viewport={"width": 13 * size[0], "height": 27 * size[1] + 60})
        shown.goto((work / f"{name}.svg").as_uri())
        _saved(shown.locator("svg").first.screenshot(), name)


async def _browsed(model: Path, size: tuple[int, int]) -> str:
    shown = ModelBrowser(surgery.open_checkpoint(model))
    shown.title = model.name
    async with shown.run_test(size=size) as pilot:
        await pilot.press("slash", *"layers.9.", "enter")
        await pilot.pause()
        for _ in range(4):
            await pilot.press("down")
        await pilot.press("s")
        await shown.workers.wait_for_complete()
        await pilot.pause()
        return shown.export_screenshot(title="surgery browse")


def _saved(raw: bytes, name: str) -> None:
    """The picture in 128 colours, which halves it."""
    Image.open(io.BytesIO(raw)).convert("RGB").quantize(128).save(HERE / f"{name}.png", optimize=True)


def main(work: Path) -> None:
    """All of them."""
    folder = made(work)
    for name, size in SIZES.items():  # before Playwright, whose loop of events stands in the way
        (work / f"{name}.svg").write_text(asyncio.run(_browsed(folder["merged"], size)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        of_report(browser, folder, work)
        of_terminal(browser, folder, work)
        of_browser(browser, work)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
