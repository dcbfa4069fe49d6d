"""Shared fixtures: small checkpoints are made once per session, and never written to."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of torch wait for each other longer than a tiny model takes

# What takes long as a whole: many models, PEFT live, kills and faults, the Hub's client; and single tests of seconds
# where the rest of their file is quick. CI runs it; `-m "not slow"` leaves it out.
SLOW = (
    "checks/test_change_map.py::test_a_merge_into_codes_is_told_by_what_they_mean[mixed]",
    "checks/test_change_map.py::test_a_merge_into_codes_is_told_by_what_they_mean[requantize]",
    "checks/test_change_map.py::test_codes_are_compared_as_what_they_mean",
    "checks/test_collections.py",
    "pictures",
    "checks/test_inspect_quantised.py",
    "checks/test_proof.py",
    "cli/test_commands.py::test_json_is_one_object_and_nothing_else[words4]",
    "docs",
    "execution/test_execute.py::test_each_input_byte_is_read_once",
    "execution/test_ray.py",
    "faults",
    "files/gguf/test_gguf_models.py",
    "files/test_safetensors.py::test_what_safetensors_refuses_we_refuse",
    "files/torchfile",
    "hub",
    "models/fused/test_elsewhere.py",
    "models/fused/test_experts.py",
    "models/fused/test_gate_up.py",
    "models/fused/test_given.py",
    "models/fused/test_text_oracle.py",
    "models/fused/test_vision_oracle.py",
    "models/targets",
    "models/test_families.py",
    "quantization/test_codes_of_peft.py",
    "quantization/test_converted.py",
    "quantization/test_end_to_end.py",
    "quantization/test_kinds_on_codes.py",
    "quantization/test_merge.py",
    "quantization/test_proved.py",
    "quantization/test_quantize.py",
    "quantization/test_reversible.py",
    "quantization/test_through.py",
    "quantization/test_whole_models.py",
    "surgeries/algebra",
    "surgeries/injecting",
    "surgeries/merging/test_adapter_fusion.py",
    "surgeries/merging/test_components.py",
    "surgeries/merging/test_kinds_across.py",
    "surgeries/merging/test_live_transformers.py",
    "surgeries/merging/test_merge_dtype.py",
    "surgeries/merging/test_merge_experts.py",
    "surgeries/merging/test_merge_grid.py",
    "surgeries/merging/test_merge_kinds.py",
    "surgeries/merging/test_merge_layouts.py",
    "surgeries/merging/test_merge_more.py",
    "surgeries/merging/test_merge_task_heads.py",
    "surgeries/merging/test_merge_ties.py",
    "surgeries/merging/test_merge_wrappers.py::test_the_table_names_classes_that_there_are",
    "surgeries/merging/test_pipelines.py",
    "surgeries/merging/test_single_files.py",
    "surgeries/merging/test_tied_layouts.py",
    "surgeries/merging/test_undo_grid.py",
    "surgeries/merging/test_unmerge.py",
    "surgeries/test_chains_of_edits.py",
    "surgeries/test_compose.py",
    "surgeries/test_convert_image_forms.py",
    "surgeries/test_layers.py",
    "surgeries/test_split_oracle.py",
    "surgeries/test_tie.py::test_config_classes_read_the_flag_as_it_is_written",
    "surgeries/test_vocabulary.py",
    "test_imports.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in a slow place."""
    here = Path(__file__).parent
    for item in items:
        place = item.path.relative_to(here).as_posix()
        test = f"{place}::{item.nodeid.partition('::')[2]}"
        if any(slow in (place, test) or place.startswith(f"{slow}/") for slow in SLOW):
            item.add_marker(pytest.mark.slow)


def alike(one: Any, other: Any) -> bool:
    """Whether two live models of the same weights gave the same; torch's kernels of some processors round by where in
    memory a weight lies.
    """
    return one.shape == other.shape and bool((one - other).abs().max() <= 1e-5 * other.abs().max())


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Models this small are slower on several threads, which wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """saved(family, shard=None, dtype=torch.float32) -> the folder of a real checkpoint; the same call, the same
    folder.
    """
    from tiny_models import save

    made: dict[tuple[object, ...], Path] = {}

    def get(family: str, **options: object) -> Path:
        key = (family, *sorted((k, str(v)) for k, v in options.items()))
        if key not in made:
            made[key] = save(family, tmp_path_factory.mktemp(family), **options)  # type: ignore[arg-type]
        return made[key]

    return get


def unpacked(archive: Path, factory: pytest.TempPathFactory) -> Path:
    """What a fixture's archive holds, in a folder of its own: never written to."""
    folder = factory.mktemp(archive.parent.name)
    with tarfile.open(archive) as held:
        held.extractall(folder, filter="data")
    return folder


def hashes(folder: Path, *, without: tuple[str, ...] = (".surgery",)) -> dict[str, str]:
    """SHA-256 of every file below `folder`, by relative path, but for paths that begin with one of `without`."""
    found = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        if path.is_file() and not relative.startswith(without):
            found[relative] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.fixture(scope="session")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """quantised("nf4"), ("int8"), ("fp8") -> a tiny Llama that is quantised so; in 16 bits it lies beside, `plain`."""
    from quantization.live import make, make_plain

    folder = tmp_path_factory.mktemp("quantised")
    make_plain(folder / "plain")

    def made(how: str) -> Path:
        if not (folder / how).exists():
            make(how, folder / "plain", folder / how)
        return folder / how

    return made
