"""Whether the class that config.json names accepts a checkpoint: transformers' own loader says so, on the meta device.

No weight is loaded, and no remote code is run.
"""

from __future__ import annotations

import json
import logging as standard
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import SurgeryError, listed, series
from ..files.index import encode_index
from ..files.refs import has_scheme
from ..files.safetensors import encode_header
from ..lazy.dtypes import Dtype
from ..lazy.tensor import Shape, has_arithmetic
from ..names import natural
from ..quantization.quantised import quantised
from ..quantization.settle import decoded
from ..surgeries.merging.own_lora import own_names
from .check import Check


def loadable(checkpoint: Checkpoint) -> Check:
    """Ask the model's own class, through transformers' own loader, with no weight loaded and no remote code."""
    names = checkpoint.config.get("architectures") or []
    if not names:
        return Check("class", None, "config.json names no architecture")
    if find_spec("accelerate") is None:
        return Check("class", None, "transformers' meta device needs accelerate: pip install accelerate")
    import transformers

    kind: Any = getattr(transformers, str(names[0]), None)
    if kind is None or not hasattr(kind, "from_pretrained"):
        return Check(
            "class", None, f"transformers {transformers.__version__} has no class {names[0]}; remote code is never run"
        )
    seen, said = checkpoint, ""
    try:
        info = _asked(kind, checkpoint)
    except _REFUSALS as error:
        seen, why = _in_16_bits(checkpoint), str(error).splitlines()[0]
        if seen is checkpoint:
            return Check("class", False, f"{names[0]} cannot load it: {why}")
        try:
            info, said = _asked(kind, seen), ", of what its codes mean in 16 bits: codes cannot be asked about here"
        except _REFUSALS as again:
            return Check("class", False, f"{names[0]} cannot load it: {str(again).splitlines()[0]}")
    own = own_names(checkpoint)
    rows = [f"{what.replace('_keys', '')}: {series(listed(found))}" for what, found in _complaints(info, own).items()]
    if rows:
        return Check("class", False, f"{names[0]} would not load it whole", tuple(rows))
    rest = f"; {len(own)} tensors of LoRA beside them are PEFT's to load" if own else ""
    return Check(
        "class", True, f"{names[0]} accepts every tensor: none missing, unexpected or of another shape{said}{rest}"
    )


_REFUSALS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError)


def _asked(kind: Any, checkpoint: Checkpoint) -> Mapping[str, Any]:
    """What the class says of the files, without a word of its own. Raises what it raises."""
    import transformers

    logging: Any = transformers.logging
    level, bars, below = logging.get_verbosity(), logging.is_progress_bar_enabled(), standard.root.manager.disable
    standard.disable(standard.WARNING)  # of what it imports, such as kernels that bitsandbytes looks for
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with _as_files(checkpoint) as folder:
            _, info = kind.from_pretrained(
                folder,
                device_map="meta",
                output_loading_info=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # they are told by name, and not raised without
            )
            return dict(info)
    finally:
        standard.disable(below)
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _in_16_bits(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as what its codes mean; itself, where it has none that are read."""
    with suppress(SurgeryError):
        return decoded(checkpoint, quantised(checkpoint))
    return checkpoint


@contextmanager
def _as_files(checkpoint: Checkpoint) -> Iterator[str]:
    """A local folder with the checkpoint's config and headers: its own, or, of one on the Hub, a temporary one of
    sparse files.
    """
    if not has_scheme(checkpoint.path) and not any(has_arithmetic(t) for t in checkpoint.tensors.values()):
        yield checkpoint.path
        return
    with tempfile.TemporaryDirectory() as folder:
        members: dict[str, dict[str, tuple[Dtype, Shape]]] = {}
        for name, tensor in checkpoint.tensors.items():
            members.setdefault(checkpoint.weight_map[name], {})[name] = (tensor.dtype, tensor.shape)
        for shard, tensors in members.items():
            header = encode_header(tensors, {"format": "pt"})
            os.makedirs(os.path.dirname(path := os.path.join(folder, shard)), exist_ok=True)
            with open(path, "wb") as stream:
                stream.write(header)
                stream.truncate(len(header) + sum(checkpoint.tensors[name].nbytes for name in tensors))
        files = {"config.json": json.dumps(checkpoint.config).encode()}
        if members.keys() != {checkpoint.index_name.replace(".index.json", "")}:
            files[checkpoint.index_name] = encode_index({}, checkpoint.weight_map)
        for path, raw in files.items():
            with open(os.path.join(folder, path), "wb") as stream:
                stream.write(raw)
        yield folder


def _told(found: Any) -> str:
    """A tensor's name, or (name, shape in the files, shape in the class) in words."""
    if isinstance(found, tuple):
        name, here, there = found
        return f"{name} is {tuple(here)}, the class has {tuple(there)}"
    return str(found)


def _complaints(info: Mapping[str, Any], own: Sequence[str]) -> dict[str, list[str]]:
    """What the class misses, does not know, or has in another shape; the checkpoint's own LoRA is no tensor of a
    class.
    """
    found = {
        what: sorted(map(_told, info.get(what) or ()), key=natural)
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    found["unexpected_keys"] = [name for name in found["unexpected_keys"] if name not in own]
    return {what: names for what, names in found.items() if names}
