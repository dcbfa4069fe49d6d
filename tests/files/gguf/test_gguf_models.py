"""Models in GGUF under their names on the Hub: transformers, which loads the file itself, is the judge."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf_files import SCALES, coded, write
from gguf_models import KEYS, MODELS, RMS, SIZE, arrays_of, as_gguf, one_more, tiny
from safetensors.torch import load_file, save_file

import surgery
from surgery.errors import FormatError, NotACheckpoint, NotSupported

SURE: dict[str, dict[str, Any]] = {"gemma2": {"tie_word_embeddings": True}, "gemma3": {"tie_word_embeddings": True}}
PAD = {"tokenizer.ggml.padding_token_id": 0}


def as_transformers_loads(path: Path, arch: str) -> torch.nn.Module:
    """The file as transformers loads it, in float32."""
    loader = getattr(transformers, MODELS[arch].loader)
    return loader.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


def as_written(path: Path, arch: str) -> torch.nn.Module:
    """What was written, as its class loads it, in float32: every tensor, and no other."""
    loader = getattr(transformers, MODELS[arch].loader)
    model, info = loader.from_pretrained(path, output_loading_info=True, dtype=torch.float32)
    assert not any(info.values()), info
    return model.eval()


@pytest.mark.parametrize("arch", MODELS)
def test_a_model_is_what_transformers_loads_and_what_it_was(tmp_path: Path, arch: str) -> None:
    """Tensor by tensor, and in what it computes."""
    model = tiny(arch, **SURE.get(arch, {}))
    path = as_gguf(model, arch, tmp_path / "in" / "m.gguf", said=PAD)
    surgery.write(surgery.open_checkpoint(path), tmp_path / "out")
    ours, theirs = as_written(tmp_path / "out", arch), as_transformers_loads(path, arch)
    wanted, original = theirs.state_dict(), model.state_dict()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
        assert torch.allclose(tensor, original[name], atol=1e-6), name
    ids = torch.arange(20)[None]
    with torch.no_grad():
        made = ours(ids).logits
        assert torch.equal(made, theirs(ids).logits)
        if arch not in ("gemma2", "gemma3"):  # of which GGUF does not say by what queries are scaled
            assert torch.allclose(made, model(ids).logits, atol=1e-4)


@pytest.mark.parametrize("kind", SCALES)
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_blocks_are_decoded_as_the_reference_does(tmp_path: Path, arch: str, kind: str) -> None:
    """Bit for bit in float32, and rounded once to others; rows of q and k are moved, matrices of GPT-2 transposed."""
    wide = {"n_embd": 256, "n_inner": 512} if arch == "gpt2" else {"hidden_size": 256, "intermediate_size": 512}
    model = tiny(arch, **wide)
    path = as_gguf(model, arch, tmp_path / "m.gguf", kind, embedding_length=256, feed_forward_length=512)
    judge = {one.name: gguf.dequantize(one.data, one.tensor_type) for one in gguf.GGUFReader(path).tensors}
    plain = write(tmp_path / "plain.gguf", arch, said_of(path), judge)
    wanted = surgery.open_checkpoint(plain)
    checkpoint = surgery.open_checkpoint(path)
    exact = surgery.dequantize(checkpoint, dtype="float32")
    assert exact.config["dtype"] == "float32"
    for name in wanted.tensors:
        value = wanted.load(name)
        assert torch.equal(exact.load(name).view(torch.int32), value.view(torch.int32)), name
        rounded = checkpoint.load(name)
        assert torch.equal(rounded, value.to(rounded.dtype))
    surgery.write(exact, tmp_path / "out")
    assert surgery.diff(tmp_path / "out", plain).equal


def said_of(path: Path) -> dict[str, Any]:
    """The metadata of a file, as they are written."""
    fields = gguf.GGUFReader(path).fields
    return {n: f.contents() for n, f in fields.items() if not n.startswith(("GGUF.", "general.architecture"))}


def opened(path: Path) -> surgery.Checkpoint:
    return surgery.open_checkpoint(path)


def test_a_split_model_is_one(tmp_path: Path) -> None:
    """Each part, and the folder, mean the whole, in as many shards."""
    model = tiny("llama")
    whole = as_gguf(model, "llama", tmp_path / "whole" / "m.gguf", "Q8_0")
    parts = as_gguf(model, "llama", tmp_path / "parts" / "m.gguf", "Q8_0", split_max_tensors=8).parent
    names = sorted(one.name for one in parts.iterdir())
    assert names == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert surgery.diff(parts, whole).equal and surgery.diff(parts / names[1], whole).equal
    surgery.write(opened(parts), tmp_path / "out")
    assert len([one for one in (tmp_path / "out").iterdir() if one.suffix == ".safetensors"]) == 3
    assert surgery.diff(tmp_path / "out", whole).equal


@pytest.mark.parametrize("how", ["missing", "exchanged", "doubled", "alone"])
def test_parts_that_are_not_one_model_are_refused(tmp_path: Path, how: str) -> None:
    parts = as_gguf(tiny("llama"), "llama", tmp_path / "p" / "m.gguf", split_max_tensors=8).parent
    first, second, third = (parts / f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3))
    if how == "missing":
        second.unlink()
    elif how == "exchanged":
        content = second.read_bytes()
        second.write_bytes(third.read_bytes())
        third.write_bytes(content)
    elif how == "doubled":
        third.write_bytes(second.read_bytes())
    else:
        first.rename(parts / "model.gguf")
        second.unlink()
        third.unlink()
    with pytest.raises((NotACheckpoint, FormatError), match=r"parts|not there"):
        opened(parts / "model.gguf" if how == "alone" else parts)


def test_which_model_is_meant_is_asked(tmp_path: Path) -> None:
    for name in ("a", "b"):
        as_gguf(tiny("llama"), "llama", tmp_path / f"{name}.gguf")
    with pytest.raises(NotACheckpoint, match=r"more than one model in GGUF: a\.gguf, b\.gguf"):
        opened(tmp_path)
    assert opened(tmp_path / "b.gguf").tensors


def factors(theta: float, width: int, factor: float, length: int) -> np.ndarray:
    """As `convert_hf_to_gguf.py` writes rope_freqs of Llama 3."""
    found = []
    for freq in 1.0 / theta ** (np.arange(0, width, 2, dtype="f4") / width):
        wave = 2 * np.pi / freq
        smooth = (length / wave - 1) / 3
        found.append(1 if wave < length / 4 else factor if wave > length else 1 / ((1 - smooth) / factor + smooth))
    return np.array(found, "f4")


@pytest.mark.parametrize(("factor", "length"), [(8.0, 8192), (32.0, 8192)])
def test_a_table_of_rotation_becomes_what_config_says(tmp_path: Path, factor: float, length: int) -> None:
    """Which transformers leaves out without a word; the model computes what it did."""
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": factor, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": length}
    model = tiny("llama", rope_parameters=rope, hidden_size=256, head_dim=64)
    table = {"rope_freqs.weight": factors(500000.0, 64, factor, length)}
    how = {"embedding_length": 256, "rope.dimension_count": 64, "rope.freq_base": 500000.0}
    path = as_gguf(model, "llama", tmp_path / "m.gguf", more=table, **how)
    surgery.write(opened(path), tmp_path / "out")
    loaded, ids = as_written(tmp_path / "out", "llama"), torch.arange(64)[None]
    assert {key: loaded.config.rope_parameters[key] for key in rope} == rope
    assert torch.allclose(loaded.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, model(ids).logits, atol=1e-5)


def test_a_table_that_config_cannot_say_stays_and_is_told(tmp_path: Path) -> None:
    table = {"rope_freqs.weight": np.linspace(1, 3, 8, dtype="f4")}
    checkpoint = opened(as_gguf(tiny("llama"), "llama", tmp_path / "m.gguf", more=table))
    assert "rope_freqs.weight" in checkpoint.tensors
    assert any("a loader will rotate positions otherwise: rope_freqs.weight" in note for note in checkpoint.notes)


def test_long_factors_of_phi_become_what_config_says(tmp_path: Path) -> None:
    long, short = [2.0 + n / 8 for n in range(8)], [1.0 + n / 16 for n in range(8)]
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "long_factor": long, "short_factor": short}
    model = tiny("phi3", rope_parameters=rope, max_position_embeddings=256, original_max_position_embeddings=64)
    tables = {f"rope_factors_{k}.weight": np.array(v, "f4") for k, v in (("long", long), ("short", short))}
    how = {"context_length": 256, "rope.scaling.original_context_length": 64}
    path = as_gguf(model, "phi3", tmp_path / "m.gguf", more=tables, said=PAD, **how)
    surgery.write(opened(path), tmp_path / "out")
    loaded = as_written(tmp_path / "out", "phi3")
    for many in (20, 100):
        ids = torch.arange(many)[None] % 96
        with torch.no_grad():
            assert torch.allclose(loaded(ids).logits, model(ids).logits, atol=1e-5)


def test_a_llama_with_experts_is_a_mixtral(tmp_path: Path) -> None:
    config = transformers.MixtralConfig(**SIZE, num_local_experts=3, num_experts_per_tok=2, sliding_window=None)
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(config).eval()
    state, arrays = model.state_dict(), arrays_of(model, "llama")
    for layer in (0, 1):
        at = f"model.layers.{layer}.mlp"
        gate, up = np.split(state[f"{at}.experts.gate_up_proj"].numpy(), 2, 1)
        arrays |= {f"blk.{layer}.ffn_gate_exps.weight": gate, f"blk.{layer}.ffn_up_exps.weight": up}
        arrays[f"blk.{layer}.ffn_down_exps.weight"] = state[f"{at}.experts.down_proj"].numpy()
        arrays[f"blk.{layer}.ffn_gate_inp.weight"] = state[f"{at}.gate.weight"].numpy()
    arrays = {name: one for name, one in arrays.items() if "ffn_gate_up" not in name}
    keys = {f"llama.{k}": v for k, v in {**KEYS, **RMS, "expert_count": 3, "expert_used_count": 2}.items()}
    path = write(tmp_path / "m.gguf", "llama", keys, {n: np.ascontiguousarray(one) for n, one in arrays.items()})
    surgery.write(opened(path), tmp_path / "out")
    loaded = transformers.MixtralForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, model(ids).logits, atol=1e-5)


def test_the_first_gemma_counts_norms_from_one(tmp_path: Path) -> None:
    """Of which transformers has no row."""
    config = transformers.GemmaConfig(**SIZE, head_dim=16)
    torch.manual_seed(0)
    model = transformers.GemmaForCausalLM(config).eval()
    for one in model.parameters():
        torch.nn.init.normal_(one, std=0.05)
    arrays = one_more(arrays_of(model, "gemma"))
    keys = {f"gemma.{k}": v for k, v in {**KEYS, **RMS, "attention.key_length": 16}.items()}
    surgery.write(opened(write(tmp_path / "m.gguf", "gemma", keys, arrays)), tmp_path / "out")
    loaded = transformers.GemmaForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, model(ids).logits, atol=1e-5)


def write_adapter(folder: Path, shapes: dict[str, tuple[int, int]]) -> Path:
    folder.mkdir()
    torch.manual_seed(1)
    tensors = {}
    for module, (rows, columns) in shapes.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(2, columns)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(rows, 2)
    save_file(tensors, folder / "adapter_model.safetensors")
    modules = sorted({module.rpartition(".")[2] for module in shapes})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": modules}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0"])
def test_an_adapter_is_merged_into_what_blocks_mean(tmp_path: Path, kind: str) -> None:
    """Added to the exact numbers, and rounded once; the rest is as it is without an adapter."""
    path = as_gguf(tiny("llama"), "llama", tmp_path / "m.gguf", kind)
    shapes = {"model.layers.0.self_attn.q_proj": (64, 64), "model.layers.1.mlp.down_proj": (64, 128)}
    adapter = surgery.open_adapter(write_adapter(tmp_path / "adapter", shapes))
    base = opened(path)
    exact = surgery.dequantize(base, dtype="float32") if kind != "F16" else base
    made = [surgery.merge(base, adapter)]
    made += [surgery.merge(base, adapter, dequantize=True)] if kind != "F16" else []
    low = load_file(tmp_path / "adapter/adapter_model.safetensors")
    for merged in made:
        surgery.write(merged, tmp_path / "out", overwrite=True)
        found = load_file(tmp_path / "out/model.safetensors")
        for name in base.tensors:
            module = name.removesuffix(".weight")
            if module in shapes:
                a, b = (low[f"base_model.model.{module}.lora_{x}.weight"] for x in "AB")
                wanted = (exact.load(name).float() + 2 * (b @ a)).half()
                assert torch.allclose(found[name], wanted, rtol=1e-3), name
            else:
                assert torch.equal(found[name], base.load(name)), name
    with pytest.raises((NotSupported, surgery.SurgeryError), match=r"GGUF is not written|nothing is quantised"):
        surgery.merge(base, adapter, requantize=True)


def test_an_unknown_architecture_keeps_its_names(tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((4, 32)).astype("f4")
    path = write(tmp_path / "m.gguf", "mammoth", {}, {"blk.0.attn_q.weight": coded(array, "Q8_0"), "b": array})
    checkpoint = opened(path)
    assert set(checkpoint.tensors) == {"blk.0.attn_q.weight", "b"} and not checkpoint.config
    assert any("tensors keep the names of GGUF" in note and "`mammoth`" in note for note in checkpoint.notes)
    surgery.write(checkpoint, tmp_path / "out")
    assert torch.equal(load_file(tmp_path / "out/model.safetensors")["b"], torch.from_numpy(array))
    adapter = write_adapter(tmp_path / "adapter", {"model.layers.0.self_attn.q_proj": (4, 32)})
    with pytest.raises(surgery.SurgeryError, match="the base has the names of GGUF"):
        surgery.merge(checkpoint, surgery.open_adapter(adapter))


def test_config_beside_counts_where_it_is_of_the_model(tmp_path: Path) -> None:
    path = as_gguf(tiny("llama"), "llama", tmp_path / "m.gguf")
    made = opened(path).config
    (tmp_path / "config.json").write_text(json.dumps({**made, "hidden_act": "gelu"}))
    assert opened(path).config["hidden_act"] == "gelu"
    for other in ({"model_type": "llama"}, {**made, "hidden_size": 32}, {**made, "num_hidden_layers": 3}):
        (tmp_path / "config.json").write_text(json.dumps(other))
        checkpoint = opened(path)
        assert checkpoint.config == made
        assert any("config.json beside the GGUF" in note for note in checkpoint.notes)


def test_what_is_asked_to_be_gguf_is_refused(tmp_path: Path) -> None:
    path = as_gguf(tiny("llama"), "llama", tmp_path / "m.gguf")
    with pytest.raises(surgery.DestinationError, match="GGUF is not written") as caught:
        surgery.write(opened(path), tmp_path / "out.gguf")
    assert "convert_hf_to_gguf.py" in str(caught.value)
    assert not (tmp_path / "out.gguf").exists()


def test_the_chat_template_comes_along(tmp_path: Path) -> None:
    path = as_gguf(tiny("llama"), "llama", tmp_path / "m.gguf", said={"tokenizer.chat_template": "{{ 'hé' }}"})
    surgery.write(opened(path), tmp_path / "out")
    assert (tmp_path / "out/chat_template.jinja").read_text() == "{{ 'hé' }}"


@pytest.mark.parametrize("heads", [0, 5])
def test_heads_that_do_not_fit_are_refused(tmp_path: Path, heads: int) -> None:
    path = as_gguf(tiny("llama"), "llama", tmp_path / "m.gguf", **{"attention.head_count": heads})
    with pytest.raises(FormatError, match="does not fit the model") as caught:
        opened(path)
    assert "blk.0.attn_q.weight" in str(caught.value)


def test_surgeries_see_what_blocks_mean(tmp_path: Path) -> None:
    """Whatever is done to them, it is what is done to the numbers."""
    path = as_gguf(tiny("phi3"), "phi3", tmp_path / "m.gguf", "Q8_0")
    surgery.write(opened(path), tmp_path / "wide")
    done = {
        "split": lambda one: surgery.split_gate_up(surgery.split_qkv(one)),
        "convert": lambda one: surgery.convert(one, "llama"),
        "rename": lambda one: surgery.rename(one, [(r"^model\.", "m.")]),
        "drop": lambda one: surgery.drop(one, r"lm_head.*"),
        "quantize": lambda one: surgery.quantize(one, "nf4"),
    }
    for name, what in done.items():
        for kind, base in (("gguf", path), ("wide", tmp_path / "wide")):
            surgery.write(what(opened(base)), tmp_path / f"{name}-{kind}")
        one, other = (load_file(tmp_path / f"{name}-{kind}/model.safetensors") for kind in ("gguf", "wide"))
        assert set(one) == set(other)
        assert all(torch.equal(one[key], other[key]) for key in one), name


def test_some_weights_may_be_of_another_dtype(tmp_path: Path) -> None:
    base = opened(as_gguf(tiny("llama"), "llama", tmp_path / "m.gguf", "Q8_0"))
    made = surgery.dequantize(base, only=r".*o_proj", dtype="float32")
    wide = {name for name, tensor in made.tensors.items() if tensor.dtype.name == "F32" and "norm" not in name}
    assert wide == {f"model.layers.{n}.self_attn.o_proj.weight" for n in (0, 1)}
    assert made.config["dtype"] == "float16"
    assert torch.equal(made.load(min(wide)).half(), base.load(min(wide)))


def test_a_merge_is_proved(tmp_path: Path) -> None:
    path = as_gguf(tiny("llama"), "llama", tmp_path / "m.gguf", "Q8_0")
    adapter = write_adapter(tmp_path / "adapter", {"model.layers.0.self_attn.o_proj": (64, 64)})
    proof = ("verify", tmp_path / "merged", "--base", path, "--adapter", adapter)
    for command in (("merge", path, adapter, "-o", tmp_path / "merged"), proof):
        done = subprocess.run(["surgery", *map(str, command)], capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    shard = tmp_path / "merged/model.safetensors"
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 64
    shard.write_bytes(raw)
    assert subprocess.run(["surgery", *map(str, proof)], capture_output=True).returncode == 1


def test_what_loaders_take_comes_before_it(tmp_path: Path) -> None:
    """Blocks beside whole weights are a copy of less."""
    as_gguf(tiny("llama"), "llama", tmp_path / "m.gguf", "Q4_0")
    torch.save({"a": torch.ones(3)}, tmp_path / "pytorch_model.bin")
    checkpoint = opened(tmp_path)
    assert set(checkpoint.tensors) == {"a"}
    assert any("left out" in note and "m.gguf" in note for note in checkpoint.notes), checkpoint.notes
    assert "model.norm.weight" in opened(tmp_path / "m.gguf").tensors
