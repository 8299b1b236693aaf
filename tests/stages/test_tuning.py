"""Tuning stages of every kind, from any model, on a copy of the finished smoke run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sekkei.engine.request import Completion
from sekkei.llm.run_folder import choose_stage
from sekkei.model.lora import load_lora, merge_lora
from sekkei.recipes.recipe import load
from sekkei.stages.model_artifact import load_model
from sekkei.stages.preferences import read_pairs
from sekkei.stages.problems import asker
from sekkei.text.tokenizer import Tokenizer

Call = Callable[..., tuple[int, str]]
KINDS = """
extends: smoke
tune:
  rm: {start: sft, reward: {steps: 4, pairs: 8, unmatched: true, optim: {lr: 1.0e-2}}}
  ppo: {start: sft, scored_by: rm, ppo: &ppo {steps: 3, prompts: 4, samples: 2, epochs: 2, max_tokens: 24,
        reward_model: 0.5, loop: {checkpoint_every: 1}}}
  shared: {start: sft, ppo: {steps: 1, prompts: 4, epochs: 1, max_tokens: 24, critic: shared, kl: 0}}
  kto: {start: sft, kto: {steps: 2, answers: 8}}
  online: {start: kto, online_dpo: {steps: 2, prompts: 4, samples: 4, max_tokens: 24}}
  zero: {start: base, form: document, grpo: {steps: 2, prompts: 4, samples: 4, max_tokens: 24}}
  direct: {start: base, sft: {steps: 2, examples: 8, styles: [none], gate: {min_pass1_sampled: 0}}}
  again: {start: base, sft: {steps: 2, examples: 8, own: {stage: sft, prompts: 4}, gate: {min_pass1_sampled: 0}}}
inference:
  zero: {study: null, budget: {budgets: [0, 8], extensions: [1]}}
  sft:
    scored_by: rm
    study: {problems: 1, shots: [0], samples: [1], best_of: 2, beam: 1, candidates: 2, max_tokens: 24, pool: 4}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "smoke.yaml"
    path.write_text(KINDS)
    return path


def test_every_kind_learns_and_leaves_a_model(copy: Path, recipe: Path, call: Call) -> None:
    code, shown = call("run", recipe, "--run-dir", copy, "--until", "eval.direct")
    assert code == 0, shown
    figures: dict[str, Any] = json.loads((copy / "results.json").read_text())["figures"]
    assert all(math.isfinite(value) for value in figures.values())
    assert 0 <= figures["rm.accuracy"] <= 1
    assert figures["ppo.rollouts"] == 3 * 4 * 2
    assert figures["kto.preference_accuracy.start"] == 0.5
    for label in ("ppo", "shared", "kto", "online", "zero", "direct"):
        assert f"reasoning.{label}.pass1_sampled" in figures
        trained = load_model(copy / label / "model")
        assert trained.lm_head is not None
        assert trained.value_head is None, "a critic's head stays behind"
    assert load_model(copy / "rm" / "model").reward_head is not None
    sft, ppo = (dict(load_model(copy / name / "model").named_parameters()) for name in ("sft", "ppo"))
    assert any(not torch.equal(sft[name], ppo[name]) for name in sft)
    assert choose_stage(copy) == "grpo", "what is tuned beside the main line is asked for by name"
    rollouts = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines() if '"rollout"' in line]
    assert {line["stage"] for line in rollouts} >= {"grpo", "ppo", "online", "zero"}
    assert all(math.isfinite(answer["reward"]) for line in rollouts for answer in line["rollout"])
    steps = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    assert [s["critic/value_error"] >= 0 for s in steps if s["stage"] == "ppo" and "reward" in s] == [True] * 3


def test_what_is_asked_at_inference_time(copy: Path, recipe: Path, call: Call) -> None:
    for only in ("rm", "zero", "inference.zero", "inference.sft"):
        code, shown = call("run", recipe, "--run-dir", copy, "--only", only)
        assert code == 0, shown
    figures = json.loads((copy / "results.json").read_text())["figures"]
    assert [n for n in figures if n.startswith("inference.zero") and n.endswith("accuracy")] == [
        "inference.zero.budget.t0.accuracy",
        "inference.zero.budget.t8.accuracy",
        "inference.zero.budget.t8_x1.accuracy",
    ]
    assert figures["inference.zero.budget.t8.thinking_tokens"] <= 8
    assert "inference.sft.best_of.rm.n2.accuracy" in figures
    assert "made to go on × 1" in (copy / "report.html").read_text()


def test_a_model_is_asked_with_documents_and_without(copy: Path, call: Call) -> None:
    asked = "documents={stage: sft, questions: 2, max_tokens: 12}"
    code, shown = call("run", "smoke", asked, "--run-dir", copy, "--only", "documents")
    assert code == 0, shown
    figures = json.loads((copy / "results.json").read_text())["figures"]
    assert {f"documents.{arm}.correct" for arm in ("alone", "retrieval", "limited")} <= figures.keys()
    before = (copy / "documents" / "done.json").read_text()
    assert call("run", "smoke", asked, "--run-dir", copy, "--only", "documents", "--force")[0] == 0
    again = json.loads((copy / "documents" / "done.json").read_text())
    assert again["figures"] == json.loads(before)["figures"]
    assert call("run", "smoke", "documents={stage: stf}", "--run-dir", copy)[0] == 2


def test_a_document_is_put_without_turns(copy: Path) -> None:
    tokenizer = Tokenizer.load(copy / "tokenizer")
    text = tokenizer.decode(asker(load("r1-zero"), "zero", tokenizer)(0).ids)
    assert text.startswith("<|bos|>start at ")
    assert text.endswith("\n<think>")
    assert "<|user|>" not in text


def completion(tokenizer: Tokenizer, text: str, ended: bool = True) -> Completion:
    ids = (*tokenizer.encode_trusted(text), *([tokenizer.end_id] if ended else []))
    return Completion(
        token_ids=ids, logprobs=(0.0,) * len(ids), finish_reason="stop" if ended else "length", weights_hash="", seed=0
    )


def test_problems_of_ones_own_are_judged(copy: Path, tmp_path: Path, call: Call) -> None:
    problems = [
        {"question": "What is a half of 3?", "answer": "3 / 2 = 1.5\n#### 1.5"},
        {"question": "Write f that doubles.", "tests": "assert f(2) == 4"},
    ]
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    own = (
        f"tune.mine={{start: sft, path: {path}, rewards: {{format: 0.5, length: 0.25, free_tokens: 4}}, "
        "grpo: {steps: 1, prompts: 4, samples: 2, max_tokens: 24}}"
    )
    tokenizer = Tokenizer.load(copy / "tokenizer")
    ask = asker(load("smoke", [own]), "mine", tokenizer)
    assert sorted(ask(i).ids for i in (0, 1)) == sorted(ask(i).ids for i in (2, 3)), "each once per pass"
    by_text = {tokenizer.decode(ask(i).ids): ask(i).judge for i in (0, 1)}
    half, code = (next(judge for text, judge in by_text.items() if word in text) for word in ("half", "doubles"))
    good = half(completion(tokenizer, "<think>so</think>\n#### 3/2"))
    assert (good["rewards/right"], good["rewards/format"]) == (1.0, 1.0)
    assert good["reward"] == pytest.approx(1.5 + 0.25 * good["rewards/length"])
    assert half(completion(tokenizer, "#### 1.5", ended=False))["rewards/right"] == 0.0
    assert half(completion(tokenizer, "#### 2"))["reward"] <= 0.0
    assert code(completion(tokenizer, "```python\ndef f(x):\n    return 2 * x\n```"))["rewards/right"] == 1.0
    assert code(completion(tokenizer, "```python\ndef f(x):\n    return x\n```"))["rewards/right"] == 0.0
    code_of, shown = call("run", "smoke", own, "--run-dir", copy, "--only", "mine")
    assert code_of == 0, shown
    path.write_text('{"question": "What?", "answer": "many"}\n')
    code_of, shown = call("run", "smoke", own, "--run-dir", copy, "--only", "mine")
    assert code_of == 2
    assert "problems.jsonl line 1: the answer does not end with #### and a value" in shown


def test_the_calculator_and_rollouts_ahead_run_in_a_recipe(copy: Path, call: Call) -> None:
    settings = "steps: 2, prompts: 4, samples: 2, max_tokens: 24"
    own = (
        f"tune.sums={{start: sft, grpo: {{{settings}, tool: calculator}}}}",
        # a reward for short answers: a model this small may get all sums wrong, and equal rewards move no weight
        "tune.ahead={start: sft, rewards: {length: 1.0, free_tokens: 1}, "
        f"grpo: {{{settings}, off_by: 1, correction: token_truncate}}}}",
    )
    for only in ("sums", "ahead"):
        code, shown = call("run", "smoke", *own, "--run-dir", copy, "--only", only)
        assert code == 0, shown
    steps = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    assert [s["staleness"] for s in steps if s["stage"] == "ahead" and "staleness" in s][-1] == 1.0


def test_pairs_of_other_lengths_are_for_those_who_ask(copy: Path) -> None:
    apart, whole = read_pairs(copy / "preferences"), read_pairs(copy / "preferences", unmatched=True)
    assert all(len(p.chosen) == len(p.rejected) for p in apart["train"] if p.kind == "right")
    more = [pair for pair in whole["train"] if pair not in apart["train"]]
    assert more
    assert all(pair.kind == "unmatched" and len(pair.chosen) != len(pair.rejected) for pair in more)


def test_a_model_without_right_answers_teaches_nothing(copy: Path, recipe: Path, call: Call) -> None:
    code, shown = call("run", recipe, "--run-dir", copy, "--only", "again")
    if code == 0:  # four guesses of 23: one is right in 16% of all machines' versions
        assert "right answers of sft to 4 problems" in shown
    else:
        assert "again: no answer of sft is right; raise tune.again.sft.own.prompts" in shown
        assert not (copy / "again" / "done.json").exists()


@pytest.mark.slow
def test_ppo_goes_on_where_it_was_cut(copy: Path, recipe: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Policy, critic, both optimizers and the KL coefficient come back from a checkpoint."""
    assert call("run", recipe, "--run-dir", copy, "--until", "ppo")[0] == 0
    whole = json.loads((copy / "ppo" / "done.json").read_text())["digest"]
    from sekkei.train.loop import Loop

    take = Loop._take

    def cut(self: Loop, step: int) -> dict[str, object]:
        if self.stage == "ppo" and step == 2:
            raise KeyboardInterrupt
        return take(self, step)

    monkeypatch.setattr(Loop, "_take", cut)
    assert call("run", recipe, "--run-dir", copy, "--only", "ppo", "--force")[0] != 0
    monkeypatch.setattr(Loop, "_take", take)
    code, shown = call("run", recipe, "--run-dir", copy, "--only", "ppo")
    assert code == 0
    assert "goes on from step 2 of 3" in shown
    assert json.loads((copy / "ppo" / "done.json").read_text())["digest"] == whole


def test_conversations_and_pairs_of_ones_own(copy: Path, tmp_path: Path, call: Call) -> None:
    talks = [
        {"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"{i}"}]}
        for i in range(9)
    ]
    talks.append({"messages": [{"role": "user", "content": "hm"}]})
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    pairs = [{"prompt": f"say {i}", "chosen": f"{i}", "rejected": "no", "margin": 1 + i % 2} for i in range(60)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    own = (
        f"tune.mine={{start: base, sft: {{steps: 2, examples: 8, everyday: 0, refusals: 0, learn: last, "
        f"path: {tmp_path}/talks.jsonl, gate: {{min_pass1_sampled: 0}}}}}}",
        "tune.rated={start: sft, reward: {steps: 1, pairs: 8}}",
        f"preferences.path={tmp_path}/pairs.jsonl",
    )
    for only in ("mine", "preferences", "rated"):
        code, shown = call("run", "smoke", *own, "--run-dir", copy, "--only", only)
        assert code == 0, shown
        if only == "mine":
            assert "9 conversations of" in shown
            assert "1 dropped_no_answer" in shown
    figures = json.loads((copy / "preferences" / "done.json").read_text())["figures"]
    assert figures["preferences.train.file"] + figures["preferences.test.file"] == 60
    assert figures["preferences.test.file"] >= 1
    lines = [json.loads(line) for line in (copy / "preferences" / "pairs.jsonl").read_text().splitlines()]
    assert {line["margin"] for line in lines} == {1.0, 2.0}
    before = (copy / "mine" / "done.json").read_text()
    (tmp_path / "talks.jsonl").write_text(json.dumps(talks[0]) + "\n")
    assert call("run", "smoke", *own, "--run-dir", copy, "--only", "mine")[0] == 0
    assert (copy / "mine" / "done.json").read_text() != before, "another content is another stage"
    missing = "tune.mine={start: base, sft: {steps: 1, path: /no/such.jsonl}}"
    code, shown = call("run", "smoke", missing, "--run-dir", copy, "--only", "mine")
    assert code == 2
    assert "/no/such.jsonl: no such file" in shown


def test_an_adapter_alone_is_trained(copy: Path, call: Call) -> None:
    own = (
        "tune.low={start: sft, lora: {rank: 4}, grpo: {steps: 1, prompts: 4, samples: 4, max_tokens: 24}}",
        "tune.rm={start: sft, lora: {rank: 2}, reward: {steps: 2, pairs: 8}}",
        "tune.more={start: base, lora: {rank: 2}, sft: {steps: 2, examples: 8, gate: {min_pass1_sampled: 0}}}",
    )
    for only in ("low", "rm", "more"):
        code, shown = call("run", "smoke", *own, "--run-dir", copy, "--only", only)
        assert code == 0, shown
    assert {path.name for path in (copy / "more" / "adapter").iterdir()} >= {"adapter_config.json"}
    base, more = (dict(load_model(copy / name / "model").named_parameters()) for name in ("pretrain.long", "more"))
    changed = {name for name in base if not torch.equal(base[name], more[name])}
    assert changed == {name for name in base if name.endswith("_proj.weight")}
    adapter = load_model(copy / "pretrain.long" / "model")
    load_lora(copy / "more" / "adapter", adapter)
    merged = dict(merge_lora(adapter).named_parameters())
    assert all(torch.equal(merged[name], more[name]) for name in more), "the adapter and the model say the same"
    assert load_model(copy / "rm" / "model").reward_head is not None
