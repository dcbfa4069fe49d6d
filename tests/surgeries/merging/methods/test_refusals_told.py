"""Refusals of kinds besides LoRA say which adapters, options and tensors they are about, and what is true of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

import surgery
from surgery.errors import AdapterError, NotPlaced, NotSupported, SurgeryError, VerificationFailed
from surgery.models.scaled_embeddings import SCALED, STEMS

from .cases import Case, fresh, trained

LINEARS = ["q_proj", "v_proj"]
KINDS: dict[str, Callable[[], peft.PeftConfig]] = {
    "ia3": lambda: peft.IA3Config(target_modules=LINEARS, feedforward_modules=[]),
    "lora": lambda: peft.LoraConfig(r=2, target_modules=LINEARS),
    "hra": lambda: peft.HRAConfig(r=2, target_modules=LINEARS),
    "oft": lambda: peft.OFTConfig(oft_block_size=4, target_modules=LINEARS),
    "vera": lambda: peft.VeraConfig(r=4, target_modules=LINEARS),
    "vblora": lambda: peft.VBLoRAConfig(r=2, num_vectors=8, vector_length=4, target_modules=LINEARS),
    "loha": lambda: peft.LoHaConfig(r=2, target_modules=LINEARS),
    "road": lambda: peft.RoadConfig(group_size=4, target_modules=LINEARS),
    "hira": lambda: peft.HiraConfig(r=2, target_modules=LINEARS),
}
Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    fresh("bare").save_pretrained(folder)
    return folder


def made(kind: str, base: Path, folder: Path, edit: Callable[[dict[str, torch.Tensor]], object] | None = None) -> Path:
    trained(Case("bare", KINDS[kind]), base, folder)
    file = folder / "adapter_model.safetensors"
    held = load_file(file)
    if edit:
        edit(held)
        save_file(held, file)
    return folder


def saying(folder: Path, **said: Any) -> Path:
    file = folder / "adapter_config.json"
    config = {**json.loads(file.read_text()), **said}
    file.write_text(json.dumps({key: value for key, value in config.items() if value != "gone"}))
    return folder


def refused(base: Path, *adapters: Path, **options: Any) -> SurgeryError:
    with pytest.raises(SurgeryError) as caught:
        merged = surgery.merge(
            surgery.open_checkpoint(base), [surgery.open_adapter(one) for one in adapters], **options
        )
        surgery.write(merged, adapters[0].parent / "out")
    return caught.value


def test_two_kinds_without_a_sum_are_both_named(base: Path, tmp_path: Path) -> None:
    one, other = made("ia3", base, tmp_path / "one"), made("lora", base, tmp_path / "other")
    for pair in ((one, other), (other, one)):
        error = refused(base, *pair)
        assert "no sum with" in str(error) and str(one) in str(error) and str(other) in str(error)


@pytest.mark.parametrize("kind", ["ia3", "hra", "oft", "road"])
def test_a_kind_that_is_not_weighed_names_the_options(kind: str, base: Path, tmp_path: Path) -> None:
    error = refused(base, made(kind, base, tmp_path / "a"), scale=0.5)
    assert "weight 1, and 0.5 is asked for" in error.what
    assert "--weights" in str(error) and "--scale" in str(error) and "scale is scale=" in str(error).replace("--", "")
    assert str(tmp_path / "a") in str(error)


def test_a_vector_without_a_direction_is_named(base: Path, tmp_path: Path) -> None:
    folder = made("hra", base, tmp_path / "a", lambda held: held[f"{Q}.hra_u"][:, 1].zero_())
    error = refused(base, folder)
    assert "1 of 2 vectors in hra_u are zero" in error.what and "q_proj" in str(error) and "alpha" not in str(error)
    assert any("vectors in hra_u" in row for check in surgery.verify(folder).checks for row in check.where)


def test_what_is_shared_and_gone_is_told_as_it_is(base: Path, tmp_path: Path) -> None:
    folder = made("vera", base, tmp_path / "a", lambda held: held.pop("base_model.vera_A"))
    error = refused(base, folder)
    assert "no vera_A" in error.what and "though it has vera_B" in error.what and "save_projection" not in str(error)
    # Nothing is drawn beside a matrix that is there.
    assert "no vera_A" in refused(base, saying(folder, save_projection=False)).what
    bankless = made("vblora", base, tmp_path / "b", lambda held: held.pop("base_model.vblora_vector_bank"))
    assert "no vblora_vector_bank" in (error := refused(base, bankless)).what and "save_projection" not in str(error)
    bare = made("vera", base, tmp_path / "c", lambda held: [held.pop(f"base_model.vera_{one}") for one in "AB"])
    assert "save_projection=True" in str(refused(base, bare))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"peft_type": "loha"}, "peft_type = 'LOHA'"),
        ({"peft_type": "Adalora"}, "peft_type = 'ADALORA'"),
        ({"peft_type": "psoft"}, "peft_type = 'PSOFT'"),
        ({"peft_type": None}, "called as those of LOHA"),
    ],
)
def test_a_kind_that_is_not_said_as_peft_says_it(said: dict[str, Any], words: str, base: Path, tmp_path: Path) -> None:
    error = refused(base, saying(made("loha", base, tmp_path / "a"), **said))
    assert isinstance(error, NotSupported) and words in str(error)


def test_weights_under_weight_norm_are_told(tmp_path: Path) -> None:
    fresh("wav2vec2").save_pretrained(tmp_path / "base")
    lora = peft.LoHaConfig(r=2, target_modules=["pos_conv_embed.conv", "q_proj"])
    error = refused(tmp_path / "base", trained(Case("wav2vec2", lambda: lora), tmp_path / "base", tmp_path / "a"))
    assert isinstance(error, NotPlaced) and "weight norm" in str(error)
    pattern = str(error).split("--except '")[1].split("'")[0]
    surgery.merge(surgery.open_checkpoint(tmp_path / "base"), surgery.open_adapter(tmp_path / "a"), except_=pattern)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_kind_takes_a_number_that_is_none(kind: str, value: float, base: Path, tmp_path: Path) -> None:
    def spoil(held: dict[str, torch.Tensor]) -> None:
        held[next(key for key in sorted(held) if held[key].is_floating_point())].view(-1)[0] = value

    folder = made(kind, base, tmp_path / "a", spoil)
    error = refused(base, folder)
    assert isinstance(error, AdapterError) and "NaN or infinity in 1 adapter tensors" in str(error)
    assert any(check.ok is False and "NaN or infinity" in check.detail for check in surgery.verify(folder).checks)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_base_with_a_number_that_is_none_is_told(kind: str, value: float, base: Path, tmp_path: Path) -> None:
    """Where a kind mixes weights, the whole row would be NaN: it is refused. Else the one stays what it was."""
    folder = made(kind, base, tmp_path / "a")
    broken = tmp_path / "broken"
    broken.mkdir()
    name = "model.layers.0.self_attn.q_proj.weight"
    for file in base.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
        if file.suffix == ".safetensors" and name in (held := load_file(file)):
            held[name][3, 5] = value
            save_file(held, broken / file.name, {"format": "pt"})
    merged = surgery.merge(surgery.open_checkpoint(broken), surgery.open_adapter(folder))
    try:
        report = surgery.write(merged, tmp_path / "out")
    except VerificationFailed as error:
        assert "1 were so before" in str(error) and "surgery verify --values says where" in str(error)
        assert name in str(error)
        assert kind in ("hra", "oft", "road") or (kind == "hira" and value == float("inf"))  # inf less inf
        return
    assert any(name in note and "NaN or infinity" in note for note in report.notes)
    after = surgery.open_checkpoint(tmp_path / "out").load(name)
    assert int((~torch.isfinite(after)).sum()) == 1


@pytest.mark.parametrize(
    ("config", "dilates"),
    [
        (lambda: peft.HRAConfig(r=2, target_modules=["convolution"]), True),
        (lambda: peft.LoHaConfig(r=2, target_modules=["convolution"]), False),
        (lambda: peft.HiraConfig(r=2, target_modules=["convolution"]), False),
    ],
)
def test_what_a_live_convolution_does_otherwise_is_told(
    config: Callable[[], peft.PeftConfig], dilates: bool, tmp_path: Path
) -> None:
    fresh("resnet").save_pretrained(tmp_path / "base")
    folder = trained(Case("resnet", config), tmp_path / "base", tmp_path / "a")
    merged = surgery.merge(surgery.open_checkpoint(tmp_path / "base"), surgery.open_adapter(folder))
    told = [note for note in merged.notes if "padding_mode" in note]
    assert len(told) == 1 and ("dilation" in told[0]) == dilates


@pytest.mark.parametrize(
    ("family", "kind"), [("gemma2", "hira"), ("gemma2", "tiny"), ("bart", "hira"), ("bart, unscaled", "hira")]
)
def test_an_embedding_that_the_model_scales(family: str, kind: str, tmp_path: Path) -> None:
    """PEFT's layer of these kinds adds to what the embedding has scaled; that of LoRA scales what it adds, too."""
    model = scaled(family)
    model.save_pretrained(tmp_path / "base")
    config = (
        peft.HiraConfig(r=2, target_modules=["embed_tokens"])
        if kind == "hira"
        else peft.TinyLoraConfig(r=2, u=2, target_modules=["embed_tokens"])
    )
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    adapted.save_pretrained(tmp_path / "a")
    base, adapter = surgery.open_checkpoint(tmp_path / "base"), surgery.open_adapter(tmp_path / "a")
    if family == "bart, unscaled":
        surgery.merge(base, adapter)
        return
    with pytest.raises(NotSupported, match="on an embedding that the model scales"):
        surgery.merge(base, adapter)


def scaled(family: str) -> Any:
    if family == "gemma2":
        sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 16}
        return tf.Gemma2ForCausalLM(tf.Gemma2Config(vocab_size=41, hidden_size=16, head_dim=8, **sizes))
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    return tf.BartForConditionalGeneration(
        tf.BartConfig(
            vocab_size=41, d_model=16, encoder_layers=1, decoder_layers=1, **heads,
            scale_embedding="unscaled" not in family, pad_token_id=0, decoder_start_token_id=1,
        )
    )  # fmt: skip


def test_types_that_scale_are_those_of_transformers() -> None:
    root = Path(tf.__file__).parent / "models"
    of = {
        file.parent.name
        for file in root.glob("*/modeling_*.py")
        if re.search(r"class \w*ScaledWordEmbedding\(nn\.Embedding\)", file.read_text())
    }
    assert {one for one in of if not (one in SCALED or one.startswith(STEMS))} == set()
    assert of >= SCALED


def test_a_kind_that_holds_no_size_is_held_against_its_own_base(base: Path, tmp_path: Path) -> None:
    config = tf.LlamaConfig(**{**tiny_models._LLAMA, "hidden_size": 64}, head_dim=10)
    tf.LlamaForCausalLM(config).save_pretrained(tmp_path / "wide")
    fourier = Case("bare", lambda: peft.FourierFTConfig(n_frequency=5, target_modules=["o_proj"]))
    folder = saying(trained(fourier, base, tmp_path / "a"), base_model_name_or_path=str(base))
    surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(folder))
    error = refused(tmp_path / "wide", folder)
    assert "hidden_size 48, and this base has 64" in error.what


def test_norms_that_were_left_out_are_told(base: Path, tmp_path: Path) -> None:
    norms = Case("bare", lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]))
    folder = trained(norms, base, tmp_path / "a")
    file = folder / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if "layers.1." not in name}, file)
    merged = surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(folder))
    assert any("aims at 1 modules" in note and "layers.1.input_layernorm" in note for note in merged.notes)
