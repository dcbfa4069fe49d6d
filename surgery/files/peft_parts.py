"""What the tensors of each kind of PEFT's adapters are called: their names begin with one of these, after the module.

    base_model.model.<module>.<part>        of a module; `.weight` and more may follow
    base_model.<part>                       shared by all modules

Source: peft 0.21.2, the `prefix` of each tuner, and tuners/*/layer.py `adapter_layer_names`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

PREFIXES: Mapping[str, tuple[str, ...]] = {
    "ADAMSS": ("adamss_",),
    "BEFT": ("beft_",),
    "BOFT": ("boft_",),
    "BONE": ("bone_",),
    "C3A": ("c3a_",),
    "DEFT": ("deft_",),
    "DELORA": ("delora_",),
    "FOURIERFT": ("fourierft_",),
    "FROD": ("frod_",),
    "GLORA": ("glora_",),
    "GRALORA": ("gralora_",),
    "HIRA": ("hira_",),
    "HRA": ("hra_",),
    "IA3": ("ia3_",),
    "LOHA": ("hada_",),
    "LOKR": ("lokr_",),
    "MISS": ("miss_",),
    "OFT": ("oft_",),
    "OSF": ("osf_",),
    "PEANUT": ("peanut_",),
    "PSOFT": ("psoft_",),
    "PVERA": ("pvera_",),
    "RANDLORA": ("randlora_",),
    "ROAD": ("road_",),
    "SHIRA": ("shira_",),
    "SUPERTUNING": ("supertuning_",),
    "TINYLORA": ("tinylora_",),
    "UNILORA": ("unilora_",),
    "VBLORA": ("vblora_",),
    "VERA": ("vera_",),
    "WAVEFT": ("waveft_",),
}


@lru_cache(64)
def part_of(kind: str) -> re.Pattern[str] | None:
    """What matches a name of the kind's, as `module` and `part`; None for LoRA, and for kinds that are not known."""
    if kind not in PREFIXES:
        return None
    return re.compile(rf"(?P<module>.+?)\.(?P<part>(?:{'|'.join(PREFIXES[kind])})[^.]+(?:\.[^.]+)*)")
