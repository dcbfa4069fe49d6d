"""A card that the Hub accepts: what it refuses of a card's metadata, mended where the right value is known, or left
out, and said.

PEFT writes the path of a local base into `base_model` and into a tag; the Hub takes nothing there but the id of a
model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import FormatError
from ..files.card import BLOCK, CARD, metadata_of
from .client import retried, translated

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_MODEL = re.compile(r"(?:[\w-][\w.-]{0,95}/)?[\w-][\w.-]{0,95}")
_TAG = re.compile(r"(?P<head>base_model:(?:\w+:)?)(?P<value>.+)")


def accepted(card: str, bases: Sequence[str]) -> tuple[str, list[str]]:
    """The card without what names no model as the one it is made of: `bases` take its place. And a note on what was
    changed.

    All that stands beside it stays as it was, to the byte.
    """
    before = metadata_of(card)
    wanted, swapped = _mended(before, bases)
    if wanted == before:
        return card, []
    text = _edited(card, swapped)
    if _parsed(text) != wanted:
        text = _rewritten(card, wanted)
    gone = ", ".join(dict.fromkeys(str(old) or "an empty entry" for old in swapped))
    now = (
        f"{', '.join(bases)}, as the manifest or the configs say"
        if bases
        else "nothing, since no manifest or config names one"
    )
    return text, [f"the card named {gone} as its base, which is no model on the Hub: {now}, takes its place"]


def check_card(api: HfApi, card: str) -> None:
    """Ask the Hub whether it takes the card, before anything is sent. Raises FormatError with its reasons."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    def asked() -> Any:
        body = {"repoType": "model", "content": card}
        answer = get_session().post(f"{api.endpoint}/api/validate-yaml", json=body, headers=build_hf_headers())
        if answer.status_code in (400, 404, 405):  # other servers of the protocol have no such check
            return answer
        hf_raise_for_status(answer)
        return answer

    with translated("check the card", [CARD]):
        answer = retried(asked, "check the card", [CARD])
        errors = answer.json().get("errors", ()) if answer.status_code == 400 else ()
    if answer.status_code == 400:
        reasons = [str(error.get("message")) for error in errors] or ["no reason is given"]
        raise FormatError(
            "the Hub does not take the card's metadata",
            where=[CARD, *reasons],
            help="mend what stands between its two lines of ---",
        )


def _names_a_model(value: Any) -> bool:
    return isinstance(value, str) and bool(_MODEL.fullmatch(value)) and not os.path.exists(value)


def _mended(metadata: Mapping[str, Any], bases: Sequence[str]) -> tuple[dict[str, Any], dict[Any, list[str]]]:
    """The metadata as they should be, and what takes the place of each value that goes."""
    made, swapped = dict(metadata), dict[Any, list[str]]()
    said = metadata.get("base_model")
    if "base_model" in metadata:
        entries = said if isinstance(said, list) else [said]
        good = [entry for entry in entries if _names_a_model(entry)]
        swapped |= {entry if isinstance(entry, str) else "": list(bases) for entry in entries if entry not in good}
        if swapped or not good:
            found = list(dict.fromkeys([*good, *bases]))
            made["base_model"] = found if isinstance(said, list) or len(found) > 1 else found[0] if found else None
    if isinstance(tags := metadata.get("tags"), list):
        pairs = [(tag, _tags(tag, bases)) for tag in tags]
        swapped |= {tag: new for tag, new in pairs if new != [tag]}
        made["tags"] = [new for _, news in pairs for new in news]
    return {
        key: value for key, value in made.items() if value not in (None, []) or metadata.get(key) == value != said
    }, swapped


def _tags(tag: Any, bases: Sequence[str]) -> list[Any]:
    """The tag, or those that take its place where it names a base that is no model."""
    found = _TAG.fullmatch(tag) if isinstance(tag, str) else None
    if not found or _names_a_model(found["value"]):
        return [tag]
    return [f"{found['head']}{base}" for base in bases]


def _edited(card: str, swapped: Mapping[Any, Sequence[str]]) -> str:
    """The card with those lines of its metadata replaced that hold one of the values and nothing else."""
    found = BLOCK.match(card)
    text = found["yaml"] if found else ""
    for old, new in swapped.items():
        value = rf"(?P<q>[\"']?){re.escape(old)}(?P=q)"
        line = re.compile(rf"^(?P<head>base_model:[ \t]+|[ \t]*-[ \t]+){value}[ \t]*(?P<end>\r?\n)", re.MULTILINE)
        text = line.sub(lambda at, new=new: "".join(f"{at['head']}{value}{at['end']}" for value in new), text)
    return card[: found.start("yaml")] + text + card[found.start("end") :] if found else card


def _parsed(card: str) -> dict[str, Any] | None:
    try:
        return metadata_of(card)
    except FormatError:
        return None


def _rewritten(card: str, metadata: Mapping[str, Any]) -> str:
    """The card with its metadata written anew."""
    import yaml

    found = BLOCK.match(card)
    assert found
    text = str(yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True)) if metadata else ""
    return card[: found.start("yaml")] + text + card[found.start("end") :]
