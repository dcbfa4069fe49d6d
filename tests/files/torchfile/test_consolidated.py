"""Meta's own files: parts of a model that was trained in tensor parallelism, cut here as its code cuts them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import surgery
from surgery.errors import SurgeryError

WIDTH, HIDDEN, WORDS, LAYERS, HEADS, KEYS = 32, 48, 24, 2, 4, 2
Parts = list[dict[str, torch.Tensor]]


def model(dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """A model under Meta's names."""
    torch.manual_seed(0)
    size = WIDTH // HEADS
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (WORDS, WIDTH), "norm.weight": (WIDTH,)}
    for i in range(LAYERS):
        shapes |= {
            f"layers.{i}.attention.wq.weight": (WIDTH, WIDTH),
            f"layers.{i}.attention.wk.weight": (KEYS * size, WIDTH),
            f"layers.{i}.attention.wv.weight": (KEYS * size, WIDTH),
            f"layers.{i}.attention.wo.weight": (WIDTH, WIDTH),
            f"layers.{i}.feed_forward.w1.weight": (HIDDEN, WIDTH),
            f"layers.{i}.feed_forward.w2.weight": (WIDTH, HIDDEN),
            f"layers.{i}.feed_forward.w3.weight": (HIDDEN, WIDTH),
            f"layers.{i}.attention_norm.weight": (WIDTH,),
            f"layers.{i}.ffn_norm.weight": (WIDTH,),
        }
    shapes["output.weight"] = (WORDS, WIDTH)
    return {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()} | {
        "rope.freqs": torch.rand(size // 2)
    }


def cut(whole: Mapping[str, torch.Tensor], count: int, *, embedding: int) -> Parts:
    """Each rank's part: columns of what takes a cut input, rows of what makes a cut output."""
    parts: Parts = [{} for _ in range(count)]
    for name, value in whole.items():
        leaf = name.split(".")[-2]
        axis = {"wq": 0, "wk": 0, "wv": 0, "w1": 0, "w3": 0, "output": 0, "wo": 1, "w2": 1}.get(leaf)
        axis = embedding if leaf == "tok_embeddings" else axis
        pieces = value.chunk(count, axis) if axis is not None else [value] * count
        for part, piece in zip(parts, pieces, strict=True):
            part[name] = piece.clone()
    return parts


def write(folder: Path, parts: Parts, **params: object) -> Path:
    folder.mkdir(exist_ok=True)
    said = {"dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": KEYS, "norm_eps": 1e-5, **params}
    (folder / "params.json").write_text(json.dumps({"multiple_of": 16, "vocab_size": -1, **said}))
    for number, part in enumerate(parts):
        torch.save(part, folder / f"consolidated.{number:02d}.pth")
    return folder


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("embedding", [0, 1])
def test_parts_are_one_model_again(count: int, embedding: int, tmp_path: Path) -> None:
    whole = model()
    folder = write(tmp_path / "in", cut(whole, count, embedding=embedding))
    made = surgery.open_checkpoint(folder)
    assert any("Meta's own files" in note for note in made.notes)
    surgery.write(made, tmp_path / "out")
    held = load_file(tmp_path / "out/model.safetensors")
    assert held.keys() == whole.keys()
    assert all(held[name].dtype == whole[name].dtype and torch.equal(held[name], whole[name]) for name in whole)
    here = {path.name for path in (tmp_path / "out").iterdir()}
    assert "params.json" in here and not any(name.endswith(".pth") for name in here)


def test_layers_in_one_storage_each(tmp_path: Path) -> None:
    """As Meta's are: a tensor is a view of it."""
    whole = model()
    parts = cut(whole, 2, embedding=1)
    for part in parts:
        names = [name for name in part if part[name].dtype == torch.bfloat16]
        flat = torch.cat([part[name].flatten() for name in names])
        sizes = [part[name].numel() for name in names]
        part |= {n: piece.view(part[n].shape) for n, piece in zip(names, flat.split(sizes), strict=True)}
    surgery.write(surgery.open_checkpoint(write(tmp_path / "in", parts)), tmp_path / "out")
    held = load_file(tmp_path / "out/model.safetensors")
    assert all(torch.equal(held[name], whole[name]) for name in whole)


def without(number: int) -> Callable[[Parts], object]:
    return lambda parts: parts.pop(number)


def norm(parts: Parts) -> None:
    parts[1]["layers.1.ffn_norm.weight"][3] += 1


def repeated(parts: Parts) -> None:
    """Four parts of two heads of keys: each is in two of them."""
    for part in parts:
        for name in ("layers.0.attention.wk.weight", "layers.0.attention.wv.weight"):
            part[name] = torch.cat([part[name], part[name]])


SPOILT: dict[str, tuple[Callable[[Parts], object], str]] = {
    "the last part is missing": (without(3), "belongs in the place of"),
    "all but the first": (lambda parts: [parts.pop() for _ in range(3)], "belongs in the place of"),
    "a norm that differs": (norm, "all parts hold alike"),
    "heads of keys in two parts": (repeated, "twice"),
    "a name that is not known": (lambda parts: [p.update({"extra.weight": torch.ones(2)}) for p in parts], "extra"),
    "a name in one part alone": (lambda parts: parts[2].pop("output.weight"), "do not hold the same"),
    "another dtype": (lambda parts: parts[1].update({k: v.float() for k, v in parts[1].items() if "wq" in k}), "fit"),
    "another shape": (lambda parts: parts[1].update({"output.weight": torch.ones(6, 31)}), "fits no model"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_ones_are_refused_by_name(name: str, tmp_path: Path) -> None:
    spoil, what = SPOILT[name]
    parts = cut(model(), 4, embedding=0)
    spoil(parts)
    with pytest.raises(SurgeryError) as caught:
        surgery.open_checkpoint(write(tmp_path / "in", parts))
    assert what in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_part_between_is_missing_and_one_alone_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", cut(model(), 4, embedding=1))
    (folder / "consolidated.01.pth").unlink()
    with pytest.raises(SurgeryError, match="the part 1 is missing"):
        surgery.open_checkpoint(folder)
    with pytest.raises(SurgeryError, match="not read alone"):
        surgery.open_checkpoint(folder / "consolidated.02.pth")


def test_the_vocabulary_is_what_params_json_says(tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match="99 belongs in the place of 24"):
        surgery.open_checkpoint(write(tmp_path / "in", cut(model(), 2, embedding=0), vocab_size=99))


def reference(whole: Mapping[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """The logits as Meta's code computes them: pairs of neighbours are rotated, as complex numbers."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * whole[name]

    size, length = WIDTH // HEADS, len(ids)
    angles = torch.outer(torch.arange(length).float(), 10000.0 ** -(torch.arange(0, size, 2).float() / size))
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]

    def rotated(x: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * turn).flatten(-2)

    h = whole["tok_embeddings.weight"][ids]
    hidden = torch.full((length, length), float("-inf")).triu(1)
    for i in range(LAYERS):
        at = f"layers.{i}."
        x = norm(h, f"{at}attention_norm.weight")
        q, k, v = ((x @ whole[f"{at}attention.w{n}.weight"].T).view(length, -1, size) for n in "qkv")
        q, k = rotated(q), rotated(k).repeat_interleave(HEADS // KEYS, 1)
        v = v.repeat_interleave(HEADS // KEYS, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / size**0.5 + hidden
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)
        h = h + mixed @ whole[f"{at}attention.wo.weight"].T
        x = norm(h, f"{at}ffn_norm.weight")
        w1, w2, w3 = (whole[f"{at}feed_forward.w{n}.weight"] for n in (1, 2, 3))
        h = h + (torch.nn.functional.silu(x @ w1.T) * (x @ w3.T)) @ w2.T
    return norm(h, "norm.weight") @ whole["output.weight"].T


def test_parts_become_a_llama_that_computes_the_same(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    whole = model(torch.float32)
    folder = write(tmp_path / "in", cut(whole, 2, embedding=1), rope_theta=10000.0)
    surgery.write(surgery.convert(surgery.open_checkpoint(folder), "llama"), tmp_path / "out")
    ids = torch.tensor([3, 1, 20, 7, 7])
    live = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        logits = live(ids[None]).logits[0]
    torch.testing.assert_close(logits, reference(whole, ids), rtol=1e-4, atol=1e-3)
