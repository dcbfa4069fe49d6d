"""Put zero-initialised LoRA on a base: an adapter made from headers and config alone, that changes nothing yet."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...adapters.fused import fuse_adapter
from ...adapters.lora import pattern
from ...checkpoint import Checkpoint
from ...errors import NothingMatched, NotSupported, SurgeryError, listed, nearest, series
from ...files.peft import PREFIX, Adapter
from ...files.refs import has_scheme, parse_ref
from ...lazy.dtypes import ARITHMETIC, F32
from ...lazy.tensor import Norms, Random, Sum, Tensor, Zeros, reshape
from ...models.default_targets import default_targets
from ...models.families import NOT_FROM_TEXT
from ...models.fused.row import Site
from ...models.names_v5 import in_memory, renames_of
from ...names import compiled, is_called, natural
from ...opened import takes_opened
from ..split import fused_in, in_memory_sites, sites_held, split_at
from .modules import Kind, Module, checked, parameters_in, tied, told
from .parameters import Parameter, as_peft_reads, keys_of, targeted

ALL_LINEAR = "all-linear"
INITS = ("uniform", "gaussian")

# What PEFT 0.21 writes of a LoraConfig besides what is set here: null, unless said.
_NULL = """
    alora_invocation_tokens arrow_config auto_mapping corda_config eva_config kasa_config layer_replication
    lora_ga_config megatron_config monteclora_config revision trainable_token_indices use_bdlora velora_config
""".split()
_DEFAULTS: Mapping[str, Any] = dict.fromkeys(_NULL) | {
    "bias": "none", "ensure_weight_tying": False, "inference_mode": True, "loftq_config": {},
    "megatron_core": "megatron.core", "peft_type": "LORA", "qalora_group_size": 16, "use_qalora": False,
}  # fmt: skip
# Ends of class names -> PEFT's task, and the heads that it then trains along, as peft_model.py adds them to
# modules_to_save.
_TASKS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "ForCausalLM": ("CAUSAL_LM", ()),
    "LMHeadModel": ("CAUSAL_LM", ()),
    "ForConditionalGeneration": ("SEQ_2_SEQ_LM", ()),  # of an encoder-decoder; vision and text together have no task
    "ForSequenceClassification": ("SEQ_CLS", ("classifier", "score")),
    "ForTokenClassification": ("TOKEN_CLS", ("classifier", "score")),
    "ForQuestionAnswering": ("QUESTION_ANS", ("qa_outputs",)),
}


@takes_opened
def inject(
    base: Checkpoint,
    target_modules: str | Sequence[str] = (),
    *,
    target_parameters: Sequence[str] = (),
    rank: int = 8,
    alpha: float | None = None,
    init: str = "uniform",
    seed: int = 0,
    use_rslora: bool = False,
    use_dora: bool = False,
    lora_bias: bool = False,
    lora_dropout: float = 0.0,
    modules_to_save: Sequence[str] = (),
    exclude_modules: str | Sequence[str] | None = None,
    layers_to_transform: Sequence[int] | None = None,
    layers_pattern: Sequence[str] | None = None,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    check_class: bool = False,
) -> Adapter:
    """A PEFT LoRA adapter for the base: A (r, in) random, B (out, r) zero, so that it changes nothing until it is
    trained.

        convolution  (out, in / groups, *kernel)  ->  A (r, in, *kernel), B (out, r / groups, 1, …)
        parameter    (experts, out, in)           ->  A (experts * r, in), B (out, r * experts)

    Targets are as PEFT takes them: last names, a regular expression for whole names, or "all-linear" (without the
    output head). Where neither modules nor parameters are named, PEFT's own targets for the model type are taken,
    and a note names them. Parts of fused modules can be targeted, too: `q_proj` and `v_proj` of a `qkv_proj`.
    `target_parameters` are names of parameters, such as `experts.gate_up_proj`, which holds all experts of a layer.
    What is a Linear, a Conv1D, an embedding or a convolution follows from config.json, names and shapes, or, with
    `check_class`, from the class, which transformers builds on the meta device. `init` is PEFT's own
    kaiming-uniform, or gaussian with deviation 1/r; embeddings get A zero and B normal, as PEFT does. Numbers follow
    from `seed` and the tensor's name. `alpha` is `rank` where not given. `use_dora` takes the magnitudes from the
    base, when it is written; `modules_to_save` are copied, with the heads that PEFT trains along for the class's
    task.

    Raises NothingMatched for a target that is not in the base, NotSupported for one that LoRA cannot be put on.
    """
    named = target_modules if isinstance(target_modules, str) else list(target_modules)
    wanted = named or ([] if target_parameters else default_targets(base.config.get("model_type")))
    task, ends, saved = _task(base, modules_to_save)
    config: dict[str, Any] = {
        **_DEFAULTS,
        **_named(base),
        "task_type": task,
        "modules_to_save": ends or None,
        "r": rank,
        "lora_alpha": rank if alpha is None else alpha,
        "target_modules": wanted,
        "target_parameters": list(target_parameters) or None,
        "exclude_modules": exclude_modules,
        "layers_to_transform": None if layers_to_transform is None else list(layers_to_transform),
        "layers_pattern": None if layers_pattern is None else list(layers_pattern),
        "rank_pattern": dict(rank_pattern or {}),
        "alpha_pattern": dict(alpha_pattern or {}),
        "init_lora_weights": True if init == "uniform" else init,
        "use_rslora": use_rslora,
        "use_dora": use_dora,
        "lora_bias": lora_bias,
        "lora_dropout": lora_dropout,
    }
    _check_options(config, init)
    step = {"surgery": "inject", "rank": rank, "init": init, "seed": seed}
    adapter = _adapter(base, config, saved, step, check_class=check_class)
    return adapter if named or not wanted else replace(adapter, notes=(_defaulted(base, wanted), *adapter.notes))


def _defaulted(base: Checkpoint, targets: str | Sequence[str]) -> str:
    said = targets if isinstance(targets, str) else series(targets)
    return f"no target was given: {said}, as PEFT takes them for {base.config['model_type']}"


def _adapter(
    base: Checkpoint, config: dict[str, Any], saved: Mapping[str, Tensor], step: Mapping[str, Any], *, check_class: bool
) -> Adapter:
    """The adapter that `config` asks for, with the tensors that are `saved` whole."""
    modules = told(base)
    read = as_peft_reads(base, config, modules)
    parted = _asked_apart(base, config, modules)
    apart = split_at(base, parted) if parted else base
    size = parameters_in(base)
    if parted:
        modules = told(apart)
    if check_class:
        modules, size = checked(apart, modules, in_memory_sites(base, parted))
    chosen, clashes = _without_copied(config, _chosen(config, modules))
    _check_targets(base, config, chosen, modules)
    parameters = targeted(base, config, chosen)
    _check_patterns(base, config, [*chosen, *(parameter.name for parameter in parameters)])
    _check_biases(apart, config, chosen)
    if parted:  # what was excluded of a fused module is no module of its own
        config["exclude_modules"] = None
    lora = {module: _factors(apart, module, modules[module], config, step["seed"]) for module in chosen}
    for key, parameter in keys_of(parameters).items():
        lora[key] = _on_parameter(parameter, config, step["seed"])
    config["fan_in_fan_out"] = any(modules[module].kind is Kind.CONV1D for module in chosen)
    if config["target_modules"] == ALL_LINEAR:
        config["target_modules"] = sorted(chosen, key=natural)
    names = {key: f"{PREFIX}{key}" for m, parts in lora.items() for key in (f"{m}.{part}" for part in parts)}
    names |= {name: f"{PREFIX}{name}" for name in saved}
    done = {**step, "modules": len(lora)}
    adapter = Adapter(base.path, config, lora, dict(saved), names, metadata={"format": "pt"}, history=(done,))
    adapter = _together(adapter, sites_held(adapter, in_memory_sites(base, parted), fused=False))
    source = str(base.config["architectures"][0]) if check_class else ""
    return replace(
        adapter,
        notes=(*adapter.notes, *read, *clashes, *_known(modules, chosen, parameters, source), _counted(size, adapter)),
    )


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
    note = (
        f"{len(sites)} fused modules such as {sites[0].module} hold LoRA on some of their rows{ranks}, and all of B"
        " would train"
    )
    return replace(adapter, notes=(*adapter.notes, note))


def _check_options(config: Mapping[str, Any], init: str) -> None:
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


def _task(base: Checkpoint, modules_to_save: Sequence[str]) -> tuple[str | None, list[str], dict[str, Tensor]]:
    """PEFT's name for what the class does, the ends of names of modules that are copied, and their tensors. Raises
    NothingMatched.

    No task where its head is not stored: PEFT would look for a trained one in the adapter. Of tied modules, each has
    a copy.
    """
    renames = renames_of(base.config)
    stored = {**base.tensors, **{name: base.tensors[holder] for name, holder in tied(base).items()}}
    tensors = {in_memory(name, renames): tensor for name, tensor in stored.items()}
    modules = list(dict.fromkeys(above for name in tensors for above in _around(name)))
    kind = str((base.config.get("architectures") or [""])[0])
    task, heads = next((found for end, found in _TASKS.items() if kind.endswith(end)), (None, ()))
    if task == "SEQ_2_SEQ_LM" and (
        not base.config.get("is_encoder_decoder") or base.config.get("model_type") in NOT_FROM_TEXT
    ):
        task = None
    if heads and not any(module.endswith(heads) for module in modules):
        task, heads = None, ()
    if idle := [name for name in modules_to_save if not any(module.endswith(name) for module in modules)]:
        near = nearest(idle[0], {m.rpartition(".")[2] for m in modules})
        tip = f"the nearest names are {', '.join(near)}" if near else "surgery inspect --tensors '.*' lists the names"
        raise NothingMatched(f"no module of the base is called {', '.join(idle)}", where=[base.path], help=tip)
    ends = list(dict.fromkeys((*modules_to_save, *heads)))
    saved = {name: tensor for name, tensor in tensors.items() if _is_copied(ends, name.rpartition(".")[0])}
    _check_saved(base, saved)
    return task, ends, saved


def _around(name: str) -> list[str]:
    """The modules that a tensor or a module is in, the outermost first."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _is_copied(ends: Sequence[str], module: str) -> bool:
    """Whether PEFT wraps it to be saved, or one that it is in: by the ends of names, so `classifier` takes a
    `pre_classifier`, too.
    """
    return any(name.endswith(tuple(ends)) for name in (*_around(module), module)) if ends else False


def _check_saved(base: Checkpoint, saved: Mapping[str, Tensor]) -> None:
    """Raise NotSupported for experts that the class holds in other tensors than the files: a copy of theirs would
    not be loaded.
    """
    inside = ("one expert of a stack", "a stack of experts")
    found = [f"{name}.weight" for name, module in (told(base) if saved else {}).items() if module.what in inside]
    if odd := sorted(saved.keys() & set(found), key=natural):
        tip = "leave their module out of --modules-to-save; --target-parameters puts LoRA on experts"
        raise NotSupported(
            "cannot copy experts that the class holds in other tensors than the files", where=listed(odd), help=tip
        )


def _chosen(config: Mapping[str, Any], modules: Mapping[str, Module]) -> list[str]:
    """The modules that PEFT would take (peft/tuners/tuners_utils.py check_target_module_exists)."""
    left = [m for m in modules if not _matches(config["exclude_modules"], m) and not _is_saved(config, m)]
    return sorted((m for m in left if _is_target(config, m, modules[m])), key=natural)


def _without_copied(config: Mapping[str, Any], chosen: Sequence[str]) -> tuple[list[str], list[str]]:
    """The targets but for those that PEFT saves whole by the end of their name, and a note. Raises NotSupported if
    they were named.

    PEFT puts LoRA on such a module first, and then cannot load it: "all-linear" is written out without it, other
    targets would find it.
    """
    ends = config["modules_to_save"] or ()
    both = [module for module in chosen if _is_copied(ends, module)]
    if not both:
        return list(chosen), []
    said = f"PEFT saves every module whose name ends in {series(ends, ' or ')}"
    if config["target_modules"] != ALL_LINEAR:
        tip = f"--exclude-modules {','.join(listed(both))}"
        raise NotSupported(f"a module cannot be a target and be saved whole: {said}", where=listed(both), help=tip)
    return [module for module in chosen if module not in both], [
        f"{', '.join(listed(both))} copied, without LoRA: {said}"
    ]


def _is_saved(config: Mapping[str, Any], module: str) -> bool:
    """Whether it is copied whole, or a part of what is, and so no target."""
    return any(compiled(rf"(?:^|.*\.){end}(?:$|\..*)").match(module) for end in config["modules_to_save"] or ())


def _is_target(config: Mapping[str, Any], name: str, module: Module) -> bool:
    wanted = config["target_modules"]
    if wanted == ALL_LINEAR:
        return module.kind in (Kind.LINEAR, Kind.CONV1D) and not module.head
    if not _matches(wanted, name):
        return False
    layers = config["layers_to_transform"]
    if layers is None or isinstance(wanted, str):
        return True
    patterns = [rf"(?:^|.*?\.){p}" for p in config["layers_pattern"] or ()] or [r".*?\.[^.]*"]
    found = next((f for p in patterns if (f := re.match(rf"{p}\.(?P<index>\d+)\.", name))), None)
    return found is not None and int(found["index"]) in layers


def _matches(wanted: str | Sequence[str] | None, module: str) -> bool:
    if wanted is None:
        return False
    if isinstance(wanted, str):
        return bool(compiled(wanted).fullmatch(module))
    return is_called(module, wanted)


def _asked_apart(base: Checkpoint, config: Mapping[str, Any], modules: Mapping[str, Module]) -> list[Site]:
    """The fused modules of which some parts are asked for, and not the whole: by the target's names, or by what is
    excluded.
    """
    try:
        sites = [site for site in fused_in(base) if not site.row.stacked]
    except SurgeryError:  # a layout that is not known: its modules can be targeted as they are
        return []
    found = []
    for site, shown in zip(sites, in_memory_sites(base, sites), strict=True):
        weight = f"{site.module}{site.row.tensors[0][0]}"
        module = modules.get(shown.module) or Module(Kind.LINEAR, weight, base.tensors[weight].shape)
        whole, parts = _chosen(config, {shown.module: module}), _chosen(config, dict.fromkeys(shown.parts, module))
        excluded = any(_matches(config["exclude_modules"], part) for part in shown.parts)
        if parts and (not whole or excluded):
            found.append(site)
    return found


def _check_targets(
    base: Checkpoint, config: Mapping[str, Any], chosen: Sequence[str], modules: Mapping[str, Module]
) -> None:
    wanted = config["target_modules"]
    targets = [wanted] if isinstance(wanted, str) else wanted
    found = [*chosen, *(module for module in modules if _is_saved(config, module))]
    idle = [t for t in targets if not any(isinstance(wanted, str) or is_called(m, [t]) for m in found)]
    if (chosen or not targets) and not idle:
        _check_kinds(base, config, {module: modules[module] for module in chosen})
        return
    _check_left(base, config, idle or targets, modules)
    leaves = sorted({module.rpartition(".")[2] for module in modules})
    near = [leaf for target in idle or targets for leaf in nearest(target, leaves)]
    tip = (
        f"the nearest names are {', '.join(dict.fromkeys(near))}"
        if near
        else f"modules are called {series(listed(leaves, 12))}"
    )
    tip += "; a text is a regular expression for whole names" if near and isinstance(wanted, str) else ""
    what = (
        f"{len(idle or targets)} of {len(targets)} targets are in no module of the base:"
        f" {', '.join(listed(idle or targets))}"
    )
    raise NothingMatched(what, where=[base.path], help=tip)


def _check_left(
    base: Checkpoint, config: Mapping[str, Any], idle: Sequence[str], modules: Mapping[str, Module]
) -> None:
    """Raise NothingMatched where modules do have the targets' names, and other options leave none of them."""
    wanted = config["target_modules"]
    asked = {**config, "target_modules": wanted if isinstance(wanted, str) else list(idle), "layers_to_transform": None}
    found = [name for name, module in modules.items() if _is_target(asked, name, module)]
    excluded = [name for name in found if _matches(config["exclude_modules"], name)]
    saved = [name for name in found if name not in excluded and _is_copied(config["modules_to_save"] or (), name)]
    layers = [name for name in found if name not in (*excluded, *saved)]
    options = {"--exclude-modules": excluded, "--modules-to-save": saved, "--layers-to-transform": layers}
    rows = [f"{option} takes {len(names)} away: {series(listed(names))}" for option, names in options.items() if names]
    if rows:
        tip = "target other modules, or change these options"
        raise NothingMatched(
            f"other options leave none of the targets {series(listed(idle))}", where=[base.path, *rows], help=tip
        )


def _check_patterns(base: Checkpoint, config: Mapping[str, Any], chosen: Sequence[str]) -> None:
    """Raise NothingMatched for patterns of ranks and alphas that match none of what was chosen."""
    given = [(option, name) for option in ("rank_pattern", "alpha_pattern") for name in config[option]]
    idle = [f"{option}: {name}" for option, name in given if not any(pattern({name: 1}, one, 0) for one in chosen)]
    if idle:
        leaves = sorted({name.rpartition(".")[2] for name in chosen})
        what = f"{len(idle)} of {len(given)} patterns match none of the targets"
        raise NothingMatched(
            what, where=[base.path, *listed(idle)], help=f"the targets are called {series(listed(leaves, 12))}"
        )


def _check_biases(base: Checkpoint, config: Mapping[str, Any], chosen: Sequence[str]) -> None:
    """Raise NotSupported for modules without a bias, if B is to have one: merged, it would have no place."""
    renames = renames_of(base.config)
    stored = {in_memory(name, renames) for name in (*base.tensors, *tied(base))}
    if config["lora_bias"] and (bare := [name for name in chosen if f"{name}.bias" not in stored]):
        what, tip = (
            "lora_bias on modules without a bias could not be merged",
            "leave --lora-bias away, or target modules with a bias",
        )
        raise NotSupported(f"{what}: PEFT refuses it", where=[base.path, *listed(bare)], help=tip)


def _check_kinds(base: Checkpoint, config: Mapping[str, Any], chosen: Mapping[str, Module]) -> None:
    """Raise NotSupported for modules that LoRA cannot be put on, or not with these options, or not from what is
    known.
    """

    def refuse(found: Mapping[str, Module], what: str, tip: str) -> None:
        if found:
            rows = [f"{base.path}: {name} {module.shape}" for name, module in found.items()]
            raise NotSupported(what, where=listed(rows), help=tip)

    of = {kind: {name: module for name, module in chosen.items() if module.kind is kind} for kind in Kind}
    named = ", ".join(dict.fromkeys(module.what for module in of[Kind.OTHER].values()))
    tip = "leave it out with --exclude-modules; --target-parameters takes parameters of experts and routers"
    refuse(of[Kind.OTHER], f"LoRA cannot be put on {named}", tip)
    kinds = {
        name: base.tensors[module.weight].dtype for name, module in chosen.items() if module.weight in base.tensors
    }
    odd = {name: chosen[name] for name, dtype in kinds.items() if dtype not in ARITHMETIC}
    refuse(
        odd,
        f"cannot put LoRA on weights of {series(sorted({str(kinds[name]) for name in odd}))}",
        "dequantise the base first",
    )
    dark = {name: module for name, module in of[Kind.CONVOLUTION].items() if not module.groups}
    what = "whether these convolutions are grouped, shape and model type do not tell, and lora_A depends on it"
    refuse(dark, what, "ask the class: --check-class")
    uneven = {n: m for n, m in of[Kind.CONVOLUTION].items() if m.groups and _rank(config, n) % m.groups}
    refuse(
        uneven,
        "the rank of a grouped convolution has to be a multiple of its groups",
        "choose another rank, or leave them out",
    )
    if config["lora_bias"]:
        refuse(
            of[Kind.EMBEDDING],
            "an embedding goes without lora_bias: PEFT refuses it",
            "leave it away, or leave embeddings out",
        )
    if config["use_dora"]:
        made = {name: module for name, module in chosen.items() if not module.weight}
        refuse(
            made, "DoRA needs the norms of weights that the base does not store as they are", "leave these modules out"
        )
        grouped = {name: module for name, module in of[Kind.CONVOLUTION].items() if module.groups > 1}
        refuse(grouped, "DoRA on grouped convolutions is not supported", "PEFT cannot compute it: leave them out")
    if config["target_parameters"]:
        tip = "make two adapters: PEFT takes one fan_in_fan_out for all of them"
        refuse(of[Kind.CONV1D], "LoRA on parameters goes without LoRA on Conv1D: PEFT refuses it", tip)


def _rank(config: Mapping[str, Any], name: str) -> int:
    return int(pattern(config["rank_pattern"], name, config["r"]))


def _factors(base: Checkpoint, name: str, module: Module, config: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    shape, rank, key = module.shape, _rank(config, name), f"{seed} {name}"
    if module.kind is Kind.CONVOLUTION:
        return _on_convolution(base, module, rank, key, config)
    columns = module.kind in (Kind.EMBEDDING, Kind.CONV1D)
    magnitude = (
        {"lora_magnitude_vector": Norms(Sum(F32, base.tensors[module.weight]), columns)} if config["use_dora"] else {}
    )
    if module.kind is Kind.EMBEDDING:
        b = Random((shape[1], rank), key, 1.0, normal=True)
        return {"lora_embedding_A": Zeros(F32, (rank, shape[0])), "lora_embedding_B": b, **magnitude}
    out, into = shape[::-1] if columns else shape
    bias = {"lora_B.bias": Zeros(F32, (out,))} if config["lora_bias"] else {}
    a = _drawn((rank, into), rank, key, config)
    return {"lora_A.weight": a, "lora_B.weight": Zeros(F32, (out, rank)), **bias, **magnitude}


def _on_convolution(
    base: Checkpoint, module: Module, rank: int, key: str, config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """A convolves with the kernel and is not grouped, B is pointwise and is (peft 0.21.2, tuners/lora/layer.py
    `_ConvNd`).
    """
    out, into, *kernel = module.shape
    ones = (1,) * len(kernel)
    found: dict[str, Tensor] = {"lora_A.weight": _drawn((rank, into * module.groups, *kernel), rank, key, config)}
    found["lora_B.weight"] = Zeros(F32, (out, rank // module.groups, *ones))
    if config["lora_bias"]:
        found["lora_B.bias"] = Zeros(F32, (out,))
    if config["use_dora"]:
        rows = reshape(base.tensors[module.weight], (out, into * math.prod(kernel)))
        found["lora_magnitude_vector"] = reshape(Norms(Sum(F32, rows)), (1, out, *ones))
    return found


def _on_parameter(parameter: Parameter, config: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    rank = _rank(config, parameter.name)
    a = _drawn((parameter.experts * rank, parameter.into), rank, f"{seed} {parameter.name}", config)
    return {"lora_A.weight": a, "lora_B.weight": Zeros(F32, (parameter.out, rank * parameter.experts))}


def _drawn(shape: tuple[int, ...], rank: int, key: str, config: Mapping[str, Any]) -> Tensor:
    """lora_A as PEFT draws it: uniform within 1 / √(what one output sees), as nn.Linear, or normal with deviation 1
    / rank.
    """
    gaussian = config["init_lora_weights"] == "gaussian"
    return Random(shape, key, 1 / rank if gaussian else 1 / math.sqrt(math.prod(shape[1:])), normal=gaussian)


def _known(
    modules: Mapping[str, Module], chosen: Sequence[str], parameters: Sequence[Parameter], source: str
) -> list[str]:
    """What the adapter is on, and how that is known."""
    counts = Counter(kind.value for kind in Kind for name in chosen if modules[name].kind is kind)
    if parameters:
        counts["parameter"] = len(parameters)
    said = ", ".join(f"{count} × {what}" for what, count in counts.items())
    how = f"as {source} says" if source else "by config.json, names and shapes; --check-class asks the class"
    return [f"LoRA on {said}: {how}"]


def _counted(size: int, adapter: Adapter) -> str:
    """As PEFT's `print_trainable_parameters` says it, of a base of `size` parameters; tied ones in one copied module
    count once.
    """
    ends = tuple(adapter.config["modules_to_save"] or ())
    copied = {(next(m for m in _around(name) if m.endswith(ends)), id(t)): t.size for name, t in adapter.whole.items()}
    mine = sum(tensor.size for parts in adapter.lora.values() for tensor in parts.values()) + sum(copied.values())
    return f"trainable params: {mine:,} || all params: {mine + size:,} || trainable%: {100 * mine / (mine + size):.4f}"
