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
    "a tag on a list": ("[one]|!!python/tuple [one]", "is no plain data", "6"),
    "what flows": ("scale: 0.5|checkpoint: base", "is what flows into the step", "7"),
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


def test_numbers_are_texts_where_texts_are_wanted(here: Path) -> None:
    """As they are written, and as on the command line: YAML 1.1 has 010 for 8, 1_0 for 10 and 1:0 for 60."""
    for text in ("010", "1_0", "1:0", "0x1", "1"):
        words = ["drop", "base", "--pattern", text, "--dry-run"]
        said = surge("run", recipe(f"source: base\nsteps:\n  - drop: {{pattern: {text}}}\n"), "--dry-run")
        assert f"`{text}`" in surge(*words).stderr and f"`{text}`" in said.stderr, said.stderr
    for text in ("010", "1_0", "1:0", "'1'"):
        done = surge("run", recipe(GOOD.replace("scale: 0.5", f"scale: {text}")), "--dry-run")
        assert done.exit_code == 1 and "is not a number" in done.stderr
    assert surge("run", recipe(GOOD.replace("scale: 0.5", "scale: 5e-1")), "--dry-run").exit_code == 0


def test_json_is_read_as_json(here: Path) -> None:
    """With tabs, and characters that are two surrogates; numbers of thousands of digits are an error in words."""
    text = json.dumps({"source": "base", "steps": [{"rename": {"map": {"^model": "\U0001f600"}}}], "output": "o"})
    assert surge("run", recipe(text.replace("{", "{\n\t", 1), "tabs.json"), "-q").exit_code == 0
    assert any("\U0001f600".encode() in data for data in shards("o").values())
    for wrong in (f'{{"source": {"1" * 5000}}}', '{"source": "\\ud83d"}', '{"source": "base"'):
        done = surge("run", recipe(wrong, "wrong.json"), "--json")
        assert done.exit_code == 1 and json.loads(done.stdout)["error"], done.output


def test_a_manifest_that_contradicts_itself_is_refused(here: Path) -> None:
    """Its inputs, history and files are held against what the recipe makes."""
    assert surge("run", recipe(GOOD), "-q").exit_code == 0
    path = here / "out/.surgery/manifest.json"
    whole = json.loads(path.read_text())
    assert surge("run", "out", "-o", "fine", "-q").exit_code == 0
    step = {**whole["history"][-1], "pattern": "x"}
    wrong: list[dict[str, Any]] = [
        {"inputs": "x"},
        {"inputs": [5]},
        {"format": 99},
        {"history": [*whole["history"][:-1], step]},
        {"digests": {**whole["digests"], "config.json": "0" * 64}},
        {"recipe": {**whole["recipe"], "steps": whole["recipe"]["steps"][:-1]}},
        {"recipe": [5]},
    ]
    for number, change in enumerate(wrong):
        path.write_text(json.dumps(whole | change))
        done = surge("run", "out", "-o", f"wrong-{number}")
        assert done.exit_code == 1 and "Traceback" not in done.output, change
        assert not Path(f"wrong-{number}").exists()
    path.write_text(json.dumps(whole))
    config = here / "base/config.json"
    config.write_text(config.read_text().replace("}", ', "rms_norm_eps": 0.5}', 1))
    assert "other files would lie beside" in surge("run", "out", "-o", "edited").stderr


def test_an_input_that_is_not_found_is_asked_for(here: Path) -> None:
    assert surge("run", recipe(GOOD), "-q").exit_code == 0
    Path("base").rename("elsewhere")
    done = surge("run", "out", "-o", "again")
    assert done.exit_code == 1 and "--set source=PATH" in done.stderr
    assert surge("run", "out", "-o", "again", "-q", "--set", "source=elsewhere").exit_code == 0
    assert shards("again") == shards("out")


def test_the_schema_is_one(here: Path) -> None:
    """Types are named once in a list, as the metaschema asks."""

    def types(node: Any) -> list[list[str]]:
        inner = (
            [one for value in (node.values() if isinstance(node, dict) else node) for one in types(value)]
            if (isinstance(node, dict | list))
            else []
        )
        own = node.get("type") if isinstance(node, dict) else None
        return [*inner, own] if isinstance(own, list) else inner

    found = types(json.loads(surge("schema").stdout))
    assert found and all(len(set(one)) == len(one) for one in found)


@pytest.mark.parametrize(
    "words",
    [
        "merge base --with nothing.safetensors -o x",
        "merge base --alpha 4 -o x",
        "unmerge base --alpha 4 -o x",
        "unmerge base --format mlx -o x",
    ],
)
def test_what_is_said_of_adapters_is_not_passed_over(words: str, here: Path) -> None:
    done = surge(*words.split())
    assert done.exit_code == 2 and "no adapter is named" in done.output


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "fp8", "bf16"])
def test_every_dtype_can_be_said(dtype: str, here: Path) -> None:
    assert surge("cast", "base", "--dtype", dtype, "--allow-overflow", "-o", "cast", "-q").exit_code == 0


def test_a_class_says_what_is_split(here: Path) -> None:
    for kinds in ("qkv", "gate-up"):
        done = surge("split", "base", "--as", "llama", "--kinds", kinds, "-o", "x")
        assert done.exit_code == 2 and "the target says what is split" in done.output


def test_alpha_is_written_as_peft_does(here: Path) -> None:
    assert surge("inject", "base", "--target-modules", "o_proj", "--alpha", "4", "-o", "lora", "-q").exit_code == 0
    assert '"lora_alpha": 4,' in Path("lora/adapter_config.json").read_text()
