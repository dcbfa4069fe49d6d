"""Adapters that lie in pickles, and in numpy's archives: refused, never opened, with the way to safetensors."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ...errors import NotACheckpoint
from ..folder import Folder
from ..peft import CONFIG, WEIGHTS

# What such a file is called -> what makes safetensors of it. The first that fits.
WAYS: Mapping[str, str] = {
    r"pytorch_adapter\.bin|pytorch_model_(?:head|adapter_fusion)\.bin": (
        "load it with AdapterHub's adapters, and save it by save_adapter(…, use_safetensors=True)"
    ),
    r"adapter_model\.bin": "load it with PEFT, and save it by save_pretrained, which writes safetensors",
    r"adapters?.*\.npz": "load it with mlx.core.load, and save it by mlx.core.save_safetensors",
    r"(?:adapter|.*lora).*\.(?:pt|pth|bin|ckpt)": (
        "load it with torch.load(…, weights_only=True), and save it by safetensors.torch.save_file"
    ),
}
_ANY = re.compile(r".*\.(?:pt|pth|bin|ckpt|pkl|pickle)")


def check_no_pickle(folder: Folder, name: str = "") -> None:
    """Raise NotACheckpoint where the file is a pickle, or where the folder's only adapter is one."""
    if not name and (folder.has(WEIGHTS) or folder.has("config.json")):
        return
    here = [name] if name else [one for one in folder.names() if folder.has(one) and _way(one)]
    found = next((one for one in here if _way(one) or (name and _ANY.fullmatch(one))), None)
    if found is None or (not name and folder.has(CONFIG) and found == "adapter_model.bin"):
        return
    way = _way(found) or WAYS[r"(?:adapter|.*lora).*\.(?:pt|pth|bin|ckpt)"]
    tip = f"a pickle can run code, so it is not opened; where you trust it, {way}"
    raise NotACheckpoint("the adapter is no safetensors file", where=[folder.at(found)], help=tip)


def _way(name: str) -> str:
    return next((way for rule, way in WAYS.items() if re.fullmatch(rule, name)), "")
