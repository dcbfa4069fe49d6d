"""The ids of tokens in config.json and generation_config.json, where tokens get other ids, or rows are cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import NotSupported, listed
from ..files.tokens import Tokens
from ..models.config_sections import At, Config, section_at, with_fields
from ..models.token_ids import NEVER, UNTOLD, ids_in, is_of_tokens, with_ids

MAY_BE_NONE = ("bos_token_id", "eos_token_id", "pad_token_id")
MEND = "write the right ids there first, of tokens that have a row"


@dataclass
class Followed:
    """What became of ids: `moved`, pairs of old and new; `notes`; and what is `wrong`, of which nothing can be made."""

    moved: set[tuple[int, int | None]] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raise NotSupported where something is wrong."""
        if self.wrong:
            raise NotSupported(
                "ids of tokens in the configuration would mean nothing, or another token",
                where=listed(list(dict.fromkeys(self.wrong))),
                help=MEND,
            )


Mover = Callable[[str, int], int | None]  # raises LookupError, with why


def config_followed(config: Config, whole: Config, at: At, move: Mover, told: Followed) -> dict[str, Any]:
    """config.json with the ids that `move` gives, in the section at `at` and those around it. `whole` has the defaults
    of the class as well.
    """
    made = dict(config)
    for one in (at[:length] for length in range(len(at) + 1)):
        defaults = {k: v for k, v in section_at(whole, one).items() if is_of_tokens(k)}
        made = with_fields(made, one, followed({**defaults, **section_at(config, one)}, move, told, _named(one)))
        made = _without(made, one, defaults.keys() - section_at(config, one).keys(), defaults)
    return made


def followed(section: Config, move: Mover, told: Followed, where: str) -> dict[str, Any]:
    """A section with the ids that `move` gives."""

    def put(key: str, number: int) -> int | None:
        try:
            new = move(key, number)
        except LookupError as error:
            told.wrong.append(f"{where}{key} = {number}: {error.args[0]}")
            return number
        if new != number:
            told.moved.add((number, new))
            told.notes.append(
                f"{where}{key} {number} is now {new}"
                if new is not None
                else f"{where}{key} {number} is gone: the tokenizer has no such token"
            )
            if key in UNTOLD:
                told.wrong.append(f"{where}{key}: what it says of {number} cannot follow")
        return new

    return with_ids(section, put)


def staying(size: int, before: int) -> Mover:
    """Ids of a vocabulary whose rows stay where they are: those of rows that are cut are refused."""

    def move(key: str, number: int) -> int | None:
        if size <= number < before:
            raise LookupError(f"no row would be left for it, of {size}")
        return number

    return move


def following(size: int, before: int, new: Tokens, old: Tokens, found: Mapping[int, int]) -> Mover:
    """Ids of tokens that are `found`, new id -> old id, in another tokenizer: what was the tokenizer's own token for a
    role is that of the new one, and any other token stays the token that it was.
    """
    now = {number: place for place, number in sorted(found.items(), reverse=True)}

    def move(key: str, number: int) -> int | None:
        text, role = old.texts.get(number), key.removesuffix("_id")
        own = new.ids.get(new.roles.get(role, ""))
        if own is not None and (old.roles.get(role) == text or number not in now) and text is not None:
            return own
        if text is None and number not in new.texts and not size <= number < before:
            return number
        if number in now:
            return now[number]
        if text is not None and (key in NEVER or key in MAY_BE_NONE):
            return None
        raise LookupError(
            f"the new tokenizer has no {text}" if text is not None else "the tokenizer does not say which token it is"
        )

    return move


def ids_beyond(config: Config, at: At, size: int, before: int, named: Mapping[int, str]) -> list[str]:
    """A note on ids that had no row, were no token's, and have one now."""
    sections = [(one, section_at(config, one)) for one in (at[:length] for length in range(len(at) + 1))]
    found = [(one, *pair) for one, section in sections for pair in ids_in(section)]
    beyond = [f"{_named(one)}{key} = {n}" for one, key, n in found if before <= n < size and n not in named]
    return [f"ids that had no row have one now: {', '.join(listed(beyond))}"] if beyond else []


def _named(at: At) -> str:
    return "".join(f"{key}." for key in at)


def _without(config: dict[str, Any], at: At, keys: Any, defaults: Config) -> dict[str, Any]:
    """The config without those `keys` in a section that still are what they are by default."""
    section = section_at(config, at)
    kept = {k: v for k, v in section.items() if k not in keys or v != defaults[k]}
    return _replaced(config, at, kept)


def _replaced(config: Mapping[str, Any], at: At, section: Config) -> dict[str, Any]:
    if not at:
        return dict(section)
    return {**config, at[0]: _replaced(config.get(at[0]) or {}, at[1:], section)}
