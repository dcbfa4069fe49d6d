"""Checkpoints as DeepSpeed's ZeRO lays them out, made by hand: any shapes, any number of ranks."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

Weights = Mapping[str, torch.Tensor]


@dataclass
class Laid:
    """The objects of each rank's files, to be spoilt before they are written."""

    stage: int
    models: list[dict[str, Any]]
    optimizers: list[dict[str, Any]]
    prefix: str = "bf16_"
    left_out: set[str] = field(default_factory=set)

    def write(self, folder: Path, tag: str = "global_step7") -> Path:
        """The checkpoint in files, in a folder of its own under `folder`."""
        place = folder / tag
        place.mkdir(parents=True)
        (folder / "latest").write_text(tag)
        for rank, model in enumerate(self.models):
            part = f"zero_pp_rank_{rank}_" if self.stage == 3 else ""
            torch.save(model, place / f"{part}mp_rank_00_model_states.pt")
        for rank, optimizer in enumerate(self.optimizers):
            torch.save(optimizer, place / f"{self.prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        for name in self.left_out:
            (place / name).unlink()
        return folder

    def optimizer(self, rank: int) -> dict[str, Any]:
        """The state of a rank's optimizer, in which its part lies."""
        return self.optimizers[rank]["optimizer_state_dict"]

    def vectors(self, rank: int) -> list[torch.Tensor]:
        """The rank's parts."""
        return self.optimizer(rank)["fp32_flat_groups" if self.stage == 3 else "single_partition_of_fp32_groups"]


def laid_out(
    groups: Sequence[Weights],
    stage: int,
    ranks: int,
    *,
    frozen: Weights | None = None,
    buffers: Weights | None = None,
    shared: Mapping[str, str] | None = None,
    paddings: Sequence[Sequence[int]] | None = None,
    steps: int = 7,
) -> Laid:
    """A training of these groups of float32 weights, whose copies are in bfloat16."""
    frozen, buffers, shared = frozen or {}, buffers or {}, shared or {}
    weights = {name: value for group in groups for name, value in group.items()}
    copies = {name: value.bfloat16() for name, value in weights.items()} | dict(frozen)
    copies |= {name: copies[of] for name, of in shared.items()}
    if stage == 3:
        copies = {name: value.flatten()[:0].clone() for name, value in copies.items()}
        vectors = [[_parts(group, ranks, rank) for group in groups] for rank in range(ranks)]
    else:
        each = [_cut(_flat(group, paddings[i] if paddings else None), ranks) for i, group in enumerate(groups)]
        vectors = [[parts[rank] for parts in each] for rank in range(ranks)]
    models = [
        {
            "module": OrderedDict({**copies, **buffers}),
            "buffer_names": list(buffers),
            "param_shapes": [OrderedDict((name, value.shape) for name, value in group.items()) for group in groups],
            "frozen_param_shapes": OrderedDict((name, value.shape) for name, value in frozen.items()),
            "frozen_param_fragments": OrderedDict(
                (name, _part(value, ranks, rank) if stage == 3 else value) for name, value in frozen.items()
            ),
            "shared_params": dict(shared) if not rank else {},
            "global_steps": steps,
            "skipped_steps": 0,
            "global_samples": steps,
            "ds_version": "0.19.8",
        }
        for rank in range(ranks if stage == 3 else 1)
    ]
    optimizers = [_optimizer(stage, ranks, parts, paddings, steps) for parts in vectors]
    return Laid(stage, models, optimizers)


def _optimizer(
    stage: int, ranks: int, parts: list[torch.Tensor], paddings: Sequence[Sequence[int]] | None, steps: int
) -> dict[str, Any]:
    moments = {i: {"step": torch.tensor(float(steps)), "exp_avg": part.clone()} for i, part in enumerate(parts)}
    base = {"state": moments, "param_groups": [{"lr": 0.1, "params": [i]} for i in range(len(parts))]}
    held: dict[str, Any] = {"zero_stage": stage, "partition_count": ranks if stage == 3 else [ranks] * len(parts)}
    if stage == 3:
        held |= {"fp32_flat_groups": parts, "optimizer_state_dict": base}
    else:
        held |= {"single_partition_of_fp32_groups": parts, "base_optimizer_state": base}
    if paddings is not None:
        held["param_alignment_paddings"] = [list(group) for group in paddings]
    return {"optimizer_state_dict": held, "ds_config": {"zero_optimization": {"stage": stage}}, "ds_version": "0.19.8"}


def _flat(group: Weights, paddings: Sequence[int] | None) -> torch.Tensor:
    after = paddings or [0] * len(group)
    parts = [torch.cat([value.flatten(), torch.zeros(n)]) for value, n in zip(group.values(), after, strict=True)]
    return torch.cat(parts) if parts else torch.zeros(0)


def _cut(flat: torch.Tensor, ranks: int) -> list[torch.Tensor]:
    """The vector padded to a multiple of twice the ranks and cut; the last part without what was padded."""
    size = 2 * math.ceil(flat.numel() / (2 * ranks)) or 2
    parts = [flat[rank * size : (rank + 1) * size].clone() for rank in range(ranks)]
    return [
        torch.cat([part, torch.zeros(size - part.numel())]) if rank < ranks - 1 else part
        for rank, part in enumerate(parts)
    ]


def _part(value: torch.Tensor, ranks: int, rank: int) -> torch.Tensor:
    """A rank's elements of a weight, the last ones padded."""
    size = math.ceil(value.numel() / ranks)
    part = value.flatten()[rank * size : (rank + 1) * size]
    return torch.cat([part, torch.full((size - part.numel(),), -9.0).to(value.dtype)])


def _parts(group: Weights, ranks: int, rank: int) -> torch.Tensor:
    return torch.cat([_part(value, ranks, rank) for value in group.values()])
