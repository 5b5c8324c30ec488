"""Votes of members on events: counted by brute force, chosen by the critical success index."""

import numpy as np
import pytest

from fieldcast.pipeline.forecasting.decisions import LEAST_EVENTS, Decisions, VoteCounts, levels_of
from fieldcast.pipeline.verification.aggregation import Extras, frame_sums
from fieldcast.pipeline.verification.probabilistic import votes_at

NAN = np.nan


def spread_out(b: int = 3, m: int = 5, leads: int = 2, c: int = 1, y: int = 30, x: int = 31) -> tuple[np.ndarray, ...]:
    """Return members (b, m, lead, c, y, x) about a field that is observed with noise."""
    draws = np.random.default_rng(0)
    truth = draws.gamma(0.5, 2.0, size=(b, leads, c, y, x))
    members = truth[:, None] * draws.lognormal(-0.5, 0.8, size=(b, m, leads, c, y, x))
    return members.astype(np.float32), truth.astype(np.float32)


def csi(event: np.ndarray, observed: np.ndarray) -> float:
    return float((event & observed).sum() / (event | observed).sum())


def test_the_votes_chosen_have_the_highest_csi() -> None:
    members, observed = spread_out()
    members[0, 2, 1, 0, 3, :9] = NAN  # a cell without all members does not count
    observed[1, :, :, 5:9] = NAN
    counts = VoteCounts(np.array([[0.5, 1.0, 3.0]]), 5, 2)
    counts.add(members[:1], observed[:1])
    counts.add(members[1:], observed[1:])
    decisions = counts.decisions()
    for lead in range(2):
        known = np.isfinite(observed[:, lead, 0]) & np.isfinite(members[:, :, lead, 0]).all(axis=1)
        for k, level in enumerate((0.5, 1.0, 3.0)):
            votes = (members[:, :, lead, 0] >= level).sum(axis=1)[known]
            scores = [csi(votes >= least, observed[:, lead, 0][known] >= level) for least in range(1, 6)]
            assert decisions.votes[lead, 0, k] == np.argmax(scores) + 1


def test_a_level_of_too_few_events_has_its_neighbours_votes() -> None:
    members, observed = spread_out()
    rare = float(np.sort(observed[:, 0].ravel())[-LEAST_EVENTS // 2])
    counts = VoteCounts(np.array([[1.0, rare, 2 * rare]]), 5, 2)
    counts.add(members, observed)
    votes = counts.decisions().votes[0, 0]
    assert votes[1] == votes[2] == votes[0]
    nothing = VoteCounts(np.array([[1e6]]), 5, 2)
    nothing.add(members, observed)
    assert (nothing.decisions().votes == 3).all()  # half of five


def test_levels_go_from_light_to_heavy() -> None:
    _, observed = spread_out(c=2)
    observed[:, :, 1] = 0
    observed[:, :, 0, :3] = 0
    levels = levels_of([observed[:1], observed[1:]])
    assert levels.shape == (2, 11)
    assert (np.diff(levels[0]) > 0).all()
    wet = observed[:, :, 0][observed[:, :, 0] > 0]
    assert levels[0, 0] == pytest.approx(np.median(wet), rel=1e-3)
    assert (levels[1] == 0).all()


def test_decisions_come_back_from_the_arrays_of_a_checkpoint() -> None:
    decisions = Decisions(np.ones((1, 3), np.float32), np.full((4, 1, 3), 2, np.float32))
    back = Decisions.from_arrays({"weights": np.zeros(1), **decisions.arrays()})
    assert back is not None
    np.testing.assert_array_equal(back.votes, decisions.votes)
    assert Decisions.from_arrays({"weights": np.zeros(1)}) is None


def test_votes_between_levels_are_rounded_and_at_least_one() -> None:
    votes = votes_at(np.array([1.0, 3.0]), np.array([[4.0, 2.0], [1.0, 0.2]]), np.array([0.1, 2.0, 2.9, 9.0]))
    assert votes.tolist() == [[4, 3, 2, 2], [1, 1, 1, 1]]


def test_events_of_members_are_decided_by_their_votes() -> None:
    members, observed = spread_out(leads=3)
    fields, seen = members[:, :, :, 0].swapaxes(1, 2), observed[:, :, 0]  # (init, lead, member, y, x)
    votes = np.array([[1, 5], [2, 3], [4, 4]])
    thresholds = [1.0, 2.5]
    sums = frame_sums(fields, seen, np.isfinite(seen), thresholds, [(3, 3)], Extras(votes=votes, quantiles=True))
    for lead in range(3):
        for k, threshold in enumerate(thresholds):
            event = (fields[:, lead] >= threshold).sum(axis=1) >= votes[lead, k]
            hits = (event & (seen[:, lead] >= threshold)).sum(axis=(1, 2))
            np.testing.assert_array_equal(sums["hits"][:, lead, k], hits)
            np.testing.assert_array_equal(
                sums["hits"][:, lead, k] + sums["false_alarms"][:, lead, k], event.sum((1, 2))
            )
    mean = frame_sums(fields.mean(axis=2), seen, np.isfinite(seen), thresholds, [(3, 3)])
    np.testing.assert_allclose(sums["squared_error"], mean["squared_error"], rtol=1e-5)  # one value is still their mean
    assert (sums["fss_numerator"] != mean["fss_numerator"]).any()
