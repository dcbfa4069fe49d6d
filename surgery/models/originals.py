"""Layouts that a model's makers publish themselves, and transformers' for the same model: a row each, read both ways.

Mistral's and Meta's own files have a `params.json` in the place of config.json, names of their own, and q and k with
the two halves of each pair that is rotated one beside the other; transformers has all first halves of a head, then
all second ones:

    original  (heads, head_dim / 2, 2, in)   <->   transformers  (heads, 2, head_dim / 2, in)

Everything is movement. What a row does not know of params.json or config.json is a reason to refuse. Sources:
transformers, models/mistral/convert_mistral_weights_to_hf.py and models/llama/convert_llama_weights_to_hf.py;
mistral-inference, args.py `TransformerArgs`; llama-models, `ModelArgs`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import series
from ..lazy.tensor import Tensor, permute, reshape

PARAMS = "params.json"
Params = Mapping[str, Any]
Config = Mapping[str, Any]

# (original, transformers); `N` is a layer's number
NAMES = (
    ("tok_embeddings.weight", "model.embed_tokens.weight"),
    ("norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
    ("layers.N.attention_norm.weight", "model.layers.N.input_layernorm.weight"),
    ("layers.N.ffn_norm.weight", "model.layers.N.post_attention_layernorm.weight"),
    ("layers.N.attention.wq.weight", "model.layers.N.self_attn.q_proj.weight"),
    ("layers.N.attention.wk.weight", "model.layers.N.self_attn.k_proj.weight"),
    ("layers.N.attention.wv.weight", "model.layers.N.self_attn.v_proj.weight"),
    ("layers.N.attention.wo.weight", "model.layers.N.self_attn.o_proj.weight"),
    ("layers.N.feed_forward.w1.weight", "model.layers.N.mlp.gate_proj.weight"),
    ("layers.N.feed_forward.w2.weight", "model.layers.N.mlp.down_proj.weight"),
    ("layers.N.feed_forward.w3.weight", "model.layers.N.mlp.up_proj.weight"),
)
_ROTATED = {"wq": "n_heads", "wk": "n_kv_heads"}
# Of params.json: what says nothing of what is computed, and what a dense model of this kind has as it stands here.
_IDLE = {
    "max_batch_size",
    "max_seq_len",
    "max_position_embeddings",
    "model_parallel_size",
    "multiple_of",
    "bos_token_id",
}
_PLAIN = {
    "use_biases": False, "causal": True, "model_type": "transformer", "use_scaled_rope": False, "qk_norm": False,
    "use_qk_norm": False,
}  # fmt: skip
_READ = {"dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads", "norm_eps", "vocab_size", "rope_theta"}
LENGTH = 32768  # of the longest input, where no file says it: what transformers' own converter takes


@dataclass(frozen=True, slots=True)
class Original:
    """A row: what it is called, what transformers calls the model, and which fields of params.json it reads besides
    those of all.
    """

    maker: str
    model_type: str
    model_class: str
    reads: frozenset[str] = frozenset()
    buffers: str = r"rope\.freqs"
    stem: str = "consolidated"
    written: bool = True  # whether params.json can be written, too

    @property
    def name(self) -> str:
        """What the layout is called where it is a target."""
        return f"{self.model_type}-original"


ORIGINALS = (
    Original("Mistral", "mistral", "MistralForCausalLM", frozenset({"sliding_window", "tied_embeddings"})),
    Original("Meta", "llama", "LlamaForCausalLM", frozenset({"ffn_dim_multiplier"}), written=False),
)


def row_of(params: Params) -> Original:
    """Whose layout it is: Meta's says how the width of an MLP was rounded, and not the width."""
    return ORIGINALS["multiple_of" in params]


def is_original(names: Collection[str]) -> bool:
    """Whether tensors of these names are called as in such a layout."""
    return "layers.0.attention.wq.weight" in names and "tok_embeddings.weight" in names


def unknown(row: Original, params: Params) -> list[str]:
    """What params.json says that the row does not know: the model is another one."""
    known = _READ | _IDLE | row.reads
    found = [key for key in params if key not in known and params[key] not in (None, _PLAIN.get(key))]
    window = params.get("sliding_window")
    odd = ["sliding_window"] if window is not None and not _whole(window) else []
    return [f"{key}: {_short(params[key])}" for key in (*found, *odd)]


def _whole(value: Any) -> bool:
    return (type(value) is int and value > 0) or (isinstance(value, str) and value.isascii() and value.isdigit())


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def config_of(row: Original, params: Params, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """config.json of the same model, for transformers. Raises KeyError where a field is missing."""
    heads = params["n_heads"]
    width, vocabulary = tensors["layers.0.feed_forward.w1.weight"].shape[0], tensors["tok_embeddings.weight"].shape[0]
    theta = float(params.get("rope_theta") or 10000.0)
    made = {
        "model_type": row.model_type,
        "architectures": [row.model_class],
        "hidden_size": params["dim"],
        "intermediate_size": width,
        "num_hidden_layers": params["n_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": params.get("n_kv_heads") or heads,
        "head_dim": params.get("head_dim") or params["dim"] // heads,
        "hidden_act": "silu",
        "rms_norm_eps": params["norm_eps"],
        "vocab_size": vocabulary,
        "max_position_embeddings": length_of(params) or LENGTH,
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "tie_word_embeddings": bool(params.get("tied_embeddings", False)),
        "attention_dropout": 0.0,
        "use_cache": True,
    }
    if row.model_type == "mistral":
        window = params.get("sliding_window")
        return made | {"sliding_window": int(window) if window is not None else None}
    return made | {"attention_bias": False, "mlp_bias": False}


def length_of(params: Params) -> int | None:
    """The longest input, where the file says it."""
    return params.get("max_position_embeddings") or params.get("max_seq_len")


def params_of(row: Original, config: Config) -> dict[str, Any]:
    """params.json of the same model: the inverse of `config_of`. Raises KeyError where a field is missing."""
    rope = config.get("rope_parameters") or {}
    heads = config["num_attention_heads"]
    made = {
        "dim": config["hidden_size"],
        "n_layers": config["num_hidden_layers"],
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "hidden_dim": config["intermediate_size"],
        "n_heads": heads,
        "n_kv_heads": config.get("num_key_value_heads") or heads,
        "norm_eps": config["rms_norm_eps"],
        "vocab_size": config["vocab_size"],
        "rope_theta": float(rope.get("rope_theta") or config["rope_theta"]),
        "max_position_embeddings": config["max_position_embeddings"],
    }
    more = {"sliding_window": config.get("sliding_window"), "tied_embeddings": config.get("tie_word_embeddings")}
    return made | {key: value for key, value in more.items() if value}


def unfit(config: Config) -> list[str]:
    """Why a model of transformers is none that the layout can say; reads complete configs."""
    rope = config.get("rope_parameters") or {}
    kind = rope.get("rope_type", "default")
    return [
        *([f"rope_type is {kind}: params.json says plain rotation alone"] if kind != "default" else []),
        *([f"hidden_act is {config['hidden_act']}, and not silu"] if config.get("hidden_act") != "silu" else []),
    ]


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace("N", r"(\d+)", 1) if ".N." in template else re.escape(template))


_RULES = [(_pattern(one), one, _pattern(other), other) for one, other in NAMES]


def to_transformers(name: str) -> str | None:
    """The name in transformers; None where the layout has no such tensor."""
    return _renamed(name, lambda rule: (rule[0], rule[3]))


def to_original(name: str) -> str | None:
    """The inverse of `to_transformers`."""
    return _renamed(name, lambda rule: (rule[2], rule[1]))


def _renamed(name: str, side: Callable[[Any], tuple[re.Pattern[str], str]]) -> str | None:
    for rule in _RULES:
        pattern, template = side(rule)
        if found := pattern.fullmatch(name):
            return template.replace("N", found[1], 1) if found.groups() else template
    return None


def turned(name: str, tensor: Tensor, params: Params, *, back: bool = False) -> Tensor:
    """The tensor that the layout calls `name`, with its rows as transformers has them; `back`: the other way round."""
    leaf = name.split(".")[-2] if "." in name else ""
    if leaf not in _ROTATED or len(tensor.shape) != 2:
        return tensor
    heads = params.get(_ROTATED[leaf]) or params["n_heads"]
    half = tensor.shape[0] // heads // 2
    inner = (2, half) if back else (half, 2)
    return reshape(permute(reshape(tensor, (heads, *inner, tensor.shape[1])), (0, 2, 1, 3)), tensor.shape)


def told(row: Original, params: Params) -> str:
    """The layout in words."""
    more = unknown(row, params)
    known = f"surgery convert --as {row.model_type} writes it as transformers loads it"
    why = f"no row is known for {series(more)}" if more else known
    return f"{row.maker}'s own layout, with {PARAMS}: {why}"
