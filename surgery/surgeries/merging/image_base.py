"""Whether an image model's adapter says in its file's metadata that its base is of another architecture."""

from __future__ import annotations

import re

from ...checkpoint import Checkpoint
from ...errors import AdapterError
from ...files.peft import Adapter
from ...models.diffusion.components import DENOISER, components_in
from ...models.diffusion.naming import naming_of
from ...models.diffusion.spelling import modules_of
from ...models.diffusion.unet import UNET, is_xl

# Where kohya's scripts and others say it, and what they call which architecture.
KEYS = ("ss_base_model_version", "modelspec.architecture")
_SAID = {
    r"sdxl.*|stable-diffusion-xl.*": "Stable Diffusion XL",
    r"sd_?v?[12](?:[^\d].*)?|stable-diffusion-v[12].*": "Stable Diffusion 1 or 2",
    r"sd3.*|stable-diffusion-3.*": "Stable Diffusion 3",
    r"flux[._-]?1.*": "Flux",
    r"flux[._-]?2.*": "Flux 2",
}
_KNOWN = {*_SAID.values()}


def check_architecture(base: Checkpoint, adapter: Adapter) -> None:
    """Raise AdapterError where the metadata names another architecture than the base's, as far as both are known."""
    said = {key: str(adapter.metadata[key]) for key in KEYS if adapter.metadata and adapter.metadata.get(key)}
    theirs = {key: name for key, text in said.items() if (name := _named(text))}
    ours = _architecture(base) if theirs else ""
    if ours not in _KNOWN or not theirs or ours in theirs.values():
        return
    key, name = next(iter(theirs.items()))
    what = f"the adapter was trained on {name}, and this base is {ours}"
    tip = "give the base that it was trained on; if this one is meant: --any-base"
    raise AdapterError(what, where=[adapter.path, f"{key} = {said[key]!r}", base.path], help=tip)


def _named(text: str) -> str:
    return next((name for rule, name in _SAID.items() if re.fullmatch(rule, text.lower())), "")


def _architecture(base: Checkpoint) -> str:
    """What the base's denoiser is; "" where it has none, or none that is known."""
    shapes = modules_of(base.tensors)
    prefix = next((begin for begin, (one, *_) in components_in(shapes, base.config) if one is DENOISER), None)
    if prefix is None:
        return ""
    here = {name.removeprefix(prefix) for name in shapes if name.startswith(prefix)}
    naming, _ = naming_of(here, DENOISER.namings)
    if naming is UNET:
        return "Stable Diffusion XL" if is_xl(here) else "Stable Diffusion 1 or 2"
    return naming.name if naming else ""
