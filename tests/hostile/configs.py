"""config.json and what lies beside it: values of other types, numbers beyond all models, files that are none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from .rows import OF_CHECKPOINTS, PHI3, Content, Row, checkpoint, made_of, sparse


def config(**more: Any) -> str:
    return json.dumps({**PHI3, **more}).replace("Infinity", "1e400")


# No JSON: whatever opens the folder refuses it.
NONE: dict[str, tuple[Content, str]] = {
    "nothing": (b"", "cut off"),
    "a list": ("[1]", "not a JSON object"),
    "no JSON": ("model_type: phi3", "not JSON"),
    "no UTF-8": (b'{"model_type": "\xff"}', "not UTF-8"),
    "a key twice": ('{"model_type": "phi3", "model_type": "llama"}', "comes twice"),
    "a key twice, deep inside": ('{"a": {"b": [{"c": 1, "c": 2}]}}', "'c' comes twice"),
    "100,000 lists in each other": ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    "200 objects in each other": ('{"a":' * 200 + "1" + "}" * 200, "nested more than 100 deep"),
    "an integer of a million digits": ('{"vocab_size": ' + "1" * 1_000_000 + "}", "not JSON that can be read"),
    "half of a surrogate pair": ('{"model_type": "\\ud800"}', "half of a surrogate pair"),
    "two sparse gigabytes": (sparse(2_000_000_000, b"{"), "too large to be read whole"),
    "a pointer of Git LFS": ("version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "a key of control characters, twice": ('{"\\u001b[2J": 1, "\\u001b[2J": 2}', "comes twice"),
}
# Odd values: what asks for them refuses them, and says which.
VOCABULARY = ("vocabulary x -o w/o --size 40",)
SPLIT, ASKED = ("split-qkv x -o w/o",), ("verify x",)
VALUES: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "a model type that is a list": ({"model_type": ["phi3"]}, "the model_type is", SPLIT),
    "a model type that is a number": ({"model_type": 3}, "the model_type is", SPLIT),
    "a model type of escapes": ({"model_type": "\x1b[2J\x9b31m\u202e"}, "", SPLIT),
    "a model type of 100,000 letters": ({"model_type": "x" * 100_000}, "", SPLIT),
    "a model type that leads away": ({"model_type": "../../outside/secret"}, "", SPLIT),
    "heads of 0": ({"num_attention_heads": 0}, "", SPLIT),
    "heads below nothing": ({"num_attention_heads": -4}, "", SPLIT),
    "heads of 2^64": ({"num_attention_heads": 1 << 64}, "", SPLIT),
    "heads of 10^400": ({"num_attention_heads": 10**400}, "", SPLIT),
    "heads that are a text": ({"num_attention_heads": "4"}, "", SPLIT),
    "heads that are a list": ({"num_attention_heads": [4]}, "", SPLIT),
    "heads of infinity": ({"num_attention_heads": 1e400}, "", SPLIT),
    "heads of a fraction": ({"num_attention_heads": 4.5}, "", SPLIT),
    "head_dim of 0": ({"head_dim": 0}, "", ()),
    "head_dim of 2^62": ({"head_dim": 1 << 62}, "", SPLIT),
    "key and value heads of 0": ({"num_key_value_heads": 0}, "", SPLIT),
    "architectures that are true": ({"architectures": True}, "the architectures is True", ASKED),
    "architectures of lists": ({"architectures": [["a"]]}, "the architectures is", ASKED),
    "a class with a path": ({"architectures": ["../../outside.X"]}, "", ()),
    "a class of escapes": ({"architectures": ["\x1b[2J\x9b31m"]}, "", ()),
    "a million layers": ({"num_hidden_layers": 1_000_000}, "num_hidden_layers is 1000000", ASKED),
    "10^30 layers": ({"num_hidden_layers": 10**30}, "num_hidden_layers is", ASKED),
    "infinitely many layers": ({"num_hidden_layers": 1e400}, "num_hidden_layers is", ASKED),
    "layers below nothing": ({"num_hidden_layers": -1}, "", ASKED),
    "a hidden size of 2^70": ({"hidden_size": 1 << 70}, "", ASKED),
    "a hidden size of 10^400": ({"hidden_size": 10**400}, "", ASKED),
    "a vocabulary that is a list": ({"vocab_size": []}, "vocab_size", VOCABULARY),
    "a vocabulary of 10^400": ({"vocab_size": 10**400}, "refuses the config", VOCABULARY),
    "a vocabulary of 2^62": ({"vocab_size": 1 << 62}, "", ASKED),
    "a factor of infinity": ({"partial_rotary_factor": 1e400}, "", ASKED),
    "rope that is a list": ({"rope_parameters": [1]}, "", ASKED),
    "a text config that is a text": ({"text_config": "x"}, "", ()),
    "code that would be run": ({"auto_map": {"AutoModelForCausalLM": "evil.X"}, "model_type": "evil"}, "", ()),
    "dtype that is a list": ({"dtype": ["float16"], "torch_dtype": {}}, "", ()),
    "an activation that is none": ({"hidden_act": "__import__('os').system('touch ../outside/x')"}, "", ASKED),
    "layer types of a million": ({"layer_types": ["full_attention"] * 100_000}, "", ()),
    "keys of escapes": ({"\x1b[2J\x9b31m\u202e": {"\x07": "\x1b"}}, "", ()),
}
BESIDE: dict[str, tuple[str, Content, str, tuple[str, ...]]] = {
    "a pipeline that is none": ("model_index.json", "[", "not JSON|cut off", ()),
    "a pipeline of 100,000 levels": ("model_index.json", '{"a":' * 100_000, "nested too deeply", ()),
    "a pipeline of two gigabytes": ("model_index.json", sparse(2_000_000_000), "too large", ()),
    "a pipeline whose part leads out": (
        "model_index.json",
        '{"_class_name": "X", "../../outside": ["a", "b"]}',
        "",
        (),
    ),
    "tokenizer.json of 100,000 lists": ("tokenizer.json", "[" * 100_000, "", ()),
    "tokens of wrong types": (
        "tokenizer.json",
        '{"model": {"vocab": [1, {}], "type": []}, "added_tokens": [7]}',
        "",
        (),
    ),
    "a token of 10^400": (
        "tokenizer.json",
        '{"model": {"type": "BPE", "vocab": {"a": 1' + "0" * 400 + "}}}",
        "",
        (),
    ),
    "tokens added of wrong types": ("added_tokens.json", '{"a": "b", "c": [1]}', "", ()),
    "a card that is no YAML": ("README.md", "---\n" + "&a [" * 5000 + "\n---\n", "", ()),
    "a card that grows": (
        "README.md",
        "---\na: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(12))
        + "---\n",
        "",
        (),
    ),
    "a generation config that is none": ("generation_config.json", "[[[", "", ()),
}


def rows() -> Iterator[Row]:
    """Each in a good checkpoint."""
    for name, (content, says) in NONE.items():
        around = OF_CHECKPOINTS if "sparse" not in name else ()  # it is carried, all two gigabytes
        yield checkpoint(f"config: {name}", "config.json", content, says, "inspect x", "split x -o w/o", around=around)
    for name, (more, says, words) in VALUES.items():
        row = checkpoint(
            f"config: {name}",
            "config.json",
            config(**more),
            says,
            *words,
            names="config.json" if words == SPLIT and "type" not in name else "place/x",
        )
        yield row if words else Row(row.name, row.make, says, around=OF_CHECKPOINTS)
    for name, (file, content, says, words) in BESIDE.items():
        if says or words:
            yield checkpoint(f"beside: {name}", file, content, says, *words)
        else:
            yield Row(f"beside: {name}", made_of("good", {file: content}), "", around=OF_CHECKPOINTS)
