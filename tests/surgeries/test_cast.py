"""`cast`: bit for bit torch's `Tensor.to`; what is lost is counted; what is no plain float, or must stay, does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from conftest import hashes
from safetensors.torch import load_file, save_file

import surgery
from surgery.errors import NothingMatched, NotSupported, SurgeryError, VerificationFailed
from surgery.surgeries.cast import parsed

DTYPES = {
    "float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64,
    "float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2,
}  # fmt: skip
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(values: torch.Tensor) -> torch.Tensor:
    return values.contiguous().view(INTEGERS[values.element_size()])


def every(dtype: torch.dtype) -> torch.Tensor:
    """Every bit pattern of the dtype; of a wide one, random ones, numbers of all sizes, and what is special."""
    draw, size = torch.Generator().manual_seed(0), dtype.itemsize
    if size <= 2:
        return torch.arange(1 << (8 * size), dtype=torch.int64).to(INTEGERS[size]).view(dtype)
    low, high = torch.iinfo(INTEGERS[size]).min, torch.iinfo(INTEGERS[size]).max
    random = torch.randint(low, high, (1 << 16,), generator=draw, dtype=INTEGERS[size]).view(dtype)
    powers = torch.exp2(torch.randint(-160, 135, (1 << 17,), generator=draw).double())
    sized = (torch.randn(1 << 17, generator=draw, dtype=torch.float64) * powers).to(dtype)
    ends = [torch.tensor(torch.finfo(d).max).double() for d in DTYPES.values()]
    halves = torch.arange(1, 1 << 12, dtype=torch.float64) / (1 << 12)
    edges = torch.cat([torch.stack(ends), torch.tensor([464.0, 465.0, 480.0, 61440.0, 65519.99, 65520.0])])
    special = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), 2.0**-149, 2.0**-1074, 2.0**-24])
    ties = torch.cat([(1 + halves) * 2.0**e for e in (-17, -16, -10, -9, -7, 0, 7, 8, 15)])
    quiet = torch.tensor([1, 5, -1, high - 7], dtype=INTEGERS[size]).view(dtype)  # denormals, and NaN with payloads
    return torch.cat([quiet, special.to(dtype), edges.to(dtype), (-edges).to(dtype), ties.to(dtype), random, sized])


def written(tmp_path: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any] | None = None) -> Path:
    folder = tmp_path / "base"
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def cast(base: Path, out: Path, dtype: str, run: dict[str, Any] | None = None, **said: Any) -> surgery.Report:
    return surgery.write(surgery.cast(surgery.open_checkpoint(base), dtype, **said), out, **(run or {}))


@pytest.mark.parametrize("to", DTYPES)
@pytest.mark.parametrize("of", DTYPES)
def test_it_is_what_torch_makes_of_every_bit_pattern(of: str, to: str, tmp_path: Path, one_thread: None) -> None:
    """And counts what became zero, and what is infinite, or NaN, and was not; or a value that it is not."""
    values = every(DTYPES[of])
    values = values[: len(values) // 64 * 64]  # torch gives a NaN in a last part of a vector other bits
    base = written(tmp_path, {"w": values, "odd": values[5:-3].clone().view(-1, 4)[:, :3].contiguous()})
    report = cast(base, tmp_path / "out", to, allow_overflow=True)
    made = load_file(tmp_path / "out/model.safetensors")
    wanted = values.to(DTYPES[to])
    assert made["w"].dtype == DTYPES[to]
    assert torch.equal(bits(made["w"]), bits(wanted))
    inner = values[5:-3].view(-1, 4)[:, :3].to(DTYPES[to])
    assert torch.equal(made["odd"].double().nan_to_num(7), inner.double().nan_to_num(7))
    x, y = values.double(), wanted.double()
    far = (x.isfinite() & ~y.isfinite()) | (x.isinf() & y.isfinite())
    far |= (x.abs() > 464) & (to == "float8_e4m3fn")
    lost = {"zeroed": int(((x != 0) & (y == 0)).sum()), "beyond": int(far.sum()) if of != to else 0}
    found = {one.tensor: {"zeroed": one.zeroed, "beyond": one.beyond} for one in report.narrowed}
    assert found.get("w", {"zeroed": 0, "beyond": 0}) == lost


@pytest.mark.parametrize("to", ["float16", "float8_e4m3fn", "float8_e5m2"])
def test_what_is_beyond_the_range_is_refused_unless_allowed(to: str, tmp_path: Path) -> None:
    values = torch.linspace(-1, 1, 300).view(3, 100)
    values[1, 7], values[2, 99] = 1e5, -3e38
    base = written(tmp_path, {"fine": torch.ones(4), "far": values})
    for _ in range(2):  # a rerun resumes nothing of it
        with pytest.raises(VerificationFailed) as caught:
            cast(base, tmp_path / "out", to)
        assert caught.value.what.startswith("2 weights of 1 tensors ")
        assert [row.partition(" ")[0] for row in caught.value.where[:-1]] == ["far"]
        assert "surgery clean" in caught.value.where[-1]
        assert caught.value.where[0].endswith(": 2")
        assert "--allow-overflow" in str(caught.value)
        assert "allow_overflow" in str(caught.value)
        assert not (tmp_path / "out").exists()
    report = cast(base, tmp_path / "out", to, allow_overflow=True)
    assert [(one.tensor, one.beyond) for one in report.narrowed] == [("far", 2)]
    assert any(note.startswith("2 values of 1 tensors were beyond the range") for note in report.notes)
    cast(base, tmp_path / "left", to, except_="far")
    assert load_file(tmp_path / "left/model.safetensors")["far"].dtype == torch.float32


def test_what_becomes_zero_is_told_by_tensor(tmp_path: Path) -> None:
    small = torch.full((64,), 1e-9)
    base = written(tmp_path, {"a": torch.cat([small, torch.zeros(5)]), "b": small[:3].clone(), "c": torch.ones(8)})
    report = cast(base, tmp_path / "out", "float16")
    assert [(one.tensor, one.dtype, one.zeroed) for one in report.narrowed] == [("a", "F16", 64), ("b", "F16", 3)]
    assert "67 values of 2 tensors became zero: a (64), b (3)" in report.notes
    assert cast(base, tmp_path / "bf16", "bfloat16").narrowed == ()


@pytest.mark.parametrize("to", ["float16", "bfloat16", "float8_e4m3fn"])
def test_neither_memory_nor_workers_change_bytes_or_counts(to: str, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(1)
    values = torch.randn(1500, 1003, generator=draw) * torch.exp2(torch.randint(-40, 4, (1500, 1003), generator=draw))
    values[7, ::3] = float("nan")
    base = written(tmp_path, {"w": values, "one": values[:, 0].clone()})
    runs = [cast(base, tmp_path / f"{i}", to, {"workers": i, "memory": f"{20 * i}MB"}) for i in (1, 3)]
    assert hashes(tmp_path / "1") == hashes(tmp_path / "3")
    assert runs[0].narrowed == runs[1].narrowed


CHAINS = {
    "there and back": [("bfloat16", {}), ("float32", {})],
    "through float8": [("float8_e5m2", {}), ("float16", {})],
    "some, then all": [("float16", {"only": ".*q_proj.*"}), ("bfloat16", {})],
}


@pytest.mark.parametrize("chain", CHAINS)
def test_composed_it_is_what_one_after_another_writes(chain: str, saved: Callable[..., Path], tmp_path: Path) -> None:
    """In one pass each is rounded as if it had been written; before and after what moves values, and a merge."""
    base = saved("phi3")
    composed, place = surgery.split_qkv(surgery.open_checkpoint(base)), base
    surgery.write(composed, tmp_path / "split")
    place = tmp_path / "split"
    for i, (dtype, said) in enumerate(CHAINS[chain]):
        composed = surgery.cast(composed, dtype, **said)
        cast(place, tmp_path / str(i), dtype, **said)
        place = tmp_path / str(i)
    surgery.write(composed, tmp_path / "once")
    assert hashes(tmp_path / "once")["model.safetensors"] == hashes(place)["model.safetensors"]


def test_what_is_merged_is_rounded_before_it_is_cast(saved: Callable[..., Path], tmp_path: Path) -> None:
    base = surgery.open_checkpoint(saved("llama", dtype=torch.bfloat16))
    lora = surgery.inject(base, rank=2, target_modules=["q_proj"], init="gaussian", seed=3)
    surgery.write(lora, tmp_path / "lora")
    factors = load_file(tmp_path / "lora/adapter_model.safetensors")
    torch.manual_seed(0)
    save_file({n: t if ".lora_A." in n else torch.randn_like(t) for n, t in factors.items()},
              tmp_path / "lora/adapter_model.safetensors")  # fmt: skip
    merged = surgery.merge(base, surgery.open_adapter(tmp_path / "lora"))
    surgery.write(merged, tmp_path / "merged")
    surgery.write(surgery.cast(merged, "float32"), tmp_path / "once")
    cast(tmp_path / "merged", tmp_path / "twice", "float32")
    assert hashes(tmp_path / "once")["model.safetensors"] == hashes(tmp_path / "twice")["model.safetensors"]


def test_what_is_cast_after_a_merge_is_verified_against_it(saved: Callable[..., Path], tmp_path: Path) -> None:
    """By what the merge wrote, which was rounded to its own dtype before."""
    from tiny_models import save

    base = save("llama", tmp_path / "base", dtype=torch.bfloat16)
    surgery.write(surgery.inject(surgery.open_checkpoint(base), rank=2, target_modules=["q_proj"]), tmp_path / "lora")
    factors = load_file(tmp_path / "lora/adapter_model.safetensors")
    torch.manual_seed(0)
    save_file({n: torch.randn_like(t) for n, t in factors.items()}, tmp_path / "lora/adapter_model.safetensors")
    adapter = surgery.open_adapter(tmp_path / "lora")
    merged = surgery.merge(surgery.open_checkpoint(base), adapter)
    surgery.write(surgery.cast(merged, "float32"), tmp_path / "out")
    found = surgery.verify(tmp_path / "out", base=base, adapter=tmp_path / "lora")
    assert found.ok, found.checks


def test_a_merge_into_what_was_cast_is_one_into_what_was_written(saved: Callable[..., Path], tmp_path: Path) -> None:
    """With a dtype of its own, too: what no adapter touches was rounded before."""
    base = surgery.open_checkpoint(saved("llama"))
    lora = surgery.inject(base, rank=2, target_modules=["q_proj"])
    surgery.write(lora, tmp_path / "lora")
    narrow, adapter = surgery.cast(base, "bfloat16"), surgery.open_adapter(tmp_path / "lora")
    surgery.write(narrow, tmp_path / "narrow")
    surgery.write(surgery.merge(narrow, adapter, dtype="float32"), tmp_path / "once")
    again = surgery.merge(surgery.open_checkpoint(tmp_path / "narrow"), adapter, dtype="float32")
    surgery.write(again, tmp_path / "twice")
    assert hashes(tmp_path / "once")["model.safetensors"] == hashes(tmp_path / "twice")["model.safetensors"]


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


@pytest.mark.parametrize("dtype", ["float16", "bf16", "float64"])
def test_its_class_loads_what_was_cast_as_the_model_cast_in_torch(
    dtype: str, saved: Callable[..., Path], tmp_path: Path
) -> None:
    cast(saved("llama"), tmp_path / "out", dtype)
    named = {"bf16": "bfloat16"}.get(dtype, dtype)
    assert config_of(tmp_path / "out")["dtype"] == named
    got = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").state_dict()
    wanted = tf.AutoModelForCausalLM.from_pretrained(saved("llama")).to(DTYPES[named]).state_dict()
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[n], wanted[n]) and got[n].dtype == wanted[n].dtype for n in wanted)


@pytest.mark.parametrize("config", [True, False])
def test_float8_without_scales_is_loaded_in_the_dtype_that_config_json_says(
    config: bool, saved: Callable[..., Path], tmp_path: Path
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for path in saved("llama", dtype=torch.bfloat16).iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    if not config:
        rest = {key: value for key, value in config_of(base).items() if key not in ("dtype", "torch_dtype")}
        (base / "config.json").write_text(json.dumps(rest))
    report = cast(base, tmp_path / "out", "float8")
    assert "config.json says bfloat16: transformers loads float8 without scales in that dtype, so that only the files" \
        " are smaller" in report.notes  # fmt: skip
    got = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").state_dict()
    for name, tensor in load_file(base / "model.safetensors").items():
        assert got[name].dtype == torch.bfloat16
        assert torch.equal(got[name], tensor.to(torch.float8_e4m3fn).to(torch.bfloat16))


def test_config_json_follows_only_where_all_is_cast(saved: Callable[..., Path], tmp_path: Path) -> None:
    report = cast(saved("llama"), tmp_path / "some", "bfloat16", only=r".*\.q_proj\.weight")
    assert config_of(tmp_path / "some")["dtype"] == "float32"
    assert "config.json says float32 still: transformers loads all weights in that dtype" in report.notes
    some = surgery.open_checkpoint(tmp_path / "some")
    assert {t.dtype.name for n, t in some.tensors.items() if "q_proj" in n} == {"BF16"}
    assert {t.dtype.name for n, t in some.tensors.items() if "q_proj" not in n} == {"F32"}
    surgery.write(surgery.cast(some, "bfloat16", except_=r".*\.q_proj\.weight"), tmp_path / "all")
    assert config_of(tmp_path / "all")["dtype"] == "bfloat16"


def test_what_is_no_float_stays_byte_for_byte(tmp_path: Path) -> None:
    tensors = {
        "ids": torch.arange(4),
        "mask": torch.tensor([True]),
        "w": torch.ones(3),
        "z": torch.zeros(2, dtype=torch.complex64),
    }
    cast(written(tmp_path, tensors), tmp_path / "out", "float16")
    made = load_file(tmp_path / "out/model.safetensors")
    assert {n: t.dtype for n, t in made.items()} == {
        "ids": torch.int64, "mask": torch.bool, "w": torch.float16, "z": torch.complex64,
    }  # fmt: skip
    with pytest.raises(NothingMatched, match="no floating tensor is left"):
        surgery.cast(surgery.open_checkpoint(tmp_path / "base"), "float16", only="ids|mask")


def test_others_than_most_are_cast_too_and_named(tmp_path: Path) -> None:
    tensors = {
        "w": torch.ones(64, dtype=torch.bfloat16),
        "router": torch.ones(4),
        "tiny": torch.ones((), dtype=torch.float16),
    }
    report = cast(written(tmp_path, tensors), tmp_path / "out", "float16")
    assert {t.dtype for t in load_file(tmp_path / "out/model.safetensors").values()} == {torch.float16}
    assert any("most weights, and cast too: router (F32); --except leaves them" in note for note in report.notes)


def test_what_is_so_already_is_copied_and_said(saved: Callable[..., Path], tmp_path: Path) -> None:
    report = cast(saved("llama"), tmp_path / "out", "float32")
    assert report.computed == 0
    assert "all that was to be cast is F32 already" in report.notes
    assert hashes(tmp_path / "out")["model.safetensors"] == hashes(saved("llama"))["model.safetensors"]


@pytest.mark.parametrize("how", ["nf4", "int8", "fp8"])
def test_codes_and_their_scales_stay(how: str, quantised: Callable[[str], Path], tmp_path: Path) -> None:
    report = cast(quantised(how), tmp_path / "out", "float16")
    before, after = ({n: t for f in p.glob("*.safetensors") for n, t in load_file(f).items()}
                     for p in (quantised(how), tmp_path / "out"))  # fmt: skip
    changed = {n for n in before if before[n].dtype != after[n].dtype}
    assert {n.rpartition(".")[0].rpartition(".")[2] for n in changed} >= {"embed_tokens", "norm", "input_layernorm"}
    assert not any("_proj" in n for n in changed)
    assert all(torch.equal(bits(before[n]), bits(after[n])) for n in before if n not in changed)
    assert any("quantised weights stay as they are" in note for note in report.notes)
    decoded = surgery.dequantize(surgery.open_checkpoint(tmp_path / "out"), dtype="float32")
    plain = surgery.dequantize(surgery.open_checkpoint(quantised(how)), dtype="float32")
    name = next(n for n in plain.tensors if n.endswith("q_proj.weight"))
    assert torch.equal(decoded.load(name), plain.load(name))


def test_codes_alone_are_refused(quantised: Callable[[str], Path]) -> None:
    base = surgery.open_checkpoint(quantised("fp8"))
    with pytest.raises(NotSupported, match="codes of quantised weights, and their scales, are not cast"):
        surgery.cast(base, "bfloat16", only=r".*\.q_proj\..*")
    with pytest.raises(NotSupported, match="float8 without scales beside codes"):
        surgery.cast(base, "float8")


@pytest.mark.parametrize("scale", ["w.weight_scale_inv", "w.weight_scale", "w.scale"])
def test_float8_of_which_nothing_says_how_it_is_meant_is_refused(scale: str, tmp_path: Path) -> None:
    tensors = {"w.weight": torch.ones(4, 4).to(torch.float8_e4m3fn), scale: torch.ones(1, 1), "norm": torch.ones(4)}
    base = surgery.open_checkpoint(written(tmp_path, tensors, {"model_type": "llama"}))
    with pytest.raises(NotSupported, match="nothing says how"):
        surgery.cast(base, "bfloat16")


def test_each_component_of_a_pipeline_says_its_own_dtype(tmp_path: Path) -> None:
    for part, config in (("unet", {}), ("text_encoder", {"dtype": "float32"})):
        (tmp_path / "base" / part).mkdir(parents=True)
        name = "model" if config else "diffusion_pytorch_model"
        save_file({"w": torch.ones(4)}, tmp_path / "base" / part / f"{name}.safetensors")
        (tmp_path / "base" / part / "config.json").write_text(json.dumps(config))
    index = {"_class_name": "Toy", "unet": ["diffusers", "UNet2DConditionModel"],
             "text_encoder": ["transformers", "CLIPTextModel"]}  # fmt: skip
    (tmp_path / "base" / "model_index.json").write_text(json.dumps(index))
    cast(tmp_path / "base", tmp_path / "out", "float16")
    assert load_file(tmp_path / "out/unet/diffusion_pytorch_model.safetensors")["w"].dtype == torch.float16
    assert config_of(tmp_path / "out" / "text_encoder") == {"dtype": "float16"}
    assert config_of(tmp_path / "out" / "unet") == {}
    cast(tmp_path / "base", tmp_path / "unet", "float16", only="unet/.*")
    assert config_of(tmp_path / "unet" / "text_encoder") == {"dtype": "float32"}


@pytest.mark.parametrize("dtype", ["int8", "I8", "half", ""])
def test_what_is_no_dtype_is_refused(dtype: str, saved: Callable[..., Path]) -> None:
    with pytest.raises(SurgeryError, match="is no dtype to write weights in"):
        surgery.cast(surgery.open_checkpoint(saved("llama")), dtype)


@pytest.mark.parametrize(("said", "stored"), [("F16", "F16"), ("bf16", "BF16"), ("BF16", "BF16"), ("F64", "F64")])
def test_a_dtype_may_be_called_as_files_have_it(said: str, stored: str) -> None:
    assert parsed(said).name == stored
