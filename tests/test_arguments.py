"""Options in messages of the library: each is one of the command line, and each is said as what a caller in Python
has for it.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from handmade import write_adapter, write_phi3
from typer.testing import CliRunner

import surgery
from surgery.arguments import OTHERWISE, argument, in_both, in_python, of_command_line, options_in
from surgery.errors import SurgeryError
from surgery_cli.app import app

ROOT = Path(surgery.__file__).parent
# Options for which Python has no argument of that name, and what it has there.
ELSEWHERE = {
    "--tensors": "a checkpoint's tensors are a mapping",
    "--follow-links": "a context manager, for all that is opened in it",
    "--reversible": "a function of its own",
    "--approximate": "a function of its own",
    "--dry-run": "a plan is a value",
}


def texts(tree: ast.AST) -> Iterator[str]:
    """The strings of a source that are no docstrings, with what is filled in as `…`."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)} - {
        id(node) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
    }
    for node in ast.walk(tree):
        if id(node) in docstrings:
            continue
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield node.value


def named() -> dict[str, str]:
    """Each option that a message of the library names, and a module that does."""
    found: dict[str, str] = {}
    for path in sorted(ROOT.rglob("*.py")):
        if path.name != "arguments.py":
            for text in texts(ast.parse(path.read_text())):
                found |= dict.fromkeys(options_in(text), str(path.relative_to(ROOT)))
    return found


NAMED = named()


def of_the_command_line() -> set[str]:
    found: set[str] = set()
    for one in vars(typer.main.get_command(app))["commands"].values():
        for parameter in one.params:
            found |= {*parameter.opts, *parameter.secondary_opts}
    return found


def of_python() -> set[str]:
    """The arguments of all public functions, and the fields of what they are given."""
    functions = [value for name in surgery.__all__ if inspect.isfunction(value := getattr(surgery, name))]
    fields = {field.name for kind in (surgery.Given, surgery.HubDestination) for field in dataclasses.fields(kind)}
    return fields | {name for function in functions for name in inspect.signature(function).parameters}


def test_the_reader_of_messages_reads() -> None:
    assert {
        "--map",
        "--except",
        "--with",
        "--max-shard-size",
        "--layout",
        "--base-as-trained",
        "--again",
    } <= NAMED.keys()
    assert "--revision" not in options_in("hf download org/name --revision abc")
    assert options_in("models--org--name/--x, '--y', but --map A=B and `--max-shard-size 5GB`: --map") == [
        "--map",
        "--max-shard-size",
    ]


@pytest.mark.parametrize("option", sorted({*NAMED, *OTHERWISE}))
def test_every_option_is_one_of_the_command_line(option: str) -> None:
    assert option in of_the_command_line(), NAMED.get(option, "arguments.py")


@pytest.mark.parametrize("option", sorted({*NAMED, *OTHERWISE}))
def test_every_option_has_its_argument(option: str) -> None:
    said = argument(option)
    arguments = set(re.findall(r"(\w+)=", said))
    functions = set(re.findall(r"surgery\.(\w+)", said))
    assert arguments <= of_python(), said
    assert functions <= set(surgery.__all__), said
    assert arguments or option in ELSEWHERE, said


def test_an_error_names_both_and_the_command_line_only_its_own(tmp_path: Path) -> None:
    base = surgery.open_checkpoint(write_phi3(tmp_path / "base", layers=1, hidden=16))
    adapter = surgery.open_adapter(write_adapter(tmp_path / "adapter", {"model.layers.0.self_attn.o_proj": (16, 16)}))
    merged = surgery.merge(base, adapter)
    for wrong, line in {
        (lambda: surgery.plan(base, balanced=True)): "in Python, --max-shard-size is max_shard_size=",
        (lambda: surgery.merge(merged, adapter)): "in Python, --again is again=",
        (
            lambda: surgery.inject(base)
        ): "in Python, --target-modules is target_modules=, --target-parameters is target_parameters=",
        (lambda: surgery.Given(layout="grouped", slots=(1, 0))): "in Python, --slots is given=surgery.Given(slots=)",
    }.items():
        with pytest.raises(SurgeryError) as caught:
            wrong()
        assert str(caught.value).splitlines()[-1].strip() == line
        assert "in Python" not in caught.value.told
        assert str(caught.value).startswith(caught.value.told)


def test_nothing_is_said_twice_or_of_nothing() -> None:
    assert in_python("repeat it with --again, in Python again=True") == ""
    assert in_python("take the base again") == ""
    assert "in Python" not in str(SurgeryError("no such file", where=["a --map b"], help="look again"))


@pytest.mark.parametrize(
    "note",
    [
        "LoRA on 12 × Linear: by config.json, names and shapes; --check-class asks the class",
        "kept, but for 3.0 % in x; --dtype float32 keeps the change",
        "weights lie beside it, and a merge takes them by --with FILE only: x.safetensors",
        "no option is named here (in Python, as it is)",
        "the adapter's; --tokenizer base keeps the base's, in Python tokenizer='base'",
    ],
)
def test_a_note_says_both_once_and_the_command_line_its_own(note: str) -> None:
    both = in_both(note)
    assert in_both(both) == both and of_command_line(both) == note
    assert all(argument(option) in both for option in options_in(note)) or "in Python" in note


def test_notes_of_plans_and_reports_name_the_arguments(tmp_path: Path) -> None:
    base = surgery.open_checkpoint(write_phi3(tmp_path / "base", layers=1, hidden=64))
    plan = surgery.plan(surgery.inject(base, ["o_proj"]))
    report = surgery.execute(plan, tmp_path / "lora")
    for notes in (plan.notes, report.notes):
        assert "--check-class asks the class (in Python, --check-class is check_class=)" in " ".join(notes)
    words = ["inject", str(tmp_path / "base"), "--target-modules", "o_proj", "-o", str(tmp_path / "again")]
    shown = CliRunner().invoke(app, words).stdout
    assert "--check-class asks the class\n" in shown and "in Python" not in shown


def test_an_inspected_adapter_with_weights_beside_it(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", {"model.layers.0.self_attn.o_proj": (8, 8)})
    (folder / "non_lora_trainables.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes())
    (note,) = [note for note in surgery.inspect(folder).notes if "--with" in note]
    assert "surgery.open_adapter(…, beside=[…])" in note
    assert "in Python" not in CliRunner().invoke(app, ["inspect", str(folder)]).stdout
