"""Detection by name and shape: what leaves one layout is taken, everything else is refused with its candidates."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import hashes
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import surgery
from surgery.checks.fused_modules import FusedModules
from surgery.errors import LayoutError, NothingMatched, NotSupported, SurgeryError
from surgery.lazy.dtypes import F32
from surgery.lazy.tensor import Tensor, Zeros
from surgery.models.fused.detect import STYLES, candidates, choices, detect, detect_split
from surgery.models.fused.layout import Layout, Place
from surgery.models.fused.row import IN_PROJ, Row
from surgery.models.fused.tables import TABLE
from surgery_cli.app import app


def weights(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """Weights in `h.0.attn`, by last name."""
    return {f"h.0.attn.{leaf}.weight": Zeros(F32, shape) for leaf, shape in shapes.items()}


# The names that are known, and the table


class Sizes(dict[str, Any]):
    """A config that answers whatever a row asks for: 4 heads, `kv` heads of k and v, width 48, and yes or no."""

    def __init__(self, kv: int, *, flags: bool) -> None:
        super().__init__(model_type="any")
        self.answers: tuple[tuple[str, Any], ...] = (
            (r"model_type", "any"),
            (r".*_config", self),
            (r"multi_query(_attention)?|new_decoder_architecture|fast_qkv|.*_parallel.*", flags),
            (r".*(kv|key_value|group|multi_query).*", kv),
            (r".*(head_dim|key_dim|value_dim|channels)", 12),
            (r".*head.*", 4),
            (r".*", 48),
        )

    def get(self, name: str, default: Any = None) -> Any:
        return next(answer for pattern, answer in self.answers if re.fullmatch(pattern, name))


class Lists(Sizes):
    """The same where each layer has a number of its own, as in OpenELM and LeViT."""

    def get(self, name: str, default: Any = None) -> Any:
        found = super().get(name, default)
        return [found] * 9 if type(found) is int and not name.startswith("head_dim") else found


def layouts(row: Row) -> Iterator[Layout]:
    """The layouts that a row's rule gives for 4, 2 or 1 heads of k and v, and for fused axes of the lengths that go
    with these.
    """
    for answers in (Sizes, Lists):
        for kv in (4, 2, 1):
            for flags in (True, False):
                for length in (144, 96, 72, 240, 51, 25):
                    try:
                        yield row.layout(Place(answers(kv, flags=flags), f"model.layers.0.attn.{row.fused}", length))
                    except (LayoutError, TypeError):
                        continue


def leaf_of(row: Row) -> str:
    return row.fused.rpartition(".")[2]


ATTENTION = [
    row
    for row in TABLE
    if row.kind == "qkv"
    and {*row.parts} == {*"qkv"}
    and leaf_of(row) in STYLES
    and (leaf_of(row) == "in_proj") == (row.tensors == IN_PROJ)
]


@pytest.mark.parametrize("row", ATTENTION, ids=[f"{row.model_types[0]}: {row.fused}" for row in ATTENTION])
def test_styles_agree_with_the_table(row: Row) -> None:
    """Whatever layout a row has, its name admits it: no other family of that name is then taken for blocked."""
    found = list(layouts(row))
    assert found, "no sizes here suit the row: add some"
    admitted = {*STYLES[leaf_of(row)]} | ({"interleaved", "blocked"} if "grouped" in STYLES[leaf_of(row)] else set())
    assert {layout.style for layout in found} <= admitted  # grouped with as many groups as heads, or with one


def test_names_with_one_layout_have_no_other_in_the_table() -> None:
    """The control of the test above: it looks at rows of each layout."""
    seen: dict[str, set[str]] = {}
    for row in ATTENTION:
        seen.setdefault(leaf_of(row), set()).update(layout.style for layout in layouts(row))
    assert seen["query_key_value"] == {"blocked", "interleaved", "grouped"}
    assert seen["Wqkv"] == {"blocked"}
    assert {"blocked", "interleaved"} <= seen["c_attn"] and "grouped" in seen["wqkv"]


# What is taken


@pytest.mark.parametrize(
    ("config", "tensors", "lengths"),
    [
        pytest.param({}, weights(W_pack=(24, 8)), (8, 8, 8), id="as wide as the input"),
        pytest.param({}, weights(Wqkv=(48, 8), o_proj=(8, 32)), (32, 8, 8), id="by the output projection"),
        pytest.param({"model_type": "new"}, weights(Wqkv=(48, 8), out_proj=(8, 32)), (32, 8, 8),
        id="of an unknown type"),
        pytest.param({"n_head": 4}, weights(qkv_proj=(48, 8), o_proj=(8, 32)), (32, 8, 8),
        id="multi-query: grouped is blocked"),
        pytest.param({"n_head": 1}, weights(query_key_value=(24, 8), dense=(8, 8)), (8, 8, 8),
        id="one head: interleaved is blocked"),
    ],
)  # fmt: skip
def test_one_layout_is_taken(config: Mapping[str, Any], tensors: dict[str, Tensor], lengths: tuple[int, ...]) -> None:
    (site,) = detect(config, tensors)
    assert site.layout.lengths == lengths and site.layout.groups == 1
    assert site.why == "by its name and shape, which leave one layout"
    assert site.parts == [f"h.0.attn.{part}" for part in ("q_proj", "k_proj", "v_proj")]


def test_a_conv1d_is_taken_by_its_shape(tmp_path: Path) -> None:
    """GPT-2 without a type: (in, 3 · in) is transformers' Conv1D and no nn.Linear, whose split would be of rows."""
    from transformers.pytorch_utils import Conv1D

    conv = Conv1D(24, 8)
    nn.init.normal_(conv.weight)
    nn.init.normal_(conv.bias)
    state = {f"h.0.attn.c_attn.{name}": tensor for name, tensor in conv.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    surgery.write(surgery.split_qkv(surgery.open_checkpoint(tmp_path / "model.safetensors")), tmp_path / "out")
    parts = load_file(tmp_path / "out" / "model.safetensors")
    x = torch.randn(3, 8)
    for name, want in zip("qkv", conv(x).split(8, dim=-1), strict=True):
        stem = next(
            n.removesuffix(".weight") for n in parts if n.endswith(".weight") and n.split(".")[-2].startswith(name)
        )
        assert torch.allclose(x @ parts[f"{stem}.weight"] + parts[f"{stem}.bias"], want, atol=1e-6)
    assert len(parts) == 6
    assert not detect({}, weights(c_attn=(24, 8)))


def test_what_the_type_says_is_not_fused_stays(tmp_path: Path) -> None:
    """A name that rows of the model type have, elsewhere than where they say: the row knows better than the name."""
    phi3 = {"model_type": "phi3", "num_attention_heads": 4, "hidden_size": 8}
    assert (
        detect(
            phi3,
            {"vision.0.attn.qkv_proj.weight": Zeros(F32, (24, 8)), "vision.0.attn.o_proj.weight": Zeros(F32, (8, 8))},
        )
        == []
    )


# What is refused


@pytest.mark.parametrize(
    ("config", "tensors", "leaf", "found"),
    [
        pytest.param(
            {"num_attention_heads": 8}, weights(qkv_proj=(96, 8), o_proj=(8, 64)), "qkv_proj",
            ["blocked 1 × [64|16|16]", "grouped 2 × [32|8|8]"], id="two of known sizes",
        ),
        pytest.param({}, weights(wqkv=(96, 8), wo=(8, 64)), "wqkv", ["grouped", "blocked 1 × [64|16|16]"],
        id="head counts missing"),
        pytest.param(
            {"num_heads": 2}, weights(query_key_value=(24, 8)), "query_key_value",
            ["interleaved 2 × [4|4|4]", "blocked 1 × [8|8|8]"], id="as many heads of each",
        ),
        pytest.param({}, weights(qkv=(24, 6)), "qkv", ["blocked", "interleaved", "grouped"], id="sizes not known"),
        pytest.param({}, weights(Wqkv=(24, 6)), "Wqkv", ["blocked"], id="one layout of unknown sizes"),
        pytest.param({}, weights(Wqkv=(48, 8), o_proj=(8, 32), dense=(8, 16)), "Wqkv", ["blocked"], id="two outputs"),
        pytest.param({}, weights(Wqkv=(41, 8), o_proj=(8, 32)), "Wqkv", ["blocked"], id="an odd rest"),
        pytest.param(
            {"num_attention_heads": 4, "num_key_value_heads": 2}, weights(Wqkv=(24, 8)), "Wqkv", ["blocked"],
            id="other heads than thirds"
        ),
        pytest.param(
            {"text_config": {"num_heads": 2}, "vision_config": {"num_heads": 4}}, weights(qkv=(24, 8)), "qkv",
            ["blocked 1 × [8|8|8]", "interleaved"], id="two head counts",
        ),
        pytest.param({}, weights(qkv=(24, 8, 1, 1)), "qkv", [], id="a convolution"),
    ],
)  # fmt: skip
def test_more_than_one_layout_is_refused_with_the_candidates(
    config: Mapping[str, Any], tensors: dict[str, Tensor], leaf: str, found: list[str], tmp_path: Path
) -> None:
    assert detect(config, tensors) == []
    assert choices(config, tensors, f"h.0.attn.{leaf}") == found
    save_file({name: torch.zeros(t.shape) for name, t in tensors.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nobody_knows", **config}))
    before = hashes(tmp_path)
    with pytest.raises(LayoutError) as caught:
        surgery.split_qkv(surgery.open_checkpoint(tmp_path))
    error = caught.value
    assert error.what.startswith("no layout is known for model type `nobody_knows`, and ")
    assert error.what.endswith(
        f"more than one would fit what is called {leaf}"
        if len(found) > 1
        else f"the shapes do not tell the sizes of what is called {leaf}"
    )
    assert error.where[:2] == (str(tmp_path), f"h.0.attn.{leaf}")
    assert error.where[2:] == ((f"{leaf} could be {' or '.join(found)}",) if found else ())
    styles = [choice.split()[0] for choice in found] or STYLES[leaf]
    assert error.help and f"--layout {' or '.join(styles)} (and --groups, --slots" in error.help
    (one,) = surgery.inspect(tmp_path).fused
    assert (one.name, one.modules, one.such_as) == (leaf, 1, f"h.0.attn.{leaf}")
    assert (one.layout, list(one.could_be)) == ("", found)
    assert hashes(tmp_path) == before


def test_the_candidates_are_the_layouts_that_the_options_give(tmp_path: Path) -> None:
    """Each candidate, given by --layout, makes the sizes that the refusal named."""
    tensors = weights(qkv_proj=(96, 8), o_proj=(8, 64))
    save_file({name: torch.randn(t.shape) for name, t in tensors.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 8, "num_key_value_heads": 2}))
    checkpoint = surgery.open_checkpoint(tmp_path)
    for style, layout in candidates(checkpoint.config, checkpoint.tensors, "h.0.attn.qkv_proj").items():
        split = surgery.split_qkv(checkpoint, given=surgery.Given(style))
        assert layout and [split[f"h.0.attn.{p}_proj.weight"].shape[0] for p in "qkv"] == list(layout.lengths)


def test_inspect_names_what_was_taken_and_why(tmp_path: Path) -> None:
    tensors = {
        f"h.{i}.attn.{leaf}": shape
        for i in range(3)
        for leaf, shape in (("Wqkv.weight", (24, 8)), ("out_proj.weight", (8, 8)))
    }
    save_file(
        {n: torch.zeros(s) for n, s in {**tensors, "vision.0.attn.qkv.weight": (24, 8)}.items()},
        tmp_path / "model.safetensors",
    )
    known, unknown = surgery.inspect(tmp_path).fused
    parts, why = ("q_proj", "k_proj", "v_proj"), "by its name and shape, which leave one layout"
    assert known == FusedModules("Wqkv", 3, "h.0.attn.Wqkv", parts, "1 × [8|8|8]", why)
    assert unknown.could_be == ("blocked 1 × [8|8|8]", "interleaved") and unknown.such_as == "vision.0.attn.qkv"
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path)]).stdout
    assert f"3 × Wqkv -> q_proj, k_proj, v_proj: 1 × [8|8|8] ({why})\n" in shown
    assert (
        "1 module such as vision.0.attn.qkv: by its name fused, but in a layout that is not known: blocked 1 × [8|8|8]"
        " or interleaved\n" in shown
    )


@pytest.mark.parametrize(
    ("more", "kind", "what"),
    [
        ({"h.0.attn.Wqkv.bias": (24,)}, LayoutError, "some fused projections have a bias, and some have none"),
        (
            {"h.0.attn.Wqkv.weight_scale": (1,)},
            NotSupported,
            "1 tensors belong to fused projections, and are neither weight nor bias",
        ),
    ],
)
def test_what_is_taken_by_name_is_whole(more: dict[str, tuple[int, ...]], kind: type[SurgeryError], what: str) -> None:
    tensors = {f"h.{i}.attn.Wqkv.weight": Zeros(F32, (24, 8)) for i in range(2)}
    with pytest.raises(kind, match=what) as caught:
        detect({}, {**tensors, **{name: Zeros(F32, shape) for name, shape in more.items()}})
    assert any("h.0.attn.Wqkv" in line or "h.1.attn.Wqkv" in line for line in caught.value.where)


def test_fused_and_split_of_one_family_are_told_apart(tmp_path: Path) -> None:
    """A checkpoint of which one layer is split: that layer is fused, the others split, each by its command."""
    config = {"model_type": "phi3", "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
    tensors: dict[str, Tensor] = {"model.layers.0.self_attn.qkv_proj.weight": Zeros(F32, (32, 16))}
    tensors |= {
        f"model.layers.1.self_attn.{p}_proj.weight": Zeros(F32, (n, 16)) for p, n in (("q", 16), ("k", 8), ("v", 8))
    }
    assert [site.module for site in detect(config, tensors)] == ["model.layers.0.self_attn.qkv_proj"]
    assert [site.module for site in detect_split(config, tensors)] == ["model.layers.1.self_attn.qkv_proj"]
    save_file({name: torch.randn(t.shape) for name, t in tensors.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    whole = surgery.split_qkv(surgery.open_checkpoint(tmp_path))
    assert not detect(config, whole.tensors) and len(detect_split(config, whole.tensors)) == 2
    with pytest.raises(NothingMatched, match="the checkpoint is already split"):
        surgery.split_qkv(whole)
