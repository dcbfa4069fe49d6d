"""LoRA of a checkpoint's own: put into it, beside the base's tensors, and taken out again.

    module.weight  ->  module.weight, module.lora_A.weight, module.lora_B.weight        adapter_config.json beside
    config.json

Its tensors lie in a shard of their own, whose name is the one under which transformers looks for an adapter in a
model's folder. The law: `own_adapter(inject_into(base, adapter))` is base and adapter again, and merging the one
into the other gives the same bytes as merging the adapter from a folder of its own.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Annotated, Any

from ...adapters.unwrapped import check_unwrapped
from ...checkpoint import Checkpoint
from ...errors import AdapterError, FormatError, NotPlaced, PlanError, listed
from ...evaluation.read import content, sha256
from ...files.adapter_config import check_config
from ...files.peft import CONFIG, PREFIX, TOKENS, WEIGHTS, Adapter, encode_config, parse_adapter
from ...files.safetensors import encode_header, in_file_order
from ...files.strict import MEND, parse_object
from ...lazy.dropped import both
from ...lazy.dtypes import Dtype
from ...lazy.tensor import File, Input, Shape, Stored, Tensor
from ...models.names_v5 import in_memory, renames_of
from ...names import natural
from ...opened import takes_opened
from ...step import Option, step
from ..header_ties import along
from ..split import names_of

# stands before the last name of a tensor that takes the place of the base's, as in memory
SAVED = "modules_to_save.default"
_LORA = re.compile(
    r"(?P<module>.+?)(?P<tail>(?:\.base_layer)*\.lora_(?:A|B|E|embedding_A|embedding_B|magnitude_vector|ranknum)(?:\.[^.]+)*)"
)
_SAVED = re.compile(r"(?P<module>.+)\.modules_to_save(?:\.default)?\.(?P<leaf>[^.]+)")
_INSIDE = re.compile(
    r"(?P<module>.+)\.base_layer\.(?P<leaf>[^.]+)"
)  # what was trained of a module that has LoRA, too: its bias
_LIVE = re.compile(r"\.(?:base_layer|original_module)(?=\.)")  # around the base's own tensors, in memory
_CHUNK = 1 << 20


def own_names(checkpoint: Checkpoint) -> list[str]:
    """The names of the checkpoint's own LoRA, by what they are called; none where it has no adapter_config.json."""
    if CONFIG not in checkpoint.files:
        return []
    return [
        name for name in checkpoint.tensors if any(rule.fullmatch(name) for rule in (_LORA, _SAVED, _INSIDE, TOKENS))
    ]


@step
def inject_into(
    checkpoint: Checkpoint, adapter: Annotated[Adapter, Option("A PEFT adapter, here or on the Hub.", "ADAPTER")]
) -> Checkpoint:
    """Put an adapter's tensors beside the checkpoint's own, and adapter_config.json; what it holds stays as it is.

    LoRA lies under the base's own names, in a shard of its own; a module to save has `.modules_to_save` before its
    last name. Raises PlanError where the checkpoint has LoRA already, NotPlaced where the adapter is on what is not
    in it.
    """
    if CONFIG in checkpoint.files or WEIGHTS in checkpoint.weight_map.values():
        tip = "merge it first: surgery merge CHECKPOINT -o OUT"
        raise PlanError(
            "the checkpoint has an adapter of its own already", where=[f"{checkpoint.path}: {CONFIG}"], help=tip
        )
    check_unwrapped(adapter, names_of(checkpoint))
    files = _files_of(checkpoint)
    _check_placed(checkpoint, adapter, files)
    parts = {(module, part): tensor for module, parts in adapter.lora.items() for part, tensor in parts.items()}
    tensors: dict[str, Tensor] = {
        f"{files.get(module, module)}.{part}": tensor for (module, part), tensor in parts.items()
    }
    tensors |= {_saved(adapter, name, files): tensor for name, tensor in adapter.whole.items()}
    if taken := sorted(tensors.keys() & checkpoint.tensors.keys(), key=natural):
        raise PlanError(
            f"{len(taken)} tensors of the adapter have names of the base's", where=[checkpoint.path, *listed(taken)]
        )
    config, notes = _without_path(adapter)
    return replace(
        checkpoint,
        tensors={**checkpoint.tensors, **tensors},
        weight_map={**checkpoint.weight_map, **dict.fromkeys(tensors, WEIGHTS)},
        metadata={**checkpoint.metadata, WEIGHTS: adapter.metadata},
        files={**checkpoint.files, CONFIG: encode_config(config)},
        inputs=(*checkpoint.inputs, *adapter.inputs),
        dropped=both(checkpoint.dropped, adapter.dropped),
        history=(*checkpoint.history, *adapter.history, {"surgery": "inject_into", "tensors": len(tensors)}),
        notes=(*checkpoint.notes, *adapter.notes, *notes),
    )


def _without_path(adapter: Adapter) -> tuple[Mapping[str, Any], list[str]]:
    """The config for a place beside the base, where loaders ask for no other; and a note where it names a path of
    this machine.

    That of a new adapter names none. One that was read stays as it is: its digest says whether it is merged already.
    """
    named = adapter.config.get("base_model_name_or_path")
    if not isinstance(named, str) or not os.path.isabs(named):
        return adapter.config, []
    if not adapter.inputs:
        return {**adapter.config, "base_model_name_or_path": None}, []
    tip = (
        "write the repository's own name there before it goes to the Hub, from where transformers takes the base that"
        " it names"
    )
    return adapter.config, [f"{CONFIG}: base_model_name_or_path is a path of this machine, {named}: {tip}"]


@takes_opened
def own_adapter(checkpoint: Checkpoint) -> tuple[Checkpoint, Adapter]:
    """The checkpoint without its own LoRA, and that LoRA as an adapter, under the names that PEFT gives it.

    Reads the LoRA's tensors, for the adapter's digest, which is that of the file that PEFT would write. Raises
    AdapterError where the checkpoint has none.
    """
    given, checkpoint = checkpoint, along(checkpoint, _at_rest)
    names = own_names(checkpoint)
    if not names:
        raise _without(given)
    renames = renames_of(checkpoint.config)

    def called(name: str) -> str:
        if saved := _SAVED.fullmatch(name):
            return in_memory(f"{saved['module']}.{saved['leaf']}", renames)
        if inside := _INSIDE.fullmatch(name):
            return (
                in_memory(f"{inside['module']}.weight", renames).removesuffix(".weight")
                + f".base_layer.{inside['leaf']}"
            )
        if lora := _LORA.fullmatch(name):
            return in_memory(f"{lora['module']}.weight", renames).removesuffix(".weight") + lora["tail"]
        return name

    mine = {f"{PREFIX}{called(name)}": checkpoint.tensors[name] for name in names}
    config = parse_object(content(checkpoint.files[CONFIG]), lambda what: FormatError(what, where=[CONFIG], help=MEND))
    check_config(config, f"{checkpoint.path}/{CONFIG}")
    metadata = checkpoint.metadata.get(checkpoint.weight_map[names[0]])
    adapter = replace(parse_adapter(checkpoint.path, config, mine), metadata=metadata)
    bases, inputs = _parted(checkpoint, adapter, set(names))
    before = checkpoint.index_metadata.get("total_parameters")
    counted = sum(tensor.size for source in inputs for tensor in source.tensors.values())
    index = {"total_parameters": before - counted} if isinstance(before, int) else {}
    left = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in names}
    shards = {name: checkpoint.weight_map[name] for name in left}
    base = replace(
        checkpoint,
        tensors=left,
        weight_map=shards,
        metadata={shard: metadata for shard, metadata in checkpoint.metadata.items() if shard in shards.values()},
        files={name: file for name, file in checkpoint.files.items() if name != CONFIG},
        inputs=bases,
        index_metadata={**checkpoint.index_metadata, **index},
    )
    return base, replace(adapter, inputs=inputs)


def is_live(checkpoint: Checkpoint) -> bool:
    """Whether these are the tensors of a live PEFT model, in which the base's own lie inside PEFT's layers."""
    return any(
        _LIVE.search(name) and _LIVE.sub("", name) not in checkpoint.tensors
        for name in checkpoint.tensors
        if name.endswith(".weight")
    )


def _at_rest(checkpoint: Checkpoint) -> Checkpoint:
    """The tensors of a live PEFT model with the base's under the base's own names; any other checkpoint as it is."""
    if not is_live(checkpoint):
        return checkpoint
    front = PREFIX if all(name.startswith(PREFIX) for name in checkpoint.tensors) else ""
    new = {name: name.removeprefix(front) for name in checkpoint.tensors}
    for name, bare in new.items():
        base = _LIVE.sub("", bare)
        if (
            not any(rule.fullmatch(bare) for rule in (_LORA, _SAVED, TOKENS))
            and f"{front}{base}" not in checkpoint.tensors
        ):
            new[name] = base
    if len(set(new.values())) < len(new):
        twice = sorted(bare for bare in new.values() if list(new.values()).count(bare) > 1)
        raise FormatError(
            "two tensors of a live PEFT model would get one name", where=[checkpoint.path, *listed(twice)]
        )
    note = (
        "the checkpoint is the state dict of a live PEFT model: base_layer and original_module were taken off the"
        " base's names"
    )
    return replace(
        checkpoint,
        tensors={new[name]: tensor for name, tensor in checkpoint.tensors.items()},
        weight_map={new[name]: shard for name, shard in checkpoint.weight_map.items()},
        notes=(*checkpoint.notes, note),
    )


def _files_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Module in memory -> module in the files, where they have another name."""
    renames = renames_of(checkpoint.config)
    pairs = {
        name.removesuffix(".weight"): in_memory(name, renames).removesuffix(".weight") for name in checkpoint.tensors
    }
    return {loaded: file for file, loaded in pairs.items() if file != loaded}


def _saved(adapter: Adapter, name: str, files: Mapping[str, str]) -> str:
    """What a tensor that the adapter holds whole is called in the checkpoint, where the base's own has that name."""
    if TOKENS.fullmatch(name):
        return name
    module, _, leaf = name.rpartition(".")
    within = "base_layer" if _INSIDE.fullmatch(adapter.names[name]) else SAVED
    return f"{files.get(module, module)}.{within}.{leaf}"


def _check_placed(checkpoint: Checkpoint, adapter: Adapter, files: Mapping[str, str]) -> None:
    """Raise NotPlaced for an adapter that shares no module's parent with the base: it belongs to another one."""
    parents = {name.rpartition(".")[0] for name in checkpoint.tensors}
    parents |= {loaded for loaded, file in files.items() if file in parents}
    parents |= {parent.rpartition(".")[0] for parent in parents}
    modules = {key: re.sub(r"(?:\.base_layer)+$", "", key) for key in adapter.lora}
    lost = [key for key, module in modules.items() if not {module, module.rpartition(".")[0]} & parents]
    if lost:
        tip = "the adapter belongs to another base; surgery merge says more, and takes --map"
        raise NotPlaced(
            f"{len(lost)} of {len(adapter.lora)} modules have no place in the base", where=listed(lost), help=tip
        )


def _without(checkpoint: Checkpoint) -> AdapterError:
    looks = [name for name in checkpoint.tensors if _LORA.fullmatch(name)]
    if looks:
        tip = f"put the {CONFIG} that it was trained with beside config.json: the scale depends on it"
        what = "is the state dict of a live PEFT model, and has" if is_live(checkpoint) else "has LoRA tensors, but"
        return AdapterError(f"the checkpoint {what} no {CONFIG}", where=[checkpoint.path, *listed(looks)], help=tip)
    if CONFIG in checkpoint.files:
        tip = (
            "if the folder holds an adapter that its index does not name, pass it as one: surgery merge CHECKPOINT"
            " CHECKPOINT -o OUT"
        )
        return AdapterError(f"the checkpoint has an {CONFIG}, but no LoRA tensors", where=[checkpoint.path], help=tip)
    tip = "name the adapter: surgery merge BASE ADAPTER -o OUT"
    return AdapterError("the checkpoint has no LoRA of its own to merge", where=[checkpoint.path], help=tip)


def _parted(
    checkpoint: Checkpoint, adapter: Adapter, names: Collection[str]
) -> tuple[tuple[Input, ...], tuple[Input, ...]]:
    """The inputs without the adapter's tensors, and these as an input of their own."""
    bases, mine, files = list[Input](), dict[str, Stored](), dict[str, File]()
    places = {_place(tensor) for name in names if isinstance(tensor := checkpoint.tensors[name], Stored)}
    for source in checkpoint.inputs:
        own = {name: tensor for name, tensor in source.tensors.items() if _place(tensor) in places}
        if source.role != "base" or not own:
            bases.append(source)
            continue
        rest = {name: tensor for name, tensor in source.tensors.items() if name not in own}
        held = {tensor.file.path for tensor in rest.values()}
        bases.append(replace(source, tensors=rest, files=tuple(file for file in source.files if file.path in held)))
        mine |= own
        files |= {tensor.file.path: replace(tensor.file, digest="") for tensor in own.values()}
    config = checkpoint.files[CONFIG]
    if len(mine) < len(names) or not isinstance(
        config, File
    ):  # made in this pass: what they are made of is accounted for
        return checkpoint.inputs, ()
    first, *more = files.values()
    described = replace(config, digest=sha256(config))
    weights = (replace(first, digest=_digest(adapter)), *more)
    return tuple(bases), (Input("adapter", checkpoint.path, (described, *weights), mine),)


def _place(tensor: Stored) -> tuple[str, int, Shape]:
    return tensor.file.path, tensor.offset, tensor.shape


def _digest(adapter: Adapter) -> str:
    """SHA-256 of adapter_model.safetensors as it is for this adapter in a folder of its own."""
    from ...evaluation.read import Reader

    tensors = adapter.tensors
    shapes: dict[str, tuple[Dtype, Shape]] = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    digest, reader, buffer = (
        hashlib.sha256(encode_header(shapes, adapter.metadata)),
        Reader(),
        memoryview(bytearray(_CHUNK)),
    )
    try:
        for name in in_file_order(shapes):
            tensor = tensors[name]
            assert isinstance(tensor, Stored)
            for at in range(0, tensor.nbytes, _CHUNK):
                part = buffer[: min(_CHUNK, tensor.nbytes - at)]
                reader.read(tensor.file, tensor.offset + at, part)
                digest.update(part)
    finally:
        reader.close()
    return digest.hexdigest()
