"""What an option of the command line is called in Python: messages are written once, with options, and an error
raised there names both.

The argument follows from the option's spelling, `--max-shard-size` is `max_shard_size=`, but for those of
`OTHERWISE`. An option of a layout that is given is a field of `Given`.
"""

from __future__ import annotations

import re

OTHERWISE = {
    "--except": "except_=",
    "--map": "names=",
    "--as": "surgery.convert(…, to=)",
    "--with": "surgery.open_adapter(…, beside=[…])",
    "--parameter": "parameters=",
    "--slice": "slices=",
    "--reversible": "surgery.reversible(merged, base)",
    "--approximate": "surgery.unmerge_approximately(merged, adapter)",
    "--follow-links": "with surgery.following_links():",
    "--class": "check_class=",
    "--no-class": "check_class=False",
    "--dry-run": "surgery.plan(…)",
    "--set": "surgery.from_recipe(…, said=[…])",
    "--stage": "surgery.HubDestination(…, stage=)",
    "--stage-shards": "surgery.HubDestination(…, stage_shards=)",
    "--tensors": "names in checkpoint.tensors",
    **{
        f"--{field}": f"given=surgery.Given({field}=)"
        for field in ("layout", "groups", "slots", "order", "axis", "fused", "names")
    },
}
_OPTION = re.compile(r"(?<![\w'\"/.-])--[a-z]+(?:-[a-z]+)*(?![\w-])")
_ELSEWHERE = re.compile(r"\bhf download [^;`]*")  # options of other programs


def options_in(text: str) -> list[str]:
    """The options of `surgery` that a text names, each once."""
    return list(dict.fromkeys(_OPTION.findall(_ELSEWHERE.sub("", text))))


def argument(option: str) -> str:
    """What an option is in Python: argument("--max-shard-size") == "max_shard_size="."""
    return OTHERWISE.get(option) or f"{option[2:].replace('-', '_')}="


def in_both(note: str) -> str:
    """A note that says what its options are in Python, too."""
    python = in_python(note)
    return f"{note} ({python})" if python else note


def of_command_line(note: str) -> str:
    """`in_both` taken back, for who reads it there."""
    plain, mark, _ = note.rpartition(" (in Python, ")
    return plain if mark and in_both(plain) == note else note


def in_python(text: str) -> str:
    """What the options of a text are in Python, as one line; empty where it names none, or says so itself."""
    said = [f"{option} is {argument(option)}" for option in options_in(text)]
    return f"in Python, {', '.join(said)}" if said and "in Python" not in text else ""
