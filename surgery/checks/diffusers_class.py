"""Whether diffusers' class takes every tensor of a component: built from its config on the meta device, no weight
loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
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
        wanted = _shapes(kind, checkpoint.config)
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError, ImportError, NotImplementedError) as error:
        return Check("class", False, f"{name} refuses the config: {str(error).strip().splitlines()[0][:200]}")
    here = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    found = {
        "missing": sorted(wanted.keys() - here.keys(), key=natural),
        "unexpected": sorted(here.keys() - wanted.keys(), key=natural),
        "mismatched": [
            f"{n} is {here[n]}, the class has {shape}" for n, shape in wanted.items() if here.get(n, shape) != shape
        ],
    }
    if rows := tuple(f"{what}: {series(listed(names))}" for what, names in found.items() if names):
        return Check("class", False, f"{name} would not load it whole", rows)
    return Check("class", True, f"{name} accepts every tensor: none missing, unexpected or of another shape")


def _shapes(kind: Any, config: Mapping[str, Any]) -> dict[str, Shape]:
    import torch

    below = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with torch.device("meta"):
            model = kind.from_config({key: value for key, value in config.items() if key != "_name_or_path"})
        return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    finally:
        logging.disable(below)
