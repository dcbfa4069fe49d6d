"""Inspecting quantised checkpoints: what the codes mean is counted, and what cannot be read is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import surgery
from surgery_cli.app import app

HOW = {
    "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "int8": BitsAndBytesConfig(load_in_8bit=True),
}
LINEAR = {"q_proj": 2, "k_proj": 2, "v_proj": 2, "o_proj": 2, "gate_proj": 2, "up_proj": 2, "down_proj": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, plain and as transformers and surgery quantise it."""
    folder = tmp_path_factory.mktemp("quantised")
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 96}
    config = LlamaConfig(**sizes, num_attention_heads=4)  # type: ignore[arg-type]
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "plain")
    for how, said in HOW.items():
        live = AutoModelForCausalLM.from_pretrained(
            folder / "plain", quantization_config=said, device_map="cpu", dtype=torch.bfloat16
        )
        live.save_pretrained(folder / how)
    base = surgery.open_checkpoint(folder / "plain")
    surgery.write(surgery.quantize(base, "fp8"), folder / "fp8")
    surgery.write(surgery.quantize(base, "fp8", except_=r".*layers\.0\..*"), folder / "mixed")
    return folder


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def elements(tensors: dict[str, torch.Tensor]) -> int:
    return sum(t.numel() for t in tensors.values())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Those of linear modules but the head, as they are in 16 bits."""
    return {n: t for n, t in stored(folder).items() if n.endswith("_proj.weight")}


@pytest.mark.parametrize("how", [*HOW, "fp8", "mixed"])
def test_the_codes_count_as_what_they_mean(how: str, made: Path) -> None:
    found = surgery.inspect(made / how)
    plain, now = stored(made / "plain"), stored(made / how)
    assert found.total.parameters == elements(plain)
    assert found.total.tensors == len(now) > len(plain)
    assert found.total.nbytes == sum(t.nbytes for t in now.values())
    assert found.quantization and found.quantization.method == ("bitsandbytes" if how in HOW else "fp8")
    (one,) = found.quantization.schemes
    meant = {n: t for n, t in weights(made / "plain").items() if how != "mixed" or ".layers.0." not in n}
    assert (one.weights, one.parameters) == (len(meant), elements(meant))
    others = found.quantization.others
    assert others.tensors == len(plain) - len(meant) and others.parameters == elements(plain) - elements(meant)
    assert one.nbytes + others.nbytes == found.total.nbytes
    assert {t.name: t.modules for t in one.modules} == {n: c // (2 if how == "mixed" else 1) for n, c in LINEAR.items()}
    assert found.targets == surgery.inspect(made / "plain").targets
    assert not found.notes


def test_what_a_user_sees(made: Path) -> None:
    shown = CliRunner().invoke(app, ["inspect", str(made / "mixed")]).stdout
    assert "FP8, blocks of 128 x 128: 7 weights, " in shown and "not quantised: 14 tensors, " in shown
    assert "down_proj ×1 (128×256)" in shown and "{" not in shown
    told = json.loads(CliRunner().invoke(app, ["inspect", str(made / "nf4"), "--json"]).stdout)
    (scheme,) = told["quantization"]["schemes"]
    down = {"name": "down_proj", "modules": 2, "shapes": [[128, 256]]}
    assert scheme["weights"] == 14 and scheme["modules"][0] == down
    assert surgery.inspect(made / "plain").quantization is None


def changed(made: Path, out: Path, said: Any, drop: str = "") -> Path:
    """The FP8 checkpoint whose config says something else, without the tensors whose name ends in `drop`."""
    shutil.copytree(made / "fp8", out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "quantization_config": said}))
    save_file(
        {n: t for n, t in stored(made / "fp8").items() if not drop or not n.endswith(drop)}, out / "model.safetensors"
    )
    return out


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
WRONG: dict[str, tuple[Any, str, str, str]] = {
    "refused": ({"quant_method": "aqlm"}, "", "aqlm", "weights quantised by aqlm are not read"),
    "unknown": ({"quant_method": "shiny"}, "", "shiny", "weights quantised by `shiny` are not known"),
    "unnamed": ({"bits": 4}, "", "unnamed", "are not known"),
    "without scales": (FP8, "_scale_inv", "fp8", "float8 weights have no scale, and mean nothing without it"),
    "other blocks": ({**FP8, "weight_block_size": [7, 7]}, "", "fp8", "which are not blocks of 7 x 7"),
    "no blocks": ({**FP8, "weight_block_size": "big"}, "", "fp8", "the blocks of the weights are 'big'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_read_is_a_note(name: str, made: Path, tmp_path: Path) -> None:
    """inspect still tells the rest."""
    said, drop, method, why = WRONG[name]
    found = surgery.inspect(changed(made, tmp_path / "x", said, drop))
    assert found.quantization and (found.quantization.method, found.quantization.schemes) == (method, ())
    assert found.quantization.others == found.total
    assert any(note.startswith("its codes are not read: ") and why in note for note in found.notes), found.notes
    assert found.model_type == "llama" and found.targets
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "x")])
    assert shown.exit_code == 0 and re_line(shown.stdout, "quantised") == method


def re_line(text: str, key: str) -> str:
    return next(line.split(None, 1)[1] for line in text.splitlines() if line.strip().startswith(key))
