"""Adapters of torchtune, in its own names and its own order of rows.

    layers.N.attn.q_proj.lora_a.weight (r, in), .lora_b.weight (out, r), .magnitude (out)

PEFT's shapes and scale; alpha is in an adapter_config.json beside it, where there is one. Rows of q and k are
interleaved as in Meta's checkpoints, (heads, head_dim / 2, 2), where HF has (heads, 2, head_dim / 2), for the model
types whose base torchtune turns so. The base's config.json says heads, and so the order is put right where the base is
at hand. torchtune's own converter leaves the magnitudes of q and k in its order; here they follow their rows.

Source: torchtune 0.6.1, models/convert_weights.py `_permute_lora_matrix`, `tune_to_peft_adapter_weights`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from ...errors import AdapterError, NotSupported
from ...lazy.tensor import Tensor, permute, reshape
from ..peft import Adapter
from .format import Format, Found, Said, all_grouped, pair_of, told_alpha
from .lora import lora_adapter, renamed

TOOL = "torchtune"
_NAME = re.compile(r"(?P<module>.+)\.(?P<part>lora_[ab]\.weight|lora_magnitude|magnitude)")
_PAIR = ("lora_a.weight", "lora_b.weight")
_LEAVES = {
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.output_proj": "self_attn.o_proj",
    "mlp.w1": "mlp.gate_proj",
    "mlp.w2": "mlp.down_proj",
    "mlp.w3": "mlp.up_proj",
}
TURNED = frozenset({"llama", "mistral", "gemma", "gemma2"})  # model types whose q and k torchtune interleaves
STRAIGHT = frozenset({"qwen2", "qwen3"})  # and those whose rows it leaves


def recognise(found: Found) -> str:
    """What tells it."""
    names = [name for name in found.tensors if re.fullmatch(r".+\.lora_[ab]\.weight", name)]
    return f"{names[0]} and such are called as its LoRA is" if names else ""


def read(found: Found, said: Said) -> Adapter:
    """The adapter, under torchtune's names: `fit` gives it the base's. Raises FormatError, AdapterError."""
    modules = all_grouped(found, _NAME, TOOL)
    lora: dict[str, dict[str, Tensor]] = {}
    names, ranks = dict[str, str](), dict[str, tuple[int, float | None]]()
    for module, parts in modules.items():
        a, b = pair_of(found, module, parts, _PAIR)
        if a.shape[0] != b.shape[1]:
            what = f"lora_a {a.shape} and lora_b {b.shape} are not (r, in) and (out, r)"
            raise AdapterError(what, where=[f"{found.path}: {module}"], help="the file is of two trainings")
        lora[module] = {"lora_A.weight": a, "lora_B.weight": b}
        names |= {f"{module}.lora_A.weight": f"{module}.{_PAIR[0]}", f"{module}.lora_B.weight": f"{module}.{_PAIR[1]}"}
        if magnitude := next((part for part in parts if "magnitude" in part), None):
            lora[module]["lora_magnitude_vector"] = parts[magnitude]
            names[f"{module}.lora_magnitude_vector"] = f"{module}.{magnitude}"
        ranks[module] = (a.shape[0], _alpha(found, said, a.shape[0]))
    dora = any("lora_magnitude_vector" in parts for parts in lora.values())
    return lora_adapter(found, TOOL, lora, names, ranks, use_dora=dora, dialect=TOOL)


def _alpha(found: Found, said: Said, rank: int) -> float | None:
    """What adapter_config.json says, where it does, else the user. Raises AdapterError."""
    stated = found.config.get("lora_alpha")
    if stated is None:
        return told_alpha(found, said, rank, TOOL)
    where = [found.path, f"adapter_config.json: r = {found.config.get('r')!r}, lora_alpha = {stated!r}"]
    if said.alpha is not None or isinstance(stated, bool) or not isinstance(stated, int | float):
        tip = "leave --alpha away, or restore the config from the training"
        raise AdapterError("adapter_config.json has an alpha of its own", where=where, help=tip)
    if found.config.get("r", rank) != rank:
        tip = "config and file are not of one training; restore them"
        raise AdapterError(f"the factors are of rank {rank}, and the config says another", where=where, help=tip)
    return float(stated)


def fit(adapter: Adapter, config: Mapping[str, Any], names: Collection[str]) -> Adapter:
    """The adapter under HF's names and in its order of rows, for the base of this config.json. Raises NotSupported."""
    text = config.get("text_config") if isinstance(config.get("text_config"), Mapping) else config
    kind = str((text or {}).get("model_type", ""))
    if kind not in TURNED | STRAIGHT:
        what = f"how torchtune lays out the rows of model type `{kind}` is not known"
        tip = f"known: {', '.join(sorted(TURNED | STRAIGHT))}; else convert it with torchtune, which writes PEFT's form"
        raise NotSupported(what, where=[adapter.path], help=tip)
    new = {module: _called(module) for module in adapter.lora}
    turned = (
        {module: _turned(adapter, module, text or {}) for module in adapter.lora} if kind in TURNED else adapter.lora
    )
    return replace(renamed(replace(adapter, lora=turned), new), dialect="")


def _called(module: str) -> str:
    """What HF calls the module."""
    if found := re.fullmatch(r"(?:decoder\.)?layers\.(\d+)\.(.+)", module):
        return f"model.layers.{found[1]}.{_LEAVES.get(found[2], found[2])}"
    return {"output": "lm_head", "tok_embeddings": "model.embed_tokens"}.get(module, module)


def _turned(adapter: Adapter, module: str, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The module's tensors with the rows of q and k in HF's order."""
    parts = dict(adapter.lora[module])
    key = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(module.rpartition(".")[2])
    if key is None:
        return parts
    heads = config.get(key) or config.get("num_attention_heads")
    rows = parts["lora_B.weight"].shape[0]
    if not isinstance(heads, int) or heads < 1 or rows % (2 * heads):
        where = [f"{adapter.path}: {module}", f"{rows} rows, {key} = {heads!r}"]
        raise AdapterError("the rows are not those of the base's heads", where=where, help="the base is another one")
    return {part: one if part == "lora_A.weight" else _halves(one, heads) for part, one in parts.items()}


def _halves(tensor: Tensor, heads: int) -> Tensor:
    """Rows (heads, head_dim / 2, 2) as (heads, 2, head_dim / 2)."""
    rest = tensor.shape[1:]
    pairs = reshape(tensor, (heads, tensor.shape[0] // heads // 2, 2, *rest))
    return reshape(permute(pairs, (0, 2, 1, *range(3, 3 + len(rest)))), tensor.shape)


FORMAT = Format("torchtune", TOOL, recognise, read, marks=("lora",), takes=frozenset({"alpha"}), fit=fit)
