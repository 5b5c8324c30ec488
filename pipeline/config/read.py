"""The only reader of `params.yaml`: all sections, their checks, and one line where a value is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    BaseModel,
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from fieldcast import models
from fieldcast.pipeline.config.data import Prepare, Sample, Splits
from fieldcast.pipeline.config.evaluation import Compare, Dask, Forecast, Promotion, Track, Verify
from fieldcast.pipeline.config.live import Live
from fieldcast.pipeline.config.renamed import outdated
from fieldcast.pipeline.config.section import Section
from fieldcast.pipeline.config.sources import IngestOptions, SourceOptions
from fieldcast.pipeline.config.training import Train
from fieldcast.pipeline.errors import BUG, InputError, exit_code

PARAMS = Path("params.yaml")
ModelName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


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
    models: dict[ModelName, ModelEntry]

    @field_validator("models", mode="before")
    @classmethod
    def _entries(cls, value: Any) -> dict[str, ModelEntry]:
        if not isinstance(value, dict) or not value:
            raise ValueError("expected a mapping of model names to their kind and options")
        return {name: _model_entry(name, content) for name, content in value.items()}

    @model_validator(mode="after")
    def _one_can_be_champion(self) -> Params:
        kinds = {entry.kind for entry in self.models.values()}
        if self.forecast.online is not None and not kinds & set(models.REFERENCES):
            raise ValueError(
                "forecast.online leaves promotion without a candidate, since all models learn on; add a"
                " reference such as persistence, or set forecast.online to null"
            )
        return self


def _model_entry(name: str, content: Any) -> ModelEntry:
    if isinstance(content, ModelEntry):
        return content
    kinds = ", ".join(models.OPTIONS)
    if not isinstance(content, Mapping) or "kind" not in content:
        raise ValueError(f"{name} has no kind, expected one of {kinds}, such as {name}: {{kind: persistence}}")
    kind = content["kind"]
    if kind not in models.OPTIONS:
        raise ValueError(f"{name} is of the unknown kind {kind!r}, expected one of {kinds}")
    try:
        options = models.OPTIONS[kind].model_validate({key: value for key, value in content.items() if key != "kind"})
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join([name, *(str(part) for part in first["loc"])])
        raise ValueError(f"{path} is {_shown(first['input'])}: {_reason(first)}") from None
    return ModelEntry(kind=kind, options=options)


def read(path: Path = PARAMS) -> Params:
    """Return the checked content of `path`; raise `InputError` with one line that names file, key, value and fix."""
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; copy one from examples/ or run in the project's folder") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected sections such as source: and train:, found {type(content).__name__}")
    if changes := outdated(content):
        raise InputError(f"{path}: {'; '.join(changes)}")
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise InputError(_one_line(path, error)) from None


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


def run_stage(stage: Callable[[], None]) -> None:
    """Run a stage; an error that a user can correct ends in one line on standard error and its own exit code."""
    try:
        stage()
    except Exception as error:
        if (code := exit_code(error)) == BUG:
            raise
        sys.stderr.write(f"fieldcast: {error}\n")
        sys.exit(code)


def _one_line(path: Path, error: ValidationError) -> str:
    first = error.errors()[0]
    parts = [str(part) for i, part in enumerate(first["loc"]) if i == 0 or first["loc"][i - 1] != "source"]
    where = ".".join(parts)  # after 'source' comes the kind, which is no key of the file
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    value = "" if isinstance(first["input"], dict) else f" is {_shown(first['input'])}"
    return f"{path}: {where or 'the file'}{value}: {_reason(first)}{more}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _reason(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        return "unknown key; remove it or correct its spelling"
    return str(problem["msg"]).removeprefix("Value error, ")
