"""The reference of Python, as pages of mkdocstrings ask for it: each public name, below the head that it belongs to."""

from __future__ import annotations

import inspect

import surgery

HEADS = {
    "Open and write": """open_checkpoint open_adapter open_adapters open_any is_adapter Checkpoint Adapter Input
        plan Plan write execute Report Step clean reindex Reindexed following_links""",
    "Look and prove": """inspect Inspection diff Difference Change verify Verification Check Proof Judgement Verdict""",
    "Adapters": """merge reversible unmerge unmerge_approximately inject inject_into own_adapter combine resize_adapter
        extract convert_adapter""",
    "Fused modules": """split fuse split_qkv fuse_qkv split_gate_up fuse_gate_up split_experts fuse_experts Given
        convert""",
    "Other surgeries": """rename drop keep add cast tie untie layers vocabulary blend as_mergekit quantize dequantize
        convert_files map_rows from_recipe""",
    "The Hub": """push plan_push execute_push preview HubDestination PushPlan PushReport""",
}
ERRORS = "Errors"


def heads() -> dict[str, list[str]]:
    """The public names by head; what no head names stands under the last one, and errors have one of their own."""
    found = {head: [name for name in names.split() if name in surgery.__all__] for head, names in HEADS.items()}
    named = {name for names in found.values() for name in names}
    rest = [name for name in surgery.__all__ if name not in named and not name.startswith("__")]
    errors = [name for name in rest if _is_error(getattr(surgery, name))]
    return {**found, "Others": [name for name in rest if name not in errors], ERRORS: errors}


def _is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Exception)


def reference() -> str:
    """The page's text."""
    return "\n\n".join(
        f"## {head}\n\n" + "\n\n".join(f"::: {_place(name)}" for name in names)
        for head, names in heads().items()
        if names
    )


def _place(name: str) -> str:
    """Where a public name is defined, which is where its documentation is read."""
    value = inspect.unwrap(getattr(surgery, name))
    return f"{value.__module__}.{value.__qualname__}"
