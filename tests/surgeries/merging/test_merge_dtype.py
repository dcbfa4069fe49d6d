"""The dtype of a merge's result, and what rounding does to it: overflow is refused, erased changes are told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
import transformers as tf
from conftest import hashes
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import surgery
from surgery.errors import SurgeryError, VerificationFailed
from surgery.evaluation.losses import ERASED
from surgery.evaluation.tiles import COLUMNS, ROWS
from surgery_cli.app import app

Saved = Callable[..., Path]
NAMES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


def adapter(family: str, folder: Path, *, size: float = 0.1, **options: Any) -> Path:
    """An adapter of random factors, as PEFT saves it."""
    model = peft.get_peft_model(tiny_models.build(family), peft.LoraConfig(**{"r": 4, "lora_alpha": 6, **options}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "magnitude" not in name:
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


def merged(
    base: Path, adapters: Path, out: Path, *, run: dict[str, Any] | None = None, **options: Any
) -> surgery.Report:
    return surgery.write(
        surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapters), **options), out, **run or {}
    )


def upcast(base: Path, out: Path) -> Path:
    """The checkpoint in float32, as transformers converts it."""
    tf.LlamaForCausalLM.from_pretrained(base, dtype=torch.float32).save_pretrained(out)
    return out


# The dtype


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "options", [{"target_modules": ["q_proj", "v_proj"]}, {"target_modules": ["o_proj"], "use_dora": True}]
)
def test_it_is_rounded_once(dtype: str, options: dict[str, Any], saved: Saved, tmp_path: Path) -> None:
    """What a float32 merge gives, rounded to the dtype: every tensor, touched or not; and config.json says so."""
    adapter("llama", tmp_path / "a", **options)
    merged(saved("llama"), tmp_path / "a", tmp_path / "wide")
    report = merged(saved("llama"), tmp_path / "a", tmp_path / "out", dtype=dtype)
    wide, narrow = (load_file(tmp_path / name / "model.safetensors") for name in ("wide", "out"))
    assert narrow.keys() == wide.keys()
    for name, tensor in wide.items():
        assert torch.equal(narrow[name], tensor.to(NAMES[dtype]))
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("wide", "out"))
    assert after == {**before, "dtype": dtype}
    assert tf.LlamaForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == NAMES[dtype]
    assert report.history[-1] == {"surgery": "cast", "dtype": {"bfloat16": "BF16", "float16": "F16"}[dtype], "kept": 0}


def test_a_wider_dtype_keeps_what_rounding_would_lose(saved: Saved, tmp_path: Path) -> None:
    """A merge into a bfloat16 base, in float32: the bytes of the merge into that base in float32."""
    adapter("llama", tmp_path / "a", target_modules=["q_proj", "down_proj"])
    base = saved("llama", dtype=torch.bfloat16)
    merged(base, tmp_path / "a", tmp_path / "out", dtype="float32")
    merged(upcast(base, tmp_path / "wide"), tmp_path / "a", tmp_path / "right")
    made, right = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "right"))
    assert made.keys() == right.keys() and all(torch.equal(made[n], right[n]) for n in right)


@pytest.mark.parametrize(("family", "targets"), [("phi3", ["qkv_proj"]), ("gpt2", ["c_attn", "wte"])])
def test_movement_above_a_sum_is_cast_below_it(family: str, targets: list[str], saved: Saved, tmp_path: Path) -> None:
    """Merged into the rows of a fused base, and untied: still the float32 merge, rounded."""
    adapter(family, tmp_path / "a", target_modules=targets)
    base = surgery.open_checkpoint(saved(family))
    opened = surgery.open_adapter(tmp_path / "a")
    if family == "phi3":
        opened = surgery.split_qkv(opened, base=base)
    wide, narrow = (surgery.merge(base, opened, dtype=dtype) for dtype in (None, "bfloat16"))
    for name in wide.tensors:
        assert torch.equal(narrow.load(name), wide.load(name).bfloat16())
    assert "Sum" not in repr(wide.tensors["transformer.h.0.ln_1.weight" if family == "gpt2" else "model.norm.weight"])


def test_others_keep_theirs_and_are_named(saved: Saved, tmp_path: Path) -> None:
    """A float32 norm in a bfloat16 model is meant so; what the new dtype holds exactly is cast."""
    adapter("llama", tmp_path / "a", target_modules=["q_proj"])
    (tmp_path / "base").mkdir()
    tensors = load_file(saved("llama", dtype=torch.bfloat16) / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    tensors["model.position_ids"] = torch.arange(5)
    save_file(tensors, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "torch_dtype": "bfloat16",
        "vision_config": {"dtype": "bfloat16"},
    }
    (tmp_path / "base/config.json").write_text(json.dumps(config))
    report = merged(tmp_path / "base", tmp_path / "a", tmp_path / "half", dtype="float16")
    made = load_file(tmp_path / "half/model.safetensors")
    assert {n for n, t in made.items() if t.dtype != torch.float16} == {"model.norm.weight", "model.position_ids"}
    assert (
        report.notes[-1]
        == "kept in their own dtype, since they are in another one than most weights: model.norm.weight (F32)"
    )
    assert json.loads((tmp_path / "half/config.json").read_text()) == {
        **config,
        "torch_dtype": "float16",
        "vision_config": {"dtype": "float16"},
    }
    merged(tmp_path / "base", tmp_path / "a", tmp_path / "double", dtype="float64")
    made = load_file(tmp_path / "double/model.safetensors")
    assert {n for n, t in made.items() if t.dtype != torch.float64} == {"model.position_ids"}


def test_dtypes_that_are_none_are_refused(saved: Saved, tmp_path: Path) -> None:
    adapter("llama", tmp_path / "a", target_modules=["q_proj"])
    with pytest.raises(SurgeryError, match="`int8` is no dtype to write weights in") as caught:
        merged(saved("llama"), tmp_path / "a", tmp_path / "out", dtype="int8")
    assert (
        caught.value.help
        == "one of float16, bfloat16, float32, float64, or fp16, bf16, fp32, fp64, F16, BF16, F32, F64"
        and not (tmp_path / "out").exists()
    )


def test_the_command_has_the_option(saved: Saved, tmp_path: Path) -> None:
    adapter("llama", tmp_path / "a", target_modules=["q_proj"])
    words = [
        "merge",
        str(saved("llama")),
        str(tmp_path / "a"),
        "-o",
        str(tmp_path / "out"),
        "--dtype",
        "bfloat16",
        "--json",
    ]
    assert CliRunner().invoke(app, words).exit_code == 0
    merged(saved("llama"), tmp_path / "a", tmp_path / "same", dtype="bfloat16")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "same")


# Overflow


def large(folder: Path, base: Path, *, alpha: float) -> Path:
    """An adapter on q_proj that takes some float16 weights beyond 65504."""
    adapter("llama", folder, target_modules=["q_proj", "v_proj"], size=1.0)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": alpha}))
    return folder


def overflowed(base: Path, folder: Path) -> dict[str, int]:
    """How many weights would be infinite in float16, by tensor, in torch."""
    tensors, factors = load_file(base / "model.safetensors"), load_file(folder / "adapter_model.safetensors")
    scale, found = json.loads((folder / "adapter_config.json").read_text())["lora_alpha"] / 4, {}
    for name in factors:
        module, mark, _ = name.removeprefix("base_model.model.").partition(".lora_A.weight")
        if mark:
            delta = scale * factors[name.replace("lora_A", "lora_B")].double() @ factors[name].double()
            found[f"{module}.weight"] = int(torch.isinf((tensors[f"{module}.weight"].double() + delta).half()).sum())
    return found


@pytest.mark.parametrize("run", [{"workers": 1}, {"workers": 3, "memory": "64MB"}])
def test_weights_that_become_infinite_are_refused(run: dict[str, Any], saved: Saved, tmp_path: Path) -> None:
    """By tensor and number, before anything is published; again on a rerun, which resumes no shard with such
    weights.
    """
    base = saved("llama", dtype=torch.float16)
    large(tmp_path / "a", base, alpha=60_000)
    wanted = overflowed(base, tmp_path / "a")
    assert all(0 < count < 1000 for count in wanted.values()) and len(wanted) == 6
    for _ in range(2):
        with pytest.raises(VerificationFailed) as caught:
            merged(base, tmp_path / "a", tmp_path / "out", run=run)
        assert caught.value.what == f"{sum(wanted.values())} weights of 6 tensors became infinite or NaN"
        found = {
            row.partition(" (F16): ")[0]: int(row.partition(": ")[2]) for row in caught.value.where if "(F16)" in row
        }
        assert len(found) == 5 and found.items() <= wanted.items()
        assert "--dtype bfloat16" in str(caught.value) and "--scale" in str(caught.value)
        assert not (tmp_path / "out").exists()
    report = merged(base, tmp_path / "a", tmp_path / "out", dtype="bfloat16")
    assert (
        report.tensors
        and torch.isfinite(
            load_file(tmp_path / "out/model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
        ).all()
    )


def test_a_cast_that_overflows_is_refused(saved: Saved, tmp_path: Path) -> None:
    """A weight of 1e6 has no place in float16, whether an adapter touches it or not."""
    adapter("llama", tmp_path / "a", target_modules=["q_proj"])
    (tmp_path / "base").mkdir()
    tensors = load_file(saved("llama") / "model.safetensors")
    tensors["model.norm.weight"][3] = 1e6
    save_file(tensors, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VerificationFailed, match="1 weights of 1 tensors became infinite or NaN") as caught:
        merged(tmp_path / "base", tmp_path / "a", tmp_path / "out", dtype="float16")
    told, kept = caught.value.where
    assert told == "model.norm.weight (F16): 1" and f"surgery clean {tmp_path / 'out'} removes it" in kept


def test_what_is_infinite_in_the_base_may_stay_so(saved: Saved, tmp_path: Path) -> None:
    """Masks are stored as infinities: only what was finite counts."""
    adapter("llama", tmp_path / "a", target_modules=["q_proj"])
    (tmp_path / "base").mkdir()
    tensors = load_file(saved("llama", dtype=torch.float16) / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight"][0, 0] = float("-inf")
    save_file(tensors, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    merged(tmp_path / "base", tmp_path / "a", tmp_path / "out")
    made = load_file(tmp_path / "out/model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    assert int(torch.isinf(made).sum()) == 1


def test_what_overflows_before_it_is_moved_is_named(saved: Saved, tmp_path: Path) -> None:
    """A sum that is transposed is made before the shards, in a file of its own: the tensor that it goes into is
    named.
    """
    from dataclasses import replace

    from surgery.lazy.tensor import permute

    base = saved("llama", dtype=torch.float16)
    large(tmp_path / "a", base, alpha=60_000)
    made = surgery.merge(
        surgery.open_checkpoint(base), surgery.open_adapter(tmp_path / "a"), only=r".*layers\.1.*q_proj"
    )
    name = "model.layers.1.self_attn.q_proj.weight"
    turned = replace(made, tensors={**made.tensors, name: permute(made.tensors[name], (1, 0))})
    assert surgery.plan(turned).scratch
    with pytest.raises(VerificationFailed) as caught:
        surgery.write(turned, tmp_path / "out")
    assert caught.value.where[0] == f"{name} (F16): {overflowed(base, tmp_path / 'a')[name]}"


# Changes that rounding erases


def wide(folder: Path, rows: int, columns: int, size: float) -> tuple[Path, Path]:
    """A bfloat16 base of one large matrix, and an adapter whose delta is about `size` of the weights."""
    torch.manual_seed(0)
    (folder / "base").mkdir()
    save_file(
        {"x.weight": torch.randn(rows, columns).bfloat16()},
        folder / "base/model.safetensors",
        metadata={"format": "pt"},
    )
    (folder / "a").mkdir()
    factors = {"A": torch.randn(16, columns), "B": torch.randn(rows, 16)}
    save_file(
        {f"base_model.model.x.lora_{k}.weight": t for k, t in factors.items()}, folder / "a/adapter_model.safetensors"
    )
    (folder / "a/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 16, "lora_alpha": 4 * size}))
    return folder / "base", folder / "a"


@pytest.mark.parametrize("shape", [(3 * ROWS + 5, 2 * COLUMNS + 3), (2000, 70), (7, 5000)])
def test_the_share_that_is_erased_is_about_the_true_one(shape: tuple[int, int], tmp_path: Path) -> None:
    """And the same, to the last bit, whatever the workers and the memory."""
    base, folder = wide(tmp_path, *shape, size=2e-4)
    one = merged(base, folder, tmp_path / "one", run={"workers": 1})
    two = merged(base, folder, tmp_path / "two", run={"workers": 4, "memory": "80MB"})
    assert one.erased == two.erased and one.erased[0].tensor == "x.weight"
    before, after = (load_file(tmp_path / name / "model.safetensors")["x.weight"] for name in ("base", "one"))
    true = (before == after).double().mean().item()
    assert ERASED < true < 0.99 and abs(one.erased[0].share - true) < 0.02
    assert one.notes[-1] == (
        f"rounding leaves as they were most of the weights that the adapters change in 1 of 1 tensors: "
        f"{100 * one.erased[0].share:.1f} % in x.weight; --dtype float32 keeps the change"
        " (in Python, --dtype is dtype=)"
    )


def test_nothing_is_said_of_what_is_usual(tmp_path: Path) -> None:
    base, folder = wide(tmp_path, 300, 500, size=0.025)
    report = merged(base, folder, tmp_path / "out")
    assert report.erased == () and not any("rounding" in note for note in report.notes)
    (tmp_path / "small").mkdir()
    base, folder = wide(tmp_path / "small", 300, 500, size=1e-5)
    assert merged(base, folder, tmp_path / "kept", dtype="float32").erased == ()
    assert merged(base, folder, tmp_path / "lost").erased[0].share > 0.99


def test_rows_without_a_delta_do_not_count(tmp_path: Path) -> None:
    """Half the rows of B are zero: their weights are not meant to change."""
    base, folder = wide(tmp_path, 300, 500, size=0.1)
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.model.x.lora_B.weight"][:240] = 0
    save_file(tensors, folder / "adapter_model.safetensors")
    assert merged(base, folder, tmp_path / "out").erased == ()
