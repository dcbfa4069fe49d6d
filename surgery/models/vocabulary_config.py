"""What is of the vocabulary in a class of transformers, found by asking it: the tensors that have an entry for each
token, on which axis, and the fields of config.json that say how many.

The class is built as config.json says and with another number of tokens, and what differs is of the vocabulary. A
config is right for a number of tokens where that is all that differs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import NotSupported, PlanError, listed, series
from .config_sections import At, Config, section_at, sections_in, with_fields
from .skeleton import built, complete
from .stacks import plain_values

Shape = tuple[int, ...]
FIELD = "vocab_size"
# What follows beside it in the same section, where it says the same number; and what older files call it.
BESIDE = ("vocab_size_per_layer_input", "decoder_vocab_size")
ALIASES = ("n_words", "n_token", "org_vocab_size")
# Fields by which ids that are no token's begin where the vocabulary ends, or at a number of their own.
BEYOND: Mapping[str, str] = {
    "additional_vocab_size": "ids behind the vocabulary are rows of a second table, which would mean other tokens",
    "vocab_offset": "ids from there on are those of images and sounds, whatever the vocabulary's size",
    "prompt_types": "the embedding has rows for prompts behind those of the vocabulary",
}
PROBE = 64
# Types that take the largest id of a text for its end: those that always do, and those that do where eos_token_id is 2.
LARGEST = frozenset("owlvit_text_model owlv2_text_model sam3_lite_text_text_model".split())
LARGEST_WHERE_2 = frozenset("clip_text_model clipseg_text_model groupvit_text_model xclip_text_model".split())


@dataclass(frozen=True, slots=True)
class Words:
    """What a class has for tokens: the shapes of its tensors, which of them are tied to which, which are no parameters,
    and what the modules hold besides. `embedding` and `head`: how many entries those have; None: there is none.
    """

    shapes: Mapping[str, Shape]
    tied: Mapping[str, str]
    buffers: frozenset[str]
    embedding: int | None
    head: int | None
    values: Mapping[tuple[str, str], Any]
    padded: Mapping[str, Any]  # by which number each module that is no model knows padding
    prefix: str


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The vocabulary of a class for a config: its `size`; `axes`, for each tensor with an entry for each token which
    axis that is; `fields`, where config.json says the size, the first of which is at `at`. `part`: the same for tensors
    with entries for another number of tokens, each with the field that says it.
    """

    size: int
    words: Words
    axes: Mapping[str, int]
    at: At
    fields: tuple[tuple[At, str], ...]
    part: Mapping[str, tuple[int, str]]

    def axis(self, name: str) -> int:
        """The axis of a tensor on which its entries are."""
        return self.axes[name] if name in self.axes else self.part[name][0]

    def rows(self, name: str) -> int:
        """How many entries a tensor has."""
        return self.words.shapes[name][self.axis(name)]

    def root(self, name: str) -> str:
        """The tensor that it is tied to, or itself."""
        while name in self.words.tied:
            name = self.words.tied[name]
        return name


def vocabulary_of(config: Config, model_class: str) -> Vocabulary:
    """The vocabulary of `model_class` for this config. Raises PlanError where it cannot be built, NotSupported where it
    has none, or more than one.
    """
    words, whole = words_of(config, model_class), complete(config)
    size = words.embedding
    if size is None:
        raise NotSupported(f"{model_class} has no embedding of tokens", where=["what it is given are no words"])
    _check_beyond(whole, model_class)
    candidates = [at for at, section in sections_in(whole) if section.get(FIELD) == size]
    for at in candidates:
        fields = ((at, FIELD), *_beside(config, whole, at, size))
        try:
            other = words_of(_put(config, fields, size + PROBE), model_class)
        except PlanError:
            continue
        if other.embedding == size + PROBE and other.head in (None, size + PROBE):
            axes = _axes(words, other, model_class)
            if odd := [f"{n}: {words.shapes[n]}" for n, axis in axes.items() if words.shapes[n][axis] != size]:
                raise _uneven(model_class, odd)
            _check_one(config, words, axes, at, model_class)
            part = _part(config, whole, at, size, words, model_class)
            return Vocabulary(size, words, axes, at, fields, part)
    heads = "" if words.head in (None, size) else ", and a head of its own"
    raise NotSupported(
        f"no field of config.json is the size of the whole vocabulary of {model_class}",
        where=[f"its embedding has {size} rows{heads}", *(f"config.json: {_said(at)} is that" for at in candidates)],
        help="its inputs and its outputs are of vocabularies of their own, or more rows than tokens are in one table",
    )


def resized(
    config: Config, model_class: str, found: Vocabulary, size: int, moved: Collection[tuple[int, int | None]]
) -> dict[str, Any]:
    """The config of a model with `size` tokens. `moved` are the ids of tokens that are others in `config` now.

    Raises NotSupported where the class would compute otherwise by it than on the same rows before.
    """
    cut = {name: axis for name, (axis, _) in found.part.items() if found.rows(name) > size}
    shorter = {(found.at, found.part[name][1]) for name in cut}
    made = _put(config, (*found.fields, *shorter), size)
    now = words_of(made, model_class)
    axes = {**found.axes, **cut}
    wanted = {n: _with(shape, axes[n], size) if n in axes else shape for n, shape in found.words.shapes.items()}
    wrong = [n for n in wanted.keys() & now.shapes.keys() if wanted[n] != now.shapes[n]]
    wrong += wanted.keys() ^ now.shapes.keys()
    changed = [*_changed(found, now, size, moved), *_unlike(found, now)]
    if wrong or changed or found.words.tied != now.tied:
        raise NotSupported(
            f"{model_class} would compute otherwise with a vocabulary of {size}",
            where=listed([*sorted(wrong), *changed] or ["other tensors would be tied"]),
            help="what it computes follows from the size of its vocabulary, or from which token is padding",
        )
    return made


def ends_with_largest(config: Config, found: Vocabulary) -> bool:
    """Whether the class takes the largest id of a text for its end, so that ids mean something by their order."""
    section = section_at(complete(config), found.at)
    kind = section.get("model_type")
    return kind in LARGEST or (kind in LARGEST_WHERE_2 and section.get("eos_token_id") == 2)


def words_of(config: Config, model_class: str) -> Words:
    """What `model_class` has for tokens. Raises PlanError where it cannot be built."""
    model = built(config, model_class)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    values = {(name, key): one for name, part in model.named_modules() for key, one in plain_values(part).items()}
    own = [(name, part) for name, part in model.named_modules() if not hasattr(part, "base_model_prefix")]
    return Words(
        shapes,
        dict(model.all_tied_weights_keys),
        frozenset(shapes.keys() - parameters),
        _entries(model, "get_input_embeddings", "num_embeddings"),
        _entries(model, "get_output_embeddings"),
        values,
        {name: part.padding_idx for name, part in own if hasattr(part, "padding_idx")},
        str(model.base_model_prefix),
    )


def _entries(model: Any, method: str, attribute: str = "") -> int | None:
    """How many entries an embedding or a head has: -1 where it is something else than one table."""
    try:
        module = getattr(model, method)()
    except (NotImplementedError, AttributeError):
        return None
    if module is None or (attribute and not hasattr(module, attribute)):
        return None
    weight = getattr(module, "weight", None)
    return int(weight.shape[0]) if weight is not None and weight.dim() == 2 else -1


def _check_beyond(whole: Config, model_class: str) -> None:
    said = [(at, key) for at, section in sections_in(whole) for key in BEYOND if section.get(key)]
    if said:
        raise NotSupported(
            f"the vocabulary of {model_class} cannot have another size",
            where=[f"config.json: {_said((*at, key))}: {BEYOND[key]}" for at, key in said],
        )


def _beside(config: Config, whole: Config, at: At, size: int) -> Iterator[tuple[At, str]]:
    """Other fields that say the same of the same vocabulary."""
    yield from ((at, key) for key in BESIDE if section_at(whole, at).get(key) == size)
    above = [at[:length] for length in range(len(at))]
    yield from ((one, FIELD) for one in above if section_at(config, one).get(FIELD) == size)
    yield from ((one, key) for one in (*above, at) for key in ALIASES if section_at(config, one).get(key) == size)


def _put(config: Config, fields: tuple[tuple[At, str], ...] | list[tuple[At, str]], size: int) -> dict[str, Any]:
    made = dict(config)
    for at, key in fields:
        made = with_fields(made, at, {key: size})
    return made


def _axes(words: Words, other: Words, model_class: str) -> dict[str, int]:
    """The axis on which each tensor differs. Raises NotSupported where one differs otherwise."""
    changed = {n: shape for n, shape in words.shapes.items() if other.shapes.get(n) != shape}
    found, wrong = dict[str, int](), [n for n in other.shapes if n not in words.shapes]
    for name, shape in changed.items():
        new = other.shapes.get(name, ())
        axes = [i for i, (a, b) in enumerate(zip(shape, new, strict=False)) if a != b]
        if len(axes) == 1 and len(shape) == len(new) and new[axes[0]] - shape[axes[0]] == PROBE:
            found[name] = axes[0]
        else:
            wrong.append(f"{name}: {shape} would be {new}")
    if wrong or words.tied != other.tied:
        raise _uneven(model_class, wrong or ["other tensors would be tied"])
    return found


def _uneven(model_class: str, where: list[str]) -> NotSupported:
    return NotSupported(f"the vocabulary of {model_class} is not one entry for each token", where=listed(where))


def _part(
    config: Config, whole: Config, at: At, size: int, words: Words, model_class: str
) -> dict[str, tuple[int, str]]:
    """Tensors with an entry for another number of tokens: name -> axis, and the field that says how many."""
    found = dict[str, tuple[int, str]]()
    for key in BESIDE:
        many = section_at(whole, at).get(key)
        if type(many) is int and many != size:
            other = words_of(_put(config, [(at, key)], many + PROBE), model_class)
            found |= {name: (axis, key) for name, axis in _axes(words, other, model_class).items()}
    return found


def _check_one(config: Config, words: Words, axes: Mapping[str, int], at: At, model_class: str) -> None:
    """Raise NotSupported where encoder and decoder have a vocabulary each, of one size by chance."""
    whole = section_at(complete(config), at)
    if "decoder_vocab_size" in whole and whole.get("share_encoder_decoder_embeddings") is False:
        raise NotSupported(
            f"{model_class} has two vocabularies",
            where=[f"config.json: share_encoder_decoder_embeddings = false; {series(listed(sorted(axes)))}"],
            help="which tokens are meant is not clear; train it with one vocabulary",
        )


def _changed(found: Vocabulary, now: Words, size: int, moved: Collection[tuple[int, int | None]]) -> list[str]:
    """What modules hold that is neither the number of tokens, nor an id that moved."""

    def follows(one: Any, other: Any) -> bool:
        if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
            return all(map(follows, one, other))
        known = one == other or (one == found.size and other == size)
        return known or (type(one) is int and (one, other) in moved)

    before = found.words.values
    keys = [key for key in {**before, **now.values} if key not in before or key not in now.values]
    keys += [key for key in before.keys() & now.values.keys() if not follows(before[key], now.values[key])]
    tables = {name.rpartition(".")[0] for name in now.shapes if now.shapes[name] != found.words.shapes.get(name)}
    return [f"{where or 'the model'}: {key}" for where, key in sorted(keys) if where not in tables]


def _unlike(found: Vocabulary, now: Words) -> list[str]:
    """Modules, such as tables of positions, that count from the number of the token that is padding."""
    tables = {name.rpartition(".")[0] for name in found.axes}
    moved = [n for n, one in found.words.padded.items() if n not in tables and now.padded.get(n, one) != one]
    return [f"{n}: counts from padding, {found.words.padded[n]}, and would from {now.padded[n]}" for n in moved]


def _with(shape: Shape, axis: int, size: int) -> Shape:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _said(at: At) -> str:
    return ".".join(at) or "config.json"
