"""Wrappers: modules that frameworks put around a model's own, whose names they leave in those of its tensors.

Which of them a base really has as modules is decided where the base is at hand: `merging/unwrapped.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# What wraps a module, as its part of a name, and whose it is.
WRAPPERS: Mapping[str, str] = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_fpw_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_forward_module": "Lightning Fabric",
    "_lightning_module": "Lightning",
    "module": "DDP or DeepSpeed",
}
ANY = "|".join(WRAPPERS)


def without(text: str, gone: set[str]) -> str:
    r"""A module's name, or a pattern for names, without these wrappers: `_orig_mod\.model` and `_orig_mod.model` are
    `model`.
    """
    rule = re.compile(rf"(?<![A-Za-z0-9_])(?:{'|'.join(map(re.escape, sorted(gone)))})\\?\.(?![*+?{{])")
    return rule.sub("", text) if gone else text
