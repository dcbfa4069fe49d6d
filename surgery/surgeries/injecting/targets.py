"""Which modules an injected adapter is put on: those that PEFT would take, and that LoRA can be put on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...adapters.lora import pattern
from ...checkpoint import Checkpoint
from ...errors import NothingMatched, NotSupported, SurgeryError, listed, nearest, series
from ...lazy.dtypes import ARITHMETIC
from ...models.fused.row import Site
from ...models.names_v5 import in_memory, renames_of
from ...names import compiled, is_called, natural
from ..split import fused_in, in_memory_sites
from .factors import rank_of
from .modules import Kind, Module, tied
from .options import ALL_LINEAR
from .saved import is_copied
from .target_names import parts_here


def chosen_of(config: Mapping[str, Any], modules: Mapping[str, Module]) -> list[str]:
    """The modules that PEFT would take (peft/tuners/tuners_utils.py check_target_module_exists)."""
    left = [m for m in modules if not _matches(config["exclude_modules"], m) and not _is_saved(config, m)]
    return sorted((m for m in left if _is_target(config, m, modules[m])), key=natural)


def without_copied(config: Mapping[str, Any], chosen: Sequence[str]) -> tuple[list[str], list[str]]:
    """The targets but for those that PEFT saves whole by the end of their name, and a note. Raises NotSupported if
    they were named.

    PEFT puts LoRA on such a module first, and then cannot load it: "all-linear" is written out without it, other
    targets would find it.
    """
    ends = config["modules_to_save"] or ()
    both = [module for module in chosen if is_copied(ends, module)]
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


def asked_apart(base: Checkpoint, config: Mapping[str, Any], modules: Mapping[str, Module]) -> list[Site]:
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
        whole, parts = chosen_of(config, {shown.module: module}), chosen_of(config, dict.fromkeys(shown.parts, module))
        excluded = any(_matches(config["exclude_modules"], part) for part in shown.parts)
        if parts and (not whole or excluded):
            found.append(site)
    return found


def check_targets(
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
    tip += parts_here(base)
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
    saved = [name for name in found if name not in excluded and is_copied(config["modules_to_save"] or (), name)]
    layers = [name for name in found if name not in (*excluded, *saved)]
    options = {"--exclude-modules": excluded, "--modules-to-save": saved, "--layers-to-transform": layers}
    rows = [f"{option} takes {len(names)} away: {series(listed(names))}" for option, names in options.items() if names]
    if rows:
        tip = "target other modules, or change these options"
        raise NothingMatched(
            f"other options leave none of the targets {series(listed(idle))}", where=[base.path, *rows], help=tip
        )


def check_patterns(base: Checkpoint, config: Mapping[str, Any], chosen: Sequence[str]) -> None:
    """Raise NothingMatched for patterns of ranks and alphas that match none of what was chosen."""
    given = [(option, name) for option in ("rank_pattern", "alpha_pattern") for name in config[option]]
    idle = [f"{option}: {name}" for option, name in given if not any(pattern({name: 1}, one, 0) for one in chosen)]
    if idle:
        leaves = sorted({name.rpartition(".")[2] for name in chosen})
        what = f"{len(idle)} of {len(given)} patterns match none of the targets"
        raise NothingMatched(
            what, where=[base.path, *listed(idle)], help=f"the targets are called {series(listed(leaves, 12))}"
        )


def check_biases(base: Checkpoint, config: Mapping[str, Any], chosen: Sequence[str]) -> None:
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
    uneven = {n: m for n, m in of[Kind.CONVOLUTION].items() if m.groups and rank_of(config, n) % m.groups}
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
