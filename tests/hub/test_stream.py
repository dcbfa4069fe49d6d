"""Straight to the Hub: the same files as a push of the local result, by way of one shard on the disk, resumed by
content.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import hashes
from handmade import write_adapter
from safetensors.torch import save_file
from typer.testing import CliRunner

import surgery
from hub.conftest import environment
from hub.faults import Before, Drop, Kind, Lost, Slow, Status
from hub.server import TOKEN, Hub
from surgery import HubDestination, Report, Step
from surgery.execution.stage import stages
from surgery.files.card import CARD
from surgery.hub import resume
from surgery.hub.resume import JOURNAL, stage_of
from surgery_cli.app import app

REPO, DEST = "org/model", "hf://org/model"
UPLOADS = "(PUT /upload/|POST /v1/xorbs/)"


@pytest.fixture
def split(saved: Callable[..., Path]) -> surgery.Plan:
    """A plan of five shards."""
    return surgery.plan(surgery.split_qkv(surgery.open_checkpoint(saved("phi3"))), "60KB")


def shards(plan: surgery.Plan) -> list[str]:
    return [shard.name for shard in plan.shards]


def pushed(hub: Hub, plan: surgery.Plan, folder: Path) -> dict[str, str]:
    """What a push of the local result puts on the Hub."""
    surgery.execute(plan, folder)
    surgery.push(folder, "someone/model")
    return hub.hashes("someone/model")


def left() -> list[str]:
    """The stages that are left for the repository."""
    return stages(stage_of(DEST))


def sent(hub: Hub) -> int:
    return sum(seen.received for seen in hub.seen(UPLOADS))


def told(plan: surgery.Plan, dest: Any = DEST, **options: Any) -> tuple[Report, list[Step]]:
    steps: list[Step] = []
    return surgery.execute(plan, dest, on_step=steps.append, **options), steps


def names(steps: list[Step], kind: str) -> list[str]:
    return [step.name for step in steps if step.kind == kind]


# What arrives.


def test_the_hub_holds_what_a_push_of_the_local_result_gives(
    hub: Hub, mode: str, split: surgery.Plan, tmp_path: Path
) -> None:
    """Every file by its hash, in one commit, with nothing to be seen before it and nothing left here after it."""
    before: list[list[str]] = []
    report = surgery.execute(
        split, DEST, on_step=lambda s: before.append(hub.titles(REPO)) if s.kind in ("sent", "staged") else None
    )
    assert hub.hashes(REPO) == pushed(hub, split, tmp_path / "out")
    assert hub.titles(REPO) == ["Upload with surgery: split", "initial commit"]
    assert len(before) == len(split.shards) + 1 > 4 and all(titles == ["initial commit"] for titles in before)
    assert (
        report.commit is not None
        and report.output == report.commit.url
        and set(report.commit.sent) >= set(shards(split))
    )
    assert report.resumed == 0 and left() == [] and bool(hub.seen("/upload/")) == (mode == "lfs")


@pytest.mark.parametrize(("room", "workers"), [(1, 1), (1, 4), (2, 1), (2, 4), (100, 2)])
def test_no_more_shards_are_on_the_disk_than_there_is_room_for(
    hub: Hub, split: surgery.Plan, tmp_path: Path, room: int, workers: int
) -> None:
    """Whatever the number of workers; and the bytes do not depend on it."""
    counts = []

    def count(step: Step) -> None:
        if step.kind != "staged":
            counts.append(
                sum(".safetensors" in name and not name.endswith("json") for name in os.listdir(stages(str(place))[0]))
            )

    place = tmp_path / "stages" / "org--model"
    goal = HubDestination(REPO, stage=str(place.parent), stage_shards=room)
    surgery.execute(split, goal, workers=workers, on_step=lambda s: count(s) if s.kind != "published" else None)
    assert 1 <= max(counts) <= room and hub.hashes(REPO) == pushed(hub, split, tmp_path / "out")
    assert room > 1 or max(counts) == 1


def test_one_is_sent_while_the_next_is_made(hub: Hub, split: surgery.Plan) -> None:
    """With room for two: the second shard is begun before the first has arrived."""
    begun = threading.Event()
    seen: list[bool] = []
    hub.fault(Before(lambda: seen.append(begun.wait(20))), "/preupload/")
    surgery.execute(
        split,
        HubDestination(REPO, stage_shards=2),
        on_step=lambda s: begun.set() if (s.kind, s.name) == ("begun", shards(split)[1]) else None,
    )
    assert seen == [True]


def test_from_the_hub_to_the_hub(hub: Hub, mode: str, saved: Callable[..., Path], tmp_path: Path) -> None:
    """A merge of two repositories into a third, by the command; the card names the first."""
    hub.put_folder("org/base", saved("llama"))
    hub.put("org/base", {CARD: b"---\nlicense: apache-2.0\n---\n"})
    hub.put_folder("org/adapter", write_adapter(tmp_path / "adapter", {"model.layers.0.self_attn.o_proj": (48, 40)}))
    words = ["--max-shard-size", "50KB", "--private", "-m", "Both", "--tag", "v1"]
    result = CliRunner().invoke(app, ["merge", "org/base", "org/adapter", "-o", DEST, *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert hub.titles(REPO) == ["Both", "initial commit"] and hub.repos[REPO].private
    assert hub.repos[REPO].tags == {"v1": hub.repos[REPO].branches["main"]}
    local = tmp_path / "merged"
    surgery.write(
        surgery.merge(surgery.open_checkpoint("org/base"), [surgery.open_adapter("org/adapter")]), local, "50KB"
    )
    surgery.push(local, "someone/model")
    assert hub.hashes(REPO) == hub.hashes("someone/model")
    assert b"base_model:\n- org/base\n" in hub.files(REPO)[CARD].read()
    assert surgery.verify(DEST, base="org/base", adapter="org/adapter").ok


def test_a_merge_over_the_repository_takes_its_adapter_away(
    hub: Hub, saved: Callable[..., Path], tmp_path: Path
) -> None:
    """Left there, transformers would apply it to the merged weights once more; a dry run says so, and what other
    model was there.
    """
    hub.put_folder(REPO, saved("phi3"))
    adapter = write_adapter(tmp_path / "adapter", {"model.layers.0.self_attn.o_proj": (48, 48)})
    hub.put_folder(REPO, adapter)
    merged = surgery.merge(surgery.open_checkpoint(saved("phi3")), surgery.open_adapter(adapter))
    surgery.write(merged, DEST, overwrite=True)
    assert "model.safetensors" in hub.files(REPO) and not [
        path for path in hub.files(REPO) if path.startswith("adapter_")
    ]
    hub.put(REPO, {"config.json": b'{"model_type": "gpt2"}', "adapter_config.json": b"{}"})
    words = ["reshard", str(saved("phi3")), "--max-shard-size", "1GB", "-o", DEST, "--overwrite", "--dry-run", "--json"]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 1 and "config.json: 22 bytes, and not of the size that surgery wrote" in refused.output
    words.append("--discard-edits")
    found = json.loads(CliRunner().invoke(app, words, catch_exceptions=False).stdout)["hub"]
    assert [item["path"] for item in found["delete"] if "surgery" not in item["path"]] == ["adapter_config.json"]
    assert any("of type phi3, and the one that the repository holds is of type gpt2" in note for note in found["notes"])


def test_an_adapter_goes_there_too(hub: Hub, saved: Callable[..., Path]) -> None:
    """Also one that needs scratch, which stays here."""
    adapter = surgery.inject(surgery.open_checkpoint(saved("gpt2")), ["c_attn"], use_dora=True)
    assert surgery.plan(adapter).scratch
    report = surgery.write(adapter, DEST)
    assert report.commit and {"adapter_model.safetensors", "adapter_config.json"} <= set(report.commit.sent)
    assert surgery.open_adapter(DEST).tensors.keys() == adapter.tensors.keys()


def test_a_bulky_file_leaves_the_disk_as_a_shard_does(hub: Hub, saved: Callable[..., Path], tmp_path: Path) -> None:
    """One that is looked at before the commit, such as a tokenizer's, stays until then; both arrive."""
    base = tmp_path / "base"
    surgery.write(surgery.open_checkpoint(saved("llama")), base)
    (base / "voices.dat").write_bytes(os.urandom(11_000_000))
    (base / "tokenizer.json").write_bytes(b" " * 11_000_000)
    plan, sizes = surgery.plan(surgery.open_checkpoint(base)), {}

    def look(step: Step) -> None:
        if step.kind == "staged":
            sizes.update({p.name: p.stat().st_blocks * 512 for p in Path(step.name).iterdir()})

    surgery.execute(plan, DEST, on_step=look)
    assert "voices.dat" not in sizes and sizes["tokenizer.json"] >= 11_000_000
    assert hub.hashes(REPO) == pushed(hub, plan, tmp_path / "out")


# What is there already.


def test_weights_are_not_replaced_unasked(hub: Hub, split: surgery.Plan) -> None:
    hub.put(REPO, {"model-00001-of-00099.safetensors": b"old", "x.bin": b"y", "notes.txt": b"mine"})
    hub.log.clear()
    with pytest.raises(surgery.DestinationError) as caught:
        surgery.execute(split, DEST)
    assert (
        str(caught.value)
        == "the repository holds weights already\n  --> org/model@main\n      model-00001-of-00099.safetensors\n     "
        " x.bin\nhelp: replace them with --overwrite, the history keeps them; or propose it with --create-pr; or"
        " choose another name with -o\n      in Python, --overwrite is overwrite=, --create-pr is create_pr="
    )
    assert not hub.seen("^(POST|PUT)") and left() == []
    report = surgery.execute(split, DEST, overwrite=True)
    assert (
        report.commit
        and report.commit.deleted == ("model-00001-of-00099.safetensors",)
        and "notes.txt" in report.commit.kept
    )
    assert "the repository has other weights, too, which are left alone: x.bin" in report.notes
    assert len(hub.titles(REPO)) == 3


def test_the_same_result_is_not_committed_twice(hub: Hub, split: surgery.Plan) -> None:
    surgery.execute(split, DEST)
    with pytest.raises(surgery.DestinationError, match="holds weights already") as caught:
        surgery.execute(split, DEST)
    assert caught.value.where[-1] == "they are the result of this very command"
    report = surgery.execute(split, DEST, overwrite=True)
    assert report.commit and report.commit.sent == () and len(hub.titles(REPO)) == 2 and left() == []


def test_a_pull_request_and_a_branch_replace_nothing(hub: Hub, split: surgery.Plan, tmp_path: Path) -> None:
    hub.put(REPO, {"model.safetensors": b"old"})
    report = surgery.execute(split, HubDestination(REPO, create_pr=True))
    assert report.commit and report.commit.pull_request.endswith("/discussions/1")
    surgery.execute(split, f"{DEST}@try")
    want = pushed(hub, split, tmp_path / "out")
    assert hub.hashes(REPO, "refs/pr/1") == hub.hashes(REPO, "try") == want
    assert list(hub.hashes(REPO)) == ["model.safetensors"]


def test_a_place_that_is_no_repository(hub: Hub, split: surgery.Plan) -> None:
    for dest, what in (
        ("hf://org/model/folder", "a push goes to a repository"),
        ("hf://datasets/org/x", "only repositories of models"),
    ):
        with pytest.raises(surgery.SurgeryError, match=what) as caught:
            surgery.execute(split, dest)
        assert "hf://org/name" in str(caught.value.help)
    with pytest.raises(surgery.SurgeryError, match="opened against main") as caught:
        surgery.execute(split, HubDestination(f"{REPO}@dev", create_pr=True))
    assert "@dev" in str(caught.value.help)
    with pytest.raises(surgery.SurgeryError, match="0 shards in the stage are too few"):
        surgery.execute(split, HubDestination(REPO, stage_shards=0))
    assert not hub.seen("^(POST|PUT)")


# A run that broke.


def broken(hub: Hub, plan: surgery.Plan, done: int, dest: Any = DEST) -> None:
    """A run that could send `done` shards."""
    fault = hub.fault(Status(403), "/preupload/", skip=done)
    with pytest.raises(surgery.NotAllowed) as caught:
        surgery.execute(plan, dest)
    assert fault.fired == 1 and hub.titles(REPO) == ["initial commit"]
    assert (
        caught.value.where[-1] == f"{done} of {len(plan.shards)} shards are sent; the same command goes on from there"
    )
    hub.log.clear()


def test_only_what_is_missing_is_made_and_sent(hub: Hub, mode: str, split: surgery.Plan, tmp_path: Path) -> None:
    """Three shards were sent, a fourth was finished: three are taken up, the fourth is sent as it is, the others are
    made.
    """
    broken(hub, split, 3)
    (stage,) = left()
    assert [p.name for p in Path(stage).glob("*.safetensors")] == [shards(split)[3]]
    report, steps = told(split)
    assert sorted(names(steps, "resumed")) == shards(split)[:4] and sorted(names(steps, "begun")) == shards(split)[4:]
    assert names(steps, "sent") == shards(split)[4:] and report.resumed == sum(s.nbytes for s in split.shards[:4])
    assert 0 < sent(hub) < sum(s.nbytes for s in split.shards[3:]) + 20_000
    assert hub.hashes(REPO) == pushed(hub, split, tmp_path / "out") and len(hub.titles(REPO)) == 2 and left() == []


def test_what_the_hub_has_lost_is_made_again(hub: Hub, mode: str, split: surgery.Plan, tmp_path: Path) -> None:
    broken(hub, split, 3)
    lost = next(iter(hub.repos[REPO].objects))
    hub.repos[REPO].objects.pop(lost)
    _, steps = told(split)
    assert len(names(steps, "resumed")) == 3 and len(names(steps, "begun")) == len(split.shards) - 3
    assert hub.hashes(REPO) == pushed(hub, split, tmp_path / "out")


def test_the_whole_repository_may_be_gone(hub: Hub, split: surgery.Plan, tmp_path: Path) -> None:
    broken(hub, split, 3)
    del hub.repos[REPO]
    _, steps = told(split)
    assert len(names(steps, "begun")) == len(split.shards) - 1
    assert hub.hashes(REPO) == pushed(hub, split, tmp_path / "out")


def test_a_header_that_stands_for_a_sent_shard_is_never_sent(hub: Hub, split: surgery.Plan, tmp_path: Path) -> None:
    """A run that broke at the commit leaves files of zeros in the stage; where the Hub lost the true ones they are
    made, not found.
    """
    fault = hub.fault(Status(403), "POST .*/commit/")
    with pytest.raises(surgery.NotAllowed):
        surgery.execute(split, DEST)
    assert fault.fired and {p.name for p in Path(left()[0]).glob("*.safetensors")} == set(shards(split))
    hub.repos[REPO].objects.clear()
    _, steps = told(split)
    assert sorted(names(steps, "begun")) == shards(split) and hub.hashes(REPO) == pushed(hub, split, tmp_path / "out")


def test_a_client_that_cannot_take_up_says_so(hub: Hub, split: surgery.Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is made again, nothing of it sent twice, and the report tells why."""
    import huggingface_hub

    broken(hub, split, 3)
    with monkeypatch.context() as patched:
        patched.setattr(huggingface_hub, "__version__", "3.0.0")
        report, steps = told(split)
    assert len(names(steps, "begun")) == len(split.shards) - 1
    note = (
        "3 files that a broken run sent are made again, since they cannot be taken up: huggingface_hub 3.0.0 has not"
        " been tested for it"
    )
    assert note in report.notes and len(hub.seen("PUT /upload/")) <= len(split.shards) - 3


def test_attributes_that_are_gone_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set on an operation is what the client's own class has: a new release that renames one fails here."""
    from huggingface_hub import CommitOperationAdd, lfs

    assert resume.unsupported() == ""
    monkeypatch.delattr(lfs, "post_lfs_batch_info")
    monkeypatch.setattr(resume, "_SET", resume._SET | {"_is_there"})
    assert resume.unsupported().endswith("has no _is_there, lfs.post_lfs_batch_info")
    fields = {field.name for field in dataclasses.fields(CommitOperationAdd)}
    assert vars(resume.operation("a", resume.Entry(3, "00" * 32))).keys() <= fields


def test_the_journal_tells_no_secret_and_no_path(hub: Hub, mode: str, split: surgery.Plan, tmp_path: Path) -> None:
    stage = tmp_path / "stages"
    broken(hub, split, 2, HubDestination(REPO, stage=str(stage)))
    found = [p for p in stage.rglob("*") if p.is_file()]
    (journal,) = (p for p in found if p.as_posix().endswith(JOURNAL))
    content = json.loads(journal.read_text())
    assert content["identity"] == split.identity and list(content["files"]) == shards(split)[:2]
    assert all(TOKEN.encode() not in p.read_bytes() for p in found) and str(tmp_path) not in journal.read_text()
    journal.write_text("{")
    with pytest.raises(surgery.FormatError, match="the journal of what was sent is damaged"):
        surgery.execute(split, HubDestination(REPO, stage=str(stage)))


def test_a_run_that_died_after_its_commit_is_done(
    hub: Hub, split: surgery.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command finds all of it there; another one's weights of that name are still not replaced."""
    with monkeypatch.context() as patched:
        patched.setattr("surgery.hub.stream.shutil.rmtree", _dies)
        with pytest.raises(KeyboardInterrupt):
            surgery.execute(split, DEST)
    assert len(hub.titles(REPO)) == 2 and len(left()) == 1
    before = hub.hashes(REPO)
    report, steps = told(split)
    assert report.commit and report.commit.sent == () and names(steps, "begun") == []
    assert hub.hashes(REPO) == before and len(hub.titles(REPO)) == 2 and left() == []


def test_weights_that_came_after_a_dead_runs_commit_stay(
    hub: Hub, split: surgery.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("surgery.hub.stream.shutil.rmtree", _dies)
        with pytest.raises(KeyboardInterrupt):
            surgery.execute(split, DEST)
    hub.put(REPO, {shards(split)[0]: b"another"})
    with pytest.raises(surgery.DestinationError, match="holds weights already"):
        surgery.execute(split, DEST)


def _dies(path: str) -> None:
    raise KeyboardInterrupt


def test_clean_of_a_name_on_the_hub_says_how_to_write_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless there is a folder in which it would be: then there is nothing to clean."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(surgery.DestinationError, match="no such folder") as caught:
        surgery.clean("org/phi")
    assert str(caught.value.help).endswith("surgery clean hf://org/phi")
    (tmp_path / "org").mkdir()
    assert surgery.clean("org/phi") == ()


def test_clean_knows_the_stage(hub: Hub, split: surgery.Plan) -> None:
    broken(hub, split, 2)
    (stage,) = left()
    result = CliRunner().invoke(app, ["clean", DEST], catch_exceptions=False)
    assert result.stdout.startswith(f"removed {stage} (") and left() == []


def test_a_broken_whole_is_not_committed(hub: Hub, split: surgery.Plan) -> None:
    """The index is checked against the headers of all shards before the commit."""
    index = "model.safetensors.index.json"
    raw = split.files[index]
    assert isinstance(raw, bytes)
    content = json.loads(raw)
    content["weight_map"].popitem()
    with pytest.raises(surgery.VerificationFailed, match="checks failed"):
        surgery.execute(dataclasses.replace(split, files={**split.files, index: json.dumps(content).encode()}), DEST)
    assert hub.titles(REPO) == ["initial commit"]


# What goes wrong.

PASSING = [
    (Status(503), "POST .*/preupload/", 2, "lfs"),
    (Drop(after=10_000), "PUT /upload/", 2, "lfs"),
    (Status(500), "PUT /upload/", 2, "lfs"),
    (Status(503), "POST /v1/xorbs/", 1, "xet"),
    (Drop(after=10_000), "POST /v1/xorbs/", 1, "xet"),
    (Status(503), "POST .*/commit/", 2, "xet"),
    (Lost(), "POST .*/commit/", 1, "lfs"),
    (Lost(), "POST .*/commit/", 1, "xet"),
    (Lost(), "POST /api/repos/create", 1, "lfs"),
]


@pytest.mark.parametrize(
    ("kind", "pattern", "times", "mode"), PASSING, indirect=["mode"], ids=lambda v: v if isinstance(v, str) else None
)
def test_what_passes_is_outlived(
    hub: Hub, mode: str, split: surgery.Plan, kind: Kind, pattern: str, times: int, tmp_path: Path
) -> None:
    fault = hub.fault(kind, pattern, times=times)
    surgery.execute(split, DEST)
    assert fault.fired == times and len(hub.titles(REPO)) == 2 and left() == []
    assert hub.hashes(REPO) == pushed(hub, split, tmp_path / "out")


REFUSED = [
    (
        Status(401),
        "POST .*/preupload/",
        0,
        surgery.NotAllowed,
        "cannot send model-00001-of-.*: the Hub does not accept the token",
        "lfs",
    ),
    (
        Status(503),
        "PUT /upload/",
        1,
        surgery.HubUnreachable,
        "cannot send model-00002-of-.*: it answers 503, after all tries",
        "lfs",
    ),
    (
        Drop(after=10_000),
        "PUT /upload/",
        1,
        surgery.HubUnreachable,
        "cannot send model-00002-of-.*: no answer from",
        "lfs",
    ),
    (
        Drop(after=10_000),
        "POST /v1/xorbs/",
        1,
        surgery.HubUnreachable,
        "cannot send model-00002-of-.*: the connection failed",
        "xet",
    ),
    (
        Status(403),
        "GET .*/xet-write-token/",
        1,
        surgery.NotAllowed,
        "cannot send model-00002-of-.*: the token does not permit it",
        "xet",
    ),
    (
        Status(503),
        "POST .*/commit/",
        0,
        surgery.HubUnreachable,
        "cannot commit to main: it answers 503, after all tries",
        "lfs",
    ),
]


@pytest.mark.parametrize(
    ("kind", "pattern", "skip", "error", "what", "mode"),
    REFUSED,
    indirect=["mode"],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_what_does_not_pass_is_said_and_gone_on_from(
    hub: Hub, mode: str, split: surgery.Plan, kind: Kind, pattern: str, skip: int, error: type[Exception], what: str
) -> None:
    """Nothing is visible, what is finished stays, and the same run goes on from there."""
    fault = hub.fault(kind, pattern, times=1000, skip=skip)
    with pytest.raises(error, match=what) as caught:
        surgery.execute(split, DEST)
    assert (
        fault.fired
        and caught.value.__cause__ is not None
        and hub.titles(REPO) == ["initial commit"]
        and len(left()) == 1
    )
    fault.times = fault.fired
    report, steps = told(split)
    assert report.resumed > 0 or not skip
    assert len(names(steps, "begun")) < len(split.shards) and len(hub.titles(REPO)) == 2


def test_a_competing_commit_is_not_overwritten(hub: Hub, mode: str, split: surgery.Plan, tmp_path: Path) -> None:
    """What changed is said; the same command builds on it, and neither makes nor sends a shard."""
    hub.put(REPO, {"theirs.txt": b"1"})
    fault = hub.fault(Before(lambda: hub.put(REPO, {"theirs.txt": b"2"}, title="theirs")), "/preupload/")
    with pytest.raises(surgery.HubConflict, match="someone else committed to main meanwhile") as caught:
        surgery.execute(split, DEST)
    assert fault.fired == 1 and "changed there: theirs.txt" in caught.value.where and hub.titles(REPO)[0] == "theirs"
    hub.log.clear()
    _, steps = told(split)
    assert names(steps, "begun") == [] and sent(hub) == 0 and len(hub.titles(REPO)) == 4
    assert hub.hashes(REPO, without=(".gitattributes", "theirs")) == pushed(hub, split, tmp_path / "out")


def test_weights_that_came_meanwhile_are_not_replaced_unasked(hub: Hub, split: surgery.Plan) -> None:
    hub.create(REPO)
    hub.fault(Before(lambda: hub.put(REPO, {"model.safetensors": b"theirs"}, title="theirs")), "/preupload/")
    with pytest.raises(surgery.HubConflict):
        surgery.execute(split, DEST)
    with pytest.raises(surgery.DestinationError, match="the repository holds weights already"):
        surgery.execute(split, DEST)


def test_an_object_that_the_hub_denies_at_the_commit(hub: Hub, split: surgery.Plan) -> None:
    """The Hub said that it had what a broken run sent, and then has it not: the way out is said."""
    broken(hub, split, 2)
    hub.fault(Before(hub.repos[REPO].objects.clear), "POST .*/commit/")
    with pytest.raises(surgery.HubError, match="the Hub answers 400") as caught:
        surgery.execute(split, DEST)
    assert (
        caught.value.help == f"if the Hub has lost what an earlier run sent, begin anew: surgery clean {stage_of(DEST)}"
    )
    surgery.clean(DEST)
    surgery.execute(split, DEST)


@pytest.mark.parametrize("workers", [1, 3])
def test_an_input_that_changes_stops_all(hub: Hub, saved: Callable[..., Path], tmp_path: Path, workers: int) -> None:
    """An error of a worker ends the wait for room, too; nothing is committed."""
    base = tmp_path / "base"
    surgery.write(surgery.open_checkpoint(saved("llama")), base)
    plan = surgery.plan(surgery.open_checkpoint(base), "60KB")

    def change(step: Step) -> None:
        if step.kind == "sent":
            os.utime(base / "model.safetensors")

    with pytest.raises(surgery.SourceChanged):
        surgery.execute(plan, DEST, workers=workers, on_step=change)
    assert hub.titles(REPO) == ["initial commit"]


def test_too_little_room_for_one_shard(hub: Hub, split: surgery.Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """The room that is asked for is that of the largest shard, not of all."""
    import shutil

    usage, need = shutil.disk_usage("/"), split.needed_for(1)
    assert need < split.needed
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=need - 1))
    with pytest.raises(surgery.NoSpace, match=f"the output needs {need} bytes, and {need - 1} are free") as caught:
        surgery.execute(split, DEST)
    assert (
        caught.value.help == "make room, or put the stage on another disk with --stage"
        and REPO not in hub.repos
        and left() == []
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=need))
    surgery.execute(split, DEST)


# The command.


def test_a_dry_run_shows_both_plans(hub: Hub, saved: Callable[..., Path]) -> None:
    hub.put(REPO, {"model-00001-of-00099.safetensors": b"old", "notes.txt": b"mine"})
    hub.log.clear()
    words = ["split-qkv", str(saved("phi3")), "--max-shard-size", "60KB", "-o", DEST, "--overwrite", "--dry-run"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0 and result.stdout.startswith("dry run: nothing was written")
    for row in (
        "repository  org/model, at ",
        "delete      model-00001-of-00099.safetensors (3 B)",
        "keep        notes.txt (4 B)",
    ):
        assert row in result.stdout
    assert "README.md, the model card, is written, or completed" in result.stdout
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    plan = surgery.plan(surgery.split_qkv(surgery.open_checkpoint(saved("phi3"))), "60KB")
    assert found["nbytes"] == plan.needed_for(1) < plan.needed
    assert [item["path"] for item in found["hub"]["send"]] == sorted([*shards(plan), *plan.files])
    assert found["hub"]["nbytes"] == plan.nbytes + plan.file_bytes
    assert not hub.seen("^(POST|PUT)") and left() == []
    refused = CliRunner().invoke(app, [word for word in words if word != "--overwrite"])
    assert refused.exit_code == 1 and "the repository holds weights already" in refused.stderr


def test_options_of_the_commit_are_for_an_output_on_the_hub(saved: Callable[..., Path], tmp_path: Path) -> None:
    for words in (["--private"], ["-m", "x"], ["--stage", "x"], ["--stage-shards", "2"]):
        result = CliRunner().invoke(app, ["split-qkv", str(saved("phi3")), "-o", str(tmp_path / "out"), *words])
        assert result.exit_code == 2 and "this is for an output on the Hub" in result.stderr


def test_the_command_says_where_it_went(hub: Hub, saved: Callable[..., Path]) -> None:
    words = ["split-qkv", str(saved("phi3")), "-o", DEST, "--create-pr"]
    hub.put(REPO, {"notes.txt": b"mine"})
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert (
        f"output   {hub.endpoint}/{REPO}/commit/" in result.stdout
        and f"review   {hub.endpoint}/{REPO}/discussions/1" in result.stdout
    )
    report = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert report["commit"]["pull_request"].endswith("/discussions/2") and report["shards"] == 1


# Processes, and size.


@pytest.fixture(scope="module")
def bulky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """45 MB in six tensors that no chunk is common to."""
    folder = tmp_path_factory.mktemp("streamed") / "model"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layers.{i}.weight": torch.randn(1500, 1250, generator=generator) for i in range(6)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def started(hub: Hub, model: Path, home: Path, *words: str, **more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "surgery_cli",
        "reshard",
        str(model),
        "--max-shard-size",
        "8MB",
        "-o",
        DEST,
        *words,
    ]
    return subprocess.Popen(
        command, env=environment(hub, home, **more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.01)


def peak_of(folder: Path, process: subprocess.Popen[str]) -> int:
    """The most bytes that files below the folder took while the process ran."""
    peak = 0
    while process.poll() is None:
        found = 0
        for here, _, inside in os.walk(folder):
            for name in inside:
                try:
                    found += os.lstat(os.path.join(here, name)).st_blocks * 512
                except FileNotFoundError:
                    continue
        peak = max(peak, found)
        time.sleep(0.005)
    return peak


@pytest.mark.parametrize("disable_xet", ["1", "0"])
def test_a_killed_run_goes_on_by_content(hub: Hub, bulky: Path, tmp_path: Path, disable_xet: str) -> None:
    """SIGKILL while the fourth of six shards is on its way; the rerun makes and sends that one and the rest."""
    home, killed = tmp_path / "home", threading.Event()
    fault = hub.fault(Before(partial(killed.wait, 60)), UPLOADS, skip=3)
    process = started(hub, bulky, home, HF_HUB_DISABLE_XET=disable_xet)
    until(lambda: fault.fired, process)
    process.kill()
    process.communicate()
    killed.set()
    assert process.returncode == -signal.SIGKILL and hub.titles(REPO) == ["initial commit"]
    hub.log.clear()
    again = started(hub, bulky, home, "--json", HF_HUB_DISABLE_XET=disable_xet)
    out, _ = again.communicate(timeout=100)
    assert again.returncode == 0, out
    assert json.loads(out)["resumed"] > 3 * 7_000_000 and sent(hub) < 3.3 * 7_500_000 and len(hub.titles(REPO)) == 2
    assert hub.hashes(REPO) == pushed(hub, surgery.plan(surgery.open_checkpoint(bulky), "8MB"), tmp_path / "out")


@pytest.mark.parametrize("disable_xet", ["1", "0"])
def test_ctrl_c_stops_an_upload(hub: Hub, bulky: Path, tmp_path: Path, disable_xet: str) -> None:
    """At once, in the middle of a shard, with a word on what is left."""
    held = threading.Event()
    fault = hub.fault(Before(partial(held.wait, 30)), UPLOADS, skip=1)
    process = started(hub, bulky, tmp_path / "home", HF_HUB_DISABLE_XET=disable_xet)
    until(lambda: fault.fired, process)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    held.set()
    assert time.monotonic() - begun < 15
    assert process.returncode == 130 and TOKEN not in out and "Traceback" not in out, out
    assert "interrupted: the repository shows all of the result, or nothing of it" in out
    assert f"`surgery clean {DEST}` removes what is left here" in " ".join(out.split()) and hub.titles(REPO) == [
        "initial commit"
    ]


SECRET = "hf_" + "DistinctiveSecret" * 2


@pytest.mark.parametrize(
    ("kind", "pattern", "disable_xet"),
    [(Status(403), "POST /v1/xorbs/", "0"), (Status(400, {}, b"you sent Bearer " + SECRET.encode()), "/commit/", "1")],
)
def test_no_token_in_any_output_log_or_file(
    hub: Hub, bulky: Path, tmp_path: Path, kind: Kind, pattern: str, disable_xet: str
) -> None:
    """Nor in the stage that is left, with --debug and the client's own log at its most talkative."""
    hub.token(SECRET, "someone", "org")
    fault = hub.fault(kind, pattern, times=1000, skip=int(pattern != "/commit/"))
    talk = {"HF_HUB_VERBOSITY": "debug", "RUST_LOG": "debug", "TMPDIR": str(tmp_path)}
    process = started(hub, bulky, tmp_path / "home", "--debug", HF_TOKEN=SECRET, HF_HUB_DISABLE_XET=disable_xet, **talk)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and fault.fired and "Traceback" in out, out
    assert list((tmp_path / "home").glob("surgery/.*/.surgery/sent.json")) and SECRET not in out
    assert all(SECRET.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.large
@pytest.mark.parametrize("disable_xet", ["1", "0"])
def test_the_disk_holds_one_shard(hub: Hub, bulky: Path, tmp_path: Path, disable_xet: str) -> None:
    """Home, stage and caches together, measured by blocks while uploads are slow; the result is the local one."""
    home = tmp_path / "home"
    home.mkdir()
    hub.fault(Slow(pause=0.02), UPLOADS, times=1000)
    process = started(hub, bulky, home, HF_HUB_DISABLE_XET=disable_xet)
    peak = peak_of(home, process)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    assert 7_500_000 <= peak < 1.1 * 7_500_000 + 200_000
    assert hub.hashes(REPO) == pushed(hub, surgery.plan(surgery.open_checkpoint(bulky), "8MB"), tmp_path / "out")


# What comes with a shard, and what must never leave.


def reversibly_merged(base: Path, adapter: Path) -> surgery.Plan:
    opened = surgery.open_checkpoint(base)
    return surgery.plan(surgery.reversible(surgery.merge(opened, surgery.open_adapter(adapter)), opened))


def test_a_merge_on_the_hub_is_undone_from_there(
    hub: Hub, mode: str, saved: Callable[..., Path], tmp_path: Path
) -> None:
    """Its record goes with it, and is read by ranges."""
    base = saved("phi3", shard="60KB")
    sizes = {"q_proj": (48, 48), "o_proj": (48, 48)}
    modules = {f"model.layers.{i}.self_attn.{part}": size for i in range(3) for part, size in sizes.items()}
    plan = reversibly_merged(base, write_adapter(tmp_path / "adapter", modules))
    surgery.execute(plan, DEST)
    local = tmp_path / "merged"
    surgery.execute(plan, local)
    assert hub.hashes(REPO).items() >= hashes(local, without=(".surgery/manifest", "README")).items()
    surgery.write(surgery.unmerge(surgery.open_checkpoint(REPO)), tmp_path / "out")
    assert {name: hashes(tmp_path / "out")[name] for name in hashes(base)} == hashes(base)


def test_weights_that_became_infinite_end_the_run(hub: Hub, tmp_path: Path) -> None:
    """With room for one shard: the one that is not finished makes no room, and nobody waits for it."""
    base = tmp_path / "base"
    base.mkdir()
    for i in range(3):
        save_file(
            {f"layers.{i}.weight": torch.full((64, 64), 6e4, dtype=torch.float16)},
            base / f"model-{i + 1:05}-of-00003.safetensors",
        )
    (base / "config.json").write_text("{}")
    adapter = write_adapter(tmp_path / "adapter", {f"layers.{i}": (64, 64) for i in range(3)})
    made = surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter), scale=1e6)
    with pytest.raises(surgery.VerificationFailed, match="became infinite"):
        surgery.write(made, DEST, workers=2)
    assert REPO not in hub.repos
