"""Adapters of image models in the forms of kohya's scripts and of diffusers: diffusers' own loader makes of them what
it made of the first file, and back again they are the same tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from image_models import Tensors, opened, outputs, pipeline, saved
from safetensors.torch import load_file
from surgeries.merging.test_pipelines import file_for
from typer.testing import CliRunner

import surgery
from surgery.errors import AdapterError, NotPlaced, NotSupported
from surgery_cli.app import app

KOHYA, DIFFUSERS = "lora.safetensors", "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module", params=[False, True], ids=["1", "xl"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, bool]:
    """(a pipeline, a file of kohya's scripts for it in diffusers' names, whether it is XL)."""
    place = tmp_path_factory.mktemp("forms")
    base = pipeline(place / "base", xl=request.param)
    return base, saved(file_for(base, xl=request.param), place / "style.safetensors"), request.param


def converted(adapter: Path, to: str, base: Path, out: Path, **told: Any) -> Path:
    made = surgery.convert_adapter(surgery.open_adapter(adapter), to, surgery.open_checkpoint(base), **told)
    surgery.write(made, out)
    return next(out.glob("*.safetensors"))


def live(base: Path, file: Path, *, xl: bool) -> dict[str, torch.Tensor]:
    pipe = opened(base, xl=xl)
    pipe.load_lora_weights(file.parent, weight_name=file.name)
    return outputs(pipe, xl=xl)


def check_same(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], base: Tensors) -> None:
    """The outputs are those wanted, and far from those of the base."""
    for name, tensor in wanted.items():
        error, effect = (found[name] - tensor).abs().max(), (base[name] - tensor).abs().max()
        assert error <= 1e-5 * tensor.abs().max(), name
        assert effect >= 1000 * error and effect > 1e-3, name


@pytest.mark.parametrize("to", ["kohya", "diffusers"])
def test_diffusers_loads_it_and_computes_the_same(to: str, case: tuple[Path, Path, bool], tmp_path: Path) -> None:
    base, file, xl = case
    made = converted(file, to, base, tmp_path / "made")
    assert made.name == {"kohya": KOHYA, "diffusers": DIFFUSERS}[to]
    before, wanted = outputs(opened(base, xl=xl), xl=xl), live(base, file, xl=xl)
    check_same(live(base, made, xl=xl), wanted, before)
    other = saved({n: t * 1.01 if "up" in n or "lora_B" in n else t for n, t in load_file(made).items()},
                  tmp_path / "other.safetensors", {} if to == "kohya" else metadata(made))  # fmt: skip
    with pytest.raises(AssertionError):
        check_same(live(base, other, xl=xl), wanted, before)


def metadata(file: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return dict(opened.metadata())


def test_there_and_back_the_tensors_are_the_same(case: tuple[Path, Path, bool], tmp_path: Path) -> None:
    base, file, xl = case
    first = converted(file, "kohya", base, tmp_path / "first")
    assert_equal(load_file(first), load_file(file) if not xl else load_file(first))
    assert any("input_blocks_1_0_in_layers_2" in name for name in load_file(first)) == xl
    there = converted(first, "diffusers", base, tmp_path / "there")
    back = converted(there, "kohya", base, tmp_path / "back")
    assert_equal(load_file(back), load_file(first))
    assert surgery.diff(back, first).equal


def assert_equal(found: Tensors, wanted: Tensors) -> None:
    assert found.keys() == wanted.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in wanted.items()
    )


def test_all_forms_merge_alike(case: tuple[Path, Path, bool], tmp_path: Path) -> None:
    base, file, _ = case
    merged = {}
    for name, adapter in {
        "file": file,
        "kohya": converted(file, "kohya", base, tmp_path / "kohya"),
        "diffusers": converted(file, "diffusers", base, tmp_path / "diffusers"),
    }.items():
        out = tmp_path / f"merged-{name}"
        surgery.write(surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter)), out)
        merged[name] = load_file(out / "unet/diffusion_pytorch_model.safetensors")
    for name in ("kohya", "diffusers"):
        assert all(torch.equal(merged[name][n], t) for n, t in merged["file"].items())


@pytest.mark.slow
@pytest.mark.parametrize("to", ["kohya", "diffusers"])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_an_adapter_of_peft(to: str, dora: bool, case: tuple[Path, Path, bool], tmp_path: Path) -> None:
    """Ranks and alphas by pattern, rsLoRA; DoRA, whose magnitudes both forms have.

    Of kohya's files diffusers 0.42.1 passes over the alphas of attention: there they are all alike.
    """
    import peft

    base, _, xl = case
    pipe = opened(base, xl=xl)
    before = {"unet": outputs(pipe, xl=xl)["unet"]}
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["to_q", "to_out.0", "ff.net.2", *([] if dora else ["conv1", "linear_1"])],
        use_rslora=not dora, use_dora=dora, init_lora_weights=False, alpha_pattern={"ff.net.2": 3},
        rank_pattern={"to_q": 2} if to == "diffusers" else {},
    )  # fmt: skip
    torch.manual_seed(3)
    model = peft.get_peft_model(pipe.unet, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data *= 0.5 if "magnitude" in name else 1
    model.save_pretrained(tmp_path / "peft")
    wanted = {"unet": outputs(pipe, xl=xl)["unet"]}
    made = converted(tmp_path / "peft", to, base, tmp_path / "made")
    if dora and to == "kohya":  # whose magnitudes diffusers leaves away
        surgery.write(surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(made)), tmp_path / "merged")
        found = outputs(opened(tmp_path / "merged", xl=xl), xl=xl)
    else:
        found = live(base, made, xl=xl)
    check_same({"unet": found["unet"]}, wanted, before)
    alone = converted(tmp_path / "peft", to, base / "unet", tmp_path / "alone")
    assert_equal(load_file(alone), load_file(made))


def test_one_component_is_chosen_by_the_names_of_the_file(case: tuple[Path, Path, bool], tmp_path: Path) -> None:
    base, file, xl = case
    root = "lora_te1_" if xl else "lora_te_"
    with pytest.raises(NotSupported, match=r"several components of the pipeline(?s:.*)--except"):
        converted(file, "peft", base, tmp_path / "no")
    made = converted(file, "peft", base, tmp_path / "peft", only=rf"{root}.*").parent
    assert all("layers" in name for name in load_file(made / "adapter_model.safetensors"))
    words = ["convert-adapter", file, "--to", "kohya", "--base", base, "--except", "lora_te.*", "-o", tmp_path / "cli"]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    assert all(name.startswith("lora_unet_") for name in load_file(tmp_path / "cli" / KOHYA))
    alone = converted(file, "kohya", base / "text_encoder", tmp_path / "alone", only=rf"{root}.*")
    assert {name.split("text_model")[0] for name in load_file(alone)} == {root}


def test_what_the_base_has_to_say_is_asked_for(case: tuple[Path, Path, bool], tmp_path: Path) -> None:
    base, file, _ = case
    with pytest.raises(AdapterError, match="follows from the base"):
        surgery.convert_adapter(surgery.open_adapter(file), "kohya")
    peft = converted(file, "peft", base, tmp_path / "peft", only="lora_te1?_.*").parent
    with pytest.raises(AdapterError, match=r"which text encoder of a pipeline(?s:.*)--base PIPELINE"):
        converted(peft, "kohya", base / "text_encoder", tmp_path / "no")
    with pytest.raises(NotPlaced):
        converted(file, "kohya", base / "vae", tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_metadata_says_what_diffusers_needs(case: tuple[Path, Path, bool], tmp_path: Path) -> None:
    base, file, _ = case
    said = json.loads(metadata(converted(file, "diffusers", base, tmp_path / "made"))["lora_adapter_metadata"])
    assert said["unet.r"] == 4 and said["unet.lora_alpha"] == 2 and said["text_encoder.lora_alpha"] == 2
    assert said["unet.alpha_pattern"]["^conv_in"] == 3 and said["unet.rank_pattern"]["^conv_in"] == 2
