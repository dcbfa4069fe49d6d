"""Modules that only one of the two namings of a network has fused: parts of what the base has whole, and wholes of what
it has in parts.
"""

from __future__ import annotations

from ...checkpoint import Checkpoint
from ...files.peft import Adapter
from ...models.diffusion.spelling import spelled
from ...models.fused.row import Site


def parts_held(checkpoint: Checkpoint, adapter: Adapter) -> list[Site]:
    """The fused modules of the base that have parts which the adapter is on, as the other naming has them."""
    if "model_type" in checkpoint.config:
        return []
    missing = [module for module in adapter.lora if f"{module}.weight" not in checkpoint.tensors]
    if not missing:
        return []
    known = spelled(checkpoint.tensors, checkpoint.config)
    sites = {one.site.module: one.site for one in known.values() if one and one.site and not one.fused}
    return [site for site in sites.values() if set(site.parts) & set(missing)]


def wholes_held(checkpoint: Checkpoint, adapter: Adapter) -> list[Site]:
    """The places of the base's parts that the adapter is on the whole of: what cannot be split is merged into what they
    are together.
    """
    held = {module for module in adapter.lora if f"{module}.weight" not in checkpoint.tensors}
    if not held or "model_type" in checkpoint.config:
        return []
    known = spelled(checkpoint.tensors, checkpoint.config)
    sites = {one.site.module: one.site for one in known.values() if one and one.site and one.fused}
    return [site for module, site in sites.items() if module in held]
