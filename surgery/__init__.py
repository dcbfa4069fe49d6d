"""Model surgery on checkpoints, offline: on safetensors shards and index files, without the model.

    checkpoint = surgery.open_checkpoint("path")
    adapter = surgery.open_adapter("adapter")
    checkpoint = surgery.merge(surgery.split_qkv(checkpoint), adapter)
    report = surgery.write(checkpoint, "out", max_shard_size="5GB")

A checkpoint maps names to lazy tensors; a surgery is a pure function from checkpoint to checkpoint; only `write`
touches data, in one pass. Importing this package imports neither torch, transformers, numpy nor huggingface_hub.
"""

from .checkpoint import Checkpoint, open_any, open_checkpoint
from .checks.change_map import Cell, ChangeMap, Moved
from .checks.check import Check, Verification
from .checks.diff import Change, Difference, diff
from .checks.inspection import Inspection, inspect
from .checks.judgement import Judgement, Verdict
from .checks.map_changes import map_changes
from .checks.proof import Proof
from .checks.verify import verify
from .errors import (
    AdapterError,
    DestinationError,
    FormatError,
    HubConflict,
    HubError,
    HubUnreachable,
    LayoutError,
    NoSpace,
    NotACheckpoint,
    NotAllowed,
    NothingMatched,
    NotOnHub,
    NotPlaced,
    NotSupported,
    PlanError,
    SourceChanged,
    SurgeryError,
    VerificationFailed,
    WrongUsage,
)
from .execution.crew import Step
from .execution.execute import Report, execute, write
from .execution.reindex import Reindexed, reindex
from .execution.stage import clean
from .files.adapters.opening import open_adapter, open_adapters
from .files.peft import Adapter, is_adapter
from .files.symlinks import following_links
from .hub.content import PushPlan, PushReport
from .hub.push import plan_push, push
from .hub.send import execute_push
from .hub.stream import HubDestination, preview
from .lazy.tensor import Input
from .models.fused.given import Given
from .pictures.report import ReportPage, report
from .planning.plan import Plan, plan
from .recipes.run import from_recipe
from .surgeries.add import add
from .surgeries.algebra.combine import combine
from .surgeries.algebra.extract import extract
from .surgeries.algebra.resize import resize_adapter
from .surgeries.blending.as_mergekit import as_mergekit
from .surgeries.blending.blend import blend
from .surgeries.cast import cast
from .surgeries.convert import convert
from .surgeries.convert_files import convert_files
from .surgeries.dequantize import dequantize
from .surgeries.forms.convert_adapter import convert_adapter
from .surgeries.fused import fuse, fuse_experts, fuse_gate_up, fuse_qkv, split, split_experts, split_gate_up, split_qkv
from .surgeries.injecting.inject import inject
from .surgeries.layers import layers
from .surgeries.map_rows import map_rows
from .surgeries.merging.merge import merge
from .surgeries.merging.own_lora import inject_into, own_adapter
from .surgeries.quantize import quantize
from .surgeries.rename import drop, keep, rename
from .surgeries.tie import tie, untie
from .surgeries.unmerge import reversible, unmerge, unmerge_approximately
from .surgeries.vocabulary import vocabulary
from .version import __version__

__all__ = [
    "Adapter",
    "AdapterError",
    "Cell",
    "Change",
    "ChangeMap",
    "Check",
    "Checkpoint",
    "DestinationError",
    "Difference",
    "FormatError",
    "Given",
    "HubConflict",
    "HubDestination",
    "HubError",
    "HubUnreachable",
    "Input",
    "Inspection",
    "Judgement",
    "LayoutError",
    "Moved",
    "NoSpace",
    "NotACheckpoint",
    "NotAllowed",
    "NotOnHub",
    "NotPlaced",
    "NotSupported",
    "NothingMatched",
    "Plan",
    "PlanError",
    "Proof",
    "PushPlan",
    "PushReport",
    "Reindexed",
    "Report",
    "ReportPage",
    "SourceChanged",
    "Step",
    "SurgeryError",
    "Verdict",
    "Verification",
    "VerificationFailed",
    "WrongUsage",
    "__version__",
    "add",
    "as_mergekit",
    "blend",
    "cast",
    "clean",
    "combine",
    "convert",
    "convert_adapter",
    "convert_files",
    "dequantize",
    "diff",
    "drop",
    "execute",
    "execute_push",
    "extract",
    "following_links",
    "from_recipe",
    "fuse",
    "fuse_experts",
    "fuse_gate_up",
    "fuse_qkv",
    "inject",
    "inject_into",
    "inspect",
    "is_adapter",
    "keep",
    "layers",
    "map_changes",
    "map_rows",
    "merge",
    "open_adapter",
    "open_adapters",
    "open_any",
    "open_checkpoint",
    "own_adapter",
    "plan",
    "plan_push",
    "preview",
    "push",
    "quantize",
    "reindex",
    "rename",
    "report",
    "resize_adapter",
    "reversible",
    "split",
    "split_experts",
    "split_gate_up",
    "split_qkv",
    "tie",
    "unmerge",
    "unmerge_approximately",
    "untie",
    "verify",
    "vocabulary",
    "write",
]
