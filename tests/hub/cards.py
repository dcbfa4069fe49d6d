"""What the Hub refuses in a card's metadata, in the words of its own errors, for commits and for /api/validate-yaml
alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

_ID = re.compile(r"(?:[A-Za-z0-9_-][\w.-]{0,95}/)?[A-Za-z0-9_-][\w.-]{0,95}")
_BLOCK = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
LICENSES = (
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigcode-openrail-m bsd bsd-2-clause"
    " bsd-3-clause cc cc0-1.0 cc-by-4.0 cc-by-sa-4.0 cc-by-nc-4.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 gpl gpl-2.0 gpl-3.0"
    " lgpl-3.0 agpl-3.0 llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma artistic-2.0 mpl-2.0 unlicense wtfpl isc"
    " afl-3.0 other unknown"
).split()


def card_errors(card: str) -> list[str]:
    """Why the Hub does not take the card; nothing where it does."""
    found = _BLOCK.match(card)
    if not found:
        return []
    try:
        metadata = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        return [f"bad YAML: {error}"]
    return (
        [*_errors(metadata)]
        if isinstance(metadata, dict)
        else []
        if metadata is None
        else ["the metadata must be an object"]
    )


def _errors(metadata: dict[str, Any]) -> Iterator[str]:
    for key in ("base_model", "datasets"):
        if key in metadata:
            yield from _ids(key, metadata[key])
    licenses = metadata.get("license", [])
    for license in licenses if isinstance(licenses, list) else [licenses]:
        if license not in LICENSES:
            yield f'"license" must be one of [{", ".join(LICENSES)}]'
    tags = metadata.get("tags", [])
    if not isinstance(tags, list):
        yield '"tags" must be an array'
    for i, tag in enumerate(tags if isinstance(tags, list) else []):
        if not isinstance(tag, str) or not tag:
            yield f'"tags[{i}]" must be a string'
        elif (
            base := re.fullmatch(r"base_model:(?:(?:adapter|finetune|merge|quantized):)?(.+)", tag)
        ) and not _ID.fullmatch(base[1]):
            yield f'"tags[{i}]" with value "{tag}" is not valid. Use a model id from https://hf.co/models.'
    languages = metadata.get("language", [])
    for i, language in enumerate(languages if isinstance(languages, list) else [languages]):
        if not isinstance(language, str) or language != language.lower():
            yield f'"language[{i}]" must only contain lowercase characters'


def _ids(key: str, value: Any) -> Iterator[str]:
    if value in ("", None):
        yield f'"{key}" is not allowed to be empty'
        return
    for name in value if isinstance(value, list) else [value]:
        if not isinstance(name, str) or not _ID.fullmatch(name):
            yield f'"{key}" with value "{name}" is not valid. Use a model id from https://hf.co/models.'
