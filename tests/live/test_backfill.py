"""Past periods: every init time once, here or on a cluster."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from fieldcast.pipeline.config import Dask
from fieldcast.pipeline.datasets.store import directory_digest
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.live import cycle
from fieldcast.pipeline.live.archive.ledger import LEDGER, Ledger
from fieldcast.pipeline.live.archive.publish import open_forecasts
from fieldcast.pipeline.live.backfill import backfill
from fieldcast.pipeline.live.outcomes import Result
from tests.live.contexts import START, live_context, minutes


def test_every_init_time_of_a_period_once(tmp_path: Path) -> None:
    context = live_context(tmp_path, START + minutes(60))
    outcomes = backfill(context, START, START + minutes(15))
    assert [one.result for one in outcomes] == [Result.DONE] * 4
    assert {one.result for one in backfill(context, START - minutes(1), START + minutes(16))} == {Result.ALREADY_DONE}
    times = open_forecasts(context.folder)["init_time"].values
    assert np.array_equal(np.diff(times), np.full(3, np.timedelta64(5, "m")))


def test_an_old_period_is_verified_and_stays(tmp_path: Path) -> None:
    """Its truth is known already, and its forecasts are young though their init times are not."""
    context = live_context(tmp_path, START + timedelta(days=60))
    backfill(context, START, START + minutes(15))
    with Ledger(context.folder / LEDGER, read_only=True) as ledger:
        verified = ledger.verifications()
        assert len(verified) == 4
        assert all(min(one.sums["rain_rate"]["forecast"]["n"]) == 256 for one in verified)
    cycle.run(context)
    assert open_forecasts(context.folder).sizes["init_time"] == 5


def test_wrong_periods_are_refused(tmp_path: Path) -> None:
    context = live_context(tmp_path, START + minutes(60))
    with pytest.raises(InputError, match="swap them"):
        backfill(context, START, START - minutes(5))
    with pytest.raises(InputError, match="no init time"):
        backfill(context, START + minutes(1), START + minutes(2))
    with pytest.raises(InputError, match="future"):
        backfill(context, START, START + minutes(120))


def test_on_a_cluster_the_same_bytes(tmp_path: Path) -> None:
    from distributed import LocalCluster

    here = live_context(tmp_path / "here", START + minutes(60))
    backfill(here, START, START + minutes(20))
    there = live_context(tmp_path / "there", START + minutes(60))
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster:  # type: ignore[no-untyped-call]
        there.params = there.params.model_copy(update={"dask": Dask(scheduler=cluster.scheduler_address)})
        outcomes = backfill(there, START, START + minutes(20))
    assert [one.result for one in outcomes] == [Result.DONE] * 5
    assert directory_digest(there.folder / "forecasts") == directory_digest(here.folder / "forecasts")
