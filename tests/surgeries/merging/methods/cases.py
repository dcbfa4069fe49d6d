"""Adapters of each kind besides LoRA, as PEFT makes and saves them, on each layer that PEFT builds them on.

A kind has a module of rows here, `CASES_OF_<file>`: (what it shows, a family, options of its config, how strongly its
parameters are moved). `test_methods.py` holds the laws of all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import peft
import tiny_models
import torch
import transformers as tf
from models.fused import stacks

IDS = tiny_models.inputs("llama")["input_ids"]
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))
SOUND = torch.randn(2, 200, generator=torch.Generator().manual_seed(4))
FRAMES = torch.randn(1, 4, 3, 16, 16, generator=torch.Generator().manual_seed(4))
SIZES = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
TOWER = {"hidden_size": 36, "intermediate_size": 50, "num_hidden_layers": 2, "num_attention_heads": 3}


@dataclass(frozen=True)
class Family:
    """A model, and what is compared of it."""

    build: Callable[[], Any]
    run: Callable[[Any], torch.Tensor]


def words(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits


def seen(model: Any) -> torch.Tensor:
    return model(pixel_values=PIXELS).logits


def heard(model: Any) -> torch.Tensor:
    return model(SOUND).logits


def watched(model: Any) -> torch.Tensor:
    return model(pixel_values=FRAMES).logits


def _llama(**more: Any) -> Any:
    sizes = {**tiny_models.TEXT, **SIZES, "num_key_value_heads": 2}
    return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes, attention_bias=True, mlp_bias=True, **more))


def _wav2vec2() -> Any:
    sizes = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
    kernels = {"conv_dim": (8, 10), "conv_stride": (2, 2), "conv_kernel": (4, 3), "num_conv_pos_embeddings": 4}
    config = tf.Wav2Vec2Config(**sizes, **kernels, conv_bias=True, vocab_size=11, num_conv_pos_embedding_groups=2)
    return tf.Wav2Vec2ForCTC(config)


# linear: nn.Linear with biases; bare: without; gpt2: Conv1D; resnet: kernels of 7, 3 and 1; convnext: depthwise too
FAMILIES: Mapping[str, Family] = {
    "linear": Family(_llama, words),
    "bare": Family(tiny_models.MODELS["llama"], words),
    "tied": Family(lambda: _llama(tie_word_embeddings=True), words),
    "gpt2": Family(tiny_models.MODELS["gpt2"], words),
    "resnet": Family(
        lambda: tf.ResNetForImageClassification(
            tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], num_labels=5, layer_type="basic")
        ),
        seen,
    ),
    "bottleneck": Family(
        lambda: tf.ResNetForImageClassification(
            tf.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], num_labels=5)
        ),
        seen,
    ),
    "convnext": Family(
        lambda: tf.ConvNextForImageClassification(
            tf.ConvNextConfig(
                hidden_sizes=[8, 12], depths=[1, 1], num_stages=2, num_labels=5, layer_scale_init_value=1.0
            )
        ),
        seen,
    ),
    "wav2vec2": Family(_wav2vec2, heard),
    "vivit": Family(
        lambda: tf.VivitForVideoClassification(
            tf.VivitConfig(**TOWER, image_size=16, num_frames=4, tubelet_size=[2, 8, 8], num_labels=5)
        ),
        watched,
    ),
}


@dataclass(frozen=True)
class Case:
    """One adapter: PEFT's config of it, on a family; `size` is how far its parameters are moved from where they begin.

    `parts` are names of which some must be in the file: that the case is what it says. `weighs` is whether it can be
    merged in part, where its kind can.
    """

    family: str
    config: Callable[[], peft.PeftConfig]
    size: float = 0.1
    parts: Sequence[str] = ()
    weighs: bool = True


@cache
def model_of(family: str) -> Any:
    """The family's model, every parameter random; never changed."""
    return stacks.random(FAMILIES[family].build()).eval()


def fresh(family: str, base: Path | None = None) -> Any:
    """A copy of it, as if it was loaded from `base`."""
    model = copy.deepcopy(model_of(family))
    if base:
        model.name_or_path = str(base)
    return model


def output(family: str, model: Any) -> torch.Tensor:
    """What a model of the family computes."""
    with torch.no_grad():
        return FAMILIES[family].run(model.eval()).float()


def trained(case: Case, base: Path, folder: Path, seed: int = 0) -> Path:
    """The case's adapter in `folder`, each of its parameters moved at random, as PEFT saves it."""
    torch.manual_seed(seed)
    model = peft.get_peft_model(fresh(case.family, base), case.config())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(case.size * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


def live(case: Case, base: Path, folders: Sequence[Path]) -> Any:
    """The model with the adapters beside its layers, as PEFT loads them: nothing is merged."""
    model = peft.PeftModel.from_pretrained(fresh(case.family, base), folders[0], "0")
    for number, folder in enumerate(folders[1:], 1):
        model.load_adapter(folder, str(number))
    if len(folders) > 1:
        model.base_model.set_adapter([str(number) for number, _ in enumerate(folders)])
    return model
