"""Several adapters of different kinds: a sum where sums have a meaning, an order where there is one, else a refusal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import permutations
from pathlib import Path

import peft
import pytest
import torch

import surgery
from surgery.errors import NotSupported, PlanError, SurgeryError

from .cases import Case, fresh, live, output, trained

ON = ["q_proj", "down_proj"]
CONFIGS: Mapping[str, Callable[[], peft.PeftConfig]] = {
    "lora": lambda: peft.LoraConfig(r=3, lora_alpha=5, target_modules=ON, init_lora_weights=False),
    "loha": lambda: peft.LoHaConfig(r=3, alpha=5, target_modules=ON),
    "vera": lambda: peft.VeraConfig(r=4, target_modules=ON),
    "hira": lambda: peft.HiraConfig(r=3, target_modules=ON),
    "delora": lambda: peft.DeloraConfig(r=3, target_modules=ON),
    "gralora": lambda: peft.GraloraConfig(r=4, target_modules=ON),
    "ia3": lambda: peft.IA3Config(target_modules=ON, feedforward_modules=["down_proj"]),
    "hra": lambda: peft.HRAConfig(r=3, target_modules=ON),
    "oft": lambda: peft.OFTConfig(oft_block_size=8, target_modules=ON),
    "norms": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
}
KEYS = [f"model.layers.{layer}.{name}.weight" for layer in (0, 1) for name in ("self_attn.q_proj", "mlp.down_proj")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "wide"
    fresh("linear").double().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def kind(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Callable[..., surgery.Adapter]:
    folder = tmp_path_factory.mktemp("adapters")

    def get(name: str, seed: int = 0) -> surgery.Adapter:
        path = folder / f"{name}{seed}"
        if not path.exists():
            trained(Case("linear", CONFIGS[name], size=0.2), base, path, seed)
        return surgery.open_adapter(path)

    return get


ADDED = ["lora", "loha", "vera", "hira", "delora", "gralora"]


@pytest.mark.parametrize("names", [("lora", "loha", "vera"), ("hira", "lora"), ("delora", "hira", "gralora")])
def test_kinds_that_add_are_summed_each_of_the_base_alone(
    names: tuple[str, ...], base: Path, kind: Callable[..., surgery.Adapter]
) -> None:
    opened, weights = surgery.open_checkpoint(base), [0.5, -1.25, 2.0][: len(names)]
    alone = [surgery.merge(opened, kind(name)) for name in names]
    for order in permutations(range(len(names))):
        made = surgery.merge(opened, [kind(names[i]) for i in order], [weights[i] for i in order])
        for key in KEYS:
            start = opened.load(key)
            wanted = start + sum(w * (one.load(key) - start) for w, one in zip(weights, alone, strict=True))
            assert (made.load(key) - wanted).abs().max() < 1e-9 * wanted.abs().max()
            assert (wanted - start).abs().max() > 1e-3


def test_of_ia3_the_order_is_free(base: Path, kind: Callable[..., surgery.Adapter], tmp_path: Path) -> None:
    opened = surgery.open_checkpoint(base)
    both = [kind("ia3", 0), kind("ia3", 1)]
    one, other = surgery.merge(opened, both), surgery.merge(opened, both[::-1])
    for key in KEYS:
        assert (one.load(key) - other.load(key)).abs().max() < 1e-12
    surgery.write(surgery.merge(opened, both, dtype="float32"), tmp_path / "out")
    wanted = output("linear", live(Case("linear", CONFIGS["ia3"]), base, [Path(a.path) for a in both]))
    found = output("linear", type(fresh("linear")).from_pretrained(tmp_path / "out"))
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("name", ["hra", "oft"])
def test_of_those_that_turn_the_order_counts(
    name: str, base: Path, kind: Callable[..., surgery.Adapter], tmp_path: Path
) -> None:
    opened, both = surgery.open_checkpoint(base), [kind(name, 0), kind(name, 1)]
    made = surgery.merge(opened, both)
    surgery.write(surgery.merge(opened, both, dtype="float32"), tmp_path / "out")
    wanted = output("linear", live(Case("linear", CONFIGS[name]), base, [Path(a.path) for a in both]))
    found = output("linear", type(fresh("linear")).from_pretrained(tmp_path / "out"))
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
    swapped = surgery.merge(opened, both[::-1])
    assert not torch.allclose(swapped.load(KEYS[0]), made.load(KEYS[0]), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("names", "error", "words"),
    [
        (("ia3", "lora"), NotSupported, "IA3 on a tensor has no sum with one that adds to it, and no order"),
        (("loha", "ia3"), NotSupported, "IA3 on a tensor has no sum with one that adds to it, and no order"),
        (("hra", "oft"), NotSupported, "HRA on a tensor has no sum with OFT, and no order"),
        (("norms", "norms"), PlanError, "two adapters replace the same tensor"),
    ],
)
def test_what_has_neither_a_sum_nor_an_order_is_refused(
    names: tuple[str, str], error: type[SurgeryError], words: str, base: Path, kind: Callable[..., surgery.Adapter]
) -> None:
    with pytest.raises(error, match=words) as found:
        surgery.merge(surgery.open_checkpoint(base), [kind(name, seed) for seed, name in enumerate(names)])
    assert found.value.help and "merge" in found.value.help


@pytest.mark.parametrize("name", ["ia3", "hra", "oft"])
def test_what_multiplies_has_no_weight_but_one(name: str, base: Path, kind: Callable[..., surgery.Adapter]) -> None:
    opened = surgery.open_checkpoint(base)
    for options in ({"weights": [0.5]}, {"scale": 2.0}):
        with pytest.raises(NotSupported, match="can only be merged with weight 1"):
            surgery.merge(opened, kind(name), **options)


@pytest.mark.parametrize("name", ["loha", "vera", "gralora", "delora"])
def test_what_adds_is_subtracted(name: str, base: Path, kind: Callable[..., surgery.Adapter], tmp_path: Path) -> None:
    opened = surgery.open_checkpoint(base)
    surgery.write(surgery.merge(opened, kind(name)), tmp_path / "out")
    back = surgery.unmerge_approximately(surgery.open_checkpoint(tmp_path / "out"), kind(name))
    for key in KEYS:
        assert (back.load(key) - opened.load(key)).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["hira", "ia3", "hra", "oft"])
def test_what_was_made_of_the_base_is_not_subtracted(
    name: str, base: Path, kind: Callable[..., surgery.Adapter], tmp_path: Path
) -> None:
    surgery.write(surgery.merge(surgery.open_checkpoint(base), kind(name)), tmp_path / "out")
    with pytest.raises(NotSupported, match="which no subtraction undoes") as found:
        surgery.unmerge_approximately(surgery.open_checkpoint(tmp_path / "out"), kind(name))
    assert "--reversible" in str(found.value.help)
