"""Merges into quantised bases, proved: surgery's own, PEFT's, and such that were tampered with."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from quantization.live import HOW, Quantised, adapter
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import surgery
from surgery import Verdict
from surgery.checks.loadable import _asked
from surgery_cli.app import app

WAYS: dict[str, dict[str, Any]] = {
    "mixed": {},
    "dequantize": {"dequantize": True},
    "requantize": {"requantize": True, "lossy": True},
}
ALL = (*HOW, "fp8")
TARGETS = ["q_proj", "down_proj"]


def merged(base: Path, lora: Path, out: Path, **way: Any) -> Path:
    surgery.write(surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(lora), **way), out)
    return out


def edit(folder: Path, name: str, change: Any) -> None:
    """Change a stored tensor in place."""
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        if name in tensors:
            change(tensors[name])
            save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("way", WAYS)
def test_a_merge_of_surgery_is_proved(quantised: Quantised, tmp_path: Path, how: str, way: str) -> None:
    base = quantised(how)
    lora = adapter(base, tmp_path / "lora", 0.05, target_modules=TARGETS)
    out = merged(base, lora, tmp_path / "out", **WAYS[way])
    found = surgery.verify(out, base=base, adapter=lora, check_class=how == "int8")
    assert found.ok and found.proof is not None
    assert len(found.proof.of(Verdict.EXACT)) == 4
    assert len(found.proof.of(Verdict.KEPT)) == len(found.proof.tensors) - 4
    other = adapter(base, tmp_path / "other", 0.06, target_modules=TARGETS)
    wrong = surgery.verify(out, base=base, adapter=other, check_class=False).proof
    assert wrong is not None and len(wrong.wrong) == 4
    assert not surgery.verify(base, base=base, adapter=lora, check_class=False).ok


@pytest.mark.parametrize("how", ALL)
def test_without_a_manifest_the_way_is_found_or_told(quantised: Quantised, tmp_path: Path, how: str) -> None:
    base = quantised(how)
    lora = adapter(base, tmp_path / "lora", 0.05, target_modules=TARGETS)
    for way, options in WAYS.items():
        out = merged(base, lora, tmp_path / way, **options)
        shutil.rmtree(out / ".surgery")
        found = surgery.verify(out, base=base, adapter=lora, check_class=False)
        verdicts = {one.verdict for one in found.proof.tensors} if found.proof is not None else set()
        if way != "requantize":
            assert verdicts == {Verdict.EXACT, Verdict.KEPT}
        else:
            assert verdicts - {Verdict.KEPT} <= {Verdict.RECODED, Verdict.ERASED}
            told = surgery.verify(out, base=base, adapter=lora, check_class=False, requantize=True)
            assert told.proof is not None and {one.verdict for one in told.proof.tensors} == {
                Verdict.EXACT,
                Verdict.KEPT,
            }
            words = ["verify", str(out), "--base", str(base), "--adapter", str(lora), "--no-class", "--requantize"]
            assert CliRunner().invoke(app, words).exit_code == 0


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("part", ["codes", "scale", "kept codes", "kept scale"])
def test_what_was_tampered_with_is_named(quantised: Quantised, tmp_path: Path, how: str, part: str) -> None:
    base = quantised(how)
    lora = adapter(base, tmp_path / "lora", 0.05, target_modules=TARGETS)
    out = merged(base, lora, tmp_path / "out", requantize=True, lossy=True)
    module = f"model.layers.1.self_attn.{'o' if 'kept' in part else 'q'}_proj"
    scale = {"nf4": ".weight.nested_absmax", "int8": ".SCB", "fp8": ".weight_scale_inv"}[how]
    name = f"{module}{scale if 'scale' in part else '.weight'}"

    def change(tensor: torch.Tensor) -> None:
        raw = tensor.view(-1)
        if "scale" in part:
            raw[0] *= 1.5
        else:
            raw.view(torch.uint8)[7] ^= 0x38

    edit(out, name, change)
    found = surgery.verify(out, base=base, adapter=lora, check_class=False).proof
    assert found is not None and {one.name for one in found.wrong} <= {name, f"{module}.weight"}
    assert module in str(found.wrong)


def test_config_that_was_tampered_with_is_named(quantised: Quantised, tmp_path: Path) -> None:
    base = quantised("nf4")
    lora = adapter(base, tmp_path / "lora", 0.05, target_modules=TARGETS)
    out = merged(base, lora, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"]["llm_int8_skip_modules"] = ["lm_head"]
    (out / "config.json").write_text(json.dumps(config))
    found = surgery.verify(out, base=base, adapter=lora, check_class=False)
    assert not found.ok and "config.json" in str(found.checks)


def test_companions_that_contradict_the_codes_are_an_answer(quantised: Quantised, tmp_path: Path) -> None:
    base = quantised("nf4")
    lora = adapter(base, tmp_path / "lora", 0.05, target_modules=TARGETS)
    out = merged(base, lora, tmp_path / "out", requantize=True, lossy=True)
    path, name = out / "model.safetensors", "model.layers.0.mlp.up_proj.weight.absmax"
    tensors = load_file(path)
    save_file({n: t[:5] if n == name else t for n, t in tensors.items()}, path, {"format": "pt"})
    found = surgery.verify(out, base=base, adapter=lora, check_class=False)
    failed = {check.name: check for check in found.checks if check.ok is False}
    assert name in str(failed["quantization"]) and found.proof is None


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(("spread", "kept"), [(0.15, True), (0.004, False)])
def test_what_peft_merges_into_codes_is_explained(
    quantised: Quantised, tmp_path: Path, how: str, spread: float, kept: bool
) -> None:
    """Live: PEFT decodes, adds and codes again with fresh scales; with a small delta, next to nothing arrives."""
    base = quantised(how)
    lora = adapter(base, tmp_path / "lora", spread, target_modules=TARGETS)
    live = AutoModelForCausalLM.from_pretrained(base, device_map="cpu")
    shutil.copytree(base, tmp_path / "out")
    made = PeftModel.from_pretrained(live, lora).merge_and_unload().state_dict()
    save_file({n: t.contiguous() for n, t in made.items()}, tmp_path / "out/model.safetensors", {"format": "pt"})
    found = surgery.verify(tmp_path / "out", base=base, adapter=lora, check_class=False)
    assert found.proof is not None
    verdicts = {one.name: one for one in found.proof.tensors if one.verdict is not Verdict.KEPT}
    assert verdicts.keys() == {
        f"model.layers.{i}.{m}.weight" for i in (0, 1) for m in ("self_attn.q_proj", "mlp.down_proj")
    }
    lost = how == "nf4" and not kept
    assert {one.verdict for one in verdicts.values()} == {Verdict.ERASED if lost else Verdict.RECODED}
    assert found.ok is not lost and "survives" in str(found.checks)
    now, was = (surgery.dequantize(surgery.open_checkpoint(p), dtype="float32") for p in (tmp_path / "out", base))
    opened = surgery.open_checkpoint(base), surgery.open_adapter(lora)
    wanted = surgery.merge(*opened, dequantize=True, dtype="float32")
    for name, one in verdicts.items():
        delta = (wanted.load(name).double() - was.load(name).double()).flatten()
        change = (now.load(name).double() - was.load(name).double()).flatten()
        assert one.factor is not None and abs(one.factor - float(change @ delta / (delta @ delta))) < 0.02
    twice = surgery.verify(tmp_path / "out", base=base, adapter=lora, check_class=False, scale=2.0).proof
    assert twice is not None and (len(twice.of(Verdict.WRONG)) == 4 or not kept)


def test_a_merge_that_was_quantised_afterwards_is_explained(quantised: Quantised, tmp_path: Path) -> None:
    """The better way round: the 16-bit base with the adapter, quantised as a whole."""
    plain = quantised("nf4").parent / "plain"
    lora = adapter(plain, tmp_path / "lora", 0.05, target_modules=TARGETS)
    whole = merged(plain, lora, tmp_path / "whole")
    live = AutoModelForCausalLM.from_pretrained(
        whole, quantization_config=HOW["nf4"], device_map="cpu", dtype=torch.bfloat16
    )
    live.save_pretrained(tmp_path / "out")
    found = surgery.verify(tmp_path / "out", base=plain, adapter=lora, check_class=False)
    assert found.ok and found.proof is not None
    told = [one.factor for one in found.proof.of(Verdict.RECODED) if one.factor is not None]
    assert len(told) == 4 and all(0.8 < share < 1.2 for share in told)
    assert len(found.proof.of(Verdict.RECODED)) == 14


@pytest.mark.parametrize("how", ALL)
def test_the_class_is_asked(quantised: Quantised, tmp_path: Path, how: str) -> None:
    base = quantised(how)
    lora = adapter(base, tmp_path / "lora", 0.05, target_modules=TARGETS)
    for way in ({}, {"dequantize": True}):
        out = merged(base, lora, tmp_path / f"out{len(way)}", **way)
        assert surgery.verify(out).ok
    assert surgery.verify(base).ok
    wide = merged(base, lora, tmp_path / "wide", dequantize=True)
    surgery.write(surgery.drop(surgery.open_checkpoint(wide), r".*layers\.1.*o_proj.*"), tmp_path / "less")
    assert "layers.1.self_attn.o_proj.weight" in str(surgery.verify(tmp_path / "less").checks)


def test_what_is_imported_says_nothing(quantised: Quantised, caplog: pytest.LogCaptureFixture) -> None:
    """Such as bitsandbytes of kernels that it does not find; afterwards it may speak again."""

    def asked(*_: object, **__: object) -> object:
        logging.getLogger("bitsandbytes.backends.cpu.ops").warning("Failed to load CPU gemm_4bit_forward")
        raise OSError("not now")

    kind = SimpleNamespace(from_pretrained=asked)
    with pytest.raises(OSError, match="not now"):
        _asked(kind, surgery.open_checkpoint(quantised("nf4")))
    assert "Failed" not in caplog.text
    logging.getLogger("bitsandbytes").warning("heard")
    assert "heard" in caplog.text
