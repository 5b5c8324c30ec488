"""The text of `params.yaml`, read strictly: plain YAML, each key once, and nothing that grows when it is read."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from fieldcast.pipeline.errors import InputError

MAX_BYTES = 200_000
MAX_DEPTH = 20  # mappings and lists inside one another; the deepest of ours is 5
MAX_NODES = 20_000  # keys and values, those behind an alias counted each time
MERGE = "tag:yaml.org,2002:merge"
NUMBER_WITHOUT_A_POINT = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+")  # 1e-3, text in YAML 1.1


class _Loader(yaml.SafeLoader):
    """Safe loader that keeps times as text, knows 1e-3 as a number, and bounds depth."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Return the next node; raise `YAMLError` for one that is too deep."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"line {mark.line + 1} is nested deeper than {MAX_DEPTH} levels")
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER_WITHOUT_A_POINT, list("-+0123456789"))


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file; raise `InputError` with a line for each key that stands there twice.

    The file is UTF-8 whatever the locale says, at most 200 kB, and not deeper than 20 levels.
    """
    text = _text(path)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _expanded(node, {}) > MAX_NODES:
            raise InputError(f"{path}: more than {MAX_NODES} keys and values, aliases written out; shorten it")
        if faults := _bad_keys(node):
            raise InputError("\n".join(f"{path}: {fault}" for fault in faults))
        return loader.construct_document(node)
    except InputError:
        raise
    except Exception as error:  # a value with an explicit tag raises whatever its conversion does
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())[:500]}") from None


def parse_written(text: str) -> Any:
    """Return the content of YAML that a program has written, such as `dvc.lock`, of any size; raise `ValueError`."""
    try:
        return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506  both are safe
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())[:500]}") from None


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; copy one from examples/ or run in the project's folder") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; name a file of parameters") from None
    if len(content) > MAX_BYTES:
        raise InputError(f"{path}: larger than {MAX_BYTES // 1000} kB; name a file of parameters")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{path}: line {line} is no UTF-8: save the file in that encoding") from None


def _expanded(node: yaml.Node, known: dict[int, int]) -> int:
    """Return the number of nodes below `node`, those behind an alias counted each time; a loop counts as too many."""
    if id(node) not in known:
        known[id(node)] = MAX_NODES + 1  # until it is counted: an alias of itself
        below = 0
        if isinstance(node, yaml.MappingNode):
            below = sum(_expanded(key, known) + _expanded(value, known) for key, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            below = sum(_expanded(item, known) for item in node.value)
        known[id(node)] = 1 + below
    return known[id(node)]


def _bad_keys(node: yaml.Node, place: str = "") -> list[str]:
    """Return a sentence for each key that stands twice in one mapping, or is no text."""
    if isinstance(node, yaml.SequenceNode):
        return [fault for item in node.value for fault in _bad_keys(item, place)]
    if not isinstance(node, yaml.MappingNode):
        return []
    faults, lines = [], dict[Hashable, int]()
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag == MERGE:
            continue
        if not isinstance(key, yaml.ScalarNode) or not key.tag.endswith(":str"):
            shown = repr(key.value) if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            faults.append(f"{place or 'the file'} has {shown} as a key in line {line}, expected text: put it in quotes")
            continue
        path = f"{place}.{key.value}".lstrip(".")
        if key.value in lines:
            faults.append(f"{path} stands in lines {lines[key.value]} and {line}; remove one")
        lines[key.value] = line
        faults += _bad_keys(value, path)
    return faults
