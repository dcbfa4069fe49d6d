"""What config.json says, believed where it is read: an option that is of another type than every model's is an error
for who asks for it, and stays as it is for who does not.

    Config({"vocab_size": [], "note": [1]})["vocab_size"]     raises FormatError
    dict(Config({"vocab_size": []}))                          what was written in the file

Null is what a file may always say. Source: transformers 5.23, the defaults of all its configurations; a test compares
them with the table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..errors import FormatError
from .strict import MEND

LARGEST = 2**63 - 1
MOST_LAYERS = 1000  # that a model has, unless it has as many tensors
# A line of indented JSON that ends in Infinity as a value: no text holds the end of a line.
_INFINITE = re.compile(r'^(?P<begin> *(?:"(?:[^"\\]|\\.)*": )?-?)Infinity(?P<end>,?)$', re.MULTILINE)
_COUNTS = ("layers", "layer", "blocks", "experts", "depth")  # how options end that say of how much a model is made


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST


TYPES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "architectures": (_is_texts, "a list of names"),
    "model_type": (lambda value: isinstance(value, str), "a text"),
    "vocab_size": (_is_size, "a whole number"),
}


class Config(dict[str, Any]):
    """The object in a config.json, and each object in it, that checks what is asked for; `where` is the file."""

    def __init__(self, content: Mapping[str, Any], where: str, at: str = "") -> None:
        inner = {
            key: Config(value, where, f"{at}{key}.") if isinstance(value, dict) else value
            for key, value in content.items()
        }
        super().__init__(inner)
        self.where, self.at = where, at

    def __getitem__(self, key: str) -> Any:
        return self._checked(key, super().__getitem__(key))

    def get(self, key: str, default: Any = None) -> Any:
        """The option, or `default` where the file does not have it."""
        return self._checked(key, super().__getitem__(key)) if key in self else default

    def __reduce__(self) -> tuple[Any, ...]:
        return Config, (dict(self), self.where, self.at)

    def _checked(self, key: str, value: Any) -> Any:
        holds, name = TYPES.get(key, (None, ""))
        if holds is None or value is None or holds(value):
            return value
        raise FormatError(f"the {self.at}{key} is {_shown(value)}, not {name}", where=[self.where], help=MEND)


def encoded(config: Mapping[str, Any]) -> str:
    """The JSON of a config, as transformers writes it; a number beyond all floats stays one in the file, too."""
    return _INFINITE.sub(r"\g<begin>1e999\g<end>", json.dumps(config, indent=2, sort_keys=True))


def impossible(config: Mapping[str, Any], tensors: int) -> str:
    """What a config says of how much its model is made of, where no model of so many tensors is; "" where nothing."""
    found = (f"{key} is {_shown(value)}" for key, value in _numbers(config) if value > max(MOST_LAYERS, tensors))
    return next(found, "")


def _numbers(config: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, int | float]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{at}{key}.")
        elif str(key).endswith(_COUNTS) and isinstance(value, int | float):
            yield f"{at}{key}", value


def _shown(value: Any) -> str:
    """A value for a message, short: a number of thousands of digits is not written out."""
    if isinstance(value, int) and abs(value) > LARGEST:
        return "a number of too many digits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
