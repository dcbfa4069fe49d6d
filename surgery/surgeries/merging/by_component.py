"""Adapters on a pipeline: each component gets what is of its modules, and all others stay byte for byte."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from ...checkpoint import Checkpoint
from ...errors import NotPlaced, NotSupported, listed, series
from ...evaluation.read import Reader
from ...files.folder import folder_at
from ...files.peft import Adapter, module_of
from ...lazy.tensor import File, Input, Stored
from ...models.diffusion.components import component_of, root_of
from ...models.diffusion.spelling import spelled
from ...names import natural, select
from .spelled import in_base_names

Merged = Callable[[Checkpoint, Sequence[Adapter], Sequence[float]], Checkpoint]


def by_component(
    pipeline: Checkpoint,
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    merged: Merged,
    asked: Mapping[str, Any],
) -> Checkpoint:
    """The pipeline with the adapters in its components' weights; `merged` merges into one of them. Raises NotPlaced
    for modules that no component has, or several.
    """
    if asked.get("dtype"):
        tip = f"cast its components by themselves: {series(pipeline.parts)}"
        raise NotSupported("a pipeline is merged in the dtypes that it has", where=[pipeline.path], help=tip)
    adapters = [restricted(one, asked.get("only"), asked.get("except_")) for one in adapters]
    placed = [by_folder(pipeline, one) for one in adapters]
    made: dict[str, Checkpoint] = {}
    for at in pipeline.parts:
        mine = [(one[at], weight) for one, weight in zip(placed, weights, strict=True) if at in one]
        if mine:
            part = replace(part_of(pipeline, at), history=pipeline.history)
            called = [in_base_names(part, one, component_of(at)) for one, _ in mine]
            made[at] = merged(part, called, [weight for _, weight in mine])
    return _with(pipeline, made, adapters, asked)


def part_of(pipeline: Checkpoint, at: str) -> Checkpoint:
    """A component as a checkpoint of its own, with the tensors and files that the pipeline has of it now."""
    part, begin = pipeline.parts[at], f"{at}/"

    def bare(held: Mapping[str, Any]) -> dict[str, Any]:
        return {name.removeprefix(begin): value for name, value in held.items() if name.startswith(begin)}

    shards = {name: shard.removeprefix(begin) for name, shard in bare(pipeline.weight_map).items()}
    return replace(part, tensors=bare(pipeline.tensors), weight_map=shards, files=bare(pipeline.files))


def _known(part: Checkpoint, at: str) -> Collection[str]:
    """What an adapter's modules may be called that are of this component: by a file's names, or by its own."""
    own = {name.rpartition(".")[0] for name in part.tensors}
    component = component_of(at)
    return {*own, *(spelled(part.tensors, part.config, component) if component else ())}


def restricted(adapter: Adapter, only: str | None, except_: str | None) -> Adapter:
    """The adapter without the modules that the patterns leave out, by the names that its file has for them."""
    modules = [*adapter.lora, *map(module_of, adapter.whole)]
    kept = set(select(modules, only) if only is not None else modules)
    kept -= set(select(modules, except_)) if except_ is not None else set()
    return _of(adapter, kept, dropped=True)


def _of(adapter: Adapter, modules: Collection[str], *, dropped: bool = False) -> Adapter:
    """The adapter on these modules; the rest is dropped by name, where it is not another component's."""
    lora = {module: parts for module, parts in adapter.lora.items() if module in modules}
    whole = {name: tensor for name, tensor in adapter.whole.items() if module_of(name) in modules}
    left = {f"{m}.{part}": t for m, parts in adapter.lora.items() if m not in lora for part, t in parts.items()}
    left |= {name: tensor for name, tensor in adapter.whole.items() if name not in whole}
    gone = {adapter.names[key]: tensor for key, tensor in left.items()} if dropped else {}
    return replace(adapter, lora=lora, whole=whole, dropped={**adapter.dropped, **gone})


def by_folder(pipeline: Checkpoint, adapter: Adapter) -> dict[str, Adapter]:
    """The adapter's modules by component. Raises NotPlaced for one that is of none, or of several."""
    known = {at: _known(part, at) for at, part in pipeline.parts.items()}
    modules = sorted({*adapter.lora, *map(module_of, adapter.whole)}, key=natural)
    found = {module: [at for at, names in known.items() if module in names] for module in modules}
    if lost := [module for module, places in found.items() if not places]:
        called = f", as {adapter.dialect} calls them," if adapter.dialect else ""
        what = f"{len(lost)} of the adapter's {len(modules)} modules{called} are in no component of the pipeline"
        tip = "the adapter belongs to another architecture"
        if len(lost) < len(modules):
            leave = "|".join(f"{re.escape(root)}.*" for root in dict.fromkeys(map(root_of, lost)) if root)
            tip += f", or to a larger pipeline; where that is meant, leave them out: --except '{leave or 'REGEX'}'"
        where = [adapter.path, *listed(lost), f"{pipeline.path}: {series(pipeline.parts)}"]
        raise NotPlaced(what, where=where, help=tip)
    if several := [f"{module}: {series(places)}" for module, places in found.items() if len(places) > 1]:
        what = f"{len(several)} of the adapter's modules could be of more than one component"
        tip = f"merge it into the folder of the one that it was trained on: {pipeline.path}/…"
        raise NotPlaced(what, where=[adapter.path, *listed(several)], help=tip)
    return {at: _of(adapter, mine) for at in known if (mine := {m for m, places in found.items() if at in places})}


def _with(
    pipeline: Checkpoint, made: Mapping[str, Checkpoint], adapters: Sequence[Adapter], asked: Mapping[str, Any]
) -> Checkpoint:
    """The pipeline with these components, which were merged; all others as they lie on the disk."""
    tensors, shards, files = dict(pipeline.tensors), dict(pipeline.weight_map), dict(pipeline.files)
    dropped, replaced = dict(pipeline.dropped), dict(pipeline.replaced)
    for at, part in made.items():
        begin = f"{at}/"
        tensors = {n: t for n, t in tensors.items() if not n.startswith(begin)} | _under(begin, part.tensors)
        shards |= {f"{begin}{name}": f"{begin}{shard}" for name, shard in part.weight_map.items()}
        files = {n: f for n, f in files.items() if not n.startswith(begin)} | _under(begin, part.files)
        dropped |= _under(begin, part.dropped)
        replaced |= _under(begin, part.replaced)
    others = [at for at, part in pipeline.parts.items() if at not in made and not part.format]
    sources = _sources([s for part in made.values() for s in part.inputs if s.role == "adapter"])
    notes = [note for note in pipeline.notes if not note.startswith(tuple(f"{at}: " for at in others))]
    notes += [f"{at}: {note}" for at, part in made.items() for note in part.notes]
    notes += [f"as they were, byte for byte: {series(others)}"] if others else []
    step = _step(made, asked)
    return replace(
        pipeline,
        tensors=tensors,
        weight_map=shards,
        files=files | _carried(pipeline, others),
        dropped=dropped | {name: t for one in adapters for name, t in one.dropped.items()},
        replaced=replaced,
        inputs=(*pipeline.inputs, *sources),
        headers={**pipeline.headers, **_headers(pipeline, others)},
        history=(*pipeline.history, step),
        notes=tuple(dict.fromkeys(notes)),
    )


def _sources(inputs: Sequence[Input]) -> list[Input]:
    """Each adapter's file once, whatever components have tensors of it."""
    found: dict[str, Input] = {}
    for one in inputs:
        known = found.get(one.path, one)
        found[one.path] = replace(known, partly=known.partly | one.partly)
    return list(found.values())


def _under(begin: str, held: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{begin}{name}": value for name, value in held.items()}


def _step(made: Mapping[str, Checkpoint], asked: Mapping[str, Any]) -> dict[str, Any]:
    """What the history says: one merge, with what was computed in each component."""
    steps = {at: part.history[-1] for at, part in made.items()}
    first = next(iter(steps.values()))
    adapters = {one["digest"]: one for step in steps.values() for one in step["adapters"]}
    count = dict.fromkeys(adapters, 0)
    for one in (one for step in steps.values() for one in step["adapters"]):
        count[one["digest"]] += one["modules"]
    return {
        **first,
        "adapters": [one | {"modules": count[digest]} for digest, one in adapters.items()],
        "computed": sum(step["computed"] for step in steps.values()),
        "replaced": sum(step["replaced"] for step in steps.values()),
        "added": [f"{at}/{name}" for at, step in steps.items() for name in step["added"]],
        "components": {at: step["computed"] for at, step in steps.items()},
        **{key: asked[name] for key, name in (("only", "only"), ("except", "except_")) if asked.get(name)},
    }


def _headers(pipeline: Checkpoint, others: Sequence[str]) -> dict[str, bytes]:
    """The raw headers of the shards of components that nothing is done to."""
    found: dict[str, tuple[File, int]] = {}
    for name, tensor in pipeline.tensors.items():
        shard = pipeline.weight_map[name]
        if shard.rpartition("/")[0] in others and isinstance(tensor, Stored):
            found[shard] = (tensor.file, min(tensor.offset, found.get(shard, (tensor.file, tensor.offset))[1]))
    with closing(Reader()) as reader:
        return {shard: b"".join(map(bytes, reader.stream(file, 0, size))) for shard, (file, size) in found.items()}


def _carried(pipeline: Checkpoint, others: Sequence[str]) -> dict[str, File | bytes]:
    """All files of components that nothing is done to, weights of other formats too: they are still the same."""
    folder, shards = folder_at(pipeline.path), set(pipeline.weight_map.values())
    if folder is None or not others:
        return {}
    begins = tuple(f"{at}/" for at in others)
    indices = {f"{at}/{pipeline.parts[at].index_name}" for at in others if pipeline.parts[at].index}
    paths = [path for path in folder.walk() if path.startswith(begins) and path not in shards | indices]
    return {path: folder.file(path) for path in paths}
