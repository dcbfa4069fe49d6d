"""Recipes: YAML, TOML and JSON that is no plain data, that grows, or that asks for what is not to be had."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from .rows import Content, Row, link, put, sparse

GOOD = "source: good\nsteps: [split-qkv]\noutput: w/o\n"


def laughs(levels: int) -> str:
    """Each line is ten times the line before it."""
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n" + GOOD


def step(text: str) -> str:
    return f"source: good\nsteps:\n  - {text}\noutput: w/o\n"


YAML: dict[str, tuple[Content, str]] = {
    "nothing": (b"", "a recipe is a mapping"),
    "a list": ("- a\n- b\n", "a recipe is a mapping"),
    "no UTF-8": (b"source: \xff\xfe", "UTF-8"),
    "a call of Python": ("source: !!python/object/apply:os.system ['touch ../outside/x']\n", "no plain data|no YAML"),
    "an object of Python": ("!!python/object:os.system {}\n", "no plain data"),
    "a tag of its own": ("source: !include ../outside/secret\n", "no plain data"),
    "a billion laughs": (laughs(12), "too large: more than"),
    "a thing that holds itself": ("source: &a [*a]\n", "no YAML|too large|source"),
    "a merge key that grows": ("a: &a {<<: *a}\n" + GOOD, "no YAML|no key|plain data|'a'"),
    "100,000 lists in each other": ("source: " + "[" * 100_000, "too large: nested more than|no YAML"),
    "100,000 lists by indents": (
        "".join(" " * n + "-\n" for n in range(2000)),
        "too large: nested more than|no YAML|mapping",
    ),
    "a number of a million digits": (
        "source: good\nsteps:\n  - cast: {dtype: " + "9" * 1_000_000 + "}\n",
        "too large: a number of",
    ),
    "a number in base 60, of a million digits": ("source: " + "1:" * 500_000 + "1\n", "too large: a number of"),
    "a key twice": (GOOD + "source: x\n", "said twice"),
    "a key that is a list": ("? [a]\n: b\n" + GOOD, "a key is a text"),
    "a key that is not known": (GOOD + "outptu: x\n", "has no key"),
    "a key of escapes": (GOOD + '"\\e[2J\\x9b31m": x\n', "has no key"),
    "no source": ("steps: [split-qkv]\n", "names no source"),
    "a source that is not there": (GOOD.replace("good", "./nowhere"), "place/nowhere"),
    "a source that is a device": (GOOD.replace("good", "/dev/zero"), "it is a device"),
    "steps that are a text": ("source: good\nsteps: split\n", "steps are a list"),
    "a step that is not known": (step("format-disk"), "no step is called"),
    "a step of two names": (step("{split-qkv: {}, fuse-qkv: {}}"), "a step is a name"),
    "a step of escapes": (step('"\\e]0;x\\a"'), "no step is called"),
    "options that are a text": (step("merge: adapter"), "are no mapping"),
    "an option that is not known": (step("merge: {adapters: [adapter], sclae: 2}"), "has no option"),
    "a scale that is infinite": (step("merge: {adapters: [adapter], scale: .inf}"), "scale"),
    "a scale of 10^400": (step("merge: {adapters: [adapter], scale: 1e400}"), "scale"),
    "a scale that is a list": (step("merge: {adapters: [adapter], scale: [[1]]}"), "scale"),
    "a pattern that explodes": (step("drop: {pattern: '(a+)+b'}"), "pattern|matched|tensor"),
    "a pattern that is none": (step("drop: {pattern: '('}"), "pattern|expression"),
    "an output that is a list": ("source: good\noutput: [a, b]\n", "output says one place"),
    "an output that stands in the source": ("source: good\noutput: good\n", "source|destination|output|exists"),
    "more than four megabytes": ("# " + "x" * (5 << 20) + "\n" + GOOD, "a recipe of more than"),
    "two sparse gigabytes": (sparse(2_000_000_000), "a recipe of more than"),
    "a recipe in itself, as its source": ("source: x.yaml\noutput: w/o\n", "recipe|x.yaml"),
    "NUL bytes": (b"source: go\0od\n", "no YAML"),
    "a device": (link("/dev/zero"), "it is a device"),
}
OTHERS: dict[str, tuple[str, Content, str]] = {
    "TOML that is none": ("x.toml", 'source = "good', "TOML"),
    "TOML of 100,000 lists": ("x.toml", "source = " + "[" * 100_000, "TOML"),
    "TOML of 50,000 tables": ("x.toml", "[" + ".".join("a" * 50_000) + "]\n", "TOML|no key|recipe"),
    "TOML with a date": ("x.toml", 'source = 2001-01-01\noutput = "w/o"\n', "source|plain data|date"),
    "TOML with a key twice": ("x.toml", 'source = "a"\nsource = "b"\n', "TOML"),
    "TOML with a number of a million digits": ("x.toml", "source = " + "9" * 1_000_000 + "\n", "TOML|digits|number"),
    "JSON that is none": ("x.json", '{"source": "good"', "cut off"),
    "JSON of 100,000 lists": ("x.json", '{"source": ' + "[" * 100_000, "nested too deeply"),
    "JSON with a key twice": ("x.json", '{"source": "a", "source": "b"}', "comes twice"),
    "JSON with half a surrogate pair": ("x.json", '{"source": "\\ud800"}', "surrogate"),
    "JSON with a number of a million digits": ("x.json", '{"source": ' + "9" * 1_000_000 + "}", "digits"),
    "JSON of the wrong types": ("x.json", json.dumps({"source": {"path": [1]}, "steps": [[1]], "output": 5}), "."),
}


def rows() -> Iterator[Row]:
    """Each as a recipe that is to be run."""
    every = {name: ("x.yaml", *row) for name, row in YAML.items()} | OTHERS
    for name, (file, content, says) in every.items():
        make = partial(_made, file=file, content=content)
        named = "" if " source" in name else file
        yield Row(f"recipe: {name}", make, says, (f"run {file}",), named, (f"run {file} --dry-run",))


def _made(place: Path, file: str, content: Content) -> None:
    put(place / file, content)
