"""What becomes of a repository's files: sent, copied there, left as they are, deleted as stale."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ..arguments import in_both
from ..errors import listed
from ..files.peft import CONFIG as ADAPTER_CONFIG
from ..files.strict import any_value
from .content import Item, Local, PushPlan, Remote, raw_of
from .repository import remote_file

if TYPE_CHECKING:
    from huggingface_hub import HfApi


_WEIGHTS = re.compile(
    r"(?P<stem>.+?)(?:\.safetensors)?(?:-\d+-of-\d+)?\.safetensors|(?P<index>.+?)\.safetensors\.index(?:\.[\w.-]+)?\.json"
)
_OTHERS = re.compile(r"[^/]+\.(?:safetensors|bin|pt|pth|ckpt|h5|msgpack|gguf)")
_ADAPTER = re.compile(r"adapter_model[^/]*\.safetensors")
_BESIDE = re.compile(  # what loaders read beside the weights, and take for that of the model that is there
    r"(?:generation_config|tokenizer|special_tokens_map|added_tokens|vocab|merges|spiece|sentencepiece|chat_template"
    r"|preprocessor_config|processor_config)[^/]*|[^/]+\.(?:model|tiktoken)"
)


def compared(plan: PushPlan, parent: str, remote: Mapping[str, Remote]) -> PushPlan:
    """The plan for a repository whose `parent` holds the files `remote`. Only what may be equal is hashed: files of
    equal size.
    """
    contents = {(r.nbytes, r.sha256): path for path, r in remote.items() if r.sha256}
    sizes = {nbytes for nbytes, _ in contents}
    send, copy, there = [], [], []
    for path, local in sorted(plan.files.items()):
        item = Item(path, local.nbytes)
        if path in remote and remote[path].holds(local):
            there.append(item)
        elif local.nbytes in sizes and (local.nbytes, local.sha256) in contents:
            copy.append(replace(item, source=contents[local.nbytes, local.sha256]))
        else:
            send.append(item)
    plan = replace(plan, parent=parent, remote=remote, send=tuple(send), copy=tuple(copy), there=tuple(there))
    return with_others(plan, plan.files)


def with_others(plan: PushPlan, files: Iterable[str]) -> PushPlan:
    """The plan with what becomes of the repository's files that are none of `files`."""
    names = set(files)
    others = {path: Item(path, r.nbytes) for path, r in sorted(plan.remote.items()) if path not in names}
    stale = _stale(names, others) if plan.stale else set()
    odd = [path for path in others if path not in stale and _OTHERS.fullmatch(path)]
    return replace(
        plan,
        delete=tuple(item for path, item in others.items() if path in stale),
        keep=tuple(item for path, item in others.items() if path not in stale),
        notes=(
            *plan.notes,
            *(
                [f"the repository has other weights, too, which are left alone: {', '.join(listed(odd))}"]
                if odd
                else []
            ),
            *map(in_both, _of_adapter(plan, _replaced_adapter(names, others))),
        ),
    )


def _of_adapter(plan: PushPlan, adapter: set[str]) -> list[str]:
    if not adapter:
        return []
    files = ", ".join(listed(sorted(adapter)))
    if plan.stale:
        return [f"the repository's adapter is deleted, since transformers would load it on top of this model: {files}"]
    return [
        "with --keep, transformers WILL LOAD THE REPOSITORY'S ADAPTER ON TOP of this model, which may hold it already:"
        f" {files}"
    ]


def _replaced_adapter(files: set[str], others: Iterable[str]) -> set[str]:
    """The adapter among the other files, where what is pushed is a model: transformers loads one that lies beside a
    model.
    """
    others = set(others)
    if "config.json" not in files or ADAPTER_CONFIG in files or ADAPTER_CONFIG not in others or not weights_in(files):
        return set()
    return {path for path in others if path == ADAPTER_CONFIG or _ADAPTER.fullmatch(path)}


def of_another_model(api: HfApi, plan: PushPlan, files: Mapping[str, Local]) -> list[str]:
    """A note where the repository holds a model of another type than `files`, with what stays of it that loaders
    read.
    """
    if not {"config.json"} <= files.keys() & plan.remote.keys() or not weights_in(plan.remote):
        return []
    if plan.remote["config.json"].holds(files["config.json"]):
        return []
    ours = _model_type(raw_of(files["config.json"]))
    theirs = _model_type(remote_file(api, plan.repo_id, plan.parent, "config.json"))
    if not ours or not theirs or ours == theirs:
        return []
    left = sorted(
        path for path in plan.remote if path not in files and _BESIDE.fullmatch(path) and not _OTHERS.fullmatch(path)
    )
    kept = f"; kept of that one, and read with the new weights: {', '.join(listed(left))}" if left else ""
    return [f"this is a model of type {ours}, and the one that the repository holds is of type {theirs}{kept}"]


def _model_type(config: bytes) -> str:
    """The type that a config names; "" where it is none that can be read."""
    try:
        content = any_value(config)
    except ValueError:
        return ""
    return str(content.get("model_type") or "") if isinstance(content, dict) else ""


def weights_in(files: Iterable[str]) -> list[str]:
    """Those of a repository's files that are weights, or an index of weights; none of those in folders."""
    return [path for path in files if _OTHERS.fullmatch(path) or _stem(path)]


def _stale(files: set[str], others: Iterable[str]) -> set[str]:
    """Of the other files, what loaders would take for parts of the pushed weights, or add to them, and what surgery
    noted of them.
    """
    stems = {stem for path in files if (stem := _stem(path))}
    same = {path for path in others if _stem(path) in stems or path.startswith(".surgery/")}
    return same | _replaced_adapter(files, others)


def _stem(path: str) -> str | None:
    """What the weights are called whose shard or index the file is; None for other files, and those in folders."""
    found = None if "/" in path else _WEIGHTS.fullmatch(path)
    return (found["stem"] or found["index"]) if found else None
