"""What the README shows is what happens: its code runs as it stands there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
import torch
import transformers as tf
from safetensors.torch import save_file
from typer.testing import CliRunner

import surgery
from surgery.adapters import kinds
from surgery.models.fused.tables import TABLE
from surgery.models.targets import TARGETS
from surgery.quantization import quantised
from surgery_cli.app import app

README = (Path(__file__).parent.parent / "README.md").read_text()


def example(name: str) -> str:
    """The code block after `<!-- example: name -->`."""
    return re.search(rf"<!-- example: {name} -->\n```\w+\n(.*?)```", README, re.DOTALL)[1]  # type: ignore[index]


def test_sam_from_beginning_to_end(saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Split, inject, train (here: B gets noise), merge, fuse: a plain SAM that computes what the trained one did."""
    monkeypatch.chdir(tmp_path)
    tiny_models.save("sam", tmp_path / "sam")
    sizes = {"--rank": "4", "--alpha": "8"}

    def surge(*words: str) -> None:
        result = CliRunner().invoke(app, [*words, "--quiet"], catch_exceptions=False)
        assert result.exit_code == 0, result.output

    surge("split-qkv", "sam", "-o", "sam-split")
    surge(
        "inject",
        "sam-split",
        "-o",
        "lora",
        "--target-modules",
        "q,v",
        *(word for pair in sizes.items() for word in pair),
    )
    training = """
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
"""
    told = """
import sys
sys.path.insert(0, sys.argv[1])
import tiny_models
torch.save(tiny_models.output(model.base_model.model.eval(), "sam"), "live.pt")
"""
    code = example("sam").replace("# … your training …\n", training) + told
    done = subprocess.run(
        [sys.executable, "-c", code, Path(__file__).parent], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr
    trainable = 3 * 2 * 4 * (36 + 36)
    assert f"trainable params: {trainable:,} ||" in done.stdout
    surge("merge", "sam-split", "trained", "-o", "merged")
    surge("fuse-qkv", "merged", "-o", "sam-tuned")
    surge("merge", "sam", "trained", "-o", "at-once")
    assert (tmp_path / "at-once" / "model.safetensors").read_bytes() == (
        tmp_path / "sam-tuned" / "model.safetensors"
    ).read_bytes()
    model, info = tf.SamModel.from_pretrained("sam-tuned", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    live, plain = torch.load("live.pt", weights_only=True), tiny_models.output(tiny_models.build("sam"), "sam")
    merged = tiny_models.output(model.eval(), "sam")
    assert (live - plain).abs().max() > 1e-2 * plain.abs().max()
    assert (merged - live).abs().max() < 1e-4 * live.abs().max()


def test_the_count_that_the_readme_states(tmp_path: Path) -> None:
    """r=16 on q and v of sam-vit-base: 12 layers of 768, from headers alone."""
    from handmade import write_tensors

    tensors = {}
    for layer in range(12):
        for part in "qkv":
            tensors[f"vision_encoder.layers.{layer}.attn.{part}.weight"] = (
                "U8",
                (768, 768),
            )  # small: only the shapes count
    write_tensors(tmp_path / "model.safetensors", {n: ("BF16", s) for n, (_, s) in tensors.items()})
    adapter = surgery.inject(surgery.open_checkpoint(tmp_path), ["q", "v"], rank=16, alpha=32)
    assert sum(t.size for t in adapter.tensors.values()) == 589_824
    assert "trainable params: 589,824" in README and adapter.notes[-1].startswith("trainable params: 589,824 ||")


def test_targets_are_those_of_the_table() -> None:
    section = README[README.index("### Into a class that loads it") : README.index("### Merge a LoRA adapter")]
    assert {t.name for t in TARGETS} == {
        name for name in re.findall(r"`(\w+)`", section) if name in {t.name for t in TARGETS}
    }


KINDS = {"qkv": "q, k and v", "kv": "k and v", "gate_up": "gate and up", "experts": "experts"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_families_are_those_of_the_table(kind: str) -> None:
    known = {name for row in TABLE if row.kind == kind for name in row.model_types}
    listed = re.search(rf"\*\*{KINDS[kind]}\*\* \((\d+)\):(.*?)\n\n", README, re.DOTALL)
    assert listed and int(listed[1]) == len(known)
    assert set(re.findall(r"`([^`]+)`", listed[2])) == known
    said = re.search(r"(\d+) model types", README)
    assert said and int(said[1]) == len({name for row in TABLE for name in row.model_types})


def test_the_kinds_of_adapters_are_those_of_the_table() -> None:
    assert kinds.table() in README


# The tasks, in order, in one folder

TASKS = README[README.index("## What you can do") : README.index("## What is supported")]
ELSEWHERE = ("### LoRA on q and v of SAM", "### On the Hub")  # run by a test of its own; not without the Hub
BLOCK = re.compile(r"```(text|bash|python|yaml)\n(.*?)```", re.DOTALL)


def blocks(text: str = TASKS) -> list[tuple[str, str]]:
    """(language, content) of each block that runs here."""
    sections = re.split(r"(?=^###? )", text, flags=re.MULTILINE)
    return [found for one in sections if not one.startswith(ELSEWHERE) for found in BLOCK.findall(one)]


def commands(content: str, language: str) -> list[tuple[str, str]]:
    """(command, what is shown of it) in a block."""
    if language == "bash":
        return [(line, "") for line in content.splitlines()]
    parts = re.split(r"^\$ ", content, flags=re.MULTILINE)
    return [(command, shown) for part in parts[1:] for command, _, shown in [part.partition("\n")]]


def run(command: str) -> str:
    """What it says; commands of surgery run in this process."""
    words = shlex.split(command, comments=True)
    if words[0] != "surgery":
        return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60).stdout
    return CliRunner().invoke(app, words[1:]).output


def settled(text: str, here: Path) -> str:
    """An output without what differs from run to run, and from one type of CPU to another."""
    text = re.sub(r"in \d+\.\d+ s, [\d.]+ [kMG]?B/s", "in … s", text.replace(str(here), "…"))
    text = re.sub(r"\d+ bytes in \.surgery/|[\d.]+ ?%(?= of | \w)|[\d.]+ ?%$", "…", text, flags=re.MULTILINE)
    text = re.sub(r"[\d.]+ times|(?<=worst, )[\w.]+?(?=\. By)", "…", text)
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def playground(folder: Path) -> Path:
    """What the demo leaves, a checkpoint as gpt-oss is published, and one of a training with DeepSpeed."""
    from zero_layouts import laid_out

    from surgery_cli.demo import make

    make(str(folder))
    laid_out([{"a.weight": torch.randn(3, 5)}], stage=2, ranks=2).write(folder / "checkpoint-500", "global_step480")
    for name in ("split", "merged", "result"):
        (folder / name).mkdir()
    (folder / "gpt-oss").mkdir()
    (folder / "gpt-oss" / "config.json").write_text(
        '{"model_type": "gpt_oss", "dtype": "bfloat16", "quantization_config": {"quant_method": "mxfp4"}}\n'
    )
    tensors = {"model.embed_tokens.weight": torch.zeros(512, 64, dtype=torch.bfloat16)}
    for layer in range(2):
        for part, rows, columns in (("gate_up_proj", 192, 64), ("down_proj", 64, 96)):
            name = f"model.layers.{layer}.mlp.experts.{part}"
            tensors[f"{name}_blocks"] = torch.randint(0, 256, (4, rows, columns // 32, 16), dtype=torch.uint8)
            tensors[f"{name}_scales"] = torch.randint(110, 125, (4, rows, columns // 32), dtype=torch.uint8)
            tensors[f"{name}_bias"] = torch.zeros(4, rows, dtype=torch.bfloat16)
    save_file(tensors, folder / "gpt-oss" / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_the_tasks_run_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And say what is shown of them."""
    monkeypatch.chdir(playground(tmp_path))
    scope: dict[str, object] = {}
    for language, content in blocks():
        if language == "python":
            exec(compile(content, "README.md", "exec"), scope)
            continue
        if language == "yaml":
            Path(content.partition("\n")[0].removeprefix("# ")).write_text(content)
            continue
        for command, shown in commands(content, language):
            said = run(command)
            if language == "text":
                assert settled(said, tmp_path) == settled(shown, tmp_path), command
            else:
                assert "error" not in said.lower(), (command, said)


def test_no_block_of_the_tasks_is_passed_over() -> None:
    """But those that need the Hub, or are run by another test."""
    left = [block for block in BLOCK.findall(TASKS) if block not in blocks()]
    assert all("org/" in content or "sam" in content.lower() for _, content in left)
    assert all(content.startswith("$ ") for language, content in blocks() if language == "text")
    assert "surgery demo play && cd play" in README


def test_the_schemes_are_those_of_the_table() -> None:
    section = README[README.index("| scheme | in config.json |") : README.index("Limits: weights whose codes")]
    rows = [line.split("|")[1:-1] for line in section.strip().splitlines()[2:]]
    read = {name: cells for cells in rows if "refused" not in cells[0] for name in re.findall(r"`([^`]+)`", cells[1])}
    assert read.keys() == {scheme.method for scheme in quantised.READ}
    for scheme in quantised.READ:
        assert ("none" in read[scheme.method][3]) is (scheme.skip is None)
    refused = {name for cells in rows if "refused" in cells[0] for name in re.findall(r"`([^`]+)`", cells[1])}
    assert refused and refused <= quantised.REFUSED.keys()
