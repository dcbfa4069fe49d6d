"""What a rank's files of DeepSpeed's say: names and shapes in the order in which the weights lie, and where they lie.

Source: deepspeed 0.19.8, runtime/engine.py `_common_checkpoint_state`, `_save_zero_checkpoint`; the `state_dict` of
runtime/zero/stage_1_and_2.py, runtime/zero/stage3.py and runtime/bf16_optimizer.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ....errors import FormatError, NotSupported
from ..reader import Raw
from ..records import Call, text, told
from ..storages import Described, Unreadable, described, sizes_of

Shape = tuple[int, ...]
STATE = "optimizer_state_dict"
_AUTOEP = ("ds_autoep_layers", "autoep_layers")


@dataclass(frozen=True, slots=True)
class Model:
    """What a file of model states says.

    `groups` are the shapes of the weights in each flat vector, in order; of `frozen` ones, those that lie beside in
    `fragments`; `shared` are names of weights that are another one's. None where a checkpoint does not say it.
    """

    raw: Raw
    module: Mapping[str, Described]
    unreadable: Mapping[str, str]
    buffers: tuple[str, ...]
    groups: tuple[Mapping[str, Shape], ...] | None
    frozen: Mapping[str, Shape] | None
    fragments: Mapping[str, Described]
    shared: Mapping[str, str]
    steps: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Optimizer:
    """What a file of optimizer states says: the rank's part of each flat vector.

    `stage` is None where none is said: a bf16 optimizer, laid out as stage 1. `paddings` follow each weight in the
    vectors; `slices` say where weights begin in this rank's part, and how much of them is there: of the vectors as they
    are where they are `in_order`.
    """

    raw: Raw
    stage: int | None
    ranks: int
    uneven: bool  # vectors are cut over different numbers of ranks
    vectors: tuple[Described, ...]
    paddings: tuple[tuple[int, ...], ...] | None
    slices: tuple[Mapping[str, tuple[int, int]], ...]
    in_order: bool
    base: Any  # the state of the optimizer within: records


def model_of(raw: Raw) -> Model:
    """The model states in a file. Raises FormatError, NotSupported."""
    root = table(raw.root)
    if "module" not in root or not isinstance(root.get("buffer_names", []), list):
        tip = "fetch the file again"
        raise FormatError("these are no model states of DeepSpeed's", where=[raw.file.path], help=tip)
    if any(root.get(key) for key in _AUTOEP):
        tip = "DeepSpeed's ds_to_universal.py joins them: pass what it writes"
        raise NotSupported("experts that are spread over ranks (AutoEP) are not read", where=[raw.file.path], help=tip)
    module, unreadable = _tensors(root["module"])
    fragments, torn = _tensors(root.get("frozen_param_fragments"))
    groups = root.get("param_shapes")
    return Model(
        raw,
        module,
        {**unreadable, **torn},
        tuple(text(name) for name in root.get("buffer_names") or ()),
        _groups(groups, raw) if groups is not None else None,
        _shapes(root["frozen_param_shapes"], raw) if root.get("frozen_param_shapes") is not None else None,
        fragments,
        {text(name): text(of) for name, of in table(root.get("shared_params")).items()},
        tuple(root.get(key) for key in ("global_steps", "skipped_steps", "global_samples", "ds_version")),
    )


def optimizer_of(raw: Raw) -> Optimizer:
    """The optimizer states in a file. Raises FormatError."""
    held = table(table(raw.root).get(STATE))
    vectors = held.get("single_partition_of_fp32_groups", held.get("fp32_flat_groups"))
    count = held.get("partition_count")
    counts = [n for n in (count if isinstance(count, list | tuple) else [count]) if type(n) is int]
    if not isinstance(vectors, list | tuple) or not counts:
        tip = "it was saved without ZeRO, or is damaged; --key module takes the model's own copy where it is whole"
        raise FormatError("no part of the weights is in the optimizer states", where=[raw.file.path], help=tip)
    config = table(table(raw.root).get("ds_config"))
    paddings = held.get("param_alignment_paddings")
    base = held.get("base_optimizer_state", held.get(STATE))
    return Optimizer(
        raw,
        _stage(held.get("zero_stage"), raw),
        max(counts),
        len(set(counts)) > 1,
        tuple(_vector(one, raw, place) for place, one in enumerate(vectors)),
        tuple(tuple(map(_whole, one)) for one in paddings) if isinstance(paddings, list | tuple) else None,
        tuple(_slices(one) for one in held.get("param_slice_mappings") or ()),
        "zero_optimization" in config and not table(config["zero_optimization"]).get("round_robin_gradients"),
        [base, held.get("base_optimizer_state_step"), held.get("loss_scaler"), held.get("ds_version")],
    )


def table(value: Any) -> Mapping[Any, Any]:
    """The entries of a mapping, ordered or not; none of what is no mapping."""
    if isinstance(value, Call):
        return value.entries
    return value if isinstance(value, dict) else {}


def _stage(said: Any, raw: Raw) -> int | None:
    stage = said.args[0] if isinstance(said, Call) and isinstance(said.args, tuple) and said.args else said
    if stage is None or (type(stage) is int and 1 <= stage <= 3):
        return stage
    raise FormatError(f"the ZeRO stage is {told(stage)}, and none that is known", where=[raw.file.path])


def _groups(said: Any, raw: Raw) -> tuple[Mapping[str, Shape], ...]:
    groups = said if isinstance(said, list | tuple) else [said]
    return tuple(_shapes(group, raw) for group in groups)


def _shapes(said: Any, raw: Raw) -> Mapping[str, Shape]:
    found: dict[str, Shape] = {}
    for name, shape in table(said).items():
        try:
            found[text(name)] = sizes_of(tuple(shape) if isinstance(shape, list) else shape)
        except Unreadable as error:
            where = [f"{raw.file.path}: {name}"]
            raise FormatError(f"the shape of a weight is none: {error}", where=where) from None
    return found


def _vector(said: Any, raw: Raw, place: int) -> Described:
    where = [f"{raw.file.path}: part {place} of the weights"]
    try:
        found = described(said)
    except Unreadable as error:
        raise NotSupported(f"a part of the weights cannot be read: {error}", where=where) from None
    if found is None or len(found.shape) != 1:
        raise FormatError("a part of the weights is no vector", where=where, help="fetch the file again")
    return found


def _slices(said: Any) -> Mapping[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for name, address in table(said).items():
        state = address.state if isinstance(address, Call) else None
        if isinstance(state, dict):
            found[text(name)] = (_whole(state.get("start")), _whole(state.get("numel")))
    return found


def _tensors(said: Any) -> tuple[dict[str, Described], dict[str, str]]:
    """The tensors of a state dict by name, and those that cannot be read, with the reason; what is none is passed."""
    found, unreadable = dict[str, Described](), dict[str, str]()
    for name, value in table(said).items():
        try:
            one = described(value)
        except Unreadable as error:
            unreadable[text(name)] = str(error)
            continue
        if one is not None:
            found[text(name)] = one
    return found, unreadable


def _whole(value: Any) -> int:
    return value if type(value) is int else -1
