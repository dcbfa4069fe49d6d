"""Two adapters of a kind: both at once in the live model, and merged in the order in which they are given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import BOFTConfig, HRAConfig, MissConfig, OFTConfig, RoadConfig

import surgery
from surgery.errors import NotSupported

from . import rows
from .cases import Case, fresh, live, model_of, output, trained

LINEARS = ["q_proj", "v_proj"]
ORDERED = {
    "OFT": Case("linear", lambda: OFTConfig(oft_block_size=8, target_modules=LINEARS)),
    "OFT on an embedding": rows.CASES["OFT on an embedding"],
    "BOFT": Case("linear", lambda: BOFTConfig(boft_block_size=8, target_modules=LINEARS)),
    "HRA": Case("linear", lambda: HRAConfig(r=4, target_modules=LINEARS), size=0.5),
    "MiSS, bat": Case("linear", lambda: MissConfig(r=8, init_weights="bat", target_modules=LINEARS)),
    "RoAd": Case("linear", lambda: RoadConfig(variant="road_2", group_size=8, target_modules=LINEARS)),
}
SUMMED = {
    name: rows.CASES[name]
    for name in (
        "MiSS on Linear",
        "DeLoRA on Linear",
        "DEFT by QR",
        "PEANuT of depth 1",
        "HiRA on Linear",
        "HiRA on an embedding",
        "GLoRA on Linear",
        "GLoRA, vectors",
    )
}


def merged(base: Path, adapters: list[Path], out: Path, weights: list[float] | None = None) -> Path:
    """The base with all of them, written."""
    opened = [surgery.open_adapter(path) for path in adapters]
    surgery.write(surgery.merge(surgery.open_checkpoint(base), opened, weights), out)
    return out


def both(case: Case, tmp_path: Path) -> tuple[Path, list[Path]]:
    """A base, and two adapters of the case without what replaces tensors."""
    fresh(case.family).save_pretrained(tmp_path / "base")

    def config() -> object:
        made = case.config()
        made.modules_to_save = None
        if hasattr(made, "bias"):
            made.bias = "none"
        return made

    plain = Case(case.family, config, case.size)  # type: ignore[arg-type]
    return tmp_path / "base", [trained(plain, tmp_path / "base", tmp_path / str(n), seed=n) for n in (1, 2)]


def loaded(case: Case, path: Path) -> torch.Tensor:
    return output(case.family, type(model_of(case.family)).from_pretrained(path))


@pytest.mark.parametrize("name", [*ORDERED, *SUMMED])
def test_two_are_what_they_are_live(name: str, tmp_path: Path) -> None:
    case = {**ORDERED, **SUMMED}[name]
    base, adapters = both(case, tmp_path)
    wanted = output(case.family, live(case, base, adapters))
    made = loaded(case, merged(base, adapters, tmp_path / "out"))
    error, size = (made - wanted).abs().max().item(), wanted.abs().max().item()
    assert error <= 1e-5 * size
    turned = loaded(case, merged(base, adapters[::-1], tmp_path / "turned"))
    assert ((turned - wanted).abs().max().item() > 100 * error) == (name in ORDERED), "the order matters, or not"


@pytest.mark.parametrize("name", SUMMED)
def test_weights_are_of_each_one_s_own_sum(name: str, tmp_path: Path) -> None:
    """Half of both is the middle between each alone and the base: each delta is of the base as it was."""
    case = SUMMED[name]
    base, adapters = both(case, tmp_path)
    start = surgery.open_checkpoint(base)
    each = [surgery.open_checkpoint(merged(base, [one], tmp_path / f"one{i}")) for i, one in enumerate(adapters)]
    made = surgery.open_checkpoint(merged(base, adapters, tmp_path / "out", [0.5, -2.0]))
    changed = 0
    for key in start.tensors:
        w = start.load(key).double()
        wanted = w + 0.5 * (each[0].load(key).double() - w) - 2.0 * (each[1].load(key).double() - w)
        assert torch.allclose(made.load(key).double(), wanted, atol=1e-5)
        changed += not torch.equal(made.load(key), start.load(key))
    assert changed


@pytest.mark.parametrize("name", ORDERED)
def test_what_turns_has_no_weight(name: str, tmp_path: Path) -> None:
    base, adapters = both(ORDERED[name], tmp_path)
    with pytest.raises(NotSupported, match="can only be merged with weight 1"):
        merged(base, adapters[:1], tmp_path / "out", [0.5])


def test_of_rotations_the_order_is_told(tmp_path: Path) -> None:
    base, adapters = both(ORDERED["OFT"], tmp_path)
    opened = [surgery.open_adapter(path) for path in adapters]
    said = "the last one is next to the weight"
    assert [note for note in surgery.merge(surgery.open_checkpoint(base), opened).notes if said in note]
    assert not [note for note in surgery.merge(surgery.open_checkpoint(base), opened[0]).notes if said in note]


def test_two_kinds_that_turn_have_no_order(tmp_path: Path) -> None:
    base, adapters = both(ORDERED["OFT"], tmp_path)
    other = trained(ORDERED["HRA"], base, tmp_path / "hra")
    with pytest.raises(NotSupported, match="has no sum with HRA, and no order"):
        merged(base, [adapters[0], other], tmp_path / "out")
