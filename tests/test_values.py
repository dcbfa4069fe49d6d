"""What every command does with NaN, infinity, denormal numbers, zeros of both signs, overflow, and tensors of no
elements or no axes. A command without a law here, and without a row in docs/values.md, fails.

The judges: the bytes, read by hand; torch's arithmetic; and the live model of PEFT.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import inf, nan
from pathlib import Path
from typing import Any

import peft
import pytest
import special
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from surgeries.blending.test_blend import SHAPES, model
from tiny_models import build

import surgery
from surgery.errors import AdapterError, PlanError, SurgeryError, VerificationFailed
from surgery.evaluation.blending import METHODS
from surgery.evaluation.blending.method import Base
from surgery.recipes.table import STEPS
from surgery_cli.app import app

Tensors = dict[str, torch.Tensor]
Q = "model.layers.0.self_attn.q_proj.weight"
DOCUMENT = Path(__file__).parents[1] / "docs/values.md"


@dataclass(frozen=True)
class Place:
    """Where a law may write, and the models that are there."""

    folder: Path
    saved: Callable[..., Path]
    quantised: Callable[[str], Path]

    def opened(self, name: str, change: Callable[[Tensors], object], family: str = "llama") -> surgery.Checkpoint:
        """A real checkpoint of which tensors were changed."""
        folder = self.folder / name
        shutil.copytree(self.saved(family), folder)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return surgery.open_checkpoint(folder)

    def odd(self, family: str = "phi3", name: str = "odd") -> surgery.Checkpoint:
        """A real checkpoint with such values in each tensor, and one more of each dtype and shape."""
        folder = self.folder / name
        shutil.copytree(self.saved(family), folder)
        tensors = special.read(folder)
        special.write(folder / "model.safetensors", {**special.sprinkled(tensors), **special.every()})
        return surgery.open_checkpoint(folder)

    def written(self, made: Any, name: str = "out") -> special.Raw:
        """The bytes of every tensor of the output."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        surgery.write(made, self.folder / name)
        return special.read(self.folder / name)

    def refused(self, made: Callable[[], Any], kind: type[SurgeryError], match: str) -> None:
        """An error, and no output."""
        with pytest.raises(kind, match=match):
            surgery.write(made(), self.folder / "refused")
        assert not (self.folder / "refused").exists()


@pytest.fixture
def place(tmp_path: Path, saved: Callable[..., Path], quantised: Callable[[str], Path]) -> Place:
    return Place(tmp_path, saved, quantised)


def raw(checkpoint: surgery.Checkpoint) -> special.Raw:
    return special.read(Path(checkpoint.path))


def values(one: tuple[str, tuple[int, ...], bytes]) -> torch.Tensor:
    """A tensor of float32, by its bytes."""
    assert one[0] == "F32"
    return torch.frombuffer(bytearray(one[2]), dtype=torch.float32).view(one[1])


def bits(of: torch.Tensor) -> torch.Tensor:
    return of.contiguous().view(torch.int32)


def put(**at: float) -> Callable[[Tensors], None]:
    """Values in the first weight that is named: put(_7=nan)."""

    def change(tensors: Tensors) -> None:
        for where, value in at.items():
            tensors[Q].view(-1)[int(where[1:])] = value

    return change


# --- what moves: every byte as it was


def opens_pickles(place: Place) -> None:
    """What torch saved."""
    kinds = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    kinds |= {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
    held = {n: t for n, t in special.every().items() if t[0] in kinds}
    tensors = {
        n: torch.frombuffer(bytearray(d or b"\0" * 8), dtype=kinds[k])[: len(d)] for n, (k, _, d) in held.items()
    }
    shaped = {n: (t[:0] if not held[n][2] else t).reshape(held[n][1]) for n, t in tensors.items()}
    torch.save(shaped, place.folder / "model.bin")
    assert place.written(surgery.convert_files(surgery.open_checkpoint(place.folder / "model.bin"))) == held


def moves_some(pattern: str, made: Callable[[surgery.Checkpoint], surgery.Checkpoint], place: Place) -> None:
    """Tensors whose name matches, and no others."""
    odd = place.odd()
    kept = {n: t for n, t in raw(odd).items() if re.fullmatch(pattern, n)}
    assert kept and place.written(made(odd)) == kept


def renames(place: Place) -> None:
    odd = place.odd()
    wanted = {n.replace("zoo.", "ark."): t for n, t in raw(odd).items()}
    assert place.written(surgery.rename(odd, [(r"^zoo\.", "ark.")])) == wanted


def adds(place: Place) -> None:
    base, odd = surgery.open_checkpoint(place.saved("phi3")), place.odd()
    added = {f"x.{n}": t for n, t in raw(odd).items() if n.startswith("zoo.")}
    assert place.written(surgery.add(base, odd, prefix="x.", pattern=r"zoo\..*")) == {**raw(base), **added}


def ties(place: Place) -> None:
    """What is one tensor by all its bits, NaN with them, is stored once; another payload is another tensor."""
    folder = place.folder / "equal"
    shutil.copytree(place.odd().path, folder)
    tensors = special.read(folder)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    special.write(folder / "model.safetensors", tensors)
    rest = {n: t for n, t in tensors.items() if n != "lm_head.weight"}
    assert place.written(surgery.tie(surgery.open_checkpoint(folder))) == rest
    dtype, shape, data = tensors["lm_head.weight"]
    at = data.index(special.words("F32")[24:28])
    tensors["lm_head.weight"] = (dtype, shape, data[:at] + b"\1" + data[at + 1 :])
    special.write(folder / "model.safetensors", tensors)
    place.refused(lambda: surgery.tie(surgery.open_checkpoint(folder)), PlanError, "differ|equal")


def unties(place: Place) -> None:
    odd = place.odd("llama-tied")
    wanted = raw(odd)
    assert place.written(surgery.untie(odd)) == {**wanted, "lm_head.weight": wanted["model.embed_tokens.weight"]}


def takes_layers(place: Place) -> None:
    odd = place.odd()
    held = raw(odd)
    wanted = {n.replace(".layers.2.", ".layers.1."): t for n, t in held.items() if ".layers.1." not in n}
    assert place.written(surgery.layers(odd, drop="1")) == wanted


def rows_of(one: tuple[str, tuple[int, ...], bytes], start: int, stop: int) -> tuple[str, tuple[int, ...], bytes]:
    dtype, (rows, *rest), data = one
    row = len(data) // rows
    return dtype, (stop - start, *rest), data[start * row : stop * row]


def parts_of(held: special.Raw, *, qkv: bool, gated: bool) -> special.Raw:
    """A Phi-3's tensors with the rows of fused ones apart, cut by hand."""
    found: special.Raw = {}
    for name, one in held.items():
        if qkv and "qkv_proj" in name:
            for part, start, stop in (("q", 0, 48), ("k", 48, 72), ("v", 72, 96)):
                found[name.replace("qkv_proj", f"{part}_proj")] = rows_of(one, start, stop)
        elif gated and "gate_up_proj" in name:
            for part, start, stop in (("gate", 0, 80), ("up", 80, 160)):
                found[name.replace("gate_up_proj", f"{part}_proj")] = rows_of(one, start, stop)
        else:
            found[name] = one
    return found


def splits(made: Callable[..., surgery.Checkpoint], qkv: bool, gated: bool, place: Place) -> None:
    odd = place.odd()
    assert place.written(made(odd)) == parts_of(raw(odd), qkv=qkv, gated=gated)


def fuses(made: Callable[..., surgery.Checkpoint], place: Place) -> None:
    odd = place.odd()
    place.written(surgery.split(odd), "split")
    fused = place.written(made(surgery.open_checkpoint(place.folder / "split")))
    held = raw(odd)
    assert {n: fused[n] for n in fused if n in held} == {n: held[n] for n in fused if n in held}
    kind = "qkv_proj" if "qkv" in made.__name__ else "gate_up_proj"
    assert any(kind in n for n in fused)


def experts(place: Place) -> None:
    """Stacked, each expert's bytes follow those of the one before; split again, they are what they were."""
    said = {"hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    live = tf.MixtralForCausalLM(tf.MixtralConfig(**said, num_key_value_heads=1, vocab_size=31, num_local_experts=3))
    folder = place.folder / "moe"
    live.save_pretrained(folder)
    single = special.sprinkled(special.read(folder))
    special.write(folder / "model.safetensors", {**single, **special.every()})
    apart = special.read(folder)
    fused = place.written(surgery.fuse_experts(surgery.open_checkpoint(folder)), "fused")
    stack = b"".join(t[2] for n, t in sorted(apart.items()) if re.search(r"experts\.\d\.w2\.weight", n))
    assert [t[2] for n, t in fused.items() if n.endswith("experts.down_proj")] == [stack]
    again = place.written(surgery.split_experts(surgery.open_checkpoint(place.folder / "fused")))
    assert sorted(t[2] for t in again.values()) == sorted(t[2] for t in apart.values())


def converts(place: Place) -> None:
    odd = surgery.drop(place.odd(), r"zoo\..*")
    wanted = parts_of({n: t for n, t in raw(odd).items() if "zoo" not in n}, qkv=True, gated=True)
    assert place.written(surgery.convert(odd, "llama")) == wanted


# --- adapters


def lora(place: Place, name: str, change: Callable[[Tensors], object] = len, **said: Any) -> surgery.Adapter:
    """An adapter as PEFT saves it, with one element in each factor: each delta is one exact product."""
    folder = place.folder / name
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], **said)
    peft.get_peft_model(build("llama"), config).save_pretrained(folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    for tensor in tensors.values():
        tensor.zero_().view(-1)[0] = 0.5
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return surgery.open_adapter(folder)


def factors(value: float) -> Callable[[Tensors], None]:
    """This in each factor, all over."""

    def change(tensors: Tensors) -> None:
        for tensor in tensors.values():
            tensor.fill_(value)

    return change


def spoiled(value: float) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        next(iter(tensors.values())).view(-1)[3] = value

    return change


def as_peft(base: surgery.Checkpoint, adapter: surgery.Adapter) -> Tensors:
    """What PEFT's live model holds when it merged the adapter into the weights of the base."""
    live = build("llama")
    live.load_state_dict(load_file(Path(base.path) / "model.safetensors"), strict=False)
    return peft.PeftModel.from_pretrained(live, adapter.path).merge_and_unload().state_dict()


def merges(place: Place) -> None:
    """As PEFT's live model: NaN and infinity stay, and are told; denormal numbers count; -0 + 0 is 0."""
    base = place.odd("llama")
    tiny = lora(place, "tiny", lambda tensors: [t.mul_(2.0**-69) for t in tensors.values()])
    for name, adapter in (("ones", lora(place, "ones")), ("tiny", tiny), ("none", lora(place, "none", factors(0.0)))):
        report = surgery.write(surgery.merge(base, adapter), place.folder / f"m-{name}")
        made, live, before = special.read(place.folder / f"m-{name}"), as_peft(base, adapter), raw(base)
        for key in before:
            if "q_proj" not in key:
                assert made[key] == before[key], key
                continue
            got, wanted = values(made[key]), live[key]
            assert torch.equal(got.isnan(), wanted.isnan())
            assert torch.equal(bits(got)[~got.isnan()], bits(wanted)[~got.isnan()]), (name, key)
        assert any(note.startswith("NaN or infinity was in 3 of the tensors") for note in report.notes)
    assert float(values(special.read(place.folder / "m-tiny")[Q])[0, 0]) == 2.0**-139
    for value in (nan, inf, -inf):
        bad = lora(place, f"bad{value}", spoiled(value))
        place.refused(partial(surgery.merge, base, bad), AdapterError, "NaN or infinity in 1 adapter tensors")
    far = lora(place, "far", factors(1e20))
    place.refused(partial(surgery.merge, base, far), VerificationFailed, "became infinite or NaN")
    cancelling = place.opened("cancel", put(_7=3.4028e38, _8=-3.4028e38))
    place.refused(
        partial(surgery.merge, cancelling, lora(place, "weak"), dtype="bfloat16"), VerificationFailed, "^2 weights of 1"
    )
    half = place.opened("half", lambda tensors: [tensors.update({n: t.half()}) for n, t in list(tensors.items())])
    strong = lora(place, "strong", factors(150.0))
    place.refused(partial(surgery.merge, half, strong), VerificationFailed, r"(?s)infinite.*F16.*--dtype bfloat16")
    mixing = lora(place, "dora", use_dora=True)
    place.refused(
        partial(surgery.merge, place.opened("one", put(_7=inf)), mixing), VerificationFailed, "(?s)1 were so before"
    )


def comes_back(place: Place) -> None:
    """Byte for byte, whatever was there: NaN with its payload, -0, denormal numbers."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        shutil.copytree(place.saved("llama", dtype=dtype), place.folder / name)
        special.write(place.folder / name / "model.safetensors", special.sprinkled(special.read(place.folder / name)))
        base = surgery.open_checkpoint(place.folder / name)
        adapter = lora(place, f"on-{name}", factors(0.25))
        surgery.write(surgery.reversible(surgery.merge(base, adapter), base), place.folder / f"m-{name}")
        merged = surgery.open_checkpoint(place.folder / f"m-{name}")
        assert place.written(surgery.unmerge(merged), f"back-{name}") == raw(base)


def subtracts(place: Place) -> None:
    """In torch's arithmetic; what was NaN or infinite stays so, and what became so is refused."""
    base, adapter = place.opened("base", put(_7=nan, _8=inf, _9=-0.0, _10=1e-42)), lora(place, "ones")
    place.written(surgery.merge(base, adapter), "merged")
    merged = surgery.open_checkpoint(place.folder / "merged")
    made = place.written(surgery.unmerge_approximately(merged, adapter))
    got, before = values(made[Q]), values(raw(base)[Q])
    assert torch.equal(got.isnan(), before.isnan())
    assert torch.equal(got[1:].nan_to_num(7), before[1:].nan_to_num(7)) and float(got[0, 8]) == inf
    high = place.opened("high", lambda tensors: tensors[Q].fill_(3.4e38))
    far = lora(place, "far", factors(-1e19))
    place.refused(partial(surgery.unmerge_approximately, high, far), SurgeryError, "infinite|merged")


def injects(place: Place) -> None:
    """From headers alone: the base's values are not read. B is zero, so that nothing changes."""
    made = place.written(surgery.inject(place.odd("llama"), rank=2, target_modules=["q_proj"]))
    assert all(not any(t[2]) for n, t in made.items() if "lora_B" in n)
    assert all(bool(values(t).isfinite().all()) for t in made.values())


def injects_into(place: Place) -> None:
    base = place.odd("llama")
    made = place.written(surgery.inject_into(base, lora(place, "ones")))
    assert {n: made[n] for n in raw(base)} == raw(base)


def pairs_of(made: special.Raw) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A and B in float64, by module."""
    found = {}
    for name in made:
        if ".lora_A" in name:
            found[name.partition(".lora_A")[0]] = tuple(
                values(made[n]).double() for n in (name, name.replace("lora_A", "lora_B"))
            )
    assert found
    return found


SIZES = (1e-42, 1e-30, 1e-15, 1.0, 1e15)


def combines(place: Place) -> None:
    """NaN is refused; sums of any size are exact; nothing added is nothing."""
    one = lora(place, "one")
    place.refused(partial(surgery.combine, [one, lora(place, "nan", spoiled(nan))]), AdapterError, "NaN or infinity")
    for size in (1e-42, 1e-30, 1e15):
        made = place.written(surgery.combine([one, lora(place, f"of{size}", factors(size))], [0.0, 1.0]))
        for a, b in pairs_of(made).values():
            scale = json.loads((place.folder / "out/adapter_config.json").read_text())
            by = scale["lora_alpha"] / scale["r"]
            exact = torch.tensor(size).double() ** 2 * 4
            assert torch.allclose(by * (b @ a), exact.expand(40, 48), rtol=1e-4, atol=0) or not bool(exact > 1e-80)
    none = place.written(surgery.combine([lora(place, "zero", factors(0.0)), one], [1.0, 0.0]))
    assert all(not bool((b @ a).any()) for a, b in pairs_of(none).values())


def resizes(place: Place) -> None:
    """NaN is refused; the best product of any size; zero stays zero, and is no NaN."""
    bad = lora(place, "nan", spoiled(inf))
    place.refused(partial(surgery.resize_adapter, bad, rank=1), AdapterError, "NaN or infinity")
    for size in SIZES[1:]:
        made = place.written(surgery.resize_adapter(lora(place, f"of{size}", factors(size)), rank=1))
        wanted = torch.tensor(size).double() ** 2 * 2
        assert all(torch.allclose(b @ a, wanted.expand(40, 48), rtol=1e-5, atol=0) for a, b in pairs_of(made).values())
    zero = place.written(surgery.resize_adapter(lora(place, "zero", factors(0.0)), rank=1))
    assert all(not bool((b @ a).any()) for a, b in pairs_of(zero).values())


def extracts(place: Place) -> None:
    """A difference of any size is one, however small; NaN that only one has is refused, what both have is none."""
    zero = place.opened("zero", lambda tensors: [t.zero_() for n, t in tensors.items() if "q_proj" in n])
    for size in (*SIZES, 1e25):
        tuned = place.opened(
            f"of{size}", lambda tensors, s=size: [t.fill_(s) for n, t in tensors.items() if "q_proj" in n]
        )
        made = place.written(surgery.extract(zero, tuned, rank=2))
        wanted, near = torch.tensor(size).double(), 0.05 if size < 1e-38 else 1e-5
        found = pairs_of(made)
        assert len(found) == 3
        assert all(torch.allclose(b @ a, wanted.expand(40, 48), rtol=near, atol=0) for a, b in found.values())
    signed = place.opened("signed", lambda tensors: [t.fill_(-0.0) for n, t in tensors.items() if "q_proj" in n])
    place.refused(partial(surgery.extract, zero, signed, rank=2), AdapterError, "do not differ")
    base = surgery.open_checkpoint(place.saved("llama"))
    place.refused(partial(surgery.extract, base, place.opened("nan", put(_7=nan)), rank=2), AdapterError, "not finite")
    odd = place.odd("llama")
    folder = place.folder / "tuned"
    shutil.copytree(odd.path, folder)
    tensors = special.read(folder)
    k = Q.replace("q_proj", "k_proj")
    tensors[k] = raw(base)[k]
    special.write(folder / "model.safetensors", tensors)
    clean = {**special.read(Path(odd.path)), k: ("F32", tensors[k][1], bytes(len(tensors[k][2])))}
    special.write(Path(odd.path) / "model.safetensors", clean)
    made = place.written(surgery.extract(surgery.open_checkpoint(odd.path), surgery.open_checkpoint(folder), rank=2))
    assert [name.rpartition(".")[2] for name in pairs_of(made)] == ["k_proj"]


def converts_adapter(place: Place) -> None:
    """Bits as they are; NaN is refused."""
    adapter = lora(
        place,
        "odd",
        lambda tensors: [t.view(-1)[:3].copy_(torch.tensor([-0.0, 1e-42, -1e-45])) for t in tensors.values()],
    )
    made, held = place.written(surgery.convert_adapter(adapter, "mlx")), special.read(Path(adapter.path))
    a = next(n for n in held if "lora_A" in n)
    turned = values(made[a.removeprefix("base_model.model.").replace("lora_A.weight", "lora_a")])
    assert torch.equal(bits(turned), bits(values(held[a]).T))
    bad = lora(place, "nan", spoiled(nan))
    place.refused(partial(surgery.convert_adapter, bad, "mlx"), AdapterError, "NaN or infinity")


# --- what is computed


def casts(place: Place) -> None:
    """As torch casts each value; what becomes infinite is refused, what is so already stays."""
    for dtype in ("F32", "F16", "BF16", "F64"):
        name, kind = {"F32": "float16", "F16": "bfloat16", "BF16": "float16", "F64": "float32"}[dtype], dtype
        folder = place.folder / f"of-{dtype}"
        folder.mkdir()
        words = special.words(dtype)
        size = len(words) // {"F64": 8, "F32": 4}.get(dtype, 2)
        special.write(folder / "model.safetensors", {"w": (kind, (size,), words), "no": (kind, (0, 3), b"")})
        own = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}[kind]
        before, to = torch.frombuffer(bytearray(words), dtype=own), getattr(torch, name)
        made = place.written(surgery.cast(surgery.open_checkpoint(folder), name, allow_overflow=True))
        got, wanted = torch.frombuffer(bytearray(made["w"][2]), dtype=to).double(), before.to(to).double()
        assert torch.equal(got.isnan(), wanted.isnan()) and torch.equal(got.nan_to_num(7), wanted.nan_to_num(7))
        assert torch.equal(got.signbit()[~got.isnan()], wanted.signbit()[~got.isnan()])
        assert made["no"][1:] == ((0, 3), b"")
        if bool((before.isfinite() & ~before.to(to).isfinite()).any()):
            place.refused(partial(surgery.cast, surgery.open_checkpoint(folder), name), VerificationFailed, "infinite")


def dequantises(place: Place) -> None:
    """A code or a scale that is no number is refused; other tensors stay, whatever is in them."""
    folder = place.folder / "fp8"
    shutil.copytree(place.quantised("fp8"), folder)
    file = folder / "model-00001-of-00002.safetensors"
    plain = special.read(folder)
    norm = next(n for n in sorted(plain) if n.endswith("layernorm.weight"))
    held = {n: t for n, t in special.read(folder).items() if n in load_file(file)}
    dtype, shape, data = held[norm]
    special.write(file, {**held, norm: (dtype, shape, special.words("BF16") + data[20:])})
    made = place.written(surgery.dequantize(surgery.open_checkpoint(folder)))
    assert made[norm] == (dtype, shape, special.words("BF16") + data[20:])
    code = next(n for n in sorted(held) if n.endswith("q_proj.weight"))
    scale = f"{code}_scale_inv"
    ends = ((code, b"\x7f"), (scale, special.words("F32")[16:20]), (scale, special.words("F32")[24:28]))
    for name, word in ends:
        dtype, shape, data = held[name]
        special.write(file, {**held, name: (dtype, shape, word + data[len(word) :])})
        place.refused(lambda: surgery.dequantize(surgery.open_checkpoint(folder)), SurgeryError, "NaN or infinite")


def quantises(place: Place) -> None:
    """NaN and infinity would spoil a block, and are refused; so is what the scheme itself would make NaN."""
    for scheme in ("nf4", "nf4-double", "fp8"):
        for value in (nan, inf, -inf):
            folder = place.folder / f"{scheme} {value}"
            shutil.copytree(plain(place), folder)
            tensors = load_file(folder / "model.safetensors")
            tensors[Q][3, 5] = value
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
            opened = surgery.open_checkpoint(folder)
            place.refused(
                partial(surgery.quantize, opened, scheme), VerificationFailed, "became infinite or NaN|beyond"
            )
    folder = place.folder / "small"
    shutil.copytree(plain(place), folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[Q].fill_(1e-40)[0, 0] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    place.refused(
        lambda: surgery.quantize(surgery.open_checkpoint(folder), "fp8"), VerificationFailed, "infinite or NaN"
    )
    tensors[Q].zero_()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for scheme in ("nf4", "nf4-double", "fp8"):
        surgery.write(surgery.quantize(surgery.open_checkpoint(folder), scheme), place.folder / f"q-{scheme}")
        again = place.written(surgery.dequantize(surgery.open_checkpoint(place.folder / f"q-{scheme}")))
        assert not any(again[Q][2]), scheme


def plain(place: Place) -> Path:
    place.quantised("fp8")
    return place.quantised("fp8").parent / "plain"


def resizes_vocabulary(place: Place) -> None:
    """Rows that stay keep their bits; a mean of rows with NaN is refused."""
    odd = place.odd("llama")
    made = place.written(surgery.vocabulary(odd, size=99, new="zero"))
    for name, one in raw(odd).items():
        assert made[name][2] == one[2] + bytes(len(made[name][2]) - len(one[2])), name
    for value in (nan, inf):
        bad = place.opened(f"{value}", lambda tensors, v=value: tensors["lm_head.weight"].view(-1)[7:8].fill_(v))
        place.refused(partial(surgery.vocabulary, bad, size=99), VerificationFailed, "became infinite or NaN")


def blended(
    folder: Path, method: str, change: Callable[[Tensors], object], *, both: bool = False, **said: Any
) -> Tensors | None:
    """What a method makes of models of which the first is changed, or each; None where it is refused."""
    row = METHODS[method]
    folder.mkdir()
    many = 1 if row.most == 1 else 2
    models = [
        surgery.open_checkpoint(model(folder / f"m{i}", i, None, change if both or not i else len)) for i in range(many)
    ]
    if row.base is Base.NEEDED:
        said["base"] = surgery.open_checkpoint(model(folder / "base", 7, None, change if both else len))
    said |= {"density": [0.5] * many} if "density" in row.each else {}
    said |= {"parameters": {"t": "0.4"}} if row.shared.get("t", 0) is None else {}
    report = None
    try:
        report = surgery.write(surgery.blend(models, method=method, **said), folder / "out")
    except VerificationFailed as error:
        assert "became infinite or NaN" in str(error) and Q in str(error)
        assert not (folder / "out").exists()
        return None
    made = load_file(folder / "out/model.safetensors")
    told = any(note.startswith("NaN or infinity was in 1 of the tensors") for note in report.notes)
    assert told or method == "passthrough" or bool(made[Q].isfinite().all())
    return made


MEASURED = {
    "slerp", "nuslerp", "multislerp", "karcher", "ties", "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties",
    "della", "della_linear", "sce", "ramplus_tl", "model_stock", "arcee_fusion",
}  # fmt: skip


def blends(place: Place) -> None:
    """NaN in one element stays there and is told, or, where the whole is measured, is refused; never spreads; nothing
    overflows in silence; of nothing but zeros there is zero, and of equal models the model.
    """
    for method in METHODS:
        for value in (nan,) if method in MEASURED else (nan, inf):
            made = blended(place.folder / f"{method} {value}", method, put(_7=value))
            assert (made is None) == (method in MEASURED) or (made is None and value == inf), method
            if made:
                assert [n for n, t in made.items() if not bool(t.isfinite().all())] == [Q]
                assert (~made[Q].isfinite()).nonzero().tolist() == [[0, 7]]
        far = blended(place.folder / f"{method} far", method, put(_7=3.4028e38, _8=-3.4028e38), dtype="bfloat16")
        assert far is None or bool(far[Q].isfinite().all()), method
        same = blended(place.folder / f"{method} same", method, without_elements, both=True)
        assert same is not None and not bool(same[Q].any()), method
        assert torch.allclose(same["lm_head.weight"], torch.tensor(0.5), rtol=1e-6), method
        assert same["empty"].shape == (0,) and same["rows"].shape == (0, 3) and float(same["scalar"]) == 1.5, method
    masked = blended(place.folder / "mask", "task_arithmetic", put(_7=-inf), both=True)
    assert masked is None  # -inf less -inf is NaN, which no model held


def without_elements(tensors: Tensors) -> None:
    tensors |= {"empty": torch.zeros(0), "rows": torch.zeros(0, 3), "scalar": torch.tensor(1.5)}
    for tensor in (tensors[n] for n in SHAPES):
        tensor.fill_(0.5)
    tensors[Q].zero_()


# --- commands that are no steps


def reshards(place: Place) -> None:
    odd = place.odd()
    surgery.write(odd, place.folder / "out", max_shard_size="20KB")
    assert len(list((place.folder / "out").glob("*.safetensors"))) > 2
    assert special.read(place.folder / "out") == raw(odd)


def inspects(place: Place) -> None:
    """Headers alone."""
    surgery.inspect(place.odd().path)


FINITE = {"F4": 0, "U8": 0, "I8": 0, "F8_E4M3": 2, "F8_E5M2": 8, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1}


def verifies(place: Place) -> None:
    """Every NaN and infinity is counted, by what each dtype has of them: float8_e4m3fn has NaN alone."""
    folder = place.folder / "zoo"
    folder.mkdir()
    special.write(folder / "model.safetensors", special.every())
    wanted = {f"zoo.{d}": count for d, count in {**FINITE, "F64": 5, "F32": 5, "F16": 4, "BF16": 4}.items() if count}
    check = next(c for c in surgery.verify(folder, values=True).checks if c.name == "values")
    assert check.ok is False and check.detail == f"NaN or infinity in {len(wanted) + 1} tensors"
    assert {f"model.safetensors: {n}: {count} of " for n, count in wanted.items()} >= {
        row.rpartition(" ")[0] + " " for row in check.where if "zoo.scalar" not in row and "more" not in row
    }
    for dtype in (torch.float32, torch.float64):
        base = place.opened(f"{dtype}", wide(dtype))
        adapter = lora(place, f"on {dtype}")
        out = place.folder / f"merged {dtype}"
        surgery.write(surgery.merge(base, adapter), out)
        tensors = load_file(out / "model.safetensors")
        assert proof_of(out, base, adapter) is not False
        tensors[Q].view(-1)[7] *= -1  # another NaN
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        assert proof_of(out, base, adapter) is not False
        for value in (1.0, nan, inf, 1e30):
            wrong = {**tensors, Q: tensors[Q].clone()}
            wrong[Q].view(-1)[8 if value == 1.0 else 9] = value
            save_file(wrong, out / "model.safetensors", metadata={"format": "pt"})
            assert proof_of(out, base, adapter) is False, value


def wide(dtype: torch.dtype) -> Callable[[Tensors], None]:
    """All of this dtype, with a NaN, an infinity, and a zero where the delta is zero, too."""

    def change(tensors: Tensors) -> None:
        put(_7=nan, _8=inf, _9=0.0)(tensors)
        tensors |= {n: t.to(dtype) for n, t in tensors.items()}

    return change


def proof_of(out: Path, base: surgery.Checkpoint, adapter: surgery.Adapter) -> bool | None:
    """What verify says of the tensors that the adapter touches, and of all others."""
    checks = surgery.verify(out, base=base.path, adapter=adapter.path).checks
    return all(c.ok is not False for c in checks if c.name not in ("values",))


def differs(place: Place) -> None:
    """By bits: equal NaN is no difference, another payload, or the other zero, is one; none of it spoils a measure."""
    odd = place.odd()
    assert surgery.diff(odd, odd.path).equal
    folder = place.folder / "other"
    shutil.copytree(odd.path, folder)
    tensors = special.read(folder)
    dtype, shape, data = tensors[Q.replace("q_proj", "qkv_proj")]
    tensors[Q.replace("q_proj", "qkv_proj")] = (dtype, shape, data[4:8] + data[4:28] + b"\x01" + data[29:])
    special.write(folder / "model.safetensors", tensors)
    (change,) = surgery.diff(odd, folder).changed
    assert change.measure and change.measure.largest == 0 and change.measure.differing == 2


def carries(place: Place) -> None:
    """Another test holds it: see the row of docs/values.md."""


LAWS: dict[str, Callable[[Place], None]] = {
    "convert-files": opens_pickles,
    "convert": converts,
    "dequantize": dequantises,
    "quantize": quantises,
    "rename": renames,
    "keep": partial(moves_some, r"zoo\..*", lambda c: surgery.keep(c, r"zoo\..*")),
    "drop": partial(moves_some, r"(?!zoo\.).*", lambda c: surgery.drop(c, r"zoo\..*")),
    "add": adds,
    "cast": casts,
    "tie": ties,
    "untie": unties,
    "layers": takes_layers,
    "vocabulary": resizes_vocabulary,
    "blend": blends,
    "split": partial(splits, surgery.split, True, True),
    "fuse": partial(fuses, surgery.fuse),
    "split-qkv": partial(splits, surgery.split_qkv, True, False),
    "fuse-qkv": partial(fuses, surgery.fuse_qkv),
    "split-gate-up": partial(splits, surgery.split_gate_up, False, True),
    "fuse-gate-up": partial(fuses, surgery.fuse_gate_up),
    "split-experts": experts,
    "fuse-experts": experts,
    "inject": injects,
    "inject-into": injects_into,
    "merge": merges,
    "reversible": comes_back,
    "unmerge": comes_back,
    "unmerge-approximately": subtracts,
    "combine": combines,
    "resize-adapter": resizes,
    "extract": extracts,
    "convert-adapter": converts_adapter,
    "reshard": reshards,
    "inspect": inspects,
    "verify": verifies,
    "diff": differs,
}
# What they do is the steps', or of no values; what `browse` and `report` count is held in tests/evaluation.
CARRIED = {"run", "push", "reindex", "clean", "demo", "schema", "env", "browse", "report"}


def commands() -> set[str]:
    """Every command of the command line."""
    from typer.main import get_command

    return set(get_command(app).commands)  # type: ignore[attr-defined]


def test_every_command_has_a_law() -> None:
    assert set(LAWS) == (set(STEPS) | commands()) - CARRIED


def test_every_command_is_documented() -> None:
    rows = re.findall(r"^\| ((?:`[a-z-]+`(?:, )?)+) \|", DOCUMENT.read_text(), re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([a-z-]+)`", row)]
    assert sorted(named) == sorted(set(LAWS) | CARRIED)


@pytest.mark.parametrize("command", sorted(LAWS))
def test_what_becomes_of_values(command: str, place: Place) -> None:
    LAWS[command](place)


@contextmanager
def flushing() -> Iterator[None]:
    """Torch makes denormal numbers zero in this thread, and in those that it starts."""
    torch.set_flush_denormal(True)
    try:
        yield
        assert not bool(torch.tensor([1e-40]).mul(1).count_nonzero())  # it is still so when we are done
    finally:
        torch.set_flush_denormal(False)


def test_what_the_process_does_with_denormal_numbers_changes_nothing(place: Place) -> None:
    base = place.opened("base", lambda tensors: tensors[Q].fill_(1e-42))
    adapter = lora(place, "tiny", lambda tensors: [t.mul_(2.0**-69) for t in tensors.values()])
    runs = {
        "merge": lambda: surgery.merge(base, adapter),
        "cast": lambda: surgery.cast(base, "float64"),
        "blend": lambda: surgery.blend([base, surgery.open_checkpoint(place.saved("llama"))], weights=[1.0, 1e-9]),
    }
    for name, made in runs.items():
        wanted = place.written(made(), f"{name}-a")
        with flushing():
            surgery.write(made(), place.folder / f"{name}-b")
        assert special.read(place.folder / f"{name}-b") == wanted, name
