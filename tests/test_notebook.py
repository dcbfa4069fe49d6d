"""What a notebook shows of a checkpoint, an adapter, a plan and a report."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from handmade import write_adapter, write_phi3, write_tensors

import surgery


class Read(HTMLParser):
    """The texts of a page, and its tags, each opened and closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts, self.tags, self.open = list[str](), set[str](), list[str]()
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phi3(tmp_path_factory.mktemp("notebook") / "base", layers=2, hidden=64)


def read(value: object) -> Read:
    return Read(value._repr_html_())  # type: ignore[attr-defined]


def test_each_value_is_shown_with_what_it_is(base: Path, tmp_path: Path) -> None:
    module = "model.layers.0.self_attn.o_proj"
    adapter = surgery.open_adapter(write_adapter(tmp_path / "lora", {module: (64, 64)}, rank=4))
    checkpoint = surgery.merge(surgery.split_qkv(surgery.open_checkpoint(base)), adapter)
    plan = surgery.plan(checkpoint)
    report = surgery.execute(plan, tmp_path / "out")

    assert {"Adapter LORA", str(tmp_path / "lora"), "4", "2 tensors"} <= {*read(adapter).texts}
    of_checkpoint = read(checkpoint).texts
    assert {str(base), "split → merge", f"{module}.weight", "64×64", "BF16"} <= {*of_checkpoint}
    assert f"{len(checkpoint.tensors):,} tensors" in of_checkpoint
    of_plan = read(plan).texts
    assert {f"Plan {plan.identity[:16]}", f"{plan.tensors}, 1 of them computed", plan.shards[0].name} <= {*of_plan}
    assert {f"Report of {tmp_path / 'out'}", f"{report.tensors} in {report.shards} shards"} <= {*read(report).texts}


def test_what_a_file_says_is_text_and_no_markup(tmp_path: Path) -> None:
    name = "</td><script>alert('1')</script>\x1b[31m"
    write_tensors(tmp_path / "model.safetensors", {name: ("F32", (2, 3))})
    shown = read(surgery.open_checkpoint(tmp_path / "model.safetensors"))
    assert "script" not in shown.tags
    assert "</td><script>alert('1')</script>\\x1b[31m" in shown.texts


def test_a_table_ends_and_counts_the_rest(tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.safetensors", {f"t{i:04}": ("U8", ()) for i in range(1234)})
    texts = read(surgery.open_checkpoint(tmp_path / "model.safetensors")).texts
    assert {"1,234 tensors", "and 1,034 more", "t0199", "scalar"} <= {*texts}
    assert "t0200" not in texts
