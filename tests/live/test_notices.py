"""Notices of changes: one each, whatever becomes of webhook, command and processes, and no secret in what is kept."""

import json
import logging
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import yaml

from fieldcast.pipeline import config
from fieldcast.pipeline.config import Notify
from fieldcast.pipeline.errors import InputError, redacted
from fieldcast.pipeline.live import waking
from fieldcast.pipeline.live.archive.durable import FAILPOINT
from fieldcast.pipeline.live.archive.ledger import LEDGER
from fieldcast.pipeline.live.clock import iso
from fieldcast.pipeline.live.feed.store import LiveObservations
from fieldcast.pipeline.live.monitoring import notify
from fieldcast.pipeline.live.monitoring.notices import NOTICES, Notices
from fieldcast.pipeline.live.pending import run_pending
from tests.conftest import merged
from tests.live.clocks import SimulatedClock
from tests.live.contexts import PARAMS, START, minutes, params, write_reference

TOKEN = "T0K3N-of-a-chat"  # noqa: S105


class Chat:
    """A webhook that keeps what it gets, and can be made to refuse, redirect or hang."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.status = 200
        self.open = Event()
        self.open.set()
        chat = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                chat.open.wait(20)
                if chat.status == 200:
                    assert self.headers["Content-Type"] == "application/json"
                    chat.got.append(json.loads(body))
                self.send_response(chat.status)
                self.send_header("Location", self.path)
                self.end_headers()

            def do_GET(self) -> None:
                chat.got.append({"event": "a redirect was followed"})

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/services/{TOKEN}?key={TOKEN}"
        self._thread = Thread(target=self._http.serve_forever, args=[0.01])
        self._thread.start()

    def events(self) -> list[str]:
        return [content["event"] for content in self.got]

    def close(self) -> None:
        self.open.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def chat() -> Iterator[Chat]:
    running = Chat()
    yield running
    running.close()


class Schedule:
    """A live folder whose wakings tell the chat, and whose feed can lack frames."""

    def __init__(self, folder: Path, notify: dict[str, Any], changes: dict[str, Any] | None = None) -> None:
        late_data = {"deadline_minutes": 0, "max_missing_frames": 1, "fallback": "persistence"}
        self.params = params({"notify": notify, "late_data": late_data, **(changes or {})})
        self.folder, self.clock = folder / "live", SimulatedClock(START)

    def wake(self, after_minutes: float = 5) -> None:
        self.clock.sleep(60 * after_minutes)
        run_pending(self.params, self.folder, self.clock)


@pytest.fixture
def project(tmp_path: Path, tracker: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project with a checkpoint and an empty tracker, as working directory."""
    write_reference(tmp_path / "checkpoint")
    (tmp_path / "mlflow.db").write_bytes(tracker.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture
def schedule(project: Path, chat: Chat) -> Schedule:
    return Schedule(project, {"webhook": chat.url})


@pytest.fixture
def gaps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list: while a number is in it, histories lack the frame so many steps before their init time."""
    hidden: list[int] = []
    whole = LiveObservations.frames

    def frames(self: LiveObservations, times: list[Any]) -> dict[Any, Any]:
        missing = {times[-1 - step] for step in hidden if len(times) == 3}
        return {time: frame for time, frame in whole(self, times).items() if time not in missing}

    monkeypatch.setattr(LiveObservations, "frames", frames)
    return hidden


def test_each_change_is_told_once(schedule: Schedule, chat: Chat, gaps: list[int]) -> None:
    schedule.wake()
    schedule.wake()
    assert chat.got == []
    gaps.append(1)
    for _ in range(3):
        schedule.wake()
    began = schedule.clock.now() - minutes(10)
    gaps.clear()
    for _ in range(3):
        schedule.wake()
    assert chat.events() == ["degraded", "recovered"]
    first, second = chat.got
    assert first == {
        "number": 1,
        "project": "small",
        "event": "degraded",
        "state": "degraded",
        "since": iso(began),
        "at": iso(began),
        "detail": "1 of 3 frames of its history are missing",
        "text": "small: degraded: 1 of 3 frames of its history are missing",
    }
    assert second["text"] == f"small: no longer degraded, as it was since {iso(began)}"
    assert (second["number"], second["at"]) == (2, iso(began + minutes(15)))


def test_a_look_that_fails_is_told_and_the_end_of_it(schedule: Schedule, chat: Chat) -> None:
    schedule.wake()
    weights = next((Path("checkpoint")).glob("manifest.json"))
    whole = weights.read_bytes()
    weights.write_bytes(whole.replace(b"sha256", b"sha255", 1))
    for _ in range(3):
        with pytest.raises(Exception, match=r"manifest[.]json"):
            schedule.wake(1)
    weights.write_bytes(whole)
    schedule.wake()
    assert chat.events() == ["failed", "recovered"]
    assert "manifest.json" in chat.got[0]["text"]


def test_a_damaged_ledger_is_told_and_ends_no_other_state(schedule: Schedule, chat: Chat, gaps: list[int]) -> None:
    gaps.append(1)
    schedule.wake()
    ledger = schedule.folder / LEDGER
    whole = ledger.read_bytes()
    ledger.write_bytes(b"no database at all" * 100)
    with pytest.raises(Exception, match=r"ledger[.]sqlite"):
        schedule.wake()
    assert chat.events() == ["degraded", "failed"]
    ledger.write_bytes(whole)
    gaps.clear()
    schedule.wake()
    assert sorted((one["event"], one["state"]) for one in chat.got[2:]) == [
        ("recovered", "degraded"),
        ("recovered", "failed"),
    ]


def test_forecasts_that_do_not_come_are_told(schedule: Schedule, chat: Chat, gaps: list[int]) -> None:
    schedule.wake()
    gaps.extend([0, 1, 2])  # no frame at all: skipped
    for _ in range(4):
        schedule.wake()
    assert chat.events() == ["late"]
    assert chat.got[0]["detail"].startswith("no forecast from the last 3 cycles")


def test_states_that_are_not_wished_for_are_not_told(project: Path, chat: Chat, gaps: list[int]) -> None:
    schedule = Schedule(project, {"webhook": chat.url, "states": ["failed", "late"]})
    gaps.append(1)
    schedule.wake()
    assert chat.got == []


def test_what_is_not_taken_waits_longer_each_time_and_arrives_in_order(
    schedule: Schedule, chat: Chat, gaps: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    chat.status = 503
    gaps.append(1)
    schedule.wake()
    gaps.clear()
    schedule.wake(1)
    schedule.wake()
    assert chat.got == []
    assert "live.notify.webhook does not take a notice: it answers 503; tried again at" in caplog.text
    with Notices(schedule.folder / NOTICES, "read") as notices:
        now = schedule.clock.now()
        assert len(notices.waiting("webhook")) == 2
        waits = [minute for minute in range(70) if notices.due(now + minutes(minute))]
    assert waits[0] == 4  # the third wait, after 1 and 2 minutes
    chat.status = 200
    schedule.wake(3)
    assert chat.got == []  # not yet
    schedule.wake(2)
    assert chat.events() == ["degraded", "recovered"]
    schedule.wake()
    assert len(chat.got) == 2


def test_waits_are_an_hour_at_most_and_old_news_are_forgotten(tmp_path: Path) -> None:
    with Notices(tmp_path / NOTICES, "write") as notices:
        notices.change({"late": "x"}, START, ["webhook"], "small")
        waits = [notices.put_off("webhook", START) - START for _ in range(9)]
        assert waits == [minutes(wait) for wait in (1, 2, 4, 8, 16, 32, 60, 60, 60)]
        notices.put_off("webhook", START + timedelta(hours=23))
        assert len(notices.waiting("webhook")) == 1
        notices.put_off("webhook", START + timedelta(hours=25))
        assert notices.waiting("webhook") == []


def test_a_notice_whose_sender_is_killed_comes_again_with_its_number(
    schedule: Schedule, chat: Chat, gaps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    gaps.append(1)
    monkeypatch.setenv(FAILPOINT, "notice_sent:raise")
    schedule.wake()
    assert chat.events() == ["degraded"]
    monkeypatch.delenv(FAILPOINT)
    schedule.wake()
    assert [(one["event"], one["number"]) for one in chat.got] == [("degraded", 1)] * 2
    schedule.wake()
    assert len(chat.got) == 2


def test_a_webhook_that_hangs_delays_no_cycle_of_a_resident_process(
    schedule: Schedule, chat: Chat, gaps: list[int]
) -> None:
    schedule.wake()
    chat.open.clear()
    gaps.append(1)
    schedule.clock.sleep(300)
    before = time.monotonic()
    for _ in range(3):
        run_pending(schedule.params, schedule.folder, schedule.clock, resident=True)
        schedule.clock.sleep(300)
    assert time.monotonic() - before < notify.WEBHOOK_SECONDS
    chat.open.set()
    end = time.monotonic() + 20
    while not chat.got and time.monotonic() < end:
        time.sleep(0.02)
    assert chat.events() == ["degraded"]  # the lock lets one process send


@pytest.mark.parametrize("status", [301, 302, 307, 404, 500])
def test_only_2xx_is_taken_and_no_redirect_is_followed(chat: Chat, status: int) -> None:
    chat.status = status
    with pytest.raises(notify.NotTakenError, match=f"does not take a notice: it answers {status}$"):
        notify.channels_of(Notify(webhook=chat.url))["webhook"]({})
    assert chat.got == []


def test_no_secret_of_the_address_is_logged_or_kept(
    project: Path, chat: Chat, gaps: list[int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIELDCAST_HOOK", chat.url)
    gaps.append(1)
    for place, webhook in (("a", chat.url), ("b", "env:FIELDCAST_HOOK"), ("c", "http://127.0.0.1:1/" + TOKEN)):
        with caplog.at_level(logging.DEBUG):
            Schedule(project / place, {"webhook": webhook}).wake()
    assert chat.events() == ["degraded"] * 2
    assert "does not take a notice" in caplog.text
    assert TOKEN not in caplog.text
    assert not [path for path in project.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert TOKEN not in redacted(f"POST {chat.url} failed")


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"webhook": f"ftp://example.org/{TOKEN}"}, "webhook is 'ftp://example.org/***': expected an address"),
        ({"webhook": "env:"}, "live.notify.webhook is 'env:': expected an address"),
        ({"states": ["late", "late"]}, "one is there twice"),
        ({"states": ["angry"]}, "live.notify.states"),
        ({"command": "mail ops"}, "live.notify.command"),
    ],
)
def test_wrong_settings_are_refused_without_a_secret(tmp_path: Path, section: dict[str, Any], words: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(merged(PARAMS, {"live": {"notify": section}})))
    with pytest.raises(InputError) as caught:
        config.read(path)
    assert words in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_a_channel_that_cannot_work_is_named_before_a_service_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FIELDCAST_HOOK", raising=False)
    with pytest.raises(InputError, match="environment variable FIELDCAST_HOOK is not set"):
        notify.check(Notify(webhook="env:FIELDCAST_HOOK"))
    monkeypatch.setenv("FIELDCAST_HOOK", "chat.example.org")
    with pytest.raises(InputError, match="FIELDCAST_HOOK has no http or https address"):
        notify.check(Notify(webhook="env:FIELDCAST_HOOK"))
    with pytest.raises(InputError, match=r"live[.]notify[.]command is 'no-such-program': no such command"):
        notify.check(Notify(command=("no-such-program",)))
    notify.check(Notify(webhook="https://example.org", command=(sys.executable,)))


def test_a_command_gets_json_on_its_standard_input(project: Path, gaps: list[int]) -> None:
    code = "import sys, pathlib; pathlib.Path('told').open('a').write(sys.stdin.read())"
    schedule = Schedule(project, {"command": [sys.executable, "-c", code]})
    gaps.append(1)
    schedule.wake()
    schedule.wake()
    gaps.clear()
    schedule.wake()
    told = [json.loads(line) for line in (project / "told").read_text().splitlines()]
    assert [one["event"] for one in told] == ["degraded", "recovered"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((sys.executable, "-c", "raise SystemExit(3)"), "ended with 3"),
        (("no-such-program",), "cannot be started: No such file"),
        (("sh", "-c", "sleep 60 & sleep 60"), "has not ended after 0.3 s"),
    ],
)
def test_a_command_that_fails_has_not_taken_it(
    monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], words: str
) -> None:
    monkeypatch.setattr(notify, "COMMAND_SECONDS", 0.3)
    before = time.monotonic()
    with pytest.raises(notify.NotTakenError, match=words):
        notify.channels_of(Notify(command=command))["command"]({"text": "x" * 100_000})
    assert time.monotonic() - before < 20


@pytest.mark.parametrize("damage", [b"", b"no database at all" * 100, None])
def test_damaged_notices_are_begun_anew(schedule: Schedule, chat: Chat, gaps: list[int], damage: bytes | None) -> None:
    gaps.append(1)
    schedule.wake()
    path = schedule.folder / NOTICES
    other_time = path.read_bytes().replace(b"2024-06-01T06:05:00Z", b"2024-06-01T06:05:01Z")
    path.write_bytes(other_time if damage is None else damage)
    schedule.wake()
    assert chat.events() == ["degraded"] * 2  # told once more rather than not at all
    schedule.wake()
    assert len(chat.got) == 2


def test_without_a_channel_nothing_is_kept(project: Path, chat: Chat, gaps: list[int]) -> None:
    gaps.append(1)
    Schedule(project, {"webhook": chat.url}).wake()
    assert (project / "live" / NOTICES).is_file()
    Schedule(project, {}).wake(10)
    assert not (project / "live" / NOTICES).exists()


def test_a_notice_that_is_to_be_sent_ends_a_rest(schedule: Schedule, chat: Chat, gaps: list[int]) -> None:
    chat.status = 503
    gaps.append(1)

    def wake(seconds: float) -> None:
        schedule.clock.sleep(seconds)
        waking.wake(lambda: schedule.params, schedule.folder, schedule.clock, "a key")

    wake(0)
    chat.status = 200
    wake(30)
    assert chat.got == []
    wake(30)
    assert chat.events() == ["degraded"]


def test_a_test_shows_whether_channels_work(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimulatedClock(START)
    with pytest.raises(InputError, match=r"live[.]notify is empty"):
        notify.send_test(params(), clock)
    both = params({"notify": {"webhook": chat.url, "command": [sys.executable, "-c", "raise SystemExit(4)"]}})
    assert notify.send_test(both, clock) == {"webhook": "", "command": "live.notify.command ended with 4"}
    assert chat.got[0]["text"] == "small: test: this is a test"
