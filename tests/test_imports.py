"""Laws of imports: what is loaded is what is needed, and modules know only those below them.

Whether something was loaded is read from `sys.modules` of a fresh process; who knows whom, from the source.
"""

from __future__ import annotations

import ast
import functools
import json
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from handmade import write_adapter, write_phi3

import surgery

ROOT = Path(surgery.__file__).parent
HEAVY = {"torch", "transformers", "numpy", "huggingface_hub", "ray", "peft", "safetensors"}
MODULES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip("."): p
    for p in ROOT.rglob("*.py")
}


def loaded(code: str, *args: object) -> set[str]:
    """Which heavy packages a fresh process has loaded after `code`, with `args` in `sys.argv`."""
    code = f"import json, sys\n{textwrap.dedent(code)}\nprint(json.dumps(sorted({HEAVY!r} & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phi3(tmp_path_factory.mktemp("imports") / "base", layers=2, hidden=64)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("imports") / "adapter", {"model.layers.0.self_attn.o_proj": (64, 64)})


def test_every_package_is_installed() -> None:
    """An editable install finds those, too, that a wheel would lack."""
    here = {".".join(path.parent.relative_to(ROOT.parent).parts) for path in ROOT.rglob("*.py")}
    said = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {*said} == {*here, "surgery_cli"}


def test_importing_surgery_loads_nothing_heavy() -> None:
    assert loaded("import surgery") == set()


def test_the_probe_sees_what_is_loaded() -> None:
    assert loaded("import surgery, numpy") == {"numpy"}


MOVEMENT = """
    import surgery
    checkpoint = surgery.open_checkpoint(sys.argv[1])
    checkpoint = surgery.split_qkv(checkpoint)
    checkpoint = surgery.rename(checkpoint, [(r"^model\\.", "m.")])
    checkpoint = surgery.drop(checkpoint, r".*layernorm.*")
    surgery.write(checkpoint, sys.argv[2], SIZE)
    surgery.clean(sys.argv[2])
"""


@pytest.mark.parametrize(("size", "packages"), [("None", set()), ("'20KB'", {"huggingface_hub"})])
def test_movement_loads_no_torch(base: Path, tmp_path: Path, size: str, packages: set[str]) -> None:
    """Split, renamed, dropped, written: the Hub's client is loaded for its sharding rule alone."""
    assert loaded(MOVEMENT.replace("SIZE", size), base, tmp_path / "out") == packages
    assert (tmp_path / "out" / "config.json").is_file()


def test_gathering_loads_no_torch(base: Path, tmp_path: Path) -> None:
    """Even a transpose is gathered without it: short runs are what numpy is loaded for."""
    code = """
        import dataclasses
        import surgery
        from surgery.lazy.tensor import permute
        checkpoint = surgery.open_checkpoint(sys.argv[1])
        turned = {n: permute(t, tuple(reversed(range(len(t.shape))))) for n, t in checkpoint.tensors.items()}
        surgery.write(dataclasses.replace(checkpoint, tensors=turned), sys.argv[2])
    """
    assert loaded(code, base, tmp_path / "out") == {"numpy"}


def test_runs_of_a_kilobyte_load_no_numpy(base: Path, tmp_path: Path) -> None:
    """Columns that are cut and joined are gathered run by run, while runs are long enough."""
    code = """
        import dataclasses
        import surgery
        from surgery.lazy.tensor import concat, narrow, reshape
        checkpoint = surgery.open_checkpoint(sys.argv[1])
        name = max(checkpoint.tensors, key=lambda n: checkpoint.tensors[n].nbytes)
        tensor = checkpoint.tensors[name]
        columns = 1024 * 8 // tensor.dtype.bits
        tensor = reshape(narrow(reshape(tensor, (tensor.size,)), 0, 0, 6 * columns), (2, 3 * columns))
        turned = concat([narrow(tensor, 1, columns, 2 * columns), narrow(tensor, 1, 0, columns)], 1)
        made = dataclasses.replace(checkpoint, tensors={**checkpoint.tensors, name: turned}, inputs=())
        surgery.write(made, sys.argv[2])
    """
    assert loaded(code, base, tmp_path / "out") == set()


def test_a_merge_loads_torch_and_no_model_library(base: Path, adapter: Path, tmp_path: Path) -> None:
    """A merge computes in torch; neither transformers nor PEFT is asked how."""
    code = """
        import surgery
        checkpoint = surgery.merge(surgery.open_checkpoint(sys.argv[1]), surgery.open_adapter(sys.argv[2]))
        assert "torch" not in sys.modules
        surgery.write(checkpoint, sys.argv[3])
    """
    found = loaded(code, base, adapter, tmp_path / "out")
    assert "torch" in found
    assert not found & {"transformers", "peft", "ray", "huggingface_hub", "safetensors"}


@functools.cache
def imports(path: Path, *, top_level: bool = False) -> tuple[str, ...]:
    """The modules that a file imports, absolute: all of them, or those that importing the file itself needs."""
    return tuple(_imports(path, top_level))


def _imports(path: Path, top_level: bool) -> Iterator[str]:
    package = ("surgery", *path.relative_to(ROOT).parent.parts)

    def walk(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                yield child
            if top_level and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            yield from walk(child)

    for node in walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            continue
        start = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
        stem = ".".join(filter(None, (start, node.module)))
        for alias in node.names:  # `from .package import module` names a module, `from .module import name` does not
            full = f"{stem}.{alias.name}"
            yield full if full.removeprefix("surgery.") in MODULES else stem


@functools.cache
def known(name: str) -> set[str]:
    """The modules of surgery that a module imports, by their names inside the package."""
    return {i.removeprefix("surgery").removeprefix(".") for i in imports(MODULES[name]) if i.split(".")[0] == "surgery"}


@functools.cache
def reached(name: str) -> set[str]:
    """The modules of surgery that a module imports, directly or through others."""
    found, todo = set[str](), [name]
    while todo:
        new = known(todo.pop()) - found
        found |= new
        todo += new
    return found


def test_the_reader_of_imports_reads() -> None:
    """These laws would hold of nothing: what is known to be imported is found, in and out of functions."""
    assert {"lazy.tensor", "errors"} <= known("lazy.runs")
    assert {"files.manifest", "planning.plan", "evaluation.read"} <= known("execution.execute")
    assert "huggingface_hub" in set(imports(MODULES["hub.shards"]))
    assert "huggingface_hub" not in set(imports(MODULES["hub.shards"], top_level=True))
    assert "torch" in set(imports(MODULES["evaluation.evaluate"]))
    assert reached("execution.execute") >= {
        "errors",
        "lazy.tensor",
        "lazy.runs",
        "planning.plan",
        "planning.sharding",
        "hub.shards",
    }


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_heavy_is_imported_at_the_top(name: str) -> None:
    """Torch and its like are imported where they are used, inside functions; for types alone, under TYPE_CHECKING."""
    assert not {i.split(".")[0] for i in imports(MODULES[name], top_level=True)} & HEAVY


@pytest.mark.parametrize("name", sorted(MODULES))
def test_the_library_does_not_know_the_command_line(name: str) -> None:
    assert "surgery_cli" not in {i.split(".")[0] for i in imports(MODULES[name])}


@pytest.mark.parametrize("name", sorted(m for m in MODULES if m.split(".")[0] != "hub"))
def test_the_hub_is_met_in_one_package(name: str) -> None:
    assert "huggingface_hub" not in {i.split(".")[0] for i in imports(MODULES[name])}


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"models.skeleton", "checks.loadable"}))
def test_transformers_is_met_in_two_modules(name: str) -> None:
    assert "transformers" not in {i.split(".")[0] for i in imports(MODULES[name])}


def test_the_targets_load_nothing(base: Path) -> None:
    """Which classes could load a checkpoint is read from a table; asking one of them loads transformers."""
    code = """
        import surgery
        from surgery.models.targets import targets_for
        checkpoint = surgery.open_checkpoint(sys.argv[1])
        assert targets_for(checkpoint.config) == ["llama", "mistral"]
        assert "surgery convert --as llama" in "".join(surgery.split(checkpoint).notes)
    """
    assert loaded(code, base) == set()


ROOMS = (
    ("arguments", "errors", "names", "opened", "patterns", "step", "units", "version"),
    ("lazy",),
    ("notebook",),
    ("files", "evaluation"),
    ("models",),
    ("adapters",),
    ("checkpoint",),
    ("quantization",),
    ("planning", "surgeries"),
    ("recipes",),
    ("execution",),
    ("checks",),
    ("pictures",),
    ("hub",),
    ("",),
)


# arrows that point up: what is called hf://… is met where it is opened, and the Hub's rooms and client load only
# then
UP = {
    ("files.folder", "hub.remote"): "a folder on the Hub is opened where any folder is",
    ("evaluation.read", "hub.remote"): "its files are read by ranges where any file is",
    ("execution.stage", "hub.resume"): "what runs that wrote to the Hub left here is cleaned where all is",
    ("execution.execute", "hub.stream"): "it is a destination like a folder",
    ("planning.sharding", "hub.shards"): "the Hub's own rule cuts the shards",
}


def level(name: str) -> int:
    """On which floor of the house a module lies."""
    return next(i for i, rooms in enumerate(ROOMS) if name.split(".")[0] in rooms)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_each_room_uses_rooms_below_it(name: str) -> None:
    """And its own; what is imported inside functions counts, too."""
    assert {other for other in known(name) if level(other) > level(name) and (name, other) not in UP} == set()


def test_the_arrows_that_point_up_are_there() -> None:
    assert {(name, other) for name in MODULES for other in known(name) if level(other) > level(name)} == set(UP)


@pytest.mark.parametrize("name", sorted(set(MODULES) - {""}))
def test_no_module_reaches_itself(name: str) -> None:
    """There are no circles, and no module imports the package around it."""
    assert not reached(name) & {name, ""}


@pytest.mark.parametrize("name", sorted(m for m in MODULES if m.split(".")[0] in ("surgeries", "planning")))
def test_what_describes_and_plans_never_executes(name: str) -> None:
    assert not {m for m in reached(name) if m.split(".")[0] == "execution"}
