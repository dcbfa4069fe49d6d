"""Splitting against the models themselves: the parts are the q, k and v that a model hands to its own attention call.

The oracle knows no layout: it records what the modeling code makes of the fused projection's output, with rotary
embeddings turned off, and compares that with what the parts of the written checkpoint compute from the same input.
"""

from __future__ import annotations

import importlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import tiny_models
import torch
import transformers as tf
from conftest import hashes
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

import surgery
from surgery.errors import LayoutError, NothingMatched, NotSupported, PlanError, SurgeryError
from surgery.evaluation.evaluate import load
from surgery.files.safetensors import read_header, tensors_of
from surgery.lazy.dtypes import F32
from surgery.lazy.tensor import Tensor, Zeros
from surgery.models.fused.detect import detect
from surgery.models.fused.layout import HEADS, WIDTH, Layout, fuse_axis, split_axis

VARIANTS = {
    # heads * head_dim != hidden_size, so that the projections are not square
    "phi3-wide": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**tiny_models._LLAMA, head_dim=10)),
    "gpt_neox-bare": lambda: tf.GPTNeoXForCausalLM(
        tf.GPTNeoXConfig(
            **tiny_models.TEXT,
            hidden_size=36,
            intermediate_size=70,
            num_hidden_layers=2,
            num_attention_heads=3,
            attention_bias=False,
        )
    ),
}


@dataclass(frozen=True)
class Case:
    """A family as the oracle meets it: its modeling module, fused projections and parts, and two things the names do
    not tell.
    """

    modeling: str
    fused: str  # last name of the fused module
    parts: tuple[str, str, str]
    sizes: tuple[int, int, int]  # heads of q, heads of k and v, head_dim
    per_head: bool = False  # for the byte oracle: (heads, 3, head_dim) instead of [q | k | v]
    axis: int = 0


PHI3 = Case("phi3", "qkv_proj", ("q_proj", "k_proj", "v_proj"), (4, 2, 12))
NEOX = Case("gpt_neox", "query_key_value", ("query", "key", "value"), (3, 3, 12), per_head=True)
CASES = {
    "phi3": PHI3,
    "phi3-wide": replace(PHI3, sizes=(4, 2, 10)),
    "sam": Case("sam", "qkv", ("q", "k", "v"), (3, 3, 12)),
    "gpt2": Case("gpt2", "c_attn", ("q_attn", "k_attn", "v_attn"), (3, 3, 12), axis=1),
    "gpt_neox": NEOX,
    "gpt_neox-bare": NEOX,
    "bloom": Case("bloom", "query_key_value", ("query", "key", "value"), (3, 3, 12), per_head=True),
}


@dataclass
class Call:
    """One attention call: the fused projection's name and input, and q, k, v as (batch, heads, length, head_dim)."""

    module: str
    hidden: torch.Tensor
    states: list[torch.Tensor] = field(default_factory=list)


class Recorder(TorchFunctionMode):
    """Records the operands of the attention arithmetic of modules that call no attention function: BLOOM's and
    SAM's.
    """

    def __init__(self, calls: list[Call], heads: int) -> None:
        super().__init__()
        self.calls, self.heads = calls, heads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        match getattr(func, "__name__", ""):
            case "scaled_dot_product_attention" if self.calls and not self.calls[-1].states:
                self.calls[-1].states += args[:3]
            case "baddbmm":  # alibi.baddbmm(q, k transposed)
                self.calls[-1].states += [self._heads(kwargs["batch1"]), self._heads(kwargs["batch2"].transpose(1, 2))]
            case "bmm" if self.calls and len(self.calls[-1].states) == 2:  # bmm(probabilities, v)
                self.calls[-1].states.append(self._heads(args[1]))
        return func(*args, **kwargs)

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(0, (-1, self.heads))


@contextmanager
def recorded(model: Any, case: Case) -> Iterator[list[Call]]:
    """The attention calls of the model's forward passes, in order."""
    modeling = importlib.import_module(f"transformers.models.{case.modeling}.modeling_{case.modeling}")
    calls: list[Call] = []

    def entered(name: str) -> Callable[..., None]:
        return lambda module, args: calls.append(Call(name, args[0].detach()))

    class Attention:
        @staticmethod
        def get_interface(*_: Any) -> Callable[..., Any]:
            def record(
                module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
            ) -> Any:
                calls[-1].states = calls[-1].states or [
                    query,
                    key,
                    value,
                ]  # SAM's mask decoder calls it too, without a fused input
                return modeling.eager_attention_forward(module, query, key, value, *args, **kwargs)

            return record

    hooks = [
        m.register_forward_pre_hook(entered(n)) for n, m in model.named_modules() if n.rpartition(".")[2] == case.fused
    ]
    assert hooks
    try:
        with Recorder(calls, case.sizes[0]), patch.multiple(modeling, create=True, **_patches(modeling, Attention)):
            yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _patches(modeling: Any, attention: Any) -> dict[str, Any]:
    """Rotary embeddings made the identity, and the attention function recorded, where the modeling module has them."""
    new = {"ALL_ATTENTION_FUNCTIONS": attention, "apply_rotary_pos_emb": lambda q, k, *_, **__: (q, k)}
    return {name: value for name, value in new.items() if hasattr(modeling, name)} or {"_": None}


@pytest.fixture(scope="module")
def oracle(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], tuple[Path, dict[str, torch.Tensor], list[Call]]]:
    """oracle(case) -> the checkpoint's folder, the tensors of its split as written, the model's attention calls."""
    made: dict[str, tuple[Path, dict[str, torch.Tensor], list[Call]]] = {}

    def get(name: str) -> tuple[Path, dict[str, torch.Tensor], list[Call]]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            with patch.dict(tiny_models.MODELS, VARIANTS):
                model = tiny_models.build(name)
            model.save_pretrained(folder / "base")
            surgery.write(surgery.split_qkv(surgery.open_checkpoint(folder / "base")), folder / "split")
            with torch.no_grad(), recorded(model, CASES[name]) as calls:
                model(**tiny_models.inputs(name), **({} if name == "sam" else {"use_cache": False}))
            made[name] = folder / "base", tensors_in(folder / "split"), calls
        return made[name]

    return get


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint's folder, read by safetensors."""
    return {n: t for file in sorted(folder.glob("*.safetensors")) for n, t in load_file(file).items()}


def compare_states(call: Call, parts: list[tuple[torch.Tensor, torch.Tensor | None]], case: Case) -> None:
    """The parts (weight, bias) map the fused projection's input to the states of the model's own attention call."""
    assert len(call.states) == len(parts) == 3
    hidden = call.hidden.reshape(call.states[0].shape[0], -1, call.hidden.shape[-1])
    for (weight, bias), state in zip(parts, call.states, strict=True):
        made = torch.nn.functional.linear(hidden, weight.T if case.axis else weight, bias)
        assert made.shape[-1] == state.shape[1] * state.shape[3]
        made = made.unflatten(-1, (state.shape[1], -1)).transpose(1, 2)
        assert (made - state).abs().max() < 1e-5


def named(call: Call, tensors: dict[str, torch.Tensor], case: Case) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """The written parts of a call's fused projection."""
    stem = next(
        n for n in tensors if n.endswith(f"{call.module.rpartition('.')[0]}.{case.parts[0]}.weight")
    ).rpartition(".")[0]
    stems = [f"{stem.rpartition('.')[0]}.{part}" for part in case.parts]
    return [(tensors[f"{s}.weight"], tensors.get(f"{s}.bias")) for s in stems]


@pytest.mark.parametrize("name", CASES)
def test_parts_are_what_reaches_attention(name: str, oracle: Callable[..., Any]) -> None:
    base, tensors, calls = oracle(name)
    config = json.loads((base / "config.json").read_text())
    layers = config.get("vision_config", config).get("num_hidden_layers") or config.get("n_layer")
    assert len(calls) == layers
    for call in calls:
        compare_states(call, named(call, tensors, CASES[name]), CASES[name])


# Layouts of the same number of rows that are not the family's, in the order q, k, v of the result.
WRONG: dict[str, list[tuple[str, Layout, tuple[int, int, int]]]] = {
    "phi3": [
        ("grouped instead of blocked", Layout(2, (2, 1, 1), 12), (0, 1, 2)),
        ("k and v swapped", Layout(1, (4, 2, 2), 12), (0, 2, 1)),
        ("as many heads of k and v as of q", Layout(1, (1, 1, 1), 32), (0, 1, 2)),
        ("kv heads first", Layout(1, (2, 4, 2), 12), (1, 0, 2)),
    ],
    "phi3-wide": [
        ("grouped instead of blocked", Layout(2, (2, 1, 1), 10), (0, 1, 2)),
        ("per element", Layout(20, (2, 1, 1), 1), (0, 1, 2)),
    ],
    "sam": [
        ("per head instead of blocked", Layout(3, (1, 1, 1), 12), (0, 1, 2)),
        ("k and v swapped", Layout(1, (1, 1, 1), 36), (0, 2, 1)),
    ],
    "gpt2": [
        ("per head instead of blocked", Layout(3, (1, 1, 1), 12), (0, 1, 2)),
        ("k and v swapped", Layout(1, (1, 1, 1), 36), (0, 2, 1)),
    ],
    "gpt_neox": [
        ("blocked instead of per head", Layout(1, (3, 3, 3), 12), (0, 1, 2)),
        ("k and v swapped", Layout(3, (1, 1, 1), 12), (0, 2, 1)),
        ("per element", Layout(36, (1, 1, 1), 1), (0, 1, 2)),
        ("of another head count", Layout(4, (1, 1, 1), 9), (0, 1, 2)),
    ],
    "bloom": [
        ("blocked instead of per head", Layout(1, (3, 3, 3), 12), (0, 1, 2)),
        ("q and k swapped", Layout(3, (1, 1, 1), 12), (1, 0, 2)),
    ],
}


@pytest.mark.parametrize(
    ("name", "layout", "order"),
    [pytest.param(n, layout, order, id=f"{n}: {what}") for n, rows in WRONG.items() for what, layout, order in rows],
)
def test_another_layout_fails_the_same_comparison(
    name: str, layout: Layout, order: tuple[int, ...], oracle: Callable[..., Any]
) -> None:
    """The oracle tells layouts apart: none of these loads with an error, and each of them is wrong."""
    base, _, calls = oracle(name)
    case, checkpoint = CASES[name], surgery.open_checkpoint(base)

    def parts(tensor: str, axis: int) -> list[torch.Tensor]:
        made = [load(p) for p in split_axis(checkpoint[tensor], axis, layout)]
        return [made[i] for i in order]

    with pytest.raises(AssertionError):
        for call in calls:
            weight = next(n for n in checkpoint.tensors if n.endswith(f"{call.module}.weight"))
            bias = weight.removesuffix("weight") + "bias"
            biases = parts(bias, 0) if bias in checkpoint.tensors else [None] * 3
            compare_states(call, list(zip(parts(weight, case.axis), biases, strict=True)), case)


def rows_of(fused: torch.Tensor, case: Case) -> list[torch.Tensor]:
    """The parts of a fused weight or bias, cut by torch as the modeling code views it."""
    axis = case.axis if fused.dim() > 1 else 0
    heads, kv_heads, head_dim = case.sizes
    if case.per_head:
        grouped = fused.unflatten(axis, (heads, 3, head_dim))
        return [grouped.select(axis + 1, i).flatten(axis, axis + 1) for i in range(3)]
    return list(fused.split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim], axis))


def bytes_of(tensor: torch.Tensor) -> bytes:
    """The tensor's bytes in row-major order."""
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_parts_are_the_fused_bytes(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Weights and biases, bit for bit; every other tensor and file is untouched."""
    case = CASES[name]
    with patch.dict(tiny_models.MODELS, VARIANTS):
        model = tiny_models.build(name, dtype=dtype)
    model.save_pretrained(tmp_path / "base")
    surgery.write(surgery.split_qkv(surgery.open_checkpoint(tmp_path / "base")), tmp_path / "split")
    before, after = tensors_in(tmp_path / "base"), tensors_in(tmp_path / "split")
    fused = [n for n in before if n.rpartition(".")[0].rpartition(".")[2] == case.fused]
    assert len(fused) >= 2 and {n.rpartition(".")[2] for n in fused} == (
        {"weight"} if name[:4] == "phi3" or "bare" in name else {"weight", "bias"}
    )
    for tensor in fused:
        stem, _, suffix = tensor.rpartition(".")
        for part, rows in zip(case.parts, rows_of(before.pop(tensor), case), strict=True):
            made = after.pop(f"{stem.rpartition('.')[0]}.{part}.{suffix}")
            assert made.dtype == dtype and made.shape == rows.shape
            assert bytes_of(made) == bytes_of(rows)
    assert {n: bytes_of(t) for n, t in before.items()} == {n: bytes_of(t) for n, t in after.items()}
    weights = ("model.safetensors", ".surgery")
    assert hashes(tmp_path / "base", without=weights) == hashes(tmp_path / "split", without=weights)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that tests store random tensors in, one after another."""
    return tmp_path_factory.mktemp("pool") / "x.safetensors"


DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool)


@settings(max_examples=300, deadline=None)
@given(
    groups=st.integers(1, 5),
    slots=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    head_dim=st.integers(1, 5),
    lead=st.lists(st.integers(1, 4), max_size=2),
    tail=st.lists(st.integers(1, 4), max_size=2),
    dtype=st.sampled_from(DTYPES),
)
def test_fuse_inverts_split(
    pool: Path, groups: int, slots: list[int], head_dim: int, lead: list[int], tail: list[int], dtype: torch.dtype
) -> None:
    """fuse_axis(split_axis(x)) is x, and each part is the rows of its slots, for any groups, slots, axis and shape."""
    layout, axis = Layout(groups, tuple(slots), head_dim), len(lead)
    shape = (*lead, layout.length, *tail)
    real = torch.randint(0, 256, (math.prod(shape) * dtype.itemsize,), dtype=torch.uint8)
    real = (real % 2).view(dtype).view(shape) if dtype == torch.bool else real.view(dtype).view(shape)
    save_file({"x": real}, pool)
    lazy: Tensor = tensors_of(*read_header(str(pool)))["x"]
    parts = split_axis(lazy, axis, layout)
    grouped = real.unflatten(axis, (groups, sum(slots), head_dim))
    for i, part in enumerate(parts):
        rows = grouped.narrow(axis + 1, sum(slots[:i]), slots[i]).flatten(axis, axis + 2)
        assert part.shape == rows.shape
        assert bytes_of(load(part)) == bytes_of(rows)
    assert bytes_of(load(fuse_axis(parts, axis, layout))) == bytes_of(real)


# Refusals


def edited(
    folder: Path,
    dest: Path,
    config: Callable[[dict[str, Any]], Any] | None = None,
    tensors: Callable[[dict[str, torch.Tensor]], Any] | None = None,
) -> Path:
    """A copy of a checkpoint of one shard, with config.json and tensors changed in place by the functions."""
    shutil.copytree(folder, dest)
    if config:
        content = json.loads((dest / "config.json").read_text())
        config(content)
        (dest / "config.json").write_text(json.dumps(content))
    if tensors:
        weights = load_file(dest / "model.safetensors")
        tensors(weights)
        save_file(weights, dest / "model.safetensors", metadata={"format": "pt"})
    return dest


def check_refused(base: Path, kind: type[SurgeryError], what: str, *more: str) -> None:
    """Splitting raises `kind` with this text, `more` in where or help, and writes nothing."""
    before = hashes(base.parent)
    with pytest.raises(kind) as caught:
        surgery.write(surgery.split_qkv(surgery.open_checkpoint(base)), base.parent / "out")
    assert type(caught.value) is kind
    assert caught.value.what == what
    for text in more:
        assert text in str(caught.value)
    assert hashes(base.parent) == before
    assert sorted(p.name for p in base.parent.iterdir()) == [base.name]


def test_refuses_unknown_model_types(saved: Callable[..., Path], tmp_path: Path) -> None:
    base = edited(saved("llama"), tmp_path / "base")
    check_refused(
        base,
        NothingMatched,
        "nothing is fused here: model type `llama` has its parts apart",
        "model types are known to have such modules",
    )


def test_refuses_without_config(saved: Callable[..., Path], tmp_path: Path) -> None:
    base = edited(saved("phi3"), tmp_path / "base")
    (base / "config.json").unlink()
    what = (
        "without a model type in config.json the layout is not known, and more than one would fit what is called"
        " qkv_proj"
    )
    check_refused(
        base,
        LayoutError,
        what,
        "put the model's config.json beside the shards, or say which with --layout blocked or grouped",
    )


@pytest.mark.parametrize("name", ["phi3", "sam", "gpt2", "gpt_neox", "bloom"])
def test_refuses_what_is_split(name: str, saved: Callable[..., Path], tmp_path: Path) -> None:
    surgery.write(surgery.split_qkv(surgery.open_checkpoint(saved(name))), tmp_path / "base")
    check_refused(
        tmp_path / "base", NothingMatched, "the checkpoint is already split", f"it has {', '.join(CASES[name].parts)}"
    )


def test_refuses_a_family_without_its_projections(saved: Callable[..., Path], tmp_path: Path) -> None:
    base = edited(saved("llama"), tmp_path / "base", config=lambda c: c.update(model_type="gpt_neox"))
    check_refused(
        base,
        NothingMatched,
        "no fused qkv of model type `gpt_neox` is here",
        "its names would match",
        "query_key_value",
    )


@pytest.mark.parametrize(
    ("name", "fields", "missing"),
    [
        ("phi3", ("num_attention_heads",), HEADS),
        ("phi3", ("hidden_size", "head_dim"), WIDTH),
        ("gpt2", ("n_embd", "hidden_size"), ("n_embd", "hidden_size")),
        ("gpt_neox", ("num_attention_heads",), HEADS),
        ("bloom", ("n_head", "num_attention_heads"), ("n_head", "num_attention_heads")),
        ("sam", ("hidden_size",), ("hidden_size",)),
    ],
)
def test_refuses_missing_sizes(
    name: str, fields: tuple[str, ...], missing: tuple[str, ...], saved: Callable[..., Path], tmp_path: Path
) -> None:
    def without(config: dict[str, Any]) -> None:
        for key in fields:
            config.get("vision_config", config).pop(key, None)

    base = edited(saved(name), tmp_path / "base", config=without)
    kind = "sam_vision_model" if name == "sam" else name
    check_refused(
        base,
        LayoutError,
        f"config.json has none of {', '.join(missing)}",
        f"model type '{kind}'",
        "complete config.json",
    )


@pytest.mark.parametrize(
    ("name", "change", "rows"),
    [
        ("phi3", {"num_key_value_heads": 4}, "(96, 48) along axis 0 is not 144"),
        ("gpt2", {"n_embd": 37}, "(36, 108) along axis 1 is not 111"),
        ("bloom", {"hidden_size": 39}, "(108, 36) along axis 0 is not 117"),
    ],
)
def test_refuses_rows_that_do_not_fit(
    name: str, change: dict[str, int], rows: str, saved: Callable[..., Path], tmp_path: Path
) -> None:
    base = edited(saved(name), tmp_path / "base", config=lambda c: c.update(change))
    what = f"the fused qkv does not fit the layout of model type `{name}`"
    check_refused(
        base, LayoutError, what, rows, "model.safetensors: ", f"{CASES[name].fused}.weight", "contradict each other"
    )


def test_refuses_heads_that_do_not_divide(saved: Callable[..., Path], tmp_path: Path) -> None:
    base = edited(saved("gpt_neox"), tmp_path / "base", config=lambda c: c.update(num_attention_heads=5))
    check_refused(base, LayoutError, "36 is not a multiple of 5 heads", "config.json")


def test_refuses_one_missing_bias(saved: Callable[..., Path], tmp_path: Path) -> None:
    name = "gpt_neox.layers.1.attention.query_key_value"
    base = edited(saved("gpt_neox"), tmp_path / "base", tensors=lambda t: t.pop(f"{name}.bias"))
    check_refused(
        base,
        LayoutError,
        "some fused projections have a bias, and some have none",
        f"without: {name}",
        "fetch it again",
    )


@pytest.mark.parametrize(
    ("suffix", "instead"),
    [("weight_scale", False), ("weight.absmax", False), ("qweight", True), ("weight_packed", True)],
)
def test_refuses_quantised_companions(suffix: str, instead: bool, saved: Callable[..., Path], tmp_path: Path) -> None:
    """A scale beside the weight, or packed weights in its place: never cut one without the other."""
    name = "model.layers.{}.self_attn.qkv_proj"

    def quantise(tensors: dict[str, torch.Tensor]) -> None:
        for layer in range(3):
            weight = tensors.pop(name.format(layer) + ".weight")
            tensors |= {f"{name.format(layer)}.{suffix}": torch.ones(4)} | (
                {} if instead else {name.format(layer) + ".weight": weight}
            )

    base = edited(saved("phi3"), tmp_path / "base", tensors=quantise)
    what = "3 tensors belong to fused projections, and are neither weight nor bias: are these quantised?"
    check_refused(
        base, NotSupported, what, f"model.safetensors: {name.format(0)}.{suffix}", "take the unquantised checkpoint"
    )


def test_refuses_names_that_are_taken(saved: Callable[..., Path], tmp_path: Path) -> None:
    taken = "model.layers.2.self_attn.k_proj.weight"
    base = edited(saved("phi3"), tmp_path / "base", tensors=lambda t: t.update({taken: torch.ones(3)}))
    check_refused(
        base,
        PlanError,
        "a part would take the name of another tensor",
        f"model.layers.2.self_attn.qkv_proj.weight -> {taken}",
    )


# Configs as they are found


@pytest.mark.parametrize("kind", ["", None])
def test_nested_configs_without_a_type(kind: str | None, saved: Callable[..., Path], tmp_path: Path) -> None:
    """Early SAM checkpoints give their nested configs no type: it is still the vision tower's sizes that count."""

    def untyped(config: dict[str, Any]) -> None:
        for key in ("vision_config", "mask_decoder_config", "prompt_encoder_config"):
            config[key] = {k: v for k, v in config[key].items() if k != "model_type"} | (
                {} if kind is None else {"model_type": kind}
            )

    base = edited(saved("sam"), tmp_path / "base", config=untyped)
    surgery.write(surgery.split_qkv(surgery.open_checkpoint(base)), tmp_path / "split")
    surgery.write(surgery.split_qkv(surgery.open_checkpoint(saved("sam"))), tmp_path / "known")
    assert (tmp_path / "split/model.safetensors").read_bytes() == (tmp_path / "known/model.safetensors").read_bytes()


def columns(modules: list[str], shape: tuple[int, ...]) -> dict[str, Tensor]:
    """A weight of `shape` for each module."""
    return {f"{module}.weight": Zeros(F32, shape) for module in modules}


def test_decoys_are_left_alone() -> None:
    """Modules that only look fused: other places' qkv are not the table's."""
    config = {"model_type": "gpt2", "n_embd": 36}
    modules = ["transformer.h.0.attn.c_attn", "transformer.h.0.mlp.c_attn", "transformer.h.0.attn.c_proj", "c_attn"]
    assert [site.module for site in detect(config, columns(modules, (36, 108)))] == ["transformer.h.0.attn.c_attn"]
    phi3 = {"model_type": "phi3", "num_attention_heads": 4, "hidden_size": 48}
    decoys = [
        "model.vision.layers.0.attn.qkv",
        "xlayers.0.self_attn.qkv_proj",
        "model.layers.0.self_attn.qkv_proj.base",
    ]
    assert not detect(phi3, columns(decoys, (144, 48)))
