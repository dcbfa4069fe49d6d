"""Which adapter is meant: a PEFT folder, or the one file of any tool, which is recognised by its content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from ...errors import AdapterError, FormatError, NotACheckpoint, SurgeryError, listed
from ...evaluation.read import sha256
from ...opened import takes_opened
from ...step import MERGING, READING, Option
from ..adapter_weights import Weights, is_gguf_here, is_weights, read_weights
from ..beside_adapter import is_litter
from ..folder import Folder, PathLike, locate, opened_as
from ..gguf.adapter import read_adapter
from ..peft import CONFIG, PICKLED, WEIGHTS, Adapter, open_peft
from ..safetensors import Tensors, reading_once
from ..strict import parse_object
from ..torchfile.reader import read_torch
from .archives import check_no_archive
from .format import Format, Found, Said
from .table import FORMATS, format_of
from .tinker import told

LOOKED_AT = Said(strict=False)
_MODELS = ("config.json", "model_index.json")


@takes_opened
def open_adapter(
    path: PathLike | Folder,
    beside: Annotated[
        Sequence[PathLike] | None,
        Option(
            "Safetensors trained beside an adapter, merged along; may be given often; none leaves out what lies there.",
            "FILE",
            ("--with",),
            MERGING,
            path=True,
        ),
    ] = None,
    *,
    format: Annotated[
        str | None, Option("Which tool's it is, where its content is read in more than one way.", "NAME", (), READING)
    ] = None,
    alpha: Annotated[float | None, Option("The scale is alpha / rank; never guessed.", "X", (), READING)] = None,
    enable_lora: Annotated[
        Sequence[bool] | None,
        Option("The trained parts of fused projections, as loralib's enable_lora: 1,0,1.", "N,N,…", panel=READING),
    ] = None,
) -> Adapter:
    """The adapter at `path`, here or on the Hub, as for `open_checkpoint`: a PEFT folder, or the file of another tool,
    or a folder with one. Raises NotACheckpoint, FormatError, AdapterError, NotSupported, HubError.

    `beside` are safetensors files with what was trained beside LoRA, in the same folder or elsewhere: their tensors
    take the place of the base's. Where it is not given, weights in the folder that look like that are `unread`, and
    such an adapter is not merged; an empty list says that they are none of its own.

    What the file of another tool does not say is said here: which `format` it is, where its content leaves that open;
    its `alpha`; which parts of a fused projection loralib trained, as its `enable_lora`.
    """
    said = Said(format, alpha, tuple(enable_lora) if enable_lora is not None else None)
    folder, name = locate(path)
    enabled = None if enable_lora is None else [int(one) for one in enable_lora]
    files = None if beside is None else list(map(str, beside))
    with reading_once():
        made = _meant(folder, name, said, beside)
    how = {"format": format, "alpha": alpha, "enable-lora": enabled, "with": files}
    return replace(made, recipe=opened_as(folder, name, **how))


def _meant(folder: Folder, name: str, said: Said, beside: Sequence[PathLike] | None) -> Adapter:
    if (found := opened(folder, name, said)) is None:
        check_no_archive(folder, name)
        if said != Said():
            tip = "leave --format, --alpha and --enable-lora away: adapter_config.json says what they would"
            raise AdapterError("a PEFT adapter says itself how it is merged", where=[folder.at(name)], help=tip)
        return told(open_peft(folder, "" if _is_peft(folder, name) else name, beside))
    if beside:
        tip = "give them as adapters of their own"
        raise AdapterError("files are read beside PEFT's adapters alone", where=[found.path], help=tip)
    return found


@takes_opened
def open_adapters(paths: Sequence[PathLike], beside: Sequence[PathLike] | None = None, **said: Any) -> list[Adapter]:
    """The adapters, each with those of the files `beside` that lie in its folder, a single one with all; what else is
    said, as for `open_adapter`, is said of all. Raises AdapterError for others.
    """
    if beside is None or len(paths) == 1:
        return [open_adapter(path, beside, **said) for path in paths]
    mine = {
        i: [one for one in beside if str(one).startswith(f"{str(path).rstrip('/')}/")] for i, path in enumerate(paths)
    }
    if lost := [str(one) for one in beside if not any(one in files for files in mine.values())]:
        tip = "give files in the adapters' folders, or merge the adapters one after another"
        raise AdapterError("it is not clear which adapter the file belongs to", where=lost, help=tip)
    return [open_adapter(path, mine[i], **said) for i, path in enumerate(paths)]


def opened(folder: Folder, name: str = "", said: Said = Said()) -> Adapter | None:  # noqa: B008
    """The adapter in the file `name`, or in the one file of the folder that holds one; None where there is none, or
    one of PEFT's in its own folder.

    A folder with a model is not looked into. Raises NotACheckpoint where several files are adapters, and what reading
    one raises.
    """
    if said in (Said(), LOOKED_AT) and _is_peft(folder, name):
        return None
    config, files = _config(folder), [name] if name else _files(folder)
    found = {one: held for one in files if _may_be(folder, one) and (held := _found(folder, one, config))}
    rows = {one: row for one in found if (row := format_of(found[one], said))}
    chosen = [one for one, (row, _) in rows.items() if one in row.files] if len(rows) > 1 else []
    if len(rows) > 1 and len(chosen) != 1:
        tip = f"pass the one that you mean: {folder.at(next(iter(rows)))}"
        raise NotACheckpoint(f"the folder holds {len(rows)} adapters", where=[folder.path, *listed([*rows])], help=tip)
    if not rows:
        return None
    one = chosen[0] if chosen else next(iter(rows))
    left = [other for other in rows if other != one]
    weights = read_weights(folder, one)
    return _opened(folder, weights, replace(found[one], tensors=weights.tensors), *rows[one], said, left)


def _is_peft(folder: Folder, name: str) -> bool:
    """Whether PEFT's own folder is meant, or its file of weights in it."""
    ours = [one for one in (WEIGHTS, PICKLED) if folder.has(one)]
    return folder.has(CONFIG) and bool(ours) and (not name or name in ours)


def _config(folder: Folder) -> Mapping[str, Any]:
    """The adapter_config.json of the folder; {} where there is none, or none that can be read."""
    if not folder.has(CONFIG):
        return {}
    try:
        return parse_object(folder.read(CONFIG), FormatError, nan=True)
    except SurgeryError:
        return {}


def _files(folder: Folder) -> list[str]:
    """The files that may be meant by the folder: safetensors, or others where there are none."""
    if any(folder.has(name) for name in _MODELS) or "peft_type" in _config(folder):
        return []
    here = [name for name in folder.names() if folder.has(name) and _may_be(folder, name) and not is_litter(name)]
    here = [name for name in here if not any(name in row.heads for row in FORMATS.values())]
    return [name for name in here if name.endswith(".safetensors")] or here


def _may_be(folder: Folder, name: str) -> bool:
    return is_weights(name) or is_gguf_here(folder, name)


def _found(folder: Folder, name: str, config: Mapping[str, Any]) -> Found | None:
    """What tells the file's format, read from its header, or its pickle, alone; None where it cannot be read: what is
    no adapter is told by who opens it as something else.
    """
    try:
        if name.endswith(".safetensors"):
            file, header = folder.headers([name])[name]
            return Found(folder.at(name), Tensors(file, header), header.metadata, config)
        if is_gguf_here(folder, name):
            told = read_adapter(folder.file(name).path)
            return Found(folder.at(name), told[1], told[2], config) if told else None
        return Found(folder.at(name), read_torch(folder.file(name).path).tensors, None, config)
    except SurgeryError:
        return None


def _opened(
    folder: Folder, held: Weights, found: Found, row: Format, why: str, said: Said, left: Sequence[str]
) -> Adapter:
    """The adapter with its files, digested, and what is said of it."""
    adapter = row.read(found, said)
    name, files = found.path.rpartition("/")[2], held.source.files
    if found.config:
        files = (replace(folder.file(CONFIG), digest=sha256(folder.file(CONFIG)), whole=True), *files)
    used = {one: tensor for one, tensor in held.source.tensors.items() if not row.into_config(one)}
    notes = [*adapter.notes, *held.notes]
    if left:
        notes.append(f"{name} is meant, as {row.tool} calls its last one, and not {', '.join(listed(list(left)))}")
    if heads := [one for one in row.heads if folder.has(one)]:
        notes.append(
            f"{', '.join(heads)} lies beside the adapter and is not merged: a head that was trained along is lost"
        )
    told = {"format": adapter.dialect or row.tool, "key": row.key, "why": why, "file": name, **_told(said)}
    partly = held.source.partly | {one for one in used if row.shared(one)}
    source = replace(held.source, files=files, tensors=used, partly=partly)
    return replace(adapter, inputs=(source,), notes=tuple(notes), format=told)


def _told(said: Said) -> dict[str, Any]:
    """What a user said, for the history."""
    return {key: value for key in ("alpha", "enable_lora") if (value := getattr(said, key)) is not None}
