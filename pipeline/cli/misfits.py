"""Settings that are allowed and don't fit the data: warnings of `fieldcast check`, a line each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fieldcast.pipeline.config import Params, amount_of
from fieldcast.pipeline.config.sources import SharedOptions
from fieldcast.pipeline.datasets.grid import spacing_km
from fieldcast.pipeline.datasets.preparation.ranges import NO_AMOUNTS, Range
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources import SourceInfo

GRID_KEYS = [key for key in SharedOptions.model_fields if key != "period"]  # of a source, that shape its grid and steps


def misfits(params: Params, source: SourceInfo, ranges: Sequence[Range]) -> list[str]:
    """Return a sentence for each setting that does not fit; `ranges` are of the first variable and others, if known."""
    return [
        *_thresholds(params, ranges),
        *_wet(params, ranges),
        *_loss(params, ranges),
        *_guards(params, ranges),
        *_neighbourhoods(params, source),
        *_live(params),
    ]


def _thresholds(params: Params, ranges: Sequence[Range]) -> Iterator[str]:
    for each in ranges:
        levels = params.verify.thresholds.get(each.name, [])
        if each.low is None or each.high is None:
            continue
        margin = 0.0 if each.whole else each.high - each.low  # other frames may have more than those looked at
        if outside := [f"{level:g}" for level in levels if not each.low - margin < level <= each.high + margin]:
            yield (
                f"verify.thresholds.{each.name} has {', '.join(outside)}, outside of the values looked at, "
                f"{each.low:.4g} to {each.high:.4g} {each.units}: events that never or always happen have no score"
            )


def _wet(params: Params, ranges: Sequence[Range]) -> Iterator[str]:
    names = [each.name for each in ranges]
    for each in ranges:
        wet = amount_of(params.prepare.wet_above, each.name, names)
        if wet is None or each.low is None or each.high is None or each.low <= wet < each.high:
            continue
        yield (
            f"prepare.wet_above is {wet:g}, and {each.name} is {each.low:.4g} to {each.high:.4g} {each.units}: the "
            "quality report will call every cell wet, or none"
        )


def _guards(params: Params, ranges: Sequence[Range]) -> Iterator[str]:
    limit, targets = params.promotion.guards.max_mean_error, _targets(params, ranges)
    if isinstance(limit, float) and len(targets) > 1:
        units = ", ".join(f"{each.name} in {each.units}" for each in ranges if each.name in targets)
        yield (
            f"promotion.guards.max_mean_error is {limit:g}, a limit of {targets[0]} alone, and forecast are {units}: "
            f"give limits by variable, such as {{{targets[0]}: {limit:g}, {targets[1]}: …}}"
        )


def _targets(params: Params, ranges: Sequence[Range]) -> list[str]:
    return params.prepare.targets or [each.name for each in ranges]


def _loss(params: Params, ranges: Sequence[Range]) -> Iterator[str]:
    targets = _targets(params, ranges)
    if params.train.loss in ("mix", "balanced"):
        for each in ranges:
            if each.name in targets and each.units in NO_AMOUNTS:
                yield (
                    f"train.loss is {params.train.loss}, for amounts such as rain, and {each.name} is in {each.units}: "
                    "mse or mae"
                )


def _neighbourhoods(params: Params, source: SourceInfo) -> Iterator[str]:
    try:
        cell = spacing_km(source.grid)
    except InputError:  # without lengths there are no neighbourhoods
        return
    if small := [f"{width:g}" for width in params.verify.neighbourhoods_km if width < min(cell)]:
        yield (
            f"verify.neighbourhoods_km has {', '.join(small)}, less than a cell of {cell[0]:.3g} x {cell[1]:.3g} km, "
            "which it stands for"
        )


def _live(params: Params) -> Iterator[str]:
    live, source = params.live.source, params.source
    if live is None:
        return
    if live.kind != source.kind:
        yield (
            f"live.source.kind is {live.kind}, and source.kind is {source.kind}: a model forecasts frames of the units "
            "and the grid that it was trained on, and refuses others"
        )
        return
    for key in GRID_KEYS:
        here, there = getattr(live, key), getattr(source, key)
        if here != there:
            yield (
                f"live.source.{key} is {_text(here)}, and source.{key} is {_text(there)}: unless the files differ in "
                "the same way, a model refuses these frames"
            )


def _text(value: object) -> str:
    return str(value.model_dump()) if hasattr(value, "model_dump") else str(value)
