"""Whether an adapter was trained on codes, and the base given has them: what the names say, and which bases must never
be taken for each other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...checkpoint import Checkpoint
from ...errors import AdapterError, NotSupported
from ...evaluation.read import content
from ...files.peft import Adapter
from ...quantization.declared import places
from ...quantization.quantised import SCHEMES, Quantisation, method_of
from .lineage import named, names_it

# What repositories of quantised models have in their names.
MARK = re.compile(
    r"(?:^|[-_.])((?:bnb|[48]-?bits?|nf4|gptq|awq|fp8|nvfp4|mxfp4|fp4|int[48]|w\d+a\d+|aqlm|hqq|exl[23]|quantized)\b.*)",
    re.IGNORECASE,
)
RESCALING = ("SmoothQuantModifier", "AWQModifier", "SpinQuantModifier", "QuIPModifier")  # in llm-compressor's recipes
RECIPE = "recipe.yaml"
AWARE = "nvfp4_merge_aware"


def on_codes(
    base: Checkpoint, held: Quantisation, adapters: Sequence[Adapter], *, any_base: bool, through: str | None
) -> list[str]:
    """Notes on adapters whose base, by its name, is quantised where this one is not, or the reverse.

    Raises NotSupported for an adapter that is right only in new codes, and AdapterError for one of a model whose
    weights were rescaled or rotated where this base's were not, or the reverse, unless `any_base`.
    """
    notes, why = list[str](), rescaled(base, held)
    plain = held.scheme is None and next(places(base.config), None) is None
    for one in (adapter for adapter in adapters if adapter.inputs and adapter.path != base.path):
        _check_aware(one)
        said = named(one)
        if not said or names_it(base, one):
            continue
        mark = mark_of(said)
        if not any_base:
            _check_rescaled(base, one, said, mark, why)
        if mark and plain and not through:
            notes.append(_trained_on_codes(one, said))
        if held.weights and not mark:
            notes.append(_trained_on_16_bits(one, said, held))
    return notes


def mark_of(name: str) -> str:
    """What in the name of a model says that it is quantised, such as `bnb-4bit`; "" where nothing does."""
    found = MARK.search(name.rstrip("/").rpartition("/")[2])
    return found[1] if found else ""


def rescaled(base: Checkpoint, held: Quantisation) -> str:
    """What was done to a model around its weights when it was quantised, so that no delta of another one fits it; ""
    where nothing is known of it.
    """
    said = next((said for _, said in places(base.config)), {})
    scheme = held.scheme or SCHEMES.get(method_of(said))
    if scheme and scheme.rescaled:
        return scheme.rescaled
    if said.get("transform_config"):
        return "its weights are rotated, as `transform_config` says"
    if found := next((name for name in base.tensors if name.endswith("pre_quant_scale")), ""):
        return f"the inputs of its weights are scaled: {found}"
    if said and RECIPE in base.files:
        text = content(base.files[RECIPE]).decode("utf-8", "replace")
        return next((f"{RECIPE} says {name}" for name in RESCALING if name in text), "")
    return ""


def _check_aware(adapter: Adapter) -> None:
    """Raise NotSupported for an adapter that was trained through the quantiser of NVFP4."""
    if adapter.config.get(AWARE):
        raise NotSupported(
            "the adapter was trained through NVFP4's rounding, and is right only where the sum is coded anew",
            where=[adapter.path, f"adapter_config.json: {AWARE} = {adapter.config[AWARE]!r}"],
            help="merge it with the program that trained it",
        )


def _check_rescaled(base: Checkpoint, adapter: Adapter, said: str, mark: str, why: str) -> None:
    """Raise AdapterError where weights of one of the two models were rescaled, and those of the other were not."""
    theirs = "awq" in mark.lower()
    if bool(why) == theirs or (why and mark):
        return
    what = f"this base is another model: {why}" if why else "AWQ rescaled its weights, and not those of this base"
    raise AdapterError(
        f"the adapter was trained on {said}, and {what}",
        where=[adapter.path, f"base_model_name_or_path = {said!r}", base.path],
        help="give the base that it was trained on; if this is that one: --any-base, in Python any_base=True",
    )


def _trained_on_codes(adapter: Adapter, said: str) -> str:
    return (
        f"{adapter.path} was trained on {said}, which is quantised by its name, and this base is in 16 bits: the result"
        f" is not the model that was trained. That is what merging into {said} gives, or --through nf4 where it is NF4"
        f" of this base; --trained-on {said} measures how far apart the two are"
    )


def _trained_on_16_bits(adapter: Adapter, said: str, held: Quantisation) -> str:
    scheme = next(iter(held.weights.values())).scheme
    return (
        f"{adapter.path} was trained on {said}, and this base is {scheme}: if {said} was loaded so for the training, as"
        " QLoRA does, the result is the model that was trained; if it was loaded in 16 bits, it is not"
    )
