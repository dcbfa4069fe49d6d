"""Which tokenizer and chat template a merged model has: those that it was trained with, and each file is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import hashes
from handmade import write_adapter
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner

import surgery
from surgery.errors import AdapterError, NotACheckpoint
from surgery_cli.app import app

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"


def tokenizer(words: str, template: str | None = None, pad: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", *words.split()])}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    found = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", pad_token=pad)
    found.chat_template = template
    return found


@pytest.fixture
def base(saved: Callable[..., Path], tmp_path: Path) -> Path:
    folder = shutil.copytree(saved("llama"), tmp_path / "base")
    tokenizer("one two three").save_pretrained(folder)
    return folder


def lora(path: Path, rows: int = 40) -> Path:
    return write_adapter(path, {"model.layers.0.self_attn.q_proj": (rows, 48)})


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return lora(tmp_path / "adapter")


def merged(base: Path, *adapters: Path, out: str = "out", **told: Any) -> tuple[Path, tuple[str, ...]]:
    made = surgery.merge(surgery.open_checkpoint(base), [surgery.open_adapter(a) for a in adapters], **told)
    report = surgery.write(made, base.parent / out)
    return base.parent / out, report.notes


def test_the_chat_template_of_the_training_comes_along(base: Path, adapter: Path) -> None:
    """A base model becomes a chat model: the vocabulary is the same, the template is the adapter's."""
    tokenizer("one two three", TEMPLATE, pad="<unk>").save_pretrained(adapter)
    out, notes = merged(base, adapter)
    loaded = AutoTokenizer.from_pretrained(out)
    assert loaded.chat_template == TEMPLATE and loaded.pad_token == "<unk>"
    assert AutoTokenizer.from_pretrained(base).chat_template is None
    note = next(note for note in notes if note.startswith("the tokenizer is the adapter's"))
    assert "chat_template.jinja" in note and "--tokenizer base" in note and "tokenizer='base'" in note
    unchanged = {n for n, h in hashes(base).items() if n.startswith("tokenizer") and hashes(adapter).get(n) == h}
    assert not any(name in note for name in unchanged)


def test_the_bases_is_kept_when_that_is_said(base: Path, adapter: Path) -> None:
    tokenizer("one two three", TEMPLATE).save_pretrained(adapter)
    out, notes = merged(base, adapter, tokenizer="base")
    assert {n: h for n, h in hashes(out).items() if n in hashes(base) and n != "model.safetensors"}.items() <= hashes(
        base
    ).items()
    assert not any("tokenizer" in note for note in notes) and not (out / "chat_template.jinja").exists()


def test_a_tokenizer_of_the_same_content_is_no_news(base: Path, adapter: Path) -> None:
    tokenizer("one two three").save_pretrained(adapter)
    _, notes = merged(base, adapter)
    assert not any("tokenizer" in note for note in notes)


def test_an_adapter_without_a_tokenizer_leaves_the_bases(base: Path, adapter: Path) -> None:
    out, notes = merged(base, adapter)
    assert hashes(out)["tokenizer.json"] == hashes(base)["tokenizer.json"] and not any(
        "tokenizer" in note for note in notes
    )
    with pytest.raises(AdapterError, match="the adapter has no tokenizer"):
        merged(base, adapter, out="second", tokenizer="adapter")


def test_files_of_the_other_vocabulary_are_left_out_by_name(base: Path, adapter: Path) -> None:
    """Slow tokenizers and converters read vocab.json beside a tokenizer.json of other words."""
    (base / "vocab.json").write_text("{}")
    (base / "merges.txt").write_text("")
    tokenizer("one three two").save_pretrained(adapter)
    out, notes = merged(base, adapter)
    assert not (out / "vocab.json").exists() and not (out / "merges.txt").exists()
    assert "left out, since the base's contradict the new tokenizer: merges.txt, vocab.json" in notes


def test_a_template_in_the_settings_is_not_hidden_by_an_older_file(base: Path, adapter: Path) -> None:
    """Loaders prefer chat_template.jinja: the base's would win over the one that the adapter was trained with."""
    (base / "chat_template.jinja").write_text("the base's")
    tokenizer("one two three").save_pretrained(adapter)
    settings = json.loads((adapter / "tokenizer_config.json").read_text())
    (adapter / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
    out, notes = merged(base, adapter)
    assert AutoTokenizer.from_pretrained(out).chat_template == TEMPLATE
    assert "left out, since the base's contradict the new tokenizer: chat_template.jinja" in notes


def test_adapters_that_disagree_are_refused_unless_one_is_named(base: Path, adapter: Path, tmp_path: Path) -> None:
    other = lora(tmp_path / "other")
    tokenizer("one two three", TEMPLATE).save_pretrained(adapter)
    tokenizer("one two three", "another").save_pretrained(other)
    with pytest.raises(AdapterError, match="the adapters bring different tokenizers") as caught:
        merged(base, adapter, other, again=True)
    assert str(adapter) in str(caught.value.help) and not (tmp_path / "out").exists()
    out, notes = merged(base, adapter, other, again=True, tokenizer=str(other))
    assert AutoTokenizer.from_pretrained(out).chat_template == "another"
    assert any(note.startswith(f"the tokenizer is that of {other}: chat_template.jinja") for note in notes)


def test_a_folder_without_a_tokenizer_is_an_error(base: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(NotACheckpoint, match="no tokenizer is there"):
        merged(base, adapter, tokenizer=str(tmp_path))


def test_tokens_without_a_row_are_named(base: Path, adapter: Path) -> None:
    """A pad token that was added, and the embedding not resized: the model fails when it is used."""
    made = tokenizer(" ".join(f"w{i}" for i in range(96)))
    made.add_special_tokens({"pad_token": "<pad>"})
    made.save_pretrained(adapter)
    _, notes = merged(base, adapter)
    assert "1 tokens of the tokenizer have no row in the vocabulary of 97, as in training: <pad>" in notes


@pytest.mark.parametrize("extra", [{}, {"tokenizer": "adapter"}])
def test_what_was_replaced_comes_back(base: Path, adapter: Path, extra: Mapping[str, Any], tmp_path: Path) -> None:
    tokenizer("one two three", TEMPLATE).save_pretrained(adapter)
    opened = surgery.open_checkpoint(base)
    made = surgery.reversible(surgery.merge(opened, surgery.open_adapter(adapter), **extra), opened)
    surgery.write(made, tmp_path / "merged")
    surgery.write(surgery.unmerge(surgery.open_checkpoint(tmp_path / "merged")), tmp_path / "back")
    assert hashes(tmp_path / "back") == hashes(base)


def test_the_command(base: Path, adapter: Path, tmp_path: Path) -> None:
    tokenizer("one two three", TEMPLATE).save_pretrained(adapter)
    run = partial(CliRunner().invoke, app)
    kept = run(["merge", str(base), str(adapter), "-o", str(tmp_path / "kept"), "--tokenizer", "base"])
    taken = run(["merge", str(base), str(adapter), "-o", str(tmp_path / "taken")])
    assert kept.exit_code == taken.exit_code == 0, kept.output + taken.output
    assert not (tmp_path / "kept/chat_template.jinja").exists() and (tmp_path / "taken/chat_template.jinja").exists()
    assert "the tokenizer is the adapter's: chat_template.jinja" in " ".join(taken.output.split())
    manifest = json.loads((tmp_path / "kept/.surgery/manifest.json").read_text())
    assert manifest["history"][-1]["tokenizer"] == "base"
