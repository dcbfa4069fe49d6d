"""Files of torch's with something changed: read as what they say, or refused with an error of surgery's, and soon.

    python tests/files/torchfile/torch_fuzz.py COUNT [SEED]

COUNT inputs over the readers of pickles, zips, files of old and distributed checkpoints; what torch or Python's own
unpickler read too is compared with them, a share of it. Prints for each how many were read, refused and compared, and
what went wrong; ends with 1 where anything did.
"""

from __future__ import annotations

import argparse
import collections
import io
import pickle
import random
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.distributed.checkpoint as dcp

import surgery
from surgery.errors import SurgeryError
from surgery.evaluation.evaluate import load
from surgery.files.torchfile.reader import read_torch
from surgery.files.torchfile.records import Call, Global, Persistent, read_pickle

SLOW = 2.0  # seconds of CPU that none may take
COMPARED = 3  # of so many inputs that are read, one is given to torch or Python too
NUMBERS = (0, 1, 2, 127, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
OPCODES = b"NKJMXUG(])}tlde.aseubRcQqrhjpg012BCVSTFIL" + bytes(
    (*range(0x80, 0x82), *range(0x85, 0x88), 0x88, 0x89, 0x8A, 0x8B, 0x8C, 0x8E, *range(0x8F, 0x97))
)


@dataclass
class Found:
    """What came of the inputs of one kind."""

    read: int = 0
    refused: int = 0
    compared: int = 0
    slowest: float = 0.0
    wrong: list[str] = field(default_factory=list)


def states() -> list[Any]:
    """What is saved before it is changed."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    base = torch.arange(24.0).reshape(4, 6)
    return [
        net.state_dict(),
        {
            "state_dict": net.state_dict(),
            "optimizer": optimizer.state_dict(),
            "epoch": 3,
            "args": argparse.Namespace(a=1),
        },
        {"a": base, "b": base.t(), "c": base[1:3, 2:5], "d": base, "e": torch.nn.Parameter(base[0])},
        {
            "x": torch.ones(3, dtype=torch.float8_e5m2),
            "y": [torch.tensor(5), (torch.ones(2).bool(), None)],
            "z": "w" * 300,
        },
        {"n": numpy.ones(2), "w": torch.zeros(2, 0, 3), "s": {1, 2}, "i": 2**70, "f": 0.5, "by": b"abc"},
    ]


def saved(value: Any, protocol: int = 2, *, legacy: bool = False) -> bytes:
    """What torch writes."""
    out = io.BytesIO()
    torch.save(value, out, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    return out.getvalue()


def entries(raw: bytes) -> list[tuple[str, bytes]]:
    """Those of a zip."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]


def zipped(held: list[tuple[str, bytes]]) -> bytes:
    """A zip of entries as they are."""
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        warnings.simplefilter("ignore")
        for name, content in held:
            archive.writestr(name, content)
    return out.getvalue()


def changed(raw: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """The bytes after a few small changes."""
    made = bytearray(raw)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        at = draw.randrange(len(made) + 1)
        match draw.randrange(9):
            case 0:
                made[at : at + 1] = bytes([draw.randrange(256)])
            case 1:
                made[at : at + 1] = bytes([draw.choice(OPCODES)])
            case 2:
                made[at:at] = bytes(draw.choices(OPCODES, k=draw.randrange(1, 5)))
            case 3:
                del made[at : at + draw.choice((1, 1, 2, 5, 30))]
            case 4:
                size = draw.choice((2, 4, 8))
                made[at : at + size] = (draw.choice(NUMBERS) % 256**size).to_bytes(size, draw.choice(("little", "big")))
            case 5:
                end = at + draw.randrange(1, 40)
                made[at:at] = made[at:end] * draw.choice((1, 2, 50))
            case 6:
                other = draw.choice(others)
                begin = draw.randrange(len(other))
                made[at : at + draw.randrange(20)] = other[begin : begin + draw.randrange(1, 60)]
            case 7:
                del made[at:]
            case 8 if at < len(made):
                made[at] ^= 1 << draw.randrange(8)
    return bytes(made)


class Named:
    """A name of a pickle to Python's own unpickler: called, it is told that it would be."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __call__(self, *args: Any) -> Made:
        return Made(self, args)


class Made:
    """What would come of a call."""

    def __init__(self, function: Named, args: Any) -> None:
        self.function, self.args = function, args
        self.state: Any = None
        self.entries: dict[Any, Any] = {}
        self.items: list[Any] = []

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def append(self, value: Any) -> None:
        self.items.append(value)

    def extend(self, values: Any) -> None:
        self.items.extend(values)


class Unpickler(pickle._Unpickler):  # type: ignore[name-defined,misc]
    """Python's own, written in Python, with names as records."""

    def find_class(self, module: str, name: str) -> Named:
        return Named(module, name)

    def persistent_load(self, pid: Any) -> tuple[str, Any]:
        return ("outside", pid)


def same(ours: Any, theirs: Any, steps: list[int]) -> bool:
    """Whether records mean what Python's own unpickler made; sets are lists here, and order is theirs."""
    steps[0] += 1
    if steps[0] > 5000:
        return True
    match ours:
        case Global():
            return isinstance(theirs, Named) and (theirs.module, theirs.name) == (ours.module, ours.name)
        case Persistent():
            return isinstance(theirs, tuple) and theirs[0] == "outside" and same(ours.said, theirs[1], steps)
        case Call():
            if not isinstance(theirs, Made) or not isinstance(ours.args, tuple):
                return True  # NEWOBJ, which Python does to classes alone; arguments that it would unpack
            return same(ours.function, theirs.function, steps) and same(ours.args, theirs.args, steps)
        case dict():
            if not isinstance(theirs, dict) or len(ours) != len(theirs):
                return False
            return all(same(one, other, steps) for one, other in zip(ours.values(), theirs.values(), strict=True))
        case list() if isinstance(theirs, set | frozenset):
            return True
        case list() | tuple():
            if type(ours) is not type(theirs) or len(ours) != len(theirs):
                return False
            return all(same(one, other, steps) for one, other in zip(ours, theirs, strict=True))
        case float():
            return isinstance(theirs, float) and struct.pack("<d", ours) == struct.pack("<d", theirs)
    if isinstance(theirs, bytearray):
        return bool(ours == bytes(theirs))
    return type(ours) is type(theirs) and bool(ours == theirs)


def compared_pickle(raw: bytes, ours: Any) -> str | None:
    """What differs from what Python makes of it; None where nothing does; "" where Python does not read it."""
    try:
        theirs = Unpickler(io.BytesIO(raw), encoding="latin-1").load()
    except Exception:
        return ""
    try:
        return None if same(ours, theirs, [0]) else f"another value than Python's: {raw!r}"
    except RecursionError:
        return ""


def compared_torch(path: Path, made: Any) -> str | None:
    """The same of what torch makes of a file, tensor by tensor."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = inside(torch.load(path, weights_only=True))
    except Exception:
        return ""
    for name, tensor in made.tensors.items():
        wanted = theirs.get(name)
        if wanted is None or tensor.nbytes > 1 << 20 or wanted.layout != torch.strided or wanted.is_meta:
            continue
        value = load(tensor)
        wanted = wanted.detach().clone(memory_format=torch.contiguous_format).reshape(-1)
        if value.dtype != wanted.dtype or value.numel() != wanted.numel():
            return f"{name} is {value.dtype} {value.shape}, and torch's {wanted.dtype} {wanted.shape}"
        if value.numel() and not torch.equal(value.reshape(-1).view(torch.uint8), wanted.view(torch.uint8)):
            return f"{name} has other values than torch's"
    return None


def inside(root: Any) -> dict[str, torch.Tensor]:
    """The tensors in a value by the keys that lead to them, with dots between."""
    found, todo = dict[str, torch.Tensor](), [((), root, 0)]
    while todo and len(found) < 1000:
        path, value, depth = todo.pop()
        if isinstance(value, torch.Tensor):
            found[".".join(path)] = value
        elif depth < 20:
            rows = (
                value.items()
                if isinstance(value, dict)
                else enumerate(value)
                if isinstance(value, list | tuple)
                else ()
            )
            todo += [((*path, str(key)), child, depth + 1) for key, child in rows]
    return found


def pickles(draw: random.Random, work: Path) -> Iterator[tuple[str, Callable[[], Any], Callable[[Any], str | None]]]:
    """Of pickles alone."""
    seeds = [dict(entries(saved(one, p)))["archive/data.pkl"] for one in states() for p in (2, 3, 4, 5)]
    seeds += [
        pickle.dumps(one, p) for one in ([1, "a", (b"x", 2.5, None), {"k": {3}}], list(range(300))) for p in range(6)
    ]
    while True:
        raw = changed(draw.choice(seeds), seeds, draw)
        yield repr(raw), lambda raw=raw: read_pickle(raw, "x"), lambda made, raw=raw: compared_pickle(raw, made)  # type: ignore[misc]


def zips(draw: random.Random, work: Path) -> Iterator[tuple[str, Callable[[], Any], Callable[[Any], str | None]]]:
    """Of zips: any byte of the file, or the pickle within a zip that is right."""
    seeds, path = [saved(one, protocol) for one in states() for protocol in (2, 4)], work / "x.pt"
    parts = [entries(seed) for seed in seeds]
    within = [content for part in parts for name, content in part if name.endswith(".pkl")]
    while True:
        if draw.random() < 0.5:
            raw = changed(draw.choice(seeds), seeds, draw)
        else:
            raw = zipped([(n, changed(c, within, draw) if n.endswith(".pkl") else c) for n, c in draw.choice(parts)])
        yield raw.hex(), at(path, raw), lambda made: compared_torch(path, made)


def old(draw: random.Random, work: Path) -> Iterator[tuple[str, Callable[[], Any], Callable[[Any], str | None]]]:
    """Of files from before torch 1.6."""
    seeds, path = [saved(one, legacy=True) for one in states()], work / "x.pt"
    while True:
        raw = changed(draw.choice(seeds), seeds, draw)
        yield raw.hex(), at(path, raw), lambda made: compared_torch(path, made)


def at(path: Path, raw: bytes) -> Callable[[], Any]:
    """Writes the file now; reads all of it, by its own names, when it is called."""
    path.write_bytes(raw)
    return lambda: read_torch(str(path), key=".")


def distributed(
    draw: random.Random, work: Path
) -> Iterator[tuple[str, Callable[[], Any], Callable[[Any], str | None]]]:
    """Of distributed checkpoints: the metadata, or a byte of the chunks."""
    folder = work / "dcp"
    state = {"model": {"a": torch.arange(6.0), "b": torch.ones(2, 3).t()}, "step": 5}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=folder, no_dist=True)
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    while True:
        name = draw.choice([".metadata", ".metadata", *files])
        for path in folder.iterdir():
            path.unlink()
        for one, raw in files.items():
            (folder / one).write_bytes(changed(raw, [*files.values()], draw) if one == name else raw)
        yield name, lambda: surgery.open_checkpoint(folder), lambda made: ""


KINDS = {
    "pickles": (pickles, 0.55),
    "zips": (zips, 0.3),
    "files of old": (old, 0.1),
    "distributed": (distributed, 0.05),
}


def fuzz(count: int, seed: int = 0) -> dict[str, Found]:
    """What came of so many inputs, by kind."""
    found: dict[str, Found] = {}
    work = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        for kind, (inputs, share) in KINDS.items():
            draw, here = random.Random(f"{seed} {kind}"), found.setdefault(kind, Found())
            for _, (what, read, against) in zip(range(round(count * share)), inputs(draw, work), strict=False):
                try_one(here, what, read, against if here.read % COMPARED == 0 else None)
    finally:
        shutil.rmtree(work)
    return found


def try_one(here: Found, what: str, read: Callable[[], Any], against: Callable[[Any], str | None] | None) -> None:
    """Read one input, and count what came of it."""
    begun, made = time.process_time(), None
    try:
        made = read()
        here.read += 1
    except SurgeryError:
        here.refused += 1
        against = None
    except BaseException as error:
        here.wrong.append(f"{type(error).__name__}: {traceback.format_exc(limit=-3)}\n{what[:3000]}")
        return
    took = time.process_time() - begun
    here.slowest = max(here.slowest, took)
    if took > SLOW:
        here.wrong.append(f"{took:.1f} s: {what[:3000]}")
    if against and (said := against(made)) != "":
        here.compared += 1
        if said:
            here.wrong.append(f"{said}\n{what[:3000]}")


def main() -> None:
    """Print a table, and what went wrong."""
    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    begun = time.monotonic()
    found = fuzz(count, seed)
    say = sys.stdout.write
    say("| inputs | read | refused | compared | slowest, CPU | wrong |\n|---|---|---|---|---|---|\n")
    for kind, one in found.items():
        say(f"| {kind} | {one.read} | {one.refused} | {one.compared} | {one.slowest:.3f} s | {len(one.wrong)} |\n")
    total = sum(one.read + one.refused for one in found.values())
    say(f"{total} inputs in {time.monotonic() - begun:.0f} s, seed {seed}\n")
    wrong = [said for one in found.values() for said in one.wrong]
    for said, times in collections.Counter(said.split("\n")[0][:200] for said in wrong).most_common(20):
        say(f"{times} {said}\n")
    say("\n\n".join(wrong[:10]))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
