"""Files for image models that contradict themselves, or their base: refused by name, before anything is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from image_models import Tensors, dotted, kohya, modules_of, opened, pipeline, saved, unet
from safetensors.torch import load_file

import surgery
from surgery.errors import AdapterError, FormatError, NotPlaced, NotSupported, SurgeryError

AT = "lora_unet_mid_block_attentions_0_proj_in"
DOTTED = "unet.mid_block.attentions.0.proj_in"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of Stable Diffusion 1."""
    return pipeline(tmp_path_factory.mktemp("bad") / "base")


@pytest.fixture(scope="module")
def file(base: Path) -> Tensors:
    return kohya(modules_of(opened(base).unet), "lora_unet_")[0]


def refused(
    base: Path, file: Tensors, out: Path, metadata: dict[str, str] | None = None, **told: object
) -> SurgeryError:
    """The error of the merge, which left nothing behind."""
    adapter = saved(file, out.with_suffix(".safetensors"), metadata)
    with pytest.raises(SurgeryError) as caught:
        made = surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter))
        surgery.write(made, out)
    assert not out.exists()
    return caught.value


def lone(name: str = DOTTED) -> Tensors:
    return dotted({name: torch.zeros(16, 16)}, "")[0]


CASES: dict[str, tuple[Callable[[Tensors], Tensors], dict[str, str] | None, type[SurgeryError], str]] = {
    "two formats": (lambda f: f | lone("base_model.model.x"), None, FormatError, "2 formats at once"),
    "two names of one module": (lambda f: f | lone(), None, FormatError, "two modules of the adapter are one"),
    "an alpha of four": (lambda f: f | {f"{AT}.alpha": torch.ones(4)}, None, FormatError, "alpha"),
    "an alpha of nothing": (lambda f: f | {"lora_unet_x.alpha": torch.tensor(1.0)}, None, AdapterError, "lora_unet_x"),
    "two ranks": (lambda f: f | {f"{AT}.lora_up.weight": torch.ones(16, 7)}, None, AdapterError, "two ranks"),
    "no second factor": (
        lambda f: {n: t for n, t in f.items() if n != f"{AT}.lora_up.weight"}, None, AdapterError, "no lora_B",
    ),
    "a tensor of training": (lambda f: f | {"step": torch.tensor(5)}, None, FormatError, "step"),
    "two alphas": (
        lambda f: lone() | {f"{DOTTED}.alpha": torch.tensor(2.0)},
        {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 8})},
        AdapterError,
        r"another alpha(?s:.*)2, and 8",
    ),
    "another rank in the metadata": (
        lambda f: lone(), {"lora_adapter_metadata": json.dumps({"unet.r": 8})}, AdapterError, "says rank 8",
    ),
    "T-LoRA by its metadata": (
        lambda f: f, {"ss_network_args": '{"algo": "tlora"}'}, NotSupported, "T-LoRA is not merged",
    ),
    "a second text encoder": (
        lambda f: f | kohya({"text_model.encoder.layers.0.mlp.fc1": torch.zeros(32, 16)}, "lora_te2_")[0],
        None,
        NotPlaced,
        r"in no component(?s:.*)another architecture(?s:.*)--except 'lora_te2_\.\*'",
    ),
    "Flux's names": (
        lambda f: kohya({"double_blocks.0.img_attn.qkv": torch.zeros(48, 16)}, "lora_unet_")[0],
        None,
        NotPlaced,
        "another architecture",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_is_named(case: str, base: Path, file: Tensors, tmp_path: Path) -> None:
    spoil, metadata, kind, what = CASES[case]
    found = refused(base, spoil(dict(file)), tmp_path / "out", metadata)
    assert isinstance(found, kind), found
    with pytest.raises(kind, match=what):
        raise found


@pytest.mark.parametrize(
    "said", [{"ss_base_model_version": "sdxl_base_v1-0"}, {"modelspec.architecture": "flux-1-dev/lora"}], ids=str
)
def test_a_file_that_says_another_architecture(said: dict[str, str], base: Path, file: Tensors, tmp_path: Path) -> None:
    """Though all its modules are there; with a word it is merged, and one that says this architecture is."""
    found = refused(base, file, tmp_path / "out", said)
    assert "this base is Stable Diffusion 1 or 2" in str(found) and "--any-base" in str(found)
    opened, adapter = surgery.open_checkpoint(base), tmp_path / "out.safetensors"
    assert surgery.merge(opened, surgery.open_adapter(adapter), any_base=True).tensors
    for key, name in (("ss_base_model_version", "sd_v1"), ("modelspec.architecture", "stable-diffusion-v1/lora")):
        right = saved(file, tmp_path / "right.safetensors", {key: name})
        assert surgery.merge(opened, surgery.open_adapter(right)).tensors


def test_a_file_of_xl_on_one(base: Path, tmp_path: Path) -> None:
    """XL's own blocks are no others'."""
    other = kohya(modules_of(unet(xl=True)), "lora_unet_")[0]
    found = refused(base, other, tmp_path / "out")
    assert isinstance(found, AdapterError) and "lora_unet_add_embedding_linear_1" in str(found)


def test_kinds_of_lycoris_keep_their_form(base: Path, file: Tensors, tmp_path: Path) -> None:
    """To kohya's form and the same tensors; diffusers' has no name for them."""
    odd = {n: t for n, t in file.items() if not n.startswith(AT)}
    odd |= {
        f"{AT}.hada_w1_a": torch.ones(16, 2),
        f"{AT}.hada_w1_b": torch.ones(2, 16),
        f"{AT}.alpha": torch.tensor(0.7),
    }
    odd |= {f"{AT}.hada_w2_a": torch.ones(16, 2), f"{AT}.hada_w2_b": torch.ones(2, 16)}
    odd[f"{AT}.alpha"] = torch.tensor(0.7)
    norm = "lora_unet_conv_norm_out"
    odd |= {f"{norm}.w_norm": torch.ones(8), f"{norm}.b_norm": torch.ones(8)}
    adapter = surgery.open_adapter(saved(odd, tmp_path / "odd.safetensors"))
    surgery.write(surgery.convert_adapter(adapter, "kohya", surgery.open_checkpoint(base)), tmp_path / "out")
    made = load_file(tmp_path / "out/lora.safetensors")
    assert made.keys() == odd.keys() and all(torch.equal(made[n], t) for n, t in odd.items())
    with pytest.raises(NotSupported, match="LYCORIS"):
        surgery.convert_adapter(adapter, "diffusers", surgery.open_checkpoint(base))
