"""Rows of experts against the models: split parts compute what the class's experts compute; fused files load into
the class.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import stacks
import torch
import transformers as tf
from conftest import alike, hashes
from safetensors.torch import load_file, save_file
from stacks import EXPERTS, SAVED, Case, recut, reference, routing, swapped

import surgery
from surgery.models.fused.detect import detect
from surgery.models.fused.tables.experts import EXPERTS as ROWS

MLA = {
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "head_dim": 4,
}
DEEPSEEK = {**MLA, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "n_shared_experts": 1}
GLM = {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "num_shared_experts": 1}
INDEX = {"index_head_dim": 8, "index_n_heads": 2, "index_topk": 4}
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 4, "linear_value_head_dim": 4}
SHARED_MLP = {"shared_intermediate_size": 8}
SHARED = {"shared_expert_intermediate_size": 8}

# Types whose files have one module per expert, with the sizes that they need.
LOADED: Mapping[str, Mapping[str, Any]] = {
    "afmoe": {"num_dense_layers": 1, "num_shared_experts": 1},
    "axk1": DEEPSEEK,
    "axk2": DEEPSEEK | INDEX,
    "bailing_hybrid": DEEPSEEK,
    "cohere2_moe": GLM,
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK,
    "deepseek_v32": DEEPSEEK | INDEX,
    "deepseek_v4": {},
    "dots1": GLM,
    "ernie4_5_moe": {"moe_num_experts": EXPERTS, "moe_k": 2},
    "exaone_moe": GLM,
    "flex_olmo": {},
    "glm4_moe": GLM,
    "glm4_moe_lite": DEEPSEEK,
    "glm_moe_dsa": DEEPSEEK | INDEX,
    "hunyuan_v1_moe": {"moe_topk": 2},
    "hy_v3": GLM,
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 1,
        "expert_layer_offset": 0,
        "mamba_d_state": 4,
    },
    "kolibri1": SHARED,
    "laguna": SHARED,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {
        **MLA,
        "num_layers": 2,
        "ffn_hidden_size": 20,
        "expert_ffn_hidden_size": 12,
        "moe_topk": 2,
        "zero_expert_num": 2,
    },
    "mellum": {},
    "nemotron_h": {
        "layers_block_type": ["moe", "attention"],
        "moe_shared_expert_intermediate_size": 8,
        "n_group": 1,
        "topk_group": 1,
    },
    "minimax": {},
    "minimax_m2": {},
    "mixtral": {},
    "olmoe": {},
    "phimoe": {},
    "qwen2_moe": SHARED,
    "qwen3_5_moe_text": {**SHARED, **DELTA, "layer_types": ["linear_attention", "full_attention"]},
    "qwen3_moe": {},
    "qwen3_next": {**SHARED, **DELTA, "layer_types": ["linear_attention", "full_attention"]},
    "solar_open": GLM,
}

# Types of which rows were read in the modeling code, but are not computed with here: composites of types that are,
# and others.
READ = {
    "aria", "gemma4", "llama4", "muse_spark", "diffusion_gemma", "diffusion_gemma_text", "inkling2", "inkling2_text",
    "inkling_mm_model",
    "step3p7", "beam", "flint", "glm4v_moe", "kimi_linear", "mimo_v2_flash", "unlimited_ocr",
}  # fmt: skip


def saved(kind: str, folder: Path, **sizes: Any) -> Any:
    """A tiny model of the type, and its checkpoint at `folder`."""
    model = stacks.build(kind, **sizes)
    model.save_pretrained(folder)
    return model


def split(folder: Path, out: Path) -> dict[str, torch.Tensor]:
    """The tensors of the checkpoint with its experts apart, as they were written to `out`."""
    surgery.write(surgery.split_experts(surgery.open_checkpoint(folder)), out)
    return load_file(out / "model.safetensors")


def apart(folder: Path, out: Path) -> list[dict[str, torch.Tensor]]:
    """What `split` writes for each expert of layer 1: gate, up and down, (out, in), and their biases."""
    tensors = split(folder, out)
    experts: list[dict[str, torch.Tensor]] = [{} for _ in range(EXPERTS)]
    for name, tensor in tensors.items():
        if match := re.search(r"layers\.1\..*experts\.(\d+)\.(gate|up|down)_proj\.(weight|bias)$", name):
            experts[int(match[1])][match[2] + ("_bias" if match[3] == "bias" else "")] = tensor
    return experts


@pytest.mark.parametrize("case", SAVED, ids=lambda case: case.kind)
def test_split_experts_compute_what_the_class_computes(case: Case, tmp_path: Path):
    model = saved(case.kind, tmp_path / "whole", **case.sizes)
    experts, module = apart(tmp_path / "whole", tmp_path / "apart"), model.get_submodule(case.module)
    hidden, index, weights = routing()
    with torch.no_grad():
        expected = case.call(module, hidden, index, weights)
        found, *wrong = (
            reference(case, module, each, hidden, index, weights)
            for each in (
                experts,
                swapped(experts),
                recut(experts, interleaved=case.interleaved),
                experts[1:] + experts[:1],
            )
        )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for other in wrong:
        assert (other - expected).abs().max() > 1e-2
    surgery.write(surgery.fuse_experts(surgery.open_checkpoint(tmp_path / "apart")), tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(tmp_path / "whole")


def test_split_experts_of_jetmoe_compute_what_the_class_computes(tmp_path: Path):
    sizes = {"kv_channels": 8, "num_key_value_heads": 2}
    model = saved("jetmoe", tmp_path / "whole", **sizes)
    experts, module = apart(tmp_path / "whole", tmp_path / "apart"), model.model.layers[1].mlp
    hidden, _, _ = routing()
    with torch.no_grad():
        expected = module(hidden[None])[0]
        top, index = module.router.layer(hidden).topk(stacks.TOP)
        case = Case("jetmoe", "", gate=lambda module, gate, up: module.activation(gate) * up)
        found, wrong = (
            reference(case, module, each, hidden, index, top.softmax(-1)) + module.bias
            for each in (experts, swapped(experts))
        )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (wrong - expected).abs().max() > 1e-2
    surgery.write(surgery.fuse_experts(surgery.open_checkpoint(tmp_path / "apart")), tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(tmp_path / "whole")


def outputs(model: Any) -> torch.Tensor:
    """What the model computes on fixed tokens."""
    tokens = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        result = model.eval()(input_ids=tokens, use_cache=False)
    return result["logits" if "logits" in result else "last_hidden_state"]


@pytest.mark.parametrize("kind", LOADED)
def test_fused_experts_load_into_the_class(kind: str, tmp_path: Path):
    cls = type(saved(kind, tmp_path / "apart", **LOADED[kind]))
    checkpoint = surgery.open_checkpoint(tmp_path / "apart")
    surgery.write(surgery.fuse_experts(checkpoint), tmp_path / "whole")
    tensors = load_file(tmp_path / "whole" / "model.safetensors")
    stacked = [name for name in tensors if name not in checkpoint.tensors]
    assert stacked and not any(re.search(r"experts\.\d+\.", name) for name in tensors)
    expected = outputs(cls.from_pretrained(tmp_path / "apart"))
    model, info = cls.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not any(info.values())
    assert alike(outputs(model), expected)
    surgery.write(surgery.split_experts(surgery.open_checkpoint(tmp_path / "whole")), tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(tmp_path / "apart")
    # the control: the other half first, where there is a gate
    turned = {n: t.roll(t.shape[1] // 2, 1) if n in stacked and "gate" in n else t for n, t in tensors.items()}
    turned |= {n: t.roll(1, 0) for n, t in tensors.items() if n in stacked and kind == "nemotron_h"}
    save_file(turned, tmp_path / "whole" / "model.safetensors", metadata={"format": "pt"})
    assert (outputs(cls.from_pretrained(tmp_path / "whole")) - expected).abs().max() > 1e-3


QWEN = {"text_config": {**stacks.SIZES, "model_type": "qwen3_vl_moe_text"}, "vision_config": {
    "depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": 16, "patch_size": 4,
    "deepstack_visual_indexes": [0], "num_position_embeddings": 4,
}}  # fmt: skip


def rewritten(folder: Path, out: Path, change: Callable[[str, torch.Tensor], torch.Tensor], **fields: Any) -> Path:
    """The checkpoint of one file with its tensors changed, and fields of its config.json."""
    shutil.copytree(folder, out)
    tensors = {
        name: change(name, tensor).contiguous() for name, tensor in load_file(folder / "model.safetensors").items()
    }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | fields))
    return out


def turn(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """(experts, out, in) -> (experts, in, out)."""
    return tensor.transpose(1, 2) if ".experts." in name else tensor


@pytest.mark.parametrize("kind", ["experts", "gate_up"])
def test_qwen3_vl_moe_has_both_orders_of_axes(kind: str, tmp_path: Path):
    """Files of transformers 4 and 5 have other bytes under the same names; the class loads both, and so does the
    split one.
    """
    model = stacks.random(tf.Qwen3VLMoeForConditionalGeneration(tf.Qwen3VLMoeConfig(**QWEN)))
    model.save_pretrained(tmp_path / "new")
    old = rewritten(tmp_path / "new", tmp_path / "old", turn, transformers_version="4.57.0")
    loaded, info = type(model).from_pretrained(old, output_loading_info=True)
    assert not any(info.values())
    assert alike(outputs(loaded), outputs(model))
    splits = {name: surgery.split(surgery.open_checkpoint(tmp_path / name), (kind,)) for name in ("new", "old")}
    for name, tensor in splits["new"].tensors.items():
        other = splits["old"].load(name)
        moved = other.transpose(1, 2) if len(tensor.shape) == 3 and ".experts." in name else other
        assert torch.equal(moved, splits["new"].load(name))
    for name, checkpoint in splits.items():
        surgery.write(checkpoint, tmp_path / kind / name)
        again = surgery.fuse(surgery.open_checkpoint(tmp_path / kind / name), (kind,))
        surgery.write(again, tmp_path / "again" / name)
        assert hashes(tmp_path / "again" / name) == hashes(tmp_path / name)


def test_square_experts_of_qwen3_vl_moe_are_refused(tmp_path: Path):
    saved("qwen3_vl_moe_text", tmp_path / "a", moe_intermediate_size=8)
    for kind in ("experts", "gate_up"):
        with pytest.raises(surgery.NotSupported, match=r"experts of 16 × 16 are \(in, out\) or \(out, in\)") as error:
            surgery.split(surgery.open_checkpoint(tmp_path / "a"), (kind,))
        assert "transformers before 5 wrote (experts, in, out)" in str(error.value)


def test_experts_that_contradict_the_config_are_refused(tmp_path: Path):
    saved("qwen3_vl_moe_text", tmp_path / "a")
    wrong = rewritten(tmp_path / "a", tmp_path / "b", lambda _, tensor: tensor, hidden_size=18)
    with pytest.raises(surgery.LayoutError, match=r"experts of \(4, 24, 16\) have no axis of 18"):
        surgery.split_experts(surgery.open_checkpoint(wrong))


def test_mxfp4_is_refused_by_name(tmp_path: Path):
    saved("gpt_oss", tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    for name in [
        name for name in tensors if name.endswith("experts.gate_up_proj") or name.endswith("experts.down_proj")
    ]:
        packed = tensors.pop(name)
        tensors[f"{name}_blocks"] = torch.zeros(EXPERTS, packed.shape[2], 1, 16, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.zeros(EXPERTS, packed.shape[2], 1, dtype=torch.uint8)
    save_file(tensors, tmp_path / "a" / "model.safetensors")
    for split in (surgery.split, surgery.split_experts, surgery.split_gate_up):
        with pytest.raises(surgery.NotSupported, match=r"these are quantised \(MXFP4\)") as error:
            split(surgery.open_checkpoint(tmp_path / "a"))
        assert "model.layers.0.mlp.experts.gate_up_proj_blocks" in str(error.value)
        assert "take the unquantised checkpoint" in str(error.value)


def test_fp8_experts_are_refused_by_name(tmp_path: Path):
    saved("deepseek_v3", tmp_path / "a", **DEEPSEEK)
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    scales = {f"{name}_scale_inv": torch.ones(1, 1) for name in tensors if ".experts." in name}
    save_file(tensors | scales, tmp_path / "a" / "model.safetensors")
    with pytest.raises(surgery.NotSupported, match=r"these are quantised \(FP8\)"):
        surgery.fuse_experts(surgery.open_checkpoint(tmp_path / "a"))


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss", "granitemoeshared"])
def test_experts_in_many_shards(kind: str, tmp_path: Path):
    """Parts of one layer lie in several shards; the fused tensor takes the shard of its first part."""
    model = stacks.build(kind, **SHARED_MLP)
    model.save_pretrained(tmp_path / "a", max_shard_size="3KB")
    change, back = (
        (surgery.fuse_experts, surgery.split_experts)
        if kind == "mixtral"
        else (surgery.split_experts, surgery.fuse_experts)
    )
    before = surgery.open_checkpoint(tmp_path / "a")
    changed = change(before)
    surgery.write(changed, tmp_path / "b", max_shard_size="2KB")
    surgery.write(changed, tmp_path / "c")
    for folder in ("b", "c"):
        found = back(surgery.open_checkpoint(tmp_path / folder))
        assert found.tensors.keys() == before.tensors.keys()
        assert all(torch.equal(found.load(name), before.load(name)) for name in before.tensors)
    if kind == "mixtral":
        for layer in (0, 1):
            module = f"model.layers.{layer}.block_sparse_moe.experts"
            shards = {before.weight_map[f"{module}.{e}.{leaf}.weight"] for e in range(EXPERTS) for leaf in ("w1", "w3")}
            assert len(shards) > 1
            assert changed.weight_map[f"{module}.gate_up_proj"] == before.weight_map[f"{module}.0.w1.weight"]
    else:
        surgery.write(back(surgery.open_checkpoint(tmp_path / "c")), tmp_path / "d")
        assert hashes(tmp_path / "d") == hashes(tmp_path / "a")


def test_of_two_rows_for_a_tensor_experts_hold(tmp_path: Path):
    saved("granitemoeshared", tmp_path / "a", **SHARED_MLP)
    checkpoint = surgery.open_checkpoint(tmp_path / "a")
    kinds = {
        site.module.rpartition("1.")[2]: site.row.kind
        for site in detect(checkpoint.config, checkpoint.tensors)
        if ".1." in site.module
    }
    assert kinds == {
        "block_sparse_moe.input_linear": "experts",
        "block_sparse_moe.output_linear": "experts",
        "shared_mlp.input_linear": "gate_up",
    }
    parts = surgery.split(checkpoint)
    assert parts.tensors["model.layers.1.block_sparse_moe.experts.3.gate_proj.weight"].shape == (20, 16)
    assert parts.tensors["model.layers.1.shared_mlp.gate_proj.weight"].shape == (8, 16)
    surgery.write(parts, tmp_path / "b")
    surgery.write(surgery.fuse(surgery.open_checkpoint(tmp_path / "b")), tmp_path / "c")
    assert hashes(tmp_path / "c") == hashes(tmp_path / "a")
    only = surgery.split_gate_up(checkpoint)
    assert only.tensors["model.layers.1.block_sparse_moe.gate_proj.weight"].shape == (4, 20, 16)
    assert "model.layers.1.block_sparse_moe.output_linear.weight" in only.tensors


def test_experts_keep_their_numbers_under_other_names(tmp_path: Path):
    saved("gpt_oss", tmp_path / "a")
    given = surgery.Given(names={"gate": "w1", "up": "w3", "down": "w2"})
    split = surgery.split_experts(surgery.open_checkpoint(tmp_path / "a"), given=given)
    module = "model.layers.1.mlp.experts"
    names = {f"{module}.{e}.w{n}.{kind}" for e in range(EXPERTS) for n in (1, 2, 3) for kind in ("weight", "bias")}
    assert {name for name in split.tensors if name.startswith(module)} == names
    surgery.write(split, tmp_path / "b")
    surgery.write(surgery.fuse_experts(surgery.open_checkpoint(tmp_path / "b"), given=given), tmp_path / "c")
    assert hashes(tmp_path / "c") == hashes(tmp_path / "a")


def test_experts_that_files_have_apart_are_fused_only_where_asked_for(tmp_path: Path):
    """Else fusing what was split would fuse more than was split."""
    saved("mixtral", tmp_path / "a")
    checkpoint = surgery.open_checkpoint(tmp_path / "a")
    with pytest.raises(surgery.NothingMatched, match="the files of model type `mixtral` have experts apart") as error:
        surgery.fuse(checkpoint)
    assert "surgery fuse-experts makes what the class holds" in str(error.value)


# Types whose files have experts apart, saved as the class holds them: from state_dict(), as training frameworks do.
IN_MEMORY = ("mixtral", "minimax", "phimoe", "qwen3_moe", "olmoe", "jamba", "nemotron_h")


@pytest.mark.parametrize("kind", IN_MEMORY)
def test_what_a_file_holds_stacked_is_split_whatever_its_type_is_used_to(kind: str, tmp_path: Path):
    """The class loads the parts, and fuse gives the file back."""
    model = stacks.build(kind)
    model.config.save_pretrained(tmp_path / "a")
    state = {
        name: tensor.clone() for name, tensor in model.state_dict().items() if name not in model.all_tied_weights_keys
    }
    save_file(state, tmp_path / "a" / "model.safetensors", metadata={"format": "pt"})
    assert any("experts" in row.name for row in surgery.inspect(tmp_path / "a").fused)
    base = surgery.open_checkpoint(tmp_path / "a")
    split = surgery.split_experts(base)
    assert not any(name.endswith(("gate_up_proj", "experts.down_proj")) for name in split.tensors)
    surgery.write(split, tmp_path / "b")
    loaded, info = type(model).from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    every = surgery.split(base)
    assert {n for n in every.tensors if ".experts." in n} == {n for n in split.tensors if ".experts." in n}
    surgery.write(every, tmp_path / "every")
    surgery.write(surgery.fuse(surgery.open_checkpoint(tmp_path / "every")), tmp_path / "c")
    assert hashes(tmp_path / "c") == hashes(tmp_path / "a")


def test_shared_experts_stay_out(tmp_path: Path):
    saved("deepseek_v3", tmp_path / "a", **DEEPSEEK)
    checkpoint = surgery.open_checkpoint(tmp_path / "a")
    shared = {name for name in checkpoint.tensors if "shared_experts" in name}
    assert shared and shared < surgery.fuse_experts(checkpoint).tensors.keys()


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (r".*experts\.1\.w[123]", "not numbered from 0 without a gap"),
        (r".*experts\.2\.w3", "2 projections have no weight, though their siblings have one"),
        (r"0\.block_sparse_moe\.experts\.3\.w[123]", "3 experts of one layer, and 4 of another"),
    ],
)
def test_missing_experts_are_an_error(lost: str, message: str, tmp_path: Path):
    saved("mixtral", tmp_path / "a")
    checkpoint = surgery.open_checkpoint(tmp_path / "a")
    less = surgery.drop(checkpoint, rf"model\.layers\.{lost}\.weight")
    with pytest.raises(surgery.LayoutError, match=message):
        surgery.fuse_experts(less)


def test_every_type_is_computed_with_or_only_read():
    computed = {case.kind for case in SAVED} | {"jetmoe", "qwen3_vl_moe"} | LOADED.keys()
    assert not computed & READ
    assert computed | READ == {kind for row in ROWS for kind in row.model_types}
