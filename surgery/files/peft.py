"""PEFT adapter directories: `adapter_config.json` and `adapter_model.safetensors`.

`open_peft` reads headers, and each file once for its digest; it executes nothing. Names lose what PEFT puts around
them: the prefix `base_model.model.`, the adapter's own name (`.default.`), `base_layer.` and `modules_to_save.` inside.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Concatenate, ParamSpec, TypeVar

from ..errors import AdapterError, FormatError, NotACheckpoint, listed, series
from ..evaluation.read import sha256
from ..lazy.low_rank import LowRank
from ..lazy.tensor import File, Input, Tensor
from ..notebook import shown, tensor_table, told_of
from ..opened import takes_opened
from ..step import Recipe
from .adapter_config import check_config
from .adapter_weights import Weights, read_weights
from .beside_adapter import Beside, opened
from .beside_adapter import beside as found
from .folder import Folder, PathLike, folder_at
from .peft_parts import part_of
from .spare import is_spare
from .strict import MEND, parse_object
from .training import for_training
from .wrappers import ANY

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
SHARED = "base_model"  # the module of what all modules share
# Before and after the adapter's own name may stand what FSDP and its like put around a factor.
_AROUND = rf"(?:\.(?:{ANY}))*"
_LORA = re.compile(
    rf"(?P<module>.+)\.(?P<part>lora_[A-Za-z_]+){_AROUND}(?:\.(?!weight$|bias$)[^.]+)?{_AROUND}(?:\.(?P<kind>weight|bias))?"
)
_FACTORS = {"lora_A", "lora_B", "lora_E", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"}
# A name that ends in `base_layer` keeps that: LoRA on several parameters of one module lies in as many nested wrappers.
# Rows of an embedding that were trained, and the module whose rows they are.
TOKENS = re.compile(r"(?P<module>.+?)(?:\.token_adapter)?\.trainable_tokens_delta(?:\.[^.]+)?")
_WRAPPERS = re.compile(
    r"\.(?:base_layer(?!(?:\.base_layer)*$)|original_module|modules_to_save(?:\.[^.]+)?|ln_tuning_layers|default)(?=\.)"
)


@dataclass(frozen=True)
class Adapter:
    """An adapter: opened by `open_adapter`, or made by a surgery.

    `lora` maps a base module to its tensors by part (`lora_A.weight`, `lora_B.weight`, or what else the kind has);
    `shared` are those that all modules share, by part; `whole` maps the name of a base tensor to the tensor that takes
    its place (modules_to_save, trained biases). `names` gives each one's name in the file, by base name:
    `module.part`, the shared part's, or the base tensor's name.
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
    beside: tuple[str, ...] = ()  # files of weights that were read along with its own
    unread: tuple[
        str, ...
    ] = ()  # such files in its folder that were not, and nobody said that they are none of its own
    shared: Mapping[str, Tensor] = field(default_factory=dict)
    deltas: Mapping[str, LowRank] = field(default_factory=dict)  # by base tensor: what LoRA on such parameters comes to
    files: Mapping[str, File | bytes] = field(default_factory=dict)  # that go along, besides those in its folder
    costs: Mapping[str, Any] = field(default_factory=dict)  # what was given up to make it, for the report
    format: Mapping[str, Any] = field(default_factory=dict)  # of another tool: whose, what told it, what was said of it
    dialect: str = ""  # the tool as whose files call modules they are called here; "" where it is as the base does
    recipe: Recipe = field(default_factory=Recipe, compare=False)  # how it was made

    def __repr__(self) -> str:
        kind, size = self.config.get("peft_type", "of no type"), sum(t.nbytes for t in self.tensors.values())
        return f"<Adapter {kind}: {len(self.tensors)} tensors, {size} bytes, {self.path}>"

    def _repr_html_(self) -> str:
        said = {"modules": len(self.lora), **{key: self.config.get(key) for key in ("r", "lora_alpha", "use_dora")}}
        title = f"Adapter {self.config.get('peft_type', 'of no type')}"
        return shown(title, {"path": self.path, **said, **told_of(self)}, tensor_table(self.tensors))

    def pipe(
        self, function: Callable[Concatenate[Adapter, _Given], _Result], *args: _Given.args, **kwargs: _Given.kwargs
    ) -> _Result:
        """`function(self, …)`: `adapter.pipe(resize_adapter, rank=8).pipe(write, "small")`."""
        return function(self, *args, **kwargs)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by their names in the file."""
        parts = {f"{module}.{part}": tensor for module, parts in self.lora.items() for part, tensor in parts.items()}
        every = (*parts.items(), *self.shared.items(), *self.whole.items())
        return {self.names[key]: tensor for key, tensor in every}

    @property
    def digest(self) -> str:
        """SHA-256 over config and weights as they were opened, to the last bit; what was read beside them is not in
        it.
        """
        own = [source for source in self.inputs if source.path not in self.beside]
        return hashlib.sha256("".join(f.digest for i in own for f in i.files).encode()).hexdigest()


@takes_opened
def is_adapter(path: PathLike | Folder) -> bool:
    """Whether the folder holds an adapter, and no model of its own."""
    folder = folder_at(path)
    return folder is not None and folder.has(CONFIG) and not folder.has("config.json")


def open_peft(folder: Folder, name: str = "", beside: Sequence[PathLike] | None = None) -> Adapter:
    """The adapter in the folder; `name` is the file that was meant instead. `beside` is as for `open_adapter`. Raises
    NotACheckpoint, FormatError, HubError.
    """
    if name:
        tip = "its tensors are called as no adapter's are: pass a PEFT folder, or the file of an adapter"
        raise NotACheckpoint("no adapter is here", where=[folder.at(name)], help=tip)
    if not folder.has(CONFIG):
        raise NotACheckpoint(
            f"no adapter is here: there is no {CONFIG}",
            where=[folder.path],
            help=_nearby(folder),
        )
    weights = next((name for name in (WEIGHTS, PICKLED) if folder.has(name)), None)
    if weights is None:
        tip = "save it once with PEFT's save_pretrained, which writes safetensors"
        raise NotACheckpoint(f"the adapter has no {WEIGHTS}", where=[folder.path], help=tip)
    config = parse_object(folder.read(CONFIG), lambda what: FormatError(what, where=[folder.at(CONFIG)], help=MEND))
    check_config(config, folder.at(CONFIG))
    held = read_weights(folder, weights)
    config_file = replace(folder.file(CONFIG), digest=sha256(folder.file(CONFIG)), whole=True)
    source = replace(held.source, path=folder.path, files=(config_file, *held.source.files))
    adapter = parse_adapter(folder.path, config, held.tensors)
    adapter = replace(adapter, inputs=(source,), metadata=held.metadata, notes=(*adapter.notes, *held.notes))
    return (
        _with_rest(adapter, found(folder, (CONFIG, weights)))
        if beside is None
        else _along(adapter, [opened(folder, one) for one in beside])
    )


def _with_rest(adapter: Adapter, rest: Beside) -> Adapter:
    """The adapter with what lies beside it told."""
    note = f"models and adapters of their own lie in {adapter.path}, and are none of it: {series(listed(rest.others))}"
    return replace(adapter, unread=rest.weights, notes=(*adapter.notes, *([note] if rest.others else [])))


def _along(adapter: Adapter, files: Sequence[Weights]) -> Adapter:
    """The adapter with the tensors of files that were trained along. Raises FormatError where two mean the same,
    AdapterError for LoRA.
    """
    whole, names = dict(adapter.whole), dict(adapter.names)
    sources = [one.source for one in files]
    for one, source in zip(files, sources, strict=True):
        more = parse_adapter(source.path, adapter.config, one.tensors)
        if more.lora:
            tip = f"give it as an adapter of its own, in a folder with its {CONFIG} and called {WEIGHTS}"
            raise AdapterError(
                "a file beside an adapter holds LoRA of another one",
                where=[source.path, *listed(sorted(more.lora))],
                help=tip,
            )
        if both := sorted(more.whole.keys() & whole.keys()):
            where = [f"{adapter.path}: {names[both[0]]}", f"{source.path}: {more.names[both[0]]}"]
            raise FormatError("two adapter tensors mean the same", where=where, help="keep one of them")
        whole |= more.whole
        names |= more.names
    note = [f"read beside {adapter.path}: {', '.join(listed([source.path for source in sources]))}"] if sources else []
    return replace(
        adapter,
        whole=whole,
        names=names,
        inputs=(*adapter.inputs, *sources),
        beside=tuple(source.path for source in sources),
        notes=(*adapter.notes, *note),
    )


def parse_adapter(path: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Adapter:
    """An adapter from its config and its tensors, by name in the file."""
    lora: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    shared: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    own = part_of(str(config.get("peft_type")))
    spare = {name: one for name, one in tensors.items() if for_training(name) or is_spare(name, tensors)}
    for name, tensor in tensors.items():
        if name in spare:
            continue
        if own and (found := own.fullmatch(name)):
            part = found["part"].replace(".default", "")
            module = base_name(found["module"])
            key = part if module == SHARED else f"{module}.{part}"
            place = shared if module == SHARED else lora.setdefault(module, {})
        elif found := _LORA.fullmatch(name):
            module = base_name(found["module"])
            part = _part(name, found)
            place, key = lora.setdefault(module, {}), f"{module}.{part}"
        else:
            place, key = whole, base_name(name)
            part = key
        if part in place:
            raise FormatError(
                "two adapter tensors mean the same", where=[f"{path}: {names[key]}", name], help="keep one of them"
            )
        place[part], names[key] = tensor, name
    if not tensors:
        raise AdapterError(
            "the adapter holds no tensor", where=[path], help="it was saved from an untrained or ungathered model"
        )
    return Adapter(path, config, lora, whole, names, dropped=spare, shared=shared)


def _part(name: str, found: re.Match[str]) -> str:
    """What a tensor is of its module's LoRA: a factor without the adapter's name, anything else by all that stands
    behind the module.
    """
    if found["part"] not in _FACTORS:
        return name[found.start("part") :]
    return f"{found['part']}.{found['kind']}" if found["kind"] else found["part"]


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


def module_of(name: str) -> str:
    """The module of a tensor that an adapter holds whole, or of the rows that it trained."""
    found = TOKENS.fullmatch(name)
    return found["module"] if found else name.rpartition(".")[0].removesuffix(".token_adapter")


def _nearby(folder: Folder) -> str:
    """Adapters in subfolders, which PEFT writes for several adapters and trainers for checkpoints."""
    if inside := [d for d in folder.names() if folder.has(f"{d}/{CONFIG}")]:
        return f"adapters are in {', '.join(map(folder.at, inside))}"
    if folder.has("config.json"):
        return "this is a model; the base comes first: surgery merge BASE ADAPTER -o OUT"
    return f"an adapter is a folder with {CONFIG} and {WEIGHTS}, as PEFT's save_pretrained writes it"
