"""Where an adapter's modules and parameters lie in a base: under other names, and in experts that are stored in
another way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...adapters.experts import called, on_experts, on_matrix, on_stack, pieces, wrapped
from ...adapters.fused import config_under
from ...checkpoint import Checkpoint
from ...errors import NotPlaced, NotSupported, PlanError, listed, nearest
from ...files.peft import TOKENS, Adapter
from ...lazy.low_rank import LowRank
from ...models.fused.given import Given
from ...models.fused.row import Site
from ...models.names_v5 import Reading, places
from ...names import natural
from ..split import fused_in, split_in
from .across import EXPERTS, apart_here, fused_here
from .mending import without_parts


def with_names(adapter: Adapter, new: Mapping[str, str]) -> Adapter:
    """The adapter with other names for its modules, parameters and whole tensors; ranks and alphas stay what they
    are.
    """
    parts = {
        f"{new[key]}.{part}": adapter.names[f"{key}.{part}"] for key, parts in adapter.lora.items() for part in parts
    }
    return replace(
        adapter,
        config=config_under(adapter, new),
        lora={new[key]: parts for key, parts in adapter.lora.items()},
        whole={new[name]: tensor for name, tensor in adapter.whole.items()},
        names=parts
        | {part: adapter.names[part] for part in adapter.shared}
        | {new[name]: adapter.names[name] for name in adapter.whole},
        parameters=frozenset(new[key] for key in adapter.parameters & adapter.lora.keys()),
    )


def under_base_names(checkpoint: Checkpoint, adapter: Adapter, given: Given | None = None) -> tuple[Adapter, str]:
    """The adapter under the base's names, where it has those of the class in memory or of an older one; and a note
    on it.

    Raises NotPlaced where that would place only some of it, or where it could be placed in more than one way.
    """
    wanted = {key: key if key in adapter.parameters else f"{key}.weight" for key in adapter.lora}
    whole = {name: f"{rows['module']}.weight" if (rows := TOKENS.fullmatch(name)) else name for name in adapter.whole}
    asked = {*wanted.values(), *whole.values()}
    offered = set(checkpoint.tensors)
    if offered >= asked:
        return adapter, ""
    offered |= _offered(
        checkpoint, given, experts=bool(adapter.parameters) or any(".experts." in key for key in adapter.lora)
    )
    if offered >= asked:
        return adapter, ""
    here = {name for name in wanted.values() if name in offered}
    placed = len(here) == len(wanted)
    readings = places([*wanted.values(), *whole.values()], offered, checkpoint.config)
    if placed:  # what is saved whole may be called otherwise; what is in its place stays there
        readings = [
            one for one in readings if one.places.keys() > here and all(one.places[name] == name for name in here)
        ]
    full = [one for one in readings if one.places.keys() >= set(wanted.values())]
    full = [one for one in full if len(one.places) == len(full[0].places)]
    if len(full) > 1:
        raise _either(adapter, full)
    if not full or not full[0].moves:
        if not placed and readings and len(readings[0].places.keys() & set(wanted.values())) > len(here):
            raise _partly(checkpoint, adapter, readings[0], wanted)
        return adapter, ""
    found = full[0].places
    new = {
        key: found[name].removesuffix("" if key in adapter.parameters else ".weight") for key, name in wanted.items()
    }
    for name, tensor in whole.items():
        tail = name.removeprefix(tensor.removesuffix(".weight")) if name != tensor else ""
        place = found.get(tensor, tensor)
        new[name] = f"{place.removesuffix('.weight')}{tail}" if tail else place
    return with_names(adapter, new), str(full[0])


def on_parameters(checkpoint: Checkpoint, adapter: Adapter) -> tuple[Adapter, list[Site], str]:
    """The adapter with deltas in the place of its LoRA on parameters; the sites to be taken apart for them; and a
    note on it.

    Raises NotPlaced, AdapterError, NotSupported.
    """
    mine = sorted(adapter.parameters & adapter.lora.keys(), key=natural)
    if not mine:
        return adapter, [], ""
    sites = {name: (site, stored) for site, stored in _experts(checkpoint) for name in called(site)}
    deltas: dict[str, LowRank] = {}
    apart: list[Site] = []
    single: dict[str, None] = {}
    lost = []
    for parameter in mine:
        one, tensor = wrapped(adapter, parameter), checkpoint.tensors.get(parameter)
        if parameter in sites:
            site, stored = sites[parameter]
            if stored:
                shape = checkpoint.tensors[f"{site.module}{site.row.tensors[0][0]}"].shape
                deltas |= on_stack(one, site, shape, checkpoint.config)
                apart.append(pieces(site, shape))
            else:
                width = checkpoint.tensors[f"{site.parts[0]}.weight"].shape[-1]
                deltas |= on_experts(one, site, width, checkpoint.config)
                single[parameter.rpartition(".")[2]] = None
        elif tensor is not None and len(tensor.shape) == 2:
            deltas[parameter] = on_matrix(one, parameter, tensor.shape)
        elif tensor is not None:
            raise NotSupported(
                f"LoRA on a parameter of {tensor.shape} of model type `{checkpoint.config.get('model_type')}`, whose"
                " experts surgery does not know, is not supported",
                where=[one.file, f"base: {parameter}"],
                help="merge it with PEFT",
            )
        else:
            lost.append(parameter)
    if lost:
        near = nearest(lost[0], [*sites, *checkpoint.tensors])
        raise NotPlaced(
            f"{len(lost)} of the {len(mine)} parameters that the adapter was trained on have no place in the base",
            where=[adapter.path, *listed(lost)],
            help=f"the nearest names are {', '.join(near)}" if near else "the adapter belongs to another architecture",
        )
    lora = {key: parts for key, parts in adapter.lora.items() if key not in adapter.parameters}
    note = (
        f"the adapter was trained on {', '.join(single)} of all experts at once: merged into each expert's own"
        if single
        else ""
    )
    return replace(adapter, lora=lora, deltas={**adapter.deltas, **deltas}), apart, note


def check_apart(sites: list[Site]) -> list[Site]:
    """The sites, each once. Raises PlanError where two adapters would take one module apart in two ways."""
    found: dict[str, Site] = {}
    for site in sites:
        if found.setdefault(site.module, site).parts != site.parts:
            raise PlanError(
                "one adapter was trained on all experts at once, another on single ones",
                where=[site.module],
                help="merge them one after another",
            )
    return list(found.values())


def _experts(checkpoint: Checkpoint) -> list[tuple[Site, bool]]:
    """The sites of experts, and whether the base stores them in one tensor."""
    return [(s, True) for s in fused_in(checkpoint, EXPERTS)] + [(s, False) for s in split_in(checkpoint, EXPERTS)]


def _offered(checkpoint: Checkpoint, given: Given | None, *, experts: bool) -> set[str]:
    """Names of tensors that are not stored, but can be merged into: parts of what is fused, what could be fused,
    parameters.

    Experts are looked at only where they are meant: those that are quantised, or incomplete, are no other adapter's
    concern.
    """
    sites = {
        site.module: site
        for site in [*fused_here(checkpoint, given), *(fused_in(checkpoint, EXPERTS) if experts else [])]
    }
    parts = {f"{part}{suffix}" for site in sites.values() for part in site.parts for suffix in site.row.part_suffixes}
    wholes = {f"{site.module}{suffix}" for site in apart_here(checkpoint, given) for suffix in site.row.fused_suffixes}
    return parts | wholes | ({name for site, _ in _experts(checkpoint) for name in called(site)} if experts else set())


def _either(adapter: Adapter, readings: list[Reading]) -> NotPlaced:
    first, second = readings[:2]
    name = next(name for name in first.places if first.places[name] != second.places.get(name))
    return NotPlaced(
        "the adapter's modules could be placed in more than one way",
        where=[
            adapter.path,
            f"{name} -> {first.places[name]}: {first.how}",
            f"{name} -> {second.places[name]}: {second.how}",
        ],
        help="say which with --map REGEX=REPLACEMENT",
    )


def _partly(checkpoint: Checkpoint, adapter: Adapter, reading: Reading, wanted: Mapping[str, str]) -> NotPlaced:
    lost = sorted((key for key, name in wanted.items() if name not in reading.places), key=natural)
    return NotPlaced(
        f"{len(lost)} of the adapter's {len(wanted)} modules have no place in the base, by its own names or by those of"
        " transformers",
        where=[adapter.path, *listed(lost)],
        help=f"the others would have one: {reading}; "
        + (without_parts(checkpoint, lost, wanted.keys() - set(lost)) or "--map REGEX=REPLACEMENT places the rest"),
    )
