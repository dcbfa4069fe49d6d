"""PEFT adapter directories: `adapter_config.json` and `adapter_model.safetensors`.

`open_adapter` reads headers, and each file once for its digest; it executes nothing. Names lose what PEFT puts around
them: the prefix `base_model.model.`, the adapter's own name (`.default.`), `base_layer.` and `modules_to_save.` inside.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ..errors import AdapterError, FormatError, NotACheckpoint
from ..tensor import File, Input, LowRank, Tensor
from .safetensors import read_header, tensors_of
from .strict import read_object

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
_LORA = re.compile(r"(?P<module>.+)\.(?P<part>lora_[A-Za-z_]+)(?:\.(?!weight$|bias$)[^.]+)?(?:\.(?P<kind>weight|bias))?")
# A name that ends in `base_layer` keeps that: LoRA on several parameters of one module lies in as many nested wrappers.
# Beside a module's trained tensor PEFT writes the frozen one and the trained one again where it saves embeddings or biases.
_SPARE = re.compile(r"\.(?:original_module|modules_to_save)(?=\.)")
# Rows of an embedding that were trained, and the module whose rows they are.
TOKENS = re.compile(r"(?P<module>.+?)(?:\.token_adapter)?\.trainable_tokens_delta(?:\.[^.]+)?")
_WRAPPERS = re.compile(r"\.(?:base_layer(?!(?:\.base_layer)*$)|original_module|modules_to_save(?:\.[^.]+)?|default)(?=\.)")


@dataclass(frozen=True)
class Adapter:
    """An adapter: opened by `open_adapter`, or made by a surgery.

    `lora` maps a base module to its tensors by part (`lora_A.weight`, `lora_B.weight`, …); `whole` maps the name of a base
    tensor to the tensor that takes its place (modules_to_save, trained biases). `names` gives each one's name in the file, by
    base name: `module.part`, or the base tensor's name.
    """

    path: str
    config: Mapping[str, Any]
    lora: Mapping[str, Mapping[str, Tensor]]
    whole: Mapping[str, Tensor]
    names: Mapping[str, str]
    inputs: tuple[Input, ...] = ()
    dropped: Mapping[str, Tensor] = field(default_factory=dict)  # of the inputs, by name in the file
    metadata: Mapping[str, str] | None = None  # of the file
    history: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    parameters: frozenset[str] = frozenset()  # those of `lora` that are parameters of a module, and not modules
    deltas: Mapping[str, LowRank] = field(default_factory=dict)  # by base tensor: what LoRA on such parameters comes to

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by their names in the file."""
        parts = {f"{module}.{part}": tensor for module, parts in self.lora.items() for part, tensor in parts.items()}
        return {self.names[key]: tensor for key, tensor in (*parts.items(), *self.whole.items())}

    @property
    def digest(self) -> str:
        """SHA-256 over config and weights as they were opened, to the last bit."""
        return hashlib.sha256("".join(f.digest for i in self.inputs for f in i.files).encode()).hexdigest()


def is_adapter(path: str | os.PathLike[str]) -> bool:
    """Whether the folder holds an adapter, and no model of its own."""
    path = os.fspath(path)
    return os.path.isfile(os.path.join(path, CONFIG)) and not os.path.isfile(os.path.join(path, "config.json"))


def open_adapter(path: str | os.PathLike[str]) -> Adapter:
    """The adapter in the folder `path`. Raises NotACheckpoint, FormatError."""
    path = os.path.abspath(os.fspath(path))
    if not os.path.isdir(path) or not os.path.isfile(os.path.join(path, CONFIG)):
        raise NotACheckpoint(f"no adapter is here: there is no {CONFIG}", where=[path], help=_nearby(path))
    weights = os.path.join(path, WEIGHTS)
    if not os.path.isfile(weights):
        pickled = os.path.isfile(os.path.join(path, "adapter_model.bin"))
        save = "save it once with PEFT's save_pretrained, which writes safetensors"
        tip = f"a pickle can run code, so we do not open it; where you trust it, load the adapter with PEFT and {save}" if pickled else save
        raise NotACheckpoint(f"the adapter has no {WEIGHTS}", where=[path], help=tip)
    config_path = os.path.join(path, CONFIG)
    config = read_object(config_path)
    file, header = read_header(weights)
    file = File(file.path, file.size, file.mtime_ns, digest_of(weights))
    status = os.stat(config_path)
    files = (File(config_path, status.st_size, status.st_mtime_ns, digest_of(config_path)), file)
    tensors = tensors_of(file, header)
    return replace(parse_adapter(path, config, tensors), inputs=(Input("adapter", path, files, tensors),), metadata=header.metadata)


def parse_adapter(path: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Adapter:
    """An adapter from its config and its tensors, by name in the file."""
    lora: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    spare = {name: tensor for name, tensor in tensors.items() if _SPARE.search(name) and _SPARE.sub("", name) in tensors}
    for name, tensor in tensors.items():
        if name in spare:
            continue
        found = _LORA.fullmatch(name)
        if found:
            module = base_name(found["module"])
            part = f"{found['part']}.{found['kind']}" if found["kind"] else found["part"]
            place, key = lora.setdefault(module, {}), f"{module}.{part}"
        else:
            place, key = whole, base_name(name)
            part = key
        if part in place:
            raise FormatError("two adapter tensors mean the same", where=[f"{path}: {names[key]}", name], help="keep one of them")
        place[part], names[key] = tensor, name
    if not tensors:
        raise AdapterError("the adapter holds no tensor", where=[path], help="it was saved from an untrained or ungathered model")
    return Adapter(path, config, lora, whole, names, dropped=spare)


def file_name(key: str, like: Adapter) -> str:
    """What a tensor is called in an adapter's file: with PEFT's prefix, unless the adapter `like` does without it."""
    bare = like.names and not any(name.startswith(PREFIX) for name in like.names.values())
    return key if bare else f"{PREFIX}{key}"


def encode_config(config: Mapping[str, Any]) -> bytes:
    """adapter_config.json as PEFT writes it."""
    return json.dumps(config, indent=2, sort_keys=True).encode()


def base_name(name: str) -> str:
    """A name in an adapter file as the base calls it: without PEFT's prefix and wrappers."""
    return _WRAPPERS.sub("", "." + name.removeprefix(PREFIX)).removeprefix(".")


def digest_of(path: str) -> str:
    """SHA-256 of a whole file: the one place where adapter-sized data is read at plan time."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _nearby(path: str) -> str | None:
    """Adapters in subfolders, which PEFT writes for several adapters and trainers for checkpoints."""
    if not os.path.isdir(path):
        return "no such folder" if not os.path.exists(path) else "pass the folder, not the file"
    inside = sorted(d for d in os.listdir(path) if os.path.isfile(os.path.join(path, d, CONFIG)))
    if inside:
        return f"adapters are in {', '.join(os.path.join(path, d) for d in inside)}"
    if os.path.isfile(os.path.join(path, "config.json")):
        return "this is a model; the base comes first: surgery merge BASE ADAPTER -o OUT"
    return f"an adapter is a folder with {CONFIG} and {WEIGHTS}, as PEFT's save_pretrained writes it"
