"""What FourierFT and WaveFT have in common: numbers of a spectrum at places that are drawn and not saved."""

from __future__ import annotations

from typing import Any

from ...errors import AdapterError, listed
from ...files.peft import Adapter
from ...lazy.tensor import Tensor
from .method import Target, stated

DRAWN = (2**32 - 1) // 20  # elements of a weight from which on newer versions of torch draw other places


def spectrum(target: Target, name: str) -> Tensor:
    """The numbers. Raises AdapterError where there are more than places."""
    values = target.part(name, None)
    if values.size > target.weight.size:
        raise target.wrong(f"{name} has {values.size} numbers for a weight of {target.weight.size}")
    return values


def check_counts(adapter: Adapter, name: str) -> None:
    """Raise AdapterError where modules have not as many numbers as adapter_config.json says: of each, or, where they
    are shared out by the sizes of the weights, in the mean.
    """
    if "n_frequency" not in adapter.config:
        return
    counts = {module: parts[name].size for module, parts in adapter.lora.items() if name in parts}
    wanted = {module: stated(adapter, module, "n_frequency") for module in counts}
    odd = [module for module, count in counts.items() if count != wanted[module]]
    if adapter.config.get("proportional_parameters"):
        usual, least = adapter.config["n_frequency"], sum(count == 1 for count in counts.values())
        odd = list(counts) if abs(sum(counts.values()) - usual * len(counts)) > len(counts) / 2 + least else []
    if odd:
        rows = [f"{adapter.path}: {adapter.names[f'{module}.{name}']} ({counts[module]})" for module in odd]
        what = f"adapter_config.json says n_frequency = {wanted[odd[0]]}, and {name} has {counts[odd[0]]} numbers"
        tip = "the places follow from that file and are not guessed: restore it from the training"
        raise AdapterError(what, where=listed(rows), help=tip)


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
