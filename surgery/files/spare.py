"""Tensors of an adapter's file that a trained one beside them stands for.

    lm_head.weight, lm_head.modules_to_save.weight             where PEFT saves embeddings or biases: the same twice
    lm_head.original_module.weight                             the frozen one, in a state dict that was saved whole
    lm_head.base_layer.weight, lm_head.ln_tuning_layers.weight the base's own head, which PEFT saves with any adapter
                                                               on it, beside the copy that was trained

A live model never computes with the original of a module that is saved.
"""

from __future__ import annotations

import re
from collections.abc import Collection

_ORIGINAL, _SAVED = re.compile(r"\.original_module(?=\.)"), re.compile(r"\.modules_to_save(?=\.)")
_UNDER = re.compile(r"\.base_layer(?=\.[^.]+$)")


def is_spare(name: str, names: Collection[str]) -> bool:
    """Whether the tensor is a module's original, or one that the file's `names` have without a wrapper, too."""
    if _ORIGINAL.search(name) or (_UNDER.search(name) and _UNDER.sub(".ln_tuning_layers", name) in names):
        return True
    return bool(_SAVED.search(name)) and _SAVED.sub("", name) in names
