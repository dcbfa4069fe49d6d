"""What a shell proposes for a word that is begun. Names of files are the shell's own, wherever nothing is proposed."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def proposing(words: Sequence[str], *, several: bool = False) -> Callable[[str], list[str]]:
    """What a shell proposes for what is begun: the words that begin so; of several with commas, for the last one."""

    def proposed(incomplete: str) -> list[str]:
        done, comma, begun = incomplete.rpartition(",") if several else ("", "", incomplete)
        return [f"{done}{comma}{word}" for word in words if word.startswith(begun) and word not in done.split(",")]

    return proposed
