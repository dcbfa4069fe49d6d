"""The reader of GGUF, given files that nobody wrote: each is read, or refused in our words, in bounded time and memory.

    python benchmarks/fuzz_gguf.py [INPUTS] [SEED]

A header as llama.cpp writes it, in which bytes are changed, sizes become great, parts are left out, doubled or cut.
"""

from __future__ import annotations

import random
import resource
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from surgery import open_checkpoint
from surgery.errors import SurgeryError

GREAT = (0, 1, 31, 2**16, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 32, 2**64 - 1)


def text(value: str) -> bytes:
    """A text with its length before it."""
    return struct.pack("<Q", len(value)) + value.encode()


def parts() -> list[bytes]:
    """A file in parts: the first words, keys, tensors, data."""
    keys = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("llama.attention.head_count") + struct.pack("<II", 4, 2),
        text("llama.rope.freq_base") + struct.pack("<If", 6, 1e4),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 3) + text("a") + text("b") + text("c"),
        text("tokenizer.ggml.scores") + struct.pack("<IIQ3f", 9, 6, 3, 0, 1, 2),
        text("general.alignment") + struct.pack("<II", 4, 32),
    ]
    entries = [
        text("token_embd.weight") + struct.pack("<IQQIQ", 2, 32, 4, 8, 0),
        text("blk.0.attn_q.weight") + struct.pack("<IQQIQ", 2, 32, 4, 0, 160),
        text("output_norm.weight") + struct.pack("<IQIQ", 1, 32, 1, 672),
    ]
    return [b"GGUF" + struct.pack("<IQQ", 3, 3, 6), *keys, *entries]


def changed(draw: random.Random) -> bytes:
    """A file of those parts, not all as they were."""
    made = parts()
    kind = draw.random()
    if kind < 0.2:
        at = draw.randrange(len(made))
        made[at : at + 1] = draw.choice(([], [made[at], made[at]], [draw.randbytes(draw.randrange(40))]))
    raw = bytearray(b"".join(made))
    raw += bytes(-len(raw) % 32) + bytes(736)
    for _ in range(draw.choice((0, 1, 1, 2, 4, 16))):
        at = draw.randrange(len(raw))
        raw[at] = draw.choice((draw.randrange(256), 0, 255, raw[at] ^ 1 << draw.randrange(8)))
    if draw.random() < 0.4:
        at = draw.randrange(len(raw) - 8)
        raw[at : at + 8] = struct.pack("<Q", draw.choice(GREAT))
    return bytes(raw[: draw.randrange(len(raw))] if draw.random() < 0.1 else raw)


def main() -> None:
    """Print how many were read, and how many refused for what; raise for another error."""
    count, seed = (int(one) for one in (*sys.argv[1:], *("100000", "0")[len(sys.argv) - 1 :]))
    draw, seen, slowest = random.Random(seed), Counter[str](), 0.0
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        path = Path(folder) / "x.gguf"
        for _ in range(count):
            path.write_bytes(changed(draw))
            begun = time.process_time()
            try:
                open_checkpoint(path)
                seen["read"] += 1
            except SurgeryError as error:
                seen[type(error).__name__] += 1
            slowest = max(slowest, time.process_time() - begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(f"{count} inputs, seed {seed}: {dict(seen)}; slowest {slowest * 1000:.0f} ms, peak {peak:.0f} MB")


if __name__ == "__main__":
    main()
