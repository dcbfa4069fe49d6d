"""Mistral's model as its makers run it: their names, rotation of neighbours in pairs, by nobody's code but this one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Tensors = Mapping[str, torch.Tensor]
PARAMS = {
    "dim": 48, "n_layers": 2, "head_dim": 16, "hidden_dim": 80, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5,
    "vocab_size": 96, "rope_theta": 1000.0, "max_seq_len": 128,
}  # fmt: skip


def tensors(params: Mapping[str, Any] = PARAMS, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under the original's names."""
    made = torch.Generator().manual_seed(seed)
    dim, width, vocabulary = params["dim"], params["hidden_dim"], params["vocab_size"]
    q, k = params["n_heads"] * params["head_dim"], params["n_kv_heads"] * params["head_dim"]
    shapes = {"tok_embeddings.weight": (vocabulary, dim), "norm.weight": (dim,), "output.weight": (vocabulary, dim)}
    for i in range(params["n_layers"]):
        at = f"layers.{i}."
        shapes |= {f"{at}attention_norm.weight": (dim,), f"{at}ffn_norm.weight": (dim,)}
        shapes |= {f"{at}attention.w{n}.weight": s for n, s in {"q": (q, dim), "k": (k, dim), "v": (k, dim)}.items()}
        shapes |= {f"{at}attention.wo.weight": (dim, q), f"{at}feed_forward.w1.weight": (width, dim)}
        shapes |= {f"{at}feed_forward.w2.weight": (dim, width), f"{at}feed_forward.w3.weight": (width, dim)}
    if params.get("tied_embeddings"):
        del shapes["output.weight"]
    return {name: torch.randn(shape, generator=made) * 0.3 for name, shape in shapes.items()}


def saved(folder: Path, held: Tensors, params: Mapping[str, Any] = PARAMS) -> Path:
    """As Mistral publishes it."""
    folder.mkdir(parents=True)
    save_file(dict(held), folder / "consolidated.safetensors")
    (folder / "params.json").write_text(json.dumps(dict(params)))
    (folder / "tekken.json").write_text("{}")
    return folder


def logits(held: Tensors, tokens: torch.Tensor, params: Mapping[str, Any] = PARAMS) -> torch.Tensor:
    """What the model computes for each position of one sequence, in float64."""
    w = {name: tensor.double() for name, tensor in held.items()}
    heads, groups, size = params["n_heads"], params["n_kv_heads"], params["head_dim"]
    length = len(tokens)
    angles = torch.outer(
        torch.arange(length).double(), params["rope_theta"] ** -(torch.arange(0, size, 2).double() / size)
    )
    turns = torch.polar(torch.ones_like(angles), angles)[:, None]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + params["norm_eps"]) * w[name]

    def rotated(x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turns).flatten(-2)

    x = w["tok_embeddings.weight"][tokens]
    back = torch.arange(length)[:, None] - torch.arange(length)
    seen = (back >= 0) & (back < (params.get("sliding_window") or length))
    for i in range(params["n_layers"]):
        at = f"layers.{i}."
        h = norm(x, f"{at}attention_norm.weight")
        q = rotated((h @ w[f"{at}attention.wq.weight"].T).unflatten(-1, (heads, size)))
        k = rotated((h @ w[f"{at}attention.wk.weight"].T).unflatten(-1, (groups, size)))
        v = (h @ w[f"{at}attention.wv.weight"].T).unflatten(-1, (groups, size))
        k, v = (one.repeat_interleave(heads // groups, 1) for one in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / size**0.5
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        x = x + torch.einsum("hqk,khd->qhd", weights, v).flatten(1) @ w[f"{at}attention.wo.weight"].T
        h = norm(x, f"{at}ffn_norm.weight")
        gate = torch.nn.functional.silu(h @ w[f"{at}feed_forward.w1.weight"].T)
        x = x + (gate * (h @ w[f"{at}feed_forward.w3.weight"].T)) @ w[f"{at}feed_forward.w2.weight"].T
    return norm(x, "norm.weight") @ w.get("output.weight", w["tok_embeddings.weight"]).T
