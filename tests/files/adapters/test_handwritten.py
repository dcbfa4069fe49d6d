"""LoRA of a program of its own: real modules, put into a network and saved as such programs do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from foreign import check_computes, merged_with, saved_as, wrapped
from safetensors.torch import load_file
from tiny_models import output

import surgery
from surgery.errors import AdapterError, FormatError

Saved = Callable[..., Path]


class Product(torch.nn.Module):
    """The wrapper of many a tutorial: it computes with W + A·B, and so needs a square layer."""

    def __init__(self, layer: torch.nn.Linear, rank: int = 4, alpha: float = 8.0) -> None:
        super().__init__()
        self.original_layer, self.scale = layer, alpha / rank
        self.lora_A = torch.nn.Parameter(torch.randn(layer.in_features, rank) * 0.2)
        self.lora_B = torch.nn.Parameter(torch.randn(rank, layer.out_features) * 0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.original_layer.weight + self.scale * (self.lora_A @ self.lora_B)
        return torch.nn.functional.linear(x, weight, self.original_layer.bias)


class Inner(torch.nn.Module):
    def __init__(self, into: int, out: int, rank: int) -> None:
        super().__init__()
        self.A = torch.nn.Parameter(torch.randn(into, rank) * 0.2)
        self.B = torch.nn.Parameter(torch.randn(rank, out) * 0.2)


class Output(torch.nn.Module):
    """Another one: what it adds to the output is s · x·A·B."""

    def __init__(self, layer: torch.nn.Linear, rank: int = 4, alpha: float = 8.0) -> None:
        super().__init__()
        self.linear, self.scale = layer, alpha / rank
        self.lora = Inner(layer.in_features, layer.out_features, rank)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.scale * (x @ self.lora.A @ self.lora.B)


# How it is made, on which modules of BERT, and the format that it is.
CASES = {
    "w+ab": (Product, ("query", "key", "value"), "w+ab"),
    "x@a@b": (Output, ("query", "key", "value"), "x@a@b"),
    "x@a@b, not square": (Output, ("query", "intermediate.dense"), None),
}


@pytest.mark.parametrize("state", ["factors", "all"])
@pytest.mark.parametrize("case", CASES)
def test_it_computes_what_the_live_network_does(case: str, state: str, saved: Saved, tmp_path: Path) -> None:
    makes, ends, said = CASES[case]
    model = wrapped("bert", makes, ends)
    mine = {name: one for name, one in model.state_dict().items() if state == "all" or "lora" in name}
    if state == "all":
        mine = {name: one for name, one in mine.items() if "lora" in name or any(f"{end}." in name for end in ends)}
    file = saved_as(tmp_path / "a", mine, "mine.safetensors")
    merged = merged_with(saved("bert"), file, tmp_path / "out", alpha=8, format=said)
    check_computes("bert", saved("bert"), merged, output(model, "bert"))
    assert load_file(merged / "model.safetensors").keys() == load_file(saved("bert") / "model.safetensors").keys()
    proof = surgery.verify(merged, base=saved("bert"), adapter=file, alpha=8, format=said, check_class=False)
    assert proof.ok


def test_square_layers_mean_two_things_and_the_user_says_which(saved: Saved, tmp_path: Path) -> None:
    model = wrapped("bert", Product, ("query",))
    file = saved_as(tmp_path, {n: one for n, one in model.state_dict().items() if ".lora_" in n}, "a.safetensors")
    with pytest.raises(FormatError, match="2 formats at once") as caught:
        surgery.open_adapter(file, alpha=8)
    assert "--format w+ab or x@a@b" in str(caught.value)
    wrong = merged_with(saved("bert"), file, tmp_path / "wrong", alpha=8, format="x@a@b")
    with pytest.raises(AssertionError):
        check_computes("bert", saved("bert"), wrong, output(model, "bert"))


def test_layers_that_are_not_square_are_no_sum_of_a_b(tmp_path: Path) -> None:
    file = saved_as(tmp_path, {"x.lora_A": torch.ones(8, 2), "x.lora_B": torch.ones(2, 6)}, "a.safetensors")
    assert surgery.open_adapter(file, alpha=2).format["format"] == "a program of its own"
    with pytest.raises(AdapterError, match="not square") as caught:
        surgery.open_adapter(file, alpha=2, format="w+ab")
    assert "x@a@b" in str(caught.value)


BROKEN = {
    "half": ({"x.lora_A": torch.ones(8, 2)}, "has no B"),
    "integers": ({"x.lora_A": torch.ones(8, 2, dtype=torch.int8), "x.lora_B": torch.ones(2, 8)}, "of I8"),
    "ranks": ({"x.lora_A": torch.ones(8, 2), "x.lora_B": torch.ones(3, 8)}, r"not A \(in, r\)"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_contradicts_itself_is_refused(case: str, tmp_path: Path) -> None:
    tensors, said = BROKEN[case]
    more = {"y.lora_A": torch.ones(8, 2), "y.lora_B": torch.ones(2, 6)}
    with pytest.raises(AdapterError, match=said):
        surgery.open_adapter(saved_as(tmp_path, {**tensors, **more}, "a.safetensors"), alpha=2, format="x@a@b")


def test_names_that_collide_are_refused(tmp_path: Path) -> None:
    tensors = {"x.lora_A": torch.ones(8, 2), "x.lora_B": torch.ones(2, 8), "x.lora.A": torch.ones(8, 2)}
    with pytest.raises(FormatError, match="mean the same"):
        surgery.open_adapter(saved_as(tmp_path, tensors, "a.safetensors"), alpha=2, format="x@a@b")


def test_another_base_under_the_lora_is_refused(saved: Saved, tmp_path: Path) -> None:
    model = wrapped("bert", Output, ("query",))
    mine = {name: one for name, one in model.state_dict().items() if "query." in name}
    file = saved_as(tmp_path, {n: one * (1 + n.endswith("weight")) for n, one in mine.items()}, "a.safetensors")
    with pytest.raises(AdapterError, match="are not the base's"):
        merged_with(saved("bert"), file, tmp_path / "out", alpha=8, format="x@a@b")
