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
from ..files.model_config import impossible
from ..files.refs import has_scheme
from ..files.safetensors import encode_header
from ..lazy.tensor import has_arithmetic
from ..models.skeleton import first_words
from ..names import natural
from ..quantization.quantised import quantised
from ..quantization.settle import decoded
from ..surgeries.merging.own_lora import own_names
from .check import Check
from .collections import foreign_to_transformers
from .diffusers_class import loadable_in_diffusers


def loadable(checkpoint: Checkpoint) -> Check:
    """Ask the model's own class, through transformers' own loader, with no weight loaded and no remote code; of a
    pipeline, the class of each component; of a component, diffusers' class.
    """
    if checkpoint.parts:
        return _all_of({folder: loadable(part) for folder, part in checkpoint.parts.items()})
    if "_class_name" in checkpoint.config:
        return loadable_in_diffusers(checkpoint)
    if found := foreign_to_transformers(checkpoint):
        return Check("class", None, f"{found}: transformers has no class of its own for it")
    names = checkpoint.config.get("architectures") or []
    if not names:
        return Check("class", None, "config.json names no architecture")
    if find_spec("accelerate") is None:
        return Check("class", None, "transformers' meta device needs accelerate: pip install accelerate")
    if what := impossible(checkpoint.config, len(checkpoint.tensors)):
        return Check(
            "class", False, f"{names[0]} is not asked: {what}, and there are {len(checkpoint.tensors)} tensors"
        )
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
        seen, why = _in_16_bits(checkpoint), first_words(error)
        if seen is checkpoint:
            return Check("class", False, f"{names[0]} cannot load it: {why}")
        try:
            info, said = _asked(kind, seen), ", of what its codes mean in 16 bits: codes cannot be asked about here"
        except _REFUSALS as again:
            return Check("class", False, f"{names[0]} cannot load it: {first_words(again)}")
    own = own_names(checkpoint)
    rows = [f"{what.replace('_keys', '')}: {series(listed(found))}" for what, found in _complaints(info, own).items()]
    if rows:
        return Check("class", False, f"{names[0]} would not load it whole", tuple(rows))
    rest = f"; {len(own)} tensors of LoRA beside them are PEFT's to load" if own else ""
    return Check(
        "class", True, f"{names[0]} accepts every tensor: none missing, unexpected or of another shape{said}{rest}"
    )


def _all_of(found: Mapping[str, Check]) -> Check:
    """One answer of several."""
    answers = {one.ok for one in found.values()}
    ok = False if False in answers else True if True in answers else None
    rows = tuple(f"{folder}: {row}" for folder, one in found.items() for row in (one.detail, *one.where))
    said = "one of its components would not load whole" if ok is False else "its components' classes were asked"
    return Check("class", ok, said, rows)


_REFUSALS = (Exception,)  # classes and their configs raise those of many libraries


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
    """A local folder with the checkpoint's config and headers: its own, or a temporary one with one sparse file, of
    one on the Hub, and of files that the loader does not look for, such as variants and other formats.
    """
    found = checkpoint.stem == "model" and not (checkpoint.format or has_scheme(checkpoint.path))
    if found and not any(has_arithmetic(t) for t in checkpoint.tensors.values()):
        yield checkpoint.path
        return
    with tempfile.TemporaryDirectory() as folder:
        tensors = {name: (tensor.dtype, tensor.shape) for name, tensor in checkpoint.tensors.items()}
        header = encode_header(tensors, {"format": "pt"})
        with open(os.path.join(folder, "model.safetensors"), "wb") as stream:
            stream.write(header)
            stream.truncate(len(header) + sum(tensor.nbytes for tensor in checkpoint.tensors.values()))
        with open(os.path.join(folder, "config.json"), "wb") as stream:
            stream.write(json.dumps(checkpoint.config).encode())
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
