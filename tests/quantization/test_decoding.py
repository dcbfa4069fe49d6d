"""What codes mean: bit for bit what the reference decodes, for any rows that are asked for, and back."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from made import (
    Made,
    bitsandbytes_4bit,
    bitsandbytes_8bit,
    compressed,
    fbgemm,
    fixtures,
    fp8,
    gpt_oss,
    ordered_groups,
    padded_words,
)
from safetensors.torch import save_file

import surgery
from surgery.evaluation.evaluate import blocks, load, workspace_of
from surgery.lazy.tensor import permute, unrounded
from surgery.quantization.quantised import Quantised, quantised
from surgery.quantization.recode import recoded

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
CASES: dict[str, Callable[[], Made]] = {}
for kind, block, double, dtype in itertools.product(("nf4", "fp4"), (64, 256), (False, True), (BF16, F16, F32)):
    for shape in ((8, 64), (5, 33), (3, 130), (1, 7)):
        title = f"{kind}-{block}-{double}-{str(dtype)[6:]}-{shape[0]}x{shape[1]}"
        CASES[title] = lambda a=(shape, kind, block, double, dtype): bitsandbytes_4bit(*a)  # type: ignore[misc]
CASES["nf4-stored-bf16"] = lambda: bitsandbytes_4bit((16, 64), "nf4", 64, True, BF16, torch.bfloat16)
for dtype in (BF16, F16):
    CASES[f"int8-{str(dtype)[6:]}"] = lambda a=dtype: bitsandbytes_8bit((7, 33), a)  # type: ignore[misc]
for shape, block, scale in (
    ((256, 256), (128, 128), F32),
    ((300, 200), (128, 128), BF16),
    ((300, 200), (128, 128), torch.float8_e8m0fnu),
    ((3, 40, 50), (16, 32), F32),
    ((40, 50), None, F32),
):
    title = f"fp8-{'x'.join(map(str, shape))}-{block}-{str(scale)[6:]}"
    CASES[title] = lambda a=(shape, block, scale, BF16): fp8(*a)  # type: ignore[misc]
for family in ("gptq", "awq", "modelopt", "torchao"):
    CASES |= {f"{family}-{case}": make for case, make in fixtures(family).items() if case != "intx-4-bits"}

INT, FLOAT = {"type": "int", "symmetric": True}, {"type": "float", "symmetric": True}
for bits, even, dtype in itertools.product(range(2, 9), (True, False), (BF16, F16)):
    for shape, how in (
        ((37, 96), {"strategy": "group", "group_size": 32}),
        ((5, 133), {"strategy": "channel"}),
        ((96, 64), {"strategy": "group", "group_size": 16}),
    ):
        title = f"ct-int{bits}-{even}-{str(dtype)[6:]}-{shape[0]}x{shape[1]}"
        args = {"num_bits": bits, "type": "int", "symmetric": even, **how}
        CASES[title] = lambda a=(shape, "pack-quantized", dtype), b=args: compressed(*a, **b)  # type: ignore[misc]
for bits, even in itertools.product((3, 5, 6, 7, 4), (True, False)):
    CASES[f"ct-padded-int{bits}-{even}"] = lambda a=((90, 128), bits, 32, even): padded_words(*a)  # type: ignore[misc]
    CASES[f"ct-ordered-{even}"] = lambda a=((13, 96), 16, even): ordered_groups(*a)  # type: ignore[misc]
for title, shape, form, args in (
    ("int8-channel", (7, 33), "int-quantized", {**INT, "num_bits": 8, "strategy": "channel"}),
    ("int8-tensor", (7, 33), "int-quantized", {**INT, "num_bits": 8, "strategy": "tensor"}),
    ("int4-plain", (7, 64), "int-quantized", {**INT, "num_bits": 4, "strategy": "group", "group_size": 32}),
    ("int8-zeros", (7, 33), "naive-quantized", {"type": "int", "symmetric": False, "strategy": "channel"}),
    ("int8-zero", (7, 33), "int-quantized", {"type": "int", "symmetric": False, "strategy": "tensor"}),
    ("fp8-channel", (7, 33), "float-quantized", {**FLOAT, "num_bits": 8, "strategy": "channel"}),
    ("fp8-tensor", (7, 33), "float-quantized", {**FLOAT, "num_bits": 8, "strategy": "tensor"}),
    ("fp8-block", (70, 96), "float-quantized", {**FLOAT, "strategy": "block", "block_structure": [32, 32]}),
    ("fp8-ragged", (70, 100), "naive-quantized", {**FLOAT, "strategy": "block", "block_structure": [32, 32]}),
    ("nvfp4", (7, 96), "nvfp4-pack-quantized", {**FLOAT, "num_bits": 4, "strategy": "tensor_group", "group_size": 16}),
    ("mxfp4", (7, 96), "mxfp4-pack-quantized", {**FLOAT, "num_bits": 4, "strategy": "group", "group_size": 32}),
    ("mxfp8", (7, 96), "mxfp8-quantized", {**FLOAT, "num_bits": 8, "strategy": "group", "group_size": 32}),
):
    more = {"scale_dtype": torch.uint8, "zp_dtype": torch.uint8} if title.startswith("mx") else {}
    CASES[f"ct-{title}"] = lambda a=(shape, form), b={**args, **more}: compressed(*a, **b)  # type: ignore[misc]

CASES["gpt-oss"] = lambda: gpt_oss((3, 24, 96))
CASES["gpt-oss-square"] = lambda: gpt_oss((2, 64, 64))
for shape, tall in (((7, 33), False), ((3, 20, 36), False), ((3, 20, 36), True), ((2, 32, 32), True)):
    title = f"fbgemm-{'x'.join(map(str, shape))}-{tall}"
    CASES[title] = lambda a=(shape, tall): fbgemm(*a)  # type: ignore[misc]


def opened(made: Made, folder: Path) -> Quantised:
    """The weight, found in a checkpoint that holds it."""
    folder.mkdir(exist_ok=True)
    save_file({n: t.contiguous() for n, t in made.tensors.items()}, folder / "model.safetensors", made.header)
    config = {"model_type": "llama", "dtype": str(made.weight.dtype)[6:], "quantization_config": made.config}
    (folder / "config.json").write_text(json.dumps(config))
    return quantised(surgery.open_checkpoint(folder)).weights["m.weight"]


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Bit for bit, but for the sign of zeros."""
    return found.dtype == wanted.dtype and found.shape == wanted.shape and bool((found == wanted).all())


@pytest.mark.parametrize("case", CASES)
def test_decoded_as_the_reference_does(case: str, tmp_path: Path) -> None:
    made = CASES[case]()
    one = opened(made, tmp_path)
    assert same(load(one.weight), made.weight)


@pytest.mark.parametrize("case", CASES)
def test_any_rows_are_the_rows_of_the_whole(case: str, tmp_path: Path) -> None:
    """In windows of all sizes, whole rows and parts of them; turned, too."""
    made = CASES[case]()
    one = opened(made, tmp_path)
    flat = made.weight.flatten()
    work = workspace_of(40_000_000)
    work.window = 64
    for start, stop in ((0, flat.numel()), (1, 2), (flat.numel() // 3, flat.numel() - 1)):
        found = b"".join(bytes(data) for _, data in blocks(one.weight, start, stop, work))
        assert torch.equal(torch.frombuffer(bytearray(found), dtype=flat.dtype), flat[start:stop])
    work.close()
    axes = (*range(made.weight.dim() - 2), made.weight.dim() - 1, made.weight.dim() - 2)
    assert same(load(permute(one.weight, axes)), made.weight.transpose(-1, -2))


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_changed_gives_its_own_codes(case: str, tmp_path: Path) -> None:
    made = CASES[case]()
    weight = opened(made, tmp_path).weight
    found = load(recoded(weight, unrounded(weight)))
    stored = made.tensors[made.codes]
    assert found.shape == stored.shape
    assert torch.equal(found.view(torch.uint8), stored.contiguous().view(torch.uint8))


NEAREST = {  # a byte in which all codes are 1
    "nf4-64-True-bfloat16-5x33": 17,
    "fp4-64-False-float32-3x130": 17,
    "int8-bfloat16": 1,
    "fp8-40x50-None-float32": 1,
    "gptq-2-16-asym-act-gptq-float16": 85,
    "gptq-4-32-sym-gptq-float16": 17,
    "gptq-8--1-asym-gptq_v2-float16": 1,
    "awq-gemm-32x64-32": 17,
    "awq-gemv-32x128-64": 17,
    "torchao-int8-rows-half": 1,
    "torchao-float8-rows": 1,
    "ct-nvfp4": 17,
    "ct-mxfp4": 17,
    "ct-mxfp8": 1,
    "ct-int8-zeros": 1,
    "gpt-oss": 17,
    "modelopt-nvfp4-3x80": 17,
    "fbgemm-3x20x36-True": 1,
}


@pytest.mark.parametrize("case", NEAREST)
def test_the_nearest_code_is_taken(case: str, tmp_path: Path) -> None:
    """No other code of the same group is nearer than the one chosen, for numbers between the grid's and beyond it."""
    made = CASES[case]()
    folder = tmp_path / "base"
    weight = opened(made, folder).weight
    noise = torch.randn(made.weight.shape, generator=torch.Generator().manual_seed(1)) * 0.02
    save_file({"m.weight": made.weight.float() + noise}, tmp_path / "wanted.safetensors")
    wanted = surgery.open_checkpoint(tmp_path / "wanted.safetensors")["m.weight"]
    codes = load(recoded(weight, wanted)).view(made.tensors[made.codes].dtype)
    values = load(wanted)

    def distance(codes: torch.Tensor) -> torch.Tensor:
        other = Made({**made.tensors, made.codes: codes}, made.config, made.weight, header=made.header)
        return (load(unrounded(opened(other, tmp_path / "other").weight)) - values).abs()

    chosen, raw = distance(codes), made.tensors[made.codes].contiguous()
    for code in range(255 // NEAREST[case] + 1):
        floats = any(kind in case for kind in ("fp8", "float8", "fbgemm"))
        if not (floats and code in (127, 255)) and not ("int8" in case and code == 128):
            same_everywhere = torch.full_like(raw.view(torch.uint8), code * NEAREST[case]).view(raw.dtype)
            assert (chosen <= distance(same_everywhere) * (1 + 1e-6)).all()


def test_weights_of_torchao_may_each_be_of_another_kind(tmp_path: Path) -> None:
    """Rows, groups and floats in one shard, in which its header tells them apart."""
    cases = {case: make() for case, make in fixtures("torchao").items() if case != "intx-4-bits"}
    tensors, header, listed = dict[str, torch.Tensor](), dict[str, str](), list[str]()
    for i, made in enumerate(cases.values()):
        tensors |= {name.replace("m.", f"m{i}.", 1): tensor for name, tensor in made.tensors.items()}
        header |= {
            name.replace("m.", f"m{i}.", 1): text for name, text in made.header.items() if name != "tensor_names"
        }
        listed.append(f"m{i}.weight")
    save_file(tensors, tmp_path / "model.safetensors", {**header, "tensor_names": json.dumps(listed)})
    said = next(iter(cases.values())).config
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": said}))
    found = quantised(surgery.open_checkpoint(tmp_path)).weights
    assert len({one.scheme for one in found.values()}) == 3 and len(found) == len(cases) == 7
    assert all(same(load(found[name].weight), made.weight) for name, made in zip(listed, cases.values(), strict=True))
