"""What an injected adapter copies whole: the modules that are asked for, and the heads that PEFT trains along for the
class's task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...checkpoint import Checkpoint
from ...errors import NothingMatched, NotSupported, listed, nearest
from ...lazy.tensor import Tensor
from ...models.families import NOT_FROM_TEXT
from ...models.names_v5 import in_memory, renames_of
from ...names import natural
from .modules import tied, told

# Ends of class names -> PEFT's task, and the heads that it then trains along, as peft_model.py adds them to
# modules_to_save.
_TASKS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "ForCausalLM": ("CAUSAL_LM", ()),
    "LMHeadModel": ("CAUSAL_LM", ()),
    "ForConditionalGeneration": ("SEQ_2_SEQ_LM", ()),  # of an encoder-decoder; vision and text together have no task
    "ForSequenceClassification": ("SEQ_CLS", ("classifier", "score")),
    "ForTokenClassification": ("TOKEN_CLS", ("classifier", "score")),
    "ForQuestionAnswering": ("QUESTION_ANS", ("qa_outputs",)),
}


def task_of(base: Checkpoint, modules_to_save: Sequence[str]) -> tuple[str | None, list[str], dict[str, Tensor]]:
    """PEFT's name for what the class does, the ends of names of modules that are copied, and their tensors. Raises
    NothingMatched.

    No task where its head is not stored: PEFT would look for a trained one in the adapter. Of tied modules, each has
    a copy.
    """
    renames = renames_of(base.config)
    stored = {**base.tensors, **{name: base.tensors[holder] for name, holder in tied(base).items()}}
    tensors = {in_memory(name, renames): tensor for name, tensor in stored.items()}
    modules = list(dict.fromkeys(above for name in tensors for above in around(name)))
    kind = str((base.config.get("architectures") or [""])[0])
    task, heads = next((found for end, found in _TASKS.items() if kind.endswith(end)), (None, ()))
    if task == "SEQ_2_SEQ_LM" and (
        not base.config.get("is_encoder_decoder") or base.config.get("model_type") in NOT_FROM_TEXT
    ):
        task = None
    if heads and not any(module.endswith(heads) for module in modules):
        task, heads = None, ()
    if idle := [name for name in modules_to_save if not any(module.endswith(name) for module in modules)]:
        near = nearest(idle[0], {m.rpartition(".")[2] for m in modules})
        tip = f"the nearest names are {', '.join(near)}" if near else "surgery inspect --tensors '.*' lists the names"
        raise NothingMatched(f"no module of the base is called {', '.join(idle)}", where=[base.path], help=tip)
    ends = list(dict.fromkeys((*modules_to_save, *heads)))
    saved = {name: tensor for name, tensor in tensors.items() if is_copied(ends, name.rpartition(".")[0])}
    _check_saved(base, saved)
    return task, ends, saved


def around(name: str) -> list[str]:
    """The modules that a tensor or a module is in, the outermost first."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def is_copied(ends: Sequence[str], module: str) -> bool:
    """Whether PEFT wraps it to be saved, or one that it is in: by the ends of names, so `classifier` takes a
    `pre_classifier`, too.
    """
    return any(name.endswith(tuple(ends)) for name in (*around(module), module)) if ends else False


def _check_saved(base: Checkpoint, saved: Mapping[str, Tensor]) -> None:
    """Raise NotSupported for experts that the class holds in other tensors than the files: a copy of theirs would
    not be loaded.
    """
    inside = ("one expert of a stack", "a stack of experts")
    found = [f"{name}.weight" for name, module in (told(base) if saved else {}).items() if module.what in inside]
    if odd := sorted(saved.keys() & set(found), key=natural):
        tip = "leave their module out of --modules-to-save; --target-parameters puts LoRA on experts"
        raise NotSupported(
            "cannot copy experts that the class holds in other tensors than the files", where=listed(odd), help=tip
        )
