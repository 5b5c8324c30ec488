"""The JSON schema of a parameters file, for editors: from the classes that check it, and the comments beside fields."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

from pydantic import BaseModel

from fieldcast import models
from fieldcast.pipeline.config import Params

DIALECT = "https://json-schema.org/draft/2020-12/schema"
FIELD = re.compile(r"^    (?P<name>[a-z]\w*): [^#\n]*  # (?P<words>.*)$", re.MULTILINE)


def schema() -> dict[str, Any]:
    """Return the schema: names, types and limits of all keys, what they mean, and those of each kind of model."""
    content: dict[str, Any] = Params.model_json_schema()
    definitions = content["$defs"]
    described = {each.__name__: each for each in _sections(Params)}
    for name, definition in definitions.items():
        if name in described:
            _describe(definition, described[name])
    _describe(content, Params)
    entries = [_entry(kind, options, definitions) for kind, options in models.OPTIONS.items()]
    for unused in ("ModelEntry", "BaseModel"):
        del definitions[unused]
    properties = content["properties"]
    properties["models"] = {"type": "object", "minProperties": 1, "additionalProperties": {"oneOf": entries}}
    properties["extends"] = {
        "type": "string",
        "description": "A file below examples/, whose values hold where this has none",
    }
    required = content.pop("required")
    content["anyOf"] = [{"required": required}, {"required": ["extends"]}]
    return {"$schema": DIALECT, **content, "title": "params.yaml of fieldcast"}


def _entry(kind: str, options: type[BaseModel], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of the entry of a model of this kind; what its options refer to joins the definitions."""
    own = options.model_json_schema()
    definitions.update(own.pop("$defs", {}))
    own["properties"] = {"kind": {"const": kind}, **own.get("properties", {})}
    own["required"] = ["kind", *own.get("required", [])]
    return own


def _describe(definition: dict[str, Any], section: type[BaseModel]) -> None:
    """Give each key the comment beside its field, of the class or of one that it inherits."""
    for base in reversed(section.__mro__):
        if base.__module__ == "builtins" or base is BaseModel or not issubclass(base, BaseModel):
            continue
        for name, words in FIELD.findall(inspect.getsource(base)):
            if name in definition.get("properties", {}):
                definition["properties"][name]["description"] = words


def _sections(of: type[BaseModel]) -> list[type[BaseModel]]:
    """Return all classes of sections, of the modules that `of` is read with."""
    package = of.__module__.rpartition(".")[0]
    modules = [module for name, module in sys.modules.items() if name.startswith(f"{package}.")]
    members = [member for module in modules for member in vars(module).values()]
    return [each for each in members if isinstance(each, type) and issubclass(each, BaseModel)]
