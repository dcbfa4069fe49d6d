"""What is left of an adapter that is merged into codes: `merge --requantize` over schemes and sizes of the delta.

    python benchmarks/survival.py [--shape 512x4096] [--seeds 1] [SCHEME...]

W is random normal bfloat16, quantised by the packages that define the schemes; the delta is B·A of rank 16, and delta/
weight the ratio of their Frobenius norms. Of each run of surgery, from files to files: the share of codes that change,
the share of the delta that survives (<change, d> / <d, d>), and the noise (|change - d| / |d|; 1 is as if nothing had
been merged), under the stored scales. Beside them what a study of the formats measured for the same, with none of this
code; figures differ in their last digit from draw to draw.

`mxfp4` has the exponents of OCP's standard, as the study had; `wider` those of compressed-tensors, which let nothing
saturate, so that fewer codes change. Measured (one draw):

    scheme                   d/W  codes  share noise  study
    nf4                    0.005   0.00  0.000  1.00   0.00  0.000  1.00
    nf4                    0.025   0.02  0.006  1.00   0.02  0.005  1.00
    nf4                      0.1  17.86  0.765  0.74  17.90  0.763  0.74
    int4 G128              0.005   0.00  0.000  1.00   0.00  0.000  1.00
    int4 G128              0.025   0.00  0.000  1.00   0.00  0.000  1.00
    int4 G128                0.1   6.77  0.544  0.88   6.70  0.541  0.88
    int4 G32, max/7        0.005   0.00  0.000  1.00
    int4 G32, max/7        0.025   0.00  0.000  1.00   0.00  0.000  1.00
    int4 G32, max/7          0.1  10.57  0.659  0.83  10.60  0.659  0.83
    int4 G128 asymmetric   0.005   0.00  0.000  1.00
    int4 G128 asymmetric   0.025   0.00  0.000  1.00   0.00  0.000  1.00
    int4 G128 asymmetric     0.1   8.74  0.628  0.85   8.70  0.627  0.85
    mxfp4                  0.005   0.00  0.000  1.00   0.00  0.000  1.00
    mxfp4                  0.025   0.07  0.013  1.00   0.06  0.012  1.00
    mxfp4                    0.1  19.39  0.710  0.74  19.50  0.710  0.74
    mxfp4, wider           0.005   0.00  0.000  1.00
    mxfp4, wider           0.025   0.03  0.009  1.00
    mxfp4, wider             0.1  17.34  0.676  0.77
    nvfp4                  0.005   0.00  0.000  1.00
    nvfp4                  0.025   0.28  0.043  0.99   0.27  0.042  0.99
    nvfp4                    0.1  22.54  0.716  0.72  22.60  0.715  0.72
    fp8 blocks             0.005   7.33  0.191  0.93   7.30  0.191  0.93
    fp8 blocks             0.025  32.84  0.725  0.68  32.90  0.724  0.68
    fp8 blocks               0.1  72.52  0.995  0.26  72.60  0.995  0.26
    int8                   0.005   0.57  0.109  0.99   0.56  0.106  0.99
    int8                   0.025  53.02  0.999  0.35  53.00  1.000  0.35
    int8                     0.1  87.43  1.000  0.09
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file

import surgery

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "quantization"))

import made
from made import Made

Shape = tuple[int, int]
RATIOS = (0.005, 0.025, 0.1)
RANK = 16
GROUPS = {"num_bits": 4, "type": "int", "strategy": "group"}


def nf4(shape: Shape) -> Made:
    return made.bitsandbytes_4bit(shape, "nf4", 64, False, torch.bfloat16)


def int4(shape: Shape, group: int, *, symmetric: bool = True, wider: float = 1.0) -> Made:
    """With scales of the largest number of a group through 7.5, or through 7 where they are `wider`."""
    scales = made._scales

    def stretched(value: torch.Tensor, args: object) -> made.Tensors:
        return {n: t * wider if n == "weight_scale" else t for n, t in scales(value, args).items()}

    with mock.patch.object(made, "_scales", stretched):
        return made.compressed(shape, "pack-quantized", group_size=group, symmetric=symmetric, **GROUPS)


def float4(shape: Shape, kind: str, group: int, **more: object) -> Made:
    args = {"num_bits": 4, "type": "float", "group_size": group, "symmetric": True, **more}
    return made.compressed(shape, kind, **args)


def mxfp4(shape: Shape) -> Made:
    """With the exponents that OCP's standard gives, so that the largest numbers may saturate."""

    def floors(value: torch.Tensor, args: object) -> made.Tensors:
        exponents = value.float().view(*value.shape[:-1], -1, 32).abs().amax(-1).log2().floor() - 2
        return {**scales(value, args), "weight_scale": exponents.exp2().to(scales(value, args)["weight_scale"].dtype)}

    scales = made._scales
    with mock.patch.object(made, "_scales", floors):
        return float4(shape, "mxfp4-pack-quantized", 32, **MXFP4)


MXFP4 = {"strategy": "group", "scale_dtype": torch.uint8, "zp_dtype": torch.uint8}
NVFP4 = {"strategy": "tensor_group"}

# Scheme -> what makes it, and (codes changed in %, share that survives, noise) of the study, for each ratio.
SCHEMES: dict[str, tuple[Callable[[Shape], Made], tuple[tuple[float, float, float] | None, ...]]] = {
    "nf4": (nf4, ((0.00, 0.000, 1.00), (0.02, 0.005, 1.00), (17.9, 0.763, 0.74))),
    "int4 G128": (lambda s: int4(s, 128), ((0.00, 0.000, 1.00), (0.00, 0.000, 1.00), (6.7, 0.541, 0.88))),
    "int4 G32, max/7": (
        lambda s: int4(s, 32, wider=15 / 14),
        (None, (0.00, 0.000, 1.00), (10.6, 0.659, 0.83)),
    ),
    "int4 G128 asymmetric": (
        lambda s: int4(s, 128, symmetric=False),
        (None, (0.00, 0.000, 1.00), (8.7, 0.627, 0.85)),
    ),
    "mxfp4": (mxfp4, ((0.00, 0.000, 1.00), (0.06, 0.012, 1.00), (19.5, 0.710, 0.74))),
    "mxfp4, wider": (lambda s: float4(s, "mxfp4-pack-quantized", 32, **MXFP4), (None, None, None)),
    "nvfp4": (
        lambda s: float4(s, "nvfp4-pack-quantized", 16, **NVFP4),
        (None, (0.27, 0.042, 0.99), (22.6, 0.715, 0.72)),
    ),
    "fp8 blocks": (
        lambda s: made.fp8(s, (128, 128), torch.float32, torch.bfloat16),
        ((7.3, 0.191, 0.93), (32.9, 0.724, 0.68), (72.6, 0.995, 0.26)),
    ),
    "int8": (
        lambda s: made.bitsandbytes_8bit(s, torch.bfloat16),
        ((0.56, 0.106, 0.99), (53, 1.000, 0.35), None),
    ),
}


@contextmanager
def drawn(seed: int) -> Iterator[None]:
    """Weights of another draw, none of whose rows is empty."""

    def weights(shape: Shape, _: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02).to(dtype)

    with mock.patch.object(made, "weights", weights):
        yield


def written(one: Made, ratio: float, seed: int, folder: Path) -> tuple[Path, Path]:
    """A base of one weight, and an adapter on it whose delta is `ratio` of it."""
    for name in ("base", "adapter"):
        (folder / name).mkdir()
    save_file({n: t.contiguous() for n, t in one.tensors.items()}, folder / "base/model.safetensors", {"format": "pt"})
    config = {"model_type": "llama", "dtype": "bfloat16", "quantization_config": one.config}
    (folder / "base/config.json").write_text(json.dumps(config))
    draw = torch.Generator().manual_seed(1000 + seed)
    rows, columns = one.weight.shape
    a, b = (torch.randn(shape, generator=draw) for shape in ((RANK, columns), (rows, RANK)))
    scale = ratio * float(made.weights((rows, columns)).float().norm() / (b @ a).norm())
    factors = {"base_model.model.m.lora_A.weight": a, "base_model.model.m.lora_B.weight": b}
    save_file(factors, folder / "adapter/adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter/adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": RANK * scale, "target_modules": ["m"]})
    )
    return folder / "base", folder / "adapter"


def survival(make: Callable[[Shape], Made], shape: Shape, ratio: float, seed: int) -> tuple[float, float, float]:
    """(codes changed in %, share that survives, noise) of one merge."""
    with tempfile.TemporaryDirectory() as folder, drawn(seed):
        base, adapter = written(make(shape), ratio, seed, Path(folder))
        merged = surgery.merge(
            surgery.open_checkpoint(base), surgery.open_adapter(adapter), requantize=True, lossy=True
        )
        found = surgery.write(merged, Path(folder) / "out").recoded
    assert found
    return 100 * found.moved / found.codes, found.share, found.noise


def row(scheme: str, ratio: float, found: tuple[float, float, float], study: tuple[float, float, float] | None) -> str:
    said = "  {:5.2f} {:6.3f} {:5.2f}".format(*study) if study else ""
    return f"{scheme:22} {ratio:5}  {found[0]:5.2f} {found[1]:6.3f} {found[2]:5.2f}{said}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("schemes", nargs="*", metavar="SCHEME", help=", ".join(SCHEMES))
    parser.add_argument("--shape", default="512x4096")
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    rows, columns = map(int, given.shape.split("x"))
    print(f"{'scheme':22} {'d/W':>5}  {'codes':>5} {'share':>6} {'noise':>5}  {'study':>5}")
    for scheme in given.schemes or SCHEMES:
        make, study = SCHEMES[scheme]
        for ratio, wanted in zip(RATIOS, study, strict=True):
            runs = [survival(make, (rows, columns), ratio, seed) for seed in range(given.seeds)]
            c, s, n = (statistics.mean(values) for values in zip(*runs, strict=True))
            print(row(scheme, ratio, (c, s, n), wanted), flush=True)


if __name__ == "__main__":
    main()
