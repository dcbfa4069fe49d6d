"""The tokens of a tokenizer, from its files: which id each text has. Nothing of them is run.

    tokenizer.json                      the vocabulary of its model, and the tokens that were added
    vocab.json, vocab.txt               where there is no tokenizer.json: JSON text -> id, or a token on each line
    added_tokens.json, and              more tokens, which those do not have
    tokenizer_config.json

How a token is spelled differs: `Ġthe` of byte-level BPE and `▁the` of SentencePiece are both " the". Tokens of two
tokenizers that spell alike are the same where their texts are; of others, where both say the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..errors import FormatError, NotSupported, listed, series
from ..evaluation.read import content
from ..lazy.tensor import File
from .strict import MEND, parse_object

Files = Mapping[str, File | bytes]
FAST, LISTS, SETTINGS, MAP, ADDED = (
    "tokenizer.json", ("vocab.json", "vocab.txt"), "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip
# Vocabularies that say no ids, or not those that the tokenizer gives.
UNREAD = "tokenizer.model spiece.model sentencepiece.bpe.model source.spm target.spm tekken.json".split()
ROLES = tuple(f"{role}_token" for role in ("bos", "eos", "pad", "unk", "sep", "cls", "mask"))
AS_JSON = "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR), of transformers, writes a tokenizer.json"
_BYTE = re.compile("<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class Tokens:
    """What text each id has, by text. `spelling` is "bytes", "metaspace", "wordpiece" or "plain"; `roles` are the
    tokens for a role, such as `eos_token`, by role; `added` those whose text is meant as it stands.
    """

    ids: Mapping[str, int]
    spelling: str
    roles: Mapping[str, str]
    added: frozenset[str]

    @cached_property
    def texts(self) -> Mapping[int, str]:
        """The text of each id."""
        return {number: text for text, number in self.ids.items()}

    @property
    def rows(self) -> int:
        """How many rows a table needs that has one for each."""
        return max(self.ids.values(), default=-1) + 1

    def said(self, text: str) -> bytes:
        """The bytes that a token stands for."""
        if text in self.added or self.spelling not in ("bytes", "metaspace"):
            return text.encode()
        if self.spelling == "bytes":
            known = _of_bytes()
            return b"".join(bytes([known[c]]) if c in known else c.encode() for c in text)
        byte = _BYTE.fullmatch(text)
        return bytes.fromhex(byte[1]) if byte else text.replace("▁", " ").encode()


def tokens_in(files: Files, where: str) -> Tokens | None:
    """The tokens of the tokenizer among these files of `where`; None where there is none.

    Raises FormatError for files that are broken or contradict each other, NotSupported for one whose ids they do not
    say.
    """
    main = next((name for name in (FAST, *LISTS) if name in files), "")
    if not main:
        if unread := [name for name in UNREAD if name in files]:
            raise NotSupported(
                f"the ids of this tokenizer's tokens are not read from {series(unread)}", where=[where], help=AS_JSON
            )
        return None
    raw = _fast(files, where) if main == FAST else _listed(main, files, where)
    more = _added(files, where)
    ids = {**raw.ids, **{text: number for text, number in more.items() if text not in raw.ids}}
    found = Tokens(ids, raw.spelling, _roles(files, where), raw.added | more.keys())
    _check_one_each(found, where)
    return found


def matched(new: Tokens, old: Tokens, where: str) -> dict[int, int]:
    """For each id of `new`, the id that the same token has in `old`, as far as it has one. Raises NotSupported."""
    if new.spelling == old.spelling:
        return {number: old.ids[text] for text, number in new.ids.items() if text in old.ids}
    if {new.spelling, old.spelling} != {"bytes", "metaspace"}:
        raise NotSupported(
            "which tokens are the same in both tokenizers is not told by their texts",
            where=[where, f"one is spelled as {new.spelling}, and the other one as {old.spelling}"],
            help="tokens are matched between tokenizers that spell alike, and between byte-level and SentencePiece",
        )
    known: dict[bytes, int] = {}
    for text, number in sorted(old.ids.items(), key=lambda one: (one[0] not in old.added, one[1])):
        known.setdefault(old.said(text), number)
    return {number: known[said] for text, number in new.ids.items() if (said := new.said(text)) in known}


def undeclared(tokens: Tokens, files: Files, where: str) -> list[str]:
    """The special tokens that are named and have no id: a tokenizer adds them only once it is loaded."""
    more = _json(files, SETTINGS, where).get("additional_special_tokens") or []
    named = [*tokens.roles.values(), *(one for one in map(_text, more if isinstance(more, list) else []) if one)]
    return [text for text in dict.fromkeys(named) if text not in tokens.ids]


def _fast(files: Files, where: str) -> Tokens:
    said = _json(files, FAST, where)
    model = said.get("model")
    vocab = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(vocab, list):
        ids = {_key(one[0]): at for at, one in enumerate(vocab) if isinstance(one, list) and one}
    elif isinstance(vocab, Mapping):
        ids = dict[Any, Any](vocab)
    else:
        raise FormatError("it says no tokens", where=[f"{where}: {FAST}"], help=MEND)
    added = [one for one in _list(said.get("added_tokens")) if isinstance(one, Mapping)]
    ids |= {_key(one.get("content")): one.get("id") for one in added}
    return Tokens(_checked(ids, FAST, where), _spelling(said), {}, frozenset(str(one.get("content")) for one in added))


def _spelling(said: Mapping[str, Any]) -> str:
    """How a tokenizer.json spells tokens, by its parts."""
    types = {str(part.get("type")) for key in ("pre_tokenizer", "decoder") for part in _parts(said.get(key))}
    turned = [part for part in _parts(said.get("normalizer")) if "▁" in (part.get("content"), part.get("prepend"))]
    if "ByteLevel" in types:
        return "bytes"
    if "Metaspace" in types or turned:
        return "metaspace"
    return "wordpiece" if "WordPiece" in (*types, _type(said.get("model"))) else "plain"


def _list(value: Any) -> list[Any]:
    """What should be a list, where it is one."""
    return value if isinstance(value, list) else []


def _key(token: Any) -> Any:
    """A token as a key: what is no text is told by what it is, and has no id."""
    return token if isinstance(token, str) else (type(token).__name__,)


def _type(part: Any) -> str:
    return str(part.get("type")) if isinstance(part, Mapping) else ""


def _parts(part: Any) -> Iterator[Mapping[str, Any]]:
    """A part of a tokenizer, and those that it is a sequence of."""
    if isinstance(part, Mapping):
        yield part
        for key in ("pretokenizers", "decoders", "normalizers"):
            for one in _list(part.get(key)):
                yield from _parts(one)


def _listed(name: str, files: Files, where: str) -> Tokens:
    if name.endswith(".json"):
        ids = _checked(_json(files, name, where), name, where)
    else:
        try:
            lines = content(files[name]).decode().split("\n")
        except UnicodeDecodeError as error:
            raise FormatError(f"not UTF-8: {error}", where=[f"{where}: {name}"], help=MEND) from error
        lines = lines[:-1] if lines[-1] == "" else lines
        ids = {line.rstrip("\r"): number for number, line in enumerate(lines)}
    return Tokens(ids, _spelled(ids), {}, frozenset())


def _spelled(ids: Mapping[str, int]) -> str:
    """How tokens are spelled, by what they look like."""
    known = _of_bytes()
    if any("Ġ" in text for text in ids) and all(c in known for text in ids for c in text):
        return "bytes"
    if any(text.startswith("▁") for text in ids):
        return "metaspace"
    return "wordpiece" if any(text.startswith("##") for text in ids) else "plain"


def _added(files: Files, where: str) -> dict[str, int]:
    """Tokens that are added in files of their own."""
    found = _checked(_json(files, ADDED, where), ADDED, where)
    more = _json(files, SETTINGS, where).get("added_tokens_decoder")
    known = more if isinstance(more, Mapping) else {}
    said = {_text(one): int(key) for key, one in known.items() if key.isdecimal() and len(key) < 20}
    return {**found, **_checked(said, SETTINGS, where)}


def _roles(files: Files, where: str) -> dict[str, str]:
    said = {**_json(files, MAP, where), **_json(files, SETTINGS, where)}
    return {role: text for role in ROLES if (text := _text(said.get(role)))}


def _text(token: Any) -> str:
    """A token's text, as a text or as transformers saves an AddedToken."""
    return str(token.get("content") or "") if isinstance(token, Mapping) else token if isinstance(token, str) else ""


def _checked(ids: Mapping[Any, Any], name: str, where: str) -> dict[str, int]:
    if wrong := [f"{t!r}: {n!r}" for t, n in ids.items() if not isinstance(t, str) or type(n) is not int or n < 0]:
        raise FormatError("tokens have no ids", where=[f"{where}: {name}", *listed(wrong)], help=MEND)
    return dict(ids)


def _check_one_each(found: Tokens, where: str) -> None:
    """Raise FormatError where two tokens have one id."""
    if len(found.texts) == len(found.ids):
        return
    double = [f"{text} and {found.texts[n]}: {n}" for text, n in found.ids.items() if found.texts[n] != text]
    raise FormatError("two tokens have one id", where=[where, *listed(double)], help=AS_JSON)


def _json(files: Files, name: str, where: str) -> Mapping[str, Any]:
    if name not in files:
        return {}
    return parse_object(content(files[name]), lambda what: FormatError(what, where=[f"{where}: {name}"], help=MEND))


def _of_bytes() -> dict[str, int]:
    """The character that byte-level BPE writes for each byte: printable ones as Latin-1 has them, the others from
    U+0100 on.
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {**{chr(byte): byte for byte in plain}, **{chr(256 + n): byte for n, byte in enumerate(rest)}}
