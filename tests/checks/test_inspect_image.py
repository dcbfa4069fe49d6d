"""Adapters of image models, looked at: counted by component, in few lines; and what is said of adapters once is known
of their merges.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from files.adapters.test_handwritten import Output
from foreign import saved_as, wrapped
from image_models import dotted, factors, kohya, saved
from typer.testing import CliRunner

import surgery
from surgery.errors import FormatError, SurgeryError
from surgery_cli.app import app

WEIGHTS = {f"down_blocks.{n}.attentions.0.{leaf}": torch.zeros(8, 6) for n in range(30) for leaf in ("q", "k")}


def test_a_file_of_several_components_is_counted(tmp_path: Path) -> None:
    file = kohya(WEIGHTS, "lora_unet_")[0] | kohya({"layers.0.q": torch.zeros(6, 6)}, "lora_te_", rank=8, alpha=3)[0]
    file |= kohya({"conv_in": torch.zeros(8, 4, 3, 3)}, "lora_unet_")[0]
    file |= {"lora_unet_out.hada_w1_a": torch.ones(6, 2), "lora_unet_out.hada_w1_b": torch.ones(2, 6)}
    file |= {"lora_unet_out.hada_w2_a": torch.ones(6, 2), "lora_unet_out.hada_w2_b": torch.ones(2, 6)}
    a, b = factors(torch.zeros(6, 6), 4, 0)
    file |= {"lora_unet_mid.lora_down.weight": a, "lora_unet_mid.lora_up.weight": b}
    file |= {"lora_unet_mid.dora_scale": torch.ones(6, 1), "lora_unet_norm.diff": torch.ones(6)}
    path = saved(file, tmp_path / "a.safetensors")
    found = surgery.inspect(path).adapter["components"]
    assert found["lora_te"] == {"modules": 1, "kinds": {"LoRA": 1}, "ranks": {"8": 1}, "alphas": {"3": 1}}
    kinds = {"LoRA": 61, "LoHa": 1, "LoRA with DoRA": 1, "difference": 1}
    numbers = {"ranks": {"2": 2, "4": 61}, "alphas": {"2": 61, "3": 1, "4": 1}}
    assert found["lora_unet"] == {"modules": 64, "kinds": kinds, **numbers}
    done = CliRunner().invoke(app, ["inspect", str(path)])
    assert "lora_te: 1 modules; LoRA; ranks 8; alphas 3" in done.output
    assert "lora_unet_down_blocks_*_attentions_*_k ×30 (8×6)" in done.output
    assert "pattern" not in done.output and max(map(len, done.output.splitlines())) < 500


def test_dotted_names_are_counted_by_their_roots(tmp_path: Path) -> None:
    file = dotted(WEIGHTS, "unet.")[0] | dotted({"layers.0.q": torch.zeros(6, 6)}, "text_encoder_2.", rank=2)[0]
    found = surgery.inspect(saved(file, tmp_path / "a.safetensors")).adapter["components"]
    assert {root: (one["modules"], one["ranks"]) for root, one in found.items()} == {
        "text_encoder_2": (1, {"2": 1}),
        "unet": (60, {"4": 60}),
    }


def mine(folder: Path, scale: float = 1.0) -> Path:
    """LoRA of a program of one's own, of which the file tells neither format nor alpha."""
    held = {n: t * scale for n, t in wrapped("bert", Output, ("query",)).state_dict().items() if "lora" in n}
    return saved_as(folder, held, "mine.safetensors")


def test_verify_reads_format_and_alpha_from_the_merge(saved: Callable[..., Path], tmp_path: Path) -> None:
    file, other = mine(tmp_path / "a"), mine(tmp_path / "b", scale=2.0)
    base, out = saved("bert"), tmp_path / "out"
    opened = surgery.open_adapter(file, format="x@a@b", alpha=8)
    surgery.write(surgery.merge(surgery.open_checkpoint(base), opened), out)
    assert surgery.verify(out, base=base, adapter=file, check_class=False).ok
    assert surgery.verify(out, base=base, adapter=file, format="x@a@b", alpha=8, check_class=False).ok
    assert not surgery.verify(out, base=base, adapter=file, format="x@a@b", alpha=4, check_class=False).ok
    with pytest.raises(FormatError, match="2 formats at once"):
        surgery.verify(out, base=base, adapter=other, check_class=False)


def test_diff_takes_what_a_file_does_not_say(saved: Callable[..., Path], tmp_path: Path) -> None:
    one, other = mine(tmp_path / "a"), mine(tmp_path / "b", scale=2.0)
    words = ["diff", str(one), str(other), "--format", "x@a@b", "--alpha", "4", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1 and len(json.loads(done.output)["changed"]) == len(surgery.open_adapter(
        one, format="x@a@b", alpha=4).tensors)  # fmt: skip
    assert surgery.diff(one, one, format="x@a@b", alpha=4).equal
    with pytest.raises(SurgeryError, match="no format `x@a`"):
        surgery.diff(one, other, format="x@a")
    listed = CliRunner().invoke(
        app, ["inspect", str(one), "--format", "x@a@b", "--alpha", "4", "--tensors", ".*", "--json"]
    )
    assert listed.exit_code == 0 and json.loads(listed.output)["tensors"]


def test_what_is_said_does_not_touch_an_adapter_of_peft(saved: Callable[..., Path], tmp_path: Path) -> None:
    file = mine(tmp_path / "a")
    made = surgery.convert_adapter(surgery.open_adapter(file, format="x@a@b", alpha=8))
    surgery.write(made, tmp_path / "peft")
    found = surgery.diff(file, tmp_path / "peft", format="x@a@b", alpha=8)
    assert found.only_a and found.only_b
