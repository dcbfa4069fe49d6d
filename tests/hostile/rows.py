"""A row of the table: a hostile thing, the commands that must refuse it, and what they must say."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commanded import practised
from handmade import tamed, write_adapter, write_tensors

import surgery

MODULES = {"model.layers.0.self_attn.o_proj": (16, 16)}
SHARD, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
MEMORY = 64 << 20  # bytes beyond those that a process has before
SECRET = "what lies outside"
OUTSIDE = "../outside"  # from where commands run; what lies in there is nobody's business

OF_CHECKPOINTS = (
    "inspect x", "verify x", "diff x good", "diff good x", "inspect x --json", "inspect x --tensors .* --json",
    "inspect x --map", "report x -o w/o.html", "reshard x -o w/o", "merge x adapter -o w/o", "split x -o w/o",
    "split-qkv x -o w/o --dry-run", "convert-files x -o w/o", "cast x -o w/o --dtype float16", "unmerge x -o w/o",
    "inject x -o w/o --rank 2 --target-modules o_proj", "dequantize x -o w/o", "layers x -o w/o --keep 0",
    "vocabulary x -o w/o --size 40", "tie x -o w/o", "blend x good -o w/o", "add good x -o w/o --prefix p.",
    "verify x --json", "verify x --base good --adapter adapter", "extract good x -o w/o --rank 2",
)  # fmt: skip
OF_ADAPTERS = (
    "inspect x", "inspect x --json", "merge good x -o w/o", "diff x adapter", "convert-adapter x -o w/o --to mlx",
    "resize-adapter x -o w/o --rank 2", "report x -o w/o.html", "verify merged --base good --adapter x",
    "combine x adapter -o w/o", "inspect x --tensors .*",
)  # fmt: skip

PHI3 = {
    "model_type": "phi3", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "architectures": ["Phi3ForCausalLM"], "vocab_size": 32, "intermediate_size": 24,
    "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1,
}  # fmt: skip
LAYER = "model.layers.0"
TENSORS = {
    "model.embed_tokens.weight": (32, 16), "lm_head.weight": (32, 16), "model.norm.weight": (16,),
    f"{LAYER}.input_layernorm.weight": (16,), f"{LAYER}.post_attention_layernorm.weight": (16,),
    f"{LAYER}.self_attn.qkv_proj.weight": (32, 16), f"{LAYER}.self_attn.o_proj.weight": (16, 16),
    f"{LAYER}.mlp.gate_up_proj.weight": (48, 16), f"{LAYER}.mlp.down_proj.weight": (16, 24),
}  # fmt: skip
Content = bytes | str | Callable[[Path], object] | None
Make = Callable[[Path], object]


@dataclass(frozen=True)
class Row:
    """`make` writes it into the folder where commands run, as `x`. Each of `refuse` must refuse it, with an error that
    has `names` in it, and in which `says` is found; each of `read` must take it, and say `says`. Of the commands
    `around` it matters that they do no harm. `stage`: what is found out while values are written leaves a stage.
    """

    name: str
    make: Make
    says: str
    refuse: tuple[str, ...] = ()
    names: str = ""
    around: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    stage: bool = False
    memory: int = MEMORY  # bytes that a command may take for it


def prepare(root: Path) -> Path:
    """What is good: the folder in `root` where commands run; beside it lies what is outside."""
    place, outside = root / "place", root / "outside"
    for folder in (place / "w", place / "tmp", outside):
        folder.mkdir(parents=True)
    (outside / "secret").write_text(SECRET)
    (base := place / "good").mkdir()
    write_tensors(base / SHARD, {name: ("BF16", shape) for name, shape in TENSORS.items()})
    (tamed(base) / "config.json").write_text(json.dumps(PHI3))
    shutil.copy(base / SHARD, outside / SHARD)
    opened, adapter = surgery.open_checkpoint(base), write_adapter(place / "adapter", MODULES)
    surgery.write(surgery.merge(opened, surgery.open_adapter(adapter), reversible=True), place / "merged")
    return place


def practise(place: Path) -> None:
    """The commands are done once with what is good, in this process: each row pays for itself alone."""
    here = Path.cwd()
    os.chdir(place)
    shutil.copytree("good", "x")
    try:
        for words in OF_CHECKPOINTS:
            practised(words.split())
            shutil.rmtree("w")
            os.mkdir("w")
    finally:
        os.chdir(here)
        empty(place)


def put(path: Path, content: Content) -> None:
    """A file with that content; None: no such file."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True, parents=True)
    if callable(content):
        content(path)
    elif content is not None:
        path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)


def made_of(like: str, files: Mapping[str, Content]) -> Make:
    """`x`: what is good and called `like`, with these files."""

    def make(place: Path) -> None:
        shutil.copytree(place / like, place / "x", symlinks=True)
        for name, content in files.items():
            put(place / "x" / name, content)

    return make


def checkpoint(name: str, file: str, content: Content, says: str, *more: str, **others: Any) -> Row:
    """A checkpoint with this file, which looking at it and writing it refuse, or the commands `more`."""
    refuse = more or ("inspect x", "reshard x -o w/o")
    files = {file: content, **others.pop("files", {})}
    others = {"names": file.rpartition("/")[2], "around": OF_CHECKPOINTS, **others}
    return Row(name, made_of("good", files), says, refuse, **others)


def adapter(name: str, file: str, content: Content, says: str, *more: str, **others: Any) -> Row:
    """An adapter with this file."""
    refuse = more or ("merge good x -o w/o",)
    others = {"names": file, "around": OF_ADAPTERS, **others}
    return Row(name, made_of("adapter", {file: content}), says, refuse, **others)


def read(place: Path, name: str) -> Any:
    """The JSON of a good file."""
    return json.loads((place / name).read_bytes())


def sparse(size: int, begin: bytes = b"") -> Content:
    """A file that takes no room, and says that it is that large."""

    def make(path: Path) -> None:
        path.write_bytes(begin)
        os.truncate(path, size)

    return make


def link(target: str) -> Content:
    """A link."""
    return lambda path: path.symlink_to(target)


def empty(place: Path, *folders: str) -> None:
    """Nothing is left in these folders of `place`; without any, neither of a row, nor of what commands wrote."""
    left = [path for folder in folders or ("w", "tmp") for path in (place / folder).iterdir()]
    for path in [*left, *(() if folders else place.glob("[xy]*"))]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
