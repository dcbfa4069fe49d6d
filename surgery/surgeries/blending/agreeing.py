"""Whether models can be blended: the same class, the same tensors of the same shapes, the same tokens, no codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...checkpoint import Checkpoint
from ...errors import NotSupported, PlanError, listed
from ...evaluation.evaluate import load
from ...evaluation.read import content
from ...files.tokens import FAST, LISTS, UNREAD, tokens_in
from ...lazy.dtypes import ARITHMETIC, BF16, F16, F32, F64, Dtype, Kind
from ...lazy.tensor import Tensor
from ...names import natural
from ...quantization.kept_whole import held_in

# By these a class reads weights of the same shapes otherwise.
SAME = (
    "model_type", "architectures", "num_attention_heads", "num_key_value_heads", "n_head", "num_heads", "head_dim",
    "hidden_act", "activation_function", "hidden_activation", "num_experts_per_tok", "tie_word_embeddings",
)  # fmt: skip
# Of others it is said that they differ, but for these.
NO_MATTER = (
    "_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "bos_token_id", "eos_token_id",
    "pad_token_id", "num_hidden_layers", "layer_types",
)  # fmt: skip
LARGEST = 64_000_000  # bytes of a tensor of integers that is read to see whether two are the same


def check_models(models: Sequence[Checkpoint]) -> list[str]:
    """Raise PlanError or NotSupported for models of which the first cannot be blended with another; what else differs,
    as notes.
    """
    first, notes = models[0], list[str]()
    for one in models:
        if held_in(one).weights or "quantization_config" in one.config:
            raise NotSupported(
                "a quantised model cannot be blended: its codes are no weights",
                where=[one.path],
                help="write it in 16 bits first: surgery dequantize",
            )
    for other in models[1:]:
        _check_configs(first, other)
        notes += _others(first, other)
    return notes


def _check_configs(first: Checkpoint, other: Checkpoint) -> None:
    rows = [
        f"{key}: {first.config.get(key)!r} and {other.config.get(key)!r}"
        for key in SAME
        if first.config and other.config and first.config.get(key) != other.config.get(key)
        if not (key == "architectures" and None in (first.config.get(key), other.config.get(key)))
    ]
    if rows:
        raise PlanError(
            "these models are not of one architecture",
            where=[first.path, other.path, *listed(rows)],
            help="only models that one class builds alike have weights that belong together",
        )


def _others(first: Checkpoint, other: Checkpoint) -> list[str]:
    keys = sorted(
        key
        for key in {*first.config, *other.config}
        if first.config
        and other.config
        and key not in (*SAME, *NO_MATTER)
        and first.config.get(key) != other.config.get(key)
    )
    said = ", ".join(listed([f"{key} ({first.config.get(key)!r}, {other.config.get(key)!r})" for key in keys]))
    return [f"config.json is that of {first.path}; {other.path} says otherwise: {said}"] if keys else []


def check_tensors(first: Checkpoint, other: Checkpoint, *, layers_too: bool) -> None:
    """Raise PlanError where one has tensors that the other lacks, or of another shape. Without `layers_too`, what is in
    layers is looked at where it is used.
    """
    names = (set(one.tensors) if layers_too else {n for n in one.tensors if not _numbered(n)} for one in (first, other))
    mine, theirs = names
    if lone := sorted(mine ^ theirs, key=natural):
        rows = [f"{name}: in {(first if name in mine else other).path} alone" for name in lone]
        heads = any(name.endswith(("lm_head.weight", "embed_out.weight", "score.weight")) for name in lone)
        raise PlanError(
            f"{len(lone)} tensors are in one of the models alone",
            where=[first.path, other.path, *listed(rows)],
            help=(
                "a head that is tied in one and stored in the other: surgery untie, or tie, makes them alike"
                if heads and len(lone) == 1
                else "models that are blended have the same tensors: rename, split or fuse one of them first"
            ),
        )
    for name in sorted(mine, key=natural):
        check_shapes(name, [(first, first.tensors[name]), (other, other.tensors[name])])


def _numbered(name: str) -> bool:
    return any(part.isdigit() for part in name.split("."))


def check_shapes(name: str, held: Sequence[tuple[Checkpoint, Tensor]]) -> None:
    """Raise PlanError where they are not of one shape."""
    (first, tensor), *others = held
    for other, one in others:
        if one.shape != tensor.shape:
            rows = one.shape[1:] == tensor.shape[1:] and any(
                part in name for part in ("embed", "wte", "lm_head", "output")
            )
            raise PlanError(
                f"{name} has two shapes",
                where=[f"{first.path}: {list(tensor.shape)}", f"{other.path}: {list(one.shape)}"],
                help=(
                    "the vocabularies are of two sizes: bring both to one, and to the same tokens, first"
                    if rows
                    else "models of other sizes have no weights that belong together"
                ),
            )


def check_vocabularies(models: Sequence[Checkpoint]) -> None:
    """Raise PlanError where two models give one number to two tokens."""
    first, known = models[0], _tokens(models[0])
    for other in models[1:]:
        theirs = _tokens(other)
        if not known or not theirs or known == theirs:
            continue
        both = known.keys() | theirs.keys()
        rows = [
            f"{token!r}: {known.get(token, 'none')} and {theirs.get(token, 'none')}"
            for token in sorted(both, key=lambda one: (known.get(one, 1 << 40), one))
            if known.get(token) != theirs.get(token)
        ]
        raise PlanError(
            f"the tokenizers differ in {len(rows)} tokens: rows of the embeddings would be mixed that mean others",
            where=[first.path, other.path, *listed(rows)],
            help="--other-vocabulary blends them all the same, with the tokenizer of the first",
        )


def _tokens(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The number of each token; the content of a file where it is of a format that does not tell. Nothing where there
    is no tokenizer.
    """
    files = checkpoint.files
    if any(name in files for name in (FAST, *LISTS)):
        found = tokens_in(files, checkpoint.path)
        return found.ids if found else {}
    return {name: content(files[name]) for name in UNREAD if name in files}


def floats_of(name: str, held: Sequence[tuple[Checkpoint, Tensor]]) -> Dtype | None:
    """The dtype that holds what all hold, as torch promotes them; None where they are no floats, and the same. Raises
    PlanError, NotSupported.
    """
    dtypes = {tensor.dtype for _, tensor in held}
    if all(one in ARITHMETIC for one in dtypes):
        if len(dtypes) == 1:
            return next(iter(dtypes))
        return F64 if F64 in dtypes else F32 if F32 in dtypes or dtypes == {F16, BF16} else next(iter(dtypes))
    if any(one.kind is Kind.FLOAT for one in dtypes):
        raise NotSupported(
            f"{name} is in {', '.join(sorted(map(str, dtypes)))}, in which nothing is computed",
            where=[one.path for one, _ in held],
            help="cast it first: surgery cast",
        )
    (first, tensor), *others = held
    for other, one in others:
        if one.dtype != tensor.dtype or tensor.nbytes > LARGEST or not bool((load(one) == load(tensor)).all()):
            raise PlanError(
                f"{name} holds {tensor.dtype}, which cannot be blended, and differs",
                where=[first.path, other.path],
                help="make them the same first, or leave it out of both: surgery drop",
            )
    return None
