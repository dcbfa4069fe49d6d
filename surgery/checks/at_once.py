"""Many tensors looked at, as many at once as there are cores, each with a workspace of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue
from typing import TypeVar

from ..evaluation.compare import workspace
from ..evaluation.workspace import Workspace

_Item = TypeVar("_Item")
_Found = TypeVar("_Found")
MOST = 4  # workspaces


@contextmanager
def at_once(look: Callable[[_Item, Workspace], _Found], items: Sequence[_Item]) -> Iterator[Iterator[_Found]]:
    """What is found at each, in order; nothing is looked at any more when it is left, however that comes."""
    count = min(MOST, len(os.sched_getaffinity(0)))
    with ExitStack() as opened:
        free: SimpleQueue[Workspace] = SimpleQueue()
        for _ in range(count):
            free.put(opened.enter_context(workspace()))
        crew = ThreadPoolExecutor(count)
        opened.callback(crew.shutdown, cancel_futures=True)

        def looked(item: _Item) -> _Found:
            work = free.get()
            try:
                return look(item, work)
            finally:
                free.put(work)

        yield crew.map(looked, items)
