"""LoRA on a fused module, and on its parts: the same change of the weights, exactly.

    split   A is shared, the rows of B (with its bias, and DoRA's magnitudes) go to the parts they belong to
    fuse    equal A's and scales: A and the rank are kept, the rows of B joined; else the ranks add, the A's are
    stacked, and
            B holds each part's B in its rows and columns, and zeros elsewhere; a part without LoRA adds nothing

PEFT's config follows: target_modules, ranks and alphas, so that PEFT loads the result and computes the same.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import LayoutError, NotSupported, listed
from ..files.peft import Adapter, file_name
from ..lazy.dense import Dense
from ..lazy.dtypes import F32
from ..lazy.tensor import Tensor, Zeros, add, concat, reshape
from ..models.fused.apply import Change, described, fuse_tensors, split_tensors
from ..models.fused.layout import fuse_axis, split_axis
from ..models.fused.row import Site
from ..names import natural
from .blocks import OPTION as BLOCKS
from .lora import check_factors, check_numbers, pattern, strength

_SHARED = "lora_A.weight"
_B = "lora_B.weight"
_ROWS = (_B, "lora_B.bias", "lora_magnitude_vector", "lora_magnitude_vector.weight")


def split_adapter(adapter: Adapter, sites: Sequence[Site]) -> Adapter:
    """The adapter on the parts of the fused modules that it has LoRA on, or saved tensors of. Raises LayoutError,
    NotSupported.
    """
    _check_kind(adapter, sites)
    lora, ranks = dict(adapter.lora), ranks_of(adapter)
    for site in sites:
        if site.module not in lora:
            continue
        check_factors(adapter, site.module)
        parts = lora.pop(site.module)
        rank = ranks.pop(site.module)
        made: dict[str, dict[str, Tensor]] = {part: {} for part in site.parts}
        for key, tensor in parts.items():
            rows = [tensor] * len(site.parts) if key == _SHARED else _split_rows(adapter, site, key, tensor)
            for part, value in zip(site.parts, rows, strict=True):
                made[part][key] = value
        lora |= made
        ranks |= dict.fromkeys(site.parts, rank)
    whole = _whole(adapter.whole, [split_tensors(adapter.whole, site) for site in sites])
    leaves = {site.row.fused: list(site.row.parts.values()) for site in sites}
    return _made(adapter, lora, whole, ranks, leaves, {"surgery": "split", "modules": described(sites)})


def fuse_adapter(adapter: Adapter, sites: Sequence[Site]) -> Adapter:
    """The adapter on the fused modules whose parts it has LoRA on, or saved tensors of. Reads the A's, to see
    whether they are equal. Raises LayoutError, AdapterError, NotSupported.
    """
    _check_kind(adapter, sites)
    lora, ranks = dict(adapter.lora), ranks_of(adapter)
    once: dict[str, Tensor] = {}  # A's that are equal to another, which is kept
    for site in sites:
        here = {part: lora.pop(part) for part in site.parts if part in lora}
        if not here:
            continue
        for part in here:
            check_factors(adapter, part)
        _check_fusible(adapter, site, here)
        mine = {part: ranks.pop(part) for part in here}
        if _shares_a(site, here, mine):
            lora[site.module], ranks[site.module] = _joined(site, here), mine[site.parts[0]]
            once |= {adapter.names[f"{part}.{_SHARED}"]: here[part][_SHARED] for part in site.parts[1:]}
        else:
            lora[site.module], ranks[site.module] = _in_blocks(site, here, mine, adapter)
    saved = _saved(adapter, sites)
    for site in saved:
        _check_saved(adapter, site)
    whole = _whole(adapter.whole, [fuse_tensors(adapter.whole, site) for site in saved])
    leaves = {leaf: [site.row.fused] for site in sites for leaf in site.row.parts.values()}
    made = _made(adapter, lora, whole, ranks, leaves, {"surgery": "fuse", "modules": described(sites)})
    note = [f"{len(once)} A's are equal to another one of their module, and kept once"] if once else []
    return replace(made, dropped={**adapter.dropped, **once}, notes=(*adapter.notes, *note))


@dataclass(frozen=True, slots=True)
class Rank:
    """Rank and alpha of one module."""

    r: int
    alpha: float


def ranks_of(adapter: Adapter) -> dict[str, Rank]:
    """Rank and alpha of each module with LoRA. Raises AdapterError."""
    check_numbers(adapter)
    return {module: Rank(*strength(adapter.config, module)[:2]) for module in adapter.lora}


def _split_rows(adapter: Adapter, site: Site, key: str, tensor: Tensor) -> list[Tensor]:
    name = adapter.names[f"{site.module}.{key}"]
    if key not in _ROWS:
        raise NotSupported(
            f"{key} of a fused module cannot be split", where=[f"{adapter.path}: {name}"], help="merge it instead"
        )
    if not tensor.shape or tensor.shape[0] != site.layout.length:
        raise LayoutError(
            "the adapter was trained on another layout",
            where=[
                f"{adapter.path}: {name}",
                f"{tensor.shape}, where {site.module} has {site.layout.length} rows = {site.layout}",
            ],
            help="pass the base that the adapter was trained on",
        )
    return split_axis(tensor, 0, site.layout)


def _shares_a(site: Site, here: Mapping[str, Mapping[str, Tensor]], ranks: Mapping[str, Rank]) -> bool:
    """Whether all parts are there, with one A and one scale: they came from a split."""
    from ..evaluation.compare import same

    first = site.parts[0]
    alike = here.keys() == set(site.parts) and all(
        ranks[p] == ranks[first] and here[p].keys() == here[first].keys() for p in here
    )
    return alike and all(same(here[first][_SHARED], here[p][_SHARED]) for p in here)


def _joined(site: Site, here: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    first = here[site.parts[0]]
    return {
        k: a if k == _SHARED else fuse_axis([here[p][k] for p in site.parts], 0, site.layout) for k, a in first.items()
    }


def _in_blocks(
    site: Site, here: Mapping[str, Mapping[str, Tensor]], ranks: Mapping[str, Rank], adapter: Adapter
) -> tuple[dict[str, Tensor], Rank]:
    """The tensors of a fused module's LoRA from A's of any parts, and its rank: the sum of theirs."""
    scales = {part: strength(adapter.config, part)[2] for part in here}
    scale = next(iter(scales.values()))
    factors = {part: scales[part] / scale for part in here}
    total = sum(ranks[part].r for part in here)
    alpha = scale * (math.sqrt(total) if adapter.config.get("use_rslora") else total)
    made = {_SHARED: concat([here[part][_SHARED] for part in here], 0), _B: _block_form(site, here, ranks, factors)}
    for key in dict.fromkeys(key for parts in here.values() for key in parts if key not in made):
        vectors = {part: parts[key] for part, parts in here.items() if key in parts}
        made[key] = _vector(site, vectors, factors if key.endswith("bias") else dict.fromkeys(here, 1.0))
    return made, Rank(total, int(alpha) if alpha == int(alpha) else alpha)


def _block_form(
    site: Site, here: Mapping[str, Mapping[str, Tensor]], ranks: Mapping[str, Rank], factors: Mapping[str, float]
) -> Tensor:
    """B (rows, Σ r): in the rows of a part, and in its columns, the part's B; zeros elsewhere."""
    scaled = _scaled({part: parts[_B] for part, parts in here.items()}, factors)
    dtype = next(iter(scaled.values())).dtype
    blocks = []
    for part, length in zip(site.parts, site.layout.lengths, strict=True):
        row: list[Tensor] = [scaled[p] if p == part else Zeros(dtype, (length, ranks[p].r)) for p in here]
        blocks.append(concat(row, 1))
    return fuse_axis(blocks, 0, site.layout)


def _vector(site: Site, vectors: Mapping[str, Tensor], factors: Mapping[str, float]) -> Tensor:
    """One number per row; zeros for parts that have none."""
    scaled = _scaled(vectors, factors)
    dtype = next(iter(scaled.values())).dtype
    parts = zip(site.parts, site.layout.lengths, strict=True)
    return fuse_axis([scaled[p] if p in scaled else Zeros(dtype, (length,)) for p, length in parts], 0, site.layout)


def _scaled(tensors: Mapping[str, Tensor], factors: Mapping[str, float]) -> dict[str, Tensor]:
    """The tensors times their factors: as they are where all factors are 1, else in float32, so that next to nothing
    is rounded.
    """
    kinds = {tensor.dtype for tensor in tensors.values()}
    if len(kinds) == 1 and all(factors[part] == 1 for part in tensors):
        return dict(tensors)
    made = {}
    for part, tensor in tensors.items():
        matrix = reshape(tensor, (tensor.shape[0], tensor.size // tensor.shape[0]))
        product = (
            add(Zeros(F32, matrix.shape), [Dense(matrix, factors[part])])
            if factors[part] != 1
            else add(matrix, [], F32)
        )
        made[part] = reshape(product, tensor.shape)
    return made


def _check_kind(adapter: Adapter, sites: Sequence[Site]) -> None:
    kind = adapter.config.get("peft_type")
    if kind != "LORA":
        raise NotSupported(
            f"adapters of kind {kind} cannot be split or fused",
            where=[f"{adapter.path}/adapter_config.json"],
            help="supported: LORA",
        )
    if adapter.config.get(BLOCKS):
        where = [f"{adapter.path}/adapter_config.json", f"{BLOCKS} = {adapter.config[BLOCKS]!r}"]
        raise NotSupported(
            "LoRA whose factors are stored as blocks cannot be split or fused", where=where, help="merge it instead"
        )
    if stacked := [site.module for site in sites if site.row.stacked]:
        raise NotSupported(
            "adapters on stacked experts cannot be split or fused", where=listed(stacked), help="merge them instead"
        )


def _check_fusible(adapter: Adapter, site: Site, here: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Each part is a whole LoRA of the layout's rows; magnitudes are there for all rows or none."""
    for part, length in zip(site.parts, site.layout.lengths, strict=True):
        for key, tensor in here.get(part, {}).items():
            where = [f"{adapter.path}: {adapter.names[f'{part}.{key}']}"]
            if (key != _SHARED and key not in _ROWS) or len(tensor.shape) > 2:
                raise NotSupported(f"{key} of {tensor.shape} cannot be fused", where=where, help="merge it instead")
            if key in _ROWS and tensor.shape[:1] != (length,):
                where.append(f"{tensor.shape}, where this part of {site.module} has {length} rows = {site.layout}")
                raise LayoutError(
                    "the adapter was trained on another layout", where=where, help="pass the base that it belongs to"
                )
    magnitudes = [part for part in here if any("magnitude" in key for key in here[part])]
    if magnitudes and len(magnitudes) != len(site.parts):
        raise NotSupported(
            "DoRA on some parts only cannot be fused: the others' magnitudes are norms of the base's rows",
            where=[f"{adapter.path}: {part}" for part in magnitudes],
            help="merge it into the split base, and fuse the result",
        )


def _saved(adapter: Adapter, sites: Sequence[Site]) -> list[Site]:
    """The sites of whose parts the adapter saved tensors."""
    return [
        s
        for s in sites
        if any(f"{part}{suffix}" in adapter.whole for part in s.parts for suffix in s.row.part_suffixes)
    ]


def _check_saved(adapter: Adapter, site: Site) -> None:
    for _, part in site.row.tensors:
        names = [f"{module}{part}" for module in site.parts]
        there = [name for name in names if name in adapter.whole]
        if there and len(there) != len(names):
            raise NotSupported(
                "the adapter saved some parts of a fused tensor, and not the others",
                where=[f"{adapter.path}: {adapter.names[name]}" for name in there],
                help="merge it into the split base, and fuse the result",
            )


def _whole(tensors: Mapping[str, Tensor], changes: Iterable[Change]) -> dict[str, Tensor]:
    made = dict(tensors)
    for change in changes:
        for name in change.used:
            del made[name]
        made |= change.made
    return made


def _made(
    adapter: Adapter,
    lora: Mapping[str, Mapping[str, Tensor]],
    whole: Mapping[str, Tensor],
    ranks: Mapping[str, Rank],
    leaves: Mapping[str, Sequence[str]],
    step: Mapping[str, Any],
) -> Adapter:
    keys = [*(f"{module}.{part}" for module, parts in lora.items() for part in parts), *whole]
    names = {key: adapter.names.get(key) or file_name(_wrapped(key, lora), adapter) for key in keys}
    config = _config(adapter.config, ranks, leaves)
    return replace(adapter, lora=lora, whole=whole, names=names, config=config, history=(*adapter.history, step))


def _wrapped(key: str, lora: Mapping[str, object]) -> str:
    """The bias of a module with LoRA lies inside PEFT's layer: `module.base_layer.bias`."""
    module, _, kind = key.rpartition(".")
    return f"{module}.base_layer.{kind}" if module in lora and kind == "bias" else key


def _config(
    config: Mapping[str, Any], ranks: Mapping[str, Rank], leaves: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """adapter_config.json for the modules in `ranks`, after last names were replaced as `leaves` say."""
    usual = (
        Counter(ranks.values()).most_common(1)[0][0] if ranks else Rank(config.get("r", 8), config.get("lora_alpha", 8))
    )
    return {
        **config,
        "r": usual.r,
        "lora_alpha": usual.alpha,
        "rank_pattern": _patterns({m: rank.r for m, rank in ranks.items()}, usual.r),
        "alpha_pattern": _patterns({m: rank.alpha for m, rank in ranks.items()}, usual.alpha),
        "target_modules": _targets(config, list(ranks)),
        "exclude_modules": _renamed(config.get("exclude_modules"), leaves),
        "modules_to_save": _renamed(config.get("modules_to_save"), leaves),
    }


def config_under(adapter: Adapter, new: Mapping[str, str]) -> Mapping[str, Any]:
    """The adapter's config once its modules have `new` names: each keeps its rank and alpha, whatever patterns gave
    them.
    """
    if not (adapter.config.get("rank_pattern") or adapter.config.get("alpha_pattern")):
        return adapter.config
    if adapter.config.get("peft_type") != "LORA":
        return {**adapter.config, **_by_module(adapter, new)}
    return config_with(adapter.config, {new[module]: rank for module, rank in ranks_of(adapter).items()})


def _by_module(adapter: Adapter, new: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The patterns of a kind other than LoRA, with an entry for each module that has one."""
    found: dict[str, dict[str, Any]] = {}
    for table in ("rank_pattern", "alpha_pattern"):
        values = {new[module]: pattern(adapter.config.get(table), module, math.nan) for module in adapter.lora}
        found[table] = {re.escape(module): value for module, value in values.items() if value == value}
    return found


def config_with(config: Mapping[str, Any], ranks: Mapping[str, Rank]) -> dict[str, Any]:
    """The config with these ranks and alphas for the modules, whatever it said before."""
    made = _config(config, ranks, {})
    return {**config, **{key: made[key] for key in ("r", "lora_alpha", "rank_pattern", "alpha_pattern")}}


def _targets(config: Mapping[str, Any], modules: Sequence[str]) -> list[str]:
    """Last names where the adapter had last names; else, where it had a regular expression, the whole names."""
    before, excluded = config.get("target_modules"), config.get("exclude_modules")
    if isinstance(before, list) and not isinstance(excluded, str) and all("." not in str(target) for target in before):
        return sorted({module.rpartition(".")[2] for module in modules})
    return sorted(modules, key=natural)


def _renamed(before: Any, leaves: Mapping[str, Sequence[str]]) -> Any:
    """A list of module names with last names replaced; None for a regular expression, which the listed targets make
    needless.
    """
    if not isinstance(before, list):
        return None
    made = []
    for name in map(str, before):
        parent, dot, leaf = name.rpartition(".")
        made += [f"{parent}{dot}{new}" for new in leaves.get(leaf, [leaf])]
    return list(dict.fromkeys(made))


def _patterns(values: Mapping[str, float], usual: float) -> dict[str, float]:
    """The values that are not usual, by last name where all modules of that name have it, else by whole name."""
    found: dict[str, float] = {}
    by_leaf: dict[str, set[float]] = {}
    for module, value in values.items():
        by_leaf.setdefault(module.rpartition(".")[2], set()).add(value)
    for module, value in sorted(values.items(), key=lambda item: natural(item[0])):
        leaf = module.rpartition(".")[2]
        if value != usual:
            found[re.escape(leaf) if len(by_leaf[leaf]) == 1 else _whole_name(module, values)] = value
    return found


def _whole_name(module: str, others: Iterable[str]) -> str:
    """A pattern for the module alone: others may end in its name."""
    inside = any(other.endswith(f".{module}") for other in others)
    return f"^{re.escape(module)}" if inside else re.escape(module)
