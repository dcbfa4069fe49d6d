"""Of what type each option of adapter_config.json is: told once, where the file is read, for all that reads it later.

An option that is not here is not looked at: `adapters/kinds.py` refuses it where it says anything.
Source: peft 0.21.2, the dataclasses of tuners/*/config.py; a test compares the table with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..errors import AdapterError, listed
from .hostile_patterns import check_patterns

MOST = 1e30  # that a number may be: float32 holds it, and its products with weights
LARGEST = 2**63 - 1  # that a whole number may be


class Type(NamedTuple):
    """What an option may be, in words, and whether a value is that; null is told apart."""

    name: str
    holds: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MOST


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def _are(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(holds, value))


def _is_pair(value: Any) -> bool:
    return _are(_is_whole)(value) and len(value) == 2


_FLAG = Type("true or false", lambda value: isinstance(value, bool))
_WHOLE = Type("a whole number", _is_whole)
_NUMBER = Type("a number", _is_number)
_TEXT = Type("text", _is_text)
_ASIDE = Type("text", lambda value: not isinstance(value, str) or _is_text(value))  # what is odd here is passed over
_NAMES = Type("a list of names", _are(_is_text))
_PATTERN = Type("a name, or a list of names", lambda value: _is_text(value) or _are(_is_text)(value))
_LAYERS = Type("a number of a layer, or a list of them", lambda value: _is_whole(value) or _are(_is_whole)(value))
_NUMBERS = Type(
    "numbers by names of modules", lambda value: isinstance(value, Mapping) and all(map(_is_number, value.values()))
)
_RANKS = Type(  # a list for each module is what AdaLoRA keeps of its ranks
    "numbers by names of modules",
    lambda value: (
        isinstance(value, Mapping)
        and all(
            _is_number(one) or _are(lambda kept: isinstance(kept, bool | int | float))(one) for one in value.values()
        )
    ),
)
_TOKENS = Type(
    "a list of tokens, or such lists by names of modules",
    lambda value: _are(_is_whole)(value) or (isinstance(value, Mapping) and all(map(_are(_is_whole), value.values()))),
)
_PAIRS = Type("a list of pairs of layers", _are(_is_pair))
_TABLE = Type("an object", lambda value: isinstance(value, Mapping))
_INIT = Type("true, false or a name", lambda value: isinstance(value, bool) or _is_text(value))

TYPES: Mapping[str, Type] = {
    key: kind
    for kind, keys in (
        (
            _FLAG,
            "inference_mode fan_in_fan_out use_rslora use_dora lora_bias use_qalora ensure_weight_tying"
            " block_share coft use_cayley_neumann apply_GS para rank_dropout_scale use_effective_conv2d decompose_both"
            " save_projection save_only_topk_weights save_indices save_precomputed_indices select_top"
            " sample_at_inference sparse very_sparse use_idwt proportional_parameters init_ia3_weights",
        ),
        (
            _WHOLE,
            "r target_r init_r tinit tfinal deltaT total_step qalora_group_size"
            " boft_block_size boft_block_num boft_n_butterfly_factor oft_block_size num_cayley_neumann_terms"
            " block_size decompose_factor depth gralora_k hybrid_r group_size mini_r n_frequency num_vectors"
            " vector_length topk theta_d_length u proj_seed projection_seed projection_prng_key generator_seed"
            " random_loc_seed random_seed",
        ),
        (
            _NUMBER,
            "alpha lora_alpha randlora_alpha beta1 beta2 orth_reg_weight scaling eps sparsity weight_tying"
            " delora_lambda d_initial init_scale init_logits_std init_v_bound init_theta_d_bound init_vector_bank_bound"
            " lora_dropout boft_dropout deft_dropout gralora_dropout hira_dropout miss_dropout module_dropout"
            " oft_dropout pvera_dropout randlora_dropout rank_dropout tinylora_dropout unilora_dropout vblora_dropout"
            " vera_dropout",
        ),
        (
            _TEXT,
            "peft_type task_type peft_version megatron_core bias act_fn"
            " decomposition_method mask_type variant wavelet_family config_A_B config_C config_D_E",
        ),
        (_ASIDE, "base_model_name_or_path revision auto_mapping"),
        (_NAMES, "modules_to_save target_parameters"),
        (_PATTERN, "target_modules exclude_modules feedforward_modules layers_pattern"),
        (_LAYERS, "layers_to_transform"),
        (_NUMBERS, "alpha_pattern lambda_pattern block_size_pattern n_frequency_pattern"),
        (_RANKS, "rank_pattern"),
        (_TOKENS, "trainable_token_indices"),
        (Type("a list of tokens", _are(_is_whole)), "token_indices alora_invocation_tokens"),
        (_PAIRS, "layer_replication"),
        (
            _TABLE,
            "loftq_config eva_config corda_config lora_ga_config runtime_config arrow_config kasa_config"
            " megatron_config velora_config monteclora_config use_bdlora",
        ),
        (_INIT, "init_weights init_lora_weights"),
    )
    for key in keys.split()
}
# What a layer is built of where it is a number: null builds none, but of these kinds.
NEVER_NULL: Mapping[str, tuple[str, ...]] = {
    "r": ("SUPERTUNING",),
    "lora_alpha": ("SUPERTUNING",),
    "alpha": ("DEFT",),
    **dict.fromkeys("randlora_alpha scaling topk gralora_k hybrid_r group_size n_frequency depth".split(), ()),
}
MEND = "restore adapter_config.json from the training"


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Raise AdapterError for options of adapter_config.json that are of another type than PEFT's, and for patterns that
    are none, or may take forever.
    """
    kind = config.get("peft_type")
    wrong = [row for key, value in config.items() if key in TYPES and (row := _wrong(key, value, kind))]
    if wrong:
        what = "adapter_config.json says what PEFT does not read" if len(wrong) > 1 else wrong[0]
        raise AdapterError(what, where=[where, *(listed(wrong) if len(wrong) > 1 else [])], help=MEND)
    check_patterns(config, where)


def _wrong(key: str, value: Any, kind: Any) -> str:
    """What is wrong with an option, for a sentence; "" for nothing."""
    right = kind in NEVER_NULL.get(key, (kind,)) if value is None else TYPES[key].holds(value)
    return "" if right else f"{key} = {_shown(value)}, and not {TYPES[key].name}"


def _shown(value: Any) -> str:
    """The value, cut where it is long; an integer of thousands of digits is not written out."""
    if isinstance(value, int) and abs(value) > LARGEST:
        return "a number of too many digits"
    try:
        text = type(value).__name__ if isinstance(value, list | dict) and len(value) > 8 else repr(value)
    except (ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 60 else f"{text[:60]}…"
