"""Every way in which a tied family can be stored, and an adapter on each of its names: merged, it computes what the
live model does.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import transformers_logging

import surgery
from surgery.errors import AdapterError
from surgery.models.families import ties

transformers_logging.set_verbosity_error()

_IDS = {"vocab_size": 97, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_TEXT = {**_IDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
_T5 = {
    "vocab_size": 97,
    "d_model": 32,
    "d_ff": 48,
    "num_layers": 1,
    "num_heads": 4,
    "d_kv": 8,
    "decoder_start_token_id": 0,
}
_BART = {
    **_IDS, "d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_start_token_id": 0,
}  # fmt: skip
_LONG = {"max_position_embeddings": 64}
_MARIAN = {**_BART, **_LONG, "pad_token_id": 96, "decoder_start_token_id": 96}
_WHISPER = {**_BART, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 32}
_QWEN_TEXT = {
    **_TEXT,
    "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
}
_QWEN = {
    "text_config": _QWEN_TEXT,
    "vision_config": {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4},
    "image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93,
}  # fmt: skip
_SHARED = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
_WITHIN = (
    "model.shared.weight",
    "model.encoder.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
    "lm_head.weight",
)
_BERT = {**_TEXT, **_LONG}


@dataclass(frozen=True)
class Family:
    """A class with its tied names; what may be stored under a biased head is a family of its own."""

    kind: Any
    config: Any
    options: dict[str, Any]
    names: tuple[str, ...]
    q: str
    tokens: bool = True

    def build(self) -> Any:
        return self.kind(self.config(**self.options))


FAMILIES: dict[str, Family] = {
    "t5": Family(tf.T5ForConditionalGeneration, tf.T5Config, _T5, _SHARED, "q"),
    "t5-v1.1": Family(tf.T5ForConditionalGeneration, tf.T5Config, {**_T5, "feed_forward_proj": "gated-gelu"}, _SHARED,
    "q"),
    "bart": Family(tf.BartForConditionalGeneration, tf.BartConfig, {**_BART, **_LONG}, _WITHIN, "q_proj"),
    "mbart": Family(tf.MBartForConditionalGeneration, tf.MBartConfig, {**_BART, **_LONG}, _WITHIN, "q_proj"),
    "pegasus": Family(tf.PegasusForConditionalGeneration, tf.PegasusConfig, {**_BART, **_LONG}, _WITHIN, "q_proj"),
    "marian": Family(tf.MarianMTModel, tf.MarianConfig, _MARIAN, _WITHIN, "q_proj"),
    "marian-two": Family(
        tf.MarianMTModel, tf.MarianConfig, {**_MARIAN, "share_encoder_decoder_embeddings": False}, _WITHIN[2:], "q_proj"
    ),
    "whisper": Family(
        tf.WhisperForConditionalGeneration, tf.WhisperConfig, _WHISPER, ("model.decoder.embed_tokens.weight",
        "proj_out.weight"), "q_proj"
    ),
    "bert": Family(
        tf.BertForMaskedLM, tf.BertConfig, _BERT,
        ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"), "query", tokens=False,
    ),
    "bert-bias": Family(
        tf.BertForMaskedLM, tf.BertConfig, _BERT, ("cls.predictions.bias", "cls.predictions.decoder.bias"), "query",
        tokens=False
    ),
    "gpt2": Family(
        tf.GPT2LMHeadModel, tf.GPT2Config, {**_IDS, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64},
        ("transformer.wte.weight", "lm_head.weight"), "c_attn",
    ),
    "gemma": Family(
        tf.GemmaForCausalLM, tf.GemmaConfig, {**_TEXT, "num_key_value_heads": 2, "head_dim": 8},
        ("model.embed_tokens.weight", "lm_head.weight"), "q_proj",
    ),
    "qwen2_vl": Family(
        tf.Qwen2VLForConditionalGeneration, tf.Qwen2VLConfig, _QWEN,
        ("model.language_model.embed_tokens.weight", "lm_head.weight"), "q_proj",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """Which names are stored, as one tensor or as one each, and what config.json says of ties."""

    family: str
    stored: tuple[str, ...]
    flag: bool | None
    apart: bool

    def __str__(self) -> str:
        short = "+".join(name.removesuffix(".weight").replace("embed_tokens", "embed") for name in self.stored)
        return f"{self.family}: {short}, {self.flag}{', apart' if self.apart else ''}"


def layouts() -> Iterator[Layout]:
    """All but those of which transformers leaves a tensor with random numbers."""
    for kind, family in FAMILIES.items():
        for size in range(1, len(family.names) + 1):
            for stored in itertools.combinations(family.names, size):
                for flag, apart in itertools.product((True, False, None), (False, True) if size > 1 else (False,)):
                    said = {} if flag is None else {"tie_word_embeddings": flag}
                    told = {"architectures": [family.kind.__name__], "model_type": family.config.model_type, **said}
                    if ties(told) or size == len(family.names):
                        yield Layout(kind, stored, flag, apart)


LAYOUTS = list(layouts())
SAMPLE = {
    "t5: decoder.embed+lm_head, False, apart",
    "bart: model.decoder.embed+lm_head, None, apart",
    "marian-two: model.decoder.embed, True",
    "bert-bias: cls.predictions.decoder.bias, True",
    "gpt2: lm_head, None",
    "qwen2_vl: model.language_model.embed, True",
}
# All of them take half an hour: one in four is tried, unless SURGERY_ALL_LAYOUTS says all.
CHOSEN = (
    LAYOUTS
    if os.environ.get("SURGERY_ALL_LAYOUTS")
    else [one for number, one in enumerate(LAYOUTS) if not number % 4 or str(one) in SAMPLE]
)


@pytest.fixture(scope="session")
def weights() -> Callable[[str], tuple[dict[str, torch.Tensor], dict[str, Any]]]:
    """weights(family) -> its tensors, with the tied ones one by one, and its config.json."""
    made: dict[str, Any] = {}

    def get(kind: str) -> Any:
        if kind not in made:
            torch.manual_seed(0)
            family = FAMILIES[kind]
            model = family.build()
            state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
            drawn = {name: torch.randn_like(state[name]) * 0.3 for name in family.names}
            made[kind] = ({**state, **drawn}, {**model.config.to_dict(), "architectures": [family.kind.__name__]})
        return made[kind]

    return get


def store(layout: Layout, tensors: dict[str, torch.Tensor], config: dict[str, Any], folder: Path) -> Path:
    """The base in that layout."""
    family, first = FAMILIES[layout.family], layout.stored[0]
    kept = {name: tensor for name, tensor in tensors.items() if name not in family.names}
    kept |= {name: tensors[name if layout.apart else first] for name in layout.stored}
    folder.mkdir()
    save_file({name: tensor.clone() for name, tensor in kept.items()}, folder / "model.safetensors", {"format": "pt"})
    said = {key: value for key, value in config.items() if key != "tie_word_embeddings"}
    said |= {} if layout.flag is None else {"tie_word_embeddings": layout.flag}
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def adapters(layout: Layout) -> dict[str, dict[str, Any]]:
    """Options of adapters, on each name in each way that PEFT takes it."""
    family, found = FAMILIES[layout.family], dict[str, dict[str, Any]]()
    for name in family.names:
        module, _, leaf = name.rpartition(".")
        if leaf == "weight":
            found[f"LoRA on {module}"] = {"target_modules": [family.q, module]}
            found[f"LoRA on {module}, tying asked"] = {
                "target_modules": [family.q, module],
                "ensure_weight_tying": True,
            }
        if leaf == "weight" or module.endswith("decoder"):
            found[f"{module} saved"] = {"target_modules": [family.q], "modules_to_save": [module]}
        if leaf == "weight" and family.tokens:
            found[f"tokens of {module}"] = {
                "target_modules": [family.q],
                "trainable_token_indices": {module: [3, 5, 8]},
            }
    return found


def output(model: Any) -> torch.Tensor:
    ids = torch.randint(3, 89, (2, 9), generator=torch.Generator().manual_seed(0))
    first = {"input_ids": ids}
    if model.config.model_type == "whisper":
        first = {"input_features": torch.randn(2, 8, 40, generator=torch.Generator().manual_seed(1))}
    with torch.no_grad():
        return model.eval()(**first, **({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})).logits


def saved_in(adapter: Path) -> set[str]:
    """The modules that the file has LoRA of."""
    return {
        name.partition(".lora_")[0] for name in load_file(adapter / "adapter_model.safetensors") if ".lora_" in name
    }


def held_by(model: Any) -> set[str]:
    """The modules that the loaded model has LoRA of."""
    return {
        name.partition(".lora_")[0] for name, _ in model.named_parameters(remove_duplicate=False) if ".lora_" in name
    }


def check_layout(layout: Layout, weights: Any, tmp_path: Path) -> None:
    """Every adapter on the layout, merged, is the live model; and loading leaves no tensor to chance."""
    kind = FAMILIES[layout.family].kind
    base = store(layout, *weights(layout.family), tmp_path / "base")
    plain, info = kind.from_pretrained(base, output_loading_info=True)
    assert not info["missing_keys"]
    before, effects, wrong = output(plain), 0, list[str]()
    for number, (what, options) in enumerate(adapters(layout).items()):
        adapter, merged = tmp_path / f"adapter{number}", tmp_path / f"merged{number}"
        torch.manual_seed(number)
        model = get_peft_model(kind.from_pretrained(base), LoraConfig(r=4, **options))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        model.save_pretrained(adapter)
        adapted = PeftModel.from_pretrained(kind.from_pretrained(base), adapter)
        if saved_in(adapter) - held_by(adapted):  # tied in training, and no longer where PEFT loads it
            with pytest.raises(AdapterError, match="does not aim at"):
                surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter))
            continue
        live = output(adapted)
        surgery.write(surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter)), merged)
        loaded, info = kind.from_pretrained(merged, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"], what
        error, effect = float((output(loaded) - live).abs().max()), float((live - before).abs().max())
        if error > 1e-4 * float(live.abs().max()):
            wrong.append(f"{what}: {error:.3g}, and the adapter's effect is {effect:.3g}")
        effects += effect > 1e-2
    assert not wrong and effects


def test_the_sample_is_of_the_layouts() -> None:
    assert set(map(str, LAYOUTS)) >= SAMPLE


@pytest.mark.parametrize(
    "layout", [pytest.param(one, id=str(one), marks=() if str(one) in SAMPLE else pytest.mark.slow) for one in CHOSEN]
)
def test_merged_is_the_live_model(layout: Layout, weights: Any, tmp_path: Path) -> None:
    check_layout(layout, weights, tmp_path)
