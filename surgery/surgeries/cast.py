"""Another dtype for the weights, and for config.json: of all that a pattern matches, or of what most weights are in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from ..checkpoint import Checkpoint
from ..errors import NothingMatched, NotSupported, SurgeryError, listed, series
from ..lazy.dtypes import ARITHMETIC, BF16, CASTABLE, E4M3, E5M2, F16, F32, F64, WIDER, Dtype, Kind
from ..lazy.tensor import Tensor, in_dtype, rounded
from ..names import natural, select
from ..quantization.codes import codes_in
from ..step import Option, step

NAMES = {"float16": F16, "bfloat16": BF16, "float32": F32, "float64": F64}
SHORT = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "fp64": "float64"}
SHORT |= {dtype.name: name for name, dtype in NAMES.items()}  # as files and `inspect` have them
DTYPES = (*NAMES, *SHORT)
FLOAT8 = {"float8_e4m3fn": E4M3, "float8_e5m2": E5M2}
SHORT8 = {"float8": "float8_e4m3fn", "fp8": "float8_e4m3fn"} | {dtype.name: name for name, dtype in FLOAT8.items()}
SAYS = ("dtype", "torch_dtype")  # what a config calls it
_ONLY = Option("Cast the tensors whose whole name matches; the rest stays as it is.", "REGEX")
_EXCEPT = Option("Leave tensors as they are whose whole name matches.", "REGEX", ("--except",))
_LOSSY = Option("Take what torch makes of values beyond the range of the dtype, instead of refusing them.")


@step
def cast(
    checkpoint: Checkpoint,
    dtype: Annotated[
        str,
        Option(
            "float32, float16, bfloat16, float64, float8_e4m3fn or float8_e5m2.",
            "DTYPE",
            among=(*DTYPES, *FLOAT8, *SHORT8),
        ),
    ],
    *,
    only: Annotated[str | None, _ONLY] = None,
    except_: Annotated[str | None, _EXCEPT] = None,
    allow_overflow: Annotated[bool, _LOSSY] = False,
) -> Checkpoint:
    """Write weights in another dtype, bit for bit as torch casts them; what became zero is counted, by tensor.

        cast(checkpoint, "bfloat16", except_=r".*\\.router\\..*")

    Values beyond the range of the dtype end the run, unless `allow_overflow`: then they are infinite, and in
    float8_e4m3fn, which has no infinity, its largest value, as torch has it. Both are counted while they are written.
    What is no float stays; codes of quantised weights and their scales do, and a note says so. config.json follows
    where all weights are of the dtype then; where it is float8, which no class computes in, it names the dtype to load
    it in.

    Raises SurgeryError for an unknown dtype, NothingMatched where nothing is chosen, NotSupported where codes are all
    that is chosen, or where nothing says whether weights are codes.
    """
    new = parsed(dtype, {**NAMES, **FLOAT8}, {**SHORT, **SHORT8})
    codes = codes_in(checkpoint)
    if codes and new in FLOAT8.values():
        tip = "take another dtype, or write it in 16 bits first: surgery dequantize MODEL -o OUT"
        raise NotSupported(
            "float8 without scales beside codes would be taken for codes", where=[checkpoint.path], help=tip
        )
    chosen = set(_chosen(checkpoint, codes, only, except_))
    tensors = {n: rounded(t, new, lossy=allow_overflow) if n in chosen else t for n, t in checkpoint.tensors.items()}
    made = replace(checkpoint, tensors=tensors)
    followed, told = _config(made, checkpoint, new, codes)
    changed = [name for name in tensors if tensors[name] is not checkpoint.tensors[name]]
    given = {"only": only, "except": except_, "allow_overflow": allow_overflow or None}
    said = {key: value for key, value in given.items() if value is not None}
    notes = [*_notes(checkpoint, codes, changed, new), *told]
    return followed.with_step(
        {"surgery": "cast", "dtype": str(new), "cast": len(changed), **said}, notes=(*made.notes, *notes)
    )


def _chosen(checkpoint: Checkpoint, codes: Collection[str], only: str | None, except_: str | None) -> list[str]:
    """The floating tensors that the patterns leave in, without codes. Raises NothingMatched, NotSupported."""
    named = select(checkpoint.tensors, only) if only is not None else list(checkpoint.tensors)
    left = set(select(checkpoint.tensors, except_)) if except_ is not None else set[str]()
    floats = [n for n in named if n not in left and checkpoint.tensors[n].dtype.kind is Kind.FLOAT]
    plain = [n for n in floats if n not in codes and checkpoint.tensors[n].dtype in CASTABLE]
    if plain:
        return plain
    if floats:
        raise NotSupported(
            "codes of quantised weights, and their scales, are not cast: they would mean something else",
            where=[checkpoint.path, *listed(sorted(floats, key=natural))],
            help="write what they mean in 16 bits: surgery dequantize MODEL -o OUT",
        )
    kinds = Counter(str(checkpoint.tensors[n].dtype) for n in named if n not in left)
    tip = f"what they leave is of {series(list(kinds))}" if kinds else "--except leaves nothing of it"
    raise NothingMatched("no floating tensor is left to cast", where=[checkpoint.path], help=tip)


def _notes(checkpoint: Checkpoint, codes: Collection[str], changed: Sequence[str], new: Dtype) -> list[str]:
    """What a user should know of what was cast, and of what was not."""
    if not changed:
        return [f"all that was to be cast is {new} already"]
    sizes = Counter[Dtype]()
    for name in changed:
        sizes[checkpoint.tensors[name].dtype] += checkpoint.tensors[name].size
    usual = max(sizes, key=lambda one: sizes[one])
    odd = [n for n in changed if checkpoint.tensors[n].dtype != usual and new not in WIDER[checkpoint.tensors[n].dtype]]
    named = series(listed([f"{n} ({checkpoint.tensors[n].dtype})" for n in sorted(odd, key=natural)]))
    notes = [f"in another dtype than most weights, and cast too: {named}; --except leaves them"] if odd else []
    if codes:
        notes.append(f"{len(codes)} tensors of quantised weights stay as they are: codes, and what belongs to them")
    return notes


def _config(made: Checkpoint, before: Checkpoint, new: Dtype, codes: Collection[str]) -> tuple[Checkpoint, list[str]]:
    """`made` with config.json, and that of each component of a pipeline, as it has to be, and what that means."""
    files, notes = dict(made.files), list[str]()
    for at in [f"{folder}/" for folder in made.parts] or [""]:
        path = f"{at}config.json"
        if path not in files:
            continue
        mine = {n: t for n, t in made.tensors.items() if n.startswith(at) and n not in codes}
        floats = {t.dtype for t in mine.values() if t.dtype.kind is Kind.FLOAT}
        one = replace(made, files={"config.json": files[path]})
        main = _main({n: before.tensors[n] for n in mine}, F32)
        edited, told = _edited(one.config, floats, new, main, alone=not at)
        notes += [f"{path} {line}" for line in told]
        if edited != one.config:
            files[path] = one.with_config(edited).files["config.json"]
    return replace(made, files=files), notes


def _edited(
    config: Mapping[str, Any], floats: Collection[Dtype], new: Dtype, main: Dtype, *, alone: bool
) -> tuple[Mapping[str, Any], list[str]]:
    """The config of weights of these dtypes, after a cast to `new` of what was `main`; what to know of it."""
    said = next((str(config[key]) for key in SAYS if config.get(key)), "")
    if not (said or alone):
        return config, []
    whole = floats == {new}
    if new in FLOAT8.values():
        name = said or _called(main if main in ARITHMETIC else BF16)
        told = (
            f"says {name}: transformers loads float8 without scales in that dtype, so that only the files are smaller"
        )
        return (config, [told]) if said else (_with_dtype(config, name), [told])
    if whole:
        return _with_dtype(config, _called(new)), []
    return config, [f"says {said} still: transformers loads all weights in that dtype"] if said else []


def _called(dtype: Dtype) -> str:
    return next(name for name, one in {**NAMES, **FLOAT8}.items() if one == dtype)


def with_dtype(checkpoint: Checkpoint, dtype: str, before: Mapping[str, Tensor]) -> Checkpoint:
    """The checkpoint in `dtype` ("bfloat16", ...), and config.json says so. What is computed anyway is still rounded
    once, but for what was computed `before` by another step: that is as if it had been written.

    That is: each tensor of the dtype that most weights have, and each of which `dtype` holds every value. Others,
    such as the float32 router of a bfloat16 model, keep theirs, and a note names them: transformers would keep them
    too.
    """
    new, dtype = parsed(dtype), SHORT.get(dtype, dtype)
    floats = {n: t for n, t in checkpoint.tensors.items() if t.dtype.kind is Kind.FLOAT}
    main = _main(floats, new)
    kept = {n for n, t in floats.items() if t.dtype not in (main, new) and new not in WIDER.get(t.dtype, ())}

    def turned(name: str, tensor: Tensor) -> Tensor:
        return rounded(tensor, new) if before.get(name) is tensor else in_dtype(tensor, new)

    chosen = {n: turned(n, t) for n, t in floats.items() if n not in kept}
    made = replace(checkpoint, tensors={**checkpoint.tensors, **chosen})
    if "config.json" in checkpoint.files:
        made = made.with_config(_with_dtype(checkpoint.config, dtype))
    named = ", ".join(listed([f"{n} ({floats[n].dtype})" for n in sorted(kept, key=natural)]))
    note = f"kept in their own dtype, since they are in another one than most weights: {named}"
    return made.with_step(
        {"surgery": "cast", "dtype": str(new), "kept": len(kept)}, notes=(*made.notes, *([note] if kept else []))
    )


def _main(tensors: Mapping[str, Tensor], default: Dtype) -> Dtype:
    """The dtype that most of the weights have."""
    sizes = Counter[Dtype]()
    for tensor in tensors.values():
        sizes[tensor.dtype] += tensor.size
    return max((d for d in sizes if d in ARITHMETIC), key=lambda d: sizes[d], default=default)


def parsed(dtype: str, names: Mapping[str, Dtype] = NAMES, short: Mapping[str, str] = SHORT) -> Dtype:
    """What a user calls "bfloat16", or "bf16". Raises SurgeryError for what weights are not written in."""
    name = short.get(dtype, dtype)
    if name not in names:
        raise SurgeryError(
            f"`{dtype}` is no dtype to write weights in", help=f"one of {series(list(names))}, or {series(list(short))}"
        )
    return names[name]


def _with_dtype(config: Mapping[str, Any], dtype: str, *, top: bool = True) -> dict[str, Any]:
    """The config with `dtype` wherever it says one, in nested configs too; on top where it says none."""
    nested = {
        key: value for key, value in config.items() if isinstance(value, Mapping) and key != "quantization_config"
    }
    made = {**config, **{key: _with_dtype(value, dtype, top=False) for key, value in nested.items()}}
    said = [key for key in SAYS if key in config and isinstance(config[key], str | None)]
    return made | dict.fromkeys(said or (["dtype"] if top else []), dtype)
