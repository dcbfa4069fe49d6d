"""Between a maker's own layout and transformers': renamed, rows of q and k moved, params.json or config.json anew.

The table is `models/originals.py`. Nothing is computed, and the way back gives the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import FormatError, NothingMatched, NotSupported, PlanError, listed, series
from ..evaluation.read import content
from ..files.shards import index_name_of
from ..files.strict import MEND, parse_object
from ..lazy.dropped import both
from ..lazy.tensor import File, Tensor
from ..models.originals import (
    LENGTH,
    ORIGINALS,
    PARAMS,
    Original,
    config_of,
    is_original,
    length_of,
    params_of,
    row_of,
    to_original,
    to_transformers,
    turned,
    unfit,
    unknown,
)
from ..models.skeleton import check_accepted, complete

_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
CARRIED = "the tokenizer's files are carried as they are"


def params_in(checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    """What params.json says, where the tensors are called as in a maker's own layout; None for all else."""
    file = checkpoint.files.get(PARAMS)
    if file is None or not is_original(checkpoint.tensors):
        return None
    where = [file.path if isinstance(file, File) else f"{checkpoint.path}: {PARAMS}"]
    return parse_object(content(file), lambda what: FormatError(what, where=where, help=MEND))


def converted(checkpoint: Checkpoint, to: str) -> Checkpoint | None:
    """The checkpoint as `to`, where one of the two is a maker's own layout; None for all else. Raises NothingMatched,
    NotSupported, PlanError.
    """
    if (params := params_in(checkpoint)) is not None:
        row = row_of(params)
        if to != row.model_type:
            tip = f"it can become {row.model_type}, and that what that can become"
            raise NothingMatched(f"{row.maker}'s own layout cannot become `{to}`", where=[checkpoint.path], help=tip)
        made = from_original(checkpoint, row, params)
        written = {**complete(made.config), **made.config}
        check_accepted(written, row.model_class, made.tensors)
        step = {"surgery": "convert", "from": row.name, "to": to, "class": row.model_class}
        return made.with_config(written).with_step(step, notes=(*made.notes, *_assumed(params), CARRIED))
    known = (to, checkpoint.config.get("model_type"))
    rows = [row for row in ORIGINALS if row.written and (row.name, row.model_type) == known]
    return _as_original(checkpoint, rows[0]) if rows else None


def from_original(checkpoint: Checkpoint, row: Original, params: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint as transformers has it, with a config.json, and without params.json."""
    _check_known(checkpoint, row, params)
    gone = {name: tensor for name, tensor in checkpoint.tensors.items() if re.fullmatch(row.buffers, name)}
    kept = replace(
        checkpoint,
        tensors={name: tensor for name, tensor in checkpoint.tensors.items() if name not in gone},
        dropped=both(checkpoint.dropped, gone),
        files={name: file for name, file in checkpoint.files.items() if name != PARAMS},
    )
    dtypes = {tensor.dtype.name for tensor in kept.tensors.values()}
    said = {"dtype": _DTYPES[dtypes.pop()]} if len(dtypes) == 1 and dtypes <= _DTYPES.keys() else {}
    made = _called(kept, "model", to_transformers, lambda name, tensor: turned(name, tensor, params))
    return made.with_config({**config_of(row, params, checkpoint.tensors), **said})


def to_layout(checkpoint: Checkpoint, row: Original, params: Mapping[str, Any]) -> Checkpoint:
    """The inverse, with this params.json, and without config.json."""
    files = {name: file for name, file in checkpoint.files.items() if name not in ("config.json", PARAMS)}
    files[PARAMS] = f"{json.dumps(dict(params), indent=4)}\n".encode()

    def moved(name: str, tensor: Tensor) -> Tensor:
        return turned(str(to_original(name)), tensor, params, back=True)

    return _called(replace(checkpoint, files=files), row.stem, to_original, moved)


def _as_original(checkpoint: Checkpoint, row: Original) -> Checkpoint:
    config = complete(checkpoint.config)
    if why := unfit(config):
        what = f"this {row.model_type} is none that {row.maker}'s own layout can say"
        raise PlanError(what, where=[checkpoint.path, *why], help="keep it as it is")
    check_accepted(config, row.model_class, checkpoint.tensors)
    try:
        made = to_layout(checkpoint, row, params_of(row, config))
    except KeyError as error:
        raise PlanError(f"config.json has no {error.args[0]}", where=[checkpoint.path]) from error
    step = {"surgery": "convert", "from": row.model_type, "to": row.name, "class": f"{row.maker}'s own"}
    return made.with_step(step, notes=(*made.notes, CARRIED))


def _called(
    checkpoint: Checkpoint, stem: str, name_of: Callable[[str], str | None], moved: Callable[[str, Tensor], Tensor]
) -> Checkpoint:
    """With other names and rows, in shards of that stem. Raises PlanError for a name that the table has not."""
    new = {name: name_of(name) for name in checkpoint.tensors}
    if strange := [name for name, called in new.items() if called is None]:
        tip = "it is of another model; what belongs to none can be left out first with surgery drop"
        raise PlanError("tensors have no name in the other layout", where=[checkpoint.path, *listed(strange)], help=tip)

    def shard(old: str) -> str:
        return re.sub(rf"^{re.escape(checkpoint.stem)}(?=[.-])", stem, old)

    return replace(
        checkpoint,
        tensors={str(new[name]): moved(name, tensor) for name, tensor in checkpoint.tensors.items()},
        weight_map={str(new[name]): shard(checkpoint.weight_map[name]) for name in checkpoint.tensors},
        metadata={shard(name): metadata or {"format": "pt"} for name, metadata in checkpoint.metadata.items()},
        stem=stem,
        index_name=index_name_of(stem),
    )


def _check_known(checkpoint: Checkpoint, row: Original, params: Mapping[str, Any]) -> None:
    """Raise NotSupported where params.json says more than the row knows, PlanError where it says too little."""
    where = [f"{checkpoint.path}: {PARAMS}"]
    if more := unknown(row, params):
        tip = f"it is another model than the row of {row.model_type} knows; reshard, rename and drop take it as it is"
        raise NotSupported(f"no row is known for a model with {series(more)}", where=where, help=tip)
    needed = ("dim", "n_layers", "n_heads", "norm_eps")
    wrong = [key for key in needed if not isinstance(params.get(key), int | float) or params[key] <= 0]
    if wrong:
        raise PlanError(f"{PARAMS} does not say {series(wrong)}", where=where, help="fetch it again")


def _assumed(params: Mapping[str, Any]) -> list[str]:
    if length_of(params):
        return []
    return [f"{PARAMS} does not say how long inputs may be: config.json says {LENGTH}, as transformers' own converter"]
