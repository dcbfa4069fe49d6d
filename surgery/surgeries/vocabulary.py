"""A vocabulary of another size, or of another tokenizer; config.json follows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from ..checkpoint import Checkpoint
from ..errors import FormatError, NotACheckpoint, NothingMatched, NotSupported, SurgeryError, listed, series
from ..evaluation.read import content
from ..files.folder import folder_at
from ..files.strict import MEND, parse_object
from ..files.tokenizer_files import SETTINGS, TEMPLATES, WORDS, tokenizer_in
from ..files.tokens import AS_JSON, Tokens, matched, tokens_in, undeclared
from ..lazy.dtypes import Kind
from ..lazy.tensor import File, Tensor
from ..models.config_sections import section_at
from ..models.header_ties import header_ties
from ..models.names_v5 import in_memory, renames_of
from ..models.skeleton import complete
from ..models.vocabulary_config import Vocabulary, ends_with_largest, resized, vocabulary_of
from ..names import natural
from ..quantization.quantised import quantised
from ..quantization.quantised import undeclared as codes_undeclared
from ..step import Option, step
from .asked_class import class_of
from .header_ties import along
from .merging.vocabulary import is_vocabulary
from .token_ids_followed import Followed, Mover, config_followed, followed, following, ids_beyond, staying
from .token_rows import NEW, Fresh, Run, check_how, kept, rows_of, runs_of, with_rows

MOST = 1 << 24  # tokens; the largest vocabularies have a 64th of that
GENERATION = "generation_config.json"
# Where config.json says with which deviation weights are drawn, and what it is where it does not.
SPREAD, DEFAULT_SPREAD = ("embed_init_std", "initializer_range", "init_std", "initializer_factor"), 0.02


@step
def vocabulary(
    checkpoint: Checkpoint,
    *,
    size: Annotated[int | None, Option("This many tokens: rows behind the last are added, or cut.", "N")] = None,
    tokenizer: Annotated[
        str | None,
        Option("The tokens of the tokenizer there, each with the row that it had.", "DIR", path=True),
    ] = None,
    multiple_of: Annotated[int | None, Option("Up to the next multiple of N tokens.", "N")] = None,
    new: Annotated[str, Option("What new rows are: the mean of all rows, zero, or drawn.", "HOW", among=NEW)] = "mean",
    seed: Annotated[int, Option("The seed of what is drawn.", "N")] = 0,
) -> Checkpoint:
    """Grow or shrink the vocabulary, or give it another tokenizer's tokens; config.json follows.

        vocabulary(checkpoint, size=32064)
        vocabulary(checkpoint, multiple_of=64)                   # with either of the others, too
        vocabulary(checkpoint, tokenizer="tuned", new="drawn")

    What has a row for each token is found by building the class with another number of tokens, on the meta device:
    embeddings, heads, biases. Rows that stay keep their bytes, and tied tensors stay tied. With `tokenizer`, each of
    its tokens gets the row that the token of the same text had by the tokenizer beside the checkpoint, whose files are
    replaced; ids in config.json and generation_config.json follow. Drawn rows follow from the seed and the tensor's
    name alone, with the deviation that config.json says.

    Raises NotSupported where the class would compute otherwise, where the rows are codes, where ids in config.json
    would mean nothing, or where the tokenizer beside the checkpoint uses rows that would be cut.
    """
    check_how(new)
    _check_numbers(size=size, multiple_of=multiple_of)
    if size is None and tokenizer is None and multiple_of is None:
        raise SurgeryError(
            "which vocabulary is meant is not said", help="one of --size, --tokenizer and --multiple-of, or several"
        )
    model_class = class_of(checkpoint, "what has a row for each token")
    found = vocabulary_of(checkpoint.config, model_class)
    stored = _stored(checkpoint, found, model_class)
    turned = _turned(checkpoint, tokenizer) if tokenizer is not None else None
    rows = _size(size, turned, found.size, multiple_of)
    told, fresh = Followed(), Fresh(new, seed, _spread(checkpoint.config, found))
    runs, move = _moves(checkpoint, turned, found, rows)
    notes = _order_checked(checkpoint, turned, found, rows, model_class)
    config = config_followed(checkpoint.config, complete(checkpoint.config), found.at, move, told)
    generation = _generation(checkpoint, move, told)
    told.check()
    config = resized(config, model_class, found, rows, told.moved)
    made = along(checkpoint, lambda parted: _with_tables(parted, checkpoint, found, runs, rows, fresh, model_class))
    made = made.with_config(config)
    files = {**made.files, **generation}
    if turned:
        files = {**{name: file for name, file in files.items() if not _of_tokenizer(name)}, **turned.files}
    notes = [*made.notes, *notes, *_notes(checkpoint, turned, found, rows, runs, new), *told.notes]
    done = {"surgery": "vocabulary", "tokens": rows, "before": found.size, "new": new, "tensors": sorted(stored)}
    return made.with_step(done | ({"tokenizer": turned.name} if turned else {}), files=files, notes=tuple(notes))


class _Turned:
    """The tokenizer that is to be, and that beside the checkpoint; `found`: new id -> old id of the same token."""

    def __init__(self, name: str, files: Mapping[str, File], new: Tokens, old: Tokens) -> None:
        self.name, self.files, self.new, self.old = name, files, new, old
        self.found = matched(new, old, name)


def _check_numbers(**numbers: int | None) -> None:
    for key, number in numbers.items():
        if number is not None and not 1 <= number <= MOST:
            raise SurgeryError(
                f"a vocabulary cannot have {number} tokens", where=[f"--{key.replace('_', '-')} {number}"]
            )


def _size(size: int | None, turned: _Turned | None, before: int, multiple: int | None) -> int:
    """How many tokens there will be."""
    needed = turned.new.rows if turned else 1
    if size is not None and size < needed:
        raise SurgeryError(
            f"the tokenizer has {needed} tokens, and {size} rows were asked for",
            where=[turned.name if turned else ""],
            help="leave --size away, or ask for more",
        )
    wanted = size if size is not None else needed if turned else before
    return -(-wanted // multiple) * multiple if multiple else wanted


def _turned(checkpoint: Checkpoint, tokenizer: str) -> _Turned:
    """Both tokenizers. Raises NotACheckpoint, NotSupported, NothingMatched."""
    files = {name: file for name, file in tokenizer_in(folder_at(tokenizer)).items() if _of_tokenizer(name)}
    new = tokens_in(files, tokenizer) if files else None
    if new is None:
        raise NotACheckpoint("no tokenizer is there", where=[tokenizer], help="--tokenizer takes the folder of one")
    if unknown := undeclared(new, files, tokenizer):
        raise NotSupported(
            "special tokens of the tokenizer have no id", where=[tokenizer, *listed(unknown)], help=AS_JSON
        )
    old = tokens_in(checkpoint.files, checkpoint.path)
    if old is None:
        raise NotSupported(
            "no tokenizer lies beside the checkpoint: which row is which token's is not known",
            where=[checkpoint.path],
            help="put its tokenizer there; or, where the same tokens keep the same rows, use --size",
        )
    turned = _Turned(tokenizer, files, new, old)
    if not turned.found:
        raise NothingMatched(
            "no token of the tokenizer is one of the model's",
            where=[tokenizer, checkpoint.path],
            help="all of its rows would be new",
        )
    return turned


def _of_tokenizer(name: str) -> bool:
    return name in WORDS | TEMPLATES | {SETTINGS} or name.startswith("additional_chat_templates/")


def _moves(
    checkpoint: Checkpoint, turned: _Turned | None, found: Vocabulary, size: int
) -> tuple[Sequence[Run] | None, Mover]:
    """The rows of each table, None where they stay where they are, and what becomes of ids."""
    if turned is None:
        _check_used(checkpoint, found.size, size)
        return None, staying(size, found.size)
    runs = runs_of(rows_of(size, turned.new, turned.old, turned.found, found.size))
    move = following(size, found.size, turned.new, turned.old, turned.found)
    return (None if runs == kept(size, found.size) else runs), move


def _order_checked(
    checkpoint: Checkpoint, turned: _Turned | None, found: Vocabulary, size: int, model_class: str
) -> list[str]:
    """A note for classes that take the largest id of a text for its end. Raises NotSupported where tokens get ids."""
    if not ends_with_largest(checkpoint.config, found):
        return []
    if turned and any(turned.found.get(number) != number for number in turned.new.texts):
        raise NotSupported(
            f"{model_class} takes the largest id of a text for its end, and tokens get other ids",
            where=[f"{checkpoint.path}: config.json: eos_token_id", turned.name],
            help="a CLIP whose config.json names the id of its end as eos_token_id, and not 2, looks for that",
        )
    more = f"{model_class} takes the largest id of a text for its end: no token can stand behind that one"
    return [more] if size > found.size else []


def _check_used(checkpoint: Checkpoint, before: int, size: int) -> None:
    """Raise NotSupported where rows would be cut that the tokenizer beside the checkpoint uses."""
    tokens = _beside(checkpoint) if size < before else None
    used = [f"{n}: {text}" for text, n in tokens.ids.items() if size <= n < before] if tokens else []
    if tokens and used:
        raise NotSupported(
            f"{len(used)} tokens of the tokenizer would have no row any more, of {size}",
            where=[checkpoint.path, *listed(sorted(used, key=natural))],
            help=f"it needs {tokens.rows} rows; --tokenizer DIR shrinks to another tokenizer",
        )


def _beside(checkpoint: Checkpoint) -> Tokens | None:
    """The tokens of the tokenizer beside the checkpoint: of a component of a pipeline, in the folder next to it."""
    found = tokens_in(checkpoint.files, checkpoint.path)
    place, _, name = checkpoint.path.rstrip("/").rpartition("/")
    if found is None and name.startswith("text_encoder"):
        folder = folder_at(f"{place}/{name.replace('text_encoder', 'tokenizer')}")
        found = tokens_in(tokenizer_in(folder), folder.path) if folder else None
    return found


def _stored(checkpoint: Checkpoint, found: Vocabulary, model_class: str) -> dict[str, str]:
    """Name in the files -> name in memory, of each tensor with a row for each token. Raises NotSupported for what
    cannot follow.
    """
    names = _in_memory(checkpoint, found)
    stored = {name: place for name, place in names.items() if place in found.axes}
    _check_codes(checkpoint, found)
    held = {*stored.values(), *(n for n in header_ties(checkpoint.metadata, checkpoint.tensors) if n in found.axes)}
    roots = {found.root(place) for place in held}
    missing = [n for n in found.axes if found.root(n) not in roots and n not in found.words.buffers]
    odd = [n for n in names if n not in stored and names[n] not in found.words.shapes and is_vocabulary(n)]
    odd = [n for n in odd if found.size in checkpoint.tensors[n].shape]
    shapes = {n: (checkpoint.tensors[n].shape, found.words.shapes[place]) for n, place in stored.items()}
    wrong = [f"{n}: {there}, not {said}" for n, (there, said) in shapes.items() if there != said]
    if missing or wrong:
        raise NotSupported(
            f"config.json is not that of these tensors, as {model_class} has them",
            where=[checkpoint.path, *listed([*wrong, *(f"{n}: missing" for n in missing)])],
            help="mend vocab_size and architectures in config.json; or some of the shards are not here",
        )
    if odd:
        raise NotSupported(
            f"tensors that {model_class} does not load have a row for each token as well, as it seems",
            where=[checkpoint.path, *listed(sorted(odd, key=natural))],
            help="leave them out first: surgery drop --pattern REGEX",
        )
    return stored


def _in_memory(checkpoint: Checkpoint, found: Vocabulary) -> dict[str, str]:
    """What the class calls each tensor: files may have older names, or those of the body alone, or of one with a
    head.
    """
    renames, stem = renames_of(checkpoint.config), f"{found.words.prefix}."

    def called(name: str) -> str:
        plain = in_memory(name, renames)
        return next((n for n in (plain, stem + plain, plain.removeprefix(stem)) if n in found.words.shapes), plain)

    return {name: called(name) for name in checkpoint.tensors}


def _check_codes(checkpoint: Checkpoint, found: Vocabulary) -> None:
    """Raise NotSupported where rows of the vocabulary are quantised."""
    if undeclared := codes_undeclared(checkpoint):
        raise NotSupported("codes lie here without what says their meaning", where=[checkpoint.path], help=undeclared)
    renames = renames_of(checkpoint.config)
    codes = [n for n in quantised(checkpoint).weights if in_memory(n, renames) in found.axes]
    if codes:
        raise NotSupported(
            "rows of the vocabulary are quantised",
            where=[checkpoint.path, *listed(sorted(codes, key=natural))],
            help=f"write them in 16 bits first: surgery dequantize --only '{_regex(codes)}'",
        )


def _regex(names: Sequence[str]) -> str:
    modules = sorted({name.removesuffix(".weight").replace(".", "\\.") for name in names})
    return "|".join(modules)


def _with_tables(
    parted: Checkpoint,
    before: Checkpoint,
    found: Vocabulary,
    runs: Sequence[Run] | None,
    size: int,
    fresh: Fresh,
    model_class: str,
) -> Checkpoint:
    """The checkpoint with each table of the vocabulary in other rows."""
    places, own = _in_memory(parted, found), _in_memory(before, found)
    holders = header_ties(before.metadata, before.tensors)
    tensors, cut = dict(parted.tensors), dict[str, Tensor]()
    for name, place in places.items():
        if place not in found.axes and place not in found.part:
            continue
        tensor, many = parted.tensors[name], found.rows(place)
        if place in found.part and runs is not None:
            raise NotSupported(
                f"a table of {model_class} has rows for some of the tokens only, and tokens get other ids",
                where=[f"{name}: {many} rows, of {found.size}"],
            )
        chosen = runs or kept(min(size, many) if place in found.part else size, many)
        zero = place in found.words.buffers and tensor.dtype.kind is Kind.FLOAT
        key = found.root(own.get(holders.get(name, name), place))
        tensors[name] = with_rows(tensor, found.axis(place), chosen, replace(fresh, how="zero") if zero else fresh, key)
        used = sum(run.length for run in chosen if run.first is not None)
        if used < many:
            cut[f"{name} ({many - used} rows)"] = tensor
    return replace(parted, tensors=tensors, dropped={**parted.dropped, **cut})


def _spread(config: Mapping[str, Any], found: Vocabulary) -> float:
    """With which deviation the class draws weights."""
    whole = complete(config)
    for section in (section_at(whole, found.at), whole):
        for key in SPREAD:
            if isinstance(value := section.get(key), int | float) and 0 <= value < 1e4:
                return float(value)
    return DEFAULT_SPREAD


def _generation(checkpoint: Checkpoint, move: Mover, told: Followed) -> dict[str, bytes]:
    """generation_config.json, where ids in it follow."""
    if GENERATION not in checkpoint.files:
        return {}
    where = [f"{checkpoint.path}: {GENERATION}"]
    said = parse_object(content(checkpoint.files[GENERATION]), lambda what: FormatError(what, where=where, help=MEND))
    made = followed(said, move, told, f"{GENERATION}: ")
    return {} if made == said else {GENERATION: f"{json.dumps(made, indent=2, sort_keys=True)}\n".encode()}


def _notes(
    checkpoint: Checkpoint, turned: _Turned | None, found: Vocabulary, size: int, runs: Sequence[Run] | None, new: str
) -> list[str]:
    """What a user should know."""
    rows = runs if runs is not None else kept(size, found.size)
    added = sum(run.length for run in rows if run.first is None)
    gone = found.size - sum(run.length for run in rows if run.first is not None)
    parts = [f"{added} rows are new ({new})" if added else "", f"{gone} are gone" if gone else ""]
    notes = ["; ".join([f"the vocabulary has {size} rows, and had {found.size}", *filter(None, parts)])]
    if turned:
        notes.append(_told(turned, checkpoint))
    else:
        known = _named_beside(checkpoint) if size > found.size else {}
        notes += ids_beyond(checkpoint.config, found.at, size, found.size, known)
    if not turned and size < found.size and _beside(checkpoint) is None:
        notes.append("no tokenizer lies beside it: whether tokens of the rows that are gone are in use is not known")
    return notes


def _named_beside(checkpoint: Checkpoint) -> Mapping[int, str]:
    try:
        tokens = _beside(checkpoint)
    except SurgeryError:
        return {}
    return tokens.texts if tokens else {}


def _told(turned: _Turned, checkpoint: Checkpoint) -> str:
    there = {*turned.found.values()}
    lost = [text for text, number in turned.old.ids.items() if number not in there]
    more = [text for text, number in turned.new.ids.items() if number not in turned.found]
    parts = [f"{len(turned.found)} of its {len(turned.new.ids)} tokens were there"]
    parts += [f"new are {series(listed(more, 3))}"] if more else []
    parts += [f"gone are {series(listed(lost, 3))}"] if lost else []
    gone = sorted(n for n in checkpoint.files if _of_tokenizer(n) and n not in turned.files)
    parts += [f"left out, since it has none: {series(gone)}"] if gone else []
    return f"the tokenizer is that of {turned.name}: {series(parts, '; ')}"
