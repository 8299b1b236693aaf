"""Win rates: rows in any shape, the GLM against the truth of simulated contests, and intervals."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm

from sekkei.core.errors import UserError
from sekkei.judge.annotations import build_table, read_rows, to_row
from sekkei.judge.difficulty import lean
from sekkei.judge.simulate import BASELINE, contest
from sekkei.judge.winrate import WinRates, win_rates


def measured(rows: list[dict[str, Any]], baseline: str = BASELINE, draws: int = 2) -> WinRates:
    return win_rates(build_table([to_row(row) for row in rows], baseline), draws=draws)


def row(preference: float | None, **more: Any) -> dict[str, Any]:
    return {
        "instruction": "q",
        "output_1": "base",
        "output_2": "model",
        "generator_1": "b",
        "generator_2": "m",
        "preference": preference,
    } | more


def test_length_control_is_nearer_to_the_truth_than_the_raw_rate() -> None:
    raw, corrected = [], []
    for seed in range(6):
        drawn = contest(seed)
        found = {model.name: model for model in measured(drawn.rows()).models}
        for m, name in enumerate(drawn.models):
            raw.append(100 * (found[name].win_rate.value - drawn.true_rate[m]))
            corrected.append(100 * (found[name].length_controlled.value - drawn.true_rate[m]))
    rms = [float(np.sqrt(np.mean(np.square(errors)))) for errors in (raw, corrected)]
    assert rms[1] < 0.5 * rms[0]
    assert abs(np.mean(corrected)) < 1.0


def test_one_model_alone_is_also_corrected() -> None:
    raw, corrected = [], []
    for seed in range(12):
        drawn = contest(100 + seed, models=1, items=800)
        model = measured(drawn.rows()).models[0]
        raw.append(model.win_rate.value - drawn.true_rate[0])
        corrected.append(model.length_controlled.value - drawn.true_rate[0])
    assert np.abs(corrected).mean() < 0.7 * np.abs(raw).mean()


@pytest.mark.slow
def test_intervals_hold_the_true_rate() -> None:
    inside = total = 0
    for seed in range(12):
        drawn = contest(200 + seed, models=8, items=200)
        found = {model.name: model for model in measured(drawn.rows(), draws=100).models}
        for m, name in enumerate(drawn.models):
            interval = found[name].length_controlled
            inside += interval.low <= drawn.true_rate[m] <= interval.high
            total += 1
    assert 0.85 <= inside / total <= 1.0


def test_missing_rows_and_their_order_do_not_matter() -> None:
    """Rows are keyed by instruction: shuffled rows give the same figures, and missing ones hardly move the others."""
    drawn = contest(7, models=5, items=200)
    rows = drawn.rows()
    whole = measured(rows)
    random.Random(0).shuffle(rows)
    shuffled = measured(rows)
    by_name = {model.name: model for model in shuffled.models}
    for model in whole.models:
        assert by_name[model.name].win_rate.value == pytest.approx(model.win_rate.value, abs=1e-12)
        assert by_name[model.name].length_controlled.value == pytest.approx(model.length_controlled.value, abs=0.01)
    fewer = [r for r in drawn.rows() if not (r["generator_2"] == "model-00" and r["instruction"] < "instruction 11")]
    assert 5 < len(rows) - len(fewer) < 20
    by_name = {model.name: model for model in measured(fewer).models}
    for model in whole.models:
        gap = abs(by_name[model.name].length_controlled.value - model.length_controlled.value)
        assert gap < (0.06 if model.name == "model-00" else 0.01)


def test_both_orders_ties_copies_and_unreadable_rows() -> None:
    rows = [
        row(2.0),
        row(2.0),  # an exact copy counts once
        row(1.0, output_1="model", output_2="base", generator_1="m", generator_2="b"),  # the other order
        row(1.5, instruction="tie"),
        row(0, instruction="old tie"),
        row(None, instruction="unread"),
        row(1.25, instruction="soft"),
    ]
    found = measured(rows, "b")
    (model,) = found.models
    assert model.win_rate.value == pytest.approx((1 + 0.5 + 0.5 + 0.25) / 4)
    assert (model.wins, model.losses, model.ties) == (1, 1, 2)
    assert model.discrete == pytest.approx(0.5)
    assert (model.counts.rows, model.counts.copies, model.counts.repeats, model.counts.unparsed) == (7, 1, 1, 1)
    assert model.counts.as_first == 1
    assert any("unparsed rows, not scored: m 1" in note for note in found.notes)
    json.dumps(found.as_json(), allow_nan=False)


def test_rows_that_cannot_be_right_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="preference"):
        to_row(row(3.0))
    with pytest.raises(UserError, match="preference"):
        to_row(row("better"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="output_1 is missing"):
        to_row({"instruction": "q", "output_2": "x", "preference": 1})
    with pytest.raises(UserError, match="no row has it; names in the file: b, m"):
        measured([row(1.0)], "gpt")
    with pytest.raises(UserError, match="generator_2 is missing"):
        measured([row(1.0, generator_2=None)], "b")
    with pytest.raises(UserError, match="could be read"):
        measured([row(None)], "b")
    broken = tmp_path / "broken.json"
    broken.write_text('[{"instruction": ')
    with pytest.raises(UserError, match="neither a JSON list nor JSON lines"):
        read_rows([broken])


def test_rows_that_may_be_anybodys_are_left_out_and_said() -> None:
    """Without generator_1 a row whose generator_2 is the baseline says nothing, unless both texts are its own."""
    rows = [row(2.0, instruction=f"q{n}", generator_1=None) for n in range(4)]
    rows += [row(1.0, instruction="q0", generator_1=None, generator_2="b", output_1="whose?", output_2="base")]
    rows += [row(1.5, instruction="q1", generator_1=None, generator_2="b", output_2="base")]
    found = measured(rows, "b")
    assert {model.name: model.wins + model.losses + model.ties for model in found.models} == {"m": 4, "b": 1}
    assert found.as_json()["rows_without_baseline"] == 0
    assert any("1 rows name b as generator_2 and nobody as generator_1" in note for note in found.notes)
    with pytest.raises(UserError, match="nobody as generator_1"):
        measured(rows[4:5], "b")


def test_a_model_that_always_wins_has_finite_figures() -> None:
    rows = [row(2.0, instruction=f"q{n}", output_2="long answer " * (n % 5)) for n in range(40)]
    (model,) = measured(rows, "b", draws=20).models
    assert model.win_rate.value == 1.0
    assert 0.8 < model.length_controlled.value < 1.0
    assert np.isfinite(model.length_controlled.se)


def test_lean_is_the_papers_term() -> None:
    length, base = np.array([[10.0, 20.0, np.nan, 60.0]]), np.array([[30.0, 10.0, 10.0, 20.0]])
    gap = np.array([-20.0, 10.0, 40.0])
    expected = np.tanh(gap / gap.std(ddof=1))
    np.testing.assert_allclose(lean(length, base)[0], [expected[0], expected[1], 0.0, expected[2]])


def test_raw_standard_error_is_that_of_a_mean() -> None:
    drawn = contest(3, models=2, items=300)
    found = measured(drawn.rows(), draws=400)
    for model in found.models:
        win = drawn.win[drawn.models.index(model.name)]
        expected = sm.stats.DescrStatsW(win).std_mean
        assert model.win_rate.se == pytest.approx(expected, rel=0.15)


def test_answers_of_equal_length_need_no_correction() -> None:
    rng = np.random.default_rng(0)
    rows = [
        row(1 + float(rng.random() < share), instruction=f"q{n}", output_2="base", generator_2=name)
        for name, share in (("weak", 0.2), ("strong", 0.7))
        for n in range(100)
    ]
    for model in measured(rows, "b").models:
        assert model.length_controlled.value == pytest.approx(model.win_rate.value, abs=0.02)
