"""The report in a browser: it renders, asks nothing of a network, and what it shows can be reached by hand and key."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from handmade import write_adapter
from pictures.browser import Opened, browser
from safetensors.torch import load_file, save_file

import surgery
from surgery.checks.change_map import Place
from surgery.pictures.measures import BY_KEY, DARK, VIRIDIS

SHAPES = {"self_attn.q_proj": (40, 48), "self_attn.k_proj": (20, 48), "mlp.up_proj": (80, 48)}


@pytest.fixture(scope="module")
def made() -> Iterator[Any]:
    with browser() as one:
        yield one


@pytest.fixture(scope="module")
def merged(saved: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, an adapter, the merge, and one that somebody tampered with."""
    folder, base = tmp_path_factory.mktemp("pages"), saved("llama", dtype=torch.bfloat16)
    adapter = write_adapter(
        folder / "adapter", {f"model.layers.{i}.{n}": s for i in range(3) for n, s in SHAPES.items()}
    )
    surgery.write(surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter)), folder / "merged")
    shutil.copytree(folder / "merged", folder / "sabotaged")
    tensors = load_file(folder / "sabotaged" / "model.safetensors")
    tensors["model.layers.1.self_attn.q_proj.weight"] += 1
    tensors["model.layers.2.mlp.gate_proj.weight"][0] = 0.5
    save_file(tensors, folder / "sabotaged" / "model.safetensors", {"format": "pt"})
    return {"base": base, "adapter": adapter, "merged": folder / "merged", "sabotaged": folder / "sabotaged"}


@pytest.fixture(scope="module")
def page(merged: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    surgery.report(merged["merged"], base=merged["base"], adapter=merged["adapter"]).write(path)
    return path


def test_it_renders_and_asks_for_nothing(made: Any, page: Path) -> None:
    for scheme in ("light", "dark"):
        opened = Opened(made, page, color_scheme=scheme)
        assert opened.page.locator("h1").inner_text() == "merged"
        assert opened.page.locator(".badge.good").is_visible()
        opened.check_quiet(page)


def test_light_and_dark(made: Any, page: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = (Opened(made, page, color_scheme=scheme).page.evaluate(ground) for scheme in ("light", "dark"))
    assert sum(map(int, light[4:-1].split(","))) > 600 > 200 > sum(map(int, dark[4:-1].split(",")))


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_wider_than_the_screen(made: Any, page: Path, width: int) -> None:
    opened = Opened(made, page, viewport={"width": width, "height": 800})
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_map_shows_what_was_measured(made: Any, page: Path, merged: dict[str, Path]) -> None:
    """Each cell of each measure, as the library has it."""
    changes = surgery.map_changes(merged["base"], merged["merged"], adapter=merged["adapter"])
    opened = Opened(made, page)
    for key, measure in BY_KEY.items():
        opened.page.locator(f"label[for=by-{key}]").click()
        table = opened.page.locator(f"#map-{key} table")
        assert table.is_visible() and opened.page.locator(".map:visible").count() == 1
        heads = [one.replace("\u200b", "") for one in table.locator("thead tr:last-child th").all_inner_texts()]
        assert heads[1:] == [module.rpartition(".")[2] for module in changes.modules("model.layers")]
        for layer, row in enumerate(table.locator("tbody tr").all()):
            cells = row.locator("td").all_inner_texts()
            wanted = [
                measure.text(changes.cells[Place("model.layers", layer, m)]) for m in changes.modules("model.layers")
            ]
            assert cells == wanted


def test_hover_and_keys(made: Any, page: Path) -> None:
    opened = Opened(made, page)
    tip = opened.page.locator("#tip")
    assert not tip.is_visible()
    opened.page.locator("#map-relative td[data-i]").nth(4).hover()
    assert tip.is_visible() and "layer 1 of model.layers" in tip.inner_text() and "verdict: exact" in tip.inner_text()
    opened.page.locator("#map-relative td[data-i]").first.focus()
    opened.page.keyboard.press("ArrowDown")
    opened.page.keyboard.press("ArrowRight")
    assert "layer 1 of" in tip.inner_text()
    assert opened.page.evaluate("document.activeElement.getAttribute('aria-describedby')") == "tip"
    opened.page.keyboard.press("Escape")
    assert not tip.is_visible()
    opened.page.locator(".shard rect.k-mlp").first.hover()
    assert "model.layers.0.mlp.down_proj.weight" in tip.inner_text()


def test_tab_reaches_everything(made: Any, page: Path) -> None:
    """From the top: the choice of what is drawn, the map, the search, the buttons."""
    opened, seen = Opened(made, page), set()
    for _ in range(40):
        opened.page.keyboard.press("Tab")
        seen.add(opened.page.evaluate("(e => e.id || e.tagName)(document.activeElement)"))
    assert {"by-relative", "TD", "SUMMARY", "find", "copy"} <= seen
    opened.page.locator("#by-relative").focus()
    opened.page.keyboard.press("ArrowRight")
    assert opened.page.locator("#map-changed").is_visible()


def test_the_list_is_sorted_found_and_copied(made: Any, page: Path, merged: dict[str, Path]) -> None:
    context = made.new_context(permissions=["clipboard-read", "clipboard-write"])
    opened = Opened(context, page)
    rows = opened.page.locator("#body tr")
    assert rows.count() == len(surgery.open_checkpoint(merged["merged"]).tensors)
    opened.page.locator("#heads button").nth(4).click()
    values = [float(x) for x in opened.page.locator("#body td:nth-child(5)").all_inner_texts()]
    assert values == sorted(values, reverse=True) and values[0] > 0
    assert opened.page.locator("th[aria-sort]").inner_text().startswith("change")
    opened.page.locator("#heads button").nth(4).click()
    assert [float(x) for x in opened.page.locator("#body td:nth-child(5)").all_inner_texts()] == values[::-1]
    opened.page.locator("#find").fill("q_PROJ")
    assert rows.count() == 3 and "3 of" in opened.page.locator("#said").inner_text()
    opened.page.locator("#copy").click()
    opened.page.get_by_text("3 tensors copied").wait_for()
    copied = opened.page.evaluate("navigator.clipboard.readText()").splitlines()
    assert copied[0].split("\t")[:5] == ["name", "dtype", "shape", "bytes", "change"] and len(copied) == 4
    opened.check_quiet(page)


def test_what_is_wrong_is_seen(made: Any, merged: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    found = surgery.report(merged["sabotaged"], base=merged["base"], adapter=merged["adapter"])
    assert found.verification is not None and not found.verification.ok
    found.write(path)
    opened = Opened(made, path)
    assert "failed" in opened.page.locator(".badge.bad").inner_text()
    bad = opened.page.locator("#map-relative td.bad")
    assert bad.count() == 2 and all(text.startswith("✗") for text in bad.all_inner_texts())
    assert "q_proj.weight" in opened.page.locator("ul.wrong").inner_text()
    opened.check_quiet(path)


HOSTILE = (
    "</script><script>document.title='x'</script>",
    "<img src=http://127.0.0.1:9/x onerror=alert(1)>.layers.0.weight",
    '" onmouseover=\'document.title=1\' x=".layers.1."q".weight',
    "a\u202eb\u2066.layers.2.\u2028line.weight",
    "--><!--.layers.3.]]>.weight",
    "nul\x00\x1b[31m\x7f.layers.4.w.weight",
    "emoji 🩺 ünï.layers.5.w.weight",
    "&lt;b&gt;.layers.6.&amp;.weight",
    "javascript:alert(1)//`${1}`.layers.7.w",
    "x" * 5000,
)


def test_nothing_in_a_checkpoint_is_obeyed(made: Any, tmp_path: Path) -> None:
    """Names of tensors, of folders, of steps, of what config.json says: text, and no more."""
    a, b = tmp_path / "a", tmp_path / "<b onclick=alert(1)>\u202e"
    for folder, value in ((a, 1.0), (b, 2.0)):
        folder.mkdir()
        save_file({name: torch.full((3, 4), value) for name in HOSTILE}, folder / "model.safetensors", {"format": "pt"})
        config = {"model_type": "</title><script>alert(1)</script>", "architectures": ["<svg onload=alert(2)>"]}
        (folder / "config.json").write_text(json.dumps(config))
    found = surgery.report(b, base=a)
    path = tmp_path / "report.html"
    found.write(path)
    assert not any(c in found.html for c in "\u202e\u2066\u2028\x00\x1b\x7f") and found.html.count("<script") == 3
    opened = Opened(made, path)
    page = opened.page
    page.on("dialog", lambda dialog: opened.failed.append(dialog.message))
    for cell in page.locator("#map-relative td[data-i]").all():
        cell.hover()
    names = page.locator("#body td:first-child").all_inner_texts()
    assert len(names) == len(HOSTILE) and any(name.startswith("</script><script>") for name in names)
    assert page.locator("img").count() == 0 and page.locator("script").count() == 3
    assert page.title().endswith(": surgery report") and page.locator("[onclick],[onmouseover],[onerror]").count() == 0
    opened.check_quiet(path)


def test_its_policy_forbids_all_but_its_own_script(made: Any, page: Path, tmp_path: Path) -> None:
    """What would be put into it does not run, and reaches nobody."""
    path = tmp_path / "tampered.html"
    more = "<script>document.title='run'</script><img src='http://127.0.0.1:9/a.png'><p style='color:red'>x</p>"
    path.write_text(page.read_text().replace("</main>", f"{more}</main>"))
    opened = Opened(made, path)
    opened.page.wait_for_timeout(200)
    assert opened.page.title() != "run" and opened.asked[1:] == opened.refused != []
    assert sum("Content Security Policy" in said for said in opened.said) >= 3


def contrast(one: str, other: str) -> float:
    """WCAG's, of two colours #rrggbb."""

    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


def test_letters_can_be_read(page: Path) -> None:
    """In every cell, and wherever there is text, by day and by night: 4.5 to 1 at least."""
    assert all(contrast(colour, "#ffffff" if i < DARK else "#000000") >= 4.5 for i, colour in enumerate(VIRIDIS))
    for colours in re.findall(r":root\{([^}]*)\}", page.read_text()):
        said = dict(re.findall(r"--(\w+):(#\w+)", colours))
        said = {
            name: value if len(value) == 7 else f"#{''.join(2 * c for c in value[1:])}" for name, value in said.items()
        }
        pairs = [(text, ground) for text in ("fg", "soft", "good", "bad") for ground in ("bg", "card")]
        for text, ground in (*pairs, ("good", "goodbg"), ("bad", "badbg"), ("tipfg", "tipbg"), ("bg", "fg")):
            assert contrast(said[text], said[ground]) >= 4.5, (text, ground)
