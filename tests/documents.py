"""The pages of the documentation, README.md among them: their blocks, what these say, and the folders they run in.

    python tests/documents.py how-to/merge.md …     write into pages what their commands say now, where that is new

The Hub's page and the machines' have their servers in tests, and show no outputs.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from surgery_cli.app import app

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
FENCE = re.compile(r"^(?:<!-- (\w[^\n]*?) -->\n+)?( *)```(\w*)[^\n]*\n(.*?)^\2```$", re.DOTALL | re.MULTILINE)
FILES = ("yaml", "toml", "json")
RUN_BY = "run by "  # a mark: the block is run by another test, or by CI; so are the README's two, `command: …`


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, what stands in it, and the mark `<!-- … -->` in the line before it."""

    language: str
    content: str
    mark: str = ""


def pages() -> dict[str, Path]:
    """Every page, by its path in docs/; README.md is one."""
    found = {path.relative_to(DOCS).as_posix(): path for path in sorted(DOCS.rglob("*.md"))}
    return {"README.md": ROOT / "README.md", **found}


def text(page: str) -> str:
    """What stands in a page."""
    return pages()[page].read_text()


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page, in order."""
    return [Block(language, content, mark) for mark, _, language, content in FENCE.findall(text(page))]


def marked(page: str, mark: str) -> str:
    """The block after `<!-- mark -->`."""
    (found,) = (block.content for block in blocks(page) if block.mark == mark)
    return found


def commands(block: Block) -> list[tuple[str, str | None]]:
    """(command, what is shown of it) in a block; nothing is shown in one of bash."""
    if block.language == "bash":
        whole = block.content.replace("\\\n", " ")
        return [(line, None) for line in whole.splitlines() if shlex.split(line, comments=True)]
    parts = re.split(r"^\$ ", block.content, flags=re.MULTILINE)
    return [(command, shown) for part in parts[1:] for command, _, shown in [part.partition("\n")]]


def run(command: str) -> str:
    """What it says; commands of surgery run in this process."""
    words = shlex.split(command, comments=True)
    if words[0] == "surgery" and not {"&&", "|", ">", ";"} & set(words):
        return CliRunner().invoke(app, words[1:]).output
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr


def settled(said: str, here: Path) -> str:
    """An output without what differs from run to run, and from one type of CPU to another."""
    said = re.sub(r"in \d+\.\d+ s, [\d.]+ [kMG]?B/s", "in … s", said.replace(str(here), "…"))
    said = re.sub(r"\d+ bytes in \.surgery/|[\d.]+ ?%(?= of | \w)|[\d.]+ ?%$", "…", said, flags=re.MULTILINE)
    said = re.sub(r"[\d.]+ times|(?<=worst, )[\w.]+?(?=\. By)", "…", said)
    return "\n".join(line.rstrip() for line in said.strip("\n").splitlines())


def said(block: Block, page: str, scope: dict[str, object]) -> Iterator[tuple[str, str | None, str]]:
    """Run a block in the working folder: (command, what is shown of it, what it said) of each command.

    Blocks of Python share a scope; one with the mark `example` is a program of its own.
    """
    if block.mark.startswith("example"):
        done = subprocess.run([sys.executable, "-c", block.content], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, (page, done.stderr)
    elif block.language == "python":
        exec(compile(block.content, page, "exec"), scope)
    elif block.language in FILES:
        Path(block.content.partition("\n")[0].removeprefix("# ")).write_text(block.content)
    for command, shown in commands(block) if block.language in ("text", "bash") else ():
        yield command, shown, run(command)


def compare(page: str, command: str, shown: str | None, told: str, here: Path) -> None:
    """What is shown is what was said; where nothing is shown, nothing went wrong."""
    if shown is None:
        assert "error" not in told.lower(), (page, command, told)
    else:
        assert settled(told, here) == settled(shown, here), (page, command)


def here(page: str) -> list[Block]:
    """The blocks of a page that run from top to bottom; the others name what runs them, or are pictures."""
    return [one for one in blocks(page) if not one.mark.startswith((RUN_BY, "command: ")) and one.language != "mermaid"]


# The folders


def play(folder: Path) -> None:
    """What the demo leaves, a checkpoint as gpt-oss is published, and one of a training with DeepSpeed."""
    from zero_layouts import laid_out

    from surgery_cli.demo import make

    make(str(folder))
    laid_out([{"a.weight": torch.randn(3, 5)}], stage=2, ranks=2).write(folder / "checkpoint-500", "global_step480")
    (folder / "demo").mkdir()
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


def image(folder: Path) -> None:
    """A small pipeline of Stable Diffusion, and a file of kohya's scripts for it."""
    from image_models import kohya, modules_of, opened, pipeline, saved

    live = opened(pipeline(folder / "pipeline"))
    read = {name: weight for name, weight in modules_of(live.unet).items() if not name.startswith("add_embedding")}
    encoder = {
        name if name.startswith("text_model.") else f"text_model.{name}": weight
        for name, weight in modules_of(live.text_encoder).items()
    }
    saved(kohya(read, "lora_unet_")[0] | kohya(encoder, "lora_te_")[0], folder / "style.safetensors")


def sam(folder: Path) -> None:
    """What the demo leaves, and a SAM of the size of sam-vit-base, of random weights."""
    from transformers import SamConfig, SamModel

    play(folder)
    SamModel(SamConfig()).save_pretrained(folder / "sam")


PLACES = {"how-to/diffusion.md": image, "how-to/fused-lora.md": sam}  # of other pages: play


def again(made: Path, folder: Path) -> Path:
    """The same files in another folder: hard links, since nothing writes to an input."""
    shutil.copytree(made, folder, copy_function=_linked, dirs_exist_ok=True)
    return folder


def _linked(source: str, target: str) -> None:
    Path(target).hardlink_to(source)


def rewritten(page: str, folder: Path) -> str:
    """The page with what its commands say now, where that is not what it shows."""
    new, scope = text(page), dict[str, object]()
    for block in here(page):
        for command, shown, told in said(block, page, scope):
            if shown is not None and settled(told, folder) != settled(shown, folder):
                told = "\n".join(line.rstrip() for line in told.replace(str(folder), "…").strip("\n").splitlines())
                gap = "\n" if shown.endswith("\n\n") else ""
                new = new.replace(
                    f"$ {command}\n{shown}", f"$ {command}\n{told}\n{gap}" if told else f"$ {command}\n{gap}"
                )
    return new


def main() -> None:
    """Write anew the pages that are named."""
    for page in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made).resolve()
            PLACES.get(page, play)(folder)
            os.chdir(folder)
            pages()[page].write_text(rewritten(page, folder))
            os.chdir(ROOT)


if __name__ == "__main__":
    main()
