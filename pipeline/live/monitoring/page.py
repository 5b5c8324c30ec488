"""The status page: one HTML file that needs no network, no script and no second file."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.datasets.atomic import replace_durable
from fieldcast.pipeline.datasets.labels import readable, readable_units
from fieldcast.pipeline.datasets.schema import field_names, lead_minutes
from fieldcast.pipeline.errors import DamagedError
from fieldcast.pipeline.live.archive import publish
from fieldcast.pipeline.live.archive.ledger import Cycle, State
from fieldcast.pipeline.live.archive.publish import path_of
from fieldcast.pipeline.live.monitoring.charts import (
    animation,
    animation_address,
    error_chart,
    ratio_chart,
    reliability_charts,
)
from fieldcast.pipeline.live.monitoring.plumes import PlacesPart, places_part
from fieldcast.pipeline.live.monitoring.status import Status, age_text, headline
from fieldcast.pipeline.live.outcomes import ExitCode
from fieldcast.pipeline.live.places.issue import has_places, open_places

MARKS = {  # in the strip of cycles, so that it can be read without colours; others have none
    State.DEGRADED: "~",
    State.SKIPPED: "–",
    State.FAILED: "×",
    State.DUE: "…",
    State.RUNNING: "…",
}
VERDICTS = {
    ExitCode.DONE: "On time",
    ExitCode.ALARM: "Alarm",
    ExitCode.DAMAGED: "Damaged",
    ExitCode.LATE: "Late",
}


def write_page(status: Status, folder: Path, path: Path) -> None:
    """Write the status of a live folder as a page, in one step."""
    environment = Environment(
        loader=PackageLoader("fieldcast.pipeline.live.monitoring", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    picture, error = _newest_animation(status, folder)
    places = None if error else _newest_places(status, folder)
    charts = [error_chart(scores) for scores in status.scores]
    charts.append(ratio_chart(status.verified, status.drift, status.now))
    charts += [chart for scores in status.scores for chart in reliability_charts(scores)]
    page = environment.get_template("status.html.j2").render(
        status=status,
        verdict=VERDICTS[status.exit_code()],
        headline=headline(status),
        animation=picture,
        error=error,
        places=places,
        charts=[chart for chart in charts if chart is not None],
        age=age_text(status),
        readable=readable,
        readable_units=readable_units,
        remark=remark,
        marks=MARKS,
    )
    replace_durable(path, page.encode())


def remark(row: Cycle) -> str:
    """Return the words beside a cycle's state: quality and reason."""
    quality = "" if row.quality == "good" else readable(row.quality)
    return ": ".join(words for words in (quality, row.reason) if words)


def _newest_animation(status: Status, folder: Path) -> tuple[dict[str, str] | None, str]:
    """Return the newest forecast as an image, and the reason where it cannot be shown."""
    if status.newest is None:
        return None, ""
    path = path_of(folder, status.newest.init_time, status.newest.revision)
    try:
        publish.check(path, status.newest.manifest_sha256)
        return _animated(path, status.newest.manifest_sha256), ""
    except (DamagedError, OSError) as error:
        return None, str(error)


def _newest_places(status: Status, folder: Path) -> PlacesPart | None:
    """Return the places of the newest forecast, whose bytes have been checked; None where it has none."""
    if status.newest is None:
        return None
    path = path_of(folder, status.newest.init_time, status.newest.revision)
    return places_part(open_places(path), status.place_scores) if has_places(path) else None


@lru_cache(maxsize=1)
def _animated(path: Path, _manifest_sha256: str) -> dict[str, str]:  # drawn once for all pages with this forecast
    with store.open_forecasts(path) as forecast:
        frames = animation(forecast)
        name, last = readable(field_names(forecast)[0]), lead_minutes(forecast)[-1]
    ahead = f"{last} min" if last < 180 else f"{last / 60:g} h"
    return {
        "moving": animation_address(frames),
        "still": animation_address(frames[-1:]),
        "field": name,
        "last": ahead,
    }
