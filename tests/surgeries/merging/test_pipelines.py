"""Pipelines of diffusers as bases: one file for several components, judged by the live pipeline with the same file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import hashes
from image_models import Tensors, dotted, kohya, modules_of, opened, outputs, pipeline, saved
from safetensors.torch import load_file, save_file

import surgery
from surgery.errors import NotPlaced, NotSupported, SurgeryError


def whole(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The modules of a text encoder under the names that they have in every version but transformers' newest."""
    bare = {"text_projection"}
    return {n if n.startswith("text_model.") or n in bare else f"text_model.{n}": t for n, t in tensors.items()}


def file_for(folder: Path, *, xl: bool = False) -> Tensors:
    """What diffusers reads as it is meant: it leaves `add_embedding` unapplied (test_image_names.py has that)."""
    live = opened(folder, xl=xl)
    read = {name: weight for name, weight in modules_of(live.unet).items() if not name.startswith("add_embedding")}
    found, _ = kohya(read, "lora_unet_")
    if xl:
        return found | {
            **kohya(whole(modules_of(live.text_encoder)), "lora_te1_")[0],
            **kohya(whole(modules_of(live.text_encoder_2)), "lora_te2_", rank=2)[0],
        }
    return found | kohya(whole(modules_of(live.text_encoder)), "lora_te_")[0]


@pytest.fixture(scope="module", params=[False, True], ids=["1", "xl"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, bool]:
    """(a pipeline, a file of kohya's scripts for it, whether it is XL)."""
    place = tmp_path_factory.mktemp("pipelines")
    base = pipeline(place / "base", xl=request.param)
    return base, saved(file_for(base, xl=request.param), place / "style.safetensors"), request.param


def merged(base: Path, adapter: Path, out: Path, **told: object) -> Path:
    surgery.write(surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter), **told), out)
    return out


def check_computes(found: Tensors, wanted: Tensors, base: Tensors) -> None:
    """The outputs are those wanted, and far from those of the base."""
    for name, tensor in wanted.items():
        error, effect = (found[name] - tensor).abs().max(), (base[name] - tensor).abs().max()
        assert error <= 1e-5 * tensor.abs().max(), name
        assert effect >= 1000 * error, name


def test_the_merged_pipeline_computes_what_the_live_one_does(case: tuple[Path, Path, bool], tmp_path: Path) -> None:
    base, adapter, xl = case
    live = opened(base, xl=xl)
    before = outputs(live, xl=xl)
    live.load_lora_weights(adapter.parent, weight_name=adapter.name)
    wanted = outputs(live, xl=xl)
    out = merged(base, adapter, tmp_path / "out")
    check_computes(outputs(opened(out, xl=xl), xl=xl), wanted, before)
    for control in (before, outputs(opened(merged(base, adapter, tmp_path / "twice", scale=2.0), xl=xl), xl=xl)):
        with pytest.raises(AssertionError):
            check_computes(control, wanted, before)


def test_what_is_not_touched_stays_byte_for_byte(case: tuple[Path, Path, bool], tmp_path: Path) -> None:
    base, adapter, xl = case
    out = merged(base, adapter, tmp_path / "out")
    one, other = hashes(base), hashes(out)
    changed = {name for name, digest in one.items() if other[name] != digest}
    touched = ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"]
    assert changed == {*touched, *(["text_encoder_2/model.safetensors"] if xl else [])}
    assert other.keys() == one.keys()


def test_a_reversible_merge_gives_the_pipeline_back(case: tuple[Path, Path, bool], tmp_path: Path) -> None:
    base, adapter, _ = case
    before = surgery.open_checkpoint(base)
    made = surgery.reversible(surgery.merge(before, surgery.open_adapter(adapter)), before)
    surgery.write(made, tmp_path / "out")
    surgery.write(surgery.unmerge(surgery.open_checkpoint(tmp_path / "out")), tmp_path / "back")
    assert hashes(tmp_path / "back") == hashes(base)


def test_verify_replays_the_merge_and_names_what_was_changed(case: tuple[Path, Path, bool], tmp_path: Path) -> None:
    base, adapter, _ = case
    out = merged(base, adapter, tmp_path / "out", except_=r".*conv_in")
    assert surgery.verify(out, base=base, adapter=adapter).ok
    file = out / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["mid_block.attentions.0.proj_in.weight"][0] += 0.5
    save_file(tensors, file)
    found = surgery.verify(out, base=base, adapter=adapter)
    assert not found.ok and "unet/mid_block.attentions.0.proj_in.weight" in str(found.checks)


def test_a_component_of_several_shards_keeps_them(case: tuple[Path, Path, bool], tmp_path: Path) -> None:
    base, adapter, xl = case
    wanted = outputs(opened(merged(base, adapter, tmp_path / "one"), xl=xl), xl=xl)
    shutil.copytree(base, tmp_path / "base")
    opened(base, xl=xl).unet.save_pretrained(tmp_path / "base/unet", max_shard_size="100KB")
    (tmp_path / "base/unet/diffusion_pytorch_model.safetensors").unlink()
    opened(base, xl=xl).vae.save_pretrained(tmp_path / "base/vae", max_shard_size="20KB")
    (tmp_path / "base/vae/diffusion_pytorch_model.safetensors").unlink()
    out = merged(tmp_path / "base", adapter, tmp_path / "out")
    assert {p.name for p in (out / "unet").iterdir()} == {p.name for p in (tmp_path / "base/unet").iterdir()}
    index = json.loads((out / "unet/diffusion_pytorch_model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1 and "conv_in.weight" in index["weight_map"]
    assert {n: h for n, h in hashes(out).items() if n.startswith("vae/")} == {
        n: h for n, h in hashes(tmp_path / "base").items() if n.startswith("vae/")
    }
    found = outputs(opened(out, xl=xl), xl=xl)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_a_pipeline_is_resharded_component_by_component(case: tuple[Path, Path, bool], tmp_path: Path) -> None:
    base, _, xl = case
    wanted = outputs(opened(base, xl=xl), xl=xl)
    surgery.write(surgery.open_checkpoint(base), tmp_path / "small", "100KB")
    shards = {p.name for p in (tmp_path / "small/unet").iterdir()}
    assert "diffusion_pytorch_model.safetensors" not in shards and len(shards) > 3
    found = outputs(opened(tmp_path / "small", xl=xl), xl=xl)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    surgery.write(surgery.open_checkpoint(tmp_path / "small"), tmp_path / "again", "1GB")
    assert hashes(tmp_path / "again") == hashes(base)


def test_parts_are_left_out_by_the_names_of_the_file(case: tuple[Path, Path, bool], tmp_path: Path) -> None:
    base, adapter, _ = case
    out = merged(base, adapter, tmp_path / "out", except_=r"lora_te.*")
    assert hashes(out)["text_encoder/model.safetensors"] == hashes(base)["text_encoder/model.safetensors"]
    unet = surgery.merge(
        surgery.open_checkpoint(base / "unet"), surgery.open_adapter(adapter), except_=r"lora_te\d?_.*"
    )
    surgery.write(unet, tmp_path / "unet")
    name = "diffusion_pytorch_model.safetensors"
    assert hashes(tmp_path / "unet")[name] == hashes(out)[f"unet/{name}"]


def test_a_component_alone_does_not_hold_all_of_a_file(case: tuple[Path, Path, bool]) -> None:
    base, adapter, xl = case
    root = "lora_te1_" if xl else "lora_te_"
    with pytest.raises(NotPlaced, match=f"parts for several components(?s:.*)--except '{root}") as caught:
        surgery.merge(surgery.open_checkpoint(base / "unet"), surgery.open_adapter(adapter))
    assert "as kohya calls them" in str(caught.value)


@pytest.mark.parametrize("form", ["lora", "linear_layer", "processor"])
def test_the_forms_of_diffusers(form: str, case: tuple[Path, Path, bool], tmp_path: Path) -> None:
    """New names, and those of its training scripts and older versions, which the live pipeline reads too."""
    base, _, xl = case
    live = opened(base, xl=xl)
    before = outputs(live, xl=xl)
    attention = {n: w for n, w in modules_of(live.unet).items() if ".attn" in n}
    file, _ = dotted(attention, "unet.")
    if form != "lora":
        text = {n: w for n, w in whole(modules_of(live.text_encoder)).items() if "self_attn" in n}
        file |= dotted(text, "text_encoder.")[0]
    adapter = saved({renamed(name, form): tensor for name, tensor in file.items()}, tmp_path / "a.safetensors")
    live.load_lora_weights(tmp_path, weight_name="a.safetensors")
    out = merged(base, adapter, tmp_path / "out")
    wanted, found = outputs(live, xl=xl), outputs(opened(out, xl=xl), xl=xl)
    names = ["unet"] if form == "lora" else ["unet", "text_encoder"]
    check_computes(*({name: held[name] for name in names} for held in (found, wanted, before)))


def renamed(name: str, form: str) -> str:
    if form == "lora":
        return name
    way = "down" if "lora_A" in name else "up"
    module = name.rpartition(".lora_")[0]
    if module.startswith("text_encoder"):
        return f"{module}.lora_linear_layer.{way}.weight"
    if form == "linear_layer":
        return f"{module}.lora.{way}.weight"
    parent, leaf = module.split(".to_")
    return f"{parent}.processor.to_{leaf.removesuffix('.0')}_lora.{way}.weight"


def test_metadata_of_diffusers_says_the_scale(case: tuple[Path, Path, bool], tmp_path: Path) -> None:
    """A file that was saved by diffusers from a live adapter with alpha, patterns and rsLoRA."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, get_peft_model_state_dict

    base, _, xl = case
    live = opened(base, xl=xl)
    before = outputs(live, xl=xl)
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["to_q", "to_k", "conv1"], use_rslora=True, init_lora_weights=False,
        rank_pattern={"to_k": 2}, alpha_pattern={"conv1": 3},
    )  # fmt: skip
    live.unet.add_adapter(config)
    kind = StableDiffusionXLPipeline if xl else StableDiffusionPipeline
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(live.unet))
    kind.save_lora_weights(
        tmp_path / "lora", unet_lora_layers=state, unet_lora_adapter_metadata=live.unet.peft_config["default"].to_dict()
    )
    out = merged(base, tmp_path / "lora", tmp_path / "out")
    wanted = {"unet": outputs(live, xl=xl)["unet"]}
    check_computes({"unet": outputs(opened(out, xl=xl), xl=xl)["unet"]}, wanted, {"unet": before["unet"]})


def spoilt(case: tuple[Path, Path, bool], tmp_path: Path, spoil: Callable[[Tensors], Tensors]) -> Path:
    return saved(spoil(load_file(case[1])), tmp_path / "spoilt.safetensors")


def test_nothing_is_written_where_a_module_has_no_place(case: tuple[Path, Path, bool], tmp_path: Path) -> None:
    base = case[0]
    strange = spoilt(case, tmp_path, lambda file: {n.replace("mid_block", "middle"): t for n, t in file.items()})
    with pytest.raises(NotPlaced, match=r"as kohya calls them, are in no component(?s:.*)lora_unet_middle"):
        merged(base, strange, tmp_path / "out")
    spoilt(case, tmp_path, lambda file: {n: t * torch.nan if "conv_in.lora_up" in n else t for n, t in file.items()})
    with pytest.raises(SurgeryError, match="NaN or infinity in 1 adapter tensors"):
        merged(base, strange, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_pipeline_cannot_do_is_said(case: tuple[Path, Path, bool], tmp_path: Path) -> None:
    base, adapter, _ = case
    with pytest.raises(NotSupported, match="cast its components"):
        merged(base, adapter, tmp_path / "out", dtype="bfloat16")


def test_the_same_file_is_not_merged_twice(case: tuple[Path, Path, bool], tmp_path: Path) -> None:
    base, adapter, _ = case
    out = merged(base, adapter, tmp_path / "out")
    with pytest.raises(SurgeryError, match="merged into this base already"):
        merged(out, adapter, tmp_path / "again")
    step = surgery.open_checkpoint(out).history[-1]
    assert step["surgery"] == "merge" and set(step["components"]) >= {"unet", "text_encoder"}
    assert step["adapters"][0]["modules"] == len(surgery.open_adapter(adapter).lora)
