"""What programs and reward models know is filled in without a judge, and the rest says that it needs one."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from sekkei.cli import main
from sekkei.core.errors import UserError
from sekkei.judge.annotations import read_rows
from sekkei.judge.candidates import read_candidates
from sekkei.judge.command import Order, contrast, judged
from sekkei.judge.compare import compare
from sekkei.judge.radar import radar_svg
from sekkei.judge.rubric import Scored, load_rubric
from sekkei.judge.scorecard import figures, scorecard
from sekkei.llm import Message, Reply

RUBRIC = load_rubric()
KEYS = [criterion.key for criterion in RUBRIC.criteria]


class Lengths:
    """A reward model that likes long answers: half a point per word."""

    name = "first:reward"

    def score(self, answers: Sequence[tuple[Sequence[Message], Reply]]) -> list[float]:
        assert all(messages[-1]["role"] == "user" for messages, _ in answers)
        return [len(reply.text.split()) / 2 for _, reply in answers]


def file(folder: Path, name: str, words: Sequence[int], verified: Sequence[object] = ()) -> Path:
    rows = [{"instruction": f"question {n}?", "output": " ".join(["word"] * w)} for n, w in enumerate(words)]
    for row, found in zip(rows, verified):
        row["verified"] = found  # type: ignore[assignment]
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def scored(value: float) -> Scored:
    return Scored(scores=dict.fromkeys(KEYS, value), notes=dict.fromkeys(KEYS, ""), total=5 * value)


def test_programs_stand_in_place_of_judges(tmp_path: Path) -> None:
    (one,) = read_candidates([file(tmp_path, "m", [2, 2, 2], [{"accuracy": True}, {"accuracy": 0.5}, {}])])
    read = [(0, f"question {n}?", scored(2.0)) for n in range(3)] + [(1, "question 0?", scored(4.0)), (1, "x", None)]
    card = scorecard(one, read, RUBRIC, ["a", "b"], [1], {}, draws=50)
    assert card.criteria["accuracy"].value == pytest.approx((5 + 2.5 + 2) / 3)
    assert card.criteria["safety"].value == pytest.approx((3 + 2 + 2) / 3)
    assert card.sources["accuracy"] == {"programs": 2, "judges": 1}
    assert card.total.value == pytest.approx((4 * 3 + 5 + 4 * 2 + 2.5 + 5 * 2) / 3)
    assert card.by_judge == {"a": 10.0, "b": 20.0}
    assert (card.unparsed, card.answers, card.own, card.missing) == (1, 3, ["b"], [])
    assert card.without_own is not None
    assert card.without_own.value == pytest.approx((4 * 2 + 5 + 4 * 2 + 2.5 + 10) / 3)


def test_without_a_judge_the_rest_needs_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = file(tmp_path, "m", [2, 2, 4], [{"accuracy": True, "safety": 1}, {"accuracy": False}, {}])
    other = file(tmp_path, "n", [6, 6, 6])
    found = judged(Order([first, other], scorers=[Lengths()]), None, tmp_path / "out")
    assert found is not None
    assert found.missing == ["reasoning", "conciseness", "originality"]
    cards = {card.name: card for card in found.cards}
    assert cards["m"].criteria["accuracy"].value == 2.5
    assert math.isnan(cards["m"].total.value)
    assert cards["m"].grade == "–"
    assert cards["n"].missing == KEYS
    assert [card.name for card in found.cards] == ["n", "m"], "without totals the rewards give the order"
    flat = figures(found.cards)
    assert flat["judge.m.accuracy"] == 2.5
    assert flat["judge.m.reward"] == pytest.approx(8 / 6)
    assert flat["judge.n.reward"] == 3.0
    assert not any("originality" in name or "total" in name for name in flat)
    again = judged(Order([first, other], scorers=[Lengths()]), None, tmp_path / "out2")
    assert again is not None
    assert figures(again.cards) == flat
    assert (tmp_path / "out2" / "scorecards.html").read_bytes() == (tmp_path / "out" / "scorecards.html").read_bytes()
    kept = json.loads((tmp_path / "out" / "scorecards.json").read_text())["models"]["m"]
    assert kept["needs_an_external_judge"] == ["reasoning", "conciseness", "originality"]
    page = (tmp_path / "out" / "scorecards.html").read_text()
    assert "needs an external judge: --judge https://HOST/v1#MODEL" in page
    capsys.readouterr()
    assert main(["judge", "run", str(first), "--out", str(tmp_path / "cli")]) == 0
    shown = capsys.readouterr().out
    assert "note: reasoning, conciseness, originality: needs an external judge: --judge" in shown
    assert main(["judge", "run", str(other), "--out", str(tmp_path / "nobody")]) == 2
    assert "nobody judges, and no row holds anything that a program has verified" in capsys.readouterr().err


def test_a_reward_model_compares_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [file(tmp_path, "short", range(1, 13)), file(tmp_path, "long", range(3, 15))]
    report = tmp_path / "report.html"
    assert contrast(Order(files, scorers=[Lengths()]), None, report, True) == 0
    rows = json.loads((tmp_path / "report.judging" / "annotations.json").read_text())
    assert len(rows) == 24
    chance = 1 / (1 + math.exp(-1.0))  # two more words are one more point
    for row in rows:
        assert row["annotator"] == "first:reward"
        better = chance if row["generator_1"] == "long" else 1 - chance
        assert row["preference"] == pytest.approx(2 - better, abs=1e-6)
    assert "rewards 1.500 and 0.500" in {row["note"] for row in rows}
    assert f"long against short: {100 * chance:.1f}%" in capsys.readouterr().out
    assert "first:reward" in report.read_text()


def test_judges_agreement_stands_in_the_report(tmp_path: Path) -> None:
    rows = []
    for n in range(20):
        for judge, prefers in (("a", n % 2), ("b", n % 2 if n < 15 else 1 - n % 2), ("c", None)):
            for order in (0, 1):
                first = order if prefers is None else prefers ^ order  # c always takes the first place: a tie
                names = ("x", "y") if order == 0 else ("y", "x")
                rows.append(
                    {"instruction": f"q{n}", "output_1": "one", "output_2": "two", "annotator": judge}
                    | {
                        "generator_1": names[0],
                        "generator_2": names[1],
                        "preference": 1 if prefers is None else 2 - first,
                    }
                )
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    found = compare(read_rows([path]), draws=50)
    assert found.judges == ["a", "b", "c"]
    assert found.agreement["cohen a b"].value == pytest.approx(0.5)  # 75% agree, 50% by chance
    assert found.agreement["cohen a c"].value == 0.0


def test_a_bad_verified_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"m.jsonl row 1: verified must be a mapping"):
        read_candidates([file(tmp_path, "m", [1], [True])])
    with pytest.raises(UserError, match=r"row 1: verified.accuracy must be true, false or a share from 0 to 1, got 4"):
        read_candidates([file(tmp_path, "m", [1], [{"accuracy": 4}])])
    unknown = file(tmp_path, "m", [1], [{"acuracy": True}])
    with pytest.raises(
        UserError, match=r"verified\.acuracy: the rubric blueprint has no such criterion; it has reasoning"
    ):
        judged(Order([unknown]), None, tmp_path / "out")


def test_the_picture_leaves_out_what_nobody_judged(tmp_path: Path) -> None:
    (one,) = read_candidates([file(tmp_path, "m<1>", [2, 2], [{"accuracy": 1, "safety": 1}] * 2)])
    two = scorecard(one, [], RUBRIC, [], [], {}, draws=20)
    assert radar_svg([two], RUBRIC) == "", "two criteria make no outline"
    full = scorecard(one, [(0, "question 0?", scored(3.0))], RUBRIC, ["a"], [], {}, draws=20)
    assert radar_svg([full], RUBRIC).count("<circle") == 5
    assert "m&lt;1&gt;" in radar_svg([full], RUBRIC)
    some = [{"accuracy": 1, "safety": 1, "reasoning": 1}] * 2
    (three,) = read_candidates([file(tmp_path, "n", [2, 2], some)])
    drawn = radar_svg([scorecard(three, [], RUBRIC, [], [], {}, draws=20)], RUBRIC)
    assert drawn.count("<circle") == 3
    assert drawn.count("needs an external judge") == 2
