"""A judge's reward in a recipe: an endpoint on loopback, a model of the same run, and what is refused."""

from __future__ import annotations

import http.server
import json
import math
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sekkei.core.errors import ConfigError
from sekkei.judge.rubric import load_rubric
from sekkei.recipes.recipe import load
from sekkei.train.loop import Loop

Call = Callable[..., tuple[int, str]]
SETTINGS = "steps: 3, prompts: 4, samples: 4, max_tokens: 24, loop: {checkpoint_every: 1}"
KEYS = [criterion.key for criterion in load_rubric().criteria]


class Judge(http.server.ThreadingHTTPServer):
    """Likes short answers, cannot be read where an answer has a 7 in it, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.broken = False

    @property
    def spec(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1#judge"

    def verdict(self, content: str) -> str:
        self.asked.append(content)
        answers = re.findall(r"<answer(?:-[AB])?-\w{8}>\n(.*?)\n</answer", content, re.DOTALL)
        if any("7" in answer for answer in answers):
            return "That is hard to say."
        if len(answers) == 2:
            return json.dumps({"note": "", "better": "A" if len(answers[0]) < len(answers[1]) else "B"})
        return json.dumps({key: {"note": "", "score": max(0.0, 5 - len(answers[0]) / 10)} for key in KEYS})


class Handler(http.server.BaseHTTPRequestHandler):
    server: Judge

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        message = {"role": "assistant", "content": self.server.verdict(body["messages"][-1]["content"])}
        reply = {
            "model": "judge",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10},
        }
        data = json.dumps(reply if not self.server.broken else {"error": {"message": "no such model"}}).encode()
        self.send_response(404 if self.server.broken else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def judge() -> Iterator[Judge]:
    server = Judge()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def steps(folder: Path, stage: str) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["stage"] == stage and "reward" in line]


def test_an_endpoint_judges_and_a_cut_run_pays_nothing_twice(
    copy: Path, call: Call, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = f"tune.kind={{start: sft, judge: {{by: '{judge.spec}', weight: 2}}, grpo: {{{SETTINGS}}}}}"
    take = Loop._take

    def cut(self: Loop, step: int) -> dict[str, object]:
        found = take(self, step)
        if step == 1:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Loop, "_take", cut)
    assert call("run", "smoke", own, "--run-dir", copy, "--only", "kind")[0] != 0
    monkeypatch.setattr(Loop, "_take", take)
    code, shown = call("run", "smoke", own, "--run-dir", copy, "--only", "kind")
    assert code == 0, shown
    assert "goes on from step 1 of 3" in shown
    assert len(judge.asked) == len(set(judge.asked)), "what was judged before the cut is read from the ledger"
    assert any("modulo" in question for question in judge.asked), "the judge sees the question"
    log = steps(copy, "kind")
    assert len(log) == 3
    assert all(0 <= line["rewards/judge"] <= 1 and line["judge/asked"] <= 16 for line in log)
    assert all(line.get("reward_errors/judge_unread", 0) >= line["judge/unread"] for line in log)
    assert all(math.isclose(l["reward"], l["rewards/right"] + 2 * l["rewards/judge"], abs_tol=1e-9) for l in log)  # noqa: E741
    asked, digest = len(judge.asked), json.loads((copy / "kind" / "done.json").read_text())["digest"]
    assert call("run", "smoke", own, "--run-dir", copy, "--only", "kind", "--force")[0] == 0
    assert json.loads((copy / "kind" / "done.json").read_text())["digest"] == digest, "as the cut one"
    assert len(judge.asked) == asked


def test_pairs_are_made_by_a_judge_and_a_broken_one_stops(copy: Path, call: Call, judge: Judge) -> None:
    """The verifier has no say: what is better is what the judge prefers in both orders."""
    own = (
        f"tune.short={{start: sft, rewards: {{verifier: 0}}, judge: {{by: '{judge.spec}', how: pairs}}, "
        f"online_dpo: {{{SETTINGS}}}}}"
    )
    code, shown = call("run", "smoke", own, "--run-dir", copy, "--only", "short")
    assert code == 0, shown
    log = steps(copy, "short")
    assert all(line["reward"] == line["rewards/judge"] for line in log)
    assert all(line["judge/asked"] % 2 == 0 for line in log), "both orders"
    judge.broken = True
    for errors in ("stop", "skip"):
        cut = own.replace("tune.short", f"tune.{errors}").replace("steps: 3", f"steps: 3, reward_errors: {errors}")
        code, shown = call("run", "smoke", cut, "--run-dir", copy, "--only", errors)
        assert code == 2, shown
        assert "no such model" in shown or "no answer of a whole rollout could be judged" in shown


SHORT = """
name: short
maximum: 1
step: 1
criteria: [{key: ok, name: OK, description: 'good?', anchors: []}]
grades: [{name: ANY, at_least: 0}]
"""


def test_a_model_of_the_same_run_judges(copy: Path, call: Call, tmp_path: Path) -> None:
    """One this small writes no JSON: none of its replies can be read, and no answer that ended has a score."""
    (tmp_path / "short.yaml").write_text(SHORT)
    judge = f"{{by: '#sft', rubric: {tmp_path}/short.yaml, max_tokens: 8}}"
    own = f"tune.own={{start: sft, judge: {judge}, grpo: {{{SETTINGS}}}}}"
    code, shown = call("run", "smoke", own, "--run-dir", copy, "--only", "own")
    log = steps(copy, "own")
    if code:
        assert "no answer of a whole rollout could be judged" in shown
    for line in log:
        assert line["judge/unread"] == line["judge/asked"]
        assert line["rewards/judge"] == 0.0, "only answers that were cut off are left"
    ledger = copy / "judgements" / "own" / "judgements.jsonl"
    assert ledger.exists()


@pytest.mark.parametrize(
    ("tune", "words"),
    [
        ("judge: {by: '#later'}, grpo: {steps: 1}", "tune.x.judge.by: got '#later'; stages with a model before it: "),
        ("judge: {by: ''}, grpo: {steps: 1}", "by: got ''"),
        ("judge: {by: env, weight: 0}, grpo: {steps: 1}", "weight: got 0"),
        ("judge: {by: env, how: pairs}, ppo: {steps: 1}", "judge.how: got pairs, but ppo.samples=1"),
        ("judge: {by: env, how: pairs, rubric: a.yaml}, grpo: {steps: 1}", "rubric: scores an answer by itself"),
        ("judge: {by: env}, dpo: {steps: 1}", "judge: dpo samples no answers"),
        ("judge: {by: env}, grpo: {steps: 1, tool: calculator}", "leave out path, form, rewards and judge"),
        ("rewards: {verifier: 0}, grpo: {steps: 1}", "there is no judge: nothing says what is right"),
    ],
)
def test_what_is_refused(tune: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        load("smoke", [f"tune.x={{start: sft, {tune}}}"])
