"""Adapters under the names of the class in memory, where files have older ones, and the reverse, judged by PEFT's
live model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from models.fused.stacks import SIZES, random
from safetensors.torch import load_file, save_file

import surgery
from surgery.errors import NotPlaced
from surgery.lazy.tensor import is_computed
from surgery.models.names_v5 import in_memory, renames_of
from surgery.models.names_v5_table import BASES, RENAMES, SAME

PIXELS = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(4))
TOKENS = torch.randint(3, 90, (1, 12), generator=torch.Generator().manual_seed(4))
VIT = {
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    key: SIZES[key]
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
}
TEXT |= {"vocab_size": 97}
TOWER = {
    "num_channels": 3,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
QWEN_VISION = {
    "depth": 2,
    "hidden_size": 16,
    "out_hidden_size": 16,
    "intermediate_size": 20,
    "num_heads": 2,
    "patch_size": 8,
}


def llava() -> Any:
    vision = tf.CLIPVisionConfig(**TOWER, image_size=32, patch_size=8, projection_dim=16)
    config = tf.LlavaConfig(vision_config=vision, text_config=tf.LlamaConfig(**TEXT), image_token_index=96)
    return tf.LlavaForConditionalGeneration(config)


def qwen2_5_vl() -> Any:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = tf.Qwen2_5_VLConfig(text_config={**TEXT, "rope_parameters": rope}, vision_config=QWEN_VISION)
    return tf.Qwen2_5_VLForConditionalGeneration(config)


def pixels(model: Any) -> torch.Tensor:
    return model(pixel_values=PIXELS).logits


def tokens(model: Any) -> torch.Tensor:
    return model(input_ids=TOKENS).logits


def image_too(model: Any) -> torch.Tensor:
    """The text's logits and the image's features: both towers count."""
    inner = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    features = inner.model.vision_tower(PIXELS).last_hidden_state
    return torch.cat([model(input_ids=TOKENS).logits.flatten(), features.flatten()])


@dataclass(frozen=True)
class Case:
    """A model whose files have other names than its class in memory, and what is compared."""

    build: Callable[[], Any]
    output: Callable[[Any], torch.Tensor]
    targets: Any
    lora: Mapping[str, Any] = field(default_factory=dict)


CASES = {
    "vit": Case(
        lambda: tf.ViTForImageClassification(tf.ViTConfig(**VIT)), pixels, ["q_proj", "v_proj", "o_proj", "fc1", "fc2"]
    ),
    "vit, patterns": Case(
        lambda: tf.ViTForImageClassification(tf.ViTConfig(**VIT)),
        pixels,
        ["q_proj", "fc1"],
        {"rank_pattern": {r"layers\.1\.attention\.q_proj": 2}, "alpha_pattern": {"mlp.fc1": 11}},
    ),
    "deit": Case(lambda: tf.DeiTForImageClassification(tf.DeiTConfig(**VIT)), pixels, ["k_proj", "fc2"]),
    "dinov2": Case(
        lambda: tf.Dinov2ForImageClassification(
            tf.Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
        ),
        pixels,
        ["q_proj", "o_proj"],
    ),
    "llava, both towers": Case(llava, image_too, r".*(language_model|vision_tower).*\.(q_proj|v_proj)"),
    "qwen2_5_vl": Case(qwen2_5_vl, tokens, r".*language_model.*\.(q_proj|down_proj)"),
    "gpt_neox, the head": Case(
        lambda: tf.GPTNeoXForCausalLM(
            tf.GPTNeoXConfig(
                vocab_size=97, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2
            )
        ),
        tokens,
        ["query_key_value", "dense_h_to_4h"],
    ),
}


def output(case: Case, model: Any) -> torch.Tensor:
    with torch.no_grad():
        return case.output(model).float()


def trained(case: Case, folder: Path) -> torch.Tensor:
    """`folder`/base and `folder`/adapter, and what the live adapted model computes."""
    model = random(case.build())
    model.save_pretrained(folder / "base")
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(**{"r": 3, "lora_alpha": 6, "target_modules": case.targets, **case.lora})
    ).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(folder / "adapter")
    return output(case, adapted)


def merge(folder: Path, base: str = "base") -> surgery.Checkpoint:
    return surgery.merge(surgery.open_checkpoint(folder / base), surgery.open_adapter(folder / "adapter"))


def compare(case: Case, path: Path, live: torch.Tensor) -> None:
    model = random(case.build())
    loaded, info = type(model).from_pretrained(path, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"] and not info["unexpected_keys"]
    largest = live.abs().max().item()
    error, effect = ((output(case, one.eval()) - live).abs().max().item() / largest for one in (loaded, model))
    assert error <= 1e-5, f"off by {error}"
    assert effect >= 1000 * max(error, torch.finfo(torch.float32).eps), (
        f"an effect of {effect} proves nothing against {error}"
    )


@pytest.mark.parametrize("name", CASES)
def test_merged_computes_what_the_live_model_computes(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    live = trained(case, tmp_path)
    made = merge(tmp_path)
    surgery.write(made, tmp_path / "out")
    compare(case, tmp_path / "out", live)
    keys = {
        re.sub(r"\.lora_.*", ".weight", k.removeprefix("base_model.model."))
        for k in load_file(tmp_path / "adapter/adapter_model.safetensors")
    }
    if not keys <= set(load_file(tmp_path / "base/model.safetensors")):
        assert any("the adapter has the names of the class in memory" in note for note in made.notes)


@pytest.mark.parametrize("name", ["vit, patterns", "llava, both towers"])
def test_older_names_into_newer_files(name: str, tmp_path: Path) -> None:
    """The reverse: files under the names in memory, the adapter under those of older files. The same weights come
    out.
    """
    case = CASES[name]
    live = trained(case, tmp_path)
    renames = renames_of(surgery.open_checkpoint(tmp_path / "base").config)
    base = load_file(tmp_path / "base" / "model.safetensors")
    new = {key: in_memory(key, renames) for key in base}
    assert len({*new.values()}) == len(base)
    old = {
        f"base_model.model.{to.removesuffix('.weight')}": f"base_model.model.{key.removesuffix('.weight')}"
        for key, to in new.items()
    }
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_bytes((tmp_path / "base" / "config.json").read_bytes())
    save_file(
        {new[key]: tensor for key, tensor in base.items()}, tmp_path / "new" / "model.safetensors", {"format": "pt"}
    )
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    made = {}
    for key, tensor in load_file(file).items():
        module, dot, part = key.partition(".lora_")
        made[f"{old[module]}{dot}{part}"] = tensor
    save_file(made, file)
    said = tmp_path / "adapter" / "adapter_config.json"  # its targets have the older names, too
    targets = sorted({key.partition(".lora_")[0].rpartition(".")[2] for key in made})
    said.write_text(json.dumps(json.loads(said.read_text()) | {"target_modules": targets}))
    if case.lora:  # the patterns were written for the names in memory
        config = tmp_path / "adapter" / "adapter_config.json"
        config.write_text(
            config.read_text()
            .replace(r"layers\\.1\\.attention\\.q_proj", r"layer\\.1\\..*query")
            .replace("mlp.fc1", "intermediate.dense")
        )
    merged = merge(tmp_path, "new")
    assert any("the adapter has older names" in note for note in merged.notes)
    surgery.write(merged, tmp_path / "out")
    compare(case, tmp_path / "out", live)


# What is refused


def test_a_rename_is_not_taken_in_part(tmp_path: Path) -> None:
    trained(CASES["vit"], tmp_path)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({k.replace("layers.1.mlp.fc2", "layers.1.mlp.fc9"): t for k, t in load_file(file).items()}, file)
    with pytest.raises(NotPlaced) as caught:
        merge(tmp_path)
    assert (
        "1 of the adapter's 10 modules have no place in the base, by its own names or by those of transformers"
        in str(caught.value)
    )
    assert "vit.layers.1.mlp.fc9" in str(caught.value)
    assert "ViTModel" in str(caught.value)


def test_two_renames_that_place_an_adapter_differently_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`aa` is in memory what files call `bb`; and an older `aa` is what files call `cc`: either would do."""
    monkeypatch.setattr("surgery.models.names_v5.RENAMES", {"llama": ((r"^aa\.", "cc."), (r"^bb\.", "aa."))})
    monkeypatch.setattr("surgery.models.names_v5.SAME", {})
    for name in ("base", "adapter"):
        (tmp_path / name).mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file(
        {"bb.x.weight": torch.ones(4, 4), "cc.x.weight": torch.ones(4, 4)}, tmp_path / "base" / "model.safetensors"
    )
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2})
    )
    factors = {
        "base_model.model.aa.x.lora_A.weight": torch.ones(2, 4),
        "base_model.model.aa.x.lora_B.weight": torch.ones(4, 2),
    }
    save_file(factors, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(NotPlaced) as caught:
        merge(tmp_path)
    assert str(caught.value).splitlines() == [
        "the adapter's modules could be placed in more than one way",
        f"  --> {tmp_path / 'adapter'}",
        (
            "      aa.x.weight -> bb.x.weight: the adapter has the names of the class in memory, the base's files have"
            " older ones"
        ),
        (
            "      aa.x.weight -> cc.x.weight: the adapter has older names, the base's files have those of the class in"
            " memory"
        ),
        "help: say which with --map REGEX=REPLACEMENT",
        "      in Python, --map is names=",
    ]
    ruled = surgery.merge(
        surgery.open_checkpoint(tmp_path / "base"),
        surgery.open_adapter(tmp_path / "adapter"),
        names=[(r"^aa\.", "bb.")],
    )
    assert [name for name, tensor in ruled.tensors.items() if is_computed(tensor)] == ["bb.x.weight"]


# Tables


def rules(transforms: Any) -> tuple[tuple[str, str], ...]:
    from transformers.core_model_loading import GroupWeightRename, Inkling2IndexOffsetWeightRename, WeightRenaming

    made = []
    for one in transforms:
        if isinstance(one, WeightRenaming) and not isinstance(one, GroupWeightRename | Inkling2IndexOffsetWeightRename):
            for source in sorted(one.source_patterns, key=len, reverse=True):
                pattern = source.replace("*.", r".*\.") + (r"(?!\w)" if re.search(r"[a-zA-Z0-9]$", source) else "")
                made.append((pattern, one.target_patterns[0]))
    return tuple(made)


def test_the_table_is_that_of_transformers() -> None:
    from transformers.conversion_mapping import _build_checkpoint_conversion_mapping
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    theirs = {
        key: made for key, transforms in _build_checkpoint_conversion_mapping().items() if (made := rules(transforms))
    }
    assert {key: RENAMES[SAME.get(key, key)] for key in (*RENAMES, *SAME)} == theirs
    for kind, names in MODEL_MAPPING_NAMES.items():
        name = names if isinstance(names, str) else names[0]
        if name in theirs or kind in theirs:
            assert BASES[kind] == (name, getattr(getattr(tf, name, None), "base_model_prefix", "") or "")
