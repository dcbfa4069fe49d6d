"""Initialisations that change the base: on the base that was saved beside the adapter it is ordinary LoRA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
import transformers as tf
from changed_bases import trained
from typer.testing import CliRunner

import surgery
from surgery.errors import NotSupported
from surgery_cli.app import app

Saved = Callable[..., Path]


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "PiSSA"])
def test_on_the_base_as_it_was_trained(init: str, saved: Saved, tmp_path: Path) -> None:
    live = trained(saved, tmp_path, "pissa" if init == "PiSSA" else init)
    config = tmp_path / "a/adapter_config.json"
    config.write_text(config.read_text().replace('"pissa"', f'"{init}"') if init == "PiSSA" else config.read_text())
    base, adapter, out = (str(tmp_path / name) for name in ("base", "a", "out"))
    with pytest.raises(NotSupported, match=r"changes the base it belongs to") as caught:
        surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter))
    assert "--base-as-trained" in str(caught.value) and "base_as_trained=" in str(caught.value)
    done = CliRunner().invoke(app, ["merge", base, adapter, "-o", out, "--base-as-trained"])
    assert done.exit_code == 0 and f"was initialised by {init}" in done.output
    model = tf.LlamaForCausalLM.from_pretrained(out).eval()
    error = (tiny_models.output(model, "llama") - live).abs().max()
    wrong = surgery.merge(surgery.open_checkpoint(saved("llama")), surgery.open_adapter(adapter), base_as_trained=True)
    surgery.write(wrong, tmp_path / "wrong")
    other = (
        (tiny_models.output(tf.LlamaForCausalLM.from_pretrained(tmp_path / "wrong").eval(), "llama") - live).abs().max()
    )
    assert error <= 1e-5 * live.abs().max() and other > 1000 * error
    assert surgery.verify(out, base=base, adapter=adapter).ok  # the manifest says how
    done = CliRunner().invoke(app, ["verify", out, "--base", base, "--adapter", adapter, "--base-as-trained"])
    assert done.exit_code == 0, done.output


def test_what_changes_no_base_is_not_asked_for_it(saved: Saved, tmp_path: Path) -> None:
    trained(saved, tmp_path, True)
    merged = surgery.merge(
        surgery.open_checkpoint(tmp_path / "base"), surgery.open_adapter(tmp_path / "a"), base_as_trained=True
    )
    assert not [note for note in merged.notes if "was initialised by" in note]


@pytest.mark.parametrize("init", ["newest", "mica2"])
def test_an_unknown_initialisation_stays_refused(init: str, saved: Saved, tmp_path: Path) -> None:
    trained(saved, tmp_path, True)
    config = tmp_path / "a/adapter_config.json"
    config.write_text(config.read_text().replace('"init_lora_weights": true', f'"init_lora_weights": "{init}"'))
    with pytest.raises(NotSupported, match="which is not known"):
        surgery.merge(
            surgery.open_checkpoint(tmp_path / "base"), surgery.open_adapter(tmp_path / "a"), base_as_trained=True
        )
