"""The components of an image model, and how files of adapters begin the names of modules in each.

    lora_unet_down_blocks_0_…        flat: the path with `_` for each `.`, behind a root
    transformer.transformer_blocks.0.…     dotted: the path itself, behind a root

A component lies in a folder of a pipeline, or below a prefix in a checkpoint of one file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from .more_transformers import FLUX2, HUNYUAN_VIDEO, LTX, LUMINA2, Z_IMAGE
from .naming import Naming
from .text_encoders import OPEN_CLIP
from .transformers import FLUX, SD3, WAN
from .unet import UNET


@dataclass(frozen=True, slots=True)
class Component:
    """A component: the roots of its modules' names in files, and the namings that it may have."""

    name: str
    flat: tuple[str, ...]
    dotted: tuple[str, ...]
    namings: tuple[Naming, ...]


DENOISER = Component(
    "denoiser",
    ("lora_unet_", "lora_transformer_", "lora_prior_unet_", "lycoris_unet_", "lycoris_"),
    ("unet.", "transformer.", "diffusion_model.", "model.diffusion_model.", ""),
    (UNET, FLUX2, HUNYUAN_VIDEO, FLUX, SD3, WAN, LUMINA2, Z_IMAGE, LTX),  # the first that tells is meant
)
_CLIP = (OPEN_CLIP,)
TEXT_ENCODERS = (
    Component(
        "text_encoder",
        ("lora_te1_", "lora_te_", "lycoris_te1_", "lycoris_te_", "lycoris_"),
        ("text_encoder.", "text_encoders.clip_l.transformer.", "text_encoders.clip_l."),
        _CLIP,
    ),
    Component(
        "text_encoder_2",
        ("lora_te2_", "lora_te3_", "lycoris_te2_"),
        (
            "text_encoder_2.",
            *(f"text_encoders.{one}.{inner}" for one in ("clip_g", "t5xxl") for inner in ("transformer.", "")),
        ),
        _CLIP,
    ),
    Component(
        "text_encoder_3",
        ("lora_te3_", "lycoris_te3_"),
        ("text_encoder_3.", "text_encoders.t5xxl.transformer.", "text_encoders.t5xxl."),
        (),
    ),
)
COMPONENTS = (DENOISER, *TEXT_ENCODERS)
_BY_NAME = {one.name: one for one in COMPONENTS}

# Where components lie: the folder in a pipeline, and the prefix in a checkpoint of one file.
_FOLDERS = {
    r"unet|transformer|prior|dit": "denoiser",
    r"text_encoder": "text_encoder",
    r"text_encoder_2": "text_encoder_2",
    r"text_encoder_3": "text_encoder_3",
}
_PREFIXES = {
    "model.diffusion_model.": "denoiser",
    "diffusion_model.": "denoiser",
    "cond_stage_model.transformer.": "text_encoder",
    "cond_stage_model.model.": "text_encoder",
    "conditioner.embedders.0.transformer.": "text_encoder",
    "conditioner.embedders.0.model.": "text_encoder_2",
    "conditioner.embedders.1.model.": "text_encoder_2",
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    "text_encoders.t5xxl.transformer.": "text_encoder_3",
}
_TEXT_TYPES = re.compile(r"clip.*|t5.*|umt5.*|gemma.*|llama.*|qwen.*|mistral.*")


def component_of(folder: str) -> Component | None:
    """The component in this folder of a pipeline; None where adapters know none."""
    return next((_BY_NAME[name] for rule, name in _FOLDERS.items() if re.fullmatch(rule, folder)), None)


def root_of(module: str) -> str:
    """What the name of a module begins with, where that tells of a component."""
    roots = [root for one in COMPONENTS for root in (*one.flat, *one.dotted) if root]
    return max((root for root in roots if module.startswith(root)), key=len, default="")


def components_in(modules: Collection[str], config: Mapping[str, Any]) -> list[tuple[str, tuple[Component, ...]]]:
    """(what the names of its modules begin with, the component that it is) for each that a checkpoint holds.

    A text encoder by itself may be any of them: its files do not say which of a pipeline it is.
    """
    found: list[tuple[str, tuple[Component, ...]]] = [
        (prefix, (_BY_NAME[name],)) for prefix, name in _PREFIXES.items() if _begins(modules, prefix)
    ]
    if found:
        return found
    kind = str(config.get("model_type", ""))
    return [("", TEXT_ENCODERS if _TEXT_TYPES.fullmatch(kind) else (DENOISER,))]


def _begins(modules: Collection[str], prefix: str) -> bool:
    return any(module.startswith(prefix) for module in modules)
