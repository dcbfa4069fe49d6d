"""Push: what is on the Hub afterwards is what was in the folder, in one commit, with nothing sent twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from handmade import write_adapter, write_phi3, write_tensors
from typer.testing import CliRunner

import surgery
from hub.conftest import environment
from hub.faults import Before, Status
from hub.server import TOKEN, Hub
from surgery.files.card import CARD, metadata_of
from surgery.files.paths import fault_of
from surgery.hub.card import completed, is_ours
from surgery.hub.content import PushPlan
from surgery_cli.app import app

REPO = "org/model"


def local(folder: Path) -> dict[str, str]:
    """SHA-256 of the folder's files, the manifest's among them."""
    from hashlib import sha256

    return {
        p.relative_to(folder).as_posix(): sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A sharded checkpoint that surgery wrote, to be changed at will."""
    surgery.write(
        surgery.open_checkpoint(write_phi3(tmp_path / "written", layers=3, hidden=64)), tmp_path / "model", "50KB"
    )
    return tmp_path / "model"


@pytest.fixture
def single(model: Path, tmp_path: Path) -> Path:
    """The same in one shard, and without a manifest."""
    surgery.write(surgery.open_checkpoint(model), tmp_path / "single", "1GB")
    shutil.rmtree(tmp_path / "single" / ".surgery")
    return tmp_path / "single"


def change(shard: Path) -> None:
    """The same header, other values."""
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)


def sent(hub: Hub) -> int:
    """Bytes of large files that came in since the log was last cleared."""
    return sum(seen.received for seen in hub.seen("(PUT /upload/|POST /v1/xorbs/)"))


# The folder and the repository.


def test_a_push_is_one_commit_of_all_files(hub: Hub, mode: str, model: Path) -> None:
    report = surgery.push(model, REPO, message="Here it is")
    assert hub.titles(REPO) == ["Here it is", "initial commit"]
    assert hub.hashes(REPO, without=(".gitattributes", CARD)) == local(model)
    assert set(report.sent) == {*local(model), CARD} and report.kept == (".gitattributes",) and not report.deleted
    assert report.commit == hub.repos[REPO].branches["main"] and report.url.endswith(report.commit)
    assert report.nbytes == sum(p.stat().st_size for p in model.rglob("*") if p.is_file()) + len(
        hub.files(REPO)[CARD].read()
    )
    assert bool(hub.seen("/upload/")) == (mode == "lfs")


def test_what_was_pushed_is_what_the_checkpoint_holds(hub: Hub, mode: str, model: Path) -> None:
    """Downloaded by the real client and verified, manifest included."""
    from huggingface_hub import snapshot_download

    surgery.push(model, REPO)
    found = surgery.verify(snapshot_download(REPO), check_class=False)
    assert found.ok, "\n".join(found.checks[0].where)
    assert [check.name for check in found.checks] == ["structure", "manifest"]


def test_a_second_push_sends_nothing(hub: Hub, mode: str, model: Path) -> None:
    first = surgery.push(model, REPO)
    hub.log.clear()
    again = surgery.push(model, REPO)
    assert again.sent == again.copied == again.deleted == () and again.nbytes == 0 and again.commit == first.commit
    assert set(again.there) == set(first.sent)
    assert not hub.seen("^(POST|PUT)") and len(hub.titles(REPO)) == 2


def test_after_one_shard_changed_one_file_is_sent(hub: Hub, mode: str, model: Path) -> None:
    surgery.push(model, REPO)
    shard = sorted(model.glob("*.safetensors"))[1]
    change(shard)
    hub.log.clear()
    report = surgery.push(model, REPO)
    assert report.sent == (shard.name,) and report.nbytes == shard.stat().st_size
    assert 0 < sent(hub) < 1.2 * shard.stat().st_size
    assert hub.hashes(REPO, without=(".gitattributes", CARD)) == local(model)


def test_stale_shards_go_and_other_files_stay(hub: Hub, mode: str, model: Path, single: Path) -> None:
    """Other shards of the same weights, an index, a manifest go in the same commit; all else is as it was."""
    hub.put(
        REPO,
        {
            "notes.txt": b"mine",
            "model-00001-of-00099.safetensors": b"old",
            "vae/model.safetensors": b"other",
            "x.fp16.bin": b"y",
        },
    )
    surgery.push(model, REPO)
    report = surgery.push(single, REPO)
    old = {p for p in local(model) if p.startswith(("model-", "model.safetensors.index", ".surgery"))}
    assert set(report.deleted) == old and len(old) > 3
    assert set(hub.files(REPO)) == {
        *local(single),
        CARD,
        ".gitattributes",
        "notes.txt",
        "vae/model.safetensors",
        "x.fp16.bin",
    }
    assert len(hub.titles(REPO)) == 4
    assert "the repository has other weights, too, which are left alone: x.fp16.bin" in report.notes


def test_an_adapter_beside_a_model_stays(hub: Hub, model: Path) -> None:
    hub.put(REPO, {"adapter_model.safetensors": b"other"})
    assert surgery.push(model, REPO).deleted == ()


ADAPTER = {
    "adapter_config.json": b"{}",
    "adapter_model.safetensors": b"old",
    "adapter_model-00001-of-00002.safetensors": b"old",
}


def test_an_adapter_that_would_be_applied_to_the_model_goes(hub: Hub, model: Path) -> None:
    """transformers loads an adapter that lies beside a model: over one that was merged, it would count twice."""
    hub.put(REPO, {**ADAPTER, "sub/adapter_config.json": b"{}"})
    report = surgery.push(model, REPO)
    assert (
        set(report.deleted) == set(ADAPTER)
        and "sub/adapter_config.json" in hub.files(REPO)
        and len(hub.titles(REPO)) == 3
    )
    assert any(
        "adapter is deleted, since transformers would load it on top of this model: adapter_config" in n
        for n in report.notes
    )


def test_an_adapter_that_is_kept_beside_a_model_is_said_aloud(hub: Hub, model: Path) -> None:
    hub.put(REPO, ADAPTER)
    report = surgery.push(model, REPO, keep=True)
    assert not report.deleted and any(
        "transformers WILL LOAD THE REPOSITORY'S ADAPTER ON TOP" in note for note in report.notes
    )


def test_an_adapter_replaces_an_adapter(hub: Hub, tmp_path: Path) -> None:
    hub.put(REPO, {**ADAPTER, "config.json": b"{}"})
    report = surgery.push(write_adapter(tmp_path / "adapter", {"model.layers.0.self_attn.o_proj": (64, 64)}), REPO)
    assert report.deleted == ("adapter_model-00001-of-00002.safetensors",) and not any(
        "on top" in n.lower() for n in report.notes
    )


def test_a_model_of_another_type_is_named_with_what_stays(hub: Hub, model: Path) -> None:
    small = {"tokenizer.json": b"{}", "generation_config.json": b"{}", "notes.txt": b"mine"}
    hub.put(REPO, {"config.json": b'{"model_type": "gpt2"}', "model.safetensors": b"old", **small})
    kept = "; kept of that one, and read with the new weights: generation_config.json, tokenizer.json"
    said = f"this is a model of type phi3, and the one that the repository holds is of type gpt2{kept}"
    assert said in surgery.push(model, REPO).notes
    assert not any("of type" in note for note in surgery.push(model, REPO).notes)


def test_keep_deletes_nothing(hub: Hub, model: Path) -> None:
    hub.put(REPO, {"model-00001-of-00099.safetensors": b"old"})
    report = surgery.push(model, REPO, keep=True)
    assert report.deleted == () and "model-00001-of-00099.safetensors" in hub.files(REPO)
    assert any("left alone: model-00001-of-00099" in note for note in report.notes)


def test_a_renamed_shard_is_copied_on_the_hub(hub: Hub, mode: str, single: Path) -> None:
    """The Hub has the content under another name: nothing of it is sent."""
    hub.put(REPO, {"old-name.safetensors": single / "model.safetensors"})
    hub.log.clear()
    report = surgery.push(single, REPO)
    assert report.copied == ("model.safetensors",) and "model.safetensors" not in report.sent and sent(hub) == 0
    assert hub.hashes(REPO, without=(".gitattributes", CARD, "old")) == local(single)


def test_an_adapter_is_pushed_alike(hub: Hub, mode: str, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", {"model.layers.0.self_attn.o_proj": (64, 64)})
    config = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": "org/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    hub.put("org/base", {CARD: b"---\nlicense: apache-2.0\n---\n"})
    surgery.push(folder, "org/adapter")
    assert hub.hashes("org/adapter", without=(".gitattributes", CARD)) == local(folder)
    assert metadata_of(hub.files("org/adapter")[CARD].read().decode()) == {
        "base_model": "org/base",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "tags": ["lora", "surgery"],
        "license": "apache-2.0",
    }


# Where to.


def test_a_new_branch_starts_at_main(hub: Hub, model: Path) -> None:
    hub.put(REPO, {"notes.txt": b"mine"})
    report = surgery.push(model, REPO, revision="dev")
    assert hub.titles(REPO, "dev") == [report_title(model), "put", "initial commit"] and hub.titles(REPO) == [
        "put",
        "initial commit",
    ]
    assert "notes.txt" in hub.files(REPO, "dev") and report.revision == "dev"
    assert surgery.push(model, f"hf://{REPO}@dev").sent == ()


def report_title(model: Path) -> str:
    return surgery.plan_push(model, "org/none").message


def test_a_new_branch_of_a_new_repository(hub: Hub, model: Path) -> None:
    surgery.push(model, REPO, revision="dev")
    assert set(hub.files(REPO)) == {".gitattributes"} and CARD in hub.files(REPO, "dev")


def test_a_pull_request(hub: Hub, mode: str, model: Path) -> None:
    hub.put(REPO, {"notes.txt": b"mine"})
    report = surgery.push(model, REPO, create_pr=True)
    assert report.pull_request == f"{hub.endpoint}/{REPO}/discussions/1"
    assert set(hub.files(REPO)) == {".gitattributes", "notes.txt"}
    assert hub.hashes(REPO, "refs/pr/1", without=(".gitattributes", CARD, "notes")) == local(model)
    assert surgery.push(model, REPO, revision="refs/pr/1").sent == ()


def test_a_private_repository(hub: Hub, model: Path) -> None:
    surgery.push(model, REPO, private=True)
    assert hub.repos[REPO].private
    assert surgery.push(model, REPO, private=True).sent == ()
    hub.repos[REPO].private = False
    with pytest.raises(surgery.NotAllowed) as caught:
        surgery.push(model, REPO, private=True)
    assert str(caught.value) == (
        f"the repository is there, and public\n  --> {REPO}\n"
        "help: make it private in its settings, or choose another name; to push to it as it is, leave --private out\n"
        "      in Python, --private is private="
    )


def test_a_tag(hub: Hub, model: Path) -> None:
    first = surgery.push(model, REPO, tag="v1")
    assert hub.repos[REPO].tags == {"v1": first.commit}
    assert surgery.push(model, REPO, tag="v1").sent == ()
    change(next(model.glob("*.safetensors")))
    hub.log.clear()
    with pytest.raises(surgery.HubConflict, match="the tag v1 is taken"):
        surgery.push(model, REPO, tag="v1")
    assert not hub.seen("^(POST|PUT)")  # before anything is sent
    hub.put(REPO, {"notes.txt": b"mine"})
    with pytest.raises(surgery.HubConflict, match="the tag v1 is taken") as caught:
        surgery.push(model, REPO, tag="v1")
    assert caught.value.where == (f"{REPO}: v1 names {first.commit}",)
    assert len(surgery.push(model, REPO, tag="v2").sent) == 1 and set(hub.repos[REPO].tags) == {"v1", "v2"}


@pytest.mark.parametrize(
    ("target", "options", "what"),
    [
        ("model", {}, "this names no repository on the Hub"),
        (f"{REPO}/sub", {}, "a push goes to a repository"),
        (f"{REPO}@a", {"revision": "b"}, "two branches are named"),
        (REPO, {"create_pr": True, "revision": "b"}, "a pull request is opened against main"),
        (REPO, {"create_pr": True, "tag": "v1"}, "what a pull request holds is not tagged"),
    ],
)
def test_what_makes_no_sense_is_refused(hub: Hub, model: Path, target: str, options: dict, what: str) -> None:
    with pytest.raises(surgery.SurgeryError, match=what) as caught:
        surgery.push(model, target, **options)
    assert caught.value.help and not hub.log


def test_a_commit_is_no_branch(hub: Hub, model: Path) -> None:
    sha = hub.put(REPO, {"notes.txt": b"mine"}).sha
    with pytest.raises(surgery.NotOnHub, match="no such branch or pull request to push to"):
        surgery.push(model, REPO, revision=sha)


# What is not pushed.


def test_a_broken_checkpoint_is_not_pushed(hub: Hub, model: Path) -> None:
    shard = sorted(model.glob("*.safetensors"))[0]
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(surgery.VerificationFailed, match="checks failed"):
        surgery.push(model, REPO)
    assert not hub.log


def test_only_folders_are_pushed(hub: Hub, model: Path) -> None:
    with pytest.raises(surgery.NotACheckpoint, match="a folder is pushed"):
        surgery.push(next(model.glob("*.safetensors")), REPO)


def test_a_folder_that_is_not_there(hub: Hub) -> None:
    with pytest.raises(surgery.NotACheckpoint, match="no such folder") as caught:
        surgery.push("no-dir", REPO)
    assert caught.value.help == "pass the folder of the model or adapter"
    with pytest.raises(
        surgery.NotACheckpoint, match="org/other looks like a name on the Hub, and push takes a local folder"
    ):
        surgery.push("org/other", REPO)


@pytest.mark.parametrize("target", ["phi", "org/a--b", "hf://org/a..b", "org/a-", "hf://gpt2"])
def test_the_rule_of_names_is_told(hub: Hub, model: Path, target: str) -> None:
    with pytest.raises(surgery.SurgeryError) as caught:
        surgery.push(model, target)
    rule = "letters, digits and -_. with no -- and no .., and neither of the two begins or ends with - or ."
    scheme = "hf://" if target.startswith("hf://") else ""  # as it was written
    assert caught.value.help == f"write {scheme}org/name: {rule}" and not hub.log


def test_folders_that_the_hub_refuses_are_named(hub: Hub, model: Path) -> None:
    for path in (".git/config", ".cache/x", "sub/.cache/y"):
        (model / path).parent.mkdir(parents=True, exist_ok=True)
        (model / path).write_text("x")
    report = surgery.push(model, REPO)
    assert "not sent, since the Hub takes no such files: sub/.cache/y, .git/, .cache/" in report.notes
    assert not {".git/config", ".cache/x", "sub/.cache/y"} & set(hub.files(REPO))


def test_files_that_gitignore_leaves_out_are_an_error(hub: Hub, mode: str, model: Path) -> None:
    """The client would leave them out of the commit without a word."""
    hub.put(REPO, {".gitignore": b"*.json\n"})
    with pytest.raises(surgery.HubError, match="gitignore leaves out files that are to be pushed") as caught:
        surgery.push(model, REPO)
    assert "config.json" in caught.value.where and hub.titles(REPO) == ["put", "initial commit"]


def test_a_file_that_changes_while_it_is_sent(
    hub: Hub, mode: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Xet would commit the new bytes under the old size."""
    plan = surgery.plan_push(model, REPO)
    shard = sorted(model.glob("*.safetensors"))[0]
    change(shard)
    with pytest.raises(surgery.SourceChanged, match="changed while it was being sent"):
        surgery.execute_push(plan)
    assert hub.titles(REPO) == ["initial commit"]


# Dry run.


def test_a_dry_run_lists_and_changes_nothing(hub: Hub, model: Path) -> None:
    hub.put(
        REPO,
        {
            "notes.txt": b"mine",
            "model-00001-of-00099.safetensors": b"old",
            "config.json": (model / "config.json").read_bytes(),
        },
    )
    hub.log.clear()
    result = CliRunner().invoke(app, ["push", str(model), REPO, "--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert [item["path"] for item in said["delete"]] == ["model-00001-of-00099.safetensors"]
    assert [item["path"] for item in said["there"]] == ["config.json"]
    assert [item["path"] for item in said["keep"]] == [".gitattributes", "notes.txt"]
    assert {item["path"]: item["nbytes"] for item in said["send"] if item["path"] != CARD} == {
        p: (model / p).stat().st_size for p in local(model) if p != "config.json"
    }
    shown = CliRunner().invoke(app, ["push", str(model), REPO, "--dry-run"]).stdout
    assert "delete      model-00001-of-00099.safetensors (3 B)" in shown and "keep        notes.txt (4 B)" in shown
    assert not hub.seen("^(POST (?!/api/validate-yaml)|PUT|DELETE)") and hub.titles(REPO) == ["put", "initial commit"]


def test_a_dry_run_to_a_new_repository_makes_none(hub: Hub, model: Path) -> None:
    shown = CliRunner().invoke(app, ["push", str(model), REPO, "--dry-run"]).stdout
    assert f"repository  {REPO}, not there yet" in shown and REPO not in hub.repos


def test_a_plan_is_pure(hub: Hub, model: Path) -> None:
    """Equal folders and repositories, equal plans; the hash of a file is taken only where it can decide."""
    hub.put(REPO, {"notes.txt": b"mine"})
    one, two = surgery.plan_push(model, REPO), surgery.plan_push(model, REPO)
    assert isinstance(one, PushPlan) and one == two
    assert not [path for path, file in one.files.items() if "sha256" in file.__dict__]


# The card.


def test_a_new_card_says_what_was_done(hub: Hub, tmp_path: Path) -> None:
    """Of a merge into a model of the Hub: base, licence, relation, the steps and the digests of the inputs."""
    base = write_phi3(tmp_path / "phi", layers=1, hidden=64)
    adapter = write_adapter(tmp_path / "adapter", {"model.layers.0.self_attn.o_proj": (64, 64)})
    hub.put_folder("org/base", base)
    hub.put("org/base", {CARD: b"---\nlicense: other\nlicense_name: phi\nlicense_link: LICENSE\n---\n"})
    checkpoint = surgery.merge(surgery.open_checkpoint("org/base"), surgery.open_adapter(adapter))
    surgery.write(checkpoint, tmp_path / "out")
    (tmp_path / "out" / CARD).unlink()
    manifest = tmp_path / "out" / ".surgery" / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["files"][CARD]
    manifest.write_text(json.dumps(content))
    surgery.push(tmp_path / "out", REPO)
    card = hub.files(REPO)[CARD].read().decode()
    assert metadata_of(card) == {
        "base_model": "org/base",
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["surgery", "merge"],
        "license": "other",
        "license_name": "phi",
        "license_link": "LICENSE",
    }
    assert "# model" in card and "1. `merge`: base `org/base`" in card and surgery.open_adapter(adapter).digest in card
    assert is_ours(card) and not is_ours(card.replace("# model", "# My model"))
    assert str(tmp_path) not in card


def test_a_card_of_the_folder_keeps_every_byte(hub: Hub, model: Path) -> None:
    """It gains what it lacks, and the manifest, which lists it, learns of its size."""
    before = b"---\nlicense: mit  # mine\ntags: [a]\n---\n# Title\r\n  \n"
    (model / CARD).write_bytes(before)
    surgery.write(surgery.open_checkpoint(model), model.parent / "with-card")
    report = surgery.push(model.parent / "with-card", REPO)
    raw = hub.files(REPO)[CARD].read()
    assert raw == before.replace(b"---\n# Title", b"library_name: transformers\n---\n# Title") and CARD in report.sent
    assert json.loads(hub.files(REPO)[".surgery/manifest.json"].read())["files"][CARD] == len(raw)
    assert surgery.push(model.parent / "with-card", REPO).sent == ()


def test_a_card_of_the_repository_is_kept_and_ours_is_renewed(hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.put(REPO, {CARD: b"# Written by hand\n"})
    surgery.push(model, REPO)
    assert (
        hub.files(REPO)[CARD].read().decode()
        == "---\nlibrary_name: transformers\ntags:\n- surgery\n---\n\n# Written by hand\n"
    )
    surgery.push(model, "org/ours")
    surgery.write(surgery.split_qkv(surgery.open_checkpoint(model)), tmp_path / "split")
    surgery.push(tmp_path / "split", "org/ours")
    assert "1. `split`" in hub.files("org/ours")[CARD].read().decode()


def test_a_card_of_ours_that_came_with_the_base_is_made_anew(hub: Hub, model: Path, tmp_path: Path) -> None:
    """It told how the base was made; and a repository is no base of its own, but has its licence."""
    hub.put(REPO, {CARD: b"---\nlicense: mit\n---\n"})
    surgery.push(model, "org/base")
    (model / CARD).write_bytes(hub.files("org/base")[CARD].read())
    hub.put_folder(REPO, model)
    surgery.write(surgery.split_qkv(surgery.open_checkpoint(REPO)), tmp_path / "split")
    assert is_ours((tmp_path / "split" / CARD).read_text())
    surgery.push(tmp_path / "split", "org/split")
    card = hub.files("org/split")[CARD].read().decode()
    assert "1. `split`" in card and metadata_of(card)["base_model"] == REPO and is_ours(card)
    hub.put(REPO, {CARD: b"---\nlicense: mit\n---\n"})
    report = surgery.push(tmp_path / "split", REPO)
    here = metadata_of(hub.files(REPO)[CARD].read().decode())
    assert (
        "base_model" not in here and here["license"] == "mit" and not any("base_model" in note for note in report.notes)
    )
    assert surgery.push(tmp_path / "split", REPO).sent == ()


def test_no_table_of_inputs_where_there_are_none(hub: Hub, model: Path) -> None:
    manifest = model / ".surgery" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"inputs": []}))
    surgery.push(model, REPO)
    card = hub.files(REPO)[CARD].read().decode()
    assert "How it was made" in card and "From these files" not in card


def test_a_base_without_a_licence_is_noted_for_a_new_card_only(hub: Hub, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", {"model.layers.0.self_attn.o_proj": (64, 64)})
    config = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": "org/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    hub.put("org/base", {CARD: b"# Base\n"})
    assert (
        "the new card names no licence, since the card of org/base names none"
        in surgery.push(folder, "org/adapter").notes
    )
    (folder / CARD).write_text("# Mine\n")
    assert not any("licence" in note for note in surgery.push(folder, "org/adapter").notes)


def test_no_licence_is_made_up(hub: Hub, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", {"model.layers.0.self_attn.o_proj": (64, 64)})
    config = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": "org/no-such-base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    report = surgery.push(folder, "org/adapter")
    assert "license" not in metadata_of(hub.files("org/adapter")[CARD].read().decode())
    assert any(
        "the card says no licence: cannot ask for the licence of org/no-such-base" in note for note in report.notes
    )


def test_completing_a_card_twice_is_completing_it_once() -> None:
    metadata = {"tags": ["a", "b: c"], "base_model": "org/base"}
    for card in ("", "# Title\n", "---\n---\ntext", "---\r\ntags: []\r\n---\r\ntext", "---\nlicense: mit\n---"):
        once = completed(card, metadata)
        assert completed(once, metadata) == once and metadata_of(once).keys() >= metadata.keys()
        assert once.endswith(card.rpartition("---")[2])


@pytest.mark.parametrize("card", [b"---\n[a\n---\n", b"---\n- a\n---\n", b"\xff"])
def test_a_card_that_cannot_be_read_is_an_error(hub: Hub, model: Path, card: bytes) -> None:
    (model / CARD).write_bytes(card)
    with pytest.raises(surgery.FormatError, match=r"the metadata of the card cannot be read|the card is not UTF-8"):
        surgery.push(model, REPO)


LOCAL = "/home/someone/models/base"
PEFT_CARD = f"""---
base_model: {LOCAL}
library_name: peft
tags:
- base_model:adapter:{LOCAL}
- lora
---

# Model Card for {LOCAL}

- {LOCAL}
"""


def test_the_server_refuses_what_the_hub_refuses(hub: Hub, tmp_path: Path) -> None:
    """Else what follows would prove nothing."""
    from huggingface_hub import HfApi

    HfApi().create_repo(REPO)
    for wrong in (PEFT_CARD, "---\nlicense: Apache 2\n---\n", "---\nbase_model: ''\n---\n", "---\ntags: lora\n---\n"):
        with pytest.raises(ValueError, match="Invalid metadata in README"):
            HfApi().upload_file(path_or_fileobj=wrong.encode(), path_in_repo=CARD, repo_id=REPO)


def adapter_with_card(folder: Path, card: str, base: str) -> Path:
    write_adapter(folder, {"model.layers.0.self_attn.o_proj": (64, 64)})
    config = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / CARD).write_text(card)
    return folder


def test_a_local_base_in_a_card_is_left_out_where_no_model_is_known(hub: Hub, tmp_path: Path) -> None:
    """As PEFT writes it for a base on the trainer's disk; all that stands beside it stays."""
    report = surgery.push(adapter_with_card(tmp_path / "a", PEFT_CARD, LOCAL), REPO)
    card = hub.files(REPO)[CARD].read().decode()
    assert card == PEFT_CARD.replace(f"base_model: {LOCAL}\n", "").replace(f"- base_model:adapter:{LOCAL}\n", "")
    assert any(LOCAL in note and "no model on the Hub" in note for note in report.notes)
    assert (tmp_path / "a" / CARD).read_text() == PEFT_CARD


def test_a_local_base_in_a_card_is_replaced_by_the_model_that_is_known(hub: Hub, tmp_path: Path) -> None:
    report = surgery.push(adapter_with_card(tmp_path / "a", PEFT_CARD, "org/base"), REPO)
    metadata = metadata_of(hub.files(REPO)[CARD].read().decode())
    assert metadata["base_model"] == "org/base" and metadata["tags"] == ["base_model:adapter:org/base", "lora"]
    assert any("org/base" in note and LOCAL in note for note in report.notes)


@pytest.mark.parametrize(
    ("head", "now"),
    [
        ("base_model: [./base, org/other]\n", ["org/other", "org/base"]),
        ("base_model:\n- ../base\n- org/other\n", ["org/base", "org/other"]),
        ("base_model: ''\n", "org/base"),
        ('base_model: "C:\\\\models\\\\base"\n', "org/base"),
        ("base_model: ~/models/base\ntags: ['base_model:/x/y', a]\n", "org/base"),
        ("base_model: models/here  # where it lies\n", "org/base"),
    ],
)
def test_whatever_names_no_model_is_mended(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str, now: str | list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/here").mkdir(parents=True)
    surgery.push(adapter_with_card(tmp_path / "a", f"---\n{head}license: mit\n---\ntext\n", "org/base"), REPO)
    card = hub.files(REPO)[CARD].read().decode()
    found = metadata_of(card)["base_model"]
    assert (sorted(found) if isinstance(found, list) else found) == (sorted(now) if isinstance(now, list) else now)
    assert metadata_of(card)["license"] == "mit" and card.endswith("---\ntext\n")


def test_what_the_hub_does_not_take_is_said_before_anything_is_sent(hub: Hub, model: Path) -> None:
    (model / CARD).write_text("---\nlicense: Apache 2\n---\n")
    with pytest.raises(surgery.FormatError, match="the Hub does not take the card's metadata") as caught:
        surgery.push(model, REPO)
    assert any('"license" must be one of' in where for where in caught.value.where) and not hub.seen("^PUT|/commit/")


# The command, broken runs, and size.


def test_the_command(hub: Hub, mode: str, model: Path) -> None:
    result = CliRunner().invoke(app, ["push", str(model), REPO, "-m", "By hand", "--tag", "v1"])
    assert result.exit_code == 0, result.output
    assert (
        "done" in result.stdout
        and "sent" in result.stdout
        and hub.titles(REPO)[0] == "By hand"
        and hub.repos[REPO].tags
    )
    again = CliRunner().invoke(app, ["push", str(model), REPO])
    assert "nothing to do: the Hub has all of it" in again.stdout
    report = json.loads(CliRunner().invoke(app, ["push", str(model), REPO, "--json"]).stdout)
    assert report["sent"] == [] and report["commit"] == hub.repos[REPO].branches["main"]


def _started(hub: Hub, model: Path, home: Path, **more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "surgery_cli", "push", str(model), REPO]
    return subprocess.Popen(
        command, env=environment(hub, home, **more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.01)


@pytest.fixture(scope="module")
def bulky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards of 15 MB that no chunk is common to."""
    folder = tmp_path_factory.mktemp("bulky")
    write_tensors(folder / "model.safetensors", {f"layers.{i}.weight": ("BF16", (7_500_000,)) for i in range(4)})
    surgery.write(surgery.open_checkpoint(folder / "model.safetensors"), folder / "sharded", "16MB")
    return folder / "sharded"


@pytest.mark.parametrize("disable_xet", ["1", "0"])
def test_a_killed_push_run_again_sends_what_is_missing(hub: Hub, bulky: Path, tmp_path: Path, disable_xet: str) -> None:
    """SIGKILL while the third of four shards is on its way: nothing is visible; then only what had not arrived is
    sent, in one commit.

    With LFS the server says what it has, with Xet the client's notes of what it finished sending do: shard by shard.
    """
    route = "PUT /upload/" if disable_xet == "1" else "POST /v1/xorbs/"
    killed = threading.Event()
    fault = hub.fault(Before(lambda: killed.wait(60)), route, skip=2)
    process = _started(hub, bulky, tmp_path / "home", HF_HUB_DISABLE_XET=disable_xet)
    _until(lambda: fault.fired, process)
    process.kill()
    process.communicate()
    killed.set()
    assert process.returncode == -signal.SIGKILL and hub.titles(REPO) == ["initial commit"]
    hub.log.clear()
    again = _started(hub, bulky, tmp_path / "home", HF_HUB_DISABLE_XET=disable_xet)
    out, _ = again.communicate(timeout=100)
    assert again.returncode == 0, out
    shard = max(p.stat().st_size for p in bulky.glob("*.safetensors"))
    assert 0 < sent(hub) <= 2.1 * shard  # the third, and the fourth, which had not begun
    assert len(hub.titles(REPO)) == 2 and hub.hashes(REPO, without=(".gitattributes", CARD)) == local(bulky)


def test_ctrl_c_says_what_is_left(hub: Hub, bulky: Path, tmp_path: Path) -> None:
    fault = hub.fault(Status(503), "PUT /upload/", times=100)
    process = _started(hub, bulky, tmp_path / "home", HF_HUB_DISABLE_XET="1")
    _until(lambda: fault.fired, process)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and TOKEN not in out
    assert "interrupted: the repository shows all of the push, or nothing of it" in out
    assert "help: run the same command again" in out and hub.titles(REPO) == ["initial commit"]


@pytest.mark.large
def test_what_is_large_is_sent_once(hub: Hub, mode: str, bulky: Path, tmp_path: Path) -> None:
    """60 MB: every hash equal on the server, one commit; again: nothing sent; one shard changed: one file sent."""
    folder = tmp_path / "model"
    shutil.copytree(bulky, folder)
    hub.put(REPO, {"model-00001-of-00009.safetensors": b"old"})
    first = surgery.push(folder, REPO)
    assert (
        hub.hashes(REPO, without=(".gitattributes", CARD)) == local(folder)
        and first.deleted
        and len(hub.titles(REPO)) == 3
    )
    hub.log.clear()
    assert surgery.push(folder, REPO).sent == () and sent(hub) == 0
    shard = sorted(folder.glob("*.safetensors"))[1]
    change(shard)
    assert surgery.push(folder, REPO).sent == (shard.name,)
    assert 0 < sent(hub) < 1.1 * shard.stat().st_size and len(hub.titles(REPO)) == 4
    assert hub.hashes(REPO, without=(".gitattributes", CARD)) == local(folder)


@pytest.mark.parametrize("name", ["back\\slash.txt", "line\nbreak.txt", "C:drive.txt"])
def test_names_that_a_write_refuses_are_not_pushed(
    name: str, hub: Hub, saved: Callable[..., Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved("llama"), tmp_path / "m"))
    (folder / name).write_text("x")
    with pytest.raises(surgery.PlanError, match="no paths inside a folder") as caught:
        surgery.plan_push(folder, "org/new")
    assert any(fault_of(name) in row for row in caught.value.where) and "org/new" not in hub.repos
