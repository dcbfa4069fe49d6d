"""Where a checkpoint of DeepSpeed's lies, and which files of ranks it has.

    latest                                           the name of the folder of the last save
    global_stepN/mp_rank_00_model_states.pt          stages 0 to 2: the model in 16 bits; names and shapes
    global_stepN/zero_pp_rank_R_mp_rank_00_model_states.pt    stage 3: names and shapes, and pieces of frozen weights
    global_stepN/[bf16_]zero_pp_rank_R_mp_rank_00_optim_states.pt    rank R's part of the fp32 weights
    zero_to_fp32.py                                  code that came with the checkpoint: never run, and left out

Source: deepspeed 0.19.8, runtime/engine.py `_get_ckpt_name`, `_get_rank_zero_ckpt_name`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ....errors import FormatError, NotACheckpoint, NotSupported, listed, series
from ....names import natural
from ...folder import Folder
from ...numbered import missing_below

LATEST = "latest"
LATEST_UNIVERSAL = "latest_universal"
MODEL = re.compile(r"(?:zero_pp_rank_(?P<rank>\d+)_)?mp_rank_(?P<mp>\d+)_model_states\.pt")
OPTIMIZER = re.compile(r"(?P<kind>[a-z0-9]*_)?zero_pp_rank_(?P<rank>\d+)_mp_rank_(?P<mp>\d+)_optim_states\.pt")
SCRIPTS = ("zero_to_fp32.py", "zero_to_torch.py")
_TAGS = re.compile(r".*step[-_]?\d+(_universal)?")
# What is laid out so that no rank's file says how the whole is made of it.
_OTHERS = {
    re.compile(r"expp_rank_\d+_mp_rank_\d+_optim_states\.pt|(layer_\d+_)?expert_\d+_mp_rank_\d+_model_states\.pt"): (
        "experts that are spread over ranks (MoE)",
        "load it with DeepSpeed's engine on as many ranks, and save it with engine.save_16bit_model",
    ),
    re.compile(r"layer_\d+-model(_\d+-model)?_states\.pt"): (
        "a pipeline's layers",
        "DeepSpeed's ds_to_universal.py joins the stages of a pipeline: pass what it writes",
    ),
}


@dataclass(frozen=True, slots=True)
class Ranks:
    """The files of a checkpoint in the folder's folder `inside` (""), by path, in the order of the ranks."""

    inside: str
    models: tuple[str, ...]
    optimizers: tuple[str, ...]
    parted: bool  # each rank has a file of the model's, too: stage 3
    universal: bool  # masters lie in files of their own


def place_of(folder: Folder) -> str | None:
    """The folder in it that holds a checkpoint of DeepSpeed's, "" where it is itself one; None where none is there.

    Raises FormatError where `latest` names none; NotACheckpoint where it is not clear which is meant.
    """
    here = folder.names()
    if _holds(here):
        return ""
    tags = [name for name in here if _TAGS.fullmatch(name) and _holds(folder.names(name))]
    latest = next((name for name in (LATEST, LATEST_UNIVERSAL) if folder.has(name)), None)
    if latest and (tags or any(name in here for name in SCRIPTS)):
        tag = folder.read(latest)[:1000].decode("utf-8", "replace").strip()
        if tag in here and tag not in (".", "..") and "/" not in tag and _holds(folder.names(tag)):
            return tag
        tip = f"pass the save that you mean: {', '.join(map(folder.at, tags))}" if tags else "fetch it again"
        raise FormatError(f"{latest} names {tag!r}, which is no folder of a save", where=[folder.path], help=tip)
    if len(tags) > 1:
        tip = f"pass the one that you mean: {folder.at(sorted(tags, key=natural)[-1])}"
        raise NotACheckpoint(f"the folder holds several saves: {series(listed(tags))}", where=[folder.path], help=tip)
    return tags[0] if tags else None


def ranks_in(folder: Folder, inside: str, *, universal: bool = False) -> Ranks:
    """The files of the ranks there. Raises FormatError where some are missing, NotSupported for other layouts."""
    here = folder.names(inside)
    where = [folder.at(inside)]
    for rule, (what, tip) in _OTHERS.items():
        if others := [name for name in here if rule.fullmatch(name)]:
            raise NotSupported(f"{what} are not read", where=[*where, *listed(others)], help=tip)
    models = [found for name in here if (found := MODEL.fullmatch(name))]
    optimizers = [found for name in here if (found := OPTIMIZER.fullmatch(name))]
    parts = {int(found["mp"]) for found in (*models, *optimizers)} - {0}
    if parts and not universal:
        tip = "DeepSpeed's ds_to_universal.py joins them: pass what it writes"
        what = f"the weights are cut over {max(parts) + 1} ranks of tensor parallelism (mp_rank), which is not read"
        raise NotSupported(what, where=where, help=tip)
    by_rank = {int(found["rank"]): found[0] for found in models if found["rank"] is not None}
    whole = {int(found["mp"]): found[0] for found in models if found["rank"] is None}
    parted = {int(found["rank"]): found[0] for found in optimizers}
    if (len(whole) > 0) == (len(by_rank) > 0) or len(parted) != len(optimizers) or (parts and by_rank):
        names = listed(sorted((found[0] for found in (*models, *optimizers)), key=natural))
        tip = "keep the files of one save alone in the folder"
        raise FormatError("the files are of several saves", where=[*where, *names], help=tip)
    _check_all(parted, where, "optim_states")
    _check_all(by_rank or whole, where, "model_states")
    held = tuple(folder_path(inside, name) for name in _in_order(whole or by_rank))
    return Ranks(inside, held, tuple(folder_path(inside, name) for name in _in_order(parted)), not whole, universal)


def folder_path(inside: str, name: str) -> str:
    """The path of a file in the folder's folder `inside`."""
    return f"{inside}/{name}" if inside else name


def _holds(names: Sequence[str]) -> bool:
    rules = (MODEL, OPTIMIZER, *_OTHERS)
    return any(rule.fullmatch(name) for name in names for rule in rules)


def _in_order(files: Mapping[int, str]) -> list[str]:
    return [files[rank] for rank in sorted(files)]


def _check_all(files: Mapping[int, str], where: Sequence[str], what: str) -> None:
    """Raise FormatError where ranks are missing below the highest."""
    if gone := missing_below(files):
        tip = "fetch the missing files, or save again on all ranks"
        raise FormatError(f"no {what} file of rank {series(gone)} is there", where=where, help=tip)
