"""Files of the user's own in stages: what is left out is counted on both sides; single answers are for KTO alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sekkei.core import runlog
from sekkei.data.batch import Batch
from sekkei.model.output import Output
from sekkei.objectives.kto import Feedback
from sekkei.objectives.sft import pack_samples
from sekkei.parallel.ops import LocalOps
from sekkei.stages.model_artifact import load_model
from sekkei.stages.paired import feedback_accuracy
from sekkei.train.objective import Context
from sekkei.train.step import PlainStep

Call = Callable[..., tuple[int, str]]
KTO = "tune.kto={start: sft, kto: {steps: 2, answers: 8}}"
LONG = " ".join(map(str, range(400)))  # of the smoke model's 512 tokens of context it needs more


def written(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def figures(folder: Path, stage: str) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / stage / "done.json").read_text())["figures"]
    return found


def run(call: Call, folder: Path, only: str, *settings: str) -> str:
    code, shown = call("run", "smoke", *settings, "--run-dir", folder, "--only", only)
    assert code == 0, shown
    return shown


def test_conversations_that_are_left_out_are_figures(copy: Path, tmp_path: Path, call: Call) -> None:
    said = {"role": "assistant", "content": "yes"}
    system = {"role": "system", "content": "Be brief."}
    talks = [{"messages": [{"role": "user", "content": f"say {i}"}, said]} for i in range(9)]
    talks += [{"messages": [system, system, *talks[0]["messages"]]}, {"messages": [*talks[0]["messages"], system]}]
    talks += [{"messages": [{"role": "user", "content": ""}, said]}] * 2
    talks += [{"messages": [{"role": "user", "content": LONG}, said]}]
    talks += [{"messages": [*talks[0]["messages"], {"role": "user", "content": "and?"}]}]
    path = written(tmp_path / "talks.jsonl", talks)
    own = (
        f"tune.mine={{start: base, sft: {{steps: 1, examples: 4, everyday: 0, refusals: 0, path: {path}, "
        "gate: {min_pass1_sampled: 0}}}"
    )
    run(call, copy, "mine", own)
    found = {name: value for name, value in figures(copy, "mine").items() if ".file." in name}
    assert found == {
        "mine.file.conversations": 15.0,
        "mine.file.conversations_dropped_system": 2.0,
        "mine.file.conversations_dropped_empty": 2.0,
        "mine.file.conversations_dropped_long": 1.0,
        "mine.file.conversations_trimmed": 1.0,
    }


@pytest.fixture
def long_pairs(tmp_path: Path) -> str:
    """Of every ten pairs one is longer than the model's context, on both sides of the split."""
    rows = [{"prompt": f"say {i}", "chosen": f"{i}", "rejected": LONG if i % 10 == 0 else "no"} for i in range(100)]
    return f"preferences.path={written(tmp_path / 'pairs.jsonl', rows)}"


@pytest.mark.parametrize("kind", ["dpo", "kto", "reward"])
def test_pairs_longer_than_the_context_are_left_out_on_both_sides(
    kind: str, copy: Path, long_pairs: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = "answers: 8" if kind == "kto" else "pairs: 8"
    own = f"tune.mine={{start: sft, {kind}: {{steps: 1, {sizes}}}}}"
    settings = (long_pairs, "preferences.held_out_percent=30", own)
    run(call, copy, "preferences", *settings)
    lines = [json.loads(line) for line in (copy / "preferences" / "pairs.jsonl").read_text().splitlines()]
    long = {split: sum(len(x["rejected"]) > 512 and x["split"] == split for x in lines) for split in ("train", "test")}
    assert min(long.values()) > 0
    assert sum(long.values()) == 10
    read: list[int] = []
    score = PlainStep.score

    def watched(self: PlainStep, role: str, batch: Batch, *given: Any) -> Output:
        read.append(batch.ids.shape[-1])
        return score(self, role, batch, *given)

    monkeypatch.setattr(PlainStep, "score", watched)
    run(call, copy, "mine", *settings)
    assert read
    assert max(read) < 512, "what is not trained is not scored either"
    found = figures(copy, "mine")
    assert {name: value for name, value in found.items() if "dropped" in name} == {
        "mine.dropped_long.train": float(long["train"]),
        "mine.dropped_long.test": float(long["test"]),
    }
    (step,) = (r for r in runlog.read(copy / "metrics.jsonl") if r["stage"] == "mine" and "loss" in r)
    assert step["answers/dropped_long" if kind == "kto" else "pairs/dropped_long"] == long["train"]


def test_a_held_out_side_of_long_pairs_alone_is_refused(copy: Path, tmp_path: Path, call: Call, refused: Any) -> None:
    rows = [{"prompt": f"say {i}", "chosen": f"{i}", "rejected": LONG} for i in range(40)]
    own = (f"preferences.path={written(tmp_path / 'pairs.jsonl', rows)}", "dpo.steps=1")
    run(call, copy, "preferences", *own)
    line = refused("run", "smoke", *own, "--run-dir", copy, "--only", "dpo")
    assert "of the held-out side no pairs are left (left out: " in line
    assert line.endswith(" long); give shorter ones, or raise model.max_context=512")


def liked_or_not(folder: Path) -> Path:
    """Answers to 120 questions: a number is liked, "no" is not; one is longer than the context, one says nothing."""
    rows: list[dict[str, Any]] = [
        {"prompt": f"say {i}", "completion": f"{i}" if i % 2 else "no", "label": bool(i % 2)} for i in range(120)
    ]
    rows += [{**rows[1], "completion": LONG}, {**rows[1], "completion": ""}]
    return written(folder / "feedback.jsonl", rows)


def test_kto_learns_from_single_answers(copy: Path, tmp_path: Path, call: Call) -> None:
    settings = (f"preferences.path={liked_or_not(tmp_path)}", "preferences.held_out_percent=20", "dpo=null",
                "tune.kto={start: sft, kto: {steps: 6, answers: 16, optim: {lr: 1.0e-2}}}")  # fmt: skip
    run(call, copy, "preferences", *settings)
    found = figures(copy, "preferences")
    assert found["preferences.file.answers"] == 122
    assert found["preferences.file.answers_dropped_empty"] == 1
    kinds = {name: n for name, n in found.items() if name.endswith(("liked", "disliked"))}
    assert set(kinds) == {
        f"preferences.{split}.{kind}" for split in ("train", "test") for kind in ("liked", "disliked")
    }
    assert sum(kinds.values()) == 121
    run(call, copy, "kto", *settings)
    found = figures(copy, "kto")
    assert found["kto.feedback_accuracy.start"] == 0.5
    assert found["kto.feedback_accuracy.end"] > 0.9, "numbers are liked on the held-out side, too"
    assert sum(found.get(f"kto.dropped_long.{side}", 0) for side in ("train", "test")) == 1
    start, end = (dict(load_model(copy / name / "model").named_parameters()) for name in ("sft", "kto"))
    assert any(not torch.equal(start[name], end[name]) for name in start)


@pytest.mark.parametrize(
    ("name", "stage"),
    [("dpo", "dpo.steps=4"), ("tune.rm", "tune.rm={start: sft, reward: {steps: 1}}")],
)
def test_single_answers_are_refused_where_pairs_are_wanted(
    name: str, stage: str, copy: Path, tmp_path: Path, refused: Any, call: Call
) -> None:
    path = liked_or_not(tmp_path)
    given = (f"preferences.path={path}", stage, *(() if name == "dpo" else ("dpo=null",)))
    told = f"learns from pairs, and preferences.path={path} holds single answers, liked or not, which are for kto"
    line = refused("run", "smoke", *given, "--run-dir", copy, "--only", "preferences")
    assert f"{name}: " in line
    assert told in line
    assert line.endswith(f"leave the stage out ({name}=null)")
    run(call, copy, "preferences", f"preferences.path={path}", "dpo=null", KTO)
    assert told in refused("run", "smoke", *given, "--run-dir", copy, "--only", name.removeprefix("tune."))


def test_one_kind_of_answers_on_a_side_is_refused(copy: Path, tmp_path: Path, call: Call, refused: Any) -> None:
    rows = [{"prompt": f"say {i}", "completion": f"{i}", "label": i == 0} for i in range(40)]
    own = (f"preferences.path={written(tmp_path / 'liked.jsonl', rows)}", "dpo=null", KTO)
    run(call, copy, "preferences", *own)
    line = refused("run", "smoke", *own, "--run-dir", copy, "--only", "kto")
    assert "liked answers and" in line
    assert line.endswith("it needs both: give more answers, or set preferences.held_out_percent")


def test_accuracy_of_single_answers_by_hand() -> None:
    """Five answers whose gains are 1, 0 (liked) and 0, -1, 2 (not): of 6 couples 3 are won and one is even."""
    feedback = [Feedback((1,), (2,), liked) for liked in (True, True, False, False, False)]
    (batch,) = pack_samples([one.sample() for one in feedback], 64)
    gains = {True: [1.0, 0.0], False: [0.0, -1.0, 2.0]}
    ref = torch.zeros_like(batch.extra["sign"])
    for liked, sign in ((True, 1.0), (False, -1.0)):
        ref[batch.extra["sign"] == sign] = -torch.tensor(gains[liked])

    def score(role: str, batch: Batch, wants: frozenset[str], temperature: float) -> Output:
        return Output(logprobs=torch.zeros(batch.ids.shape))

    ctx = Context(models={}, ops=LocalOps(), device=torch.device("cpu"), seed=0, score=score)
    assert feedback_accuracy([batch.with_extra(ref=ref)], ctx) == {"feedback_accuracy": pytest.approx(3.5 / 6)}
