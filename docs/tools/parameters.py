"""Writer of docs/params.schema.json and docs/parameters.md, the page of all keys, from the classes that check them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fieldcast.pipeline.cli.schema import schema

DOCS = Path(__file__).parents[1]
PAGE, SCHEMA = DOCS / "parameters.md", DOCS / "params.schema.json"
HEAD = """# Parameters

All keys of `params.yaml`, with their defaults; those of models are in [models.md](models.md). Made by `make parameters`
from the classes in `pipeline/config`, as is [params.schema.json](params.schema.json), by which editors complete and
check: write

```yaml
# yaml-language-server: $schema=docs/params.schema.json
```

in the first line of `params.yaml`; outside this repository `fieldcast schema > params.schema.json` writes the file.
Only `fieldcast check` knows all rules.
"""


def page(content: dict[str, Any]) -> str:
    """Return the page: a table for each section, and for each part that is in several."""
    lines = [HEAD]
    for name, entry in content["properties"].items():
        if name == "models":
            continue
        lines += [f"## {name}", "", *_section(name, entry, content["$defs"]), ""]
    return "\n".join(lines)


def _section(path: str, entry: dict[str, Any], definitions: dict[str, Any]) -> list[str]:
    """Return the lines of a section: what it is, and its keys, those of the parts within it after their own."""
    parts = _parts(entry)
    if not parts:
        return [entry.get("description", "") + f" Default: {_value(entry.get('default'))}."]
    lines = []
    for part in parts:
        definition = definitions[part]
        kind = definition["properties"].get("kind", {}).get("const")
        title = f"**kind: {kind}.** " if kind and len(parts) > 1 else ""
        lines += [
            title + definition.get("description", "").split("\n")[0],
            "",
            "| key | value | default | |",
            "|---|---|---|---|",
        ]
        lines += [*_rows(f"{path}.", definition, definitions), ""]
    return lines[:-1]


def _rows(prefix: str, definition: dict[str, Any], definitions: dict[str, Any]) -> list[str]:
    rows = []
    for key, entry in definition["properties"].items():
        inner = _parts(entry)
        required = key in definition.get("required", [])
        if len(inner) == 1 and "additionalProperties" not in entry:
            rows += _rows(f"{prefix}{key}.", definitions[inner[0]], definitions)
            continue
        default = "" if required else _value(entry.get("default"))
        rows.append(f"| `{prefix}{key}` | {_type(entry, definitions)} | {default} | {_words(entry)} |")
    return rows


def _parts(entry: dict[str, Any]) -> list[str]:
    """Return the names of the definitions that an entry refers to, in its own place or as one of several."""
    several = [*entry.get("anyOf", []), *entry.get("oneOf", [])]
    return [each["$ref"].rpartition("/")[2] for each in [entry, *several] if "$ref" in each]


def _type(entry: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return what an entry may be, in words."""
    if several := [*entry.get("anyOf", []), *entry.get("oneOf", [])]:
        return " or ".join(dict.fromkeys(_type(each, definitions) for each in several))
    if "$ref" in entry:
        return "as `source`" if entry["$ref"].endswith("Options") else "a mapping"
    if "enum" in entry or "const" in entry:
        return ", ".join(f"`{_plain(each)}`" for each in entry.get("enum", [entry.get("const")]))
    words = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "true or false",
        "null": "null",
    }
    if entry.get("format") == "date-time":
        return "time"
    if entry.get("type") == "array":
        items = entry.get("items") or {}
        return f"list of {_type(items, definitions)}" if items else "list"
    if entry.get("type") == "object":
        return "mapping by name"
    limits = [f"{sign} {entry[key]:g}" for key, sign in _LIMITS.items() if key in entry]
    return " ".join([words.get(str(entry.get("type")), "any"), ", ".join(limits)]).strip()


_LIMITS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}


def _words(entry: dict[str, Any]) -> str:
    return str(entry.get("description", "")).replace("|", "\\|")


def _value(value: Any) -> str:
    return f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def files() -> dict[Path, str]:
    """Return the text of each file that is made."""
    content = schema()
    return {PAGE: page(content), SCHEMA: json.dumps(content, indent=1, ensure_ascii=False) + "\n"}


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
