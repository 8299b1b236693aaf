"""Bradley–Terry strengths against other people's fits, and what its intervals promise."""

from __future__ import annotations

import choix
import numpy as np
import pytest
import statsmodels.api as sm

from sekkei.core.errors import UserError
from sekkei.judge.annotations import to_row
from sekkei.judge.bradley_terry import fit_strengths, rank, wins
from sekkei.judge.pairs import Pairs, to_pairs


def draw(seed: int, candidates: int = 6, questions: int = 40, shared: float = 0.0, ties: bool = False) -> Pairs:
    """Pairs of candidates of known strength 0.5 · c; `shared` is the spread of a question's own taste."""
    rng = np.random.default_rng(seed)
    rows = [(x, a, b) for x in range(questions) for a in range(candidates) for b in range(candidates) if a != b]
    question, first, second = np.array(rows).T
    taste = rng.normal(0, shared, size=(questions, candidates)) if shared else np.zeros((questions, candidates))
    gap = 0.5 * (first - second) + taste[question, first] - taste[question, second]
    outcome = (rng.random(len(rows)) < 1 / (1 + np.exp(-gap))).astype(float)
    if ties:
        outcome[rng.random(len(rows)) < 0.2] = 0.5
    return Pairs(
        judges=["j"],
        candidates=[f"model-{c}" for c in range(candidates)],
        questions=[str(x) for x in range(questions)],
        judge=np.zeros(len(rows), dtype=int),
        first=first,
        second=second,
        question=question,
        length_first=np.full(len(rows), 10.0),
        length_second=np.full(len(rows), 12.0),
        outcome=outcome,
    )


def won(pairs: Pairs) -> np.ndarray:
    return wins(pairs, pairs.first * len(pairs.candidates) + pairs.second, np.ones(len(pairs)))


def test_strengths_equal_choix() -> None:
    pairs = draw(0, questions=5)
    decided = [(a, b) if o == 1 else (b, a) for a, b, o in zip(pairs.first, pairs.second, pairs.outcome, strict=True)]
    expected = choix.ilsr_pairwise(len(pairs.candidates), decided, alpha=0.0)
    np.testing.assert_allclose(fit_strengths(won(pairs), ridge=1e-9), expected - expected.mean(), atol=1e-5)


def test_strengths_with_ties_equal_a_binomial_glm() -> None:
    pairs = draw(1, questions=5, ties=True)
    design = np.zeros((len(pairs), len(pairs.candidates)))
    design[np.arange(len(pairs)), pairs.first] = 1
    design[np.arange(len(pairs)), pairs.second] = -1
    fitted = sm.GLM(pairs.outcome, design[:, 1:], family=sm.families.Binomial()).fit()
    expected = np.concatenate([[0.0], fitted.params])
    np.testing.assert_allclose(fit_strengths(won(pairs), ridge=1e-9), expected - expected.mean(), atol=1e-6)


def test_ranking_is_found_and_intervals_respect_questions() -> None:
    """Where questions have a taste of their own, intervals must be wider than judgements counted one by one."""
    pairs = draw(2, questions=80, shared=1.0)
    found = rank(pairs, draws=200)
    assert [c.name for c in found.candidates] == [f"model-{c}" for c in (5, 4, 3, 2, 1, 0)]
    assert all(c.rank_low <= c.rank <= c.rank_high for c in found.candidates)
    alone = Pairs(
        **{**vars(pairs), "question": np.arange(len(pairs)), "questions": [str(n) for n in range(len(pairs))]}
    )
    naive = rank(alone, draws=200)
    ratio = np.mean([a.strength.se / b.strength.se for a, b in zip(found.candidates, naive.candidates, strict=True)])
    assert ratio > 1.3
    assert found.win[0, 5] == pytest.approx(1 - found.win[5, 0])
    assert found.candidates[0].elo.value > 1000 > found.candidates[-1].elo.value


def test_groups_that_never_met_are_refused_and_a_candidate_that_never_won_is_named() -> None:
    def row(a: str, b: str, preference: float) -> object:
        named = {"generator_1": a, "generator_2": b, "preference": preference}
        return to_row({"instruction": "q", "output_1": "x", "output_2": "y", **named})

    with pytest.raises(UserError, match="no comparison links a with c, d"):
        rank(to_pairs([row("a", "b", 1), row("c", "d", 2)]), draws=2)  # type: ignore[list-item]
    found = rank(to_pairs([row("a", "b", 1), row("b", "c", 1), row("c", "b", 1)]), draws=2)  # type: ignore[list-item]
    assert "a never lost" in found.notes[0]
    with pytest.raises(UserError, match="compared with itself"):
        to_pairs([row("a", "a", 1)])  # type: ignore[list-item]
