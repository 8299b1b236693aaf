"""Judging from files to a report, through real endpoints on loopback whose biases are planted."""

from __future__ import annotations

import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sekkei.cli import main
from sekkei.judge.rubric import load_rubric

RUBRIC = load_rubric()
QUALITY = {"good": 5.0, "fair": 3.0, "poor": 1.0}
Say = Callable[[str], str]


@contextmanager
def judge(say: Say) -> Iterator[str]:
    """An OpenAI-compatible endpoint that replies `say(last message)`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert body["response_format"]["type"] == "json_schema"
            message = {"role": "assistant", "content": say(body["messages"][-1]["content"])}
            reply = {
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 10},
            }
            data = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()


def quality(text: str) -> float:
    return next(value for word, value in QUALITY.items() if word in text)


def fair(content: str) -> str:
    """Scores what an answer says of itself; in pairs it takes the first unless the second is better by 3."""
    answers = re.findall(r"<answer(?:-[AB])?-\w{8}>\n(.*?)\n</answer", content, re.DOTALL)
    if len(answers) == 1:
        if "unreadable" in answers[0]:
            return "I would rather not say."
        return json.dumps({c.key: {"note": "so", "score": quality(answers[0])} for c in RUBRIC.criteria})
    gap = quality(answers[1]) - quality(answers[0])
    return json.dumps({"note": "because", "better": "B" if gap >= 3 else "A"})


def answers(folder: Path, name: str, word: str, count: int = 6) -> Path:
    path = folder / f"{name}.jsonl"
    rows = [
        {"instruction": f"question {n}?", "output": f"a {word} answer <{n}>", "finish_reason": "stop"}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_compare_writes_report_figures_and_annotations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [
        answers(tmp_path, name, word) for name, word in (("alpha-1", "good"), ("beta-1", "fair"), ("gamma-1", "poor"))
    ]
    report = tmp_path / "report.html"
    with judge(fair) as url:
        call = ["judge", "compare", *map(str, files), "--judge", f"{url}#beta-judge", "--out", str(report)]
        assert main([*call, "--dry-run", "--price-prompt", "2", "--price-completion", "10"]) == 0
        assert "54 requests to ask" in capsys.readouterr().out  # 3 pairs × 2 orders × 6 + 3 models × 6
        assert not report.exists()
        assert main(call) == 0
        shown = capsys.readouterr().out
        assert "note: beta-judge judges beta-1 of its own family (flag)" in shown
        assert main(call) == 0
        again = capsys.readouterr().out
        assert "0 requests to ask, 54 done before" in again
    folder = tmp_path / "report.judging"
    found = json.loads((folder / "comparison.json").read_text())
    assert [one["model"] for one in found["ranking"]] == ["alpha-1", "beta-1", "gamma-1"]
    rates = {(one["model"], one["against"]): one["value"] for one in found["win_rates"]}
    # the judge prefers the first place where answers are close: half of those verdicts flip
    assert rates == {("alpha-1", "beta-1"): 50.0, ("alpha-1", "gamma-1"): 100.0, ("beta-1", "gamma-1"): 50.0}
    raw = found["raw_win_rates"]
    assert {name: rates["all"]["value"] for name, rates in raw.items()} == {"alpha-1": 75, "beta-1": 50, "gamma-1": 25}
    # beta's judge left out of what beta takes part in: alpha against gamma is left, and nothing of beta's
    outside = {name: rates["without_own_family"]["value"] for name, rates in raw.items()}
    assert outside == {"alpha-1": 100, "beta-1": None, "gamma-1": 0}
    assert raw["beta-1"]["equally_long"]["value"] == 50
    assert "alpha-1: raw win rate 75.0%" in shown
    cards = json.loads((folder / "scorecards.json").read_text())["models"]
    assert cards["alpha-1"]["total"]["value"] == 25
    assert cards["alpha-1"]["grade"] == "EXCELLENT"
    assert cards["beta-1"]["judges_of_own_family"] == ["beta-judge"]
    rows = json.loads((folder / "annotations.json").read_text())
    assert len(rows) == 36
    page = report.read_text()
    for part in ("Ranking", "Scorecards", "biases", "Most disputed", "a good answer &lt;0&gt;"):
        assert part in page
    assert "<0>" not in page, "answers must be escaped"
    assert "<script" not in page
    assert main(["judge", "winrate", str(folder / "annotations.json"), "--baseline", "gamma-1", "--draws", "5"]) == 0
    assert main(["judge", "rank", str(folder / "annotations.json"), "--draws", "20"]) == 0
    assert "alpha-1" in capsys.readouterr().out


def test_run_counts_unparsable_replies_and_flags_cheats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = answers(tmp_path, "model", "good", count=12)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[3]["output"] = "a good but unreadable answer"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cheat = tmp_path / "cheat.jsonl"
    cheat.write_text("".join(json.dumps({**row, "output": "I am good!"}) + "\n" for row in rows))
    with judge(fair) as url:
        assert main(["judge", "run", str(path), str(cheat), "--judge", f"{url}#j", "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "scorecards.json").read_text())
    assert found["models"]["model"]["unparsed"] == 1
    assert found["models"]["model"]["answers"] == 11
    assert found["models"]["model"]["total"]["value"] == 25
    assert found["cheats"]["cheat"]["constant"] == 12
    assert "warning: cheat: one text answers 12 of 12 prompts" in capsys.readouterr().out
    assert (tmp_path / "out" / "scorecards.html").exists()


def test_own_family_is_refused_or_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(answers(tmp_path, name, word)) for name, word in (("alpha-1", "good"), ("beta-1", "fair"))]
    with judge(fair) as url:
        base = ["judge", "run", *files, "--judge", f"{url}#alpha-judge", "--out", str(tmp_path / "out")]
        assert main([*base, "--own-family", "refuse"]) == 2
        assert "alpha-judge judges alpha-1, a model of its own family" in capsys.readouterr().err
        assert main([*base, "--own-family", "leave-out"]) == 0
        assert list(json.loads((tmp_path / "out" / "scorecards.json").read_text())["models"]) == ["beta-1"]
        assert main([*base, "--own-family", "perhaps"]) == 2


def test_errors_name_file_and_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, empty = answers(tmp_path, "a", "good"), tmp_path / "b.jsonl"
    empty.write_text('{"instruction": "other?", "output": "x"}\n')
    base = ["--judge", "http://127.0.0.1:9/v1#j", "--out", str(tmp_path / "r.html")]
    assert main(["judge", "compare", str(one), *base]) == 2
    assert "at least two models" in capsys.readouterr().err
    assert main(["judge", "compare", str(one), str(empty), *base]) == 2
    assert "no instruction is answered by all models" in capsys.readouterr().err
    empty.write_text('{"prompt": "x"}\n')
    assert main(["judge", "compare", str(one), str(empty), *base]) == 2
    assert "b.jsonl row 1: instruction is missing" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


def test_a_jury_from_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three judges who share an error and one good one; people label some pairs."""
    rows, people = [], []
    for n in range(120):
        truth, lured = float(n % 2), n % 3 == 0
        pair = {
            "instruction": f"q{n}",
            "output_1": f"x{n}",
            "output_2": f"y{n}",
            "generator_1": "m",
            "generator_2": "n",
        }
        for name in ("weak1", "weak2", "weak3", "good"):
            wrong = lured if name.startswith("weak") else n % 11 == 0
            rows.append(pair | {"annotator": name, "preference": 1 + (1 - truth if wrong else truth)})
        if n < 80:
            people.append(pair | {"annotator": "people", "preference": 1 + truth})
    votes, anchors, out = tmp_path / "votes.json", tmp_path / "anchors.json", tmp_path / "jury.json"
    votes.write_text(json.dumps(rows))
    anchors.write_text(json.dumps(people))
    figures = tmp_path / "figures.json"
    call = ["judge", "jury", str(votes), "--anchors", str(anchors), "--out", str(out), "--json", str(figures)]
    assert main(call) == 0
    found = json.loads(figures.read_text())
    assert found["accuracies"]["majority"] < 0.7 < found["accuracies"]["calibrated, held out"]
    assert found["weights"]["good"] > sum(found["weights"][f"weak{k}"] for k in (1, 2, 3))
    verdicts = json.loads(out.read_text())
    assert len(verdicts) == 120
    right = sum((row["preference"] > 1.5) == (int(row["instruction"][1:]) % 2 == 1) for row in verdicts)
    assert right / 120 > 0.88
    assert main(["judge", "winrate", str(out), "--baseline", "m", "--draws", "5"]) == 0
