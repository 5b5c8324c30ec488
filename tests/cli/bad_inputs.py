"""Bad parameters by rule: each field of the schema with values that no field of its type may take, and bad YAML."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import yaml

from fieldcast import models
from fieldcast.pipeline.config import Params
from fieldcast.pipeline.config.sources import GriddedOptions, MovingMnistOptions, RadarOptions, StormsOptions

NUMBERS = {"NaN": float("nan"), "infinity": float("inf"), "-infinity": float("-inf"), "1e300": 1e300, "-1e300": -1e300}
HUGE, HALF = 10**30, 0.5
TIMES = ["yesterday", "0001-01-01T00:00", "9999-01-01T00:00", "2024-13-45", "2024-06-01T25:00", ""]
SOURCES = {
    StormsOptions: {"kind": "storms"},
    RadarOptions: {"kind": "radar", "path": "a", "format": "bom"},
    GriddedOptions: {"kind": "gridded", "path": "a", "variables": ["t"]},
    MovingMnistOptions: {"kind": "moving_mnist", "train_images": "a", "test_images": "b"},
}
Path = tuple[str, ...]
Case = tuple[str, str]  # what it is, and the text of the file


def schema_cases(small: dict[str, Any]) -> Iterator[Case]:
    """Yield files with one wrong value each, for every field of every section, source and kind of model."""
    schema = Params.model_json_schema()
    properties = {name: part for name, part in schema["properties"].items() if name not in ("source", "models")}
    full = _full(small)
    for name, part in properties.items():
        yield from _written(full, (name,), part, schema["$defs"], required=name in schema["required"])
    for options, base in SOURCES.items():
        schema = options.model_json_schema()
        yield from _written({**full, "source": base}, ("source",), schema, schema.get("$defs", {}), required=True)
    for kind, each in models.OPTIONS.items():
        schema = each.model_json_schema()
        content = {**full, "models": {"a": {"kind": kind}}}
        yield from _written(content, ("models", "a"), schema, schema.get("$defs", {}), required=True)
    for value in (None, 3, "x", [], {}, {"a": None}, {"a": {}}, {"a": {"kind": "x"}}, {"a": {"kind": []}}, {"A b": {}}):
        yield f"models = {value!r}", yaml.safe_dump({**full, "models": value})


def yaml_cases(small: dict[str, Any]) -> Iterator[Case]:
    """Yield files that are no plain YAML, and each key of the default file twice."""
    text = yaml.safe_dump(small, sort_keys=False)
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.rstrip().endswith(":") or ": " not in line or line.lstrip().startswith("- "):
            continue
        yield f"line {number + 1} twice", "\n".join([*lines[: number + 1], line, *lines[number + 1 :]])
    for number in range(0, len(lines), 3):
        yield f"a tab in line {number + 1}", "\n".join([*lines[:number], "\t" + lines[number], *lines[number + 1 :]])
        yield f"a bracket after line {number + 1}", "\n".join([*lines[: number + 1], "  [", *lines[number + 1 :]])
    for extra in ("a: " + "[" * 3000, "a: " + "{b: " * 3000, "a: &a [*a]", "a: !!python/name:os.system", "a: *b"):
        yield extra[:20], f"{text}\n{extra}\n"
    for whole in ("", "- 1", "3", "text", "null", "a: [1", "%YAML 9", "\x00", "? [a]\n: 1", "1: 2", "a: 1\n---\nb: 2"):
        yield repr(whole), whole


def _written(content: Any, path: Path, schema: Any, definitions: Any, *, required: bool) -> Iterator[Case]:
    for what, place, value in _bad(path, schema, definitions):
        changed = copy.deepcopy(content)
        _put(changed, place, value)
        yield f"{'.'.join(place)} = {what}", yaml.safe_dump(changed, sort_keys=False)
    if required and len(path) == 1:
        yield f"no {path[0]}", yaml.safe_dump({key: value for key, value in content.items() if key != path[0]})


def _bad(path: Path, schema: Any, definitions: Any) -> Iterator[tuple[str, Path, Any]]:
    """Yield (what, where, value) of values that a field with this schema must not take, and of the fields below it."""
    options = [_resolved(each, definitions) for each in schema.get("anyOf", [schema])]
    kinds = {_kind(each) for each in options}
    yield from ((str(value), path, value) for value in _of_other_types(kinds))
    for each in options:
        kind = _kind(each)
        if kind in ("integer", "number"):
            yield from ((name, path, value) for name, value in NUMBERS.items())
            yield from ((str(value), path, value) for value in _out_of_range(each))
        elif kind == "time":
            yield from ((repr(text), path, text) for text in TIMES)
        elif kind == "string":
            yield "nothing", path, ""
            yield "a control character", path, "a\x01b"
        elif kind == "fields":
            yield "an unknown key", (*path, "no_such_key"), 1
            for name, below in each["properties"].items():
                yield from _bad((*path, name), below, definitions)
        elif kind == "mapping":
            values = [*each.get("patternProperties", {}).values(), each.get("additionalProperties")]
            for below in filter(lambda value: isinstance(value, dict), values):
                yield from _bad((*path, "rain_rate"), below, definitions)
        elif kind == "array":
            yield from _bad_items(path, each, definitions)


def _bad_items(path: Path, schema: Any, definitions: Any) -> Iterator[tuple[str, Path, Any]]:
    items = schema.get("prefixItems") or [schema.get("items", {})]
    for what, _, value in _bad((), items[0], definitions):
        if what != "an unknown key":
            yield f"[{what}]", path, [value] * len(items)
    if "prefixItems" in schema:
        yield "one item", path, [1]
        yield "three items", path, [1, 2, 3, 4]
    if schema.get("minItems", 0):
        yield "an empty list", path, []


def _of_other_types(kinds: set[str]) -> Iterator[Any]:
    numeric = bool(kinds & {"integer", "number"})
    if "null" not in kinds:
        yield None
    if "boolean" not in kinds:
        yield True
    if not numeric:
        yield from (3, HALF, float("nan"))
    if not kinds & {"string", "time"}:
        yield from ("nonsense", "3")
    if "array" not in kinds:
        yield from ([], [1], [[]])
    if not kinds & {"fields", "mapping"}:
        yield from ({}, {"a": {"b": 1}})


def _out_of_range(schema: Any) -> Iterator[Any]:
    if _kind(schema) == "integer":
        yield from (HUGE, -HUGE, HALF)
    for bound, step in (("minimum", -1), ("exclusiveMinimum", 0), ("maximum", 1), ("exclusiveMaximum", 0)):
        if bound in schema:
            yield schema[bound] + step


def _kind(schema: Any) -> str:
    if "enum" in schema or "const" in schema:
        return "string"
    if schema.get("format") == "date-time":
        return "time"
    kind: str = schema.get("type", "any")
    return ("fields" if "properties" in schema else "mapping") if kind == "object" else kind


def _resolved(schema: Any, definitions: Any) -> Any:
    name = schema.get("$ref", "").removeprefix("#/$defs/")
    return definitions[name] if name else schema


def _put(content: Any, path: Path, value: Any) -> None:
    for key in path[:-1]:
        if not isinstance(content.get(key), dict):
            content[key] = {}
        content = content[key]
    content[path[-1]] = value


def _full(small: dict[str, Any]) -> dict[str, Any]:
    """Return parameters in which every section is there and valid, without models that take long to weigh."""
    live = {key: value for key, value in small["live"].items() if key != "source"}
    return {**small, "live": live, "models": {"persistence": {"kind": "persistence"}}}
