"""What FourierFT and WaveFT have in common: numbers of a spectrum at places that are drawn and not saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...lazy.tensor import Tensor
from .method import Target

DRAWN = (2**32 - 1) // 20  # elements of a weight from which on newer versions of torch draw other places


def spectrum(target: Target, name: str) -> Tensor:
    """The numbers. Raises AdapterError where there are more than places, or not as many as the config says."""
    values, said = target.part(name, None), _said(target.adapter.config)
    if values.size > target.weight.size or (said and values.size not in said):
        numbers = f", and adapter_config.json says {' or '.join(map(str, said))}" if said else ""
        what = f"{name} has {values.size} numbers for a weight of {target.weight.size}{numbers}"
        raise target.wrong(what, "the places follow from that file and are not guessed: restore it from the training")
    return values


def drawing(target: Target, count: int) -> dict[str, Any]:
    """What the places follow from, as the rules that draw them take it. Raises AdapterError, NotSupported."""
    tall, wide = target.weight.shape
    if tall * wide >= DRAWN:
        raise target.unsupported(
            f"a weight of ({tall}, {wide}) has so many places that versions of torch draw other ones",
            "merge it with PEFT and the torch that it was trained with: merge_and_unload()",
        )
    seed = target.number("random_loc_seed", 777)
    if seed != int(seed):
        raise target.wrong(f"random_loc_seed = {seed!r} is no whole number", "restore adapter_config.json")
    return {"seed": float(int(seed) % 2**32), "count": float(count), "tall": float(tall), "wide": float(wide)}


def _said(config: Mapping[str, Any]) -> list[int]:
    """The numbers that modules have, where they are not shared out by the size of weights."""
    if config.get("proportional_parameters") or config.get("n_frequency") is None:
        return []
    return [config["n_frequency"], *(config.get("n_frequency_pattern") or {}).values()]
