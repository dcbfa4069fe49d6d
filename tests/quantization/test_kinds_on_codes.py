"""Adapters of every kind besides LoRA on bases that are quantised: judged by PEFT's live model over what the codes
mean, in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from quantization.live import INPUT, make, make_plain
from quantization.test_end_to_end import ROWS, build
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import surgery
from surgery.adapters.methods import METHODS
from surgery.errors import NotSupported

ON = ["q_proj", "down_proj"]
KINDS: dict[str, Callable[[], peft.PeftConfig]] = {
    "BOFT": lambda: peft.BOFTConfig(boft_block_size=8, target_modules=ON),
    "C3A": lambda: peft.C3AConfig(block_size=16, target_modules=ON),
    "DEFT": lambda: peft.DeftConfig(r=3, target_modules=ON),
    "DELORA": lambda: peft.DeloraConfig(r=3, target_modules=ON, delora_lambda=3),
    "FOURIERFT": lambda: peft.FourierFTConfig(n_frequency=50, target_modules=ON),
    "GLORA": lambda: peft.GloraConfig(r=3, target_modules=ON, config_C="none", config_D_E="none"),
    "GRALORA": lambda: peft.GraloraConfig(r=4, target_modules=ON),
    "HIRA": lambda: peft.HiraConfig(r=3, target_modules=ON),
    "HRA": lambda: peft.HRAConfig(r=4, target_modules=ON),
    "IA3": lambda: peft.IA3Config(target_modules=ON, feedforward_modules=["down_proj"]),
    "LOHA": lambda: peft.LoHaConfig(r=3, target_modules=ON),
    "LOKR": lambda: peft.LoKrConfig(r=3, target_modules=ON),
    "MISS": lambda: peft.MissConfig(r=8, target_modules=ON, init_weights="bat"),
    "OFT": lambda: peft.OFTConfig(oft_block_size=8, target_modules=ON),
    "PEANUT": lambda: peft.PeanutConfig(r=3, target_modules=ON),
    "PVERA": lambda: peft.PveraConfig(r=4, target_modules=ON),
    "RANDLORA": lambda: peft.RandLoraConfig(r=8, target_modules=ON),
    "ROAD": lambda: peft.RoadConfig(group_size=8, target_modules=ON),
    "SHIRA": lambda: peft.ShiraConfig(r=2, target_modules=ON),
    "SUPERTUNING": lambda: peft.SupertuningConfig(target_modules=ON, sparsity=0.9),
    "TINYLORA": lambda: peft.TinyLoraConfig(r=2, u=8, target_modules=ON),
    "UNILORA": lambda: peft.UniLoraConfig(r=4, theta_d_length=64, save_indices=True, target_modules=ON),
    "VBLORA": lambda: peft.VBLoRAConfig(r=4, num_vectors=16, vector_length=16, target_modules=ON),
    "VERA": lambda: peft.VeraConfig(r=4, target_modules=ON),
    "WAVEFT": lambda: peft.WaveFTConfig(n_frequency=50, scaling=2.0, target_modules=ON),
}
SMALL = {"RANDLORA": 0.02, "OFT": 0.05, "BOFT": 0.05, "MISS": 0.03}  # how far parameters are moved; others by 0.2
Base = Callable[[str], tuple[Path, Path]]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """base(scheme) -> the quantised folder, and what its codes mean, in float32."""

    @cache
    def get(scheme: str) -> tuple[Path, Path]:
        root = tmp_path_factory.mktemp(scheme)
        if scheme in ROWS:
            build(ROWS[scheme], root)
        else:
            make_plain(root / "plain")
            make(scheme, root / "plain", root / "base")
        surgery.write(surgery.dequantize(surgery.open_checkpoint(root / "base"), dtype="float32"), root / "wide")
        return root / "base", root / "wide"

    return get


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(INPUT).logits  # type: ignore[no-any-return]


def wide(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def trained(kind: str, here: Path, decoded: Path, folder: Path) -> torch.Tensor:
    """The adapter, saved; and what the model computes with it, as PEFT loads it."""
    torch.manual_seed(0)
    live = peft.get_peft_model(wide(decoded), KINDS[kind]())
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in live.parameters():
            if parameter.requires_grad:
                parameter.add_(SMALL.get(kind, 0.2) * torch.randn(parameter.shape, generator=draw))
    live.peft_config["default"].base_model_name_or_path = str(here)
    live.save_pretrained(folder)
    return logits(peft.PeftModel.from_pretrained(wide(decoded), folder))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_every_kind_is_tried() -> None:
    """But what is on biases alone, which these bases have not, and what PEFT does not make any more."""
    assert KINDS.keys() == METHODS.keys() - {"BEFT", "BONE"}


@pytest.mark.parametrize("scheme", ["nf4", "int8", "fp8", "gptq"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_merged_into_what_the_codes_mean(kind: str, scheme: str, base: Base, tmp_path: Path) -> None:
    """In float32 what the live model computes; in 16 bits each weight of that, rounded once; what is not touched
    stays as codes where a loader takes such a mixture.
    """
    here, decoded = base(scheme)
    wanted, before = trained(kind, here, decoded, tmp_path / "a"), logits(wide(decoded))
    opened, adapter = surgery.open_checkpoint(here), surgery.open_adapter(tmp_path / "a")
    surgery.write(surgery.merge(opened, adapter, dequantize=True, dtype="float32"), tmp_path / "wide")
    error, effect = (logits(wide(tmp_path / "wide")) - wanted).abs().max(), (wanted - before).abs().max()
    assert error <= 1e-5 * wanted.abs().max() and effect >= 1000 * error
    exact, old = weights(tmp_path / "wide"), weights(decoded)
    touched = [name for name in exact if not torch.equal(exact[name], old[name])]
    assert len(touched) == 4
    ways = [{"dequantize": True}, {}] if scheme != "gptq" else [{"dequantize": True}]
    for way in ways:
        made = surgery.merge(opened, adapter, **way)
        same = sum(int((made.load(n) == exact[n].to(made.load(n).dtype)).sum()) for n in touched)
        assert same >= 0.999 * sum(exact[n].numel() for n in touched)
    if scheme == "gptq":
        with pytest.raises(NotSupported, match="no loader of gptq takes"):
            surgery.merge(opened, adapter)


@pytest.mark.parametrize("scheme", ["nf4", "int8", "fp8", "gptq"])
@pytest.mark.parametrize("kind", ["OFT", "HIRA", "MISS", "LOKR", "IA3"])
def test_coded_again_it_is_proved_and_undone(kind: str, scheme: str, base: Base, tmp_path: Path) -> None:
    here, decoded = base(scheme)
    trained(kind, here, decoded, tmp_path / "a")
    opened, adapter = surgery.open_checkpoint(here), surgery.open_adapter(tmp_path / "a")
    made = surgery.merge(opened, adapter, requantize=True, lossy=True)
    surgery.write(surgery.reversible(made, opened), tmp_path / "out")
    assert surgery.verify(tmp_path / "out", base=here, adapter=tmp_path / "a").ok
    exact = surgery.merge(opened, adapter, dequantize=True, dtype="float32")
    found, old = surgery.dequantize(surgery.open_checkpoint(tmp_path / "out"), dtype="float32"), weights(decoded)
    for name in (f"model.layers.{i}.{m}.weight" for i in (0, 1) for m in ("self_attn.q_proj", "mlp.down_proj")):
        wanted, codes = exact.load(name), found.load(name)
        assert (codes - wanted).norm() < 0.9 * (old[name] - wanted).norm()
    surgery.write(surgery.unmerge(surgery.open_checkpoint(tmp_path / "out")), tmp_path / "back")
    assert {f.name: f.read_bytes() for f in (tmp_path / "back").glob("*.safetensors")} == {
        f.name: f.read_bytes() for f in here.glob("*.safetensors")
    }
