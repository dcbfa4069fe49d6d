"""The Hub's own rule for shards."""

from __future__ import annotations

from collections.abc import Mapping


def split_into_shards(sizes: Mapping[str, int], max_shard_size: int, stem: str) -> dict[str, str]:
    """Tensor -> shard file, as the Hub's own rule decides for tensors of `sizes` bytes in this order."""
    from huggingface_hub import split_state_dict_into_shards_factory

    literal = stem.replace("{", "{{").replace("}", "}}")  # the Hub formats its pattern
    split = split_state_dict_into_shards_factory(
        dict(sizes),
        get_storage_size=int,
        filename_pattern=f"{literal}{{suffix}}.safetensors",
        max_shard_size=max_shard_size,
    )
    return dict(split.tensor_to_filename)
