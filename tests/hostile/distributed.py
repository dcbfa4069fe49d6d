"""Distributed checkpoints of torch whose metadata lies."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from .pickles import Runs, doubling
from .rows import OF_CHECKPOINTS, Row, put, sparse

METADATA = ".metadata"


def changed(folder: Path, change: Callable[[Any], Any]) -> None:
    """The checkpoint with its metadata changed."""
    file = folder / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    change(metadata)
    file.write_bytes(pickle.dumps(metadata))


def first(metadata: Any) -> Any:
    return metadata.storage_data[next(iter(metadata.storage_data))]


def shrunk(metadata: Any) -> None:
    metadata.state_dict_metadata["model.a"].chunks[0].sizes = torch.Size([5])


def moved(metadata: Any) -> None:
    metadata.state_dict_metadata["model.a"].size = torch.Size([7])


BROKEN: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a file elsewhere": (lambda m: setattr(first(m), "relative_path", "../../etc/passwd"), "is not there"),
    "a chunk beyond the end": (lambda m: setattr(first(m), "length", 10**9), "beyond the file's end"),
    "a chunk at another place": (lambda m: setattr(first(m), "offset", 7), "is wrong"),
    "packed chunks": (lambda m: setattr(first(m), "transform_descriptors", ["zstd"]), "packed"),
    "no places": (lambda m: m.storage_data.clear(), "where the chunk"),
    "a chunk of another size": (shrunk, "and not"),
    "a hole": (moved, "make no"),
    "no tensors": (lambda m: m.state_dict_metadata.clear(), "no tensor"),
}


class Pairs:
    """A dictionary in a pickle, whose keys are never hashed here."""

    def __init__(self, pairs: list[tuple[Any, Any]]) -> None:
        self.pairs = pairs

    def __reduce__(self) -> Any:
        return dict, (), None, None, iter(self.pairs)


def ranks(place: Path, says: Any) -> None:
    """The file of the one rank that is, of so many."""
    (place / "x").mkdir()
    torch.save({"a": torch.ones(2)}, place / "x" / f"model_world_size_{says}_rank_0.pt")


def called(place: Path, *names: str) -> None:
    """Files of a tensor that are called so."""
    (place / "x").mkdir()
    for name in names:
        torch.save({"a": torch.ones(2)}, place / "x" / name)


def deepspeed(place: Path, **said: Any) -> None:
    (place / "x").mkdir()
    torch.save(
        {"module": {}, "param_shapes": [{"a": torch.Size([2, 2])}], **said}, place / "x" / "mp_rank_00_model_states.pt"
    )


def saved(place: Path, change: Callable[[Any], Any]) -> None:
    """`x`, with its metadata changed."""
    state = {"model": {"a": torch.arange(6.0), "b": torch.ones(2, 3).t()}}
    dcp.save(state, checkpoint_id=place / "x", no_dist=True)
    changed(place / "x", change)


def replaced(place: Path, content: Any) -> None:
    """`x`, with another file as its metadata."""
    dcp.save({"a": torch.ones(3)}, checkpoint_id=place / "x", no_dist=True)
    put(place / "x" / METADATA, content)


OTHERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "metadata of nothing": (partial(replaced, content=b""), "metadata"),
    "metadata that would run": (partial(replaced, content=pickle.dumps(Runs())), "metadata"),
    "metadata of two gigabytes": (
        partial(replaced, content=sparse(2_000_000_000, b"\x80\x02")),
        "too large to be read",
    ),
    "metadata of a dictionary in itself": (partial(replaced, content=b"\x80\x02}q\x00X\x01\0\0\0ah\x00s."), "metadata"),
    "keys that are 2^200 values": (
        partial(saved, change=lambda m: setattr(m, "state_dict_metadata", Pairs([(doubling(200), 1), (2**16_000, 2)]))),
        "",
    ),
    "a path that is 2^200 values": (
        partial(saved, change=lambda m: setattr(first(m), "relative_path", doubling(200))),
        "",
    ),
    "a path of escapes": (partial(saved, change=lambda m: setattr(first(m), "relative_path", "\x1b[2J")), ""),
    "a size of 2^62": (
        partial(saved, change=lambda m: setattr(m.state_dict_metadata["model.a"], "size", torch.Size([1 << 62]))),
        "",
    ),
    "a million ranks": (partial(ranks, says=1_000_000), ""),
    "a part of Meta's whose number is 10^12": (
        lambda place: called(place, "consolidated.00.pth", f"consolidated.{10**12}.pth"),
        "part 1, 2",
    ),
    "a rank of DeepSpeed's whose number is 10^12": (
        lambda place: called(place, "mp_rank_00_model_states.pt", f"zero_pp_rank_{10**12}_mp_rank_00_optim_states.pt"),
        "",
    ),
    "ranks of 200 digits": (partial(ranks, says="9" * 200), ""),
    "Megatron's of another backend": (
        lambda place: (
            (place / "x").mkdir(),
            put(place / "x/metadata.json", json.dumps({"sharded_backend": "\x1b[2J"})),
        ),
        "",
    ),
    "DeepSpeed's of no ranks": (deepspeed, ""),
    "DeepSpeed's of a billion ranks": (
        partial(deepspeed, dp_world_size=10**9, ds_config={"zero_optimization": {"stage": 3}}),
        "",
    ),
}


def rows() -> Iterator[Row]:
    """Each as a folder of ranks."""
    for name, (change, says) in BROKEN.items():
        make = partial(saved, change=change)
        yield Row(
            f"distributed: {name}", make, says, ("inspect x", "convert-files x -o w/o"), "place/x", OF_CHECKPOINTS
        )
    for name, (then, says) in OTHERS.items():
        yield Row(
            f"distributed: {name}", then, says, ("inspect x", "convert-files x -o w/o"), "place/x", OF_CHECKPOINTS
        )
