"""The page on LoRA for SAM: its code trains what its commands split, and the result computes what was trained."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import documents
import pytest
import tiny_models
import torch
import transformers as tf
from typer.testing import CliRunner

import surgery
from surgery_cli.app import app

PAGE = "how-to/fused-lora.md"


def test_sam_from_beginning_to_end(saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Split, inject, train (here: B gets noise), merge, fuse: a plain SAM that computes what the trained one did."""
    monkeypatch.chdir(tmp_path)
    tiny_models.save("sam", tmp_path / "sam")
    sizes = {"--rank": "4", "--alpha": "8"}

    def surge(*words: str) -> None:
        result = CliRunner().invoke(app, [*words, "--quiet"], catch_exceptions=False)
        assert result.exit_code == 0, result.output

    surge("split-qkv", "sam", "-o", "sam-split")
    surge(
        "inject",
        "sam-split",
        "-o",
        "lora",
        "--target-modules",
        "q,v",
        *(word for pair in sizes.items() for word in pair),
    )
    training = """
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
"""
    told = """
import sys
sys.path.insert(0, sys.argv[1])
import tiny_models
torch.save(tiny_models.output(model.base_model.model.eval(), "sam"), "live.pt")
"""
    code = documents.marked(PAGE, "example sam").replace("# … your training …\n", training) + told
    done = subprocess.run(
        [sys.executable, "-c", code, Path(tiny_models.__file__).parent],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    trainable = 3 * 2 * 4 * (36 + 36)
    assert f"trainable params: {trainable:,} ||" in done.stdout
    surge("merge", "sam-split", "trained", "-o", "merged")
    surge("fuse-qkv", "merged", "-o", "sam-tuned")
    surge("merge", "sam", "trained", "-o", "at-once")
    assert (tmp_path / "at-once" / "model.safetensors").read_bytes() == (
        tmp_path / "sam-tuned" / "model.safetensors"
    ).read_bytes()
    model, info = tf.SamModel.from_pretrained("sam-tuned", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    live, plain = torch.load("live.pt", weights_only=True), tiny_models.output(tiny_models.build("sam"), "sam")
    merged = tiny_models.output(model.eval(), "sam")
    assert (live - plain).abs().max() > 1e-2 * plain.abs().max()
    assert (merged - live).abs().max() < 1e-4 * live.abs().max()


def test_the_count_that_the_page_states(tmp_path: Path) -> None:
    """r=16 on q and v of sam-vit-base: 12 layers of 768, from headers alone."""
    from handmade import write_tensors

    tensors = {}
    for layer in range(12):
        for part in "qkv":
            tensors[f"vision_encoder.layers.{layer}.attn.{part}.weight"] = (
                "U8",
                (768, 768),
            )  # small: only the shapes count
    write_tensors(tmp_path / "model.safetensors", {n: ("BF16", s) for n, (_, s) in tensors.items()})
    adapter = surgery.inject(surgery.open_checkpoint(tmp_path), ["q", "v"], rank=16, alpha=32)
    assert sum(t.size for t in adapter.tensors.values()) == 589_824
    assert "trainable params: 589,824" in documents.text(PAGE) and adapter.notes[-1].startswith(
        "trainable params: 589,824 ||"
    )
