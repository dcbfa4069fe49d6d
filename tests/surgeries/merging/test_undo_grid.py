"""The grid: what adapters can be × what else happens in the same run. What a reversible merge wrote gives the base
back.

Every kind of the closed list is merged as it is, after the base was split, fused, renamed or cast, and before; each
output is unmerged, and every file of the base compared by its hash. Blocks are as small as the case says, so that
tensors this small have many, and weights are of three dtypes in turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import peft
import pytest
import tiny_models
import torch
import transformers as tf
from conftest import hashes
from models.fused import stacks

import surgery
from surgery.evaluation import corrections
from surgery.execution import sidecar
from surgery.surgeries.cast import NAMES

_VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "image_size": 16,
}
_WAVES = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "conv_bias": True,
}
_KERNELS = {"conv_dim": (8, 10), "conv_stride": (2, 2), "conv_kernel": (4, 3), "num_conv_pos_embeddings": 4}
_NET = {"embedding_size": 8, "hidden_sizes": [12, 16], "depths": [1, 1], "layer_type": "bottleneck", "num_labels": 5}
FAMILIES: dict[str, Callable[[], Any]] = {
    **tiny_models.MODELS,
    "mixtral": lambda: stacks.build("mixtral"),
    "resnet": lambda: tf.ResNetForImageClassification(tf.ResNetConfig(**_NET)),
    "wav2vec2": lambda: tf.Wav2Vec2ForCTC(
        tf.Wav2Vec2Config(**_WAVES, **_KERNELS, vocab_size=11, num_conv_pos_embedding_groups=2)
    ),
    "videomae": lambda: tf.VideoMAEForVideoClassification(
        tf.VideoMAEConfig(**_VISION, patch_size=8, num_frames=4, num_labels=5)
    ),
    "siglip": lambda: tf.SiglipVisionModel(tf.SiglipVisionConfig(**_VISION, patch_size=8)),
}
DTYPES = (torch.bfloat16, torch.float32, torch.float16)


@dataclass(frozen=True)
class Case:
    """A family, and each adapter's options: a LoraConfig's, or an AdaLoraConfig's. `ranks`: which AdaLoRA keeps, by
    module's end.
    """

    family: str
    lora: Sequence[Mapping[str, Any]]
    weights: tuple[float, ...] | None = None
    ranks: Mapping[str, Any] = field(default_factory=dict)
    resize: int = 0


def one(family: str, **lora: Any) -> Case:
    return Case(family, [lora])


ALL = "all-linear"
BLOCKS = peft.tuners.lora.BdLoraConfig(target_modules_bd_a=["o_proj"], target_modules_bd_b=["q_proj"], nblocks=2)
QKV = ["q_proj", "k_proj", "v_proj"]
ADA = {"init_r": 6, "target_r": 3, "total_step": 10, "tinit": 1, "tfinal": 1, "lora_alpha": 12}
FEW = {"q_proj": [True, False, True, True, False, False], "layers.1.self_attn.v_proj": [False] * 6}
WAVES = r".*conv_layers\.\d\.conv|.*q_proj"
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
CASES: dict[str, Case] = {
    "LoRA": one("llama", target_modules=ALL),
    "rsLoRA and patterns": one(
        "llama", target_modules=ALL, use_rslora=True, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 7}
    ),
    "alphas that differ in q, k and v": one("llama", target_modules=QKV, alpha_pattern={"q_proj": 3, "v_proj": 7}),
    "ranks and alphas, with biases": one("gpt_neox", target_modules=ALL, lora_bias=True, alpha_pattern={"dense": 3}),
    "DoRA": one("llama", target_modules=ALL, use_dora=True),
    "DoRA of other alphas": one("llama", target_modules=QKV, use_dora=True, alpha_pattern={"q_proj": 3, "v_proj": 7}),
    "Conv1D, all biases": one("gpt2", target_modules=["c_attn", "c_fc"], use_rslora=True, bias="all"),
    "DoRA on Conv1D": one("gpt2", target_modules=["c_attn"], use_dora=True),
    "fused q, k and v": one("phi3", target_modules=["qkv_proj", "down_proj", "gate_up_proj"]),
    "DoRA on fused q, k and v": one("phi3", target_modules=["qkv_proj"], use_dora=True),
    "per head": one("bloom", target_modules=["query_key_value", "dense"], bias="lora_only"),
    "an embedding": one("llama", target_modules=["embed_tokens", "q_proj", "lm_head"]),
    "DoRA on an embedding": one("llama", target_modules=["embed_tokens", "v_proj"], use_dora=True),
    "a tied embedding": one("llama-tied", target_modules=["embed_tokens", "q_proj"]),
    "a tied head that stays tied": one(
        "llama-tied", target_modules=["lm_head", "v_proj"], use_dora=True, ensure_weight_tying=True
    ),
    "saved modules": one("llama-tied", target_modules=["q_proj"], modules_to_save=["lm_head", "norm"]),
    "trained tokens": one("llama", target_modules=["v_proj"], trainable_token_indices=[3, 50]),
    "trained tokens, tied": one("llama-tied", target_modules=["v_proj"], trainable_token_indices=[3, 50]),
    "a resized vocabulary": Case(
        "llama", [{"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}], resize=101
    ),
    "a resized vocabulary, tied": Case("llama-tied", [{"target_modules": ["embed_tokens", "q_proj"]}], resize=101),
    "several adapters": Case(
        "llama", [{"target_modules": ALL}, {"target_modules": ["q_proj", "up_proj"], "r": 3}], (0.7, -1.3)
    ),
    "several kinds": Case(
        "llama", [{"target_modules": QKV}, {**ADA, "target_modules": ["q_proj", "v_proj"]}], (0.7, 2.0)
    ),
    "AdaLoRA": one("llama", **ADA, target_modules=["q_proj", "v_proj"]),
    "AdaLoRA of few ranks": Case("llama", [{**ADA, "target_modules": ["q_proj", "v_proj", "o_proj"]}], ranks=FEW),
    "AdaLoRA on all of q, k and v": one("llama", **ADA, target_modules=QKV),
    "AdaLoRA on Conv1D": one("gpt2", **ADA, target_modules=["c_attn", "attn.c_proj"], fan_in_fan_out=True),
    "AdaLoRA on convolutions": one("resnet", **ADA, target_modules=["convolution"]),
    "AdaLoRA, fused": one("phi3", **ADA, target_modules=["qkv_proj"]),
    "convolutions": one(
        "resnet", target_modules=["convolution", "classifier.1"], rank_pattern={"shortcut.convolution": 2}
    ),
    "DoRA on convolutions": one("resnet", target_modules=["convolution"], use_dora=True),
    "convolutions in one dimension": one("wav2vec2", target_modules=WAVES, lora_bias=True),
    "DoRA on convolutions in one dimension": one("wav2vec2", target_modules=WAVES, use_dora=True),
    "convolutions in three dimensions": one("videomae", target_modules=["projection", "query"], use_dora=True),
    "multihead attention": one("siglip", target_modules=["attention", "q_proj"], rank_pattern={"head.attention": 3}),
    "experts": one("mixtral", target_modules=["q_proj"], target_parameters=EXPERTS),
    "a parameter": one("phi3", target_modules=[], target_parameters=["o_proj.weight"]),
    "layers twice": one("llama", target_modules=["q_proj", "down_proj"], layer_replication=[[0, 2], [1, 3]]),
    "blocks": one("llama", target_modules=["q_proj", "o_proj"], use_bdlora=BLOCKS),
    "BERT": one("bert", target_modules=["query", "value", "dense"], bias="all"),
}

INTO = {f"merge into {dtype}": dtype for dtype in NAMES}
CANNOT = (surgery.NothingMatched, surgery.NotSupported, surgery.LayoutError, surgery.NotPlaced)
Base = surgery.Checkpoint
Adapters = Sequence[surgery.Adapter]
Merge = Callable[[Base, Adapters], Base]
RULES = [
    (r"\blayers\.", "blocks."),
    (r"(^|\.)h\.", r"\1blocks."),
    (r"\bencoder\.", "body."),
    (r"\bdown_proj\b", "w_down"),
]


def renamed(checkpoint: Base) -> Base:
    """Under other names, whatever the names are."""
    return surgery.rename(
        checkpoint, [rule for rule in RULES if any(re.search(rule[0], name) for name in checkpoint.tensors)]
    )


def fused(target: Any, base: Base | None = None) -> Any:
    """With its q, k and v as one: where its type has them apart, too."""
    try:
        return surgery.fuse(target, base=base)
    except surgery.NothingMatched:
        return surgery.fuse(target, ("qkv",), given=surgery.Given("blocked", fused="qkv_proj"), base=base)


RUNS: dict[str, Callable[[Base, Adapters, Merge], Base]] = {
    "merge": lambda base, adapters, merge: merge(base, adapters),
    "split, merge": lambda base, adapters, merge: merge(surgery.split(base), adapters),
    "merge, split": lambda base, adapters, merge: surgery.split(merge(base, adapters)),
    "split, merge, fuse": lambda base, adapters, merge: surgery.fuse(merge(surgery.split(base), adapters)),
    "split all, merge": lambda b, adapters, merge: merge(surgery.split(b), [surgery.split(a,
    base=b) for a in adapters]),
    "fuse, merge": lambda base, adapters, merge: merge(fused(base), adapters),
    "merge, fuse": lambda base, adapters, merge: fused(merge(base, adapters)),
    "fuse all, merge": lambda b, adapters, merge: merge(fused(b), [fused(a, b) for a in adapters]),
    "fuse all, merge, split": lambda b, adapters, merge: surgery.split(
        merge(fused(b), [fused(a, b) for a in adapters]), ("qkv",), given=surgery.Given("blocked",
        pattern=r".*\.qkv_proj")
    ),
    "fuse the adapters, merge": lambda b, adapters, merge: merge(b, [surgery.fuse(a, base=b) for a in adapters]),
    "split, fuse the adapters, merge": lambda b, adapters, merge: merge(
        surgery.split(b), [surgery.fuse(surgery.split(a, base=b), base=b) for a in adapters]
    ),
    "merge, rename": lambda base, adapters, merge: renamed(merge(base, adapters)),
    "merge, convert": lambda base, adapters, merge: surgery.convert(merge(base, adapters), "llama"),
    "convert, merge": lambda base, adapters, merge: merge(surgery.convert(base, "llama"), adapters),
    "merge twice": lambda base, adapters, merge: surgery.merge(merge(base, adapters), list(adapters), again=True),
    **{run: partial(lambda base, adapters, merge, d: merge(base, adapters, dtype=d), d=d) for run, d in INTO.items()},
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[dict[torch.dtype, Path], list[Path]]]:
    """made(case) -> (the base in each dtype, the adapters): the same folders at each call, which nothing writes to."""
    folder = tmp_path_factory.mktemp("grid")

    def get(name: str) -> tuple[dict[torch.dtype, Path], list[Path]]:
        case = CASES[name]
        bases = {dtype: folder / case.family / str(dtype) for dtype in DTYPES}
        if not (folder / case.family).exists():
            for dtype, path in bases.items():
                stacks.random(FAMILIES[case.family]()).to(dtype).save_pretrained(path, max_shard_size="70KB")
                (path / "README.md").write_text("the base's own card")
        adapters = [folder / name / str(i) for i, _ in enumerate(case.lora)]
        if not (folder / name).exists():
            for i, path in enumerate(adapters):
                trained(case, i, path)
        return bases, adapters

    return get


def trained(case: Case, number: int, folder: Path) -> None:
    """An adapter of the case, as PEFT saves it: every tensor random."""
    lora = dict(case.lora[number])
    model = FAMILIES[case.family]()
    if case.resize:
        model.resize_token_embeddings(case.resize)
    config = peft.AdaLoraConfig(**lora) if "init_r" in lora else peft.LoraConfig(**{"r": 4, "lora_alpha": 6, **lora})
    model = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(0.5 + torch.rand(parameter.shape, generator=generator))
            elif parameter.requires_grad:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    if case.ranks:
        names = [
            name.removeprefix("base_model.model.")
            for name, _ in model.named_parameters()
            if name.endswith(".lora_E.default")
        ]
        masks = {
            n: m for n in names for end, m in case.ranks.items() if n.removesuffix(".lora_E.default").endswith(end)
        }
        model.peft_config["default"].rank_pattern = masks
    model.save_pretrained(folder)


def reversibly(
    case: Case, base: Path, adapters: Sequence[Path], run: str, dest: Path, **options: Any
) -> surgery.Report:
    """Carry out the run, reversibly, at `dest`."""
    opened = surgery.open_checkpoint(base)

    def merge(checkpoint: Base, found: Adapters, **more: Any) -> Base:
        return surgery.merge(checkpoint, list(found), case.weights, **more)

    found = RUNS[run](opened, [surgery.open_adapter(path) for path in adapters], merge)
    return surgery.write(surgery.reversible(found, opened), dest, **options)


def check_comes_back(merged: Path, base: Path, dest: Path) -> None:
    """`verify` says that the base can be restored, and it is, every file of it."""
    found = {check.name: check for check in surgery.verify(merged, check_class=False, check_all=True).checks}
    assert found["undo record"].ok, found["undo record"]
    surgery.write(surgery.unmerge(surgery.open_checkpoint(merged)), dest)
    assert hashes(dest) == hashes(base)


Made = Callable[[str], tuple[dict[torch.dtype, Path], list[Path]]]


@pytest.mark.parametrize("name", CASES)
def test_the_base_comes_back(name: str, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After every run that the kind and its base can have; some cannot be split, fused or converted."""
    case, (bases, adapters) = CASES[name], made(name)
    done = []
    for number, run in enumerate(RUNS):
        monkeypatch.setattr(corrections, "BLOCK", (1 << 20, 700, 64 * 48)[number % 3])
        base, dest = bases[DTYPES[(number + len(name)) % 3]], tmp_path / str(number)
        try:
            reversibly(case, base, adapters, run, dest / "merged")
        except CANNOT as error:
            assert run not in ("merge", "merge, rename", *INTO), error
            continue
        check_comes_back(dest / "merged", base, dest / "out")
        done.append(run)
    assert len(done) > 5, done


def test_a_record_that_restores_nothing_is_never_published(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was recorded is read before the shard gets its name: here corrections are lost on their way to the disk."""
    (bases, adapters), dest = made("LoRA"), tmp_path / "merged"
    monkeypatch.setattr(sidecar, "difference", lambda *_: b"")
    with pytest.raises(surgery.VerificationFailed, match="would not give the base back"):
        reversibly(CASES["LoRA"], bases[torch.bfloat16], adapters, "merge", dest)
    assert not dest.exists()
    monkeypatch.undo()
    reversibly(CASES["LoRA"], bases[torch.bfloat16], adapters, "merge", dest)
    check_comes_back(dest, bases[torch.bfloat16], tmp_path / "out")


@pytest.mark.parametrize("check_all", [False, True])
def test_a_single_bad_block_is_found_by_check_all(
    check_all: bool, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block of each tensor is replayed by default: this one is another."""
    (bases, adapters), dest = made("LoRA"), tmp_path / "merged"
    monkeypatch.setattr(corrections, "BLOCK", 48 * 64)
    real = sidecar.SidecarFile.record

    def record(self: Any, kept: Any, start: int, stop: int, work: Any) -> None:
        real(self, kept, start, stop, work)
        last = max(self._frames)
        if (
            kept.predicted is not None
            and kept.original.shape == (80, 48)
            and last[1] == 1 - crc32(names(self)[kept.number].encode()) % 2
        ):
            at, size, digest = self._frames[last]
            self._frames[last] = at, size, bytes(len(digest))

    def names(self: Any) -> list[str]:
        return list(json.loads(self.plan.recipe)["tensors"])

    monkeypatch.setattr(sidecar.SidecarFile, "record", record)
    if check_all:
        with pytest.raises(surgery.VerificationFailed, match="would not give the base back"):
            reversibly(CASES["LoRA"], bases[torch.bfloat16], adapters, "merge", dest, check_all=True, workers=1)
        assert not dest.exists()
        return
    reversibly(CASES["LoRA"], bases[torch.bfloat16], adapters, "merge", dest, workers=1)
    sampled, every = (
        {c.name: c for c in surgery.verify(dest, check_class=False, check_all=one).checks}["undo record"]
        for one in (False, True)
    )
    assert sampled.ok and "a block of each was replayed" in sampled.detail
    assert every.ok is False and "cannot be restored" in every.detail and any("proj" in row for row in every.where)
