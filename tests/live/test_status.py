"""The status of a small context that ran for an hour and a half, and of what can go wrong with it."""

import base64
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import xarray as xr
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from fieldcast.pipeline.datasets.manifest import MANIFEST
from fieldcast.pipeline.datasets.store import directory_digest
from fieldcast.pipeline.live import cycle
from fieldcast.pipeline.live.archive.ledger import LEDGER, Cycle, Ledger, State, Verification
from fieldcast.pipeline.live.archive.publish import CATALOGUE, path_of
from fieldcast.pipeline.live.clock import iso, stamp
from fieldcast.pipeline.live.monitoring import charts
from fieldcast.pipeline.live.monitoring.metrics import write_metrics
from fieldcast.pipeline.live.monitoring.page import write_page
from fieldcast.pipeline.live.monitoring.status import Status, age_text, headline, read_status, table
from fieldcast.pipeline.live.monitoring.verification import scores_of
from fieldcast.pipeline.live.outcomes import ExitCode
from tests.live.clocks import SimulatedClock
from tests.live.contexts import START, live_context, minutes, params

CYCLES = 17
END = START + minutes(5 * (CYCLES - 1))  # the last init time
NOW = END + minutes(1)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a live folder with forecasts of 17 init times; tests that change it work on copies."""
    context = live_context(tmp_path_factory.mktemp("served"))
    for _ in range(CYCLES):
        cycle.run(context)
        context.clock.sleep(300)
    return context.folder


@pytest.fixture
def live(served: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(served, tmp_path / "live"))


def seen(folder: Path, now: datetime = NOW, changes: dict[str, Any] | None = None, cycles: int = 48) -> Status:
    return read_status(params(changes), folder, SimulatedClock(now), cycles)


def write(folder: Path, *rows: Cycle, at: datetime = END) -> None:
    """Put rows into the ledger, as a cycle does."""
    with Ledger(folder / LEDGER) as ledger:
        ledger.take_token("test")
        with ledger.writing(fenced=True):
            for row in rows:
                ledger.put(row, str(row.state), at)


def planned(init_time: datetime, state: State, reason: str = "") -> Cycle:
    return Cycle(init_time, state=state, due_at=init_time, deadline_at=init_time + minutes(10), reason=reason)


def flip(folder: Path, init_time: datetime) -> Path:
    """Change one bit of a field of a published forecast and return the file."""
    file = next(it for it in (path_of(folder, init_time) / "rain_rate" / "c").rglob("*") if it.is_file())
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    return file


def test_before_the_first_cycle_it_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "live"
    found = seen(folder)
    assert not folder.exists()
    assert found.late == [f"nothing has been published in {folder} yet: fieldcast cycle makes the first forecast"]
    assert found.exit_code() is ExitCode.LATE
    assert headline(found) == "no forecast yet; 0 cycles in 24 h"
    assert table(found).row_count == 0
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["newest"] is None
    folder.mkdir()
    write_page(found, folder, folder / "status.html")
    assert "nothing has been published" in (folder / "status.html").read_text()


def test_a_schedule_that_keeps_time(served: Path) -> None:
    before = directory_digest(served)
    found = seen(served)
    assert found.exit_code() is ExitCode.DONE
    assert (found.late, found.faults, found.alarms) == ([], [], [])
    assert headline(found) == (
        f"newest forecast {END:%H:%M}, 1 min old, by persistence; 17 cycles in 24 h: 17 published, 0 degraded, "
        "0 skipped, 0 failed"
    )
    assert found.every == timedelta(minutes=5)
    assert [row.init_time for row in found.rows] == [START + minutes(5 * i) for i in range(CYCLES)]
    assert len(found.verified) == CYCLES - 4  # the truth of the last four is to come
    assert found.pending == 2 * CYCLES - 4  # cycles and scores: nobody told the tracker
    assert found.model_share is not None
    assert 0 < found.model_share < 1
    assert directory_digest(served) == before


def test_it_shows_as_many_cycles_as_asked_for(served: Path) -> None:
    assert [row.init_time for row in seen(served, cycles=3).rows] == [END - minutes(10), END - minutes(5), END]


def test_the_day_has_24_hours(served: Path) -> None:
    tomorrow = seen(served, START + timedelta(days=1) + minutes(5))
    assert sum(tomorrow.counts.values()) == CYCLES - 2  # the one of exactly a day ago is of the day before
    assert headline(tomorrow).startswith(f"newest forecast {END:%Y-%m-%d %H:%M}, 22 h 45 min old")


def test_json_has_everything(served: Path) -> None:
    facts = seen(served).as_dict()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["now"] == iso(NOW)
    assert facts["exit_code"] == 0
    assert facts["every_minutes"] == 5
    assert facts["newest"]["init_time"] == iso(END)
    assert facts["newest"]["state"] == "published"
    assert facts["newest_age_seconds"] == 60
    assert facts["cycles_in_24_hours"]["published"] == len(facts["cycles"]) == CYCLES
    assert facts["cycles"][0]["timings"]["model"] > 0
    assert facts["scores"][0]["rmse_ratio"] == pytest.approx(1)  # it is persistence
    assert facts["scores"][0]["lead_minutes"] == [5, 10, 15, 20]
    assert facts["scores_by_day"] == {
        f"{START:%Y-%m-%d}": [
            {name: facts["scores"][0][name] for name in (
                "field", "cycles", "rmse", "persistence_rmse", "rmse_ratio", "mean_error"
            )}
        ]
    }  # fmt: skip


def test_what_is_undefined_is_null() -> None:
    found = Status("small", NOW, params().live.drift, verified=[verified(START, [1.0], n=0.0)])
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["scores"][0]["rmse"] is None


def test_late_when_the_next_cycle_does_not_come(served: Path) -> None:
    until = END + minutes(5) + minutes(10) + minutes(5)  # the next, its deadline, and as long again as between cycles
    assert seen(served, until).exit_code() is ExitCode.DONE
    late = seen(served, until + timedelta(seconds=1))
    assert late.exit_code() is ExitCode.LATE
    assert late.late == [
        f"no cycle after {iso(END)}, expected the next one by {iso(until)}: does fieldcast serve or the timer run?"
    ]


def test_the_distance_of_cycles_is_the_one_that_is_set(served: Path) -> None:
    now = END + minutes(60)
    assert seen(served, now, {"every_minutes": 30}).exit_code() is ExitCode.DONE
    assert seen(served, now, {"every_minutes": 15}).exit_code() is ExitCode.LATE


def test_without_a_manifest_the_rows_tell_the_distance(live: Path) -> None:
    (path_of(live, END) / MANIFEST).unlink()
    assert seen(live).every == timedelta(minutes=5)


def test_late_when_the_newest_cycle_failed(live: Path) -> None:
    write(live, planned(END + minutes(5), State.FAILED, "RuntimeError: no"))
    found = seen(live, END + minutes(6))
    assert found.exit_code() is ExitCode.LATE
    assert found.late == [f"cycle {iso(END + minutes(5))} failed: RuntimeError: no"]
    assert found.events[-1]["event"] == "failed"
    assert found.newest is not None
    assert found.newest.init_time == END
    write(live, planned(END + minutes(10), State.SKIPPED))
    assert seen(live, END + minutes(11)).exit_code() is ExitCode.DONE


def test_late_when_a_cycle_does_not_end(live: Path) -> None:
    write(live, planned(END + minutes(5), State.DUE, "disk is full"), planned(END + minutes(10), State.RUNNING))
    assert seen(live, END + minutes(20)).late == []  # its deadline and as long again as between cycles
    first = f"cycle {iso(END + minutes(5))}"
    assert seen(live, END + minutes(21)).late == [f"{first} unfinished after the deadline (due: disk is full)"]
    assert seen(live, END + minutes(26)).late == [
        f"{first} and 1 more unfinished after the deadline (due: disk is full)"
    ]


def test_late_when_cycles_end_without_forecasts(live: Path) -> None:
    write(live, *(planned(END + minutes(5 * i), State.SKIPPED, "no frames") for i in (1, 2)))
    assert seen(live, END + minutes(12)).exit_code() is ExitCode.DONE
    write(live, planned(END + minutes(15), State.SKIPPED, "no frames"), planned(END + minutes(20), State.DUE))
    assert seen(live, END + minutes(21)).late == ["no forecast from the last 3 cycles: no frames"]


def test_late_when_the_clock_was_set_back(served: Path) -> None:
    (line,) = seen(served, START).late
    assert line.startswith(f"the clock shows {iso(START)}, ")
    assert "earlier than the last cycle's look at it" in line


def test_an_alarm_and_what_comes_before_it(live: Path) -> None:
    strict = {"drift": {"max_rmse_ratio": 0.5}}
    found = seen(live, changes=strict)
    assert found.exit_code() is ExitCode.ALARM
    assert found.alarms[0].startswith("RMSE of rain_rate is 1.00 times that of persistence over 13 cycles")
    flip(live, END)
    assert seen(live, changes=strict).exit_code() is ExitCode.DAMAGED
    assert seen(live, END + timedelta(hours=1), strict).exit_code() is ExitCode.LATE


def test_a_damaged_forecast_is_named_and_not_drawn(live: Path, tmp_path: Path) -> None:
    page = tmp_path / "status.html"
    write_page(seen(live), live, page)  # draws it while it is whole
    file = flip(live, END)
    found = seen(live)
    assert found.exit_code() is ExitCode.DAMAGED
    assert found.faults[0].startswith(f"{file}: ")
    assert f"fieldcast cycle --at {stamp(END)} --supersede" in found.faults[0]
    write_page(found, live, page)
    text = page.read_text()
    assert str(file) in text
    assert "It cannot be shown" in text
    assert "data:image/gif" not in text


def test_a_forecast_that_breaks_after_the_look_is_named_on_the_page(live: Path, tmp_path: Path) -> None:
    found = seen(live)
    shutil.rmtree(path_of(live, END))
    write_page(found, live, tmp_path / "status.html")
    assert f'<p class="error">{path_of(live, END) / MANIFEST}: cannot be read' in (tmp_path / "status.html").read_text()


@pytest.mark.parametrize(("change", "words"), [(None, "is missing"), ("{}", "cannot be read")])
def test_readers_need_the_catalogue(live: Path, change: str | None, words: str) -> None:
    (live / CATALOGUE).unlink()
    if change:
        (live / CATALOGUE).write_text(change)
    found = seen(live)
    assert found.exit_code() is ExitCode.DAMAGED
    assert str(live / CATALOGUE) in found.faults[0]
    assert words in found.faults[0]


def test_an_init_time_is_shown_once_as_readers_see_it(live: Path) -> None:
    with Ledger(live / LEDGER) as ledger:
        first = ledger.cycle(END)
    assert first is not None
    write(live, replace(first, revision=1, state=State.FAILED, reason="disk is full"))
    found = seen(live)
    assert len(found.rows) == CYCLES
    assert found.rows[-1] == first
    assert found.exit_code() is ExitCode.DONE
    write(live, replace(first, state=State.SUPERSEDED), replace(first, revision=1, quality="filled"))
    found = seen(live)
    assert [(row.init_time, row.revision) for row in found.rows[-2:]] == [(END - minutes(5), 0), (END, 1)]
    assert found.counts[State.PUBLISHED] == CYCLES
    assert found.newest == found.rows[-1]


def test_the_table_fits_a_terminal(live: Path) -> None:
    long = "CannotWriteError: the disk of data/live is full: free 64 MB there or lower live.retention.days"
    write(live, planned(END + minutes(5), State.FAILED, long))
    with Ledger(live / LEDGER) as ledger:
        last = ledger.cycle(END)
    assert last is not None
    degraded = replace(last, state=State.DEGRADED, model="video_transformer", quality="filled", n_input_missing=1)
    write(live, replace(degraded, reason="1 of 3 frames of its history are missing"))
    console = Console(width=80, color_system=None)
    with console.capture() as captured:
        console.print(table(seen(live, cycles=3)))
    lines = captured.get().splitlines()
    assert max(len(line) for line in lines) <= 80
    published, other, failed = lines[3:6]
    assert published.split()[:4] == f"{END - minutes(5):%m-%d %H:%M} published persistence".split()
    assert re.fullmatch(rf" {END:%m-%d %H:%M} +degraded +video transformer +filled +1 +\d\.\d ?", other)
    assert re.fullmatch(rf" {END + minutes(5):%m-%d %H:%M} +failed +CannotWriteError: .*… *", failed)


def test_metrics_are_prometheus_text(live: Path, tmp_path: Path) -> None:
    write(live, planned(END + minutes(5), State.SKIPPED))
    found = seen(live)
    path = tmp_path / "metrics.prom"
    write_metrics(found, path)
    assert [it.name for it in tmp_path.iterdir() if it.is_file()] == ["metrics.prom"]
    families = {it.name: it for it in text_string_to_metric_families(path.read_text())}
    assert all(name.startswith("fieldcast_") and it.type == "gauge" for name, it in families.items())
    values = {
        (sample.name.removeprefix("fieldcast_"), *sample.labels.values()): sample.value
        for it in families.values()
        for sample in it.samples
    }
    assert found.newest is not None
    assert {name: value for name, value in values.items() if name[0] not in ("cycle_seconds", "rmse_ratio")} == {
        ("last_look_timestamp_seconds",): NOW.timestamp(),
        ("newest_forecast_init_timestamp_seconds",): END.timestamp(),
        ("newest_forecast_age_seconds",): 60,
        ("late",): 0,
        ("damaged",): 0,
        ("alarm",): 0,
        ("tracker_pending",): 2 * CYCLES - 4,
        **{("cycles", str(state)): 0 for state in State},
        ("cycles", "published"): CYCLES,
        ("cycles", "skipped"): 1,
    }
    assert values["rmse_ratio", "rain_rate"] == pytest.approx(1)
    assert {name[1] for name in values if name[0] == "cycle_seconds"} == set(found.newest.timings)


def test_metrics_without_a_forecast_claim_nothing_of_it(tmp_path: Path) -> None:
    write_metrics(seen(tmp_path / "live"), tmp_path / "metrics.prom")
    text = (tmp_path / "metrics.prom").read_text()
    assert "fieldcast_late 1.0" in text
    assert not re.search(r"^fieldcast_(newest|cycle_seconds|rmse)", text, re.MULTILINE)


class Elements(HTMLParser):
    """All elements of a page with their attributes, and the tags that are not closed."""

    VOID = ("meta", "img", "source", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else(live: Path, tmp_path: Path) -> None:
    write(live, planned(END + minutes(5), State.SKIPPED, "<script>alert('&')</script>"))
    page = tmp_path / "status.html"
    write_page(seen(live), live, page)
    text = page.read_text()
    elements = Elements(text)
    assert not elements.open
    assert not re.search(r"https?:|url\(|@import|<script|<link", text)
    assert "&lt;script&gt;" in text
    images = [own for tag, own in elements.found if tag == "img"]
    assert images
    assert all(own["alt"] and str(own["src"]).startswith("data:image/") for own in images)
    assert all(str(own["srcset"]).startswith("data:image/") for tag, own in elements.found if tag == "source")
    assert ("meta", {"http-equiv": "refresh", "content": "60"}) in elements.found
    cells = [own for tag, own in elements.found if tag == "li" and own.get("title")]
    assert len(cells) == CYCLES + 1
    assert str(cells[0]["title"]).startswith(f"{START:%Y-%m-%d %H:%M} UTC: published, persistence")
    assert [own["class"] for own in cells[-2:]] == ["published", "skipped"]
    assert sum(str(own["src"]).startswith("data:image/png") for own in images) == 2  # charts


def test_the_page_says_how_things_are_and_of_when_it_is(served: Path, tmp_path: Path) -> None:
    page = tmp_path / "status.html"
    write_page(seen(served), served, page)
    text = page.read_text()
    assert '<p class="word">On time</p>' in text
    assert "As of <time" in text
    assert f"{NOW:%Y-%m-%d %H:%M:%S} UTC" in text
    assert f"Newest forecast {END:%H:%M}, 1 min old, by persistence" in text
    write_page(seen(served, NOW + timedelta(hours=1)), served, page)
    assert '<p class="word">Late</p>' in page.read_text()
    assert list(tmp_path.glob(".*")) == []


def test_the_animation_has_every_lead(served: Path, tmp_path: Path) -> None:
    write_page(seen(served), served, tmp_path / "status.html")
    (content,) = re.findall(r'img src="data:image/gif;base64,([^"]+)"', (tmp_path / "status.html").read_text())
    frames = iio.imread(base64.b64decode(content), extension=".gif")
    assert frames.shape[0] == 4
    assert frames.shape[2] == 480


def dataset(leads: int, first_y: float = 0.0) -> xr.Dataset:
    step = np.arange(1, leads + 1) * np.timedelta64(30, "m").astype("timedelta64[ns]")
    init = np.array(["2020-12-31T23:00"], "datetime64[ns]")
    fields = np.random.default_rng(0).gamma(1, 3, (1, leads, 7, 11)).astype(np.float32)
    fields[..., 0, :3] = np.nan
    return xr.Dataset(
        {"rain_rate": (("init_time", "lead_time", "y", "x"), fields, {"units": "mm h-1"})},
        {
            "init_time": init,
            "lead_time": step,
            "valid_time": (("init_time", "lead_time"), init[:, None] + step),
            "y": np.arange(7) * 2.0 + first_y,
            "x": np.arange(11) * 2.0,
        },
    )


def test_long_forecasts_are_shown_in_twelve_pictures() -> None:
    assert len(charts.animation(dataset(30))) == charts.MOST_FRAMES
    assert len(charts.animation(dataset(5))) == 5


def test_a_single_lead_is_a_single_picture() -> None:
    address = charts.animation_address(charts.animation(dataset(1)))
    assert iio.imread(base64.b64decode(address.partition(",")[2]), extension=".gif").shape[0] == 1


def test_north_is_up_however_the_rows_run() -> None:
    upwards = dataset(2)
    first, second = charts.animation(upwards), charts.animation(upwards.isel(y=slice(None, None, -1)))
    np.testing.assert_array_equal(first[0], second[0])
    assert not np.array_equal(first[0], first[1])


def verified(init_time: datetime, squared: list[float], n: float = 1.0, still: float = 4.0) -> Verification:
    count = len(squared)

    def sums(values: list[float]) -> dict[str, list[Any]]:
        zeros: list[Any] = [[] for _ in range(count)]
        own = {name: [0.0] * count for name in ("error", "absolute_error", "observed", "observed_squared")}
        weights = {name: [n] * count for name in ("n", "weight")}
        return own | weights | {"squared_error": values, "hits": zeros, "misses": zeros, "false_alarms": zeros}

    leads = [60 * (i + 1) for i in range(count)]
    field: dict[str, Any] = {"units": "K", "lead_minutes": leads, "thresholds": []}
    field |= {"forecast": sums(squared), "persistence": sums([still] * count)}
    return Verification(init_time, 0, init_time, "convlstm", "1", {"t2m": field})


def test_the_chart_of_errors_starts_at_zero_and_holds_its_values() -> None:
    scores = scores_of([verified(START, [1.0, 4.0, 9.0])])[0]
    panel = charts.error_panel(scores)
    assert panel is not None
    assert (panel.title, panel.unit) == ("RMSE of t2m", "K")
    assert panel.values == {
        "persistence": {60: 2.0, 120: 2.0, 180: 2.0},
        "issued": {60: 1.0, 120: 2.0, 180: 3.0},
    }
    assert panel.limits is not None
    assert panel.limits[0] == 0 < 3 < panel.limits[1]
    chart = charts.error_chart(scores)
    assert chart is not None
    assert chart.description.startswith("RMSE of t2m, K, against lead time: 2.16 over all lead times as issued, 2 by")
    assert chart.keys == [("issued", "issued"), ("persistence", "persistence")]


def test_ratios_are_pooled_over_spans_of_the_days() -> None:
    drift = params().live.drift
    done = [verified(NOW - timedelta(hours=h), [1.0 if h > 24 else 9.0]) for h in (36, 35.9, 12)]
    ratios = charts.pooled_ratios(done, drift, NOW)
    assert list(ratios.values()) == [0.5, 1.5]
    assert list(ratios) == [NOW - timedelta(hours=35.95), NOW - timedelta(hours=12)]
    chart = charts.ratio_chart(done, drift, NOW)
    assert chart is not None
    assert chart.description.endswith(
        f"{NOW - timedelta(hours=35.95):%Y-%m-%d %H:%M} 0.50, {NOW - timedelta(hours=12):%Y-%m-%d %H:%M} 1.50"
    )
    assert chart.keys[1] == ("alarm", "alarm above 1")


def test_charts_of_nothing_are_left_out() -> None:
    nothing = [verified(START, [1.0], n=0.0)]
    assert charts.error_chart(scores_of(nothing)[0]) is None
    assert charts.ratio_chart(nothing, params().live.drift, NOW) is None
    assert charts.ratio_chart([], params().live.drift, NOW) is None


def test_perfect_forecasts_have_a_chart() -> None:
    chart = charts.error_chart(scores_of([verified(START, [0.0], still=0.0)])[0])
    assert chart is not None
    picture = iio.imread(base64.b64decode(chart.address.partition(",")[2]), extension=".png")
    assert picture.shape[0] > 300


def test_a_look_loads_no_model_tracker_or_plotting_library() -> None:
    code = "import sys, fieldcast.pipeline.live.monitoring.status, fieldcast.pipeline.live.monitoring.metrics; "
    code += "print({'torch', 'mlflow', 'lightning', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_ages_are_told_in_words() -> None:
    row = planned(START, State.PUBLISHED)
    for age, words in ((4, "4 min"), (185, "3 h 05 min"), (3 * 1440, "3 days")):
        found = Status("small", START + minutes(age), params().live.drift, newest=row)
        assert age_text(found) == words
