"""The only reader of `params.yaml`: all sections, their checks, and one line where a value is wrong."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from fieldcast import models
from fieldcast.models.layers.outputs import BASES
from fieldcast.pipeline.config.data import Prepare, Sample, Splits
from fieldcast.pipeline.config.evaluation import Compare, Dask, Forecast, Promotion, Track, Verify
from fieldcast.pipeline.config.extends import file_of, read_extended
from fieldcast.pipeline.config.live import Live
from fieldcast.pipeline.config.section import Section
from fieldcast.pipeline.config.sources import IngestOptions, SourceOptions
from fieldcast.pipeline.config.training import Train
from fieldcast.pipeline.errors import InputError, public

PARAMS = Path("params.yaml")
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")  # of a model: it becomes the name of files, folders and DVC's stages
TYPE = re.compile(
    r"[\[\]()]|^(constrained-)?(int|float|str|list|literal)\b"
)  # of a member of a union, in a place by pydantic
MOST_FAULTS = 50  # that are listed


class ModelEntry(Section):
    """One model under `models`: the code in `models/<kind>/` and its options, in one mapping of the file."""

    kind: str
    options: SerializeAsAny[BaseModel]

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        return {"kind": self.kind, **self.options.model_dump(mode="json")}


class Params(Section):
    """The whole of `params.yaml`."""

    source: SourceOptions
    ingest: IngestOptions = IngestOptions()
    prepare: Prepare
    sample: Sample
    train: Train
    forecast: Forecast = Forecast()
    verify: Verify = Verify()
    compare: Compare = Compare()
    promotion: Promotion = Promotion()
    track: Track
    dask: Dask = Dask()
    live: Live = Live()
    references: Literal["none"] | None = None  # none: models may be without one
    models: dict[str, ModelEntry]

    @field_validator("models", mode="before")
    @classmethod
    def _entries(cls, value: Any) -> dict[str, ModelEntry]:
        if not isinstance(value, dict) or not value:
            raise ValueError("expected a mapping of model names to their kind and options")
        faults = [fault for name, content in value.items() for fault in _faults_of_model(name, content)]
        if faults:
            raise ValueError("\n".join(faults))
        return {name: _model_entry(content) for name, content in value.items()}

    @model_validator(mode="after")
    def _compared_with_references(self) -> Params:
        found = [name for name, entry in self.models.items() if entry.kind in models.REFERENCES]
        if found and self.references == "none":
            raise ValueError(f"references is 'none', but models has {found[0]}: remove one of the two lines")
        if not found and self.references is None:
            raise ValueError(
                "models has no reference, without which no forecast is known to be of use; add some, such as"
                " persistence: {kind: persistence}, or say so by references: none"
            )
        if not found and self.forecast.online is not None:
            raise ValueError(
                "forecast.online leaves promotion without a candidate, since all models learn on; add a"
                " reference such as persistence, or set forecast.online to null"
            )
        return self


def _faults_of_model(name: Any, content: Any) -> list[str]:
    """Return a line for each thing that is wrong with the entry of a model."""
    kinds = ", ".join(models.OPTIONS)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        shown = name if str(name).isprintable() else ascii(name)
        return [f"models.{shown}: expected a name of small letters, digits and _, such as convlstm_2"]
    if isinstance(content, ModelEntry):
        return []
    if not isinstance(content, Mapping) or "kind" not in content:
        return [f"models.{name} has no kind, expected one of {kinds}, such as {name}: {{kind: persistence}}"]
    if (kind := content["kind"]) not in list(models.OPTIONS):
        return [f"models.{name} is of the unknown kind {_shown(kind)}, expected one of {kinds}"]
    try:
        _model_entry(content)
    except ValidationError as error:
        return [f"{_place(f'models.{name}', problem)}: {_reason(problem)}" for problem in error.errors()]
    return []


def _model_entry(content: Any) -> ModelEntry:
    """Return the entry of a model; raise `ValidationError` for options that its kind does not take."""
    if isinstance(content, ModelEntry):
        return content
    options = {key: value for key, value in content.items() if key != "kind"}
    kind = models.OPTIONS[content["kind"]]
    return ModelEntry(kind=content["kind"], options=kind.model_validate_json(json.dumps(options), strict=True))


def read(path: Path = PARAMS) -> Params:
    """Return the checked content of `path`; raise `InputError` with a line a fault: file, key, value and fix."""
    content, places = read_extended(path)
    try:
        text = json.dumps(content)  # in strict JSON no text is a number, and no `true` is 1
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: not valid YAML: {error}; expected text, numbers, lists and mappings") from None
    try:
        return Params.model_validate_json(text, strict=True)
    except ValidationError as error:
        lines = list(dict.fromkeys(f"{file_of(places, keys, path)}: {line}" for keys, line in _lines(error)))
        more = [f"{path}: {len(lines) - MOST_FAULTS} more"] if len(lines) > MOST_FAULTS else []
        raise InputError("\n".join(lines[:MOST_FAULTS] + more)) from None


def bases_of(entry: ModelEntry) -> tuple[str, ...]:
    """Return the kinds of references that a model's forecasts may be increments on: all that can be, with auto."""
    base = getattr(entry.options, "base", "history")
    if base == "auto":
        return BASES
    return () if base == "history" else (base,)


def named_model(about: str, params: Params) -> str:
    """Return the model that the command line names, by default that of DVC's stage, such as `train@convlstm`.

    DVC hands the stage's name over in the environment: as part of the command, a shell would read it. Raise
    `InputError` for a model that `params` lacks. `about` is the help of the command.
    """
    stage = os.environ.get("DVC_STAGE", "")
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--model", default=stage.partition("@")[2] or None, required="@" not in stage)
    model: str = parser.parse_args().model
    if model not in params.models:
        raise InputError(f"{PARAMS}: models has no {_shown(model)}, expected one of {', '.join(params.models)}")
    return model


def load() -> Params:
    """Return the parameters of the project in the working directory."""
    return read(PARAMS)


def check_gaps(splits: Splits, history: int, horizon: int, step: timedelta) -> None:
    """Raise `InputError` unless the splits ascend with at least `history + horizon` steps between them.

    With that gap no frame belongs to two splits, as history or as target.
    """
    gap = (history + horizon) * step
    ordered = sorted(splits.in_order(), key=lambda named: named[1].start)
    for (name, split), (later_name, later) in pairwise(ordered):
        if later.start - split.end < gap:
            earliest = split.end + gap
            raise InputError(
                f"params.yaml: prepare.splits.{later_name}.start is {later.start}, {later.start - split.end} after the"
                f" end of {name}; expected at least history + horizon = {history + horizon} steps, so {earliest} or"
                " later"
            )


def _lines(error: ValidationError) -> list[tuple[list[str], str]]:
    """Return keys and a line for each place with a fault, with what each of several types says of its value."""
    reasons: dict[str, list[str]] = {}
    keys: dict[str, list[str]] = {}
    lines = []
    for problem in error.errors():
        if problem["loc"] == ("models",) and problem["type"] == "value_error":  # names its places itself
            lines += _reason(problem).splitlines()
        else:
            place = _place("", problem)
            reasons.setdefault(place, []).append(_reason(problem))
            keys[place] = _keys(problem["loc"])
    told = [(keys[place], f"{place}: {', or '.join(dict.fromkeys(said))}") for place, said in reasons.items()]
    return told + [(["models"], line) for line in lines]


def _place(above: str, problem: Any) -> str:
    """Return the place of a fault, below `above`, and its value."""
    place = ".".join(filter(None, [above, *_keys(problem["loc"])])) or "the file"
    hidden = isinstance(problem["input"], dict | list) or "storage_options" in problem["loc"]
    return place if hidden else f"{place} is {_shown(problem['input'])}"


def _keys(place: Sequence[int | str]) -> list[str]:
    """Return the keys of the file in a place that pydantic gives, which also names the kind of a source and types."""
    return [
        str(key) for i, key in enumerate(place) if i == 0 or not (place[i - 1] == "source" or TYPE.search(str(key)))
    ]


def _shown(value: Any) -> str:
    value = public(value)
    text = ascii(value) if not str(value).isprintable() else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _reason(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        return "unknown key; remove it or correct its spelling"
    text = str(problem["msg"]).removeprefix("Value error, ")
    return text if problem["loc"] == ("models",) else " ".join(text.split())
