"""adapter_config.json, and the tensors of adapters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from expressions import HOSTILE

from .headers import SHARDS, entry, file
from .rows import ADAPTER, ADAPTER_CONFIG, Content, Row, adapter, made_of, sparse

PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}


def said(**more: Any) -> str:
    return json.dumps({**PLAIN, **more}).replace("Infinity", "1e400")


NONE: dict[str, tuple[Content, str]] = {
    "nothing": (b"", "cut off"),
    "a list": ("[]", "not a JSON object"),
    "no JSON": ("{r: 4}", "not JSON"),
    "no UTF-8": (b'{"peft_type": "\xff"}', "not UTF-8"),
    "a key twice": ('{"peft_type": "LORA", "r": 4, "r": 8}', "'r' comes twice"),
    "a pattern twice": ('{"peft_type": "LORA", "r": 4, "rank_pattern": {"a": 1, "a": 2}}', "'a' comes twice"),
    "100,000 objects in each other": ('{"a":' * 100_000, "nested too deeply"),
    "an integer of a million digits": ('{"r": ' + "1" * 1_000_000 + "}", "not JSON that can be read"),
    "NaN": ('{"peft_type": "LORA", "r": 4, "lora_alpha": NaN}', "NaN is not JSON|lora_alpha"),
    "two sparse gigabytes": (sparse(2_000_000_000, b"{"), "too large to be read whole"),
    "half of a surrogate pair": ('{"peft_type": "\\ud800"}', "half of a surrogate pair"),
}
VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "a kind that is a list": ({"peft_type": ["LORA"]}, "peft_type"),
    "a kind of escapes": ({"peft_type": "\x1b[2J\x9b31m"}, "peft_type|kind"),
    "a kind of 100,000 letters": ({"peft_type": "L" * 100_000}, "peft_type|kind"),
    "target_parameters that are true": ({"target_parameters": True}, "target_parameters"),
    "modules_to_save of numbers": ({"modules_to_save": [1]}, "modules_to_save"),
    "layer_replication that is true": ({"layer_replication": True}, "layer_replication"),
    "layer_replication of a billion": (
        {"layer_replication": [[0, 10**9]] * 100},
        "layer_replication|layers|placed|replicat",
    ),
    "layer_replication of 2^62": ({"layer_replication": [[0, 1 << 62]]}, "layer_replication|layers|replicat"),
    "layer_replication below nothing": ({"layer_replication": [[-5, -1]]}, "layer_replication|layers|replicat"),
    "alpha of infinity": ({"lora_alpha": 1e400}, "lora_alpha"),
    "alpha of 10^400": ({"lora_alpha": 10**400}, "lora_alpha"),
    "alpha that is a text": ({"lora_alpha": "8"}, "lora_alpha"),
    "alpha that is null": ({"lora_alpha": None}, "lora_alpha"),
    "rank of 0": ({"r": 0}, "rank|`r`|r "),
    "rank below nothing": ({"r": -4}, "rank|`r`|r "),
    "rank of a million": ({"r": 1_000_000}, "rank|`r`|r "),
    "rank of 10^400": ({"r": 10**400}, "a whole number"),
    "rank that is true": ({"r": True}, "a whole number"),
    "rank that is a fraction": ({"r": 4.0}, "a whole number"),
    "a pattern of ranks that is a list": ({"rank_pattern": ["o_proj"]}, "rank_pattern"),
    "ranks that are texts": ({"rank_pattern": {"o_proj": "4"}}, "rank_pattern"),
    "a pattern with a flag inside": ({"rank_pattern": {"(?i)o_proj": 4}}, "rank_pattern has a regular expression"),
    "a pattern that is none": ({"target_modules": "(o_proj"}, "target_modules has a regular expression that is none"),
    "layers_pattern that is none": (
        {"layers_pattern": "(", "layers_to_transform": [0], "target_modules": ["o_proj"]},
        "layers_pattern has",
    ),
    "a pattern of 100,000 groups": ({"target_modules": "(" * 100_000 + ")" * 100_000}, "regular expression"),
    "a pattern that repeats 10^9 times": ({"target_modules": "(?:a{1,65535}){1,65535}"}, "regular expression"),
    "a pattern of 100,000 letters": ({"target_modules": "a" * 100_000}, "regular expressions of more than"),
    "10,000 patterns of ranks": (
        {"rank_pattern": {f"o_proj.{n}|x*y{n}{'z' * 30}": 4 for n in range(10_000)}},
        "regular expressions of more than",
    ),
    "layers of a text": ({"layers_to_transform": "0"}, "layers_to_transform"),
    "use_dora that is a text": ({"use_dora": "yes"}, "use_dora"),
    "a base called with escapes": ({"base_model_name_or_path": "\x1b]0;x\x07", "r": 0}, "rank|`r`|r "),
    "an option of tomorrow": ({"use_warp": {"a": [1]}}, "use_warp"),
    "tokens below nothing": ({"trainable_token_indices": {"embed_tokens": [-1]}}, "trainable_token_indices|token"),
    "tokens of 2^62": ({"trainable_token_indices": {"embed_tokens": [1 << 62]}}, "trainable_token_indices|token"),
}
NAME = "base_model.model.model.layers.0.self_attn.o_proj.lora_{}.weight"


def lora(a: Any, b: Any, names: tuple[str, str] = (NAME.format("A"), NAME.format("B"))) -> bytes:
    """A LoRA of these shapes."""
    at, entries = 0, {}
    for name, shape in zip(names, (a, b), strict=True):
        size = 4
        for one in shape:
            size *= one
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return file(json.dumps(entries), bytes(at))


TENSORS: dict[str, tuple[Content, str]] = {
    "no tensors": (file("{}"), ""),
    "another rank in A than in B": (lora([4, 16], [16, 3]), "rank|o_proj"),
    "another width than the base's": (lora([4, 15], [16, 4]), "o_proj"),
    "a rank of nothing": (lora([0, 16], [16, 0]), "rank|o_proj"),
    "a rank of a million on a weight of 16": (lora([100_000, 16], [16, 100_000]), ""),
    "half a pair": (lora([4, 16], [16, 4], (NAME.format("A"), NAME.format("A") + "x")), ""),
    "modules that are not in the base": (
        lora([4, 16], [16, 4], tuple(NAME.format(x).replace("o_proj", "no_proj") for x in "AB")),
        "no_proj",
    ),
    "a module of 40,000 letters": (
        lora([4, 16], [16, 4], tuple(NAME.format(x).replace("o_proj", "o" * 40_000) for x in "AB")),
        "",
    ),
    "a module of 50,000 dots": (
        lora([4, 16], [16, 4], tuple(NAME.format(x).replace("o_proj", "." * 50_000) for x in "AB")),
        "",
    ),
    "a module of escapes": (
        lora([4, 16], [16, 4], tuple(NAME.format(x).replace("o_proj", "\x1b[2J\x9b31m\u202e\n") for x in "AB")),
        "",
    ),
}


def rows() -> Iterator[Row]:
    """Each on a good base."""
    for name, (content, says) in NONE.items():
        yield adapter(f"adapter config: {name}", ADAPTER_CONFIG, content, says, "inspect x", "merge good x -o w/o")
    for name, (more, says) in VALUES.items():
        yield adapter(f"adapter config: {name}", ADAPTER_CONFIG, said(**more), says)
    for number, pattern in enumerate(HOSTILE):
        for key in ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern"):
            value = {pattern: 4} if key.endswith("k_pattern") or key.startswith("alpha") else pattern
            name = f"adapter config: {key} {number + 1} that explodes"
            yield adapter(
                name,
                ADAPTER_CONFIG,
                said(**{key: value}),
                f"{key} has a regular expression that may take forever",
                "inspect x",
            )
    for name, (content, says) in TENSORS.items():
        yield adapter(f"adapter: {name}", ADAPTER, content, says, names="place/x")
    for name in list(SHARDS)[::6]:
        yield adapter(f"adapter: {name}", ADAPTER, *SHARDS[name])
    stack = "model.layers.0.mlp.switch_mlp.up_proj.lora_"
    shapes = {f"{stack}a": [1 << 40, 4, 0], f"{stack}b": [1 << 40, 0, 4]}
    content = file(json.dumps({name: entry("F32", shape, [0, 0]) for name, shape in shapes.items()}))
    mlx = json.dumps({"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": {"rank": 4, "scale": 2.0}})
    yield Row(
        "adapter: 2^40 experts of nothing, as MLX has them",
        made_of("adapter", {ADAPTER: None, "adapters.safetensors": content, ADAPTER_CONFIG: mlx}),
        "holds nothing",
        ("inspect x", "merge good x -o w/o"),
        "adapters.safetensors",
    )
