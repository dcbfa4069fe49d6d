"""Weights quantised here: the bytes that bitsandbytes and transformers make, whatever is asked for, and back."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from made import weights
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import surgery
from surgery.evaluation.evaluate import blocks, load, workspace_of
from surgery.quantization.fresh import recipe_of

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
INPUT = torch.arange(20)[None]


def stored(tensor: torch.Tensor, folder: Path) -> surgery.Checkpoint:
    """A checkpoint of one weight `m.weight`, which is what `model.safetensors` holds."""
    folder.mkdir(exist_ok=True)
    save_file({"m.weight": tensor}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return surgery.open_checkpoint(folder)


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def by_bitsandbytes(value: torch.Tensor, block: int, double: bool) -> dict[str, torch.Tensor]:
    from bitsandbytes import functional

    codes, state = functional.quantize_4bit(
        value, blocksize=block, quant_type="nf4", compress_statistics=double, quant_storage=torch.uint8
    )
    return {"m.weight": codes, **{f"m.weight.{n}": t for n, t in state.as_dict(packed=True).items()}}


def by_transformers(value: torch.Tensor) -> dict[str, torch.Tensor]:
    from transformers.integrations.finegrained_fp8 import Fp8Quantize

    said = SimpleNamespace(weight_block_size=[128, 128], scale_fmt="float")
    return Fp8Quantize(SimpleNamespace(quantization_config=said)).convert({"m.weight": value})


SHAPES = ((8, 64), (5, 33), (3, 130), (1, 7), (257, 96), (300, 300), (1, 1))
VALUES = {
    "usual": lambda shape, dtype: weights(shape, dtype=dtype),
    "zeros": lambda shape, dtype: torch.zeros(shape, dtype=dtype),
    "spread": lambda shape, dtype: (torch.randn(shape, generator=torch.manual_seed(3)) ** 5).to(dtype),
    "ties": lambda shape, dtype: (torch.randint(-8, 9, shape, generator=torch.manual_seed(3)) / 8).to(dtype),
    "tiny": lambda shape, dtype: (torch.randn(shape, generator=torch.manual_seed(3)) * 1e-38).to(dtype),
}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize(("block", "double"), itertools.product((64, 256), (False, True)))
def test_nf4_is_what_bitsandbytes_makes(kind: str, block: int, double: bool, tmp_path: Path) -> None:
    scheme = recipe_of(f"nf4:{block}{':double' if double else ''}")
    for shape, dtype in itertools.product(SHAPES, (BF16, F16, F32)):
        value = VALUES[kind](shape, dtype)
        parts = scheme.parts("m.weight", stored(value, tmp_path / "base")["m.weight"])
        wanted = by_bitsandbytes(value, block, double)
        assert parts.keys() == wanted.keys()
        for name, tensor in wanted.items():
            found = load(parts[name])
            assert found.dtype == tensor.dtype and found.shape == tensor.shape, name
            assert raw(found) == raw(tensor), (name, shape, dtype)


def test_the_mean_of_many_scales_is_that_of_one_thread(tmp_path: Path) -> None:
    """Of more than 32768 of them torch sums in an order that depends on the threads it has."""
    value, threads = weights((600, 4096)), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        wanted = by_bitsandbytes(value, 64, True)
    finally:
        torch.set_num_threads(threads)
    parts = recipe_of("nf4-double").parts("m.weight", stored(value, tmp_path / "base")["m.weight"])
    assert [name for name, tensor in wanted.items() if raw(load(parts[name])) != raw(tensor)] == []


@pytest.mark.parametrize("kind", VALUES)
def test_fp8_is_what_transformers_makes(kind: str, tmp_path: Path) -> None:
    for shape, dtype in itertools.product(((128, 128), (256, 384), (384, 128)), (BF16, F16, F32)):
        value = VALUES[kind](shape, dtype)
        parts = recipe_of("fp8").parts("m.weight", stored(value, tmp_path / "base")["m.weight"])
        wanted = by_transformers(value)
        assert parts.keys() == wanted.keys()
        for name, tensor in wanted.items():
            found = load(parts[name])
            assert found.dtype == tensor.dtype and found.shape == tensor.shape, name
            assert raw(found) == raw(tensor), (name, shape, dtype)


@pytest.mark.parametrize("scheme", ["nf4", "nf4:32:double", "nf4:1024", "fp8"])
def test_any_elements_are_those_of_the_whole(scheme: str, tmp_path: Path) -> None:
    """In windows of all sizes, whatever memory there is."""
    value = weights((256, 384))
    parts = recipe_of(scheme).parts("m.weight", stored(value, tmp_path / "base")["m.weight"])
    for window, tensor in itertools.product((8, 1000, 40_000), parts.values()):
        work, whole = workspace_of(40_000_000), raw(load(tensor))
        work.window = window
        item, size = tensor.dtype.bits // 8, tensor.size
        few = min(size, 3000 if window < 1000 else size)
        for start, stop in ((0, few), (few // 3, few - few // 5), (size - min(size, 40), size)):
            found = b"".join(bytes(data) for _, data in blocks(tensor, start, stop, work))
            assert found == whole[start * item : stop * item]
        work.close()


def model(folder: Path, kind: str = "llama") -> Path:
    torch.manual_seed(0)
    if kind == "gpt2":
        live = GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=96, n_positions=32))
    else:
        live = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=128,
                intermediate_size=256 if kind == "llama" else 192,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=4,
                vocab_size=96,
                tie_word_embeddings=kind == "tied",
            )
        )
    live.to(BF16).save_pretrained(folder)
    return folder


def logits(live: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return live(INPUT).logits.float()


@pytest.mark.parametrize("kind", ["llama", "tied", "gpt2"])
@pytest.mark.parametrize("double", [False, True])
def test_a_model_in_nf4_is_what_transformers_saves(kind: str, double: bool, tmp_path: Path) -> None:
    """The same tensors byte for byte, the same config, and it loads and computes the same."""
    base = model(tmp_path / "base", kind)
    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=BF16,
    )
    live = AutoModelForCausalLM.from_pretrained(base, quantization_config=how, device_map="cpu", dtype=BF16)
    live.save_pretrained(tmp_path / "theirs")
    made = surgery.quantize(surgery.open_checkpoint(base), "nf4-double" if double else "nf4")
    surgery.write(made, tmp_path / "ours")
    theirs, ours = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    assert [n for n in theirs if raw(theirs[n]) != raw(ours[n]) or theirs[n].shape != ours[n].shape] == []
    said = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("theirs", "ours")]
    assert said[0]["quantization_config"] == said[1]["quantization_config"]
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", device_map="cpu")
    assert torch.equal(logits(again), logits(live))


def test_what_is_left_out_is_named_and_loads(tmp_path: Path) -> None:
    base = model(tmp_path / "base")
    made = surgery.quantize(surgery.open_checkpoint(base), "nf4", except_=r".*\.0\..*|.*up_proj")
    surgery.write(made, tmp_path / "out")
    said = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]["llm_int8_skip_modules"]
    assert {"lm_head", "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"} <= set(said)
    live = AutoModelForCausalLM.from_pretrained(tmp_path / "out", device_map="cpu")
    kinds = {name: type(module).__name__ for name, module in live.named_modules()}
    assert kinds["model.layers.0.self_attn.q_proj"] == kinds["model.layers.1.mlp.up_proj"] == "Linear"
    assert kinds["model.layers.1.self_attn.q_proj"] == "Linear4bit"
    assert torch.isfinite(logits(live)).all()


@pytest.mark.parametrize("kind", ["llama", "ragged"])
def test_a_model_in_fp8_loads_and_computes_what_its_codes_mean(kind: str, tmp_path: Path) -> None:
    """What blocks do not divide is left in 16 bits and named."""
    base = model(tmp_path / "base", kind)
    surgery.write(surgery.quantize(surgery.open_checkpoint(base), "fp8"), tmp_path / "out")
    plain, made = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "out"))
    for name in ("model.layers.0.self_attn.k_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        wanted = by_transformers(plain[name])
        assert raw(made[name]) == raw(wanted["m.weight"])
        assert (f"{name}_scale_inv" in made) is ("m.weight_scale_inv" in wanted)
    live = AutoModelForCausalLM.from_pretrained(tmp_path / "out", device_map="cpu", dtype=BF16)
    surgery.write(surgery.dequantize(surgery.open_checkpoint(tmp_path / "out")), tmp_path / "plain")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=BF16)
    assert torch.equal(logits(live), logits(again))
    said = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert bool(said["modules_to_not_convert"]) is (kind == "ragged")


@pytest.mark.parametrize("scheme", ["nf4", "nf4-double", "fp8"])
def test_back_in_one_pass_or_two(scheme: str, tmp_path: Path) -> None:
    """Quantised and dequantised without a file between is the same as with one; workers and memory change nothing."""
    base = surgery.open_checkpoint(model(tmp_path / "base"))
    surgery.write(surgery.quantize(base, scheme), tmp_path / "codes")
    surgery.write(surgery.quantize(base, scheme), tmp_path / "again", workers=3, memory="60MB")
    assert (tmp_path / "codes/model.safetensors").read_bytes() == (tmp_path / "again/model.safetensors").read_bytes()
    surgery.write(surgery.dequantize(surgery.open_checkpoint(tmp_path / "codes")), tmp_path / "two")
    surgery.write(surgery.dequantize(surgery.quantize(base, scheme)), tmp_path / "one")
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()


def test_what_cannot_be_quantised(tmp_path: Path) -> None:
    base = surgery.open_checkpoint(model(tmp_path / "base"))
    with pytest.raises(surgery.SurgeryError, match="no scheme"):
        surgery.quantize(base, "int3")
    with pytest.raises(surgery.SurgeryError, match="no scheme"):
        surgery.quantize(base, "nf4:60")
    with pytest.raises(surgery.NotSupported, match="quantised already"):
        surgery.quantize(surgery.quantize(base, "nf4"), "fp8")
    with pytest.raises(surgery.NothingMatched, match="left to quantise"):
        surgery.quantize(base, "nf4", except_=".*")
