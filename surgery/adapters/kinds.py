"""The kinds of adapters that are merged, and those that are refused by name: one closed list, that the check and the
documentation share.

An option of adapter_config.json that is in none of the tables here is refused too: it may change the arithmetic.

Source: peft 0.21.2, utils/peft_types.py, tuners/lora/config.py, tuners/lora/variants.py; a test compares the tables
with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import NotSupported, series
from ..files.peft import Adapter
from .methods import ELSEWHERE, METHODS
from .methods.telling import check_method, check_same_kind, kinds_of

WITH_PEFT = "merge it with PEFT, where it can: merge_and_unload()"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of adapter: what adapter_config.json calls it, by peft_type, option or value; and what becomes of it.

    `why` says of a merged kind what is done, of a refused one why; `help` what to do instead.
    """

    name: str
    said: tuple[str, ...]
    why: str
    help: str = ""


# Values of init_lora_weights that leave the base as it is.
KEPT_BASE = Kind("initialisations", ("gaussian", "eva", "orthogonal", "mica"), "leave the base as it is: ordinary LoRA")
_LORA = (
    Kind(
        "LoRA",
        ("LORA",),
        "`nn.Linear`, Conv1D, embeddings, convolutions in 1, 2 and 3 dimensions, `nn.MultiheadAttention`",
    ),
    Kind(
        "AdaLoRA", ("ADALORA", "init_r"), "its singular values go into A, its scale into alpha; any ranks that are left"
    ),
    Kind(
        "rank and alpha",
        ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"),
        "for each module, and with rsLoRA",
    ),
    Kind("DoRA", ("use_dora",), "wherever PEFT has it: `nn.Linear`, Conv1D, embeddings, convolutions; with weight 1"),
    Kind("biases", ("lora_bias", "bias"), "B's own is added, the base's trained ones take its place"),
    Kind("experts, parameters", ("target_parameters",), "stacked or one by one, in either orientation"),
    Kind(
        "saved modules and tokens",
        ("modules_to_save", "trainable_token_indices"),
        "take the base's place; resized vocabularies too",
    ),
    Kind(
        "weight tying", ("ensure_weight_tying",), "tied tensors stay one where they stay equal, and are two where not"
    ),
    Kind("layer replication", ("layer_replication",), "as real layers, of which config.json tells"),
    Kind(
        "VeLoRA, MonteCLoRA",
        ("velora_config", "monteclora_config"),
        "A and B as they are stored; what only training uses is left out",
    ),
    Kind("BD-LoRA", ("use_bdlora",), "the blocks of A or B are put on its diagonal"),
    Kind(
        "tokens or norms alone",
        ("TRAINABLE_TOKENS", "token_indices", "init_weights", "LN_TUNING"),
        "take the base's place",
    ),
    KEPT_BASE,
)
MERGED = (*_LORA, *(Kind(row.name, (row.peft_type,), f"{row.why}; on {row.layers}") for row in METHODS.values()))

# Values of init_lora_weights that change the base that the adapter belongs to: a part of it moves into A and B.
CHANGED_BASE = Kind(
    "changed bases",
    ("pissa", "olora", "corda", "lora_ga", "loftq"),
    "which changes the base it belongs to",
    "where BASE is that changed base, saved at the training's beginning, say so: --base-as-trained; "
    "else save the adapter once with PEFT's path_initial_model_for_weight_conversion, which makes it an ordinary LoRA",
)
OPTIONS = (
    Kind(
        "aLoRA", ("alora_invocation_tokens",), "it acts on some tokens only, and a weight acts on all", "serve it live"
    ),
    Kind("QALoRA", ("use_qalora",), "its A acts on pooled inputs of a quantised base", "serve it live"),
    Kind(
        "Arrow",
        ("arrow_config",),
        "it chooses among adapters for each token",
        "merge those that it chooses among, each by itself",
    ),
    Kind("KaSA", ("kasa_config",), "it cuts the smallest singular values off the base itself", WITH_PEFT),
    Kind(
        "Megatron",
        ("megatron_config",),
        "its factors belong to layers that lie on several devices",
        "gather it in Megatron",
    ),
)
TYPES = (
    Kind(
        "prompts and prefixes",
        (
            "PROMPT_TUNING",
            "MULTITASK_PROMPT_TUNING",
            "P_TUNING",
            "PREFIX_TUNING",
            "ADAPTION_PROMPT",
            "CPT",
            "CARTRIDGE",
        ),
        "they train tokens or states, and no weights of the base",
        "serve it live",
    ),
    Kind("mixtures", ("XLORA", "POLY"), "they choose among adapters for each input", "serve it live"),
    Kind(
        "PSOFT",
        ("PSOFT",),
        "it turns singular vectors of the base, which are not in the file, and have other signs on other machines",
        WITH_PEFT,
    ),
    Kind(
        "AdaMSS",
        ("ADAMSS",),
        "which rows its parts belong to is not in the file: it is found by clustering the base again",
        WITH_PEFT,
    ),
    Kind(
        "FRoD",
        ("FROD",),
        "it turns each weight by matrices as large as its inputs squared, of which the file need not have the signs",
        WITH_PEFT,
    ),
    Kind("OSF", ("OSF",), "it takes each weight as a whole apart into singular values", WITH_PEFT),
    Kind("Lily", ("LILY",), "it weighs its matrices anew by the inputs of each batch", "serve it live"),
    Kind("Shadow", ("SHADOW",), "it carries a hidden state of its own beside the model's", "serve it live"),
)
# Kinds of AdapterHub, of which no weight can hold the effect: inspect lists their tensors.
_SERVE = "serve it live, with AdapterHub"
FOREIGN = (
    Kind("bottlenecks, compacters", ("AdapterHub bottleneck",), "a nonlinearity lies between down and up", _SERVE),
    Kind("AdapterFusion", ("AdapterHub fusion",), "it is attention over what adapters compute for each token", _SERVE),
    Kind("gated adapters", ("AdapterHub gates",), "a gate is a sigmoid of the input", _SERVE),
    Kind("AdapterHub's prefixes", ("AdapterHub prefix",), "they train states, and no weights of the base", _SERVE),
    Kind("ReFT", ("AdapterHub ReFT",), "it edits states at some positions only", _SERVE),
)
REFUSED = (CHANGED_BASE, *OPTIONS, *TYPES, *FOREIGN)

# Options that say how the adapter was trained, or which modules got tensors: the tensors themselves tell what to merge.
_TRAINING = frozenset(
    """
    task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode target_modules
    exclude_modules lora_dropout layers_to_transform layers_pattern megatron_core loftq_config eva_config corda_config
    lora_ga_config qalora_group_size runtime_config fan_in_fan_out init_lora_weights
    target_r tinit tfinal deltaT beta1 beta2 orth_reg_weight total_step
    """.split()
)
_COMMON = _TRAINING | {"modules_to_save"}  # that adapters of every kind have
KNOWN = _TRAINING | {said for kind in _LORA if kind != KEPT_BASE for said in kind.said}
_TYPES = {said: kind for kind in (*TYPES, *FOREIGN) for said in kind.said}
_OPTIONS = {said: kind for kind in OPTIONS for said in kind.said}
SUPPORTED = ("LORA", "ADALORA", "TRAINABLE_TOKENS", "LN_TUNING", *METHODS)
_INITS = (True, False, None, *KEPT_BASE.said)
_ANY_CASE = ("gaussian", "mica")  # as PEFT compares these


def changes_base(adapter: Adapter) -> str:
    """The initialisation that moved a part of the base into the adapter: it is ordinary LoRA on what was left; ""
    for others.
    """
    init = adapter.config.get("init_lora_weights", True)
    return init if isinstance(init, str) and init.lower().startswith(CHANGED_BASE.said) else ""


def check_kind(adapter: Adapter, *, base_as_trained: bool = False) -> None:
    """Raise NotSupported, naming the kind or the option, unless all that the config asks for is merged.

    `base_as_trained`: the base is the one that the initialisation left, where it changed the base.
    """
    config, where = adapter.config, [adapter.path if adapter.format else f"{adapter.path}/adapter_config.json"]
    asked = config.get("peft_type")
    method = METHODS.get(str(asked)) or ELSEWHERE.get(str(asked))
    if asked not in SUPPORTED and not method:
        kind = _TYPES.get(str(asked))
        tips = [] if adapter.format else [_meant(adapter, asked), f"supported: {', '.join(SUPPORTED)}"]
        why = [f"{kind.name}: {kind.why}"] if kind else []
        what = f"adapters of kind {asked} are not supported"
        raise NotSupported(what, where=[*where, *why], help="; ".join(filter(None, (*tips, kind.help if kind else ""))))
    check_same_kind(adapter)
    if method:
        _check_options(config, where, _COMMON | method.options)
        return check_method(adapter, method)
    _check_options(config, where, KNOWN)
    if not (base_as_trained and changes_base(adapter)):
        _check_init(config, where)


def _meant(adapter: Adapter, asked: Any) -> str:
    """What peft_type could be instead, by its spelling or by what the tensors are called."""
    if isinstance(asked, str) and asked.upper() in {*SUPPORTED, *_TYPES}:
        return f"adapter_config.json has to say it as PEFT does, peft_type = {asked.upper()!r}"
    kinds = kinds_of(adapter) if asked is None else []
    said = f"the tensors are called as those of {series(kinds, ' or ')}: say so in adapter_config.json, as peft_type"
    return said if kinds else ""


def _check_options(config: Mapping[str, Any], where: list[str], known: frozenset[str] | set[str]) -> None:
    for key, value in config.items():
        if key in known or value in (None, False, [], {}, ""):
            continue
        said = [*where, f"{key} = {value!r}"]
        if kind := _OPTIONS.get(key):
            raise NotSupported(f"{kind.name} is not merged: {kind.why}", where=said, help=kind.help)
        raise NotSupported(f"the option `{key}` is not supported", where=said, help="merge it with PEFT")


def _check_init(config: Mapping[str, Any], where: list[str]) -> None:
    init = config.get("init_lora_weights", True)
    if init in _INITS or (isinstance(init, str) and init.lower() in _ANY_CASE):
        return
    if isinstance(init, str) and init.lower().startswith(CHANGED_BASE.said):
        raise NotSupported(
            f"the adapter was initialised by {init!r}, {CHANGED_BASE.why}", where=where, help=CHANGED_BASE.help
        )
    raise NotSupported(
        f"the adapter was initialised by {init!r}, which is not known", where=where, help="merge it with PEFT"
    )


def table() -> str:
    """The kinds as the documentation's table, in Markdown: what is merged, then what is refused."""
    rows = [(kind, "merged") for kind in MERGED] + [(kind, "refused") for kind in REFUSED]
    lines = [
        f"| {kind.name} | {', '.join(f'`{said}`' for said in kind.said)} | {how}: {kind.why} |" for kind, how in rows
    ]
    return "\n".join(["| kind | in adapter_config.json | |", "|---|---|---|", *lines])
