"""Ties that only a header names, as `safetensors.torch.save_model` writes them: merged, moved and kept true.

Judges: the live model that PEFT adapts, and `safetensors.torch.load_model` into a module that ties what the header
ties, or that does not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from conftest import hashes
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file, save_model

import surgery
from surgery.checkpoint import Checkpoint
from surgery.errors import FormatError, NotSupported, PlanError

EMBED, HEAD, SECOND = "embed_tokens.weight", "lm_head.weight", "second.weight"


class Toy(torch.nn.Module):
    """An embedding, a layer, and two heads, each of which may be tied to the embedding; or tied to one another
    alone.
    """

    def __init__(self, *ties: str) -> None:
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(24, 8)
        self.layer = torch.nn.Linear(8, 8)
        self.lm_head = torch.nn.Linear(8, 24, bias=False)
        self.second = torch.nn.Linear(8, 24, bias=False)
        for tie in ties:
            one, _, other = tie.partition("=")
            getattr(self, one).weight = getattr(self, other).weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.layer(self.embed_tokens(ids)))
        return torch.cat([self.lm_head(hidden), self.second(hidden)], -1)


ONE, BOTH = ("lm_head=embed_tokens",), ("lm_head=embed_tokens", "second=embed_tokens")


def made(folder: Path, *ties: str) -> Path:
    torch.manual_seed(0)
    folder.mkdir()
    save_model(Toy(*ties), str(folder / "model.safetensors"), metadata={"format": "pt", "made": "here"})
    return folder


def loaded(path: Path, *ties: str) -> Toy:
    toy = Toy(*ties)
    load_model(toy, path / "model.safetensors")
    return toy


def output(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(24))


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def adapted(base: Path, folder: Path, ties: tuple[str, ...], **options: Any) -> torch.Tensor:
    """What the live model with a random adapter computes, which is saved to `folder`."""
    torch.manual_seed(1)
    model = get_peft_model(loaded(base, *ties), LoraConfig(r=4, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    return output(PeftModel.from_pretrained(loaded(base, *ties), str(folder)))


def merged(tmp_path: Path, **options: Any) -> Checkpoint:
    base, adapter = surgery.open_checkpoint(tmp_path / "base"), surgery.open_adapter(tmp_path / "adapter")
    return surgery.merge(base, adapter, **options)


# ties of the base, PEFT's options, and the ties of the module that loads the result
CASES: dict[str, tuple[tuple[str, ...], dict[str, Any], tuple[str, ...]]] = {
    "LoRA on the stored one": (ONE, {"target_modules": ["embed_tokens"]}, ()),
    "the stored one saved": (ONE, {"target_modules": ["layer"], "modules_to_save": ["embed_tokens"]}, ()),
    "LoRA on the other one": (ONE, {"target_modules": ["lm_head"]}, ()),
    "the other one saved": (ONE, {"target_modules": ["layer"], "modules_to_save": ["lm_head"]}, ()),
    "LoRA on both": (ONE, {"target_modules": ["embed_tokens", "lm_head"]}, ()),
    "both saved": (ONE, {"target_modules": ["layer"], "modules_to_save": ["embed_tokens", "lm_head"]}, ()),
    "DoRA on the other one": (ONE, {"target_modules": ["lm_head"], "use_dora": True}, ()),
    "trained tokens": (ONE, {"target_modules": ["layer"], "trainable_token_indices": {"embed_tokens": [3, 5]}}, ()),
    "neither": (ONE, {"target_modules": ["layer"]}, ONE),
    "two that stay tied": (BOTH, {"target_modules": ["embed_tokens"]}, ("second=lm_head",)),
    "one of three": (BOTH, {"target_modules": ["lm_head"]}, ("second=embed_tokens",)),
    "two heads alone": (("second=lm_head",), {"target_modules": ["second", "layer"]}, ()),
    "two heads, not the one": (("second=lm_head",), {"target_modules": ["embed_tokens"]}, ("second=lm_head",)),
}


@pytest.mark.parametrize("case", CASES)
def test_merged_it_computes_what_the_live_model_does(case: str, tmp_path: Path) -> None:
    before, options, after = CASES[case]
    base = made(tmp_path / "base", *before)
    plain, live = output(loaded(base, *before)), adapted(base, tmp_path / "adapter", before, **options)
    surgery.write(merged(tmp_path), tmp_path / "out")
    got = output(loaded(tmp_path / "out", *after))
    assert (live - plain).abs().max() > 0.01
    assert (live - got).abs().max() < 1e-5
    said = metadata(tmp_path / "out" / "model.safetensors")
    assert said.pop("format") == "pt"
    assert said.pop("made") == "here"
    twin = tmp_path / "twin.safetensors"
    save_model(loaded(tmp_path / "out", *after), str(twin))
    assert said == metadata(twin)
    assert load_file(twin).keys() == load_file(tmp_path / "out" / "model.safetensors").keys()
    assert surgery.verify(tmp_path / "out", base=base, adapter=tmp_path / "adapter").ok


def test_what_was_untied_is_said(tmp_path: Path) -> None:
    adapted(made(tmp_path / "base", *ONE), tmp_path / "adapter", ONE, target_modules=["embed_tokens"])
    note = (
        f"the adapter makes tied tensors differ: {EMBED}, {HEAD} are stored apart; "
        "the header says no more that they are one: load them into a module that does not tie them"
    )
    assert note in merged(tmp_path).notes
    with pytest.raises(NotSupported, match="changes one of two tied tensors") as caught:
        merged(tmp_path, tied="error")
    assert "model.safetensors: __metadata__ ties them" in caught.value.where
    surgery.write(merged(tmp_path), tmp_path / "out")
    with pytest.raises(RuntimeError, match="Unexpected key"):
        loaded(tmp_path / "out", *ONE)


@pytest.mark.parametrize("saved", [False, True])
def test_reversible(saved: bool, tmp_path: Path) -> None:
    base = made(tmp_path / "base", *BOTH)
    options = (
        {"modules_to_save": ["lm_head"], "target_modules": ["layer"]}
        if saved
        else {"target_modules": ["embed_tokens", "layer"]}
    )
    adapted(base, tmp_path / "adapter", BOTH, **options)
    surgery.write(surgery.reversible(merged(tmp_path), surgery.open_checkpoint(base)), tmp_path / "out")
    surgery.write(surgery.unmerge(surgery.open_checkpoint(tmp_path / "out")), tmp_path / "back")
    assert hashes(tmp_path / "back") == hashes(base)


def test_a_merge_in_memory_left_them_tied(tmp_path: Path) -> None:
    base = made(tmp_path / "base", *ONE)
    adapted(base, tmp_path / "adapter", ONE, target_modules=["embed_tokens"])
    in_memory = PeftModel.from_pretrained(loaded(base, *ONE), str(tmp_path / "adapter")).merge_and_unload()
    (tmp_path / "out").mkdir()
    save_model(in_memory, str(tmp_path / "out" / "model.safetensors"))
    proof = surgery.verify(tmp_path / "out", base=base, adapter=tmp_path / "adapter")
    assert not proof.ok
    assert f"tied to {EMBED} in the base" in str(proof.checks)


def write_shards(folder: Path) -> Path:
    """Two shards, each with a tie, and one with metadata that is no tie: its value is no tensor, or its key is
    stored.
    """
    folder.mkdir()
    torch.manual_seed(0)
    first, second = {"a.weight": torch.randn(4, 8)}, {"b.weight": torch.randn(4, 8), "c.weight": torch.randn(2, 8)}
    save_file(
        first, folder / "model-00001-of-00002.safetensors", metadata={"format": "pt", "a2.weight": "a.weight", "x": "y"}
    )
    more = {"format": "pt", "b2.weight": "b.weight", "b3.weight": "b.weight", "c.weight": "b.weight"}
    save_file(second, folder / "model-00002-of-00002.safetensors", metadata=more)
    weight_map = dict.fromkeys(first, "model-00001-of-00002.safetensors") | dict.fromkeys(
        second, "model-00002-of-00002.safetensors"
    )
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def test_resharded_a_tie_stands_where_its_tensor_is(tmp_path: Path) -> None:
    source = surgery.open_checkpoint(write_shards(tmp_path / "base"))
    surgery.write(source, tmp_path / "one", "1GB")
    everything = {"a2.weight": "a.weight", "b2.weight": "b.weight", "b3.weight": "b.weight"}
    others = {"format": "pt", "x": "y", "c.weight": "b.weight"}
    assert metadata(tmp_path / "one" / "model.safetensors") == everything | others
    surgery.write(surgery.open_checkpoint(tmp_path / "one"), tmp_path / "many", 150)
    found = {}
    for path in sorted((tmp_path / "many").glob("*.safetensors")):
        mine = {key: value for key, value in metadata(path).items() if key in everything}
        assert mine == {key: value for key, value in everything.items() if value in load_file(path)}
        found |= mine
    assert found == everything
    surgery.write(surgery.open_checkpoint(tmp_path / "many"), tmp_path / "again", "1GB")
    assert metadata(tmp_path / "again" / "model.safetensors") == everything | others


def two_ways(folder: Path) -> Path:
    folder.mkdir()
    save_file(
        {"a.weight": torch.randn(4, 8)}, folder / "model-00001-of-00002.safetensors", metadata={"z.weight": "a.weight"}
    )
    save_file(
        {"b.weight": torch.randn(4, 8)}, folder / "model-00002-of-00002.safetensors", metadata={"z.weight": "b.weight"}
    )
    return folder


def test_one_name_tied_to_two(tmp_path: Path) -> None:
    base = surgery.open_checkpoint(two_ways(tmp_path / "base"))
    with pytest.raises(FormatError, match="headers tie one name to two tensors"):
        surgery.rename(base, [("^", "m.")])
    with pytest.raises(PlanError, match="disagree on the metadata"):
        surgery.plan(base, "1GB")
    surgery.write(base, tmp_path / "apart")
    assert metadata(tmp_path / "apart" / "model-00002-of-00002.safetensors") == {"z.weight": "b.weight"}
    surgery.write(base, tmp_path / "one", "1GB", drop_metadata=["z.weight"])
    assert metadata(tmp_path / "one" / "model.safetensors") == {}


def test_renamed_it_loads_into_the_module_of_the_new_names(tmp_path: Path) -> None:
    made(tmp_path / "base", *BOTH)
    checkpoint = surgery.rename(surgery.open_checkpoint(tmp_path / "base"), [("^", "model."), (r"lm_head", "first")])
    surgery.write(checkpoint, tmp_path / "out")
    said = metadata(tmp_path / "out" / "model.safetensors")
    assert said == {
        "format": "pt",
        "made": "here",
        "model.first.weight": f"model.{EMBED}",
        "model.second.weight": f"model.{EMBED}",
    }
    outer = torch.nn.Module()
    outer.model = Toy(*BOTH)
    outer.model.first = outer.model.lm_head
    del outer.model.lm_head
    load_model(outer, tmp_path / "out" / "model.safetensors")
    outer.model.lm_head = outer.model.first
    assert torch.equal(output(outer.model), output(loaded(tmp_path / "base", *BOTH)))
    back = surgery.rename(surgery.open_checkpoint(tmp_path / "out"), [("first", "lm_head"), (r"^model\.", "")])
    surgery.write(back, tmp_path / "back")
    assert metadata(tmp_path / "back" / "model.safetensors") == metadata(tmp_path / "base" / "model.safetensors")


def test_names_that_collide_only_by_a_tie(tmp_path: Path) -> None:
    base = surgery.open_checkpoint(made(tmp_path / "base", *ONE))
    with pytest.raises(PlanError, match="two tensors would get one name"):
        surgery.rename(base, [("^second", "lm_head")])


def test_dropped(tmp_path: Path) -> None:
    base = surgery.open_checkpoint(made(tmp_path / "base", *BOTH))
    kept = load_file(tmp_path / "base" / "model.safetensors")
    without = surgery.drop(base, r"embed_tokens\.weight")
    assert any(HEAD in note and note.startswith("stored now") for note in without.notes)
    surgery.write(without, tmp_path / "holder")
    found = load_file(tmp_path / "holder" / "model.safetensors")
    assert torch.equal(found[HEAD], kept[EMBED])
    assert found.keys() == {HEAD, "layer.weight", "layer.bias"}
    assert metadata(tmp_path / "holder" / "model.safetensors")[SECOND] == HEAD
    without = surgery.drop(base, r"lm_head\.weight")
    assert f"gone from the header with the name: the tie of {HEAD} to {EMBED}" in without.notes
    surgery.write(without, tmp_path / "name")
    assert load_file(tmp_path / "name" / "model.safetensors").keys() == kept.keys()
    assert metadata(tmp_path / "name" / "model.safetensors") == {"format": "pt", "made": "here", SECOND: EMBED}
    surgery.write(surgery.drop(base, r".*weight"), tmp_path / "all")
    assert load_file(tmp_path / "all" / "model.safetensors").keys() == {"layer.bias"}
    assert metadata(tmp_path / "all" / "model.safetensors") == {"format": "pt", "made": "here"}


QKV = "model.layers.{}.self_attn.qkv_proj.weight"


def tied_layers(folder: Path) -> Path:
    """A Phi-3 of two layers that share their fused projection, as ALBERT's layers do."""
    folder.mkdir()
    torch.manual_seed(0)
    tensors = {QKV.format(0): torch.randn(32, 16), "model.layers.0.self_attn.o_proj.weight": torch.randn(16, 16)}
    save_file(tensors, folder / "model.safetensors", metadata={QKV.format(1): QKV.format(0)})
    config = {
        "model_type": "phi3",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_split_and_fused_again(tmp_path: Path) -> None:
    surgery.write(surgery.split_qkv(surgery.open_checkpoint(tied_layers(tmp_path / "base"))), tmp_path / "split")
    parts = [f"self_attn.{part}_proj.weight" for part in "qkv"]
    assert metadata(tmp_path / "split" / "model.safetensors") == {
        f"model.layers.1.{p}": f"model.layers.0.{p}" for p in parts
    }
    assert not any(name.startswith("model.layers.1") for name in load_file(tmp_path / "split" / "model.safetensors"))
    surgery.write(surgery.fuse_qkv(surgery.open_checkpoint(tmp_path / "split")), tmp_path / "fused")
    assert metadata(tmp_path / "fused" / "model.safetensors") == {QKV.format(1): QKV.format(0)}
    assert torch.equal(
        load_file(tmp_path / "fused" / "model.safetensors")[QKV.format(0)],
        load_file(tmp_path / "base" / "model.safetensors")[QKV.format(0)],
    )


def test_fused_where_one_part_alone_is_tied(tmp_path: Path) -> None:
    """What is tied in part is stored in full: no header can say that of a fused tensor."""
    surgery.write(surgery.split_qkv(surgery.open_checkpoint(tied_layers(tmp_path / "base"))), tmp_path / "split")
    path = tmp_path / "split" / "model.safetensors"
    tensors, said = load_file(path), metadata(path)
    name = "model.layers.1.self_attn.v_proj.weight"
    tensors[name] = tensors[said.pop(name)] + 1
    save_file(tensors, path, metadata=said)
    surgery.write(surgery.fuse_qkv(surgery.open_checkpoint(tmp_path / "split")), tmp_path / "fused")
    found = load_file(tmp_path / "fused" / "model.safetensors")
    assert torch.equal(found[QKV.format(1)][:24], found[QKV.format(0)][:24])
    assert torch.equal(found[QKV.format(1)][24:], tensors[name])
    assert metadata(tmp_path / "fused" / "model.safetensors") == {"format": "pt"}


def test_an_adapter_follows_a_module_that_only_the_header_names(tmp_path: Path) -> None:
    base = surgery.open_checkpoint(tied_layers(tmp_path / "base"))
    (tmp_path / "adapter").mkdir()
    key = f"base_model.model.{QKV.format(1)}".removesuffix("weight")
    save_file(
        {f"{key}lora_A.weight": torch.randn(2, 16), f"{key}lora_B.weight": torch.randn(32, 2)},
        tmp_path / "adapter/adapter_model.safetensors",
    )
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    adapter = surgery.open_adapter(tmp_path / "adapter")
    assert {module.rpartition(".")[2] for module in surgery.split_qkv(adapter, base=base).lora} == {
        "q_proj",
        "k_proj",
        "v_proj",
    }
    surgery.write(surgery.merge(surgery.split_qkv(base), adapter), tmp_path / "out")
    found, delta = (
        load_file(tmp_path / "out/model.safetensors"),
        load_file(tmp_path / "adapter/adapter_model.safetensors"),
    )
    now = torch.cat([found[f"model.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"])
    before = load_file(tmp_path / "base/model.safetensors")[QKV.format(0)]
    assert torch.allclose(now, before + 2 * delta[f"{key}lora_B.weight"] @ delta[f"{key}lora_A.weight"], atol=1e-6)
    assert torch.equal(torch.cat([found[f"model.layers.0.self_attn.{part}_proj.weight"] for part in "qkv"]), before)
    assert metadata(tmp_path / "out/model.safetensors") == {"format": "pt"}


@pytest.mark.parametrize(
    "said", [{"format": "layer.bias"}, {"step": "0"}, {"lm_head.weight": "gone.weight"}, {"layer.bias": EMBED}]
)
def test_other_metadata_is_left_alone(said: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    tensors = {
        EMBED: torch.randn(24, 8),
        "layer.weight": torch.randn(8, 8),
        "layer.bias": torch.randn(8),
        "0": torch.randn(3),
    }
    save_file(tensors, tmp_path / "base" / "model.safetensors", metadata=said)
    checkpoint = surgery.rename(surgery.open_checkpoint(tmp_path / "base"), [(r"^layer\.", "l.")])
    surgery.write(checkpoint, tmp_path / "out")
    assert metadata(tmp_path / "out" / "model.safetensors") == said


def test_inspected_and_injected(tmp_path: Path) -> None:
    made(tmp_path / "base", *BOTH)
    ties = surgery.inspect(tmp_path / "base").ties
    assert ties == tuple(
        f"{name} is {EMBED}, as the header of model.safetensors says" for name in sorted([HEAD, SECOND])
    )
    adapter = surgery.inject(surgery.open_checkpoint(tmp_path / "base"), ["lm_head"], rank=4)
    assert set(adapter.lora) == {"lm_head"}


def test_a_header_that_says_what_the_class_says(tmp_path: Path) -> None:
    """A tied Llama saved by `save_model`: both are stored, config.json says so, and the header no more that they are
    one.
    """
    torch.manual_seed(0)
    small = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**small, tie_word_embeddings=True))
    model.save_pretrained(tmp_path / "base")
    save_model(model, str(tmp_path / "base" / "model.safetensors"), metadata={"format": "pt"})
    stored = surgery.open_checkpoint(tmp_path / "base")
    name, holder = next((k, v) for k, v in metadata(tmp_path / "base/model.safetensors").items() if k != "format")
    assert {name, holder} == {HEAD, f"model.{EMBED}"}
    assert name not in stored.tensors

    def computed(path: Path, adapter: Path | None = None) -> torch.Tensor:
        found: Any = tf.LlamaForCausalLM.from_pretrained(path)
        with torch.no_grad():
            return (
                (PeftModel.from_pretrained(found, str(adapter)) if adapter else found)
                .eval()(torch.arange(20)[None])
                .logits
            )

    peft: Any = get_peft_model(
        tf.LlamaForCausalLM.from_pretrained(tmp_path / "base"), LoraConfig(r=4, target_modules=["embed_tokens"])
    )
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    peft.save_pretrained(tmp_path / "adapter")
    surgery.write(merged(tmp_path), tmp_path / "out")
    live = computed(tmp_path / "base", tmp_path / "adapter")
    assert (computed(tmp_path / "base") - live).abs().max() > 0.01
    assert (computed(tmp_path / "out") - live).abs().max() < 1e-5
    assert metadata(tmp_path / "out" / "model.safetensors") == {"format": "pt"}


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_the_state_of_a_live_model_folded_in(module: str, tmp_path: Path) -> None:
    """Saved whole, without being merged: its header ties the names that lie inside PEFT's layers."""
    torch.manual_seed(0)
    live = get_peft_model(Toy(*ONE), LoraConfig(r=4, target_modules=[module], init_lora_weights=False))
    (tmp_path / "live").mkdir()
    save_model(live, str(tmp_path / "live" / "model.safetensors"))
    live.peft_config["default"].save_pretrained(tmp_path / "live")
    surgery.write(surgery.merge(*surgery.own_adapter(surgery.open_checkpoint(tmp_path / "live"))), tmp_path / "out")
    assert (output(loaded(tmp_path / "out")) - output(live)).abs().max() < 1e-5
