"""What a user sees: tables and errors for people, one JSON object for programs."""

from __future__ import annotations

import json as json_module
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

import surgery
from surgery.arguments import of_command_line
from surgery.checks import steps
from surgery.checks.components_of_adapter import told
from surgery.checks.counted import Target
from surgery.checks.fused_modules import FusedModules
from surgery.checks.quantised_weights import Quantization
from surgery.errors import listed, printable, series
from surgery.evaluation.measure import Measure
from surgery.lazy.tensor import Tensor
from surgery.names import select
from surgery.planning.sharding import parse_size
from surgery.units import size


def show_json(value: Any) -> None:
    """One JSON object on standard output; what a terminal would obey is escaped, as JSON has it."""

    def plain(item: Any) -> Any:
        return asdict(item) if is_dataclass(item) and not isinstance(item, type) else str(item)

    text = json_module.dumps(value, indent=2, ensure_ascii=False, default=plain)
    print("\n".join(line if line.isprintable() else "".join(map(_escaped, line)) for line in text.split("\n")))


def _escaped(character: str) -> str:
    """A character in a text of JSON."""
    return character if character.isprintable() else json_module.dumps(character)[1:-1]


def show_error(error: surgery.SurgeryError, *, json: bool) -> None:
    """What, where and how to mend: on standard error, or as the one JSON object."""
    if json:
        show_json(
            {"error": {"kind": type(error).__name__, "what": error.what, "where": error.where, "help": error.help}}
        )
    else:
        _styled(f"error: {error.told}", stderr=True)


def one_place() -> bool:
    """Whether standard output and standard error go to the same place, such as one terminal or one log."""
    try:
        out, err = os.fstat(sys.stdout.fileno()), os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return (out.st_dev, out.st_ino) == (err.st_dev, err.st_ino)


# What Ctrl-C leaves, and what to do: of an output that is staged, and of a push.
STAGED = (
    "interrupted: the destination is as it was",
    "finished shards are kept beside it; the same command resumes them, and `surgery clean DIR` removes them",
)
STREAMED = (
    "interrupted: the repository shows all of the result, or nothing of it",
    (
        "run the same command again: what was sent is taken up from the Hub; `surgery clean {place}` removes what is"
        " left here"
    ),
)
LOOKED = ("interrupted: nothing was written, and nothing was to be", "run the same command again")
SHOWN = ("interrupted: the demo's temporary folder is removed", "run the same command again")
SHOWN_IN = (
    "interrupted: what the demo made so far is left in {folder}",
    "the demo starts in an empty folder: remove that one, or pass another",
)
SENT = (
    "interrupted: the repository shows all of the push, or nothing of it",
    "run the same command again: it looks first, and what was sent already is not sent again",
)


def show_interrupt(what: str, tip: str, *, json: bool) -> None:
    """After Ctrl-C: what is left."""
    if json:
        show_json({"error": {"kind": "Interrupted", "what": what, "where": [], "help": tip}})
    else:
        _styled(f"{what}\nhelp: {tip}", stderr=True)


def show_plan(
    plan: surgery.Plan, memory: int | str, *, json: bool, push: surgery.PushPlan | None = None, stage_shards: int = 0
) -> None:
    """The plan of a dry run; of an output on the Hub, with what that does to the repository, by way of
    `stage_shards` on this disk.
    """
    disk = plan.needed_for(stage_shards) if push else plan.needed
    if json:
        show_json(
            {
                "identity": plan.identity,
                "history": plan.history,
                "shards": [{"name": s.name, "tensors": len(s.slots), "nbytes": s.nbytes} for s in plan.shards],
                "tensors": plan.tensors,
                "computed": plan.computed,
                "computed_bytes": plan.computed_bytes,
                "copied_bytes": plan.nbytes - plan.computed_bytes,
                "shareable_bytes": plan.shareable.shared,
                "dropped": plan.dropped,
                "replaced": plan.replaced,
                "added": plan.added,
                "files": sorted(plan.files),
                "nbytes": disk,
                "notes": plan.notes,
                "costs": plan.costs,
                **({"hub": _pushed(push)} if push else {}),
            }
        )
        return
    copied = plan.tensors - len(plan.computed)
    rows = [("step", steps.told(step)) for step in plan.history]
    rows += [
        (
            "shards",
            f"{len(plan.shards)}, {size(plan.nbytes)}: {_some([f'{s.name} ({size(s.nbytes)})' for s in plan.shards])}",
        ),
        ("copied", f"{copied} tensors, {size(plan.nbytes - plan.computed_bytes)}, byte for byte"),
        (
            "computed",
            (
                f"{len(plan.computed)} tensors, {size(plan.computed_bytes)}: {_some(plan.computed)}"
                if plan.computed
                else "nothing"
            ),
        ),
    ]
    rows += [("shareable", f"{size(plan.shareable.shared)}, where the file system shares blocks (Btrfs, XFS)")]
    rows += [("new names", f"{len(plan.added)} tensors: {_some(plan.added)}")] if plan.added else []
    rows += [("replaced", f"{len(plan.replaced)} tensors: {_some(plan.replaced)}")] if plan.replaced else []
    rows += [("dropped", f"{len(plan.dropped)} tensors: {_some(plan.dropped)}")] if plan.dropped else []
    rows += [("files", f"{len(plan.files)}: {_some(sorted(plan.files))}"), ("disk", size(disk))]
    torch = ", and torch itself (about 220 MB)" if plan.arithmetic else ""
    rows += [("memory", f"at most {size(parse_size(memory))} of buffers{torch}")]
    rows += [("note", of_command_line(note)) for note in plan.notes]
    rows += _push_rows(push) if push else []
    _table(rows, "dry run: nothing was written")


def show_reindexed(done: surgery.Reindexed, *, json: bool) -> None:
    """Which index was written, or that it was right."""
    if json:
        show_json(asdict(done))
        return
    rows = [("index", done.path), ("tensors", f"{done.tensors} in {_some(done.shards)}")]
    _table(rows, "done: the index is written anew" if done.changed else "the index was right already")


def show_report(report: surgery.Report) -> None:
    """The end of a run."""
    rate = report.nbytes / max(report.seconds, 1e-9)
    rows = [
        ("output", report.output),
        *([("review", report.commit.pull_request)] if report.commit and report.commit.pull_request else []),
        *([("deleted", f"{len(gone)}: {_some(gone)}")] if report.commit and (gone := report.commit.deleted) else []),
        ("shards", f"{report.shards}, {report.tensors} tensors"),
        ("tensors", _tensors(report)),
        ("files", f"{report.files} carried or written"),
        ("bytes", f"{size(report.nbytes)} in {report.seconds:.1f} s, {size(int(rate))}/s"),
        *(("note", of_command_line(note)) for note in report.notes),
    ]
    _table(rows, "done")


def _tensors(report: surgery.Report) -> str:
    parts = [f"{report.copied} copied byte for byte"]
    counts = (
        (report.computed, "computed"),
        (report.added, "with new names"),
        (report.replaced, "replaced"),
        (report.dropped, "dropped"),
    )
    for count, what in counts:
        parts += [f"{count} {what}"] if count else []
    return ", ".join(parts)


def show_inspection(found: surgery.Inspection, *, json: bool) -> None:
    """What a checkpoint or an adapter is."""
    if json:
        show_json(asdict(found))
        return
    total = found.total
    rows = [("path", found.path), ("kind", found.kind)]
    rows += (
        [("model", " ".join([found.model_type, *(f"({a})" for a in found.architectures)]))] if found.model_type else []
    )
    rows += [("format", found.format)] if found.format else []
    rows += [("holds", line) for line in found.holds]
    rows += [("tensors", f"{total.tensors}, {total.parameters:,} parameters, {size(total.nbytes)}")]
    rows += [("dtype", f"{name}: {c.tensors} tensors, {size(c.nbytes)}") for name, c in found.dtypes.items()]
    rows += [("shards", f"{len(found.shards)}: {_some([f'{n} ({size(c.nbytes)})' for n, c in found.shards.items()])}")]
    rows += [row for key, value in found.adapter.items() for row in _adapter_rows(key, value)]
    rows += [("fused", _fused(one)) for one in found.fused]
    rows += [("tied", text) for text in found.ties]
    rows += _quantised(found.quantization) if found.quantization else []
    rows += [("targets", _targets(found.targets, 4 if "components" in found.adapter else 12))] if found.targets else []
    rows += [("files", f"{len(found.files)}: {_some(found.files, 8)}")] if found.files else []
    rows += [("history", steps.told(step)) for step in found.history]
    rows += [("note", of_command_line(note)) for note in found.notes]
    _table(rows)


def _adapter_rows(key: str, value: Any) -> list[tuple[str, str]]:
    """What an adapter says under this key."""
    if key == "components":
        return [("component", line) for line in told(value)]
    return [(key, _plain(value))]


def _fused(one: FusedModules) -> str:
    """`6 × qkv_proj -> q_proj, k_proj, v_proj: 1 × [512|128|128] (model type phi3)`."""
    if one.layout:
        return f"{one.modules} × {one.name} -> {series(one.parts)}: {one.layout} ({one.why})"
    could = f": {' or '.join(one.could_be)}" if one.could_be else ""
    looks = f"{one.modules} module{'s'[: one.modules != 1]} such as {one.such_as}"
    return f"{looks}: {one.why} fused, but in a layout that is not known{could}"


def _quantised(found: Quantization) -> list[tuple[str, str]]:
    """A line for each scheme, and one for what is in numbers of its own."""
    if not found.schemes:
        return [("quantised", found.method)]
    rows = [
        f"{one.scheme}: {one.weights} weights, {one.parameters:,} parameters, {size(one.nbytes)} of codes and scales: "
        + _targets(one.modules)
        for one in found.schemes
    ]
    others = found.others
    rows += [f"not quantised: {others.tensors} tensors, {others.parameters:,} parameters, {size(others.nbytes)}"]
    return [("quantised", row) for row in rows]


def _targets(targets: Sequence[Target], shown: int = 12) -> str:
    return _some([f"{t.name} ×{t.modules} {_shapes(t.shapes)}" for t in targets], shown)


def show_tensors(
    path: str, tensors: Mapping[str, Tensor], shards: Mapping[str, str], pattern: str, *, json: bool
) -> None:
    """The tensors whose whole name matches."""
    found = [
        {
            "name": n,
            "dtype": tensors[n].dtype.name,
            "shape": list(tensors[n].shape),
            "nbytes": tensors[n].nbytes,
            "shard": shards.get(n, ""),
        }
        for n in select(tensors, pattern)
    ]
    if json:
        show_json({"path": path, "tensors": found})
        return
    keys = ("name", "dtype", "shape", "nbytes", "shard")
    _grid(keys, [[str(row[key]) for key in keys] for row in found])


def show_verification(found: surgery.Verification) -> None:
    """Each check with its answer; of a merge, how many tensors have which verdict, and those with which something is
    wrong.
    """
    marks = {True: "ok", False: "FAILED", None: "not checked"}
    told = {str(one) for one in found.proof.wrong} if found.proof else set()
    rows = list[tuple[str, str]]()
    for c in found.checks:
        rows += [(marks[c.ok], f"{c.name}: {c.detail}")]
        rows += [("", f"  {row}") for row in c.where if c.ok is False and row not in told]
    _table(rows, found.path)
    if found.proof is None:
        return
    print()
    counts = [(verdict, found.proof.of(verdict)) for verdict in surgery.Verdict]
    _grid(
        ("verdict", "tensors", "elements", "differing", "ulps"),
        [_counted(verdict, those) for verdict, those in counts if those],
    )
    if found.proof.wrong:
        print()
        _table([("FAILED", str(one)) for one in found.proof.wrong])


def _counted(verdict: surgery.Verdict, those: Sequence[surgery.Judgement]) -> list[str]:
    differing, ulps = sum(one.differing for one in those), max(one.ulps for one in those)
    return [verdict.value, str(len(those)), f"{sum(one.elements for one in those):,}", f"{differing:,}", str(ulps)]


def show_difference(found: surgery.Difference, *, json: bool) -> None:
    """What two have in common and what not; then each tensor that is not the same."""
    if json:
        measured = [
            {"share": c.measure.share, **asdict(c.measure)} if c.measure else None
            for c in (*found.unlike, *found.changed)
        ]
        changes = [{**asdict(c), "measure": m} for c, m in zip((*found.unlike, *found.changed), measured, strict=True)]
        unlike = len(found.unlike)
        show_json(
            {
                **asdict(found),
                "recoded": found.recoded,
                "unlike": changes[:unlike],
                "changed": changes[unlike:],
                "equal": found.equal,
            }
        )
        return
    files = found.files
    lists = [
        ("only in A", found.only_a),
        ("only in B", found.only_b),
        ("unlike", [f"{c.name}: {c.a} -> {c.b}" for c in found.unlike]),
        ("changed", [c.name for c in found.changed]),
        ("quantised", [f"{c.name}: {c.a} -> {c.b}" for c in found.decoded]),
        ("other codes, the same values", found.recoded),
        ("identical", found.identical),
        ("config", [f"{f.name}: {f.a} -> {f.b}" for f in found.config]),
        (
            "files",
            [*(f"{n} (only in A)" for n in files.only_a), *(f"{n} (only in B)" for n in files.only_b), *files.changed],
        ),
    ]
    rows = [("A", found.a), ("B", found.b)]
    rows += [(what, f"{len(names)}: {_some(names)}") for what, names in lists if names]
    _table(rows, "equal" if found.equal else "different")
    if measures := [(c.name, c.measure) for c in (*found.unlike, *found.changed, *found.decoded) if c.measure]:
        print()
        _grid(("name", "max", "mean", "relative", "differing", "ulps"), [_measured(name, m) for name, m in measures])


def _measured(name: str, found: Measure) -> list[str]:
    nonfinite = f", {found.nonfinite} not finite" if found.nonfinite else ""
    relative = "" if found.relative is None else f"{found.relative:.3g}"
    ulps = "" if found.ulps is None else str(found.ulps)
    return [name, f"{found.largest:.3g}", f"{found.mean:.3g}", relative, f"{100 * found.share:.3g} %{nonfinite}", ulps]


def show_push_plan(plan: surgery.PushPlan, *, json: bool) -> None:
    """The plan of a dry run: each file that would be sent, copied on the Hub, deleted, or is kept, with its size."""
    if json:
        show_json(_pushed(plan))
        return
    _table(_push_rows(plan), "dry run: nothing was changed")


_LISTS = ("send", "copy", "there", "delete", "keep")


def _pushed(plan: surgery.PushPlan) -> dict[str, Any]:
    said = ("repo_id", "revision", "parent", "message", "nbytes", "new_branch", "create_pr", "tag", *_LISTS, "notes")
    return {name: getattr(plan, name) for name in said}


def _push_rows(plan: surgery.PushPlan) -> list[tuple[str, str]]:
    state = f"at {plan.parent[:8]}" if plan.parent else "not there yet"
    goal = (
        "a pull request" if plan.create_pr else f"the new branch {plan.revision}" if plan.new_branch else plan.revision
    )
    rows = [("repository", f"{plan.repo_id}, {state}"), ("to", goal)]
    rows += (
        [("commit", "none: nothing is to be done" if plan.empty else plan.message)]
        if plan.empty or plan.message
        else []
    )
    rows += [("tag", plan.tag)] if plan.tag else []
    rows += [
        (what, f"{item.path} ({size(item.nbytes)}){f', which is there as {item.source}' if item.source else ''}")
        for what in _LISTS
        for item in getattr(plan, what)
    ]
    rows += [("bytes", f"{size(plan.nbytes)} to be sent, at most")]
    return rows + [("note", of_command_line(note)) for note in plan.notes]


def show_push_report(report: surgery.PushReport, *, json: bool) -> None:
    """The end of a push."""
    if json:
        show_json(asdict(report))
        return
    lists = (
        ("sent", report.sent),
        ("copied", report.copied),
        ("there", report.there),
        ("deleted", report.deleted),
        ("kept", report.kept),
    )
    rows = [("repository", f"{report.repo_id}, {report.revision}"), ("commit", report.url)]
    rows += [("review", report.pull_request)] if report.pull_request else []
    rows += [("tag", report.tag)] if report.tag else []
    rows += [(what, f"{len(paths)}: {_some(paths)}") for what, paths in lists if paths]
    rows += [("bytes", f"{size(report.nbytes)} in {report.seconds:.1f} s")]
    rows += [("note", of_command_line(note)) for note in report.notes]
    _table(rows, "done" if report.sent or report.copied or report.deleted else "nothing to do: the Hub has all of it")


def show_cleaned(removed: Sequence[tuple[str, int]], *, json: bool) -> None:
    """What was removed, and how much room that made."""
    if json:
        show_json({"removed": [{"path": path, "nbytes": nbytes} for path, nbytes in removed]})
        return
    for path, nbytes in removed:
        print(f"removed {printable(path)} ({size(nbytes)})")
    if not removed:
        print("nothing to clean")


def show_environment(found: Mapping[str, Any], *, json: bool) -> None:
    """Versions and surroundings: a line each, as a bug report takes them."""
    if json:
        show_json(found)
        return
    flat = {name: value for name, value in found.items() if not isinstance(value, Mapping)}
    flat |= {name: value for group in found.values() if isinstance(group, Mapping) for name, value in group.items()}
    width = max(map(len, flat))
    for name, value in flat.items():
        print(f"{name:{width}}  {printable(str(value)) if value is not None else '-'}")


def _some(items: Sequence[str], shown: int = 4) -> str:
    return ", ".join(listed(items, shown))


def _shapes(shapes: Sequence[Sequence[int]]) -> str:
    texts = ["×".join(map(str, s)) for s in shapes]
    return f"({_some(texts, 2)})"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return _some([f"{key}: {_plain(one)}" for key, one in value.items()], 8)
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _table(rows: Sequence[tuple[str, str]], title: str = "") -> None:
    if title:
        _styled(printable(title))
    width = max((len(k) for k, _ in rows), default=0)
    for key, value in rows:
        _styled(printable(f"  {key:<{width}}  {value}"))


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        print("  ".join(printable(text).ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


_STYLES = {
    "error:": "bold red",
    "help:": "bold green",
    "-->": "blue",
    "ok": "green",
    "FAILED": "bold red",
    "note": "yellow",
}


def _styled(text: str, *, stderr: bool = False) -> None:
    """Print text; where people look, the first word of each line in colour. Names and paths are never taken for
    markup.
    """
    stream = sys.stderr if stderr else sys.stdout
    if not stream.isatty():
        print(text, file=stream)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=stderr, soft_wrap=True, highlight=False)
    for line in text.split("\n"):
        styled, first = Text(line), line.split(None, 1)[0] if line.strip() else ""
        indent = len(line) - len(line.lstrip())
        style = _STYLES.get(first) or ("cyan" if indent == 2 else "")
        styled.stylize(style, indent, indent + len(first))
        console.print(styled)
