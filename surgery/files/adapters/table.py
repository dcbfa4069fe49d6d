"""The formats of adapters that are read, and which of them a file is."""

from __future__ import annotations

from collections.abc import Mapping

from ...errors import AdapterError, FormatError, nearest, series
from ..peft import PREFIX
from . import adapterhub, gguf, handwritten, image, loralib, megatron, mlx, peft_file, tinker, torchtune
from .format import Format, Found, Said, marks_in

IMAGE = Format(
    "image",
    "an image model's tool",
    lambda found: _image(found),
    lambda found, said: image.read(found.path, found.tensors, found.metadata),
    into_config=image.into_config,
)
FORMATS: Mapping[str, Format] = {
    row.key: row
    for row in (
        peft_file.FORMAT,
        IMAGE,
        mlx.FORMAT,
        loralib.FORMAT,
        handwritten.PRODUCT,
        handwritten.OUTPUT,
        torchtune.FORMAT,
        megatron.FORMAT,
        tinker.FORMAT,
        gguf.FORMAT,
        adapterhub.FORMAT,
    )
}
OPTIONS = {"alpha": "--alpha", "enable_lora": "--enable-lora"}


def format_of(found: Found, said: Said = Said()) -> tuple[Format, str] | None:  # noqa: B008
    """The format of a file, and what tells it; None where it is no adapter's that is known.

    Raises FormatError for a file of two formats, AdapterError for a format that was said and that it cannot be, and
    for options that its format does not take.
    """
    marks = marks_in(found.tensors, {mark for row in FORMATS.values() for mark in row.marks})
    told = {row.key: why for row in FORMATS.values() if (why := row.tells(found, marks))}
    if said.format is not None:
        row = _said(found, said.format, told)
        why = f"said, by --format {row.key}"
    elif len(told) > 1:
        rows = [f"{FORMATS[key].tool}: {why}" for key, why in told.items()]
        tip = f"where it is one format alone, say which: --format {' or '.join(told)}; else keep one of them"
        raise FormatError(f"the file is of {len(told)} formats at once", where=[found.path, *rows], help=tip)
    elif not told:
        return None
    else:
        ((key, why),) = told.items()
        row = FORMATS[key]
    _check_options(found, row, said)
    return row, why


def tool_of(dialect: str) -> Format | None:
    """The format by whose tool an adapter's modules are called, where it has a way to give them the base's names."""
    return next((row for row in FORMATS.values() if row.fit and row.tool == dialect), None)


def _said(found: Found, key: str, told: Mapping[str, str]) -> Format:
    row = FORMATS.get(key.lower())
    if row is None:
        near = nearest(key, FORMATS)
        tip = f"one of {', '.join(FORMATS)}" + (f"; the nearest is {near[0]}" if near else "")
        raise AdapterError(f"there is no format `{key}` of adapters", where=[found.path], help=tip)
    if not row.can_be(found):
        what = f"the file is no adapter as {row.tool} writes it"
        rows = [f"{FORMATS[one].tool}: {why}" for one, why in told.items()] or [series(list(found.tensors)[:3])]
        tip = f"by its content it is {' or '.join(told)}" if told else "its tensors are called as no adapter's are"
        raise AdapterError(what, where=[found.path, *rows], help=tip)
    return row


def _check_options(found: Found, row: Format, said: Said) -> None:
    for option, flag in OPTIONS.items():
        if getattr(said, option) is not None and option not in row.takes:
            what = f"{flag} says what a file as {row.tool} writes it says itself"
            raise AdapterError(what, where=[found.path], help=f"leave {flag} away")


def _image(found: Found) -> str:
    tool = image.tool_of(found.tensors)
    first = next((name for name in found.tensors if not name.startswith(PREFIX)), "")
    return f"{first} and such are called as {tool} does" if tool else ""
