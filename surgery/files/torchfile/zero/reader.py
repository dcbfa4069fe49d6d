"""A checkpoint of DeepSpeed's -> its tensors by name: the fp32 masters, whole, and what has none as it is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ....errors import FormatError, NotSupported, listed, series
from ....lazy.dtypes import BF16, F16, F32
from ....lazy.tensor import File, Tensor, in_dtype
from ...folder import Folder
from ...opened import SHARD, Opened, leaves_of
from ..parts import chosen, unwrapped
from ..reader import check_here, raw_of, tensor_of
from .agreeing import MASTERS, check_copy, check_models, check_optimizers
from .flat import frozen_pieces, weights_of_groups, weights_of_pieces
from .places import LATEST, LATEST_UNIVERSAL, SCRIPTS, Ranks, ranks_in
from .states import Model, Optimizer, model_of, optimizer_of
from .universal import MASTERS as OF_UNIVERSAL
from .universal import is_universal, weights_of_files

COPY = "module"


def read_zero(folder: Folder, inside: str, key: str) -> Opened:
    """The weights in the folder's folder `inside`: masters, or the 16-bit copy where `key` is `COPY`.

    Raises FormatError, NotACheckpoint, NotSupported.
    """
    files = ranks_in(folder, inside, universal=is_universal(folder, inside))
    for name in (*files.models, *files.optimizers):
        check_here(folder, name, "checkpoints of DeepSpeed's")
    models = [model_of(raw_of(folder.file(name).path)) for name in files.models]
    first, stage = models[0], ""
    held = list[File]()
    if files.parted or not files.universal:
        check_models(models)
    whole = first.groups is None or not (files.optimizers or files.parted or files.universal)
    if whole or key not in ("", MASTERS):
        tensors, notes = _copied(first, files, key)
    elif files.universal:
        stage = ", universal"
        weights, held = weights_of_files(folder, inside, models)
        tensors, notes = _mastered(models, weights, files, check=not key)
    else:
        ranks = _optimizers(folder, files)
        stage = f", ZeRO stage {_stage(ranks[0])} on {len(ranks)} ranks"
        weights = weights_of_pieces(first, ranks) if files.parted else weights_of_groups(first, ranks)
        held = [one.raw.file for one in ranks]
        tensors, notes = _mastered(models, weights, files, check=not key)
    named, unwrapping = unwrapped(tensors)
    opened = (*(one.raw.file for one in models), *held)
    leaves, partly = leaves_of(named)
    return Opened(
        f"a checkpoint of DeepSpeed's{f' in {inside}' if inside else ''}{stage}",
        opened,
        named,
        dict.fromkeys(named, SHARD),
        leaves,
        frozenset(_own(folder, inside)),
        partly,
        notes=(*notes, *unwrapping),
    )


def _optimizers(folder: Folder, files: Ranks) -> list[Optimizer]:
    """What the ranks' files say. Raises FormatError where they are not all there, or of several saves."""
    where = [folder.at(files.inside)]
    if not files.optimizers:
        tip = "fetch the optim_states files: stage 3 keeps the weights there"
        raise FormatError("the ranks' parts of the weights are missing", where=where, help=tip)
    ranks = [optimizer_of(raw_of(folder.file(name).path)) for name in files.optimizers]
    check_optimizers(ranks)
    if ranks[0].uneven:
        tip = "experts are trained so: load it with DeepSpeed's engine, and save it with engine.save_16bit_model"
        raise NotSupported("vectors are cut over different numbers of ranks, which is not read", where=where, help=tip)
    if ranks[0].ranks != len(ranks):
        tip = "fetch the missing files, or keep those of one save in the folder"
        what = f"the weights are cut over {ranks[0].ranks} ranks, and {len(ranks)} files of such are here"
        raise FormatError(what, where=where, help=tip)
    if files.parted != (ranks[0].stage == 3) or (files.parted and len(files.models) != len(ranks)):
        tip = "keep the files of one save alone in the folder"
        what = f"the optimizer states are of stage {ranks[0].stage}, and the model states of another, or of other ranks"
        raise FormatError(what, where=[*where, *listed([*files.models])], help=tip)
    return ranks


def _mastered(
    models: Sequence[Model], weights: Mapping[str, Tensor], files: Ranks, *, check: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """The masters, and what has none; with notes on which is which."""
    first = models[0]
    cut = not files.parted and len(models) > 1  # over ranks of tensor parallelism: their copies are parts
    if not files.parted and not cut and check:
        check_copy(first, weights)
    if cut and (left := [name for name in first.module if name not in {*weights, *first.buffers, *first.shared}]):
        tip = "join them with the program that trained it"
        what = "weights that were not trained are cut over ranks of tensor parallelism"
        raise NotSupported(what, where=[first.raw.file.path, *listed(left)], help=tip)
    frozen = frozen_pieces(models) if files.parted else _frozen(first, weights)
    tensors = {**_buffers(first), **frozen, **weights}
    ties = {name: of for name, of in first.shared.items() if of in tensors}
    tensors |= {name: tensors[of] for name, of in ties.items()}
    _check_whole(first, tensors)
    dtypes = sorted({str(tensor.dtype) for tensor in weights.values()})
    beside = "" if files.parted else f"; --key {COPY} takes the model's own copy instead, in the dtype of its training"
    notes = [f"the optimizer's master weights were taken ({series(dtypes)}){beside}"]
    if frozen:
        kinds = series(sorted({str(tensor.dtype) for tensor in frozen.values()}))
        named = series(listed(list(frozen), 3))
        notes.append(f"{len(frozen)} weights were not trained, have no master, and are as stored ({kinds}): {named}")
    return _in_order(first, tensors), [*notes, *_ties(ties)]


def _frozen(model: Model, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights that were not trained, as a file of model states holds them whole: in a table of their own, or, where
    that was not saved, among the model's.
    """
    known = {*weights, *model.buffers, *model.shared}
    held = model.fragments or {name: one for name, one in model.module.items() if name not in known}
    found = {name: tensor_of(model.raw, one, name) for name, one in held.items()}
    for name, shape in (model.frozen or {}).items():
        if name not in found or found[name].shape != shape:
            said = found[name].shape if name in found else "not there"
            what = f"a frozen weight of {shape} is {said}"
            raise FormatError(what, where=[f"{model.raw.file.path}: {name}"], help="fetch the file again")
    return found


def _buffers(model: Model) -> dict[str, Tensor]:
    """The model's buffers; those in 16 bits in float32, as DeepSpeed's converter gives them."""
    found = {name: tensor_of(model.raw, model.module[name], name) for name in model.buffers if name in model.module}
    return {name: in_dtype(one, F32) if one.dtype in (BF16, F16) else one for name, one in found.items()}


def _copied(model: Model, files: Ranks, key: str) -> tuple[dict[str, Tensor], list[str]]:
    """The model's own copy of its weights, where it is whole. Raises NotSupported where it is not."""
    where = [model.raw.file.path]
    found = chosen(model.raw.root, model.raw.file.path, key or COPY)
    if found.unreadable:
        rows = listed([f"{name} ({why})" for name, why in found.unreadable.items()])
        tip = "save it as ordinary tensors, with torch"
        raise NotSupported("tensors of the file cannot be told as bytes", where=[*where, *rows], help=tip)
    tensors = {name: tensor_of(model.raw, one, name) for name, one in found.tensors.items()}  # type: ignore[arg-type]
    if files.parted and (key or COPY) == COPY:
        tip = "leave --key away: the masters are whole, in the optimizer states of all ranks"
        raise NotSupported("stage 3 saves no whole copy of the model in 16 bits", where=where, help=tip)
    if key:
        return tensors, [f"read from the key {key}: masters in the optimizer states are left out"]
    why = "no optimizer states are here" if model.groups is not None else "it was trained without ZeRO"
    left = "an optimizer's masters, which have no names, are left out"
    return tensors, [f"the model's own copy of its weights was taken, since {why}; {left}"]


def _check_whole(model: Model, tensors: Mapping[str, Tensor]) -> None:
    """Raise FormatError for weights of the model that no file holds."""
    missing = [name for name in (*model.module, *model.unreadable) if name not in tensors]
    if missing:
        tip = "a version of DeepSpeed that saves frozen weights has to save it again"
        what = f"{len(missing)} weights of the model are in no rank's part"
        raise FormatError(what, where=[model.raw.file.path, *listed(missing)], help=tip)


def _in_order(model: Model, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in the model's order."""
    names = [name for name in model.module if name in tensors]
    return {name: tensors[name] for name in (*names, *(name for name in tensors if name not in model.module))}


def _ties(ties: Mapping[str, str]) -> list[str]:
    rows = listed([f"{of} = {name}" for name, of in ties.items()], 3)
    return [f"one tensor under several names, each stored by itself from now on: {series(rows)}"] if ties else []


def _stage(rank: Optimizer) -> str:
    return str(rank.stage) if rank.stage else "1, with an optimizer for bf16"


def _own(folder: Folder, inside: str) -> list[str]:
    """The paths in the folder that are the checkpoint's."""
    front = f"{inside}/" if inside else f"{OF_UNIVERSAL}/"
    files = [name for name in folder.names() if name.endswith("_states.pt")]
    return [*(path for path in folder.walk() if path.startswith(front)), *files, *SCRIPTS, LATEST, LATEST_UNIVERSAL]
