"""LoRA from two checkpoints: the round trip, PEFT's live model, and the singular values of the whole differences in
float64.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
from conftest import hashes
from models.fused import stacks
from safetensors.torch import load_file, save_file
from surgeries.algebra.test_combine import output
from surgeries.algebra.test_resize import best
from typer.testing import CliRunner

import surgery
from surgery.errors import AdapterError, NothingMatched, NotSupported, SurgeryError
from surgery.evaluation import extraction
from surgery.evaluation.evaluate import load
from surgery_cli.app import app

Edit = Callable[[str, torch.Tensor, torch.Generator], torch.Tensor | None]


TABLES = tuple(
    f"{name}.weight"
    for name in "embed_tokens embed_in word_embeddings position_embeddings token_type_embeddings wte wpe".split()
)


def low(name: str, weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor | None:
    """A change of rank 3 of each matrix and kernel, but for embeddings."""
    if weight.dim() < 2 or name.endswith(TABLES):
        return None
    flat = weight.flatten(1)
    b, a = (torch.randn(shape, generator=generator) for shape in ((len(flat), 3), (3, flat.shape[1])))
    return (0.1 * b @ a).view_as(weight)


def noise(name: str, weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor | None:
    return 0.1 * torch.randn(weight.shape, generator=generator)


def both(name: str, weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor | None:
    """Low rank where that is, and anything else elsewhere."""
    return low(name, weight, generator) if low(name, weight, generator) is not None else noise(name, weight, generator)


def pair(
    family: str, folder: Path, edit: Edit, only: str = "", *, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[surgery.Checkpoint, surgery.Checkpoint]:
    """A checkpoint, and what became of it where `only` is in the name."""
    model, generator = tiny_models.build(family, dtype=dtype), torch.Generator().manual_seed(5)
    model.save_pretrained(folder / "base", **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if only in name and (change := edit(name, parameter.float(), generator)) is not None:
                parameter.copy_(parameter.float() + change)
    model.save_pretrained(folder / "tuned", **options)
    return surgery.open_checkpoint(folder / "base"), surgery.open_checkpoint(folder / "tuned")


def loaded(family: str, folder: Path) -> torch.Tensor:
    """What PEFT's live model computes with the extracted adapter, which it loads without a miss."""
    model = peft.PeftModel.from_pretrained(tiny_models.build(family), folder / "lora")
    stored, expected = load_file(folder / "lora" / "adapter_model.safetensors"), peft.get_peft_model_state_dict(model)
    assert stored.keys() <= expected.keys()
    rest = expected.keys() - stored.keys()  # what PEFT saves along of the base itself
    assert all(name.endswith(("bias", ".base_layer.weight")) for name in rest), rest
    return output(model, family)


def tuned_output(family: str, folder: Path) -> torch.Tensor:
    return output(type(tiny_models.build(family)).from_pretrained(folder / "tuned"), family)


def close(got: torch.Tensor, wanted: torch.Tensor, base: torch.Tensor, *, limit: float = 1e-5) -> None:
    error, effect = (got - wanted).abs().max().item(), (wanted - base).abs().max().item()
    assert error <= limit * wanted.abs().max().item(), error
    assert effect >= 1000 * error, f"an effect of {effect} proves nothing against an error of {error}"


FAMILIES = ("llama", "llama-tied", "gpt2", "gpt_neox", "phi3", "bert", "sam", "bloom")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_round_trip_gives_what_was_tuned(family: str, tmp_path: Path) -> None:
    """Low rank as LoRA, all else held whole: merged again, and live in PEFT, it is the tuned model."""
    base, tuned = pair(family, tmp_path, lambda name, *rest: None if "pos" in name else both(name, *rest))
    surgery.write(surgery.extract(base, tuned, rank=3, rest="save"), tmp_path / "lora")
    merged = surgery.merge(base, surgery.open_adapter(tmp_path / "lora"))
    for name in tuned.tensors:
        assert torch.allclose(merged.load(name), tuned.load(name), atol=2e-6), name
    assert merged.tensors.keys() == tuned.tensors.keys()
    close(loaded(family, tmp_path), tuned_output(family, tmp_path), output(tiny_models.build(family), family))


@pytest.mark.parametrize(("edit", "rank"), [(noise, 4), (noise, 1000), (low, 2), (low, 8)])
def test_no_approximation_of_the_rank_is_nearer(edit: Edit, rank: int, tmp_path: Path) -> None:
    """Noise is the hardest case: there, one power step is within a hundredth or so of the best."""
    base, tuned = pair("llama", tmp_path, edit, "mlp")
    report = surgery.write(surgery.extract(base, tuned, rank=rank), tmp_path / "lora")
    merged = surgery.merge(base, surgery.open_adapter(tmp_path / "lora"), dtype="float64")
    kept: Any = report.costs["kept"]
    for name in (n for n in tuned.tensors if "mlp" in n):
        delta = tuned.load(name).double() - base.load(name).double()
        found = merged.load(name) - base.load(name).double()
        least = float((delta - best(delta, rank)).norm())
        assert float((delta - found).norm()) <= (1.02 if edit is noise else 1.0001) * least + 1e-6 * float(
            delta.norm()
        ), name
        one = kept[name.removesuffix(".weight")]
        assert one["share"] == pytest.approx(1 - (least / float(delta.norm())) ** 2, abs=0.03)
        values = torch.linalg.svdvals(delta)
        if edit is noise and rank == 4:
            assert one["following"] == pytest.approx(float(values[4] / values[3]), abs=0.05)
        assert one["rank"] == min(rank, 3 if edit is low else 1000, *delta.shape)


def test_rounding_of_16_bits_is_no_rank(tmp_path: Path) -> None:
    """Two bfloat16 checkpoints: what is found is as near to the true change as the best of that rank."""
    base, tuned = pair("llama", tmp_path, low, "mlp", dtype=torch.bfloat16)
    surgery.write(surgery.extract(base, tuned, rank=3), tmp_path / "lora")
    merged = surgery.merge(base, surgery.open_adapter(tmp_path / "lora"), dtype="float64")
    for name in (n for n in tuned.tensors if "mlp" in n):
        delta = tuned.load(name).double() - base.load(name).double()
        found = merged.load(name) - base.load(name).double()
        assert float((delta - found).norm()) <= 1.001 * float((delta - best(delta, 3)).norm())


def test_energy_is_bounded_by_the_highest_rank(tmp_path: Path) -> None:
    base, tuned = pair("llama", tmp_path, both, "mlp")
    adapter = surgery.extract(base, tuned, energy=0.5)
    kept: Any = adapter.costs["kept"]
    assert {one["rank"] for one in kept.values()} <= {1, 2}
    assert all(one["share"] >= 0.5 for one in kept.values())
    adapter = surgery.extract(base, tuned, energy=0.9999, max_rank=2)
    assert adapter.config["r"] == 2 and not adapter.config["rank_pattern"]


def test_blocks_and_workers_leave_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same factors of shards, of one file, held in memory or read four times, by one worker or three."""
    (tmp_path / "a").mkdir()
    one = pair("llama", tmp_path / "a", noise, "mlp")
    cut = pair("llama", tmp_path / "b", noise, "mlp", max_shard_size="10KB")
    outs = []
    for which, two, memory, workers in ((0, one, 96_000_000, 1), (1, one, 0, 3), (2, cut, 0, 2)):
        monkeypatch.setattr("surgery.surgeries.algebra.extract.MEMORY", memory)
        surgery.write(surgery.extract(*two, rank=4, workers=workers), tmp_path / str(which))
        outs.append(hashes(tmp_path / str(which))["adapter_model.safetensors"])
    assert len(set(outs)) == 1
    surgery.write(surgery.extract(*one, rank=4, seed=1), tmp_path / "seed")
    assert hashes(tmp_path / "seed")["adapter_model.safetensors"] != outs[0]


def test_memory_leaves_the_bytes_and_each_module_is_told(tmp_path: Path) -> None:
    base, tuned = pair("llama", tmp_path, noise, "mlp")
    seen: list[tuple[str, int, int]] = []
    one = surgery.extract(base, tuned, rank=3, on_tensor=lambda *told: seen.append(told))
    other = surgery.extract(base, tuned, rank=3, memory=0, workers=1)
    assert one.tensors.keys() == other.tensors.keys()
    surgery.write(one, tmp_path / "one")
    surgery.write(other, tmp_path / "other")
    a, b = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "other"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert len(seen) == len({name for name, _, _ in seen}) >= len(one.lora)
    assert sum(size for _, size, _ in seen) == seen[0][2]


def test_blocks_of_rows_make_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "BLOCK", 64)
    monkeypatch.setattr(extraction, "ROWS", 8)
    base, tuned = pair("llama", tmp_path, low, "mlp")
    merged = surgery.merge(base, surgery.extract(base, tuned, rank=3))
    for name in tuned.tensors:
        assert torch.allclose(merged.load(name), tuned.load(name), atol=2e-6), name


def test_embeddings_by_option(tmp_path: Path) -> None:
    """LoRA on them, where it is asked for, and the table is not tied."""

    def edit(name: str, weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return 0.1 * torch.randn(len(weight), 3, generator=generator) @ torch.randn(3, 48, generator=generator)

    base, tuned = pair("llama", tmp_path, edit, "embed_tokens")
    surgery.write(surgery.extract(base, tuned, rank=3, embeddings=True), tmp_path / "lora")
    merged = surgery.merge(base, surgery.open_adapter(tmp_path / "lora"))
    name = "model.embed_tokens.weight"
    assert torch.allclose(merged.load(name), tuned.load(name), atol=2e-6)
    close(loaded("llama", tmp_path), tuned_output("llama", tmp_path), output(tiny_models.build("llama"), "llama"))


EXPERTS = {
    "one by one in the files": ("qwen3_moe", {}),
    "one by one, under other names": ("mixtral", {}),
    "in a stack under other names": ("granitemoe", {}),
    "in turn and transposed": ("gpt_oss", {}),
    "transposed and square": ("gpt_oss", {"hidden_size": 16, "intermediate_size": 16}),
    "transposed and not told so": ("llama4_text", {"intermediate_size_mlp": 20, "interleave_moe_layer_step": 1}),
}


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_get_lora_all_at_once(name: str, tmp_path: Path) -> None:
    """Each expert's change is found, merged again, and live in PEFT."""
    kind, sizes = EXPERTS[name]
    model, generator = stacks.build(kind, **sizes), torch.Generator().manual_seed(5)
    model.save_pretrained(tmp_path / "base")
    base_output = experts_output(model)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() == 3 and "bias" not in key:
                b, a = (
                    torch.randn(s, generator=generator) for s in ((*parameter.shape[:2], 2), (2, parameter.shape[2]))
                )
                b[1] = 0  # one expert that nothing was done to
                parameter.add_(0.1 * b @ a)
    model.save_pretrained(tmp_path / "tuned")
    base, tuned = (surgery.open_checkpoint(tmp_path / one) for one in ("base", "tuned"))
    surgery.write(surgery.extract(base, tuned, rank=2), tmp_path / "lora")
    merged = surgery.merge(base, surgery.open_adapter(tmp_path / "lora"))
    for key in tuned.tensors:
        assert torch.allclose(merged.load(key), tuned.load(key), atol=2e-6), key
    live = peft.PeftModel.from_pretrained(stacks.build(kind, **sizes), tmp_path / "lora")
    assert peft.get_peft_model_state_dict(live).keys() == load_file(tmp_path / "lora/adapter_model.safetensors").keys()
    close(experts_output(live), experts_output(model), base_output)


def experts_output(model: Any) -> torch.Tensor:
    inputs = torch.randint(3, 97, (2, 17), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return model.eval()(inputs).logits.float()


def test_only_and_except(tmp_path: Path) -> None:
    base, tuned = pair("llama", tmp_path, low, "self_attn")
    adapter = surgery.extract(base, tuned, rank=2, only=r".*\.[qk]_proj", except_=r".*layers\.0\..*", rest="leave")
    assert sorted(adapter.lora) == [f"model.layers.{i}.self_attn.{p}_proj" for i in (1, 2) for p in "kq"]
    assert any(
        note.startswith("left as they are in the base: model.layers.0.self_attn.k_proj") for note in adapter.notes
    )
    saved = surgery.extract(base, tuned, rank=2, only=r".*\.q_proj", rest="save")
    assert "model.layers.1.self_attn.v_proj" in saved.config["modules_to_save"]
    with pytest.raises(NothingMatched, match="leave no module"):
        surgery.extract(base, tuned, rank=2, only="nothing")


def test_what_lora_is_not_put_on_is_refused_until_it_is_said(tmp_path: Path) -> None:
    base, tuned = pair("bert", tmp_path, noise, "LayerNorm")
    with pytest.raises(NotSupported) as caught:
        surgery.extract(base, tuned, rank=2)
    assert caught.value.what == "14 tensors differ that are no weights of modules that LoRA is put on"
    assert "--rest save" in str(caught.value.help) and "--rest leave" in str(caught.value.help)
    adapter = surgery.extract(base, tuned, rank=2, rest="save")
    assert not adapter.lora and len(adapter.whole) == 14


def test_biases_are_trained_biases(tmp_path: Path) -> None:
    """Of modules that have LoRA, or of all."""
    base, tuned = pair("bert", tmp_path, both, "attention.self.query")
    surgery.write(surgery.extract(base, tuned, rank=3, rest="save"), tmp_path / "lora")
    assert surgery.open_adapter(tmp_path / "lora").config["bias"] == "lora_only"
    close(loaded("bert", tmp_path), tuned_output("bert", tmp_path), output(tiny_models.build("bert"), "bert"))
    base, tuned = pair("bert", tmp_path / "all", noise, "query.bias")
    adapter = surgery.extract(base, tuned, rank=3, rest="save")
    assert adapter.config["bias"] == "all" and len(adapter.whole) == 3


def test_a_resized_vocabulary_is_said(tmp_path: Path) -> None:
    base, _ = pair("llama", tmp_path, low, "nothing")
    model = tiny_models.build("llama")
    model.resize_token_embeddings(101)
    model.save_pretrained(tmp_path / "grown")
    grown = surgery.open_checkpoint(tmp_path / "grown")
    with pytest.raises(NotSupported) as caught:
        surgery.extract(base, grown, rank=2)
    assert "lm_head.weight (101, 48), in the base (97, 48)" in caught.value.where
    adapter = surgery.extract(base, grown, rank=2, rest="save")
    assert any("resize_token_embeddings" in note for note in adapter.notes)
    merged = surgery.merge(base, adapter)
    assert torch.equal(merged.load("lm_head.weight"), grown.load("lm_head.weight"))
    assert merged.config["vocab_size"] == 101


@pytest.mark.parametrize("how", ["nf4", "fp8"])
def test_a_quantised_base_is_what_its_codes_mean(how: str, quantised: Callable[[str], Path]) -> None:
    """The difference of the 16-bit model from what the codes mean is the quantiser's error."""
    base, plain = surgery.open_checkpoint(quantised(how)), surgery.open_checkpoint(quantised("plain"))
    adapter = surgery.extract(base, plain, rank=1000, rest="leave")
    meant = surgery.dequantize(base, dtype="float32")
    module = next(iter(adapter.lora))
    parts = adapter.lora[module]
    delta = load(parts["lora_B.weight"]) @ load(parts["lora_A.weight"])
    wanted = plain.load(f"{module}.weight").float() - meant.load(f"{module}.weight")
    assert torch.allclose(delta, wanted, atol=1e-5) and float(wanted.norm()) > 0


def test_the_command_line(tmp_path: Path) -> None:
    """The three commands as they are typed; what each module kept is in the JSON."""
    pair("llama", tmp_path, low, "mlp")
    here = {name: str(tmp_path / name) for name in ("base", "tuned", "lora", "small", "both")}

    def surge(*words: str) -> Any:
        done = CliRunner().invoke(app, [*words, "--json"])
        return done.exit_code, json.loads(done.stdout)

    status, report = surge("extract", here["base"], here["tuned"], "-o", here["lora"], "--rank", "3")
    assert status == 0
    assert report["costs"]["kept"]["model.layers.0.mlp.up_proj"]["share"] == pytest.approx(1, abs=1e-5)
    assert surge("resize-adapter", here["lora"], "-o", here["small"], "--energy", "0.5", "--max-rank", "1")[0] == 0
    words = ("combine", here["lora"], here["small"], "-o", here["both"], "--weights", "1,-0.5", "--rank", "2")
    status, report = surge(*words)
    assert status == 0 and report["costs"]["kept"]["model.layers.0.mlp.up_proj"]["rank"] == 2
    status, report = surge("extract", here["base"], here["tuned"], "-o", here["both"] + "2", "--rank", "0")
    assert (status, report["error"]["what"]) == (1, "a rank of 0 is none")
    assert CliRunner().invoke(app, ["combine", here["lora"], "-o", "x", "--weights", "1,2"]).exit_code == 2
    loaded("llama", tmp_path)


# Refusals


def test_parameters_without_a_module_of_their_own_are_named(tmp_path: Path) -> None:
    """Which PEFT could only hold along with what LoRA is on."""
    base, tuned = pair("sam", tmp_path, noise, "layers.1.attn.rel_pos_h")
    with pytest.raises(NotSupported, match="1 tensors that differ belong to no module") as caught:
        surgery.extract(base, tuned, rank=2, rest="save")
    assert caught.value.where == (f"{base.path}: vision_encoder.layers.1.attn.rel_pos_h",)


def test_a_buffer_that_training_changed_is_named(tmp_path: Path) -> None:
    """Statistics of a BatchNorm are no weights, and the model computes with them; one that is stored once is made."""
    tensors = {"a.weight": torch.randn(4, 4), "bn.weight": torch.ones(4), "bn.running_mean": torch.zeros(4)}
    for name, more in (("base", {}), ("tuned", {"bn.running_mean": torch.ones(4), "a.inv_freq": torch.ones(2)})):
        (tmp_path / name).mkdir()
        save_file(tensors | more, tmp_path / name / "model.safetensors")
    two = [surgery.open_checkpoint(tmp_path / name) for name in ("base", "tuned")]
    with pytest.raises(NotSupported, match="1 tensors differ") as caught:
        surgery.extract(*two, rank=2)
    assert caught.value.where[1] == "bn.running_mean (4,)"
    with pytest.raises(NotSupported, match="belong to no module that PEFT could hold whole"):
        surgery.extract(*two, rank=2, rest="save")


def test_a_head_that_training_untied(tmp_path: Path) -> None:
    """LoRA on it alone: the base's is its embedding."""
    base, _ = pair("llama-tied", tmp_path, low, "nothing")
    name, tensors = "lm_head.weight", load_file(tmp_path / "tuned" / "model.safetensors")
    change = 0.1 * torch.randn(97, 2) @ torch.randn(2, 48)
    save_file(
        {**tensors, name: tensors["model.embed_tokens.weight"] + change}, tmp_path / "tuned" / "model.safetensors"
    )
    tuned = surgery.open_checkpoint(tmp_path / "tuned")
    tuned = tuned.with_config({**tuned.config, "tie_word_embeddings": False})
    adapter = surgery.extract(base, tuned, rank=2)
    assert list(adapter.lora) == ["lm_head"]
    merged = surgery.merge(base, adapter)
    assert torch.allclose(merged.load(name), tuned.load(name), atol=2e-6)


def test_nothing_differs(tmp_path: Path) -> None:
    base, _ = pair("llama", tmp_path, low, "nothing")
    with pytest.raises(AdapterError, match="the two checkpoints do not differ"):
        surgery.extract(base, base, rank=2)


def test_tensors_of_one_alone_are_named(tmp_path: Path) -> None:
    base, tuned = pair("llama", tmp_path, low, "mlp")
    with pytest.raises(AdapterError, match="2 tensors are in only one of the two checkpoints") as caught:
        surgery.extract(surgery.drop(base, r"model\.norm\.weight"), surgery.drop(tuned, r"lm_head\.weight"), rank=2)
    assert caught.value.where == (f"{base.path}: lm_head.weight", f"{tuned.path}: model.norm.weight")


def test_models_of_two_types_are_refused(tmp_path: Path) -> None:
    base, _ = pair("llama", tmp_path / "a", low, "nothing")
    other, _ = pair("phi3", tmp_path / "b", low, "nothing")
    with pytest.raises(AdapterError, match="models of different types"):
        surgery.extract(base, other, rank=2)


def test_nan_is_named_before_anything_is_written(tmp_path: Path) -> None:
    base, _ = pair("llama", tmp_path, low, "mlp")
    file = tmp_path / "tuned" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 2] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match="not finite") as caught:
        surgery.extract(base, surgery.open_checkpoint(tmp_path / "tuned"), rank=2)
    assert caught.value.where == ("model.layers.1.mlp.up_proj.weight",)


def test_options_that_say_nothing(tmp_path: Path) -> None:
    base, tuned = pair("llama", tmp_path, low, "mlp")
    with pytest.raises(SurgeryError, match="`keep` is no way with what gets no LoRA"):
        surgery.extract(base, tuned, rank=2, rest="keep")
    with pytest.raises(SurgeryError, match="a rank of 0 is none"):
        surgery.extract(base, tuned, rank=0)


def test_a_config_that_differs_is_told(tmp_path: Path) -> None:
    base, tuned = pair("llama", tmp_path, low, "mlp")
    other = tuned.with_config({**tuned.config, "rope_theta": 12345.0})
    adapter = surgery.extract(base, other, rank=2)
    assert "config.json differs in rope_theta, which an adapter does not carry" in adapter.notes


def test_the_tokenizer_goes_along(tmp_path: Path) -> None:
    base, _ = pair("llama", tmp_path, low, "mlp")
    (tmp_path / "tuned" / "tokenizer.json").write_text(json.dumps({"a": 1}))
    surgery.write(surgery.extract(base, surgery.open_checkpoint(tmp_path / "tuned"), rank=2), tmp_path / "lora")
    assert (tmp_path / "lora" / "tokenizer.json").is_file()
