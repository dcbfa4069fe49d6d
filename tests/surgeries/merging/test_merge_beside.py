"""Weights that were trained beside LoRA and lie beside the adapter: merged where they are named, never passed over
in silence.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import tiny_models
import torch
import transformers as tf
from safetensors.torch import save_file
from typer.testing import CliRunner

import surgery
from surgery.errors import AdapterError, FormatError, NotACheckpoint, NotPlaced, NotSupported
from surgery_cli.app import app

Saved = Callable[..., Path]
REST = ("model.norm.weight", "model.embed_tokens.weight")


@pytest.fixture(scope="module")
def trained(
    saved: Saved, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, torch.Tensor], torch.Tensor]:
    """An adapter, what was trained beside it, by its names in the base, and what the live model computes with both."""
    folder = tmp_path_factory.mktemp("beside") / "a"
    torch.manual_seed(1)
    model = peft.get_peft_model(
        tf.LlamaForCausalLM.from_pretrained(saved("llama")).eval(), peft.LoraConfig(r=4, target_modules=["q_proj"])
    )
    rest = {name: torch.randn_like(model.get_parameter(f"base_model.model.{name}")) for name in REST}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
        for name, tensor in rest.items():
            model.get_parameter(f"base_model.model.{name}").copy_(tensor)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder, rest, tiny_models.output(model.eval(), "llama")


def copied(trained: Path, folder: Path) -> Path:
    shutil.copytree(trained, folder)
    return folder


@pytest.mark.parametrize("prefix", ["base_model.model.", "", "module.base_model.model."])
@pytest.mark.parametrize("where", ["a/non_lora_trainables.safetensors", "elsewhere.safetensors"])
def test_named_files_are_merged_along(
    where: str, prefix: str, trained: tuple[Path, dict[str, torch.Tensor], torch.Tensor], saved: Saved, tmp_path: Path
) -> None:
    adapter, rest, live = copied(trained[0], tmp_path / "a"), trained[1], trained[2]
    save_file({f"{prefix}{name}": tensor for name, tensor in rest.items()}, tmp_path / where)
    args = ["merge", str(saved("llama")), str(adapter), "-o", str(tmp_path / "out"), "--with", str(tmp_path / where)]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    model, info = tf.LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert (tiny_models.output(model.eval(), "llama") - live).abs().max() <= 1e-5 * live.abs().max()
    assert surgery.verify(tmp_path / "out", base=saved("llama"), adapter=adapter, beside=[tmp_path / where]).ok
    alone = surgery.merge(surgery.open_checkpoint(saved("llama")), surgery.open_adapter(adapter, beside=[]))
    assert not set(REST) & alone.replaced.keys()
    merged = surgery.open_checkpoint(tmp_path / "out")
    with pytest.raises(surgery.PlanError, match="merged into this base already"):
        surgery.merge(merged, surgery.open_adapter(adapter, beside=[]))


UNREAD = """
    non_lora_state_dict.bin non_lora_trainables.bin non_lora_trainables.safetensors mm_projector.bin
    embeddings.safetensors new_embeddings.safetensors adapter_model_2.safetensors value_head.pt
    extra/projector.safetensors ema.ckpt pytorch_model.bin pytorch_model_fsdp_0/__0_0.distcp
""".split()


@pytest.mark.parametrize("name", UNREAD)
def test_what_looks_like_weights_is_refused_by_name(
    name: str, trained: tuple[Path, dict[str, torch.Tensor], torch.Tensor], saved: Saved, tmp_path: Path
) -> None:
    adapter = copied(trained[0], tmp_path / "a")
    (adapter / name).parent.mkdir(exist_ok=True)
    save_file(trained[1], adapter / name)
    done = CliRunner().invoke(app, ["merge", str(saved("llama")), str(adapter), "-o", str(tmp_path / "out")])
    assert done.exit_code == 1 and not (tmp_path / "out").exists()
    with pytest.raises(NotSupported, match=r"(weights lie|a model lies) beside the adapter") as caught:
        surgery.merge(surgery.open_checkpoint(saved("llama")), surgery.open_adapter(adapter))
    assert (
        caught.value.where == (f"{adapter}/{name}",)
        and "--with none" in str(caught.value)
        and "beside=" in str(caught.value)
    )
    check = next(check for check in surgery.verify(adapter).checks if check.name == "beside")
    assert check.ok is None and name in check.detail
    assert any(name in note for note in surgery.inspect(adapter).notes)
    args = ["merge", str(saved("llama")), str(adapter), "-o", str(tmp_path / "out"), "--with", "none"]
    assert CliRunner().invoke(app, args).exit_code == 0


LITTER = """
    optimizer.pt optimizer.bin scheduler.pt scaler.pt rng_state.pth rng_state_0.pth random_states_0.pkl
    trainer_state.json training_args.bin README.md train.log runs/events.out.tfevents.1 checkpoint-100/optimizer.pt
    checkpoint-100/pytorch_model.bin checkpoint-100/adapter_model.safetensors checkpoint-100/adapter_config.json
    global_step5/mp_rank_00_model_states.pt zero_to_fp32.py latest tokenizer.json tokenizer.model vocab.json
    merges.txt wandb/x.pt special_tokens_map.json logs/a.bin
""".split()


def test_the_litter_of_a_training_is_passed_over(
    trained: tuple[Path, dict[str, torch.Tensor], torch.Tensor], saved: Saved, tmp_path: Path
) -> None:
    adapter = copied(trained[0], tmp_path / "a")
    for name in LITTER:
        (adapter / name).parent.mkdir(exist_ok=True)
        (adapter / name).write_text("{}")
    opened = surgery.open_adapter(adapter)
    assert opened.unread == () and opened.notes == ()
    surgery.merge(surgery.open_checkpoint(saved("llama")), opened, tokenizer="base")
    assert not [check for check in surgery.verify(adapter).checks if check.name == "beside"]


def test_another_adapter_in_a_folder_of_its_own_is_named(
    trained: tuple[Path, dict[str, torch.Tensor], torch.Tensor], saved: Saved, tmp_path: Path
) -> None:
    adapter = copied(trained[0], tmp_path / "a")
    shutil.copytree(trained[0], adapter / "second")
    merged = surgery.merge(surgery.open_checkpoint(saved("llama")), surgery.open_adapter(adapter))
    assert any("second/" in note and "are none of it" in note for note in merged.notes)


def test_files_that_cannot_be_merged_along(
    trained: tuple[Path, dict[str, torch.Tensor], torch.Tensor], saved: Saved, tmp_path: Path
) -> None:
    adapter, base = copied(trained[0], tmp_path / "a"), surgery.open_checkpoint(saved("llama"))
    (adapter / "mm_projector.bin").write_bytes(b"PK")
    save_file({"model.mm_projector.0.weight": torch.ones(2, 2)}, adapter / "projector.safetensors")
    with pytest.raises(FormatError, match="none that torch saved"):
        surgery.open_adapter(adapter, beside=["mm_projector.bin"])
    with pytest.raises(NotACheckpoint, match="a file of weights is read beside an adapter"):
        surgery.open_adapter(adapter, beside=["adapter_config.json"])
    torch.save({"model.mm_projector.0.weight": torch.ones(2, 2)}, adapter / "mm_projector.bin")
    assert "model.mm_projector.0.weight" in surgery.open_adapter(adapter, beside=["mm_projector.bin"]).whole
    with pytest.raises(NotPlaced, match=r"model\.mm_projector\.0\.weight"):
        surgery.merge(base, surgery.open_adapter(adapter, beside=["projector.safetensors"]))
    with pytest.raises(AdapterError, match="holds LoRA of another one"):
        surgery.open_adapter(adapter, beside=["adapter_model.safetensors"])
    save_file({"norm.weight": torch.ones(48)}, tmp_path / "x.safetensors")
    with pytest.raises(FormatError, match="two adapter tensors mean the same"):
        surgery.open_adapter(adapter, beside=[tmp_path / "x.safetensors", tmp_path / "x.safetensors"])
    with pytest.raises(AdapterError, match="not clear which adapter"):
        surgery.open_adapters([adapter, trained[0]], [tmp_path / "x.safetensors"])
    one, other = surgery.open_adapters([str(adapter), str(trained[0])], [str(adapter / "projector.safetensors")])
    assert len(one.beside) == 1 and other.beside == ()


MODELS = """
    model.safetensors model-00001-of-00002.safetensors pytorch_model.bin pytorch_model_fsdp.bin consolidated.00.pth
""".split()


@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_beside_the_adapter_is_not_passed_over_for_another_base(
    name: str, config: bool, trained: tuple[Path, dict[str, torch.Tensor], torch.Tensor], saved: Saved, tmp_path: Path
) -> None:
    adapter, base = copied(trained[0], tmp_path / "a"), surgery.open_checkpoint(saved("llama"))
    (adapter / name).write_bytes((saved("llama") / "model.safetensors").read_bytes() if name.endswith("rs") else b"PK")
    if config:
        shutil.copy(saved("llama") / "config.json", adapter)
    with pytest.raises(NotSupported, match="a model lies beside the adapter, and another base was given") as caught:
        surgery.merge(base, surgery.open_adapter(adapter))
    assert caught.value.where == (f"{adapter}/{name}",) and f"surgery merge {adapter} {adapter}" in str(
        caught.value.help
    )
    assert "--with none" in str(caught.value.help) and "beside=[]" in str(caught.value.help)
    surgery.merge(base, surgery.open_adapter(adapter, []))


def test_a_model_beside_the_adapter_is_its_base_where_it_is_given(
    trained: tuple[Path, dict[str, torch.Tensor], torch.Tensor], saved: Saved, tmp_path: Path
) -> None:
    folder = copied(trained[0], tmp_path / "a")
    shutil.copytree(saved("llama"), folder, dirs_exist_ok=True)
    (tmp_path / "link").symlink_to(folder)
    for base, adapter, out in [
        (folder, folder, "x"),
        (tmp_path / "link", folder, "y"),
        (folder / "model.safetensors", folder, "z"),
    ]:
        done = CliRunner().invoke(app, ["merge", str(base), str(adapter), "-o", str(tmp_path / out)])
        assert done.exit_code == 0, done.output
    surgery.write(
        surgery.merge(surgery.open_checkpoint(saved("llama")), surgery.open_adapter(trained[0])), tmp_path / "apart"
    )
    for out in "xyz":
        assert (tmp_path / out / "model.safetensors").read_bytes() == (
            tmp_path / "apart/model.safetensors"
        ).read_bytes()
    (folder / "embeddings.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes())
    with pytest.raises(NotSupported, match="weights lie beside the adapter that a merge would pass over"):
        surgery.merge(surgery.open_checkpoint(folder / "model.safetensors"), surgery.open_adapter(folder))
