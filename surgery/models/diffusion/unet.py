"""The U-Net of Stable Diffusion 1, 2 and XL: blocks that the original counts through, and diffusers stage by stage.

    input_blocks.i, i = 1 + b * (L + 1) + j     down_blocks.b.resnets.j and .attentions.j; j = L is the downsampler
    output_blocks.i, i = b * (L + 1) + j        up_blocks.b.resnets.j and .attentions.j, and behind j = L the upsampler

L, the layers of a block, and the number of blocks follow from the modules that are there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from .naming import DIFFUSERS, ORIGINAL, Naming, Pair

_ENDS = (
    Pair("input_blocks.0.0", ("conv_in",)),
    Pair("out.0", ("conv_norm_out",)),
    Pair("out.2", ("conv_out",)),
    Pair("time_embed.0", ("time_embedding.linear_1",)),
    Pair("time_embed.2", ("time_embedding.linear_2",)),
    Pair("label_emb.0.0", ("add_embedding.linear_1",)),
    Pair("label_emb.0.2", ("add_embedding.linear_2",)),
)
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def _pairs(modules: Collection[str]) -> list[Pair]:
    blocks, layers = _size(modules)
    return [*_ENDS, *_down(blocks, layers), *_middle(), *_up(blocks, layers, modules)]


def _size(modules: Collection[str]) -> tuple[int, int]:
    """How many blocks there are, and layers in each."""
    down = [re.match(r"down_blocks\.(\d+)\.resnets\.(\d+)\.", module) for module in modules]
    if found := [(int(hit[1]), int(hit[2])) for hit in down if hit]:
        return max(b for b, _ in found) + 1, max(j for _, j in found) + 1
    inputs = {int(hit[1]) for module in modules if (hit := re.match(r"input_blocks\.(\d+)\.", module))}
    stages = {int(hit[1]) for module in modules if (hit := re.match(r"input_blocks\.(\d+)\.0\.op$", module))}
    step = min(stages, default=max(inputs, default=0) + 1)
    return (max(inputs, default=0) // step + 1, step - 1) if step > 1 else (0, 0)


def is_xl(modules: Collection[str]) -> bool:
    """Whether they are those of XL, which is told sizes as well."""
    return any(module.startswith(("add_embedding.", "label_emb.")) for module in modules)


def _down(blocks: int, layers: int) -> Iterator[Pair]:
    for b in range(blocks):
        for j in range(layers):
            i = 1 + b * (layers + 1) + j
            yield from _resnet(f"input_blocks.{i}.0", f"down_blocks.{b}.resnets.{j}")
            yield Pair(f"input_blocks.{i}.1", (f"down_blocks.{b}.attentions.{j}",))
        yield Pair(f"input_blocks.{(b + 1) * (layers + 1)}.0.op", (f"down_blocks.{b}.downsamplers.0.conv",))


def _middle() -> Iterator[Pair]:
    yield from _resnet("middle_block.0", "mid_block.resnets.0")
    yield Pair("middle_block.1", ("mid_block.attentions.0",))
    yield from _resnet("middle_block.2", "mid_block.resnets.1")


def _up(blocks: int, layers: int, modules: Collection[str]) -> Iterator[Pair]:
    for b in range(blocks):
        for j in range(layers + 1):
            i = b * (layers + 1) + j
            yield from _resnet(f"output_blocks.{i}.0", f"up_blocks.{b}.resnets.{j}")
            yield Pair(f"output_blocks.{i}.1", (f"up_blocks.{b}.attentions.{j}",))
        last = b * (layers + 1) + layers
        attends = any(module.startswith(f"up_blocks.{b}.attentions.") for module in modules)
        for place in (2, 1) if attends else (1, 2):  # behind the attention, or in its place where the block has none
            yield Pair(f"output_blocks.{last}.{place}.conv", (f"up_blocks.{b}.upsamplers.0.conv",))


def _resnet(original: str, diffusers: str) -> Iterator[Pair]:
    for one, other in _RESNET.items():
        yield Pair(f"{original}.{one}", (f"{diffusers}.{other}",))


UNET = Naming(
    "the U-Net of Stable Diffusion",
    "input_blocks.0.0",
    "down_blocks.0.resnets.0.conv1",
    _pairs,
    "diffusers 0.42.1, loaders/single_file_utils.py `convert_ldm_unet_checkpoint`",
    lambda modules: ORIGINAL if is_xl(modules) else DIFFUSERS,
)
