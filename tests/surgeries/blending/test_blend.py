"""Blends as a user makes them: where they are computed and how large, what is told of them, and what is refused before
anything is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import hashes
from safetensors.torch import load_file, save_file

import surgery

LAYERS = 4
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 11, "hidden_size": 8,
    "intermediate_size": 12, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 4, "torch_dtype": "float32",
}  # fmt: skip
EACH = {
    "self_attn.q_proj.weight": (8, 8), "self_attn.k_proj.weight": (4, 8), "self_attn.v_proj.weight": (4, 8),
    "self_attn.o_proj.weight": (8, 8), "mlp.gate_proj.weight": (12, 8), "mlp.up_proj.weight": (12, 8),
    "mlp.down_proj.weight": (8, 12), "input_layernorm.weight": (8,), "post_attention_layernorm.weight": (8,),
}  # fmt: skip
SHAPES = {
    "model.embed_tokens.weight": (11, 8),
    **{f"model.layers.{i}.{name}": shape for i in range(LAYERS) for name, shape in EACH.items()},
    "model.norm.weight": (8,),
    "lm_head.weight": (11, 8),
}
Tensors = dict[str, torch.Tensor]


def model(
    folder: Path,
    seed: int,
    config: dict[str, Any] | None = None,
    change: Callable[[Tensors], object] = len,
    tokens: Sequence[str] = (),
) -> Path:
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    change(tensors)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
    if tokens:
        vocabulary = {"model": {"vocab": {token: i for i, token in enumerate(tokens)}}, "added_tokens": []}
        (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [model(folder / f"m{seed}", seed) for seed in range(3)]


def opened(places: Sequence[Path]) -> list[surgery.Checkpoint]:
    return [surgery.open_checkpoint(place) for place in places]


def written(made: surgery.Checkpoint, out: Path, **options: Any) -> Tensors:
    surgery.write(made, out, **options)
    return {name: value for file in out.glob("*.safetensors") for name, value in load_file(file).items()}


@pytest.mark.parametrize(
    "said",
    [
        {"method": "linear"},
        {"method": "ties", "density": [0.4]},
        {"method": "dare_ties", "density": [0.4], "seed": 3},
        {"method": "della", "density": [0.4]},
        {"method": "arcee_fusion"},
        {"method": "sce", "parameters": {"select_topk": "0.5"}},
    ],
    ids=lambda said: said["method"],
)
def test_bytes_follow_from_neither_memory_nor_workers(places: list[Path], said: dict[str, Any], tmp_path: Path) -> None:
    base, *models = opened(places)
    many = models[:1] if said["method"] == "arcee_fusion" else models
    made = surgery.blend(many, base=None if said["method"] == "linear" else base, **said)
    surgery.write(made, tmp_path / "a", workers=1, memory="20MB")
    surgery.write(made, tmp_path / "b", workers=4)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


def test_parameters_are_of_models_layers_and_names(places: list[Path], tmp_path: Path) -> None:
    """What comes first counts; a gradient goes from the first layer to the last, and begins before them."""
    said = {"weight@2:norm": "0.25", "weight@2:self_attn": "0,1", "weight@2": "0.5,0.5,0.8", "normalize": False}
    found = written(surgery.blend(opened(places[:2]), parameters=said), tmp_path / "out")  # type: ignore[arg-type]
    one, two = (load_file(place / "model.safetensors") for place in places[:2])
    for name, value in found.items():
        way = int(name.split(".")[2]) / (LAYERS - 1) if "layers" in name else 0.0
        weight = 0.25 if "norm" in name else way if "self_attn" in name else 0.5 + max(0.0, way * 2 - 1) * 0.3
        torch.testing.assert_close(value, one[name] + weight * two[name])


def test_slices_are_layers_one_after_another(places: list[Path], tmp_path: Path) -> None:
    made = surgery.blend(opened(places[:2]), method="passthrough", slices=["1:0-1", "2:1-3", "1:3"])
    found = written(made, tmp_path / "out")
    one, two = (load_file(place / "model.safetensors") for place in places[:2])
    origins = [(one, 0), (one, 1), (two, 1), (two, 2), (two, 3), (one, 3)]
    for new, (source, old) in enumerate(origins):
        for name in EACH:
            assert torch.equal(found[f"model.layers.{new}.{name}"], source[f"model.layers.{old}.{name}"])
    assert all(torch.equal(found[name], one[name]) for name in found if "layers" not in name)
    assert len(found) == 3 + len(origins) * len(EACH)
    assert json.loads((tmp_path / "out/config.json").read_text())["num_hidden_layers"] == 6


def test_slices_may_be_blended_and_say_their_own_parameters(places: list[Path], tmp_path: Path) -> None:
    said = {"weight@2#2": "3", "weight": "1"}
    made = surgery.blend(opened(places[:2]), slices=["1:0-1+2:2-3", "1:2-3+2:0-1"], parameters=said)
    found = written(made, tmp_path / "out")
    one, two = (load_file(place / "model.safetensors") for place in places[:2])
    name = "mlp.up_proj.weight"
    for new, (a, b, weight) in enumerate([(0, 2, 1), (1, 3, 1), (2, 0, 3), (3, 1, 3)]):
        wanted = (one[f"model.layers.{a}.{name}"] + weight * two[f"model.layers.{b}.{name}"]) / (1 + weight)
        torch.testing.assert_close(found[f"model.layers.{new}.{name}"], wanted)
    wanted = (one["lm_head.weight"] + 3 * two["lm_head.weight"]) / 4  # what is after the layers is of the last slice
    torch.testing.assert_close(found["lm_head.weight"], wanted)
    first = (one["model.embed_tokens.weight"] + two["model.embed_tokens.weight"]) / 2
    torch.testing.assert_close(found["model.embed_tokens.weight"], first)


def test_it_is_blended_and_more_in_one_pass(places: list[Path], tmp_path: Path) -> None:
    """Renamed, cast and split above it, the same as one after another."""
    made = surgery.blend(opened(places), dtype="bfloat16")
    once = made.pipe(surgery.rename, [("^model", "m")]).pipe(surgery.cast, "float32")
    surgery.write(made, tmp_path / "first")
    twice = surgery.open_checkpoint(tmp_path / "first").pipe(surgery.rename, [("^model", "m")])
    found = written(once, tmp_path / "once")
    assert all(
        torch.equal(found[n], v) for n, v in written(twice.pipe(surgery.cast, "float32"), tmp_path / "b").items()
    )
    assert json.loads((tmp_path / "first/config.json").read_text())["torch_dtype"] == "bfloat16"


def test_its_recipe_makes_it_again(places: list[Path], tmp_path: Path) -> None:
    from surgery.recipes.run import made_by, read_recipe

    base, *models = opened(places)
    made = surgery.blend(
        models,
        base=base,
        method="ties",
        weights=(1, 0.5),
        density=[0.5],
        parameters={"normalize": False},  # type: ignore[dict-item]
    )
    surgery.write(made, places[0].parent / "out")
    again = made_by(read_recipe(places[0].parent / "out"))
    surgery.write(again, tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(places[0].parent / "out")


def test_the_base_may_be_among_the_models(places: list[Path], tmp_path: Path) -> None:
    base, *models = opened(places)
    one = surgery.blend([*models, base], base=base, method="ties", parameters={"density@1": "0.5", "weight@3": "7"})
    other = surgery.blend(models, base=surgery.open_checkpoint(places[0]), method="ties", density=[0.5, 1])
    a, b = written(one, tmp_path / "a"), written(other, tmp_path / "b")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_models_of_other_formats_and_dtypes(places: list[Path], tmp_path: Path) -> None:
    """Torch's files beside safetensors; float16 and bfloat16 together become float32, as torch promotes them."""
    tensors = [load_file(place / "model.safetensors") for place in places[:2]]
    (tmp_path / "bin").mkdir()
    torch.save({n: v.half() for n, v in tensors[0].items()}, tmp_path / "bin/pytorch_model.bin")
    (tmp_path / "bin/config.json").write_text(json.dumps(CONFIG))
    model(tmp_path / "bf", 1, change=lambda t: t.update({n: v.bfloat16() for n, v in t.items()}))
    found = written(surgery.blend(opened([tmp_path / "bin", tmp_path / "bf"])), tmp_path / "out")
    for name, value in found.items():
        assert value.dtype == torch.float32
        wanted = (tensors[0][name].half().float() + tensors[1][name].bfloat16().float()) / 2
        torch.testing.assert_close(value, wanted)


def test_infinity_that_comes_of_it_is_refused(places: list[Path], tmp_path: Path) -> None:
    made = surgery.blend(opened(places[:2]), weights=[1e38, 1e38], parameters={"normalize": "false"})
    with pytest.raises(surgery.VerificationFailed, match="became infinite"):
        surgery.write(made, tmp_path / "out")
    assert not (tmp_path / "out").exists()


Refused = tuple[dict[str, Any], type[surgery.SurgeryError], str]
SAID: list[Refused] = [
    ({"method": "linaer"}, surgery.SurgeryError, "did you mean linear"),
    ({"method": "ties"}, surgery.SurgeryError, "needs the base"),
    ({"method": "slerp", "base": 0, "t": 0.5}, surgery.SurgeryError, "is of 1 models besides the base, not of 2"),
    ({"method": "karcher", "base": 0}, surgery.SurgeryError, "has no base"),
    ({"method": "nearswap", "base": 1, "only": [2]}, surgery.SurgeryError, "must be told `t`"),
    ({"method": "passthrough"}, surgery.SurgeryError, "passthrough is of 1 models, and 2 are given"),
    ({"weights": [1, 2, 3]}, surgery.SurgeryError, "3 numbers are given as weight, and 2 models"),
    ({"weights": [1, -1]}, surgery.SurgeryError, "the weights sum to 0"),
    ({"density": [0.5]}, surgery.SurgeryError, "no density"),
    ({"t": 0.5}, surgery.SurgeryError, "has no t"),
    ({"parameters": {"wieght": "1"}}, surgery.SurgeryError, "no parameter of linear"),
    ({"parameters": {"weight@3": "1"}}, surgery.SurgeryError, "there is no model 3"),
    ({"parameters": {"weight#2": "1"}}, surgery.SurgeryError, "there is no slice 2"),
    ({"parameters": {"weight": "much"}}, surgery.SurgeryError, "is no number"),
    ({"parameters": {"weight": "nan"}}, surgery.SurgeryError, "is no number"),
    ({"parameters": {"normalize@1": "1"}}, surgery.SurgeryError, "of all models"),
    ({"parameters": {"weight:nowhere": "1"}}, surgery.NothingMatched, "occurs in no name"),
    ({"parameters": {"weight:(": "1"}}, surgery.SurgeryError, "not a regular expression"),
    ({"method": "ties", "base": 0, "density": [1.5]}, surgery.SurgeryError, "between 0 and 1"),
    ({"method": "della", "base": 0, "density": [0.1]}, surgery.SurgeryError, "density - epsilon"),
    ({"compute": "int8"}, surgery.SurgeryError, "no dtype to compute in"),
    ({"dtype": "int8"}, surgery.SurgeryError, "no dtype"),
    ({"slices": ["1:0-9"], "method": "passthrough"}, surgery.PlanError, "there is no layer 4"),
    ({"slices": ["3:0-1"], "method": "passthrough"}, surgery.SurgeryError, "there is no model 3"),
    ({"slices": ["1:3-1"]}, surgery.SurgeryError, "same number of layers"),
    ({"slices": ["1:0-1+2:0"]}, surgery.SurgeryError, "same number of layers"),
    ({"slices": ["all"]}, surgery.SurgeryError, "is no slice"),
    ({"only": []}, surgery.SurgeryError, "no model to blend"),
    ({"only": [1, 1]}, surgery.SurgeryError, "given twice"),
]


@pytest.mark.parametrize(("said", "error", "text"), SAID, ids=[text for *_, text in SAID])
def test_what_cannot_be_said_is_refused(
    places: list[Path], said: dict[str, Any], error: type[surgery.SurgeryError], text: str
) -> None:
    given = dict(said)
    models = opened([places[i] for i in given.pop("only", [1, 2])])
    base = surgery.open_checkpoint(places[given.pop("base")]) if "base" in given else None
    with pytest.raises(error, match=text):
        surgery.blend(models, base=base, **given)


STRANGERS: dict[str, tuple[dict[str, Any], type[surgery.SurgeryError], str]] = {
    "another class": ({"config": {"model_type": "mistral"}}, surgery.PlanError, "not of one architecture"),
    "heads": ({"config": {"num_attention_heads": 4}}, surgery.PlanError, "num_attention_heads: 2 and 4"),
    "a tensor more": ({"change": lambda t: t.update(more=torch.ones(2))}, surgery.PlanError, "more: in "),
    "tied": ({"change": lambda t: t.pop("lm_head.weight")}, surgery.PlanError, "surgery untie"),
    "a layer less": (
        {"change": lambda t: [t.pop(n) for n in list(t) if ".layers.3." in n]},
        surgery.PlanError, "9 tensors are in one",
    ),
    "vocabulary": (
        {"change": lambda t: t.update({"model.embed_tokens.weight": torch.ones(13, 8)})}, surgery.PlanError,
        "vocabularies are of two sizes",
    ),
    "width": (
        {"change": lambda t: t.update({"model.norm.weight": torch.ones(9)})}, surgery.PlanError, "has two shapes"
    ),
    "codes": ({"config": {"quantization_config": {"quant_method": "fp8"}}}, surgery.SurgeryError, "quant|codes"),
    "tokens": ({"tokens": "abdc"}, surgery.PlanError, "tokenizers differ in 2 tokens"),
    "float8": (
        {"change": lambda t: t.update({"model.norm.weight": torch.ones(8).to(torch.float8_e4m3fn)})},
        surgery.NotSupported, "surgery cast",
    ),
    "integers": (
        {"change": lambda t: t.update({"model.norm.weight": torch.ones(8, dtype=torch.int32)})},
        surgery.NotSupported, "in which nothing is computed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", STRANGERS)
def test_models_that_do_not_belong_together_are_refused(kind: str, tmp_path: Path) -> None:
    how, error, text = STRANGERS[kind]
    one = model(tmp_path / "one", 0, tokens="abcd")
    other = model(tmp_path / "other", 1, **{"tokens": "abcd", **how})
    with pytest.raises(error, match=text):
        surgery.blend(opened([one, other]))


def test_other_tokens_are_blended_where_that_is_meant(tmp_path: Path) -> None:
    two = [model(tmp_path / "one", 0, tokens="abcd"), model(tmp_path / "other", 1, tokens="abdc")]
    made = surgery.blend(opened(two), other_vocabulary=True)
    surgery.write(made, tmp_path / "out")
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (two[0] / "tokenizer.json").read_bytes()


def test_integers_that_are_the_same_are_kept(tmp_path: Path) -> None:
    two = [model(tmp_path / n, i, change=lambda t: t.update(ids=torch.arange(5))) for i, n in enumerate("ab")]
    assert written(surgery.blend(opened(two)), tmp_path / "out")["ids"].tolist() == [0, 1, 2, 3, 4]


def test_integers_that_differ_are_refused(tmp_path: Path) -> None:
    two = [model(tmp_path / n, i, change=lambda t, i=i: t.update(ids=torch.arange(5) + i)) for i, n in enumerate("ab")]
    with pytest.raises(surgery.PlanError, match="holds I64, which cannot be blended, and differs"):
        surgery.blend(opened(two))


def test_other_settings_are_told(tmp_path: Path) -> None:
    two = [model(tmp_path / "one", 0), model(tmp_path / "other", 1, config={"rope_theta": 5e5})]
    assert any("rope_theta" in note for note in surgery.blend(opened(two)).notes)


def test_models_whose_directions_cancel_have_no_mean(tmp_path: Path) -> None:
    places = [tmp_path / n for n in "abc"]
    for place, values in zip(places, ([1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]), strict=True):
        place.mkdir()
        save_file({"w": torch.tensor(values, dtype=torch.float64)}, place / "model.safetensors")
    made = surgery.blend(opened(places), method="multislerp", parameters={"eps": "1e-6"})
    with pytest.raises(surgery.SurgeryError, match="no mean between them"):
        surgery.write(made, tmp_path / "out")
