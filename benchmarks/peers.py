"""What a user would do instead: load the model, change it, save it.

python benchmarks/peers.py reshard MODEL OUT SIZE
python benchmarks/peers.py merge MODEL ADAPTER OUT SIZE
"""

from __future__ import annotations

import sys

import torch
import transformers


def main() -> None:
    """Run one of the two."""
    transformers.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[2], dtype=torch.bfloat16)
    if sys.argv[1] == "merge":
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, sys.argv[3]).merge_and_unload()
    model.save_pretrained(sys.argv[-2], max_shard_size=sys.argv[-1])


if __name__ == "__main__":
    main()
