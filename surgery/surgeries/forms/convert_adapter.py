"""An adapter in another tool's form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any

from ...checkpoint import Checkpoint
from ...errors import AdapterError, NotPlaced, NotSupported, SurgeryError
from ...files.adapters.format import TOLD
from ...files.called import called
from ...files.peft import Adapter
from ...models.diffusion.naming import DIFFUSERS
from ...step import Option, step
from ..merging.by_component import restricted
from ..merging.held_weights import without_own_base
from ..merging.spelled import in_base_names
from ..merging.unspelled import not_spelled
from . import diffusers, kohya
from .diffusers import to_diffusers
from .image_file import image_file
from .kohya import to_kohya
from .mlx import to_mlx
from .on_components import OnComponent, on_components
from .peft import to_peft

Form = Callable[[Adapter, Checkpoint | None], Adapter | Checkpoint]


@step
def convert_adapter(
    adapter: Annotated[Adapter, Option("An adapter of any tool, here or on the Hub.", "ADAPTER")],
    to: Annotated[
        str,
        Option("The form that is written.", "peft|kohya|diffusers|mlx"),
    ] = "peft",
    base: Annotated[
        Checkpoint | None,
        Option("The adapter's model, where its names or the order of its rows hang on it.", "MODEL", ("--base",)),
    ] = None,
    *,
    only: Annotated[str | None, Option("The modules whose whole name in the file matches alone.", "REGEX")] = None,
    except_: Annotated[str | None, Option("Without the modules whose whole name in the file matches.", "REGEX")] = None,
) -> Adapter | Checkpoint:
    """Write an adapter in another tool's form: what it does stays the same, and nothing is rounded.

    The adapter is as the tool `to` writes it: "peft", an adapter; "mlx", "kohya" and "diffusers", its files as a
    checkpoint to be written.

    It does to a model what it did; nothing is rounded, but a product that is written out. `base` is asked for where the
    file calls modules, or orders rows, otherwise than the base does, or holds weights of the base beside its LoRA; and
    for image models' forms, where a whole pipeline serves best. `only` and `except_` choose modules by the names that
    the file has for them. Raises AdapterError where the base is needed, NotPlaced where it has no such modules,
    NotSupported for what the form cannot say.
    """
    if to not in FORMS:
        raise SurgeryError(f"there is no form `{to}` of adapters to write", help=f"one of {', '.join(FORMS)}")
    made = FORMS[to](restricted(adapter, only, except_), base)
    step: dict[str, Any] = {"surgery": "convert_adapter", "to": to, "adapter": called(adapter.path)}
    step |= {key: value for key, value in (("only", only), ("except", except_)) if value is not None}
    step |= {key: adapter.format[key] for key in TOLD if key in adapter.format}
    return replace(made, history=(*adapter.history, step))


def _kohya(adapter: Adapter, base: Checkpoint | None) -> Checkpoint:
    places = [(one, one.called()) for one in on_components(adapter, base)]
    return image_file(adapter, [made for _, made in places], to_kohya(places), kohya.FILE)


def _diffusers(adapter: Adapter, base: Checkpoint | None) -> Checkpoint:
    places = [(one, one.called(DIFFUSERS)) for one in on_components(adapter, base)]
    tensors, metadata = to_diffusers(places)
    return image_file(adapter, [made for _, made in places], tensors, diffusers.FILE, metadata)


FORMS: Mapping[str, Form] = {
    "peft": lambda adapter, base: to_peft(_placed(adapter, base)),
    "mlx": lambda adapter, base: to_mlx(_placed(adapter, base)),
    "kohya": _kohya,
    "diffusers": _diffusers,
}


def _placed(adapter: Adapter, base: Checkpoint | None) -> Adapter:
    """The adapter under the base's names, without the base's weights."""
    own = [f"{module}.weight" for module in adapter.lora if f"{module}.weight" in adapter.whole]
    if base is None:
        if adapter.dialect or own:
            why = f"its modules are called as {adapter.dialect} does" if adapter.dialect else f"it holds {own[0]}"
            tip = "name the base that it belongs to: --base BASE"
            raise AdapterError(f"the adapter's form depends on its base: {why}", where=[adapter.path], help=tip)
        return adapter
    if base.parts:
        return _on_one(on_components(adapter, base), base)
    found = in_base_names(base, adapter)
    if found.dialect:
        lost = [module for module in found.lora if f"{module}.weight" not in base.tensors]
        raise not_spelled(base, found, lost) if lost else NotPlaced("no module is the base's", where=[adapter.path])
    return without_own_base(base, found)


def _on_one(places: list[OnComponent], base: Checkpoint) -> Adapter:
    """The adapter on the one component of a pipeline that it is on. Raises NotSupported where they are several."""
    if len(places) > 1:
        what = "the adapter is on several components of the pipeline, and the form is of one model"
        tip = f"take one after another, the others left out: --base {base.path}/{places[0].folder} --except REGEX"
        where = [places[0].adapter.path, *(f"{one.folder}: {len(one.adapter.lora)} modules" for one in places)]
        raise NotSupported(what, where=where, help=tip)
    return places[0].own
