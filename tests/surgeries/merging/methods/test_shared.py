"""Adapters whose modules share tensors: what the shared ones follow from, and what is refused of them by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    GraloraConfig,
    PeftConfig,
    PveraConfig,
    RandLoraConfig,
    TinyLoraConfig,
    UniLoraConfig,
    VBLoRAConfig,
    VeraConfig,
)
from safetensors.torch import load_file, save_file

import surgery
from surgery.errors import AdapterError, NotPlaced, NotSupported, SurgeryError

from .cases import Case, fresh, live, output, trained
from .rows_shared import BANK, LINEARS

CONFIGS: Mapping[str, Callable[[], PeftConfig]] = {
    "vera": lambda: VeraConfig(r=8, target_modules=LINEARS),
    "vera drawn": lambda: VeraConfig(r=8, target_modules=LINEARS, save_projection=False),
    "pvera": lambda: PveraConfig(r=8, target_modules=LINEARS),
    "vblora": lambda: VBLoRAConfig(**BANK, target_modules=LINEARS),
    "vblora few": lambda: VBLoRAConfig(**BANK, topk=3, save_only_topk_weights=True, target_modules=LINEARS),
    "randlora": lambda: RandLoraConfig(r=8, target_modules=LINEARS),
    "randlora drawn": lambda: RandLoraConfig(r=8, target_modules=LINEARS, save_projection=False),
    "unilora": lambda: UniLoraConfig(r=4, theta_d_length=64, target_modules=LINEARS, save_indices=True),
    "unilora drawn": lambda: UniLoraConfig(r=4, theta_d_length=64, target_modules=LINEARS),
    "tinylora": lambda: TinyLoraConfig(r=2, u=8, target_modules=LINEARS),
    "tinylora drawn": lambda: TinyLoraConfig(r=2, u=8, target_modules=LINEARS, save_projection=False),
    "gralora": lambda: GraloraConfig(r=4, gralora_k=2, hybrid_r=3, target_modules=LINEARS),
}
Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "linear"
    fresh("linear").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def kind(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("adapters")

    def get(name: str) -> Path:
        path = folder / name
        return path if path.exists() else trained(Case("linear", CONFIGS[name], size=0.3), base, path)

    return get


Edit = Callable[[dict[str, torch.Tensor], dict[str, Any]], None]


def edited(folder: Path, out: Path, edit: Edit) -> Path:
    """The adapter with its tensors and its config edited."""
    tensors, config = (
        load_file(folder / "adapter_model.safetensors"),
        json.loads((folder / "adapter_config.json").read_text()),
    )
    edit(tensors, config)
    out.mkdir()
    save_file(tensors, out / "adapter_model.safetensors")
    (out / "adapter_config.json").write_text(json.dumps(config))
    return out


def without(part: str) -> Edit:
    def edit(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
        for name in [name for name in tensors if part in name]:
            del tensors[name]

    return edit


def setting(**options: Any) -> Edit:
    return lambda tensors, config: config.update(options)


def putting(name: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Edit:
    def edit(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
        tensors[name] = make(tensors[name]).contiguous()

    return edit


def _at(place: tuple[int, ...], value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def make(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor[place] = value
        return tensor

    return make


# what is broken, how, and words of the refusal
BROKEN: list[tuple[str, str, Edit, type[SurgeryError], str]] = [
    ("shared A missing", "vera", without("vera_A"), AdapterError, "has no vera_A, which all its modules share"),
    ("seed that is none", "vera drawn", setting(projection_prng_key=None), AdapterError, "projection_prng_key = None"),
    ("rank that is none", "vera drawn", setting(r=0), AdapterError, "r = 0"),
    ("rank of another", "vera drawn", setting(r=5), AdapterError, "adapter_config.json says r = 5"),
    (
        "b of another base",
        "vera",
        putting(f"{Q}.vera_lambda_b", lambda t: t[:-1]),
        AdapterError,
        "vera_lambda_b is (47,)",
    ),
    ("sampling", "pvera", setting(sample_at_inference=True), NotSupported, "no weight is random"),
    ("odd means", "pvera", putting(f"{Q}.pvera_lambda_d", lambda t: t[:-1]), AdapterError, "has 15 numbers"),
    ("bank missing", "vblora", without("vector_bank"), AdapterError, "has no vblora_vector_bank"),
    (
        "logits of another bank",
        "vblora",
        putting("base_model.vblora_vector_bank", lambda t: t[:-1]),
        AdapterError,
        "15",
    ),
    (
        "vectors too long",
        "vblora",
        putting("base_model.vblora_vector_bank", lambda t: t.repeat(1, 5)),
        AdapterError,
        "says vector_length = 4, and vblora_vector_bank is (16, 20)",
    ),
    ("topk beyond the bank", "vblora", setting(topk=17), AdapterError, "17 of 16 vectors"),
    (
        "weights and no word of it",
        "vblora few",
        setting(save_only_topk_weights=False),
        AdapterError,
        "save_only_topk_weights = False",
    ),
    (
        "a word of weights",
        "vblora",
        setting(save_only_topk_weights=True),
        AdapterError,
        "save_only_topk_weights = True",
    ),
    ("another topk", "vblora few", setting(topk=2), AdapterError, "says topk = 2, and vblora_logits_A_topk_indices is"),
    (
        "place out of the bank",
        "vblora few",
        putting(f"{Q}.vblora_logits_A_topk_indices", _at((0, 0, 0), 16)),
        AdapterError,
        "are no place among 16",
    ),
    (
        "place twice",
        "vblora few",
        putting(f"{Q}.vblora_logits_A_topk_indices", lambda t: t * 0),
        AdapterError,
        "there twice",
    ),
    (
        "places as floats",
        "vblora few",
        putting(f"{Q}.vblora_logits_A_topk_indices", lambda t: t.float()),
        AdapterError,
        "and not integers",
    ),
    ("bases not saved", "randlora drawn", setting(), AdapterError, "has no randlora_A, which all its modules share"),
    (
        "copy of another base",
        "randlora",
        putting(f"{Q}.randlora_B", lambda t: t + 1),
        AdapterError,
        "is not the one that all modules share",
    ),
    (
        "base too small",
        "randlora",
        putting("base_model.randlora_B", lambda t: t[:40]),
        AdapterError,
        "smaller than the module",
    ),
    ("rank of others", "randlora", setting(r=4), AdapterError, "randlora_lambda is (8, 6), and not (4, 12)"),
    ("indices not saved", "unilora drawn", setting(), NotSupported, "order of the class's modules"),
    (
        "index beyond theta",
        "unilora",
        putting(f"{Q}.unilora_indices_A", _at((1, 2), 64)),
        AdapterError,
        "1 of 192 numbers of unilora_indices_A are no place among 64",
    ),
    (
        "index below 0",
        "unilora",
        putting(f"{Q}.unilora_indices_B", _at((1, 2), -1)),
        AdapterError,
        "are no place among 64",
    ),
    ("theta missing", "unilora", without("theta_d"), AdapterError, "has no unilora_theta_d"),
    ("scales missing", "unilora", without("scales_A"), AdapterError, "has no unilora_scales_A"),
    ("matrices not saved", "tinylora drawn", setting(), NotSupported, "hangs on the order of the class's modules"),
    ("a vector missing", "tinylora", without("tinylora_v.3"), AdapterError, "the file has 5"),
    (
        "other groups",
        "tinylora",
        setting(weight_tying=0.5),
        AdapterError,
        "makes 3 groups of 6 modules, and the file has 6",
    ),
    (
        "tying that is none",
        "tinylora",
        setting(weight_tying=7),
        AdapterError,
        "weight_tying = 7 is no number from 0 to 1",
    ),
    ("another seed", "tinylora", setting(projection_seed=12345), NotSupported, "does not tell it"),
    (
        "matrix of another",
        "tinylora",
        putting(f"{Q}.tinylora_P", lambda t: t + 1),
        NotSupported,
        "q_proj does not tell it",
    ),
    ("blocks that do not divide", "gralora", setting(gralora_k=3), AdapterError, "r = 4 and gralora_k = 3 do not fit"),
    ("no general part", "gralora", without("general"), AdapterError, "has no gralora_B_general.weight"),
    ("general part and no word", "gralora", setting(hybrid_r=0), NotSupported, "GraLoRA with gralora_A_general"),
    ("rank of other blocks", "gralora", setting(r=8), AdapterError, "gralora_A is (2, 40, 4), and not (2, 40, 8)"),
]


@pytest.mark.parametrize(
    ("name", "edit", "error", "words"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN]
)
def test_what_contradicts_itself_is_refused_by_name(
    name: str,
    edit: Edit,
    error: type[SurgeryError],
    words: str,
    base: Path,
    kind: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    broken = edited(kind(name), tmp_path / "broken", edit)
    with pytest.raises(error) as found:
        surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(broken))
    assert words in str(found.value)
    assert found.value.help


@pytest.mark.parametrize("name", ["vera drawn", "tinylora"])
def test_a_choice_of_modules_changes_nothing_of_what_they_share(
    name: str, base: Path, kind: Callable[[str], Path], tmp_path: Path
) -> None:
    """The widest module is left out, and the first ones."""
    opened, adapter = surgery.open_checkpoint(base), surgery.open_adapter(kind(name))
    whole = surgery.merge(opened, adapter)
    some = surgery.merge(opened, adapter, only=r".*\.1\..*(v|q)_proj")
    module = "model.layers.1.self_attn.v_proj.weight"
    assert torch.equal(whole.load(module), some.load(module))
    assert not torch.equal(opened.load(module), some.load(module))
    surgery.write(some, tmp_path / "out")


def test_matrices_that_were_drawn_again_are_told_of(base: Path, kind: Callable[[str], Path]) -> None:
    made = surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(kind("vera drawn")))
    assert any("vera_A (8, 80) and vera_B (48, 8) are not in the file" in note for note in made.notes)


def test_sizes_that_follow_from_all_modules_need_them_all(base: Path, kind: Callable[[str], Path]) -> None:
    opened = surgery.open_checkpoint(base)
    less = surgery.drop(opened, r"model\.layers\.1\.mlp\.down_proj\..*")
    with pytest.raises(NotPlaced, match=r"how large its shared matrices are follows from all of them"):
        surgery.merge(less, surgery.open_adapter(kind("vera drawn")), only=r".*q_proj")


def test_two_that_share_other_matrices_are_summed(base: Path, kind: Callable[[str], Path], tmp_path: Path) -> None:
    """Each has its own: the live model has no two ranks at once, each alone is exact."""
    opened, folders = surgery.open_checkpoint(base), [kind("vera drawn"), kind("pvera"), kind("vblora")]
    adapters = [surgery.open_adapter(folder) for folder in folders]
    key = "model.layers.0.self_attn.q_proj.weight"
    start = opened.load(key).double()
    alone = [surgery.merge(opened, one).load(key).double() - start for one in adapters]
    made = surgery.merge(opened, adapters, [0.5, 2.0, -1.0]).load(key).double()
    wanted = start + 0.5 * alone[0] + 2 * alone[1] - alone[2]
    assert (made - wanted).abs().max() < 1e-6
    assert (made - start).abs().max() > 1e-2


def test_a_tinylora_whose_matrices_were_rounded_still_tells_its_groups(
    base: Path, kind: Callable[[str], Path], tmp_path: Path
) -> None:
    def halve(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
        for name in tensors:
            tensors[name] = tensors[name].bfloat16() if name.endswith("tinylora_P") else tensors[name]

    folder = edited(kind("tinylora"), tmp_path / "halved", halve)
    made = surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(folder))
    surgery.write(made, tmp_path / "out")
    case = Case("linear", CONFIGS["tinylora"])
    wanted = output("linear", live(case, base, [folder]))
    found = output("linear", type(fresh("linear")).from_pretrained(tmp_path / "out"))
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
