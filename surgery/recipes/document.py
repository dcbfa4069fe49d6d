"""Recipes as files: YAML, TOML or JSON, read as data, and each thing said in them with its line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import FormatError, listed, nearest, series
from ..files.manifest import Manifest
from ..files.opening import regular
from ..files.plain_yaml import LONGEST, Immoderate, check_yaml, quick_loader
from ..files.strict import parse_object
from .kinds import Real, Whole, WrongValue

MOST_BYTES = 4 << 20
KEYS = ("source", "steps", "output")
_TEXTS = ("str", "int", "float", "timestamp", "merge", "value")
_INT = re.compile(r"[-+]?(?:0|[1-9]\d{0,17})")
_FLOAT = re.compile(r"[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?")
Key = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """What a recipe says: its source, its steps with what is said to each, its output; `lines` say where in `path`."""

    path: str
    source: Any
    steps: tuple[tuple[str, Mapping[str, Any]], ...]
    output: Mapping[str, Any] = field(default_factory=dict)
    lines: Mapping[Key, int] = field(default_factory=dict)
    made: Manifest | None = None  # in which the recipe stands, with what it says of what was made
    changed: bool = False  # by what was set: then it makes something else

    def where(self, *key: str | int) -> str:
        """The place of what is said under `key`, or around it."""
        line = next((self.lines[key[:n]] for n in range(len(key), -1, -1) if key[:n] in self.lines), None)
        return self.path if line is None else f"{self.path}:{line}"

    def called(self, step: int) -> str:
        """A step in messages."""
        return f"step {step + 1}, {self.steps[step][0]}"


def read_file(path: str) -> tuple[Any, dict[Key, int]]:
    """What a file says, and on which line. Raises FormatError for one that is not plain data."""
    text = _text(path)
    if path.endswith(".toml"):
        return _toml(text, path)
    return _json(text, path) if path.endswith(".json") else _yaml(text, path)


def document_of(content: Any, path: str, lines: Mapping[Key, int]) -> Document:
    """The recipe that the content is. Raises FormatError where it is none."""
    bare = Document(path, None, (), {}, lines)
    if not isinstance(content, Mapping):
        raise FormatError("a recipe is a mapping", where=[path], help=f"with the keys {series(KEYS)}")
    for key in content:
        _known(key, KEYS, bare.where(key), "a recipe")
    if "source" not in content or content["source"] in (None, "", []):
        raise FormatError("the recipe names no source", where=[path], help="source: a path, or org/name on the Hub")
    steps = content.get("steps") or []
    if not isinstance(steps, list):
        raise FormatError("steps are a list", where=[bare.where("steps")], help="- drop: {pattern: …} for each")
    named = tuple(_step(one, bare.where("steps", i)) for i, one in enumerate(steps))
    output = content.get("output") or {}
    if isinstance(output, str):
        output = {"output": output}
    if not isinstance(output, Mapping):
        tip = "one folder or repository: output: DIR, or a mapping with the options of what writes"
        raise FormatError("output says one place", where=[bare.where("output")], help=tip)
    return Document(path, content["source"], named, dict(output), lines)


def _step(said: Any, where: str) -> tuple[str, Mapping[str, Any]]:
    """A step's name, and what is said to it."""
    if isinstance(said, str):
        return said, {}
    if not isinstance(said, Mapping) or len(said) != 1:
        tip = "- fuse, or - merge: with its options below it"
        raise FormatError("a step is a name, or one name with options", where=[where], help=tip)
    ((name, options),) = said.items()
    if options is None:
        options = {}
    if not isinstance(name, str) or not isinstance(options, Mapping):
        raise FormatError(f"the options of {name!r} are no mapping", where=[where], help="option: value, one a line")
    return name, options


def _known(key: Any, keys: Sequence[str], where: str, what: str) -> None:
    if key not in keys:
        raise FormatError(f"{what} has no key {key!r}", where=[where], help=_nearest(key, keys))


def unknown_key(key: Any, keys: Sequence[str], where: str, step: str, flowing: str) -> FormatError:
    """What is said to a step that has no such option."""
    if key == flowing:
        tip = f"{key} is what flows into the step: of the first step, the recipe's source, such as source: [A, B]"
        return FormatError(f"{step} has no option {key!r}", where=[where], help=tip)
    return FormatError(f"{step} has no option {key!r}", where=[where], help=_nearest(key, keys))


def _nearest(key: Any, keys: Sequence[str]) -> str:
    close = nearest(str(key), list(keys))
    if close:
        return f"nearest {'is' if len(close) == 1 else 'are'} {series(close)}"
    return f"there are {series(listed(sorted(keys), 12))}" if keys else "it has none"


# ---------------------------------------------------------------- values that override


def overridden(content: Any, said: Sequence[str]) -> Any:
    """The content of a recipe with each `step.option=value` in the place of what it says. Raises WrongValue."""
    for one in said:
        name, mark, text = one.partition("=")
        if not mark or not name:
            tip = "such as merge.scale=0.5, 2.pattern=…, source=PATH"
            raise WrongValue(f"`{one}` is not STEP.OPTION=VALUE", help=tip)
        value = _value(text)
        if not isinstance(content, Mapping):
            return content
        content = _set(content, name, value)
    return content


def _value(text: str) -> Any:
    """A text as the value that YAML makes of it; one that is no YAML, as it is."""
    try:
        return _yaml(text, "--set")[0]
    except FormatError:
        return text


def _set(content: Mapping[str, Any], name: str, value: Any) -> Mapping[str, Any]:
    first, _, option = name.partition(".")
    if name in ("source", "output"):
        return {**content, name: value}
    if first == "output" and option:
        output = content.get("output") or {}
        return {**content, "output": {**({"output": output} if isinstance(output, str) else output), option: value}}
    steps = list(content.get("steps") or [])
    places = [i for i, one in enumerate(steps) if first in (str(i + 1), _named(one))]
    if not option or not places:
        there = [*(f"{_named(one)}." for one in steps), "source", "output."]
        raise WrongValue(f"`{name}` is no option of a step of this recipe", help=f"there are {series(there)}")
    if len(places) > 1:
        told = series([str(i + 1) for i in places])
        tip = f"say its number: {told}, as in {places[0] + 1}.{option}=…"
        raise WrongValue(f"{first} is a step more than once", help=tip)
    at = places[0]
    step, said = _step(steps[at], "--set")
    steps[at] = {step: {**said, option: value}}
    return {**content, "steps": steps}


def _named(step: Any) -> str:
    return next(iter(step), "") if isinstance(step, Mapping) else str(step)


# ---------------------------------------------------------------- files


def _text(path: str) -> str:
    """The text in a small file. Raises FormatError."""
    try:
        with open(path, "rb", opener=regular) as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        tip = "surgery run takes a recipe in YAML, TOML or JSON, or the manifest of an output"
        raise FormatError(
            f"the recipe cannot be read: {(error.strerror or str(error)).lower()}", where=[path], help=tip
        ) from error
    if len(data) > MOST_BYTES:
        raise FormatError(f"a recipe of more than {MOST_BYTES} bytes", where=[path], help="is it a recipe?")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError("a recipe is a text in UTF-8", where=[path], help=str(error)) from error


def _toml(text: str, path: str) -> tuple[Any, dict[Key, int]]:
    try:
        _check_toml(text)
        content = tomllib.loads(text)
    except Immoderate as error:
        raise _immoderate(error, path) from error
    except (ValueError, RecursionError) as error:
        raise FormatError("this is no TOML", where=[path], help=str(error)) from error
    return content, _lines_of_toml(text)


def _check_toml(text: str) -> None:
    """Raise Immoderate for keys of more parts, and numbers of more digits, than anyone writes: the parser's time grows
    with the square of the one, its memory with the other.
    """
    for number, line in enumerate(text.splitlines(), 1):
        if (dots := line.count(".")) > LONGEST:
            raise Immoderate(f"{dots} dots in a line", number)
        if any(len(word) > LONGEST and word[0] in "+-0123456789" for word in re.findall(r"[\w+.:-]+", line)):
            raise Immoderate(f"a number of more than {LONGEST} digits", number)


def _immoderate(error: Immoderate, path: str) -> FormatError:
    tip = "write it without references, and long lists as patterns"
    return FormatError(f"the recipe is too large: {error}", where=[f"{path}:{error.line}"], help=tip)


def _lines_of_toml(text: str) -> dict[Key, int]:
    """The lines of what stands on top, of the steps, and of their options."""
    lines, step, found = text.splitlines(), -1, dict[Key, int]()
    inside: Key = ()
    for number, line in enumerate(lines, 1):
        bare = line.strip()
        if re.match(r"\[\[\s*steps\s*\]\]", bare):
            step, inside = step + 1, ("steps", step + 1)
            found.setdefault(("steps",), number)
            found[inside] = number
        elif head := re.match(r"\[\s*steps\.([\w-]+)\s*\]", bare):
            inside = ("steps", step, head[1])
            found[inside] = number
        elif head := re.match(r"\[\s*([\w-]+)\s*\]", bare):
            inside = (head[1],)
            found[inside] = number
        elif head := re.match(r"\"?([\w-]+)\"?\s*=", bare):
            found[(*inside, head[1])] = number
    return found


def _json(text: str, path: str) -> tuple[Any, dict[Key, int]]:
    """JSON by its own rules; its lines as YAML sees them, where it does."""
    content = parse_object(text.encode(), lambda what: FormatError(what, where=[path], help="mend the recipe"))
    try:
        return content, _yaml(text, path)[1]
    except FormatError:
        return content, {}


def _yaml(text: str, path: str) -> tuple[Any, dict[Key, int]]:
    import yaml

    try:
        check_yaml(text, MOST_BYTES)
        node = yaml.compose(text, Loader=quick_loader())
        reader = _Reader(path)
        return (None if node is None else reader.read(node, ())), reader.lines
    except Immoderate as error:
        raise _immoderate(error, path) from error
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else path
        what = getattr(error, "problem", None) or "it cannot be read"
        raise FormatError("this is no YAML", where=[where], help=str(what)) from error


def _value_of(text: str) -> Any:
    """A number where the text is one to everyone, or the text: `010`, `1_0` and `1:0` are numbers to YAML alone."""
    if _INT.fullmatch(text):
        return Whole(text)
    return Real(text) if _FLOAT.fullmatch(text) else text


class _Reader:
    """Nodes of YAML that were checked, as plain data: no tags, no duplicate keys."""

    def __init__(self, path: str) -> None:
        self.path, self.lines = path, dict[Key, int]()

    def read(self, node: Any, key: Key) -> Any:
        """The value of a node."""
        import yaml

        where = f"{self.path}:{node.start_mark.line + 1}"
        self.lines.setdefault(key, node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode) and node.tag.endswith(":seq"):
            return [self.read(one, (*key, i)) for i, one in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key, where)
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if isinstance(node, yaml.ScalarNode) and kind in _TEXTS:
            return _value_of(node.value) if not node.style else node.value
        if isinstance(node, yaml.ScalarNode) and kind in ("bool", "null"):
            return yaml.SafeLoader("").construct_object(node)
        raise FormatError(f"the tag {node.tag} is no plain data", where=[where], help="write the value without it")

    def _mapping(self, node: Any, key: Key, where: str) -> dict[str, Any]:
        if not node.tag.endswith(":map"):
            raise FormatError(f"the tag {node.tag} is no plain data", where=[where], help="write the value without it")
        made: dict[str, Any] = {}
        for name, value in node.value:
            line = f"{self.path}:{name.start_mark.line + 1}"
            if not hasattr(name, "value") or not isinstance(name.value, str):
                raise FormatError("a key is a text", where=[line], help="name: value, one a line")
            if name.value in made:
                raise FormatError(f"{name.value!r} is said twice", where=[line], help="a key stands once in a mapping")
            made[name.value] = self.read(value, (*key, name.value))
            self.lines[(*key, name.value)] = name.start_mark.line + 1
        return made
