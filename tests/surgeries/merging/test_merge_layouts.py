"""Adapters across a fusion in bases whose config.json does not say how that lies. The judge is what PEFT's live
model computes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

import surgery
from surgery.errors import FormatError, LayoutError, NothingMatched, NotPlaced, SurgeryError
from surgery.models.fused.given import Given, as_said, given_as
from surgery_cli.app import app

Saved = Callable[..., Path]
Tensors = dict[str, torch.Tensor]


def surge(*words: str | Path) -> Result:
    """Run the command line in this process; its output does not wrap."""
    return CliRunner(env={"COLUMNS": "400"}).invoke(app, [str(w) for w in words])


def trained(family: str, out: Path, **options: Any) -> torch.Tensor:
    """An adapter of random factors, and what the live adapted model computes."""
    model = peft.get_peft_model(
        tiny_models.build(family), peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **options)
    ).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(out)
    return tiny_models.output(model, family)


def rows_in_groups(parts: Sequence[torch.Tensor], groups: int) -> torch.Tensor:
    return torch.cat([part.unflatten(0, (groups, -1)) for part in parts], 1).flatten(0, 1)


def parts_of_groups(fused: torch.Tensor, groups: int, sizes: Sequence[int]) -> list[torch.Tensor]:
    return [part.flatten(0, 1) for part in fused.unflatten(0, (groups, -1)).split([n // groups for n in sizes], 1)]


def fused_by_hand(tensors: Tensors, names: Sequence[str], leaf: str, groups: int) -> Tensors:
    """The tensors with these modules' rows in groups in one module."""
    made = {n: t for n, t in tensors.items() if not any(f".{name}." in n for name in names)}
    for first in [n for n in tensors if f".{names[0]}." in n]:
        made[first.replace(names[0], leaf)] = rows_in_groups(
            [tensors[first.replace(names[0], n)] for n in names], groups
        )
    return made


def apart_by_hand(tensors: Tensors, names: Sequence[str], leaf: str, groups: int, sizes: Sequence[int]) -> Tensors:
    made = {n: t for n, t in tensors.items() if f".{leaf}." not in n}
    for fused in [n for n in tensors if f".{leaf}." in n]:
        cut = parts_of_groups(tensors[fused], groups, sizes)
        made |= {fused.replace(leaf, name): part.contiguous() for name, part in zip(names, cut, strict=True)}
    return made


def stored(tensors: Tensors, folder: Path, config: Any = None) -> Path:
    folder.mkdir()
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def computed(tensors: Tensors, family: str, folder: Path) -> torch.Tensor:
    """What the family's class computes with these tensors, as it loads them from a file."""
    stored(tensors, folder, tiny_models.MODELS[family]().config.to_dict())
    model, info = tf.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return tiny_models.output(model.eval(), family)


def compare(merged: Tensors, base: Tensors, family: str, live: torch.Tensor, folder: Path) -> None:
    """The merged weights compute what the live model does, from which the base is far."""
    error = (computed(merged, family, folder / "now") - live).abs().max()
    assert (
        error <= 1e-5 * live.abs().max()
        and (computed(base, family, folder / "before") - live).abs().max() >= 1000 * error
    )


QKV, GATE_UP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
# name of the fused module, its groups, lengths of the parts: of Llama's 4 heads of q and 2 of k and v, 10 each; the
# words that say it
WAYS: dict[str, tuple[tuple[str, ...], str, int, tuple[int, ...], str]] = {
    "blocked": (QKV, "qkv_proj", 1, (40, 20, 20), "--layout blocked --slots 4,2,2"),
    "grouped": (QKV, "query_key_value", 2, (40, 20, 20), "--layout grouped --groups 2 --slots 2,1,1"),
    "a name that is not known": (QKV, "everything", 2, (40, 20, 20), "--fused everything --groups 2 --slots 2,1,1"),
    "another order": (("v_proj", "q_proj", "k_proj"), "qkv", 2, (20, 40, 20), "--groups 2 --slots 1,2,1 --order v,q,k"),
    "by a pattern": (QKV, "inside", 1, (40, 20, 20), "--slots 4,2,2 --pattern .*\\.self_attn\\.inside"),
    "gate and up": (GATE_UP, "gate_up_proj", 1, (80, 80), "--fused gate_up_proj --layout blocked"),
    "gate and up in turn": (GATE_UP, "wi", 80, (80, 80), "--fused wi --layout interleaved --order gate,up"),
}
CONFIGS: dict[str, Any] = {
    "none": None,
    "no type": {"vocab_size": 97},
    "unknown": {"model_type": "homegrown", "vocab_size": 97},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("config", CONFIGS)
def test_an_adapter_on_parts_of_what_is_fused_as_given(way: str, config: str, saved: Saved, tmp_path: Path) -> None:
    names, leaf, groups, sizes, words = WAYS[way]
    targets = [names[0], names[-1]] if names == GATE_UP else ["q_proj", "v_proj"]
    live = trained("llama", tmp_path / "a", target_modules=targets)
    before = load_file(saved("llama") / "model.safetensors")
    base = stored(fused_by_hand(before, names, leaf, groups), tmp_path / "base", CONFIGS[config])
    refused = surge("merge", base, tmp_path / "a", "-o", tmp_path / "out")
    if refused.exit_code:
        assert refused.exit_code == 1 and not (tmp_path / "out").exists()
        assert (
            way in ("a name that is not known", "by a pattern", "gate and up in turn")
            or f"--fused {leaf} --layout" in refused.output
        )
    done = surge("merge", base, tmp_path / "a", "-o", tmp_path / "said", *words.split())
    assert done.exit_code == 0 and "which lie as given" in done.output, done.output
    now = load_file(tmp_path / "said/model.safetensors")
    assert now.keys() == load_file(base / "model.safetensors").keys()
    compare(apart_by_hand(now, names, leaf, groups, sizes), before, "llama", live, tmp_path)
    proof = ("verify", tmp_path / "said", "--base", base, "--adapter", tmp_path / "a", "--no-class")
    assert surge(*proof).exit_code == 0  # the manifest says how
    assert "given" in surge(*proof).output
    shutil.rmtree(tmp_path / "said/.surgery")
    assert surge(*proof, *words.split()).exit_code == 0
    if refused.exit_code:
        assert surge(*proof).exit_code == 1


@pytest.mark.parametrize(
    ("family", "leaf", "groups", "sizes", "words"),
    [
        ("gpt_neox", "query_key_value", 3, (36, 36, 36), "--layout interleaved --groups 3"),
        ("phi3", "qkv_proj", 1, (48, 24, 24), "--layout blocked"),
        ("phi3", "gate_up_proj", 1, (80, 80), "--layout blocked"),
    ],
)
@pytest.mark.parametrize("config", CONFIGS)
def test_an_adapter_on_a_fused_module_in_a_base_of_parts(
    family: str, leaf: str, groups: int, sizes: tuple[int, ...], words: str, config: str, saved: Saved, tmp_path: Path
) -> None:
    live = trained(family, tmp_path / "a", target_modules=[leaf])
    before = load_file(saved(family) / "model.safetensors")
    names = GATE_UP if len(sizes) == 2 else ("one", "two", "three")
    called = [] if names == GATE_UP else ["--names", "q=one,k=two,v=three"]
    base = stored(apart_by_hand(before, names, leaf, groups, sizes), tmp_path / "base", CONFIGS[config])
    refused = surge("merge", base, tmp_path / "a", "-o", tmp_path / "out")
    assert refused.exit_code == 1 and f"--fused {leaf} --layout" in refused.output, refused.output
    done = surge("merge", base, tmp_path / "a", "-o", tmp_path / "said", "--fused", leaf, *words.split(), *called)
    assert done.exit_code == 0 and "which lie as given" in done.output, done.output
    now = load_file(tmp_path / "said/model.safetensors")
    compare(fused_by_hand(now, names, leaf, groups), before, family, live, tmp_path)
    assert surgery.verify(tmp_path / "said", base=base, adapter=tmp_path / "a", check_class=False).ok


@pytest.fixture(scope="module")
def grouped(saved: Saved, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base of unknown type in groups, and an adapter on q and v."""
    folder = tmp_path_factory.mktemp("grouped")
    trained("llama", folder / "a", target_modules=["q_proj", "v_proj"])
    base = fused_by_hand(load_file(saved("llama") / "model.safetensors"), QKV, "qkv_proj", 2)
    return stored(base, folder / "base", {"model_type": "homegrown"}), folder / "a"


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        (Given(groups=3, slots=(2, 1, 1)), LayoutError, "not a multiple of 3 groups"),
        (Given(slots=(1, 1, 1)), LayoutError, "not a multiple of 1 groups × 3 slots"),
        (
            Given(slots=(3, 1, 1)),
            LayoutError,
            "makes model.layers.0.self_attn.q_proj 48 rows long, and the adapter has 40",
        ),
        (Given(slots=(2, 1, 1), order=("v", "q", "k")), LayoutError, "v_proj 40 rows long, and the adapter has 20"),
        (Given(fused="qkv_prj", layout="blocked"), NothingMatched, "no module is called qkv_prj"),
        (Given(pattern=r".*\.attn\.qkv", slots=(4, 2, 2)), NothingMatched, "no module's whole name matches"),
        (Given(fused="qkv_proj"), SurgeryError, "nothing is said"),
        (Given(groups=2, slots=(2, 1, 1), names={"q": "query"}), NotPlaced, "have no place"),
        (Given(groups=2, slots=(2, 1, 1), names={"x": "query"}), SurgeryError, "there is no part x"),
        (
            Given(fused="o_proj", layout="blocked", slots=(2, 1, 1)),
            LayoutError,
            "q_proj 24 rows long, and the adapter has 40",
        ),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(
    given: Given, kind: type[SurgeryError], said: str, grouped: tuple[Path, Path]
) -> None:
    base, adapter = grouped
    with pytest.raises(kind, match=said):
        surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter), given=given)


def test_another_layout_of_the_same_lengths_is_no_proof(grouped: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = grouped
    right, other = Given(groups=2, slots=(2, 1, 1)), Given(slots=(2, 1, 1))
    surgery.write(
        surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter), given=other), tmp_path / "m"
    )
    assert surgery.verify(tmp_path / "m", base=base, adapter=adapter, given=other, check_class=False).ok
    assert not surgery.verify(tmp_path / "m", base=base, adapter=adapter, given=right, check_class=False).ok


def test_a_layout_that_nobody_needs_is_refused(grouped: tuple[Path, Path], saved: Saved) -> None:
    with pytest.raises(NothingMatched, match="no adapter needs one") as caught:
        surgery.merge(
            surgery.open_checkpoint(saved("llama")),
            surgery.open_adapter(grouped[1]),
            given=Given(groups=2, slots=(2, 1, 1)),
        )
    assert "--layout" in str(caught.value.help) and "given=" in str(caught.value.help)


def test_what_is_given_overrules_the_table_for_its_modules_alone(saved: Saved, tmp_path: Path) -> None:
    """A Phi-3 whose q, k and v lie in groups, and whose gate and up lie as in any other."""
    live = trained("llama", tmp_path / "a", target_modules=["q_proj", "v_proj", "gate_proj"])
    before = load_file(saved("llama") / "model.safetensors")
    made = fused_by_hand(fused_by_hand(before, QKV, "qkv_proj", 2), GATE_UP, "gate_up_proj", 1)
    config = json.loads((saved("llama") / "config.json").read_text()) | {"model_type": "phi3", "architectures": None}
    base, given = stored(made, tmp_path / "base", config), Given(groups=2, slots=(2, 1, 1), fused="qkv_proj")
    surgery.write(
        surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(tmp_path / "a"), given=given), tmp_path / "m"
    )
    now = apart_by_hand(load_file(tmp_path / "m/model.safetensors"), QKV, "qkv_proj", 2, (40, 20, 20))
    compare(apart_by_hand(now, GATE_UP, "gate_up_proj", 1, (80, 80)), before, "llama", live, tmp_path)


def test_names_of_parts_alone(saved: Saved, tmp_path: Path) -> None:
    """The type's row says how they lie, and the adapter calls them otherwise."""
    trained("llama", tmp_path / "a", target_modules=["q_proj", "v_proj"])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    weights = tmp_path / "b/adapter_model.safetensors"
    renamed = {n.replace("q_proj", "query").replace("v_proj", "value"): t for n, t in load_file(weights).items()}
    save_file(renamed, weights, metadata={"format": "pt"})
    config = tmp_path / "b/adapter_config.json"
    config.write_text(config.read_text().replace("q_proj", "query").replace("v_proj", "value"))
    made = fused_by_hand(
        fused_by_hand(load_file(saved("llama") / "model.safetensors"), QKV, "qkv_proj", 1), GATE_UP, "gate_up_proj", 1
    )
    said = json.loads((saved("llama") / "config.json").read_text()) | {
        "model_type": "phi3",
        "architectures": None,
        "head_dim": 10,
    }
    base = surgery.open_checkpoint(stored(made, tmp_path / "base", said))
    surgery.write(surgery.merge(base, surgery.open_adapter(tmp_path / "a")), tmp_path / "plain")
    with pytest.raises(NotPlaced):
        surgery.merge(base, surgery.open_adapter(tmp_path / "b"))
    given = Given(names={"q": "query", "k": "key", "v": "value"})
    surgery.write(surgery.merge(base, surgery.open_adapter(tmp_path / "b"), given=given), tmp_path / "named")
    assert (tmp_path / "plain/model.safetensors").read_bytes() == (tmp_path / "named/model.safetensors").read_bytes()


def test_taken_back_approximately_as_it_was_merged(grouped: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = grouped
    words = ("--groups", "2", "--slots", "2,1,1")
    assert surge("merge", base, adapter, "-o", tmp_path / "m", *words).exit_code == 0
    assert surge("unmerge", tmp_path / "m", adapter, "--approximate", "-o", tmp_path / "b", *words).exit_code == 0
    old, new = load_file(base / "model.safetensors"), load_file(tmp_path / "b/model.safetensors")
    assert all(torch.allclose(old[n], new[n], atol=1e-5) for n in old)


@pytest.mark.parametrize(
    "given",
    [
        Given(layout="blocked"),
        Given(axis=0, groups=2, slots=(2, 1, 1), order=("v", "q", "k"), fused="x", pattern=".*x"),
        Given(names={"q": "query"}),
    ],
)
def test_a_history_gives_back_what_was_given(given: Given) -> None:
    assert given_as(json.loads(json.dumps(as_said(given)))) == given


@pytest.mark.parametrize(
    "said", [3, [], {"layout": 1}, {"slots": ["8"]}, {"axis": True}, {"names": {"q": 1}}, {"order": [1]}, {"new": 1}]
)
def test_a_history_that_makes_no_sense_is_said(said: Any) -> None:
    with pytest.raises(FormatError, match="a layout that makes no sense"):
        given_as(said)
