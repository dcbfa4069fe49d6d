"""Laws of every kind of adapter besides LoRA, on each layer that PEFT builds it on.

What is merged computes what PEFT's live adapted model computes, loaded from the same file; a copy of the base, a
merge of twice the strength and one that leaves a module out do not. In bfloat16 each weight is the exact result,
rounded once. A reversible merge gives the base back byte for byte, and a check against base and adapter names
sabotage.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import hashes
from safetensors.torch import load_file, save_file

import surgery
from surgery.adapters.methods import METHODS

from . import rows
from .cases import Case, fresh, live, model_of, output, trained

CASES = rows.CASES
NAMES = sorted(CASES)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """base(family, dtype) -> its checkpoint in shards; the same folder at each call, which nothing writes to."""
    folder = tmp_path_factory.mktemp("bases")

    def get(family: str, dtype: torch.dtype = torch.float32) -> Path:
        path = folder / f"{family}-{dtype}"
        if not path.exists():
            fresh(family).to(dtype).save_pretrained(path, max_shard_size="20KB")
        return path

    return get


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, base: Callable[..., Path]) -> Callable[[str], Path]:
    """adapter(name) -> the folder of the case's adapter."""
    folder = tmp_path_factory.mktemp("adapters")

    def get(name: str) -> Path:
        path = folder / str(NAMES.index(name))
        return path if path.exists() else trained(CASES[name], base(CASES[name].family), path)

    return get


def merged(base: Path, adapter: Path, out: Path, **options: object) -> Path:
    """The merged checkpoint, written."""
    surgery.write(surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter), **options), out)  # type: ignore[arg-type]
    return out


def computed(case: Case, path: Path) -> torch.Tensor:
    """What the class computes with what was written, which loads whole."""
    loaded, info = type(model_of(case.family)).from_pretrained(path, output_loading_info=True)
    assert not any(info.values()), info
    return output(case.family, loaded)


def test_every_kind_has_a_case() -> None:
    """Whatever is merged is tested here."""
    assert {CASES[name].config().peft_type.value for name in NAMES} >= METHODS.keys() - rows.ELSEWHERE


@pytest.mark.parametrize("name", NAMES)
def test_merged_computes_what_the_live_model_computes(
    name: str, base: Callable[..., Path], adapter: Callable[[str], Path], tmp_path: Path
) -> None:
    case = CASES[name]
    here, folder = base(case.family), adapter(name)
    held = load_file(folder / "adapter_model.safetensors")
    assert all(any(part in key for key in held) for part in case.parts), sorted(held)
    before, wanted = output(case.family, model_of(case.family)), output(case.family, live(case, here, [folder]))
    made = computed(case, merged(here, folder, tmp_path / "out"))
    effect, error = (wanted - before).abs().max().item(), (made - wanted).abs().max().item()
    assert error <= 1e-5 * wanted.abs().max().item(), f"off by {error}, where the adapter's effect is {effect}"
    assert effect >= 1000 * error, f"an effect of {effect} proves nothing, where the error is {error}"
    # A module left out, and twice the strength where there is one, are something else.
    opened = surgery.open_adapter(folder)
    module = sorted(opened.lora)[-1]
    less = computed(case, merged(here, folder, tmp_path / "less", except_=module.replace(".", r"\.")))
    assert (less - wanted).abs().max().item() > 10 * error
    if METHODS[case.config().peft_type.value].several == "sum" and case.weighs and not opened.whole:
        twice = computed(case, merged(here, folder, tmp_path / "twice", scale=2.0))
        assert (twice - wanted).abs().max().item() > 10 * error


@pytest.mark.parametrize("name", NAMES)
def test_in_bfloat16_each_weight_is_the_exact_result_rounded_once(
    name: str, base: Callable[..., Path], adapter: Callable[[str], Path], tmp_path: Path
) -> None:
    """Nearly each: float32 sums may fall on the other side of a middle."""
    case = CASES[name]
    here = base(case.family, torch.bfloat16)
    wide = tmp_path / "wide"
    wide.mkdir()
    for file in here.iterdir():
        if file.suffix == ".safetensors":
            save_file({key: value.double() for key, value in load_file(file).items()}, wide / file.name)
        else:
            (wide / file.name).write_bytes(file.read_bytes())
    made = surgery.open_checkpoint(merged(here, adapter(name), tmp_path / "out"))
    exact = surgery.open_checkpoint(merged(wide, adapter(name), tmp_path / "exact"))
    start = surgery.open_checkpoint(here)
    touched = [
        key for key in made.tensors if key not in start.tensors or not torch.equal(made.load(key), start.load(key))
    ]
    assert touched
    same = sum(int((made.load(key) == exact.load(key).to(torch.bfloat16)).sum()) for key in touched)
    assert same >= 0.999 * sum(made.tensors[key].size for key in touched)


@pytest.mark.parametrize("name", NAMES)
def test_a_reversible_merge_gives_the_base_back(
    name: str, base: Callable[..., Path], adapter: Callable[[str], Path], tmp_path: Path
) -> None:
    here = base(CASES[name].family, torch.bfloat16)
    start = surgery.open_checkpoint(here)
    made = surgery.merge(start, surgery.open_adapter(adapter(name)))
    surgery.write(surgery.reversible(made, start), tmp_path / "out")
    surgery.write(surgery.unmerge(surgery.open_checkpoint(tmp_path / "out")), tmp_path / "back")
    assert hashes(tmp_path / "back") == hashes(here)


@pytest.mark.parametrize("name", NAMES)
def test_a_check_against_base_and_adapter_names_sabotage(
    name: str, base: Callable[..., Path], adapter: Callable[[str], Path], tmp_path: Path
) -> None:
    here, folder = base(CASES[name].family), adapter(name)
    out = merged(here, folder, tmp_path / "out")
    assert surgery.verify(out, base=here, adapter=folder).ok
    start, made = surgery.open_checkpoint(here), surgery.open_checkpoint(out)
    spoilt = next(
        key for key in made.tensors if key in start.tensors and not torch.equal(made.load(key), start.load(key))
    )
    for file in out.glob("*.safetensors"):
        tensors = load_file(file)
        if spoilt in tensors:
            tensors[spoilt].view(-1)[1] += 1.0
            save_file(tensors, file, {"format": "pt"})
    report = surgery.verify(out, base=here, adapter=folder)
    assert any(spoilt in row for check in report.checks if check.ok is False for row in check.where)
