"""Configs that are not of their tensors, where shapes do not tell: refused by name, before anything is computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import surgery
from surgery.errors import AdapterError, SurgeryError

from . import rows
from .cases import Case, fresh, live, model_of, output, trained

LINEARS = ["q_proj", "v_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    fresh("bare").save_pretrained(folder)
    return folder


def changed(base: Path, folder: Path, config: peft.PeftConfig, **said: Any) -> Path:
    """An adapter of that config, of which adapter_config.json says something else."""
    trained(Case("bare", lambda: config), base, folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **said}))
    return folder


WRONG: dict[str, tuple[Callable[[], peft.PeftConfig], dict[str, Any], str]] = {
    "LoKr's rank": (lambda: peft.LoKrConfig(r=64, alpha=16, target_modules=LINEARS), {"r": 2}, "two factors"),
    "no rank": (lambda: peft.LoKrConfig(r=64, target_modules=LINEARS), {"r": 0}, "is no rank"),
    "half a rank": (
        lambda: peft.LoHaConfig(r=4, target_modules=LINEARS),
        {"r": 4.5},
        "r = 4.5, and not a whole number",
    ),
    "alpha": (
        lambda: peft.LoHaConfig(r=4, target_modules=LINEARS),
        {"alpha": 10**400},
        "too many digits, and not a number",
    ),
    "a float's alpha": (
        lambda: peft.LoHaConfig(r=4, target_modules=LINEARS),
        {"alpha": 1e308},
        "1e+308, and not a number",
    ),
    "another kind": (lambda: peft.HRAConfig(r=4, target_modules=LINEARS), {"peft_type": "OFT"}, "different kinds"),
    "LoRA": (lambda: peft.HRAConfig(r=4, target_modules=LINEARS), {"peft_type": "LORA"}, "different kinds"),
    "of LoRA": (lambda: peft.LoraConfig(r=4, target_modules=LINEARS), {"peft_type": "HRA"}, "different kinds"),
}


@pytest.mark.parametrize("name", WRONG)
def test_it_is_refused_by_name(name: str, base: Path, tmp_path: Path) -> None:
    config, said, what = WRONG[name]
    folder = changed(base, tmp_path / "a", config(), **said)
    with pytest.raises(AdapterError) as caught:
        surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(folder))
    assert what in str(caught.value) and str(folder) in str(caught.value)


def test_a_rank_that_nobody_could_draw(base: Path, tmp_path: Path) -> None:
    """Nothing is drawn by a number that the vectors contradict."""
    config = peft.VeraConfig(r=4, target_modules=LINEARS, save_projection=False)
    folder = changed(base, tmp_path / "a", config, r=10**12)
    held = load_file(folder / "adapter_model.safetensors")
    save_file({key: value for key, value in held.items() if "vera_A" not in key}, folder / "adapter_model.safetensors")
    with pytest.raises(SurgeryError, match="says r = "):
        surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(folder))


# Of training alone: what PEFT makes of another value changes nothing of what was trained.
ELSE = frozenset(
    """
    task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode target_modules
    exclude_modules layers_to_transform layers_pattern fan_in_fan_out modules_to_save bias init_weights
    init_ia3_weights
    """.split()
)
OTHERS: dict[type, list[Any]] = {
    bool: [True, False],
    int: [0, 1, 2, 3, 5, 8, 64],
    float: [0.5, 3.0],
    str: ["lora", "vector", "none", "road_2", "road_4", "qr", "gelu", "db2"],
    list: [[], ["q_proj"], ["down_proj", "convolution"]],
    dict: [{}, {"q_proj": 2}, {".*": 5}],
}
# A case of each kind, of whole and made factors, of biases and of convolutions; the rest takes minutes.
QUICK = (
    "LoKr on Linear", "LoKr, both decomposed", "SHiRA on Linear", "Super-Tuning on Linear",
    "Super-Tuning of the smallest, Supra", "C3A, patterns, biases", "BEFT on Linear", "IA3 on Linear", "IA3 on Conv2d",
    "LoHa, patterns", "VeRA on Linear", "DeLoRA, patterns", "DEFT on Linear", "PEANuT of depth 2", "HiRA on Linear",
    "HiRA on Conv2d", "GLoRA on Linear", "GLoRA without biases", "OFT on Linear", "OFT, number of blocks",
    "OFT, three terms, shared", "BOFT on Linear", "HRA on Linear", "MiSS on Linear", "MiSS, mini", "MiSS, bat",
    "RoAd 2", "FourierFT on Linear", "WaveFT, patterns", "WaveFT, sym9, shared out",
)  # fmt: skip


def weighed() -> list[Any]:
    """All cases, those that are not quick marked so; one of each kind is quick."""
    kinds = {rows.CASES[name].config().peft_type for name in QUICK if name in rows.CASES}
    first = {rows.CASES[name].config().peft_type: name for name in sorted(rows.CASES, reverse=True)}
    quick = {*QUICK, *(name for kind, name in first.items() if kind not in kinds)}
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in sorted(rows.CASES)]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("bases")

    def get(family: str) -> Path:
        if not (folder / family).exists():
            fresh(family).save_pretrained(folder / family)
        return folder / family

    return get


@pytest.mark.parametrize("name", weighed())
def test_another_number_is_refused_or_does_what_it_does_in_peft(
    name: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    """Each number of the config changed, one by one: where PEFT cannot load that, or begins a part of it anew, it is
    refused, by a merge and, without its base where its parts tell, by a check of the adapter.
    """
    case, base = rows.CASES[name], bases(rows.CASES[name].family)
    folder = trained(case, base, tmp_path / "a")
    config = json.loads((folder / "adapter_config.json").read_text())
    plain = surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(folder)).tensors
    for key in sorted(config.keys() - ELSE):
        for value in OTHERS.get(type(config[key]), [2]):
            if value == config[key] or (key == "proportional_parameters" and value):  # which needs all weights' sizes
                continue
            (folder / "adapter_config.json").write_text(json.dumps({**config, key: value}))
            try:
                made = surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(folder))
            except SurgeryError:
                continue
            unused = key == "wavelet_family" and not config["use_idwt"]
            if made.tensors == plain and (unused or _is_of_training(key)):
                continue
            try:
                wanted = output(case.family, live(case, base, [folder]))
            except Exception as error:
                raise AssertionError(f"{key} = {value!r} is merged, and PEFT fails: {error}") from error
            out = tmp_path / f"{key}-{OTHERS.get(type(config[key]), [2]).index(value)}"
            surgery.write(made, out)
            computed = output(case.family, type(model_of(case.family)).from_pretrained(out))
            assert torch.allclose(computed, wanted, atol=2e-5 * wanted.abs().max().item()), f"{key} = {value!r}"


def _is_of_training(key: str) -> bool:
    return "dropout" in key or key.startswith("init_") or key in ("mask_type", "random_seed", "d_initial", "sparse")


def opening(base: Path, adapter: Path) -> tuple[surgery.Checkpoint, surgery.Adapter]:
    return surgery.open_checkpoint(base), surgery.open_adapter(adapter)


# What is wrong with a file of tensors, and what the refusal names.
SPOILT: dict[str, Callable[[dict[str, torch.Tensor], str], object]] = {
    "one missing": lambda held, key: held.pop(key),
    "one of another shape": lambda held, key: held.update({key: torch.cat([held[key], held[key]])}),
    "one axis more": lambda held, key: held.update({key: held[key][None]}),
    "an extra one": lambda held, key: held.update({f"{key}_more": held[key].clone()}),
}


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("name", [name for name in QUICK if name in rows.CASES])
def test_each_part_of_a_kind_is_missed_and_measured(
    name: str, how: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    case, base = rows.CASES[name], bases(rows.CASES[name].family)
    folder = trained(case, base, tmp_path / "a")
    file = folder / "adapter_model.safetensors"
    whole = load_file(file)
    opened = surgery.open_adapter(folder)
    module = sorted(opened.lora)[0]
    for part in opened.lora[module]:
        key, held = opened.names[f"{module}.{part}"], dict(whole)
        SPOILT[how](held, key)
        save_file(held, file)
        if part.endswith((".zeros", "delora_w_norm")):  # changes nothing; is taken of the base where it is not saved
            continue
        if how == "one missing" and len(opened.lora[module]) == 1:  # a module that was left out altogether
            with suppress(SurgeryError):
                assert any(module in note for note in surgery.merge(*opening(base, folder)).notes)
            continue
        with pytest.raises(SurgeryError):
            surgery.merge(*opening(base, folder))
