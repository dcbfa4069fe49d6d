"""What Python shows of a result is one line, however much it holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import surgery
from surgery.checks.proof import Judgement, Proof, Verdict


def test_results_show_themselves_in_one_short_line(saved: Callable[..., Path], tmp_path: Path) -> None:
    base, out = saved("phi3"), tmp_path / "a\nb"
    report = surgery.write(surgery.split_qkv(surgery.open_checkpoint(base)), out)
    found = surgery.verify(out, check_class=False)
    for one in (report, surgery.inspect(out), found, surgery.diff(base, out), surgery.diff(base, base)):
        text = repr(one)
        assert text.startswith(f"<{type(one).__name__} of ") and text.isprintable(), text
        assert len(text) < 150 + 2 * len(str(out)) + len(str(base)), text
    assert f"{report.tensors} tensors in 1 shards, 0 computed" in repr(report)
    assert f"{len(found.checks)} checks, 0 failed" in repr(found)
    assert "different; " in repr(surgery.diff(base, out)) and "equal; " in repr(surgery.diff(base, base))


@pytest.mark.parametrize(
    ("verdict", "right"),
    [
        (v, v in (Verdict.EXACT, Verdict.ROUNDED, Verdict.KEPT))
        for v in (Verdict.EXACT, Verdict.ROUNDED, Verdict.KEPT, Verdict.WRONG, Verdict.CHANGED, Verdict.NOT_APPLIED)
    ],
)
def test_a_proof_is_true_where_no_tensor_is_wrong(verdict: Verdict, right: bool) -> None:
    fine, asked = Judgement("a", Verdict.EXACT), Judgement("b", verdict)
    assert bool(Proof((fine, asked))) is right and bool(Proof((fine,)))
    assert repr(Proof((fine, asked))) == f"<Proof of 2 tensors: {0 if right else 1} wrong>"
