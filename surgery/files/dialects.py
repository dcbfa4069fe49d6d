"""Adapters of other tools than PEFT, told by their content: which tool wrote them, so that an error can say that
they are not read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from ..errors import FormatError, SurgeryError
from .folder import Folder
from .strict import parse_object

# Name -> what some tensor of such a file is called. The first that fits is meant.
KINDS: Mapping[str, re.Pattern[str]] = {
    "torchtune": re.compile(r".+\.lora_[ab]\.weight"),
    "MLX": re.compile(r".+\.lora_[ab]"),
    "loralib": re.compile(r"(?!base_model\.).+\.lora_[AB]"),
}


def written_by(names: Collection[str]) -> str:
    """The tool that names an adapter's tensors so; "" for PEFT's own names and for what is no adapter's."""
    if any(name.startswith("base_model.model.") for name in names):
        return ""
    return next((tool for tool, rule in KINDS.items() if any(rule.fullmatch(name) for name in names)), "")


def dialect_of(folder: Folder, files: Collection[str], config: Mapping[str, Any] | None = None) -> str:
    """What is to be said of an adapter in these safetensors files, where a tool is known that writes such; "" else."""
    for name in files:
        try:
            tool = written_by(folder.headers([name])[name][1].entries)
        except SurgeryError:
            continue
        if tool:
            return _said(tool, name)
    if config is not None and ("fine_tune_type" in config or "lora_parameters" in config):
        return _said("MLX", "adapter_config.json")
    return ""


def in_folder(folder: Folder, config_name: str) -> str:
    """As `dialect_of`, for all that lies in the folder."""
    files = [name for name in folder.names() if name.endswith(".safetensors") and folder.has(name)]
    config = None
    if folder.has(config_name):
        try:
            config = parse_object(folder.read(config_name), FormatError)
        except SurgeryError:
            config = None
    return dialect_of(folder, files[:8], config)


def _said(tool: str, name: str) -> str:
    return (
        f"{name} is an adapter as {tool} writes it, and only PEFT's are read: convert it with {tool}'s own tools to"
        " PEFT's format"
    )
