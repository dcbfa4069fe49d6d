"""Surgery on what lies on the Hub: the same result as from the same files here, and no byte is fetched that is not
needed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
from conftest import hashes
from handmade import write_adapter, write_phi3
from huggingface_hub import constants, snapshot_download
from typer.testing import CliRunner, Result

import surgery
from hub.faults import Before, Reset, Short, Slow, Status
from hub.server import TOKEN, Hub
from surgery.errors import HubUnreachable, SourceChanged
from surgery.files.safetensors import read_header
from surgery.hub import remote
from surgery.lazy.tensor import narrow
from surgery_cli.app import app

Saved = Callable[..., Path]
Steps = Callable[..., "surgery.Checkpoint | surgery.Adapter"]


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, which are not made."""
    made: list[float] = []
    monkeypatch.setattr(remote, "_wait", lambda seconds, stop: made.append(seconds))
    return made


def put(hub: Hub, name: str, folder: Path) -> str:
    """The folder, and nothing else, as a repository of that name; large files are on the second origin."""
    hub.put_folder(name, folder)
    hub.put(name, {".gitattributes": None})
    hub.redirect = True
    return name


def trained(family: str, path: Path, **options: Any) -> Path:
    """An adapter of random factors for the family, as PEFT saves it."""
    model = peft.get_peft_model(tiny_models.build(family), peft.LoraConfig(**{"r": 4, **options})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    model.save_pretrained(path)
    return path


def sent(hub: Hub, pattern: str = "GET .*/(resolve|file)/") -> int:
    """Bytes of files that were fetched."""
    return sum(seen.sent for seen in hub.seen(pattern))


# From the Hub as from here

SURGERIES: dict[str, tuple[str, Steps]] = {
    "as it is": ("llama", lambda c: c),
    "split": ("phi3", surgery.split),
    "columns": ("gpt2", surgery.split_qkv),
    "heads": ("gpt_neox", surgery.split_qkv),
    "fused again": ("bloom", lambda c: surgery.fuse(surgery.split(c))),
    "renamed": ("bert", lambda c: surgery.drop(surgery.rename(c, [("^bert", "b")]), r".*qa_outputs.*")),
    "converted": ("phi3", lambda c: surgery.convert(c, "llama")),
    "injected": ("llama", lambda c: surgery.inject(c, ["q_proj"], modules_to_save=["lm_head"])),
    "injected dora": ("gpt2", lambda c: surgery.inject(c, ["c_attn"], use_dora=True)),
}


@pytest.mark.parametrize("size", [None, "50KB"])
@pytest.mark.parametrize("name", SURGERIES)
def test_the_same_from_the_hub(name: str, size: str | None, hub: Hub, saved: Saved, tmp_path: Path) -> None:
    family, steps = SURGERIES[name]
    folder = saved(family, shard="60KB")
    there, here = steps(surgery.open_checkpoint(put(hub, "org/base", folder))), steps(surgery.open_checkpoint(folder))
    if isinstance(there, surgery.Adapter):
        assert there.config["base_model_name_or_path"] == "org/base"
        assert there.config["revision"] == hub.repos["org/base"].branches["main"]
        size, unlike = None, ("adapter_config.json", ".surgery")
    else:
        unlike = (".surgery",)
    surgery.write(there, tmp_path / "there", size)
    surgery.write(here, tmp_path / "here", size)
    assert hashes(tmp_path / "there", without=unlike) == hashes(tmp_path / "here", without=unlike) != {}


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}], ids=str)
@pytest.mark.parametrize("where", ["base", "adapter", "both"])
def test_the_same_merge_from_the_hub(
    where: str, options: dict[str, Any], hub: Hub, saved: Saved, tmp_path: Path
) -> None:
    base, adapter = (
        saved("llama", shard="60KB"),
        trained("llama", tmp_path / "a", target_modules=["q_proj", "down_proj"], **options),
    )
    made = surgery.merge(
        surgery.open_checkpoint(put(hub, "org/base", base) if where != "adapter" else base),
        surgery.open_adapter(put(hub, "org/adapter", adapter) if where != "base" else adapter),
    )
    surgery.write(made, tmp_path / "there")
    surgery.write(surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter)), tmp_path / "here")
    assert hashes(tmp_path / "there") == hashes(tmp_path / "here")
    there, here = (json.loads((tmp_path / d / ".surgery" / "manifest.json").read_text()) for d in ("there", "here"))
    (told,), (local,) = there["history"], here["history"]
    assert told["base"] == ("org/base" if where != "adapter" else base.name)
    assert told["adapters"][0]["name"] == ("org/adapter" if where != "base" else "a")
    assert {**told, "base": "", "adapters": [{**told["adapters"][0], "name": "a"}]} == {**local, "base": ""}
    whole = len(hub.seen("GET /file/.*adapter_model"))
    assert whole <= 2  # its header, and all of it once, for any number of workers


@pytest.mark.parametrize("held", [96_000_000, 0])
def test_lora_from_two_checkpoints_on_the_hub(
    held: int, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same factors as from here; what is there is fetched once, however often it is gone through."""
    monkeypatch.setattr("surgery.surgeries.algebra.extract.MEMORY", held)
    model = tiny_models.build("llama")
    model.save_pretrained(tmp_path / "base", max_shard_size="60KB")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "mlp" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    model.save_pretrained(tmp_path / "tuned", max_shard_size="60KB")
    folders = [tmp_path / name for name in ("base", "tuned")]
    surgery.write(surgery.extract(*map(surgery.open_checkpoint, folders), rank=4), tmp_path / "here")
    places = [surgery.open_checkpoint(put(hub, f"org/{folder.name}", folder)) for folder in folders]
    surgery.write(surgery.extract(*places, rank=4), tmp_path / "there")
    weights = "adapter_model.safetensors"
    assert hashes(tmp_path / "there")[weights] == hashes(tmp_path / "here")[weights]
    config = json.loads((tmp_path / "there" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/base"
    size = sum(path.stat().st_size for folder in folders for path in folder.glob("*.safetensors"))
    assert sent(hub) < 2 * size  # read ahead, with headers; four times, if it were fetched again


def test_a_vocabulary_of_the_adapters(hub: Hub, saved: Saved, tmp_path: Path) -> None:
    """Its tokenizer comes along from there."""
    model = tiny_models.build("llama")
    model.resize_token_embeddings(101)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    (tmp_path / "a" / "README.md").unlink()
    put(hub, "org/adapter", tmp_path / "a")
    surgery.write(
        surgery.merge(surgery.open_checkpoint(saved("llama")), surgery.open_adapter("org/adapter")), tmp_path / "out"
    )
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 101


def test_the_manifest_says_where_it_is_from(hub: Hub, tmp_path: Path) -> None:
    folder = write_phi3(tmp_path / "base", layers=1, hidden=32)
    surgery.write(surgery.open_checkpoint(put(hub, "org/base", folder)), tmp_path / "out")
    said = json.loads((tmp_path / "out" / ".surgery" / "manifest.json").read_text())["inputs"][0]
    shard = "model-00001-of-00001.safetensors"
    assert said["name"] == f"org/base@{hub.repos['org/base'].branches['main']}"
    assert said["digest"] == "sha256 of the whole file"
    assert said["files"] == {shard: {"size": (folder / shard).stat().st_size, "sha256": hashes(folder)[shard]}}


def test_the_history_goes_on(hub: Hub, tmp_path: Path) -> None:
    """What surgery wrote and was sent to the Hub is known to be its work."""
    surgery.write(
        surgery.split(surgery.open_checkpoint(write_phi3(tmp_path / "base", layers=1, hidden=32))), tmp_path / "split"
    )
    there = surgery.open_checkpoint(put(hub, "org/split", tmp_path / "split"))
    assert [step["surgery"] for step in there.history] == ["split"]
    assert (
        surgery.verify("org/split", check_class=False).checks[1].detail
        == "2 files are there, of the size that surgery wrote"
    )


# No more than is needed


@pytest.fixture
def base(hub: Hub, tmp_path: Path) -> Path:
    """A checkpoint of 3 shards of 1.6 MB, and the same as `org/base`."""
    folder = write_phi3(tmp_path / "base", layers=3, hidden=360)
    put(hub, "org/base", folder)
    return folder


def here(folder: Path) -> dict[str, str]:
    """What is written of the same files from here."""
    surgery.write(surgery.open_checkpoint(folder), folder.parent / "from here", overwrite=True)
    return hashes(folder.parent / "from here")


def headers_of(folder: Path) -> int:
    """Bytes of what is fetched to open it: first requests for headers, and small files."""
    shards = [max(remote.FIRST, read_header(str(p))[1].data) for p in folder.glob("*.safetensors")]
    return sum(shards) + sum(p.stat().st_size for p in folder.glob("*.json"))


def test_looking_costs_headers(hub: Hub, base: Path, tmp_path: Path) -> None:
    looks: dict[str, Callable[[], object]] = {
        "inspect": lambda: surgery.inspect("org/base"),
        "reshard": lambda: surgery.plan(surgery.open_checkpoint("org/base"), "1MB"),
        "split": lambda: surgery.plan(surgery.split(surgery.open_checkpoint("org/base"))),
        "inject": lambda: surgery.write(
            surgery.inject(surgery.open_checkpoint("org/base"), ["o_proj"]), tmp_path / "a"
        ),
        "verify": lambda: surgery.verify("org/base", check_class=False),
    }
    write_adapter(tmp_path / "x", {"model.layers.0.self_attn.qkv_proj": (720, 360)})
    looks["split an adapter"] = lambda: surgery.write(
        surgery.split(surgery.open_adapter(tmp_path / "x"), base=surgery.open_checkpoint("org/base")), tmp_path / "b"
    )
    for name, look in looks.items():
        hub.log.clear()
        remote.forget()
        look()
        assert 0 < sent(hub) <= headers_of(base), name


def test_narrow_work_costs_what_it_reads(hub: Hub, base: Path, tmp_path: Path) -> None:
    """Of a checkpoint of which little is kept, little is fetched: exactly that."""
    checkpoint = surgery.drop(surgery.open_checkpoint("org/base"), r"(?!model\.layers\.1\.self_attn\.o_proj).*")
    opened = sent(hub)
    surgery.write(checkpoint, tmp_path / "out")
    assert sent(hub) - opened == 360 * 360 * 2 + (base / "config.json").stat().st_size


@pytest.mark.parametrize("steps", [lambda c: c, surgery.split], ids=["as it is", "split"])
def test_all_of_it_costs_its_size(steps: Steps, hub: Hub, base: Path, tmp_path: Path) -> None:
    surgery.write(steps(surgery.open_checkpoint("org/base")), tmp_path / "out", workers=3)
    size = sum(p.stat().st_size for p in base.iterdir())
    assert size <= sent(hub) <= size + headers_of(base)


def test_columns_cost_little_more(hub: Hub, tmp_path: Path) -> None:
    """Runs of a few hundred bytes are not a request each."""
    folder = write_phi3(tmp_path / "base", layers=1, hidden=400)
    checkpoint = surgery.open_checkpoint(put(hub, "org/base", folder))
    for place, one in (("there", checkpoint), ("here", surgery.open_checkpoint(folder))):
        cut = {name: narrow(t, 1, 100, 200) if len(t.shape) == 2 else t for name, t in one.tensors.items()}
        surgery.write(dataclasses.replace(one, tensors=cut, inputs=()), tmp_path / place)
    assert hashes(tmp_path / "there") == hashes(tmp_path / "here")
    whole = sum(t.nbytes for t in checkpoint.tensors.values())
    assert len(hub.seen("GET /file/")) < 30
    assert sent(hub, "GET /file/") <= whole + remote.FIRST


# What happens on the way


def test_faults_change_nothing(hub: Hub, base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", {f"model.layers.{i}.self_attn.o_proj": (360, 360) for i in range(3)})
    put(hub, "org/adapter", adapter)
    faults = [
        hub.fault(Status(503), "GET /api/models/org/base$", times=2),
        hub.fault(Status(500), "GET .*/tree/", times=1),
        hub.fault(Status(429, {"Retry-After": "1"}), "GET .*/resolve/.*00002", times=2),
        hub.fault(Reset(70_000), "GET /file/.*0000[12]", times=4, skip=2),
        hub.fault(Short(1000), "GET /file/.*00003", times=3, skip=1),
        hub.fault(Short(500), "GET /file/.*adapter_model", times=2),
        hub.fault(Status(502), "GET .*/config.json", times=1),
    ]
    surgery.write(
        surgery.merge(surgery.open_checkpoint("org/base"), surgery.open_adapter("org/adapter")),
        tmp_path / "there",
        workers=3,
    )
    assert [fault.fired for fault in faults] == [2, 1, 2, 4, 3, 2, 1]
    surgery.write(surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter)), tmp_path / "here")
    assert hashes(tmp_path / "there") == hashes(tmp_path / "here")


def test_a_link_that_expires_under_way(hub: Hub, base: Path, tmp_path: Path) -> None:
    checkpoint = surgery.open_checkpoint("org/base")
    hub.expire_links()
    surgery.write(checkpoint, tmp_path / "there")
    assert 403 in {seen.status for seen in hub.log if seen.origin == "cdn"}
    assert hashes(tmp_path / "there") == here(base)


def test_a_branch_that_moves(hub: Hub, base: Path, tmp_path: Path) -> None:
    """What was opened is what is written: no tensor is from the new commit, though all have the same names and
    sizes.
    """
    newer = write_phi3(tmp_path / "newer", layers=3, hidden=360, seed=99)
    (newer / "new.txt").write_text("x")
    moved = hub.fault(
        Before(lambda: hub.put_folder("org/base", newer)), "GET .*/tree/"
    )  # between the commit's name and its files
    checkpoint = surgery.open_checkpoint("org/base")
    surgery.write(checkpoint, tmp_path / "out")
    assert moved.fired == 1
    assert hashes(tmp_path / "out") == here(base) != here(newer)
    surgery.write(surgery.open_checkpoint("org/base"), tmp_path / "out2")
    assert hashes(tmp_path / "out2") == here(newer)


def test_a_plan_is_of_a_commit(hub: Hub, base: Path, tmp_path: Path) -> None:
    first = surgery.plan(surgery.open_checkpoint("org/base"))
    assert surgery.plan(surgery.open_checkpoint("hf://org/base@main")).identity == first.identity
    hub.put("org/base", {"other.txt": b"x"})
    assert surgery.plan(surgery.open_checkpoint("org/base")).identity != first.identity
    surgery.execute(pickle.loads(pickle.dumps(first)), tmp_path / "out")
    assert hashes(tmp_path / "out") == here(base)


def test_a_broken_run_is_resumed(hub: Hub, base: Path, tmp_path: Path) -> None:
    """By finished shards: what they hold is not fetched again."""

    def fail(step: surgery.Step) -> None:
        if step.kind == "finished":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        surgery.write(surgery.open_checkpoint("org/base"), tmp_path / "out", workers=1, on_step=fail)
    hub.log.clear()
    report = surgery.write(surgery.open_checkpoint("org/base"), tmp_path / "out", workers=1)
    assert report.resumed == (tmp_path / "out" / "model-00001-of-00003.safetensors").stat().st_size
    assert not [seen for seen in hub.seen("GET /file/.*00001-of") if not seen.range.startswith("bytes=0-")]
    assert hashes(tmp_path / "out") == here(base)


def test_a_hub_that_is_gone_leaves_what_is_finished(hub: Hub, base: Path, tmp_path: Path) -> None:
    checkpoint = surgery.open_checkpoint("org/base")
    hub.fault(Status(503), "GET .*00003-of", times=1000)
    with pytest.raises(HubUnreachable, match="it answers 503, after all tries"):
        surgery.write(checkpoint, tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()
    hub._faults.set.clear()
    assert surgery.write(checkpoint, tmp_path / "out").resumed > 0
    assert hashes(tmp_path / "out") == here(base)


def test_an_interrupted_run_ends_soon(hub: Hub, base: Path, tmp_path: Path) -> None:
    """No worker waits for the rest of a slow answer."""
    checkpoint, filled = surgery.open_checkpoint("org/base"), list[str]()
    fault = hub.fault(Slow(piece=1000, pause=0.05), "GET /file/", times=1000)  # 80 seconds for a shard

    def interrupt(step: surgery.Step) -> None:
        filled.extend([step.name] if step.kind == "filled" else [])
        if len(filled) == 2:  # both workers have read their first tensor, which is small
            while fault.fired < 3:  # and the other one reads a large one
                time.sleep(0.01)
            raise KeyboardInterrupt

    at = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        surgery.write(checkpoint, tmp_path / "out", workers=2, on_step=interrupt)
    assert time.monotonic() - at < 20
    assert fault.fired == 3


def test_an_adapter_that_is_not_what_the_hub_says(hub: Hub, base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", {"model.layers.0.self_attn.o_proj": (360, 360)}, rank=64)
    hub.put_folder("org/adapter", adapter, hashed=False)  # the hash that it is known by is made up
    opened = surgery.open_adapter("org/adapter")
    with pytest.raises(SourceChanged, match="a file is not what the Hub says it is") as caught:
        surgery.write(surgery.merge(surgery.open_checkpoint(base), opened), tmp_path / "out")
    assert caught.value.where[0].endswith("/adapter_model.safetensors")
    assert not (tmp_path / "out").exists()


def test_a_carried_file_that_is_not_what_the_hub_says(hub: Hub, base: Path, tmp_path: Path) -> None:
    hub.put("org/base", {"tokenizer.model": b"y" * 5000}, hashed=False)
    with pytest.raises(SourceChanged, match="a file is not what the Hub says it is"):
        surgery.write(surgery.open_checkpoint("org/base"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Verify, diff, and the command line


def test_verify(hub: Hub, saved: Saved, tmp_path: Path) -> None:
    """Structure, values and class of what lies there, and whether it is a merge."""
    folder, adapter = saved("phi3", shard="60KB"), trained("phi3", tmp_path / "a", target_modules=["qkv_proj"])
    put(hub, "org/base", folder)
    put(hub, "org/adapter", adapter)
    found = surgery.verify("org/base")
    assert [(c.name, c.ok) for c in found.checks] == [("structure", True), ("class", True)]
    hub.log.clear()
    assert surgery.verify("org/base", values=True, check_class=False).ok
    assert sent(hub) > sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    surgery.write(surgery.merge(surgery.open_checkpoint(folder), surgery.open_adapter(adapter)), tmp_path / "merged")
    put(hub, "org/merged", tmp_path / "merged")
    proved = surgery.verify("org/merged", base="org/base", adapter="org/adapter", check_class=False)
    assert proved.ok and proved.proof is not None
    assert not surgery.verify("org/base", base=folder, adapter=adapter, check_class=False).ok


def test_verify_asks_the_class_by_headers(hub: Hub, saved: Saved) -> None:
    folder = saved("llama", shard="60KB")
    put(hub, "org/base", folder)
    config = json.loads((folder / "config.json").read_text())
    hub.put("org/base", {"config.json": json.dumps(config | {"num_hidden_layers": 4}).encode()})
    found = surgery.verify("org/base")
    assert [(c.name, c.ok) for c in found.checks] == [("structure", True), ("class", False)]
    assert found.checks[1].where[0].startswith("missing: model.layers.3.")
    assert sent(hub) <= headers_of(folder) + 1000


def test_a_hub_that_does_not_answer_is_no_verdict(hub: Hub, base: Path) -> None:
    hub.fault(Status(503), "GET ", times=1000)
    with pytest.raises(HubUnreachable):
        surgery.verify("org/base")


def test_diff(hub: Hub, base: Path, tmp_path: Path) -> None:
    (base / "tokenizer.json").write_bytes(b"x" * 100_000)
    put(hub, "org/base", base)
    other = write_phi3(tmp_path / "other", layers=3, hidden=360, seed=1)
    (other / "tokenizer.json").write_bytes(b"x" * 100_000)
    assert surgery.diff("org/base", base).equal
    assert not hub.seen("GET .*tokenizer.json")  # its hash tells
    hub.put("org/base", {"tokenizer.json": b"y" * 100_000})
    found = surgery.diff("org/base", other)
    assert found.files.changed == ("tokenizer.json",)
    assert len(found.changed) == 12 and not found.only_a


def run(*words: object) -> Result:
    """The command, in this process."""
    return CliRunner().invoke(app, list(map(str, words)))


def test_commands(hub: Hub, base: Path, tmp_path: Path) -> None:
    """Everywhere where a MODEL or an ADAPTER is taken. No token is in what they print or write."""
    adapter = write_adapter(tmp_path / "a", {"model.layers.0.self_attn.qkv_proj": (720, 360)})
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "org/base", "revision": None})
    )
    put(hub, "org/adapter", adapter)
    merged = run("merge", "hf://org/base", "org/adapter@main", "-o", tmp_path / "there")
    assert merged.exit_code == 0, merged.output
    surgery.write(surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter)), tmp_path / "here")
    assert hashes(tmp_path / "there") == hashes(tmp_path / "here")
    split = run("split", "org/adapter", "-o", tmp_path / "split")
    assert split.exit_code == 0, split.output
    assert "base: hf://org/base, as adapter_config.json names it" in split.stdout
    dry = run("split-qkv", "org/base", "--dry-run", "--json")
    assert json.loads(dry.stdout)["tensors"] == 18
    listed = run("inspect", "org/base/", "--tensors", ".*layers.0.*qkv.*")
    assert "model.layers.0.self_attn.qkv_proj.weight" in listed.stdout
    assert run("diff", "org/base", base).exit_code == 0
    proved = run("verify", tmp_path / "there", "--base", "org/base", "--adapter", "hf://org/adapter", "--no-class")
    assert proved.exit_code == 0, proved.output
    gone = run("inspect", "org/nothing")
    assert gone.exit_code == 1 and "there is no such repository, or it is private" in gone.stderr
    written = "".join(p.read_text(errors="replace") for p in tmp_path.rglob("*") if p.is_file())
    assert TOKEN not in written + "".join(r.output for r in (merged, split, dry, listed, proved, gone))


def test_an_adapter_is_no_model_to_convert(hub: Hub, tmp_path: Path) -> None:
    put(hub, "org/adapter", write_adapter(tmp_path / "a", {"model.layers.0.self_attn.qkv_proj": (128, 64)}))
    assert run("split-qkv", "org/adapter", "--as", "llama", "-o", tmp_path / "out").exit_code == 2


def test_a_base_that_cannot_be_asked_for(hub: Hub, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", {"model.layers.0.self_attn.qkv_proj": (128, 64)})
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "org/gone"}))
    found = run("split", adapter, "-o", tmp_path / "out")
    assert found.exit_code == 1
    assert "cannot open hf://org/gone: there is no such repository" in found.stderr
    assert "pass the adapter's base with --base" in found.stderr


def test_offline_from_the_cache(hub: Hub, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot_download("org/base")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.log.clear()
    surgery.write(surgery.open_checkpoint("org/base"), tmp_path / "out")
    assert hub.log == []
    assert hashes(tmp_path / "out") == here(base)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors where the system tells them")
def test_nothing_stays_open(hub: Hub, base: Path, tmp_path: Path) -> None:
    put(hub, "org/adapter", write_adapter(tmp_path / "a", {"model.layers.0.self_attn.o_proj": (360, 360)}))

    def once(out: str) -> int:
        surgery.write(
            surgery.merge(surgery.open_checkpoint("org/base"), surgery.open_adapter("org/adapter")), tmp_path / out
        )
        remote.forget()
        from huggingface_hub import close_session

        close_session()
        return len(os.listdir("/proc/self/fd"))

    first = once("x")
    assert once("y") <= first
