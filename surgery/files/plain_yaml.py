"""YAML before it is built: how much it would become, counted in what is written and in what it refers to, so that no
text of some lines becomes all memory, and none so deep that building it ends the process.
"""

from __future__ import annotations

import re
from typing import Any

MOST_NODES, DEEPEST, LONGEST = 50_000, 40, 1_000
NUMBER = re.compile(r"[-+.0-9][-+.0-9a-fA-Fx_:]*")


class Immoderate(ValueError):
    """YAML that would be too large; `line` is where it became so."""

    def __init__(self, what: str, line: int) -> None:
        super().__init__(what)
        self.line = line


def check_yaml(text: str, most: int) -> None:
    """Raise Immoderate for a text of more characters than that, of more values than anyone writes, references counted
    as often as they stand for something, or deeper than anyone nests them; YAMLError for what is none.
    """
    if len(text) > most:
        raise Immoderate(f"{len(text)} characters, and {most} are read", 1)
    import yaml

    sizes, open_, total = dict[str, int](), list[tuple[str | None, int]](), 0
    for event in yaml.parse(text, Loader=quick_loader()):
        if isinstance(event, yaml.AliasEvent):
            total += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, total))
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor:
                sizes[anchor] = total - before
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if event.anchor:
                sizes[event.anchor] = 1
            if len(event.value) > LONGEST and not event.style and NUMBER.fullmatch(event.value):
                raise Immoderate(f"a number of {len(event.value)} digits", event.start_mark.line + 1)
        if total > MOST_NODES or len(open_) > DEEPEST:
            what = f"more than {MOST_NODES} values" if total > MOST_NODES else f"nested more than {DEEPEST} deep"
            raise Immoderate(what, event.start_mark.line + 1)


def quick_loader() -> Any:
    """The loader of plain data, in C where PyYAML has it: for texts that were checked, since it follows depth with the
    stack of C.
    """
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)
