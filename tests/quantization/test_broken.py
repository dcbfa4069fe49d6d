"""Quantised checkpoints that contradict themselves, or that are not read: refused by name, and nothing is written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from handmade import write_adapter
from made import (
    Made,
    Tensors,
    bitsandbytes_4bit,
    bitsandbytes_8bit,
    compressed,
    fbgemm,
    fixtures,
    fp8,
    gpt_oss,
    ordered_groups,
)
from safetensors import safe_open
from safetensors.torch import save_file

import surgery

Change = Callable[[Tensors, dict[str, Any]], object]
STATE = "m.weight.quant_state.bitsandbytes__nf4"


@dataclass(frozen=True)
class Broken:
    """A quantised weight, what is done to its tensors and its config, and what must be said of it, by a regular
    expression over the whole error; `late` where values are wrong, which no header shows.
    """

    made: Callable[[], Made]
    change: Change
    says: str
    late: bool = False


def without(*names: str) -> Change:
    return lambda tensors, said: [tensors.pop(name) for name in names]


def with_(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    return lambda tensors, said: tensors.update({name: change(tensors[name])})


def said(**more: Any) -> Change:
    return lambda tensors, said: said.update(more)


def state(**more: Any) -> Change:
    """The JSON that bitsandbytes stores, with something else in it; None: without."""

    def change(blob: torch.Tensor) -> torch.Tensor:
        told = {key: value for key, value in {**json.loads(bytes(blob.tolist())), **more}.items() if value is not None}
        return torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)

    return with_(STATE, change)


def one(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """The first element is that."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone().contiguous()
        (tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor).view(-1)[0] = value
        return tensor

    return change


def gptq() -> Made:
    return fixtures("gptq")["4-32-sym-gptq-float16"]()


def gptq_act() -> Made:
    return fixtures("gptq")["4-16-asym-act-gptq-float16"]()


def awq() -> Made:
    return fixtures("awq")["gemm-32x64-32"]()


def gemv() -> Made:
    return fixtures("awq")["gemv-32x64-32"]()


def nf4() -> Made:
    return bitsandbytes_4bit((8, 64), "nf4", 64, False, torch.bfloat16)


def double() -> Made:
    return bitsandbytes_4bit((8, 64), "nf4", 64, True, torch.bfloat16)


def int8() -> Made:
    return bitsandbytes_8bit((7, 33), torch.bfloat16)


def fp8_blocks() -> Made:
    return fp8((40, 50), (16, 32), torch.float32, torch.bfloat16)


def fp8_exponents() -> Made:
    return fp8((40, 50), (16, 32), torch.float8_e8m0fnu, torch.bfloat16)


def ct(bits: int, shape: tuple[int, int] = (8, 64), **how: Any) -> Made:
    args = {"type": "int", "symmetric": True, "strategy": "group", "group_size": 32, **how}
    args |= {"group_size": None} if args["strategy"] == "channel" else {}
    return compressed(shape, "pack-quantized" if bits < 8 else "int-quantized", num_bits=bits, **args)


def ct3(shape: tuple[int, int] = (8, 64)) -> Made:
    return ct(3, shape, strategy="channel")


def ct4() -> Made:
    return ct(4)


def ct4_zeros() -> Made:
    return ct(4, (16, 64), symmetric=False)


def ct_ordered() -> Made:
    return ordered_groups((13, 96), 16, True)


def ct_int8() -> Made:
    return ct(8, strategy="channel")


def ct_fp8() -> Made:
    return compressed((8, 64), "float-quantized", type="float", num_bits=8, strategy="channel")


def nvfp4() -> Made:
    return compressed((8, 64), "nvfp4-pack-quantized", type="float", num_bits=4, strategy="tensor_group", group_size=16)


def mxfp4() -> Made:
    more = {"scale_dtype": torch.uint8, "zp_dtype": torch.uint8}
    return compressed(
        (8, 64), "mxfp4-pack-quantized", type="float", num_bits=4, strategy="group", group_size=32, **more
    )


def oss() -> Made:
    return gpt_oss((3, 24, 96))


def modelopt() -> Made:
    return fixtures("modelopt")["nvfp4-7x64"]()


def rows8() -> Made:
    return fbgemm((7, 33), False)


def also(name: str, dtype: torch.dtype) -> Change:
    """A tensor more, of codes alone."""
    return lambda tensors, said: tensors.update({name: torch.zeros(4, 8).to(dtype)})


def group_said(**more: Any) -> Change:
    """What a group of compressed-tensors says."""
    return lambda tensors, said: said["config_groups"]["group_0"].update(more)


def weights_said(**more: Any) -> Change:
    """What it says of weights."""
    return lambda tensors, said: said["config_groups"]["group_0"]["weights"].update(more)


def one_of(at: int, value: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """An element is that."""
    return lambda tensor: torch.where(torch.arange(len(tensor)) == at, value, tensor)


BROKEN = {
    "gptq-without-scales": Broken(gptq, without("m.scales"), "not all that says what they mean.*m.scales"),
    "gptq-without-zeros": Broken(gptq, without("m.qzeros"), "not all that says what they mean.*m.qzeros"),
    "gptq-without-codes": Broken(gptq, without("m.qweight"), "no tensor has codes"),
    "gptq-codes-alone": Broken(
        gptq, without("m.scales", "m.qzeros", "m.g_idx"), "m.scales.*m.qzeros|m.qzeros.*m.scales"
    ),
    "gptq-one-without-codes": Broken(
        gptq, lambda t, s: t.update({"n.scales": t["m.scales"]}), "lie here without codes.*n.scales"
    ),
    "gptq-scales-of-another-shape": Broken(gptq, with_("m.scales", lambda t: t[:, :-1]), "m.scales: 62, not 64"),
    "gptq-scales-turned": Broken(gptq, with_("m.scales", lambda t: t.t()), r"m.scales: F16 \[32, 2\], not .*\[2, 32\]"),
    "gptq-scales-of-integers": Broken(gptq, with_("m.scales", lambda t: t.to(torch.int16)), "m.scales: I16"),
    "gptq-codes-of-64-bits": Broken(gptq, with_("m.qweight", lambda t: t.long()), "m.qweight: I64"),
    "gptq-codes-in-a-row": Broken(gptq, with_("m.qweight", lambda t: t.flatten()), "no matrix.*m.qweight"),
    "gptq-other-groups": Broken(gptq, said(group_size=16), "groups of 16.*m.scales: 64, not 128"),
    "gptq-other-bits": Broken(gptq, said(bits=8), "8 bits in groups of 32"),
    "gptq-bits-that-are-none": Broken(gptq, said(bits="four"), "`bits` is 'four'"),
    "gptq-no-bits": Broken(gptq, lambda t, s: s.pop("bits"), "`bits` is None"),
    "gptq-groups-of-none": Broken(gptq, said(group_size=0), "`group_size` is 0"),
    "gptq-index-of-fewer": Broken(gptq, with_("m.g_idx", lambda t: t[:-8]), "56 columns of 4 bits"),
    "gptq-index-beyond": Broken(
        gptq_act, with_("m.g_idx", one(4)), "m.qweight.*of group 4, and there are 4|group 4", late=True
    ),
    "gptq-scale-nan": Broken(gptq, with_("m.scales", one(float("nan"))), "NaN or infinite.*m.qweight", late=True),
    "gptq-zeros-of-all-ones": Broken(gptq, with_("m.qzeros", one(-1)), "two ways.*m.qweight", late=True),
    "gptq-said-not-quantised": Broken(gptq, said(dynamic={"-:^m$": {}}), "m is said to be not quantised.*m.qweight"),
    "gptq-other-bits-of-one": Broken(gptq, said(dynamic={"+:m": {"bits": 8}}), "8 bits in groups of 32"),
    "gptq-no-pattern": Broken(gptq, said(dynamic={"+:(": {}}), "pattern that is none"),
    "gptq-patterns-of-none": Broken(gptq, said(dynamic=["m"]), "`dynamic` says"),
    "gptq-head-said": Broken(
        gptq, lambda t, s: (t.update({"lm_head.weight": torch.zeros(2, 2)}), s.update(lm_head=True)), "lm_head.weight"
    ),
    "gptq-head-not-said": Broken(
        gptq,
        lambda t, s: (t.update({n.replace("m.", "lm_head."): v for n, v in t.items()}), s.update(lm_head=False)),
        "lm_head is said to be not quantised",
    ),
    "gptq-p": Broken(gptq, said(checkpoint_format="gptq_p"), "format `gptq_p` are not read: its words"),
    "gptq-5-bits": Broken(gptq, said(bits=5), "m has 5 bits"),
    "gptq-marlin": Broken(gptq, said(is_marlin_format=True), "`marlin` are not read"),
    "awq-without-zeros": Broken(awq, without("m.qzeros"), "m.qzeros"),
    "awq-other-groups": Broken(awq, said(group_size=64), "groups of 64.*m.qzeros: 8, not 4"),
    "awq-as-gemv": Broken(awq, said(version="gemv"), "inputs in groups of 32.*m.qzeros"),
    "gemv-as-awq": Broken(gemv, said(version="gemm"), "inputs in groups of 32.*m.qzeros"),
    "awq-said-not-quantised": Broken(awq, said(modules_to_not_convert=["m"]), "have codes.*m.qweight"),
    "awq-list-of-none": Broken(awq, said(modules_to_not_convert="m"), "no list of modules"),
    "awq-gemv-fast": Broken(awq, said(version="gemv_fast"), "`gemv_fast` are not read: its codes"),
    "awq-of-llm-awq": Broken(awq, said(backend="llm-awq"), "`llm-awq` are not read: its codes"),
    "awq-3-bits": Broken(awq, said(bits=3), "of 3 bits are not read"),
    "awq-scaled-activations": Broken(
        awq, lambda t, s: t.update({"mlp.act.scales": torch.ones(4)}), "divided by scales.*mlp.act.scales"
    ),
    "awq-scale-infinite": Broken(awq, with_("m.scales", one(float("inf"))), "NaN or infinite.*m.qweight", late=True),
    "nf4-without-scales": Broken(nf4, without("m.weight.absmax"), "not all.*m.weight.absmax"),
    "nf4-without-table": Broken(nf4, without("m.weight.quant_map"), "not all.*m.weight.quant_map"),
    "nf4-without-what-says-so": Broken(nf4, without(STATE), "without what says whose.*m.weight.absmax"),
    "nf4-without-codes": Broken(nf4, without("m.weight"), "codes of a quantised weight are not there.*m.weight"),
    "nf4-without-inner-scales": Broken(double, without("m.weight.nested_absmax"), "m.weight.nested_absmax"),
    "nf4-another-shape": Broken(nf4, state(shape=[8, 32]), "m.weight.absmax: 8, not 4"),
    "nf4-another-shape-of-as-many-blocks": Broken(nf4, state(shape=[8, 63]), "256 bytes of codes, and its shape"),
    "nf4-scales-that-are-codes": Broken(double, state(nested_offset=None), "U8, and the JSON says that they are not"),
    "nf4-scales-that-are-none": Broken(
        double, with_("m.weight.absmax", lambda t: t.float()), "F32, and the JSON says that they are quantised"
    ),
    "nf4-another-table": Broken(nf4, with_("m.weight.quant_map", lambda t: t.flip(0)), "table of what codes mean"),
    "nf4-said-to-be-of-8-bits": Broken(nf4, said(load_in_8bit=True, load_in_4bit=False), "said to be in 8"),
    "nf4-a-table-of-nobody": Broken(nf4, also("n.weight.quant_map", torch.float32), "n.weight.quant_map"),
    "nf4-another-block": Broken(nf4, state(blocksize=128), "m.weight.absmax: 8, not 4"),
    "nf4-a-block-of-none": Broken(nf4, state(blocksize=0), "cannot be"),
    "nf4-of-another-type": Broken(nf4, state(quant_type="fp4"), "cannot be"),
    "nf4-no-json": Broken(nf4, with_(STATE, lambda t: t[:-3]), f"no JSON.*{STATE}"),
    "nf4-scale-nan": Broken(nf4, with_("m.weight.absmax", one(float("nan"))), "NaN or infinite.*m.weight", late=True),
    "nf4-said-not-quantised": Broken(nf4, said(llm_int8_skip_modules=["m"]), "have codes.*m.weight"),
    "int8-without-codes": Broken(int8, without("m.weight"), "codes of a quantised weight are not there.*m.weight"),
    "int8-without-scales": Broken(int8, without("m.SCB"), "without what says whose.*weight_format"),
    "int8-scales-of-another-shape": Broken(int8, with_("m.SCB", lambda t: t[:-1]), "m.SCB: 6, not 7"),
    "int8-of-a-gpu": Broken(int8, with_("m.weight_format", one(2)), "order 2 of a GPU.*m.weight_format"),
    "int8-of-another-dtype": Broken(int8, with_("m.weight", lambda t: t.to(torch.int16)), "m.weight is I16"),
    "fp8-without-scales": Broken(fp8_blocks, without("m.weight_scale_inv"), "have no scale.*m.weight"),
    "fp8-without-codes": Broken(fp8_blocks, without("m.weight"), "no float8 weights.*m.weight_scale_inv"),
    "fp8-scales-of-another-shape": Broken(
        fp8_blocks, with_("m.weight_scale_inv", lambda t: t[:-1]), r"m.weight is \[40, 50\] and its scales are \[2, 2\]"
    ),
    "fp8-another-block": Broken(fp8_blocks, said(weight_block_size=[32, 32]), "are not blocks of 32 x 32"),
    "fp8-a-block-of-none": Broken(fp8_blocks, said(weight_block_size=[0, 32]), "not two numbers"),
    "fp8-code-nan": Broken(fp8_blocks, with_("m.weight", one(127)), "NaN or infinite.*m.weight", late=True),
    "fp8-scale-byte-of-none": Broken(fp8_exponents, with_("m.weight_scale_inv", one(255)), "255.*m.weight", late=True),
    "fp8-said-not-quantised": Broken(fp8_blocks, said(modules_to_not_convert=["m"]), "have codes.*m.weight"),
    "ct-without-scales": Broken(ct4, without("m.weight_scale"), "not all that says what they mean.*m.weight_scale"),
    "ct-without-codes": Broken(ct4, without("m.weight_packed"), "no codes that they belong to.*m.weight_scale"),
    "ct-scales-of-another-shape": Broken(ct4, with_("m.weight_scale", lambda t: t[:, :1]), r"\[8, 1\].*groups of 32"),
    "ct-scales-turned": Broken(ct4, with_("m.weight_scale", lambda t: t.t()), r"are \[2, 8\].*m.weight_scale"),
    "ct-other-groups": Broken(ct4, weights_said(group_size=16), r"groups of 16: \[8, 4\].*m.weight_scale"),
    "ct-groups-of-none": Broken(ct4, weights_said(group_size=None), "which elements share a scale"),
    "ct-other-bits": Broken(ct4, weights_said(num_bits=8), "64 codes of 8 bits need 16 words, and there are 8"),
    "ct-bits-that-are-none": Broken(ct4, weights_said(num_bits="four"), "bits from 1 to 8.*config_groups.group_0"),
    "ct-floats-said": Broken(ct4, weights_said(type="float"), "are int of 4 bits, and config.json says float"),
    "ct-shape-of-fewer-columns": Broken(ct4, with_("m.weight_shape", one_of(1, 32)), "32 codes of 4 bits need 4"),
    "ct-shape-of-fewer-rows": Broken(ct4, with_("m.weight_shape", one_of(0, 7)), r"shape is said to be \[7, 64\]"),
    "ct-shape-of-less-than-none": Broken(ct4, with_("m.weight_shape", one_of(1, -64)), "m.weight_shape"),
    "ct-codes-of-64-bits": Broken(ct4, with_("m.weight_packed", lambda t: t.long()), "I64, and not I32 or U8"),
    "ct-another-format": Broken(
        ct4,
        group_said(format="nvfp4-pack-quantized"),
        "is I32, as pack-quantized stores it, and config.json says nvfp4",
    ),
    "ct-said-not-quantised": Broken(ct4, said(ignore=["m"]), "lists as not quantised.*m.weight_packed"),
    "ct-said-not-quantised-by-a-pattern": Broken(ct4, said(ignore=["re:m$"]), "lists as not quantised"),
    "ct-in-no-group": Broken(ct4, group_said(targets=["re:.*q_proj"]), "no group of config.json.*m.weight"),
    "ct-plain-said-quantised": Broken(ct4, group_said(targets=["plain", "m"]), "and they are not.*plain.weight"),
    "ct-no-targets": Broken(ct4, group_said(targets="Linear"), "lacks targets"),
    "ct-zeros-missing": Broken(ct4, weights_said(symmetric=False), "not all.*m.weight_zero_point"),
    "ct-zeros-of-another-shape": Broken(
        ct4_zeros, with_("m.weight_zero_point", lambda t: t[:, :1]), r"zero points are \[2, 1\]"
    ),
    "ct-words-to-read-in-two-ways": Broken(
        ct3, lambda t, s: t.update(ct3((8, 16)).tensors), "16 codes of 3 bits in 2 words.*two ways"
    ),
    "ct-index-of-fewer": Broken(ct_ordered, with_("m.weight_g_idx", lambda t: t[:-1]), "96 columns need a group each"),
    "ct-index-beyond": Broken(ct_ordered, with_("m.weight_g_idx", one(6)), "group 6, and there are 6", late=True),
    "ct-scale-nan": Broken(ct4, with_("m.weight_scale", one(float("nan"))), "NaN or infinite.*m.weight", late=True),
    "ct-int8-without-scales": Broken(ct_int8, without("m.weight_scale"), "not all.*m.weight_scale"),
    "ct-int8-said-float": Broken(ct_int8, weights_said(type="float"), "I8 codes are int of 8"),
    "ct-fp8-code-nan": Broken(ct_fp8, with_("m.weight", one(127)), "NaN or infinite.*m.weight", late=True),
    "ct-fp8-other-blocks": Broken(
        ct_fp8, weights_said(strategy="block", block_structure=[4, 16]), r"blocks of 4 x 16: \[2, 4\]"
    ),
    "nvfp4-without-the-scale-of-all": Broken(nvfp4, without("m.weight_global_scale"), "not all.*m.weight_global_scale"),
    "nvfp4-many-scales-of-all": Broken(
        nvfp4, with_("m.weight_global_scale", lambda t: t.repeat(2)), r"scale of all is \[2\]"
    ),
    "mxfp4-scale-byte-of-none": Broken(mxfp4, with_("m.weight_scale", one(255)), "255.*m.weight_packed", late=True),
    "ct-codes-of-a-name-of-their-own": Broken(ct4, also("e.gate_up_proj", torch.uint8), "without what.*e.gate_up_proj"),
    "ct-floats-of-a-name-of-their-own": Broken(ct4, also("e.up", torch.float8_e4m3fn), "without what.*e.up"),
    "modelopt-codes-alone": Broken(modelopt, also("e.gate_up_proj", torch.uint8), "without what.*e.gate_up_proj"),
    "nf4-codes-alone": Broken(nf4, also("n.weight", torch.uint8), "without what says their meaning.*n.weight"),
    "ct-zeros-left-out": Broken(ct4, said(format="sparse-24-bitmask"), "are not read: weights that are zero"),
    "ct-sparse": Broken(ct4, said(sparsity_config={"format": "sparse-bitmask"}), "sparse-bitmask are not read"),
    "ct-marlin": Broken(ct4, group_said(format="marlin-24"), "marlin-24 are not read: the codes lie"),
    "ct-mxfp6": Broken(ct4, group_said(format="mxfp6-pack-quantized"), "are not read: floats of 6 bits"),
    "gpt-oss-without-scales": Broken(oss, without("m.weight_scales"), "not all.*m.weight_scales"),
    "gpt-oss-without-blocks": Broken(oss, without("m.weight_blocks"), "no blocks of codes.*m.weight_scales"),
    "gpt-oss-scales-of-another-shape": Broken(
        oss, with_("m.weight_scales", lambda t: t[:, :, :1]), r"scales U8 \[3, 24, 1\].*m.weight_scales"
    ),
    "gpt-oss-blocks-of-8": Broken(oss, with_("m.weight_blocks", lambda t: t[..., :8]), "and not U8"),
    "gpt-oss-blocks-of-integers": Broken(oss, with_("m.weight_blocks", lambda t: t.to(torch.int8)), "codes are I8"),
    "gpt-oss-in-16-bits-too": Broken(oss, lambda t, s: t.update({"m.weight": torch.ones(2)}), "and as blocks of codes"),
    "gpt-oss-scale-byte-of-none": Broken(oss, with_("m.weight_scales", one(255)), "255.*m.weight_blocks", late=True),
    "modelopt-without-scales": Broken(modelopt, without("m.weight_scale"), "not all.*m.weight_scale"),
    "modelopt-without-the-scale-of-all": Broken(modelopt, without("m.weight_scale_2"), "not all.*m.weight_scale_2"),
    "modelopt-without-codes": Broken(modelopt, without("m.weight"), "no codes that they belong to.*m.weight_scale"),
    "modelopt-scales-of-another-shape": Broken(
        modelopt, with_("m.weight_scale", lambda t: t[:, :2]), r"a scale for 16 columns, and has F8_E4M3 \[7, 2\]"
    ),
    "modelopt-said-not-quantised": Broken(modelopt, said(ignore=["m*"]), "listed as left out.*m.weight"),
    "modelopt-plain-said-quantised": Broken(modelopt, said(quantized_layers={"plain": {}}), "are not.*plain.weight"),
    "modelopt-scaled-inputs": Broken(
        modelopt, lambda t, s: t.update({"m.pre_quant_scale": torch.ones(64)}), "multiplies the inputs"
    ),
    "fbgemm-without-scales": Broken(rows8, without("m.weight_scale"), "not all.*m.weight_scale"),
    "fbgemm-without-codes": Broken(rows8, without("m.weight"), "no float8 weights.*m.weight_scale"),
    "fbgemm-scales-of-another-shape": Broken(
        rows8, with_("m.weight_scale", lambda t: t[:-1]), "m.weight_scale: 6, not"
    ),
    "fbgemm-said-not-quantised": Broken(rows8, said(modules_to_not_convert=["m"]), "not quantised.*m.weight"),
}


def torchao() -> Made:
    return fixtures("torchao")["int8-rows"]()


def auto_round(form: str = "auto_round:auto_gptq") -> Made:
    """The same codes as GPTQ has, under another name."""
    one = gptq()
    told = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": True, "packing_format": form}
    return Made(one.tensors, told, one.weight, one.codes)


BROKEN |= {
    "torchao-without-scales": Broken(torchao, without("m._weight_scale"), "not all.*m._weight_scale"),
    "torchao-without-codes": Broken(torchao, without("m._weight_qdata"), "are not there.*m._weight_qdata"),
    "torchao-scales-of-another-shape": Broken(torchao, with_("m._weight_scale", lambda t: t[:-1]), "32, not 33"),
    "torchao-codes-of-another-dtype": Broken(torchao, with_("m._weight_qdata", lambda t: t.short()), "I16"),
    "torchao-codes-of-which-nothing-is-said": Broken(
        torchao, lambda t, s: t.update({"n._weight_qdata": t["m._weight_qdata"]}), "no header says.*n._weight_qdata"
    ),
    "torchao-scale-nan": Broken(
        torchao, with_("m._weight_scale", one(float("nan"))), "NaN or infinite.*m._weight_qdata", late=True
    ),
    "torchao-said-not-quantised": Broken(torchao, said(modules_to_not_convert=["m"]), "have codes.*m._weight_qdata"),
    "auto-round-without-bits": Broken(auto_round, lambda t, s: s.pop("bits"), "`bits` is None"),
    "auto-round-said-not-quantised": Broken(
        auto_round, said(extra_config={"m": {"bits": 16}}), "m is said to be not quantised"
    ),
    "auto-round-otherwise-packed": Broken(auto_round, said(packing_format="auto_round:fake"), "read are auto_round"),
    "auto-round-of-floats": Broken(auto_round, said(data_type="mx_fp"), "as `mx_fp` are not read"),
    "auto-round-rotated": Broken(auto_round, said(rotation_config={"a": 1}), "after a rotation"),
    "auto-round-other-bits-as-awq": Broken(auto_round, said(packing_format="auto_round:auto_awq", bits=8), "AWQ's"),
}


def named(last: str) -> Change:
    """The module is called as one of many layers is."""

    def change(tensors: Tensors, said: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[name.replace("m.", f"layers.0.{last}.", 1)] = tensors.pop(name)

    return change


def then(*changes: Change) -> Change:
    return lambda tensors, said: [change(tensors, said) for change in changes]


def three_layers(tensors: Tensors, said: dict[str, Any]) -> None:
    """Three modules of a name, the second of which claims another shape, of as many elements."""
    old = dict(tensors)
    tensors.clear()
    for i in range(3):
        tensors.update({name.replace("m.", f"layers.{i}.m.", 1): tensor for name, tensor in old.items()})
    blob = STATE.replace("m.", "layers.1.m.", 1)
    one = {blob: tensors[blob]}
    state(shape=[64, 8])(claimed := {STATE: one[blob]}, said)
    tensors[blob] = claimed[STATE]


BROKEN |= {
    "nf4-shape-and-bias": Broken(
        nf4,
        then(state(shape=[64, 8]), lambda t, s: t.update({"m.bias": torch.ones(8)})),
        "its bias has 8 elements.*m.bias",
    ),
    "nf4-shape-of-half-the-rows": Broken(
        double, then(state(shape=[4, 128]), lambda t, s: t.update({"m.bias": torch.ones(8)})), r"\[4, 128\].*m.bias"
    ),
    "nf4-shape-of-other-layers": Broken(
        nf4, three_layers, r"layers.1.m.weight is \[64, 8\].*other layers are \[8, 64\]"
    ),
    "nf4-of-another-kind-than-said": Broken(nf4, said(bnb_4bit_quant_type="fp4"), "not fp4.*bnb__nf4|not fp4.*__nf4"),
    "nf4-said-to-be-double": Broken(
        nf4, said(bnb_4bit_use_double_quant=True), "not quantised themselves.*use_double_quant: True.*m.weight.absmax"
    ),
    "double-said-to-be-plain": Broken(
        double, said(bnb_4bit_use_double_quant=False), "are quantised themselves.*use_double_quant: False"
    ),
    "int8-said-in-4-bits": Broken(int8, said(load_in_4bit=True, load_in_8bit=False), "in 8 bits are said to be in 4"),
    "nf4-scale-negative": Broken(
        nf4, with_("m.weight.absmax", one(-0.5)), "negative.*m.weight.*safetensors", late=True
    ),
    "nf4-scale-infinite": Broken(nf4, with_("m.weight.absmax", one(float("inf"))), "NaN or infinite", late=True),
    "double-scale-of-scales-negative": Broken(
        double, with_("m.weight.nested_absmax", one(-0.5)), "negative.*m.weight", late=True
    ),
    "double-offset-negative": Broken(double, state(nested_offset=-0.5), "cannot be"),
    "double-offset-infinite": Broken(double, state(nested_offset=float("inf")), "cannot be"),
    "int8-scale-negative": Broken(int8, with_("m.SCB", one(-0.5)), "negative.*m.weight", late=True),
    "fp8-scale-negative": Broken(fp8_blocks, with_("m.weight_scale_inv", one(-1.0)), "negative", late=True),
    "fbgemm-scale-negative": Broken(rows8, with_("m.weight_scale", one(-1.0)), "negative", late=True),
    "ct-fp8-scale-negative": Broken(ct_fp8, with_("m.weight_scale", one(-1.0)), "negative", late=True),
    "nvfp4-scale-negative": Broken(nvfp4, with_("m.weight_scale", one(0xB8)), "negative", late=True),
    "nvfp4-scale-of-all-infinite": Broken(
        nvfp4, with_("m.weight_global_scale", one(float("inf"))), "NaN or infinite", late=True
    ),
    "nvfp4-scale-of-all-negative": Broken(nvfp4, with_("m.weight_global_scale", one(-2.0)), "negative", late=True),
    "modelopt-scale-of-all-negative": Broken(
        modelopt, lambda t, s: t.update({"m.weight_scale_2": -t["m.weight_scale_2"]}), "negative", late=True
    ),
    "ct4-said-to-be-int-quantized": Broken(
        ct4, said(format="int-quantized"), "as pack-quantized stores.*int-quantized"
    ),
    "ct4-group-said-to-be-int-quantized": Broken(
        ct4, group_said(format="int-quantized"), "as pack-quantized stores.*int-quantized"
    ),
    "ct-int8-said-to-be-packed": Broken(
        ct_int8, said(format="pack-quantized"), "as int-quantized stores.*pack-quantized"
    ),
    "ct-int8-said-to-be-floats": Broken(
        ct_int8,
        then(said(format="float-quantized"), group_said(format=None)),
        "as int-quantized stores.*float-quantized",
    ),
    "ct-fp8-said-to-be-int": Broken(
        ct_fp8, then(said(format="int-quantized"), group_said(format=None)), "as float-quantized stores.*int-quantized"
    ),
    "nvfp4-said-to-be-mxfp4": Broken(
        nvfp4, said(format="mxfp4-pack-quantized"), "as nvfp4-pack-quantized stores.*mxfp4"
    ),
    "mxfp4-said-to-be-nvfp4": Broken(
        mxfp4, said(format="nvfp4-pack-quantized"), "as mxfp4-pack-quantized stores.*nvfp4"
    ),
    "modelopt-said-to-be-fp8": Broken(modelopt, said(quant_algo="FP8"), "says FP8, and codes are U8.*m.weight"),
    "modelopt-fp8-said-to-be-nvfp4": Broken(
        lambda: fixtures("modelopt")["fp8-rows-7x64"](), said(quant_algo="NVFP4"), "says NVFP4, and codes are F8_E4M3"
    ),
    "modelopt-floats-of-6-bits": Broken(
        modelopt, said(quant_algo="MXFP6"), "MXFP6 are not read: they are floats of 6 bits"
    ),
    "modelopt-integers": Broken(modelopt, said(quant_algo="W4A16_AWQ"), "W4A16_AWQ are not read: they are integers"),
    "modelopt-svd": Broken(modelopt, said(quant_algo="NVFP4_SVD"), "low rank lies beside"),
    "modelopt-stacked-experts": Broken(
        modelopt,
        lambda t, s: t.update(
            {"e.gate_up_proj": t["m.weight"][None], "e.gate_up_proj_weight_scale": t["m.weight_scale"]}
        ),
        "experts that lie in one parameter.*e.gate_up_proj_weight_scale.*16 bits",
    ),
}

# What a model of this config has: 4 heads of 16, 2 of k and v, a hidden size of 32, 8 in between.
LLAMA = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 16}
CLAIMS = [  # of 512 elements, but those of q and o
    ("gate_proj", [32, 16], [16, 32]),
    ("down_proj", [16, 32], [32, 16]),
    ("gate_proj", [8, 64], [16, 32]),
    ("k_proj", [16, 64], [32, 32]),
    ("o_proj", [64, 32], [32, 64]),
    ("q_proj", [32, 64], [64, 32]),
]


@pytest.mark.parametrize(("last", "claimed", "right"), CLAIMS)
@pytest.mark.parametrize("nested", [False, True])
def test_a_shape_that_config_json_contradicts(
    last: str, claimed: list[int], right: list[int], nested: bool, tmp_path: Path
) -> None:
    """Of as many elements, so that it decodes; what is right passes, and what no config tells."""
    made = bitsandbytes_4bit((right[0], right[1]), "nf4", 64, True, torch.bfloat16)
    for shape in (claimed, right):
        folder = tmp_path / str(shape[0])
        folder.mkdir()
        tensors = dict(made.tensors)
        state(shape=shape)(tensors, {})
        named(last)(tensors, {})
        save_file(tensors, folder / "model.safetensors")
        widths = {"text_config": LLAMA} if nested else LLAMA
        (folder / "config.json").write_text(json.dumps({**widths, "quantization_config": made.config}))
        if shape is right:
            found = surgery.dequantize(surgery.open_checkpoint(folder)).load(f"layers.0.{last}.weight")
            assert torch.equal(found, made.weight)
            continue
        with pytest.raises(surgery.FormatError, match=r"config\.json says") as caught:
            surgery.dequantize(surgery.open_checkpoint(folder))
        assert f"{shape} by the JSON" in str(caught.value) and str(right) in str(caught.value)
        assert "quant_state.bitsandbytes__nf4 from where" in str(caught.value.help)


@pytest.mark.parametrize("make", [gptq, awq, ct4, ct_int8, auto_round])
def test_scales_of_integers_may_be_negative(make: Callable[[], Made], tmp_path: Path) -> None:
    """As auto-round makes them, in the forms of all these: the side of a group with one code more is chosen so."""
    made = make()
    name = next(n for n in made.tensors if n.endswith(("scales", "weight_scale")))
    base = written(Broken(make, with_(name, lambda t: -t), ""), tmp_path)
    assert torch.equal(surgery.dequantize(surgery.open_checkpoint(base)).load("m.weight"), -made.weight)


def test_what_is_dropped_is_said(tmp_path: Path) -> None:
    """By what it is, and none where all that was stored goes into a weight."""
    made = surgery.dequantize(surgery.open_checkpoint(written(Broken(int8, without(), ""), tmp_path)))
    assert "1 dropped tensors are what went with the codes, and is in no weight: weight_format (1)" in made.notes
    (folder := tmp_path / "fp8").mkdir()
    made = surgery.dequantize(surgery.open_checkpoint(written(Broken(fp8_blocks, without(), ""), folder)))
    assert not made.dropped and not made.notes


def test_help_says_which_file_to_take_again(tmp_path: Path) -> None:
    """The shard of what is broken, not all of them."""
    base = written(Broken(gptq, with_("m.scales", lambda t: t[:, :-1]), ""), tmp_path)
    with pytest.raises(surgery.FormatError) as caught:
        surgery.dequantize(surgery.open_checkpoint(base))
    assert "take model.safetensors, config.json again" in str(caught.value.help)
    assert "another quantised copy" in str(caught.value.help)
    (folder := tmp_path / "less").mkdir()
    with pytest.raises(surgery.FormatError) as caught:
        surgery.dequantize(surgery.open_checkpoint(written(Broken(gptq, without("m.scales"), ""), folder)))
    assert "take the shard that holds m.scales" in str(caught.value.help)


def written(case: Broken, folder: Path) -> Path:
    """A checkpoint with the weight as it was broken, and a plain one."""
    made, folder = case.made(), folder / "base"
    tensors, config = dict(made.tensors), dict(made.config)
    case.change(tensors, config)
    folder.mkdir()
    plain = torch.ones(made.weight.shape, dtype=torch.bfloat16)
    whole = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file({**whole, "plain.weight": plain}, folder / "model.safetensors", made.header)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": config}))
    return folder


@pytest.mark.parametrize("name", BROKEN)
def test_what_contradicts_itself_is_refused_by_name(name: str, tmp_path: Path) -> None:
    case = BROKEN[name]
    base = written(case, tmp_path)
    with pytest.raises(surgery.SurgeryError) as caught:
        made = surgery.dequantize(surgery.open_checkpoint(base))
        assert case.late, "nothing was refused before writing"
        surgery.write(made, tmp_path / "out")
    assert re.search(case.says, str(caught.value), re.DOTALL), str(caught.value)
    assert str(base) in str(caught.value) or case.late
    assert not (tmp_path / "out").exists()


def test_the_weights_are_read_as_long_as_nothing_is_broken(tmp_path: Path) -> None:
    """So that it is what was broken that is refused."""
    for i, make in enumerate(dict.fromkeys(case.made for case in BROKEN.values())):
        (tmp_path / str(i)).mkdir()
        base = written(Broken(make, lambda t, s: None, ""), tmp_path / str(i))
        assert surgery.dequantize(surgery.open_checkpoint(base)).load("m.weight").shape == make().weight.shape


def test_what_belongs_together_may_lie_in_several_shards(tmp_path: Path) -> None:
    """Companions in another shard than their codes, in the index or not; but not in a file that nothing names."""
    made = gptq()
    files = {"a.safetensors": {"m.qweight"}, "b.safetensors": set(made.tensors) - {"m.qweight"}}
    for file, names in files.items():
        save_file({name: made.tensors[name] for name in names}, tmp_path / file)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": made.config}))
    index = tmp_path / "model.safetensors.index.json"
    where = {name: file for file, names in files.items() for name in names}
    for told in (where, {"m.qweight": "a.safetensors", "m.scales": "b.safetensors"}):
        index.write_text(json.dumps({"weight_map": told}))
        assert torch.equal(surgery.dequantize(surgery.open_checkpoint(tmp_path)).load("m.weight"), made.weight)
    index.write_text(json.dumps({"weight_map": {"m.qweight": "a.safetensors"}}))
    with pytest.raises(surgery.SurgeryError, match="not all that says what they mean") as caught:
        surgery.dequantize(surgery.open_checkpoint(tmp_path))
    assert "m.scales" in str(caught.value)


def bytes_(*shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


# What config.json says, tensors of the module `m`, and the reason that a user must be given.
UNREAD: dict[str, tuple[dict[str, Any], Tensors, str]] = {
    "hqq": ({"quant_method": "hqq"}, {"m.W_q": bytes_(8, 4), "m.scale": bytes_(8, 1)}, "zeros are fractions"),
    "bitnet": (
        {"quant_method": "bitnet"},
        {"m.weight": bytes_(2, 8), "m.weight_scale": torch.ones(1)},
        "another model",
    ),
    "eetq": ({"quant_method": "eetq"}, {"m.weight": bytes_(8, 8, dtype=torch.int8)}, "one GPU kernel"),
    "quanto": ({"quant_method": "quanto"}, {"m.weight._data": bytes_(8, 8)}, "transformers cannot save it"),
    "aqlm": ({"quant_method": "aqlm"}, {"m.codes": bytes_(8, 1), "m.codebooks": bytes_(1, 4)}, "stand for vectors"),
    "vptq": ({"quant_method": "vptq"}, {"m.indices": bytes_(8, 1)}, "stand for vectors"),
    "exl3": ({"quant_method": "exl3"}, {"m.trellis": bytes_(8, 1)}, "vectors of a rotated weight"),
    "gguf": ({"quant_method": "gguf"}, {"m.qweight": bytes_(8, 1)}, "a GGUF file"),
    "gptq_p": (
        {"quant_method": "gptq", "bits": 3, "checkpoint_format": "gptq_p"},
        {"m.qweight": bytes_(3, 8, dtype=torch.int32)},
        "split in planes",
    ),
    "gptq-6": ({"quant_method": "gptq", "bits": 6}, {"m.qweight": bytes_(3, 8, dtype=torch.int32)}, "m has 6 bits"),
    "gemv_fast": (
        {"quant_method": "awq", "bits": 4, "version": "gemv_fast"},
        {"m.qweight": bytes_(2, 8, dtype=torch.int16)},
        "interleaved for one GPU kernel",
    ),
    "unheard-of": ({"quant_method": "unheard-of"}, {"m.codes": bytes_(8, 1)}, "`unheard-of` are not known"),
}


def unread(name: str, folder: Path, key: str = "quantization_config") -> Path:
    """A checkpoint with one module in that scheme, and a plain one."""
    config, tensors, _ = UNREAD[name]
    folder.mkdir()
    save_file({**tensors, "plain.weight": torch.ones(8, 8)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", key: config}))
    return folder


@pytest.mark.parametrize("name", UNREAD)
def test_what_is_not_read_says_why(name: str, tmp_path: Path) -> None:
    """Nothing is dequantised, and nothing merged into it; what is plain beside it can be merged into."""
    base = surgery.open_checkpoint(unread(name, tmp_path / "base"))
    _check_refused(base, UNREAD[name][2], tmp_path)


def _check_refused(base: surgery.Checkpoint, why: str, folder: Path) -> None:
    touching = surgery.open_adapter(write_adapter(folder / "touching", {"m": (8, 8)}))
    beside = surgery.open_adapter(write_adapter(folder / "beside", {"plain": (8, 8)}))
    with pytest.raises(surgery.NotSupported, match=why):
        surgery.dequantize(base)
    for options in ({}, {"dequantize": True}, {"requantize": True}):
        with pytest.raises(surgery.NotSupported) as caught:
            surgery.merge(base, touching, **options)
        assert why in str(caught.value) and "16" in str(caught.value)
    surgery.write(surgery.merge(base, beside), folder / "out")
    made = surgery.open_checkpoint(folder / "out")
    kept = [name for name in base.tensors if name.startswith("m.")]
    assert all(torch.equal(made.load(name), base.load(name)) for name in kept)
    assert not torch.equal(made.load("plain.weight"), base.load("plain.weight"))


def test_it_may_be_said_in_a_file_beside_config_json(tmp_path: Path) -> None:
    """As older repositories do; the file goes with the codes, and one that is stale says nothing."""
    for family, case, file in (
        ("gptq", "4-32-sym-gptq-float16", "quantize_config.json"),
        ("awq", "gemm-32x64-32", "quant_config.json"),
    ):
        made, base = fixtures(family)[case](), tmp_path / family
        base.mkdir()
        save_file(made.tensors, base / "model.safetensors")
        (base / "config.json").write_text(json.dumps({"model_type": "llama", "torch_dtype": "bfloat16"}))
        told = {key: value for key, value in made.config.items() if key != "quant_method"}
        (base / file).write_text(json.dumps(told))
        surgery.write(surgery.dequantize(surgery.open_checkpoint(base)), tmp_path / f"{family}-out")
        found = surgery.open_checkpoint(tmp_path / f"{family}-out")
        assert torch.equal(found.load("m.weight"), made.weight) and set(found.tensors) == {"m.weight"}
        assert file not in found.files and found.config["torch_dtype"] == "float16"
        (tmp_path / f"{family}-out" / file).write_text(json.dumps(told))
        with pytest.raises(surgery.NothingMatched):
            surgery.dequantize(surgery.open_checkpoint(tmp_path / f"{family}-out"))


def test_single_modules_have_other_bits_and_the_index_may_be_left_away(tmp_path: Path) -> None:
    four, eight = gptq(), fixtures("gptq")["8-32-sym-gptq-float16"]()
    tensors = dict(four.tensors) | {name.replace("m.", "head."): tensor for name, tensor in eight.tensors.items()}
    tensors["m.g_idx"] = torch.empty(0, dtype=torch.int32)
    del tensors["head.g_idx"]
    save_file({name: t.contiguous() for name, t in tensors.items()}, tmp_path / "model.safetensors")
    said = {**four.config, "dynamic": {"-:^plain": {}, "+:^he": {"bits": 8}}}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": said}))
    made = surgery.dequantize(surgery.open_checkpoint(tmp_path))
    assert torch.equal(made.load("m.weight"), four.weight) and torch.equal(made.load("head.weight"), eight.weight)
    assert set(made.tensors) == {"m.weight", "head.weight"}
    with pytest.raises(surgery.NotSupported, match="no loader of gptq takes"):
        surgery.dequantize(surgery.open_checkpoint(tmp_path), only="m")


def test_the_weight_of_a_conv1d_is_in_out(tmp_path: Path) -> None:
    """As GPT-2 has it in 16 bits; by activation order, too."""
    for case in ("4-32-sym-gptq-float16", "4-16-asym-act-gptq-float16"):
        made, folder = fixtures("gptq")[case](), tmp_path / case
        folder.mkdir()
        save_file(
            {n.replace("m.", "h.0.attn.c_attn."): t.contiguous() for n, t in made.tensors.items()},
            folder / "model.safetensors",
        )
        config = {"model_type": "gpt2", "quantization_config": made.config}
        (folder / "config.json").write_text(json.dumps(config))
        opened = surgery.dequantize(surgery.open_checkpoint(folder))
        surgery.write(opened, tmp_path / f"{case}-out")
        assert torch.equal(
            surgery.open_checkpoint(tmp_path / f"{case}-out").load("h.0.attn.c_attn.weight"), made.weight.t()
        )


def test_what_auto_round_packs_is_what_gptq_and_awq_do(tmp_path: Path) -> None:
    """The second form of zeros, too; and a module with other bits."""
    v2, v1, four = (
        fixtures("gptq")["4-32-asym-gptq_v2-float16"](),
        fixtures("gptq")["8-32-sym-gptq-float16"](),
        fixtures("awq")["gemm-32x64-32"](),
    )
    for made, form, more in (
        (v2, "auto_round:gptqmodel", {}),
        (v1, "auto_round:auto_gptq", {"extra_config": {"m": {"bits": 8}, "n": {"bits": 16}}}),
        (four, "auto_round:auto_awq", {}),
    ):
        (folder := tmp_path / form).mkdir()
        save_file({n: t.contiguous() for n, t in made.tensors.items()}, folder / "model.safetensors")
        config = {**auto_round(form).config, **more}
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": config}))
        assert torch.equal(surgery.dequantize(surgery.open_checkpoint(folder)).load("m.weight"), made.weight)


def torchao_shard(case: str, folder: Path, header: dict[str, str] | None = None) -> Path:
    made = fixtures("torchao")[case]()
    folder.mkdir()
    header = {"format": "pt", **made.header} if header is None else header
    save_file(made.tensors, folder / "model.safetensors", header)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": made.config}))
    return folder


def test_headers_say_nothing_of_torchao_afterwards(tmp_path: Path) -> None:
    """But all that they did where codes stay codes."""
    base = surgery.open_checkpoint(torchao_shard("int8-rows", tmp_path / "base"))
    lora = surgery.open_adapter(write_adapter(tmp_path / "lora", {"m": (33, 40)}))
    surgery.write(surgery.dequantize(base), tmp_path / "plain")
    surgery.write(surgery.merge(base, lora, dequantize=True), tmp_path / "merged")
    surgery.write(surgery.merge(base, lora, requantize=True, lossy=True), tmp_path / "coded")
    for name in ("plain", "merged", "coded"):
        with safe_open(tmp_path / name / "model.safetensors", "pt") as file:
            assert file.metadata() == (base.metadata["model.safetensors"] if name == "coded" else {"format": "pt"})
            assert (set(file.keys()) == {"m.weight"}) is (name != "coded")
        said = json.loads((tmp_path / name / "config.json").read_text())
        assert ("quantization_config" in said) is (name == "coded")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tensor_names": "["}, "no JSON"),
        ({"tensor_names": "{}"}, "a list of tensors that is none"),
        ({"m.weight": "{"}, "does not say what a tensor"),
        ({"m.weight": "[]"}, "this and that"),
        ({"m.weight": '{"_type": "Int4Tensor"}'}, "torchao's Int4Tensor are not read"),
        ({"m.weight": '{"_type": "Int8Tensor"}'}, "cannot be"),
        ({"m.weight": '{"_type": "Float8Tensor", "_data": {"block_size": [1, 40], "dtype": "float16"}}'}, "I8"),
        ({"m.weight": '{"_type": "Int8Tensor", "_data": {"block_size": [1, 20], "dtype": "float16"}}'}, "33, not 66"),
    ],
)
def test_headers_that_lie(change: dict[str, str], says: str, tmp_path: Path) -> None:
    header = {**fixtures("torchao")["int8-rows"]().header, **change}
    base = torchao_shard("int8-rows", tmp_path / "base", header)
    with pytest.raises(surgery.SurgeryError, match=says):
        surgery.dequantize(surgery.open_checkpoint(base))


def test_numbers_of_4_bits_in_bytes_are_refused(tmp_path: Path) -> None:
    base = torchao_shard("intx-4-bits", tmp_path / "base")
    with pytest.raises(surgery.NotSupported, match="IntxUnpackedToInt8Tensor of int4 are not read"):
        surgery.dequantize(surgery.open_checkpoint(base))


@pytest.mark.parametrize("make", [nf4, int8, fp8_blocks, gptq, ct4])
def test_codes_of_which_config_json_says_nothing(make: Callable[[], Made], tmp_path: Path) -> None:
    """dequantize finds nothing to do, and says what is missing."""
    folder = written(Broken(make, without(), ""), tmp_path)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(surgery.NothingMatched, match="no weight is quantised") as caught:
        surgery.dequantize(surgery.open_checkpoint(folder))
    assert "config.json has no quantization_config" in str(caught.value.help)
