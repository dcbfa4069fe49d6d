"""Ways of blending models: a file each, with its law, and a row of the table.

The names are those of mergekit, and so are the parameters and what is computed; what is computed in float32 is rounded
once, unless another dtype is asked for. To add one: a file with its `METHODS`, and its name here.
"""

from __future__ import annotations

from collections.abc import Mapping

from . import (
    arcee_fusion,
    breadcrumbs,
    dare,
    della,
    karcher,
    linear,
    magnitude,
    model_stock,
    multislerp,
    nearswap,
    nuslerp,
    passthrough,
    ram,
    sce,
    slerp,
    task,
)
from .method import Method

METHODS: Mapping[str, Method] = {
    **linear.METHODS,
    **slerp.METHODS,
    **nuslerp.METHODS,
    **multislerp.METHODS,
    **karcher.METHODS,
    **task.METHODS,
    **magnitude.METHODS,
    **dare.METHODS,
    **breadcrumbs.METHODS,
    **della.METHODS,
    **sce.METHODS,
    **ram.METHODS,
    **model_stock.METHODS,
    **nearswap.METHODS,
    **arcee_fusion.METHODS,
    **passthrough.METHODS,
}
