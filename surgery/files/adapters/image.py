"""Adapters of image and video models: as kohya's scripts and LyCORIS, diffusers, ComfyUI, ai-toolkit and XLabs write
them, in one file each.

    lora_unet_<path with _>.lora_down.weight, .lora_up.weight, .lora_mid.weight, .alpha, .dora_scale        kohya
    unet.<path>.lora_A.weight, .lora_B.weight; .lora.down.weight, .lora.up.weight                           diffusers
    <path>.processor.to_q_lora.down.weight; text_encoder.<path>.lora_linear_layer.down.weight         diffusers, older
    diffusion_model.<path>.lora_A.weight                                                          ComfyUI, ai-toolkit
    double_blocks.0.processor.qkv_lora1.down.weight                                                             XLabs

Each tensor is read by its own name, since tools mix forms in one file. Modules keep the names that the file has for
them; which module of the base each is, is looked up where the base is at hand. The scale is alpha / rank, by module:
an alpha of the file, that of diffusers' `lora_adapter_metadata`, or else the rank; rsLoRA is in kohya's alphas already.

Source: kohya-ss/sd-scripts `networks/lora.py`; lycoris-lora 4.1.3; diffusers 0.42.1, loaders/lora_conversion_utils.py.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping

from ...errors import AdapterError, FormatError, NotSupported, listed
from ...lazy.dtypes import F32
from ...lazy.low_rank import LowRank
from ...lazy.tensor import Tensor, Zeros, add, permute, reshape
from ..peft import PREFIX, Adapter
from .alphas import BIAS, IA3_IN, IA3_OUT, LORA, MAGNITUDE, MID, A, B, config_of
from .scalars import scalars

# What follows the module's name, as a rule, and the part that it is.
_SUFFIXES = {
    r"alpha": "alpha",
    r"lora_down\.weight": A,
    r"lora_up\.weight": B,
    r"lora_mid\.weight": MID,
    r"lora_A(?:\.default(?:_\d+)?)?\.weight": A,
    r"lora_B(?:\.default(?:_\d+)?)?\.weight": B,
    r"lora_B(?:\.default(?:_\d+)?)?\.bias": BIAS,
    r"lora\.down\.weight": A,
    r"lora\.up\.weight": B,
    r"lora_linear_layer\.down\.weight": A,
    r"lora_linear_layer\.up\.weight": B,
    r"lora_magnitude_vector(?:\.default(?:_\d+)?)?(?:\.weight)?": MAGNITUDE,
    r"dora_scale": "dora_scale",
}
_OWN = (
    r"hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)|diff|diff_b|w_norm|b_norm|on_input"
    r"|oft_(?:blocks|diag)|rescale|[ab][12]\.weight|[pq]_layer\.weight|lambda_layer|weight"
)
# The last part of each name that _OWN takes, but for `weight`.
_LEAVES = frozenset(
    "alpha dora_scale hada_w1_a hada_w1_b hada_w2_a hada_w2_b hada_t1 hada_t2 lokr_w1 lokr_w1_a lokr_w1_b lokr_w2"
    " lokr_w2_a lokr_w2_b lokr_t2 diff diff_b w_norm b_norm on_input oft_blocks oft_diag rescale lambda_layer".split()
)
_HOLDERS = tuple(f".{leaf}.weight" for leaf in ("a1", "a2", "b1", "b2", "p_layer", "q_layer"))
_FLAT = r"(?:(?:lora|lycoris)_(?:unet|te\d?|transformer|prior_unet)|lycoris)_[^.]+"
_DOTTED = r"(?:unet|transformer|text_encoder(?:_\d)?|text_encoders|diffusion_model|prior)\..+"
# Forms in which something stands between the module's name and the part: (tool, rule, module).
_PROCESSORS = (
    (r"(?P<at>.+)\.processor\.(?P<leaf>to_[qkv])_lora\.(?P<way>down|up)\.weight", r"\g<at>.\g<leaf>"),
    (r"(?P<at>.+)\.processor\.to_out_lora\.(?P<way>down|up)\.weight", r"\g<at>.to_out.0"),
    (r"(?P<at>text_encoder.+)\.to_(?P<leaf>[qkv])_lora\.(?P<way>down|up)\.weight", r"\g<at>.\g<leaf>_proj"),
    (r"(?P<at>text_encoder.+)\.to_out_lora\.(?P<way>down|up)\.weight", r"\g<at>.out_proj"),
)
_XLABS = (
    (r"(?P<at>.*double_blocks\.\d+)\.processor\.(?P<leaf>qkv|proj)_lora1\.(?P<way>down|up)\.weight", "img"),
    (r"(?P<at>.*double_blocks\.\d+)\.processor\.(?P<leaf>qkv|proj)_lora2\.(?P<way>down|up)\.weight", "txt"),
)
_WAYS = {"down": A, "up": B}
_T_LORA = "T-LoRA is not merged: it subtracts factors that it made of the base, and that its file does not hold"


def tool_of(names: Collection[str]) -> str:
    """The tool that writes such names; "" where they are of no adapter that is read here."""
    names = [name for name in names if not name.startswith(PREFIX)]
    parts = {name: found for name in names if (found := _parsed(name))}
    tools = Counter(_tool(name, *found) for name, found in parts.items())
    tools.pop("", None)
    return " and ".join(sorted(tools)) if len(parts) == len(names) or sum(tools.values()) > len(names) / 2 else ""


def read(path: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> Adapter:
    """The adapter of a file. Raises FormatError, AdapterError, NotSupported."""
    _check_module(path, metadata or {})
    modules, names = _modules(path, tensors)
    _check_parts(path, names)
    _with_sides(path, modules, names)
    alphas = {module: parts.pop("alpha") for module, parts in modules.items() if "alpha" in parts}
    if lone := [f"{path}: {names[f'{module}.alpha']}" for module, parts in modules.items() if not parts]:
        what = "an alpha is of a module that has no other tensor"
        raise AdapterError(what, where=listed(lone), help="the file is incomplete: save it again")
    values = scalars({f"{path}: {names[f'{module}.alpha']}": tensor for module, tensor in alphas.items()})
    said = dict(zip(alphas, values.values(), strict=True))
    config, notes = config_of(path, modules, said, metadata or {})
    _check_ranks(path, modules, names)
    parts = {module: _without_mid(path, module, held, names) for module, held in modules.items()}
    keys = {f"{module}.{part}": names[f"{module}.{part}"] for module, held in parts.items() for part in held}
    return Adapter(path, config, parts, {}, keys, metadata=metadata, notes=notes, dialect=tool_of(tensors))


def into_config(name: str) -> bool:
    """Whether a tensor of this name is a number that is read into the config."""
    return name.endswith((".alpha", ".on_input"))


def _check_parts(path: str, names: Mapping[str, str]) -> None:
    """Raise NotSupported for T-LoRA, whose factors are not in its file."""
    found = [
        name for key, name in names.items() if key.endswith((".q_layer.weight", ".p_layer.weight", ".lambda_layer"))
    ]
    if found:
        raise NotSupported(_T_LORA, where=[path, *listed(found)], help="merge it with LyCORIS")


def _check_ranks(path: str, modules: Mapping[str, Mapping[str, Tensor]], names: Mapping[str, str]) -> None:
    """Raise AdapterError where the two factors of a module are of two ranks."""
    wrong = [
        f"{path}: {names[f'{module}.{A}']} {a.shape}, {names[f'{module}.{B}']} {b.shape}"
        for module, parts in modules.items()
        if (a := parts.get(A)) and (b := parts.get(B)) and a.shape[:1] != b.shape[1:2] and MID not in parts
    ]
    if wrong:
        tip = "the file is of two trainings, or cut: save it again"
        raise AdapterError("the factors of a module are of two ranks", where=listed(wrong), help=tip)


def _with_sides(path: str, modules: Mapping[str, dict[str, Tensor]], names: dict[str, str]) -> None:
    """(IA)³'s numbers get a part that tells inputs from outputs, as `on_input` says. Raises AdapterError where
    nothing does.
    """
    mine = {module: parts for module, parts in modules.items() if "weight" in parts}
    if lost := [f"{path}: {names[f'{module}.weight']}" for module, parts in mine.items() if "on_input" not in parts]:
        tip = "save the file again, with the on_input that LyCORIS writes"
        raise AdapterError(
            "whether these are factors of inputs or of outputs is not said", where=listed(lost), help=tip
        )
    sides = scalars({f"{path}: {names[f'{module}.on_input']}": parts.pop("on_input") for module, parts in mine.items()})
    for (module, parts), side in zip(mine.items(), sides.values(), strict=True):
        part = IA3_IN if side else IA3_OUT
        parts[part] = parts.pop("weight")
        names[f"{module}.{part}"] = names[f"{module}.weight"]


def _may_be(name: str) -> bool:
    """Whether a name may be of such a file at all: cheap, since every checkpoint's names are asked."""
    telling = "lora" in name or "lycoris" in name
    return telling or name.rpartition(".")[2] in _LEAVES or name.endswith(_HOLDERS)


def _parsed(name: str) -> tuple[str, str] | None:
    """The module and the part that a tensor's name says."""
    if not _may_be(name):
        return None
    for rule, module in _PROCESSORS:
        if found := re.fullmatch(rule, name):
            return found.expand(module), _WAYS[found["way"]]
    for rule, side in _XLABS:
        if found := re.fullmatch(rule, name):
            return f"{found['at']}.{side}_attn.{found['leaf']}", _WAYS[found["way"]]
    if found := re.fullmatch(
        r"(?P<at>.*single_blocks\.\d+)\.processor\.(?P<leaf>qkv|proj)_lora\.(?P<way>down|up)\.weight", name
    ):
        return f"{found['at']}.{'linear2' if found['leaf'] == 'proj' else 'qkv'}", _WAYS[found["way"]]
    for rule, part in _SUFFIXES.items():
        if found := re.fullmatch(rf"(?P<module>.+)\.{rule}", name, re.DOTALL):
            return found["module"], part
    own = re.fullmatch(rf"(?P<module>.+?)\.(?P<part>{_OWN})", name, re.DOTALL)
    if own and (own["part"] != "weight" or re.fullmatch(_FLAT, own["module"])):
        return own["module"], own["part"]
    return None


def _tool(name: str, module: str, part: str) -> str:
    """The tool that a tensor's name tells of; "" where it tells of none."""
    if (
        ".processor." in name
        and "_blocks." in name
        and module != name
        and re.match(r".*(?:double|single)_blocks\.", name)
    ):
        return "XLabs"
    if re.fullmatch(_FLAT, module):
        return "kohya" if part in {*LORA, "alpha", "dora_scale"} else "LyCORIS"
    if ".processor." in name or re.fullmatch(r".+\.lora(?:_linear_layer)?\.(?:down|up)\.weight", name):
        return "diffusers"
    if module.startswith("diffusion_model.") and part in {*LORA, "alpha", "diff", "diff_b"}:
        return "ComfyUI or ai-toolkit"
    if re.fullmatch(_DOTTED, module) and part in {*LORA, "alpha"}:
        return "diffusers"
    if re.fullmatch(r".+\.lora_(?:down|up|mid)\.weight", name):
        return "kohya"
    return "LyCORIS" if re.match(r"hada_|lokr_|oft_blocks", part) else ""


def _modules(path: str, tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """The tensors by module and part, and their names in the file. Raises FormatError."""
    found: dict[str, dict[str, Tensor]] = {}
    names: dict[str, str] = {}
    strange = [name for name in tensors if _parsed(name) is None]
    if strange:
        tip = "a file holds one adapter and nothing else: take them out, or merge with the tool that wrote it"
        what = f"{len(strange)} tensors in the file of an adapter are none of its parts"
        raise FormatError(what, where=[path, *listed(strange)], help=tip)
    for name, tensor in tensors.items():
        module, part = _parsed(name) or ("", "")
        if part == "dora_scale" and (tensor.shape[0] != 1 or tensor.size == 1):
            part = MAGNITUDE  # of rows, as PEFT's; of columns it is a kind of its own
        if part in found.setdefault(module, {}):
            where = [f"{path}: {names[f'{module}.{part}']}", name]
            raise FormatError("two adapter tensors mean the same", where=where, help="keep one of them")
        found[module][part] = tensor
        names[f"{module}.{part}"] = name
    return found, names


def _check_module(path: str, metadata: Mapping[str, str]) -> None:
    """Raise NotSupported for what only the metadata tells from LoRA."""
    said = f"{metadata.get('ss_network_module', '')} {metadata.get('ss_network_args', '')}".lower()
    if "tlora" in said:
        raise NotSupported(_T_LORA, where=[path], help="merge it with LyCORIS")
    if "dylora" in said:
        what = "DyLoRA is not merged: its live network and its own merge scale by the block, and not as its file says"
        raise NotSupported(what, where=[path], help="save it at one rank with the tool that trained it")


def _without_mid(path: str, module: str, parts: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of a module with Tucker's core in A: A[x, i, k…] = Σ mid[x, y, k…] down[y, i], of the same rank."""
    if MID not in parts or A not in parts:
        return dict(parts)
    mid, down = parts[MID], parts[A]
    r, kernel = mid.shape[0], mid.shape[2:]
    if len(mid.shape) < 3 or mid.shape[:2] != (r, down.shape[0]) or down.size != math.prod(down.shape[:2]):
        where = [f"{path}: {names[f'{module}.{MID}']}", f"lora_mid is {mid.shape}, lora_down {down.shape}"]
        raise AdapterError("the core and the factor do not belong together", where=where, help="save the file again")
    axes = (0, *range(2, len(mid.shape)), 1)
    left = reshape(permute(mid, axes), (r * math.prod(kernel), r))
    flat = add(Zeros(F32, (left.shape[0], down.shape[1])), [LowRank(left, reshape(down, down.shape[:2]), 1.0)])
    made = permute(reshape(flat, (r, *kernel, down.shape[1])), (0, len(kernel) + 1, *range(1, len(kernel) + 1)))
    return {part: made if part == A else tensor for part, tensor in parts.items() if part != MID}
