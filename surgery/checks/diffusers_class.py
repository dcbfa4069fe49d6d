"""Whether diffusers' class takes every tensor of a component: built from its config on the meta device, no weight
loaded.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import listed, series
from ..lazy.tensor import Shape
from ..names import natural
from .check import Check


def loadable_in_diffusers(checkpoint: Checkpoint) -> Check:
    """The answer of the class that `_class_name` names."""
    name = str(checkpoint.config["_class_name"])
    if find_spec("diffusers") is None:
        return Check("class", None, f"{name} is a class of diffusers: pip install diffusers")
    import diffusers

    kind: Any = getattr(diffusers, name, None)
    if kind is None or not hasattr(kind, "from_config"):
        return Check("class", None, f"diffusers {diffusers.__version__} has no class {name}; remote code is never run")
    try:
        wanted, here, passed = _asked(kind, checkpoint)
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError, ImportError, NotImplementedError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Check("class", False, f"{name} refuses the config: {said[:200]}")
    odd = [f"{n} is {here[n]}, the class has {shape}" for n, shape in wanted.items() if here.get(n, shape) != shape]
    strange = [one for one in here.keys() - wanted.keys() if not any(re.search(rule, one) for rule in passed)]
    found = {
        "missing": sorted(wanted.keys() - here.keys(), key=natural),
        "unexpected": sorted(strange, key=natural),
        "mismatched": odd,
    }
    if rows := tuple(f"{what}: {series(listed(names))}" for what, names in found.items() if names):
        return Check("class", False, f"{name} would not load it whole", rows)
    return Check("class", True, f"{name} accepts every tensor: none missing, unexpected or of another shape")


def _asked(kind: Any, checkpoint: Checkpoint) -> tuple[dict[str, Shape], dict[str, Shape], Sequence[str]]:
    """The class's tensors, the checkpoint's, under the names that its loader makes of those of older versions, and
    what it passes over.
    """
    import torch

    below = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with torch.device("meta"):
            model = kind.from_config({k: value for k, value in checkpoint.config.items() if k != "_name_or_path"})
        here = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        if len(set(checkpoint.weight_map.values())) == 1 and hasattr(model, "_fix_state_dict_keys_on_load"):
            model._fix_state_dict_keys_on_load(here)  # not for shards: neither does its loader
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        return wanted, here, tuple(getattr(kind, "_keys_to_ignore_on_load_unexpected", None) or ())
    finally:
        logging.disable(below)
