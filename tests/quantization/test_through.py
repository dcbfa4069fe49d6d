"""Adapters that were trained on codes of a base, merged into the base in 16 bits: the model that was trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from typer.testing import CliRunner

import surgery
from surgery_cli.app import app

INPUT = torch.arange(20)[None]
KINDS = ("llama", "gpt2")


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models in 16 bits, whose linear weights are far from any grid."""
    folder = tmp_path_factory.mktemp("through")
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96}
    llama = LlamaConfig(hidden_size=128, intermediate_size=192, num_hidden_layers=2, **sizes)
    LlamaForCausalLM(llama).to(torch.bfloat16).save_pretrained(folder / "llama")
    gpt2 = GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=96, n_positions=32)
    GPT2LMHeadModel(gpt2).to(torch.bfloat16).save_pretrained(folder / "gpt2")
    return folder


def trained(base: Path, folder: Path, double: bool, **options: object) -> tuple[Path, torch.nn.Module]:
    """An adapter with random factors, and the live model in NF4, decoded by transformers, with it."""
    torch.manual_seed(1)
    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    codes = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=how, device_map="cpu", dtype=torch.bfloat16
    ).dequantize()
    live = get_peft_model(codes.float(), LoraConfig(r=4, lora_alpha=16, **options))  # type: ignore[arg-type]
    for name, value in live.named_parameters():
        if "lora_" in name and "magnitude" not in name:
            torch.nn.init.normal_(value, std=0.03)
    live.save_pretrained(folder)
    return folder, live


def logits(live: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return live(INPUT).logits.float()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_the_result_is_the_model_that_was_trained(
    bases: Path, tmp_path: Path, kind: str, double: bool, dora: bool
) -> None:
    """In float32, so that no rounding hides anything; into the plain base it is another model."""
    targets = ["q_proj", "down_proj"] if kind == "llama" else ["c_attn"]
    lora, live = trained(bases / kind, tmp_path / "lora", double, target_modules=targets, use_dora=dora)
    base, adapter = surgery.open_checkpoint(bases / kind), surgery.open_adapter(lora)
    scheme = "nf4:64:double" if double else "nf4"
    surgery.write(surgery.merge(base, adapter, through=scheme, dtype="float32"), tmp_path / "out")
    surgery.write(surgery.merge(base, adapter, dtype="float32"), tmp_path / "other")
    wanted = logits(live)
    found, other = (logits(AutoModelForCausalLM.from_pretrained(tmp_path / name)) for name in ("out", "other"))
    away = (other - wanted).abs().max()
    assert away > 20 * (found - wanted).abs().max()


def test_untouched_weights_are_what_their_codes_mean_and_nothing_else_changes(bases: Path, tmp_path: Path) -> None:
    base = bases / "llama"
    lora, live = trained(base, tmp_path / "lora", False, target_modules=["q_proj"])
    made = surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(lora), through="nf4")
    surgery.write(made, tmp_path / "out")
    assert (base / "config.json").read_bytes() == (tmp_path / "out/config.json").read_bytes()
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    decoded = dict(live.get_base_model().named_parameters())  # type: ignore[operator]
    assert before.keys() == after.keys()
    for name, value in after.items():
        assert value.dtype == torch.bfloat16
        if "q_proj" not in name:
            assert torch.equal(value.float(), decoded[name].float()), name
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {n for n in before if "_proj" in n}
    assert "what their codes in nf4 mean" in " ".join(made.notes)


def test_it_is_verified_and_undone(bases: Path, tmp_path: Path) -> None:
    base = surgery.open_checkpoint(bases / "llama")
    lora, _ = trained(bases / "llama", tmp_path / "lora", True, target_modules=["q_proj"])
    adapter = surgery.open_adapter(lora)
    made = surgery.reversible(surgery.merge(base, adapter, through="nf4-double"), base)
    surgery.write(made, tmp_path / "out")
    checked = surgery.verify(tmp_path / "out", base=bases / "llama", adapter=lora)
    assert checked.ok and checked.proof and checked.proof.ok, checked.checks
    surgery.write(surgery.unmerge(surgery.open_checkpoint(tmp_path / "out")), tmp_path / "back")
    assert (tmp_path / "back/model.safetensors").read_bytes() == (bases / "llama/model.safetensors").read_bytes()


def test_it_is_verified_as_it_is_told_where_nothing_tells_it(bases: Path, tmp_path: Path) -> None:
    """From Python and on the command line; without being told, it is another merge."""
    lora, _ = trained(bases / "llama", tmp_path / "lora", False, target_modules=["q_proj"])
    base = surgery.open_checkpoint(bases / "llama")
    surgery.write(surgery.merge(base, surgery.open_adapter(lora), through="nf4"), tmp_path / "out")
    shutil.rmtree(tmp_path / "out/.surgery")
    told = {"base": bases / "llama", "adapter": lora, "check_class": False}
    assert surgery.verify(tmp_path / "out", through="nf4", **told).ok
    assert not surgery.verify(tmp_path / "out", **told).ok
    words = ["verify", str(tmp_path / "out"), "--base", str(bases / "llama"), "--adapter", str(lora), "--no-class"]
    assert CliRunner().invoke(app, [*words, "--through", "nf4"]).exit_code == 0
    assert CliRunner().invoke(app, words).exit_code == 1
    assert CliRunner().invoke(app, ["verify", str(tmp_path / "out"), "--through", "nf4"]).exit_code == 2


def test_bytes_do_not_depend_on_workers_or_memory(bases: Path, tmp_path: Path) -> None:
    lora, _ = trained(bases / "gpt2", tmp_path / "lora", True, target_modules=["c_attn"])
    made = surgery.merge(surgery.open_checkpoint(bases / "gpt2"), surgery.open_adapter(lora), through="nf4-double")
    surgery.write(made, tmp_path / "one", workers=1)
    surgery.write(made, tmp_path / "three", workers=3, memory="60MB")
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "three/model.safetensors").read_bytes()


def test_a_base_with_codes_of_its_own_is_refused(bases: Path, tmp_path: Path) -> None:
    lora, _ = trained(bases / "llama", tmp_path / "lora", False, target_modules=["q_proj"])
    codes = surgery.quantize(surgery.open_checkpoint(bases / "llama"), "nf4")
    with pytest.raises(surgery.SurgeryError, match="this one is quantised"):
        surgery.merge(codes, surgery.open_adapter(lora), through="nf4")


def test_what_another_base_costs_is_measured(bases: Path, tmp_path: Path) -> None:
    """Against the figures that torch gives; the result is the same byte for byte."""
    base, opened = bases / "llama", surgery.open_checkpoint(bases / "llama")
    surgery.write(surgery.quantize(opened, "nf4-double"), tmp_path / "codes")
    surgery.write(surgery.dequantize(surgery.open_checkpoint(tmp_path / "codes")), tmp_path / "decoded")
    lora, _ = trained(base, tmp_path / "lora", True, target_modules=["q_proj", "down_proj"])
    adapter = surgery.open_adapter(lora)
    made = surgery.merge(opened, adapter, trained_on=surgery.open_checkpoint(tmp_path / "codes"))
    report = surgery.write(made, tmp_path / "out")
    surgery.write(surgery.merge(opened, adapter), tmp_path / "without")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
    plain, codes = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "decoded"))
    merged = surgery.merge(opened, adapter, dtype="float32")
    figures = report.costs["weights"]
    assert set(figures) == {n for n in plain if "q_proj" in n or "down_proj" in n}
    for name, said in figures.items():
        weight = plain[name].float()
        added, off = (merged.load(name) - weight).norm(), (codes[name].float() - weight).norm()
        assert abs(said["delta"] / added - 1) < 1e-4
        assert abs(said["quantisation"] / off - 1) < 1e-3
        assert abs(said["ratio"] / (off / added) - 1) < 1e-3
    worst = max(figures, key=lambda name: figures[name]["ratio"])
    assert report.costs["worst"]["weight"] == worst
    assert f"in the worst, {worst}" in " ".join(report.notes)
    through = surgery.merge(
        opened, adapter, through="nf4-double", trained_on=surgery.open_checkpoint(tmp_path / "codes")
    )
    assert through.costs["worst"]["ratio"] < 0.01 * report.costs["worst"]["ratio"] + 0.05


def test_what_was_not_quantised_cannot_have_been_trained_on_so(bases: Path, tmp_path: Path) -> None:
    lora, _ = trained(bases / "llama", tmp_path / "lora", True, target_modules=["q_proj"])
    opened = surgery.open_checkpoint(bases / "llama")
    with pytest.raises(surgery.NothingMatched, match="is quantised in what"):
        surgery.merge(opened, surgery.open_adapter(lora), trained_on=opened)
    other = surgery.quantize(surgery.open_checkpoint(bases / "llama"), "nf4", except_=".*q_proj")
    with pytest.raises(surgery.NothingMatched, match="is quantised in what"):
        surgery.merge(opened, surgery.open_adapter(lora), trained_on=other)
