"""A jury must not be worse than its best member, where a majority is."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import binomtest

from sekkei.core.errors import UserError
from sekkei.judge import jury
from sekkei.judge.simulate import courtroom

ANCHORS = 80


def significantly_worse(verdicts: np.ndarray, member: np.ndarray, labels: np.ndarray) -> bool:
    """McNemar's exact test, two-sided at 5%; an undecided verdict is wrong."""
    ours, theirs = (np.sign(v - 0.5) == np.sign(labels - 0.5) for v in (verdicts, member))
    gained, lost = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    return lost > gained and binomtest(lost, gained + lost).pvalue < 0.05


def trials(seeds: range) -> tuple[dict[str, int], dict[str, float]]:
    """How often each way to combine is significantly worse than the best member, and mean accuracies."""
    worse, right = dict.fromkeys(("majority", "mean", "calibrated"), 0), dict.fromkeys(("best", "calibrated"), 0.0)
    for seed in seeds:
        drawn = courtroom(seed)
        names = [str(j) for j in range(drawn.votes.shape[1])]
        learnt = jury.calibrate(drawn.votes[:ANCHORS], drawn.labels[:ANCHORS], names)
        votes, labels = drawn.votes[ANCHORS:], drawn.labels[ANCHORS:]
        members = (votes == labels[:, None]).mean(axis=0)
        best = votes[:, members.argmax()]  # the best on these very items: the hardest to match
        verdicts = {"majority": jury.majority(votes), "mean": jury.mean(votes), "calibrated": learnt.verdict(votes)}
        for way, found in verdicts.items():
            worse[way] += significantly_worse(found, best, labels)
        right["best"] += members.max() / len(seeds)
        right["calibrated"] += jury.accuracy(verdicts["calibrated"], labels) / len(seeds)
    return worse, right


def test_calibrated_jury_against_majority() -> None:
    worse, right = trials(range(40))
    assert worse["calibrated"] <= 4  # 5% of 40 are 2
    assert worse["majority"] > 30
    assert right["calibrated"] > right["best"] - 0.005


@pytest.mark.slow
def test_calibrated_jury_is_rarely_worse_than_its_best_member() -> None:
    worse, right = trials(range(200))
    assert worse["calibrated"] <= 10
    assert worse["majority"] >= 150
    assert right["calibrated"] > right["best"]


def test_weights_are_the_penalised_optimum() -> None:
    drawn = courtroom(3, items=100)
    x = jury.signed(drawn.votes)

    def loss(w: np.ndarray) -> float:
        logits = x @ w
        return float((np.logaddexp(0, logits) - drawn.labels * logits).sum() + 0.5 * 0.3 * (w @ w))

    expected = minimize(loss, np.zeros(6), bounds=[(0, None)] * 6, method="L-BFGS-B", tol=1e-12).x
    np.testing.assert_allclose(jury._fit(x, drawn.labels, 0.3), expected, atol=2e-3)


def test_majority_and_mean_with_ties_and_missing_votes() -> None:
    votes = np.array([[1.0, 1.0, 0.0], [0.5, 1.0, np.nan], [np.nan, np.nan, np.nan], [0.9, 0.2, 0.2]])
    np.testing.assert_allclose(jury.majority(votes), [1, 1, 0.5, 0])
    np.testing.assert_allclose(jury.mean(votes), [2 / 3, 0.75, 0.5, 1.3 / 3])
    assert jury.accuracy(np.array([0.9, 0.5, 0.2]), np.array([1.0, 1.0, 1.0])) == pytest.approx(0.5)


def test_bad_anchors_are_refused_in_one_line() -> None:
    votes, labels = np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([1.0, 0.0])
    with pytest.raises(UserError, match="anchors × judges"):
        jury.calibrate(votes, labels, ["a"])
    with pytest.raises(UserError, match="preferences in"):
        jury.calibrate(votes * 2, labels, ["a", "b"])
    with pytest.raises(UserError, match="all labels are the same"):
        jury.calibrate(votes, np.ones(2), ["a", "b"])
    assert "mostly chance" in jury.calibrate(votes, labels, ["a", "b"]).notes[0]
