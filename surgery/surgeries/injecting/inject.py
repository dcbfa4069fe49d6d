"""Put zero-initialised LoRA on a base: an adapter made from headers and config alone, that changes nothing yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from ...adapters.fused import fuse_adapter
from ...checkpoint import Checkpoint
from ...errors import SurgeryError, series
from ...files.peft import PREFIX, Adapter
from ...files.refs import has_scheme, parse_ref
from ...lazy.tensor import Tensor
from ...models.fused.row import Site
from ...names import natural
from ...quantization.settle import decoded
from ...step import Option, step
from ..merging.quantised import read_quantised
from ..split import in_memory_sites, sites_held, split_at
from .factors import factors, on_parameter
from .modules import Kind, Module, checked, parameters_in, told
from .options import ALL_LINEAR, DEFAULTS, check_options
from .parameters import Parameter, as_peft_reads, keys_of, targeted
from .saved import around, task_of
from .target_names import aims_at, as_in_memory, defaults_here
from .targets import asked_apart, check_biases, check_patterns, check_targets, chosen_of, without_copied


@step
def inject(
    base: Checkpoint,
    target_modules: Annotated[
        str | Sequence[str], Option("Last names, a regular expression, or all-linear; else PEFT's own.", "NAME,…")
    ] = (),
    *,
    target_parameters: Annotated[
        Sequence[str], Option("Parameters, such as experts.gate_up_proj: all experts at once.", "NAME,…")
    ] = (),
    rank: Annotated[int, Option("The inner dimension of B·A.", "N", ("--rank", "-r"))] = 8,
    alpha: Annotated[float | None, Option("The scale is alpha / rank; 1 if not given.", "X")] = None,
    init: Annotated[
        str, Option("How A is drawn: uniform (PEFT's own) or gaussian.", "KIND", words=("uniform", "gaussian"))
    ] = "uniform",
    seed: Annotated[int, Option("A follows from it and from its name, on every machine.", "N")] = 0,
    use_rslora: Annotated[bool, Option("The scale is alpha / √rank.")] = False,
    use_dora: Annotated[bool, Option("Magnitudes too, taken from the base in a stream.")] = False,
    lora_bias: Annotated[bool, Option("A bias beside each B.")] = False,
    lora_dropout: Annotated[float, Option("For training: from 0 to below 1.", "P")] = 0.0,
    modules_to_save: Annotated[Sequence[str], Option("Copied whole, to be trained.", "NAME,…")] = (),
    exclude_modules: Annotated[str | Sequence[str] | None, Option("As --target-modules, left out.", "NAME,…")] = None,
    layers_to_transform: Annotated[Sequence[int] | None, Option("Only in these layers.", "N,…")] = None,
    layers_pattern: Annotated[Sequence[str] | None, Option("What the layers' list is called.", "NAME,…")] = None,
    rank_pattern: Annotated[
        Mapping[str, int] | None, Option("Another rank where a name's end matches; often.", "REGEX=N")
    ] = None,
    alpha_pattern: Annotated[
        Mapping[str, float] | None, Option("Another alpha where a name's end matches; often.", "REGEX=X")
    ] = None,
    check_class: Annotated[
        bool, Option("Ask the class what each module is, through transformers, on the meta device.")
    ] = False,
) -> Adapter:
    """Make a zero-initialised LoRA adapter for a base, from headers alone: PEFT loads it, and nothing changes yet.

    A (r, in) is random, B (out, r) zero:

        convolution  (out, in / groups, *kernel)  ->  A (r, in, *kernel), B (out, r / groups, 1, …)
        parameter    (experts, out, in)           ->  A (experts * r, in), B (out, r * experts)

    Targets are as PEFT takes them: last names, a regular expression for whole names, or "all-linear" (without the
    output head). Where neither modules nor parameters are named, PEFT's own targets for the model type are taken,
    and a note names them. Parts of fused modules can be targeted, too: `q_proj` and `v_proj` of a `qkv_proj`;
    and modules by the names that files have, where the class calls them otherwise.
    `target_parameters` are names of parameters, such as `experts.gate_up_proj`, which holds all experts of a layer.
    What is a Linear, a Conv1D, an embedding or a convolution follows from config.json, names and shapes, or, with
    `check_class`, from the class, which transformers builds on the meta device. `init` is PEFT's own
    kaiming-uniform, or gaussian with deviation 1/r; embeddings get A zero and B normal, as PEFT does. Numbers follow
    from `seed` and the tensor's name. `alpha` is `rank` where not given. `use_dora` takes the magnitudes from the
    base, when it is written; `modules_to_save` are copied, with the heads that PEFT trains along for the class's
    task. A quantised base is taken as what its codes mean: the adapter is the one for QLoRA.

    Raises NothingMatched for a target that is not in the base, NotSupported for one that LoRA cannot be put on.
    """
    for said, value in {"rank": rank, "seed": seed, **dict(rank_pattern or {})}.items():
        if not isinstance(value, int):
            raise SurgeryError(f"{said} is {value!r}, and no whole number", help="give one, such as 8")
    base = decoded(base, read_quantised(base))
    named = target_modules if isinstance(target_modules, str) else list(target_modules)
    wanted = named or ([] if target_parameters else defaults_here(base))
    task, ends, saved = task_of(base, modules_to_save)
    config: dict[str, Any] = {
        **DEFAULTS,
        **named_by(base),
        "task_type": task,
        "modules_to_save": ends or None,
        "r": rank,
        "lora_alpha": rank if alpha is None else _number(alpha),
        "target_modules": wanted,
        "target_parameters": list(target_parameters) or None,
        "exclude_modules": exclude_modules,
        "layers_to_transform": None if layers_to_transform is None else list(layers_to_transform),
        "layers_pattern": None if layers_pattern is None else list(layers_pattern),
        "rank_pattern": dict(rank_pattern or {}),
        "alpha_pattern": {name: _number(value) for name, value in (alpha_pattern or {}).items()},
        "init_lora_weights": True if init == "uniform" else init,
        "use_rslora": use_rslora,
        "use_dora": use_dora,
        "lora_bias": lora_bias,
        "lora_dropout": lora_dropout,
    }
    check_options(config, init)
    step = {"surgery": "inject", "rank": rank, "init": init, "seed": seed}
    adapter = _adapter(base, config, saved, step, check_class=check_class, parts=bool(named))
    return adapter if named or not wanted else replace(adapter, notes=(_defaulted(base, wanted), *adapter.notes))


def _number(value: float) -> float:
    """A whole number without a point, as PEFT writes it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _defaulted(base: Checkpoint, targets: str | Sequence[str]) -> str:
    said = targets if isinstance(targets, str) else series(targets)
    return f"no target was given: {said}, as PEFT takes them for {base.config['model_type']}"


def _adapter(
    base: Checkpoint,
    config: dict[str, Any],
    saved: Mapping[str, Tensor],
    step: Mapping[str, Any],
    *,
    check_class: bool,
    parts: bool,
) -> Adapter:
    """The adapter that `config` asks for, with the tensors that are `saved` whole; on `parts` of fused modules too, or
    where it aims at nothing else.
    """
    whole = told(base)
    config["target_modules"], said = as_in_memory(base, config["target_modules"], whole)
    read = [*said, *as_peft_reads(base, config, whole)]
    parted = asked_apart(base, config, whole) if parts or not aims_at(whole, config["target_modules"]) else []
    apart, modules = base, whole
    if parted:
        apart = split_at(base, parted)
        modules = told(apart)
    size = parameters_in(base)
    if check_class:
        modules, size = checked(apart, modules, in_memory_sites(base, parted))
    chosen, clashes = without_copied(config, chosen_of(config, modules))
    check_targets(base, config, chosen, modules)
    parameters = targeted(base, config, chosen)
    check_patterns(base, config, [*chosen, *(parameter.name for parameter in parameters)])
    check_biases(apart, config, chosen)
    lora = _lora(apart, config, {module: modules[module] for module in chosen}, parameters, step["seed"])
    config |= _as_written(config, {module: modules[module] for module in chosen}, parted)
    done = {**step, "modules": len(lora)}
    names = _names(lora, saved)
    adapter = Adapter(base.path, config, lora, dict(saved), names, metadata={"format": "pt"}, history=(done,))
    adapter = _together(adapter, sites_held(adapter, in_memory_sites(base, parted), fused=False))
    source = str(base.config["architectures"][0]) if check_class else ""
    notes = [*read, *clashes, *_known(modules, chosen, parameters, source), _counted(size, adapter)]
    return replace(adapter, notes=(*adapter.notes, *notes))


def _lora(
    apart: Checkpoint,
    config: Mapping[str, Any],
    modules: Mapping[str, Module],
    parameters: Sequence[Parameter],
    seed: int,
) -> dict[str, dict[str, Tensor]]:
    """The factors on the modules and on the parameters."""
    on_modules = {name: factors(apart, name, module, config, seed) for name, module in modules.items()}
    return on_modules | {key: on_parameter(one, config, seed) for key, one in keys_of(parameters).items()}


def _as_written(config: Mapping[str, Any], chosen: Mapping[str, Module], parted: Sequence[Site]) -> dict[str, Any]:
    """What of the config is known when modules are chosen, and what was excluded of a fused module is none of its
    own.
    """
    known: dict[str, Any] = {"fan_in_fan_out": any(module.kind is Kind.CONV1D for module in chosen.values())}
    known |= {"exclude_modules": None} if parted else {}
    return known | ({"target_modules": sorted(chosen, key=natural)} if config["target_modules"] == ALL_LINEAR else {})


def _names(lora: Mapping[str, Mapping[str, Tensor]], saved: Mapping[str, Tensor]) -> dict[str, str]:
    """The tensors' names in the file, by those here."""
    keys = [*(f"{module}.{part}" for module, parts in lora.items() for part in parts), *saved]
    return {key: f"{PREFIX}{key}" for key in keys}


def named_by(base: Checkpoint) -> dict[str, str | None]:
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
    copied = {(next(m for m in around(name) if m.endswith(ends)), id(t)): t.size for name, t in adapter.whole.items()}
    mine = sum(tensor.size for parts in adapter.lora.values() for tensor in parts.values()) + sum(copied.values())
    return f"trainable params: {mine:,} || all params: {mine + size:,} || trainable%: {100 * mine / (mine + size):.4f}"
