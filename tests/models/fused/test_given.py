"""Layouts that the user gives: every option in both directions against torch's own views, and what each refusal
teaches.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import hashes
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

import surgery
from surgery.errors import LayoutError, NothingMatched, SurgeryError
from surgery.models.fused.given import Given
from surgery_cli.app import app

Shapes = Mapping[str, tuple[int, ...]]
Parts = Sequence[torch.Tensor]

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def surge(*words: str | Path) -> Result:
    """Run the command line in this process; its output does not wrap."""
    return CliRunner(env={"COLUMNS": "400"}).invoke(app, [str(w) for w in words])


def made(folder: Path, shapes: Shapes, config: Mapping[str, Any] | None = None) -> Path:
    """A checkpoint of random tensors, as safetensors writes it."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    save_file(
        {name: torch.randn(shape) for name, shape in shapes.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@dataclass(frozen=True)
class Way:
    """A fused tensor, the words that split it, and torch's cut of it; `fuse` are the words that fuse, where more are
    needed.
    """

    module: str
    shape: tuple[int, ...]
    split: str
    parts: tuple[str, ...]
    cut: Callable[[torch.Tensor], Parts]  # of the weight, or of the bias with `bias`
    fuse: str = ""
    kind: str = "qkv"
    config: Mapping[str, Any] = field(default_factory=dict)
    bias: bool = True
    beside: Shapes = field(default_factory=dict)


def grouped(groups: int, *slots: int) -> Callable[[torch.Tensor], Parts]:
    def cut(t: torch.Tensor) -> Parts:
        return [part.flatten(0, 2) for part in t.unflatten(0, (groups, sum(slots), -1)).split(slots, 1)]

    return cut


def rows(*lengths: int, axis: int = 0) -> Callable[[torch.Tensor], Parts]:
    return lambda t: t.split(lengths, min(axis, t.dim() - 1))


QKV = ("q_proj", "k_proj", "v_proj")
WAYS = {
    "megatron": Way(
        "decoder.layers.0.self_attention.linear_qkv", (48, 8), "--layout grouped --groups 4 --slots 2,1,1", QKV,
        grouped(4, 2, 1, 1),
        fuse="--layout grouped --groups 4 --fused linear_qkv",
    ),
    "groups and slots alone": Way(
        "h.0.attn.qkv", (48, 8), "--groups 4 --slots 2,1,1", QKV, grouped(4, 2, 1, 1), fuse="--groups 4 --fused qkv",
    ),
    "head counts of config.json": Way(
        "h.0.attn.qkv", (48, 8), "--layout grouped", QKV, grouped(2, 2, 1, 1), "--layout grouped --fused qkv",
        config=HEADS,
    ),
    "head counts of a section": Way(
        "h.0.attn.qkv", (48, 8), "--layout grouped", QKV, grouped(2, 2, 1, 1), "--layout grouped --fused qkv",
        config={"text_config": HEADS}
    ),
    "blocked by config.json": Way(
        "h.0.attn.qkv", (48, 8), "--layout blocked", QKV, rows(24, 12, 12), "--layout blocked --fused qkv",
        config=HEADS,
    ),
    "blocked by the output projection": Way(
        "h.0.attn.qkv", (48, 8), "--layout blocked", QKV, rows(32, 8, 8), "--layout blocked --fused qkv",
        beside={"h.0.attn.o_proj.weight": (8, 32)}
    ),
    "config.json before the input": Way(
        "h.0.attn.qkv", (24, 8), "--layout blocked", QKV, rows(12, 6, 6), "--layout blocked --fused qkv", config=HEADS,
    ),
    "blocked by the input": Way("h.0.attn.qkv", (24, 8), "--layout blocked", QKV, rows(8, 8, 8),
    "--layout blocked --fused qkv"),
    "blocked by slots": Way("h.0.attn.qkv", (48, 8), "--slots 4,1,1", QKV, rows(32, 8, 8),
    "--layout blocked --fused qkv"),
    "another order": Way(
        "h.0.attn.qkv", (48, 8), "--layout blocked --order v,q,k", ("v_proj", "q_proj", "k_proj"), rows(12, 24, 12),
        fuse="--layout blocked --order v,q,k --fused qkv", config=HEADS,
    ),
    "per head": Way(
        "h.0.attn.qkv", (24, 8), "--layout interleaved --groups 2", QKV, grouped(2, 1, 1, 1),
        "--layout interleaved --groups 2 --fused qkv",
    ),
    "levit": Way(
        "stages.0.blocks.0.attn.qkv.linear", (48, 8), "--layout grouped --groups 3 --slots 4,4,8 --fused qkv.linear",
        ("q_proj", "k_proj", "v_proj"), grouped(3, 1, 1, 2), fuse="--layout grouped --groups 3 --fused qkv.linear",
    ),
    "four parts": Way(
        "layers.0.linear_attn.in_proj_all", (48, 8),
        "--groups 2 --slots 1,1,2,2 --order q,k,v,z --pattern .*\\.in_proj_all",
        ("q_proj", "k_proj", "v_proj", "z_proj"), grouped(2, 1, 1, 2, 2),
        fuse="--groups 2 --order q,k,v,z --fused in_proj_all",
    ),
    "k and v": Way(
        "h.0.crossattention.Wkv", (24, 8), "--layout blocked --order k,v --pattern .*\\.Wkv", ("k_proj", "v_proj"),
        rows(12, 12),
        fuse="--layout blocked --order k,v --fused Wkv",
    ),
    "columns": Way(
        "h.0.attn.c_attn", (8, 24), "--layout blocked", QKV, rows(8, 8, 8, axis=1),
        "--layout blocked --fused c_attn --axis 1"
    ),
    "columns by axis": Way(
        "h.0.attn.qkv", (8, 48), "--layout blocked --axis 1", QKV, rows(24, 12, 12, axis=1),
        "--layout blocked --fused qkv --axis 1",
        config=HEADS
    ),
    "names": Way(
        "h.0.attn.qkv", (24, 8), "--layout blocked --names q=query,k=key,v=value", ("query", "key", "value"), rows(8,
        8, 8),
        fuse="--layout blocked --fused qkv --names q=query,k=key,v=value",
    ),
    "at the top": Way("qkv", (24, 8), "--layout blocked", QKV, rows(8, 8, 8), "--layout blocked --fused qkv"),
    "a bare parameter": Way(
        "h.0.attn.kernel", (24, 8), "--layout blocked --pattern .*kernel", (), rows(8, 8, 8), bias=False,
    ),
    "gate and up": Way(
        "h.0.mlp.fc1", (24, 8), "--layout blocked --order up,gate --pattern .*fc1", ("up_proj", "gate_proj"), rows(12,
        12),
        fuse="--layout blocked --order up,gate --fused fc1", kind="gate-up",
    ),
    "gate and up in turn": Way(
        "h.0.mlp.up_proj_twice", (24, 8), "--layout interleaved --fused up_proj_twice", ("gate_proj", "up_proj"),
        lambda t: (t[0::2], t[1::2]), fuse="--layout interleaved --fused up_proj_twice", kind="gate-up",
    ),
    "convolution": Way(
        "h.0.attn.qkv_proj", (17, 8, 1, 1), "--slots 1,8,8", QKV, rows(1, 8, 8), "--layout blocked --fused qkv_proj",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
def test_parts_are_torchs_own_views_and_fuse_back(name: str, tmp_path: Path) -> None:
    way = WAYS[name]
    weight = way.module if not way.parts else f"{way.module}.weight"
    shapes = {weight: way.shape, **way.beside}
    if way.bias:
        shapes[f"{way.module}.bias"] = (max(way.shape[:2]),)
    base = made(tmp_path / "base", shapes, {"model_type": "nobody_knows", **way.config})
    result = surge(f"split-{way.kind}", base, "-o", tmp_path / "split", *way.split.split())
    assert result.exit_code == 0, result.output
    fused, parts = load_file(base / "model.safetensors"), load_file(tmp_path / "split" / "model.safetensors")
    parent = way.module.removesuffix(way.module.rpartition(".")[2] if "qkv.linear" not in way.module else "qkv.linear")
    for suffix in (".weight", ".bias") if way.bias else ("",):
        for leaf, want in zip(way.parts or QKV, way.cut(fused[f"{way.module}{suffix}"]), strict=True):
            assert torch.equal(parts.pop(f"{parent}{leaf}{suffix}"), want)
    assert parts.keys() == way.beside.keys()
    if way.fuse:
        result = surge(f"fuse-{way.kind}", tmp_path / "split", "-o", tmp_path / "fused", *way.fuse.split())
        assert result.exit_code == 0, result.output
        assert hashes(tmp_path / "fused") == hashes(base)


def test_another_layout_is_another_split(tmp_path: Path) -> None:
    """The control: words that say something else write other bytes, and torch's views tell."""
    base = made(tmp_path / "base", {"h.0.attn.qkv.weight": (48, 8)}, {"model_type": "nobody_knows", **HEADS})
    fused = load_file(base / "model.safetensors")["h.0.attn.qkv.weight"]
    written = set()
    for i, words in enumerate(
        ("--layout blocked", "--layout grouped", "--slots 1,1,1", "--layout blocked --order q,v,k")
    ):
        assert surge("split-qkv", base, "-o", tmp_path / str(i), *words.split()).exit_code == 0
        parts = load_file(tmp_path / str(i) / "model.safetensors")
        written.add(hashes(tmp_path / str(i))["model.safetensors"])
        assert torch.equal(parts["h.0.attn.k_proj.weight"], fused[24:36]) == (words == "--layout blocked")
    assert len(written) == 4


def test_a_given_layout_overrules_the_model_type(tmp_path: Path) -> None:
    config = {"model_type": "phi3", "hidden_size": 16, **HEADS}
    base = made(tmp_path / "base", {"model.layers.0.self_attn.qkv_proj.weight": (32, 16)}, config)
    for words in ([], ["--layout", "grouped"]):
        assert surge("split-qkv", base, "-o", tmp_path / f"out{len(words)}", *words).exit_code == 0
    known, given = (load_file(tmp_path / f"out{n}" / "model.safetensors") for n in (0, 2))
    assert known.keys() == given.keys()
    assert not torch.equal(
        known["model.layers.0.self_attn.k_proj.weight"], given["model.layers.0.self_attn.k_proj.weight"]
    )
    history = surgery.open_checkpoint(tmp_path / "out2").history
    assert [step["modules"][0]["why"] for step in history] == ["as given"]


def test_a_pattern_alone_chooses_among_known_modules(tmp_path: Path) -> None:
    config = {"model_type": "phi3", "hidden_size": 16, **HEADS}
    shapes = {f"model.layers.{i}.self_attn.qkv_proj.weight": (32, 16) for i in range(3)}
    base = made(tmp_path / "base", shapes, config)
    pattern = r".*layers\.1\..*"
    assert surge("split-qkv", base, "-o", tmp_path / "out", "--pattern", pattern).exit_code == 0
    split = surgery.open_checkpoint(tmp_path / "out")
    assert len(split.tensors) == 5
    assert {n.split(".")[2] for n in split.tensors if "q_proj" in n} == {"1"}
    assert surge("fuse-qkv", tmp_path / "out", "-o", tmp_path / "fused", "--pattern", pattern).exit_code == 0
    assert hashes(tmp_path / "fused") == hashes(base)
    with pytest.raises(
        NothingMatched, match="of the 3 fused modules whose layout is known, there is none whose whole name matches"
    ) as caught:
        surgery.split_qkv(surgery.open_checkpoint(base), given=Given(pattern=r".*layers\.7\..*"))
    assert caught.value.help and "model.layers.0.self_attn.qkv_proj" in caught.value.help


def test_names_alone_change_only_the_names(tmp_path: Path) -> None:
    config = {"model_type": "phi3", "hidden_size": 16, **HEADS}
    base = made(tmp_path / "base", {"model.layers.0.self_attn.qkv_proj.weight": (32, 16)}, config)
    names = ["--names", "q=to_q,v=to_v"]
    assert surge("split", base, "-o", tmp_path / "out", *names).exit_code == 0
    assert {n.split(".")[-2] for n in surgery.open_checkpoint(tmp_path / "out").tensors} == {"to_q", "k_proj", "to_v"}
    assert surge("fuse", tmp_path / "out", "-o", tmp_path / "fused", *names).exit_code == 0
    assert hashes(tmp_path / "fused") == hashes(base)


def test_only_what_is_meant_is_looked_at(tmp_path: Path) -> None:
    """Modules of the same name that the pattern leaves out need not fit the layout."""
    shapes = {
        "text.h.0.attn.qkv.weight": (48, 8),
        "vision.h.0.attn.qkv.weight": (25, 8),
        "vision.h.0.attn.qkv.weight_scale": (1,),
    }
    base = made(tmp_path / "base", shapes)
    words = ["--groups", "4", "--slots", "2,1,1", "--pattern", r"text\..*qkv"]
    assert surge("split-qkv", base, "-o", tmp_path / "out", *words).exit_code == 0
    assert {n for n in surgery.open_checkpoint(tmp_path / "out").tensors if n.startswith("vision")} == {*shapes} - {
        "text.h.0.attn.qkv.weight"
    }
    words[-1], fuse = r"text\..*", ["--fused", "qkv"]
    assert surge("fuse-qkv", tmp_path / "out", "-o", tmp_path / "fused", *words, *fuse).exit_code == 0
    assert hashes(tmp_path / "fused") == hashes(base)


def test_gate_and_up_of_all_experts_at_once(tmp_path: Path) -> None:
    """A stacked parameter, in turn along its columns, as gpt-oss has it: the parts stay stacked."""
    name = "layers.0.experts.w13"
    base = made(tmp_path / "base", {name: (3, 8, 12), f"{name}_bias": (3, 12)})
    words = ["--layout", "interleaved", "--axis", "2", "--pattern", r".*\.w13"]
    assert surge("split-gate-up", base, "-o", tmp_path / "out", *words).exit_code == 0
    fused, parts = load_file(base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert len(parts) == 4
    for i, part in enumerate(("gate", "up")):
        assert torch.equal(parts[f"layers.0.experts.{part}_proj"], fused[name][..., i::2])
        assert torch.equal(parts[f"layers.0.experts.{part}_proj_bias"], fused[f"{name}_bias"][..., i::2])


# Refusals

SPLIT: Shapes = {
    f"h.{i}.attn.{part}.weight": (rows, 8)
    for i in range(2)
    for part, rows in (("q_proj", 16), ("k_proj", 8), ("v_proj", 8))
}
FUSED: Shapes = {f"h.{i}.attn.qkv.weight": (48, 8) for i in range(2)}


def check_refused(
    command: str, words: str, shapes: Shapes, tmp_path: Path, config: Mapping[str, Any] | None, *said: str
) -> None:
    """The command exits with 1, says all that, and writes nothing."""
    base = made(tmp_path / "base", shapes, config)
    before = hashes(tmp_path)
    result = surge(command, base, "-o", tmp_path / "out", *words.split())
    assert result.exit_code == 1, result.output
    for text in said:
        assert text in result.output
    assert "help: " in result.output
    assert hashes(tmp_path) == before


REFUSALS: dict[str, tuple[str, str, Shapes, Mapping[str, Any] | None, tuple[str, ...]]] = {
    "only an order": (
        "split-qkv", "--order q,v,k", FUSED, None, ("the layout is not said", "the parts are q, v, k",
        "--groups and --slots"),
    ),
    "rows that do not divide": (
        "split-qkv", "--groups 5 --slots 2,1,1", FUSED, None,
        ("48 entries are not a multiple of 5 groups × 4 slots", "h.0.attn.qkv", "another --axis"),
    ),
    "too few slots": ("split-qkv", "--groups 4 --slots 2,1", FUSED, None, ("2 slots for the 3 parts q, k, v",
    "--order says which parts")),
    "no head counts": (
        "split-qkv", "--layout grouped", FUSED, {},
        ("config.json has none for num_key_value_heads", "h.0.attn.qkv", "say it with --groups"),
    ),
    "no sizes": (
        "split-qkv", "--layout blocked", FUSED, None,
        ("neither config.json nor the shapes tell how long q, k, v are", "say it with --slots"),
    ),
    "groups without slots": (
        "split-qkv", "--groups 4", FUSED, None, ("neither config.json nor the shapes", "one number for each of q,k,v"),
    ),
    "two head counts": (
        "split-qkv", "--layout interleaved", FUSED, {"text_config": {"num_attention_heads": 4},
        "vision_config": {"num_attention_heads": 2}},
        ("config.json says 2 and 4 for num_attention_heads", "say it with --groups"),
    ),
    "two lengths": (
        "split-qkv", "--layout interleaved", {**FUSED, "h.2.attn.qkv.weight": (24, 8)}, {"num_attention_heads": 4},
        ("of different lengths, and config.json has one head count", "h.2.attn.qkv: 24", "a --pattern of its own"),
    ),
    "two names": (
        "split-qkv", "--layout blocked", {**FUSED, "v.0.wqkv.weight": (24, 8)}, None,
        ("modules of more than one name look fused", "2 × qkv, such as h.0.attn.qkv", "1 × wqkv, such as v.0.wqkv",
        "--fused NAME"),
    ),
    "the output projection contradicts": (
        "split-qkv", "--layout blocked", {**FUSED, "h.0.attn.o_proj.weight": (8, 32)}, HEADS,
        ("this layout makes q, k, v as long as 4:2:2, but by the projections around it they are 32:8:8", "--slots"),
    ),
    "equal parts are not what the output projection says": (
        "split-qkv", "--layout interleaved", {**FUSED, "h.0.attn.o_proj.weight": (8, 32)}, HEADS,
        ("as long as 1:1:1, but", "32:8:8"),
    ),
    "pattern of tensors": (
        "split-qkv", r"--layout blocked --pattern .*\.qkv\.weight", FUSED, None, (r"matches `.*\.qkv\.weight`",
        r"leave `\.weight` out"),
    ),
    "pattern of a part of the name": (
        "split-qkv", "--layout blocked --pattern attn", FUSED, None, ("no module's whole name matches `attn`",
        "h.0.attn.qkv"),
    ),
    "pattern of nothing": (
        "split-qkv", "--layout blocked --pattern zzz", FUSED, None,
        ("no module's whole name matches `zzz`", "modules are such as h.0.attn.qkv"),
    ),
    "a name that is not there": (
        "split-qkv", "--layout blocked --fused qkvv", FUSED, None, ("no module is called qkvv",
        "the nearest names are qkv"),
    ),
    "nothing looks fused": ("split-qkv", "--layout blocked", SPLIT, None, ("no module looks fused by its name",
    "--pattern REGEX")),
    "names of no part": (
        "split-qkv", "--layout blocked --names z=a", FUSED, None, ("there is no part z",
        "the parts are q, k, v; --order says others"),
    ),
    "names of no part, of a known type": ("split", "--names zz=a", FUSED, None, ("there is no part zz", "parts are ")),
    "a name given twice": (
        "split-qkv", "--slots 2,1,1 --names q=k_proj", FUSED, None,
        ("two parts would be called k_proj, k_proj, v_proj", "--names"),
    ),
    "a name that is taken": (
        "split-qkv", "--slots 2,1,1", {**FUSED, "h.1.attn.k_proj.weight": (3,)}, None,
        ("a part would take the name of another tensor", "h.1.attn.qkv.weight -> h.1.attn.k_proj.weight",
        "rename or drop"),
    ),
    "one bias missing": (
        "split-qkv", "--slots 2,1,1", {**FUSED, "h.0.attn.qkv.bias": (48,)}, None, ("some have none",
        "without: h.1.attn.qkv", "incomplete")
    ),
    "quantised": (
        "split-qkv", "--slots 2,1,1", {**FUSED, "h.0.attn.qkv.weight_scale": (1,)}, None,
        ("are these quantised?", "model.safetensors: h.0.attn.qkv.weight_scale"),
    ),
    "a bias that does not fit": (
        "split-qkv", "--slots 2,1,1", {"h.0.attn.qkv.weight": (48, 8), "h.0.attn.qkv.bias": (47,)}, None,
        ("the fused qkv does not fit the layout that was given", "(47,) along axis 0 is not 48 = 1 × [24|12|12]"),
    ),
    "an axis that is not there": ("split-qkv", "--slots 2,1,1 --axis 3", FUSED, None, ("there is no axis 3",
    "axes count from 0")),
    "experts": ("split-experts", "--layout blocked", FUSED, None, ("the layout of stacked experts cannot be given",
    "--axis")),
    "a layout for all kinds": ("split", "--layout blocked", FUSED, None, ("is of one kind of modules", "--kinds qkv")),
    "fuse to what": ("fuse-qkv", "--layout blocked", SPLIT, None, ("what is the fused module to be called?",
    "--fused NAME")),
    "fuse what is not there": (
        "fuse-qkv", "--layout blocked --fused qkv", FUSED, None,
        ("no q_proj, k_proj, v_proj are here to be fused to qkv", "--names"),
    ),
    "fuse where nothing is": (
        "fuse-qkv", "--layout blocked --fused qkv --pattern zz", SPLIT, None,
        ("are here to be fused to qkv where `zz` says", "--names"),
    ),
    "fuse with a part missing": (
        "fuse-qkv", "--layout blocked --fused qkv", {n: s for n, s in SPLIT.items() if n != "h.1.attn.v_proj.weight"},
        None,
        ("1 projections have no weight", "h.1.attn.v_proj"),
    ),
    "fuse along which axis": (
        "fuse-qkv", "--layout blocked --fused c_attn", SPLIT, None, ("is c_attn fused along axis 0 or axis 1?",
        "Conv1D"),
    ),
    "fuse in groups that do not divide": (
        "fuse-qkv", "--layout grouped --groups 3 --fused qkv", SPLIT, None, ("16 is not a multiple of 3 groups",),
    ),
    "fuse unequal parts in turn": (
        "fuse-qkv", "--layout interleaved --groups 2 --fused qkv", SPLIT, None, ("as long as 1:1:1, but",
        "they are 16:8:8"),
    ),
    "fuse with other slots": (
        "fuse-qkv", "--groups 2 --slots 1,1,2 --fused qkv", SPLIT, None,
        ("does not fit the layout that was given", "its part of 2 × [4|4|8]"),
    ),
    "fuse to a name that is taken": (
        "fuse-qkv", "--layout blocked --fused qkv", {**SPLIT, "h.0.attn.qkv.weight": (2,)}, None,
        ("the fused tensor would take the name of another",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_teach_and_write_nothing(name: str, tmp_path: Path) -> None:
    command, words, shapes, config, said = REFUSALS[name]
    check_refused(command, words, shapes, tmp_path, config, *said)


@pytest.mark.parametrize(
    ("given", "what", "tip"),
    [
        ({"layout": "blokced"}, "there is no layout `blokced`", "blocked, interleaved, grouped are known"),
        ({"groups": -1}, "there cannot be -1 groups", "config.json"),
        ({"slots": (4, 0, 1)}, "each part has at least one slot in a group", "--slots 8,1,1"),
        ({"order": ("q", "k", "q")}, "the order q,k,q names a part twice", "once"),
        ({"order": ("q", "", "v")}, "a part in the order q,,v has no name", "list the parts"),
        ({"order": ("q", "k"), "slots": (1, 1, 1)}, "3 slots for the 2 parts q,k", "in the order in which they lie"),
        ({"axis": -1}, "there is no axis -1", "count from 0"),
        ({"names": {"q": ""}}, "a part has no name", "--names q=query"),
        ({"names": {"q": "a", "k": "a"}}, "two parts would be called a, a", "of its own"),
        ({"layout": "blocked", "groups": 4}, "blocked has one group, not 4", "--layout grouped"),
        ({"layout": "interleaved", "slots": (2, 1, 1)}, "as much of each part in turn, not 2,1,1", "--layout grouped"),
        ({"pattern": "("}, "`(` is not a regular expression", "a literal ("),
    ],
)
def test_what_contradicts_itself_is_wrong_usage(given: dict[str, Any], what: str, tip: str, tmp_path: Path) -> None:
    """As an error of the library, and on the command line with status 2 before anything is opened."""
    with pytest.raises(SurgeryError) as caught:
        Given(**given)
    assert what in caught.value.what
    assert caught.value.help and tip in caught.value.help
    words = [w for key, value in given.items() for w in (f"--{key}", _spelled(value))]
    result = surge("split-qkv", tmp_path / "nothing", *words)
    assert result.exit_code == 2
    assert "Usage" in result.output


def _spelled(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}={name}" for key, name in value.items())
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize("words", ["--slots 2,x", "--names q", "--names q=a,q=b", "--kinds qkv,moe", "--groups x"])
def test_words_that_cannot_be_read_are_wrong_usage(words: str, tmp_path: Path) -> None:
    result = surge("split", tmp_path / "nothing", *words.split())
    assert result.exit_code == 2
    assert words.split()[0] in result.output


def test_lengths_that_do_not_agree_are_refused_by_the_library_too(tmp_path: Path) -> None:
    base = surgery.open_checkpoint(made(tmp_path / "base", FUSED))
    with pytest.raises(LayoutError, match="48 entries are not a multiple of 7 groups × 3 slots"):
        surgery.split_qkv(base, given=Given("interleaved", groups=7))


# The commands


@pytest.mark.parametrize("kind", ["qkv", "gate-up", "experts"])
@pytest.mark.parametrize("verb", ["split", "fuse"])
def test_each_kind_has_its_command_with_the_options(verb: str, kind: str) -> None:
    """`split --kinds KIND` and `split-KIND` say the same of a model that has nothing of the kind."""
    for command in (verb, f"{verb}-{kind}"):
        text = surge(command, "--help").stdout
        assert all(
            option in text
            for option in ("--layout", "--groups", "--slots", "--order", "--axis", "--pattern", "--fused", "--names")
        )


def test_kinds_choose(tmp_path: Path) -> None:
    config = {"model_type": "phi3", "hidden_size": 16, **HEADS}
    shapes = {"model.layers.0.self_attn.qkv_proj.weight": (32, 16), "model.layers.0.mlp.gate_up_proj.weight": (24, 16)}
    base = made(tmp_path / "base", shapes, config)
    told = {
        "qkv": {"q_proj", "k_proj", "v_proj", "gate_up_proj"},
        "gate-up": {"qkv_proj", "gate_proj", "up_proj"},
        "gate_up": {"qkv_proj", "gate_proj", "up_proj"},
        "": {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"},
    }
    for i, (kinds, leaves) in enumerate(told.items()):
        assert surge("split", base, "-o", tmp_path / str(i), *(["--kinds", kinds] if kinds else [])).exit_code == 0
        assert {n.split(".")[-2] for n in surgery.open_checkpoint(tmp_path / str(i)).tensors} == leaves
        assert surge("fuse", tmp_path / str(i), "-o", tmp_path / f"back{i}").exit_code == 0
        assert hashes(tmp_path / f"back{i}") == hashes(base)
    for i, kind in enumerate(("qkv", "gate-up")):
        assert surge(f"split-{kind}", base, "-o", tmp_path / kind).exit_code == 0
        assert hashes(tmp_path / kind) == hashes(tmp_path / str(i))
        assert surge(f"fuse-{kind}", tmp_path / kind, "-o", tmp_path / f"{kind}-back").exit_code == 0
        assert hashes(tmp_path / f"{kind}-back") == hashes(base)
    result = surge("split-experts", base, "-o", tmp_path / "none")
    assert result.exit_code == 1
    assert "no fused experts is here" in result.output and "what is fused here is gate_up, qkv" in result.output
    assert not (tmp_path / "none").exists()
