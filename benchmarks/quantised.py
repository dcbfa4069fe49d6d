"""Quantised checkpoints to 16 bits, and adapters merged into them: against cp of what is written, and against
transformers, which loads, dequantises and saves. Ratios of medians of alternating runs, and peak memory.

    python benchmarks/quantised.py WORKDIR [SCHEME...] [--layers 44] [--runs 3] [--peer] [--merge]

WORKDIR should be in tmpfs. Schemes: fp8 nf4 int4 mxfp4. Of 44 layers, the codes of fp8 are 2.2 GB, and what is written
4.3 GB; two copies of that are there at a time. Codes and scales are random numbers: what is timed does not depend on
them.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from run import ALL, HERE, SURGERY, compared, copied

SCHEMES = ("fp8", "nf4", "int4", "mxfp4")
START = [sys.executable, "-c", "import torch, surgery, surgery_cli"]
PEER = """
import sys, torch, transformers
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, FineGrainedFP8Config
transformers.logging.disable_progress_bar()
options = {"int4": {"quantization_config": CompressedTensorsConfig(dequantize=True)},
           "fp8": {"quantization_config": FineGrainedFP8Config(dequantize=True)}}.get(sys.argv[1], {})
model = AutoModelForCausalLM.from_pretrained(sys.argv[2], device_map="cpu", **options)
model = model.dequantize() if sys.argv[1] == "nf4" else model
model.save_pretrained(sys.argv[3])
"""


def made(script: str, path: Path, *words: str) -> None:
    """A checkpoint or adapter, made once, by a process of its own."""
    if not path.exists():
        subprocess.run([sys.executable, str(HERE / script), *words], check=True)


def main() -> None:
    """Run the schemes that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("schemes", nargs="*")
    parser.add_argument("--layers", type=int, default=44)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--merge", action="store_true")
    arguments = parser.parse_args()
    work, runs = arguments.work, arguments.runs
    for scheme in arguments.schemes or SCHEMES:
        base, out, written = work / scheme, work / "out", work / "written"
        made("quantised_models.py", base, scheme, str(base), str(arguments.layers))
        ours = [*SURGERY, "dequantize", str(base), "--quiet"]
        subprocess.run([*ours, "-o", str(written), "--overwrite"], check=True)
        commands = {"cp of the output": copied(written, out), "surgery": [*ours, "-o", str(out)], "start-up": START}
        if arguments.peer and scheme != "mxfp4":
            commands["transformers"] = [sys.executable, "-c", PEER, scheme, str(base), str(out)]
        compared(f"dequantize {scheme}", commands, out, runs)
        if arguments.merge and scheme != "mxfp4":
            adapter = work / f"adapter-{arguments.layers}"
            made("models.py", adapter, "adapter", str(adapter), "16", ALL, str(arguments.layers))
            merge = [*SURGERY, "merge", str(base), str(adapter), "--quiet", "-o", str(out)]
            compared(f"merge into {scheme}", {"cp of the output": copied(written, out), "surgery": merge}, out, runs)
            compared(
                f"requantize {scheme}",
                {"cp": copied(base, out), "surgery": [*merge, "--requantize", "--lossy"]},
                out,
                runs,
            )
        shutil.rmtree(written)


if __name__ == "__main__":
    main()
