"""For each command, how it is typed: its help shows these lines."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "inspect": ("surgery inspect base", "surgery inspect base --tensors '.*q_proj.*'"),
    "diff": ("surgery diff base merged",),
    "verify": ("surgery verify merged --base base --adapter adapter",),
    "demo": ("surgery demo play",),
    "reshard": ("surgery reshard base -o out --max-shard-size 5GB",),
    "convert-files": ("surgery convert-files checkpoint.pt -o out", "surgery convert-files dcp -o out"),
    "convert": ("surgery convert base -o llama --as llama",),
    "dequantize": ("surgery dequantize base-fp8 -o base-bf16",),
    "quantize": ("surgery quantize base -o base-nf4 --scheme nf4",),
    "rename": (r"surgery rename base -o out --map '^transformer\.=model.'",),
    "drop": (r"surgery drop base -o out --pattern 'mtp\..*'",),
    "layers": ("surgery layers base -o out --keep 0-15,20-31", "surgery layers base -o out --order 0-11,4-15"),
    "clean": ("surgery clean out",),
    "reindex": ("surgery reindex base",),
    "split": ("surgery split base -o split",),
    "fuse": ("surgery fuse split -o fused",),
    "split-qkv": ("surgery split-qkv base -o split", "surgery split-qkv base -o split --layout grouped --groups 8"),
    "fuse-qkv": ("surgery fuse-qkv split -o fused",),
    "split-gate-up": ("surgery split-gate-up base -o split",),
    "fuse-gate-up": ("surgery fuse-gate-up split -o fused",),
    "split-experts": ("surgery split-experts base -o split",),
    "fuse-experts": ("surgery fuse-experts split -o fused",),
    "inject": ("surgery inject base -o lora --rank 16 --target-modules q_proj,v_proj",),
    "merge": ("surgery merge base adapter -o merged", "surgery merge base-nf4 adapter -o merged --requantize"),
    "unmerge": ("surgery unmerge merged -o base",),
    "combine": ("surgery combine a b -o both --weights 0.7,0.3", "surgery combine a b -o both --rank 16"),
    "resize-adapter": (
        "surgery resize-adapter lora -o small --rank 8",
        "surgery resize-adapter lora -o out --energy 0.99",
    ),
    "extract": ("surgery extract base tuned -o lora --rank 16", "surgery extract base tuned -o lora --energy 0.9"),
    "convert-adapter": (
        "surgery convert-adapter adapters.safetensors -o lora --to peft",
        "surgery convert-adapter lora -o mlx --to mlx",
    ),
    "push": ("surgery push merged org/name --private",),
    "run": ("surgery run recipe.yaml", "surgery run recipe.yaml --set merge.scale=0.5", "surgery run out -o again"),
    "schema": ("surgery schema > recipe.schema.json",),
}
