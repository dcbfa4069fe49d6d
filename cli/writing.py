"""What every writing command does: apply the surgeries, plan, show the plan or carry it out, report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import typer

import surgery
from surgery.evaluation.workspace import DEFAULT_MEMORY

from . import output
from .options import Writing, check_executor, check_sharing, check_size
from .progress import progress


def run(surgeries: Callable[[], surgery.Checkpoint | surgery.Adapter], options: Writing) -> None:
    """Carry out a writing command."""
    if options.out is None and not options.dry_run:
        raise typer.BadParameter("where should the result go?", param_hint="-o/--output")
    dest = options.destination()
    for option, text in (("--max-shard-size", options.max_shard_size), ("--memory", options.memory)):
        check_size(text, option)
    check_executor(options.executor, options.address)
    check_sharing(options.reflink, options.align)
    checkpoint = surgeries()
    plan = surgery.plan(
        checkpoint,
        options.max_shard_size or None,
        balanced=options.balanced,
        drop_metadata=tuple(options.drop_metadata or ()),
        align=options.align or None,
    )
    memory = options.memory or DEFAULT_MEMORY
    hub = dest if isinstance(dest, surgery.HubDestination) else None
    if dest is None or options.dry_run:
        push = (
            surgery.preview(plan, hub, overwrite=options.overwrite, discard_edits=options.discard_edits)
            if hub
            else None
        )
        output.show_plan(plan, memory, json=options.json, push=push, stage_shards=hub.stage_shards if hub else 0)
        return
    with progress(plan, shown=not (options.quiet or options.json), sent=hub is not None) as on_step:
        report = surgery.execute(
            plan,
            dest,
            memory=memory,
            workers=options.workers,
            overwrite=options.overwrite,
            discard_edits=options.discard_edits,
            link=options.link,
            reflink=options.reflink,
            check_all=options.check_all,
            executor=options.executor,
            address=options.address,
            on_step=on_step,
        )
    if options.json:
        output.show_json(asdict(report))
    elif not options.quiet:
        output.show_report(report)


def left(options: Writing) -> tuple[str, str]:
    """What Ctrl-C leaves of a writing command, and what to do."""
    dest = options.destination()
    if not isinstance(dest, surgery.HubDestination):
        return output.STAGED
    what, tip = output.STREAMED
    return what, tip.format(place=options.stage or options.out)
