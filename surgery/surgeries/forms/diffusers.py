"""An adapter as diffusers saves it: one file, the component's name before each module, ranks and alphas in its
metadata.

    unet.<path>.lora_A.weight, .lora_B.weight, .lora_magnitude_vector      `load_lora_weights(folder)` finds the file
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...adapters.low_rank import Factors, as_low_rank, factors_of
from ...errors import NotSupported, listed
from ...files.adapters.alphas import MAGNITUDE, METADATA
from ...files.adapters.lora import numbers
from ...files.peft import Adapter
from ...lazy.tensor import Tensor, reshape
from ...models.diffusion.naming import TEXT
from ...names import natural
from .kohya import TIP, check_plain, check_whole
from .on_components import OnComponent

FILE = "pytorch_lora_weights.safetensors"
WHO = "diffusers' files have"


def to_diffusers(places: Sequence[tuple[OnComponent, Adapter]]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of the file, and its metadata, of adapters in diffusers' names. Raises NotSupported for what the form
    cannot say.
    """
    tensors: dict[str, Tensor] = {}
    said: dict[str, Any] = {}
    for place, adapter in places:
        root, plain = _root(place), as_low_rank(adapter)
        check_whole(plain, WHO)
        factors = {module: factors_of(plain, module) for module in sorted(plain.lora, key=natural)}
        check_plain(plain, factors, WHO)
        dora = _dora(plain, factors)
        biases = any(one.bias is not None for one in factors.values())
        for module, one in factors.items():
            tensors |= {f"{root}.{module}.{part}": tensor for part, tensor in _of_lora(one).items()}
        config = {**_numbers(factors), "use_dora": dora, "lora_bias": biases}
        said |= {f"{root}.{key}": value for key, value in config.items()}
    return tensors, {"format": "pt", METADATA: json.dumps(said, indent=2, sort_keys=True)}


def _root(place: OnComponent) -> str:
    if place.component.name != "denoiser":
        return place.component.name
    if place.folder in ("unet", "transformer"):
        return place.folder
    is_unet = any(re.match(r"(?:down_blocks|input_blocks)\.", module) for module in place.shapes)
    return "unet" if is_unet else "transformer"


def _numbers(factors: Mapping[str, Factors]) -> dict[str, Any]:
    """Ranks and alphas by module; of CLIP's, by what they are called in every version of transformers."""
    ends = {module: module.removeprefix(TEXT) for module in factors}
    found = numbers({end: (factors[module].rank, factors[module].alpha) for module, end in ends.items()})
    if any(module != end for module, end in ends.items()):
        for table in ("rank_pattern", "alpha_pattern"):
            found[table] = {rule.removeprefix("^"): value for rule, value in found[table].items()}
    return {**found, "target_modules": list(ends.values())}


def _dora(plain: Adapter, factors: dict[str, Factors]) -> bool:
    """Whether all have magnitudes. Raises NotSupported where only some have."""
    without = [module for module, one in factors.items() if not one.rest]
    if without and len(without) != len(factors):
        what = "diffusers' files have DoRA on all modules of a component, or on none"
        raise NotSupported(what, where=[plain.path, *listed(without)], help=TIP)
    return not without


def _of_lora(one: Factors) -> dict[str, Tensor]:
    made = {"lora_A.weight": one.a, "lora_B.weight": one.b}
    made |= {"lora_B.bias": one.bias} if one.bias is not None else {}
    axes, rows = len(one.a.shape), one.b.shape[0]
    shape = (rows,) if axes == 2 else (1, rows, *(1,) * (axes - 2))
    for magnitude in one.rest.values():
        made[MAGNITUDE] = reshape(magnitude, shape)
    return made
