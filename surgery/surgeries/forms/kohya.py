"""An adapter as kohya's scripts write it: one file, flat names, an alpha for each module.

U-Nets of Stable Diffusion 1 and 2 are called as diffusers has them, all others as their authors do, and CLIP as
transformers has it. The kinds of LyCORIS that one file mixes go as they are; rsLoRA goes into the alphas.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from ...adapters.lora import pattern
from ...adapters.low_rank import EMBEDDING, Factors, as_low_rank, factors_of
from ...errors import NotSupported, listed
from ...files.adapters.alphas import BIAS, IA3_IN, IA3_OUT, LYCORIS, MAGNITUDE, rank_of
from ...files.peft import Adapter
from ...lazy.dtypes import DTYPES, F32
from ...lazy.tensor import Constant, Tensor, reshape
from ...names import natural
from .on_components import OnComponent

FILE = "lora.safetensors"
WHO = "kohya's files have"
TIP = "leave them out with --except, or merge the adapter into its base"
_NAMES = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight", IA3_IN: "weight", IA3_OUT: "weight"}


def to_kohya(places: Sequence[tuple[OnComponent, Adapter]]) -> dict[str, Tensor]:
    """The tensors of the file, of adapters in kohya's names. Raises NotSupported for what the form cannot say."""
    found: dict[str, Tensor] = {}
    for place, adapter in places:
        root = _root(place)
        check_whole(adapter, WHO)
        parts = _lycoris(adapter) if adapter.config.get("peft_type") == LYCORIS else _lora(adapter)
        for module, held in parts.items():
            found |= {f"{root}{module.replace('.', '_')}.{part}": tensor for part, tensor in held.items()}
    return found


def _root(place: OnComponent) -> str:
    match place.component.name:
        case "denoiser":
            return "lora_unet_"
        case "text_encoder":
            return "lora_te1_" if place.several else "lora_te_"
        case "text_encoder_2":
            return "lora_te3_" if place.model.startswith("t5") else "lora_te2_"
        case _:
            return "lora_te3_"


def _lora(adapter: Adapter) -> dict[str, dict[str, Tensor]]:
    plain = as_low_rank(adapter)
    factors = {module: factors_of(plain, module) for module in sorted(plain.lora, key=natural)}
    check_plain(plain, factors, WHO)
    _check_biases(plain, [module for module, one in factors.items() if one.bias is not None])
    return {module: _of_lora(one) for module, one in factors.items()}


def check_plain(plain: Adapter, factors: Mapping[str, Factors], who: str) -> None:
    """Raise NotSupported for LoRA that is on no module's matrix, which image models' files have no names for."""
    kinds = {
        "LoRA on parameters": sorted(plain.parameters & plain.lora.keys()),
        "LoRA on embeddings": [module for module, one in factors.items() if one.parts == EMBEDDING],
    }
    for what, found in kinds.items():
        if found:
            raise NotSupported(f"{who} no {what}", where=[plain.path, *listed(found)], help=TIP)


def check_whole(adapter: Adapter, who: str) -> None:
    """Raise NotSupported for weights that take the place of the base's."""
    if adapter.whole:
        what = f"{who} no weights that take the place of the base's"
        raise NotSupported(what, where=[adapter.path, *listed(sorted(adapter.whole))], help=TIP)


def _check_biases(adapter: Adapter, modules: Sequence[str]) -> None:
    if modules:
        raise NotSupported(f"{WHO} no biases of B", where=[adapter.path, *listed(list(modules))], help=TIP)


def _of_lora(one: Factors) -> dict[str, Tensor]:
    rows = one.b.shape[0]
    made = {"lora_down.weight": one.a, "lora_up.weight": one.b, "alpha": number(one.alpha)}
    for magnitude in one.rest.values():
        made["dora_scale"] = reshape(magnitude, (rows, *(1,) * (len(one.a.shape) - 1)))
    return made


def _lycoris(adapter: Adapter) -> dict[str, dict[str, Tensor]]:
    """Each module's parts under LyCORIS' names, with its alpha where it has a rank."""
    made = {}
    for module in sorted(adapter.lora, key=natural):
        parts = adapter.lora[module]
        if BIAS in parts:
            _check_biases(adapter, [module])
        held = {_NAMES.get(part, part): tensor for part, tensor in parts.items() if part != MAGNITUDE}
        held |= {"dora_scale": parts[MAGNITUDE]} if MAGNITUDE in parts else {}
        if rank_of(parts) is not None or "oft_blocks" in parts:
            usual = adapter.config.get("alpha", 0.0)
            held["alpha"] = number(pattern(adapter.config.get("alpha_pattern"), module, usual))
        if IA3_IN in parts or IA3_OUT in parts:
            held["on_input"] = Constant(DTYPES["U8"], (), bytes([IA3_IN in parts]))
        made[module] = held
    return made


def number(value: float) -> Tensor:
    """A number as a tensor."""
    return Constant(F32, (), struct.pack("<f", value))
