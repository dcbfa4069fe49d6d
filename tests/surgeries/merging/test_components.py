"""Pipelines whose components come in other formats and variants, one of them alone, and what their classes say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import hashes
from image_models import kohya, modules_of, opened, outputs, pipeline
from image_models import saved as saved_file
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import surgery
from surgery.errors import NotACheckpoint
from surgery_cli.app import app

UNET = "diffusion_pytorch_model.safetensors"


def surge(*words: object, fails: int = 0) -> str:
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == fails, done.output
    return done.output


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline(tmp_path_factory.mktemp("components") / "base")


def changed(base: Path, folder: Path, change: Callable[[Path], object]) -> Path:
    shutil.copytree(base, folder)
    change(folder)
    return folder


def pickled(folder: Path) -> None:
    """Each component's weights as torch saved them, as pipelines had them before safetensors."""
    for file in folder.rglob("*.safetensors"):
        name = "pytorch_model.bin" if file.name == "model.safetensors" else "diffusion_pytorch_model.bin"
        torch.save(load_file(file), file.with_name(name))
        file.unlink()


def test_a_pipeline_of_pickles_becomes_one_of_safetensors(base: Path, tmp_path: Path) -> None:
    source = changed(base, tmp_path / "in", pickled)
    said = surge("convert-files", source, "-o", tmp_path / "out")
    assert "unet: read as data" in said
    found, wanted = outputs(opened(tmp_path / "out")), outputs(opened(base))
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.safetensors")} == {
        p.relative_to(base).as_posix() for p in base.rglob("*.safetensors")
    }
    assert not list((tmp_path / "out").rglob("*.bin"))


def test_views_in_a_component_are_conserved(base: Path, tmp_path: Path) -> None:
    """A tensor that uses a part of what is stored for it, in a component as in a file alone."""

    def viewed(folder: Path) -> None:
        file = folder / "vae" / UNET
        tensors = load_file(file)
        name = next(name for name, tensor in tensors.items() if tensor.dim() == 1)
        wide = torch.zeros(2, len(tensors[name]))
        wide[0] = tensors[name]
        torch.save({**tensors, name: wide[0]}, file.with_name("diffusion_pytorch_model.bin"))
        file.unlink()

    surgery.write(surgery.open_checkpoint(changed(base, tmp_path / "in", viewed)), tmp_path / "out")
    wanted, found = (load_file(folder / "vae" / UNET) for folder in (base, tmp_path / "out"))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_lora_of_kohya_on_a_pipeline_of_pickles(base: Path, tmp_path: Path) -> None:
    """What the class loads computes what the live pipeline does with the file."""
    live = opened(base)
    before = outputs(live)
    read = {name: weight for name, weight in modules_of(live.unet).items() if not name.startswith("add_embedding")}
    adapter = saved_file(kohya(read, "lora_unet_")[0], tmp_path / "style.safetensors")
    live.load_lora_weights(tmp_path, weight_name="style.safetensors")
    source = changed(base, tmp_path / "in", pickled)
    surge("merge", source, adapter, "-o", tmp_path / "out")
    found, wanted = outputs(opened(tmp_path / "out"))["unet"], outputs(live)["unet"]
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert (before["unet"] - wanted).abs().max() >= 1e-2 * wanted.abs().max()


def test_one_component_alone(base: Path, tmp_path: Path) -> None:
    surge("reshard", base, "--component", "unet", "-o", tmp_path / "unet", "--max-shard-size", "100KB")
    assert {p.name for p in (tmp_path / "unet").iterdir()} >= {"config.json", f"{UNET}.index.json"}
    held = surgery.open_checkpoint(base, component="unet")
    assert held.tensors.keys() == load_file(base / "unet" / UNET).keys() and not held.parts
    assert "UNet2DConditionModel" in surge("verify", base, "--component", "unet")
    assert surge("diff", base, base, "--component", "vae", "--quiet") == ""
    shown = surge("inspect", base, "--component", "text_encoder")
    assert "CLIPTextModel" in shown and "unet" not in shown
    with pytest.raises(NotACheckpoint, match=r"no component is called transformer(?s:.*)there are .*unet"):
        surgery.open_checkpoint(base, component="transformer")
    with pytest.raises(NotACheckpoint, match="it is no pipeline"):
        surgery.open_checkpoint(base / "unet", component="unet")
    assert surgery.open_checkpoint(base).parts  # what was meant there counts there alone


def test_every_component_is_told_with_its_class(base: Path) -> None:
    found = surgery.inspect(base)
    index = json.loads((base / "model_index.json").read_text())
    for name in ("unet", "vae", "text_encoder"):
        library, kind = index[name]
        assert any(line.startswith(f"{name}: {kind} of {library}, ") for line in found.holds), found.holds


def test_every_components_class_is_asked(base: Path, tmp_path: Path) -> None:
    (check,) = [one for one in surgery.verify(base).checks if one.name == "class"]
    assert check.ok and {row.partition(":")[0] for row in check.where} >= {"unet", "vae", "text_encoder"}
    tensors = load_file(base / "unet" / UNET)
    name = next(iter(tensors))

    def lost(folder: Path) -> None:
        save_file({n: t for n, t in tensors.items() if n != name} | {"strange": torch.ones(1)}, folder / "unet" / UNET)

    found = surgery.verify(changed(base, tmp_path / "lost", lost))
    assert not found.ok and name in str(found.checks) and "strange" in str(found.checks)

    def wide(folder: Path) -> None:
        file = folder / "unet/config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "in_channels": 9}))

    assert "conv_in.weight is" in str(surgery.verify(changed(base, tmp_path / "wide", wide)).checks)


def test_variants(base: Path, tmp_path: Path) -> None:
    """One of several is the plain one, and the other is left out by name; alone, it keeps its name."""

    def both(folder: Path) -> None:
        file = folder / "unet" / UNET
        halves = {name: tensor.half() for name, tensor in load_file(file).items()}
        save_file(halves, file.with_name("diffusion_pytorch_model.fp16.safetensors"), {"format": "pt"})

    def alone(folder: Path) -> None:
        both(folder)
        (folder / "unet" / UNET).unlink()

    made = surgery.open_checkpoint(changed(base, tmp_path / "both", both))
    assert any(note.startswith("unet: left out") and "fp16" in note for note in made.notes)
    assert {tensor.dtype.name for name, tensor in made.tensors.items() if name.startswith("unet/")} == {"F32"}
    source = changed(base, tmp_path / "alone", alone)
    surgery.write(surgery.open_checkpoint(source), tmp_path / "out")
    assert hashes(tmp_path / "out") == hashes(source)
    assert surgery.verify(source).ok


def test_names_of_older_versions_of_diffusers_are_no_fault(base: Path, tmp_path: Path) -> None:
    """As autoencoders of Stable Diffusion lie on the Hub: the class's own loader turns them."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def called(name: str) -> str:
        parts = [(new, was) for new, was in old.items() if f".{new}." in name and "attentions" in name]
        return name.replace(f".{parts[0][0]}.", f".{parts[0][1]}.") if parts else name

    def aged(folder: Path) -> None:
        file = folder / "vae" / UNET
        tensors = load_file(file)
        assert any(called(name) != name for name in tensors)
        save_file({called(name): tensor for name, tensor in tensors.items()}, file, {"format": "pt"})

    source = changed(base, tmp_path / "aged", aged)
    assert surgery.verify(source).ok
    opened(source)
