"""An adapter's modules by the component of an image model that they are of, called as one of two namings has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ...adapters.fused import fuse_adapter, split_adapter
from ...adapters.low_rank import as_low_rank
from ...checkpoint import Checkpoint
from ...errors import AdapterError, NotPlaced, NotSupported, listed, series
from ...files.adapters.alphas import LYCORIS
from ...files.peft import Adapter
from ...models.diffusion.called import Called, called
from ...models.diffusion.components import COMPONENTS, Component, component_of, components_in, root_of
from ...models.diffusion.naming import DIFFUSERS, TEXT, naming_of
from ...models.diffusion.spelling import modules_of
from ...models.fused.row import Site
from ...names import natural
from ..merging.base_names import with_names
from ..merging.by_component import by_folder, part_of
from ..merging.spelled import in_base_names, with_rows_swapped
from ..merging.unspelled import not_spelled


@dataclass(frozen=True, slots=True)
class OnComponent:
    """What of an adapter is on one component, under its base's names without what they begin with there.

    `own` has the base's names in full; `model` is the class, or the type, that its config names; `several` tells
    whether a second text encoder is beside it.
    """

    component: Component
    own: Adapter
    adapter: Adapter
    shapes: Mapping[str, tuple[int, ...]]
    model: str
    folder: str
    several: bool

    def called(self, want: str = "") -> Adapter:
        """The adapter with the names of that naming, fused or split as it needs; kohya's where none is said.

        Raises NotPlaced where no table knows the network, and whether its modules are called alike is not known.
        """
        found = called(self.shapes, self.component.namings, want)
        self._check(found, want)
        adapter = _split(self.adapter, found.apart)
        adapter = _fused(adapter, found.fused)
        swapped = {m: with_rows_swapped(adapter, m, parts) for m, parts in adapter.lora.items() if m in found.swapped}
        adapter = replace(adapter, lora={**adapter.lora, **swapped})
        if lost := sorted((m for m in adapter.lora if m not in found.names), key=natural):
            what = f"{len(lost)} modules have no name in the naming of {found.naming.name if found.naming else ''}"
            tip = f"leave them out: --except '{re.escape(lost[0])}'"
            raise NotPlaced(what, where=[adapter.path, *listed(lost)], help=tip)
        return _renamed(adapter, found.names)

    def _check(self, found: Called, want: str) -> None:
        known = self.component.name != "denoiser" or found.naming or self.model in ALIKE
        if not known and not (want == DIFFUSERS and self.model):
            what = f"what tools call the modules of {self.model or 'this network'} is not known here"
            tip = "keep the adapter in the names that it has: they are read as they lie; or --to peft"
            raise NotPlaced(what, where=[self.adapter.path], help=tip)


# Networks whose original names are those of diffusers.
ALIKE = frozenset({"QwenImageTransformer2DModel"})


def on_components(adapter: Adapter, base: Checkpoint | None) -> list[OnComponent]:
    """The adapter by component. Raises AdapterError without a base, NotPlaced for modules that it has not."""
    if base is None:
        tip = "name the base that it belongs to, best its whole pipeline: --base BASE"
        raise AdapterError("what modules are called in this form follows from the base", where=[adapter.path], help=tip)
    if base.parts:
        mine = by_folder(base, adapter)
        several = any(at.startswith("text_encoder_") for at in base.parts)
        return [_of_part(base, at, one, several) for at, one in mine.items()]
    return _of_file(base, adapter)


def _of_part(base: Checkpoint, at: str, adapter: Adapter, several: bool) -> OnComponent:
    part, component = part_of(base, at), component_of(at)
    assert component is not None
    return _on(component, part, in_base_names(part, adapter, component), "", at, several)


def _of_file(base: Checkpoint, adapter: Adapter) -> list[OnComponent]:
    """The same where one checkpoint holds all components, or is one of them."""
    shapes = modules_of(base.tensors)
    places = components_in(shapes, base.config)
    first = places[0][1]
    own = (_component(adapter, first),) if len(places) == 1 else first
    found = in_base_names(base, adapter, own[0] if len(places) == 1 else None)
    if found.dialect:
        lost = [module for module in found.lora if f"{module}.weight" not in base.tensors]
        raise not_spelled(base, found, lost)
    several = any(one.name == "text_encoder_2" for _, (one, *_) in places)
    several |= any(root_of(module).endswith("te1_") for module in adapter.lora)
    made = []
    for prefix, components in [(places[0][0], own), *places[1:]]:
        mine = {m for m in found.lora if m.startswith(prefix)}
        if mine:
            one = replace(found, lora={m: found.lora[m] for m in sorted(mine, key=natural)})
            made.append(_on(components[0], base, one, prefix, "", several))
    return made


def _component(adapter: Adapter, among: tuple[Component, ...]) -> Component:
    """Which one a lone component is: of text encoders, the one that the file says. Raises AdapterError for PEFT's,
    which does not.
    """
    if len(among) == 1:
        return among[0]
    roots = {root_of(module) for module in adapter.lora}
    fit = [one for one in COMPONENTS if roots and roots <= {*one.flat, *one.dotted} - {""}]
    if not adapter.dialect or not fit:
        what = "which text encoder of a pipeline the base is, neither it nor the adapter says"
        raise AdapterError(what, where=[adapter.path], help="name the whole pipeline: --base PIPELINE")
    return fit[0]


def _on(component: Component, base: Checkpoint, found: Adapter, prefix: str, at: str, several: bool) -> OnComponent:
    names = {key: _bare(key, prefix) for key in (*found.lora, *found.whole)}
    shapes = {_bare(m, prefix): shape for m, shape in modules_of(base.tensors).items() if m.startswith(prefix)}
    if component.name.startswith("text") and naming_of(shapes, component.namings)[1] == DIFFUSERS:
        names = {key: _full(name) for key, name in names.items()}
        shapes = {_full(name): shape for name, shape in shapes.items()}
    model = str(base.config.get("_class_name") or base.config.get("model_type") or "")
    plain = found if found.config.get("peft_type") == LYCORIS else as_low_rank(found)
    return OnComponent(component, found, _renamed(plain, names), shapes, model, at, several)


def _renamed(adapter: Adapter, names: Mapping[str, str]) -> Adapter:
    """The adapter under these names, which it aims at: that it did at the old ones was seen to before."""
    new = {key: names.get(key, key) for key in (*adapter.lora, *adapter.whole)}
    found = with_names(adapter, new)
    return replace(found, config={**found.config, "target_modules": sorted(found.lora, key=natural)})


def _bare(name: str, prefix: str) -> str:
    return name.removeprefix(prefix)


def _full(name: str) -> str:
    """CLIP's module as it is called in every version of transformers but the newest."""
    return name if name.startswith((TEXT, "text_projection")) else f"{TEXT}{name}"


def _split(adapter: Adapter, sites: tuple[Site, ...]) -> Adapter:
    mine = [site for site in sites if site.module in adapter.lora]
    _check_kind(adapter, mine)
    return split_adapter(adapter, mine) if mine else adapter


def _fused(adapter: Adapter, sites: tuple[Site, ...]) -> Adapter:
    mine = [site for site in sites if adapter.lora.keys() & set(site.parts)]
    _check_kind(adapter, mine)
    return fuse_adapter(adapter, mine) if mine else adapter


def _check_kind(adapter: Adapter, sites: list[Site]) -> None:
    if sites and adapter.config.get("peft_type") != "LORA":
        what = "what the base has as one module the form has as several, or the other way: only LoRA follows"
        where = [adapter.path, *(f"{site.module}: {series(site.parts)}" for site in sites[:3])]
        raise NotSupported(what, where=where, help="leave these modules out with --except, or merge the adapter")
