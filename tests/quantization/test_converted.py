"""Quantised models as another class loads them: codes are split and renamed, and it computes what the first one did."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quantization.live import HOW, fp8_blocks, logits
from quantization.made import Tensors, compress, said_of_compressed
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    GPTNeoXConfig,
    Phi3Config,
)

import surgery
from surgery.errors import NotSupported, PlanError

SIZES = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA_LIKE = {
    **SIZES,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
NEOX = {"use_parallel_residual": False, "hidden_act": "gelu", "rope_parameters": ROPE}
# The source, and what it becomes.
KINDS: dict[str, tuple[Any, str]] = {
    "phi3": (Phi3Config(**LLAMA_LIKE, num_key_value_heads=2), "llama"),
    "gpt2": (GPT2Config(**SIZES, n_embd=128, n_layer=2, n_head=4, n_positions=64), "opt"),
    "gpt_neox": (GPTNeoXConfig(**LLAMA_LIKE, **NEOX), "starcoder2"),
}
NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
BYTES = {"nf4": NF4, "int8": HOW["int8"], "nf4-double": HOW["nf4"]}
INT4 = {"type": "int", "symmetric": True, "num_bits": 4, "strategy": "group", "group_size": 32}
Sources = Callable[[str, str], Path]


def int4(name: str, value: torch.Tensor) -> Tensors:
    return {f"{name.removesuffix('weight')}{p}": t for p, t in compress(value, "pack-quantized", INT4)[0].items()}


def fp8(name: str, value: torch.Tensor) -> Tensors:
    codes, scales = fp8_blocks(value.float(), (32, 32))
    return {name: codes, f"{name}_scale_inv": scales}


OTHERS: dict[str, tuple[Callable[[str, torch.Tensor], Tensors], dict[str, object]]] = {
    "int4": (int4, {**said_of_compressed("pack-quantized", INT4), "quantization_status": "compressed"}),
    "fp8": (fp8, {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 32]}),
}


def make(how: str, plain: Path, folder: Path) -> None:
    """The model, quantised by transformers, or its matrices one by one, but the head, which the lists name."""
    if how in BYTES:
        live = AutoModelForCausalLM.from_pretrained(
            plain, quantization_config=BYTES[how], device_map="cpu", dtype=torch.bfloat16
        )
        live.save_pretrained(folder)
        return
    shutil.copytree(plain, folder)
    config = json.loads((folder / "config.json").read_text())
    made, said = OTHERS[how]
    config["quantization_config"] = {**said, "ignore" if how == "int4" else "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(config))
    tensors: Tensors = {}
    for name, value in load_file(plain / "model.safetensors").items():
        matrix = ".layers." in name and value.dim() == 2
        tensors |= made(name, value) if matrix else {name: value}
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """sources("phi3", "nf4") -> the model, quantised so; in 16 bits it lies beside, `plain`."""
    root = tmp_path_factory.mktemp("sources")

    def made(kind: str, how: str) -> Path:
        plain = root / kind / "plain"
        if not plain.exists():
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(KINDS[kind][0], dtype=torch.bfloat16).save_pretrained(plain)
        if how != "plain" and not (root / kind / how).exists():
            make(how, plain, root / kind / how)
        return root / kind / how

    return made


def loaded(folder: Path) -> torch.nn.Module:
    """As transformers loads it on a CPU, with nothing missing and nothing left over."""
    live: Any
    info: Any
    live, info = AutoModelForCausalLM.from_pretrained(
        folder, device_map="cpu", dtype=torch.bfloat16, output_loading_info=True
    )
    assert not [found for found in info.values() if found]
    found: torch.nn.Module = live.eval()
    return found


CASES = [*itertools.product(KINDS, ("nf4", "int8")), *itertools.product(("phi3", "gpt_neox"), OTHERS)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "how"), CASES)
def test_it_computes_what_the_quantised_source_does(kind: str, how: str, sources: Sources, tmp_path: Path) -> None:
    """In its own codes, and in the numbers that these mean."""
    base, to = sources(kind, how), KINDS[kind][1]
    surgery.write(surgery.convert(surgery.open_checkpoint(base), to), tmp_path / "out")
    made = surgery.open_checkpoint(tmp_path / "out")
    step = made.history[-1]
    assert step["surgery"] == "convert" and made.config["model_type"] == to
    assert made.config["quantization_config"]["quant_method"] == said_of(base)["quant_method"]
    wanted, found = logits(loaded(base)), logits(loaded(tmp_path / "out"))
    assert torch.allclose(found, wanted, atol=0.01 * float(wanted.abs().max()))
    surgery.write(surgery.dequantize(made, dtype="float32"), tmp_path / "wide")
    surgery.write(surgery.dequantize(surgery.open_checkpoint(base), dtype="float32"), tmp_path / "judge")
    one, other = (AutoModelForCausalLM.from_pretrained(tmp_path / name).float() for name in ("wide", "judge"))
    assert torch.allclose(logits(one), logits(other), atol=1e-5 * float(wanted.abs().max()))


def said_of(folder: Path) -> dict[str, Any]:
    said: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return said


def test_lists_have_the_names_of_the_class(sources: Sources, tmp_path: Path) -> None:
    for how, key in (("int4", "ignore"), ("fp8", "modules_to_not_convert")):
        for head in ("lm_head", "embed_out"):  # in memory, and in files
            base = with_said(sources("gpt_neox", how), tmp_path / f"{how}-{head}", **{key: [head]})
            made = surgery.convert(surgery.open_checkpoint(base), "starcoder2")
            assert made.config["quantization_config"] == {**said_of(base), key: ["lm_head"]}


def with_said(base: Path, folder: Path, **more: Any) -> Path:
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= more
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_patterns_of_the_first_names_are_refused(sources: Sources, tmp_path: Path) -> None:
    base = with_said(sources("gpt_neox", "int4"), tmp_path / "base", ignore=["re:embed_out"])
    with pytest.raises(NotSupported, match="says of 1 modules by patterns") as caught:
        surgery.convert(surgery.open_checkpoint(base), "starcoder2")
    assert "embed_out -> lm_head: ignore" in str(caught.value)
    assert str(caught.value.help).endswith(f"surgery dequantize {base} -o OUT")


def test_what_does_not_move_as_codes_says_how(sources: Sources, tmp_path: Path) -> None:
    """Halves of 192 rows of 128 columns are one and a half blocks of quantised scales."""
    base = sources("phi3", "nf4-double")
    with pytest.raises(NotSupported, match=r"1 × \[192\|192\], within what 128 rows share") as caught:
        surgery.convert(surgery.open_checkpoint(base), "llama")
    assert caught.value.help == f"write it in 16 bits first: surgery dequantize {base} -o OUT"
    wide = surgery.dequantize(surgery.open_checkpoint(base))
    surgery.write(surgery.convert(wide, "llama"), tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())


def test_a_config_that_says_so_of_plain_weights_is_refused(sources: Sources, tmp_path: Path) -> None:
    folder = shutil.copytree(sources("phi3", "fp8").parent / "plain", tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(PlanError, match="none has codes"):
        surgery.convert(surgery.open_checkpoint(folder), "llama")


def test_an_adapter_follows_a_base_that_is_quantised(sources: Sources, tmp_path: Path) -> None:
    """Split for the one that it was trained on, whatever that is stored as; nothing is dropped but what says shapes."""
    quantised, plain = (surgery.open_checkpoint(sources("phi3", how)) for how in ("nf4", "plain"))
    surgery.write(surgery.inject(quantised, ["qkv_proj", "gate_up_proj"], rank=4), tmp_path / "lora")
    adapter = surgery.open_adapter(tmp_path / "lora")
    one, other = (surgery.split(adapter, base=base) for base in (quantised, plain))
    assert one.tensors == other.tensors and any("q_proj" in name for name in one.tensors)
    dropped = surgery.convert(quantised, "llama").dropped
    assert len(dropped) == 4 and all("_proj.weight.quant_state" in name for name in dropped)
    back = surgery.fuse(one, base=surgery.split(quantised))
    assert {n: t.shape for n, t in back.tensors.items()} == {n: t.shape for n, t in adapter.tensors.items()}
