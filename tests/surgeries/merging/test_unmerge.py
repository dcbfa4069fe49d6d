"""The law of unmerging: what a reversible merge wrote gives the base back, byte for byte and file for file, or is
refused.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import hashes
from forks import dying_at, forked
from handmade import write_adapter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import MODELS, build, save

import surgery
from surgery.checkpoint import UNDO
from surgery.errors import AdapterError, FormatError, NotSupported, PlanError, SurgeryError, VerificationFailed
from surgery.evaluation.arithmetic import exact
from surgery.evaluation.evaluate import into, workspace_of
from surgery.evaluation.workspace import DEFAULT_MEMORY, LEAST_BUDGET
from surgery.lazy.dense import Dense
from surgery.lazy.dtypes import DTYPES
from surgery.lazy.gain import Gain
from surgery.lazy.low_rank import LowRank
from surgery.lazy.tensor import Before, Sum, Zeros, add
from surgery.surgeries.unmerge import SEEN, sampled

ALL = "all-linear"
EXPERTS = {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
CASES: dict[str, tuple[str, Sequence[dict[str, Any]]]] = {
    "LoRA": ("llama", [{"target_modules": ALL}]),
    "DoRA": ("llama", [{"target_modules": ALL, "use_dora": True}]),
    "Conv1D, rsLoRA, all biases": ("gpt2", [{"target_modules": ["c_attn", "c_fc"], "use_rslora": True, "bias": "all"}]),
    "DoRA on Conv1D": ("gpt2", [{"target_modules": ["c_attn"], "use_dora": True}]),
    "fused q, k and v": ("phi3", [{"target_modules": ["qkv_proj", "down_proj"]}]),
    "a tied embedding": ("llama-tied", [{"target_modules": ["embed_tokens", "q_proj"]}]),
    "a saved head": ("llama-tied", [{"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}]),
    "trained tokens": ("llama", [{"target_modules": ["v_proj"], "trainable_token_indices": [3, 50]}]),
    "several adapters": ("llama", [{"target_modules": ALL}, {"target_modules": ["q_proj", "up_proj"], "r": 3}]),
    "biases of LoRA": ("gpt_neox", [{"target_modules": ALL, "lora_bias": True}]),
    "experts": ("mixtral", [EXPERTS]),
}


@pytest.fixture(scope="module", autouse=True)
def _mixtral() -> None:
    import transformers as tf

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    MODELS.setdefault(
        "mixtral", lambda: tf.MixtralForCausalLM(tf.MixtralConfig(**sizes, vocab_size=97, num_local_experts=3))
    )


def trained(folder: Path, family: str, options: dict[str, Any], seed: int = 1) -> Path:
    """An adapter that does something: every tensor of it random."""
    model = get_peft_model(build(family), LoraConfig(**{"r": 8, "lora_alpha": 16, **options}))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                size = 1 + 0.1 * torch.rand_like(parameter) if "magnitude" in name else 0
                parameter.copy_(parameter * size if "magnitude" in name else torch.randn_like(parameter) * 0.02)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Path]]:
    made: dict[str, list[Path]] = {}

    def get(case: str) -> list[Path]:
        if case not in made:
            family, options = CASES[case]
            made[case] = [
                trained(tmp_path_factory.mktemp("adapter") / str(i), family, one, seed=i)
                for i, one in enumerate(options)
            ]
        return made[case]

    return get


def merged(base: Path, adapters: Sequence[Path], dest: Path, **options: Any) -> Path:
    opened = surgery.open_checkpoint(base)
    made = surgery.merge(opened, [surgery.open_adapter(a) for a in adapters])
    surgery.write(surgery.reversible(made, opened), dest, **options)
    return dest


def unmerged(folder: Path, dest: Path, **options: Any) -> Path:
    surgery.write(surgery.unmerge(surgery.open_checkpoint(folder)), dest, **options)
    return dest


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def changed(a: Path, b: Path) -> set[str]:
    """Names of the tensors that differ, or are in one only."""
    found = [loaded(folder) for folder in (a, b)]
    return {
        n
        for n in found[0].keys() | found[1].keys()
        if not (n in found[0] and n in found[1] and found[0][n].equal(found[1][n]))
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_the_base_comes_back(
    case: str, dtype: torch.dtype, adapters: Callable[[str], list[Path]], tmp_path: Path
) -> None:
    """With its shards, index, config and card; and the merge was no copy."""
    base = save(CASES[case][0], tmp_path / "base", shard="20KB", dtype=dtype)
    (base / "README.md").write_text("the base's own card")
    made = merged(base, adapters(case), tmp_path / "merged", workers=2)
    assert len(changed(base, made)) > 2
    (made / "README.md").write_text("a card for the merge")
    assert hashes(unmerged(made, tmp_path / "out", workers=1, memory="20MB")) == hashes(base)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_record_does_not_depend_on_workers_or_memory(
    workers: int, saved: Callable[..., Path], adapters: Callable[[str], list[Path]], tmp_path: Path
) -> None:
    base = saved("llama", shard="20KB", dtype=torch.bfloat16)
    one = merged(base, adapters("DoRA"), tmp_path / "one", workers=2)
    other = merged(base, adapters("DoRA"), tmp_path / "other", workers=workers, memory="70MB")
    assert hashes(one, without=()) == hashes(other, without=())


def test_another_sharding_and_a_single_file(adapters: Callable[[str], list[Path]], tmp_path: Path) -> None:
    """The merge may lie in other shards than its base; the base comes back in its own."""
    for name, shard in (("one", None), ("many", "20KB")):
        base = save("llama", tmp_path / name, shard=shard, dtype=torch.bfloat16)
        made = merged(base, adapters("LoRA"), tmp_path / f"{name}-merged", max_shard_size="33KB")
        assert hashes(unmerged(made, tmp_path / f"{name}-out")) == hashes(base)


def test_headers_that_are_not_our_own(adapters: Callable[[str], list[Path]], tmp_path: Path) -> None:
    """Tensors in another order, metadata of one's own, spaces in the header: written back as they were."""
    base = save("llama", tmp_path / "base", dtype=torch.bfloat16)
    weights = base / "model.safetensors"
    tensors = load_file(weights)
    at, entries, data = 0, {}, b""
    for name in sorted(tensors, reverse=True):
        raw = tensors[name].contiguous().view(torch.uint8).numpy().tobytes()
        entries[name] = {"shape": list(tensors[name].shape), "dtype": "BF16", "data_offsets": [at, at + len(raw)]}
        at, data = at + len(raw), data + raw
    header = json.dumps({**entries, "__metadata__": {"z": "1", "a": "2"}}, indent=1).encode()
    weights.write_bytes(len(header).to_bytes(8, "little") + header + data)
    made = merged(base, adapters("LoRA"), tmp_path / "merged")
    assert hashes(unmerged(made, tmp_path / "out")) == hashes(base)


def test_other_instructions_give_the_same_bytes(
    saved: Callable[..., Path], adapters: Callable[[str], list[Path]], tmp_path: Path
) -> None:
    """A merge and its undoing on machines whose linear algebra sums in another order."""
    base = saved("llama", shard="20KB", dtype=torch.float32)
    made = merged(base, adapters("DoRA"), tmp_path / "merged")
    code = (
        f"import surgery; surgery.write(surgery.unmerge(surgery.open_checkpoint({str(made)!r})),"
        f" {str(tmp_path / 'out')!r})"
    )
    slow = {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "ATEN_CPU_CAPABILITY": "default", "DNNL_MAX_CPU_ISA": "SSE41"}
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **slow}, check=True)
    assert hashes(tmp_path / "out") == hashes(base)


@pytest.fixture
def made(saved: Callable[..., Path], adapters: Callable[[str], list[Path]], tmp_path: Path) -> Path:
    return merged(saved("llama", shard="60KB", dtype=torch.bfloat16), adapters("LoRA"), tmp_path / "merged")


def sidecars(folder: Path) -> list[Path]:
    return sorted((folder / ".surgery" / "undo").iterdir())


def check_refused(folder: Path, dest: Path, *said: str) -> SurgeryError:
    with pytest.raises((VerificationFailed, FormatError)) as caught:
        unmerged(folder, dest)
    assert not dest.exists()
    assert all(text in str(caught.value) for text in said)
    return caught.value


def test_every_damaged_byte_is_noticed(made: Path, saved: Callable[..., Path], tmp_path: Path) -> None:
    """In the record of a shard, one flipped bit anywhere is an error or changes nothing of what is restored."""
    want, record = hashes(saved("llama", shard="60KB", dtype=torch.bfloat16)), sidecars(made)[1]
    raw = record.read_bytes()
    refused = 0
    for at in range(0, len(raw), len(raw) // 60):
        record.write_bytes(raw[:at] + bytes((raw[at] ^ 4,)) + raw[at + 1 :])
        dest = tmp_path / f"out-{at}"
        try:
            unmerged(made, dest)
        except (FormatError, VerificationFailed):
            refused += 1
            assert not dest.exists()
        else:
            assert hashes(dest) == want
    assert refused > 30


def test_a_damaged_base_record(made: Path, tmp_path: Path) -> None:
    raw = (made / UNDO).read_bytes()
    (made / UNDO).write_bytes(raw[:-20] + bytes(20))
    check_refused(made, tmp_path / "out", "the undo record is damaged", "base.undo")


@pytest.mark.parametrize("what", ["touched", "untouched", "another shape"])
def test_a_changed_checkpoint_is_noticed(made: Path, tmp_path: Path, what: str) -> None:
    """Also in tensors that the merge left alone."""
    name = "model.norm.weight" if what == "untouched" else "model.layers.1.self_attn.q_proj.weight"
    shard = next(p for p in made.glob("*.safetensors") if name in load_file(p))
    tensors = load_file(shard)
    tensors[name] = tensors[name][:-1].clone() if what == "another shape" else tensors[name] * 1.5
    save_file(tensors, shard, {"format": "pt"})
    said = "the merged checkpoint was changed" if what == "another shape" else "what is restored is not what was"
    check_refused(made, tmp_path / "out", said, name)


def test_a_missing_part(made: Path, tmp_path: Path) -> None:
    sidecars(made)[0].unlink()
    check_refused(made, tmp_path / "out", "a part of the undo record is missing", sidecars(made)[0].parent.name)


def test_no_record(saved: Callable[..., Path], adapters: Callable[[str], list[Path]], tmp_path: Path) -> None:
    opened = surgery.open_checkpoint(saved("llama"))
    surgery.write(surgery.merge(opened, surgery.open_adapter(adapters("LoRA")[0])), tmp_path / "merged")
    check_refused(tmp_path / "merged", tmp_path / "out", "not made with --reversible", "--approximate")


def test_a_changed_large_file(
    saved: Callable[..., Path], adapters: Callable[[str], list[Path]], tmp_path: Path
) -> None:
    """Small files are kept in the record; of large ones their digest is."""
    base = shutil.copytree(saved("llama"), tmp_path / "base")
    (base / "tokenizer.json").write_bytes(b"x" * (1 << 21))
    made = merged(base, adapters("LoRA"), tmp_path / "merged")
    assert hashes(unmerged(made, tmp_path / "same")) == hashes(base)
    (made / "tokenizer.json").write_bytes(b"y" * (1 << 21))
    check_refused(
        made, tmp_path / "out", "was changed since the merge", "tokenizer.json", hashes(base)["tokenizer.json"]
    )
    (made / "tokenizer.json").unlink()
    check_refused(made, tmp_path / "out", "not there any more", "tokenizer.json")


def test_an_output_with_a_record_can_be_overwritten(
    saved: Callable[..., Path], adapters: Callable[[str], list[Path]], made: Path
) -> None:
    """What lies in .surgery/ is ours."""
    before = hashes(made, without=())
    merged(saved("llama", shard="60KB", dtype=torch.bfloat16), adapters("DoRA"), made, overwrite=True)
    assert hashes(made, without=()) != before
    surgery.verify(made).require()


def test_verify_says_whether_the_base_can_be_restored(made: Path) -> None:
    def said() -> surgery.Check:
        return next(check for check in surgery.verify(made, check_class=False).checks if check.name == "undo record")

    assert said().ok and "30 tensors of the base can be restored" in said().detail
    sidecars(made)[0].unlink()
    assert said().ok is False and "a part of the undo record is missing" in said().detail


def test_what_the_merge_left_alone_counts_as_copied(made: Path, tmp_path: Path) -> None:
    report = surgery.write(surgery.unmerge(surgery.open_checkpoint(made)), tmp_path / "out")
    assert report.computed == 21 and report.copied == 9


def test_only_a_base_as_it_was_opened(saved: Callable[..., Path], tmp_path: Path) -> None:
    split = surgery.split_qkv(surgery.open_checkpoint(saved("phi3")))
    with pytest.raises(PlanError, match="only a base as it was opened can be restored"):
        surgery.plan(surgery.reversible(split, split))


def test_merged_unmerged_and_merged_again(
    saved: Callable[..., Path], adapters: Callable[[str], list[Path]], made: Path, tmp_path: Path
) -> None:
    """The history goes back too: the adapter counts as merged no more. The output may even be merged anew, to the
    same bytes.
    """
    out = unmerged(made, tmp_path / "out")
    again = merged(out, adapters("LoRA"), tmp_path / "again")
    assert hashes(again) == hashes(made)


def test_killed_while_recording(
    saved: Callable[..., Path], adapters: Callable[[str], list[Path]], made: Path, tmp_path: Path
) -> None:
    """A shard under its final name has its record; the rerun ends in the same bytes."""
    base, dest = saved("llama", shard="60KB", dtype=torch.bfloat16), tmp_path / "out"
    steps: list[surgery.Step] = []
    merged(base, adapters("LoRA"), tmp_path / "undisturbed", on_step=steps.append, workers=1)
    for number in [i for i, step in enumerate(steps) if step.kind in ("recorded", "synced", "finished")]:
        run = partial(merged, base, adapters("LoRA"), dest, on_step=dying_at(number + 1), workers=1)
        assert forked(run) == -signal.SIGKILL
        assert not dest.exists()
        merged(base, adapters("LoRA"), dest)
        assert hashes(dest, without=()) == hashes(made, without=())
        shutil.rmtree(dest)


def test_approximately(
    saved: Callable[..., Path], adapters: Callable[[str], list[Path]], made: Path, tmp_path: Path
) -> None:
    """Most weights come back, and the note says about how many do not."""
    base = saved("llama", shard="60KB", dtype=torch.bfloat16)
    undone = surgery.unmerge_approximately(surgery.open_checkpoint(made), surgery.open_adapter(adapters("LoRA")[0]))
    surgery.write(undone, tmp_path / "out")
    merged_names = changed(base, made)
    pairs = [(loaded(base)[name], loaded(tmp_path / "out")[name]) for name in merged_names]
    true = sum(int((a != b).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)
    note = next(n for n in undone.notes if "will not be the base's" in n)
    said = float(note.split("about ")[1].split("%")[0]) / 100
    assert 0 < true < 0.3 and 0.7 * true < said < 1.4 * true


def test_only_what_was_merged_is_subtracted(
    saved: Callable[..., Path], adapters: Callable[[str], list[Path]], made: Path
) -> None:
    """As far as a manifest tells."""
    other = surgery.open_adapter(adapters("several adapters")[1])
    with pytest.raises(AdapterError, match="not one that was merged into this checkpoint"):
        surgery.unmerge_approximately(surgery.open_checkpoint(made), other)
    assert any(
        "taken on trust" in note
        for note in surgery.unmerge_approximately(surgery.open_checkpoint(saved("llama")), other).notes
    )


def test_other_surgeries_say_that_the_record_stays_behind(made: Path) -> None:
    assert any("an undo record is here, and stays here" in note for note in surgery.open_checkpoint(made).notes)
    assert not any("stays here" in note for note in surgery.unmerge(surgery.open_checkpoint(made)).notes)


def test_a_cut_record_says_how_to_mend_it(made: Path, tmp_path: Path) -> None:
    sidecars(made)[0].write_bytes(sidecars(made)[0].read_bytes()[:-5])
    check_refused(made, tmp_path / "out", "the undo record is damaged", "take the record from a copy")


@pytest.mark.parametrize("case", ["DoRA", "a saved head", "trained tokens"])
def test_what_no_subtraction_undoes(
    case: str, adapters: Callable[[str], list[Path]], saved: Callable[..., Path]
) -> None:
    with pytest.raises(NotSupported, match="which no subtraction undoes"):
        surgery.unmerge_approximately(surgery.open_checkpoint(saved("llama")), surgery.open_adapter(adapters(case)[0]))


@given(st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_predictions_do_not_depend_on_what_is_asked_for(tmp_path: Path, data: st.DataObject) -> None:
    """Any elements of a prediction are those of the whole, bit for bit: for every dtype, rank, gain and kind of
    delta.
    """
    dtype = data.draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]))
    rows, columns, rank = (
        data.draw(st.integers(1, 90)),
        data.draw(st.sampled_from([1, 7, 300])),
        data.draw(st.sampled_from([1, 5, 300])),
    )
    shapes = {
        "w": (rows, columns),
        "b": (rows, rank),
        "a": (rank, columns),
        "m": (rows,),
        "n": (rows,),
        "c": (columns,),
        "e": (columns,),
    }
    torch.manual_seed(data.draw(st.integers(0, 9)))
    save_file(
        {n: torch.randn(s).to(dtype if n == "w" else torch.float32) for n, s in shapes.items()},
        tmp_path / "model.safetensors",
    )
    t = surgery.open_checkpoint(tmp_path / "model.safetensors").tensors
    gain = data.draw(st.sampled_from([None, Gain(t["m"], t["n"]), Gain(t["c"], t["e"], columns=True)]))
    before = Before(t["w"].dtype, t["w"], (LowRank(t["b"], t["a"], 0.3), Dense(t["w"], 0.01)), gain)
    start = data.draw(st.integers(0, before.size - 1))
    stop = data.draw(st.integers(start + 1, before.size))
    item = before.dtype.bits // 8
    with exact():
        whole, part = bytearray(before.nbytes), bytearray((stop - start) * item)
        into(before, 0, before.size, memoryview(whole), workspace_of(DEFAULT_MEMORY))
        into(before, start, stop, memoryview(part), workspace_of(LEAST_BUDGET))
    assert part == whole[start * item : stop * item]


def test_what_was_never_merged_is_said_to_be_so(saved: Callable[..., Path], tmp_path: Path) -> None:
    """A base, what other surgeries made of it, and what was given back already: none of them lacks --reversible."""
    what = {"base": "the manifest tells nothing: no surgery wrote this folder"}
    shutil.copytree(saved("phi3"), tmp_path / "base")
    surgery.write(surgery.split(surgery.open_checkpoint(tmp_path / "base")), tmp_path / "split")
    surgery.write(surgery.open_checkpoint(tmp_path / "base"), tmp_path / "resharded", "20KB")
    what |= {"split": "the manifest tells of split", "resharded": "nothing was merged here that could be taken back"}
    for name, said in what.items():
        with pytest.raises(VerificationFailed) as caught:
            surgery.unmerge(surgery.open_checkpoint(tmp_path / name))
        assert said in str(caught.value) and "made with --reversible" not in str(caught.value), name


@pytest.mark.parametrize("shape", [(1, 1 << 30), (64, 1 << 24, 8), (1 << 30, 1), (3, 5), (1, 1, 1 << 30), (128, 9, 9)])
def test_an_estimate_reads_a_corner(shape: tuple[int, ...]) -> None:
    """However wide a tensor is, and it is asked of a sum still: with all of its rank, of a part of its rows."""
    base = Zeros(DTYPES["BF16"], shape)
    delta = LowRank(Zeros(DTYPES["F32"], (*shape[:-1], 4)), Zeros(DTYPES["F32"], (4, shape[-1])), 0.5)
    tensor = add(base, [delta])
    assert isinstance(tensor, Sum)
    found = sampled(tensor)
    assert found.size <= SEEN and found.shape[0] <= 64 and len(found.shape) == len(shape)
    assert found.size in (min(tensor.size, SEEN), math.prod((64, *shape[1:])))
    assert found.deltas[0].factors[0].shape[-1] == 4


def test_a_base_of_several_shards_comes_back_in_one(saved: Callable[..., Path], tmp_path: Path) -> None:
    """Without the index, which is of shards that are not there."""
    base = surgery.open_checkpoint(saved("llama", shard="60KB"))
    write_adapter(tmp_path / "a", {"model.layers.0.mlp.up_proj": (80, 48)})
    made = surgery.merge(base, surgery.open_adapter(tmp_path / "a"), reversible=True)
    surgery.write(made, tmp_path / "merged")
    surgery.write(surgery.unmerge(surgery.open_checkpoint(tmp_path / "merged")), tmp_path / "back", "5GB")
    assert [path.name for path in (tmp_path / "back").glob("model*")] == ["model.safetensors"]
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert all(torch.equal(back[name], base.load(name)) for name in base.tensors) and back.keys() == base.tensors.keys()
