"""A part of a composite that ties its own embedding: what would change the head in silence is refused, and the help
does what it says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import LoraConfig, PeftModel, get_peft_model

import surgery
from surgery.errors import NotSupported

SMALL = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT = {**SMALL, "max_position_embeddings": 64, "pad_token_id": 1}
VIT = {key: value for key, value in SMALL.items() if key != "vocab_size"} | {"image_size": 16, "patch_size": 8}


def _decoder() -> tf.PreTrainedConfig:
    return tf.BertConfig(**BERT, is_decoder=True, add_cross_attention=True)


def _texts() -> tf.PreTrainedModel:
    return tf.EncoderDecoderModel(
        tf.EncoderDecoderConfig.from_encoder_decoder_configs(tf.BertConfig(**BERT), _decoder())
    )


def _captions() -> tf.PreTrainedModel:
    return tf.VisionEncoderDecoderModel(
        tf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(tf.ViTConfig(**VIT), _decoder())
    )


COMPOSITES = {"texts": _texts, "captions": _captions}
EMBEDDING = "decoder.bert.embeddings.word_embeddings"
WAYS: dict[str, dict[str, Any]] = {
    "LoRA": {"target_modules": ["query", EMBEDDING]},
    "saved": {"target_modules": ["query"], "modules_to_save": [EMBEDDING]},
}


def output(model: Any) -> torch.Tensor:
    ids = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(0))
    pixels = {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))}
    first = pixels if "vit" in str(model.config.encoder.model_type) else {"input_ids": ids}
    with torch.no_grad():
        return model.eval()(**first, decoder_input_ids=ids).logits


def adapted(kind: Any, base: Path, folder: Path, options: dict[str, Any]) -> Path:
    model = get_peft_model(kind.from_pretrained(base), LoraConfig(r=4, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("composite", COMPOSITES)
def test_refused_until_the_base_is_untied(composite: str, way: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = COMPOSITES[composite]()
    kind = type(model)
    model.save_pretrained(tmp_path / "tied")
    adapter = adapted(kind, tmp_path / "tied", tmp_path / "a", WAYS[way])
    with pytest.raises(NotSupported, match=r"set tie_word_embeddings to false in decoder of config\.json"):
        surgery.merge(surgery.open_checkpoint(tmp_path / "tied"), surgery.open_adapter(adapter))
    head = model.decoder.cls.predictions.decoder
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    model.config.decoder.tie_word_embeddings = False
    model.decoder.config.tie_word_embeddings = False
    model.save_pretrained(tmp_path / "untied")
    live = output(PeftModel.from_pretrained(kind.from_pretrained(tmp_path / "tied"), adapter))
    merged = surgery.merge(surgery.open_checkpoint(tmp_path / "untied"), surgery.open_adapter(adapter))
    surgery.write(merged, tmp_path / "out")
    assert (live - output(kind.from_pretrained(tmp_path / "tied"))).abs().max() > 1e-2
    assert (live - output(kind.from_pretrained(tmp_path / "out"))).abs().max() < 1e-4 * live.abs().max()


@pytest.mark.parametrize("composite", COMPOSITES)
def test_what_is_tied_to_nothing_is_merged(composite: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = COMPOSITES[composite]()
    model.save_pretrained(tmp_path / "tied")
    targets = ["query", *(["encoder.embeddings.word_embeddings"] if composite == "texts" else [])]
    adapter = adapted(type(model), tmp_path / "tied", tmp_path / "a", {"target_modules": targets})
    live = output(PeftModel.from_pretrained(type(model).from_pretrained(tmp_path / "tied"), adapter))
    merged = surgery.merge(surgery.open_checkpoint(tmp_path / "tied"), surgery.open_adapter(adapter))
    surgery.write(merged, tmp_path / "out")
    assert (live - output(type(model).from_pretrained(tmp_path / "out"))).abs().max() < 1e-4 * live.abs().max()
