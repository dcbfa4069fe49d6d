"""Names with wrappers that frameworks leave in them, and tensors that would be new. The judge is PEFT's live model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
import transformers as tf
from conftest import hashes
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import surgery
from surgery.errors import FormatError, NothingMatched, NotPlaced, SurgeryError
from surgery.models.heads import classes_with, heads_of
from surgery.models.heads_table import CLASSES
from surgery_cli.app import app

Saved = Callable[..., Path]
PREFIX = "base_model.model."
Rename = Callable[[str], str]


def trained(base: Path, out: Path, kind: Any = tf.LlamaForCausalLM, *, seed: int = 1, **options: Any) -> torch.Tensor:
    """Save an adapter with random values to `out`, and return what PEFT computes live with it, loaded from there."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(0)
    model = peft.get_peft_model(
        kind.from_pretrained(base).eval(), peft.LoraConfig(**{"r": 4, "lora_alpha": 6, **options})
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(out)
    torch.manual_seed(0)
    return tiny_models.output(peft.PeftModel.from_pretrained(kind.from_pretrained(base).eval(), out).eval(), "llama")


@pytest.fixture(scope="module")
def plain(saved: Saved, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """An adapter of LoRA, a saved head, a saved norm and trained tokens, with a rank and an alpha of one module's
    own.
    """
    folder = tmp_path_factory.mktemp("plain")
    live = trained(
        saved("llama"),
        folder,
        target_modules=["q_proj", "v_proj"],
        modules_to_save=["lm_head", "model.norm"],
        trainable_token_indices=[3, 90],
        rank_pattern={"layers.1.self_attn.q_proj": 2},
        alpha_pattern={"layers.1.self_attn.q_proj": 9},
    )
    return folder, live


def called(source: Path, folder: Path, rename: Rename, **said: Any) -> Path:
    """A copy of the adapter under other names."""
    shutil.copytree(source, folder)
    weights = folder / "adapter_model.safetensors"
    tensors = {rename(name): tensor for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **said}))
    return folder


def merged(base: Path, adapter: Path, **options: Any) -> surgery.Checkpoint:
    return surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter), **options)


def compare_with_live(base: Path, adapter: Path, live: torch.Tensor, out: Path, **options: Any) -> surgery.Report:
    """The merged checkpoint loads whole, and computes what the live model does, from which the base is far."""
    report = surgery.write(merged(base, adapter, **options), out)
    model, info = tf.LlamaForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    before = tiny_models.output(tf.LlamaForCausalLM.from_pretrained(base).eval(), "llama")
    error, effect = (tiny_models.output(model.eval(), "llama") - live).abs().max(), (before - live).abs().max()
    assert error <= 1e-5 * live.abs().max() and effect >= 1000 * error
    return report


def within(part: str, wrapper: str) -> Rename:
    return lambda name: name.replace(f"{part}.", f"{part}.{wrapper}.") if f"{part}.{wrapper}." not in name else name


WRAPPED: dict[str, tuple[Rename, str]] = {
    "DDP around PEFT": (lambda name: f"module.{name}", "module."),
    "Fabric around DDP": (lambda name: f"_forward_module.module.{name}", "_forward_module.module."),
    "a module that held it": (lambda name: f"policy.{name}", "policy. of"),
    "PEFT around DDP": (lambda name: name.replace(PREFIX, f"{PREFIX}module."), "module."),
    "torch.compile": (lambda name: name.replace(PREFIX, f"{PREFIX}_orig_mod."), "_orig_mod."),
    "FSDP": (lambda name: name.replace(PREFIX, f"{PREFIX}_fsdp_wrapped_module."), "_fsdp_wrapped_module."),
    "FSDP on layers and heads": (
        lambda name: within("lm_head", "_fsdp_wrapped_module")(within("layers.1", "_fsdp_wrapped_module")(name)),
        "_fsdp_wrapped_module.",
    ),
    "checkpointing": (within("layers.0", "_checkpoint_wrapped_module"), "_checkpoint_wrapped_module."),
    "both": (within("layers.1", "_fsdp_wrapped_module._checkpoint_wrapped_module"), "_checkpoint_wrapped_module."),
    "compiled layers": (within("self_attn", "_orig_mod"), "_orig_mod."),
    "FSDP on the factors": (
        lambda name: name.replace("lora_A.", "lora_A.default._fsdp_wrapped_module.").replace(
            "lora_B.", "lora_B._fsdp_wrapped_module."
        ),
        "_fsdp_wrapped_module.",
    ),
    "PEFT twice": (lambda name: f"{PREFIX}{name}", "base_model.model."),
    "PEFT twice, in DDP": (lambda name: f"module.{PREFIX}{name}", "module.base_model.model."),
    "a saved module's own": (
        lambda name: name.replace("lm_head.", "lm_head.modules_to_save.default._fsdp_wrapped_module."),
        "_fsdp_wrapped_module.",
    ),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_wrappers_are_taken_off_and_named(
    case: str, plain: tuple[Path, torch.Tensor], saved: Saved, tmp_path: Path
) -> None:
    rename, wrapper = WRAPPED[case]
    adapter = called(plain[0], tmp_path / "a", rename)
    want, got = merged(saved("llama"), plain[0]), merged(saved("llama"), adapter)
    assert got.tensors.keys() == want.tensors.keys() == surgery.open_checkpoint(saved("llama")).tensors.keys()
    for name in want.tensors:
        assert torch.equal(got.load(name), want.load(name)), name
    (note,) = [note for note in got.notes if note.startswith("wrappers were taken off the names in ")]
    assert wrapper in note
    assert not [note for note in want.notes if "wrappers" in note]


def test_the_live_model(plain: tuple[Path, torch.Tensor], saved: Saved, tmp_path: Path) -> None:
    adapter = called(plain[0], tmp_path / "a", WRAPPED["both"][0])
    compare_with_live(saved("llama"), adapter, plain[1], tmp_path / "out")
    found = surgery.verify(tmp_path / "out", base=saved("llama"), adapter=adapter)
    assert found.ok and found.proof


def test_patterns_with_wrappers_say_the_same(plain: tuple[Path, torch.Tensor], saved: Saved, tmp_path: Path) -> None:
    """PEFT inside torch.compile writes the wrapped names into its config."""
    said = {
        "rank_pattern": {r"_orig_mod\.model\.layers\.1.self_attn.q_proj": 2},
        "alpha_pattern": {"_orig_mod.model.layers.1.self_attn.q_proj": 9},
    }
    adapter = called(plain[0], tmp_path / "a", WRAPPED["torch.compile"][0], **said)
    want, got = merged(saved("llama"), plain[0]), merged(saved("llama"), adapter)
    name = "model.layers.1.self_attn.q_proj.weight"
    assert torch.equal(got.load(name), want.load(name))


def test_biases(saved: Saved, tmp_path: Path) -> None:
    """Trained biases of a model whose linear layers have some."""

    def rename(name: str) -> str:
        return f"module.{name}".replace("attention.dense.", "attention.dense._fsdp_wrapped_module.")

    model = peft.get_peft_model(
        tiny_models.build("gpt_neox"), peft.LoraConfig(r=4, target_modules=["query_key_value"], bias="all")
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    model.save_pretrained(tmp_path / "plain")
    adapter = called(tmp_path / "plain", tmp_path / "a", rename)
    want, got = merged(saved("gpt_neox"), tmp_path / "plain"), merged(saved("gpt_neox"), adapter)
    assert got.tensors.keys() == want.tensors.keys() and got.replaced.keys() == want.replaced.keys()
    assert any(name.endswith("attention.dense.bias") for name in got.replaced)
    for name in want.tensors:
        assert torch.equal(got.load(name), want.load(name)), name


class Held(torch.nn.Module):
    """A model whose own module is called `module`."""

    def __init__(self) -> None:
        super().__init__()
        self.module = torch.nn.ModuleDict(
            {"inner": torch.nn.Linear(6, 5, bias=False), "module": torch.nn.Linear(6, 5, bias=False)}
        )
        self.head = torch.nn.Linear(5, 4)


@pytest.mark.parametrize("front", ["", "module."])
def test_a_base_with_modules_of_such_names(front: str, tmp_path: Path) -> None:
    """What the base calls `module` stays; what stands around it goes."""
    torch.manual_seed(0)
    model = Held()
    (tmp_path / "base").mkdir()
    save_file(model.state_dict(), tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    live = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["inner", "module.module"], modules_to_save=["head"])
    )
    with torch.no_grad():
        for parameter in live.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    live.save_pretrained(tmp_path / "plain")
    adapter = called(tmp_path / "plain", tmp_path / "a", lambda name: f"{front}{name}")
    got = merged(tmp_path / "base", adapter)
    want = live.merge_and_unload().state_dict()
    assert got.tensors.keys() == want.keys()
    for name in want:
        assert torch.allclose(got.load(name), want[name], atol=1e-6), name


def test_two_that_would_be_one_are_refused(plain: tuple[Path, torch.Tensor], saved: Saved, tmp_path: Path) -> None:
    adapter = called(plain[0], tmp_path / "a", lambda name: name)
    weights = adapter / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file(tensors | {f"module.{name}": tensor + 1 for name, tensor in tensors.items()}, weights)
    with pytest.raises(FormatError, match="without wrappers, two adapter tensors mean the same"):
        merged(saved("llama"), adapter)


# What may be new


def stray(plain: Path, folder: Path, name: str) -> Path:
    saved = ["v_head" if name.startswith("v_head") else "lm_head", "model.norm"]
    return called(
        plain, folder, lambda old: old.replace(f"{PREFIX}lm_head.", f"{PREFIX}{name}."), modules_to_save=saved
    )


@pytest.mark.parametrize("name", ["language_model.lm_head", "model.lm_head", "v_head.summary", "net.lm_head"])
def test_a_whole_tensor_without_a_place_is_refused(
    name: str, plain: tuple[Path, torch.Tensor], saved: Saved, tmp_path: Path
) -> None:
    adapter = stray(plain[0], tmp_path / "a", name)
    with pytest.raises(NotPlaced) as caught:
        merged(saved("llama"), adapter)
    assert f"{name}.weight" in str(caught.value) and "--add" in str(caught.value) and "add=" in str(caught.value)
    before = hashes(saved("llama"))
    done = CliRunner().invoke(app, ["merge", str(saved("llama")), str(adapter), "-o", str(tmp_path / "out")])
    assert done.exit_code == 1 and not (tmp_path / "out").exists() and hashes(saved("llama")) == before


def test_a_rule_that_places_only_some_is_refused(
    plain: tuple[Path, torch.Tensor], saved: Saved, tmp_path: Path
) -> None:
    """LoRA moved to its place by --map, and the head left behind under another name."""
    adapter = called(plain[0], tmp_path / "a", lambda name: name.replace(PREFIX, f"{PREFIX}net."))
    with pytest.raises(NotPlaced, match=r"lm_head\.weight"):
        merged(saved("llama"), adapter, names=[(r"^net\.model\.", "model.")])
    compare_with_live(saved("llama"), adapter, plain[1], tmp_path / "out", names=[(r"^net\.", "")])


def test_what_is_asked_for_is_added(plain: tuple[Path, torch.Tensor], saved: Saved, tmp_path: Path) -> None:
    adapter = stray(plain[0], tmp_path / "a", "v_head.summary")
    out = str(tmp_path / "out")
    done = CliRunner().invoke(app, ["merge", str(saved("llama")), str(adapter), "-o", out, "--add", r"v_head\..*"])
    assert done.exit_code == 0, done.output
    assert set(load_file(tmp_path / "out/model.safetensors")) - set(
        load_file(saved("llama") / "model.safetensors")
    ) == {"v_head.summary.weight"}
    assert surgery.verify(
        out, base=saved("llama"), adapter=adapter, check_class=False
    ).ok  # the manifest says what was added
    with pytest.raises(SurgeryError, match="adds no tensor"):
        merged(saved("llama"), adapter, add="score.*", except_="v_head.*")


def test_a_pattern_that_adds_nothing_is_an_error(plain: tuple[Path, torch.Tensor], saved: Saved) -> None:
    with pytest.raises(NothingMatched, match=r"`lm_head\.weight` adds no tensor"):
        merged(saved("llama"), plain[0], add="lm_head.weight")


def test_verify_tells_a_stray_tensor(plain: tuple[Path, torch.Tensor], saved: Saved, tmp_path: Path) -> None:
    """A merge of another tool, which added the head under the adapter's name."""
    adapter = stray(plain[0], tmp_path / "a", "language_model.lm_head")
    surgery.write(merged(saved("llama"), adapter, except_="language_model.*"), tmp_path / "out")
    weights = tmp_path / "out/model.safetensors"
    save_file(
        {**load_file(weights), "language_model.lm_head.weight": torch.ones(97, 48)}, weights, metadata={"format": "pt"}
    )
    with pytest.raises(NotPlaced, match=r"language_model\.lm_head\.weight"):
        surgery.verify(tmp_path / "out", base=saved("llama"), adapter=adapter, only=".*", check_class=False)
    found = surgery.verify(
        tmp_path / "out", base=saved("llama"), adapter=adapter, except_="language_model.*", check_class=False
    )
    assert [one.name for one in found.proof.wrong] == ["language_model.lm_head.weight"]


@pytest.mark.parametrize(
    ("family", "kind", "module"),
    [
        ("llama", "LlamaForSequenceClassification", "score"),
        ("llama", "LlamaForTokenClassification", "score"),
        ("gpt2", "GPT2ForTokenClassification", "classifier"),
        ("bert", "BertForTokenClassification", "classifier"),
        ("gpt_neox", "GPTNeoXForQuestionAnswering", "qa_outputs"),
    ],
)
def test_a_head_that_a_class_of_the_type_has_is_new(
    family: str, kind: str, module: str, saved: Saved, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = getattr(tf, kind).from_pretrained(saved(family))
    head = {name for name in model.state_dict() if name.startswith(f"{module}.")}
    name = {"llama": "q_proj", "gpt2": "c_attn", "bert": "query", "gpt_neox": "query_key_value"}[family]
    peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=[name], modules_to_save=[module])).save_pretrained(
        tmp_path / "a"
    )
    got = merged(saved(family), tmp_path / "a")
    new = got.tensors.keys() - surgery.open_checkpoint(saved(family)).tensors.keys()
    assert new == head


def test_the_table_of_heads_is_what_the_classes_have() -> None:
    """On the families whose classes are quick to make, each class with its head and nothing else beside the body."""
    small = {
        "num_hidden_layers": 1,
        "hidden_size": 36,
        "num_attention_heads": 3,
        "vocab_size": 97,
        "intermediate_size": 50,
    }
    for kind in (
        "llama",
        "mistral",
        "qwen2",
        "gemma2",
        "bert",
        "roberta",
        "electra",
        "gpt_neox",
        "gpt2",
        "distilbert",
        "phi3",
        "deberta-v2",
    ):
        config = tf.AutoConfig.for_model(kind, **{**small, "pad_token_id": 0, "num_key_value_heads": 3})
        for name, head in heads_of({"model_type": kind}).items():
            with torch.device("meta"):
                model = getattr(tf, name)(config)
            names = {n for n, _ in model.named_parameters(remove_duplicate=False)}
            bodies = {f"{model.base_model_prefix}.", *({"transformer."} if name.endswith("QuestionAnswering") else ())}
            assert head == {n for n in names if not n.startswith(tuple(bodies))}, name


def test_the_table_names_classes_that_there_are() -> None:
    rows = [row for classes in CLASSES.values() for row in classes.split()]
    assert len(rows) == len(set(rows)) > 700
    assert not [row for row in rows if not hasattr(tf, row.partition("/")[2])]
    assert classes_with({"model_type": "llama"}, "score.weight") == [
        "LlamaForSequenceClassification",
        "LlamaForTokenClassification",
    ]
    assert classes_with({"model_type": "llama"}, "classifier.weight") == classes_with({}, "score.weight") == []


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "module"])
@pytest.mark.parametrize("part", ["model.layers.0", "lm_head"])
def test_wrapped_names_do_not_go_on_into_what_is_written(
    wrapper: str, part: str, saved: Saved, plain: Any, tmp_path: Path
) -> None:
    base, adapter = surgery.open_checkpoint(saved("llama")), called(plain[0], tmp_path / "a", within(part, wrapper))
    opened = surgery.open_adapter(adapter)
    for verb in (
        lambda: surgery.inject_into(base, opened),
        lambda: surgery.split(opened, base=base),
        lambda: surgery.fuse(opened, base=base),
    ):
        with pytest.raises(SurgeryError, match="wrappers that a framework left") as caught:
            verb()
        assert wrapper in str(caught.value) and "merge takes them off" in str(caught.value.help)
    surgery.inject_into(base, surgery.open_adapter(plain[0]))
