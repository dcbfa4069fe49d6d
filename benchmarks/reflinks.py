"""What sharing blocks saves, on a Btrfs and an XFS that are made for it, each in an image in WORKDIR.

    python benchmarks/reflinks.py WORKDIR [--kinds xfs,btrfs] [--size 9G] [--shards 500MB]

Of a checkpoint of 2.2 GB: resharding from 5 shards to 8, and taking the blocked qkv of Phi-3 apart; each copied
(`--reflink never`), shared, and shared with `--align auto`, beside `cp`, copying and sharing. What the disk holds
more afterwards is counted by the file system, which blocks are shared is asked of it, and shared outputs are compared
by hash with copied ones. Needs root, `mkfs.xfs` or `mkfs.btrfs`, and the right to mount, in a name space of its own;
where there is none of these it says so and does nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from measure import Run, measured
from run import SURGERY, made

from surgery.execution.reflinks import shared_in

CASES = {
    "reshard, 5 shards to 8": ("llama", ["reshard", "--max-shard-size", "300MB"]),
    "split-qkv, blocked": ("phi3", ["split-qkv"]),
}
WAYS = {
    "copied": ["--align", "auto", "--reflink", "never"],
    "shared, as headers fall": ["--reflink", "auto"],
    "shared, --align auto": ["--align", "auto", "--reflink", "auto"],
}


def main() -> None:
    """Run each kind that can be made here; the inner call has a mount table of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--kinds", default="xfs,btrfs")
    parser.add_argument("--size", default="9G")
    parser.add_argument("--shards", default="500MB")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if not arguments.inside:
        again = ["unshare", "--mount", sys.executable, *sys.argv, "--inside"]
        if not shutil.which("unshare") or subprocess.run([*again[:2], "true"], capture_output=True).returncode:
            print("skipped: no name space for mounts can be made here")
            return
        sys.exit(subprocess.run(again).returncode)
    for kind in arguments.kinds.split(","):
        with mounted(kind, arguments.work, arguments.size) as (folder, why):
            if folder is None:
                print(f"skipped: no {kind} here: {why}")
                continue
            print(f"\n| {kind}, {arguments.size} image | | clock | processors | more on the disk | shared |")
            print("|---|---|---|---|---|---|", flush=True)
            for case in CASES:
                measure(case, folder, arguments.shards)


@contextmanager
def mounted(kind: str, work: Path, size: str) -> Iterator[tuple[Path | None, str]]:
    """A new file system of that kind, or why there is none; it is gone afterwards."""
    image, folder = work / f"{kind}.img", work / f"{kind}.mounted"
    folder.mkdir(exist_ok=True)
    why = ""
    try:
        with open(image, "wb"):
            pass
        for command in (
            ["truncate", "-s", size, str(image)],
            [f"mkfs.{kind}", "-q", str(image)],
            ["mount", "-o", "loop", str(image), str(folder)],
        ):
            try:
                done = subprocess.run(command, capture_output=True, text=True)
                why = why or (done.stderr.strip() if done.returncode else "")
            except FileNotFoundError:
                why = why or f"{command[0]} is not installed"
            if why:
                break
        yield (None if why else folder), why
    finally:
        subprocess.run(["umount", str(folder)], capture_output=True)
        image.unlink()
        folder.rmdir()


def measure(case: str, folder: Path, shards: str) -> None:
    """A line for each way, on a checkpoint that is made for it and removed."""
    name, (verb, *options) = CASES[case]
    base, hashes = made(folder, name, shards), dict[str, str]()
    size = sum(path.stat().st_size for path in base.iterdir())
    print(f"| {case}, {size / 1e9:.2f} GB | | | | | |")
    for how in ("never", "always"):
        line(
            f"cp --reflink={how}",
            ["sh", "-c", f"cp -r --reflink={how} {base} {folder}/out && sync -f {folder}"],
            folder,
        )
    for title, words in WAYS.items():
        command = [*SURGERY, verb, str(base), *options, *words, "-o", str(folder / "out"), "--json"]
        found = line(title, command, folder)
        hashes[title] = found
    same = hashes["copied"] == hashes["shared, --align auto"]
    print(f"| the same bytes, shared and copied | {'yes' if same else 'NO'} | | | | |", flush=True)
    shutil.rmtree(base)
    if not same:
        raise SystemExit("what was shared differs from what was copied")


def line(title: str, command: Sequence[str], folder: Path) -> str:
    """Run, print, remove; the hash of what was written."""
    out = folder / "out"
    before = used(folder)
    run: Run = measured(command)
    more, files = used(folder) - before, sorted(path for path in out.rglob("*") if path.is_file())
    blocks = sum(shared_in(str(path)) or 0 for path in files)
    said = f" ({json.loads(run.stdout)['shared'] / 1e6:.0f} MB said)" if run.stdout.startswith("{") else ""
    print(
        f"| | {title} | {run.seconds:.2f} s | {run.cpu:.2f} s | {more / 1e6:.0f} MB | {blocks / 1e6:.0f} MB{said} |",
        flush=True,
    )
    digest = hashlib.sha256()
    for path in files:
        if path.suffix == ".safetensors":
            digest.update(path.name.encode())
            with open(path, "rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    shutil.rmtree(out)
    subprocess.run(["sync", "-f", str(folder)], check=True)
    return digest.hexdigest()


def used(folder: Path) -> int:
    """Bytes that the file system holds, when all is written."""
    subprocess.run(["sync", "-f", str(folder)], check=True)
    told = os.statvfs(folder)
    return (told.f_blocks - told.f_bfree) * told.f_frsize


if __name__ == "__main__":
    main()
