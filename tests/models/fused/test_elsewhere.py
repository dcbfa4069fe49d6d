"""Rows of remote code and other frameworks, judged by the forward passes of their sources, written down here in a
few lines.

torch.nn.MultiheadAttention judges itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
from conftest import hashes
from oracle import Case
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

import surgery
from surgery.errors import LayoutError
from surgery.lazy.dtypes import F32
from surgery.lazy.tensor import Zeros
from surgery.models.fused.detect import detect
from surgery.models.fused.given import Given
from surgery.models.fused.layout import sections
from surgery.models.fused.tables.elsewhere import ELSEWHERE

# Rows whose source was read, and is not run here: model type -> why not.
READ_ONLY = {
    "cogvlm": "its attention mixes two projections by token type",
    "cogagent": "as cogvlm",
    "phi3_v": "the class of models/phi3, which the table's row for phi3 is judged by",
    "internlmxcomposer2": "as internlm2, with a LoRA beside",
    "phi-msft": "as mixformer-sequential",
    **dict.fromkeys(("timm:deit", "timm:deit3"), "the class of timm:vit"),
    **dict.fromkeys(("timm:beit", "timm:eva", "timm:eva02"), "as timm:beitv2"),
}

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Cut = Callable[[torch.Tensor, dict[str, Any]], Heads]


class Attention(nn.Module):
    """A fused projection of `rows`, and the lines of a source that make heads of its output: (batch, length, heads,
    head_dim).
    """

    def __init__(self, leaf: str, width: int, rows: int, cut: Cut, config: dict[str, Any], bias: bool) -> None:
        super().__init__()
        self.leaf, self.cut, self.config = leaf, cut, config
        self.add_module(leaf, nn.Linear(width, rows, bias=bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (states.transpose(1, 2) for states in self.cut(self.projected(x), self.config))
        shared = q.shape[1] // k.shape[1]
        return (
            x
            + functional.scaled_dot_product_attention(
                q, k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
            ).mean()
        )

    def projected(self, x: torch.Tensor) -> torch.Tensor:
        return getattr(self, self.leaf)(x)


class BiasedBeside(Attention):
    """timm/models/eva.py EvaAttention.forward with qkv_bias_separate: qkv = self.qkv(x); qkv += cat((q_bias, k_bias,
    v_bias))
    """

    def __init__(self, leaf: str, width: int, rows: int, cut: Cut, config: dict[str, Any], bias: bool) -> None:
        super().__init__(leaf, width, rows, cut, config, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.randn(rows // 3)) for _ in "qv")

    def projected(self, x: torch.Tensor) -> torch.Tensor:
        return super().projected(x) + torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))


class Tiny(nn.Module):
    """Attention modules under the names that they have in a family's files, one after another."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.chain = list(modules.values())
        for path, module in modules.items():
            holder: nn.Module = self
            *parents, leaf = path.split(".")
            for name in parents:
                if name not in holder._modules:
                    holder.add_module(name, nn.Module())
                holder = holder._modules[name]  # type: ignore[assignment]
            holder.add_module(leaf, module)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in self.chain:
            x = module(x)
        return x


# Sources: what each makes of the fused projection's output. B, L are batch and length.


def w_pack(proj: torch.Tensor, c: dict[str, Any]) -> Heads:
    """baichuan-inc/Baichuan-7B models/modeling_baichuan.py Attention.forward"""
    proj = proj.unflatten(-1, (3, c["hidden_size"])).unsqueeze(0).transpose(0, -2).squeeze(-2)
    return tuple(proj[i].view(*proj.shape[1:3], c["num_attention_heads"], -1) for i in range(3))  # type: ignore[return-value]


def qwen(mixed: torch.Tensor, c: dict[str, Any]) -> Heads:
    """Qwen/Qwen-7B-Chat modeling_qwen.py QWenAttention.forward: mixed_x_layer.split(self.split_size, dim=2),
    _split_heads
    """
    return tuple(
        part.view(*part.shape[:-1], c["num_attention_heads"], -1) for part in mixed.split(c["hidden_size"], dim=2)
    )  # type: ignore[return-value]


def internlm2(qkv: torch.Tensor, c: dict[str, Any]) -> Heads:
    """InternLM/InternLM modeling_internlm2.py InternLM2Attention.forward: rearrange 'b q (h gs d) -> b q h gs d'"""
    shared = c["num_attention_heads"] // c["num_key_value_heads"]
    qkv = qkv.unflatten(-1, (c["num_key_value_heads"], 2 + shared, -1))
    return qkv[..., :shared, :].flatten(2, 3), qkv[..., -2, :], qkv[..., -1, :]


def chatglm(mixed: torch.Tensor, c: dict[str, Any]) -> Heads:
    """THUDM/chatglm3-6b modeling_chatglm.py SelfAttention.forward"""
    heads, groups, dim = c["num_attention_heads"], c.get("multi_query_group_num"), c["kv_channels"]
    if c["multi_query_attention"]:
        q, k, v = mixed.split([heads * dim, groups * dim, groups * dim], dim=-1)
        return q.view(*q.shape[:-1], heads, dim), k.view(*k.shape[:-1], groups, dim), v.view(*v.shape[:-1], groups, dim)
    return chatglm1(mixed, c)


def chatglm1(mixed: torch.Tensor, c: dict[str, Any]) -> Heads:
    """THUDM/chatglm-6b modeling_chatglm.py SelfAttention.forward: view (heads, 3 * head_dim),
    split_tensor_along_last_dim 3
    """
    mixed = mixed.view(*mixed.shape[:-1], c["num_attention_heads"], -1)
    return mixed.split(mixed.shape[-1] // 3, dim=-1)  # type: ignore[return-value]


def three_h_d(qkv: torch.Tensor, c: dict[str, Any]) -> Heads:
    """reshape(B, L, 3, heads, -1), in visual.py of THUDM/glm-4v-9b, timm/layers/attention.py Attention.forward and
    others
    """
    q, k, v = qkv.reshape(*qkv.shape[:2], 3, c.get("num_attention_heads", 3), -1).permute(2, 0, 3, 1, 4).unbind(0)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def mixformer(qkv: torch.Tensor, c: dict[str, Any]) -> Heads:
    """microsoft/phi-1_5 modeling_mixformer_sequential.py MHA._forward_self_attn, _forward_cross_attn"""
    heads, groups = c["n_head"], c["n_head_kv"] or c["n_head"]
    dim = c["n_embd"] // heads
    if heads == groups:
        return qkv.unflatten(-1, (3, heads, dim)).unbind(2)  # type: ignore[return-value]
    q, kv = qkv[..., : heads * dim], qkv[..., heads * dim :]
    return q.unflatten(-1, (heads, dim)), *kv.unflatten(-1, (2, groups, dim)).unbind(2)  # type: ignore[return-value]


def phi3small(qkv: torch.Tensor, c: dict[str, Any]) -> Heads:
    """vllm-project/vllm model_executor/models/phi3_small.py Phi3SmallSelfAttention.forward"""
    shared = c["num_attention_heads"] // c["num_key_value_heads"]
    qkv = qkv.view(*qkv.shape[:-1], -1, shared + 2, c["hidden_size"] // c["num_attention_heads"])
    q, k, v = qkv.split([shared, 1, 1], dim=-2)
    return q.flatten(2, 3), k.flatten(2, 3), v.flatten(2, 3)


def openelm(layer: int) -> Cut:
    """apple/corenet corenet/modeling/models/language_modeling/general_gpt.py MultiHeadCausalAttention.forward"""

    def cut(qkv: torch.Tensor, c: dict[str, Any]) -> Heads:
        q, kv, dim = c["num_query_heads"][layer], c["num_kv_heads"][layer], c["head_dim"]
        return qkv.reshape(*qkv.shape[:2], q + kv + kv, dim).split([q, kv, kv], dim=2)  # type: ignore[return-value]

    return cut


def codeshell(qkv: torch.Tensor, c: dict[str, Any]) -> Heads:
    """WisdomShell/CodeShell-7B modeling_codeshell.py CodeShellAttention.forward"""
    dim = c["n_embd"] // c["n_head"]
    width, kv = c["n_embd"], dim * c["num_query_groups"]
    return tuple(part.unflatten(-1, (-1, dim)) for part in qkv.split((width, kv, kv), dim=2))  # type: ignore[return-value]


def mp_num(shares: int) -> Cut:
    """OpenMOSS/MOSS models/modeling_moss.py MossAttention.forward, _split_heads"""

    def cut(qkv: torch.Tensor, c: dict[str, Any]) -> Heads:
        local = c["n_embd"] // shares
        q, v, k = torch.split(qkv.reshape(*qkv.shape[:-1], shares, -1), local, dim=-1)
        dim = c["n_embd"] // c["n_head"]
        return tuple(x.reshape(*x.shape[:-1], c["n_head"] // shares, dim).flatten(2, 3) for x in (q, k, v))  # type: ignore[return-value]

    return cut


QKV = ("q_proj", "k_proj", "v_proj")


def case(
    path: str,
    config: dict[str, Any],
    cut: Cut,
    heads: tuple[int, int, int],
    *,
    dim: int = 12,
    bias: bool = True,
    parts: tuple[str, ...] = QKV,
    order: tuple[int, ...] = (),
    attention: type[Attention] = Attention,
) -> Case:
    """Two layers of a family; `path` is where its fused projection lies."""
    parent, _, leaf = path.rpartition(".")
    width, rows = heads[0] * dim, sum(heads) * dim

    def model() -> nn.Module:
        return Tiny({parent.format(i): attention(leaf, width, rows, cut, config, bias) for i in range(2)})

    return Case(model, lambda: inputs(width), leaf, parts, heads, order=order, save=saver(config))


def inputs(width: int) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(2, 5, width, generator=torch.Generator().manual_seed(1))}


def saver(config: Mapping[str, Any]) -> Callable[[nn.Module, Path], None]:
    def save(model: nn.Module, folder: Path) -> None:
        folder.mkdir(parents=True)
        save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
        if config:
            (folder / "config.json").write_text(json.dumps(config))

    return save


MHA = {"hidden_size": 36, "num_attention_heads": 3}
GQA = {"hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
ELM = {"model_type": "openelm", "model_dim": 48, "num_query_heads": [4, 6], "num_kv_heads": [2, 3], "head_dim": 12}


def openelm_case(layer: int, heads: tuple[int, int, int]) -> Case:
    def model() -> nn.Module:
        rows = [12 * (q + 2 * kv) for q, kv in zip(ELM["num_query_heads"], ELM["num_kv_heads"], strict=True)]  # type: ignore[call-overload]
        path = "transformer.layers.{}.attn"
        return Tiny({path.format(i): Attention("qkv_proj", 48, rows[i], openelm(i), ELM, False) for i in range(2)})

    return Case(model, lambda: inputs(48), f"{layer}.attn.qkv_proj", QKV, heads, save=saver(ELM))


CASES = {
    "baichuan": case("model.layers.{}.self_attn.W_pack", {"model_type": "baichuan", **MHA}, w_pack, (3, 3, 3),
    bias=False),
    "qwen": case("transformer.h.{}.attn.c_attn", {"model_type": "qwen", **MHA, "kv_channels": 12}, qwen, (3, 3, 3)),
    "internlm2": case("model.layers.{}.attention.wqkv", {"model_type": "internlm2", **GQA}, internlm2, (4, 2, 2),
    bias=False),
    "internvl": case(
        "language_model.model.layers.{}.attention.wqkv",
        {"model_type": "internvl_chat", "llm_config": {"model_type": "internlm2", **GQA},
        "vision_config": {"model_type": "intern_vit_6b"}},
        lambda qkv, c: internlm2(qkv, c["llm_config"]),
        (4, 2, 2),
    ),
    "intern_vit_6b": case("encoder.layers.{}.attn.qkv", {"model_type": "intern_vit_6b", **MHA}, three_h_d, (3, 3, 3)),
    "chatglm-groups": case(
        "transformer.encoder.layers.{}.self_attention.query_key_value",
        {"model_type": "chatglm", "num_attention_heads": 4, "multi_query_attention": True, "multi_query_group_num": 2,
        "kv_channels": 12},
        chatglm,
        (4, 2, 2),
    ),
    "chatglm-heads": case(
        "transformer.encoder.layers.{}.self_attention.query_key_value",
        {"model_type": "chatglm", "num_attention_heads": 3, "multi_query_attention": False, "kv_channels": 12},
        chatglm,
        (3, 3, 3),
    ),
    "chatglm-6b": case("transformer.layers.{}.attention.query_key_value", {"model_type": "chatglm", **MHA}, chatglm1,
    (3, 3, 3)),
    "glm-4v": case(
        "transformer.vision.transformer.layers.{}.attention.query_key_value",
        {"model_type": "chatglm", "num_attention_heads": 3, "hidden_size": 48},  # the text model's width
        three_h_d,
        (3, 3, 3),
    ),
    "phi-1": case(
        "layers.{}.mixer.Wqkv", {"model_type": "mixformer-sequential", "n_embd": 36, "n_head": 3, "n_head_kv": None},
        mixformer, (3, 3, 3)
    ),
    "phi-1-groups": case(
        "layers.{}.mixer.Wqkv", {"model_type": "mixformer-sequential", "n_embd": 48, "n_head": 4, "n_head_kv": 2},
        mixformer, (4, 2, 2)
    ),
    "phi3small": case("model.layers.{}.self_attn.query_key_value", {"model_type": "phi3small", **GQA}, phi3small, (4,
    2, 2)),
    "openelm-0": openelm_case(0, (4, 2, 2)),
    "openelm-1": openelm_case(1, (6, 3, 3)),
    "codeshell": case(
        "transformer.h.{}.attn.c_attn", {"model_type": "codeshell", "n_embd": 48, "n_head": 4, "num_query_groups": 2},
        codeshell, (4, 2, 2)
    ),
    "moss": case(
        "transformer.h.{}.attn.qkv_proj",
        {"model_type": "moss", "n_embd": 48, "n_head": 4},
        mp_num(4),
        (4, 4, 4),
        order=(0, 2, 1),
        bias=False,
    ),
    "progen": case(
        "transformer.h.{}.attn.qkv_proj",
        {"model_type": "progen", "n_embd": 48, "n_head": 8},
        mp_num(8),
        (8, 8, 8),
        dim=6,
        order=(0, 2, 1),
        bias=False,
    ),
    "mosaic-bert": case(
        "bert.encoder.layer.{}.attention.self.Wqkv", {"model_type": "bert", **MHA}, three_h_d, (3, 3, 3), parts=("Wq",
        "Wk", "Wv")
    ),
    "timm": case("blocks.{}.attn.qkv", {"architecture": "vit_base_patch16_224", "num_features": 36}, three_h_d, (3, 3,
    3)),
    "timm-beit": case(
        "blocks.{}.attn.qkv", {"architecture": "beitv2_base_patch16_224"}, three_h_d, (3, 3, 3), attention=BiasedBeside
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> oracle.Evidence:
    return oracle.evidence(CASES[request.param], tmp_path_factory.mktemp(request.param))


def test_parts_are_what_reaches_attention(run: oracle.Evidence) -> None:
    oracle.check_parts(run)


def test_another_layout_fails_the_same_comparison(run: oracle.Evidence) -> None:
    oracle.check_controls(run)


def test_fuse_of_split_is_the_checkpoint_file_for_file(run: oracle.Evidence) -> None:
    oracle.check_round_trip(run)


def test_every_row_is_judged_or_said_to_be_read_only() -> None:
    configs = [next(m for m in one.model().modules() if isinstance(m, Attention)).config for one in CASES.values()]
    judged = {section["model_type"] for config in configs for section in sections(config)}
    for row in ELSEWHERE:
        assert set(row.model_types) <= judged | READ_ONLY.keys(), row
    assert not judged & READ_ONLY.keys()


# torch.nn.MultiheadAttention


class SelfAttention(nn.MultiheadAttention):
    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("bias", [True, False])
def test_in_proj_of_torch(bias: bool, tmp_path: Path) -> None:
    """By its name alone; three heads keep torch from its fused kernel, which would hide the operands."""
    made = Case(
        lambda: Tiny(
            {f"visual.resblocks.{i}.attn": SelfAttention(36, 3, bias=bias, batch_first=True) for i in range(2)}
        ),
        lambda: inputs(36),
        "attn",
        QKV,
        (3, 3, 3),
        module=lambda name: f"{name}.in_proj",
        weight="_weight",
        bias="_bias",
        save=saver({}),
    )
    run = oracle.evidence(made, tmp_path)
    oracle.check_parts(run)
    oracle.check_controls(run)
    by_hand = Given(layout="blocked", fused="in_proj")
    surgery.write(surgery.fuse_qkv(surgery.open_checkpoint(run.split), given=by_hand), tmp_path / "fused")
    assert hashes(tmp_path / "fused") == hashes(run.base)


def test_in_proj_of_other_modules_is_left_alone() -> None:
    """A module called in_proj is Mamba's, not torch's parameter; and kdim, vdim have projections of their own."""
    tensors = {
        name: Zeros(F32, (108, 36)) for name in ("mixer.in_proj.weight", "attn.q_proj_weight", "attn.in_proj_bias")
    }
    assert detect({}, tensors) == []


# What only shapes and names judge


def columns(modules: Mapping[str, tuple[int, ...]]) -> dict[str, Zeros]:
    return {f"{module}.weight": Zeros(F32, shape) for module, shape in modules.items()}


def test_cogvlm_has_two_fused_modules_in_one_place() -> None:
    config = {
        "architectures": ["CogVLMForCausalLM"],
        "hidden_size": 64,
        "num_attention_heads": 8,
        "num_multi_query_heads": 2,
    }
    attn = "model.layers.3.self_attn"
    tensors = columns({f"{attn}.{expert}_expert_query_key_value": (96, 64) for expert in ("vision", "language")})
    tensors |= columns({"model.vision.transformer.layers.0.attention.query_key_value": (36, 12)})
    sites = detect(config, tensors)
    assert {site.module: site.layout.lengths for site in sites} == {
        f"{attn}.language_expert_query_key_value": (64, 16, 16),
        f"{attn}.vision_expert_query_key_value": (64, 16, 16),
        "model.vision.transformer.layers.0.attention.query_key_value": (12, 12, 12),
    }
    assert len({part for site in sites for part in site.parts}) == 9


@pytest.mark.parametrize(
    "architecture",
    ["vit_base_patch16_rope_224", "vit_small_patch16_dinov3", "levit_128", "maxvit_tiny_tf_224", "tiny_vit_5m"],
)
def test_timm_families_with_other_attention_are_not_known(architecture: str) -> None:
    """LeViT and TinyViT cut per head, MaxViT by an option of its class, EVA's variants with biases beside: none of
    them by a guess.
    """
    assert (
        detect(
            {"architecture": architecture}, columns({"blocks.0.attn.qkv": (108, 36), "blocks.0.attn.proj": (36, 36)})
        )
        == []
    )


def test_openelm_needs_the_heads_of_each_layer() -> None:
    tensors = columns({f"transformer.layers.{i}.attn.qkv_proj": (96, 48) for i in range(3)})
    with pytest.raises(LayoutError, match=r"config\.json says in num_query_heads nothing of layer 2") as caught:
        detect(ELM, tensors)
    assert caught.value.where == ("transformer.layers.2.attn.qkv_proj",)
    with pytest.raises(LayoutError, match=r"config\.json says num_kv_heads = 0, which is no head count"):
        detect({**ELM, "num_kv_heads": [0, 0, 0], "num_query_heads": [4, 4, 4]}, tensors)


@pytest.mark.parametrize("missing", ["q_bias", "v_bias"])
def test_biases_beside_belong_together(missing: str) -> None:
    tensors = {"blocks.0.attn.qkv.weight": Zeros(F32, (108, 36))} | {
        f"blocks.0.attn.{b}": Zeros(F32, (36,)) for b in ("q_bias", "v_bias")
    }
    del tensors[f"blocks.0.attn.{missing}"]
    with pytest.raises(LayoutError, match=f"without {missing}"):
        detect({"architecture": "beit_base_patch16_224"}, tensors)
