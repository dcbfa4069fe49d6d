"""adapter_config.json with values of other types than PEFT writes: a named refusal, or a right result, and at once."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file, save_file

import surgery
from surgery.adapters.kinds import SUPPORTED
from surgery.errors import AdapterError, SurgeryError
from surgery.files.adapter_config import TYPES, check_config

WRONG: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -3,
    7,
    10**400,
    2.5,
    "0",
    "(",
    "a\0b",
    [],
    [1],
    [[0, 1]],
    [[[]]],
    {},
    {"q_proj": 4},
    {"q_proj": "x"},
    {"(?i)q_proj": 4},
    {"(": 4},
    {"q_proj": None},
)
AIMED = ["q_proj", "v_proj"]
KINDS: dict[str, Callable[[], peft.PeftConfig]] = {
    "LoRA": lambda: peft.LoraConfig(r=4, target_modules=AIMED, rank_pattern={"q_proj": 2}, bias="lora_only"),
    "AdaLoRA": lambda: peft.AdaLoraConfig(init_r=4, target_modules=AIMED, total_step=10, tinit=1, tfinal=1),
    "LoHa": lambda: peft.LoHaConfig(r=4, target_modules=AIMED),
    "OFT": lambda: peft.OFTConfig(oft_block_size=4, target_modules=AIMED),
    "IA3": lambda: peft.IA3Config(target_modules=AIMED, feedforward_modules=[]),
    "VeRA": lambda: peft.VeraConfig(r=4, target_modules=AIMED),
    "GraLoRA": lambda: peft.GraloraConfig(r=4, target_modules=AIMED),
    "FourierFT": lambda: peft.FourierFTConfig(n_frequency=9, target_modules=AIMED),
}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Callable[[str], Path]:
    """adapters(name) -> an adapter of that kind on the base, each of its numbers moved."""
    folder = tmp_path_factory.mktemp("adapters")

    def get(name: str) -> Path:
        if not (folder / name).exists():
            import transformers as tf

            torch.manual_seed(0)
            model = peft.get_peft_model(tf.AutoModelForCausalLM.from_pretrained(llama), KINDS[name]())
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.add_(0.1 * torch.randn(parameter.shape))
            model.save_pretrained(folder / name)
        return folder / name

    return get


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tiny_models

    folder = tmp_path_factory.mktemp("llama")
    tiny_models.MODELS["llama"]().save_pretrained(folder)
    return folder


def live(base: Path, adapter: Path) -> dict[str, torch.Tensor] | None:
    """The weights that PEFT merges of the same file; None where it fails."""
    import transformers as tf

    try:
        model = peft.PeftModel.from_pretrained(tf.AutoModelForCausalLM.from_pretrained(base), adapter)
        return model.merge_and_unload().state_dict()
    except Exception:
        return None


@pytest.mark.parametrize("name", [one if one == "LoHa" else pytest.param(one, marks=pytest.mark.slow) for one in KINDS])
def test_each_option_of_each_wrong_type_is_refused_or_means_what_it_means_to_peft(
    name: str, adapters: Callable[[str], Path], llama: Path, tmp_path: Path
) -> None:
    folder, base = adapters(name), surgery.open_checkpoint(llama)
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    plain = surgery.merge(base, surgery.open_adapter(tmp_path)).tensors
    for key in config.keys() & TYPES.keys() - {"peft_version"}:  # by which old files are told from new ones
        for value in WRONG:
            if value == config[key] and type(value) is type(config[key]):
                continue
            (tmp_path / "adapter_config.json").write_text(json.dumps({**config, key: value}))
            begun = time.monotonic()
            for ask in (surgery.inspect, surgery.verify):
                try:
                    ask(tmp_path)
                except SurgeryError as error:
                    assert str(tmp_path) in str(error), f"{key} = {value!r}: {error}"
            try:
                made = surgery.merge(base, surgery.open_adapter(tmp_path))
            except SurgeryError:
                made = None
            assert time.monotonic() - begun < 1, f"{key} = {value!r}"
            if made is None or made.tensors == plain:
                continue
            wanted = live(llama, tmp_path)
            assert wanted is not None, f"{key} = {value!r} is merged, and fails in PEFT"
            for tensor in plain:
                assert torch.allclose(made.load(tensor), wanted[tensor], atol=1e-5), f"{key} = {value!r}: {tensor}"


def test_the_table_has_all_options_of_all_kinds() -> None:
    """None that PEFT knows goes unread, and none is of a type that PEFT's own default is not."""
    for kind in SUPPORTED:
        if kind == "BONE":
            continue
        for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)]):
            assert field.name in TYPES, f"{kind}: {field.name}"
            if field.default not in (dataclasses.MISSING, None):
                default = getattr(field.default, "value", field.default)
                assert TYPES[field.name].holds(default), f"{kind}: {field.name} = {default!r}"


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"peft_type": "LORA", "r": "8"}, "r = '8', and not a whole number"),
        ({"peft_type": "LORA", "r": None}, "r = None, and not a whole number"),
        ({"modules_to_save": [1]}, "modules_to_save = [1], and not a list of names"),
        ({"layer_replication": True}, "layer_replication = True, and not a list of pairs of layers"),
        ({"lora_alpha": 10**5000}, "lora_alpha = a number of too many digits, and not a number"),
        ({"base_model_name_or_path": "a\0b"}, "base_model_name_or_path = 'a\\x00b', and not text"),
        ({"rank_pattern": {"(?i)x": 4}}, "rank_pattern has a regular expression that is none"),
        ({"layers_pattern": "("}, "layers_pattern has a regular expression that is none"),
    ],
)
def test_what_is_wrong_is_named(said: dict[str, Any], what: str) -> None:
    with pytest.raises(AdapterError) as caught:
        check_config(said, "there/adapter_config.json")
    assert what in str(caught.value) and "there/adapter_config.json" in str(caught.value)


def test_what_is_optional_may_be_null() -> None:
    check_config({"peft_type": "SUPERTUNING", "r": None, "lora_alpha": None}, "there")
    check_config({"peft_type": "DEFT", "alpha": None, "target_modules": None}, "there")
