"""Changes of the schedule's state that people are told of: once each, kept on disk until they have been taken.

States and notices are in `notices.sqlite` beside the ledger, since a damaged ledger is a state too. A notice whose
sender is killed before that is noted is sent again, under the same number.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from fieldcast.pipeline.errors import UserError
from fieldcast.pipeline.live.archive.database import Database
from fieldcast.pipeline.live.clock import iso

NOTICES = "notices.sqlite"  # in the live folder
RECOVERED = "recovered"  # the event of a state that is over; that of one that begins has the state's name
FIRST_WAIT, LONGEST_WAIT = timedelta(minutes=1), timedelta(hours=1)  # before a channel is tried again
KEPT = timedelta(days=1)  # what its channel has not taken by then is old news
NUMBER = "number"  # the fact that holds the number of the newest notice

Content = dict[str, Any]


def notice(project: str, event: str, state: str, since: str, at: str, detail: str = "") -> Content:
    """Return a notice: facts for programs, and in `text` one line for people, which chats show."""
    words = f"{state}: {detail}" if event != RECOVERED else f"no longer {state}, as it was since {since}"
    facts = {"project": project, "event": event, "state": state, "since": since, "at": at, "detail": detail}
    return {**facts, "text": f"{project}: {words}"}


class Notices(Database):
    """States that have been told, and notices that wait to be taken by the channels `webhook` and `command`."""

    SCHEMA = """
CREATE TABLE states (state TEXT PRIMARY KEY, since TEXT, row_sha256 TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE waiting (
  number INTEGER, channel TEXT, at TEXT, content TEXT, row_sha256 TEXT NOT NULL, PRIMARY KEY (number, channel)) STRICT;
"""
    VERSION = 1
    REPAIR = "the next waking begins it anew, and tells states that last once more"

    def change(
        self,
        states: Mapping[str, str],
        now: datetime,
        channels: Collection[str],
        project: str,
        *,
        whole: bool = True,
    ) -> list[str]:
        """Enter the states of this moment, with reasons, and return the texts of notices of what changed.

        Without `whole` others may last as well. Notices wait for each of `channels`, and for no other.
        """
        at, texts = iso(now), []
        with self.transaction():
            before = {row[0]: row[1] for row in self._states()}
            changes = [(state, state, at, detail) for state, detail in states.items() if state not in before]
            if whole:
                changes += [(RECOVERED, state, since, "") for state, since in before.items() if state not in states]
            for event, state, since, detail in changes:
                if event == RECOVERED:
                    self._db.execute("DELETE FROM states WHERE state = ?", [state])
                else:
                    self.put_row("states", (state, since))
                content = notice(project, event, state, since, at, detail)
                self._enqueue(content, at, channels)
                texts.append(content["text"])
            marks = ", ".join("?" * len(channels))
            self._db.execute(f"DELETE FROM waiting WHERE channel NOT IN ({marks})", list(channels))  # noqa: S608
        return texts

    def due(self, now: datetime) -> list[str]:
        """Return the channels that are to be tried now, since notices wait for them."""
        channels = [row[0] for row in self.rows("SELECT DISTINCT channel FROM waiting ORDER BY channel")]
        return [channel for channel in channels if (self.fact(f"{channel} next") or "") <= iso(now)]

    def waiting(self, channel: str) -> list[tuple[int, Content]]:
        """Return number and content of the notices that wait for a channel, oldest first."""
        rows = self.rows("SELECT * FROM waiting WHERE channel = ? ORDER BY number", [channel])
        return [(row[0], json.loads(self.checked(row, f"notice {row[0]}")[3])) for row in rows]

    def taken(self, number: int, channel: str) -> None:
        """Forget a notice that its channel has taken."""
        with self.transaction():
            self._db.execute("DELETE FROM waiting WHERE number = ? AND channel = ?", [number, channel])
            self.set_fact(f"{channel} tries", "0")

    def put_off(self, channel: str, now: datetime) -> datetime:
        """Return the time of the next try of a channel that has not taken a notice, later each time."""
        with self.transaction():
            tries = int(self.fact(f"{channel} tries") or 0)
            until = now + min(FIRST_WAIT * (1 << min(tries, 10)), LONGEST_WAIT)
            self.set_fact(f"{channel} tries", str(tries + 1))
            self.set_fact(f"{channel} next", iso(until))
            self._db.execute("DELETE FROM waiting WHERE channel = ? AND at < ?", [channel, iso(now - KEPT)])
        return until

    def _states(self) -> list[tuple[Any, ...]]:
        rows = self.rows("SELECT * FROM states ORDER BY since, state")
        return [self.checked(row, f"state {row[0]}") for row in rows]

    def _enqueue(self, content: Content, at: str, channels: Collection[str]) -> None:
        number = int(self.fact(NUMBER) or 0) + 1
        self.set_fact(NUMBER, str(number))
        text = json.dumps({"number": number, **content})
        for channel in channels:
            self.put_row("waiting", (number, channel, at, text))


def is_due(folder: Path, now: datetime) -> bool:
    """Return whether a notice waits that is to be sent now."""
    if not (folder / NOTICES).is_file():
        return False
    try:
        with Notices(folder / NOTICES, "read") as notices:
            return bool(notices.due(now))
    except UserError:
        return True  # whoever sends them meets the same error
