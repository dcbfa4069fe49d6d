"""Recipes as files: what they say is done, and what they say wrongly is told with its line before anything happens."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from handmade import write_adapter, write_phi3
from typer.testing import CliRunner, Result

from surgery.recipes.table import STEPS
from surgery_cli.app import app
from surgery_cli.recipe_output import OUTPUT

GOOD = """
source: base
steps:
  - split-qkv
  - merge:
      adapters: [one]
      scale: 0.5
  - drop:
      pattern: '.*norm.*'
output: out
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_phi3(tmp_path / "base", layers=2, hidden=16)
    write_adapter(tmp_path / "one", {"model.layers.0.self_attn.o_proj": (16, 16)})
    return tmp_path


def surge(*words: str) -> Result:
    return CliRunner().invoke(app, [*words])


def recipe(text: str, name: str = "recipe.yaml") -> str:
    Path(name).write_text(textwrap.dedent(text))
    return name


def shards(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("*.safetensors"))}


def test_a_recipe_in_each_format_is_the_commands_one_after_another(here: Path) -> None:
    toml = """
        source = "base"
        output = "toml"
        [[steps]]
        split-qkv = {}
        [[steps]]
        merge = { adapters = "one", scale = 0.5 }
        [[steps]]
        [steps.drop]
        pattern = ".*norm.*"
    """
    steps = ["split-qkv", {"merge": {"adapters": ["one"], "scale": 0.5}}, {"drop": {"pattern": ".*norm.*"}}]
    whole = {"source": {"path": "base"}, "steps": steps, "output": {"output": "json"}}
    files = {
        "out": recipe(GOOD),
        "toml": recipe(toml, "recipe.toml"),
        "json": recipe(json.dumps(whole), "r.json"),
    }
    for name, file in files.items():
        done = surge("run", file, "--quiet")
        assert done.exit_code == 0, (name, done.output)
    surge("split-qkv", "base", "-o", "a", "-q")
    surge("merge", "a", "one", "--scale", "0.5", "-o", "b", "-q")
    surge("drop", "b", "--pattern", ".*norm.*", "-o", "c", "-q")
    assert shards("c") and all(shards(name) == shards("c") for name in files)


def test_output_has_the_options_of_what_writes(here: Path) -> None:
    text = GOOD.replace("output: out", "output:\n  output: out\n  max-shard-size: 3KB\n  balanced: true")
    assert surge("run", recipe(text), "-q").exit_code == 0
    count = len(shards("out"))
    assert count > 2
    assert surge("run", "recipe.yaml", "-q", "--overwrite", "--max-shard-size", "2KB").exit_code == 0
    assert len(shards("out")) > count
    told = surge("run", recipe(text.replace("balanced", "balancd")))
    assert told.exit_code == 1
    assert "recipe.yaml:13" in told.stderr and "nearest are balanced" in told.stderr


def test_values_can_be_set(here: Path) -> None:
    recipe(GOOD)
    assert surge("run", "recipe.yaml", "-q").exit_code == 0
    assert surge("run", "recipe.yaml", "-q", "--set", "output=twice", "--set", "merge.scale=1").exit_code == 0
    assert surge("run", "recipe.yaml", "-q", "--set", "output.output=same", "--set", "2.scale=0.5").exit_code == 0
    assert shards("out") == shards("same") != shards("twice")


WRONG: dict[str, tuple[str, str, str]] = {
    # what is put in the place of what, what the error says, on which line
    "a step": ("- split-qkv|- split-qvk", "no step is called split-qvk", "4"),
    "an option": ("scale: 0.5|sclae: 0.5", "step 2, merge, has no option 'sclae'", "7"),
    "a type": ("scale: 0.5|scale: half", "step 2, merge: scale: 'half' is not a number", "7"),
    "a flag": ("scale: 0.5|again: sure", "step 2, merge: again: 'sure' is not true or false", "7"),
    "a word": ("scale: 0.5|tied: both", "step 2, merge: tied: `both` is none of untie, error", "7"),
    "what is needed": ("      pattern: '.*norm.*'|      {}", "step 3, drop needs pattern", "8"),
    "a key on top": ("output: out|outputs: out", "a recipe has no key 'outputs'", "10"),
    "no source": ("source: base|source:", "the recipe names no source", ""),
    "two sources": ("source: base|source: [base, base]", "2 sources flow into one", "2"),
    "a key twice": ("scale: 0.5|adapters: []", "'adapters' is said twice", "7"),
    "a tag": ("scale: 0.5|scale: !!python/object:os.system x", "is no plain data", "7"),
    "no YAML": ("scale: 0.5|scale: [", "this is no YAML", ""),
    "a step that matches nothing": ("'.*norm.*'|no_such.*", "step 3, drop:", "8"),
    "an adapter that is not there": ("[one]|[none]", "step 2, merge:", "5"),
    "two steps in one": ("  - split-qkv|  - split-qkv: {}\n    fuse-qkv: {}", "a step is a name", "4"),
    "two outputs": ("output: out|output: [out, other]", "output says one place", "10"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_with_its_line(case: str, here: Path) -> None:
    change, what, line = WRONG[case]
    old, _, new = change.partition("|")
    assert old in GOOD
    done = surge("run", recipe(GOOD.replace(old, new)))
    assert done.exit_code == 1 and "Traceback" not in done.output
    assert what in done.stderr, done.stderr
    assert f"recipe.yaml:{line}" in done.stderr if line else "recipe.yaml" in done.stderr, done.stderr
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ("scale", "is not STEP.OPTION=VALUE"),
        ("megre.scale=1", "is no option of a step of this recipe"),
        ("merge.scale=x", "'x' is not a number"),
        ("output=a=b", ""),
    ],
)
def test_what_cannot_be_set_is_refused(said: str, what: str, here: Path) -> None:
    done = surge("run", recipe(GOOD), "--set", said, "--quiet")
    assert (done.exit_code == 0) == (not what)
    assert what in " ".join(re.sub("[│╭╮╰╯─]", "", done.output).split())


def test_two_places_are_one_too_many(here: Path) -> None:
    done = surge("run", recipe(GOOD), "-o", "elsewhere")
    assert done.exit_code == 1 and "there are two outputs" in done.stderr
    assert not Path("out").exists() and not Path("elsewhere").exists()


def test_a_dry_run_shows_all_steps_and_writes_nothing(here: Path) -> None:
    done = surge("run", recipe(GOOD), "--dry-run")
    assert done.exit_code == 0, done.output
    for words in ("split", "merge", "drop"):
        assert words in done.output
    assert not Path("out").exists()


def test_references_that_multiply_end(here: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 10)}]" for i in range(8)]
    done = surge("run", recipe("\n".join(lines)))
    assert done.exit_code == 1 and "the recipe is too large" in done.stderr


def test_the_schema_has_every_step_and_every_option(here: Path) -> None:
    """Each option is described; the recipe above is one, by the schema, and each wrong key is none."""
    schema: Any = json.loads(surge("schema").stdout)
    one = schema["properties"]["steps"]["items"]["anyOf"][1]["properties"]
    assert set(one) == set(STEPS)
    assert all(option["description"] for step in one.values() for option in step["properties"].values())
    assert {"adapters", "scale", "map", "layout", "alpha"} <= set(one["merge"]["properties"])
    assert one["drop"]["required"] == ["pattern"] and not one["drop"]["additionalProperties"]
    assert set(schema["properties"]["output"]["anyOf"][1]["properties"]) == set(OUTPUT)
    assert "split-qkv" in schema["properties"]["steps"]["items"]["anyOf"][0]["enum"]
