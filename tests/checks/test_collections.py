"""What is no plain model of transformers: told by part, edited with the rest kept, and not failed wrongly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import surgery
from surgery_cli.app import app


def holds(folder: Path) -> str:
    done = CliRunner().invoke(app, ["inspect", str(folder)])
    assert done.exit_code == 0, done.output
    return done.output


def kept(folder: Path, out: Path) -> set[str]:
    """The files of the folder after it was renamed: a surgery that touches every tensor's name."""
    made = surgery.rename(surgery.open_checkpoint(folder), [("^", "x.")])
    surgery.write(made, out)
    assert surgery.verify(folder).ok and surgery.verify(out).ok
    return {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file() and ".surgery" not in p.parts}


def test_a_single_file_of_a_diffusion_model(tmp_path: Path) -> None:
    names = {
        "model.diffusion_model.input_blocks.0.0.weight": (8, 4),
        "first_stage_model.encoder.conv_in.weight": (4, 4),
        "cond_stage_model.transformer.x.weight": (2, 2),
        "model_ema.decay": (1,),
        "alphas_cumprod": (5,),
    }
    save_file({name: torch.ones(shape) for name, shape in names.items()}, tmp_path / "sd.safetensors")
    lines = surgery.inspect(tmp_path / "sd.safetensors").holds
    assert "model.diffusion_model.: the denoiser (U-Net or transformer), 1 tensors, 128 B, F32" in lines
    assert "first_stage_model.: the autoencoder, 1 tensors, 64 B, F32" in lines
    assert "other tensors, 1 tensors, 20 B, F32" in lines and len(lines) == 5
    torch.save({"state_dict": {n: torch.ones(s) for n, s in names.items()}, "global_step": 3}, tmp_path / "sd.ckpt")
    found = surgery.inspect(tmp_path / "sd.ckpt")
    assert found.holds == lines and found.format


@pytest.mark.parametrize("nested", [False, True])
def test_sentence_transformers(nested: bool, tmp_path: Path) -> None:
    """As its newer versions save, with the transformer in the folder itself, and as older ones."""
    source, at = tmp_path / "in", "0_Transformer" if nested else ""
    (source / "2_Dense").mkdir(parents=True)
    (source / at).mkdir(exist_ok=True)
    modules = [(at, "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")]
    said = [{"idx": i, "path": p, "type": f"sentence_transformers.models.{t}"} for i, (p, t) in enumerate(modules)]
    (source / "modules.json").write_text(json.dumps(said))
    (source / at / "config.json").write_text("{}")
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling/config.json").write_text("{}")
    save_file({"a": torch.ones(2)}, source / at / "model.safetensors")
    save_file({"linear.weight": torch.ones(2, 2)}, source / "2_Dense/model.safetensors")
    lines = holds(source)
    assert "Pooling in 1_Pooling/" in lines and "Dense in 2_Dense/" in lines
    assert ("its weights are carried" in lines) is not nested
    if nested:
        made = surgery.open_checkpoint(source)
        assert set(made.tensors) == {"0_Transformer/a", "2_Dense/linear.weight"}
        surgery.write(made, tmp_path / "out")
    else:
        assert kept(source, tmp_path / "out") >= {"modules.json", "1_Pooling/config.json"}
    assert torch.equal(load_file(tmp_path / "out/2_Dense/model.safetensors")["linear.weight"], torch.ones(2, 2))


def test_pickled_modules_of_sentence_transformers_are_carried(tmp_path: Path) -> None:
    """Without its dense layer the model would be another one."""
    (tmp_path / "in/2_Dense").mkdir(parents=True)
    said = [{"path": "", "type": "Transformer"}, {"path": "2_Dense", "type": "Dense"}]
    (tmp_path / "in/modules.json").write_text(json.dumps(said))
    (tmp_path / "in/config.json").write_text("{}")
    save_file({"a": torch.ones(2)}, tmp_path / "in/model.safetensors")
    torch.save({"linear.weight": torch.ones(2, 2)}, tmp_path / "in/2_Dense/pytorch_model.bin")
    assert "2_Dense/pytorch_model.bin" in kept(tmp_path / "in", tmp_path / "out")


def test_timm(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    save_file({"conv1.weight": torch.ones(4, 3, 3, 3)}, tmp_path / "in/model.safetensors")
    config = {"architecture": "resnet18", "num_classes": 10, "pretrained_cfg": {"tag": "a1_in1k"}}
    (tmp_path / "in/config.json").write_text(json.dumps(config))
    assert "timm: resnet18, 10 classes" in holds(tmp_path / "in")
    assert kept(tmp_path / "in", tmp_path / "out") == {"model.safetensors", "config.json"}
    assert any("timm" in check.detail for check in surgery.verify(tmp_path / "in").checks)


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_open_clip(file: str, tmp_path: Path) -> None:
    tensors = {"visual.conv1.weight": torch.ones(4, 3, 2, 2), "logit_scale": torch.tensor(2.0)}
    (tmp_path / "in").mkdir()
    config = {"model_cfg": {"embed_dim": 512, "vision_cfg": {"layers": 12, "width": 768}, "text_cfg": {"width": 512}}}
    (tmp_path / "in/open_clip_config.json").write_text(json.dumps(config))
    if file.endswith("bin"):
        torch.save(tensors, tmp_path / "in" / file)
    else:
        save_file(tensors, tmp_path / "in" / file)
    lines = holds(tmp_path / "in")
    assert "open_clip: embeddings of 512, vision of width 768, 12 layers" in lines
    # open_clip looks for this name; safetensors come before pickles there, too
    assert kept(tmp_path / "in", tmp_path / "out") == {"open_clip_model.safetensors", "open_clip_config.json"}


def test_whisper_as_openai_publishes_it(tmp_path: Path) -> None:
    names = ("encoder.blocks.0.attn.query.weight", "decoder.token_embedding.weight")
    state = {name: torch.ones(4, 4) for name in names}
    torch.save({"dims": {"n_mels": 80}, "model_state_dict": state}, tmp_path / "tiny.pt")
    lines = holds(tmp_path / "tiny.pt")
    assert "Whisper, as OpenAI publishes it" in lines and "saved by torch" in lines and "dims" in lines
    assert surgery.verify(tmp_path / "tiny.pt").ok
