"""Numbers of tokens in a config: under which keys they stand, and how to put others in their place.

eos_token_id: 2, or [2, 7]    image_token_index: 32000    suppress_tokens: [1, 2]    lang_to_id: {"<|en|>": 50259}
forced_decoder_ids: [[1, 50259]], a place and an id
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

_KEY = re.compile(r"(?:.*_)?tokens?_(?:id|ids|index|idx)")
_OTHERS = frozenset(
    """
    suppress_tokens begin_suppress_tokens bad_words_ids force_words_ids forced_decoder_ids lang_to_id task_to_id
    text_decoder_lang_to_code_id vocabulary_map im_start_id im_end_id im_newline_id image_start_id image_end_id
    slice_start_id slice_end_id newline_id image_patch_id audio_stream_bos_id audio_stream_eos_id
    bos_index eos_index pad_index unk_index mask_index sequence_bias
    """.split()
)
_OF_OTHER_VOCABULARIES = ("codec_", "tts_codec_", "codebook_", "t2u_", "audio_pad_token")
UNTOLD = frozenset({"sequence_bias"})  # in which numbers of tokens stand among others
# Tokens that are never to be generated: one that is gone is none of them any more.
NEVER = frozenset({"suppress_tokens", "begin_suppress_tokens", "bad_words_ids"})

Move = Callable[[int], int | None]


def is_of_tokens(key: str) -> bool:
    """Whether numbers of tokens stand under the key."""
    return (bool(_KEY.fullmatch(key)) or key in _OTHERS) and not key.startswith(_OF_OTHER_VOCABULARIES)


def ids_in(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """(key, id) for each id in the section, which is not looked for in those within it."""
    for key, value in config.items():
        if is_of_tokens(key):
            yield from ((key, one) for one in _ids(key, value))


def _ids(key: str, value: Any) -> Iterator[int]:
    if type(value) is int and value >= 0:
        yield value
    elif key == "forced_decoder_ids" and isinstance(value, list | tuple):
        for one in value:
            yield from _ids("", one[1] if isinstance(one, list | tuple) and len(one) == 2 else one)
    elif isinstance(value, Mapping | list | tuple):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _ids("", one)


def with_ids(config: Mapping[str, Any], move: Callable[[str, int], int | None]) -> dict[str, Any]:
    """The section with `move(key, id)` for each id; in a list, one that is None goes."""
    return {key: _moved(key, one, partial(move, key)) if is_of_tokens(key) else one for key, one in config.items()}


def _moved(key: str, value: Any, move: Move) -> Any:
    if type(value) is int and value >= 0:
        return move(value)
    if key == "forced_decoder_ids" and isinstance(value, list | tuple):
        return [[one[0], _moved("", one[1], move)] for one in value]
    if isinstance(value, Mapping):
        return {text: _moved("", one, move) for text, one in value.items()}
    if isinstance(value, list | tuple):
        moved = [_moved("", one, move) for one in value]
        if any(isinstance(one, list | tuple) for one in value):  # a sequence of which a token is gone is gone
            return [new for new in moved if None not in new]
        return moved if key == "" and None in moved else [new for new in moved if new is not None]
    return value
