"""Laws of runs on a Ray cluster, a real one of three nodes on this machine: its bytes are those of a run without it,
whatever dies, and what is not fit for it is refused before any shard.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import documents
import pytest
import torch
from conftest import hashes
from handmade import write_adapter, write_phi3
from hub.conftest import hub
from hub.server import Hub
from typer.testing import CliRunner

import surgery
from surgery import Step
from surgery.errors import SurgeryError, VerificationFailed
from surgery.evaluation.spool import is_spooled
from surgery.execution import cluster as driver
from surgery.execution import ray as ours
from surgery.execution.node import Fit, Job, Outcome, Told, faults, files_in, seen, work
from surgery.execution.stage import stages
from surgery.execution.writing_inside import Inside
from surgery.lazy.tensor import File
from surgery_cli.app import app

__all__ = ["hub"]
ray = pytest.importorskip("ray")
STORE = 80 << 20


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": STORE})
    for _ in range(2):
        made.add_node(num_cpus=1, object_store_memory=STORE, wait=False)
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def joined(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """This process is connected to the cluster, so that workers of one run are there for the next; each shard is worth
    a task.
    """
    if not ray.is_initialized():
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    monkeypatch.setattr(driver, "LEAST", 1)
    return cluster


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    whole = write_phi3(folder / "whole", layers=6, hidden=64)
    surgery.write(surgery.open_checkpoint(whole), folder / "base", max_shard_size="40KB")
    return folder / "base"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    modules = {f"model.layers.{i}.self_attn.o_proj": (64, 64) for i in range(6)}
    return write_adapter(tmp_path_factory.mktemp("adapters") / "adapter", modules)


def merged(base: Path, adapter: Path) -> surgery.Checkpoint:
    checkpoint = surgery.open_checkpoint(base)
    return surgery.reversible(surgery.merge(checkpoint, surgery.open_adapter(adapter)), checkpoint)


@pytest.fixture
def listener() -> Iterator[tuple[socket.socket, str]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server, f"127.0.0.1:{server.getsockname()[1]}"


def test_an_address_that_does_not_answer(base: Path, tmp_path: Path) -> None:
    begun = time.monotonic()
    for address, why in (
        ("127.0.0.1:1", "refused"),
        ("no-such-host.invalid:6379", "no-such-host.invalid"),
        ("10.0.0.1", "host:port"),
    ):
        with pytest.raises(SurgeryError, match="no Ray cluster can be reached") as caught:
            surgery.write(surgery.open_checkpoint(base), tmp_path / "out", executor="ray", address=address)
        assert why in str(caught.value)
    assert time.monotonic() - begun < 30
    assert not os.listdir(tmp_path)


def test_what_answers_and_is_not_ray(
    listener: tuple[socket.socket, str], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that says nothing, which Ray itself would wait for, and one that speaks something else."""
    server, address = listener
    monkeypatch.setattr(ours, "CONNECT", 0.5)
    with pytest.raises(SurgeryError, match=r"no Ray cluster can be reached(?s:.*)no answer in"):
        surgery.write(surgery.open_checkpoint(base), tmp_path / "out", executor="ray", address=address)
    server.accept()[0].close()

    def answer() -> None:
        with server.accept()[0] as line:
            line.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    threading.Thread(target=answer).start()
    with pytest.raises(SurgeryError, match="what answers there is not Ray"):
        surgery.write(surgery.open_checkpoint(base), tmp_path / "out", executor="ray", address=address)
    assert not os.listdir(tmp_path)


def test_where_ray_is_not_installed(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SurgeryError, match=r"pip install 'checkpoint-surgery\[ray\]'"):
        surgery.write(surgery.open_checkpoint(base), tmp_path / "out", executor="ray")


def test_what_is_no_executor(base: Path, tmp_path: Path) -> None:
    opened = surgery.open_checkpoint(base)
    with pytest.raises(SurgeryError, match="`spark` is no executor"):
        surgery.write(opened, tmp_path / "out", executor="spark")
    with pytest.raises(SurgeryError, match="the address of a Ray cluster"):
        surgery.write(opened, tmp_path / "out", address="10.0.0.1:6379")


def test_the_bytes_are_those_of_a_run_without_it(
    joined: Any, base: Path, adapter: Path, quantised: Callable[[str], Path], tmp_path: Path
) -> None:
    """Copies, movement, sums with their record, codes: shards, records, files and manifest are the same."""
    opened = surgery.open_checkpoint(base)
    made = {
        "reshard": (opened, "100KB"),
        "split": (surgery.split_qkv(opened), None),
        "merge": (merged(base, adapter), None),
        "dequantise": (surgery.dequantize(surgery.open_checkpoint(quantised("nf4"))), "20KB"),
    }
    for name, (checkpoint, size) in made.items():
        surgery.write(checkpoint, tmp_path / name / "here", size)
        report = surgery.write(checkpoint, tmp_path / name / "there", size, executor="ray")
        assert hashes(tmp_path / name / "there", without=()) == hashes(tmp_path / name / "here", without=()), name
        assert report.shards > 2
        assert sorted(os.listdir(tmp_path / name)) == ["here", "there"]


def test_what_was_made_is_told_once(joined: Any, base: Path, adapter: Path, tmp_path: Path) -> None:
    steps: list[Step] = []
    report = surgery.write(merged(base, adapter), tmp_path / "out", executor="ray", on_step=steps.append)
    shards = [step.name for step in steps if step.kind == "finished"]
    assert len(shards) == len(set(shards)) == report.shards
    told = sum(step.nbytes for step in steps if step.kind in ("begun", "filled"))
    assert told == sum(f.stat().st_size for f in (tmp_path / "out").glob("*.safetensors"))


def negated(rows: torch.Tensor) -> torch.Tensor:
    return -rows


def test_functions_of_the_users(joined: Any, base: Path, tmp_path: Path) -> None:
    """Those of a module go by their code, as others do; what cannot go anywhere is refused before any shard."""
    factor, lock = 0.5, threading.Lock()

    def scaled(rows: torch.Tensor) -> torch.Tensor:
        return rows * factor

    def locked(rows: torch.Tensor) -> torch.Tensor:
        with lock:
            return rows + 1

    opened = surgery.open_checkpoint(base)
    made = surgery.map_rows(opened, {r".*o_proj\.weight": negated, r".*mlp.*": scaled})
    surgery.write(made, tmp_path / "here")
    surgery.write(made, tmp_path / "there", executor="ray")
    assert hashes(tmp_path / "there", without=()) == hashes(tmp_path / "here", without=())
    with pytest.raises(SurgeryError, match="the plan cannot be sent to other machines"):
        surgery.write(surgery.map_rows(opened, {r".*o_proj\.weight": locked}), tmp_path / "no" / "out", executor="ray")
    assert not os.listdir(tmp_path / "no")


def chain(seed: int, folder: Path) -> list[tuple[Callable[[surgery.Checkpoint], surgery.Checkpoint], str | None]]:
    """Some surgeries in a random order, each with the size of shards in which its result is written."""
    draw = random.Random(seed)
    modules = {f"model.layers.{i}.self_attn.o_proj": (64, 64) for i in range(draw.randint(1, 6))}
    loras = [write_adapter(folder / f"lora-{seed}-{i}", modules, seed=10 * seed + i) for i in range(2)]
    steps: list[Callable[[surgery.Checkpoint], surgery.Checkpoint]] = [
        surgery.split_qkv,
        lambda c: surgery.merge(c, surgery.open_adapter(loras[0])),
        lambda c: surgery.merge(c, surgery.open_adapter(loras[1]), weights=[0.3]),
        lambda c: surgery.cast(c, "float32", only=r".*mlp.*"),
        lambda c: surgery.map_rows(c, {r".*input_layernorm.*": negated}),
        lambda c: surgery.drop(c, rf"model\.layers\.{seed % 6}\.mlp.*"),
    ]
    return [(step, draw.choice([None, "20KB", "90KB"])) for step in draw.sample(steps, draw.randint(2, 5))]


@pytest.mark.parametrize("seed", range(4))
def test_a_chain_in_one_pass_is_one_by_one_is_on_ray(seed: int, joined: Any, base: Path, tmp_path: Path) -> None:
    one = made = surgery.open_checkpoint(base)
    for i, (step, size) in enumerate(chain(seed, tmp_path)):
        made, one = step(made), step(one)
        surgery.write(one, tmp_path / f"one-{i}", size)
        one = surgery.open_checkpoint(tmp_path / f"one-{i}")
    for executor in ("local", "ray"):
        surgery.write(made, tmp_path / executor, "40KB", executor=executor)
    surgery.write(one, tmp_path / "one", "40KB")
    assert hashes(tmp_path / "ray", without=()) == hashes(tmp_path / "local", without=())
    assert hashes(tmp_path / "ray") == hashes(tmp_path / "one") != hashes(base)


def test_a_worker_that_dies_wherever_it_is_made(
    joined: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not made for ever; what a function raises on a node is said, too; the stage stays, without halves in it."""
    monkeypatch.setattr(driver, "RETRIES", 0)
    here, ends = os.getpid(), {"dies": lambda: os._exit(1), "raises": lambda: 1 // 0}
    for how, said in (("dies", "workers that made these shards died"), ("raises", "ZeroDivisionError")):

        def there(rows: torch.Tensor, how: str = how) -> torch.Tensor:
            if os.getpid() != here:
                ends[how]()
            return rows

        made = surgery.map_rows(surgery.open_checkpoint(base), {r"model\.layers\.3\.mlp.*": there})
        with pytest.raises(SurgeryError, match=said):
            surgery.write(made, tmp_path / how / "out", executor="ray")
        assert not (tmp_path / how / "out").exists()
        [stage] = stages(str(tmp_path / how / "out"))
        assert not os.path.exists(f"{stage}/.surgery/parts/nodes")


def test_what_was_computed_before_the_plan(joined: Any, adapter: Path, tmp_path: Path) -> None:
    """It lies in a folder of this process, which nodes may not see: they read it in the stage."""
    made = surgery.resize_adapter(surgery.open_adapter(adapter), rank=2)
    shards = surgery.plan(made).shards
    assert any(is_spooled(file) for file in files_in(shards))
    assert not any(is_spooled(file) for file in driver.to_be_seen(files_in(shards)))
    surgery.write(made, tmp_path / "here")
    surgery.write(made, tmp_path / "there", executor="ray")
    assert hashes(tmp_path / "there", without=()) == hashes(tmp_path / "here", without=())


def test_what_rounding_does_is_told_as_here(joined: Any, base: Path, tmp_path: Path) -> None:
    """Weights that become infinite are counted on the nodes, and refused by the driver; the rest stays staged."""
    made = surgery.cast(surgery.open_checkpoint(base), "float16")
    told = []
    for options in ({}, {"executor": "ray"}):
        with pytest.raises(VerificationFailed) as caught:
            surgery.write(made, tmp_path / "out", **options)
        told.append(caught.value.what)
    assert told[0] == told[1] and not (tmp_path / "out").exists()


def test_nodes_that_are_not_fit(
    joined: Any, base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another torch, another kind of CPU, sources and X"""
    other = tmp_path / "elsewhere" / "torch-2.0.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.0.0\n")
    outputs = tmp_path / "outputs"
    odd = joined.add_node(num_cpus=1, object_store_memory=STORE, env_vars={"PYTHONPATH": str(other.parent)})
    with pytest.raises(SurgeryError, match=rf"node {odd.node_id[:8]} on .*: torch is 2.0.0 there, and .* here"):
        surgery.write(surgery.open_checkpoint(base), outputs / "out", executor="ray")
    assert not os.listdir(outputs)
    joined.remove_node(odd)
    slow = joined.add_node(num_cpus=1, object_store_memory=STORE, env_vars={"ATEN_CPU_CAPABILITY": "default"})
    with pytest.raises(SurgeryError, match=rf"node {slow.node_id[:8]} on .*: it computes with `torch .* DEFAULT`, "):
        surgery.write(merged(base, adapter), outputs / "out", executor="ray")
    assert not os.listdir(outputs)
    joined.remove_node(slow)


def test_a_cluster_without_a_node_of_that_size(joined: Any, base: Path, tmp_path: Path) -> None:
    """Ray would wait for one."""
    for options, has in (({"workers": 4}, "4 cores"), ({"memory": "1TB"}, "1000419 MB")):
        with pytest.raises(SurgeryError, match=f"no node of the Ray cluster has .*{has}"):
            surgery.write(surgery.open_checkpoint(base), tmp_path / "out", executor="ray", **options)
    assert not os.listdir(tmp_path)


def test_paths_that_nodes_do_not_see(joined: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`/proc/self/cwd` is a folder of its own for each process, as /data may be for each machine."""
    monkeypatch.chdir(base)
    with pytest.raises(SurgeryError, match=r"it does not see /proc/self/cwd/model.* as this machine does"):
        surgery.write(surgery.open_checkpoint("/proc/self/cwd"), tmp_path / "out", executor="ray")
    assert not os.listdir(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SurgeryError, match=r"it cannot write the stage, /proc/self/cwd/.out"):
        surgery.write(surgery.open_checkpoint(base), "/proc/self/cwd/out", executor="ray")
    assert not os.listdir(tmp_path)


def test_other_bytes_under_the_same_path(base: Path, tmp_path: Path) -> None:
    """Of the same size and time, other in one weight far from its begin; and another folder where the stage is."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(bytes(1 << 21))
    status = path.stat()
    file = File(str(path), status.st_size, status.st_mtime_ns)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "driver").write_text("token")
    fit = Fit(str(folder), "token", {file: seen(file)}, "")
    assert faults(fit, "n") == []
    assert (folder / "n.proof").read_text() == "token n"
    path.write_bytes(bytes((1 << 21) - 1) + b"x")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    (folder / "driver").write_text("another")
    said = "\n".join(faults(fit, "n"))
    assert "it holds other bytes there" in said and "is another folder there" in said
    os.utime(path)
    assert "an input changed after it was opened" in "\n".join(faults(fit, "n"))


def test_a_worker_that_is_given_up_changes_nothing(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on after its run has ended, its shards made elsewhere: what it would write has no place any more."""
    plan = surgery.plan(surgery.open_checkpoint(base))
    stage = tmp_path / "stage"
    (stage / "run").mkdir(parents=True)
    (stage / "run" / "driver").write_text("token")
    job = Job(0, plan.shards, Fit(str(stage / "run"), "token", {}, ""), frozenset("n"), {}, 1, 10**8, "auto", False)
    began, over = threading.Event(), threading.Event()

    def told(self: Told, step: Step) -> None:
        began.set()
        over.wait(20)

    monkeypatch.setattr(Told, "__call__", told)
    outcomes: list[Outcome] = []
    worker = threading.Thread(target=lambda: outcomes.append(work(pickle.dumps(job), "n")))
    worker.start()
    assert began.wait(20)
    inside = Inside(str(stage))
    inside.empty("run")
    inside.close()
    (stage / "model.safetensors").write_bytes(b"published")
    stage.rename(tmp_path / "out")
    over.set()
    worker.join(20)
    assert outcomes[0].error and not outcomes[0].made
    assert os.listdir(tmp_path / "out") == ["model.safetensors"]
    assert os.listdir(tmp_path) == ["out"]
    monkeypatch.undo()
    assert work(pickle.dumps(job), "n").error  # and one that begins after it
    assert os.listdir(tmp_path) == ["out"]


DIES = """
    import os, signal, sys, surgery
    from surgery.execution import cluster
    cluster.LEAST = 1
    base, out, address, how = sys.argv[1:]

    def on_step(step):
        if step.kind == "finished":
            os.kill(os.getpid(), getattr(signal, how))

    surgery.write(surgery.open_checkpoint(base), out, executor="ray", address=address, on_step=on_step)
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_a_driver_that_dies(how: str, joined: Any, base: Path, tmp_path: Path) -> None:
    """What was finished is there for the next run, which begins at once; Ctrl-C leaves no half of anything."""
    want = surgery.write(surgery.open_checkpoint(base), tmp_path / "want" / "out")
    out = tmp_path / "outputs" / "out"
    words = [sys.executable, "-c", textwrap.dedent(DIES), base, out, joined.address, how]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100)
    assert done.returncode and not out.exists(), done.stderr
    [stage] = stages(str(out))
    if how == "SIGINT":
        assert "KeyboardInterrupt" in done.stderr and not os.path.exists(f"{stage}/.surgery/parts/nodes")
    report = surgery.write(surgery.open_checkpoint(base), out, executor="ray")
    assert report.resumed > 0 and report.shards == want.shards
    assert hashes(out, without=()) == hashes(tmp_path / "want" / "out", without=())
    assert os.listdir(tmp_path / "outputs") == ["out"]


# `surgery`, which is asked to end when its first shard is finished.
ASKED = """
    import os, sys
    from surgery.execution import cluster, execute
    cluster.LEAST = 1
    real, number = execute._serial, int(sys.argv.pop(1))

    def serial(on_step):
        def told(step):
            if step.kind == "finished":
                os.kill(os.getpid(), number)
        return real(told)

    execute._serial = serial
    import surgery_cli
    surgery_cli.main()
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_that_is_asked_to_end(joined: Any, base: Path, tmp_path: Path, number: int, status: int) -> None:
    """As without Ray, which has a handler of its own: in words, with its own status, and what is finished is kept."""
    out = tmp_path / "outputs" / "out"
    words = ["reshard", base, "-o", out, "--max-shard-size", "20KB", "--executor", "ray", "--address", joined.address]
    command = [sys.executable, "-c", textwrap.dedent(ASKED), str(int(number)), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith("interrupted: the destination is as it was\nhelp: finished shards are kept beside it")
    assert "Traceback" not in done.stderr and not out.exists()
    [stage] = stages(str(out))
    assert not os.path.exists(f"{stage}/.surgery/parts/nodes")
    assert surgery.write(surgery.open_checkpoint(base), out, "20KB", executor="ray").resumed > 0
    surgery.write(surgery.open_checkpoint(base), tmp_path / "want" / "out", "20KB")
    assert hashes(out, without=()) == hashes(tmp_path / "want" / "out", without=())


def test_the_command_finds_the_cluster_that_runs(joined: Any, base: Path, tmp_path: Path) -> None:
    words = ["surgery", "split-qkv", base, "-o", tmp_path / "out", "--executor", "ray", "--json"]
    done = subprocess.run([*words, "--address", joined.address], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tensors"] > 0
    assert not done.stderr


def test_the_command_of_the_page(
    joined: Any, base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the documentation has it, but for the cluster's address."""
    (block,) = documents.blocks("how-to/machines.md")
    ((command, _),) = documents.commands(block)
    for name, made in (("base", base), ("adapter", adapter)):
        (tmp_path / name).symlink_to(made)
    monkeypatch.chdir(tmp_path)
    said = documents.run(command.replace("10.0.0.1:6379", joined.address))
    assert said.startswith("done") and hashes(tmp_path / "tuned")


def test_wrong_usage(base: Path, tmp_path: Path) -> None:
    for words, said in (
        (["--executor", "dask"], "`dask` is no executor"),
        (["--address", "10.0.0.1:6379"], "pass --executor ray with --address"),
    ):
        result = CliRunner().invoke(app, ["split-qkv", str(base), "-o", str(tmp_path / "out"), *words])
        assert result.exit_code == 2 and said in " ".join(result.output.replace("│", "").split())


def halfway(raylets: Container[int]) -> tuple[int, int]:
    """A worker of one of these raylets that is filling a shard, stopped there; and its raylet."""
    while True:
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, ValueError, IndexError):
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                opened = [os.readlink(fd) for fd in (process / "fd").iterdir()] if parent in raylets else []
                if any("/parts/nodes/" in path and "/parts/made/" in path for path in opened):
                    os.kill(int(process.name), signal.SIGSTOP)
                    return int(process.name), parent
        time.sleep(0.001)


def raylet(node: Any) -> int:
    return node.all_processes["raylet"][0].process.pid


def test_a_node_that_dies(joined: Any, tmp_path: Path) -> None:
    """It dies while it fills a shard: its shards are made again elsewhere, and nothing of it is left."""
    whole = write_phi3(tmp_path / "in" / "whole", layers=6, hidden=1024)
    modules = {f"model.layers.{i}.self_attn.o_proj": (1024, 1024) for i in range(6)}
    opened, lora = surgery.open_checkpoint(whole), write_adapter(tmp_path / "in" / "lora", modules)
    made = surgery.merge(opened, surgery.open_adapter(lora))
    surgery.write(made, tmp_path / "here", "12MB")
    node = joined.add_node(num_cpus=1, object_store_memory=STORE)
    pids: list[int] = []

    def kill() -> None:
        worker, parent = halfway({raylet(node)})
        os.kill(parent, signal.SIGKILL)
        os.kill(worker, signal.SIGKILL)
        pids.append(worker)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    report = surgery.write(made, tmp_path / "outputs" / "out", "12MB", executor="ray")
    killer.join(1)
    assert pids and report.shards > 3
    assert hashes(tmp_path / "outputs" / "out", without=()) == hashes(tmp_path / "here", without=())
    assert os.listdir(tmp_path / "outputs") == ["out"]


def test_from_the_hub_and_to_it_on_a_cluster_that_is_started(
    hub: Hub, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each node reads the commit by itself; what it made is sent from here, with few shards on the disk."""
    ray.shutdown()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(driver, "LEAST", 1)
    surgery.push(base, "org/base")
    made = surgery.split_qkv(surgery.open_checkpoint("org/base"))
    surgery.write(made, surgery.HubDestination("hf://org/here", stage=str(tmp_path / "stage")))
    dest = surgery.HubDestination("hf://org/there", stage=str(tmp_path / "stage"), stage_shards=2)
    counts: list[int] = []

    def on_step(step: Step) -> None:
        if step.kind in ("finished", "sent"):
            counts.append(len(list((tmp_path / "stage").rglob("*.safetensors"))))

    report = surgery.write(made, dest, executor="ray", address="local", on_step=on_step)
    here, there = hub.hashes("org/here"), hub.hashes("org/there")
    for named in ("README.md", ".surgery/manifest.json"):  # by the card, in which the repository's name is
        assert here.pop(named) and there.pop(named)
    assert report.commit and report.shards > 3 and here == there
    assert 0 < max(counts) <= 2 and not ray.is_initialized()
