"""The replay of pipeline schedules: its arithmetic by hand, and real schedules on real ranks against the textbook."""

from __future__ import annotations

import pytest

from sekkei.prove.gantt import Action, Case, Chart, bubble, charts, replay, textbook
from sekkei.report import pictures

CASE = Case(steps=2)


@pytest.fixture(scope="module")
def found() -> dict[str, Chart]:
    """1f1b is measured again, twice at most, where other work on the machine has drawn equal stages apart."""
    shown = {chart.schedule: chart for chart in charts(CASE, ["gpipe", "1f1b", "interleaved", "zero_bubble"])}
    for _ in range(2):
        if abs(shown["1f1b"].bubble - textbook(CASE.ranks, CASE.micro_batches)) < 0.03:
            break
        (shown["1f1b"],) = charts(CASE, ["1f1b"])
    return shown


def test_replay_by_hand() -> None:
    """Two stages, two micro-batches, F 1 and B 2: rank 0 idles from 2 to 4 (and 1 after 6 … 7), rank 1 at both ends."""
    first: list[Action] = [(0, "F", 0), (0, "F", 1), (0, "B", 0), (0, "B", 1)]
    second: list[Action] = [(1, "F", 0), (1, "B", 0), (1, "F", 1), (1, "B", 1)]
    times = {(stage, kind): 1.0 if kind == "F" else 2.0 for stage in (0, 1) for kind in "FB"}
    spans = replay([first, second], times)
    assert [(span.start, span.end) for span in spans[0]] == [(0, 1), (1, 2), (4, 6), (7, 9)]
    assert [(span.start, span.end) for span in spans[1]] == [(1, 2), (2, 4), (4, 5), (5, 7)]
    assert bubble(spans) == pytest.approx(1 - 12 / 18)
    assert bubble(spans) == pytest.approx(textbook(2, 2))


def test_weight_gradients_wait_for_input_gradients() -> None:
    times = {(0, "F"): 1.0, (0, "I"): 1.0, (0, "W"): 1.0}
    with pytest.raises(ValueError, match="wait for each other"):
        replay([[(0, "F", 0), (0, "W", 0), (0, "I", 0)]], times)


def test_orders_are_those_of_the_schedules(found: dict[str, Chart]) -> None:
    everything = range(CASE.micro_batches)
    for chart in found.values():
        for rank in chart.measured:
            for stage in {span.stage for span in rank}:
                forward = [s.micro_batch for s in rank if (s.stage, s.kind) == (stage, "F")]
                backward = [s.micro_batch for s in rank if s.stage == stage and s.kind in "BI"]
                assert sorted(forward) == sorted(backward) == list(everything)
    letters = {name: "".join(span.kind for span in chart.measured[0]) for name, chart in found.items()}
    assert letters["gpipe"] == "F" * 8 + "B" * 8
    assert letters["1f1b"] == "FFF" + "FB" * 5 + "BBB"
    assert letters["zero_bubble"].count("W") == letters["zero_bubble"].count("I") == 16


def test_ideal_bubbles(found: dict[str, Chart]) -> None:
    expected = textbook(CASE.ranks, CASE.micro_batches)
    assert expected == pytest.approx(3 / 11)
    for name in ("gpipe", "1f1b"):
        assert found[name].ideal_bubble == pytest.approx(expected)
    assert found["interleaved"].ideal_bubble == pytest.approx(3 / 19)  # (p - 1) / (2m + p - 1)
    assert found["zero_bubble"].ideal_bubble < 0.06


def test_measured_bubbles(found: dict[str, Chart]) -> None:
    expected = textbook(CASE.ranks, CASE.micro_batches)
    assert abs(found["1f1b"].bubble - expected) < 0.03
    assert found["interleaved"].bubble < found["1f1b"].bubble - 0.03
    assert found["zero_bubble"].bubble < found["1f1b"].bubble - 0.03


def test_peak_activations(found: dict[str, Chart]) -> None:
    """1f1b holds p - rank micro-batches, gpipe all of them: the trade-off of the picture."""
    gpipe, one = found["gpipe"].peak_bytes, found["1f1b"].peak_bytes
    assert 0.4 < one[0] / gpipe[0] < 0.6  # 4 of 8
    assert one == sorted(one, reverse=True)
    assert one[3] < 0.2 * gpipe[3]  # 1 of 8
    assert max(one) < max(found["interleaved"].peak_bytes) < max(gpipe)
    assert max(one) < max(found["zero_bubble"].peak_bytes)


def test_the_picture_holds_every_action(found: dict[str, Chart]) -> None:
    drawn = [
        pictures.Gantt(
            c.schedule,
            *([[(s.start, s.end, s.kind, s.micro_batch) for s in rank] for rank in x] for x in (c.measured, c.ideal)),
            c.bubble,
            c.ideal_bubble,
            c.peak_bytes,
        )
        for c in found.values()
    ]
    text = pictures.page("Pipeline schedules", ["words"], pictures.schedules(drawn))
    actions = 2 * sum(len(rank) for chart in found.values() for rank in chart.measured)
    assert text.count("<rect") == actions + len(pictures.KINDS)
    assert f"measured: idle {found['1f1b'].bubble:.1%}" in text
    assert text.count("<circle") == 2 * len(found)
    assert len(text) < 200_000
