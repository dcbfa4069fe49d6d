"""Weights that become new in a quantised model, and are no codes: whether its class takes them for what they are."""

from __future__ import annotations

from collections.abc import Collection

from ..checkpoint import Checkpoint
from ..errors import NotSupported, listed
from ..names import natural
from .codes import codes_in
from .kept_whole import LISTS
from .quantised import quantised
from .scheme import module_of
from .skip_lists import skipping

# Schemes that leave the output head as it is where nothing is said of modules.
LEAVES_HEADS = ("bitsandbytes", "fp8")


def check_plain(checkpoint: Checkpoint, heads: Collection[str]) -> None:
    """Raise NotSupported where config.json says that these are codes: output heads that are to be stored as plain
    numbers.
    """
    if not codes_in(checkpoint):
        return
    held = quantised(checkpoint)
    lists = [value for key in LISTS if isinstance(value := held.said.get(key), list)]
    named = [skipping(tuple(str(entry).removeprefix("re:") for entry in value)) for value in lists]
    silent = held.scheme is not None and held.scheme.method in LEAVES_HEADS and not named
    wrong = [name for name in heads if not (silent or any(rule(module_of(name)) for rule in named))]
    if wrong:
        tip = "name the module in quantization_config first, or write it in 16 bits: surgery dequantize MODEL -o OUT"
        raise NotSupported(
            "the model is quantised, and its class would look for codes of what would be stored",
            where=[checkpoint.path, *listed(sorted(wrong, key=natural))],
            help=tip,
        )
