"""A quantised checkpoint as what its codes mean, for a surgery to work on; and back, as few codes given up as can be.

    seen = decoded(checkpoint, held)         every weight in 16 bits, and a config that says nothing of quantisation
    made = surgery(seen)
    settled(made, seen, checkpoint, held)    what is as it was is codes again, byte for byte

What was changed stays in 16 bits, with its partners (`partners.py`), and config.json lists it; or all does, or it is
coded again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Literal

from ..checkpoint import Checkpoint
from ..errors import NotSupported, listed
from ..lazy.dtypes import F32
from ..lazy.tensor import in_dtype
from ..names import natural
from .declared import replaced
from .partners import with_partners
from .quantised import Quantisation
from .recode import recoded
from .widen import beside, mixed, widened

How = Literal["mixed", "dequantized", "requantized"]


def decoded(checkpoint: Checkpoint, held: Quantisation) -> Checkpoint:
    """The checkpoint with every quantised weight as what it means."""
    return widened(checkpoint, held, list(held.weights)) if held.weights else checkpoint


def settled(made: Checkpoint, seen: Checkpoint, checkpoint: Checkpoint, held: Quantisation, how: How) -> Checkpoint:
    """What a surgery made of `seen`, in which `checkpoint` was decoded. Raises NotSupported where no loader takes
    the mixture that would come of it.
    """
    if not held.weights:
        return made
    touched = _touched(made, held)
    if how == "dequantized" or not (held.scheme and held.scheme.written):
        wide = set(held.weights)
    else:
        wide = set[str]() if how == "requantized" else with_partners(touched, held.weights)
    if len(wide) == len(held.weights):
        return made
    back = [name for name in held.weights if name in made.tensors and name not in wide]
    result = _with_codes(made, checkpoint, held, back, touched)
    plain = {*wide, *_new(made, seen)} if wide or (held.scheme and held.scheme.skip) else set[str]()
    said = mixed(checkpoint, held, sorted(plain, key=natural)) if plain else held.said
    result = _said(result, seen, checkpoint, held, said, wide)
    return replace(result, notes=(*result.notes, *_notes(held, wide, touched, how)))


def _touched(made: Checkpoint, held: Quantisation) -> list[str]:
    """The weights that are others now. Raises NotSupported for such that have another name."""
    weights = {id(one.weight): name for name, one in held.weights.items()}
    moved = [f"{weights[id(t)]}: {n}" for n, t in made.tensors.items() if id(t) in weights and weights[id(t)] != n]
    if moved:
        raise NotSupported(
            f"{len(moved)} quantised weights would get other names, and config.json lists them by the old ones",
            where=[made.path, *listed(moved)],
            help="dequantise the base first: surgery dequantize BASE -o OUT; or all of it along: --dequantize",
        )
    return [name for name, one in held.weights.items() if made.tensors.get(name, one.weight) is not one.weight]


def _new(made: Checkpoint, seen: Checkpoint) -> list[str]:
    """The matrices that a surgery added, such as a classifier's: loaders would look for their codes."""
    added = ((name, tensor) for name, tensor in made.tensors.items() if name not in seen.tensors)
    return [name for name, tensor in added if name.endswith(".weight") and len(tensor.shape) > 1]


def _with_codes(
    made: Checkpoint, checkpoint: Checkpoint, held: Quantisation, names: Collection[str], touched: Collection[str]
) -> Checkpoint:
    """`made` with the stored parts of these weights; the codes of those that were `touched` are made again."""
    tensors, weight_map, dropped = dict(made.tensors), dict(made.weight_map), dict(made.dropped)
    touched = frozenset(touched)
    for name in held.left:
        tensors[name], weight_map[name] = checkpoint.tensors[name], checkpoint.weight_map[name]
        dropped.pop(name, None)
    for name in names:
        one, now = held.weights[name], tensors.pop(name)
        del weight_map[name]
        for part in (*one.parts, *one.left):
            if part in checkpoint.tensors:
                tensors[part], weight_map[part] = checkpoint.tensors[part], checkpoint.weight_map[part]
                dropped.pop(part, None)
        if name in touched:
            if now.shape != one.weight.shape:
                raise NotSupported(
                    f"{name} changes its shape, and has no scales then",
                    where=[f"{list(one.weight.shape)} in the base, {list(now.shape)} now"],
                    help="merge without --requantize, or with --dequantize",
                )
            tensors[one.codes] = recoded(one.weight, in_dtype(now, F32))
    return replace(made, tensors=tensors, weight_map=weight_map, dropped=dropped)


def _said(
    result: Checkpoint,
    seen: Checkpoint,
    checkpoint: Checkpoint,
    held: Quantisation,
    said: Mapping[str, Any],
    wide: Collection[str],
) -> Checkpoint:
    """`result` with what is `said` of its quantisation now, in the config that the surgery left, and the files."""
    files = {**result.files, **beside(checkpoint, held, wide)}
    old, new = checkpoint.metadata, result.metadata
    told = {shard: old[shard] for shard in old if new.get(shard) == seen.metadata.get(shard)}
    result = replace(result, metadata={**new, **told})
    same = result.files.get("config.json") == seen.files.get("config.json")
    if same and (said == held.said or not held.at) and "config.json" in checkpoint.files:
        return replace(result, files={**files, "config.json": checkpoint.files["config.json"]})
    config = checkpoint.config if same else result.config
    return replace(result, files=files).with_config(replaced(config, held.at, said) if held.at else config)


def _notes(held: Quantisation, wide: Collection[str], touched: Collection[str], how: How) -> list[str]:
    """What a user should know of the mixture."""
    if how == "requantized" and touched:
        return [f"{len(touched)} quantised weights are coded again, under the scales that they have"]
    if not wide:
        return []
    more = len(wide) - len(touched)
    with_them = f", and {more} that servers fuse with them," if more else ""
    kept = len(held.weights) - len(wide)
    return [
        f"{len(touched)} quantised weights{with_them} are in 16 bits now, as config.json says; {kept} stay quantised"
    ]
