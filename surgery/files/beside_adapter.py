"""What lies beside an adapter's own two files: the litter of a training, which is passed over, and weights, which
never are.

Some trainers save what they train beside LoRA in a file of their own: non_lora_state_dict.bin, mm_projector.bin,
embeddings.safetensors. Whoever merges the LoRA alone loses it. Names decide; nothing is opened.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch

from ..errors import NotACheckpoint
from .adapter_weights import Weights, is_weights, read_weights
from .folder import Folder, PathLike, locate

WEIGHTS = tuple(
    "*.safetensors *.bin *.pt *.pth *.ckpt *.pkl *.pickle *.npz *.npy *.h5 *.msgpack *.ot *.gguf *.ggml *.nemo *.distcp"
    " *.onnx".split()
)
# The state of a training, and what describes it, that looks like weights by its ending.
LITTER = tuple(
    """
    training_args.bin optimizer*.pt optimizer*.bin scheduler*.pt scheduler*.bin lr_scheduler*.pt scaler*.pt
    grad_scaler*.pt rng_state*.pth rng_state*.pt random_states_*.pkl sampler*.bin dl_state_dict*.bin callbacks*.pt
    loss_history*.pt events.out.tfevents.*
    """.split()
)
LITTER_FOLDERS = tuple(
    "checkpoint-* global_step* runs logs wandb mlruns lightning_logs optimizer_* tensorboard .* __pycache__ eval*"
    " samples".split()
)
# Of a model that lies in the same folder: whether that is the adapter's base is known where the base is at hand.
MODEL = ("model*.safetensors", "pytorch_model*.bin", "consolidated*", "diffusion_pytorch_model*")
DEPTH = 4


@dataclass(frozen=True, slots=True)
class Beside:
    """Files that look like weights, and folders that hold models or adapters of their own; by path in the folder."""

    weights: tuple[str, ...]
    others: tuple[str, ...]


def beside(folder: Folder, own: tuple[str, ...]) -> Beside:
    """What lies in the adapter's folder and looks like weights, but for its `own` files."""
    weights, others = list[str](), list[str]()
    for path, is_file in _inside(folder):
        name = path.rpartition("/")[2]
        if not is_file:
            others.append(f"{path}/")
        elif path not in own and _looks(name):
            weights.append(path)
    return Beside(tuple(sorted(weights)), tuple(sorted(others)))


def opened(folder: Folder, path: PathLike) -> Weights:
    """The file of weights at `path`, in the adapter's folder or elsewhere. Raises NotACheckpoint where it is none that
    can be read.
    """
    text = str(path)
    inside = not os.path.isabs(text) and ".." not in text.split("/") and folder.has(text)
    place, name = (folder, text) if inside else locate(path)
    if not is_weights(name):
        this = "a file of another format" if name else "a folder"
        what = f"a file of weights is read beside an adapter, and this is {this}"
        tip = f"name a file of safetensors, or one that torch saved, such as {place.at('embeddings.safetensors')}"
        raise NotACheckpoint(what, where=[place.at(name)], help=tip)
    return read_weights(place, name)


def is_model(path: str) -> bool:
    """Whether a file in the adapter's folder is called like the weights of a whole model."""
    return "/" not in path and any(fnmatch(path, one) for one in MODEL)


def is_litter(name: str) -> bool:
    """Whether a file is called like what only a training needs."""
    return any(fnmatch(name, one) for one in LITTER)


def _looks(name: str) -> bool:
    return any(fnmatch(name.lower(), one) for one in WEIGHTS) and not is_litter(name)


def _inside(folder: Folder) -> Iterator[tuple[str, bool]]:
    """Every file, and each folder that is a model or an adapter of its own, but for folders of litter.

    A folder is entered once, by the shortest of its paths: what links lead to is seen, and links among folders cost
    nothing.
    """
    todo, entered = deque([("", 0)]), {os.path.realpath(folder.path)}
    while todo:
        place, depth = todo.popleft()
        for name in folder.names(place):
            path = f"{place}/{name}" if place else name
            real = os.path.realpath(folder.at(path))
            if folder.has(path):
                yield path, True
            elif any(fnmatch(name, one) for one in LITTER_FOLDERS):
                continue
            elif any(folder.has(f"{path}/{one}") for one in ("config.json", "adapter_config.json")):
                yield path, False
            elif depth < DEPTH and real not in entered:
                entered.add(real)
                todo.append((path, depth + 1))
