"""Odd values in config.json: an error in words where they are asked for; else they stay as they were."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from handmade import write_adapter, write_phi3

import surgery
from surgery.errors import FormatError, PlanError, SurgeryError
from surgery.files.model_config import MOST_LAYERS, TYPES, Config, impossible
from surgery.models.skeleton import built

DTYPES = ("quantization_config", "dtype", "torch_dtype")  # what the surgeries that are tried may write
ODD = (True, [], {}, "x", -1, 1.5, [1], {"a": 1}, 10**400, 1e400, 2**70, [None], None, [[]], ["\0"], "\ud800")
KEYS = (
    "architectures model_type vocab_size num_hidden_layers hidden_size num_attention_heads num_key_value_heads head_dim"
    " partial_rotary_factor rope_parameters tie_word_embeddings dtype torch_dtype quantization_config text_config"
    " sliding_window max_position_embeddings rope_scaling vision_config auto_map layer_types _name_or_path"
    " is_encoder_decoder"
).split()

ACTS: tuple[Callable[[surgery.Checkpoint, surgery.Adapter], surgery.Checkpoint | surgery.Adapter], ...] = (
    lambda base, _: surgery.split_qkv(base),
    surgery.merge,
    lambda base, _: surgery.quantize(base, "nf4"),
    lambda base, _: surgery.inject(base, ["o_proj"], rank=2),
    lambda base, _: surgery.dequantize(base),
    lambda base, _: surgery.convert(base, "llama"),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = write_phi3(tmp_path_factory.mktemp("config") / "base", layers=2, hidden=32)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"architectures": ["Phi3ForCausalLM"], "vocab_size": 8}))
    return base


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    modules = {f"model.layers.{i}.self_attn.o_proj": (32, 32) for i in range(2)}
    return write_adapter(tmp_path_factory.mktemp("config") / "adapter", modules)


def told(base: Path, **odd: Any) -> Callable[[], surgery.Checkpoint]:
    """Opens the checkpoint with these options in its config.json."""
    config = json.loads((base / "config.json").read_text()) | odd
    return lambda: surgery.open_checkpoint(base).with_config(config)


@pytest.mark.parametrize("key", KEYS)
def test_an_odd_value_is_refused_in_words_or_stays(base: Path, adapter: Path, key: str) -> None:
    """By whatever asks: nothing but errors of ours, and what is made says what the file said."""
    for value in ODD:
        opened = told(base, **{key: value})
        for act in ACTS:
            try:
                made = act(opened(), surgery.open_adapter(adapter))
                surgery.plan(made)
            except SurgeryError as error:
                assert str(error)
                continue
            if isinstance(made, surgery.Checkpoint) and act in ACTS[:3] and key not in DTYPES:
                raw = made.files["config.json"]
                assert isinstance(raw, bytes)
                assert json.loads(raw).get(key) == json.loads(json.dumps(value))


@pytest.mark.parametrize("key", KEYS)
def test_inspect_takes_any(base: Path, tmp_path: Path, key: str) -> None:
    config = json.loads((base / "config.json").read_text())
    for name in base.iterdir():
        (tmp_path / name.name).write_bytes(name.read_bytes())
    for value in ODD:
        (tmp_path / "config.json").write_text(json.dumps(config | {key: value}).replace("Infinity", "1e400"))
        try:
            found = surgery.inspect(tmp_path)
        except SurgeryError as error:
            assert error.where and error.help
        else:
            assert len(found.shards) == 2


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("architectures", True, "the architectures is True, not a list of names"),
        ("architectures", [["a"]], "the architectures is [['a']], not a list of names"),
        ("architectures", ["a", None], "the architectures is ['a', None], not a list of names"),
        ("vocab_size", [], "the vocab_size is [], not a whole number"),
        ("vocab_size", True, "the vocab_size is True, not a whole number"),
        ("vocab_size", 10**400, "the vocab_size is a number of too many digits, not a whole number"),
        ("model_type", ["a"], "the model_type is ['a'], not a text"),
        ("model_type", {"b": "x" * 99}, f"the model_type is {{'b': '{'x' * 53}…, not a text"),
    ],
)
def test_it_says_what_and_where(key: str, value: Any, said: str) -> None:
    config, inner = Config({key: value, "n": 1}, "/m/config.json"), Config({"text_config": {key: value}}, "/m/c")
    for ask in (lambda: config[key], lambda: config.get(key)):
        with pytest.raises(FormatError) as caught:
            ask()
        assert (caught.value.what, caught.value.where) == (said, ("/m/config.json",))
    with pytest.raises(FormatError, match=r"the text_config\.") as caught:
        inner["text_config"].get(key)
    assert caught.value.where == ("/m/c",)
    assert config["n"] == 1 and config.get("none", 3) == 3 and key in config
    assert {**config} == dict(config) == {key: value, "n": 1}
    copy = pickle.loads(pickle.dumps(inner))
    assert copy == inner and isinstance(copy["text_config"], Config)
    with pytest.raises(FormatError):
        copy["text_config"][key]


def test_the_types_are_those_of_every_model() -> None:
    """Each config that transformers makes, by default, says what the table lets it say."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    made = 0
    for kind in ("llama", "gpt2", "bert", "t5", "clip", "llava", "mamba", "whisper", "falcon", "qwen2_vl", "gemma3"):
        said = CONFIG_MAPPING[kind]().to_dict()
        for section in (said, *(value for value in said.values() if isinstance(value, dict))):
            for key in TYPES.keys() & section.keys():
                made += Config(section, kind).get(key) is not None
    assert made > 20


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "num_experts", "encoder_layers"])
@pytest.mark.parametrize("many", [10**6, 10**30, 1e300])
def test_a_model_of_a_million_layers_is_not_built(base: Path, key: str, many: float) -> None:
    """Neither to be asked, nor for its layers: it would take as long as it says."""
    config = {**surgery.open_checkpoint(base).config, key: many}
    with pytest.raises(PlanError, match=f"no Phi3ForCausalLM is built of so much: {key} is "):
        built(config, "Phi3ForCausalLM")
    assert impossible({"text_config": config}, 10).startswith(f"text_config.{key} is ")
    assert not impossible({key: MOST_LAYERS}, 10) and not impossible({"num_layers": 5000}, 5000)


def test_verify_says_so_at_once(base: Path, tmp_path: Path) -> None:
    for name in base.iterdir():
        (tmp_path / name.name).write_bytes(name.read_bytes())
    config = json.loads((base / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**6}))
    found = {check.name: check for check in surgery.verify(tmp_path).checks}["class"]
    assert found.ok is False
    assert found.detail == "Phi3ForCausalLM is not asked: num_hidden_layers is 1000000, and there are 8 tensors"


@pytest.mark.parametrize("odd", [{"partial_rotary_factor": 1e400}, {"rope_parameters": [1]}, {"hidden_size": 2**70}])
def test_what_a_class_raises_is_its_answer(base: Path, tmp_path: Path, odd: dict[str, Any]) -> None:
    for name in base.iterdir():
        (tmp_path / name.name).write_bytes(name.read_bytes())
    config = json.loads((base / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | odd).replace("Infinity", "1e400"))
    assert {check.name: check.ok for check in surgery.verify(tmp_path).checks}["class"] is False


def test_a_number_beyond_all_floats_stays_one(base: Path) -> None:
    odd = {"a": 1e400, "b": [-1e400, 2], "c": {"d": 1e400}, "e": 'x": Infinity', "f\\": 1e400, "Infinity": "Infinity"}
    raw = surgery.open_checkpoint(base).with_config(odd).files["config.json"]
    assert isinstance(raw, bytes) and json.loads(raw, parse_constant=pytest.fail) == odd
