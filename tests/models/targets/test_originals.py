"""A maker's own layout <-> transformers', judged by what the original computes, in a reference of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from conftest import hashes
from handmade import write_adapter
from original_mistral import PARAMS, logits, saved, tensors
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import surgery
from surgery.errors import NothingMatched, NotSupported, PlanError, SurgeryError

TOKENS = torch.tensor([3, 17, 80, 5, 5, 42, 91, 0, 12])


def written(made: surgery.Checkpoint | surgery.Adapter, out: Path, **options: Any) -> Path:
    surgery.write(made, out, **options)
    return out


def computed(folder: Path) -> torch.Tensor:
    """What transformers computes with the folder, in float64."""
    model = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(TOKENS[None]).logits[0]


def near(a: torch.Tensor, b: torch.Tensor, error: float = 1e-5) -> bool:
    return bool((a - b).abs().max() <= error * b.abs().max())


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "a window": {"sliding_window": 4},
    "a window as a text": {"sliding_window": "4"},
    "tied": {"tied_embeddings": True},
    "as many k as q": {"n_kv_heads": 4},
    "idle fields": {"use_biases": False, "max_batch_size": 1, "vision_encoder": None},
}


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_computes_what_the_original_does(kind: str, tmp_path: Path) -> None:
    params = {**PARAMS, **KINDS[kind]}
    held = tensors(params)
    source = saved(tmp_path / "in", held, params)
    before = hashes(source)
    out = written(surgery.convert(surgery.open_checkpoint(source), "mistral"), tmp_path / "out")
    wanted = logits(held, TOKENS, {**params, "sliding_window": int(params.get("sliding_window", 0)) or None})
    assert near(computed(out), wanted)
    unturned = {name: tensor.roll(1, 0) if "wq" in name else tensor for name, tensor in held.items()}
    assert not near(logits(unturned, TOKENS, params | {"sliding_window": None}), wanted, 1e-3)
    files = {path.name for path in out.iterdir()}
    assert files >= {"model.safetensors", "config.json", "tekken.json"} and "params.json" not in files
    assert json.loads((out / "config.json").read_text())["max_position_embeddings"] == 128
    assert surgery.verify(out).ok and hashes(source) == before


@pytest.mark.parametrize("kind", ["plain", "a window", "tied"])
def test_there_and_back_are_the_same_bytes(kind: str, tmp_path: Path) -> None:
    params = {**PARAMS, **KINDS[kind]}
    source = saved(tmp_path / "in", tensors(params), params)
    there = written(surgery.convert(surgery.open_checkpoint(source), "mistral"), tmp_path / "there")
    back = written(surgery.convert(surgery.open_checkpoint(there), "mistral-original"), tmp_path / "back")
    one, other = (load_file(folder / "consolidated.safetensors") for folder in (source, back))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    said = json.loads((back / "params.json").read_text())
    assert {key: said.get(key) for key in params if key != "max_seq_len"} == {
        key: value for key, value in params.items() if key != "max_seq_len"
    }
    assert not (back / "config.json").exists()


def test_a_model_of_transformers_in_the_original_layout(tmp_path: Path) -> None:
    config = tf.MistralConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=96, head_dim=12, sliding_window=None, max_position_embeddings=256, rope_theta=500.0,
    )  # fmt: skip
    torch.manual_seed(1)
    tf.MistralForCausalLM(config).save_pretrained(tmp_path / "in", max_shard_size="20KB")
    made = surgery.convert(surgery.open_checkpoint(tmp_path / "in"), "mistral-original")
    out = written(made, tmp_path / "out")
    names = sorted(path.name for path in out.iterdir())
    assert "consolidated.safetensors.index.json" in names and "consolidated-00001-of-00006.safetensors" in names
    held = {k: v for file in out.glob("*.safetensors") for k, v in load_file(file).items()}
    assert near(computed(tmp_path / "in"), logits(held, TOKENS, json.loads((out / "params.json").read_text())))
    # sharded, it is opened again as it is
    back = written(surgery.convert(surgery.open_checkpoint(out), "mistral"), tmp_path / "back")
    assert near(computed(back), computed(tmp_path / "in"), 0.0)


def test_an_adapter_of_transformers_is_merged_into_the_original(tmp_path: Path) -> None:
    held = tensors()
    source = saved(tmp_path / "in", held)
    there = written(surgery.convert(surgery.open_checkpoint(source), "mistral"), tmp_path / "there")
    base = tf.AutoModelForCausalLM.from_pretrained(there, dtype=torch.float64, attn_implementation="eager")
    torch.manual_seed(2)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "down_proj"], init_lora_weights=False)
    live = get_peft_model(base, config)
    live.save_pretrained(adapter := tmp_path / "adapter")
    merged = surgery.merge(surgery.open_checkpoint(source), surgery.open_adapter(adapter), scale=0.5)
    out = written(merged, tmp_path / "out")
    assert hashes(out)["params.json"] == hashes(source)["params.json"]
    assert load_file(out / "consolidated.safetensors").keys() == held.keys()
    for module in live.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["default"] *= 0.5
    with torch.no_grad():
        wanted = live.eval()(TOKENS[None]).logits[0]
    found, plain = logits(load_file(out / "consolidated.safetensors"), TOKENS), logits(held, TOKENS)
    effect = (wanted - plain).abs().max()
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max() and effect > 1e-2 * wanted.abs().max()
    assert any("own layout" in note for note in merged.notes)
    assert surgery.verify(out, base=source, adapter=adapter, scale=0.5).ok
    # in the original's own names no table is needed
    own = write_adapter(tmp_path / "own", {"layers.0.attention.wq": (64, 48)})
    assert not any(
        "table" in note for note in surgery.merge(surgery.open_checkpoint(source), surgery.open_adapter(own)).notes
    )


def test_it_is_told_edited_and_resharded_as_it_is(tmp_path: Path) -> None:
    source = saved(tmp_path / "in", tensors())
    assert any("Mistral's own layout" in one and "--as mistral" in one for one in surgery.inspect(source).holds)
    by_file = surgery.convert(surgery.open_checkpoint(source / "consolidated.safetensors"), "mistral")
    assert "model.norm.weight" in by_file.tensors
    out = written(surgery.open_checkpoint(source), tmp_path / "out", max_shard_size="40KB")
    names = {path.name for path in out.iterdir()}
    assert {"params.json", "tekken.json", "consolidated.safetensors.index.json"} <= names
    again = surgery.rename(surgery.open_checkpoint(out), [(r"^output\.", "head.")])
    assert "head.weight" in again.tensors and surgery.verify(out).ok


@pytest.mark.parametrize("index", [False, True])
def test_beside_shards_of_transformers_it_is_left_out_by_name(index: bool, tmp_path: Path) -> None:
    source = saved(tmp_path / "in", tensors())
    if index:
        surgery.write(surgery.open_checkpoint(source), tmp_path / "sharded", "40KB")
        source = tmp_path / "sharded"
    save_file({"a": torch.ones(2)}, source / "model.safetensors", {"format": "pt"})
    made = surgery.open_checkpoint(source)
    assert list(made.tensors) == ["a"]
    assert any("old weights: consolidated" in note for note in made.notes)


STRANGE: dict[str, dict[str, Any]] = {
    "vision_encoder": {"vision_encoder": {"hidden_size": 1024}},
    "moe": {"moe": {"num_experts": 8, "num_experts_per_tok": 2}},
    "yarn": {"yarn": {"beta": 32}},
    "llama_4_scaling": {"llama_4_scaling": {"beta": 0.1}},
    "quantization": {"quantization": {"qformat_weight": "fp8_e4m3"}},
    "sliding_window": {"sliding_window": [None, 4]},
    "use_biases": {"use_biases": True},
}


@pytest.mark.parametrize("key", STRANGE)
def test_what_no_row_knows_is_refused_by_name(key: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "in", tensors(), {**PARAMS, **STRANGE[key]})
    with pytest.raises(NotSupported, match=f"no row is known for a model with {key}"):
        surgery.convert(surgery.open_checkpoint(source), "mistral")
    assert key in " ".join(surgery.inspect(source).holds)


def test_other_ways_are_refused(tmp_path: Path) -> None:
    source = saved(tmp_path / "in", {**tensors(), "vision_encoder.ln_pre.weight": torch.ones(3)})
    with pytest.raises(PlanError, match=r"no name in the other layout(?s:.*)vision_encoder.ln_pre"):
        surgery.convert(surgery.open_checkpoint(source), "mistral")
    with pytest.raises(NothingMatched, match="cannot become `llama`"):
        surgery.convert(surgery.open_checkpoint(source), "llama")
    (source / "params.json").write_text('{"dim": 48}')
    with pytest.raises(PlanError, match="does not say n_layers, n_heads, norm_eps"):
        surgery.convert(surgery.open_checkpoint(source), "mistral")
    (source / "params.json").write_text("[1")
    with pytest.raises(SurgeryError):
        surgery.convert(surgery.open_checkpoint(source), "mistral")


def test_metas_single_file(tmp_path: Path) -> None:
    """The same names; the width follows from the tensors, and `rope.freqs` is a constant."""
    params = {k: v for k, v in PARAMS.items() if k not in ("head_dim", "hidden_dim", "max_seq_len")}
    params |= {"n_heads": 3, "n_kv_heads": 3, "multiple_of": 16, "ffn_dim_multiplier": 1.3, "vocab_size": -1}
    held = tensors({**PARAMS, "n_heads": 3, "n_kv_heads": 3})
    (tmp_path / "in").mkdir()
    torch.save({**held, "rope.freqs": torch.ones(8)}, tmp_path / "in/consolidated.00.pth")
    (tmp_path / "in/params.json").write_text(json.dumps(params))
    out = written(surgery.convert(surgery.open_checkpoint(tmp_path / "in"), "llama"), tmp_path / "out")
    assert near(computed(out), logits(held, TOKENS, {**PARAMS, "n_heads": 3, "n_kv_heads": 3}))
    (tmp_path / "in/params.json").write_text(json.dumps(params | {"use_scaled_rope": True}))
    with pytest.raises(NotSupported, match="use_scaled_rope"):
        surgery.convert(surgery.open_checkpoint(tmp_path / "in"), "llama")


def test_metas_parts_are_joined_and_converted_in_one_pass(tmp_path: Path) -> None:
    params = {k: v for k, v in PARAMS.items() if k not in ("head_dim", "hidden_dim", "max_seq_len")}
    params |= {"n_heads": 4, "n_kv_heads": 2, "multiple_of": 16, "vocab_size": 96}
    held = tensors({**PARAMS, "head_dim": 12})
    (tmp_path / "in").mkdir()
    columns = ("wo.weight", "w2.weight", "tok_embeddings.weight")
    for rank in range(2):
        part = {
            name: tensor if tensor.dim() == 1 else tensor.chunk(2, int(name.endswith(columns)))[rank].clone()
            for name, tensor in held.items()
        }
        torch.save(part, tmp_path / f"in/consolidated.0{rank}.pth")
    (tmp_path / "in/params.json").write_text(json.dumps(params))
    out = written(surgery.convert(surgery.open_checkpoint(tmp_path / "in"), "llama"), tmp_path / "out")
    assert near(computed(out), logits(held, TOKENS, {**PARAMS, "head_dim": 12}))
