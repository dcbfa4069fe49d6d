"""Fused modules of a base that has its authors' names, where the adapter has diffusers' names for the parts."""

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
