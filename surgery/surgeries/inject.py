"""Put zero-initialised LoRA on a base: an adapter made from headers and config alone, that changes nothing yet."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..adapters.fused import fuse_adapter
from ..adapters.lora import pattern
from ..checkpoint import Checkpoint
from ..dtypes import ARITHMETIC, F32
from ..errors import NothingMatched, NotSupported, SurgeryError, listed, nearest
from ..families import EMBEDDINGS, HEADS, is_conv1d
from ..formats.peft import PREFIX, Adapter
from ..fused.row import Site
from ..hub.refs import has_scheme, parse_ref
from ..names import compiled, is_called, natural
from ..names_v5 import in_memory, renames_of
from ..tensor import Norms, Random, Shape, Sum, Tensor, Zeros
from .split import fused_in, in_memory_sites, sites_held, split_at

ALL_LINEAR = "all-linear"
INITS = ("uniform", "gaussian")

# What PEFT 0.21 writes of a LoraConfig besides what is set here: null, unless said.
_NULL = """
    alora_invocation_tokens arrow_config auto_mapping corda_config eva_config kasa_config layer_replication lora_ga_config
    megatron_config monteclora_config revision target_parameters trainable_token_indices use_bdlora velora_config
""".split()
_DEFAULTS: Mapping[str, Any] = dict.fromkeys(_NULL) | {
    "bias": "none", "ensure_weight_tying": False, "inference_mode": True, "loftq_config": {}, "lora_dropout": 0.0,
    "megatron_core": "megatron.core", "peft_type": "LORA", "qalora_group_size": 16, "use_qalora": False,
}  # fmt: skip
# Ends of class names -> PEFT's task, and the heads that it then trains along, as peft_model.py adds them to modules_to_save.
_TASKS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "ForCausalLM": ("CAUSAL_LM", ()),
    "LMHeadModel": ("CAUSAL_LM", ()),
    "ForConditionalGeneration": ("SEQ_2_SEQ_LM", ()),  # of an encoder-decoder; vision and text together have no task
    "ForSequenceClassification": ("SEQ_CLS", ("classifier", "score")),
    "ForTokenClassification": ("TOKEN_CLS", ("classifier", "score")),
    "ForQuestionAnswering": ("QUESTION_ANS", ("qa_outputs",)),
}


def inject(
    base: Checkpoint,
    target_modules: str | Sequence[str],
    *,
    rank: int = 8,
    alpha: float | None = None,
    init: str = "uniform",
    seed: int = 0,
    use_rslora: bool = False,
    use_dora: bool = False,
    lora_bias: bool = False,
    modules_to_save: Sequence[str] = (),
    exclude_modules: str | Sequence[str] | None = None,
    layers_to_transform: Sequence[int] | None = None,
    layers_pattern: Sequence[str] | None = None,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
) -> Adapter:
    """A PEFT LoRA adapter for the base: A (r, in) random, B (out, r) zero, so that it changes nothing until it is trained.

    Targets are as PEFT takes them: last names, a regular expression for whole names, or "all-linear" (without the output head).
    Parts of fused modules can be targeted, too: `q_proj` and `v_proj` of a `qkv_proj`. `init` is PEFT's own kaiming-uniform, or
    gaussian with deviation 1/r; embeddings get A zero and B normal, as PEFT does. Numbers follow from `seed` and the tensor's
    name. `alpha` is `rank` where not given. `use_dora` takes the magnitudes from the base, when it is written; `modules_to_save` are
    copied, with the heads that PEFT trains along for the class's task. Raises NothingMatched for a target that is not in the base.
    """
    wanted = target_modules if isinstance(target_modules, str) else list(target_modules)
    task, ends, saved = _task(base, modules_to_save)
    config: dict[str, Any] = {
        **_DEFAULTS,
        **_named(base),
        "task_type": task,
        "modules_to_save": ends or None,
        "r": rank,
        "lora_alpha": rank if alpha is None else alpha,
        "target_modules": wanted,
        "exclude_modules": exclude_modules,
        "layers_to_transform": layers_to_transform,
        "layers_pattern": layers_pattern,
        "rank_pattern": dict(rank_pattern or {}),
        "alpha_pattern": dict(alpha_pattern or {}),
        "init_lora_weights": True if init == "uniform" else init,
        "use_rslora": use_rslora,
        "use_dora": use_dora,
        "lora_bias": lora_bias,
    }
    _check_options(config, init)
    parted = _asked_apart(base, config)
    apart = split_at(base, parted) if parted else base
    files = _modules(apart)
    modules = {module: apart.tensors[f"{file}.weight"].shape for module, file in files.items()}
    chosen = _chosen(config, modules)
    _check_targets(base, config, chosen, modules)
    if parted:  # what was excluded of a fused module is no module of its own
        config["exclude_modules"] = None
    lora = {module: _factors(apart, module, files[module], config, seed) for module in chosen}
    config["fan_in_fan_out"] = any(is_conv1d(base.config, module) for module in chosen)
    if wanted == ALL_LINEAR:
        config["target_modules"] = sorted(chosen, key=natural)
    whole = {n: t for n, t in base.tensors.items() if n.rpartition(".")[0] in saved}
    names = {key: f"{PREFIX}{key}" for m, parts in lora.items() for key in (f"{m}.{part}" for part in parts)}
    renames = renames_of(base.config)
    names |= {name: f"{PREFIX}{in_memory(name, renames)}" for name in whole}
    step = {"surgery": "inject", "modules": len(lora), "rank": rank, "init": init, "seed": seed}
    adapter = Adapter(base.path, config, lora, whole, names, metadata={"format": "pt"}, history=(step,))
    adapter = _together(adapter, sites_held(adapter, in_memory_sites(base, parted), fused=False))
    return replace(adapter, notes=(_counted(base, adapter), *adapter.notes))


def _named(base: Checkpoint) -> dict[str, str | None]:
    """Where PEFT finds the base: its path, or its repository and commit on the Hub."""
    ref = parse_ref(base.path) if has_scheme(base.path) else None
    return {"base_model_name_or_path": ref.repo_id if ref else base.path, "revision": ref.revision if ref else None}


def _together(adapter: Adapter, sites: Sequence[Site]) -> Adapter:
    """The adapter on the fused modules of whose parts it has LoRA, with a note on what that means."""
    if not sites:
        return adapter
    adapter = fuse_adapter(adapter, sites)
    ranks = f"; the ranks of their parts add up to {adapter.config['r']}"
    note = f"{len(sites)} fused modules such as {sites[0].module} hold LoRA on some of their rows{ranks}, and all of B would train"
    return replace(adapter, notes=(*adapter.notes, note))


def _check_options(config: Mapping[str, Any], init: str) -> None:
    """Raise SurgeryError for options that make no LoRA."""
    if config["use_dora"] and config["lora_bias"]:
        raise SurgeryError("use_dora and lora_bias exclude each other", help="PEFT refuses such an adapter: leave one away")
    if config["r"] < 1:
        raise SurgeryError(f"a rank of {config['r']} is none", help="give 1 or more")
    if not (math.isfinite(config["lora_alpha"]) and config["lora_alpha"] > 0):
        raise SurgeryError(f"an alpha of {config['lora_alpha']} scales nothing", help="give a number above 0")
    if config["layers_to_transform"] is not None and isinstance(config["target_modules"], str):
        tip = "name the modules in a list, or the layers in the regular expression"
        raise SurgeryError("layers_to_transform needs a list of names, and the target is a text", help=tip)
    if init not in INITS:
        raise SurgeryError(f"there is no initialisation `{init}`", help=f"{' and '.join(INITS)} are known")


def _task(base: Checkpoint, modules_to_save: Sequence[str]) -> tuple[str | None, list[str], list[str]]:
    """PEFT's name for what the class does, the ends of names whose modules are copied, and these modules. Raises NothingMatched.

    No task where its head is not stored: PEFT would look for a trained one in the adapter.
    """
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in base.tensors))
    kind = str((base.config.get("architectures") or [""])[0])
    task, heads = next((found for end, found in _TASKS.items() if kind.endswith(end)), (None, ()))
    if task == "SEQ_2_SEQ_LM" and not base.config.get("is_encoder_decoder"):
        task = None
    if heads and not any(module.endswith(heads) for module in modules):
        task, heads = None, ()
    if idle := [name for name in modules_to_save if not any(module.endswith(name) for module in modules)]:
        near = nearest(idle[0], {m.rpartition(".")[2] for m in modules})
        tip = f"the nearest names are {', '.join(near)}" if near else "surgery inspect --tensors '.*' lists the names"
        raise NothingMatched(f"no module of the base is called {', '.join(idle)}", where=[base.path], help=tip)
    ends = list(dict.fromkeys((*modules_to_save, *heads)))
    return task, ends, [m for m in modules if m.endswith(tuple(ends))] if ends else []


def _modules(base: Checkpoint) -> dict[str, str]:
    """Module -> its name in the files, for those with a weight of two axes or more. PEFT meets the names of the class in memory."""
    renames = renames_of(base.config)
    names = [name for name, tensor in base.tensors.items() if name.endswith(".weight") and len(tensor.shape) > 1]
    return {in_memory(name, renames).removesuffix(".weight"): name.removesuffix(".weight") for name in names}


def _chosen(config: Mapping[str, Any], modules: Mapping[str, Shape]) -> list[str]:
    """The modules that PEFT would take (peft/tuners/tuners_utils.py check_target_module_exists)."""
    return sorted((m for m in modules if not _matches(config["exclude_modules"], m) and _is_target(config, m, modules[m])), key=natural)


def _is_target(config: Mapping[str, Any], module: str, shape: Shape) -> bool:
    wanted = config["target_modules"]
    if wanted == ALL_LINEAR:
        leaf = module.rpartition(".")[2]
        return len(shape) == 2 and not _is_embedding(module) and not (leaf in HEADS and module.count(".") <= 1)
    if not _matches(wanted, module):
        return False
    layers = config["layers_to_transform"]
    if layers is None or isinstance(wanted, str):
        return True
    patterns = config["layers_pattern"] or [r"[^.]*"]
    found = next((f for p in patterns if (f := re.match(rf"(?:^|.*?\.){p}\.(?P<index>\d+)\.", module))), None)
    return found is not None and int(found["index"]) in layers


def _matches(wanted: str | Sequence[str] | None, module: str) -> bool:
    if wanted is None:
        return False
    if isinstance(wanted, str):
        return bool(compiled(wanted).fullmatch(module))
    return is_called(module, wanted)


def _asked_apart(base: Checkpoint, config: Mapping[str, Any]) -> list[Site]:
    """The fused modules of which some parts are asked for, and not the whole: by the target's names, or by what is excluded."""
    try:
        sites = [site for site in fused_in(base) if not site.row.stacked]
    except SurgeryError:  # a layout that is not known: its modules can be targeted as they are
        return []
    found = []
    for site, shown in zip(sites, in_memory_sites(base, sites), strict=True):
        shape = base.tensors[f"{site.module}{site.row.tensors[0][0]}"].shape
        whole, parts = _chosen(config, {shown.module: shape}), _chosen(config, dict.fromkeys(shown.parts, shape))
        excluded = any(_matches(config["exclude_modules"], part) for part in shown.parts)
        if parts and (not whole or excluded):
            found.append(site)
    return found


def _check_targets(base: Checkpoint, config: Mapping[str, Any], chosen: Sequence[str], modules: Mapping[str, Shape]) -> None:
    wanted = config["target_modules"]
    targets = [wanted] if isinstance(wanted, str) else wanted
    idle = [t for t in targets if not any(isinstance(wanted, str) or is_called(m, [t]) for m in chosen)]
    if chosen and not idle:
        return
    leaves = sorted({module.rpartition(".")[2] for module in modules})
    near = [leaf for target in idle or targets for leaf in nearest(target, leaves)]
    tip = f"the nearest names are {', '.join(dict.fromkeys(near))}" if near else f"modules are called {', '.join(listed(leaves, 12))}"
    tip += "; a text is a regular expression for whole names" if near and isinstance(wanted, str) else ""
    what = f"{len(idle or targets)} of {len(targets)} targets are in no module of the base: {', '.join(listed(idle or targets))}"
    raise NothingMatched(what, where=[base.path], help=tip)


def _factors(base: Checkpoint, module: str, file: str, config: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    source = base.tensors[f"{file}.weight"]
    shape, dtype = source.shape, source.dtype
    if len(shape) != 2 or dtype not in ARITHMETIC:
        where = [f"{base.path}: {module}"]
        raise NotSupported(f"cannot put LoRA on a weight of {dtype} {shape}", where=where, help="Linear, Conv1D and Embedding are known")
    rank = int(pattern(config["rank_pattern"], module, config["r"]))
    key = f"{seed} {module}"
    columns = _is_embedding(module) or is_conv1d(base.config, module)
    magnitude = {"lora_magnitude_vector": Norms(Sum(F32, source), columns)} if config["use_dora"] else {}
    if _is_embedding(module):
        b = Random((shape[1], rank), key, 1.0, normal=True)
        return {"lora_embedding_A": Zeros(F32, (rank, shape[0])), "lora_embedding_B": b, **magnitude}
    out, into = shape[::-1] if columns else shape
    gaussian = config["init_lora_weights"] == "gaussian"
    a = Random((rank, into), key, 1 / rank if gaussian else 1 / math.sqrt(into), normal=gaussian)
    bias = {"lora_B.bias": Zeros(F32, (out,))} if config["lora_bias"] else {}
    return {"lora_A.weight": a, "lora_B.weight": Zeros(F32, (out, rank)), **bias, **magnitude}


def _is_embedding(module: str) -> bool:
    leaf = module.rpartition(".")[2]
    return leaf in EMBEDDINGS or "embed" in leaf or leaf in ("wpe", "relative_attention_bias")


def _counted(base: Checkpoint, adapter: Adapter) -> str:
    """As PEFT's `print_trainable_parameters` says it."""
    mine = sum(tensor.size for tensor in adapter.tensors.values())
    whole = mine + sum(tensor.size for tensor in base.tensors.values())
    return f"trainable params: {mine:,} || all params: {whole:,} || trainable%: {100 * mine / whole:.4f}"
