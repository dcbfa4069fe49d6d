"""Proving merges that PEFT made, and naming what is wrong with sabotaged ones.

PEFT adapts, merges and saves; nothing of ours made the checkpoints that are judged here, but for the sabotage.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
import transformers as tf
from models.fused import stacks
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import surgery
from surgery import Verdict
from surgery.errors import SurgeryError, VerificationFailed
from surgery_cli.app import app

Q = "model.layers.1.self_attn.q_proj.weight"
OUT = "model.layers.1.self_attn.o_proj.weight"
SIZES = {"small": 2e-5, "usual": 1e-4, "large": 2e-3}  # of a delta's factors, squared
KINDS = {
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.float32),
    "bfloat16, of bfloat16": (torch.bfloat16, torch.bfloat16),
    "float32, of bfloat16": (torch.float32, torch.bfloat16),
    "float16, of float16": (torch.float16, torch.float16),
    "bfloat16, of float16": (torch.bfloat16, torch.float16),
}


def merge_with_peft(
    out: Path, kind: str = "bfloat16", size: float = 1e-4, family: str = "llama", **options: Any
) -> Path:
    """out/base, out/adapter and out/merged, the last by merge_and_unload and save_pretrained."""
    dtype, of = KINDS[kind]
    model = tiny_models.build(family, dtype=dtype) if family in tiny_models.MODELS else stacks.build(family).to(dtype)
    model.save_pretrained(out / "base")
    lora = peft.LoraConfig(**{"r": 8, "lora_alpha": 16, "target_modules": "all-linear", **options})
    adapted = peft.get_peft_model(model, lora, autocast_adapter_dtype=False)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.data = (size**0.5 * torch.randn(parameter.shape, generator=generator)).to(of)
    adapted.save_pretrained(out / "adapter")
    adapted.merge_and_unload().save_pretrained(out / "merged")
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """made(kind, size) -> the folder of a merge by PEFT; the same call, the same folder, which nothing writes to."""
    found: dict[tuple[str, ...], Path] = {}

    def get(kind: str = "bfloat16, of bfloat16", size: str = "usual", **options: Any) -> Path:
        key = (kind, size, str(options))
        if key not in found:
            found[key] = merge_with_peft(tmp_path_factory.mktemp("merge"), kind, SIZES[size], **options)
        return found[key]

    return get


def proof(folder: Path, merged: Path | None = None, **options: Any) -> surgery.Proof:
    """What is said of folder/merged, or of another merge of the same base and adapter."""
    options = {"base": folder / "base", "adapter": folder / "adapter", **options}
    found = surgery.verify(merged or folder / "merged", check_class=False, **options).proof
    assert found is not None
    return found


def counts(found: surgery.Proof) -> dict[str, int]:
    return dict(Counter(one.verdict.name for one in found.tensors))


def verdict(found: surgery.Proof, name: str) -> surgery.Judgement:
    return next(one for one in found.tensors if one.name == name)


def edited(
    folder: Path,
    out: Path,
    edit: Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], Mapping[str, Any] | None],
) -> Path:
    """A copy of folder/merged whose tensors `edit(merged, base)` changed in place."""
    shutil.copytree(folder / "merged", out)
    tensors, base = (load_file(folder / name / "model.safetensors") for name in ("merged", "base"))
    edit(tensors, base)
    save_file({n: t.contiguous() for n, t in tensors.items()}, out / "model.safetensors", {"format": "pt"})
    return out


def delta(folder: Path, name: str) -> torch.Tensor:
    """The adapter's change of a tensor, in float64."""
    factors = load_file(folder / "adapter" / "adapter_model.safetensors")
    a, b = (factors[f"base_model.model.{name.removesuffix('.weight')}.lora_{x}.weight"].double() for x in "AB")
    return 2 * b @ a


# What PEFT merges is right


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_by_peft_is_right_but_for_rounding(kind: str, size: str, made: Callable[..., Path]) -> None:
    """21 linears of the adapter, 9 other tensors."""
    found = proof(made(kind, size))
    assert found.ok, [str(one) for one in found.wrong]
    right = counts(found)
    assert right.pop("KEPT") == 9
    assert sum(right.values()) == 21 and set(right) <= {"EXACT", "ROUNDED"}


def test_peft_rounds_the_delta_first(made: Callable[..., Path]) -> None:
    """The control of the test before: PEFT's bytes are not ours, and rounding is said of them, not equality."""
    found = proof(made("bfloat16, of bfloat16"))
    assert counts(found) == {"ROUNDED": 21, "KEPT": 9}
    for one in found.of(Verdict.ROUNDED):
        assert 0 < one.differing < one.elements and 1 <= one.ulps <= 4 and not one.beyond


def test_the_deltas_are_of_all_sizes(made: Callable[..., Path]) -> None:
    for size, (least, most) in {"small": (0.004, 0.008), "usual": (0.02, 0.04), "large": (0.4, 0.8)}.items():
        folder = made("bfloat16", size)
        weight = load_file(folder / "base" / "model.safetensors")[Q].double()
        assert least < (delta(folder, Q).norm() / weight.norm()).item() < most


def test_our_own_merge_is_exact(made: Callable[..., Path], tmp_path: Path) -> None:
    """Sharded otherwise too."""
    folder = made("bfloat16, of bfloat16")
    merged = surgery.merge(surgery.open_checkpoint(folder / "base"), surgery.open_adapter(folder / "adapter"))
    surgery.write(merged, tmp_path / "out", "20KB")
    assert counts(proof(folder, tmp_path / "out")) == {"EXACT": 21, "KEPT": 9}


EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
OTHERS: dict[str, Mapping[str, Any]] = {
    "conv1d": {"family": "gpt2", "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
    "fused": {"family": "phi3", "target_modules": ["qkv_proj", "gate_up_proj", "o_proj"]},
    "rslora": {"use_rslora": True, "rank_pattern": {"q_proj": 3}, "alpha_pattern": {"v_proj": 5}},
    "large rank": {"r": 96},
    "dora": {"use_dora": True},
    "dora, conv1d": {
        "family": "gpt2",
        "target_modules": ["c_attn", "attn.c_proj"],
        "fan_in_fan_out": True,
        "use_dora": True,
    },
    "embedding": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "embedding, dora": {"target_modules": ["embed_tokens"], "use_dora": True},
    "biases": {"family": "bert", "target_modules": ["query", "dense"], "lora_bias": True},
    "experts": {"family": "qwen3_moe", "target_modules": ["q_proj"], "target_parameters": list(EXPERTS)},
    "experts, transposed": {"family": "gpt_oss", "target_modules": [], "target_parameters": list(EXPERTS)},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_merges_by_peft_are_right(name: str, made: Callable[..., Path]) -> None:
    for kind in ("float32", "bfloat16", "bfloat16, of bfloat16"):
        found = proof(made(kind, **OTHERS[name]))
        assert found.ok, [str(one) for one in found.wrong]
        assert counts(found).keys() - {"KEPT"}


def test_a_float32_base_merged_in_bfloat16(made: Callable[..., Path], tmp_path: Path) -> None:
    """As from_pretrained(dtype=bfloat16) leaves it: the base is rounded, then the sum. All else is the base's,
    rounded.
    """
    folder = made("float32")
    model = type(tiny_models.build("llama")).from_pretrained(folder / "base", dtype=torch.bfloat16)
    peft.PeftModel.from_pretrained(model, folder / "adapter").merge_and_unload().save_pretrained(tmp_path / "merged")
    found = proof(folder, tmp_path / "merged")
    assert counts(found) == {"ROUNDED": 21, "KEPT": 9}
    assert all("rounded to BF16" in str(one) for one in found.tensors)
    once = edited(
        folder, tmp_path / "once", lambda tensors, _: tensors.update({n: t.bfloat16() for n, t in tensors.items()})
    )
    assert counts(proof(folder, once)).keys() <= {"EXACT", "ROUNDED", "KEPT"}


def test_two_adapters_with_weights(made: Callable[..., Path], tmp_path: Path) -> None:
    """PEFT adds them one after another, rounding each time. With other weights it is another merge."""
    folder = made()
    model = type(tiny_models.build("llama")).from_pretrained(folder / "base", dtype=torch.bfloat16)
    adapted = peft.PeftModel.from_pretrained(model, folder / "adapter", "one")
    adapted.load_adapter(made("bfloat16", "usual", r=5) / "adapter", "two")
    adapted.add_weighted_adapter(["one", "two"], [0.7, 0.3], "both", combination_type="cat")
    adapted.set_adapter("both")
    adapted.merge_and_unload(adapter_names=["both"]).save_pretrained(tmp_path / "merged")
    both = [folder / "adapter", made("bfloat16", "usual", r=5) / "adapter"]
    assert proof(folder, tmp_path / "merged", adapter=both, weights=[0.7, 0.3]).ok
    assert not proof(folder, tmp_path / "merged", adapter=both, weights=[0.3, 0.7]).ok
    assert not proof(folder, tmp_path / "merged", adapter=both[:1]).ok


# What is sabotaged is named


def test_adapters_that_the_manifest_names_and_nobody_gave(made: Callable[..., Path], tmp_path: Path) -> None:
    folder = made()
    other = shutil.copytree(folder / "adapter", tmp_path / "second")
    file = other / "adapter_model.safetensors"
    save_file({name: -0.7 * weight for name, weight in load_file(file).items()}, file)
    base, both = (
        surgery.open_checkpoint(folder / "base"),
        [surgery.open_adapter(one) for one in (folder / "adapter", other)],
    )
    surgery.write(surgery.merge(base, both), tmp_path / "two")
    told = merge_rows(surgery.verify(tmp_path / "two", base=folder / "base", adapter=other, check_class=False))
    assert "the manifest names 2 adapters, and the merge is held against 1: adapter, second" in told
    right = [folder / "adapter", other]
    assert surgery.verify(tmp_path / "two", base=folder / "base", adapter=right, check_class=False).ok


def merge_rows(found: surgery.Verification) -> tuple[str, ...]:
    """What is told of a merge that is wrong."""
    (check,) = (one for one in found.checks if one.name == "merge")
    assert check.ok is False
    return check.where


def check_only(found: surgery.Proof, name: str, what: Verdict) -> surgery.Judgement:
    """The one thing that is wrong."""
    assert [one.name for one in found.wrong] == [name], [str(one) for one in found.wrong]
    assert found.wrong[0].verdict is what, str(found.wrong[0])
    return found.wrong[0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_one_layer_that_was_left_out(kind: str, size: str, made: Callable[..., Path], tmp_path: Path) -> None:
    out = edited(made(kind, size), tmp_path / "out", lambda tensors, base: tensors.update({Q: base[Q]}))
    assert str(check_only(proof(made(kind, size), out), Q, Verdict.NOT_APPLIED)) == f"{Q}: never applied"


@pytest.mark.parametrize("times", [2, 0.5, -1, 1.2])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_another_scale(kind: str, size: str, times: float, made: Callable[..., Path], tmp_path: Path) -> None:
    """Applied twice, or with half the alpha, or subtracted: one layer of it, and its factor is told."""
    folder = made(kind, size)

    def scaled(tensors: dict[str, torch.Tensor], base: dict[str, torch.Tensor]) -> None:
        tensors[Q] = (base[Q].double() + times * delta(folder, Q)).to(base[Q].dtype)

    found = check_only(proof(folder, edited(folder, tmp_path / "out", scaled)), Q, Verdict.SCALED)
    assert found.factor == pytest.approx(times, abs=0.05)
    assert f"{Q}: applied {found.factor:.4g} times" in str(found)


def test_a_merge_that_was_merged_again(made: Callable[..., Path], tmp_path: Path) -> None:
    """As happens where a second run starts from the first one's output."""
    folder = made()
    model = type(tiny_models.build("llama")).from_pretrained(folder / "merged", dtype=torch.bfloat16)
    peft.PeftModel.from_pretrained(model, folder / "adapter").merge_and_unload().save_pretrained(tmp_path / "merged")
    found = proof(folder, tmp_path / "merged")
    assert counts(found) == {"SCALED": 21, "KEPT": 9}
    assert all(one.factor == pytest.approx(2, abs=0.05) for one in found.wrong)


def test_a_wrong_alpha(made: Callable[..., Path], tmp_path: Path) -> None:
    folder = made()
    shutil.copytree(folder / "adapter", tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 24}))
    found = proof(folder, adapter=tmp_path / "adapter")
    assert counts(found) == {"SCALED": 21, "KEPT": 9}
    assert all(one.factor == pytest.approx(16 / 24, abs=0.02) for one in found.wrong)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_transposed_square(kind: str, size: str, made: Callable[..., Path], tmp_path: Path) -> None:
    folder = made(kind, size, family="gpt2", target_modules=["attn.c_proj"], fan_in_fan_out=True)
    name = "transformer.h.1.attn.c_proj.weight"

    def turned(tensors: dict[str, torch.Tensor], base: dict[str, torch.Tensor]) -> None:
        assert tensors[name].shape[0] == tensors[name].shape[1]
        tensors[name] = (base[name].double() + delta(folder, name)).to(base[name].dtype)

    assert proof(folder).ok
    check_only(proof(folder, edited(folder, tmp_path / "out", turned)), name, Verdict.TRANSPOSED)


@pytest.mark.parametrize("kind", KINDS)
def test_one_element_of_a_merged_tensor(kind: str, made: Callable[..., Path], tmp_path: Path) -> None:
    """By a tenth of what the tensor holds, where rounding explains a hundredth."""
    folder = made(kind, "small")

    def flipped(tensors: dict[str, torch.Tensor], _: dict[str, torch.Tensor]) -> None:
        tensors[Q][3, 5] += 0.1 * tensors[Q].abs().max()

    found = check_only(proof(folder, edited(folder, tmp_path / "out", flipped)), Q, Verdict.WRONG)
    assert found.beyond == 1


def test_nan_is_wrong(made: Callable[..., Path], tmp_path: Path) -> None:
    def spoilt(tensors: dict[str, torch.Tensor], _: dict[str, torch.Tensor]) -> None:
        tensors[Q][3, 5] = float("nan")

    assert check_only(proof(made(), edited(made(), tmp_path / "out", spoilt)), Q, Verdict.WRONG).beyond == 1


def test_half_of_the_rows(made: Callable[..., Path], tmp_path: Path) -> None:
    """As where q of a fused projection is merged, and k is not."""

    def halved(tensors: dict[str, torch.Tensor], base: dict[str, torch.Tensor]) -> None:
        tensors[Q][20:] = base[Q][20:]

    check_only(proof(made(), edited(made(), tmp_path / "out", halved)), Q, Verdict.WRONG)


def test_another_layer_s_delta(made: Callable[..., Path], tmp_path: Path) -> None:
    folder = made()
    other = Q.replace("layers.1", "layers.2")

    def swapped(tensors: dict[str, torch.Tensor], base: dict[str, torch.Tensor]) -> None:
        tensors[Q] = (base[Q].double() + delta(folder, other)).to(base[Q].dtype)

    check_only(proof(folder, edited(folder, tmp_path / "out", swapped)), Q, Verdict.WRONG)


@pytest.mark.parametrize("times", [0, 2, 0.5])
@pytest.mark.parametrize("name", OTHERS)
def test_other_merges_sabotaged(name: str, times: float, made: Callable[..., Path], tmp_path: Path) -> None:
    """Of each kind of adapter, its last tensor: left out, merged twice, or with half the alpha."""
    folder = made("bfloat16", "large", **OTHERS[name])
    last = [one.name for one in proof(folder).tensors if one.verdict in (Verdict.EXACT, Verdict.ROUNDED)][-1]

    def scaled(tensors: dict[str, torch.Tensor], base: dict[str, torch.Tensor]) -> None:
        change = tensors[last].double() - base[last].double()
        tensors[last] = (base[last].double() + times * change).to(base[last].dtype)

    found = check_only(
        proof(folder, edited(folder, tmp_path / "out", scaled)), last, Verdict.SCALED if times else Verdict.NOT_APPLIED
    )
    assert found.factor is None if not times else found.factor == pytest.approx(times, abs=0.05)


def test_a_tensor_of_another_scale(made: Callable[..., Path], tmp_path: Path) -> None:
    """The whole of it, and not the delta alone; one that is merged, and one that is not."""
    for name, what in ((Q, Verdict.WRONG), (NORM, Verdict.CHANGED)):
        out = edited(made(), tmp_path / what.name, lambda tensors, _, n=name: tensors.update({n: tensors[n] * 1.5}))
        check_only(proof(made(), out), name, what)


def test_one_of_two_adapters_was_left_out_of_a_layer(made: Callable[..., Path], tmp_path: Path) -> None:
    """PEFT merges one after the other, and rounds twice."""
    folder, other = made(), made("bfloat16, of bfloat16", "usual", r=5)
    model = type(tiny_models.build("llama")).from_pretrained(folder / "base", dtype=torch.bfloat16)
    adapted = peft.PeftModel.from_pretrained(model, folder / "adapter", "one", autocast_adapter_dtype=False)
    adapted.load_adapter(other / "adapter", "two", autocast_adapter_dtype=False)
    adapted.merge_and_unload(adapter_names=["one", "two"]).save_pretrained(tmp_path / "merged")
    both = [folder / "adapter", other / "adapter"]
    assert counts(proof(folder, tmp_path / "merged", adapter=both)) == {"ROUNDED": 21, "KEPT": 9}
    tensors = load_file(tmp_path / "merged" / "model.safetensors")
    alone = load_file(folder / "merged" / "model.safetensors")[Q]
    save_file({**tensors, Q: alone}, tmp_path / "merged" / "model.safetensors", {"format": "pt"})
    check_only(proof(folder, tmp_path / "merged", adapter=both), Q, Verdict.WRONG)


NORM = "model.layers.0.input_layernorm.weight"


def test_a_tensor_that_no_adapter_touches(made: Callable[..., Path], tmp_path: Path) -> None:
    """By one element's last bit."""

    def nudged(tensors: dict[str, torch.Tensor], _: dict[str, torch.Tensor]) -> None:
        tensors[NORM].view(torch.int16)[7] += 1

    found = check_only(proof(made(), edited(made(), tmp_path / "out", nudged)), NORM, Verdict.CHANGED)
    assert (found.differing, found.ulps) == (1, 1)
    assert str(found) == f"{NORM}: changed: 1 of 48 elements differ, by up to 1 ulps"


def test_tensors_that_are_missing_too_much_or_of_another_shape(made: Callable[..., Path], tmp_path: Path) -> None:
    def cut(tensors: dict[str, torch.Tensor], _: dict[str, torch.Tensor]) -> None:
        del tensors[NORM]
        tensors["extra"] = torch.zeros(3)
        tensors[Q] = tensors[Q][:, :40]
        tensors[OUT] = tensors[OUT].to(torch.float8_e4m3fn)

    found = proof(made(), edited(made(), tmp_path / "out", cut))
    assert {one.name: one.verdict for one in found.wrong} == {
        "extra": Verdict.ADDED,
        NORM: Verdict.MISSING,
        Q: Verdict.UNLIKE,
        OUT: Verdict.UNLIKE,
    }
    assert str(verdict(found, Q)) == f"{Q}: unlike (BF16 [40, 40], not BF16 [40, 48])"
    assert str(verdict(found, NORM)) == f"{NORM}: missing"


def test_the_base_itself(made: Callable[..., Path]) -> None:
    """Tools have shipped bases as merged."""
    found = proof(made(), made() / "base")
    assert counts(found) == {"NOT_APPLIED": 21, "KEPT": 9}


def test_a_tied_head_need_not_be_stored(tmp_path: Path) -> None:
    folder = merge_with_peft(tmp_path, family="llama-tied")
    tensors = load_file(folder / "base" / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    for head, what in ((embedding.clone(), Verdict.TIED), (embedding + 1, Verdict.MISSING)):
        save_file({**tensors, "lm_head.weight": head}, folder / "base" / "model.safetensors", {"format": "pt"})
        assert verdict(proof(folder), "lm_head.weight").verdict is what


def test_saved_modules_and_biases(tmp_path: Path) -> None:
    """Whole tensors take the base's place: right, left out, or half way."""
    options = {
        "target_modules": ["query"],
        "bias": "lora_only",
        "task_type": "QUESTION_ANS",
        "modules_to_save": ["qa_outputs"],
    }
    model = tiny_models.build("bert")
    model.save_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, **options))
    with torch.no_grad():
        for parameter in (p for p in adapted.parameters() if p.requires_grad):
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    assert proof(tmp_path).ok
    head = "qa_outputs.weight"
    for share, what in ((0.0, Verdict.NOT_APPLIED), (0.5, Verdict.SCALED)):
        out = edited(
            tmp_path,
            tmp_path / what.name,
            lambda t, base, s=share: t.update({head: torch.lerp(base[head], t[head], s)}),
        )
        check_only(proof(tmp_path, out), head, what)


# How it is asked


def test_wrong_questions(made: Callable[..., Path]) -> None:
    folder = made()
    for options in ({"base": folder / "base"}, {"adapter": folder / "adapter"}, {"weights": [1.0]}):
        with pytest.raises(SurgeryError, match="a merge is proved against its base and its adapters"):
            surgery.verify(folder / "merged", **options)
    with pytest.raises(SurgeryError, match="this is an adapter, not a merged checkpoint"):
        surgery.verify(folder / "adapter", base=folder / "base", adapter=folder / "adapter")


def test_verification_fails_with_what_is_wrong(made: Callable[..., Path]) -> None:
    found = surgery.verify(made() / "base", base=made() / "base", adapter=made() / "adapter", check_class=False)
    assert not found.ok
    with pytest.raises(VerificationFailed, match="1 of 2 checks failed") as failed:
        found.require()
    assert "merge: 21 tensors are not what the merge gives" in str(failed.value)
    assert "model.layers.0.mlp.down_proj.weight: never applied" in str(failed.value)


ANOTHER = "this looks like the merge of another adapter"


def merge_check(folder: Path, **given: Any) -> str:
    given = {"base": folder / "base", "adapter": folder / "adapter", **given}
    found = surgery.verify(folder / "merged", check_class=False, **given)
    return next(check.detail for check in found.checks if check.name == "merge")


def test_another_adapter_is_said_to_be_one(made: Callable[..., Path], tmp_path: Path) -> None:
    """Of the same modules, of fewer and of others; not where the merge was never made, or with another alpha."""
    folder = made()
    model = tf.LlamaForCausalLM.from_pretrained(folder / "base")
    for name, targets in (
        ("same", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
        ("few", ["q_proj"]),
    ):
        other = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=targets))
        with torch.no_grad():
            for parameter in other.parameters():
                if parameter.requires_grad:
                    parameter.copy_(0.1 * torch.randn(parameter.shape))
        other.save_pretrained(tmp_path / name)
        assert ANOTHER in merge_check(folder, adapter=tmp_path / name), name
        model = other.unload()
    heads = made(target_modules=["q_proj"])
    assert ANOTHER in merge_check(heads, adapter=tmp_path / "same")
    assert "looks like" not in merge_check(folder)
    found = surgery.verify(folder / "base", check_class=False, base=folder / "base", adapter=folder / "adapter")
    assert "looks like" not in next(check.detail for check in found.checks if check.name == "merge")


def test_another_base_is_said_to_be_one(made: Callable[..., Path], tmp_path: Path) -> None:
    def moved(tensors: dict[str, torch.Tensor], _: dict[str, torch.Tensor]) -> None:
        tensors.update({name: tensor + torch.randn_like(tensor) for name, tensor in tensors.items()})

    folder = made()
    found = surgery.verify(
        edited(folder, tmp_path / "out", moved), check_class=False, base=folder / "base", adapter=folder / "adapter"
    )
    assert "this looks like another base, since no tensor is as in the one given" in str(
        [check.detail for check in found.checks]
    )


def surge(*args: object) -> Any:
    return CliRunner().invoke(app, ["verify", *map(str, args)])


def test_on_the_command_line(made: Callable[..., Path], tmp_path: Path) -> None:
    folder = made()
    against = ("--base", folder / "base", "--adapter", folder / "adapter", "--no-class")
    right = surge(folder / "merged", *against)
    assert right.exit_code == 0
    assert "ok  merge: 0 tensors merged exactly, 21 but for rounding; 9 as in the base" in right.stdout
    rows = [line.split() for line in right.stdout.splitlines() if line.startswith(("rounded", "kept"))]
    assert [row[:2] for row in rows] == [["rounded", "21"], ["kept", "9"]]
    assert surge(folder / "merged", *against, "--map", "^model=model", "--weights", "1").exit_code == 0
    out = edited(folder, tmp_path / "out", lambda tensors, base: tensors.update({Q: base[Q]}))
    wrong = surge(out, *against)
    assert wrong.exit_code == 1
    assert f"FAILED  {Q}: never applied" in wrong.stdout
    told = surge(out, *against, "--json")
    assert told.exit_code == 1
    found = json.loads(told.stdout)
    assert not found["ok"] and len(found["tensors"]) == 30
    assert [t["verdict"] for t in found["tensors"] if t["name"] == Q] == ["never applied"]
    assert surge(folder / "merged", *against, "--json").exit_code == 0
    assert surge(folder / "merged", *against, "--weights", "2").exit_code == 1
    assert surge(folder / "merged", "--base", folder / "base").exit_code == 2
