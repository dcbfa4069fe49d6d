"""Many tensors looked at, as many at once as there are cores, each with a workspace of its own."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue
from typing import TypeVar

from ..evaluation.compare import workspace
from ..evaluation.workspace import Workspace

_Item = TypeVar("_Item")
_Found = TypeVar("_Found")
MOST = 4  # workspaces
TOGETHER, LEAST = 1 << 20, 1 << 12  # bytes of items that are looked at in one go, and for how many each counts at least
AHEAD = 4  # goes for each workspace that wait, or are done and not asked for


@contextmanager
def at_once(
    look: Callable[[_Item, Workspace], _Found], items: Iterable[_Item], size: Callable[[_Item], int]
) -> Iterator[Iterator[_Found]]:
    """What is found at each, in order; nothing is looked at any more when it is left, however that comes.

    `size` tells an item's bytes: small ones share a go, so that a million of them cost no million goes.
    """
    count = min(MOST, len(os.sched_getaffinity(0)))
    with ExitStack() as opened:
        free: SimpleQueue[Workspace] = SimpleQueue()
        for _ in range(count):
            free.put(opened.enter_context(workspace()))
        crew = ThreadPoolExecutor(count)
        opened.callback(crew.shutdown, cancel_futures=True)

        def looked(some: Sequence[_Item]) -> list[_Found]:
            work = free.get()
            try:
                return [look(item, work) for item in some]
            finally:
                free.put(work)

        yield _in_order(crew, looked, _together(items, size), AHEAD * count)


def _together(items: Iterable[_Item], size: Callable[[_Item], int]) -> Iterator[list[_Item]]:
    """The items, some at a time."""
    some, held = list[_Item](), 0
    for item in items:
        some.append(item)
        held += max(size(item), LEAST)
        if held >= TOGETHER:
            yield some
            some, held = [], 0
    if some:
        yield some


def _in_order(
    crew: ThreadPoolExecutor,
    looked: Callable[[Sequence[_Item]], list[_Found]],
    goes: Iterable[Sequence[_Item]],
    ahead: int,
) -> Iterator[_Found]:
    """What the crew finds, go by go, of which no more than so many are under way."""
    under_way: deque[Future[list[_Found]]] = deque()
    for some in goes:
        under_way.append(crew.submit(looked, some))
        if len(under_way) > ahead:
            yield from under_way.popleft().result()
    while under_way:
        yield from under_way.popleft().result()
