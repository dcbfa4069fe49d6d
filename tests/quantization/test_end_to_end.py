"""Schemes of 4 bits, from codes to merges and back: judged by the reference's decoding and by PEFT's merge of that.

GPTQ and AWQ are packed and decoded here, by their formulas; what is stored so by their own programs is in fixtures.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import hashes
from made import Tensors, compress, said_of_compressed
from peft import LoraConfig, get_peft_model
from quantization.live import raw
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GptOssConfig, LlamaConfig
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from typer.testing import CliRunner

import surgery
from surgery_cli.app import app

BF16, F16 = torch.bfloat16, torch.float16
NIBBLES = torch.arange(8) * 4
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96}
LLAMA = LlamaConfig(hidden_size=128, intermediate_size=192, **SIZES)
GPT_OSS = GptOssConfig(
    hidden_size=64,
    intermediate_size=64,
    head_dim=16,
    num_local_experts=4,
    num_experts_per_tok=2,
    layer_types=["full_attention", "full_attention"],
    **SIZES,
)
ATTENTION = "model.layers.1.self_attn"
EXPERTS = [f"model.layers.{i}.mlp.experts.{name}" for i in (0, 1) for name in ("gate_up_proj", "down_proj")]


def packed(codes: torch.Tensor, axis: int, order: tuple[int, ...] = tuple(range(8))) -> torch.Tensor:
    """Eight codes of 4 bits to a word, along an axis."""
    parts = codes.movedim(axis, -1).unflatten(-1, (-1, 8))[..., list(order)].long()
    return (parts << NIBBLES).sum(-1).to(torch.int32).movedim(-1, axis).contiguous()


def unpacked(words: torch.Tensor, axis: int, order: tuple[int, ...] = tuple(range(8))) -> torch.Tensor:
    """The codes of words."""
    parts = (words.movedim(axis, -1)[..., None].long() >> NIBBLES) & 15
    return parts[..., [order.index(i) for i in range(8)]].flatten(-2).movedim(-1, axis)


def grid(value: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, and scales and zeros (out, groups), where a column is in the group that `index` says."""
    groups = int(index.max()) + 1
    parts = [value.float()[:, index == group] for group in range(groups)]
    low = torch.stack([part.amin(1).clamp(max=-1e-4) for part in parts], 1)
    high = torch.stack([part.amax(1).clamp(min=1e-4) for part in parts], 1)
    scale = ((high - low) / 15).half()
    zero = (-low / scale).round().clamp(1, 15)
    return (value.float() / scale[:, index] + zero[:, index]).round().clamp(0, 15), scale, zero


def gptq(value: torch.Tensor, step: int) -> Tensors:
    """With columns in the order of their activations."""
    columns = value.shape[1]
    index = torch.randperm(columns, generator=torch.Generator().manual_seed(columns)) // 32
    codes, scale, zero = grid(value, index)
    zeros = packed((zero - step).T, 1)
    words = packed(codes.T, 0)
    return {"qweight": words, "qzeros": zeros, "scales": scale.T.contiguous(), "g_idx": index.to(torch.int32)}


def of_gptq(parts: Tensors, step: int) -> torch.Tensor:
    index = parts["g_idx"].long()
    codes, zeros = unpacked(parts["qweight"], 0), unpacked(parts["qzeros"], 1) + step
    return (parts["scales"][index] * (codes - zeros[index])).T


def awq_gemm(value: torch.Tensor) -> Tensors:
    codes, scale, zero = grid(value, torch.arange(value.shape[1]) // 64)
    words, zeros = (packed(made.T, 1, AWQ_ORDER) for made in (codes, zero))
    return {"qweight": words, "qzeros": zeros, "scales": scale.T.contiguous()}


def of_awq_gemm(parts: Tensors) -> torch.Tensor:
    codes, zeros = (unpacked(parts[name], 1, AWQ_ORDER) for name in ("qweight", "qzeros"))
    index = torch.arange(len(codes)) // 64
    return ((codes - zeros[index]) * parts["scales"][index]).T


def awq_gemv(value: torch.Tensor) -> Tensors:
    """Zeros and scales are padded to two words."""
    codes, scale, zero = grid(value, torch.arange(value.shape[1]) // 64)
    scale, zero = (torch.nn.functional.pad(made, (0, 16 - made.shape[1])) for made in (scale, zero))
    return {"qweight": packed(codes, 1), "qzeros": packed(zero, 1), "scales": scale}


def of_awq_gemv(parts: Tensors) -> torch.Tensor:
    codes, zeros = (unpacked(parts[name], 1) for name in ("qweight", "qzeros"))
    index = torch.arange(codes.shape[1]) // 64
    return (codes - zeros[:, index]) * parts["scales"][:, index]


def decompressed(parts: Tensors, kind: str, args: dict[str, Any]) -> torch.Tensor:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args), format=kind)
    return BaseCompressor.get_value_from_registry(kind).decompress(dict(parts), scheme)["weight"].detach()


def blocks_of(value: torch.Tensor) -> Tensors:
    """Codes at random, under scales about as weights have them."""
    experts, columns, rows = value.shape
    draw, shape = torch.Generator().manual_seed(rows), (experts, rows, columns // 32)
    blocks = torch.randint(0, 256, (*shape, 16), generator=draw).to(torch.uint8)
    return {"blocks": blocks, "scales": torch.randint(119, 123, shape, generator=draw).to(torch.uint8)}


@dataclass(frozen=True)
class Row:
    """A scheme: what makes and decodes the parts of a weight, and what config.json says; `skips` is its list of modules
    that are not quantised, where it has one; `experts`: stacks of gpt-oss are quantised, and not a Llama."""

    make: Callable[[torch.Tensor], Tensors]
    decode: Callable[[Tensors], torch.Tensor]
    said: dict[str, Any]
    codes: str
    skips: str | None = None
    dtype: torch.dtype = BF16
    experts: bool = False

    def part(self, weight: str, part: str) -> str:
        """What a part of a weight is called."""
        return f"{weight}_{part}" if self.experts else f"{weight.removesuffix('weight')}{part}"

    @property
    def touched(self) -> set[str]:
        """The weights that the adapter of the tests changes."""
        return set(EXPERTS) if self.experts else {f"{ATTENTION}.q_proj.weight", DOWN}

    @property
    def partners(self) -> set[str]:
        """Those that servers fuse with them."""
        return set() if self.experts else {f"{ATTENTION}.{n}_proj.weight" for n in "kv"}


DOWN = "model.layers.1.mlp.down_proj.weight"


def compressed(kind: str, **args: Any) -> Row:
    args = {"num_bits": 4, "symmetric": True, **args}
    said = {**said_of_compressed(kind, args), "ignore": ["lm_head"], "quantization_status": "compressed"}
    decode = partial(decompressed, kind=kind, args=args)
    return Row(lambda value: compress(value, kind, args)[0], decode, said, "weight_packed", "ignore")


def by_gptq(form: str, step: int) -> Row:
    said = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "sym": False}
    make, decode = partial(gptq, step=step), partial(of_gptq, step=step)
    return Row(make, decode, {**said, "checkpoint_format": form}, "qweight", dtype=F16)


def by_awq(version: str, make: Callable[[torch.Tensor], Tensors], decode: Callable[[Tensors], torch.Tensor]) -> Row:
    said = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": version}
    return Row(make, decode, {**said, "modules_to_not_convert": None}, "qweight", "modules_to_not_convert", F16)


LEFT = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
GROUPS = {"strategy": "group", "group_size": 32}
ROWS = {
    "gptq": by_gptq("gptq", 1),
    "gptq_v2": by_gptq("gptq_v2", 0),
    "awq-gemm": by_awq("gemm", awq_gemm, of_awq_gemm),
    "awq-gemv": by_awq("gemv", awq_gemv, of_awq_gemv),
    "int4": compressed("pack-quantized", type="int", **GROUPS),
    "int4-zeros": compressed("pack-quantized", type="int", **{**GROUPS, "symmetric": False}),
    "mxfp4": compressed("mxfp4-pack-quantized", type="float", scale_dtype=torch.uint8, **GROUPS),
    "nvfp4": compressed("nvfp4-pack-quantized", type="float", strategy="tensor_group", group_size=16),
    "gpt-oss": Row(
        blocks_of,
        lambda parts: convert_moe_packed_tensors(parts["blocks"], parts["scales"]),
        {"quant_method": "mxfp4", "modules_to_not_convert": LEFT},
        "blocks",
        experts=True,
    ),
}
MIXED = [name for name, row in ROWS.items() if row.skips]
WAYS: dict[str, dict[str, Any]] = {
    "mixed": {},
    "dequantize": {"dequantize": True},
    "requantize": {"requantize": True, "lossy": True},
}
EACH = [(name, way) for name in ROWS for way in WAYS if way != "mixed" or name in MIXED]


@dataclass(frozen=True)
class Case:
    """A quantised base, an adapter on it, what the reference decodes, and what PEFT merges into that in float32."""

    row: Row
    base: Path
    lora: Path
    quantised: dict[str, Tensors]
    decoded: Tensors
    wanted: Tensors

    def merged(self, out: Path, undo: bool = False, **way: Any) -> Path:
        base = surgery.open_checkpoint(self.base)
        made = surgery.merge(base, surgery.open_adapter(self.lora), **way)
        surgery.write(surgery.reversible(made, base) if undo else made, out)
        return out

    def parts(self, weights: set[str]) -> set[str]:
        """The stored tensors of these."""
        return {self.row.part(weight, part) for weight in weights for part in self.quantised[weight]}


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """case("awq-gemm") -> a tiny model whose linear weights are stored so."""
    return cache(lambda name: build(ROWS[name], tmp_path_factory.mktemp(name)))


def build(row: Row, root: Path) -> Case:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(GPT_OSS if row.experts else LLAMA, dtype=row.dtype).save_pretrained(root / "plain")
    plain = load_file(root / "plain/model.safetensors")
    chosen = EXPERTS if row.experts else [name for name in plain if name.endswith("_proj.weight")]
    parts = {name: row.make(plain[name]) for name in chosen}
    stored = {name: value for name, value in plain.items() if name not in parts}
    stored |= {row.part(name, part): t.contiguous() for name, made in parts.items() for part, t in made.items()}
    shutil.copytree(root / "plain", root / "base")
    save_file(stored, root / "base/model.safetensors", {"format": "pt"})
    config = json.loads((root / "plain/config.json").read_text())
    (root / "base/config.json").write_text(json.dumps({**config, "quantization_config": row.said}))
    decoded = {**plain, **{name: row.decode(made).contiguous() for name, made in parts.items()}}
    wanted = peft_merged(row, root, decoded)
    return Case(row, root / "base", root / "lora", parts, decoded, wanted)


def peft_merged(row: Row, root: Path, decoded: Tensors) -> Tensors:
    """An adapter made and merged by PEFT, in float32."""
    shutil.copytree(root / "plain", root / "decoded")
    save_file(decoded, root / "decoded/model.safetensors", {"format": "pt"})
    torch.manual_seed(1)
    options: dict[str, Any] = {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]}
    if row.experts:
        options = {"target_modules": [], "target_parameters": [name.removeprefix("model.") for name in EXPERTS]}
    live = AutoModelForCausalLM.from_pretrained(root / "decoded", dtype=torch.float32)
    live = get_peft_model(live, LoraConfig(r=4, lora_alpha=16, **options))
    for name, value in live.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, std=0.05)
    live.peft_config["default"].base_model_name_or_path = str(root / "base")
    live.save_pretrained(root / "lora")
    return live.merge_and_unload().state_dict()


def near(found: torch.Tensor, made: Case, name: str) -> bool:
    """But for the rounding of what the reference decodes, and of the sum, to 16 bits."""
    was, wanted = made.decoded[name].float(), made.wanted[name].float()
    slack = torch.finfo(made.row.dtype).eps / 2 * (was.abs() + 1.01 * wanted.abs()) + 1e-7
    return bool(((found.float() - wanted).abs() <= slack).all())


@pytest.mark.parametrize("name", ROWS)
def test_dequantised_it_is_what_the_reference_decodes(case: Callable[[str], Case], tmp_path: Path, name: str) -> None:
    made = case(name)
    surgery.write(surgery.dequantize(surgery.open_checkpoint(made.base)), tmp_path / "out")
    found = load_file(tmp_path / "out/model.safetensors")
    assert found.keys() == made.decoded.keys()
    assert [n for n, t in found.items() if t.dtype != made.row.dtype or not torch.equal(t, made.decoded[n])] == []
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())


@pytest.mark.parametrize("name", MIXED)
def test_merged_only_what_is_touched_is_in_16_bits(case: Callable[[str], Case], tmp_path: Path, name: str) -> None:
    made = case(name)
    wide = made.row.touched | made.row.partners
    out = made.merged(tmp_path / "out")
    old, new = raw(made.base), raw(out)
    assert new.keys() == (old.keys() - made.parts(wide)) | wide
    assert [n for n in new if n not in wide and new[n] != old[n]] == []
    found = load_file(out / "model.safetensors")
    assert all(near(found[n], made, n) for n in wide)
    assert all(torch.equal(found[n], made.decoded[n]) for n in made.row.partners)
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (made.base, out))
    assert made.row.skips
    listed = after["quantization_config"].pop(made.row.skips)
    del before["quantization_config"][made.row.skips]
    assert before == after
    assert sorted(listed) == sorted(["lm_head", *(n.removesuffix(".weight") for n in wide)])


def test_where_no_loader_takes_a_mixture_it_is_refused(case: Callable[[str], Case], tmp_path: Path) -> None:
    made = case("gptq")
    with pytest.raises(surgery.NotSupported, match="no loader of gptq takes"):
        made.merged(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ROWS)
def test_merged_and_dequantised(case: Callable[[str], Case], tmp_path: Path, name: str) -> None:
    """Of gpt-oss, all is touched, and nothing needs to be asked for."""
    made = case(name)
    out = made.merged(tmp_path / "out", dequantize=True)
    found = load_file(out / "model.safetensors")
    assert found.keys() == made.decoded.keys()
    assert all(near(found[n], made, n) for n in made.row.touched)
    assert all(torch.equal(found[n], made.decoded[n]) for n in found.keys() - made.row.touched)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    if made.row.experts:
        assert raw(made.merged(tmp_path / "unasked")) == raw(out)


@pytest.mark.parametrize("name", ROWS)
def test_coded_again_no_other_code_is_nearer(case: Callable[[str], Case], tmp_path: Path, name: str) -> None:
    made, row = case(name), case(name).row
    out = made.merged(tmp_path / "out", requantize=True, lossy=True)
    old, new = raw(made.base), raw(out)
    assert old.keys() == new.keys()
    assert {n for n in old if old[n] != new[n]} == {row.part(n, row.codes) for n in row.touched}
    assert (made.base / "config.json").read_bytes() == (out / "config.json").read_bytes()
    found = load_file(out / "model.safetensors")
    for weight in row.touched:
        parts = {part: found[row.part(weight, part)] for part in made.quantised[weight]}
        wanted = made.wanted[weight].float()

        def distance(codes: torch.Tensor, parts: Tensors = parts, wanted: torch.Tensor = wanted) -> torch.Tensor:
            return (row.decode({**parts, row.codes: codes}).float() - wanted).abs()

        mine, bytes_ = distance(parts[row.codes]), parts[row.codes].view(torch.uint8)
        slack = torch.finfo(row.dtype).eps * (made.decoded[weight].float().abs() + wanted.abs() + mine)
        for code in range(16):
            alike = torch.full_like(bytes_, 17 * code).view(parts[row.codes].dtype)
            other = distance(alike)
            assert (mine <= other + slack + torch.finfo(row.dtype).eps * other).all(), (weight, code)


@pytest.mark.parametrize(("name", "way"), EACH)
def test_what_was_merged_is_undone_byte_for_byte(
    case: Callable[[str], Case], tmp_path: Path, name: str, way: str
) -> None:
    made = case(name)
    out = made.merged(tmp_path / "out", undo=True, **WAYS[way])
    surgery.write(surgery.unmerge(surgery.open_checkpoint(out)), tmp_path / "back")
    after = {n: h for n, h in hashes(tmp_path / "back").items() if not n.startswith(".surgery")}
    assert after == hashes(made.base)


@pytest.mark.parametrize(("name", "way"), EACH)
def test_it_is_proved_and_what_was_tampered_with_is_named(
    case: Callable[[str], Case], tmp_path: Path, name: str, way: str
) -> None:
    """One byte of what was merged, and one of what was not."""
    made = case(name)
    out = made.merged(tmp_path / "out", **WAYS[way])
    words = ["verify", str(out), "--base", str(made.base), "--adapter", str(made.lora), "--no-class"]
    assert CliRunner().invoke(app, words).exit_code == 0
    stored = load_file(out / "model.safetensors")
    touched = min(made.row.touched)
    kept = "model.embed_tokens.weight" if made.row.experts else "model.layers.0.mlp.up_proj.weight"
    for weight in (touched, kept):
        name_ = weight if weight in stored else made.row.part(weight, made.row.codes)
        tensors = {n: t.clone() for n, t in stored.items()}
        tensors[name_].view(-1).view(torch.uint8)[7] ^= 0x38
        save_file(tensors, out / "model.safetensors", {"format": "pt"})
        found = surgery.verify(out, base=made.base, adapter=made.lora, check_class=False)
        assert not found.ok and found.proof is not None
        assert {one.name for one in found.proof.wrong} <= {name_, weight} and found.proof.wrong


@pytest.mark.parametrize(("name", "way"), EACH)
def test_what_differs_is_what_was_touched(case: Callable[[str], Case], tmp_path: Path, name: str, way: str) -> None:
    """By what codes mean; what is only in 16 bits now differs by the rounding to them."""
    made = case(name)
    found = surgery.diff(made.base, made.merged(tmp_path / "out", **WAYS[way]))
    away = {one.name: one.measure.relative or 0.0 for one in found.decoded if one.measure}
    rounded = {"mixed": made.row.partners, "dequantize": made.quantised.keys() - made.row.touched, "requantize": set()}
    assert away.keys() == made.row.touched | rounded[way]
    eps = torch.finfo(made.row.dtype).eps
    assert {weight for weight, far in away.items() if far > eps / 2} == made.row.touched
    for weight in made.row.touched if way != "requantize" else ():
        was, now = made.decoded[weight].float(), made.wanted[weight].float()
        assert away[weight] == pytest.approx(float((now - was).norm() / was.norm()), rel=0.02)


@pytest.mark.parametrize("pattern", [r".*\.q_proj\.weight", r".*\.q_proj\.(qweight|weight_packed)", r".*\.q_proj\..*"])
@pytest.mark.parametrize("name", ["gptq", "awq-gemv", "int4", "nvfp4"])
def test_a_weight_is_asked_for_by_its_name_or_that_of_a_part(
    case: Callable[[str], Case], tmp_path: Path, name: str, pattern: str
) -> None:
    """And one of which nothing differs is not told, whichever of its parts the pattern leaves out."""
    made = case(name)
    out = made.merged(tmp_path / "out", requantize=True, lossy=True)
    found = surgery.diff(made.base, out, tensors=pattern)
    weight = f"{ATTENTION}.q_proj.weight"
    assert [change.name for change in found.decoded] == [weight]
    assert [change.name for change in found.changed] == [made.row.part(weight, made.row.codes)]
    assert len(found.identical) == 2 * len(made.quantised[weight]) - 1 and not found.only_a and not found.only_b
