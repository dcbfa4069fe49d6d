"""Fused modules that are quantised, split and fused as codes: what the parts mean is the parts of what it meant."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import hashes
from quantization.made import (
    Made,
    Tensors,
    bitsandbytes_4bit,
    bitsandbytes_8bit,
    compressed,
    fbgemm,
    fixtures,
    fp8,
    gpt_oss,
)
from safetensors.torch import load_file, save_file

import surgery
from surgery.errors import NotSupported
from surgery.quantization.quantised import quantised

BF16, F32 = torch.bfloat16, torch.float32
INT, FLOAT = {"type": "int", "symmetric": True}, {"type": "float", "symmetric": True}
QKV = "model.layers.0.self_attn.qkv_proj"
PHI3 = {"model_type": "phi3", "hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
NEOX = {"model_type": "gpt_neox", "hidden_size": 128, "num_attention_heads": 4}
FALCON = {
    "model_type": "falcon",
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_kv_heads": 2,
    "new_decoder_architecture": True,
}
# config, the fused module, its rows, and the rows of each part
Family = tuple[Mapping[str, Any], str, Mapping[str, list[int]]]
FAMILIES: dict[str, Family] = {
    "phi3": (
        PHI3,
        QKV,
        {"q_proj": [*range(128)], "k_proj": [*range(128, 192)], "v_proj": [*range(192, 256)]},
    ),
    "phi3-gate-up": (
        PHI3,
        "model.layers.0.mlp.gate_up_proj",
        {"gate_proj": [*range(128)], "up_proj": [*range(128, 256)]},
    ),
    "gpt_neox": (
        NEOX,
        "gpt_neox.layers.0.attention.query_key_value",
        {
            part: [row for head in range(4) for row in range(96 * head + 32 * i, 96 * head + 32 * i + 32)]
            for i, part in enumerate(("query", "key", "value"))
        },
    ),
    "falcon": (
        FALCON,
        "transformer.h.0.self_attention.query_key_value",
        {
            part: [row for group in range(2) for row in range(128 * group + start, 128 * group + stop)]
            for part, start, stop in (("query", 0, 64), ("key", 64, 96), ("value", 96, 128))
        },
    ),
}


def words(shape: tuple[int, ...]) -> torch.Tensor:
    """Random words of 32 bits."""
    draw = torch.Generator().manual_seed(3)
    return torch.randint(-(2**31), 2**31, shape, generator=draw).to(torch.int32)


def fields(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """The fields of little-endian words that run along a row, by their bits."""
    every = (packed.long()[..., None] >> torch.arange(32)) & 1
    each = every.reshape(*packed.shape[:-1], -1, bits)
    return (each << torch.arange(bits)).sum(-1)


def gptq(shape: tuple[int, int], bits: int, group: int, ordered: bool = False) -> Made:
    """Random codes and zeros of the second format, and what they mean by the rule for all widths."""
    rows, columns = shape
    index = torch.arange(columns) // group
    index = index[torch.randperm(columns, generator=torch.Generator().manual_seed(4))] if ordered else index
    codes, zeros = words((columns * bits // 32, rows)), words((columns // group, rows * bits // 32))
    scales = (torch.rand((columns // group, rows), generator=torch.Generator().manual_seed(5)) * 0.01).half()
    number = fields(codes.T.contiguous(), bits).T - fields(zeros, bits)[index]
    weight = (number.float() * scales[index].float()).half().T.contiguous()
    parts = {"m.qweight": codes, "m.qzeros": zeros, "m.scales": scales, "m.g_idx": index.to(torch.int32)}
    said = {"quant_method": "gptq", "bits": bits, "group_size": group, "checkpoint_format": "gptq_v2"}
    return Made(parts, said, weight, "m.qweight")


def awq(shape: tuple[int, int], group: int) -> Made:
    """Random codes as gemm has them: eight outputs to a word, in their order."""
    rows, columns = shape
    codes, zeros = words((columns, rows // 8)), words((columns // group, rows // 8))
    scales = (torch.rand((columns // group, rows), generator=torch.Generator().manual_seed(5)) * 0.01).half()
    place = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])  # of each output in its word

    def outputs(packed: torch.Tensor) -> torch.Tensor:
        return fields(packed, 4).reshape(len(packed), -1, 8)[..., place].flatten(-2)

    index = torch.arange(columns) // group
    number = outputs(codes) - outputs(zeros)[index]
    weight = (number.float() * scales[index].float()).half().T.contiguous()
    parts = {"m.qweight": codes, "m.qzeros": zeros, "m.scales": scales}
    return Made(parts, {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm"}, weight, "m.qweight")


def packed(shape: tuple[int, int], bits: int, **more: Any) -> Made:
    return compressed(shape, "pack-quantized", **{**INT, "num_bits": bits, "strategy": "channel", **more})


GROUPS = {"strategy": "group", "group_size": 32}
SCHEMES: dict[str, Callable[[tuple[int, int]], Made]] = {
    "nf4": lambda shape: bitsandbytes_4bit(shape, "nf4", 64, False, BF16),
    "nf4-stored-bf16": lambda shape: bitsandbytes_4bit(shape, "nf4", 64, False, BF16, BF16),
    "fp4-256": lambda shape: bitsandbytes_4bit(shape, "fp4", 256, False, BF16),
    "nf4-double": lambda shape: bitsandbytes_4bit(shape, "nf4", 64, True, BF16),
    "int8": lambda shape: bitsandbytes_8bit(shape, BF16),
    "fp8-32": lambda shape: fp8(shape, (32, 32), F32, BF16),
    "fp8-64": lambda shape: fp8(shape, (64, 64), BF16, BF16),
    "fp8-128": lambda shape: fp8(shape, (128, 128), F32, BF16),
    "fp8-tensor": lambda shape: fp8(shape, None, F32, BF16),
    "fbgemm": lambda shape: fbgemm(shape, False),
    "int4": lambda shape: packed(shape, 4, **GROUPS),
    "int4-zeros": lambda shape: packed(shape, 4, symmetric=False, **GROUPS),
    "int3-zeros": lambda shape: packed(shape, 3, symmetric=False, **GROUPS),
    "int8-channel": lambda shape: packed(shape, 8),
    "w8a8": lambda shape: compressed(shape, "int-quantized", **INT, num_bits=8, strategy="channel"),
    "ct-fp8-tensor": lambda shape: compressed(shape, "float-quantized", **FLOAT, num_bits=8, strategy="tensor"),
    "ct-fp8-block": lambda shape: compressed(
        shape, "float-quantized", **FLOAT, num_bits=8, strategy="block", block_structure=[32, 32]
    ),
    "nvfp4": lambda shape: compressed(
        shape, "nvfp4-pack-quantized", **FLOAT, num_bits=4, strategy="tensor_group", group_size=16
    ),
    "mxfp4": lambda shape: compressed(
        shape, "mxfp4-pack-quantized", **FLOAT, num_bits=4, **GROUPS, scale_dtype=torch.uint8, zp_dtype=torch.uint8
    ),
    "gptq-4": lambda shape: gptq(shape, 4, 32),
    "gptq-3": lambda shape: gptq(shape, 3, 32),
    "gptq-ordered": lambda shape: gptq(shape, 4, 32, ordered=True),
    "awq": lambda shape: awq(shape, 32),
}
# Whose cuts fall within what rows share.
WITHIN = {("gpt_neox", "nf4-double"), ("falcon", "nf4-double")} | set(
    itertools.product(("gpt_neox", "falcon"), ("fp8-64", "fp8-128"))
)


def written(folder: Path, tensors: Tensors, config: Mapping[str, Any], said: Mapping[str, Any]) -> Path:
    """A checkpoint with these tensors."""
    folder.mkdir(parents=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    written = {**config, "dtype": "bfloat16", "quantization_config": said}
    (folder / "config.json").write_text(f"{json.dumps(written, indent=2, sort_keys=True)}\n")
    return folder


def of_module(made: Made, module: str) -> Tensors:
    return {name.replace("m.", f"{module}.", 1): tensor for name, tensor in made.tensors.items()}


def family(name: str) -> tuple[Mapping[str, Any], str, Mapping[str, list[int]], int]:
    config, module, parts = FAMILIES[name]
    return config, module, parts, sum(map(len, parts.values()))


def checkpoint(folder: Path, kind: str, scheme: str) -> tuple[Path, Made]:
    """The fused module of a family, quantised, with a bias and what the lists name."""
    config, module, _, rows = family(kind)
    made = SCHEMES[scheme]((rows, 128))
    bias = torch.arange(rows, dtype=BF16)
    return written(folder, {**of_module(made, module), f"{module}.bias": bias}, config, made.config), made


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", FAMILIES)
def test_parts_are_what_the_reference_decodes(kind: str, scheme: str, tmp_path: Path) -> None:
    base, made = checkpoint(tmp_path / "base", kind, scheme)
    _, module, parts, _ = family(kind)
    opened = surgery.open_checkpoint(base)
    if (kind, scheme) in WITHIN:
        with pytest.raises(NotSupported, match=f"rows share: 1 entry of {module}.weight") as caught:
            surgery.split(opened)
        assert caught.value.help == f"write it in 16 bits first: surgery dequantize {base} -o OUT"
        return
    surgery.write(surgery.split(opened), tmp_path / "split")
    parted = surgery.open_checkpoint(tmp_path / "split")
    assert len(quantised(parted).weights) == len(parts)
    plain = surgery.dequantize(parted)
    parent = module.rpartition(".")[0]
    for part, rows in parts.items():
        assert torch.equal(plain.load(f"{parent}.{part}.weight"), made.weight[rows])
        assert plain.load(f"{parent}.{part}.bias").tolist() == torch.tensor(rows, dtype=BF16).tolist()
    surgery.write(plain, tmp_path / "one")
    surgery.write(surgery.split(surgery.dequantize(opened)), tmp_path / "other")
    assert hashes(tmp_path / "one") == hashes(tmp_path / "other")
    surgery.write(surgery.fuse(parted), tmp_path / "back")
    assert hashes(tmp_path / "back") == hashes(base)
    surgery.write(surgery.fuse(surgery.split(opened)), tmp_path / "lazily")
    assert hashes(tmp_path / "lazily") == hashes(base)


def edited(base: Path, folder: Path, change: Callable[[Tensors], None], **said: Any) -> Path:
    """A copy with other tensors, and more said of its quantisation."""
    config = json.loads((base / "config.json").read_text())
    tensors = load_file(base / "model.safetensors")
    change(tensors)
    return written(folder, tensors, config, {**config["quantization_config"], **said})


def refused(surgery_: Callable[[surgery.Checkpoint], object], base: Path, what: str, *where: str) -> None:
    """Refused by name, with the way out that there is."""
    with pytest.raises(NotSupported, match=what) as caught:
        surgery_(surgery.open_checkpoint(base))
    assert f"surgery dequantize {base} -o OUT" in str(caught.value.help)
    assert all(line in str(caught.value) for line in where)


GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_head": 2}


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_what_is_stored_transposed_is_cut_where_its_outputs_are(scheme: str, tmp_path: Path) -> None:
    """Codes of a Conv1D are (out, in), and its weight in 16 bits is (in, out)."""
    made, module = SCHEMES[scheme]((192, 64)), "transformer.h.0.attn.c_attn"
    base = written(tmp_path / "base", of_module(made, module), GPT2, made.config)
    split = surgery.split(surgery.open_checkpoint(base))
    plain = surgery.dequantize(split)
    for i, part in enumerate("qkv"):
        found = plain.load(f"transformer.h.0.attn.{part}_attn.weight")
        assert torch.equal(found, made.weight[64 * i : 64 * (i + 1)].T)
    surgery.write(surgery.fuse(split), tmp_path / "back")
    assert hashes(tmp_path / "back") == hashes(base)


OTHER = "model.layers.1.self_attn.qkv_proj"


def with_other(tensors: Tensors) -> None:
    """With one that is not quantised, in the next layer."""
    zeros = torch.zeros(256, 128, dtype=BF16)
    tensors |= {f"{OTHER}.weight": zeros, f"{OTHER}.bias": zeros[:, 0].clone()}


LISTED = {
    "by its name": ([OTHER, "lm_head"], [OTHER.replace("qkv", part) for part in "qkv"] + ["lm_head"]),
    "by its end": (["1.self_attn.qkv_proj"], [f"1.self_attn.{part}_proj" for part in "qkv"]),
    "by where it is": (["model.layers.1"], ["model.layers.1"]),
}


@pytest.mark.parametrize("scheme", ["nf4", "fp8-32", "int4", "gptq-4"])
@pytest.mark.parametrize("how", LISTED)
def test_lists_of_what_is_not_quantised_follow_the_names(how: str, scheme: str, tmp_path: Path) -> None:
    first, made = checkpoint(tmp_path / "first", "phi3", scheme)
    key = {"nf4": "llm_int8_skip_modules", "fp8-32": "modules_to_not_convert", "int4": "ignore"}.get(scheme, "")
    before, after = LISTED[how]
    if scheme == "int4" and how != "by its name":
        before, after = ([r"re:.*layers\.1\.self_attn"],) * 2
    was: list[Any] = before if key else [before]
    now: list[Any] = after if key else [after]
    key = key or "modules_in_block_to_quantize"
    base = edited(first, tmp_path / "base", with_other, **{key: was})
    split = surgery.split(surgery.open_checkpoint(base))
    assert split.config["quantization_config"] == {**made.config, key: now}
    assert f"{OTHER.replace('qkv', 'k')}.weight" in split.tensors
    surgery.write(surgery.fuse(split), tmp_path / "back")
    assert hashes(tmp_path / "back") == hashes(base)


@pytest.mark.parametrize(
    ("scheme", "said", "what"),
    [
        ("nf4", {"llm_int8_skip_modules": [r".*1\.self_attn\.qkv_proj"]}, "llm_int8_skip_modules"),
        ("int4", {"ignore": [r"re:.*1\.self_attn\.qkv"]}, "ignore"),
        ("gptq-4", {"dynamic": {r"-:.*layers\.1\.self_attn\.qkv_proj": {}}}, "dynamic"),
        ("fp8-32", {"modules_to_not_convert": ["q_proj", OTHER]}, "modules_to_not_convert"),
    ],
)
def test_patterns_that_would_mean_others_are_refused(
    scheme: str, said: dict[str, Any], what: str, tmp_path: Path
) -> None:
    first, _ = checkpoint(tmp_path / "first", "phi3", scheme)
    base = edited(first, tmp_path / "base", with_other, **said)
    refused(surgery.split, base, "modules by patterns", what, "name them one by one")


def test_groups_that_name_modules_follow_as_well(tmp_path: Path) -> None:
    base, made = checkpoint(tmp_path / "first", "phi3", "int4")
    groups = made.config["config_groups"]
    assert isinstance(groups, dict)
    base = edited(base, tmp_path / "base", lambda t: None, config_groups={"a": {**groups["group_0"], "targets": [QKV]}})
    split = surgery.split(surgery.open_checkpoint(base))
    names = [f"model.layers.0.self_attn.{part}_proj" for part in "qkv"]
    assert split.config["quantization_config"]["config_groups"]["a"]["targets"] == names
    pattern = {"a": {**groups["group_0"], "targets": ["re:.*qkv_proj"]}}
    refused(surgery.split, edited(base, tmp_path / "x", lambda t: None, config_groups=pattern), "by patterns")


def split_of(tmp_path: Path, scheme: str) -> Path:
    base, _ = checkpoint(tmp_path / "whole", "phi3", scheme)
    surgery.write(surgery.split(surgery.open_checkpoint(base)), tmp_path / "parts")
    (tmp_path / "parts/.surgery/manifest.json").unlink()
    return tmp_path / "parts"


K = "model.layers.0.self_attn.k_proj"


def twice(name: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: tensors[name] * 2})


@pytest.mark.parametrize(
    ("scheme", "name"),
    [
        ("fp8-tensor", f"{K}.weight_scale_inv"),
        ("ct-fp8-tensor", f"{K}.weight_scale"),
        ("nvfp4", f"{K}.weight_global_scale"),
        ("fp8-128", f"{K}.weight_scale_inv"),
        ("nf4-double", f"{K}.weight.nested_absmax"),
        ("gptq-ordered", f"{K}.g_idx"),
    ],
)
def test_parts_with_scales_of_their_own_are_not_fused(scheme: str, name: str, tmp_path: Path) -> None:
    change = twice(name) if scheme != "gptq-ordered" else lambda t: t.update({name: t[name].flip(0)})
    base = edited(split_of(tmp_path, scheme), tmp_path / "base", change)
    refused(surgery.fuse, base, "scales of their own where the fused weight has one for all", name)


def test_parts_that_are_quantised_otherwise_are_not_fused(tmp_path: Path) -> None:
    def shifted(tensors: Tensors) -> None:
        name = f"{K}.weight.quant_state.bitsandbytes__nf4"
        state = json.loads(bytes(tensors[name].tolist()))
        raw = json.dumps({**state, "nested_offset": state["nested_offset"] * 2}).encode()
        tensors[name] = torch.tensor(list(raw), dtype=torch.uint8)

    def plain(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith(f"{K}.weight")]:
            del tensors[name]
        tensors[f"{K}.weight"] = torch.zeros(64, 128, dtype=BF16)

    base = split_of(tmp_path, "nf4-double")
    refused(surgery.fuse, edited(base, tmp_path / "a", shifted), "are not quantised alike", f"{K}.weight")
    refused(surgery.fuse, edited(base, tmp_path / "b", plain), "quantised, and others that are not", f"{K}.weight")


def test_words_are_not_cut(tmp_path: Path) -> None:
    """Zeros of 3 bits fill three words with 32 rows, and eight of 4 bits one: a head of 16 rows, or of 4."""
    config = {**NEOX, "num_attention_heads": 8}
    for scheme, heads, share in (("gptq-3", 8, "32 rows share: 3 entries"), ("awq", 32, "8 rows share: 1 entry")):
        made, folder = SCHEMES[scheme]((384, 128)), tmp_path / scheme
        module = "gpt_neox.layers.0.attention.query_key_value"
        said = {**config, "num_attention_heads": heads}
        refused(surgery.split, written(folder, of_module(made, module), said, made.config), share, module)


EXPERTS = "model.layers.0.mlp.experts"


def test_experts_of_gpt_oss_stay_stacked(tmp_path: Path) -> None:
    """Gate and up alternate, each a row of codes; experts apart are what nothing loads as MXFP4."""
    made, name = gpt_oss((3, 32, 64)), f"{EXPERTS}.gate_up_proj"
    tensors = {n.replace("m.weight", name): tensor for n, tensor in made.tensors.items()}
    base = written(tmp_path / "base", tensors, {"model_type": "gpt_oss", "num_local_experts": 3}, made.config)
    split = surgery.split_gate_up(surgery.open_checkpoint(base))
    plain = surgery.dequantize(split)
    for i, part in enumerate(("gate_proj", "up_proj")):
        assert torch.equal(plain.load(f"{EXPERTS}.{part}"), made.weight[..., i::2])
    surgery.write(surgery.fuse_gate_up(split), tmp_path / "back")
    assert hashes(tmp_path / "back") == hashes(base)
    refused(surgery.split_experts, base, "are words, and experts apart are transposed", "gate_up_proj_blocks")


@pytest.mark.parametrize("block", [(32, 32), (16, 32), None])
def test_experts_in_fp8_are_stacked_with_their_scales(block: tuple[int, int] | None, tmp_path: Path) -> None:
    tensors = Tensors()
    for i, (expert, part) in enumerate(itertools.product(range(3), ("gate_proj", "up_proj", "down_proj"))):
        made = fp8((64, 64), block, F32, BF16)
        made.tensors["m.weight"][:, i] = 1
        tensors |= of_module(made, f"{EXPERTS}.{expert}.{part}")
    config = {"model_type": "qwen3_moe", "num_experts": 3}
    base = written(tmp_path / "base", tensors, config, made.config)
    opened = surgery.open_checkpoint(base)
    plain, stacked = surgery.dequantize(opened), surgery.fuse_experts(opened)
    shapes = {name.removeprefix(f"{EXPERTS}."): tensor.shape for name, tensor in stacked.tensors.items()}
    assert shapes["gate_up_proj"] == (3, 128, 64) and shapes["down_proj"] == (3, 64, 64)
    assert set(shapes) == {"gate_up_proj", "down_proj", "gate_up_proj_scale_inv", "down_proj_scale_inv"}
    parts = [torch.stack([plain.load(f"{EXPERTS}.{e}.{p}_proj.weight") for e in range(3)]) for p in ("gate", "up")]
    assert torch.equal(surgery.dequantize(stacked).load(f"{EXPERTS}.gate_up_proj"), torch.cat(parts, 1))
    surgery.write(surgery.split_experts(stacked), tmp_path / "back")
    assert hashes(tmp_path / "back") == hashes(base)


def test_experts_of_llama4_come_apart_transposed(tmp_path: Path) -> None:
    """Codes of 8 bits have a transpose, and scales for each output lie the other way then."""
    made, experts = fbgemm((3, 32, 64), False), "model.layers.0.feed_forward.experts"
    tensors = {n.replace("m.weight", f"{experts}.gate_up_proj"): tensor for n, tensor in made.tensors.items()}
    base = written(tmp_path / "base", tensors, {"model_type": "llama4_text", "num_local_experts": 3}, made.config)
    split = surgery.split_experts(surgery.open_checkpoint(base))
    plain = surgery.dequantize(split)
    for expert, (i, part) in itertools.product(range(3), enumerate(("gate_proj", "up_proj"))):
        found = plain.load(f"{experts}.{expert}.{part}.weight")
        assert torch.equal(found, made.weight[expert, :, 32 * i : 32 * (i + 1)].T)
    surgery.write(surgery.fuse_experts(split), tmp_path / "back")
    assert hashes(tmp_path / "back") == hashes(base)


def test_codes_of_which_headers_tell_are_refused(tmp_path: Path) -> None:
    """torchao says of each weight in the header what it is, by its name."""
    made = fixtures("torchao")["int8-rows-half"]()
    config = {"model_type": "phi3", "hidden_size": 64}
    base = written(tmp_path / "base", of_module(made, f"{EXPERTS}.gate_up_proj"), config, made.config)
    tensors = load_file(base / "model.safetensors")
    module = "model.layers.0.mlp.gate_up_proj"
    header = {k: v.replace("m.weight", f"{module}.weight") for k, v in made.header.items()}
    header = {k.replace("m.weight", f"{module}.weight"): v for k, v in header.items()}
    tensors = {n.replace(f"{EXPERTS}.gate_up_proj", module): t for n, t in tensors.items()}
    save_file(tensors, base / "model.safetensors", header)
    refused(surgery.split, base, "the codes would not be read again", "model.layers.0.mlp")


def test_scales_of_activations_that_would_be_left_behind_are_refused(tmp_path: Path) -> None:
    """Of its inputs each part has them; of its outputs, which become others', none can."""
    base, _ = checkpoint(tmp_path / "first", "phi3", "ct-fp8-tensor")
    inputs = edited(base, tmp_path / "in", lambda t: t.update({f"{QKV}.input_scale": torch.ones(1)}))
    split = surgery.split(surgery.open_checkpoint(inputs))
    assert {f"{QKV.replace('qkv', part)}.input_scale" for part in "qkv"} < set(split.tensors)
    surgery.write(surgery.fuse(split), tmp_path / "back")
    assert hashes(tmp_path / "back") == hashes(inputs)
    outputs = edited(base, tmp_path / "out", lambda t: t.update({f"{QKV}.output_scale": torch.ones(1)}))
    refused(surgery.split, outputs, "scales of activations belong to modules", f"{QKV}.output_scale")


def test_codes_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    base, _ = checkpoint(tmp_path / "first", "phi3", "int4")
    for said, what in (({"quant_method": "hqq"}, "by hqq are not read"), ({"config_groups": {}}, "no group of config")):
        folder = edited(base, tmp_path / what, lambda t: None, **said)
        with pytest.raises(surgery.SurgeryError, match=what):
            surgery.split(surgery.open_checkpoint(folder))
