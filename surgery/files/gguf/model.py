"""A model in a GGUF file, or in the parts of a split one, under the names that it has on the Hub.

Where nothing is known of an architecture, tensors keep the names of the file, and a note says so. Blocks are read as
what they mean, in float16: safetensors holds none, and no loader takes them there.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from ...errors import FormatError, NotACheckpoint, NotSupported, SurgeryError, listed, series
from ...lazy.coding import Coding
from ...lazy.dtypes import DTYPES, F16
from ...lazy.tensor import Decoded, Stored, Tensor, narrow, reshape
from ..folder import Folder
from ..opened import SHARD, Opened
from ..strict import MEND, parse_object
from .config import config_of, shortest
from .header import AGAIN, Header, Info, is_gguf, read_header
from .moves import ONLY_WEIGHTS, Heads, Move, by_rows
from .names import ARCHITECTURES, MIXTRAL, Architecture
from .rope import TABLES, rotation

ENDING = ".gguf"
PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
CONFIG = "config.json"
TEMPLATE = "chat_template.jinja"
MOST_EXPERTS = 1 << 14
SAME = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "vocab_size",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
)


def read_gguf(folder: Folder, name: str) -> Opened | None:
    """The weights in the folder, or in its file `name`, where they are in GGUF; None for all else."""
    names = _chosen(folder, name)
    if not names:
        return None
    if folder.file(names[0]).remote:
        tip = "fetch it first, with hf download, and pass the file"
        raise NotSupported("GGUF is not read from the Hub", where=[folder.at(names[0])], help=tip)
    headers = {one: read_header(folder.file(one).path) for one in names}
    _check_set(folder, headers)
    return _made(folder, headers)


def _chosen(folder: Folder, name: str) -> list[str]:
    """The files that are meant: all parts of a split one. Raises NotACheckpoint where it is not clear which."""
    if name:
        if not name.endswith(ENDING) and (name.endswith((".safetensors", ".json")) or not _begins(folder, name)):
            return []
        return _parts(folder, name)
    here = sorted(one for one in folder.names() if one.endswith(ENDING) and folder.has(one))
    sets = list(dict.fromkeys(tuple(_parts(folder, one)) for one in here))
    if len(sets) > 1:
        told = series(listed([one[0] for one in sets]))
        tip = f"pass the one that you mean: {folder.at(sets[0][0])}"
        raise NotACheckpoint(f"the folder holds more than one model in GGUF: {told}", where=[folder.path], help=tip)
    return list(sets[0]) if sets else []


def _begins(folder: Folder, name: str) -> bool:
    file = folder.file(name)
    return not file.remote and is_gguf(file.path)


def _parts(folder: Folder, name: str) -> list[str]:
    """All parts of the file that it is one of. Raises NotACheckpoint where some are not there."""
    found = PART.fullmatch(name)
    if not found:
        return [name]
    count = int(found["count"])
    if not 0 < count <= len(folder.names()):
        names = [name]
    else:
        names = [f"{found['stem']}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
    missing = [one for one in names if not folder.has(one)]
    if missing or len(names) != count:
        what = f"of {count} parts of a split GGUF some are not there"
        raise NotACheckpoint(what, where=[folder.path, *listed(missing)], help="fetch them into the same folder")
    return names


def _check_set(folder: Folder, headers: Mapping[str, Header]) -> None:
    """Raise FormatError unless the files are all parts of one model, in order."""
    first = next(iter(headers.values()))
    counts = {header.number("split.count") or 1 for header in headers.values()}
    if counts != {len(headers)}:
        what = f"the files say that they are of {series(map(str, sorted(counts)))} parts, and there are {len(headers)}"
        raise FormatError(what, where=[folder.path, *listed(list(headers))], help="pass the folder with all of them")
    wrong = [
        name for at, (name, one) in enumerate(headers.items()) if len(headers) > 1 and one.number("split.no") != at
    ]
    if wrong:
        what = "parts of a split GGUF are not what their names say"
        raise FormatError(what, where=[folder.path, *listed(wrong)], help=AGAIN)
    found = Counter(one.name for header in headers.values() for one in header.tensors)
    if double := [name for name, count in found.items() if count > 1]:
        raise FormatError("tensors are in two parts of a GGUF", where=[folder.path, *listed(double)], help=AGAIN)
    wanted = first.number("split.tensors.count")
    if wanted is not None and wanted != len(found):
        what = f"the parts hold {len(found)} tensors, and say that they hold {wanted}"
        raise FormatError(what, where=[folder.path, *listed(list(headers))], help=AGAIN)


def _made(folder: Folder, headers: Mapping[str, Header]) -> Opened:
    first = next(iter(headers.values()))
    infos = {one.name: one for header in headers.values() for one in header.tensors}
    if not infos:
        raise NotACheckpoint("the GGUF holds no tensors, as one of a vocabulary alone", where=[first.file.path])
    known, why = _known(first, infos)
    rope = rotation(first, infos, known.model_type, _theta(first)) if known else {}
    told = frozenset(TABLES if rope else ())
    tensors, shards, leaves = dict[str, Tensor](), dict[str, str](), dict[str, Stored]()
    strange = list[str]()
    for number, header in enumerate(headers.values(), 1):
        shard = SHARD if len(headers) == 1 else f"model-{number:05}-of-{len(headers):05}.safetensors"
        for one in header.tensors:
            if one.name in told:
                continue
            leaves[one.name], tensor = _tensor(header, one)
            placed = _placed(first, one, tensor, known) if known else {}
            strange += [] if placed or not known else [one.name]
            for name, made in (placed or {one.name: tensor}).items():
                if name in tensors:
                    raise FormatError("two tensors would have one name", where=[first.file.path, name], help=AGAIN)
                tensors[name], shards[name] = made, shard
    said = config_of(first, list(infos.values()), known, rope) if known else {}
    files, notes = _files(folder, first, said)
    notes += _tokenizer(folder, first)
    return Opened(
        _title(headers, known),
        tuple(header.file for header in headers.values()),
        tensors,
        shards,
        leaves,
        frozenset(headers),
        notes=(*why, *_strange(strange), *_blocks(infos.values()), *_tables(infos, told), *notes),
        made=files,
    )


def _theta(header: Header) -> float:
    found = header.metadata.get(f"{header.text('general.architecture')}.rope.freq_base")
    return shortest(found) if isinstance(found, float) and found > 0 else 10000.0


def _known(header: Header, tensors: Mapping[str, Info]) -> tuple[Architecture | None, list[str]]:
    """What is known of the model; else None, and a note."""
    name = header.text("general.architecture")
    kind = header.text("general.type") or "model"
    known = ARCHITECTURES.get("mistral" if name == "llama" and header.text("general.name") == "mistral" else name)
    if name == "llama" and (header.number("llama.expert_count") or 0) > 0:
        known = MIXTRAL
    said = header.metadata.get(f"{name}.feed_forward_length"), header.metadata.get(f"{name}.attention.head_count")
    if kind != "model":
        raise NotACheckpoint(f"the GGUF holds no model, and says that it is: {kind}", where=[header.file.path])
    if known and any(isinstance(one, list) and len(set(one)) > 1 for one in said):
        return None, [
            f"tensors keep the names of GGUF: layers of this {name} differ in width, which no class there has"
        ]
    if known:
        return known, []
    which = series(sorted(ARCHITECTURES))
    return None, [
        f"tensors keep the names of GGUF, which no loader takes: of `{name}` none others are known, of {which}"
    ]


def _tensor(header: Header, one: Info) -> tuple[Stored, Tensor]:
    """The stored bytes of a tensor, and what they mean."""
    if one.kind.dtype:
        plain = Stored(one.kind.dtype, one.shape, header.file, one.offset)
        return plain, plain
    *lead, wide = one.shape
    codes = Stored(DTYPES["U8"], (*lead, wide // one.kind.elements * one.kind.nbytes), header.file, one.offset)
    coding = Coding("blocks", None, (1, one.kind.elements), flat=True, layout=one.kind.name)
    return codes, Decoded(F16, one.shape, coding, codes, (), one.name)


def _placed(header: Header, one: Info, tensor: Tensor, known: Architecture) -> dict[str, Tensor]:
    """The tensors of the model there that one of the file is; {} where nothing is known of it."""
    module, dot, last = one.name.rpartition(".")
    found = re.fullmatch(r"blk\.(\d+)\.(.+)", module)
    key = f"blk.{found[2]}" if found else module
    called = known.names.get(key)
    if called is None or last not in ("weight", "bias"):
        return {}
    called = called.replace("#", found[1] if found else "")
    try:
        moved = _moved(header, tensor, known.moves.get(key), last)
        return {f"{name}{dot}{last}": part for name, part in _experts(called, moved).items()}
    except SurgeryError as error:
        what = f"a tensor does not fit the model that it is of: {error.what}"
        raise FormatError(what, where=[header.file.path, one.name], help=AGAIN) from error


def _moved(header: Header, tensor: Tensor, move: Move | None, last: str) -> Tensor:
    if move is None or (last != "weight" and move in ONLY_WEIGHTS):
        return tensor
    name = header.text("general.architecture")
    heads = header.number(f"{name}.attention.head_count") or 0
    return move(tensor, Heads(heads, header.number(f"{name}.attention.head_count_kv") or heads))


def _experts(called: str, tensor: Tensor) -> dict[str, Tensor]:
    """A tensor by its name, or those of experts that are stacked in it by theirs."""
    if "*" not in called:
        return {called: tensor}
    if len(tensor.shape) != 3 or tensor.shape[0] > MOST_EXPERTS:
        raise FormatError(f"a stack of experts is {list(tensor.shape)}")
    rows = tensor.shape[1]

    def nth(number: int) -> Tensor:
        return by_rows(tensor, lambda one: reshape(narrow(one, 0, number, 1), (rows, one.shape[-1])))

    return {called.replace("*", str(number)): nth(number) for number in range(tensor.shape[0])}


def _title(headers: Mapping[str, Header], known: Architecture | None) -> str:
    first = next(iter(headers.values()))
    name = first.text("general.architecture") or "no architecture"
    parts = f", {len(headers)} parts" if len(headers) > 1 else ""
    return f"GGUF of version {first.version}{parts}, {name}"


def _strange(names: Sequence[str]) -> list[str]:
    told = series(listed(list(names)))
    return [f"{len(names)} tensors keep the names of GGUF, since none others are known: {told}"] if names else []


def _blocks(infos: Iterable[Info]) -> list[str]:
    """What is told of tensors that are read as what their blocks mean."""
    kinds = Counter(one.kind.name for one in infos if not one.kind.dtype)
    if not kinds:
        return []
    told = series([f"{name} ({count})" for name, count in kinds.most_common()])
    how = "in float16, unless surgery dequantize --dtype says another dtype (float32 rounds nothing)"
    return [f"safetensors has no blocks of codes, so they are written as what they mean, {how}: {told}"]


def _tables(infos: Mapping[str, Info], told: Collection[str]) -> list[str]:
    here = [name for name in TABLES if name in infos]
    if not here:
        return []
    if told:
        return [f"what a table says of the rotation of positions, config.json says in its words: {series(here)}"]
    return [
        f"config.json does not say what these tables do, and a loader will rotate positions otherwise: {series(here)}"
    ]


def _tokenizer(folder: Folder, header: Header) -> list[str]:
    if "tokenizer.ggml.tokens" not in header.metadata or folder.has("tokenizer.json"):
        return []
    name = os.path.basename(header.file.path)
    how = f"AutoTokenizer.from_pretrained(DIR, gguf_file={name!r}).save_pretrained(OUT) of transformers writes it"
    return [f"the tokenizer stays in the GGUF: {how}"]


def _files(folder: Folder, header: Header, config: Mapping[str, Any]) -> tuple[dict[str, bytes], list[str]]:
    """The files that the metadata make, and what is to be told of them: those beside the file come first."""
    files, notes = dict[str, bytes](), list[str]()
    here = folder.has(CONFIG)
    if config and not (here and _agrees(folder, config)):
        files[CONFIG] = f"{json.dumps(config, indent=2, sort_keys=True)}\n".encode()
        notes += [f"{CONFIG} beside the GGUF is of another model, or of none, and the metadata count"] if here else []
    if (template := header.text("tokenizer.chat_template")) and not (here and folder.has(TEMPLATE)):
        files[TEMPLATE] = template.encode()
    return files, notes


def _agrees(folder: Folder, config: Mapping[str, Any]) -> bool:
    """Whether config.json beside the file is of the same model. Raises FormatError where it is no JSON."""
    where = [folder.at(CONFIG)]
    beside = parse_object(folder.read(CONFIG), lambda what: FormatError(what, where=where, help=MEND))
    return all(beside.get(key) == config[key] for key in SAME if key in config)
