"""What every writing command does: apply the surgeries, plan, show the plan or carry it out, report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import typer

import surgery
from surgery.evaluate import DEFAULT_MEMORY

from . import output
from .options import Writing
from .progress import progress


def run(surgeries: Callable[[], surgery.Checkpoint | surgery.Adapter], options: Writing) -> None:
    """Carry out a writing command."""
    if options.out is None and not options.dry_run:
        raise typer.BadParameter("where should the result go?", param_hint="-o/--output")
    checkpoint = surgeries()
    plan = surgery.plan(
        checkpoint,
        options.max_shard_size or None,
        balanced=options.balanced,
        drop_metadata=tuple(options.drop_metadata or ()),
    )
    memory = options.memory or DEFAULT_MEMORY
    if options.out is None or options.dry_run:
        output.show_plan(plan, memory, json=options.json)
        return
    with progress(plan, shown=not (options.quiet or options.json)) as on_step:
        report = surgery.execute(
            plan,
            options.out,
            memory=memory,
            workers=options.workers,
            overwrite=options.overwrite,
            link=options.link,
            on_step=on_step,
        )
    if options.json:
        output.show_json(asdict(report))
    elif not options.quiet:
        output.show_report(report)
