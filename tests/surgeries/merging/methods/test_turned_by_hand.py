"""Rotations that PEFT does not make any more, or not on this machine: against their formulas, in float64."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.boft.layer import BOFTLayer
from safetensors.torch import load_file, save_file

import surgery
from surgery.errors import AdapterError, NotSupported

OUT, WIDE = 24, 16


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A linear module with a bias, and convolutions of kernels of 3 and of 1, the last in two groups."""
    (tmp_path / "base").mkdir()
    made = torch.Generator().manual_seed(1)
    shapes = {
        "lin.weight": (OUT, WIDE),
        "lin.bias": (OUT,),
        "conv.weight": (12, 4, 3, 3),
        "point.weight": (12, 8, 1, 1),
    }
    tensors = {name: torch.randn(shape, generator=made) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    (tmp_path / "base" / "config.json").write_text("{}")
    return tmp_path / "base"


def noise(*shape: int, seed: int = 2, size: float = 0.2) -> torch.Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def adapter(folder: Path, tensors: Mapping[str, torch.Tensor], **config: Any) -> Path:
    """An adapter with these tensors, by module and part."""
    folder.mkdir()
    save_file({f"base_model.model.{key}": t for key, t in tensors.items()}, folder / "adapter_model.safetensors")
    modules = sorted({key.split(".")[0] for key in tensors})
    (folder / "adapter_config.json").write_text(json.dumps({"target_modules": modules, **config}))
    return folder


def merged(base: Path, *adapters: Path) -> Any:
    return surgery.merge(surgery.open_checkpoint(base), [surgery.open_adapter(one) for one in adapters])


def weight(base: Path, name: str) -> torch.Tensor:
    return load_file(base / "model.safetensors")[f"{name}.weight"].double().flatten(1)


def is_close(made: torch.Tensor, wanted: torch.Tensor) -> bool:
    return torch.allclose(made.double().flatten(1), wanted, rtol=0, atol=2e-6)


def skew(upper: torch.Tensor, edge: int) -> torch.Tensor:
    q = torch.zeros(len(upper), edge, edge).double()
    rows, columns = torch.triu_indices(edge, edge, 1)
    q[:, rows, columns] = upper.double()
    return q - q.mT


def cayley(q: torch.Tensor) -> torch.Tensor:
    eye = torch.eye(q.shape[-1]).double()
    return (eye - q) @ torch.linalg.inv(eye + q)


def diagonal(blocks: torch.Tensor) -> torch.Tensor:
    return torch.block_diag(*blocks)  # type: ignore[no-untyped-call, no-any-return]


NEUMANN = {"peft_type": "OFT", "use_cayley_neumann": True}


@pytest.mark.parametrize("version", [None, "0.17.1", "0.16.0"])
@pytest.mark.parametrize("terms", [1, 2, 3, 5])
def test_before_peft_0_18_every_term_was_doubled(version: str | None, terms: int, base: Path, tmp_path: Path) -> None:
    upper = noise(4, 6)
    said = {"peft_version": version} if version else {}
    config = {**NEUMANN, "num_cayley_neumann_terms": terms, **said}
    made = merged(base, adapter(tmp_path / "a", {"lin.oft_R.weight": upper}, **config))
    q = skew(upper, 4)
    r = torch.eye(4) + 2 * sum((torch.linalg.matrix_power(q, i) for i in range(1, terms)), torch.zeros_like(q))
    assert is_close(made.load("lin.weight"), weight(base, "lin") @ diagonal(r).T)
    assert [note for note in made.notes if "peft 0.16 and 0.17" in note]


@pytest.mark.parametrize("version", ["0.18.0", "0.21.2", "1.0.0", "0.19.1.dev0@abcdef"])
def test_since_then_the_last_one_is_not(version: str, base: Path, tmp_path: Path) -> None:
    upper = noise(4, 6)
    config = {**NEUMANN, "num_cayley_neumann_terms": 4, "peft_version": version}
    made = merged(base, adapter(tmp_path / "a", {"lin.oft_R.weight": upper}, **config))
    q = skew(upper, 4)
    r = torch.eye(4) + 2 * q + 2 * q @ q + q @ q @ q
    assert is_close(made.load("lin.weight"), weight(base, "lin") @ diagonal(r).T)
    assert not made.notes


def test_the_exact_transform_never_changed(base: Path, tmp_path: Path) -> None:
    upper = noise(4, 6)
    config = {"peft_type": "OFT", "use_cayley_neumann": False}
    made = merged(base, adapter(tmp_path / "a", {"lin.oft_R.weight": upper}, **config))
    assert is_close(made.load("lin.weight"), weight(base, "lin") @ diagonal(cayley(skew(upper, 4))).T)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("eps", [None, 0.01])
@pytest.mark.parametrize("module", ["lin", "conv"])
def test_oft_before_peft_0_16(module: str, eps: float | None, shared: bool, base: Path, tmp_path: Path) -> None:
    """Whole matrices, a factor for each output; the limit counts the square of outputs for each block."""
    w = weight(base, module)
    out, wide = w.shape
    count, edge = wide // 4, 4
    r, s = noise(1 if shared else count, edge, edge), 1 + noise(out, 1)
    config = {"peft_type": "OFT", "block_share": shared, **({"coft": True, "eps": eps} if eps else {})}
    made = merged(base, adapter(tmp_path / "a", {f"{module}.oft_r": r, f"{module}.oft_s": s}, **config))
    whole = r.double()
    if eps:
        limit = eps * (-(-out // count)) ** 2 / len(whole) ** 0.5
        whole = whole * (limit / whole.norm(dim=(1, 2), keepdim=True)).clamp(max=1.0)
    turn = diagonal(cayley((whole - whole.mT) / 2).expand(count, edge, edge))
    assert is_close(made.load(f"{module}.weight"), s.double() * (w @ turn.T))


def test_of_two_old_ones_the_first_is_next_to_the_base(base: Path, tmp_path: Path) -> None:
    turns, adapters = [], []
    for seed in (1, 2):
        r = noise(4, 4, 4, seed=seed)
        turns.append(diagonal(cayley((r - r.mT).double() / 2)))
        parts = {"lin.oft_r": r, "lin.oft_s": torch.ones(OUT, 1)}
        adapters.append(adapter(tmp_path / str(seed), parts, peft_type="OFT", r=4))
    made = merged(base, *adapters).load("lin.weight")
    assert is_close(made, weight(base, "lin") @ turns[0].T @ turns[1].T)


@pytest.mark.parametrize("init", [True, False, "bat"])
def test_bone_is_miss(init: bool | str, base: Path, tmp_path: Path) -> None:
    w = weight(base, "lin")
    block = noise(OUT // 4, 4, 4) if init == "bat" else noise(5, OUT)
    said = {"peft_type": "BONE", "init_weights": init, "r": 4 if init == "bat" else 5}
    made = merged(base, adapter(tmp_path / "a", {"lin.bone_block": block}, **said))
    if init == "bat":
        blocks = w.view(OUT // 4, 4, WIDE // 4, 4)
        wanted = blocks + torch.einsum("paqc,pcb->paqb", blocks, block.double()) + block.double()[:, :, None]
    else:
        wanted = w + block.double().T.repeat(1, 4)[:, :WIDE]
    assert is_close(made.load("lin.weight"), wanted.reshape(OUT, WIDE))


@pytest.mark.parametrize(("factors", "edge"), [(2, 4), (3, 4), (3, 2), (1, 3), (4, 2)])
@pytest.mark.parametrize("module", ["lin", "conv"])
def test_boft_of_several_factors(factors: int, edge: int, module: str, base: Path, tmp_path: Path) -> None:
    """With the permutations that PEFT makes; its products need a device that is not here."""
    w = weight(base, module)
    out, wide = w.shape
    if wide % (edge << (factors - 1)):
        pytest.skip("PEFT makes no such factors")
    r, s = noise(factors, wide // edge, edge, edge), 1 + noise(*((out, 1) if module == "lin" else (1, out)))
    made = merged(base, adapter(tmp_path / "a", {f"{module}.boft_R": r, f"{module}.boft_s": s}, peft_type="BOFT"))

    total, maker = torch.eye(wide).double(), BOFTLayer.__new__(BOFTLayer)
    for level, blocks in enumerate(r.double()):
        order = BOFTLayer.block_butterfly_perm(maker, wide, wide // edge >> level, edge // 2, factors - 1)
        p = BOFTLayer.perm2mat(maker, order).double()
        total = p @ diagonal(cayley((blocks - blocks.mT) / 2)) @ p.T @ total
    assert is_close(made.load(f"{module}.weight"), s.double().view(-1, 1) * (w @ total.T))


class Net(torch.nn.Module):
    """A convolution of 1 x 1 in two groups."""

    def __init__(self, base: Path) -> None:
        super().__init__()
        self.point = torch.nn.Conv2d(16, 12, 1, groups=2, bias=False)
        self.point.weight.data.copy_(load_file(base / "model.safetensors")["point.weight"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.point(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("shared", [False, True])
def test_oft_on_groups_of_1_x_1_turns_each_group_s_inputs(shared: bool, base: Path, tmp_path: Path) -> None:
    config = peft.OFTConfig(oft_block_size=4, target_modules=["point"], block_share=shared)
    model = peft.get_peft_model(Net(base), config)
    for parameter in model.parameters():
        parameter.data.add_(noise(*parameter.shape) if parameter.requires_grad else 0)
    model.save_pretrained(tmp_path / "a")
    x = noise(2, 16, 3, 3, size=1.0)
    made = merged(base, tmp_path / "a").load("point.weight")
    live = model(x)
    assert torch.allclose(torch.nn.functional.conv2d(x, made, groups=2), live, atol=1e-5)
    assert (Net(base)(x) - live).abs().max() > 0.1


# What is refused


def test_blocks_that_reach_across_groups_are_refused(base: Path, tmp_path: Path) -> None:
    config = {"peft_type": "OFT", "use_cayley_neumann": False}
    folder = adapter(tmp_path / "a", {"point.oft_R.weight": noise(1, 120)}, **config)
    with pytest.raises(NotSupported, match=r"blocks of 16 inputs reach across groups of 8"):
        merged(base, folder)


def test_kernels_are_refused(base: Path, tmp_path: Path) -> None:
    config = {"peft_type": "OFT", "use_cayley_neumann": False}
    folder = adapter(tmp_path / "a", {"conv.oft_R.weight": noise(9, 6)}, **config)
    with pytest.raises(NotSupported, match=r"no weight does what OFT does on a kernel of \(3, 3\)"):
        merged(base, folder)


def test_a_sign_that_is_not_said_is_not_guessed(base: Path, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", {"lin.oft_R.weight": noise(4, 6)}, peft_type="OFT")
    with pytest.raises(AdapterError, match="which way its rotations turn is not said"):
        merged(base, folder)


@pytest.mark.parametrize("version", ["0.18.0.dev0", "0.18.0.dev0@1a2b"])
def test_versions_in_which_the_series_changed_are_not_guessed(version: str, base: Path, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", {"lin.oft_R.weight": noise(4, 6)}, **NEUMANN, peft_version=version)
    with pytest.raises(NotSupported, match=r"while it was made, the series changed"):
        merged(base, folder)


EXACT = {"use_cayley_neumann": False}
UNFIT: dict[str, tuple[str, dict[str, torch.Tensor], dict[str, Any], str]] = {
    "no triangle": ("OFT", {"oft_R.weight": noise(4, 7)}, EXACT, "no half of a matrix"),
    "too few blocks": ("OFT", {"oft_R.weight": noise(3, 6)}, EXACT, "3 blocks of 4 inputs do not fit"),
    "one, not shared": ("OFT", {"oft_R.weight": noise(1, 6)}, EXACT, "1 blocks of 4 inputs do not fit"),
    "shared, several": ("OFT", {"oft_R.weight": noise(4, 6)}, {**EXACT, "block_share": True}, "do not fit"),
    "old, not square": ("OFT", {"oft_r": noise(4, 4, 3), "oft_s": noise(OUT, 1)}, {}, r"oft_r is \(4, 4, 3\)"),
    "old, no factors": ("OFT", {"oft_r": noise(4, 4, 4)}, {}, "has no oft_s"),
    "butterfly, odd": ("BOFT", {"boft_R": noise(2, 6, 3, 3), "boft_s": noise(OUT, 1)}, {}, "does not fit"),
    "butterfly, factors": ("BOFT", {"boft_R": noise(2, 4, 4, 4), "boft_s": noise(3, 1)}, {}, "boft_s is"),
    "reflections, inputs": ("HRA", {"hra_u": noise(WIDE + 1, 2)}, {}, r"hra_u is \(17, 2\), and not \(16, any\)"),
    "miss, not bat": ("MISS", {"miss_block": noise(6, 4, 4)}, {"init_weights": True}, "not what init_weights = True"),
    "miss, bat": ("MISS", {"miss_block": noise(4, OUT)}, {"init_weights": "bat"}, "not what init_weights = 'bat'"),
    "miss, mini": ("MISS", {"miss_block": noise(4, 4)}, {"init_weights": "mini", "mini_r": 5}, "and not .any, 5"),
    "miss, mini that does not divide": (
        "MISS",
        {"miss_block": noise(4, 5)},
        {"init_weights": "mini", "mini_r": 5},
        "does not fit",
    ),
    "miss, bat that does not divide": ("MISS", {"miss_block": noise(3, 8, 4)}, {"init_weights": "bat"}, "does not fit"),
    "miss, an init that nobody knows": ("MISS", {"miss_block": noise(4, OUT)}, {"init_weights": "x"}, "is not known"),
    "road, group": (
        "ROAD",
        {"road_theta": noise(12), "road_alpha": noise(12)},
        {"group_size": 16},
        "group_size = 16 does not fit 24",
    ),
    "road, odd group": (
        "ROAD",
        {"road_theta": noise(12), "road_alpha": noise(12)},
        {"group_size": 3},
        "does not fit 24",
    ),
    "road, variant": (
        "ROAD",
        {"road_theta": noise(12), "road_alpha": noise(12)},
        {"variant": "road_2", "group_size": 8},
        r"road_theta is \(12,\), and not \(24\)",
    ),
    "road, nobody's variant": (
        "ROAD",
        {"road_theta": noise(12), "road_alpha": noise(12)},
        {"variant": "road_3", "group_size": 8},
        "variant = 'road_3'",
    ),
    "deft, method": (
        "DEFT",
        {"deft_P": noise(OUT, 2), "deft_R": noise(2, WIDE)},
        {"decomposition_method": "lu"},
        "decomposition_method = 'lu' is not supported",
    ),
    "deft, para with R": (
        "DEFT",
        {"deft_P": noise(OUT, 2), "deft_R": noise(2, WIDE)},
        {"para": True},
        "para = True, and the module has",
    ),
    "deft, R is missing": ("DEFT", {"deft_P": noise(OUT, 2)}, {}, "para = None, and the module has deft_P"),
    "peanut, activation": (
        "PEANUT",
        {"peanut_A.weight": noise(2, OUT), "peanut_B.weight": noise(OUT, 2)},
        {"act_fn": "prelu"},
        "act_fn = 'prelu' is not supported",
    ),
    "peanut, depth": (
        "PEANUT",
        {"peanut_A.weight": noise(2, OUT), "peanut_B.weight": noise(OUT, 2)},
        {"depth": 1},
        "has no peanut_encoders.0.weight",
    ),
    "peanut, more than said": (
        "PEANUT",
        {
            "peanut_A.weight": noise(2, OUT),
            "peanut_B.weight": noise(OUT, 2),
            "peanut_encoders.0.weight": noise(2, 2),
            "peanut_decoders.0.weight": noise(2, 2),
        },
        {"depth": 0},
        "PEANuT with peanut_decoders.0.weight is not supported",
    ),
    "hira, ranks": ("HIRA", {"hira_A": noise(2, WIDE), "hira_B": noise(OUT, 3)}, {}, r"hira_B is \(24, 3\)"),
    "delora, ranks": (
        "DELORA",
        {"delora_A": noise(2, WIDE), "delora_B": noise(OUT, 3), "delora_lambda": noise(1)},
        {},
        r"delora_B is \(24, 3\)",
    ),
    "glora, inputs": ("GLORA", {"glora_A.Xd": noise(OUT, 2), "glora_A.Xu": noise(2, 3)}, {}, r"glora_A.Xu is \(2, 3\)"),
    "glora, half": ("GLORA", {"glora_B.Xd": noise(OUT, 2)}, {}, "has no glora_B.Xu"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_is_named(name: str, base: Path, tmp_path: Path) -> None:
    kind, parts, config, match = UNFIT[name]
    folder = adapter(tmp_path / "a", {f"lin.{part}": t for part, t in parts.items()}, peft_type=kind, **config)
    with pytest.raises((AdapterError, NotSupported), match=match):
        merged(base, folder)


@pytest.mark.parametrize("kind", ["PSOFT", "ADAMSS", "FROD", "OSF", "LILY", "SHADOW"])
def test_what_is_refused_says_why(kind: str, base: Path, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", {f"lin.{kind.lower()}_x": noise(2)}, peft_type=kind)
    with pytest.raises(NotSupported, match=f"adapters of kind {kind} are not supported") as error:
        merged(base, folder)
    assert len(error.value.where) == 2 and not error.value.where[1].startswith("other kinds")
