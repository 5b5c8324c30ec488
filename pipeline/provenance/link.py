"""A link of the chain: it holds, it is broken, or it can't be checked here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from fieldcast.pipeline.errors import BusyError, TrackerError, UserError


class State(StrEnum):
    """The state of a link."""

    WHOLE = "whole"
    BROKEN = "broken"
    UNCHECKED = "unchecked"


@dataclass(frozen=True)
class Link:
    """A link, and in words what it says, what is wrong with it, or why it can't be checked."""

    name: str
    state: State
    says: str


class BrokenError(Exception):
    """Two ends of a link that do not fit: the message says which."""


class UncheckedError(Exception):
    """A link that can't be checked here: the message says why, and what would help."""


def checked(name: str, check: Callable[[], str]) -> Link:
    """Return the link that `check` looks at: what it returns, or the error that it raises."""
    try:
        return Link(name, State.WHOLE, check())
    except (UncheckedError, TrackerError, BusyError) as error:
        return Link(name, State.UNCHECKED, str(error))
    except (BrokenError, UserError) as error:
        return Link(name, State.BROKEN, str(error))
