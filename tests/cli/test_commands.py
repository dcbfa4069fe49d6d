"""The command line: what it prints where, what it exits with, and that it writes only what it says."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import hashes
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

import surgery
from surgery.evaluation.workspace import DEFAULT_MEMORY
from surgery.recipes.kinds import Pairs
from surgery.units import size
from surgery_cli.app import app

Saved = Callable[..., Path]


def surge(*words: str | Path) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app, [str(w) for w in words])


def process(*words: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "surgery_cli", *map(str, words)], capture_output=True, text=True, **options
    )  # type: ignore[call-overload]


def adapter_for_split_phi3(path: Path) -> Path:
    """A LoRA on q and v of the small Phi-3 after its split."""
    tensors = {}
    for layer in range(3):
        for module, out in (("q_proj", 48), ("v_proj", 24)):
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(4, 48)
            tensors[f"{name}.lora_B.weight"] = torch.randn(out, 4)
    path.mkdir()
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    return path


COMMANDS = (
    *(
        "inspect",
        "reshard",
        "split",
        "fuse",
        "split-qkv",
        "fuse-qkv",
        "split-gate-up",
        "fuse-gate-up",
        "split-experts",
        "fuse-experts",
    ),
    *("convert", "quantize", "inject", "merge", "rename", "drop", "verify", "diff", "clean", "demo"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str) -> None:
    result = surge(command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def test_help_states_the_default_memory_and_loads_nothing_heavy() -> None:
    assert f"{DEFAULT_MEMORY // 10**6}MB" in surge("reshard", "--help").stdout
    code = (
        "import sys; import surgery_cli.app; print(sorted(m for m in sys.modules if m in ('numpy', 'torch',"
        " 'huggingface_hub')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_writing_commands_write_what_the_library_writes(saved: Saved, tmp_path: Path) -> None:
    base = saved("phi3", shard="20KB")
    adapter = adapter_for_split_phi3(tmp_path / "adapter")
    assert surge("split-qkv", base, "-o", tmp_path / "split", "-q").exit_code == 0
    assert (
        surge(
            "merge", tmp_path / "split", adapter, "-o", tmp_path / "merged", "--max-shard-size", "30KB", "-q"
        ).exit_code
        == 0
    )
    assert (
        surge("rename", tmp_path / "merged", "-o", tmp_path / "renamed", "--map", r"^model\.=m.", "-q").exit_code == 0
    )
    assert (
        surge("drop", tmp_path / "renamed", "-o", tmp_path / "dropped", "--pattern", r"lm_head\..*", "-q").exit_code
        == 0
    )
    assert (
        surge("reshard", tmp_path / "dropped", "-o", tmp_path / "out", "--max-shard-size", "1GB", "-q").exit_code == 0
    )

    checkpoint = surgery.merge(surgery.split_qkv(surgery.open_checkpoint(base)), surgery.open_adapter(adapter))
    checkpoint = surgery.drop(surgery.rename(checkpoint, [(r"^model\.", "m.")]), r"lm_head\..*")
    surgery.write(checkpoint, tmp_path / "once", "1GB")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "once")


def test_report_counts_and_says_that_the_rest_is_copied(saved: Saved, tmp_path: Path) -> None:
    result = surge("split-qkv", saved("phi3"), "-o", tmp_path / "out")
    assert result.exit_code == 0
    assert "27 copied byte for byte, 9 with new names" in result.stdout
    assert result.stdout.startswith("done\n")


def test_dry_run_writes_nothing_and_needs_no_output(saved: Saved, tmp_path: Path) -> None:
    base = saved("phi3", shard="20KB")
    for extra in ([], ["-o", tmp_path / "out"]):
        result = surge("reshard", base, "--max-shard-size", "30KB", "--dry-run", *extra)
        assert result.exit_code == 0
        assert result.stdout.startswith("dry run: nothing was written")
        assert "21 tensors" in result.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["inspect"],
        ["inspect", "--tensors", ".*norm.*"],
        ["split-qkv", "--dry-run"],
        ["split-qkv", "-o", "out"],
        ["verify"],
    ],
)
def test_json_is_one_object_and_nothing_else(words: list[str], saved: Saved, tmp_path: Path) -> None:
    result = process(words[0], saved("phi3"), *words[1:], "--json", cwd=tmp_path)
    assert result.returncode == 0
    assert isinstance(json.loads(result.stdout), dict)
    assert result.stderr == ""


def test_json_of_a_dry_run_is_the_plan(saved: Saved) -> None:
    found = json.loads(surge("split-qkv", saved("phi3"), "--dry-run", "--json").stdout)
    assert found["tensors"] == 27
    assert found["computed"] == []
    assert found["copied_bytes"] == sum(s["nbytes"] for s in found["shards"])
    assert len(found["added"]) == 9


def test_refusal_says_what_where_and_how_and_exits_with_1(saved: Saved, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    result = process("split-qkv", saved("phi3"), "-o", "out", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0] == "error: the destination exists"
    assert lines[1] == f"  --> {tmp_path / 'out'}"
    assert lines[2].startswith("help: ")
    assert "Traceback" not in result.stderr
    assert hashes(tmp_path / "out") == {"mine.txt": hashes(tmp_path / "out")["mine.txt"]}


def test_refusal_as_json(tmp_path: Path) -> None:
    result = process("inspect", tmp_path, "--json")
    assert result.returncode == 1
    error = json.loads(result.stdout)["error"]
    assert error["kind"] == "NotACheckpoint"
    assert error["what"] == "no safetensors file is here"
    assert error["where"] == [str(tmp_path)]


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = process("inspect", tmp_path, "--debug")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "no safetensors file is here" in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["reshard", "x"],
        ["reshard", "x", "--max-shard-size", "1GB"],
        ["rename", "x", "-o", "y"],
        ["rename", "x", "-o", "y", "--map", "no-equals-sign"],
        ["drop", "x", "-o", "y"],
        ["merge", "x", "a", "-o", "y", "--weights", "one"],
        ["split-qkv", "x", "-o", "y", "--workers", "many"],
    ],
)
def test_wrong_usage_exits_with_2(words: list[str]) -> None:
    result = surge(*words)
    assert result.exit_code == 2
    assert "Error" in result.output


def test_quiet_prints_nothing(saved: Saved, tmp_path: Path) -> None:
    result = process("split-qkv", saved("phi3"), "-o", tmp_path / "out", "--quiet")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_verify_fails_where_the_class_would_not_load_it_whole(saved: Saved, tmp_path: Path) -> None:
    assert surge("verify", saved("phi3"), "--values").exit_code == 0
    surge("split-qkv", saved("phi3"), "-o", tmp_path / "split", "-q")
    result = surge("verify", tmp_path / "split")
    assert result.exit_code == 1
    assert "FAILED  class: Phi3ForCausalLM would not load it whole" in result.output
    assert "missing: model.layers.0.self_attn.qkv_proj.weight" in result.output
    assert surge("verify", tmp_path / "split", "--no-class").exit_code == 0


def test_inspect_of_an_adapter(tmp_path: Path) -> None:
    found = json.loads(surge("inspect", adapter_for_split_phi3(tmp_path / "adapter"), "--json").stdout)
    assert found["kind"] == "adapter"
    assert found["adapter"]["modules"] == 6
    assert found["total"] == {
        "tensors": 12,
        "parameters": 3 * (4 * 48 * 2 + (48 + 24) * 4),
        "nbytes": 12 * (4 * 48 * 2 + (48 + 24) * 4),
    }


def test_clean_removes_a_stage_and_says_its_size(saved: Saved, tmp_path: Path) -> None:
    stage = tmp_path / ".out.surgery-0123456789abcdef"
    stage.mkdir()
    (stage / "model.safetensors.part").write_bytes(bytes(100_000))
    result = surge("clean", tmp_path / "out")
    assert result.exit_code == 0
    assert str(stage) in result.stdout
    assert list(tmp_path.iterdir()) == []
    assert surge("clean", tmp_path / "out").stdout == "nothing to clean\n"


def test_interrupt_leaves_the_stage_says_so_and_the_same_command_resumes(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for shard in range(6):
        tensors = {f"layers.{shard}.{i}.weight": torch.full((1024, 4096), float(shard)) for i in range(4)}
        save_file(tensors, base / f"model-{shard + 1:05d}-of-00006.safetensors", metadata={"format": "pt"})
    words = [
        sys.executable,
        "-m",
        "surgery_cli",
        "reshard",
        str(base),
        "-o",
        str(tmp_path / "out"),
        "--max-shard-size",
        "17MB",
        "--workers",
        "1",
    ]
    running = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    while running.poll() is None and not list(tmp_path.glob(".out.surgery-*/model-00003-of-*")):
        time.sleep(0.002)
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate()
    if running.returncode == 0:
        pytest.skip("the run was over before it could be interrupted")
    assert running.returncode == 130
    assert stderr.startswith("interrupted: the destination is as it was")
    assert "Traceback" not in stderr
    assert not (tmp_path / "out").exists()
    again = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "resumed: " in again.stdout
    assert surgery.verify(tmp_path / "out", check_class=False).ok


def test_progress_is_drawn_on_a_terminal_only(saved: Saved, tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    words = [sys.executable, "-m", "surgery_cli", "split-qkv", str(saved("phi3")), "-o", str(tmp_path / "out")]
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=follower, env={**os.environ, "TERM": "xterm"}, text=True, check=True
    )
    os.close(follower)
    drawn = os.read(leader, 1 << 16).decode()
    assert "/s" in drawn or "kB" in drawn
    assert done.stdout.startswith("done\n")


@pytest.mark.parametrize("width", [80, 60, 40, 132])
def test_progress_keeps_to_one_line_and_shows_the_end_of_the_name(width: int) -> None:
    """Drawn on a terminal of that width: no line is wider, and none is wrapped into a second."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    code = """
from surgery_cli.progress import looking
with looking(shown=True) as on_tensor:
    on_tensor("model.language_model.layers.17.block_sparse_moe.experts.63.self_attn.q_proj.weight", 10**9, 10**10)
    import time; time.sleep(0.3)
"""
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
    subprocess.run([sys.executable, "-c", code], stdin=follower, stdout=follower, stderr=follower, env=env, check=True)
    os.close(follower)
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", os.read(leader, 1 << 16).decode())
    frames = [line.rstrip() for line in re.split(r"[\r\n]+", drawn) if line.strip()]
    assert max(map(len, frames)) <= width
    assert all(frame.lstrip()[0] in "━╸╺" for frame in frames), "a name was wrapped into a line of its own"
    assert width < 80 or frames[-1].endswith("q_proj.weight")
    assert width < 60 or frames[-1].endswith("t")


def test_shell_completion_knows_the_commands() -> None:
    line = {"_SURGERY_COMPLETE": "complete_bash", "COMP_WORDS": "surgery resh", "COMP_CWORD": "1"}
    command = shutil.which("surgery", path=os.path.dirname(sys.executable))
    assert command, "the command `surgery` is not installed beside this Python"
    found = subprocess.run([command], capture_output=True, text=True, env={**os.environ, **line})
    assert found.stdout.split() == ["reshard"]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a=b", ("a", "b")),
        ("^model\\.=", ("^model\\.", "")),
        ("(?=x)y=z", ("(?=x)y", "z")),
        ("a(?<=a)b=c", ("a(?<=a)b", "c")),
        ("a=b=c", ("a=b", "c")),
    ],
)
def test_map_is_cut_at_the_last_equals_sign_outside_a_group(text: str, rule: tuple[str, str]) -> None:
    assert Pairs(str, rules=True).read(text, "REGEX=REPLACEMENT") == [rule]


SIZES = [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (4_900_000_000, "4.9 GB"), (13 * 10**11, "1.3 TB")]


@pytest.mark.parametrize(("nbytes", "text"), SIZES)
def test_sizes_are_for_people(nbytes: int, text: str) -> None:
    assert size(nbytes) == text


def test_tensors_of_an_adapter_are_listed(tmp_path: Path) -> None:
    result = surge("inspect", adapter_for_split_phi3(tmp_path / "adapter"), "--tensors", r".*layers\.0.*lora_A.*")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 3


def test_names_are_shown_and_never_obeyed(tmp_path: Path) -> None:
    """A tensor's name may hold escape sequences and line breaks."""
    save_file({"a\x1b[31mred": torch.zeros(1), "two\nlines": torch.zeros(1)}, tmp_path / "model.safetensors")
    result = surge("inspect", tmp_path, "--tensors", ".*")
    assert "\x1b" not in result.stdout
    assert len(result.stdout.splitlines()) == 3
    refused = surge("rename", tmp_path, "-o", tmp_path / "x" / "out", "--map", "^.*$=same")
    assert refused.exit_code == 1
    assert "\x1b" not in refused.output


def test_fused_tensors_of_an_unknown_family_are_named(tmp_path: Path) -> None:
    save_file({"h.0.self_attention.query_key_value.weight": torch.zeros(6, 2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "nobody_knows"}')
    shown = surge("inspect", tmp_path).stdout
    assert "1 module such as h.0.self_attention.query_key_value: by its name fused, but in a layout" in shown
    refused = surge("split-qkv", tmp_path, "--dry-run")
    assert refused.exit_code == 1
    assert (
        "no layout is known for model type `nobody_knows`, and more than one would fit what is called query_key_value"
        in refused.output
    )


def test_config_that_is_no_config_is_refused(tmp_path: Path) -> None:
    save_file({"a.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    for content, what in (
        ("[]", "not a JSON object"),
        ('{"model_type": ["a"]}', "the model_type is ['a'], not a text"),
    ):
        (tmp_path / "config.json").write_text(content)
        result = surge("split-qkv", tmp_path, "--dry-run")
        assert result.exit_code == 1
        assert f"error: {what}" in result.output
        assert "help: mend the file, or fetch it again" in result.output


def test_class_is_not_asked_without_accelerate(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["surgery.checks.loadable"], "find_spec", lambda name: None)
    found = json.loads(surge("verify", saved("phi3"), "--json").stdout)
    assert found["ok"]
    assert found["checks"][-1]["ok"] is None
    assert found["checks"][-1]["detail"] == "transformers' meta device needs accelerate: pip install accelerate"
