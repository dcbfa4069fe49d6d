"""An adapter whose file calls modules as another tool does, under the names of the base that it is merged into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...adapters.fused import split_adapter
from ...checkpoint import Checkpoint
from ...errors import FormatError, NotPlaced, NotSupported
from ...files.adapters.table import tool_of
from ...files.peft import Adapter
from ...lazy.tensor import Tensor, concat, narrow, reshape
from ...models.diffusion.components import Component
from ...models.diffusion.spelling import Meant, spelled
from .base_names import with_names

# Parts whose rows are the module's, and those that have none.
_ROWS = frozenset(
    "lora_B.weight lora_B.bias lora_magnitude_vector diff diff_b w_norm b_norm b1.weight ia3_out rescale".split()
)
_NO_ROWS = frozenset("lora_A.weight a1.weight a2.weight b2.weight ia3_in dora_scale".split())
_FACTORS = ("lora_A.weight", "lora_B.weight")


def in_base_names(checkpoint: Checkpoint, adapter: Adapter, component: Component | None = None) -> Adapter:
    """The adapter with its modules called as the base calls them, split where the base stores apart what it fuses.

    Names that are of no module of the base stay as they are. Raises NotPlaced for one that could be of two,
    FormatError where two are of one.
    """
    if not adapter.dialect:
        return adapter
    if (row := tool_of(adapter.dialect)) and row.fit:
        return row.fit(adapter, checkpoint.config, checkpoint.tensors.keys())
    known = spelled(checkpoint.tensors, checkpoint.config, component)
    meant = {module: _meant(checkpoint, adapter, module, known) for module in adapter.lora}
    meant = _one_each(checkpoint, adapter, meant)
    new = {module: one.module if one else module for module, one in meant.items()}
    found = with_names(adapter, new)
    lora = {new[m]: _fitting(found, new[m], one, checkpoint.tensors) for m, one in meant.items()}
    sites = {one.site.module: one.site for one in meant.values() if one and one.site and one.fused}
    found = replace(found, lora=lora, dialect="" if all(meant.values()) else adapter.dialect)
    if found.config.get("peft_type") == "LORA":
        found = replace(found, config={**found.config, "target_modules": sorted(lora)})
    else:
        return found  # on what the base's parts are fused to: `other_naming.py`
    return split_adapter(found, list(sites.values())) if sites else found


def _meant(checkpoint: Checkpoint, adapter: Adapter, module: str, known: Mapping[str, Meant | None]) -> Meant | None:
    meant = known.get(module)
    if meant is None and module in known:
        where = [f"{adapter.path}: {module}", checkpoint.path]
        raise NotPlaced("the name could be of more than one module of the base", where=where)
    return meant


def _one_each(checkpoint: Checkpoint, adapter: Adapter, meant: Mapping[str, Meant | None]) -> dict[str, Meant | None]:
    """The same with no module of the base meant twice: of two encoders that are called alike, the one that fits.

    Raises FormatError where more than one does.
    """
    found = dict(meant)
    by_target: dict[str, list[str]] = {}
    for module, one in meant.items():
        if one:
            by_target.setdefault(one.module, []).append(module)
    for target, modules in by_target.items():
        fit = [module for module in modules if _fits(adapter, module, checkpoint.tensors.get(f"{target}.weight"))]
        if len(modules) > 1 and len(fit) != 1:
            where = [f"{adapter.path}: {modules[0]}", *modules[1:], f"base: {target}"]
            tip = "two tools wrote into one file: keep the modules of one of them"
            raise FormatError("two modules of the adapter are one of the base", where=where, help=tip)
        if len(modules) > 1:
            found |= dict.fromkeys(set(modules) - set(fit))
    return found


def _fits(adapter: Adapter, module: str, base: Tensor | None) -> bool:
    """Whether the factors of a module are of the base's shape, as far as they tell."""
    a, b = (adapter.lora[module].get(part) for part in _FACTORS)
    return base is None or a is None or b is None or (b.shape[0], a.shape[1]) == base.shape[:2]


def _fitting(adapter: Adapter, module: str, meant: Meant | None, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors of a module, with the base's axes and order of rows."""
    parts = dict(adapter.lora[module])
    if meant and meant.swapped:
        parts = with_rows_swapped(adapter, module, parts)
    base = tensors.get(f"{module}.weight")
    if base is not None and all(part in parts for part in _FACTORS):
        parts |= {part: _pointwise(parts[part], len(base.shape)) for part in _FACTORS}
    return parts


def with_rows_swapped(adapter: Adapter, module: str, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The module's tensors for its halves in the other order. Raises NotSupported where parts do not have its rows."""
    hada = "hada_t1" not in parts and "hada_t2" not in parts
    rows = _ROWS | ({"hada_w1_a", "hada_w2_a"} if hada else set())
    known = rows | _NO_ROWS | ({"hada_w1_b", "hada_w2_b"} if hada else set())
    if lost := [adapter.names[f"{module}.{part}"] for part in parts if part not in known]:
        what = (
            "the base has the halves of a module's rows the other way round, which this kind of adapter cannot follow"
        )
        raise NotSupported(what, where=[f"{adapter.path}: {lost[0]}", *lost[1:]], help="leave it out with --except")
    return {part: _swapped(tensor) if part in rows else tensor for part, tensor in parts.items()}


def _swapped(tensor: Tensor) -> Tensor:
    """The two halves of the rows in the other order."""
    half = tensor.shape[0] // 2
    return concat([narrow(tensor, 0, half, half), narrow(tensor, 0, 0, half)], 0)


def _pointwise(factor: Tensor, axes: int) -> Tensor:
    """A factor of a linear module as that of a convolution of one point, or the other way round."""
    if len(factor.shape) != axes and len(factor.shape) > 1 and factor.size == factor.shape[0] * factor.shape[1]:
        return reshape(factor, (*factor.shape[:2], *(1,) * (axes - 2)))
    return factor
