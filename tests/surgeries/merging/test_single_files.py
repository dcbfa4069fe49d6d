"""Checkpoints of one file that hold a whole image model, OpenCLIP's encoder with q, k and v in one among them; and a
text encoder by itself, of which the file's own names say which of a pipeline it is.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from conftest import hashes
from image_models import Tensors, kohya, ldm_unet, modules_of, opened, pipeline, saved, weights_in
from safetensors.torch import load_file
from surgeries.merging.test_pipelines import whole

import surgery
from surgery.errors import NotPlaced

UNET, CLIP, OPEN_CLIP = (
    "model.diffusion_model.",
    "conditioner.embedders.0.transformer.",
    "conditioner.embedders.1.model.",
)
_LEAVES = {
    "self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
}  # fmt: skip
_REST = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


def full(model: torch.nn.Module) -> Tensors:
    """A text encoder's tensors under the names of every version but the newest."""
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items() if "position_ids" not in name}
    bare = {"text_projection.weight"}
    return {n if n.startswith("text_model.") or n in bare else f"text_model.{n}": t for n, t in state.items()}


def open_clip(state: Tensors) -> Tensors:
    """The same as OpenCLIP stores it."""
    made = Tensors()
    for name, tensor in state.items():
        at = re.match(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if name == "text_projection.weight":
            made["text_projection"] = tensor.T.contiguous()
        elif at is None:
            made[_REST[name.removeprefix("text_model.")]] = tensor
        elif at[2] in _LEAVES:
            made[f"transformer.resblocks.{at[1]}.{_LEAVES[at[2]]}.{at[3]}"] = tensor
        elif at[2].endswith("q_proj"):
            rows = [state[name.replace("q_proj", one)] for one in ("q_proj", "k_proj", "v_proj")]
            made[f"transformer.resblocks.{at[1]}.attn.in_proj_{at[3]}"] = torch.cat(rows)
    return made


def as_transformers(single: Tensors, model: torch.nn.Module) -> Tensors:
    """What diffusers' converter makes of the second encoder in a single file."""
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    return convert_open_clip_checkpoint(model, dict(single), prefix=OPEN_CLIP)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(a pipeline of SDXL, the same in one file, an adapter of kohya's for all three)."""
    place = tmp_path_factory.mktemp("single")
    base = pipeline(place / "base", xl=True)
    live = opened(base, xl=True)
    tensors = {f"{UNET}{n}": t for n, t in ldm_unet(live.unet).items()}
    tensors |= {f"{CLIP}{n}": t for n, t in full(live.text_encoder).items()}
    tensors |= {f"{OPEN_CLIP}{n}": t for n, t in open_clip(full(live.text_encoder_2)).items()}
    found = as_transformers(tensors, live.text_encoder_2)
    assert all(torch.equal(found[n], t) for n, t in full(live.text_encoder_2).items())
    file = kohya(weights_in(ldm_unet(live.unet)), "lora_unet_")[0]
    file |= kohya(whole(modules_of(live.text_encoder)), "lora_te1_")[0]
    second = {n: w for n, w in whole(modules_of(live.text_encoder_2)).items() if n != "text_projection"}
    file |= kohya(second, "lora_te2_", rank=2)[0]
    return base, saved(tensors, place / "single.safetensors"), saved(file, place / "style.safetensors")


def merged(base: Path, adapter: Path, out: Path, **told: str) -> Path:
    surgery.write(surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter), **told), out)
    return out


def test_one_file_for_all_of_one_file(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, single, adapter = case
    apart, one = merged(base, adapter, tmp_path / "apart"), merged(single, adapter, tmp_path / "one")
    made = load_file(next(one.glob("*.safetensors")))
    live = opened(apart, xl=True)
    found = as_transformers(made, live.text_encoder_2)
    before = full(opened(base, xl=True).text_encoder_2)
    for name, tensor in full(live.text_encoder_2).items():
        assert (found[name] - tensor).abs().max() <= 1e-6, name
    assert all((found[n] - before[n]).abs().max() > 1e-3 for n in found if n.endswith("q_proj.weight"))
    for prefix, wanted in ((CLIP, full(live.text_encoder)), (UNET, ldm_unet(live.unet))):
        assert all((made[f"{prefix}{n}"] - t).abs().max() <= 1e-6 for n, t in wanted.items())


def test_it_is_taken_back_and_verified(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, single, adapter = case
    base = surgery.open_checkpoint(single)
    made = surgery.reversible(surgery.merge(base, surgery.open_adapter(adapter)), base)
    surgery.write(made, tmp_path / "out")
    assert surgery.verify(tmp_path / "out", base=single, adapter=adapter).ok
    surgery.write(surgery.unmerge(surgery.open_checkpoint(tmp_path / "out")), tmp_path / "back")
    (back,) = (tmp_path / "back").glob("*.safetensors")
    assert hashes(tmp_path / "back")[back.name] == hashes(single.parent)[single.name]


def test_it_names_modules_for_other_forms(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """The single file as the base of a conversion says what the pipeline does."""
    base, single, adapter = case
    files = []
    for to in ("diffusers", "kohya"):
        for at, one in (("one", single), ("apart", base)):
            made = surgery.convert_adapter(surgery.open_adapter(adapter), to, surgery.open_checkpoint(one))
            surgery.write(made, tmp_path / f"{to}-{at}")
            files.append(load_file(next((tmp_path / f"{to}-{at}").glob("*.safetensors"))))
    for one, other in (files[:2], files[2:]):
        assert one.keys() == other.keys() and all(torch.equal(one[n], t) for n, t in other.items())
    assert all(torch.equal(files[2][n], t) for n, t in load_file(adapter).items())
    assert any(n.startswith("text_encoder_2.text_model.encoder.layers.0.self_attn.k_proj") for n in files[0])


def test_a_projection_that_lies_the_other_way_round_is_named(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, single, _ = case
    file = kohya({"text_projection": torch.zeros(8, 24)}, "lora_te2_")[0]
    with pytest.raises(NotPlaced, match="lora_te2_text_projection"):
        merged(single, saved(file, tmp_path / "a.safetensors"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("root", ["lora_te1_", "lora_te2_"])
def test_a_text_encoder_by_itself(root: str, case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Its own part of the file, and none of the other's, is merged."""
    base, _, adapter = case
    mine = "text_encoder" if root == "lora_te1_" else "text_encoder_2"
    wanted = merged(base, adapter, tmp_path / "wanted")
    other = "lora_te2_" if root == "lora_te1_" else "lora_te1_"
    out = merged(base / mine, adapter, tmp_path / "out", except_=f"(lora_unet_|{other}).*")
    assert hashes(out)["model.safetensors"] == hashes(wanted)[f"{mine}/model.safetensors"]
    with pytest.raises(NotPlaced, match=other):
        merged(base / mine, adapter, tmp_path / "no", except_=f"(lora_unet_|{root}).*")
    assert not (tmp_path / "no").exists()


def test_two_encoders_alike_are_told_by_shape_or_refused(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """A file with both, on one of them alone: the one that fits is meant, and the other is named as of no place."""
    base, _, adapter = case
    with pytest.raises(NotPlaced, match=r"lora_te2_.*(?s:.*)--except"):
        merged(base / "text_encoder", adapter, tmp_path / "out", except_="lora_unet.*")
