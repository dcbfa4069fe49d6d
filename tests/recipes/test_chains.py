"""Chains of steps: composed in one pass, from a recipe, one command after another, and made again from the manifest,
they give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from handmade import write_adapter, write_phi3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import surgery
from surgery.recipes.run import made_by, read_recipe
from surgery.recipes.saying import Opening, apply
from surgery.recipes.table import STEPS
from surgery_cli.app import app

Step = tuple[str, dict[str, Any]]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chains")
    config = write_phi3(folder / "base", layers=3, hidden=16) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": ["Phi3ForCausalLM"]}))
    modules = {f"model.layers.{i}.self_attn.o_proj": (16, 16) for i in range(2)}
    write_adapter(folder / "one", modules)
    write_adapter(folder / "two", {"model.layers.1.self_attn.o_proj": (16, 16)}, rank=3)
    return folder


def hashes(folder: Path) -> dict[str, str]:
    """Every file but the manifest, which names the plan that wrote it."""
    files = [path for path in folder.rglob("*") if path.is_file() and ".surgery" not in path.parts]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@st.composite
def chains(draw: st.DrawFn) -> list[Step]:
    """Steps that can follow each other: what is fused is split and the other way round, layers stay at least two."""
    fused, layers, made = True, 3, list[Step]()
    for _ in range(draw(st.integers(1, 5))):
        names = ["merge", "cast", "keep", "rename", "split-qkv" if fused else "fuse-qkv"]
        name = draw(st.sampled_from([*names, "layers"] if layers > 2 and fused else names))
        match name:
            case "split-qkv" | "fuse-qkv":
                fused, said = not fused, dict[str, Any]()
            case "layers":
                layers, said = 2, {"order": draw(st.sampled_from(["0,1", "1,0", "0,0"]))}
            case "merge":
                adapter = draw(st.sampled_from(["one", "two"]))
                said = {"adapters": adapter, "weights": draw(st.sampled_from([0.5, 1])), "again": True}
            case "cast":
                said = {"dtype": draw(st.sampled_from(["bfloat16", "float32", "float16"])), "allow-overflow": True}
            case "keep":
                said = {"pattern": r".*"}
            case _:
                said = {"map": [["^model", "model"]]}
        made.append((name, said))
    return made


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chain=chains())
def test_one_pass_is_one_after_another(chain: list[Step], here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    work = here / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    (work / "recipe.json").write_text(
        json.dumps({"source": "base", "steps": [{name: said} for name, said in chain], "output": "work/at-once"})
    )
    done = CliRunner().invoke(app, ["run", "work/recipe.json", "--quiet"])
    assert done.exit_code == 0, done.output
    at = "base"
    for number, (name, said) in enumerate(chain):
        step = apply(STEPS[name].function, surgery.open_checkpoint(at), said, Opening())
        at = f"work/{number}"
        surgery.write(step, at)
    assert hashes(work / "at-once") == hashes(Path(at))
    again = CliRunner().invoke(app, ["run", "work/at-once", "-o", "work/again", "--quiet"])
    assert again.exit_code == 0, again.output
    assert hashes(work / "again") == hashes(work / "at-once")
    assert (work / "again/.surgery/manifest.json").read_bytes() == (
        work / "at-once/.surgery/manifest.json"
    ).read_bytes()


def test_what_python_composes_is_a_recipe(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters that were made on the way, several of them, options of every kind: the manifest makes it again."""
    monkeypatch.chdir(here)
    base = surgery.open_checkpoint("base")
    both = surgery.combine([surgery.open_adapter("one"), surgery.open_adapter("two")], [0.5, 2.0])
    small = surgery.resize_adapter(both, rank=2)
    merged = surgery.merge(
        surgery.split_qkv(base), [small, surgery.open_adapter("one")], [1.0, -0.25], only=r"model\..*", any_base=True
    )
    surgery.write(surgery.rename(merged, [("^model\\.", "decoder.")]), tmp_path / "out", max_shard_size="20KB")
    made = made_by(read_recipe(tmp_path / "out"))
    surgery.write(made, tmp_path / "again", max_shard_size="20KB")
    assert hashes(tmp_path / "again") == hashes(tmp_path / "out")
    manifests = [(tmp_path / name / ".surgery/manifest.json").read_bytes() for name in ("out", "again")]
    assert manifests[0] == manifests[1]
    steps = [next(iter(step)) for step in json.loads(manifests[0])["recipe"]["steps"]]
    assert steps == ["split-qkv", "merge", "rename"]


def test_other_inputs_than_the_manifest_names_are_refused(here: Path, tmp_path: Path) -> None:
    write_phi3(tmp_path / "base", layers=3, hidden=16)
    surgery.write(surgery.drop(surgery.open_checkpoint(tmp_path / "base"), ".*norm.*"), tmp_path / "out")
    shutil.rmtree(tmp_path / "base")
    write_phi3(tmp_path / "base", layers=2, hidden=16)
    with pytest.raises(surgery.FormatError) as caught:
        made_by(read_recipe(tmp_path / "out"))
    assert "these are not the inputs that the manifest names" in caught.value.what
    assert "--set source=PATH" in str(caught.value.help)
