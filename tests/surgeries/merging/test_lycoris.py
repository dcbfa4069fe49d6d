"""The kinds of LyCORIS: merged files compute what its live networks did, as `fixtures/lycoris_live.py` kept it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import hashes
from image_models import Tensors, saved
from safetensors.torch import load_file
from torch.nn import functional as F

import surgery
from surgery.errors import AdapterError, NotSupported, SurgeryError

FIXTURES = Path(__file__).parent / "fixtures"
CASES = sorted(path.stem.removeprefix("lycoris_") for path in FIXTURES.glob("lycoris_*.safetensors"))


def part(case: str, at: str) -> Tensors:
    held = load_file(FIXTURES / f"lycoris_{case}.safetensors")
    return {name.removeprefix(f"{at}."): tensor for name, tensor in held.items() if name.startswith(f"{at}.")}


def computed(net: Tensors, x: torch.Tensor) -> torch.Tensor:
    """What the net of the fixtures computes."""
    x = torch.tanh(F.linear(x, net["first.weight"], net["first.bias"])).movedim(-1, 1)
    x = F.conv2d(x, net["conv.weight"], net["conv.bias"], padding=1)
    x = torch.tanh(F.group_norm(x, 3, net["norm.weight"], net["norm.bias"]))
    x = torch.tanh(F.conv2d(x, net["point.weight"], net["point.bias"])).movedim(1, -1)
    return F.linear(x, net["last.weight"])


def opened(case: str, tmp_path: Path, adapter: Tensors | None = None) -> tuple[surgery.Checkpoint, surgery.Adapter]:
    base = tmp_path / "base"
    base.mkdir(exist_ok=True)
    saved(part(case, "base"), base / "diffusion_pytorch_model.safetensors")
    (base / "config.json").write_text(json.dumps({"_class_name": "Net"}))
    file = saved(part(case, "adapter") if adapter is None else adapter, tmp_path / "adapter.safetensors")
    return surgery.open_checkpoint(base), surgery.open_adapter(file)


def written(checkpoint: surgery.Checkpoint, out: Path) -> Tensors:
    surgery.write(checkpoint, out)
    return load_file(out / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("case", CASES)
def test_the_merged_net_computes_what_the_live_one_did(case: str, tmp_path: Path) -> None:
    held = load_file(FIXTURES / f"lycoris_{case}.safetensors")
    base, adapter = opened(case, tmp_path)
    net = written(surgery.merge(base, adapter), tmp_path / "out")
    found = computed(net, held["x"])
    error, effect = (found - held["after"]).abs().max(), (held["before"] - held["after"]).abs().max()
    assert error <= 1e-5 * held["after"].abs().max()
    assert effect >= 1000 * error
    assert (computed(part(case, "base"), held["x"]) - held["before"]).abs().max() <= 1e-6


@pytest.mark.parametrize("case", CASES)
def test_a_reversible_merge_is_taken_back(case: str, tmp_path: Path) -> None:
    base, adapter = opened(case, tmp_path)
    surgery.write(surgery.reversible(surgery.merge(base, adapter), base), tmp_path / "out")
    surgery.write(surgery.unmerge(surgery.open_checkpoint(tmp_path / "out")), tmp_path / "back")
    assert hashes(tmp_path / "back") == hashes(tmp_path / "base")
    assert surgery.verify(tmp_path / "out", base=tmp_path / "base", adapter=tmp_path / "adapter.safetensors").ok


@pytest.mark.parametrize("case", ["loha", "lokr", "lokr_whole", "full", "norms"])
def test_what_only_adds_has_weights_and_sums(case: str, tmp_path: Path) -> None:
    base, adapter = opened(case, tmp_path)
    twice = written(surgery.merge(base, [adapter, adapter], [0.5, 1.5], again=True), tmp_path / "a")
    wanted = written(surgery.merge(base, adapter, scale=2.0), tmp_path / "b")
    assert all(torch.allclose(twice[name], tensor, atol=1e-6) for name, tensor in wanted.items())
    assert any((twice[name] - tensor).abs().max() > 0.1 for name, tensor in part(case, "base").items())


@pytest.mark.parametrize("case", ["ia3", "glora", "oft", "boft", "dora_inputs", "lokr_dora"])
def test_what_multiplies_has_none(case: str, tmp_path: Path) -> None:
    base, adapter = opened(case, tmp_path)
    with pytest.raises(NotSupported, match="weight 1"):
        surgery.merge(base, adapter, scale=0.5)


def test_files_that_contradict_themselves(tmp_path: Path) -> None:
    def refused(case: str, changed: Tensors, what: str, kind: type[SurgeryError] = AdapterError) -> None:
        with pytest.raises(kind, match=what):
            surgery.plan(surgery.merge(*opened(case, tmp_path, changed)))

    file = part("loha", "adapter")
    name = "lycoris_first.hada_w1_a"
    refused("loha", {n: t for n, t in file.items() if n != name}, "the module has no hada_w1_a")
    refused("loha", file | {name: file[name][:-1]}, "hada_w1_a is")
    refused("loha", file | {"lycoris_first.lora_up.weight": torch.ones(8, 4)}, "parts of two kinds")
    ia3 = part("ia3", "adapter")
    refused("ia3", {n: t for n, t in ia3.items() if "on_input" not in n}, "inputs or of outputs is not said")
    refused("ia3", ia3 | {"lycoris_first.on_input": torch.tensor(1)}, "8 numbers for 12 inputs")
    oft = part("oft", "adapter")
    refused("oft", oft | {"lycoris_first.oft_blocks": torch.ones(3, 2, 2)}, "does not turn 8 outputs")
    strange = file | {"lycoris_first.q_layer.weight": torch.ones(2, 2)}
    refused("loha", strange, "T-LoRA is not merged", NotSupported)
    refused("loha", file | {"lycoris_first.gate": torch.ones(2)}, "none of its parts", SurgeryError)
    refused("loha", file | {"lycoris_first.alpha": torch.tensor(torch.nan)}, "alpha is not a number")


def test_dylora_is_told_by_its_metadata(tmp_path: Path) -> None:
    file = saved(part("locon", "adapter"), tmp_path / "a.safetensors", {"ss_network_module": "networks.dylora"})
    with pytest.raises(NotSupported, match="DyLoRA is not merged"):
        surgery.open_adapter(file)
