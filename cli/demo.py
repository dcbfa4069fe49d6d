"""`surgery demo`: the main job on a checkpoint made on the spot, with a proof at the end.

The checkpoint is a real transformers Phi-3 (random weights, fused qkv, grouped-query attention, sharded), the
adapter a PEFT directory with the shapes and sizes of a trained one. The commands run as a user would type them, each
as a process of its own, timed, with its peak memory. The proof compares logits: the original model with the adapter
applied live, against the files that the commands wrote.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import surgery
from surgery.units import size

SIZES: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
RANK, ALPHA = 16, 32
TARGETS = ("q_proj", "v_proj", "o_proj", "down_proj")
TOLERANCE = 1e-5  # of the largest logit


def run(folder: Path | None) -> None:
    """The whole demo in `folder`, or in a temporary one. Raises VerificationFailed if the results differ."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="surgery-demo-") as made:
            _show(Path(made))
        return
    if folder.exists() and any(folder.iterdir()):
        raise surgery.DestinationError(
            "the demo needs an empty folder", where=[str(folder)], help="pass another one, or none"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _show(folder)
    print(f"\nAll of it is in {folder}.")


def _show(folder: Path) -> None:
    print("A Phi-3 of random weights, and a LoRA adapter for its q, v, o and down projections:", flush=True)
    # Made by another process: this one stays small, so that the peak memory of the commands is theirs alone.
    subprocess.run(
        [sys.executable, "-c", "import sys; from surgery_cli.demo import make; make(sys.argv[1])", folder], check=True
    )
    for name in ("base", "adapter"):
        print(f"  {name}/  {', '.join(sorted(f.name for f in (folder / name).iterdir()))}")
    _command(folder, "inspect", "base")
    print(
        "\nIts attention stores q, k and v as one tensor; the adapter was trained on separate ones. So: split, merge,"
        " fuse back."
    )
    _command(folder, "split-qkv", "base", "-o", "demo/split")
    _command(folder, "merge", "demo/split", "adapter", "-o", "demo/merged")
    _command(folder, "fuse-qkv", "demo/merged", "-o", "demo/result", "--max-shard-size", "40MB")
    _command(folder, "verify", "demo/result", "--values")
    _prove(folder)


def make(folder: str) -> None:
    """Write the base and the adapter into `folder`."""
    _make_base(Path(folder) / "base")
    _make_adapter(Path(folder) / "adapter")


def _make_base(path: Path) -> None:
    """A saved Phi-3 of random weights."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    config = transformers.Phi3Config(**SIZES, vocab_size=4096, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    transformers.Phi3ForCausalLM(config).save_pretrained(path, max_shard_size="30MB")


def _make_adapter(path: Path) -> None:
    """A PEFT directory as training leaves it: A and B both filled."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(1)
    hidden, wide = SIZES["hidden_size"], SIZES["intermediate_size"]
    kv = hidden // SIZES["num_attention_heads"] * SIZES["num_key_value_heads"]
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.down_proj": (hidden, wide),
    }
    tensors = {}
    for layer in range(SIZES["num_hidden_layers"]):
        for module, (out, into) in shapes.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, into, generator=generator) / into**0.5
            tensors[f"{name}.lora_B.weight"] = torch.randn(out, RANK, generator=generator) * 0.02
    path.mkdir()
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": list(TARGETS),
        "bias": "none",
    }
    (path / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _command(folder: Path, *words: str) -> None:
    """Run one command of surgery in `folder`, and say what it took."""
    print(f"\n$ surgery {' '.join(words)}", flush=True)
    begun = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "surgery_cli", *words], cwd=folder)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise surgery.VerificationFailed("a command of the demo failed", where=[f"surgery {' '.join(words)}"])
    print(f"  ({time.monotonic() - begun:.1f} s, peak memory {size(_peak(usage))})")


def _peak(usage: resource.struct_rusage) -> int:
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _prove(folder: Path) -> None:
    """Logits of the original model with the adapter applied live, against those of the merged files."""
    import torch
    import transformers
    from safetensors.torch import load_file

    transformers.logging.disable_progress_bar()
    model = transformers.Phi3ForCausalLM.from_pretrained(folder / "base").eval()
    ids = torch.randint(3, 4096, (2, 32), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        before = model(ids).logits
        hooks = _apply_live(model, load_file(folder / "adapter" / "adapter_model.safetensors"))
        live = model(ids).logits
        for hook in hooks:
            hook.remove()
        after = transformers.Phi3ForCausalLM.from_pretrained(folder / "demo" / "result").eval()(ids).logits
    largest, effect, error = live.abs().max(), (live - before).abs().max(), (after - live).abs().max()
    print("\nDoes the result compute what the original computes with the adapter applied live? Over 64 tokens:")
    print(f"  largest logit              {largest:.3g}")
    print(f"  what the adapter changes   {effect:.3g}")
    print(f"  live against the result    {error:.3g}, {error / largest:.1g} of the largest logit")
    if not error <= TOLERANCE * largest:
        raise surgery.VerificationFailed("the result computes something else", where=[str(folder / "demo" / "result")])
    print("Yes: float32 noise, and nothing else.")


def _apply_live(model: Any, adapter: dict[str, Any]) -> list[Any]:
    """Add scale * B(A(x)) to the outputs of the targeted projections, q and v at their places in the fused one."""
    heads, kv = SIZES["num_attention_heads"], SIZES["num_key_value_heads"]
    head_dim = SIZES["hidden_size"] // heads
    rows = {"q_proj": (0, heads * head_dim), "v_proj": ((heads + kv) * head_dim, (heads + 2 * kv) * head_dim)}

    def adding(parts: list[tuple[int, int, Any, Any]]) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> Any:
            output = output.clone()
            for start, stop, a, b in parts:
                output[..., start:stop] += ALPHA / RANK * (inputs[0] @ a.T @ b.T)
            return output

        return hook

    hooks = []
    for layer, block in enumerate(model.model.layers):
        parts: dict[str, list[tuple[int, int, Any, Any]]] = {}
        for target in TARGETS:
            group = "mlp" if target == "down_proj" else "self_attn"
            name = f"base_model.model.model.layers.{layer}.{group}.{target}"
            a, b = adapter[f"{name}.lora_A.weight"], adapter[f"{name}.lora_B.weight"]
            fused = f"{group}.{'qkv_proj' if target in rows else target}"
            parts.setdefault(fused, []).append((*rows.get(target, (0, b.shape[0])), a, b))
        hooks += [block.get_submodule(name).register_forward_hook(adding(found)) for name, found in parts.items()]
    return hooks
