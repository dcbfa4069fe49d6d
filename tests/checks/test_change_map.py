"""Where what changed: each value against torch on whole tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import surgery
from surgery.checks.change_map import Cell, Place, place_of
from surgery.checks.shard_map import kind_of
from surgery.pictures.measures import BY_KEY

pytestmark = pytest.mark.usefixtures("one_thread")
ATTENTION = {"q_proj": (40, 48), "k_proj": (20, 48), "v_proj": (20, 48), "o_proj": (48, 40)}
MLP = {"gate_proj": (80, 48), "up_proj": (80, 48), "down_proj": (48, 80)}
SHAPES = {f"self_attn.{n}": s for n, s in ATTENTION.items()} | {f"mlp.{n}": s for n, s in MLP.items()}


def lora(folder: Path, shapes: dict[str, tuple[int, int]], *, spread: float, rank: int = 4, dora: bool = False) -> Path:
    """LoRA on these modules of three layers, alpha = 2 r."""
    torch.manual_seed(5)
    tensors = {}
    for layer in range(3):
        for module, (out, into) in shapes.items():
            at = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{at}.lora_A.weight"] = torch.randn(rank, into)
            tensors[f"{at}.lora_B.weight"] = torch.randn(out, rank) * spread
            if dora:
                tensors[f"{at}.lora_magnitude_vector"] = torch.rand(out) + 0.5
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": [*shapes], "use_dora": dora}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def factors(adapter: Path, layer: int, module: str) -> torch.Tensor:
    held = load_file(adapter / "adapter_model.safetensors")
    at = f"base_model.model.model.layers.{layer}.{module}"
    return held[f"{at}.lora_B.weight"].double() @ held[f"{at}.lora_A.weight"].double() * 2


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for shard in folder.glob("*.safetensors") for name, value in load_file(shard).items()}


def participation(delta: torch.Tensor) -> float:
    squares = torch.linalg.svdvals(delta.double()).square()
    return float(squares.sum() ** 2 / squares.square().sum())


@pytest.mark.parametrize(("dtype", "spread"), [(torch.bfloat16, 1e-5), (torch.bfloat16, 0.1), (torch.float32, 0.01)])
@pytest.mark.parametrize("made", [False, True])
def test_a_merge_is_told_as_torch_has_it(
    saved: Callable[..., Path], tmp_path: Path, dtype: torch.dtype, spread: float, made: bool
) -> None:
    """Before it is made, the change is what the adapter adds, in full precision; once it is, what is there."""
    base, adapter = saved("llama", dtype=dtype), lora(tmp_path / "adapter", SHAPES, spread=spread)
    merged = None
    if made:
        merged = tmp_path / "merged"
        surgery.write(surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter)), merged)
    found = surgery.map_changes(base, merged, adapter=adapter)
    before = stored(base)
    assert found.stacks == ("model.layers",) and found.layers("model.layers") == [0, 1, 2]
    assert set(found.modules("model.layers")) == set(SHAPES) and not found.outside
    for layer in range(3):
        for module in SHAPES:
            cell = found.cells[Place("model.layers", layer, module)]
            w = before[f"model.layers.{layer}.{module}.weight"]
            e = (w.float() + factors(adapter, layer, module).float()).double()
            r = e.to(dtype).double()
            w = w.double()
            delta = (r if made else e) - w
            assert cell.relative is not None and math.isclose(
                cell.relative, float(delta.norm() / w.norm()), rel_tol=1e-3
            )
            assert cell.changed is not None and math.isclose(
                cell.changed, float((r != w).double().mean()), abs_tol=2e-3
            )
            erased = float(((e != w) & (r == w)).sum() / (e != w).sum())
            assert cell.erased is not None and math.isclose(cell.erased, erased, abs_tol=2e-3)
            if float(delta.norm()):
                assert cell.rank is not None and math.isclose(cell.rank, participation(delta), rel_tol=1e-2)
            if not made:
                assert cell.rank is not None and 1 <= cell.rank <= 4
    if dtype == torch.bfloat16 and spread == 1e-5:
        assert all((cell.erased or 0) > 0.5 for cell in found.cells.values())


def test_rows_of_a_fused_tensor(saved: Callable[..., Path], tmp_path: Path) -> None:
    """An adapter on q and v changes their rows of qkv, and no others."""
    base = saved("phi3")
    adapter = lora(tmp_path / "adapter", {"self_attn.q_proj": (48, 48), "self_attn.v_proj": (24, 48)}, spread=0.1)
    found = surgery.map_changes(base, adapter=adapter)
    assert found.modules("model.layers") == ["self_attn.qkv_proj"]
    for layer in range(3):
        w = stored(base)[f"model.layers.{layer}.self_attn.qkv_proj.weight"].double()
        q, v = (factors(adapter, layer, f"self_attn.{n}_proj") for n in "qv")
        delta = torch.cat([q, torch.zeros(24, 48, dtype=torch.float64), v])
        cell = found.cells[Place("model.layers", layer, "self_attn.qkv_proj")]
        assert cell.relative is not None and math.isclose(cell.relative, float(delta.norm() / w.norm()), rel_tol=1e-4)
        assert cell.changed is not None and math.isclose(cell.changed, 72 / 96, abs_tol=5e-3)
        assert cell.rank is not None and math.isclose(cell.rank, participation(delta), rel_tol=1e-3)


def test_dora_is_no_thin_product(saved: Callable[..., Path], tmp_path: Path) -> None:
    base = saved("llama")
    adapter = lora(tmp_path / "adapter", {"self_attn.q_proj": (40, 48)}, spread=0.002, dora=True)
    magnitude = load_file(adapter / "adapter_model.safetensors")
    found = surgery.map_changes(base, adapter=adapter)
    for layer in range(3):
        w = stored(base)[f"model.layers.{layer}.self_attn.q_proj.weight"].double()
        turned = w + factors(adapter, layer, "self_attn.q_proj")
        m = magnitude[f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_magnitude_vector"].double()
        delta = m[:, None] * turned / turned.norm(dim=1, keepdim=True) - w
        cell = found.cells[Place("model.layers", layer, "self_attn.q_proj")]
        assert cell.relative is not None and math.isclose(cell.relative, float(delta.norm() / w.norm()), rel_tol=1e-4)
        assert cell.rank is not None and math.isclose(cell.rank, participation(delta), rel_tol=1e-3)
        assert cell.rank > 4


def test_what_rounding_took_back_whole_is_shown(saved: Callable[..., Path], tmp_path: Path) -> None:
    """Nothing of the merge arrived: no change, and all of it erased."""
    base = saved("llama", dtype=torch.bfloat16)
    adapter = lora(tmp_path / "adapter", {"mlp.up_proj": (80, 48)}, spread=1e-12)
    merged = tmp_path / "merged"
    surgery.write(surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter)), merged)
    for after in (merged, None):
        found = surgery.map_changes(base, after, adapter=adapter)
        assert found.modules("model.layers") == ["mlp.up_proj"] and "mlp.up_proj" not in found.still
        for cell in found.cells.values():
            assert cell.erased is not None and cell.erased > 0.95
            assert BY_KEY["erased"].text(cell) in ("100%", ">99%", "99%", "98%", "97%", "96%")


def test_without_an_adapter_nobody_knows_what_was_meant(saved: Callable[..., Path], tmp_path: Path) -> None:
    """Two checkpoints: what is in one alone, and what has another shape, is named; a NaN is counted."""
    a, b = saved("llama"), tmp_path / "b"
    surgery.write(surgery.open_checkpoint(a), b)
    tensors = stored(b)
    changed = tensors["model.layers.1.mlp.up_proj.weight"]
    changed[3, 4], changed[0] = math.nan, 2.0
    tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(3, 3)
    tensors["extra"] = tensors.pop("lm_head.weight")
    save_file(tensors, b / "model.safetensors", {"format": "pt"})
    found = surgery.map_changes(a, b)
    assert not found.merging and found.unlike == ("model.layers.2.mlp.up_proj.weight",)
    assert (found.only_before, found.only_after) == (("lm_head.weight",), ("extra",))
    cell = found.cells[Place("model.layers", 1, "mlp.up_proj")]
    assert cell.erased is None and cell.nonfinite == 1 and cell.rank is not None and math.isclose(cell.rank, 1)
    assert [one.name for one in found.tensors if one.changed] == ["model.layers.1.mlp.up_proj.weight"]
    assert found.cells[Place("model.layers", 0, "mlp.up_proj")].relative == 0


def test_codes_are_compared_as_what_they_mean(quantised: Callable[[str], Path], tmp_path: Path) -> None:
    base = quantised("nf4")
    decoded = surgery.dequantize(surgery.open_checkpoint(base), dtype="float32")
    surgery.write(decoded, tmp_path / "numbers")
    same = surgery.map_changes(base, tmp_path / "numbers")
    assert max(float(cell.relative or 0) for cell in same.cells.values()) < 0.005 if same.cells else True
    q = next(name for name in decoded.tensors if name.endswith("layers.0.self_attn.q_proj.weight"))
    adapter, (out, into) = tmp_path / "adapter", decoded.tensors[q].shape
    at = f"base_model.model.{q.removesuffix('.weight')}"
    adapter.mkdir()
    a, b = torch.randn(2, into), torch.randn(out, 2) * 0.1
    save_file({f"{at}.lora_A.weight": a, f"{at}.lora_B.weight": b}, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    found = surgery.map_changes(base, adapter=adapter)
    (cell,) = found.cells.values() if len(found.cells) == 1 else [found.cells[place_of(q)]]
    w, delta = decoded.load(q).double(), (b @ a).double()
    assert cell.relative is not None and math.isclose(cell.relative, float(delta.norm() / w.norm()), rel_tol=5e-3)
    assert cell.rank is not None and math.isclose(cell.rank, participation(delta), rel_tol=0.02)


@pytest.mark.parametrize("how", ["requantize", "mixed"])
def test_a_merge_into_codes_is_told_by_what_they_mean(
    quantised: Callable[[str], Path], tmp_path: Path, how: str
) -> None:
    """Coded again: what codes mean, before and after. In 16 bits: what the base is where it is rounded to them."""
    base = quantised("nf4")
    opened = surgery.open_checkpoint(base)
    decoded = surgery.dequantize(opened, dtype="float32")
    q = next(name for name in decoded.tensors if name.endswith("layers.0.self_attn.q_proj.weight"))
    adapter, (out, into) = tmp_path / "adapter", decoded.tensors[q].shape
    at = f"base_model.model.{q.removesuffix('.weight')}"
    adapter.mkdir()
    a, b = torch.randn(2, into), torch.randn(out, 2) * 1e-3
    save_file({f"{at}.lora_A.weight": a, f"{at}.lora_B.weight": b}, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    options = {"requantize": True, "lossy": True} if how == "requantize" else {}
    surgery.write(surgery.merge(opened, surgery.open_adapter(adapter), **options), tmp_path / "merged")  # type: ignore[arg-type]
    found = surgery.map_changes(base, tmp_path / "merged", adapter=adapter)
    merged = surgery.open_checkpoint(tmp_path / "merged")
    again = how == "requantize"
    w = decoded.load(q)
    s = surgery.dequantize(merged, dtype="float32").load(q) if again else merged.load(q)
    kept = s == w.to(s.dtype)
    assert again or s.dtype in (torch.bfloat16, torch.float16)
    cell = Cell(place_of(q), tuple(one for one in found.tensors if one.name == q))
    assert cell.changed is not None and math.isclose(cell.changed, float((~kept).double().mean()), abs_tol=1e-6)
    assert cell.erased is not None and math.isclose(cell.erased, float(kept.double().mean()), abs_tol=0.01)
    assert 0 < cell.changed < 1 and (not again or cell.erased > 0.5)
    relative = float((s.double() - w.double()).norm() / w.double().norm())
    assert cell.relative is not None and math.isclose(cell.relative, relative, rel_tol=1e-4)
    others = [one for one in found.tensors if one.name != q]
    assert others and not any(one.changed for one in others)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.3.self_attn.q_proj.weight", Place("model.layers", 3, "self_attn.q_proj")),
        ("model.layers.3.self_attn.q_proj.bias", Place("model.layers", 3, "self_attn.q_proj.bias")),
        ("model.layers.3.mlp.experts.17.up_proj.weight", Place("model.layers", 3, "mlp.experts.*.up_proj")),
        ("h.11.attn.c_attn.weight", Place("h", 11, "attn.c_attn")),
        ("0.weight", Place("layers", 0, "weight")),
        ("lm_head.weight", Place("", -1, "lm_head")),
        ("conv1.weight", Place("", -1, "conv1")),
        ("unet/down_blocks.0.attentions.1.to_q.weight", Place("unet/down_blocks", 0, "attentions.*.to_q")),
        ("x.99999999999999999999.y", Place("", -1, "x.99999999999999999999.y")),
        ("a\n.3.b\n.weight", Place("a\n", 3, "b\n")),
    ],
)
def test_places(name: str, place: Place) -> None:
    assert place_of(name) == place


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.embed_tokens.weight", "embeddings"),
        ("model.layers.0.self_attn.q_proj.weight", "attention"),
        ("model.layers.0.self_attn.q_norm.weight", "norms"),
        ("model.layers.0.mlp.gate_up_proj.weight", "MLP"),
        ("model.layers.0.mlp.experts.7.down_proj.weight", "experts"),
        ("model.layers.0.post_attention_layernorm.weight", "norms"),
        ("h.0.ln_1.bias", "norms"),
        ("h.0.attn.c_attn.weight", "attention"),
        ("lm_head.weight", "head"),
        ("x", "other"),
    ],
)
def test_kinds(name: str, kind: str) -> None:
    assert kind_of(name) == kind
