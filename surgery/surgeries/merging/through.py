"""A base in 16 bits as an adapter saw it that was trained on codes of it: each weight through them and back."""

from __future__ import annotations

from dataclasses import replace

from ...checkpoint import Checkpoint
from ...errors import SurgeryError
from ...quantization.quantised import Quantisation, quantised
from ...quantization.settle import decoded
from ..quantize import quantize


def through_codes(checkpoint: Checkpoint, held: Quantisation, scheme: str | None) -> Checkpoint:
    """The checkpoint with every weight that `scheme` quantises as what its codes mean, in its dtype; all else as it is.

    All of them, and not those alone that an adapter touches: the model that was trained had all of its linear weights
    in these codes. Raises SurgeryError for a base that has codes of its own.
    """
    if scheme is None:
        return checkpoint
    if held.weights:
        tip = "leave --through away: what its own codes mean is what the adapter is added to"
        what = "--through is for a base in 16 bits, and this one is quantised"
        raise SurgeryError(what, where=[checkpoint.path], help=tip)
    codes = quantize(checkpoint.with_config({**checkpoint.config}), scheme)
    found = quantised(codes)
    seen = decoded(codes, found)
    note = f"{len(found.weights)} weights are what their codes in {scheme} mean, those that no adapter touches too"
    notes = (*codes.notes, note)
    return replace(seen, files=checkpoint.files, history=checkpoint.history, notes=notes, dropped=checkpoint.dropped)
