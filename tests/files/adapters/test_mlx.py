"""Adapters of mlx-lm: what is merged of them computes what MLX's own layers do, which made the fixtures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from foreign import TOOLS, check_computes, check_modules, merged_with, saved_as, wrapped
from safetensors.torch import load_file, save_file
from tiny_models import output

import surgery
from surgery.errors import AdapterError, FormatError, NotACheckpoint, NotSupported

Saved = Callable[..., Path]


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_merged_weights_compute_what_mlx_does(kind: str, tmp_path: Path) -> None:
    folder = TOOLS / f"mlx-{kind}"
    check_modules(folder, folder / "adapters.safetensors", tmp_path)


class Layer(torch.nn.Module):
    """What mlx_lm's LoRALinear computes."""

    def __init__(self, linear: torch.nn.Linear, rank: int = 4, scale: float = 5.0) -> None:
        super().__init__()
        self.linear, self.scale = linear, scale
        self.lora_a = torch.nn.Parameter(torch.randn(linear.in_features, rank) * 0.1)
        self.lora_b = torch.nn.Parameter(torch.randn(rank, linear.out_features) * 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.scale * ((x @ self.lora_a) @ self.lora_b)


CONFIG = {"fine_tune_type": "lora", "num_layers": 3, "lora_parameters": {"rank": 4, "scale": 5.0, "dropout": 0.0}}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """An adapter folder of a small Llama, and what the live network computes."""
    model = wrapped("llama", Layer, ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"))
    folder = tmp_path_factory.mktemp("mlx") / "adapters"
    factors = {name: one for name, one in model.state_dict().items() if ".lora_" in name}
    saved_as(folder, factors, "adapters.safetensors", CONFIG)
    return folder, output(model, "llama")


@pytest.mark.parametrize("given", ["folder", "file"])
def test_a_whole_network(given: str, llama: tuple[Path, torch.Tensor], saved: Saved, tmp_path: Path) -> None:
    folder, live = llama
    path = folder if given == "folder" else folder / "adapters.safetensors"
    merged = merged_with(saved("llama"), path, tmp_path / "out")
    check_computes("llama", saved("llama"), merged, live)
    found = surgery.verify(tmp_path / "out", base=saved("llama"), adapter=path, check_class=False)
    assert found.ok and found.proof and found.proof.tensors


def test_without_its_config_the_scale_is_asked_for(
    llama: tuple[Path, torch.Tensor], saved: Saved, tmp_path: Path
) -> None:
    shutil.copy(llama[0] / "adapters.safetensors", tmp_path / "mine.safetensors")
    with pytest.raises(AdapterError, match="does not say alpha"):
        surgery.open_adapter(tmp_path / "mine.safetensors")
    merged = merged_with(saved("llama"), tmp_path / "mine.safetensors", tmp_path / "out", alpha=20)
    check_computes("llama", saved("llama"), merged, llama[1])
    proof = surgery.verify(merged, base=saved("llama"), adapter=tmp_path / "mine.safetensors", alpha=20)
    assert proof.ok
    assert not surgery.verify(merged, base=saved("llama"), adapter=tmp_path / "mine.safetensors", alpha=10).ok


def test_inspect_says_what_was_recognised_and_why(llama: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    found = surgery.inspect(llama[0])
    assert found.kind == "adapter" and found.adapter["format"] == "MLX" and "lora_a" in found.adapter["why"]
    assert (
        found.adapter["lora_alpha"] == 20 and found.adapter["r"] == 4 and list(found.shards) == ["adapters.safetensors"]
    )
    shutil.copy(llama[0] / "adapters.safetensors", tmp_path / "mine.safetensors")
    assert surgery.inspect(tmp_path / "mine.safetensors").adapter["format"] == "MLX"
    looked = surgery.open_any(tmp_path / "mine.safetensors")
    assert isinstance(looked, surgery.Adapter) and looked.config["lora_alpha"] is None


def test_what_is_only_looked_at_is_not_merged(llama: tuple[Path, torch.Tensor], saved: Saved, tmp_path: Path) -> None:
    shutil.copy(llama[0] / "adapters.safetensors", tmp_path / "mine.safetensors")
    looked = surgery.open_any(tmp_path / "mine.safetensors")
    assert isinstance(looked, surgery.Adapter)
    with pytest.raises(AdapterError, match="rank or alpha is not a number") as caught:
        surgery.merge(surgery.open_checkpoint(saved("llama")), looked)
    assert "--alpha" in str(caught.value)


def test_earlier_saves_beside_the_last_one_are_told(llama: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    shutil.copytree(llama[0], tmp_path / "run")
    shutil.copy(llama[0] / "adapters.safetensors", tmp_path / "run/0000100_adapters.safetensors")
    opened = surgery.open_adapter(tmp_path / "run")
    assert any("0000100_adapters.safetensors" in note for note in opened.notes)
    (tmp_path / "run/adapters.safetensors").rename(tmp_path / "run/0000200_adapters.safetensors")
    with pytest.raises(NotACheckpoint, match="holds 2 adapters"):
        surgery.open_adapter(tmp_path / "run")


def test_tied_embeddings_stay_one(saved: Saved, tmp_path: Path) -> None:
    """MLX computes the head with the embedding that LoRA changed."""
    a, b = torch.randn(97, 4), torch.randn(4, 48) * 0.1
    tensors = {"model.embed_tokens.lora_a": a, "model.embed_tokens.lora_b": b}
    saved_as(tmp_path / "a", tensors, "adapters.safetensors", CONFIG)
    out = merged_with(saved("llama-tied"), tmp_path / "a", tmp_path / "out")
    weights, old = load_file(out / "model.safetensors"), load_file(saved("llama-tied") / "model.safetensors")
    assert weights.keys() == old.keys() and "lm_head.weight" not in weights
    name = "model.embed_tokens.weight"
    assert torch.allclose(weights[name], old[name] + 5.0 * a @ b, atol=1e-5)


def test_a_full_fine_tune_takes_the_bases_place(saved: Saved, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    new = {name: torch.randn(80, 48)}
    saved_as(tmp_path / "a", new, "adapters.safetensors", {"fine_tune_type": "full", "num_layers": 1})
    out = merged_with(saved("llama"), tmp_path / "a", tmp_path / "out")
    assert torch.equal(load_file(out / "model.safetensors")[name], new[name])


BROKEN = {
    "rank": ({"lora_parameters": {"rank": 8, "scale": 5.0}}, {}, "says rank 8, and the factors are of rank 4"),
    "scale": ({"lora_parameters": {"rank": 4, "scale": "5"}}, {}, "scale is not a number"),
    "kind": ({"fine_tune_type": "vera"}, {}, "fine_tune_type 'vera'"),
    "dora": ({"fine_tune_type": "dora"}, {}, "0 of 15 modules have DoRA's magnitudes"),
    "half": ({}, {"model.layers.0.mlp.up_proj.lora_b": None}, "the module has no lora_b"),
    "integers": ({}, {"model.layers.0.mlp.up_proj.lora_b": torch.ones(4, 80, dtype=torch.int32)}, "of I32"),
    "turned": ({}, {"model.layers.0.mlp.up_proj.lora_b": torch.ones(80, 4)}, r"are not \(in, r\) and \(r, out\)"),
    "more": ({}, {"model.layers.0.mlp.extra": torch.ones(4)}, "1 tensors in an adapter's file are none of MLX's"),
    "PEFT's too": ({}, {"base_model.model.x.lora_A.weight": torch.ones(4, 80)}, "2 formats at once"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_contradicts_itself_is_refused(case: str, llama: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    config, more, said = BROKEN[case]
    tensors = {**load_file(llama[0] / "adapters.safetensors"), **more}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    saved_as(tmp_path / "a", tensors, "adapters.safetensors", {**CONFIG, **config})
    with pytest.raises((AdapterError, FormatError), match=said):
        surgery.open_adapter(tmp_path / "a")


def test_nan_is_refused_before_writing(llama: tuple[Path, torch.Tensor], saved: Saved, tmp_path: Path) -> None:
    tensors = load_file(llama[0] / "adapters.safetensors")
    tensors["model.layers.0.mlp.up_proj.lora_b"][0, 0] = float("nan")
    saved_as(tmp_path / "a", tensors, "adapters.safetensors", CONFIG)
    with pytest.raises(AdapterError, match=r"NaN|finite"):
        merged_with(saved("llama"), tmp_path / "a", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_dora_on_an_embedding_is_refused(tmp_path: Path) -> None:
    tensors = {"model.embed_tokens.lora_a": torch.ones(9, 4), "model.embed_tokens.lora_b": torch.ones(4, 6)}
    tensors["model.embed_tokens.m"] = torch.ones(9)
    saved_as(tmp_path / "a", tensors, "adapters.safetensors", {**CONFIG, "fine_tune_type": "dora"})
    with pytest.raises(NotSupported, match="DoRA on an embedding"):
        surgery.open_adapter(tmp_path / "a")


def test_archives_of_numpy_are_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "adapters.npz").write_bytes(b"PK")
    for path in (tmp_path, tmp_path / "adapters.npz"):
        with pytest.raises(NotACheckpoint, match="neither safetensors, nor GGUF, nor what torch saves") as caught:
            surgery.open_adapter(path)
        assert "save_safetensors" in str(caught.value)


def test_a_model_with_such_names_stays_a_model(llama: tuple[Path, torch.Tensor], saved: Saved, tmp_path: Path) -> None:
    """A folder with a config.json is a checkpoint, whatever its tensors are called."""
    shutil.copytree(saved("llama"), tmp_path / "m")
    save_file(load_file(llama[0] / "adapters.safetensors"), tmp_path / "m/model.safetensors")
    assert isinstance(surgery.open_any(tmp_path / "m"), surgery.Checkpoint)


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"lora_parameters": {**CONFIG["lora_parameters"], "keys": ["self_attn.v_proj"]}}, "does not aim at modules"),  # type: ignore[dict-item]
        ({"num_layers": 1}, "LoRA in 3 layers"),
    ],
)
def test_what_mlx_would_pass_over_is_refused(
    said: dict[str, object], what: str, llama: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(llama[0], tmp_path / "a"))
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **said}))
    with pytest.raises(AdapterError, match=what):
        surgery.open_adapter(folder)
