"""What an injected adapter can be told, and what PEFT writes of it where nothing is said."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import SurgeryError
from ...names import compiled

ALL_LINEAR = "all-linear"
INITS = ("uniform", "gaussian")

# What PEFT 0.21 writes of a LoraConfig besides what is set here: null, unless said.
_NULL = """
    alora_invocation_tokens arrow_config auto_mapping corda_config eva_config kasa_config layer_replication
    lora_ga_config megatron_config monteclora_config revision trainable_token_indices use_bdlora velora_config
""".split()
DEFAULTS: Mapping[str, Any] = dict.fromkeys(_NULL) | {
    "bias": "none", "ensure_weight_tying": False, "inference_mode": True, "loftq_config": {},
    "megatron_core": "megatron.core", "peft_type": "LORA", "qalora_group_size": 16, "use_qalora": False,
}  # fmt: skip


def check_options(config: Mapping[str, Any], init: str) -> None:
    """Raise SurgeryError for options that make no LoRA."""
    if config["use_dora"] and config["lora_bias"]:
        raise SurgeryError(
            "use_dora and lora_bias exclude each other", help="PEFT refuses such an adapter: leave one away"
        )
    if not 0 <= config["lora_dropout"] < 1:
        raise SurgeryError(f"a dropout of {config['lora_dropout']} is none", help="give a number from 0 to below 1")
    if not config["target_modules"] and not config["target_parameters"]:
        raise SurgeryError(
            "nothing is targeted", help="name modules with --target-modules, or parameters with --target-parameters"
        )
    for given, patterns in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        for name in config[patterns]:
            compiled(name)
        _check_numbers(given, [config[given], *config[patterns].values()])
    if config["layers_pattern"] and config["layers_to_transform"] is None:
        raise SurgeryError(
            "layers_pattern says where the layers' numbers are, and no layers are given",
            help="add --layers-to-transform",
        )
    if config["target_parameters"] and (idle := [name for name in ("use_dora", "lora_bias") if config[name]]):
        tip = "make two adapters, or leave it away"
        raise SurgeryError(f"LoRA on parameters goes without {', '.join(idle)}: PEFT refuses it", help=tip)
    if config["layers_to_transform"] is not None and isinstance(config["target_modules"], str):
        tip = "name the modules in a list, or the layers in the regular expression"
        given = ALL_LINEAR if config["target_modules"] == ALL_LINEAR else "a regular expression"
        raise SurgeryError(f"layers_to_transform needs a list of names, and the target is {given}", help=tip)
    if init not in INITS:
        raise SurgeryError(f"there is no initialisation `{init}`", help=f"{' and '.join(INITS)} are known")


def _check_numbers(given: str, values: Sequence[float]) -> None:
    for value in values:
        if given == "r" and value < 1:
            raise SurgeryError(f"a rank of {value} is none", help="give 1 or more")
        if not (math.isfinite(value) and value > 0):
            raise SurgeryError(f"an alpha of {value} scales nothing", help="give a number above 0")
