"""The base's own weights in the file of another tool, beside the LoRA on them: a program saved the state of its model.

They have to be the base's. Else they are merged already, as loralib's are after eval(), or of another base, and what
the LoRA adds to them is not what it adds to this base.
"""

from __future__ import annotations

from dataclasses import replace

from ...checkpoint import Checkpoint
from ...errors import AdapterError, listed
from ...files.peft import Adapter
from ...lazy.dtypes import ARITHMETIC
from ...lazy.tensor import Tensor, add


def without_own_base(checkpoint: Checkpoint, adapter: Adapter) -> Adapter:
    """The adapter without the base's weights that its file holds under LoRA, dropped by name. Reads them, and the
    base's. Raises AdapterError where they differ.
    """
    held = {f"{module}.weight" for module in adapter.lora} & adapter.whole.keys() if adapter.format else set()
    other = [name for name in sorted(held) if not _same(adapter.whole[name], checkpoint.tensors.get(name))]
    if other:
        what = f"{len(other)} weights in the adapter's file, beside LoRA on them, are not the base's"
        tip = (
            "the file may have been saved after its LoRA was merged, as loralib does on eval(), or from another base:"
            " save A and B alone"
        )
        raise AdapterError(what, where=[adapter.path, *listed(other), checkpoint.path], help=tip)
    biases = {f"{name.removesuffix('weight')}bias" for name in held} & adapter.whole.keys()
    held |= {name for name in biases if _same(adapter.whole[name], checkpoint.tensors.get(name))}
    gone = {adapter.names[name]: adapter.whole[name] for name in held}
    kept = {name: tensor for name, tensor in adapter.whole.items() if name not in held}
    return replace(adapter, whole=kept, dropped={**adapter.dropped, **gone})


def _same(tensor: Tensor, base: Tensor | None) -> bool:
    from ...evaluation.compare import same

    if base is None or base.shape != tensor.shape or not {base.dtype, tensor.dtype} <= set(ARITHMETIC):
        return False
    return same(tensor, add(base, [], tensor.dtype) if tensor.dtype != base.dtype else base)
