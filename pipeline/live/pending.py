"""A look for all that is due, with what follows it: records for MLflow, the numbers for monitors, the status page."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from fieldcast.pipeline.config import Params
from fieldcast.pipeline.errors import BusyError
from fieldcast.pipeline.live import cycle, post_cycle
from fieldcast.pipeline.live.archive.ledger import LEDGER
from fieldcast.pipeline.live.clock import Clock
from fieldcast.pipeline.live.context import LiveContext
from fieldcast.pipeline.live.monitoring.metrics import METRICS, write_metrics
from fieldcast.pipeline.live.monitoring.notify import tell
from fieldcast.pipeline.live.monitoring.status import read_status
from fieldcast.pipeline.live.outcomes import Outcome, Result, describe

log = logging.getLogger(__name__)
Work = Callable[[LiveContext], list[Outcome]]


def run_pending(
    params: Params, folder: Path, clock: Clock, work: Work = cycle.run, key: str = "", *, resident: bool = False
) -> list[Outcome]:
    """Do `work`, send records to MLflow, write metrics and page, tell people; return the outcomes of the cycles."""
    try:
        outcomes = _run_and_report(LiveContext(params, folder, clock, key=key), work)
    except Exception as error:
        if isinstance(error, BusyError) and (folder / LEDGER).is_file():
            # the clock is in doubt, or another process at work: monitors are told
            write_metrics(read_status(params, folder, clock), folder / METRICS)
        tell(params, folder, clock, None if isinstance(error, BusyError) else error, resident=resident)
        raise
    tell(params, folder, clock, resident=resident)
    return outcomes


def _run_and_report(context: LiveContext, work: Work) -> list[Outcome]:
    folder = context.folder
    outcomes = work(context)
    for outcome in outcomes:
        log.log(logging.WARNING if outcome.result is Result.FAILED else logging.INFO, "%s", describe(outcome))
    post_cycle.sync(context.params.track.experiment, folder, context.clock)
    status = read_status(context.params, folder, context.clock)
    write_metrics(status, folder / METRICS)
    if outcomes:
        from fieldcast.pipeline.live.monitoring.page import write_page  # plots take a second to import

        write_page(status, folder, folder / "status.html")
    return outcomes
