"""What a file holds beside LoRA where a program saved the whole state of its model: the base's own weights, in a
wrapper or not.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from ...lazy.tensor import Tensor

_WRAPPERS = re.compile(r"\.(?:original_layer|original_module|original|base_layer|linear|conv)(?=\.(?:weight|bias)$)")


def held_whole(rest: Mapping[str, Tensor], modules: Collection[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The other tensors by the base's names, without the wrapper around a module with LoRA; and their names in the
    file.
    """
    whole, names = dict[str, Tensor](), dict[str, str]()
    for name, tensor in rest.items():
        bare = _WRAPPERS.sub("", name)
        key = bare if bare.rpartition(".")[0] in modules else name
        whole[key], names[key] = tensor, name
    return whole, names
