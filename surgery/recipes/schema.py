"""The JSON schema of recipes, made of the signatures of the steps."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from .parameters import Parameter, opening_of, signature_of
from .table import STEPS


def schema_of(output: Mapping[str, Parameter]) -> dict[str, Any]:
    """The schema, with the options of an `output` by key."""
    named = {name: _step(name) for name in STEPS}
    bare = {"enum": [name for name, schema in named.items() if not schema["required"]]}
    one = {"type": "object", "properties": named, "additionalProperties": False, "minProperties": 1, "maxProperties": 1}
    source = {"anyOf": [{"$ref": "#/$defs/place"}, {"type": "array", "items": {"$ref": "#/$defs/place"}}]}
    steps = {"type": "array", "items": {"anyOf": [bare, one]}}
    options = {key: _option(one) for key, one in output.items()}
    written = {"type": "object", "properties": options, "additionalProperties": False}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of surgery",
        "type": "object",
        "properties": {
            "source": {**source, "description": "What flows into the first step: a path, or org/name on the Hub."},
            "steps": {**steps, "description": "The surgeries, in their order."},
            "output": {"anyOf": [{"type": "string"}, written], "description": "Where the result goes, and how."},
        },
        "required": ["source"],
        "additionalProperties": False,
        "$defs": {"place": _place(steps)},
    }


def _step(name: str) -> dict[str, Any]:
    signature = signature_of(STEPS[name].function)
    text = (inspect.getdoc(STEPS[name].function) or "").split("\n\n")[0]
    return {
        "type": ["object", "null"],
        "description": " ".join(text.split()),
        "properties": {one.key: _option(one) for one in signature.said},
        "required": [one.key for one in signature.parameters if one.needed],
        "additionalProperties": False,
    }


def _option(parameter: Parameter) -> dict[str, Any]:
    metavar = f" ({parameter.option.metavar})" if parameter.option.metavar else ""
    usual = {} if parameter.default in (None, (), "") else {"default": parameter.default}
    words = parameter.option.among
    kind = {"enum": list(words)} if words and not parameter.kind.often else parameter.kind.schema()
    return {**kind, "description": f"{parameter.option.help}{metavar}", **usual}


def _place(steps: Mapping[str, Any]) -> dict[str, Any]:
    """A path, one of which more is said, or what a recipe makes."""
    more = {one.key: _option(one) for one in opening_of()} | {
        "key": {"type": "string"},
        "component": {"type": "string"},
    }
    path = {
        "type": "object",
        "properties": {"path": {"type": "string"}, **more},
        "required": ["path"],
        "additionalProperties": False,
    }
    made = {
        "type": "object",
        "properties": {"source": {"$ref": "#/properties/source"}, "steps": steps},
        "required": ["source", "steps"],
        "additionalProperties": False,
    }
    return {"anyOf": [{"type": "string"}, path, made]}
