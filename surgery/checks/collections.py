"""What lies in a checkpoint that is more than one model of transformers': pipelines, single files, other libraries.

Each row looks at names of files and tensors and at small JSON files, and says in lines what is there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import FormatError, SurgeryError, listed, series
from ..evaluation.read import content
from ..files.strict import parse_object
from ..lazy.tensor import Tensor
from ..models.originals import row_of, told
from ..names import natural
from ..surgeries.originals import params_in
from ..units import size

# What the tensors of a file with several models in it begin with (CompVis and what followed), and what that is.
PARTS = (
    (r"model\.diffusion_model\.", "the denoiser (U-Net or transformer)"),
    (r"model_ema\.", "an average of the denoiser's weights"),
    (r"first_stage_model\.|vae\.", "the autoencoder"),
    (r"cond_stage_model\.", "the text encoder"),
    (r"conditioner\.embedders\.\d+\.", "a text encoder"),
    (r"text_encoders\.\w+?\.", "a text encoder"),
    (r"control_model\.", "a control network"),
)
_MARKS = ("model.diffusion_model.", "first_stage_model.")


def held_in(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What the checkpoint holds, a line each; nothing for a plain model."""
    return tuple(line for row in _ROWS for line in row(checkpoint))


def foreign_to_transformers(checkpoint: Checkpoint) -> str:
    """What the checkpoint is, where that is a model of another library than transformers; empty for all else."""
    found = [line for row in (_original, _timm, _open_clip, _foreign) for line in row(checkpoint)]
    return found[0].partition(":")[0] if found else ""


def _original(checkpoint: Checkpoint) -> list[str]:
    try:
        params = params_in(checkpoint)
    except SurgeryError as error:
        return [f"a maker's own layout, but {error.what}"]
    return [told(row_of(params), params)] if params is not None else []


def _components(checkpoint: Checkpoint) -> list[str]:
    """Each component of a pipeline: its class, and how much it holds."""
    index = _json(checkpoint, "model_index.json")
    lines = []
    for folder, part in checkpoint.parts.items():
        said = index.get(folder)
        kind = " of ".join(map(str, reversed(said))) if isinstance(said, list) else _class(part)
        form = f", {part.format}" if part.format else ""
        lines.append(f"{folder}: {f'{kind}, ' if kind else ''}{_counted(part.tensors)}{form}")
    return lines


def _class(part: Checkpoint) -> str:
    return str(part.config.get("_class_name") or series(map(str, part.config.get("architectures") or ())))


def _single_file(checkpoint: Checkpoint) -> list[str]:
    """The parts of a single file of a diffusion model."""
    if checkpoint.parts or not any(name.startswith(_MARKS) for name in checkpoint.tensors):
        return []
    held: dict[str, dict[str, Tensor]] = {}
    for name, tensor in checkpoint.tensors.items():
        found = next((match[0] for pattern, _ in PARTS if (match := re.match(pattern, name))), "")
        held.setdefault(found, {})[name] = tensor
    words = {at: next((what for pattern, what in PARTS if re.fullmatch(pattern, at)), "other tensors") for at in held}
    return [f"{at}: {words[at]}, {_counted(held[at])}".removeprefix(": ") for at in sorted(held, key=natural)]


def _sentence_transformers(checkpoint: Checkpoint) -> list[str]:
    modules = _list(checkpoint, "modules.json")
    kinds = [(str(one.get("path", "")), str(one.get("type", ""))) for one in modules if isinstance(one, dict)]
    if not kinds:
        return []
    here = {path for path, _ in kinds if path in checkpoint.parts or not (path or checkpoint.parts)}
    carried = {path for path, _ in kinds if path not in here and _weights(checkpoint, path)}
    said = [
        f"{kind.rpartition('.')[2]}{f' in {path}/' if path else ''}{' (its weights are carried)' * (path in carried)}"
        for path, kind in kinds
    ]
    return [f"sentence-transformers: {series(said)}"]


def _weights(checkpoint: Checkpoint, path: str) -> bool:
    return any(one.startswith(f"{path}/") and one.endswith((".safetensors", ".bin")) for one in checkpoint.files)


def _timm(checkpoint: Checkpoint) -> list[str]:
    config = checkpoint.config
    named = config.get("architecture")
    if not isinstance(named, str) or not ({"pretrained_cfg", "num_classes", "num_features"} & config.keys()):
        return []
    classes = config.get("num_classes")
    return [f"timm: {named}{f', {classes} classes' if isinstance(classes, int) else ''}"]


def _open_clip(checkpoint: Checkpoint) -> list[str]:
    model = _json(checkpoint, "open_clip_config.json").get("model_cfg")
    if not isinstance(model, dict):
        return []
    towers = [name for name in ("vision_cfg", "text_cfg") if isinstance(model.get(name), dict)]
    widths = [f"{name.removesuffix('_cfg')} {_tower(model[name])}" for name in towers]
    return [f"open_clip: embeddings of {model.get('embed_dim')}, {series(widths)}"]


def _tower(said: Mapping[str, Any]) -> str:
    named = said.get("timm_model_name") or said.get("hf_model_name")
    return str(named) if named else f"of width {said.get('width')}, {said.get('layers')} layers"


# What tensors of checkpoints from other places than transformers are called: (all of these, what it is).
FOREIGN = (
    (("encoder.blocks.0.attn.query.weight", "decoder.token_embedding.weight"), "Whisper, as OpenAI publishes it"),
    (("visual.conv1.weight", "transformer.resblocks.0.attn.in_proj_weight"), "CLIP, as OpenAI and open_clip have it"),
    (("encoder.sentence_encoder.embed_tokens.weight",), "a model of fairseq"),
    (("decoder.sentence_encoder.embed_tokens.weight",), "a model of fairseq"),
)


def _foreign(checkpoint: Checkpoint) -> list[str]:
    """A model under names of another library, where no config.json says more."""
    if checkpoint.config:
        return []
    return next(([what] for names, what in FOREIGN if all(name in checkpoint.tensors for name in names)), [])


def _counted(tensors: Mapping[str, Tensor]) -> str:
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    dtypes = sorted({tensor.dtype.name for tensor in tensors.values()})
    return f"{len(tensors)} tensors, {size(nbytes)}, {series(listed(dtypes, 3))}"


def _json(checkpoint: Checkpoint, name: str) -> Mapping[str, Any]:
    found = _read(checkpoint, name)
    return found if isinstance(found, dict) else {}


def _list(checkpoint: Checkpoint, name: str) -> list[Any]:
    found = _read(checkpoint, name)
    return found if isinstance(found, list) else []


def _read(checkpoint: Checkpoint, name: str) -> Any:
    """A small JSON file; None where it is none, or cannot be read: it says nothing then."""
    if name not in checkpoint.files:
        return None
    try:
        return parse_object(b'{"all": %s}' % content(checkpoint.files[name]), FormatError)["all"]
    except SurgeryError:
        return None


_ROWS: tuple[Callable[[Checkpoint], list[str]], ...] = (
    _original,
    _components,
    _single_file,
    _sentence_transformers,
    _timm,
    _open_clip,
    _foreign,
)
